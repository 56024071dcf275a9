r"""Do pictures look real, do they vary, are the faces good, is the prompt obeyed?

    idgen evaluate quality PICTURES --reference PHOTOS --features dinov2-small --out REPORT
    idgen evaluate quality PICTURES --emotion emotion.onnx --headpose headpose.onnx --out REPORT

PICTURES and PHOTOS: a folder with one folder a person, a folder of pictures, a run of `idgen generate`, or a
Parquet table. Distances to PHOTOS are measured on equal numbers of pictures of both, drawn by --seed: all of
these numbers depend on how many there are: compare runs of one size (--at-most). Nothing is downloaded.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from idgen.config import Parser
from idgen.encoders.arcface import load_encoder
from idgen.encoders.card import digest, related
from idgen.encoders.classifiers import pose_eye, quality_eye, sharpness_eye, smile_eye
from idgen.encoders.clip import ClipModel
from idgen.encoders.features import load_features
from idgen.encoders.seen import Seen, look
from idgen.encoders.sight import Eye
from idgen.errors import MeasureError
from idgen.faces.detect import load_detector
from idgen.faces.pose import pose_from_landmarks
from idgen.metrics.diversity import manifold, vendi_score
from idgen.metrics.frechet import frechet_distance, gaussian, kernel_distance
from idgen.metrics.persons import mean_by_person, mean_with_interval
from idgen.metrics.prompt import asked_of, clip_scores, smile_obeyed, turn_obeyed
from idgen.report.document import Figure, Measure, Report, Table
from idgen.report.plots import histogram_figure
from idgen.report.write import publish

NEIGHBOURS = 5  # of precision, recall, density and coverage


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """What looks at the pictures, as far as it was given."""

    features: dict[str, Eye]  # by the words of the user
    faces: dict[str, Eye]  # "sharpness", "face quality": one number a face
    smile: Eye | None
    pose: Eye | None
    clip: ClipModel | None

    def all(self) -> list[Eye]:
        """Every one of them."""
        given = [*self.features.values(), *self.faces.values(), self.smile, self.pose]
        return [eye for eye in [*given, self.clip.eye if self.clip else None] if eye is not None]


def mean_over_people(seen: Seen, values: np.ndarray, seed: int) -> Measure:
    """The mean over people of one number a picture, with its interval."""
    mean, interval = mean_with_interval(mean_by_person(values, seen.person, len(seen.names)), seed=seed)
    return Measure(value=mean, interval=interval, note="" if np.isfinite(mean) else "nothing to measure")


def open_eyes(options: argparse.Namespace) -> Eyes:
    """Load what was asked for.

    Raises:
        ModelNotFoundError: if a file is missing.
        WeightsError: if one is not what it should be.
    """
    faces = {"sharpness": sharpness_eye()}
    if options.face_quality:
        faces["face quality"] = quality_eye(options.face_quality)
    return Eyes(
        features={spec: load_features(spec, normalise=options.normalise) for spec in options.features}
        if options.reference
        else {},
        faces=faces,
        smile=smile_eye(options.emotion) if options.emotion else None,
        pose=pose_eye(options.headpose) if options.headpose else None,
        clip=ClipModel(options.clip) if options.clip else None,
    )


# --- distances to real pictures ---------------------------------------------------------------------------


def known_features(seen: Seen, eye: Eye) -> np.ndarray:
    """Features of the pictures of which there are any."""
    features = seen.gallery.seen[eye.id]
    return features[np.isfinite(features).all(axis=1)]


def distances(eye: Eye, made: Seen, real: Seen, options: argparse.Namespace) -> dict[str, Measure]:
    """Every number about two sets of features."""
    pair = known_features(made, eye), known_features(real, eye)
    seed, count = options.seed, min(*map(len, pair), options.at_most or math.inf)
    if count <= NEIGHBOURS:
        raise MeasureError(
            f"{eye.name} sees {len(pair[0])} pictures and {len(pair[1])} photos; "
            f"{NEIGHBOURS + 1} at least of both are needed"
        )
    rng = np.random.default_rng(seed)
    made_features, real_features = (f[np.sort(rng.permutation(len(f))[:count])] for f in pair)
    kernel, spread = kernel_distance(made_features, real_features, seed=seed)
    near = manifold(made_features, real_features, k=NEIGHBOURS)
    numbers = {
        "FID": frechet_distance(gaussian(made_features), gaussian(real_features)),
        "KID": kernel,
        "KID, deviation over subsets": spread,
        "precision": near.precision,
        "recall": near.recall,
        "density": near.density,
        "coverage": near.coverage,
        "Vendi score": vendi_score(made_features),
        "Vendi score of the reference": vendi_score(real_features),
        "pictures of each set": count,
    }
    return {name: Measure(value=value) for name, value in numbers.items()}


def is_related(spec: str, eye: Eye, made_by: Sequence[str]) -> bool:
    """Whether a network conditioned or trained the pictures, or shares a teacher with one that did."""
    if spec == "mini" or spec.startswith("recognizer:"):
        encoder = load_encoder(spec.removeprefix("recognizer:"))
        return related(encoder, made_by, [load_encoder("mini")])
    return digest(eye.id) in {digest(maker) for maker in made_by}


# --- faces and prompts ------------------------------------------------------------------------------------


def face_values(seen: Seen, eyes: Eyes) -> dict[str, np.ndarray]:
    """One number a picture for everything that is said of faces."""
    values = {"face found": seen.gallery.found.astype(float), "face, px": seen.gallery.face_px.astype(float)}
    values |= {name: seen.gallery.seen[eye.id][:, 0].astype(float) for name, eye in eyes.faces.items()}
    pose = pose_from_landmarks(seen.gallery.landmarks)
    values |= {f"turn (|{name}| by landmarks), degrees": np.abs(pose[:, i])
               for i, name in enumerate(("yaw", "pitch"))}  # fmt: skip
    return values


def prompt_values(seen: Seen, eyes: Eyes) -> dict[str, np.ndarray]:
    """Whether each picture does what its prompt asks; NaN where that is not asked."""
    asked = [asked_of(picture.prompt) for picture in seen.pictures.pictures]
    values: dict[str, np.ndarray] = {}

    def share(name: str, told: Sequence[float]) -> None:
        if not np.isnan(told).all():
            values[name] = np.array(told)

    if eyes.smile:
        happy = seen.gallery.seen[eyes.smile.id][:, 0]
        for wanted, words in ((True, "smile where asked"), (False, "no smile where asked")):
            own = [a.smile if a.smile is wanted else None for a in asked]
            share(words, [smile_obeyed(s, float(p)) for s, p in zip(own, happy, strict=True)])
    turns = {"landmarks": pose_from_landmarks(seen.gallery.landmarks)[:, 0]}
    if eyes.pose:
        turns["head-pose net"] = seen.gallery.seen[eyes.pose.id][:, 0]
    for by, yaw in turns.items():
        if by == "landmarks" and np.isnan(yaw).all():
            continue  # nobody looked for landmarks in pictures that are aligned already
        told = [turn_obeyed(a.turn, float(y)) for a, y in zip(asked, yaw, strict=True)]
        share(f"turn to the side asked, by {by}", told)
    if eyes.clip:
        texts = eyes.clip.embed_texts([picture.prompt for picture in seen.pictures.pictures])
        values["CLIP score"] = clip_scores(seen.gallery.seen[eyes.clip.eye.id], texts)
    return values


# --- the report -------------------------------------------------------------------------------------------


def figures(sets: Mapping[str, Seen], eyes: Eyes) -> list[Figure]:
    """Distributions of pose, sharpness and quality, pictures beside photos."""
    drawn = []
    yaw = {name: pose_from_landmarks(seen.gallery.landmarks)[:, 0] for name, seen in sets.items()}
    if any(np.isfinite(values).any() for values in yaw.values()):
        drawn.append(histogram_figure("Where heads turn", yaw, "yaw by landmarks, degrees (positive: left)"))
    for name, eye in eyes.faces.items():
        values = {kind: seen.gallery.seen[eye.id][:, 0] for kind, seen in sets.items()}
        drawn.append(histogram_figure(name.capitalize(), values, name))
    return drawn


def evaluate(options: argparse.Namespace) -> Report:
    """Everything but writing."""
    eyes = open_eyes(options)
    detector = load_detector(options.detector)
    common = {"eyes": eyes.all(), "store": options.out / "seen"}
    made = look(options.pictures, detector, [], aligned=options.aligned, label="pictures", **common)
    sets = {"pictures": made}
    if options.reference:
        aligned = options.reference_aligned
        sets["reference"] = look(
            options.reference, detector, [], aligned=aligned, label="reference", **common
        )
    made_by = (*made.pictures.encoder_ids, *options.made_by)
    far = {}
    for spec, eye in eyes.features.items():
        name = f"{eye.name} (related)" if is_related(spec, eye, made_by) else eye.name
        far[name] = distances(eye, made, sets["reference"], options)
    values = {name: face_values(seen, eyes) for name, seen in sets.items()}
    faces = {
        name: {key: mean_over_people(seen, values[name][key], options.seed) for key in values[name]}
        for name, seen in sets.items()
    }
    obeyed = prompt_values(made, eyes)
    prompts = {"pictures": {name: mean_over_people(made, own, options.seed) for name, own in obeyed.items()}}
    tables = (
        (
            "Do they look real, and vary?",
            far,
            f"The nearest {NEIGHBOURS} count. Lower FID and KID are better.",
        ),
        ("The faces", faces, "Means over people. Sharpness: variance of the Laplacian at 112 pixels."),
        ("Is the prompt obeyed?", prompts, prompt_note(eyes, made_by)),
    )
    each = {
        name: dict(zip(made.names, mean_by_person(own, made.person, len(made.names)).tolist(), strict=True))
        for name, own in (values["pictures"] | obeyed).items()
    }
    settings = {
        "features": [eye.id for eye in eyes.features.values()],
        "eyes": [eye.id for eye in eyes.all()],
        "reference": str(options.reference or ""),
        "detector": options.detector,
        "made by": list(made_by),
        "seed": options.seed,
    }
    return Report(
        kind="quality",
        title="How good are the pictures?",
        subject=f"{len(made.pictures)} pictures of {len(made.names)} people from {options.pictures}",
        settings=settings,
        warnings=tuple(warnings_of(sets, eyes, far)),
        measures=measures_of(far, faces["pictures"], prompts["pictures"]),
        per_identity=each,
        sections=(*(table_of(*table) for table in tables if any(table[1].values())), *figures(sets, eyes)),
    )


def table_of(title: str, columns: Mapping[str, Mapping[str, Measure]], note: str) -> Table:
    """One row a measure of the first column, one column a set or a network."""
    missing = Measure(value=float("nan"), note="not measured")
    names = next(iter(columns.values()))
    rows = tuple((name, *(column.get(name, missing) for column in columns.values())) for name in names)
    return Table(title=title, columns=("measure", *columns), rows=rows, note=note)


def measures_of(
    far: Mapping[str, Mapping[str, Measure]], *others: Mapping[str, Measure]
) -> dict[str, Measure]:
    """All numbers about the pictures, by stable names."""
    named = {
        f"{network.removesuffix(' (related)')}/{name}": value
        for network, numbers in far.items()
        for name, value in numbers.items()
    }
    for other in others:
        named |= other
    return named


def prompt_note(eyes: Eyes, made_by: Sequence[str]) -> str:
    """What the numbers mean, and which network is related."""
    makers = {digest(maker) for maker in made_by}
    known = [eye.name for eye in (eyes.smile, eyes.pose) if eye and digest(eye.id) in makers]
    words = "Shares among the pictures whose prompt asks for it; chance is one half. No face, not obeyed."
    return words + (f" Related, as labels in training came from it: {', '.join(known)}." if known else "")


def warnings_of(sets: Mapping[str, Seen], eyes: Eyes, far: Mapping[str, Mapping[str, Measure]]) -> list[str]:
    """What a reader must know first."""
    said = []
    for name, seen in sets.items():
        lost, total = int((~seen.gallery.found).sum()), len(seen.pictures)
        if lost:
            said.append(f"No face was found in {lost} of {total} {name}; what needs a face leaves them out.")
    if far and all("(related)" in name for name in far):
        said.append(
            "Every feature network here conditioned these pictures or shares a teacher with one that did; "
            "add an independent one with --features."
        )
    for eye, numbers in zip(eyes.features.values(), far.values(), strict=True):
        count = numbers["pictures of each set"].value
        if count < 2 * eye.dim:
            said.append(
                f"{count:.0f} pictures are few for the {eye.dim} features of {eye.name}: its FID is too high."
            )
    return said


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="what is evaluated")
    parser.add_argument("--reference", type=Path, help="real pictures to compare with")
    parser.add_argument("--features", action="append", metavar="SPEC",
                        help="mini, recognizer:SPEC, an ONNX, a folder of transformers (mini)")  # fmt: skip
    parser.add_argument("--at-most", type=int, metavar="N", help="pictures of each set (all of the smaller)")
    parser.add_argument("--normalise", default="imagenet", help="of an ONNX: imagenet, half, clip, unit")
    parser.add_argument("--face-quality", type=Path, metavar="ONNX", help="CR-FIQA or eDifFIQA")
    parser.add_argument("--emotion", type=Path, metavar="ONNX", help="seven expressions")
    parser.add_argument("--headpose", type=Path, metavar="ONNX", help="yaw, pitch, roll (FSA-Net)")
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="CLIP, as transformers keeps it")
    parser.add_argument("--detector", default="mini", help="mini, yunet:FILE, scrfd:FILE or a pack (mini)")
    parser.add_argument("--aligned", action="store_true", help="PICTURES are aligned (112 or 128 pixels)")
    parser.add_argument("--reference-aligned", action="store_true", help="the reference is")
    parser.add_argument("--made-by", action="append", default=[], metavar="ID", help="network behind them")
    parser.add_argument("--seed", type=int, default=0, help="of drawing and resampling (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    options = parser.parse_args(argv)
    if options.features and not options.reference:
        raise MeasureError("--features compare with real pictures; give them with --reference")
    if options.at_most is not None and options.at_most <= NEIGHBOURS:
        raise MeasureError(f"--at-most must be at least {NEIGHBOURS + 1}, got {options.at_most}")
    options.features = options.features or ["mini"]
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, show."""
    options = read_options(argv)
    report = evaluate(options)
    publish(report, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
