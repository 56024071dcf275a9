"""The tab Dataset without its layout: a small dataset of new people, as `idgen synthesize` makes it."""

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from idgen import __version__
from idgen.errors import ConfigError, MeasureError
from idgen.page.archives import pack
from idgen.page.blend import SOURCE, new_people
from idgen.page.galleries import Galleries
from idgen.page.jobs import Job, followed
from idgen.page.making import MAX_STEPS, SEED_BOUND, Pipe, Workshop, check
from idgen.page.previews import small_webp
from idgen.storage import replacing
from idgen.synth.counting import Tally
from idgen.synth.curate import CurationRules, Verdict, check_grammar
from idgen.synth.dataset import Dataset
from idgen.synth.estimate import seconds_a_picture
from idgen.synth.export.exporting import export_dataset
from idgen.synth.export.folder import FolderExporter
from idgen.synth.finding import find_people
from idgen.synth.findings import REPORT, write_findings
from idgen.synth.folder import DatasetFolder
from idgen.synth.galleries import REAL_PEOPLE, forget_galleries
from idgen.synth.grammar import read_grammar
from idgen.synth.looking import Seen
from idgen.synth.making import Draft
from idgen.synth.origin import made_from
from idgen.synth.painting import Painter
from idgen.synth.planning import make_plan
from idgen.synth.recipe import Layout, Recipe
from idgen.synth.work import PLAN, make_shards
from idgen.synth.work import Workshop as Factory

MAX_PEOPLE, MAX_EACH, MAX_SET = 24, 12, 96  # people, pictures of each, and of all
MAX_SECONDS = 600.0  # that drawing each picture once may take; others wait no longer than for a micro-batch
BATCH = 4  # pictures drawn at once, after which somebody else's click comes in between
RETRIES = 3  # as `idgen synthesize` does
THUMBNAIL_PX = 96
WHY = {  # not kept: `idgen.synth.counts.REASONS` in words
    "blocked": "blocked by the model itself", "no_face": "no face", "several_faces": "several faces",
    "refused": "like somebody who refused", "leakage": "like somebody real", "unlike": "unlike the person",
    "other_identity": "more like another person", "quality": "blurred or too small",
    "attribute": "not as planned", "near_duplicate": "nearly the same as another",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SetWish:
    """A dataset that is asked for.

    Attributes:
        people: how many new ones.
        each: planned pictures of each.
        seed: of the people, the plan and the pictures.
        steps: of the denoising.
        guidance: by the prompt.
        name: begins the names of the people.

    Raises:
        ConfigError: if something is out of range.
    """

    people: int
    each: int
    seed: int
    steps: int
    guidance: float
    name: str = "new"

    def __post_init__(self) -> None:
        check("the number of people", self.people, 1, MAX_PEOPLE)
        check("the number of pictures of each", self.each, 1, MAX_EACH)
        check("the seed", self.seed, 0, SEED_BOUND)
        check("the number of steps", self.steps, 1, MAX_STEPS)
        check("the guidance", self.guidance, 1, 20)
        count = self.people * self.each
        if count > MAX_SET:
            raise ConfigError(
                f"{self.people} people with {self.each} pictures are {count} pictures; at most {MAX_SET} are "
                "made here, more by `idgen synthesize`"
            )


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How far it is.

    Attributes:
        doing: what goes on, in words.
        planned: pictures.
        drawn: attempts until now.
        kept: pictures.
        rejected: reason -> attempts.
        seconds_left: about; None while nobody knows.
        thumbnails: of what was kept, as WebP.
    """

    doing: str
    planned: int
    drawn: int = 0
    kept: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    seconds_left: float | None = None
    thumbnails: tuple[bytes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MadeSet:
    """A dataset that is finished.

    Attributes:
        growth: as it was at the end.
        pictures: of those that were kept the file and who it shows.
        archive: a zip of all of it: pictures, manifest, datasheet, report.
        about: what was found, as in dataset.json.
    """

    growth: Growth
    pictures: tuple[tuple[Path, str], ...]
    archive: Path
    about: Mapping[str, Any]


News = Growth | MadeSet


def in_short(rejected: Mapping[str, int]) -> str:
    """Why pictures were not kept, the most frequent reason first."""
    ordered = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{WHY[reason]} {count}" for reason, count in ordered)


def make_set(wish: SetWish, shop: Workshop, galleries: Galleries, folder: Path) -> Iterator[News]:
    """Plan, draw, judge, measure and pack; whoever stops asking stops it after the step it is in.

    Args:
        wish: what is asked for.
        shop: whose model draws; it is free for others between two micro-batches.
        galleries: real people whom the new ones keep away from.
        folder: for the zip and the pictures.

    Returns:
        An iterator over how far it is, and at last the dataset.

    Raises:
        ConfigError: if it would take too long.
        MeasureError: if no picture was good enough to be kept.
        IdgenError: what the library raises.
    """

    def work(job: Job[News]) -> News:
        place = folder / "dataset"
        try:
            return _Making(wish, shop, galleries, place, job).result()
        finally:
            shutil.rmtree(place, ignore_errors=True)  # vectors of people in galleries were there

    yield from followed(work, name="dataset")


class _Making:
    """One dataset on its way.

    Args:
        wish: what is asked for.
        shop: whose model draws.
        galleries: of real people.
        place: folder of the dataset.
        job: is told how far it is.
    """

    def __init__(
        self, wish: SetWish, shop: Workshop, galleries: Galleries, place: Path, job: Job[News]
    ) -> None:
        self.wish, self.shop, self.place, self.job = wish, shop, place, job
        self.real = {f"gallery {i}": seen for i, seen in enumerate(galleries.seen_by(shop.kit), 1)}
        new_people(shop.kit.encoder)
        grammar = read_grammar()
        check_grammar(grammar)
        source = {"source": SOURCE, "seed": wish.seed}
        self.plan = make_plan(grammar, wish.people, wish.each, wish.seed, source=source, name=wish.name)
        layout = Layout.choose(shop.folder, self.plan)
        self.layout = Layout.choose(
            shop.folder, self.plan, batch_size=min(BATCH, layout.batch_size),
            shard_people=max(1, BATCH // wish.each),
        )  # fmt: skip
        self.rules = CurationRules().resolved(shop.kit.encoder)
        self.tally, self.rejected, self.thumbnails = Tally(len(self.plan)), Counter[str](), list[bytes]()
        self.began = time.monotonic()

    def result(self) -> MadeSet:
        """Make all of it."""
        self.tell("Finding new people, far from each other")
        kit = self.shop.kit
        dataset = DatasetFolder(self.place, self.command(), self.layout.num_shards(self.plan))
        with dataset.locked():
            dataset.start(self.origin())
            self.keep_galleries()
            find_people(
                self.plan, kit, self.place, source=SOURCE, seed=self.wish.seed,
                galleries=[seen[kit.encoder.id] for seen in self.real.values()],
            )  # fmt: skip
            self.plan.write(self.place / PLAN)
            self.draw(dataset)
            self.tell("Measuring what was made")
            write_findings(self.place, encoders=kit.encoders, galleries=self.real)
            forget_galleries(self.place)
            dataset.finish()
        return self.packed()

    def draw(self, dataset: DatasetFolder) -> None:
        """Make the pictures, shard by shard."""
        recipe = self.recipe(dataset)
        painter = Painter(recipe, self.shop.kit, "", turn=self.turn, after_step=self.job.check)
        self.tell("Trying how long a picture takes")
        left = seconds_a_picture(painter, self.plan, self.shop.kit.encoder.dim) * len(self.plan)
        if left > MAX_SECONDS:
            raise ConfigError(
                f"{len(self.plan)} pictures would take about {left / 60:.0f} minutes on this machine; at "
                f"most {MAX_SECONDS / 60:.0f} are given here. Ask for fewer pictures or steps, or use "
                "`idgen synthesize`"
            )
        self.tell("Drawing", left)
        factory = _Factory(recipe, self, painter)
        self.began = time.monotonic()
        for told in make_shards(factory, iter(dataset.missing())):
            self.job.check()
            self.tally.add(told)
            drawn, elapsed = self.tally.drawn, time.monotonic() - self.began
            if drawn:
                left = elapsed / drawn * (self.tally.expected - drawn)
            self.tell("Drawing", left or None)
        if not self.tally.kept:
            raise MeasureError(
                f"of {self.tally.drawn} pictures that were drawn none was good enough to be kept "
                f"({in_short(self.rejected)}); take more steps, or another seed"
            )

    def turn(self) -> AbstractContextManager[Pipe]:
        """The model, for one micro-batch."""
        return self.shop.turn(self.job.check)

    def judged(self, draft: Draft, verdict: Verdict) -> None:
        """Take note of a verdict; called by the thread that judges."""
        if verdict.is_kept and draft.image is not None:
            small = draft.image.copy()
            small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            self.thumbnails.append(small_webp(small))
        elif not verdict.is_kept:
            self.rejected[verdict.decision] += 1

    def growth(self, doing: str, seconds_left: float | None = None) -> Growth:
        """How far it is."""
        return Growth(
            doing=doing, planned=len(self.plan), drawn=self.tally.drawn, kept=len(self.thumbnails),
            rejected=dict(self.rejected), seconds_left=seconds_left, thumbnails=tuple(self.thumbnails),
        )  # fmt: skip

    def tell(self, doing: str, seconds_left: float | None = None) -> None:
        """Say how far it is, to whoever waits."""
        self.job.check()
        self.job.tell(self.growth(doing, seconds_left))

    def keep_galleries(self) -> None:
        """Put the vectors of real people where the curator looks for them, until the end."""
        for name, seen in self.real.items():
            (self.place / REAL_PEOPLE).mkdir(exist_ok=True)
            with replacing(self.place / REAL_PEOPLE / f"{name}.npz") as file:
                np.savez(file, **seen)  # pyright: ignore[reportArgumentType] - names are data here

    def command(self) -> dict[str, Any]:
        """All that decides the pictures, as plain data."""
        kit, wish = self.shop.kit, self.wish
        return {
            **asdict(wish), **asdict(self.layout), "source": SOURCE, "retries": RETRIES,
            "plan_sha256": self.plan.plan_sha256, "galleries": len(self.real), "curation": asdict(self.rules),
            "detector": kit.detector.name, "encoder": kit.encoder.id,
            "judge": kit.judge.id if kit.judge else None, "model": self.shop.model_hash,
            "adapter": kit.adapter.sha256,
        }  # fmt: skip

    def origin(self) -> dict[str, Any]:
        """What a reader of dataset.json wants to know from the start; no path of this machine."""
        return {
            "idgen": __version__,
            "made_by": "idgen app",
            "versions": {
                name: version(name) for name in ("torch", "diffusers", "transformers", "onnxruntime")
            },
            **made_from(self.shop.kit, self.shop.folder, self.shop.name),
            "sources": {"people": SOURCE, "galleries": len(self.real)},
            "rules": asdict(self.rules),
            "seed": self.wish.seed,
            "plan_sha256": self.plan.plan_sha256,
        }

    def recipe(self, dataset: DatasetFolder) -> Recipe:
        """How the pictures are made."""
        return Recipe(
            dataset=self.place.absolute(), layout=self.layout, steps=self.wish.steps,
            guidance=self.wish.guidance, id_guidance=None, id_scale=1.0, id_start=0.0, id_end=1.0,
            retries=RETRIES, kind="png", quality=95, rules=self.rules, threads=1, allow_unchecked=False,
            model=self.shop.name, adapter=None, encoder=None, judge=None, precision="auto",
            detector=self.shop.kit.detector.name, model_name=self.shop.name, model_hash=self.shop.model_hash,
            created=dataset.started, facts=dataset.facts,
        )  # fmt: skip

    def packed(self) -> MadeSet:
        """Folders of people with manifest, datasheet, checksums and report, and all of it as a zip."""
        self.tell("Packing")
        out = self.place.parent / "people"
        made = Dataset.open(self.place)
        export_dataset(made, out, "folder", FolderExporter())
        (out / REPORT).mkdir()
        for name in ("report.html", "report.json"):  # the plots are in the page
            shutil.copy(self.place / REPORT / name, out / REPORT / name)
        archive = pack(out, self.place.parent / f"idgen-{self.wish.name}-{self.wish.seed}.zip")
        rows = [row for row in made.manifest().to_pylist() if row["path"] is not None]
        pictures = tuple(
            (out / row["identity"] / row["path"], f"{row['identity']} · {row['similarity']:.2f}")
            for row in rows
        )
        return MadeSet(growth=self.growth("Done"), pictures=pictures, archive=archive, about=made.about)


class _Factory(Factory):
    """The workshop of `idgen synthesize` with the model of the page, that says what it decides."""

    def __init__(self, recipe: Recipe, making: _Making, painter: Painter) -> None:
        super().__init__(recipe, "", kit=making.shop.kit, painter=painter)
        self._making = making

    def judge(self, draft: Draft, kept: Sequence[Seen]) -> Verdict:
        """Decide on a picture."""
        verdict = super().judge(draft, kept)
        self._making.judged(draft, verdict)
        return verdict
