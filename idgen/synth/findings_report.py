"""The page about a dataset: what was kept and why not, how far people are apart, and what they look like."""

import io
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from PIL import Image

from idgen.data.pictures import Picture
from idgen.report.document import Figure, Measure, Pairs, PicturePair, Report, Table
from idgen.report.plots import distribution_figure, histogram_figure
from idgen.report.sheet import Tile, contact_sheet
from idgen.synth.counts import Yield, counts_of_attributes, yield_of
from idgen.synth.facts import planned_similarity, quantile, spread_of_probes
from idgen.synth.measuring import MADE, OTHER_EYE, Audit, Eye, Findings, nearest_own
from idgen.synth.wording import number_of

PEOPLE_SHOWN, EACH_SHOWN, TILE_PX = 12, 8, 96  # on the sheet
PAIRS_SHOWN, PAIR_PX = 6, 144
NUMBERS = {  # of `operating_points` -> what they are called
    "genuine_mean": "similarity within people",
    "genuine_std": "its standard deviation",
    "impostor_mean": "similarity between people",
    "impostor_std": "its standard deviation between people",
    "impostor_highest": "most alike pictures of two people",
    "eer": "equal error rate",
    "eer_threshold": "cosine at the equal error rate",
    "tar_at_far_0.001": "accepted at a false match rate of 1e-3",
    "threshold_at_fmr_0.001": "cosine at that rate",
    "d_prime": "d'",
}


def report_of(found: Findings, *, seed: int = 0) -> Report:
    """Everything that was found, for people and for programs."""
    sample, about = found.sample, found.dataset.about
    said = yield_of(found.manifest)
    sections: list[Table | Figure | Pairs] = [_yield_table(said)]
    sections += [table for table in (_attribute_table(found), _numbers_table(found, seed)) if table.rows]
    sections += [_sheet(found)] if sample.pictures else []
    sections += [_distribution(eye) for eye in found.eyes]
    for gallery in dict.fromkeys(audit.gallery for audit in found.audits):
        sections += _gallery_sections(gallery, [audit for audit in found.audits if audit.gallery == gallery])
    judges = [eye for eye in found.eyes if eye.role == OTHER_EYE]
    sections += [pairs for pairs in (_confused(eye, found) for eye in judges) if pairs.pairs]
    return Report(
        kind="synthesize",
        title="A dataset of people who do not exist",
        subject=f"{found.dataset.folder.name}: {number_of(said.kept, 'picture')} of "
        f"{number_of(found.dataset.num_people, 'person')}",
        settings={
            "models": [_called(model) for model in about.get("models", [])],
            "encoders": {eye.encoder.id: eye.role for eye in found.eyes},
            "rules": about.get("rules"),
            "measured": f"{number_of(len(sample.pictures), 'picture')} of "
            f"{number_of(len(sample.names), 'person')}",
            "seed": seed,
        },
        warnings=tuple(_warnings(found)),
        measures=_measures(found, said, seed),
        per_identity=_per_identity(found),
        sections=tuple(sections),
        data={"yield": asdict(said)},
    )


def _called(model: object) -> object:
    return f"{model.get('role')}: {model.get('name')}" if isinstance(model, dict) else model


def _warnings(found: Findings) -> list[str]:
    """What a reader must know first."""
    said = []
    if found.dataset.unfinished:
        said.append(found.dataset.unfinished)
    if not found.eyes:
        said.append("No face vectors were kept with these pictures: nothing is said of who is alike.")
    elif all(eye.role != OTHER_EYE for eye in found.eyes):
        said.append(
            "Every encoder here had a part in the pictures, or shares a teacher with what had: by these "
            "numbers alone nobody knows whether people are kept."
        )
    if not found.audits:
        said.append("No gallery of real people was given: whether somebody here is one of them is not known.")
    if not found.sample.is_everybody:
        said.append(
            f"Similarities are of {len(found.sample.names):,} people drawn at random, not of all "
            f"{found.dataset.num_people:,}; of all, more are alike."
        )
    if found.num_marked < len(found.sample.pictures):
        unmarked = len(found.sample.pictures) - found.num_marked
        said.append(f"{unmarked:,} pictures do not say in themselves that a trained model made them.")
    return said


def _yield_table(said: Yield) -> Table:
    rows: list[tuple[str | int, ...]] = [("kept", said.kept, "")]
    rows += [(name.replace("_", " "), num, said.missing.get(name, 0)) for name, num in said.rejected.items()]
    rows.append(("all", said.drawn, said.planned - said.kept))
    return Table(
        title="Kept, and why not",
        columns=("decision", "pictures drawn", "missing in the end"),
        rows=tuple(rows),
        note="A rejected picture is drawn again, a few times; the first rule that it breaks is its reason. "
        "What is missing in the end is planned pictures of which no attempt was kept, by their last reason.",
    )


def _attribute_table(found: Findings) -> Table:
    rows = [
        (name, value, planned, kept, kept / planned)
        for name, values in counts_of_attributes(found.manifest).items()
        for value, (planned, kept) in values.items()
    ]
    return Table(
        title="Quotas",
        columns=("attribute", "value", "planned", "kept", "reached"),
        rows=tuple(rows),
        note="Each picture counts once for each of its attributes.",
    )


def _numbers_table(found: Findings, seed: int) -> Table:
    def cell(eye: Eye, name: str) -> Measure:
        return Measure(value=eye.points[name], interval=eye.intervals.get(name))

    rows: list[tuple[str | Measure, ...]] = []
    if found.eyes:
        rows = [(said, *(cell(eye, name) for eye in found.eyes)) for name, said in NUMBERS.items()]
        lowest = tuple(Measure(value=quantile(eye.pairs.genuine, 0.05)) for eye in found.eyes)
        rows.insert(2, ("5 % of the pairs within people lie below", *lowest))
        nearest = tuple(nearest_own(eye, found.sample, seed) for eye in found.eyes)
        rows.append(("pictures nearest to their own person's others", *nearest))
    return Table(
        title="Alike within people, apart between them",
        columns=("measure", *(eye.label for eye in found.eyes)),
        rows=tuple(rows),
        note="Cosines of all pairs, with intervals over people. An encoder that is related conditioned the "
        "pictures, or shares a teacher with what did: believe the other one.",
    )


def _distribution(eye: Eye) -> Figure:
    return distribution_figure(
        f"Pairs of pictures, by {eye.label}",
        eye.pairs.genuine.histogram,
        eye.pairs.impostor.histogram,
        thresholds={"equal errors": eye.points["eer_threshold"]},
    )


def _gallery_sections(name: str, audits: Sequence[Audit]) -> list[Table | Figure]:
    rows: list[tuple[str | int | Measure, ...]] = [
        ("photos with a face", *(audit.num_photos for audit in audits)),
        (
            "mean similarity to the nearest photo",
            *(Measure(value=float(np.nanmean(a.cosine))) for a in audits),
        ),
        ("highest", *(Measure(value=float(np.nanmax(a.cosine))) for a in audits)),
    ]
    for fmr in audits[0].above:
        rows.append(
            (f"cosine at a false match rate of {fmr}", *(Measure(value=a.thresholds[fmr]) for a in audits))
        )
        rows.append(("pictures from there on", *(a.above[fmr] for a in audits)))
        rows.append(("people whose mean lies there", *(Measure(value=a.centres_above[fmr]) for a in audits)))
    table = Table(
        title=f"Real people: {name}",
        columns=("measure", *(audit.eye.label for audit in audits)),
        rows=tuple(rows),
        note="With many photos to be compared with, strangers pass a threshold by chance too: "
        "`idgen evaluate leakage DATASET --gallery PHOTOS --control OTHERS` says how many.",
    )
    samples = {audit.eye.label: audit.cosine for audit in audits}
    return [table, histogram_figure(f"Similarity to the nearest photo of {name}", samples, "cosine")]


def _sheet(found: Findings) -> Figure:
    """The first pictures of the first people, a row each."""
    tiles: list[Tile] = []
    person = found.sample.person
    shown = [number for number in range(len(found.sample.names)) if (person == number).sum() > 0][
        :PEOPLE_SHOWN
    ]
    for number in shown:
        rows = np.flatnonzero(person == number)[:EACH_SHOWN].tolist()
        for place in range(EACH_SHOWN):
            image = found.sample.pictures[rows[place]].open() if place < len(rows) else _nothing()
            tiles.append(Tile(image=image, title=found.sample.names[number] if place == 0 else ""))
    sheet = contact_sheet(tiles, tile_px=TILE_PX, columns=EACH_SHOWN)
    return Figure(
        title="What they look like",
        png=_png(sheet),
        alt=f"Up to {EACH_SHOWN} pictures of each of {len(shown)} people who do not exist, one person a row.",
        note="One person a row.",
    )


def _nothing() -> Image.Image:
    return Image.new("RGB", (TILE_PX, TILE_PX), "white")


def _confused(eye: Eye, found: Findings) -> Pairs:
    """Pictures that are nearer to another person than to the others of their own, beside that person."""
    sample = found.sample
    ahead = np.nan_to_num(eye.other - eye.own, nan=-np.inf)
    order = [row for row in np.argsort(-ahead, kind="stable") if ahead[row] > 0][:PAIRS_SHOWN]
    pairs = []
    for row in order:
        them = np.flatnonzero(sample.person == eye.other_person[row])
        twin = them[np.argmax(eye.vectors[them] @ eye.vectors[row])]
        names = sample.pictures[row].name, sample.pictures[twin].name
        caption = (
            f"{eye.other[row]:.3f} to another person, {eye.own[row]:.3f} to their own: {' and '.join(names)}"
        )
        left, right = _thumbnail(sample.pictures[row]), _thumbnail(sample.pictures[twin])
        pairs.append(PicturePair(left_png=left, right_png=right, caption=caption))
    return Pairs(
        title=f"Taken for somebody else, by {eye.label}",
        pairs=tuple(pairs),
        note="Left the picture, right the picture of the other person that it is most alike.",
    )


def _thumbnail(picture: Picture) -> bytes:
    image = picture.open()
    image.thumbnail((PAIR_PX, PAIR_PX))
    return _png(image)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _measures(found: Findings, said: Yield, seed: int) -> dict[str, Measure]:
    """By stable names."""
    measures = {
        "kept of planned": Measure(value=said.kept / said.planned),
        "kept of drawn": Measure(value=said.kept_of_drawn),
    }
    for eye in found.eyes:
        for name in NUMBERS:
            measures[f"{eye.encoder.name}/{name}"] = Measure(
                value=eye.points[name], interval=eye.intervals.get(name)
            )
        measures[f"{eye.encoder.name}/nearest own"] = nearest_own(eye, found.sample, seed)
        if eye.role == MADE and "similarity" in found.manifest.column_names:
            planned = planned_similarity(found)
            mean = float(planned.mean()) if len(planned) else float("nan")
            measures[f"{eye.encoder.name}/similarity to the planned person"] = Measure(value=mean)
    for audit in found.audits:
        for fmr, measure in audit.above.items():
            measures[f"{audit.eye.encoder.name}/{audit.gallery}/above FMR {fmr}"] = measure
    for name, value in spread_of_probes(found).items():
        measures[f"sd within people/{name}"] = Measure(value=value)
    return measures


def _per_identity(found: Findings) -> dict[str, dict[str, float]]:
    """Mean similarity of each person's pairs."""
    names = found.sample.names
    return {
        f"{eye.encoder.name}/genuine_mean": dict(
            zip(names, eye.pairs.genuine.person_mean.tolist(), strict=True)
        )
        for eye in found.eyes
    }
