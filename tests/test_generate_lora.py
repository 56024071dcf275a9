"""`idgen generate --lora`: the LoRA of a person, beside the adapter."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from generating import World, build_world, pixels, record, write_a_lora
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from idgen.adapters.checkpoint import read_face_adapter
from idgen.cli import main
from idgen.opening import open_model, put_lora
from idgen.pipeline import open_pipeline
from idgen.provenance import read_provenance
from idgen.tuning.lora import KOHYA_NAME

pytestmark = pytest.mark.usefixtures("faces_are_remembered")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: CLIPTokenizer) -> World:
    return build_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)


@pytest.fixture(scope="module")
def lora(world: World) -> Path:
    return write_a_lora(world, world.root / "run")


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_it_changes_the_pictures_by_its_strength_and_is_in_every_record(
    world: World, tmp_path: Path, model: str
) -> None:
    file = write_a_lora(world, tmp_path / "run", model)
    options = {"without": [], "file": ["--lora", str(file)], "folder": ["--lora", str(file.parent)]}
    options["off"] = [*options["file"], "--lora-scale", "0"]
    made = {}
    for name, given in options.items():
        assert main(world.command("--out", str(tmp_path / name), *given, model=model)) == 0
        made[name] = pixels(tmp_path / name / "0000.png").astype(int)
    assert np.abs(made["file"] - made["without"]).mean() > 0.5
    assert (made["folder"] == made["file"]).all()
    assert (made["off"] == made["without"]).all()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert record(tmp_path / "file")["command"]["lora"] == digest
    assert read_provenance(tmp_path / "file" / "0000.png").lora_hash == digest
    assert "lora" not in record(tmp_path / "without")["command"]
    assert read_provenance(tmp_path / "without" / "0000.png").lora_hash is None


def test_before_or_after_the_adapter_and_under_either_name_it_is_the_same(world: World, lora: Path) -> None:
    adapter = read_face_adapter(world.root / "sd.safetensors")
    after, before = open_model(world.root / "sd", adapter), open_pipeline(world.root / "sd")
    put_lora(after, lora, 0.5)
    put_lora(before, lora.with_name(KOHYA_NAME), 0.5)
    before.load_adapter(adapter)
    rows, text = torch.randn(2, 4, 2, 2), torch.randn(2, 5, 16)
    with torch.inference_mode():
        one, other = (pipe.unet(rows, 1, text).sample for pipe in (after, before))
    assert torch.allclose(one, other, atol=1e-6)


def _spoiled(folder: Path, lora: Path, how: str) -> Path:
    file = folder / f"{how}.safetensors"
    tensors = load_file(lora)
    if how == "cut":
        file.write_bytes(lora.read_bytes()[:3000])
    elif how == "infinite":
        save_file({name: value / 0 for name, value in tensors.items()}, file)
    elif how == "other":
        save_file({name: torch.cat([value, value]) for name, value in tensors.items()}, file)
    elif how == "pickle":
        file = folder / "lora.bin"
        torch.save(tensors, file)
    return file


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "no LoRA: there is no file"),
        ("cut", "is damaged"),
        ("infinite", "holds numbers that are not finite"),
        ("other", "is a LoRA for another base than this UNet2DConditionModel"),
        ("pickle", "is no safetensors file"),
    ],
)
def test_what_is_no_lora_of_this_model_is_said_in_a_line(
    world: World, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, said: str
) -> None:
    file = _spoiled(tmp_path, lora, how)
    assert main(world.command("--out", str(tmp_path / "out"), "--lora", str(file))) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.png"))


def test_an_adapter_and_the_lora_of_another_kind_of_model_are_told_apart(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = world.root / "sd.safetensors"
    assert main(world.command("--out", str(tmp_path / "out"), "--lora", str(adapter))) == 2
    assert "holds no LoRA; adapters are given with --adapter" in capsys.readouterr().err
    foreign = write_a_lora(world, tmp_path / "run", "sdxl")
    assert main(world.command("--out", str(tmp_path / "out"), "--lora", str(foreign))) == 2
    assert "is a LoRA for another base than this" in capsys.readouterr().err
