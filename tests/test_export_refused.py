"""`idgen synthesize export`, `import` and `check`: what is refused, and what is found damaged."""

import sys
from pathlib import Path

import pytest
from made_dataset import make_dataset, plain_png, rows_of
from PIL import Image

from idgen.commands.datasets import check_main, export_main, import_main
from idgen.errors import ConfigError, IdgenError, ModelNotFoundError, StorageError, UnknownNameError
from idgen.synth.export.reading import open_labelled
from idgen.synth.shards import write_shard

FORMATS = ["folder", "webdataset", "parquet", "recordio", "lmdb"]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "made")


def export(made: Path, to: str, out: Path) -> Path:
    assert export_main([str(made), "--to", to, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (
            ["--to", "webdatset"],
            UnknownNameError,
            "no format of datasets called 'webdatset'; did you mean 'webdataset'",
        ),
        (
            ["--to", "folder", "--shard-mb", "5"],
            ConfigError,
            "--shard-mb is for webdataset and parquet; folder has",
        ),
        (
            ["--to", "parquet", "--shard-mb", "0"],
            ConfigError,
            "--shard-mb must be from 1 to 100000 megabytes, got 0",
        ),
        (["--to", "folder", "--align", "8"], ConfigError, "--align must be from 32 to 512 pixels .*, got 8"),
        (
            ["--to", "folder", "--align", "112", "--detector", "mimi"],
            UnknownNameError,
            "called 'mimi'; did you mean",
        ),
    ],
)
def test_wrong_words(
    made: Path, tmp_path: Path, words: list[str], error: type[IdgenError], message: str
) -> None:
    with pytest.raises(error, match=message):
        export_main([str(made), "--out", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_a_finished_shard(made: Path, tmp_path: Path) -> None:
    for path in (made / "shards").glob("*.json"):
        path.unlink()
    with pytest.raises(ConfigError, match="made has no finished shard"):
        export(made, "folder", tmp_path / "out")


def test_a_dataset_of_which_no_picture_was_kept(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "dataset.json").write_text("{}")
    write_shard(made, 0, [({"identity": "a", "key": "k", "decision": "no face"}, None)])
    for to in FORMATS:
        with pytest.raises(ConfigError, match=r"nothing to export from .*: no picture was kept"):
            export(made, to, tmp_path / "out")


def test_a_picture_that_changed_on_the_disk_is_not_exported(made: Path, tmp_path: Path) -> None:
    tar = made / "shards" / "00001.tar"
    tar.write_bytes(tar.read_bytes().replace(b"IDAT", b"IDAS", 1))
    with pytest.raises(
        StorageError, match=r"shard 00001 .* the picture 00003_000.png is not what was written: .*anew"
    ):
        export(made, "webdataset", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_key_that_is_in_two_shards(made: Path, tmp_path: Path) -> None:
    write_shard(made, 2, rows_of(range(1)))
    with pytest.raises(
        StorageError, match="made has the key 00000_000 in two shards; `idgen synthesize check`"
    ):
        export(made, "folder", tmp_path / "out")


def test_check_lists_what_is_damaged(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_main([str(made)]) == 0
    told = capsys.readouterr().out
    rest = "2 of 3 shards are finished; `idgen synthesize` with the same settings goes on with the others"
    assert told == f"{made}: all well; 2 shards, 15 pictures of 6 people (18 planned); {rest}\n"
    out = export(made, "folder", tmp_path / "out")
    assert capsys.readouterr().out == f"{out}: 15 pictures of 6 people as folder\n{rest}\n"
    (out / "00001" / "00001_000.png").write_bytes(b"")
    (out / "labels.json").unlink()
    with pytest.raises(StorageError, match="out is damaged: 2 problems, listed above"):
        check_main([str(out)])
    told = capsys.readouterr().out
    assert f"{out / 'labels.json'} is missing" in told
    assert f"{out / '00001' / '00001_000.png'} is not what was written: its sha256 differs" in told
    (out / "SHA256SUMS").write_text(f"{'0' * 64}  ../outside\n")
    with pytest.raises(ConfigError, match=r"SHA256SUMS is damaged: .* is no checksum and name"):
        check_main([str(out)])
    tar = made / "shards" / "00001.tar"
    tar.write_bytes(tar.read_bytes().replace(b"IDAT", b"IDAS", 1))
    with pytest.raises(StorageError, match="made is damaged: 1 problem, "):
        check_main([str(made)])
    assert "shard 00001 of" in capsys.readouterr().out


@pytest.mark.parametrize("identity", ["..", "a/b", "a\\b", ".hidden", "a ", "x" * 201, "a\nb", "a:b"])
def test_a_person_who_cannot_be_a_folder(tmp_path: Path, identity: str) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "dataset.json").write_text("{}")
    write_shard(made, 0, [({"identity": identity, "key": "k", "decision": "kept"}, plain_png(1))])
    with pytest.raises(ConfigError, match="cannot be the name of a folder"):
        export(made, "folder", tmp_path / "out")
    with pytest.raises(ConfigError, match="cannot be the name of a folder"):
        import_main([str(made), "--out", str(tmp_path / "out")])
    out = export(made, "webdataset", tmp_path / "tars")  # where it is no name, anything goes
    assert open_labelled(out).pictures[0].identity == identity


def test_a_library_that_is_missing_is_named_with_the_way_to_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export(made, "lmdb", tmp_path / "out")
    for library in ("lmdb", "msgpack", "pyarrow"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, library, None)
            line = rf'{library} is not installed: `pip install "idgen\[formats\]"`'
            with pytest.raises(ModelNotFoundError, match=line):
                export(made, "lmdb", tmp_path / "other")
            if library == "lmdb":
                with pytest.raises(ModelNotFoundError, match=line):
                    open_labelled(out)


def test_a_picture_of_another_kind_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "in" / "anna").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "anna" / "x.bmp")
    with pytest.raises(ConfigError, match=r"anna/x.bmp of anna is neither PNG, JPEG nor WebP"):
        import_main([str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
