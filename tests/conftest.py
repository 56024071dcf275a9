"""Tiny real models, built offline from the real classes, and the optional data beside the clone."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from idgen.adapters.install import IDAdapter
from idgen.data.images import FaceTable, load_faces
from idgen.faces.detect import Face
from idgen.faces.scrfd import ScrfdDetector
from idgen.identity import Identity

torch.set_num_threads(1)  # tiny models: threads would only wait for each other


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _torch_is_left_as_it_was() -> Iterator[None]:
    """The programs run in this process: one that leaves gradients off would break a later file."""
    yield
    assert torch.is_grad_enabled()


@pytest.fixture(scope="session", autouse=True)
def _nobody_has_refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The list of people who refused is of the user who runs the tests: they have one of their own, empty."""
    before = os.environ.get("XDG_DATA_HOME")
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))
    yield
    if before is None:
        del os.environ["XDG_DATA_HOME"]
    else:
        os.environ["XDG_DATA_HOME"] = before


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as in a terminal: a job in the background (`make test &`) inherits it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


_FACES_FOUND: dict[tuple[Any, ...], list[Face]] = {}


@pytest.fixture(scope="module")
def faces_are_remembered() -> Iterator[None]:
    """Where many runs look at the same photos: mini's detector is asked once for each picture.

    What it says depends on the pixels and its settings alone, and is the same each time.
    """
    look = ScrfdDetector.detect

    def detect(detector: ScrfdDetector, image: np.ndarray) -> list[Face]:
        if detector.name != "mini":
            return look(detector, image)
        pixels = hashlib.sha256(image.tobytes()).digest()
        key = (detector.sizes_px, detector.score, image.shape, pixels)
        if key not in _FACES_FOUND:
            _FACES_FOUND[key] = look(detector, image)
        return [replace(f, box=f.box.copy(), landmarks=f.landmarks.copy()) for f in _FACES_FOUND[key]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScrfdDetector, "detect", detect)
        yield


def _folder_from(variable: str) -> Path:
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set: this test reads data that does not travel with the repository")
    if not Path(folder).is_dir():
        pytest.fail(f"{variable}={folder} is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def faces_folder() -> Path:
    """Folder of `faces_train.parquet`, `faces_test.parquet` and `pairs_test.csv`."""
    return _folder_from("IDGEN_FACES")


@pytest.fixture(scope="session")
def faces_test(faces_folder: Path) -> FaceTable:
    """The people of `faces_test.parquet`, decoded once; the pictures cannot be written to."""
    table = load_faces(faces_folder / "faces_test.parquet")
    table.images.setflags(write=False)
    return table


@pytest.fixture(scope="session")
def weights_folder() -> Path:
    """Folder of the teacher's and the judge's networks."""
    return _folder_from("IDGEN_WEIGHTS")


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer) -> Path:
    """A CLIP of the real class, in a folder as transformers keeps it."""
    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = tiny_tokenizer.eos_token_id
    words = {
        "vocab_size": len(tiny_tokenizer),
        "max_position_embeddings": 16,
        "eos_token_id": end,
        "bos_token_id": 0,
    }
    config = CLIPConfig(
        text_config=small | words,
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return folder


def tiny_unet(cross_attention_dim: int, **settings: object) -> UNet2DConditionModel:
    """A UNet of the real class with two levels and cross-attention in one of them and in the middle."""
    widths = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16),
        "layers_per_block": 1, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8, "norm_num_groups": 4,
    }  # fmt: skip
    return UNet2DConditionModel(**{**widths, "cross_attention_dim": cross_attention_dim, **settings})


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip


def tiny_text_config(tokenizer: CLIPTokenizer, width: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=16, num_attention_heads=2,
        num_hidden_layers=2, max_position_embeddings=16, bos_token_id=52, eos_token_id=53, pad_token_id=53,
        projection_dim=width,
    )  # fmt: skip


def tiny_scheduler(**settings: object) -> DDIMScheduler:
    common = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return DDIMScheduler(**{**common, "clip_sample": False, "set_alpha_to_one": False, **settings})


@pytest.fixture
def tiny_sd(tiny_tokenizer: CLIPTokenizer) -> dict[str, object]:
    """The components of Stable Diffusion 1.x with the widths turned down."""
    torch.manual_seed(0)
    return {
        "unet": tiny_unet(16).eval(),
        "vae": tiny_vae().eval(),
        "text_encoder": CLIPTextModel(tiny_text_config(tiny_tokenizer)).eval(),
        "tokenizer": tiny_tokenizer,
        "scheduler": tiny_scheduler(),
    }


@pytest.fixture
def tiny_sdxl(tiny_tokenizer: CLIPTokenizer) -> dict[str, object]:
    """The components of SDXL, widths turned down: two text encoders, pooled text, size conditioning."""
    torch.manual_seed(0)
    unet = tiny_unet(
        32, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16, transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    )  # fmt: skip
    return {
        "unet": unet.eval(),
        "vae": tiny_vae().eval(),
        "text_encoder": CLIPTextModel(tiny_text_config(tiny_tokenizer)).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(tiny_text_config(tiny_tokenizer)).eval(),
        "tokenizer": tiny_tokenizer,
        "tokenizer_2": tiny_tokenizer,
        "scheduler": tiny_scheduler(),
    }


@pytest.fixture
def random_adapter() -> Callable[..., IDAdapter]:
    """Makes an adapter for a UNet with no weight at zero, so that whatever it should change it changes."""

    def make(unet: UNet2DConditionModel, *, seed: int = 0, **settings: int) -> IDAdapter:
        adapter = IDAdapter.for_unet(unet, **{"id_dim": 8, **settings})
        generator = torch.Generator().manual_seed(seed)
        for name, weight in adapter.named_parameters():
            size = 0.2 if "_lora" in name else 0.5 if weight.ndim > 1 else 1.0  # about as large as the base's
            weight.data = torch.randn(weight.shape, generator=generator) * size
        return adapter.requires_grad_(False)

    return make


@pytest.fixture
def person() -> Callable[..., Identity]:
    """Makes the identity of person number i: unit vectors of 8 numbers, far from each other."""

    def make(i: int, *, encoder: str = "tiny@0123456789ab", dim: int = 8) -> Identity:
        vector = torch.randn(dim, generator=torch.Generator().manual_seed(100 + i))
        return Identity.from_vector((vector / vector.norm()).numpy(), encoder)

    return make


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window; where there is none the test skips, or fails where one must be."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        if os.environ.get("IDGEN_NEEDS_BROWSER"):
            pytest.fail("no Chromium on this machine, and IDGEN_NEEDS_BROWSER is set")
        pytest.skip("no Chromium on this machine: `apt-get install chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Photos that people give the page, good ones and others: `paging.Photos`."""
    from paging import write_photos

    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def shop() -> Any:
    """mini in few steps, as the page holds it: `idgen.page.making.Workshop`."""
    from paging import small_shop

    return small_shop()


@pytest.fixture(scope="module")
def keeping() -> Iterator[Any]:
    """A private folder of the page: `idgen.page.keeping.Keeping`."""
    from idgen.page.keeping import private_folder

    with private_folder() as kept:
        yield kept


@pytest.fixture(scope="module")
def served() -> Iterator[Any]:
    """The page on a port: `paging.Served`."""
    from paging import running_page

    with running_page() as page:
        yield page
