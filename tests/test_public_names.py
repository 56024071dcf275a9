import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import idgen

ROOT = Path(__file__).parents[1]
PUBLIC = [
    *("Blocklist", "IDPipeline", "IDPipelineXL", "Identity", "IdgenError"),
    *("__version__", "fuse", "similarity"),
]


def test_the_public_names_are_these() -> None:
    """A name added or taken away changes what others rely on: change it here too, and the changelog."""
    assert sorted(idgen.__all__) == sorted(PUBLIC)
    assert dir(idgen) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    found = getattr(importlib.import_module("idgen"), name)
    assert isinstance(found, str) or found.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'idgen' has no attribute 'IDPipline'"):
        _ = idgen.IDPipline  # type: ignore[attr-defined]


def test_importing_idgen_loads_no_other_library() -> None:
    code = "import sys; before = set(sys.modules); import idgen; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {name.partition(".")[0] for name in done.stdout.split()} <= {"idgen", *sys.stdlib_module_names}


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert idgen.__version__ == project["version"] == newest[1]
