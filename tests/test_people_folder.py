"""New people on disk: killed at any moment, gone on with, readable throughout."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from idgen.errors import MeasureError, RunFolderError, StorageError
from idgen.synth import identities
from idgen.synth.identities import CHUNK, separated_people
from idgen.synth.people_folder import CHUNKS, PeopleFolder
from idgen.synth.sources import GivenVectors, UniformSphere
from idgen.synth.vectors import SETTINGS, VECTORS, read_vectors

SOURCE = UniformSphere(encoder="test@0123456789ab", dim=32)
LIMIT = 0.5

PROGRAM = """
import sys
from pathlib import Path
from idgen.synth.identities import separated_people
from idgen.synth.sources import UniformSphere

source = UniformSphere(encoder="test@0123456789ab", dim=128)
out, say = Path(sys.argv[1]), lambda num: print(num, flush=True)
separated_people(source, 12_000, max_cosine=0.4, out=out, advance=say)
"""


def test_killed_and_started_again_it_finds_the_same_people(tmp_path: Path) -> None:
    out = tmp_path / "people"
    for chunks in (4, 9):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(out)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(chunks):
                assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        there = len(np.load(out / VECTORS))  # opens although nobody closed it
        assert (chunks - 2) * CHUNK * 0.9 < there < 12_000
    source, told = UniformSphere(encoder="test@0123456789ab", dim=128), []
    found = separated_people(source, 12_000, max_cosine=0.4, out=out, advance=told.append)
    assert told[0] >= 6 * CHUNK * 0.9  # it went on
    assert sum(told) == 12_000
    np.testing.assert_array_equal(found, separated_people(source, 12_000, max_cosine=0.4))


def test_whatever_a_stop_tears_is_found_again(tmp_path: Path) -> None:
    out = tmp_path / "people"
    whole = separated_people(SOURCE, 900, max_cosine=LIMIT, out=out)
    files = {name: (out / name).read_bytes() for name in (VECTORS, CHUNKS)}
    lines = files[CHUNKS].splitlines(keepends=True)
    assert len(lines) >= 4
    before_last = len(files[CHUNKS]) - len(lines[-1])
    torn = [
        (VECTORS, files[VECTORS][:-1]),
        (VECTORS, files[VECTORS][: len(files[VECTORS]) // 2]),
        (VECTORS, files[VECTORS] + b"half a vector"),
        (VECTORS, files[VECTORS][:40]),  # within its head
        (VECTORS, b""),
        (VECTORS, files[VECTORS][:-64] + bytes(64)),  # zeros, as a power cut leaves them
        (CHUNKS, files[CHUNKS][:-1]),  # the end of the line is missing
        (CHUNKS, files[CHUNKS][: before_last + 9]),
        (CHUNKS, files[CHUNKS][:before_last]),
        (CHUNKS, files[CHUNKS] + b'{"chunk": '),
        (CHUNKS, files[CHUNKS] + lines[-1]),  # a line twice
        (CHUNKS, b""),
    ]
    for name, data in torn:
        for other, kept in files.items():
            (out / other).write_bytes(data if other == name else kept)
        np.testing.assert_array_equal(separated_people(SOURCE, 900, max_cosine=LIMIT, out=out), whole)
        for other, kept in files.items():
            assert (out / other).read_bytes() == kept


def test_what_is_there_is_not_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = separated_people(SOURCE, 300, max_cosine=LIMIT, out=tmp_path / "people")
    asked: list[int] = []
    draw = identities.candidates
    monkeypatch.setattr(identities, "candidates", lambda *given: asked.append(given[2]) or draw(*given))
    fewer = separated_people(SOURCE, 100, max_cosine=LIMIT, out=tmp_path / "people")
    np.testing.assert_array_equal(fewer, found[:100])
    assert asked == [0]  # once, to see that the source is the same
    more = separated_people(SOURCE, 600, max_cosine=LIMIT, out=tmp_path / "people")
    np.testing.assert_array_equal(more[:300], found)
    chunks_of_300 = len((tmp_path / "people" / CHUNKS).read_text().splitlines())
    assert asked[1:] == [0, *range(2, chunks_of_300)]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "people"
    gallery = np.eye(3, 32)
    near = {"gallery": gallery, "max_gallery_cosine": 0.4}
    separated_people(SOURCE, 100, max_cosine=LIMIT, out=out, **near)
    known = np.asarray(SOURCE.sample(600, np.random.default_rng(0)))
    for change, named in (
        ({"max_cosine": 0.45}, "max_cosine"),
        ({"seed": 1}, "seed, source"),
        ({"gallery": gallery[:2]}, "gallery 1"),
        ({"max_gallery_cosine": 0.41}, "gallery 1"),
        ({"people": GivenVectors(encoder=SOURCE.encoder, vectors=known)}, "source"),
        ({"people": UniformSphere(encoder="other@0123456789ab", dim=32)}, "encoder"),
    ):
        given = {"people": SOURCE, "num": 100, "max_cosine": LIMIT, **near, "out": out, **change}
        with pytest.raises(RunFolderError, match=rf"made with other settings \({named}\)"):
            separated_people(**given)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="holds other files"):
        separated_people(SOURCE, 100, max_cosine=LIMIT, out=tmp_path / "mine")


def test_where_nobody_is_left_those_found_stay_and_are_usable(tmp_path: Path) -> None:
    out = tmp_path / "people"
    message = (
        rf"only (\d+) of 5000 new people were found below cosine 0\.1 \(they are in .*{VECTORS}\): of the"
    )
    for _ in range(2):  # the second time without drawing anybody
        with pytest.raises(MeasureError, match=message) as stop:
            separated_people(SOURCE, 5000, max_cosine=0.1, out=out)
    found = np.load(out / VECTORS)
    assert f"only {len(found)} of" in str(stop.value)
    vectors, encoder = read_vectors(out)
    assert encoder == SOURCE.encoder
    cosines = vectors.astype(float) @ vectors.T.astype(float)
    assert cosines[np.triu_indices(len(found), 1)].max() < 0.1
    chunks = (out / CHUNKS).read_text().splitlines()
    more = len(found) + 1
    np.testing.assert_array_equal(
        separated_people(SOURCE, more, max_cosine=0.1, out=out, least_accepted=0)[:-1], found
    )
    assert len((out / CHUNKS).read_text().splitlines()) > len(chunks)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        PeopleFolder(tmp_path / "people", {"seed": 0}, 32),
        pytest.raises(RunFolderError, match="another process is finding people"),
    ):
        PeopleFolder(tmp_path / "people", {"seed": 0}, 32)
    PeopleFolder(tmp_path / "people", {"seed": 0}, 32).__exit__()


def test_the_head_of_the_file_has_room_for_any_number(tmp_path: Path) -> None:
    path = tmp_path / "people"
    with PeopleFolder(path, {}, 4) as folder:
        assert list(folder.restore()) == []
        for number in (3, 0, 200):
            folder.append(np.full((number, 4), number, np.float32))
            assert len(np.load(path / VECTORS)) == sum(folder.accepted)
    assert [json.loads(line)["accepted"] for line in (path / CHUNKS).read_text().splitlines()] == [3, 0, 200]
    assert json.loads((path / SETTINGS).read_text()) == {}


def test_a_full_disk_is_said_and_loses_nobody(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: Linux answers with an error of the same kind."""
    code = """
import resource, signal, sys
from pathlib import Path
from idgen.errors import StorageError
from idgen.synth.identities import separated_people
from idgen.synth.sources import UniformSphere

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
source = UniformSphere(encoder="test@0123456789ab", dim=32)
try:
    separated_people(source, 900, max_cosine=0.5, out=Path(sys.argv[1]))
except StorageError as error:
    print(error)
"""
    out = tmp_path / "people"
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    kept = len(np.load(out / VECTORS))
    assert f"cannot be written: File too large; {kept:,} people in it stay" in done.stdout
    assert 0 < kept < 900
    np.testing.assert_array_equal(
        separated_people(SOURCE, 900, max_cosine=LIMIT, out=out),
        separated_people(SOURCE, 900, max_cosine=LIMIT),
    )


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file is a file; new people are kept in a folder"):
        separated_people(SOURCE, 10, max_cosine=LIMIT, out=tmp_path / "file")
    with pytest.raises(StorageError, match=r"cannot make the folder .*below: Not a directory"):
        separated_people(SOURCE, 10, max_cosine=LIMIT, out=tmp_path / "file" / "below")
