"""The small decoder: its file, the program that teaches it, and its place in an identity term."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from face_tables import portrait, write_table
from safetensors.torch import save_file

from idgen.diffusion.latents import decode_latents
from idgen.diffusion.tiny_decoder import TinyDecoder, load_decoder
from idgen.errors import ModelNotFoundError, WeightsError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "train" / "decoder.py")))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve people of one portrait each: one photograph, moved sideways."""
    images = [np.roll(portrait(), number, axis=1) for number in range(12)]
    people = [f"person {number}" for number in range(12)]
    return write_table(tmp_path_factory.mktemp("faces") / "faces.parquet", images, people)


def command(faces: Path, out: Path, *settings: str) -> list[str]:
    small = ("pictures=4", "steps=4", "batch_size=4", "id_rows=2", "width=8", "blocks=[1, 1, 1]", *settings)
    words = [word for setting in small for word in ("--set", setting)]
    return ["--faces", str(faces), "--out", str(out), *words]


def test_it_reads_what_it_wrote(tmp_path: Path) -> None:
    decoder = TinyDecoder(latent_channels=4, width=8, blocks=(2, 1, 1))
    path = tmp_path / "decoder.safetensors"
    decoder.save(path)
    again = load_decoder(path)
    latents = torch.randn(2, 4, 8, 8)
    assert decode_latents(again, latents).shape == (2, 3, 32, 32)
    assert torch.allclose(decode_latents(again, latents), decode_latents(decoder, latents), atol=2e-2)
    first = path.read_bytes()
    decoder.save(path)
    assert path.read_bytes() == first  # equal weights, equal files


def test_it_is_the_network_of_taesd(tmp_path: Path) -> None:
    """A folder of diffusers' AutoencoderTiny says the same as its own decode."""
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()  # fmt: skip
    tiny.save_pretrained(tmp_path / "taesd")
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        theirs = (tiny.decode(latents).sample + 1) / 2
        assert torch.allclose(decode_latents(load_decoder(tmp_path / "taesd"), latents), theirs, atol=1e-6)


def test_it_learns_and_goes_on_where_it_was(
    program: SimpleNamespace, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctrl_c: None
) -> None:
    program.main(command(faces, tmp_path / "whole", "steps=40", "learning_rate=1e-2", "id_rows=0"))
    log = [json.loads(line) for line in (tmp_path / "whole" / "decoder.jsonl").read_text().splitlines()]
    assert log[-1]["l1"] < log[0]["l1"]

    run = program.main.__globals__["TrainingRun"]
    monkeypatch.setattr(run, "checkpoint_due", lambda _self, step, _steps: step % 2 == 0)
    program.main(command(faces, tmp_path / "one"))
    saved = run.save

    def stop(self: Any, name: str, state: dict[str, Any]) -> None:
        saved(self, name, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            program.main(command(faces, tmp_path / "two"))
    program.main(command(faces, tmp_path / "two"))
    files = [(tmp_path / name / "decoder.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_what_is_no_decoder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no small decoder"):
        load_decoder(tmp_path / "nowhere.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="idgen train decoder"):
        load_decoder(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(WeightsError, match="no small decoder"):
        load_decoder(tmp_path / "text.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        load_decoder(tmp_path / "empty")
