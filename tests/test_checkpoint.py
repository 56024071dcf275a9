"""Adapter files: what we write, what we read, what we refuse, and that plain diffusers agrees with us."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from idgen.adapters.card import AdapterCard
from idgen.adapters.checkpoint import read_adapter, write_adapter
from idgen.adapters.install import IDAdapter, install_adapter
from idgen.adapters.rows import face_vector
from idgen.errors import (
    ConfigError,
    EncoderMismatchError,
    IdentityError,
    ModelNotFoundError,
    StorageError,
    WeightsError,
)
from idgen.identity import Identity
from idgen.pipeline import IDPipeline, IDPipelineXL

Make = Callable[..., IDAdapter]
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def card(num_tokens: int = 4, encoder: str = "tiny@0123456789ab") -> AdapterCard:
    return AdapterCard(
        base_model="tiny",
        encoder=encoder,
        num_tokens=num_tokens,
        licence="research-only",
        training_run="none",
    )


@pytest.fixture
def written(tmp_path: Path, random_adapter: Make) -> Path:
    path = tmp_path / "who.safetensors"
    write_adapter(path, random_adapter(tiny_unet(16)), card())
    return path


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of an adapter file with other tensors, and no card."""
    state = load_file(path)
    change(state)
    other = path.with_name("other.safetensors")
    save_file(state, other)
    return other


# what we write ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [4, 16])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_what_is_written_is_read_back(
    tmp_path: Path, random_adapter: Make, num_tokens: int, lora_rank: int
) -> None:
    adapter = random_adapter(tiny_unet(16), num_tokens=num_tokens, lora_rank=lora_rank)
    sha256 = write_adapter(tmp_path / "who.safetensors", adapter, card(num_tokens))
    file = read_adapter(tmp_path)
    assert file.card == card(num_tokens)
    assert file.sha256 == sha256
    assert file.id == f"who@{sha256[:12]}"
    assert file.adapter.has_lora == bool(lora_rank)
    state = file.adapter.state_dict()
    assert list(state) == list(adapter.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in adapter.state_dict().items())
    assert write_adapter(tmp_path / "again.safetensors", file.adapter, file.card) == sha256


def test_the_keys_are_those_of_published_files(tmp_path: Path, random_adapter: Make) -> None:
    write_adapter(tmp_path / "who.safetensors", random_adapter(tiny_unet(16), lora_rank=2), card())
    keys = set(load_file(tmp_path / "who.safetensors"))
    projection = {f"image_proj.{k}" for k in ("proj.0.weight", "proj.0.bias", "proj.2.weight", "proj.2.bias",
                                              "norm.weight", "norm.bias")}  # fmt: skip
    loras = {
        f"ip_adapter.{k}.to_{t}_lora.{d}.weight"
        for k in range(8) for t in ("q", "k", "v", "out") for d in ("down", "up")
    }  # fmt: skip
    assert keys == projection | loras | {
        f"ip_adapter.{k}.to_{t}_ip.weight" for k in (1, 3, 5, 7) for t in "kv"
    }


def test_card_and_licence_travel_in_the_json_and_in_the_metadata(written: Path) -> None:
    beside = json.loads(written.with_suffix(".json").read_text())
    assert beside["encoder"] == "tiny@0123456789ab"
    assert (beside["licence"], beside["base_model"], beside["num_tokens"]) == ("research-only", "tiny", 4)
    with safe_open(written, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["encoder"], metadata["licence"]) == ("tiny@0123456789ab", "research-only")
    written.with_suffix(".json").unlink()
    assert read_adapter(written).card == card()


def test_half_precision_halves_the_file_and_is_kept(tmp_path: Path, random_adapter: Make) -> None:
    adapter = random_adapter(tiny_unet(16))
    for name, dtype in (("full", None), ("half", torch.float16)):
        write_adapter(tmp_path / f"{name}.safetensors", adapter, card(), dtype=dtype)
    half = read_adapter(tmp_path / "half.safetensors")
    assert half.dtype == torch.float16
    assert half.adapter.image_proj.norm.weight.dtype == torch.float32
    assert half.path.stat().st_size < 0.65 * (tmp_path / "full.safetensors").stat().st_size


def test_writing_refuses_what_would_not_be_read(tmp_path: Path, random_adapter: Make) -> None:
    adapter = random_adapter(tiny_unet(16))
    with pytest.raises(WeightsError, match=r"written as \.safetensors, got who\.bin"):
        write_adapter(tmp_path / "who.bin", adapter, card())
    with pytest.raises(WeightsError, match="the card says 16 tokens, the adapter makes 4"):
        write_adapter(tmp_path / "who.safetensors", adapter, card(16))
    with pytest.raises(StorageError, match="cannot write into"):
        write_adapter(tmp_path / "no" / "who.safetensors", adapter, card())


# plain diffusers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [4, 16])
@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_plain_diffusers_loads_it_and_gives_the_same_latents(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    random_adapter: Make,
    person: Callable[..., Identity],
    kind: str,
    num_tokens: int,
    lora_rank: int,
) -> None:
    parts = request.getfixturevalue(f"tiny_{kind}")
    ours_class, stock_class = {
        "sd": (IDPipeline, StableDiffusionPipeline),
        "sdxl": (IDPipelineXL, StableDiffusionXLPipeline),
    }[kind]
    extra = NO_CHECKER if kind == "sd" else {}
    write_adapter(
        tmp_path / "who.safetensors",
        random_adapter(parts["unet"], num_tokens=num_tokens, lora_rank=lora_rank),
        card(num_tokens),
    )
    stock = stock_class(**copy.deepcopy(parts), **extra)
    stock.load_ip_adapter(
        str(tmp_path),
        subfolder="",
        weight_name="who.safetensors",
        image_encoder_folder=None,
        low_cpu_mem_usage=False,
    )
    ours = ours_class(**parts, **extra)
    ours.load_adapter(tmp_path / "who.safetensors")
    settings = {
        "num_inference_steps": 3,
        "guidance_scale": 4.0,
        "output_type": "latent",
        "height": 16,
        "width": 16,
    }
    for pipe in (ours, stock):
        pipe.set_progress_bar_config(disable=True)
    one, two = person(1), person(2)
    for references, scale in (([one], 1.0), ([two], 0.6), ([one, two], 1.0)):
        vectors = torch.stack([torch.from_numpy(p.face_vector.value.copy()) for p in references])[None]
        stock.set_ip_adapter_scale(scale)
        expected = stock(
            "a face",
            ip_adapter_image_embeds=[torch.cat([torch.zeros_like(vectors), vectors])],
            generator=torch.Generator().manual_seed(3),
            **settings,
        ).images
        got = ours("a face", identity=[references], id_scale=scale, seed=3, **settings).images
        base = ours("a face", seed=3, **settings).images
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
        assert (got - base).abs().max() > 0.05


# what we refuse --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "guess"), [(768, "1.x"), (1024, "2.x"), (2048, "XL")])
def test_a_file_for_another_base_is_refused_with_both_shapes_and_a_guess(
    tmp_path: Path, random_adapter: Make, width: int, guess: str
) -> None:
    path = tmp_path / "who.safetensors"
    write_adapter(path, random_adapter(tiny_unet(width)), card())
    unet = tiny_unet(16)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        install_adapter(unet, read_adapter(path).adapter)
    assert f"(16, {width}) in the file, (16, 16) in this UNet" in str(error.value)
    assert f"Stable Diffusion {guess} (text width {width})" in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


def test_a_file_for_a_unet_of_other_depth_is_refused_by_layer(written: Path) -> None:
    adapter = read_adapter(written).adapter
    with pytest.raises(WeightsError, match=r"ip_adapter\.\d+\.to_[kv]_ip\.weight is missing \(and \d+ more"):
        install_adapter(tiny_unet(16, layers_per_block=2), adapter)
    single = tiny_unet(16, up_block_types=("UpBlock2D", "UpBlock2D"))
    with pytest.raises(WeightsError, match=r"ip_adapter\.5\.to_k_ip\.weight has no place in this UNet"):
        install_adapter(single, adapter)


def test_missing_and_surplus_tensors_are_named(written: Path) -> None:
    missing = rewritten(written, lambda state: state.pop("ip_adapter.3.to_v_ip.weight"))
    with pytest.raises(WeightsError, match=r"it lacks ip_adapter\.3\.to_v_ip\.weight"):
        read_adapter(missing, encoder="tiny@0123456789ab")
    surplus = rewritten(written, lambda state: state.update({"ip_adapter.9.gate": torch.ones(1)}))
    with pytest.raises(WeightsError, match=r"has no use for ip_adapter\.9\.gate"):
        read_adapter(surplus, encoder="tiny@0123456789ab")
    lora = {"ip_adapter.0.to_q_lora.down.weight": torch.ones(2, 16)}
    with pytest.raises(WeightsError, match=r"layer 0: to_q_lora\.up\.weight is missing"):
        read_adapter(rewritten(written, lambda state: state.update(lora)), encoder="tiny@0123456789ab")
    bent = {"ip_adapter.3.to_v_ip.weight": torch.ones(16, 17)}
    with pytest.raises(WeightsError, match=r"to_v_ip\.weight is \(16, 17\), its neighbours need \(16, 16\)"):
        read_adapter(rewritten(written, lambda state: state.update(bent)), encoder="tiny@0123456789ab")


FAMILIES = {
    "base IP-Adapter": {"image_proj.proj.weight": (64, 8), "image_proj.norm.weight": (16,)},
    "full-face": {
        "image_proj.proj.0.weight": (8, 8), "image_proj.proj.3.weight": (16,),
        "image_proj.norm.weight": (16,),
    },
    "FaceID-Plus or PlusV2": {
        "image_proj.proj.0.weight": (8, 8), "image_proj.norm.weight": (16,),
        "image_proj.perceiver_resampler.proj_in.weight": (16, 8),
    },
    "InstantID": {"image_proj.latents": (1, 16, 1280), "image_proj.proj_in.weight": (1280, 512)},
    "IP-Adapter Plus": {"image_proj.latents": (1, 16, 768), "image_proj.proj_in.weight": (768, 1280)},
    "a LoRA and not an adapter": {"lora_unet_down_blocks_0.lora_up.weight": (4, 4)},
    "raw checkpoint of IP-Adapter's training": {"image_proj_model.proj.0.weight": (4, 4)},
    "no identity adapter that idgen knows (it holds a, b, c, ...)": dict.fromkeys("abcd", (1,)),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_refused_by_name(tmp_path: Path, family: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({key: torch.ones(shape) for key, shape in FAMILIES[family].items()}, path)
    with pytest.raises(WeightsError) as error:
        read_adapter(path, encoder="buffalo_l")
    assert family in str(error.value)


def test_a_pickle_without_code_is_read_and_one_with_code_is_not(written: Path, tmp_path: Path) -> None:
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in load_file(written).items():
        group, _, rest = key.partition(".")
        nested[group][rest] = value
    torch.save(nested, tmp_path / "plain.bin")
    file = read_adapter(tmp_path / "plain.bin", encoder="tiny@0123456789ab")
    expected = read_adapter(written).adapter.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in file.adapter.state_dict().items())

    marker = tmp_path / "code was run"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (marker,)

    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"image_proj": Evil()}))
    torch.save({"image_proj": Evil()}, tmp_path / "evil2.bin")
    for name in ("evil.bin", "evil2.bin"):
        with pytest.raises(WeightsError, match="is a pickle with code in it"):
            read_adapter(tmp_path / name, encoder="tiny")
    assert not marker.exists()
    torch.save({"image_proj": {"norm.weight": [1, 2]}}, tmp_path / "lists.bin")
    with pytest.raises(
        WeightsError, match=r"holds a list at image_proj\.norm\.weight, where tensors should be"
    ):
        read_adapter(tmp_path / "lists.bin", encoder="tiny")


def test_damaged_and_absent_files(written: Path, tmp_path: Path) -> None:
    whole = written.read_bytes()
    for name in ("cut.safetensors", "cut.bin"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(WeightsError, match="is damaged or is not a"):
            read_adapter(tmp_path / name, encoder="tiny")
    with pytest.raises(ModelNotFoundError, match="no such adapter file: nobody"):
        read_adapter("nobody.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match=r"notes\.txt is no adapter file"):
        read_adapter(tmp_path / "notes.txt")
    with pytest.raises(
        ModelNotFoundError, match=r"exactly one \.safetensors, it holds cut.*, who.*; name the file"
    ):
        read_adapter(tmp_path)


# the card --------------------------------------------------------------------------------------------------


def test_a_published_file_asks_which_encoder_it_wants(
    written: Path, tmp_path: Path, random_adapter: Make
) -> None:
    bare = rewritten(written, lambda _: None)
    with pytest.raises(WeightsError, match="must be one with face vectors of width 8"):
        read_adapter(bare)
    assert read_adapter(bare, encoder="tiny@0123456789ab").card.encoder == "tiny@0123456789ab"
    save_file(random_adapter(tiny_unet(16), id_dim=512).state_dict(), tmp_path / "faceid.safetensors")
    with pytest.raises(
        WeightsError, match="normed embedding of insightface's buffalo_l: encoder='buffalo_l'"
    ):
        read_adapter(tmp_path / "faceid.safetensors")
    file = read_adapter(tmp_path / "faceid.safetensors", encoder="buffalo_l")
    assert file.reads("buffalo_l@0123456789ab")
    assert not file.reads("antelopev2@0123456789ab")


def test_files_for_raw_vectors_get_vectors_of_their_own_length(written: Path, random_adapter: Make) -> None:
    raw = written.with_name("faceid_portrait_unnorm.safetensors")
    save_file(random_adapter(tiny_unet(16)).state_dict(), raw)
    file = read_adapter(raw, encoder="tiny@0123456789ab")
    direction = np.eye(8, dtype=np.float32)[2]
    who = Identity.from_vector(direction, "tiny@0123456789ab", norm=21.5)
    np.testing.assert_allclose(face_vector(file, who), 21.5 * direction)
    np.testing.assert_allclose(face_vector(read_adapter(written), who), direction)
    with pytest.raises(IdentityError, match="of their own length, which this identity does not know"):
        face_vector(file, Identity.from_vector(direction, "tiny@0123456789ab"))


def test_names_of_encoders_decide_only_where_a_hash_is_missing() -> None:
    assert card().reads("tiny@0123456789ab")
    assert card().reads("tiny")
    assert not card().reads("tiny@ffffffffffff")
    assert not card().reads("tin")
    assert card(encoder="tiny").reads("tiny@ffffffffffff")


def test_a_card_that_cannot_be_true_is_refused(written: Path) -> None:
    beside = written.with_suffix(".json")
    said = json.loads(beside.read_text())
    with pytest.raises(EncoderMismatchError, match="reads face vectors of tiny@0123456789ab, not of other@"):
        read_adapter(written, encoder="other@0123456789ab")
    for change, message, kind in [
        ({"num_tokens": 16}, "says 16 tokens, the weights make 4", WeightsError),
        ({"sha256": "0" * 64}, "describes another file of weights", WeightsError),
        ({"idgen_adapter": "2"}, "of format '2', this idgen reads '1'", WeightsError),
        ({"licens": "MIT"}, "licens is not a setting; did you mean 'licence'", ConfigError),
    ]:
        beside.write_text(json.dumps({**said, **change}))
        with pytest.raises(kind, match=message):
            read_adapter(written)
    beside.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_adapter(written)
    beside.write_text("[]")
    with pytest.raises(ConfigError, match="must hold settings by name, got list"):
        read_adapter(written)
