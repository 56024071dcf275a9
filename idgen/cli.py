"""The command ``idgen``: a table of commands, each a program file or a module that is loaded when called."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from idgen.errors import ConfigError, IdgenError

USAGE_ERROR, INTERRUPTED, PIPE_CLOSED = 2, 130, 141  # 128 + SIGINT, 128 + SIGPIPE, as shells count


@dataclass(frozen=True)
class Command:
    """A line of the table.

    Attributes:
        help: what it does, in one line.
        target: a program file, a folder of programs (ends with a slash), or a module with ``main(argv)``.
        words: first words that make it a further command.
        other: module with ``main(argv)`` for these.
    """

    help: str
    target: str
    words: tuple[str, ...] = ()
    other: str = ""


COMMANDS = {
    "generate": Command("pictures of a person, from a photo and a prompt", "pipelines/portrait.py"),
    "synthesize": Command(
        "a labelled dataset of people who do not exist",
        "pipelines/synthesize.py",
        words=("plan", "diff", "export", "import", "check"),
        other="idgen.commands.datasets",
    ),
    "app": Command("a page in the browser: people, prompts, pictures", "app/main.py"),
    "embed": Command(
        "photos of a person -> an identity file, to be used like a photo", "idgen.commands.embed"
    ),
    "inspect": Command("what a picture, an identity or an adapter says of itself", "idgen.commands.show"),
    "blocklist": Command("people who refused: no pictures of them are made", "idgen.commands.blocklist"),
    "doctor": Command("what this machine can run, and what is missing", "idgen.commands.doctor"),
    "train": Command("train a model: `idgen train --help` lists the programs", "train/"),
    "evaluate": Command("measure and report: `idgen evaluate --help` lists the programs", "eval/"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0 all done, 2 a mistake of the user, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # here, so that a closed pipe is noticed here
        return code
    except IdgenError as error:
        print(f"idgen: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("idgen: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `idgen ... | head`: nobody reads on; Python must not try again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _dispatch(words: list[str]) -> int:
    if not words:
        print(_overview(), file=sys.stderr)
        return USAGE_ERROR
    name, rest = words[0], words[1:]
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name == "--version":
        from idgen import __version__

        print(f"idgen {__version__}")
        return 0
    command = COMMANDS.get(name)
    if command is None:
        from idgen.config import nearest  # imports YAML, which --help does without

        raise ConfigError(
            f"{name!r} is not a command{nearest(name, list(COMMANDS))} (`idgen --help` lists them)"
        )
    if rest and rest[0] in command.words:
        return _main_of(command.other)(rest)
    if command.words and rest and not rest[0].startswith("-"):  # such a command has options alone
        from idgen.config import nearest

        known = ", ".join(command.words)
        raise ConfigError(
            f"{name} has no command {rest[0]!r}{nearest(rest[0], command.words)} (there is: {known})"
        )
    if command.target.endswith("/"):
        return _run_one_of(name, programs_root() / command.target, rest)
    if command.target.endswith(".py"):
        return _run_program(programs_root() / command.target, rest)
    return _main_of(command.target)(rest)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: idgen COMMAND ...", "", *lines, "", "`idgen COMMAND --help` shows the options of a command."]
    )


def programs_root() -> Path:
    """The folder of ``pipelines/``, ``train/``, ...: inside the package of a wheel, otherwise the clone."""
    package = Path(__file__).parent
    packed = package / "programs"
    return packed if packed.is_dir() else package.parent


def _main_of(module: str) -> Callable[[Sequence[str]], int]:
    import importlib

    return importlib.import_module(module).main


def _run_one_of(command: str, folder: Path, words: list[str]) -> int:
    programs = {path.stem: path for path in sorted(folder.glob("*.py"))}
    if not words or words[0] in ("-h", "--help"):
        print(_list_of(command, programs), file=sys.stdout if words else sys.stderr)
        return 0 if words else USAGE_ERROR
    if words[0] not in programs:
        from idgen.config import nearest

        known = ", ".join(programs)
        raise ConfigError(
            f"{command} has no program {words[0]!r}{nearest(words[0], list(programs))} (there is: {known})"
        )
    return _run_program(programs[words[0]], words[1:])


def _list_of(command: str, programs: dict[str, Path]) -> str:
    import ast

    width = max(map(len, programs), default=0)
    heads = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in programs.items()}
    lines = [f"  {name:{width}}  {head.partition(chr(10))[0]}" for name, head in heads.items()]
    return "\n".join([f"usage: idgen {command} PROGRAM ...", "", *lines])


def _run_program(path: Path, words: list[str]) -> int:
    """Run a program file as Python would run it, so that its processes find it as ``__main__``."""
    import runpy

    if not path.is_file():
        raise ConfigError(f"this installation of idgen lacks the program {path}; install it again")
    for library in ("DIFFUSERS", "TRANSFORMERS"):  # read when they are imported; what matters idgen says
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    before = sys.argv
    sys.argv = [str(path), *words]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as stop:
        return _exit_code(stop)
    finally:
        sys.argv = before
    return 0


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return 1
