"""People who refused: put on the list, kept away from, and what is said where that cannot be."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from generating import astronaut
from PIL import Image
from synthesizing import command, contents, models_opened_once

import idgen.opening
from idgen.blocklist import VARIABLE, Blocklist
from idgen.cli import main
from idgen.encoders.arcface import mini_encoder, onnx_encoder
from idgen.encoders.base import FaceEncoder
from idgen.encoders.thresholds import threshold_at
from idgen.errors import (
    ConfigError,
    EncoderMismatchError,
    MeasureError,
    RefusedPersonError,
    RunFolderError,
)
from idgen.identity import Identity
from idgen.opening import Kit
from idgen.synth import identities, separation
from idgen.synth.finding import clear_dataset, find_people, open_dataset
from idgen.synth.grammar import read_grammar
from idgen.synth.identities import separated_people
from idgen.synth.plan import Plan
from idgen.synth.planning import make_plan
from idgen.synth.separation import Crowd
from idgen.synth.sources import GivenVectors, UniformSphere, load_source

TEST = "test@0123456789ab"
FAR = {"max_cosine": 0.9, "seed": 3}


@pytest.fixture(scope="module", autouse=True)
def _models() -> Iterator[None]:
    with models_opened_once():
        yield


@pytest.fixture(autouse=True)
def own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The list of this test alone: nobody is on it yet."""
    path = tmp_path / "refused.safetensors"
    monkeypatch.setenv(VARIABLE, str(path))
    Blocklist(path=path).save()
    return path


def refuse(path: Path, *vectors: np.ndarray, by: str) -> None:
    """Put "Ann", "Bob", "Cid" on the list."""
    names = ("Ann", "Bob", "Cid")
    Blocklist({n: Identity.from_vector(v, by) for n, v in zip(names, vectors, strict=False)}, path).save()


Said = Callable[[list[str]], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Gives the one line with which a command that cannot be done ends."""

    def run(words: list[str]) -> str:
        capsys.readouterr()
        assert main(words) == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


# ---- the list


def test_several_who_change_the_list_at_once_lose_nobody(
    tmp_path: Path, own_list: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three are put on it while two are taken off; each change takes so long that all of them overlap."""
    rows = np.eye(6, dtype=np.float32)
    refuse(own_list, *rows[:3], by=TEST)
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, file in enumerate(files):
        Identity.from_vector(rows[3 + number], TEST).save(file)
    words = [["add", str(file), "--name", file.stem] for file in files]
    words += [["remove", name] for name in ("Ann", "Bob")]
    save = Blocklist.save
    monkeypatch.setattr(Blocklist, "save", lambda listed: (time.sleep(0.1), save(listed))[1])
    running = [_forked(["blocklist", *each]) for each in words]
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in running] == [0] * 5
    assert sorted(Blocklist.load().people) == ["0", "1", "2", "Cid"]


def _forked(words: list[str]) -> int:
    process = os.fork()
    if not process:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = main(words)
        finally:
            os._exit(code)
    return process


def test_a_change_that_does_not_end_is_not_waited_for_for_ever(
    own_list: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idgen.blocklist.PATIENCE_SECONDS", 0.05)
    message = "another process changes .*refused.safetensors"
    with (
        Blocklist.changing() as listed,
        pytest.raises(RunFolderError, match=message),
        Blocklist.changing(),
    ):
        pass
    assert len(listed) == 0
    with pytest.raises(ConfigError, match="nobody called 'Ann'"), Blocklist.changing() as listed:
        listed.remove(listed.add(Identity.from_vector(np.eye(8)[0], TEST), "Bob").replace("Bob", "Ann"))
    assert len(Blocklist.load()) == 0  # where something goes wrong nothing is saved


def test_the_same_vector_is_not_listed_twice(tmp_path: Path, said: Said) -> None:
    who = tmp_path / "who.safetensors"
    Identity.from_vector(np.eye(8)[0], TEST).save(who)
    assert main(["blocklist", "add", str(who)]) == 0
    told = f"idgen: this person is on the list already, as 'person-1', with the same vector of {TEST}"
    assert said(["blocklist", "add", str(who)]).startswith(told)
    assert said(["blocklist", "add", str(who), "--name", "Ann"]).startswith(told)
    assert list(Blocklist.load().people) == ["person-1"]


# ---- an encoder of the user's own, with its card


@pytest.fixture
def mine(tmp_path: Path) -> FaceEncoder:
    """mini under another name, in a file that nobody finds by its id."""
    mini = mini_encoder()
    card = json.loads(mini.path.with_suffix(".json").read_text())
    (tmp_path / "mine.onnx").write_bytes(mini.path.read_bytes())
    card["encoder"] = card["encoder"].replace("mini@", "mine@")
    (tmp_path / "mine.json").write_text(json.dumps(card))
    return onnx_encoder(tmp_path / "mine.onnx")


@pytest.fixture
def kit(mine: FaceEncoder) -> Kit:
    return replace(idgen.opening.open_kit(idgen.opening.model_folder("mini")), encoder=mine)


def plan_of(num_people: int) -> Plan:
    return make_plan(read_grammar(None), num_people, 1, 0)


def test_the_card_of_ones_own_encoder_says_how_near_is_too_near(
    kit: Kit, own_list: Path, tmp_path: Path
) -> None:
    faces = load_source("pca", encoder=mini_encoder().id, dim=128)
    given = tmp_path / "given.npy"
    np.save(given, faces.sample(400, np.random.default_rng(6)))
    people = {"source": f"file:{given}", "max_cosine": 0.99}
    plain = find_people(plan_of(20), kit, tmp_path / "plain", **people)
    listed, gallery = plain[:3], plain[5:8]
    refuse(own_list, *listed, by=kit.encoder.id)
    found = find_people(plan_of(20), kit, tmp_path / "found", galleries=[gallery], **people)
    assert (found @ gallery.T).max() < threshold_at(kit.encoder, "1e-4")
    assert (found @ listed.T).max() < threshold_at(kit.encoder, "1e-3")


def test_the_encoder_is_that_of_the_people(mine: FaceEncoder) -> None:
    with pytest.raises(EncoderMismatchError, match=rf"the people are of {TEST}, the encoder is mine@"):
        separated_people(UniformSphere(encoder=TEST, dim=128), 3, encoder=mine, **FAR)


# ---- what the library does with the list


def test_the_users_own_list_holds_where_no_other_is_given(own_list: Path) -> None:
    mini = mini_encoder()
    source = UniformSphere(encoder=mini.id, dim=128)
    plain = separated_people(source, 4, **FAR)
    refuse(own_list, plain[1], by=mini.id)
    np.testing.assert_array_equal(separated_people(source, 4, blocklist=Blocklist(), **FAR), plain)
    found = separated_people(source, 4, **FAR)
    assert (found @ plain[1]).max() < threshold_at(mini, "1e-3")
    np.testing.assert_array_equal(found[1:3], plain[2:])


def test_who_is_turned_away_is_counted_with_the_reason(own_list: Path, tmp_path: Path) -> None:
    mini = mini_encoder()
    rows = np.eye(8, 128, dtype=np.float32)
    refuse(own_list, *rows[:2], by=mini.id)
    message = (
        r"only 3 of 8 .*no more given people; turned away were 1 for being near gallery 1, "
        r"2 for being near gallery 2, 2 for being near people who refused$"
    )
    galleries = {"gallery": [rows[2:3], rows[3:5]], "max_gallery_cosine": 0.9}
    given = GivenVectors(encoder=mini.id, vectors=rows)
    for _ in range(2):  # the second time they are read from the folder
        with pytest.raises(MeasureError, match=message):
            separated_people(given, 8, out=tmp_path / "people", **galleries, **FAR)
    with pytest.raises(MeasureError, match=r"no more given people$"):
        separated_people(given, 9, blocklist=Blocklist(), **FAR)


def test_of_drawn_people_the_last_ones_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "WATCHED", 2)
    source = UniformSphere(encoder=TEST, dim=3)
    gallery = {"gallery": np.eye(1, 3), "max_gallery_cosine": -0.9, "blocklist": Blocklist()}
    with pytest.raises(MeasureError, match=r"of the last 512 candidates .* turned away were \d+ for") as stop:
        separated_people(source, 500, max_cosine=0.5, seed=0, **gallery)
    drawn = np.concatenate([source.sample(256, np.random.default_rng([0, chunk])) for chunk in range(2)])
    assert "Ask for fewer, or allow more" in str(stop.value)
    counted = int(str(stop.value).partition("turned away were ")[2].split()[0].replace(",", ""))
    assert 0.9 * len(drawn) < counted <= len(drawn)


def test_a_list_that_has_grown_stops_only_where_somebody_found_is_near(
    own_list: Path, tmp_path: Path
) -> None:
    mini, out = mini_encoder(), tmp_path / "people"
    source = UniformSphere(encoder=mini.id, dim=128)
    apart = separated_people(source, 700, blocklist=Blocklist(), **FAR)[600]
    found = separated_people(source, 300, out=out, **FAR)
    refuse(own_list, apart, by=mini.id)  # only now, and like nobody of the 300
    np.testing.assert_array_equal(separated_people(source, 300, out=out, **FAR), found)
    more = separated_people(source, 700, out=out, **FAR)
    np.testing.assert_array_equal(more, separated_people(source, 700, **FAR))  # as if it had been there
    refuse(own_list, apart, found[7], by=mini.id)
    message = r"list .* has changed: 1 of the 300 people in .*people \(the first is number 7\) .* to 'Bob'"
    with pytest.raises(RefusedPersonError, match=message + r".* Choose another --out, or delete"):
        separated_people(source, 300, out=out, **FAR)
    assert len(separated_people(source, 7, out=out, **FAR)) == 7  # he is none of these
    Blocklist(path=own_list).save()
    np.testing.assert_array_equal(separated_people(source, 700, out=out, **FAR), more)


# ---- memory


def test_more_people_than_there_is_memory_for(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "machine_bytes", lambda: 64 * 10**9)
    message = (
        r"finding 2,147,483,647 people needs 1\.1 TB of memory, and this machine has 64 GB; ask for fewer"
    )
    with pytest.raises(ConfigError, match=message):
        separated_people(UniformSphere(encoder=TEST, dim=128), 2**31 - 1, **FAR)
    path = tmp_path / "plan.parquet"
    words = ["synthesize", "plan", "--people", "1", "--pictures", "1", "--out", str(path)]
    assert main(words) == 0
    table = pyarrow.parquet.read_table(path)
    place = table.schema.get_field_index("person")
    far = pyarrow.array([2**31 - 2], table.schema.field(place).type)
    pyarrow.parquet.write_table(table.set_column(place, table.schema.field(place), far), path)
    out = tmp_path / "dataset"
    for more in ([], ["--dry-run"]):
        told = said(["synthesize", "--plan", str(path), "--out", str(out), *more])
        assert told.startswith("idgen: finding 2,147,483,647 people needs 1.1 TB of memory, and this machine")
        assert "a plan asks for as many as its highest number of a person" in told
        assert not out.exists()


def test_where_the_machine_gives_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(separation.np, "empty", none_left)
    with pytest.raises(MeasureError, match=r"no memory for 1,000 people of 128 numbers each \(512 kB\)"):
        Crowd(128, 0.5, capacity=1000)


# ---- a command that failed before anything was made


def test_what_cannot_be_is_said_before_a_folder_is_begun(
    own_list: Path, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idgen.synth.galleries.embed_pictures", lambda *_, **__: pytest.fail("looked at"))
    out = tmp_path / "dataset"
    (tmp_path / "photos").mkdir()
    astronaut().save(tmp_path / "photos" / "a.png")
    words = command(out, "--gallery", str(tmp_path / "photos"))
    refuse(own_list, np.eye(8)[0], by=TEST)
    for more in ([], ["--dry-run"]):
        assert "no source of identities called 'gauss'" in said([*words, "--source", "gauss", *more])
        told = said([*words, *more])
        assert "not checked against people who refused: 'Ann'" in told
        assert "--allow-unchecked" in told
        assert not out.exists()


def test_what_failed_before_there_were_people_gives_way(tmp_path: Path, said: Said) -> None:
    """A gallery without a face; too few people; then as many as there are, who need not be found again."""
    out, few, photos = tmp_path / "dataset", tmp_path / "few.npy", tmp_path / "photos"
    np.save(few, np.eye(128, dtype=np.float32)[:2])
    (photos / "nobody").mkdir(parents=True)
    Image.linear_gradient("L").convert("RGB").save(photos / "nobody" / "wall.png")
    assert "no face found in 1 picture" in said(command(out, "--gallery", str(photos)))
    given = ("--source", f"file:{few}", "--allow-unchecked")
    assert "only 2 of 6 new people were found" in said(command(out, *given))
    found = (out / "people" / "vectors.npy").stat()
    assert main(command(out, *given, "--dry-run", people=2)) == 0
    assert main(command(out, *given, people=2)) == 0
    assert (out / "people" / "vectors.npy").stat().st_ino == found.st_ino
    before = contents(out)
    assert "holds a dataset of other settings" in said(command(out))  # there are pictures now
    assert contents(out) == before


def test_who_was_found_by_other_settings_is_let_go(tmp_path: Path) -> None:
    out, command = tmp_path / "dataset", {"source": "pca", "steps": 6, "max_cosine": None}
    dataset = open_dataset(out, command, 1)
    with dataset.locked():
        dataset.start({})
    (out / "people").mkdir()
    (out / "real_people").mkdir()
    for change, stay in (({}, True), ({"steps": 7}, True), ({"max_cosine": 0.6}, False)):
        dataset = open_dataset(out, {**command, **change}, 2)
        with dataset.locked():
            clear_dataset(dataset)
            dataset.start({})
        assert json.loads((out / "dataset.json").read_text())["command"] == {**command, **change}
        assert (out / "people").exists() == (out / "real_people").exists() == stay
    left = open_dataset(out, command, 1)
    (out / "plan.parquet").touch()  # somebody else has found all people meanwhile
    with left.locked(), pytest.raises(RunFolderError, match="holds a dataset of other settings"):
        clear_dataset(left)
    with pytest.raises(RunFolderError, match="holds a dataset of other settings"):
        open_dataset(out, command, 1)


# ---- the commands that make pictures


def test_generate_refuses_who_is_listed_and_who_cannot_be_checked(
    own_list: Path, tmp_path: Path, said: Said
) -> None:
    photo, out = tmp_path / "ann.png", tmp_path / "out"
    astronaut().save(photo)
    words = ["generate", "--face", str(photo), "--prompt", "a face", "--count", "1", "--steps", "1"]
    words += ["--out", str(out)]
    assert main(["blocklist", "add", str(photo), "--name", "Ann"]) == 0
    for more in ([], ["--allow-unchecked"]):
        assert "this is 'Ann', who refused to be shown" in said([*words, *more])
    refuse(own_list, np.eye(8)[0], by=TEST)
    told = said(words)
    assert "not checked against people who refused: 'Ann'" in told
    assert "--allow-unchecked" in told
    assert not out.exists()
    assert main([*words, "--allow-unchecked"]) == 0
    assert (out / "0000.png").exists()


def test_synthesize_goes_on_where_that_is_allowed(own_list: Path, tmp_path: Path, said: Said) -> None:
    mini, out = mini_encoder(), tmp_path / "dataset"
    first = separated_people(
        load_source("pca", encoder=mini.id, dim=128), 1, max_cosine=threshold_at(mini, "1e-4")
    )
    listed = {"Ann": Identity.from_vector(first[0], mini.id), "Bob": Identity.from_vector(np.eye(8)[0], TEST)}
    Blocklist(listed, own_list).save()
    assert "not checked against people who refused: 'Bob'" in said(command(out, people=2))
    assert main(command(out, "--allow-unchecked", people=2)) == 0
    people = np.load(out / "people" / "vectors.npy")[:2]
    assert (people @ first[0]).max() < threshold_at(mini, "1e-3")  # whoever can be compared is
