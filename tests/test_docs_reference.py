"""The reference of the library is built without a warning, and its references lead somewhere."""

import importlib.util
import json
import multiprocessing
import sys
from pathlib import Path
from types import ModuleType

import pdoc.doc
import pytest

PROGRAM = Path(__file__).parents[1] / "docs" / "reference.py"


def load_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_reference", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_into(out: Path) -> None:
    (out / "wrong.json").write_text(json.dumps(load_program().build(out / "pages")))


def test_it_is_built_without_a_warning(tmp_path: Path) -> None:
    """In a copy of this process: pdoc puts names into modules, and everything heavy is imported already."""
    process = multiprocessing.get_context("fork").Process(target=build_into, args=(tmp_path,))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == 0
    assert json.loads((tmp_path / "wrong.json").read_text()) == []
    pages = {path.relative_to(tmp_path / "pages").as_posix() for path in (tmp_path / "pages").rglob("*.html")}
    assert {"index.html", "idgen.html", "idgen/pipeline.html", "idgen/objectives/terms.html"} <= pages
    assert "idgen/page/serving.html" not in pages
    terms = (tmp_path / "pages" / "idgen" / "objectives" / "terms.html").read_text()
    assert 'href="denoising.html#min_snr_weight"' in terms  # a reference into another module


def test_what_leads_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_up.py").write_text(
        '"""See `Thing`, `Thing.part`, `lost`, `math.fsum` and ``code``."""\n\n\n'
        'class Thing:\n    """Has a `part`; `gone` it has not."""\n\n    part: int = 1\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    program = load_program()
    module = pdoc.doc.Module.from_name("made_up")
    names = program.Names([module])
    wrong = [line for doc in program.all_docs(module) for line in program.link(doc, names)]
    del sys.modules["made_up"]
    assert [line.split(" is ")[0] for line in wrong] == ["made_up: `lost`", "made_up.Thing: `gone`"]
    assert module.docstring.startswith("See `made_up.Thing`, `made_up.Thing.part`, `lost`")
