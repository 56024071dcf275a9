"""The programs that train mini, run as a user runs them, on a handful of drawn faces."""

import io
import json
import runpy
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from idgen.adapters.checkpoint import read_adapter

NUM_FACES = 12
PROGRAMS = Path(__file__).parent.parent / "train"


def drawn_face(seed: int) -> Image.Image:
    """An oval with eyes and a mouth: enough for the programs' data road, nobody's likeness."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (128, 128), tuple(rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 20, 98, 118), fill=tuple(rng.integers(90, 256, 3)))
    for x in (50, 78):
        draw.ellipse((x - 6, 54, x + 6, 62), fill=tuple(rng.integers(0, 90, 3)))
    draw.arc((48, 84, 80, 104), 0, 180, fill=(120, 20, 30), width=3)
    return image


@pytest.fixture(scope="module")
def drawn_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = []
    for i in range(NUM_FACES):
        data = io.BytesIO()
        drawn_face(i).save(data, "WEBP")
        name = f"P{i // 2:02d}/{i % 2:04d}.webp"
        rows.append({
            "image": {"bytes": data.getvalue(), "path": name}, "file": name, "identity": f"P{i // 2:02d}",
            "p_female": i % 2, "p_happy": 0.5, "yaw": i * 4.0 - 24, "pitch": 0.0, "roll": 0.0,
        })  # fmt: skip
    path = tmp_path_factory.mktemp("faces") / "faces.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def run(program: str, out: Path, *settings: str) -> list[dict[str, float]]:
    """Run a program in this process; the lines of its log."""
    arguments = [
        "--out",
        str(out),
        "--set",
        "num_threads=1",
        *(word for setting in settings for word in ("--set", setting)),
    ]
    main = runpy.run_path(str(PROGRAMS / program))["main"]
    assert main(arguments) == 0
    logs = [line for log in out.glob("*.jsonl") for line in log.read_text().splitlines()]
    return [json.loads(line) for line in logs]


VAE = ("block_out_channels=[16,16]", "latent_channels=4", "size_px=16", "batch_size=4", "learning_rate=0.003")


@pytest.fixture(scope="module")
def tiny_vae_folder(drawn_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vae")
    log = run("vae.py", out, f"faces={drawn_faces}", *VAE, "steps=50")
    assert log[-1]["l1"] < 0.6  # grey pictures would give about 0.7
    return out / "vae"


def test_the_vae_is_an_ordinary_one_with_latents_of_unit_scale(tiny_vae_folder: Path) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_vae_folder)
    small = [np.asarray(drawn_face(i).resize((16, 16))) for i in range(NUM_FACES)]
    pixels = torch.from_numpy(np.stack(small))
    latents = vae.encode(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
    assert (latents * vae.config.scaling_factor).std().item() == pytest.approx(1, abs=0.2)


def test_resuming_the_vae_equals_not_stopping(drawn_faces: Path, tmp_path: Path) -> None:
    settings = (f"faces={drawn_faces}", *VAE, "steps=6")
    run("vae.py", tmp_path / "whole", *settings)
    namespace = runpy.run_path(str(PROGRAMS / "vae.py"))
    interrupt_after(namespace, 3)
    with pytest.raises(KeyboardInterrupt):
        namespace["main"](
            [
                "--out",
                str(tmp_path / "parts"),
                "--set",
                "num_threads=1",
                *(w for s in settings for w in ("--set", s)),
            ]
        )
    run("vae.py", tmp_path / "parts", *settings)
    whole, parts = (torch.load(tmp_path / name / "vae.pt")["average"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def interrupt_after(namespace: dict[str, object], steps: int) -> None:
    """Let the program save its checkpoint at ``steps``, then end it as Ctrl-C would."""
    training_run = namespace["TrainingRun"]

    class Interrupted(training_run):  # type: ignore[misc, valid-type]
        def checkpoint_due(self, step: int, last: int) -> bool:
            if step > steps:
                raise KeyboardInterrupt
            return step == steps

    namespace["main"].__globals__["TrainingRun"] = Interrupted  # type: ignore[attr-defined]


MINI = (
    "text.hidden_size=32", "text.num_layers=1", "text.num_heads=2", "unet.block_out_channels=[32,64]",
    "unet.layers_per_block=[1,1]", "denoiser.batch_size=4", "denoiser.num_tokens=4", "denoiser.cooldown=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny_mini(drawn_faces: Path, tiny_vae_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mini")
    log = run("mini.py", out, f"faces={drawn_faces}", f"vae={tiny_vae_folder}", *MINI, "denoiser.steps=20")
    assert 0.3 < log[-1]["loss"] < 3  # velocities have unit variance: about 1 before anything is learned
    return out


def test_plain_diffusers_opens_base_and_adapter(tiny_mini: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_mini / "base", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(
        str(tiny_mini / "adapter"), subfolder="", weight_name="faceid_mini.safetensors",
        image_encoder_folder=None, low_cpu_mem_usage=False,
    )  # fmt: skip
    embeds = torch.nn.functional.normalize(torch.randn(1, 1, 128), dim=-1)
    embeds = [torch.cat([torch.zeros_like(embeds), embeds])]
    image = pipe(
        "a man, smiling", num_inference_steps=2, ip_adapter_image_embeds=embeds, output_type="pt"
    ).images
    assert image.shape == (1, 3, 16, 16)
    assert image.isfinite().all()
    card = read_adapter(tiny_mini / "adapter" / "faceid_mini.safetensors").card
    assert card.encoder.startswith("mini@")
    assert card.num_tokens == 4


def test_resuming_mini_equals_not_stopping(drawn_faces: Path, tiny_vae_folder: Path, tmp_path: Path) -> None:
    settings = (f"faces={drawn_faces}", f"vae={tiny_vae_folder}", *MINI)
    run("mini.py", tmp_path / "whole", *settings, "denoiser.steps=3")
    run("mini.py", tmp_path / "parts", *settings, "denoiser.steps=2")
    run("mini.py", tmp_path / "parts", *settings, "denoiser.steps=3")
    whole, parts = (torch.load(tmp_path / name / "denoiser.pt")["average"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_training_goes_on_from_exported_weights(
    drawn_faces: Path, tiny_vae_folder: Path, tiny_mini: Path, tmp_path: Path
) -> None:
    settings = (f"faces={drawn_faces}", f"vae={tiny_vae_folder}", *MINI, "denoiser.steps=0")
    run("mini.py", tmp_path / "again", *settings, f"start={tiny_mini}")
    for part in ("base/unet/diffusion_pytorch_model.safetensors", "adapter/faceid_mini.safetensors"):
        before, after = load_file(tiny_mini / part), load_file(tmp_path / "again" / part)
        assert all(torch.equal(before[key], after[key]) for key in before)
    run("vae.py", tmp_path / "vae", f"faces={drawn_faces}", *VAE, "steps=0", f"start={tiny_vae_folder}")
    name = "diffusion_pytorch_model.safetensors"
    before, after = load_file(tiny_vae_folder / name), load_file(tmp_path / "vae" / "vae" / name)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_dry_run_prints_the_settings_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(PROGRAMS / "mini.py"))["main"]
    assert main(["--out", str(tmp_path / "x"), "--set", "denoiser.steps=7", "--dry-run"]) == 0
    assert "steps: 7" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()
