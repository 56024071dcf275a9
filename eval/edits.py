r"""Do edits of W+ codes do what they say, and is it still this person? In the generator's pictures, or drawn.

    idgen evaluate edits --faces PEOPLE.parquet --edit smile=3 --edit turn=5 --judge OTHER.onnx \
        --emotion emotion.onnx --headpose headpose.onnx --detector yunet:yunet.onnx --out REPORT
    idgen evaluate edits --draw --id-scale 0 --faces ... --edit smile=3 ... --out REPORT

One photo of each person is read as a code, shown, and moved along each direction alone, towards the side on
which the person is not yet: who smiles less than half of the people is made to smile. Labels of the
picture before and after are compared: smile (p of "happy"), turn (yaw) and, with --learn-from, woman (a probe
on the judge's vectors). With --draw the pictures are those of the diffusion model. A picture without a face
has similarity 0 and moved nowhere.

Shapes: N people.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from idgen import mini
from idgen.config import Parser, nearest
from idgen.data.images import FaceTable, load_faces, split_people
from idgen.data.pictures import Picture
from idgen.editing.directions import Directions, Edit, parse_edits, read_directions
from idgen.encoders.arcface import load_encoder
from idgen.encoders.base import FaceEncoder
from idgen.encoders.classifiers import pose_eye, smile_eye
from idgen.encoders.gallery import Gallery, embed_pictures
from idgen.encoders.sight import Eye
from idgen.encoders.wplus import WPlusEncoder, load_wplus
from idgen.errors import ConfigError, FaceNotFoundError, MeasureError
from idgen.faces.detect import Detector, load_detector
from idgen.faces.photo import choose_face, find_faces
from idgen.faces.pose import pose_from_landmarks
from idgen.identity import Feature, Identity
from idgen.metrics.persons import mean_with_interval
from idgen.metrics.probe import Probe, fit_probe
from idgen.opening import hide_loading_bars, model_folder, open_kit, open_model
from idgen.pipeline import IDPipeline, IDPipelineXL
from idgen.pixels import to_pil
from idgen.reference import embed_crop
from idgen.report.document import Measure, Report, Table
from idgen.report.sheet import Tile, contact_sheet
from idgen.report.write import publish
from idgen.runs import keep_settings
from idgen.storage import replacing

LABELS = {"smile": "p of happy", "turn": "yaw", "woman": "probe"}
BEFORE, PHOTO, OTHER = "unedited", "photo", "other photo"
CLEAR = 0.8  # a label of the probe's people counts above this, or below 1 less this
SETTINGS, BATCH, SHEET_PEOPLE, SHEET_PX = "edits.json", 8, 8, 128


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """Who looks at the pictures."""

    judge: FaceEncoder
    smile: Eye
    pose: Eye
    detector: Detector
    probe: Probe | None

    def labels(self, gallery: Gallery) -> dict[str, np.ndarray]:
        """Label -> (N,), NaN without a face; also the turn by landmarks alone."""
        found = {
            "smile": gallery.seen[self.smile.id][:, 0],
            "turn": gallery.seen[self.pose.id][:, 0],
            "turn by landmarks": pose_from_landmarks(gallery.landmarks)[:, 0],
        }
        if self.probe is not None:
            says = self.probe.classifier.decision_function(gallery.vectors[self.judge.id])
            found["woman"] = np.where(gallery.found, says, np.nan)
        return found

    def look(self, folder: Path, names: Sequence[str], store: Path) -> Gallery:
        """What is seen in the pictures of a folder, one a person."""
        pictures = [Picture(identity=name, name=name, path=folder / f"{name}.png") for name in names]
        return embed_pictures(
            pictures,
            self.detector,
            [self.judge],
            eyes=[self.smile, self.pose],
            store=store,
            label=folder.name,
        )


@dataclass(frozen=True, kw_only=True)
class People:
    """Who is edited: the table of one photo each, that of another photo each, and their codes (N, L, C)."""

    photos: FaceTable
    others: FaceTable
    codes: list[Feature]

    @property
    def names(self) -> tuple[str, ...]:
        """N names."""
        return self.photos.identities


def read_crop(image: np.ndarray, encoder: WPlusEncoder, detector: Detector) -> torch.Tensor | None:
    """The crop that a user's photo would be read from; None where no face is found."""
    try:
        photo = find_faces(Image.fromarray(image), detector)
        return encoder.cut(photo.image, choose_face(photo, "largest", source="the photo").landmarks)
    except FaceNotFoundError:
        return None


def choose_people(options: argparse.Namespace, encoder: WPlusEncoder, detector: Detector) -> People:
    """One photo of each of ``options.people`` people who have another one, drawn by the seed.

    Photos in which the detector finds no face are passed over, as nobody could use them.

    Raises:
        ConfigError: if the table has fewer such people.
    """
    table = load_faces(options.faces)
    table = split_people(table)[1] if options.held_out else table
    rows = {name: rows for name, rows in table.people().items() if len(rows) > 1}
    if not 2 <= options.people <= len(rows):
        raise ConfigError(f"--people must be from 2 to {len(rows)} (with two photos), got {options.people}")
    rng = np.random.default_rng(options.seed)
    pairs, crops = [], []
    for name in rng.permutation(sorted(rows)):
        photo, other = map(int, rng.permutation(rows[name])[:2])
        crop = read_crop(table.images[photo], encoder, detector)
        if crop is not None:
            pairs.append((photo, other))
            crops.append(crop)
        if len(pairs) == options.people:
            break
    if len(pairs) < options.people:
        raise ConfigError(
            f"faces are found in photos of {len(pairs)} people, --people asks for {options.people}"
        )
    photos, others = (table.subset([pair[i] for pair in pairs]) for i in (0, 1))
    codes = [encoder.feature(code) for code in encoder.encode(torch.stack(crops).clamp(0, 1))]
    return People(photos=photos, others=others, codes=codes)


def save(folder: Path, name: str, image: Image.Image) -> None:
    """Write one picture, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name}.png") as file:
        image.save(file, "PNG")


class Studio:
    """What shows codes: the generator, or the diffusion model with its adapters."""

    def __init__(self, options: argparse.Namespace, encoder: WPlusEncoder, people: People) -> None:
        self._options, self._encoder, self._people = options, encoder, people
        self._pipe: IDPipeline | IDPipelineXL | None = None
        if options.draw:
            kit = open_kit(model_folder(options.model))
            self._pipe = open_model(model_folder(options.model), kit.adapter)
            self._pipe.load_adapter(options.wplus_adapter or mini.WPLUS_ADAPTER)
            self._pipe.set_progress_bar_config(disable=True)
            crops = people.photos.crops(np.arange(len(people.names)))
            self._faces = [embed_crop(crop, kit.encoder) for crop in crops]

    def show(self, folder: Path, codes: Sequence[Feature]) -> None:
        """Pictures of all people with these codes; those that are there are kept."""
        names = self._people.names
        missing = [row for row, name in enumerate(names) if not (folder / f"{name}.png").exists()]
        parts = [missing[i : i + BATCH] for i in range(0, len(missing), BATCH)]
        for rows in tqdm(parts, desc=folder.name, unit="batch", disable=None):
            for row, image in zip(rows, self._made(rows, [codes[row] for row in rows]), strict=True):
                save(folder, names[row], image)

    def _made(self, rows: Sequence[int], codes: Sequence[Feature]) -> list[Image.Image]:
        if self._pipe is None:
            shown = self._encoder.decode(torch.stack([self._encoder.codes_of(code) for code in codes]))
            return [to_pil(image) for image in shown]
        people = [Identity((*self._faces[row].features, code)) for row, code in zip(rows, codes, strict=True)]
        return self._pipe(
            [self._options.prompt] * len(rows),
            identity=people,
            id_scale=self._options.id_scale,
            wplus_scale=self._options.wplus_scale,
            seed=[self._options.seed + row for row in rows],
        ).images


def sides(values: np.ndarray) -> np.ndarray:
    """(N,) +1 where a label is below its median, so that it is to grow, else -1; without a face +1."""
    return np.where(values > np.nanmedian(values), -1.0, 1.0)


def ratio(over: np.ndarray, under: np.ndarray, seed: int, rounds: int = 2000) -> Measure:
    """The ratio of two means over people, resampled together."""
    rows = np.random.default_rng(seed).integers(len(over), size=(rounds, len(over)))
    drawn = over[rows].mean(axis=1) / under[rows].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Measure(value=float(over.mean() / under.mean()), interval=(float(low), float(high)))


def over_people(values: np.ndarray, seed: int) -> Measure:
    """A mean over people with its interval."""
    mean, interval = mean_with_interval(values.astype(np.float64), seed=seed)
    return Measure(value=mean, interval=interval)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of all people in pictures of one kind."""

    labels: Mapping[str, np.ndarray]
    alike: np.ndarray  # (N,) cosine to the photo that was edited


def measure_edit(name: str, sign: np.ndarray, before: Look, after: Look, deviation: Mapping[str, float],
                 seed: int) -> dict[str, Measure]:  # fmt: skip
    """What an edit did: to its own label, to the others, to the person."""
    moved = {
        label: np.nan_to_num((after.labels[label] - before.labels[label]) / deviation[label])
        for label in before.labels
    }
    found = {
        "right": over_people(sign * moved[name] > 0, seed),
        "moved": over_people(sign * moved[name], seed),
        "kept": ratio(after.alike, before.alike, seed),
    }
    if name == "turn":
        found["right by landmarks"] = over_people(sign * moved["turn by landmarks"] > 0, seed)
    for label in LABELS:
        if label != name and label in moved:
            found[f"{label} moved"] = over_people(np.abs(moved[label]), seed)
    return found


def fit_woman(options: argparse.Namespace, judge: FaceEncoder) -> Probe | None:
    """The probe on the judge's vectors of one photo a person, where --learn-from is given."""
    if options.learn_from is None:
        return None
    table = load_faces(options.learn_from)
    table = split_people(table)[0] if options.held_out else table
    first = [rows[0] for rows in table.people().values()]
    clear = [row for row in first if abs(table.labels["p_female"][row] - 0.5) >= CLEAR - 0.5]
    rows = np.array(clear[: options.probe_people])
    vectors = np.concatenate(
        [judge.encode(table.crops(part)).unit.numpy() for part in np.array_split(rows, 1 + len(rows) // 64)]
    )
    return fit_probe(vectors, table.labels["p_female"][rows] > 0.5)


def write_sheet(out: Path, names: Sequence[str], kinds: Sequence[str]) -> None:
    """The first people, a column each: photo, unedited, and a row for each edit."""
    tiles = []
    for kind in kinds:
        for name in names[:SHEET_PEOPLE]:
            with Image.open(out / "pictures" / kind / f"{name}.png") as image:
                tiles.append(Tile(image=image.convert("RGB"), title=kind))
    with replacing(out / "sheet.png") as file:
        contact_sheet(tiles, columns=min(SHEET_PEOPLE, len(names)), tile_px=SHEET_PX).save(file, "PNG")


def evaluate(options: argparse.Namespace, edits: Sequence[Edit]) -> Report:
    """Show, move, look, compare."""
    judge, encoder = load_encoder(options.judge), load_wplus(options.wplus)
    directions = read_directions(options.directions or mini.DIRECTIONS) if edits else Directions(())
    for edit in edits:  # before anything is computed
        directions.shift(
            [edit], num_layers=encoder.num_layers, style_dim=encoder.style_dim, encoder=encoder.id
        )
    detector = load_detector(options.detector)
    people = choose_people(options, encoder, detector)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    keep_settings(options.out, SETTINGS, {**settings, "wplus": encoder.id, "judge": judge.id})
    eyes = Eyes(
        judge=judge, smile=smile_eye(options.emotion), pose=pose_eye(options.headpose),
        detector=detector, probe=fit_woman(options, judge),
    )  # fmt: skip
    if eyes.probe is None and any(edit.name == "woman" for edit in edits):
        raise MeasureError(
            "woman is measured by a probe that learns from labelled photos: --learn-from FACES"
        )
    pictures, store = options.out / "pictures", options.out / "seen"
    for kind, table in ((PHOTO, people.photos), (OTHER, people.others)):
        for name, image in zip(people.names, table.images, strict=True):
            save(pictures / kind, name, Image.fromarray(image))
    studio = Studio(options, encoder, people)
    studio.show(pictures / BEFORE, people.codes)

    galleries = {kind: eyes.look(pictures / kind, people.names, store) for kind in (PHOTO, OTHER, BEFORE)}
    reference = galleries[PHOTO].vectors[judge.id]

    def looked(gallery: Gallery) -> Look:
        alike = (gallery.vectors[judge.id] * reference).sum(axis=1)
        return Look(labels=eyes.labels(gallery), alike=alike)

    before, photo, other = (looked(galleries[kind]) for kind in (BEFORE, PHOTO, OTHER))
    deviation = {label: float(np.nanstd(values)) for label, values in photo.labels.items()}
    measures = {
        "similarity/unedited": over_people(before.alike, options.seed),
        "similarity/another photo": over_people(other.alike, options.seed),
        "similarity/ratio": ratio(before.alike, other.alike, options.seed),
        "face found": over_people(galleries[BEFORE].found, options.seed),
    }
    per_identity = {"similarity/unedited": dict(zip(people.names, before.alike.tolist(), strict=True))}
    rows = []
    for edit in edits:
        sign = sides(before.labels[edit.name])
        moved = [
            directions.moved(code, [Edit(name=edit.name, amount=edit.amount * side, layers=edit.layers)])
            for code, side in zip(people.codes, sign.tolist(), strict=True)
        ]
        studio.show(pictures / str(edit), moved)
        after = looked(eyes.look(pictures / str(edit), people.names, store))
        found = measure_edit(edit.name, sign, before, after, deviation, options.seed)
        measures |= {f"{edit}/{name}": value for name, value in found.items()}
        per_identity[f"similarity/{edit}"] = dict(zip(people.names, after.alike.tolist(), strict=True))
        unrelated = [f"{label} moved" for label in LABELS]
        rows.append((
            str(edit), found["right"], found.get("right by landmarks", "-"), found["moved"],
            *(found.get(name, "-") for name in unrelated), found["kept"],
        ))  # fmt: skip
    write_sheet(options.out, people.names, [PHOTO, BEFORE, *map(str, edits)])
    kept = Table(
        title="Is the person kept?", columns=("", "similarity to the photo"),
        rows=(("unedited picture", measures["similarity/unedited"]),
              ("another photo", measures["similarity/another photo"]),
              ("ratio", measures["similarity/ratio"])),
        note=f"By {judge.id}. A picture without a face has similarity 0.",
    )  # fmt: skip
    moved_table = Table(
        title="What edits do",
        columns=("edit", "as asked", "by landmarks", "own label", *LABELS, "similarity kept"),
        rows=tuple(rows),
        note="As asked: share of people whose label moved to the side asked for. Labels move by standard "
        "deviations over photos of these people: the own one by its signed mean, others by the mean of their "
        "absolute change.",
    )
    return Report(
        kind="edits", title="Edits of W+ codes",
        subject=f"{len(people.names)} people of {options.faces.name}",
        settings={**{n: str(v) for n, v in settings.items()}, "wplus": encoder.id, "judge": judge.id},
        warnings=("labels by the networks that labelled the training photos are related to the directions",),
        measures=measures, per_identity=per_identity, sections=(kept, moved_table) if rows else (kept,),
    )  # fmt: skip


def read_options(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[Edit]]:
    """The options of the command line, and the edits in them."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, required=True, help="Parquet of portraits")
    parser.add_argument("--held-out", action="store_true", help="the tenth of the people set aside")
    parser.add_argument("--people", type=int, default=150)
    parser.add_argument("--wplus", default="mini", help="encoder of codes (mini)")
    parser.add_argument("--directions", type=Path, help="(mini's)")
    parser.add_argument("--edit", action="append", default=[], help="smile=3; each is measured alone")
    parser.add_argument("--draw", action="store_true", help="pictures of the diffusion model")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--wplus-adapter", type=Path, help="for --draw (mini's)")
    parser.add_argument("--id-scale", type=float, default=1.0, help="of the face vector, for --draw (1)")
    parser.add_argument("--wplus-scale", type=float, default=1.0, help="of the code, for --draw (1)")
    parser.add_argument("--prompt", default="a photo of a person", help="for --draw")
    parser.add_argument("--judge", required=True, help="recogniser that compares")
    parser.add_argument("--emotion", type=Path, required=True, help="net of seven expressions")
    parser.add_argument("--headpose", type=Path, required=True, help="net of head poses")
    parser.add_argument("--learn-from", type=Path, help="labelled photos that the probe of woman learns from")
    parser.add_argument("--probe-people", type=int, default=600)
    parser.add_argument("--detector", default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    edits = [edit for text in options.edit for edit in parse_edits(text)]
    for edit in edits:
        if edit.name not in LABELS:
            raise ConfigError(
                f"--edit {edit}: nobody here measures {edit.name!r}{nearest(edit.name, list(LABELS))} "
                f"(measured are {', '.join(LABELS)})"
            )
    return options, edits


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, show."""
    options, edits = read_options(argv)
    hide_loading_bars()
    publish(evaluate(options, edits), options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
