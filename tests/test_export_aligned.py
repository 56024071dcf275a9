"""`idgen synthesize export --align`: the faces cut out for recognisers."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from made_dataset import make_dataset
from PIL import Image
from skimage import data as photos

from idgen.commands.datasets import export_main
from idgen.data.pictures import read_pictures
from idgen.errors import ConfigError
from idgen.faces.detect import Face, load_detector
from idgen.faces.photo import read_face
from idgen.pixels import to_array, to_pil
from idgen.provenance import Provenance, read_provenance, save_picture
from idgen.synth.dataset import Dataset
from idgen.synth.export.align import Aligner
from idgen.synth.export.base import exporters
from idgen.synth.export.exporting import export_dataset
from idgen.synth.export.reading import open_labelled
from idgen.synth.shards import write_shard


def export(made: Path, to: str, out: Path) -> Path:
    assert export_main([str(made), "--to", to, "--out", str(out), "--align", "112"]) == 0
    return out


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    return Image.fromarray(photos.astronaut()).crop((120, 0, 330, 210))  # Eileen Collins, NASA, public domain


def dataset_of_photos(folder: Path, portrait: Image.Image, keys: str = "a_0 a_1 b_0 c_0") -> Path:
    """Three people, of whom b shows no face."""
    folder.mkdir()
    said = Provenance(
        prompt="a woman", negative_prompt="", seed=1, steps=1, guidance_scale=1.0, id_scale=1.0, model="m",
        model_hash="",
    )  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 255, (210, 210, 3), dtype=np.uint8)
    images = {"a_0": portrait, "a_1": portrait.rotate(8), "b_0": Image.fromarray(noise), "c_0": portrait}
    rows = []
    for key, image in images.items():
        if key not in keys:
            continue
        save_picture(image, folder / "x.png", said)
        rows.append(({"identity": key[0], "key": key, "decision": "kept"}, (folder / "x.png").read_bytes()))
    (folder / "x.png").unlink()
    (folder / "dataset.json").write_text("{}")
    write_shard(folder, 0, rows)
    return folder


def test_faces_are_cut_out_as_everywhere_in_idgen(
    tmp_path: Path, portrait: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    made = dataset_of_photos(tmp_path / "made", portrait)
    out = export(made, "folder", tmp_path / "out")
    told = capsys.readouterr().out
    assert "3 pictures of 2 people as folder" in told
    assert "left out, no usable face found: 1 pictures" in told
    assert "left out, no picture left: 1 people" in told
    found = read_pictures(out)
    assert [p.name for p in found.pictures] == ["a/a_0.png", "a/a_1.png", "c/c_0.png"]
    originals = {p.name: p for p in Dataset.open(made).kept()}
    for picture in found.pictures:
        assert picture.path is not None
        assert read_provenance(picture.path).prompt == "a woman"  # the word of its making is kept
        (tmp_path / "x.png").write_bytes(originals[picture.path.name].read_bytes())
        crop, _, _ = read_face(tmp_path / "x.png", load_detector("mini"), "largest")
        np.testing.assert_array_equal(to_array(picture.open()), to_array(to_pil(crop)))
        assert picture.open().size == (112, 112)
    rows = pyarrow.parquet.read_table(out / "manifest.parquet").to_pylist()
    source = {row["key"]: row["sha256"] for row in Dataset.open(made).manifest().to_pylist()}
    assert [row["source_sha256"] for row in rows] == [source[row["key"]] for row in rows]
    assert [row["label"] for row in rows] == [0, 0, 1]  # b has no picture, and hence no class
    assert json.loads((out / "labels.json").read_text()) == {"a": 0, "c": 1}
    sheet = (out / "DATASHEET.md").read_text()
    assert "| aligned | to 112 x 112 pixels in the ArcFace pose, by the largest face of the detector" in sheet
    assert (
        "| left out, no usable face found | 1 pictures, and with them 1 people of whom none is left |"
        in sheet
    )
    assert "3 of 3 pictures carry IPTC's mark" in sheet


def test_aligned_recordio_is_what_arcface_torch_trains_on(tmp_path: Path, portrait: Image.Image) -> None:
    made = dataset_of_photos(tmp_path / "made", portrait, "a_0 a_1 c_0")
    out = export(made, "recordio", tmp_path / "out")
    assert (out / "property").read_text() == "2,112,112\n"
    assert {p.open().size for p in open_labelled(out).pictures} == {(112, 112)}
    assert [p.identity for p in open_labelled(out).pictures] == ["a", "a", "c"]


class Blind:
    """A detector that sees nobody; the embedded one takes its time to find no face."""

    name = licence = "blind"

    def detect(self, image: np.ndarray) -> list[Face]:
        del image
        return []


@pytest.mark.parametrize("to", ["folder", "webdataset", "parquet", "recordio", "lmdb"])
def test_where_no_face_is_found_at_all_nothing_is_written(tmp_path: Path, to: str) -> None:
    dataset, aligner = Dataset.open(make_dataset(tmp_path / "made")), Aligner(Blind(), 112)
    with pytest.raises(ConfigError, match=r"nothing to export from .*: no face was found in any picture"):
        export_dataset(dataset, tmp_path / "out", to, exporters.build(to), aligner=aligner)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]
