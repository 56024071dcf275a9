"""The direction of imports: what stands on what."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "idgen"
PROGRAMS = [
    ROOT / name for name in ("train", "pipelines", "eval", "app", "benchmarks") if (ROOT / name).is_dir()
]

# A room (a module or folder of idgen) may import rooms of its own step and of those above it in this list.
STEPS = [
    {"errors", "registry", "config", "pixels", "storage"},
    {
        "identity",
        "faces",
        "data",
        "metrics",
        "provenance",
        "mini",
        "runs",
        "startup",
        "stylegan",
        "training",
        "weights",
    },
    {"encoders"},
    {"adapters", "diffusion", "editing", "preference", "report", "reference", "portraits", "blocklist"},
    {"objectives", "recognition"},
    {"pipeline"},
    {"synth", "opening", "tuning"},
    {"page"},
    {"cli", "commands", "__main__"},
]
STEP_OF = {room: step for step, rooms in enumerate(STEPS) for room in rooms}
FREE = "__init__"  # idgen/__init__.py names the public modules, and loads them on first use

INSIDE_FUNCTIONS_ONLY = {
    *("datasets", "gradio", "insightface", "lmdb", "matplotlib", "msgpack", "pillow_heif"),
    *("pytorch_metric_learning", "ray", "webdataset"),
}
NEVER = {"torchvision"}  # its CUDA wheel on a CPU torch dies at import, and what needs it replaces torch


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    module: str  # absolute, such as idgen.faces.detect
    is_lazy: bool  # inside a function, or for the type checker only

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports_of(file: Path) -> Iterator[Import]:
    yield from _walk(ast.parse(file.read_text(encoding="utf-8")), file, is_lazy=False)


def _walk(node: ast.AST, file: Path, *, is_lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = is_lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        inside = inside or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        if isinstance(child, ast.Import):
            yield from (Import(file, child.lineno, alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file}:{child.lineno}: relative imports hide what stands on what"
            for alias in child.names:
                yield Import(file, child.lineno, f"{child.module}.{alias.name}", inside)
        yield from _walk(child, file, is_lazy=inside)


def room_of_file(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def room_of_import(found: Import) -> str | None:
    """The room of idgen that an import reaches; None for other packages and for idgen itself."""
    top, *rest = found.module.split(".")
    if top != "idgen" or not rest:
        return None
    is_room = (PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").is_file()
    return rest[0] if is_room else None


LIBRARY = [
    i for file in sorted(PACKAGE.rglob("*.py")) if "programs" not in file.parts for i in imports_of(file)
]
PROGRAM_IMPORTS = [
    i for folder in PROGRAMS for file in sorted(folder.rglob("*.py")) for i in imports_of(file)
]


def test_every_room_has_its_place() -> None:
    rooms = {room_of_file(file) for file in PACKAGE.rglob("*.py")} - {FREE, "programs"}
    assert not rooms - STEP_OF.keys(), "give these a step in STEPS"


def test_imports_point_down() -> None:
    wrong = []
    for found in LIBRARY:
        here, there = room_of_file(found.file), room_of_import(found)
        if here in STEP_OF and there in STEP_OF and STEP_OF[there] > STEP_OF[here]:
            wrong.append(f"{found}: {there} stands on {here}, not under it")
    assert not wrong, "\n".join(wrong)


def test_rooms_of_a_step_make_no_circle() -> None:
    needs: dict[str, set[str]] = {room: set() for room in STEP_OF}
    for found in LIBRARY:
        here, there = room_of_file(found.file), room_of_import(found)
        if here in STEP_OF and there in STEP_OF and there != here:
            needs[here].add(there)
    left = set(needs)
    while free := {room for room in left if not needs[room] & left}:
        left -= free
    assert not left, f"these import each other: {sorted(left)}"


def test_the_command_line_knows_names_only() -> None:
    allowed = {"idgen.errors"}
    heavy = [
        i for i in LIBRARY if room_of_file(i.file) == "cli" and not i.is_lazy and i.module.startswith("idgen")
    ]
    assert all(any(i.module.startswith(name) for name in allowed) for i in heavy), "\n".join(map(str, heavy))
    third_party = [i for i in LIBRARY if room_of_file(i.file) == "cli" and i.module.split(".")[0] not in
                   {*sys.stdlib_module_names, "idgen"}]  # fmt: skip
    assert not third_party, "\n".join(map(str, third_party))


def test_the_package_itself_imports_nothing_when_it_is_imported() -> None:
    eager = [i for i in LIBRARY if i.file == PACKAGE / "__init__.py" and not i.is_lazy]
    assert {i.module.split(".")[0] for i in eager} <= {"os", "importlib", "typing"}, "\n".join(
        map(str, eager)
    )


def test_optional_and_heavy_libraries_are_imported_by_the_function_that_needs_them() -> None:
    everything = [*LIBRARY, *PROGRAM_IMPORTS]
    eager = [i for i in everything if i.module.split(".")[0] in INSIDE_FUNCTIONS_ONLY and not i.is_lazy]
    assert not eager, "\n".join(map(str, eager))


def test_programs_import_what_reports_to_its_maker_after_idgen() -> None:
    """idgen switches that off when it is imported, and the top of a program is sorted: others come first."""
    reporting = {"onnxruntime", "huggingface_hub", "gradio", "ray"}
    eager = [i for i in PROGRAM_IMPORTS if i.module.split(".")[0] in reporting and not i.is_lazy]
    assert not eager, "\n".join(map(str, eager))


def test_nothing_imports_torchvision() -> None:
    tests = [i for file in sorted((ROOT / "tests").rglob("*.py")) for i in imports_of(file)]
    found = [i for i in (*LIBRARY, *PROGRAM_IMPORTS, *tests) if i.module.split(".")[0] in NEVER]
    assert not found, "\n".join(map(str, found))


# ---- programs


def test_programs_are_files_and_not_packages() -> None:
    assert not [path for folder in PROGRAMS for path in folder.rglob("__init__.py")]


def test_no_program_bears_the_name_of_a_module() -> None:
    """The folder of a running script comes first in `sys.path`: `import gradio` would find app/gradio.py."""
    taken = {*sys.stdlib_module_names, *packages_distributions(), "idgen"}
    assert not [path for folder in PROGRAMS for path in folder.rglob("*.py") if path.stem in taken]


def test_programs_import_idgen_and_never_each_other() -> None:
    others = {path.stem for folder in PROGRAMS for path in folder.rglob("*.py")} | {p.name for p in PROGRAMS}
    wrong = [i for i in (*LIBRARY, *PROGRAM_IMPORTS) if i.module.split(".")[0] in others]
    assert not wrong, "\n".join(map(str, wrong))


def test_programs_do_not_reach_into_the_command_line() -> None:
    wrong = [i for i in PROGRAM_IMPORTS if room_of_import(i) in ("cli", "commands")]
    assert not wrong, "\n".join(map(str, wrong))


# ---- this test itself


@pytest.mark.parametrize(
    ("source", "module", "is_lazy"),
    [
        ("import idgen.faces.detect", "idgen.faces.detect", False),
        ("from idgen.faces import detect", "idgen.faces.detect", False),
        ("from idgen import mini", "idgen.mini", False),
        ("def f():\n    import ray", "ray", True),
        ("class A:\n    import ray", "ray", False),
        ("try:\n    import ray\nexcept ImportError:\n    pass", "ray", False),
        ("if TYPE_CHECKING:\n    import ray", "ray", True),
    ],
)
def test_imports_are_seen(tmp_path: Path, source: str, module: str, is_lazy: bool) -> None:
    file = tmp_path / "a.py"
    file.write_text(source)
    assert [(i.module, i.is_lazy) for i in imports_of(file)] == [(module, is_lazy)]
