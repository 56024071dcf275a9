"""Configurations are frozen dataclasses; YAML and ``--set`` only fill them in."""

import argparse
import difflib
import re
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from idgen.errors import ConfigError

C = TypeVar("C")
_SHORT_FLOAT = re.compile(
    r"[+-]?[0-9]+e[+-]?[0-9]+", re.IGNORECASE
)  # 1e-4 is text to YAML 1.1, which wants 1.0e-4
PROGRAM_FOLDERS = {"train": "train", "eval": "evaluate"}  # folder of programs -> command that runs them


def nearest(name: str, known: Sequence[str]) -> str:
    """``"; did you mean 'x'?"`` for the known name closest to ``name``, or nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def from_mapping(cls: type[C], values: Mapping[str, Any], *, at: str = "config") -> C:
    """Build the dataclass ``cls`` from nested plain data.

    Raises:
        ConfigError: for a key that is no setting (the nearest one is shown), or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{at} must be a group of settings, got {values!r}")
    hints = get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # pyright: ignore[reportArgumentType]
    settings: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(
                f"{at}.{key} is not a setting{nearest(str(key), known)} (known: {', '.join(known)})"
            )
        settings[key] = _fit(hints[key], value, f"{at}.{key}")
    try:
        return cls(**settings)
    except TypeError as error:  # a required setting is missing: the message of dataclasses names it
        raise ConfigError(f"{at}: {error}") from None


def _fit(hint: Any, value: Any, at: str) -> Any:  # noqa: ANN401 - plain data of any type
    """``value`` as the annotated type of a setting, or a ConfigError that names both."""
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return from_mapping(hint, value, at=at)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        rest = [a for a in args if a is not type(None)]
        return _first_fit(rest, value, at)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{at} must be one of {', '.join(map(str, args))}, got {value!r}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{at} must be a list, got {value!r}")
        return origin(_fit(args[0], item, f"{at}[{i}]") for i, item in enumerate(value))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str) and _SHORT_FLOAT.fullmatch(value):
        return float(value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (hint is not bool and isinstance(value, bool))
    ):
        raise ConfigError(f"{at} must be {hint.__name__}, got {value!r}")
    return value


def _first_fit(hints: Sequence[Any], value: Any, at: str) -> Any:  # noqa: ANN401
    problems = []
    for hint in hints:
        try:
            return _fit(hint, value, at)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError(" or ".join(problems))


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a YAML file.

    Raises:
        ConfigError: if the file is missing, is not YAML or does not hold a group of settings.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold settings as `name: value`, got {type(values).__name__}")
    return values


def override(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply ``a.b=c`` assignments (``c`` in YAML) to nested settings, in a copy.

    Raises:
        ConfigError: if an assignment has no ``=``, a value that is no YAML, or a group that is a setting.
    """
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set takes NAME=VALUE, got {assignment!r}")
        *groups, last = path.split(".")
        node = result
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {assignment}: {group} is one setting and no group of them")
        try:
            node[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or error
            raise ConfigError(f"--set {assignment}: {text!r} is no value in YAML: {reason}") from None
    return result


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one line, and an unknown option with the nearest one.

    Unlike its base class it does not accept abbreviated options: a new option would change what they mean.
    A program in a folder is called as `idgen` calls it (``eval/quality.py`` -> ``idgen evaluate quality``).
    """

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - whatever argparse takes
        script = Path(sys.argv[0])
        if script.suffix == ".py" and script.parent.name in PROGRAM_FOLDERS:
            settings.setdefault("prog", f"idgen {PROGRAM_FOLDERS[script.parent.name]} {script.stem}")
        super().__init__(**{"allow_abbrev": False, **settings})

    # The base class has overloads that differ in the type of the namespace only.
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401 # pyright: ignore[reportIncompatibleMethodOverride]
        """As in the base class, but an unknown ``--option`` is reported before a missing one."""
        args = sys.argv[1:] if args is None else list(args)
        for word in args[: args.index("--")] if "--" in args else args:
            name = word.partition("=")[0]
            if word.startswith("--") and " " not in name and name not in self._option_string_actions:
                self.error(f"{name} is not an option{nearest(name, list(self._option_string_actions))}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Leave with one line on stderr and exit code 2."""
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help` lists the options)\n")


@dataclass(frozen=True, kw_only=True)
class ProgramArguments(Generic[C]):
    """What a training program was started with."""

    config: C
    out: Path
    dry_run: bool


def program_arguments(
    cls: type[C],
    description: str,
    argv: Sequence[str] | None = None,
    *,
    settings: Mapping[str, str] | None = None,
) -> ProgramArguments[C]:
    """Read the four options that every training program has: --config, --set, --out, --dry-run.

    Args:
        cls: the configuration.
        description: of the program.
        argv: the words; those of the command line if not given.
        settings: settings with an option of their own, name -> help; flags are those of type bool.
    """
    parser = Parser(description=description)
    parser.add_argument("--config", type=Path, help="YAML file with settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="override one setting"
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder; a run found there goes on")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    for name, text in (settings or {}).items():
        is_flag = get_type_hints(cls)[name] is bool
        kind: dict[str, Any] = (
            {"action": "store_const", "const": True} if is_flag else {"metavar": name.upper()}
        )
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, help=text, **kind)
    options = parser.parse_args(argv)
    values = read_yaml(options.config) if options.config else {}
    own = {name: getattr(options, name) for name in settings or {}}
    values |= {name: value for name, value in own.items() if value is not None}
    config = from_mapping(cls, override(values, options.set))
    if options.dry_run:
        print(to_yaml(config), end="")
    return ProgramArguments(config=config, out=options.out, dry_run=options.dry_run)


def to_yaml(config: Any) -> str:  # noqa: ANN401 - any dataclass
    """A configuration as YAML that ``read_yaml`` and ``from_mapping`` bring back."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def read_size(text: str) -> tuple[int, int]:
    """``512`` or ``512x768`` -> width and height in pixels.

    Raises:
        ConfigError: if it is no such text, or no multiple of 8 pixels, which the autoencoders need.
    """
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if min(width, height) < 8 or width % 8 or height % 8:
        raise ConfigError(f"--size must be WIDTH or WIDTHxHEIGHT in multiples of 8 pixels, got {text!r}")
    return width, height
