"""What the page keeps on the disk and for how long, and the command that opens it."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from idgen.cli import main
from idgen.errors import StorageError
from idgen.page.keeping import MARK, Keeping, private_folder

# --- where files lie --------------------------------------------------------------------------------------


def test_files_live_for_an_hour(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path, keep_seconds=3600)
    old, young = keeping.new_folder(), keeping.new_folder()
    now = time.time()
    for folder, age in ((old, 3700), (young, 3500)):
        (folder / "a.png").write_bytes(b"x")
        for path in (folder / "a.png", folder):
            os.utime(path, (now - age, now - age))
    (tmp_path / MARK).touch()
    os.utime(tmp_path / MARK, (now - 9999, now - 9999))
    assert keeping.sweep(now) == 1
    assert not (old / "a.png").exists()
    assert (young / "a.png").exists()
    assert (tmp_path / MARK).exists()
    keeping.sweep(now + 7200)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MARK]


def test_the_folder_is_private_swept_and_gone_in_the_end() -> None:
    before = tempfile.gettempdir(), os.environ.get("GRADIO_TEMP_DIR")
    with private_folder(keep_seconds=0.2) as keeping:
        assert stat.S_IMODE(keeping.root.stat().st_mode) == 0o700
        assert tempfile.gettempdir() == os.environ["GRADIO_TEMP_DIR"] == str(keeping.root)
        file = keeping.new_folder() / "a.png"
        file.write_bytes(b"x")
        deadline = time.monotonic() + 20
        while file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not file.exists()
    assert not keeping.root.exists()
    assert (tempfile.gettempdir(), os.environ.get("GRADIO_TEMP_DIR")) == before


def test_one_file_that_cannot_go_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = Keeping(tmp_path, keep_seconds=1)
    for name in ("a.png", "held.png", "z.png"):
        (tmp_path / name).touch()
    unlink = Path.unlink

    def held(path: Path) -> None:
        if path.name == "held.png":
            raise PermissionError(13, "it is being read", str(path))  # as on Windows
        unlink(path)

    with monkeypatch.context() as windows:
        windows.setattr(Path, "unlink", held)
        assert keeping.sweep(time.time() + 9) == 2
    assert keeping.sweep(time.time() + 9) == 1


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no folder for pictures can be made: No such file or directory"):
        Keeping(tmp_path / "gone").new_folder()


@pytest.mark.skipif(os.name != "posix", reason="locks of this kind are POSIX")
def test_what_a_killed_page_left_behind_is_removed_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = (
        "import sys, time, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from idgen.page.keeping import private_folder\n"
        "with private_folder() as kept: print(kept.root, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with private_folder():
            assert theirs.is_dir()  # in use
        other.send_signal(signal.SIGKILL)
    emptied = tmp_path / "idgen-page-emptied"
    emptied.mkdir()
    fresh = tmp_path / "idgen-page-fresh"
    fresh.mkdir()
    long_ago = time.time() - 999
    os.utime(emptied, (long_ago, long_ago))
    with private_folder() as keeping:
        assert not theirs.exists()
        assert not emptied.exists()
        assert fresh.exists()
        assert keeping.root.parent == tmp_path


# --- the command ------------------------------------------------------------------------------------------


def test_mistakes_in_the_command_are_told_before_anything_is_opened(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"port {port} is taken, perhaps by a page that runs already; the next free one: --port " in said
    passwords = tmp_path / "users"
    passwords.write_text("ann:secret\n")
    passwords.chmod(0o644)
    for words, message in {
        "--port 0": "--port must be between 1 and 65535",
        "--host no.such.host.example": "there is no such address",
        "--auth ann": "NAME:PASSWORD or a file of such lines",
        "--auth :x": "a name or a password is missing",
        f"--auth {passwords}": "others can read",
        "--portt 1": "did you mean '--port'",
    }.items():
        assert main(["app", *words.split()]) == 2
        assert message in capsys.readouterr().err
