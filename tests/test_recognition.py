"""Margin heads and the training of a recogniser on labelled people."""

import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from idgen.data.views import erase
from idgen.errors import ConfigError
from idgen.recognition.margins import MarginHead
from idgen.recognition.squeeze import SqueezeNet112, mirrored_mean

ROOT = Path(__file__).parents[1]


def by_hand(head: MarginHead, embedding: torch.Tensor, person: torch.Tensor) -> list[float]:
    losses = []
    for vector, own in zip(embedding, person, strict=True):
        logits = []
        for number, centre in enumerate(head.centres.detach()):
            cosine = float(vector @ centre / (vector.norm() * centre.norm()))
            if number == own:
                angle = math.acos(cosine)
                if head.kind == "cosface":
                    cosine -= head.margin
                elif angle + head.margin <= math.pi:
                    cosine = math.cos(angle + head.margin)
                else:
                    cosine -= head.margin * math.sin(head.margin)
            logits.append(head.scale * cosine)
        most = max(logits)
        total = sum(math.exp(value - most) for value in logits)
        losses.append(math.log(total) + most - logits[int(own)])
    return losses


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_the_loss_is_the_formula(kind: str) -> None:
    torch.manual_seed(0)
    head = MarginHead(6, 9, kind=kind, margin=0.4, scale=16)
    embedding, person = torch.randn(12, 6), torch.randint(9, (12,))
    embedding[0] = -5 * head.centres[person[0]].detach()  # the angle is pi: where arcface is continued
    with torch.no_grad():
        loss = head(embedding, person)
    np.testing.assert_allclose(loss.numpy(), by_hand(head, embedding, person), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_the_loss_falls_all_the_way_to_the_own_centre(kind: str) -> None:
    head = MarginHead(2, 2, kind=kind, margin=0.5, scale=8)
    head.centres.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    angles = torch.linspace(-math.pi + 1e-3, 0, 60)
    embedding = torch.stack([angles.cos(), angles.sin()], dim=1)
    own = MarginHead.forward(head, embedding, torch.zeros(60, dtype=torch.long))
    logit = (embedding @ head.centres.T)[:, :1]
    harder = head._harder(logit, head.margin)
    assert (harder.diff(dim=0) > 0).all()
    assert own[-1] < own[0]
    assert (head(embedding, torch.zeros(60, dtype=torch.long), 0.0) <= own + 1e-6).all()


def test_wrong_margins_are_refused() -> None:
    for wrong, message in [({"kind": "sphereface"}, "arcface or cosface"), ({"margin": 1.2}, r"\[0, 1\)")]:
        with pytest.raises(ConfigError, match=message):
            MarginHead(4, 3, **wrong)  # pyright: ignore[reportArgumentType]


def test_a_face_and_its_mirror_image_have_one_embedding() -> None:
    torch.manual_seed(0)
    network = SqueezeNet112((32, 64), (1, 1), 8).eval()
    pixel_values = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(
            mirrored_mean(network, pixel_values), mirrored_mean(network, pixel_values.flip(-1))
        )
        assert network(pixel_values).shape == (2, 8)


def test_erasing_takes_one_rectangle_and_no_more() -> None:
    views = torch.full((40, 3, 112, 112), 2.0)  # no colour has this value
    erased = erase(views, 0.5, torch.Generator().manual_seed(1))
    changed = (erased != views).any(dim=1)
    share = changed.float().mean(dim=(1, 2))
    assert 8 <= int((share > 0).sum()) <= 32
    assert share.max() <= 0.25
    for mask in changed[share > 0]:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert mask.sum() == rows.sum() * columns.sum()
    assert torch.equal(erase(views, 0.0, torch.Generator().manual_seed(1)), views)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred and twenty "people" of four pictures: each a colour of its own under noise."""
    folder = tmp_path_factory.mktemp("faces")
    rng, rows = np.random.default_rng(0), []
    for person in range(120):
        colour = rng.integers(40, 216, 3)
        for number in range(4):
            pixels = np.clip(colour + rng.normal(0, 12, (128, 128, 3)), 0, 255).astype(np.uint8)
            file = folder / f"{person}_{number}.png"
            Image.fromarray(pixels).save(file)
            labels = dict.fromkeys(("p_female", "p_happy", "yaw", "pitch", "roll"), 0.5)
            image = {"bytes": file.read_bytes(), "path": file.name}
            rows.append({"image": image, "file": file.name, "identity": f"p{person:03d}", **labels})
    pa.parquet.write_table(pa.Table.from_pylist(rows), folder / "faces.parquet")
    return folder / "faces.parquet"


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "train" / "recognizer.py")))


TINY = ("batch_size=16", "dim=8", "widths=[32,64]", "blocks=[1,1]", "warmup_steps=2", "log_every=1",
        "evaluate_every=100")  # fmt: skip


def arguments(faces: Path, out: Path, *settings: str) -> list[str]:
    words = [word for setting in (f"faces={faces}", *TINY, *settings) for word in ("--set", setting)]
    return [*words, "--out", str(out)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_learns_exports_and_goes_on_as_if_it_had_not_been_stopped(
    program: SimpleNamespace, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idgen.training.CHECKPOINT_EVERY", 3)
    program.main(arguments(faces, tmp_path / "whole", "steps=6"))
    whole = lines(tmp_path / "whole" / "train.jsonl")
    assert [line["step"] for line in whole] == [1, 2, 3, 4, 5, 6]

    stopped = program.TrainingRun.log

    def stop(self: Any, name: str, progress: Any, terms: Any) -> None:
        stopped(self, name, progress, terms)
        if progress.step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(program.TrainingRun, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        program.main(arguments(faces, tmp_path / "parts", "steps=6"))
    monkeypatch.setattr(program.TrainingRun, "log", stopped)
    program.main(arguments(faces, tmp_path / "parts", "steps=6"))
    assert lines(tmp_path / "parts" / "train.jsonl")[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-5)

    session = onnxruntime.InferenceSession(tmp_path / "whole" / "recognizer.onnx")
    (embedding,) = session.run(None, {"input": np.zeros((3, 3, 112, 112), np.float32)})
    assert np.asarray(embedding).shape == (3, 8)


def test_wrong_settings_are_refused(program: SimpleNamespace, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiples of 32"):
        program.main(arguments(faces, tmp_path, "widths=[24,64]"))
    with pytest.raises(ConfigError, match="same stages"):
        program.main(arguments(faces, tmp_path, "blocks=[1]"))
