"""``idgen blocklist``: people who refused to be shown; no pictures of them are made."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from idgen.config import Parser, nearest
from idgen.errors import ConfigError

if TYPE_CHECKING:
    from idgen.blocklist import Blocklist
    from idgen.identity import Identity

USAGE = """usage: idgen blocklist ACTION ...

  add     put a person on the list, from photos or identities; face vectors are kept, and no photo
  show    who is on the list, and by which encoders
  remove  take a person off the list

`idgen blocklist ACTION --help` shows the options of an action. The list is a file of the user's data;
IDGEN_BLOCKLIST=FILE or --list FILE names another one."""
SUFFIX = ".safetensors"
DEFAULT_ENCODER = "mini"


def main(argv: Sequence[str]) -> int:
    """Run one action."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] not in ACTIONS:
        raise ConfigError(
            f"blocklist has no action {argv[0]!r}{nearest(argv[0], list(ACTIONS))} "
            f"(there is: {', '.join(ACTIONS)})"
        )
    return ACTIONS[argv[0]](argv[1:])


def add(argv: Sequence[str]) -> int:
    """Put a person on the list."""
    from idgen.blocklist import Blocklist

    parser = _parser("add", "Put a person on the list. It keeps face vectors, which can recognise people.")
    parser.add_argument("photo", nargs="+", type=Path, help="photos of one person, or saved identities")
    parser.add_argument("--name", help="any name, also a made-up one (person-N)")
    parser.add_argument(
        "--encoder", action="append", metavar="SPEC", help="mini, a pack, or an ONNX file; repeatable (mini)"
    )
    parser.add_argument("--detector", default="mini", metavar="SPEC", help="as in `idgen generate` (mini)")
    parser.add_argument("--which", default="only", metavar="W", help="largest, left, right or a number")
    options = parser.parse_args(argv)
    path = _load(options.list, may_be_missing=True).path  # a list that cannot be read is answered at once
    identity = _identity(options.photo, options.encoder, options.detector, options.which)
    _make_folder(path)
    with Blocklist.changing(options.list, may_be_missing=True) as listed:
        name = listed.add(identity, options.name)
    eyes = ", ".join(feature.encoder for feature in identity.features if feature.kind == "face_vector")
    print(f"{listed.path}: {name} refused, by {eyes}; {len(listed)} on the list")
    return 0


def show(argv: Sequence[str]) -> int:
    """Who is on the list."""
    options = _parser("show", "Show who is on the list, and by which encoders.").parse_args(argv)
    listed = _load(options.list)
    print(f"{listed.path}: {len(listed) or 'nobody'} on the list")
    width = max(map(len, listed.people), default=0)
    for name, identity in listed.people.items():
        print(f"  {name:{width}}  {', '.join(feature.encoder for feature in identity.features)}")
    return 0


def remove(argv: Sequence[str]) -> int:
    """Take a person off the list."""
    from idgen.blocklist import Blocklist

    parser = _parser("remove", "Take a person off the list.")
    parser.add_argument("name", help="as `idgen blocklist show` prints it")
    options = parser.parse_args(argv)
    _load(options.list).remove(options.name)  # a wrong name is answered before anything is written
    with Blocklist.changing(options.list) as listed:
        listed.remove(options.name)
    print(f"{listed.path}: {options.name} is off the list; {len(listed)} left")
    return 0


ACTIONS: dict[str, Callable[[Sequence[str]], int]] = {"add": add, "show": show, "remove": remove}


def _parser(action: str, description: str) -> Parser:
    parser = Parser(prog=f"idgen blocklist {action}", description=description)
    parser.add_argument("--list", type=Path, metavar="FILE", help="another list than the user's own")
    return parser


def _load(path: Path | None, *, may_be_missing: bool = False) -> "Blocklist":
    from idgen.blocklist import Blocklist

    if path is not None and path.suffix != SUFFIX:
        raise ConfigError(f"--list must end in {SUFFIX}, got {path.name!r}")
    return Blocklist.load(path, may_be_missing=may_be_missing)


def _make_folder(path: Path) -> None:
    """The folder of the user's own list; that of a list which was named must be there."""
    from idgen.blocklist import default_path

    if path == default_path() and not path.parent.exists():
        try:
            path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)  # another process may be quicker
        except OSError as error:
            raise ConfigError(f"cannot make the folder {path.parent}: {error.strerror or error}") from None


def _identity(paths: Sequence[Path], specs: list[str] | None, detector: str, which: str) -> "Identity":
    """The face vectors of one person: those of a saved identity, or by each of the encoders asked for."""
    from idgen.identity import Identity

    if specs is None and len(paths) == 1 and paths[0].suffix == SUFFIX:
        return Identity.load(paths[0])
    from idgen.commands.embed import explain
    from idgen.encoders.arcface import load_encoder
    from idgen.faces.detect import load_detector
    from idgen.identity import FusedIdentity
    from idgen.reference import read_reference

    encoders = [load_encoder(spec) for spec in specs or [DEFAULT_ENCODER]]
    seen = read_reference(paths, load_detector(detector), encoders, which=which)
    identity = Identity(tuple(of_eye.face_vector for of_eye in seen.identities.values()))
    for line in explain(paths, FusedIdentity(identity, seen.report)):
        print(line)
    return identity
