"""The unit of work of `idgen synthesize`: a shard of whole people, made by one process on one device.

`make_shards` is what every engine calls. Drawing goes on while a few threads finish, look at, judge, encode
and write what was drawn before. Without a GPU drawing and looking take turns, each on all cores: a model that
draws on a core less waits at every layer for the core that is away, and the others with it.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import numpy as np
import torch

from idgen.faces.onnx_session import threads_each
from idgen.opening import Kit, model_folder, open_kit
from idgen.provenance import Provenance
from idgen.synth.curate import Curator, Verdict
from idgen.synth.dataset import PEOPLE, PLAN
from idgen.synth.embeddings import write_embeddings
from idgen.synth.finishing import Finish
from idgen.synth.galleries import kept_away
from idgen.synth.looking import Seen
from idgen.synth.making import Draft, Progress, ShardWork
from idgen.synth.painting import Painter
from idgen.synth.plan import Plan
from idgen.synth.recipe import Recipe
from idgen.synth.shards import KEPT, VECTORS_FACT, write_shard
from idgen.synth.vectors import VECTORS

AHEAD = 2  # shards open at once: one is drawn while the last pictures of the other are judged
BACKLOG = 32  # looks that may wait while a GPU draws
BLOCKED = "blocked"  # the decision on what the model's own safety checker made black


class Workshop:
    """Everything open that makes pictures on one device.

    Args:
        recipe: what is made.
        device: as in `open_model`.
        kit: of the recipe, where it is open already.
        painter: of the recipe, likewise.

    Attributes:
        backlog: looks that may not be done when the next pictures are drawn.
    """

    def __init__(
        self, recipe: Recipe, device: str, *, kit: Kit | None = None, painter: Painter | None = None
    ) -> None:
        self.recipe = recipe
        self.backlog = 0 if device.startswith("cpu") else BACKLOG
        self.kit = kit or open_lookers(recipe)
        self.painter = painter or Painter(recipe, self.kit, device)
        self.plan = Plan.read(recipe.dataset / PLAN)
        found = np.load(recipe.dataset / PEOPLE / VECTORS, mmap_mode="r")
        self.people = found[: self.plan.numbers("person").max() + 1]  # more were found than are planned
        self.finish = Finish(grammar=self.plan.grammar, kind=recipe.kind, quality=recipe.quality)
        self.curator = Curator(
            recipe.rules,
            detector=self.kit.detector,
            encoder=self.kit.encoder,
            judge=self.kit.judge,
            people=self.people,
            grammar=self.plan.grammar,
            real=kept_away(recipe.dataset, recipe.rules, self.kit.encoders),
            blocklist=recipe.blocklist,
            allow_unchecked=recipe.allow_unchecked,
        )

    def shard(self, number: int, pool: Executor) -> ShardWork:
        """A shard that is to be made."""
        return ShardWork(
            number,
            self.recipe.layout.people(self.plan, number),
            look=self.look,
            judge=self.judge,
            write=self.write,
            batch_size=self.recipe.layout.batch_size,
            retries=self.recipe.retries,
            pool=pool,
        )

    def draw(self, batch: Sequence[Draft]) -> None:
        """Make the pictures of a micro-batch."""
        who = self.people[[draft.plan.person for draft in batch]]
        made = self.painter.draw([d.plan for d in batch], who, [d.seed for d in batch])
        for draft, image, is_blocked in zip(batch, *made, strict=True):
            draft.image, draft.is_blocked = image, is_blocked

    def look(self, batch: Sequence[Draft]) -> None:
        """Finish a few pictures, and look at them as their readers will."""
        shown = []
        for draft in batch:
            assert draft.image is not None
            draft.image = self.finish.distorted(draft.image, draft.plan.attributes, draft.seed)
            shown.append(self.finish.as_read(draft.image, self.record(draft)))
        for draft, seen in zip(batch, self.curator.look_at(shown), strict=True):
            draft.seen = seen

    def judge(self, draft: Draft, kept: Sequence[Seen]) -> Verdict:
        """Decide on a picture."""
        if draft.is_blocked:
            return Verdict(decision=BLOCKED, reasons=(BLOCKED,), measures={})
        assert draft.seen is not None
        return self.curator.judge(draft.plan, draft.plan.person, draft.seen, kept)

    def write(self, shard: ShardWork) -> None:
        """Put a shard onto the disk: vectors, pictures and rows, and what says that it is finished."""
        dataset = self.recipe.dataset
        vectors = {d.key: d.seen.vectors for d in shard.drafts if d.is_kept and d.seen is not None}
        facts = {**self.recipe.facts, VECTORS_FACT: write_embeddings(dataset, shard.number, vectors)}
        write_shard(dataset, shard.number, map(self.row, shard.drafts), facts=facts)

    def row(self, draft: Draft) -> tuple[dict[str, Any], bytes | None]:
        """A picture's row of the manifest, and its file where it was kept."""
        assert draft.verdict is not None
        row = {
            "identity": draft.plan.identity,
            "person": draft.plan.person,
            "picture": draft.plan.picture,
            "key": draft.key,
            "decision": draft.verdict.decision,
            "seed": draft.seed,
            "attempts": draft.attempt + 1,
            "rejections": ",".join(draft.rejections),
            "prompt": draft.plan.prompt,
            "negative_prompt": draft.plan.negative_prompt,
            **draft.plan.attributes,
            **draft.verdict.measures,
        }
        if draft.verdict.decision != KEPT:
            return row, None
        assert draft.image is not None
        return row, self.finish.encoded(draft.image, self.record(draft))

    def record(self, draft: Draft) -> Provenance:
        """What a picture says of itself."""
        recipe = self.recipe
        similarity = draft.verdict.measures.get("similarity") if draft.verdict else None
        return Provenance(
            prompt=draft.plan.prompt,
            negative_prompt=draft.plan.negative_prompt,
            seed=draft.seed,
            steps=self.painter.steps,
            guidance_scale=self.painter.guidance,
            id_scale=recipe.id_scale,
            model=recipe.model_name,
            model_hash=recipe.model_hash,
            adapter_hash=self.kit.adapter.sha256,
            encoder=self.kit.encoder.id,
            similarity={self.kit.encoder.id: float(similarity)} if isinstance(similarity, float) else {},
            created=recipe.created,
        )


def open_lookers(recipe: Recipe) -> Kit:
    """What looks at pictures, from several threads at once: each look keeps to the core that it is on.

    Sessions that spread over all cores would wait for each other, and for the model that draws meanwhile.
    """
    with threads_each(1):
        return open_kit(
            model_folder(recipe.model),
            adapter=recipe.adapter,
            encoder=recipe.encoder,
            judge=recipe.judge,
            detector=recipe.detector,
        )


def make_shards(workshop: Workshop, numbers: Iterator[int]) -> Iterator[Progress]:
    """Make shards one after the other, telling how far it is; up to `AHEAD` of them are open at once.

    Args:
        workshop: where they are made.
        numbers: of the shards, each asked for when there is room for it.

    Raises:
        Exception: whatever went wrong, in whichever thread.
    """
    open_shards: list[ShardWork] = []
    with _threads(workshop.recipe.threads) as pool:
        while True:
            yield from filter(None, [shard.poll() for shard in open_shards])
            open_shards = [shard for shard in open_shards if not shard.is_done]
            ready = next((shard for shard in open_shards if shard.next_batch()), None)
            if ready is None and len(open_shards) < AHEAD and (number := next(numbers, None)) is not None:
                ready = workshop.shard(number, pool)
                open_shards.append(ready)
            awaited = [future for shard in open_shards for future in shard.awaited]
            if ready is None and not open_shards:
                return
            looks = sum(len(shard.looking) for shard in open_shards)
            if ready is None or looks > workshop.backlog:
                wait(awaited, return_when=FIRST_COMPLETED)
                continue
            batch = ready.next_batch()
            workshop.draw(batch)
            yield ready.take(batch)


@contextmanager
def _threads(num: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose waiting tasks are dropped when the block is left by an exception.

    Each of its threads keeps torch to one core. Left alone torch starts a team of threads in each of them,
    and once there are more than cores, OpenMP lets all of them sleep at the end of every layer, those of the
    drawing thread too.
    """
    ours, started = torch.get_num_threads(), Barrier(num + 1)
    pool = ThreadPoolExecutor(num, thread_name_prefix="idgen", initializer=_keep_to_one_core)
    try:
        for _ in range(num):
            pool.submit(started.wait)
        started.wait()
        torch.set_num_threads(ours)  # of this thread and of those to come; those of the pool have theirs
        yield pool
    finally:
        started.abort()  # who still waits there would be waited for
        pool.shutdown(cancel_futures=True)


def _keep_to_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread that has asked once is not given what is set elsewhere later
