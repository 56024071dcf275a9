"""How the pictures of a dataset are made: everything that a process must be told, as plain data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from idgen.blocklist import Blocklist
from idgen.synth.curate import CurationRules
from idgen.synth.plan import PersonPlan, Plan

PIXELS_AT_ONCE = 4 * 512 * 512  # of a micro-batch, unless its size is given; four pictures of SD 1.5
MAX_BATCH = 16
# Of a shard, unless its size is given: what a stop costs at most, and what is held in memory meanwhile.
PICTURES_A_SHARD, PIXELS_A_SHARD = 256, 2**26


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How large everything is. Pictures are the same bit for bit at an equal layout only.

    Attributes:
        width: of a picture, in pixels.
        height: likewise.
        batch_size: pictures drawn at once.
        shard_people: people of a shard.
    """

    width: int
    height: int
    batch_size: int
    shard_people: int

    @classmethod
    def choose(
        cls,
        model: Path,
        plan: Plan,
        *,
        size: tuple[int, int] | None = None,
        batch_size: int | None = None,
        shard_people: int | None = None,
    ) -> "Layout":
        """What is given, and for the rest what suits the model and the plan, whatever the device."""
        width, height = size or (_native_px(model),) * 2
        fitting = max(1, min(MAX_BATCH, PIXELS_AT_ONCE // (width * height)))
        pictures = max(1, min(PICTURES_A_SHARD, PIXELS_A_SHARD // (width * height)))
        each = -(-len(plan) // plan.num_people)
        return cls(
            width=width,
            height=height,
            batch_size=batch_size or fitting,
            shard_people=min(shard_people or max(1, pictures // each), plan.num_people),
        )

    def num_shards(self, plan: Plan) -> int:
        """Of a plan."""
        return -(-plan.num_people // self.shard_people)

    def num_pictures(self, plan: Plan, shards: Sequence[int]) -> int:
        """That these shards are to have."""
        return sum(len(person.pictures) for number in shards for person in self.people(plan, number))

    def people(self, plan: Plan, shard: int) -> list[PersonPlan]:
        """Whose pictures a shard holds."""
        return list(plan.people(shard * self.shard_people, (shard + 1) * self.shard_people))


def absolute_spec(spec: str | None) -> str | None:
    """What names a model, an encoder or a detector, as other processes may read it: ``yunet:/data/FILE``.

    Only what is a file here, or a folder with a model, becomes an absolute path; names stay.
    """
    if spec is None or spec in ("mini", "judge"):
        return spec
    for start in (0, spec.find(":") + 1):
        path = Path(spec[start:]).expanduser()
        if path.is_file() or any(path.glob("*.onnx")) or (path / "model_index.json").is_file():
            return f"{spec[:start]}{path.absolute()}"
    return spec


def _native_px(model: Path) -> int:
    """Side of the pictures that a model was trained for, read without opening it."""
    unet, vae = (json.loads((model / part / "config.json").read_text()) for part in ("unet", "vae"))
    return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a process needs to make shards, as plain data; None stands for the model's own.

    Attributes:
        dataset: folder with the plan and the people.
        model: as in `model_folder`.
        adapter: file, or None.
        encoder: as in `load_encoder`, or None.
        judge: likewise.
        detector: as in `load_detector`.
        precision: of the weights.
        steps: of denoising.
        guidance: classifier-free.
        id_guidance: of the identity apart.
        id_scale: strength of the identity.
        id_start: part of the denoising from which on it has a say.
        id_end: and up to which.
        layout: size of the pictures, of micro-batches and of shards.
        retries: how often a rejected picture is drawn again.
        kind: format of the files.
        quality: of lossy ones.
        rules: of curation.
        allow_unchecked: go on where people who refused cannot be compared.
        threads: that look at what was drawn.
        model_name: in the provenance.
        model_hash: likewise.
        created: likewise; the time at which the dataset was begun.
        facts: kept with each shard.
        blocklist: people who refused, by the list of the machine where the command was given: other machines
            need none.
    """

    dataset: Path
    model: str
    adapter: Path | None
    encoder: str | None
    judge: str | None
    detector: str
    precision: Literal["auto", "float32", "float16", "bfloat16"]
    steps: int | None
    guidance: float | None
    id_guidance: float | None
    id_scale: float
    id_start: float
    id_end: float
    layout: Layout
    retries: int
    kind: str
    quality: int
    rules: CurationRules
    allow_unchecked: bool
    threads: int
    model_name: str
    model_hash: str
    created: str
    facts: Mapping[str, Any]
    blocklist: Blocklist = field(default_factory=Blocklist.load)
