"""`idgen synthesize`, the real command on mini in one step: who, what, which seed, and what is refused."""

import hashlib
import json
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from synthesizing import LENIENT, about, command, contents, models_opened_once, rows, whole_dataset

import idgen.opening
import idgen.synth.finishing
import idgen.synth.work
from idgen.blocklist import Blocklist
from idgen.cli import main
from idgen.data.pictures import read_pictures
from idgen.encoders.gallery import embed_pictures
from idgen.encoders.thresholds import threshold_at
from idgen.errors import ConfigError, RunFolderError
from idgen.identity import Identity
from idgen.provenance import read_provenance
from idgen.synth.curate import CurationRules, Curator
from idgen.synth.dataset import Dataset
from idgen.synth.finding import find_people
from idgen.synth.folder import DatasetFolder
from idgen.synth.making import attempt_seed
from idgen.synth.plan import Plan
from idgen.synth.shards import VECTORS_FACT


@pytest.fixture(scope="module", autouse=True)
def _models() -> Iterator[None]:
    with models_opened_once():
        yield


@pytest.fixture(scope="module")
def made() -> Path:
    """A finished dataset; not to be changed."""
    return whole_dataset()


def refuse(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    """The command ends with exit code 2, and its last line says ``message``."""
    assert main(words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


# ---- what is made


def test_every_planned_picture_is_there_once_and_whole(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan.read(made / "plan.parquet")
    planned = [(p.identity, p.picture) for person in plan.people() for p in person.pictures]
    assert [(row["identity"], row["picture"]) for row in rows(made)] == planned
    kept = [row for row in rows(made) if row["decision"] == "kept"]
    assert 2 < len(kept) < 6  # or else this and other tests show little
    assert main(["synthesize", "check", str(made)]) == 0
    assert f"all well; 3 shards, {len(kept)} pictures of" in capsys.readouterr().out
    assert about(made)["finished"]
    assert [p.name for p in Dataset.open(made).kept()] == [row["path"] for row in kept]
    assert not list(made.rglob(".idgen-*"))


def test_rows_say_what_was_planned_and_what_was_measured(made: Path) -> None:
    plan = Plan.read(made / "plan.parquet")
    for row, picture in zip(rows(made), (p for x in plan.people() for p in x.pictures), strict=True):
        assert (row["prompt"], row["person"]) == (picture.prompt, picture.person)
        assert {axis: row[axis] for axis in picture.attributes} == dict(picture.attributes)
        assert row["attempts"] == 1
        assert row["seed"] == picture.seed
        assert row["rejections"] == ("" if row["decision"] == "kept" else row["decision"])
        if row["decision"] == "kept":
            assert -1 <= row["similarity"] <= 1


def test_a_picture_says_how_it_was_made_and_nothing_of_this_machine(made: Path, tmp_path: Path) -> None:
    by_path = {row["path"]: row for row in rows(made)}
    for picture in Dataset.open(made).kept():
        file = tmp_path / picture.name
        file.write_bytes(picture.read_bytes())
        said, row = read_provenance(file), by_path[picture.name]
        assert (said.prompt, said.seed, said.steps) == (row["prompt"], row["seed"], 1)
        assert said.similarity == {said.encoder: row["similarity"]}
        assert said.created == about(made)["started"] == "2025-10-09T08:53:20+00:00"
        assert said.model == "mini"
        assert str(made.parent).encode() not in file.read_bytes()
    assert str(made.parent) not in (made / "dataset.json").read_text()


def test_each_picture_is_a_function_of_its_own_person_and_seed(made: Path, tmp_path: Path) -> None:
    """Alone in a batch and in a shard of everybody, within what float arithmetic does to 8-bit pixels."""
    out = tmp_path / "dataset"
    assert main(command(out, "--batch-size", "4", "--shard-people", "6")) == 0
    before = {p.name: np.asarray(p.open(), int) for p in Dataset.open(made).kept()}
    after = {p.name: np.asarray(p.open(), int) for p in Dataset.open(out).kept()}
    assert before.keys() == after.keys()
    assert max(np.abs(before[name] - after[name]).max() for name in before) <= 2
    assert len({pixels.tobytes() for pixels in before.values()}) == len(before)


def test_vectors_of_the_kept_pictures_lie_beside_the_shard(made: Path) -> None:
    for number in range(3):
        facts = json.loads((made / "shards" / f"{number:05d}.json").read_text())["facts"]
        data = (made / "shards" / f"{number:05d}.safetensors").read_bytes()
        assert facts[VECTORS_FACT]["sha256"] == hashlib.sha256(data).hexdigest()


def test_people_keep_away_from_a_gallery_and_nothing_of_it_is_left(made: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "photos" / "Jane-Doe"
    gallery.mkdir(parents=True)
    for picture in Dataset.open(made).kept():
        (gallery / picture.name).write_bytes(picture.read_bytes())
    out = tmp_path / "dataset"
    assert main(command(out, "--gallery", str(gallery.parent), people=2)) == 0
    kit = idgen.opening.open_kit(idgen.opening.model_folder("mini"))
    photos = read_pictures(gallery.parent).pictures
    real = embed_pictures(photos, kit.detector, [kit.encoder]).vectors[kit.encoder.id]
    limit = threshold_at(kit.encoder, "1e-4")
    people = np.load(out / "people" / "vectors.npy")[:2]
    assert (people @ real.T).max() < limit
    assert (people @ people.T - 2 * np.eye(2)).max() < limit
    assert "gallery 1" in json.loads((out / "people" / "people.json").read_text())
    seen = [row for row in rows(out) if row["num_faces"]]
    assert seen
    most = max(limit, threshold_at(kit.judge, "1e-4"))
    assert all(row["real_similarity"] < most for row in seen if row["decision"] == "kept")
    assert not list(out.rglob("*real*"))
    assert b"Jane-Doe" not in b"".join(contents(out).values())


def test_what_is_rejected_is_drawn_again_from_another_seed_and_only_so_often(tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    words = ["--retries", "2", "--steps", "3", "--seed", "2", "--set", "curation.min_similarity=0.3"]
    assert main(command(out, *words, "--format", "jpeg", "--quality", "90", people=2, pictures=2)) == 0
    plan = Plan.read(out / "plan.parquet")
    planned = [picture for person in plan.people() for picture in person.pictures]
    attempts = []
    for row, picture in zip(rows(out), planned, strict=True):
        reasons = [reason for reason in row["rejections"].split(",") if reason]
        is_kept = row["decision"] == "kept"
        assert row["attempts"] == len(reasons) + is_kept
        assert 1 <= row["attempts"] <= 3
        assert row["seed"] == attempt_seed(picture.seed, row["attempts"] - 1)
        assert is_kept or (row["attempts"], row["decision"]) == (3, reasons[-1])
        attempts.append((row["attempts"], is_kept))
    assert (3, False) in attempts
    assert any(number > 1 and is_kept for number, is_kept in attempts)
    picture = next(Dataset.open(out).kept())
    assert picture.name.endswith(".jpg")
    kit = idgen.opening.open_kit(idgen.opening.model_folder("mini"))
    said = next(row for row in rows(out) if row["path"] == picture.name)
    people = np.load(out / "people" / "vectors.npy")[:2]
    curator = Curator(
        CurationRules(),
        detector=kit.detector,
        encoder=kit.encoder,
        judge=None,
        people=people,
        grammar=plan.grammar,
    )
    seen = curator.look(picture.open()).vectors[kit.encoder.id]
    # What was judged is what is stored, compressed: not the picture before that.
    assert seen @ people[said["person"]] == pytest.approx(said["similarity"], abs=1e-6)


def test_seeds_of_attempts_are_in_53_bits_and_differ() -> None:
    seeds = {attempt_seed(seed, attempt) for seed in range(50) for attempt in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert attempt_seed(7, 0) == 7


# ---- plans


def test_a_plan_is_written_edited_compared_and_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, out = tmp_path / "first.parquet", tmp_path / "second.parquet", tmp_path / "dataset"
    words = ["synthesize", "plan", "--people", "3", "--pictures", "2"]
    grammar = command(out)[command(out).index("--grammar") + 1]
    assert main([*words, "--grammar", grammar, "--out", str(first)]) == 0
    assert "6 pictures of 3 people" in capsys.readouterr().out
    table = pyarrow.parquet.read_table(first)
    prompts = [f"{text}, outdoors" for text in table["prompt"].to_pylist()]
    place = table.column_names.index("prompt")
    edited = table.set_column(place, table.schema.field("prompt"), pyarrow.array(prompts)).slice(0, 5)
    pyarrow.parquet.write_table(edited, second)
    assert main(["synthesize", "diff", str(first), str(first)]) == 0
    assert "the plans say the same" in capsys.readouterr().out
    assert main(["synthesize", "diff", str(first), str(second)]) == 1
    assert "5 pictures changed, 0 added, 1 removed" in capsys.readouterr().out
    made_so = ["synthesize", "--steps", "1", "--guidance", "1", "--retries", "0", *LENIENT, "--out", str(out)]
    assert main([*made_so, "--plan", str(second)]) == 0
    assert [row["prompt"] for row in rows(out)] == prompts[:5]
    assert len({row["person"] for row in rows(out)}) == 3
    refuse(capsys, [*made_so, "--plan", str(second), "--people", "2"], "at least 3 people are needed")
    refuse(
        capsys, [*made_so, "--plan", str(first)], "holds a dataset of other settings (pictures: 5 there, 6"
    )


def test_a_plan_like_a_set_of_pictures(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.parquet"
    grammar = str(made.parent / "grammar.yaml")
    assert main(["synthesize", "plan", "--like", str(made), "--grammar", grammar, "--out", str(out)]) == 0
    kept: dict[str, int] = {}
    for row in rows(made):
        kept[row["identity"]] = kept.get(row["identity"], 0) + (row["decision"] == "kept")
    sizes = [len(person.pictures) for person in Plan.read(out).people()]
    assert sizes == [number for number in kept.values() if number]


# ---- going on


def test_a_finished_dataset_is_left_alone(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert main(command(made)) == 0
    assert f"{made} is finished: " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_a_damaged_shard_is_said_and_made_again(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dataset"
    shutil.copytree(made, out)
    shutil.copy(made.parent / "grammar.yaml", tmp_path)
    tar = out / "shards" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    assert main(command(out)) == 0
    assert "shard 00001" in (said := capsys.readouterr().err)
    assert "it is made again" in said
    assert contents(out) == contents(made)
    data = bytearray(tar.read_bytes())
    data[700] ^= 1  # of the same size: only the checksums tell
    tar.write_bytes(data)
    assert main(["synthesize", "check", str(out)]) == 2
    assert "its sha256 differs" in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ctrl_c: None
) -> None:
    out = tmp_path / "dataset"
    draw, drawn = idgen.synth.work.Workshop.draw, []

    def interrupted(shop: idgen.synth.work.Workshop, batch: list[object]) -> None:
        drawn.append(batch)
        if len(drawn) == 2:
            signal.raise_signal(signal.SIGINT)
        draw(shop, batch)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idgen.synth.work.Workshop, "draw", interrupted)
        assert main(command(out)) == 130
    assert " of 3 shards " in capsys.readouterr().err
    assert threading.active_count() < 10
    assert main(command(out)) == 0
    assert contents(out) == contents(made)


def test_an_error_in_a_thread_reaches_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> bytes:
        raise ConfigError("the record of picture.png has 99999 bytes")

    monkeypatch.setattr(idgen.synth.finishing, "encoded_picture", broken)
    refuse(capsys, command(tmp_path / "dataset", people=2), "the record of picture.png has 99999 bytes")


def test_two_commands_do_not_work_in_one_folder(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = DatasetFolder(made, about(made)["command"], 3)
    with folder.locked(), pytest.raises(RunFolderError, match="another process works in"), folder.locked():
        pass


# ---- what is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pictures", "3"], "holds a dataset of other settings (pictures: 6 there, 18 now"),
        (["--steps", "2"], "other settings (steps: 1 there, 2 now)"),
        (["--seed", "1"], "other settings (seed: 0 there, 1 now; plan_sha256"),
        (["--set", "curation.min_face_px=10"], "other settings (curation: "),
        (["--source", "uniform"], "other settings (source: 'pca' there, 'uniform' now; plan_sha256: "),
        (["--batch-size", "0"], "--batch-size must be between 1 and 1024, got 0"),
        (["--people", "0"], "--people must be between 1 and"),
        (["--id-start", "0.5", "--id-end", "0.5"], "--id-end must be above --id-start, got 0.5 and 0.5"),
        (["--format", "gif"], "config.format must be one of png, jpeg, webp, got 'gif'"),
        (["--plan", "x.parquet"], "--plan says which pictures are made"),
        (["--model", "nothing"], "no model 'nothing'"),
        (["--device", "gpu"], "--device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
        (["--stepz", "2"], "--stepz is not an option; did you mean '--steps'?"),
        (["--set", "curation.min_similarty=1"], "curation.min_similarty is not a setting"),
        (["--set", "curation.max_faces=0"], "max_faces must be between 1 and inf, got 0"),
        (["--set", "distribution.pose.up=1"], "distribution.pose: 'up'"),
        (["--gallery", "nowhere"], "no such gallery: nowhere"),
        (["--size", "65"], "--size must be WIDTH or WIDTHxHEIGHT in multiples of 8 pixels, got '65'"),
    ],
)
def test_wrong_settings(
    made: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(made)
    refuse(capsys, command(made, *words), message)
    assert contents(made) == before


def test_what_cannot_be_found_or_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dataset"
    few = tmp_path / "few.npy"
    np.save(few, np.eye(128, dtype=np.float32)[:3])
    refuse(capsys, command(out, "--source", f"file:{few}", people=4), "only 3 of 4 new people were found")
    refuse(capsys, ["synthesize", "--people", "2"], "--out must be given")
    refuse(
        capsys, ["synthesize", "--people", "2", "--out", str(out)], "--people and --pictures must be given"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("Dear Sir or Madam")
    refuse(capsys, command(tmp_path / "other"), "holds other files (letter.txt) and no dataset")
    words = command(tmp_path / "third")
    grammar = Path(words[words.index("--grammar") + 1])
    grammar.write_text(grammar.read_text().replace("blur: 1", "blurr: 1"))
    refuse(capsys, words, "quality.soft.finish: there is no distortion 'blurr'; did you mean 'blur'?")
    grammar.write_text(grammar.read_text().replace("a photo of a person", "a photo of a child"))
    refuse(capsys, words, "adult")


def test_people_who_refused_are_not_made(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody on the list is exactly where the first new person was found; then, known to others only."""
    kit = idgen.opening.open_kit(idgen.opening.model_folder("mini"))
    first = np.load(made / "people" / "vectors.npy")[0]
    path = tmp_path / "blocklist.safetensors"
    Blocklist({"somebody": Identity.from_vector(first, kit.encoder.id)}, path).save()
    monkeypatch.setenv("IDGEN_BLOCKLIST", str(path))
    out = tmp_path / "dataset"
    assert main(command(out, people=2)) == 0
    people = np.load(out / "people" / "vectors.npy")[:2]
    assert (people @ first).max() < threshold_at(kit.encoder, "1e-3")
    other = Identity.from_vector(np.eye(8)[0], "other@000000000000")
    Blocklist({"somebody": other}, path).save()
    refuse(
        capsys, command(tmp_path / "again", people=2), "not checked against people who refused: 'somebody'"
    )
    found = find_people(Plan.read(made / "plan.parquet"), kit, tmp_path / "third", allow_unchecked=True)
    np.testing.assert_array_equal(found[0], first)


def test_a_dry_run_writes_nothing_and_says_what_would_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dataset"
    assert main(command(out, "--dry-run", people=2)) == 0
    said = capsys.readouterr().out
    assert "2 of 2 pictures of 2 people are to be made, 64 x 64 pixels, in 1 of 1 shard" in said
    assert re.search(r"drawing takes \S+ s a picture on cpu: \d+ min on 1 such device, ", said)
    assert not out.exists()


def test_settings_come_from_a_file_and_options_override_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        "{people: 99, pictures: 1, shard_people: 2, steps: 1, guidance: 1, retries: 0, seed: 0, "
        f"grammar: {made.parent / 'grammar.yaml'}, curation: {{min_similarity: null, other_margin: null, "
        "check_attributes: false, near_duplicate: null}}"
    )
    assert main(["synthesize", "--config", str(settings), "--people", "6", "--out", str(made)]) == 0
    assert "is finished" in capsys.readouterr().out
