import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from generating import astronaut
from PIL import Image
from safetensors.numpy import save_file

from idgen import cli
from idgen.commands.embed import explain
from idgen.identity import Identity, fuse
from idgen.provenance import Provenance, save_picture

ENCODER = "mini@0123456789ab"


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr, which must be one line."""
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith("\n")
    return said


# ---- inspect


def inspect(capsys: pytest.CaptureFixture[str], path: Path) -> dict:
    assert cli.main(["inspect", "--json", str(path)]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_shows_how_a_picture_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Provenance(
        prompt="a\nb \x1b[31mred", negative_prompt="", seed=7, steps=20, guidance_scale=4.0, id_scale=0.8,
        model="mini", model_hash="f" * 64, encoder=ENCODER, similarity={ENCODER: 0.5},
    )  # fmt: skip
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", record)
    facts = inspect(capsys, tmp_path / "a.png")
    assert facts["prompt"] == record.prompt
    assert facts["similarity"] == {ENCODER: 0.5}
    assert cli.main(["inspect", str(tmp_path / "a.png")]) == 0
    text = capsys.readouterr().out
    assert "  seed: 7\n" in text
    assert rf"  prompt: a\nb \x1b[31mred{chr(10)}" in text  # a picture cannot send commands to the terminal
    assert f"    {ENCODER}: 0.5\n" in text


def test_inspect_shows_an_identity_but_not_its_vector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Identity.from_vector(np.eye(1, 16)[0], ENCODER, norm=20.0).save(tmp_path / "who.safetensors")
    facts = inspect(capsys, tmp_path / "who.safetensors")
    assert facts["features"] == [{"kind": "face_vector", "encoder": ENCODER, "shape": [16], "norm": 20.0}]


def _adapter(path: Path, **metadata: str) -> Path:
    tensors = {
        "image_proj.proj.0.weight": np.zeros((32, 16), np.float32),
        "image_proj.proj.2.weight": np.zeros((4 * 8, 32), np.float32),
        "image_proj.norm.weight": np.zeros(8, np.float32),
        "ip_adapter.1.to_k_ip.weight": np.zeros((8, 8), np.float32),
        "ip_adapter.1.to_v_ip.weight": np.zeros((8, 8), np.float32),
    }
    save_file(tensors, path, metadata or None)
    return path


def test_inspect_shows_the_card_of_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _adapter(tmp_path / "who.safetensors", licence="from the metadata")
    facts = inspect(capsys, path)
    assert (facts["num_tokens"], facts["face_vector"], facts["text_width"]) == (4, 16, 8)
    assert (facts["cross_attention_layers"], facts["has_lora"]) == (1, False)
    assert facts["licence"] == "from the metadata"
    card = {
        "licence": "research only",
        "encoder": ENCODER,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(card))
    assert inspect(capsys, path)["licence"] == "research only"
    path.with_suffix(".json").write_text(json.dumps({**card, "sha256": "0" * 64}))
    assert cli.main(["inspect", str(path)]) == 2
    assert "describes another file" in one_line(capsys)


def test_inspect_says_where_an_adapter_has_no_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "none: no who.json" in inspect(capsys, _adapter(tmp_path / "who.safetensors"))["card"]


def test_inspect_refuses_what_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    (tmp_path / "code.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    expected = {
        "plain.png": "says nothing of how it was made",
        "other.safetensors": "neither an identity nor an IP-Adapter file",
        "cut.safetensors": "damaged",
        "code.bin": "not a picture",
        "nothing.png": "no such file",
    }
    for name, message in expected.items():
        assert cli.main(["inspect", str(tmp_path / name)]) == 2
        assert message in one_line(capsys)


# ---- embed


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("who.png", "must end in .safetensors"),
        ("no/who.safetensors", "does not exist"),
        ("other.safetensors", "no identity"),
    ],
)
def test_embed_looks_at_its_target_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, message: str
) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    before = (tmp_path / "other.safetensors").read_bytes()
    assert cli.main(["embed", "ann.jpg", "--out", str(tmp_path / out)]) == 2
    assert message in one_line(capsys)
    assert (tmp_path / "other.safetensors").read_bytes() == before


def test_embed_keeps_a_code_that_can_be_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, photo = tmp_path / "who.safetensors", tmp_path / "photo.png"
    astronaut().save(photo)
    assert cli.main(["embed", str(photo), "--wplus", "mini", "--out", str(out)]) == 0
    assert "with a W+ code by wplus_mini@" in capsys.readouterr().out
    vector, code = Identity.load(out).features
    assert (vector.kind, code.kind, code.value.shape) == ("face_vector", "wplus", (6, 160))
    assert cli.main(["embed", str(out), str(photo), "--wplus", "mini", "--out", str(out)]) == 0
    again = Identity.load(out).features[1]
    np.testing.assert_allclose(again.value, code.value, atol=1e-5)
    assert cli.main(["embed", "ann.jpg", "--wplus", "nobody.pt", "--out", str(out)]) == 2
    assert "nobody.pt" in capsys.readouterr().err


def test_two_photos_that_differ_get_no_verdict() -> None:
    a, b = (Identity.from_vector(v, ENCODER) for v in np.eye(2))
    lines = explain([Path("a.jpg"), Path("b.jpg")], fuse([a, b], method="robust"))
    assert lines[0] == "a.jpg: similarity to the others 0.00"
    assert "three or more" in lines[-1]


@pytest.fixture
def people(faces_folder: Path, tmp_path: Path) -> list[Path]:
    """Three photos of a person and one of somebody else, as PNG files."""
    from pyarrow import parquet

    table = parquet.read_table(faces_folder / "faces_test.parquet", columns=["image", "identity"]).to_pylist()
    names = [row["identity"] for row in table]
    someone = next(name for name in names if names.count(name) >= 10)
    of_someone = [row for row in table if row["identity"] == someone][:3]
    stranger = next(row for row in table if row["identity"] != someone)
    paths = []
    for i, row in enumerate([*of_someone[:2], stranger, of_someone[2]]):
        paths.append(tmp_path / f"{i}.png")
        Image.open(io.BytesIO(row["image"]["bytes"])).save(paths[-1])
    return paths


def test_embed_says_which_photo_hurts(
    people: list[Path], weights_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eyes = [
        "--detector",
        f"yunet:{weights_folder}/yunet.onnx",
        "--encoder",
        f"{weights_folder}/teacher_recognizer.onnx",
    ]
    out = tmp_path / "who.safetensors"
    assert cli.main(["embed", *map(str, people), "--out", str(out), *eyes]) == 0
    text = capsys.readouterr().out
    assert text.count("left out") == 1
    assert f"{people[2]}: similarity to the others" in next(x for x in text.splitlines() if "left out" in x)
    robust = Identity.load(out)
    assert robust.face_vector.encoder.startswith("teacher_recognizer@")

    clean = [str(path) for path in people if path != people[2]]
    assert cli.main(["embed", *clean, "--out", str(out), "--fuse", "mean", *eyes]) == 0
    np.testing.assert_array_equal(robust.face_vector.value, Identity.load(out).face_vector.value)
    assert cli.main(["embed", str(out), str(people[0]), "--out", str(out), *eyes]) == 0
