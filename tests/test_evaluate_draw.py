"""Drawing the pictures that are evaluated: whose they are, controls, going on after a stop."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from face_tables import portrait, write_table
from PIL import Image

from idgen.data.pictures import read_pictures
from idgen.encoders.arcface import mini_encoder
from idgen.encoders.card import read_encoder_card
from idgen.errors import ConfigError, RunFolderError
from idgen.mini import PEOPLE
from idgen.synth.gaussian import load_people
from idgen.synth.identities import separated_people

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "eval" / "draw.py")))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people of two portraits each: parts of one photograph, in different colours."""
    images = [np.roll(portrait(), number, axis=2) for number in range(6)]
    people = [f"person {number // 2}" for number in range(6)]
    return write_table(tmp_path_factory.mktemp("faces") / "faces.parquet", images, people)


def options(faces: Path, out: Path, *more: str) -> list[str]:
    given = {"--faces": faces, "--people": 2, "--count": 1, "--steps": 1, "--out": out}
    return [*(str(word) for pair in given.items() for word in pair), *more]


def test_a_set_says_who_and_from_which_photo(program: SimpleNamespace, faces: Path, tmp_path: Path) -> None:
    assert program.main(options(faces, tmp_path / "with")) == 0
    drawn = read_pictures(tmp_path / "with")
    assert len(drawn.people()) == len(drawn) == 2
    (encoder,) = drawn.encoder_ids
    assert encoder.startswith("mini@")
    for picture in drawn.pictures:
        assert picture.open().size == (64, 64)
        assert picture.prompt in program.PROMPTS
        number = int(picture.reference.removesuffix(".png"))
        assert picture.identity == f"person {number // 2}"


def test_it_goes_on_where_it_was_and_keeps_what_is_there(
    program: SimpleNamespace, faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    program.main(options(faces, out))
    first = {p.name: p.read_bytes() for p in read_pictures(out).pictures}
    kept = read_pictures(out).pictures[0]
    assert kept.path is not None
    lost = out / read_pictures(out).pictures[1].identity
    for file in lost.iterdir():
        file.unlink()
    times = kept.path.stat().st_mtime_ns
    program.main(options(faces, out))
    assert {p.name: p.read_bytes() for p in read_pictures(out).pictures} == first
    assert kept.path.stat().st_mtime_ns == times
    with pytest.raises(RunFolderError, match=r"other settings \(id_scale\)"):
        program.main(options(faces, out, "--id-scale", "0"))


def test_controls_change_the_person_and_nothing_else(
    program: SimpleNamespace, faces: Path, tmp_path: Path
) -> None:
    table = program.load_faces(faces)
    own = program.choose_people(table, 3, 0, shuffle=False)
    other = program.choose_people(table, 3, 0, shuffle=True)
    assert [p.reference for p in own] == [p.reference for p in other]
    for person, control in zip(own, other, strict=True):
        assert table.identities[person.row] == person.identity
        assert table.identities[control.row] != person.identity
    program.main(options(faces, tmp_path / "with"))
    program.main(options(faces, tmp_path / "without", "--id-scale", "0"))
    pairs = zip(*(read_pictures(tmp_path / name).pictures for name in ("with", "without")), strict=True)
    for with_identity, without in pairs:
        assert with_identity.prompt == without.prompt
        assert with_identity.read_bytes() != without.read_bytes()


def test_real_photos_in_place_of_pictures(program: SimpleNamespace, faces: Path, tmp_path: Path) -> None:
    program.main(options(faces, tmp_path / "real", "--real", "--people", "3", "--count", "4"))
    taken = read_pictures(tmp_path / "real")
    assert taken.encoder_ids == ()
    assert len(taken) == 3  # each of the three has one photo beside the reference
    table = program.load_faces(faces)
    for picture in taken.pictures:
        other = [file for file, who in zip(table.files, table.identities, strict=True)
                 if who == picture.identity and file != picture.reference]  # fmt: skip
        row = table.files.index(other[0])
        np.testing.assert_array_equal(np.asarray(picture.open()), table.images[row])


def test_new_people_are_nobody_of_the_table(
    program: SimpleNamespace, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # nobody has refused
    out = tmp_path / "new"
    program.main(options(faces, out, "--new", "--people", "3"))
    drawn = read_pictures(out)
    assert list(drawn.people()) == ["new-0000", "new-0001", "new-0002"]
    assert drawn.encoder_ids == (mini_encoder().id,)
    card = read_encoder_card(mini_encoder())
    assert card is not None
    table = program.load_faces(faces)
    photos = mini_encoder().encode(table.crops(list(range(len(table))))).unit.numpy()
    np.testing.assert_allclose(np.load(out / "gallery.npy"), photos, atol=1e-5)
    people = separated_people(load_people(PEOPLE), 3, max_cosine=card.thresholds["1e-4"], gallery=photos)
    assert (people @ photos.T).max() < card.thresholds["1e-4"]
    np.testing.assert_array_equal(np.load(out / "people" / "vectors.npy")[:3], people)
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.height > 2 * 128  # three people of one picture each, two a row
    with pytest.raises(ConfigError, match="the source vmf needs its file"):
        program.main(options(faces, tmp_path / "x", "--new", "--source", "vmf"))
    for word in ("--real", "--shuffle"):
        with pytest.raises(ConfigError, match="neither --real nor --shuffle"):
            program.main(options(faces, tmp_path / "x", "--new", word))


def test_mistakes(program: SimpleNamespace, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="from 2 to 3"):
        program.main(options(faces, tmp_path / "x", "--people", "9"))
    with pytest.raises(ConfigError, match="--count must be at least 1"):
        program.main(options(faces, tmp_path / "x", "--count", "0"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.json").write_text(json.dumps(1))
    with pytest.raises(RunFolderError, match="holds other files"):
        program.main(options(faces, tmp_path / "mine"))
