"""``idgen embed``: photos of a person -> an identity file, to be used wherever a photo is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from idgen.config import Parser
from idgen.errors import ConfigError, IdentityError
from idgen.identity import FusedIdentity, Identity, fuse

if TYPE_CHECKING:
    from idgen.encoders.base import FaceEncoder
    from idgen.encoders.wplus import WPlusEncoder
    from idgen.faces.detect import Detector

SUFFIX = ".safetensors"


def main(argv: Sequence[str]) -> int:
    """Embed, fuse, say which photo hurts, and save."""
    parser = Parser(
        prog="idgen embed",
        description="Turn photos of one person into an identity file. It can recognise the person: guard it.",
    )
    parser.add_argument("photo", nargs="+", type=Path, help="photos, or identities saved before")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="who.safetensors")
    parser.add_argument(
        "--encoder", default="mini", metavar="SPEC", help="mini, a pack, or an ONNX file (mini)"
    )
    parser.add_argument("--detector", default="mini", metavar="SPEC", help="as in `idgen generate` (mini)")
    parser.add_argument("--which", default="only", metavar="W", help="largest, left, right or a number")
    parser.add_argument(
        "--fuse",
        default="robust",
        choices=("robust", "mean"),
        help="robust leaves photos out that do not fit (robust)",
    )
    parser.add_argument(
        "--wplus",
        metavar="SPEC",
        help="keep a W+ code too, which can be edited: mini, or an e4e, pSp or idgen file (none)",
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch a missing insightface pack (non-commercial research only)",
    )
    options = parser.parse_args(argv)
    _check_target(options.out)

    codes = None if options.wplus is None else _load_codes(options.wplus)
    detector, encoder = _load(options.detector, options.encoder, may_download=options.download)
    identities = [_identity(path, detector, encoder, options.which) for path in options.photo]
    fused = fuse(identities, method=options.fuse)
    for line in explain(options.photo, fused):
        print(line)
    identity, who = fused.identity, encoder.id
    if codes is not None:
        from idgen.editing.editor import read_code

        kept = [path for path, photo in zip(options.photo, fused.report, strict=True) if photo.kept]
        code = read_code(codes, kept, detector, which=options.which)
        identity, who = Identity((*identity.features, code)), f"{encoder.id}, with a W+ code by {codes.id}"
    identity.save(options.out)
    print(f"{options.out}: an identity by {who} (licence of the encoder: {encoder.licence})")
    return 0


def _check_target(out: Path) -> None:
    """An identity may be replaced; anything else that lies there was not meant."""
    if out.suffix != SUFFIX:
        raise ConfigError(f"--out must end in {SUFFIX}, got {out.name!r}")
    if not out.parent.is_dir():
        raise ConfigError(f"--out lies in a folder that does not exist: {out.parent}")
    if out.exists():
        try:
            Identity.load(out)
        except IdentityError:
            raise ConfigError(f"{out} exists and is no identity; choose another --out") from None


def _load(detector: str, encoder: str, *, may_download: bool) -> tuple["Detector", "FaceEncoder"]:
    from idgen.encoders.arcface import load_encoder
    from idgen.faces.detect import detectors, load_detector
    from idgen.faces.insightface_detector import KNOWN_PACKS

    if may_download:
        for pack in {detector.removeprefix("insightface:"), encoder} & set(KNOWN_PACKS):
            detectors.build("insightface", path=pack, download=True)  # a pack holds detector and encoder
    return load_detector(detector), load_encoder(encoder)


def _load_codes(spec: str) -> "WPlusEncoder":
    from idgen.encoders.wplus import load_wplus  # seconds

    return load_wplus(spec)


def _identity(path: Path, detector: "Detector", encoder: "FaceEncoder", which: str) -> Identity:
    from idgen.faces.photo import read_face
    from idgen.reference import embed_crop

    if path.suffix == SUFFIX:
        return Identity((Identity.load(path).feature("face_vector", encoder.id),))
    crop, face, photo = read_face(path, detector, which)
    print(f"{path}: a face of {face.size_px:.0f} pixels (found {photo.attempt})")
    return embed_crop(crop, encoder)


def explain(paths: Sequence[Path], fused: FusedIdentity) -> list[str]:
    """What each photo did to the identity, for people; nothing for a single photo."""
    if len(paths) < 2:
        return []
    lines = []
    for path, photo in zip(paths, fused.report, strict=True):
        verdict = ", looks like somebody else or a spoilt photo" if photo.is_outlier else ""
        kept = "" if photo.kept else ": left out"
        lines.append(f"{path}: similarity to the others {photo.similarity:.2f}{verdict}{kept}")
    if len(paths) == 2:
        lines.append("with two photos nobody can say which one does not fit; three or more tell")
    return lines
