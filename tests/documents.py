"""The code blocks of the documents, run as a reader would run them. CONTRIBUTING.md has the rules."""

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

import idgen.config
from idgen.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"": "sh", "sh": "sh", "python": "python", "yaml": "yaml", "text": "text"}
BLOCK = re.compile(
    r"(?:^<!-- test: (?P<how>[^\n]*?) -->\n)?^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S
)
USUAL_PAGE = "http://127.0.0.1:7860"  # where the documents find the page of `idgen app`
NEVER_ENDS = "app"  # a command that serves until it is stopped


@dataclass(frozen=True)
class Block:
    """A block of code in a document.

    Attributes:
        page: the document.
        line: of its fence, from 1.
        language: "sh", "python", "yaml" or "text".
        code: without the fences.
        how: what the comment before it says to the test; empty where there is none.
    """

    page: Path
    line: int
    language: str
    code: str
    how: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def told(self) -> list["Told"]:
        """What is done with which commands."""
        return [Told.of(part) for part in self.how.split(";") if part.strip()]

    def told_of(self, words: Sequence[str]) -> "Told":
        """What is done with this command of idgen; nothing special where the comment does not speak of it."""
        return next((told for told in self.told if told.speaks_of(words)), Told((), (), is_only_read=False))


@dataclass(frozen=True)
class Told:
    """A part of a comment to the test: ``generate --steps 2``, ``parse synthesize``, ``parse``.

    Attributes:
        first: first words of the commands that it speaks of.
        added: words that the test adds to them.
        is_only_read: whether they go no further than their program's parser.
    """

    first: tuple[str, ...]
    added: tuple[str, ...]
    is_only_read: bool

    @classmethod
    def of(cls, part: str) -> "Told":
        words = shlex.split(part)
        is_only_read = words[:1] == ["parse"]
        words = words[is_only_read:]
        end = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
        return cls(tuple(words[:end]), tuple(words[end:]), is_only_read)

    def speaks_of(self, words: Sequence[str]) -> bool:
        return tuple(words[: len(self.first)]) == self.first


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a document; every fence belongs to one, every comment to the test stands before one."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        language = match["language"].strip()
        line = text.count("\n", 0, match.start("language")) + 1
        assert language in LANGUAGES, (
            f"{page.name}:{line}: no known language {language!r} ({', '.join(LANGUAGES)})"
        )
        found.append(Block(page, line, LANGUAGES[language], match["code"], (match["how"] or "").strip()))
    assert len(re.findall(r"^```", text, re.M)) == 2 * len(found), (
        f"{page.name}: a fence is open or inside another"
    )
    told = len(re.findall(r"^<!-- test:", text, re.M))
    assert told == sum(bool(block.how) for block in found), (
        f"{page.name}: a comment to the test has no block after it"
    )
    return found


def commands_of(code: str) -> list[list[str]]:
    """The words of each command, with variables put in; comments, "..." and long lines are understood."""
    lines = code.replace("\\\n", " ").splitlines()
    words = [shlex.split(os.path.expandvars(line), comments=True) for line in lines]
    return [[word for word in line if word != "..."] for line in words if line]


class OnlyRead(BaseException):
    """Raised by a parser that has understood its command; no error, so that nothing catches it."""


@contextlib.contextmanager
def programs_only_read() -> Iterator[None]:
    """Inside the block a program ends as soon as its options, and with them its settings, are understood."""
    parse, arguments = idgen.config.Parser.parse_args, idgen.config.program_arguments
    inside = []

    def parse_args(parser: idgen.config.Parser, *words: Any, **named: Any) -> Any:
        found = parse(parser, *words, **named)
        if not inside:
            raise OnlyRead
        return found

    def program_arguments(*given: Any, **named: Any) -> NoReturn:
        inside.append(True)
        try:
            arguments(*given, **named)
        finally:
            inside.pop()
        raise OnlyRead

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idgen.config.Parser, "parse_args", parse_args)
        patch.setattr(idgen.config, "program_arguments", program_arguments)
        yield


class Reader:
    """Who follows a document, in a folder with what it speaks of; its Python blocks share a name space."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "__main__"}
        for name in ("train", "eval", "benchmarks", "idgen", "docs", "tests"):
            (folder / name).symlink_to(ROOT / name)

    def follow(self, block: Block) -> None:
        """Run a block; a failure names it and the command."""
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, str(block.page), "exec"), self.names)
        elif block.language == "text":
            assert not block.how, f"{block}: text is not run"
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.code), dict), f"{block}: no settings"
        else:
            commands = commands_of(block.code)
            for words in commands:
                self._command(words, block)
            idle = [told for told in block.told if not any(told.speaks_of(words[1:]) for words in commands)]
            assert not idle, f"{block}: the comment to the test speaks of no command here: {idle}"

    def _command(self, words: Sequence[str], block: Block) -> None:
        name, *rest = words
        if name == "torchrun":  # its own options, then a command of idgen
            assert shutil.which("torchrun"), "torch brings it"
            start = rest.index("idgen")
            name, rest = "idgen", rest[start + 1 :]
        if name == "idgen":
            self._idgen(rest, block)
        elif name == "python":
            self._python(rest, block)
        elif name == "make":
            done = subprocess.run(
                ["make", "-n", *rest], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block}: {done.stderr}"
        elif name == "cp":
            shutil.copy(*rest)
        elif name in ("pip", "uv"):
            check_install(rest, block)
        elif name == "export":
            for assignment in rest:
                variable, _, value = assignment.partition("=")
                os.environ[variable] = value
        else:
            pytest.fail(f"{block}: the test does not know how to run {shlex.join(words)}")

    def _idgen(self, words: list[str], block: Block) -> None:
        told = block.told_of(words)
        words = [*words, *told.added]
        only_read = told.is_only_read or words[:1] == [NEVER_ENDS]
        with programs_only_read() if only_read else contextlib.nullcontext():
            self._finished(f"idgen {shlex.join(words)}", block, only_read, lambda: main(words))

    def _python(self, words: list[str], block: Block) -> None:
        if words[:2] == ["-m", "pytest"]:
            files = [word for word in words[2:] if not word.startswith("-")]
            assert all((ROOT / file).exists() for file in files), f"{block}: no such test in {files}"
            return

        def run() -> int:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", words)
                try:
                    runpy.run_path(words[0], run_name="__main__")
                except SystemExit as stop:
                    return int(stop.code or 0)
            return 0

        only_read = block.told_of(words).is_only_read
        with programs_only_read() if only_read else contextlib.nullcontext():
            self._finished(f"python {shlex.join(words)}", block, only_read, run)

    def _finished(self, command: str, block: Block, only_read: bool, run: Any) -> None:
        said = io.StringIO()
        was_read = False
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = run()
            except OnlyRead:
                code, was_read = 0, True
            except SystemExit as stop:  # of a parser
                code = stop.code
        tail = "\n".join(said.getvalue().replace("\r", "\n").splitlines()[-15:])
        assert code == 0, f"{block}: {command} ended with {code}:\n{tail}"
        assert was_read == only_read or command.split()[1] not in COMMANDS, f"{block}: nobody read {command}"


def check_install(words: Sequence[str], block: Block) -> None:
    """An installation names idgen, and extras that it has; nothing is installed."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [word for word in words if not word.startswith("-")][1:]
    for package in wanted:
        found = re.fullmatch(r"(?:idgen|\.)(?:\[([\w,]+)\])?", package)
        assert found, f"{block}: {package} is not idgen"
        missing = set((found[1] or "").split(",")) - {"", *extras}
        assert not missing, f"{block}: idgen has no extra {missing}"


def environment(changes: Mapping[str, str | Path], patch: pytest.MonkeyPatch) -> None:
    """Variables that a document speaks of, and those that it may set itself, as they are to be."""
    for name, value in changes.items():
        patch.setenv(name, str(value))
