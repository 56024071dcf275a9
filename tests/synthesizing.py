"""What the tests of `idgen synthesize` share: the real command on mini, quick and small, opened once."""

import atexit
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

import idgen.encoders.arcface
import idgen.faces.scrfd
import idgen.opening
import idgen.runs
import idgen.synth.painting
import idgen.synth.work
from idgen.cli import main
from idgen.faces.onnx_session import open_session

EPOCH = "1760000000"  # so that two datasets of one command are equal, byte for byte
# Every picture in which a face is seen is kept: what mini draws in one step is like nobody.
LENIENT = [
    *("--set", "curation.min_similarity=null", "--set", "curation.other_margin=null"),
    *("--set", "curation.check_attributes=false", "--set", "curation.near_duplicate=null"),
]

GRAMMAR = """
format: 1
picture:
  pose:
    ahead: {words: [facing the camera, looking straight ahead], check: {probe: yaw, min: -12, max: 12}}
    left: {words: looking to the left, check: {probe: yaw, min: 12}}
  light: {plain: "", dim: in dim light}
  quality: {sharp: "", soft: {words: "", finish: {blur: 1}}, noisy: {words: "", finish: {noise: 1}}}
templates: ["a photo of a person, {pose}, {light}"]
"""


@contextmanager
def models_opened_once() -> Iterator[None]:
    """Inside the block, mini is opened once and is then what everybody opens; sessions have no threads.

    A process may then be forked at any time, and its child begins at once. Models are not changed by use.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", EPOCH)
        single = functools.partial(open_session, num_threads=1)
        for module in (idgen.encoders.arcface, idgen.faces.scrfd):
            patch.setattr(module, "open_session", lambda path, num_threads=None, **rest: single(path, **rest))
        kit = _once(idgen.opening.open_kit)
        for module in (idgen.opening, idgen.synth.work):
            patch.setattr(module, "open_kit", kit)
        patch.setattr(idgen.synth.painting, "open_model", _once(idgen.opening.open_model))
        patch.setattr(idgen.runs, "model_sha256", _once(idgen.runs.model_sha256))
        yield


_known: dict[str, Any] = {}  # for all tests of this process


def _once(function: Any) -> Any:
    """The function, that remembers what it gave for the same words."""

    @functools.wraps(function)
    def remembering(*args: Any, **settings: Any) -> Any:
        key = repr((function.__name__, args, sorted(settings.items())))
        if key not in _known:
            _known[key] = function(*args, **settings)
        return _known[key]

    return remembering


def whole_dataset() -> Path:
    """What an uninterrupted run leaves, made once; not to be changed."""
    if "whole" not in _known:
        folder = Path(tempfile.mkdtemp(prefix="idgen-tests-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        assert main(command(folder / "dataset")) == 0
        _known["whole"] = folder / "dataset"
    return _known["whole"]


def command(out: Path, *words: str, people: int = 6, pictures: int = 1) -> list[str]:
    """The words of a command that makes pictures in one step, in three shards of two unless it says else."""
    grammar = out.parent / "grammar.yaml"
    grammar.write_text(GRAMMAR)
    sizes = {"--people": people, "--pictures": pictures, "--shard-people": 2, "--steps": 1, "--guidance": 1,
             "--grammar": grammar}  # fmt: skip
    given = [str(w) for name, value in sizes.items() if name not in words for w in (name, value)]
    return ["synthesize", *given, "--retries", "0", *LENIENT, "--out", str(out), *words]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset but the lock, by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def rows(folder: Path) -> list[dict[str, Any]]:
    """The manifest, shard after shard."""
    parts = sorted((folder / "shards").glob("*.parquet"))
    return [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]


def about(folder: Path) -> dict[str, Any]:
    """What dataset.json says."""
    return json.loads((folder / "dataset.json").read_text())


def forked(words: list[str], prepare: Any) -> int:
    """Run a command in a forked process, which is prepared first; its exit code, negative for a signal.

    What it says goes nowhere.
    """
    process = os.fork()
    if not process:
        code = 99
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            prepare()
            code = main(words)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
