import json
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from idgen import cli, mini
from idgen.commands import doctor


def network(path: Path, *, outputs: list[str], size_px: int = 112, width: int = 8) -> None:
    """An ONNX file with the inputs and outputs of a detector or a recogniser, and nothing between."""
    value = helper.make_tensor_value_info
    ends = [value(name, TensorProto.FLOAT, [1, width]) for name in outputs]
    nodes = [helper.make_node("Identity", ["image"], [name]) for name in outputs]
    graph = helper.make_graph(nodes, "g", [value("image", TensorProto.FLOAT, [1, 3, size_px, size_px])], ends)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph), str(path))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of a machine on which nothing is installed but Python packages."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IDGEN_WEIGHTS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False
    )
    return tmp_path


def report(capsys: pytest.CaptureFixture[str]) -> dict:
    assert cli.main(["doctor", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def names(rows: list[dict]) -> set[str]:
    return {row["name"] for row in rows} - {"mini", "judge"}


def test_a_bare_machine_is_told_what_is_missing_and_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys)
    assert found["device"]["torch"]
    assert found["packages"]["diffusers"]
    assert not names(found["detectors"]) | names(found["encoders"]) | names(found["models"])
    assert not found["unreadable"]
    missing = {row["what"]: row["how"] for row in found["missing"]}
    assert any("buffalo_l" in what and "--download" in how for what, how in missing.items())
    assert any("Stable Diffusion" in what and "hf download" in how for what, how in missing.items())


def test_packs_and_files_are_found_under_the_names_that_options_take(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packs, weights = home / ".insightface/models", home / "weights"
    network(packs / "buffalo_l/det_10g.onnx", outputs=list("abcdefghi"), size_px=640)
    network(packs / "buffalo_l/w600k_r50.onnx", outputs=["683"])
    network(packs / "buffalo_l/genderage.onnx", outputs=["fc1"], size_px=96)
    network(packs / "antelopev2/antelopev2/glintr100.onnx", outputs=["embedding"])
    network(weights / "yunet.onnx", outputs=["cls_8", "obj_8", "bbox_8", "kps_8"], size_px=640)
    network(weights / "mine.onnx", outputs=["embedding"])
    monkeypatch.setenv("IDGEN_WEIGHTS", str(weights))
    found = report(capsys)
    assert names(found["detectors"]) == {"buffalo_l", f"yunet:{weights}/yunet.onnx"}
    assert names(found["encoders"]) == {"buffalo_l", "antelopev2", f"{weights}/mine.onnx"}
    licences = {row["name"]: row["licence"] for row in found["encoders"]}
    assert "non-commercial" in licences["buffalo_l"]
    assert "not stated" in licences[f"{weights}/mine.onnx"]
    assert not any("buffalo_l" in row["what"] for row in found["missing"])


def test_models_in_the_cache_are_listed_with_their_licence(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = home / "hub/models--somebody--portraits"
    snapshot = repository / "snapshots/0123456789abcdef"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123456789abcdef")
    (snapshot / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (snapshot / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# Portraits\n")
    row = next(row for row in report(capsys)["models"] if row["name"] != "mini")
    assert row["name"] == "somebody/portraits"
    assert row["licence"] == "creativeml-openrail-m"
    assert str(snapshot) in row["path"]
    assert "StableDiffusionPipeline" in row["path"]


def test_a_broken_file_is_named_and_the_rest_goes_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = home / ".insightface/models/buffalo_l/det_10g.onnx"
    network(broken.with_name("w600k_r50.onnx"), outputs=["683"])
    broken.write_bytes(b"half a download")
    found = report(capsys)
    assert [row["what"] for row in found["unreadable"]] == [str(broken)]
    assert names(found["encoders"]) == {"buffalo_l"}


def test_it_works_without_torch_and_without_the_hub(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("torch", "onnx", "huggingface_hub", "huggingface_hub.errors"):
        monkeypatch.setitem(sys.modules, module, None)  # import raises ImportError
    found = report(capsys)
    assert {row["what"] for row in found["unreadable"]} >= {"device", "model cache"}
    assert found["device"]["cpu_cores"] >= 1


def test_a_package_that_is_not_installed_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", {"surely-not-installed": ("testing", "dev")})
    missing = {row["what"]: row["how"] for row in doctor.examine().missing}
    assert missing["surely-not-installed (for testing)"] == "pip install 'idgen[dev]'"


def test_missing_parts_of_mini_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mini, "FACES", tmp_path)
    monkeypatch.setattr(mini, "BASE", tmp_path)
    found = doctor.examine()
    assert {"mini's det_mini.onnx", "mini's rec_mini.onnx", "mini's model_index.json"} <= {
        r["what"] for r in found.missing
    }
    assert "mini" not in {row["name"] for row in (*found.detectors, *found.encoders, *found.models)}


def test_the_text_shows_a_licence_for_everything_found(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network(home / ".insightface/models/buffalo_l/w600k_r50.onnx", outputs=["683"])
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("  --encoder buffalo_l")
    assert lines[at + 1].strip().endswith("w600k_r50.onnx")
    assert "non-commercial research only" in lines[at + 2]
    assert lines[0].startswith("idgen 0.1.0, Python ")
