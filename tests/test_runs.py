import json
from pathlib import Path

import pytest

from idgen.errors import RunFolderError, StorageError
from idgen.runs import PictureRun, file_sha256, read_record, short_hash

COMMAND = {"prompt": "a face", "photos": ["aa"], "size": [64, 64]}


def make(run: PictureRun, indices: list[int]) -> None:
    for i in indices:
        run.path(i).write_bytes(b"picture %d" % i)
        run.add(i, {"seed": 7 + i})


def started(folder: Path, count: int = 5) -> PictureRun:
    run = PictureRun(folder, COMMAND, count)
    run.start({"steps": 3})
    return run


def test_a_run_that_was_stopped_goes_on_with_whole_micro_batches(tmp_path: Path) -> None:
    make(started(tmp_path / "out"), [0, 1, 2])
    again = PictureRun(tmp_path / "out", COMMAND, 5)
    assert sorted(again.pictures) == [0, 1, 2]
    assert not again.is_finished
    assert again.batches(2) == [[2, 3], [4]]
    assert again.batches(4) == [[0, 1, 2, 3], [4]]
    make(again, [3, 4])
    assert PictureRun(tmp_path / "out", COMMAND, 5).is_finished
    assert again.batches(2) == []


def test_the_record_says_how_far_the_run_came(tmp_path: Path) -> None:
    make(started(tmp_path), [0, 1])
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["finished"], record["pictures_planned"], record["pictures_written"]) == (False, 5, 2)
    assert record["command"] == COMMAND
    assert record["run"] == {"steps": 3}
    assert record["pictures"][1] == {
        "file": "0001.png",
        "sha256": file_sha256(tmp_path / "0001.png"),
        "seed": 8,
    }


def test_a_deleted_picture_is_made_again(tmp_path: Path) -> None:
    make(started(tmp_path), [0, 1, 2, 3, 4])
    (tmp_path / "0003.png").unlink()
    assert PictureRun(tmp_path, COMMAND, 5).batches(1) == [[3]]


def test_a_changed_picture_is_not_overwritten(tmp_path: Path) -> None:
    make(started(tmp_path), [0, 1])
    (tmp_path / "0001.png").write_bytes(b"retouched")
    with pytest.raises(RunFolderError, match=r"0001\.png was changed after it was made"):
        PictureRun(tmp_path, COMMAND, 5)
    assert (tmp_path / "0001.png").read_bytes() == b"retouched"


def test_another_command_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    make(started(tmp_path), [0])
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunFolderError, match=r"prompt: 'a face' there, 'a dog' now"):
        PictureRun(tmp_path, {**COMMAND, "prompt": "a dog"}, 5)
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.parametrize("name", ["holiday.jpg", "0000.png"])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(RunFolderError, match=f"holds other files .*{name}"):
        PictureRun(tmp_path, COMMAND, 5)


def test_hidden_leftovers_do_not_make_a_folder_full(tmp_path: Path) -> None:
    (tmp_path / ".run.json.x1.tmp").write_bytes(b"half")
    assert read_record(tmp_path) is None


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(RunFolderError, match="is a file"):
        read_record(tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"idgen_run": 1}', '{"idgen_run": "x", "command": {}, "pictures": []}']
)
def test_a_foreign_or_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunFolderError, match="not the record of a run"):
        read_record(tmp_path)


def test_a_record_of_a_newer_idgen_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"idgen_run": 2, "command": {}, "pictures": []}')
    with pytest.raises(RunFolderError, match="newer idgen"):
        read_record(tmp_path)


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot make the folder"):
        PictureRun(tmp_path / "file" / "out", COMMAND, 1).start({})


def test_the_short_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert short_hash({"a": 1, "b": [2]}) == short_hash({"b": [2], "a": 1}) != short_hash({"a": 1, "b": [3]})
