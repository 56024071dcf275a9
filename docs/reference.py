"""Build the reference of the library from its docstrings: `make docs`, or ``python docs/reference.py``.

A name in single backticks is a reference to something of idgen, and becomes a link; what it names must
exist. Code and names of others stand in double backticks. A warning of pdoc, or a name that leads nowhere, is
a failure.
"""

import argparse
import importlib
import pkgutil
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pdoc
import pdoc.doc
import pdoc.render

import idgen

REFERENCE = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")
LITERAL = re.compile(
    r"^::\n|(:):$", re.MULTILINE
)  # "::" before code is of reStructuredText; Markdown needs none
LEFT_OUT = (
    "__main__",
    "cli",
    "commands",
    "page",
    "programs",
)  # what runs behind commands is nobody's library


def module_names() -> list[str]:
    """Every module of the library."""
    found = [module.name for module in pkgutil.walk_packages(idgen.__path__, "idgen.")]
    return ["idgen", *(name for name in found if name.split(".")[1] not in LEFT_OUT)]


def leave_out_inherited(namespace: pdoc.doc.Namespace) -> None:
    """Take off what is of other libraries, inherited or renamed: they have references of their own."""
    for name, member in list(namespace.members.items()):
        if (
            isinstance(namespace, pdoc.doc.Class) or isinstance(member, pdoc.doc.Class)
        ) and not member.taken_from[0].startswith("idgen"):
            del namespace.members[name]
        elif isinstance(member, pdoc.doc.Class):
            leave_out_inherited(member)


def all_docs(namespace: pdoc.doc.Namespace) -> Iterator[pdoc.doc.Doc]:
    """What a module or class holds, and it itself; nothing that other modules only import."""
    yield namespace
    for member in namespace.members.values():
        if isinstance(member, pdoc.doc.Class):
            yield from all_docs(member)
        elif not isinstance(member, pdoc.doc.Module):
            yield member


class Names:
    """What references may mean."""

    def __init__(self, modules: Sequence[pdoc.doc.Module]) -> None:
        self.modules = {module.modulename: module for module in modules}
        self.full: set[str] = set(self.modules)
        self.ends: defaultdict[str, set[str]] = defaultdict(set)
        for module in modules:
            for doc in all_docs(module):
                is_value = isinstance(doc, pdoc.doc.Variable)  # whose module pdoc takes from its class
                if not doc.qualname or not (is_value or doc.taken_from[0] == module.modulename):
                    continue
                self.full.add(doc.fullname)
                self.ends[doc.qualname].add(doc.fullname)

    def meant(self, name: str, doc: pdoc.doc.Doc) -> str | None:
        """The full name that ``name`` means in the docstring of ``doc``; None where nothing is of that name.

        A name of the same class, of the same module, a full name, one that the module imports, or one that
        only one module has, or only one of the same room.
        """
        parts = doc.qualname.split(".")
        around = [".".join([doc.modulename, *parts[:end], name]) for end in range(len(parts), -1, -1)]
        own = next((full for full in [*around, name] if full in self.full), None)
        if own is not None:
            return own
        room = ".".join(doc.modulename.split(".")[:2])
        imported = getattr(self.modules[doc.modulename].obj, name.partition(".")[0], None)
        for home in (f"{getattr(imported, '__module__', '-')}.", f"{room}.", "idgen."):
            found = [full for full in self.ends.get(name, ()) if full.startswith(home)]
            if len(found) == 1:
                return found[0]
        return None

    def exists(self, name: str, doc: pdoc.doc.Doc) -> bool:
        """Whether a name without one page is an argument, of the module, of idgen, or of Python itself."""
        if isinstance(doc, pdoc.doc.Function) and name in doc.signature.parameters:
            return True
        if name in self.ends or hasattr(self.modules[doc.modulename].obj, name):
            return True
        room = ".".join(doc.modulename.split(".")[:2])
        if any(full.startswith(f"{room}.") and full.endswith(f".{name}") for full in self.full):
            return True  # of some class there
        module, _, last = name.rpartition(".")
        return module in sys.stdlib_module_names and hasattr(importlib.import_module(module), last)


def link(doc: pdoc.doc.Doc, names: Names) -> list[str]:
    """Make the references of a docstring full names, which pdoc links; those that lead nowhere come back."""
    lost = []

    def replaced(found: re.Match[str]) -> str:
        full = names.meant(found[1], doc)
        if full is None and not names.exists(found[1], doc):
            lost.append(f"{doc.fullname}: `{found[1]}` is nothing of idgen (code stands in double backticks)")
        return f"`{full or found[1]}`"

    doc.docstring = LITERAL.sub(r"\1", REFERENCE.sub(replaced, doc.docstring))
    return lost


def build(out: Path) -> list[str]:
    """Write the pages into ``out``; what is wrong with them comes back."""
    names = module_names()
    for name in names:
        importlib.import_module(name)
    # The public names are loaded on first use: pdoc looks at what is there, and at the submodules in __all__.
    for name in idgen.__all__:
        setattr(idgen, name, getattr(idgen, name))
    idgen.__all__ += sorted({name.split(".")[1] for name in names if "." in name})
    pdoc.render.configure(
        docformat="google", footer_text=f"idgen {idgen.__version__}", search=True, show_source=False
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        modules = [pdoc.doc.Module.from_name(name) for name in names]
        for module in modules:
            leave_out_inherited(module)
        known = Names(modules)
        wrong = [line for module in modules for doc in all_docs(module) for line in link(doc, known)]
        pages = {module.modulename: module for module in modules}
        for module in modules:
            page = out / f"{module.modulename.replace('.', '/')}.html"
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(pdoc.render.html_module(module, all_modules=pages), encoding="utf-8")
        (out / "index.html").write_text(pdoc.render.html_index(pages), encoding="utf-8")
        (out / "search.js").write_text(pdoc.render.search_index(pages), encoding="utf-8")
    return [*dict.fromkeys(wrong), *(f"{w.filename}:{w.lineno}: {w.message}" for w in said)]


def main(argv: Sequence[str] | None = None) -> int:
    """Build; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/reference"), help="folder of the pages")
    out: Path = parser.parse_args(argv).out
    wrong = build(out)
    print(
        "\n".join(wrong) or f"the reference: {out / 'idgen.html'}", file=sys.stderr if wrong else sys.stdout
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
