"""train/distill.py on a tiny teacher and coloured noise, and the parts it is made of."""

import io
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from idgen.data.views import ViewConfig, blend, degrade, jittered_views
from idgen.encoders.onnx_torch import OnnxModule
from idgen.errors import ConfigError, RunFolderError
from idgen.recognition.backbone import SmallResNet, Symmetric
from idgen.recognition.muon import Muon, orthogonal
from idgen.recognition.validation import held_out_pairs
from idgen.recognition.whitening import whitening
from idgen.training import TrainingRun

PROGRAM = Path(__file__).parents[1] / "train" / "distill.py"
STILL = ViewConfig(max_rotation_deg=0.0, max_scale=0.0, max_shift_px=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(PROGRAM), run_name="distill")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures each of a hundred people who differ in colour, and a teacher that sees colours."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    for person in range(100):
        colour = rng.integers(0, 200, 3)
        for i in range(2):
            coarse = (colour + rng.integers(0, 56, (8, 8, 3))).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(coarse).resize((128, 128)).save(buffer, "PNG")
            name = f"{person:03}/{i}.png"
            rows.append({"image": {"bytes": buffer.getvalue(), "path": name}, "file": name})
            rows[-1] |= {"identity": f"{person:03}", "p_female": 0.5, "p_happy": 0.5}
            rows[-1] |= {"yaw": 0.0, "pitch": 0.0, "roll": 0.0}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "faces.parquet")
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weight = rng.normal(0, 1 / 255, (6, 3, 16, 16)) / 16
    nodes = [
        node("Conv", ["x", "w"], ["map"], strides=[16, 16]),
        node("GlobalAveragePool", ["map"], ["mean"]),
        node("Flatten", ["mean"], ["flat"]),
        node("LpNormalization", ["flat"], ["y"], axis=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "teacher",
        [value("x", 1, ("n", 3, 112, 112))],
        [value("y", 1, ("n", 6))],
        [onnx.numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])
    model.ir_version = 10
    onnx.save(model, folder / "teacher.onnx")
    return folder


def arguments(data: Path, out: Path, *settings: str) -> list[str]:
    values = [
        f"faces={data / 'faces.parquet'}", f"teacher={data / 'teacher.onnx'}", "teacher_maps=[map]",
        "widths=[16, 16, 16, 16]", "blocks=[1, 1, 1]", "head_width=16", "batch_size=8", "chunk_batches=2",
        "steps=6", "warmup_steps=2", "log_every=1", "evaluate_every=3", "save_every=2", "bfloat16=false",
        *settings,
    ]  # fmt: skip
    return ["--out", str(out), *(word for value in values for word in ("--set", value))]


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_learns_and_leaves_what_it_promises(
    program: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    program["main"](arguments(data, out, "steps=40", "evaluate_every=20", "adam_rate=0.01"))
    log = lines(out / "train.jsonl")
    assert [line["step"] for line in log] == list(range(1, 41))
    first, last = (np.mean([line["distance"] for line in part]) for part in (log[:5], log[-5:]))
    assert last < 0.9 * first
    assert {"cosine", "accuracy"} <= set(lines(out / "held_out.jsonl")[-1])
    student = SmallResNet((16, 16, 16, 16), (1, 1, 1), 16, 6)
    student.load_state_dict(torch.load(out / "student.pt", weights_only=True))
    pixel_values = torch.rand(3, 3, 112, 112) * 2 - 1
    expected = Symmetric(student.eval())(pixel_values)
    session = onnxruntime.InferenceSession(out / "rec_mini.onnx")
    (output,) = session.run(None, {"input": pixel_values.numpy()})
    alike = torch.nn.functional.cosine_similarity(torch.from_numpy(output), expected)
    assert alike.min() > 0.99, alike  # bytes on disk
    torch.testing.assert_close(
        OnnxModule(out / "rec_mini.onnx")(pixel_values), torch.from_numpy(output), atol=1e-5, rtol=1e-5
    )
    stored = {
        t.data_type for t in onnx.load(out / "rec_mini.onnx").graph.initializer if np.prod(t.dims) >= 1024
    }
    assert stored == {onnx.TensorProto.INT8}


def test_an_interrupted_run_ends_as_one_that_was_not(
    program: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program["main"](arguments(data, tmp_path / "whole"))
    log: Callable[..., None] = TrainingRun.log

    def interrupted(run: TrainingRun, name: str, progress: Any, terms: Any) -> None:
        if progress.step == 5:  # after the checkpoint of step 4, in the middle of a chunk of views
            raise KeyboardInterrupt
        log(run, name, progress, terms)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            program["main"](arguments(data, tmp_path / "parts"))
    program["main"](arguments(data, tmp_path / "parts"))
    whole, parts = (torch.load(tmp_path / name / "student.pt") for name in ("whole", "parts"))
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_a_folder_of_another_run_and_missing_data_are_refused(
    program: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program["main"](arguments(data, tmp_path / "run", "steps=1"))
    with pytest.raises(RunFolderError, match="other settings"):
        program["main"](arguments(data, tmp_path / "run", "steps=2"))
    monkeypatch.delenv("IDGEN_FACES", raising=False)
    with pytest.raises(ConfigError, match=r"faces_train\.parquet is needed: set IDGEN_FACES"):
        program["main"](["--out", str(tmp_path / "new")])
    with pytest.raises(ConfigError, match="teacher_maps must be"):
        program["main"](arguments(data, tmp_path / "maps", "teacher_maps=[mean]"))


def test_settings_that_cannot_be_trained_are_refused(program: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"multiples of 16, got \(8, 16\)"):
        program["Config"](widths=(8, 16), blocks=(1,))
    with pytest.raises(ConfigError, match="the stem and 2 stages"):
        program["Config"](widths=(16, 16), blocks=(1, 1))


def test_the_dry_run_shows_the_settings_and_writes_nothing(
    program: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PROGRAM.parent / "configs" / "distill.yaml"
    program["main"](["--config", str(config), "--out", str(tmp_path / "run"), "--dry-run"])
    assert "blend_share: 0.4" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_the_objective_is_zero_for_the_teacher_itself(program: dict[str, Any]) -> None:
    embedding, maps = torch.randn(6, 8), [torch.randn(6, 4, 7, 7)]
    loss, terms = program["objective"](embedding, maps, [embedding, *maps], program["Config"]())
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss, terms = program["objective"](
        embedding, [torch.zeros_like(maps[0])], [-embedding, *maps], program["Config"]()
    )
    assert terms["distance"].item() == pytest.approx(2, abs=1e-5)
    assert terms["relation"].item() == pytest.approx(0, abs=1e-6)  # a mirror image keeps all angles
    assert terms["maps"].item() == pytest.approx(1, abs=0.05)  # nothing is explained


def test_a_loss_that_is_not_finite_stops_with_its_terms(program: dict[str, Any]) -> None:
    config = program["Config"](widths=(16, 16), blocks=(1,), head_width=16, bfloat16=False)
    task = program["Distillation"](config, 6, [])
    with pytest.raises(FloatingPointError, match=r"step 0: .*'distance': nan"):
        task.step(torch.full((2, 3, 112, 112), float("nan")), [torch.randn(2, 6)])


def test_pairs_are_of_the_people_they_claim(program: dict[str, Any], data: Path) -> None:
    table = program["load_faces"](data / "faces.parquet")
    pairs = held_out_pairs(table)
    owner = np.array(table.identities)
    np.testing.assert_array_equal(owner[pairs["first"]] == owner[pairs["second"]], pairs["same"])
    folds_of = {
        name: set(pairs["fold"][owner[pairs[name]] == who]) for who in owner for name in ("first", "second")
    }
    assert all(len(folds) <= 1 for folds in folds_of.values())
    assert pairs["same"].mean() == 0.5


def test_views_that_do_not_stray_are_the_crop_or_its_mirror() -> None:
    images = torch.rand(8, 3, 128, 128)
    views = jittered_views(images, STILL, generator())
    inner = images[:, :, 8:120, 8:120]
    is_mirrored = [not torch.allclose(v, i, atol=1e-4) for v, i in zip(views, inner, strict=True)]
    expected = torch.stack([i.flip(-1) if m else i for i, m in zip(inner, is_mirrored, strict=True)])
    torch.testing.assert_close(views, expected, atol=1e-4, rtol=0)
    assert 0 < sum(is_mirrored) < 8


def test_blending_mixes_neighbours_and_leaves_the_rest() -> None:
    views = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 112, 112)
    assert torch.equal(blend(views, 0.0, generator()), views)
    mixed = blend(views, 1.0, generator())
    low, high = torch.minimum(views, views.roll(1, 0)), torch.maximum(views, views.roll(1, 0))
    assert ((mixed >= low - 1e-5) & (mixed <= high + 1e-5)).all()
    assert all(not torch.equal(m, v) for m, v in zip(mixed, views, strict=True))


def test_degraded_views_stay_pictures_and_repeat_with_their_seed() -> None:
    views = torch.rand(16, 3, 112, 112)
    degraded = degrade(views, ViewConfig(), generator(1))
    assert degraded.shape == views.shape
    assert degraded.min() >= 0
    assert degraded.max() <= 1
    assert torch.equal(degraded, degrade(views, ViewConfig(), generator(1)))
    assert not torch.equal(degraded, degrade(views, ViewConfig(), generator(2)))
    with pytest.raises(ConfigError, match="got 90 and 84"):
        ViewConfig(min_side_px=90)


@pytest.mark.parametrize("in_bfloat16", [True, False])
@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4)])
def test_orthogonal_keeps_directions_and_evens_lengths(
    shape: tuple[int, int], in_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idgen.recognition.muon.has_bfloat16", lambda device: in_bfloat16)
    matrix = torch.randn(shape, generator=generator())
    result = orthogonal(matrix)
    assert result.dtype == torch.float32
    values = torch.linalg.svdvals(result)
    assert values.max() < 1.3
    assert values.median() > 0.6
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.linalg.diagonal(u.T @ result @ vh.T).min() > -0.05  # bfloat16 inside


def test_a_symmetric_network_sees_no_difference_in_a_mirror() -> None:
    network = SmallResNet((16, 16), (1,), 16, 6).eval()
    x = torch.rand(3, 3, 112, 112)
    output = Symmetric(network)(x)
    torch.testing.assert_close(output, Symmetric(network)(x.flip(-1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(output, (network(x) + network(x.flip(-1))) / 2, atol=1e-5, rtol=0)


def test_whitening_evens_out_the_variation_within_people() -> None:
    owner = torch.arange(200).repeat_interleave(5)
    spread = torch.tensor([4.0, 1.0, 0.25])
    x = 3 + torch.randn(200, 3)[owner] + torch.randn(1000, 3) * spread
    centre, matrix = whitening(x, owner, exponent=0.5, shrinkage=0.0)
    torch.testing.assert_close(centre, x.mean(dim=0))
    white = (x - centre) @ matrix
    within = torch.cat([white[owner == n] - white[owner == n].mean(dim=0) for n in range(200)])
    covariance = within.T @ within / 800
    torch.testing.assert_close(covariance / covariance[0, 0], torch.eye(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(white.norm(dim=1).mean(), x.norm(dim=1).mean())
    _, unchanged = whitening(x, owner, exponent=0.0, shrinkage=0.0)
    torch.testing.assert_close(unchanged / unchanged[0, 0], torch.eye(3), atol=1e-5, rtol=0)


def test_muon_descends() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator()))
    goal = torch.randn(4, 3, 3, 3, generator=generator(1))
    optimizer = Muon([weight], lr=0.05)
    before = (weight - goal).square().sum().item()
    for _ in range(60):
        optimizer.zero_grad()
        (weight - goal).square().sum().backward()
        optimizer.step()
    assert (weight - goal).square().sum().item() < 0.5 * before
