"""Pictures of people, made in a thread of their own: progress, previews, and an end to it at any step.

Shapes: R rows, each one picture.
"""

import io
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor

from idgen import mini
from idgen.adapters.checkpoint import AdapterFile
from idgen.diffusion.latents import decode_latents
from idgen.errors import ConfigError
from idgen.identity import Identity
from idgen.metrics.consistency import Eye, Likeness, measure_likeness
from idgen.opening import Kit, choose_device, model_folder, open_kit, open_model
from idgen.pipeline import IDPipeline, IDPipelineXL
from idgen.pixels import to_pil
from idgen.provenance import Provenance, save_picture
from idgen.runs import model_sha256

MAX_PICTURES = 8  # of one click
MAX_PROMPT = 1000  # characters; a text encoder reads about 75 words of it
MAX_STEPS = 100
SEED_BOUND = 2**53  # up to which a browser counts exactly
PREVIEW_PX = 192
PREVIEW_SHARE = 0.15  # of the time at most that goes into previews
NOBODY_SECONDS = 60.0  # after which pictures that nobody waits for are given up


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture that is asked for.

    Attributes:
        prompt: what it shows.
        identity: of whom.
        eyes: id of an encoder, or another name -> who measures the likeness, to whom.
        seed: of its noise.
        id_scale: strength of the identity.
        who: what the person is called under the picture; nothing where it is clear.
    """

    prompt: str
    identity: Identity
    eyes: Mapping[str, Eye]
    seed: int
    id_scale: float = 1.0
    who: str = ""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The pictures of one click, and what they have in common.

    Attributes:
        rows: one a picture.
        negative: what they should not show.
        id_start: part of the denoising from which on the identity has a say.
        steps: of the denoising.
        guidance: by the prompt.
        edit: of the people, "smile=+2"; None for none.
        edit_adapter: reads their codes; None likewise.

    Raises:
        ConfigError: if something is out of range.
    """

    rows: tuple[Row, ...]
    negative: str = ""
    id_start: float = 0.0
    steps: int
    guidance: float
    edit: str | None = None
    edit_adapter: AdapterFile | None = None

    def __post_init__(self) -> None:
        check("the number of pictures", len(self.rows), 1, MAX_PICTURES)
        check("the number of steps", self.steps, 1, MAX_STEPS)
        check("the guidance", self.guidance, 1, 20)
        check("the start", self.id_start, 0, 0.95)
        for row in self.rows:
            check("the strength", row.id_scale, 0, 3)
            check("the seed", row.seed, 0, SEED_BOUND)
            if not row.prompt.strip():
                raise ConfigError("there is no prompt yet: say in a few words what the picture shows")
        for words in (self.negative, *(row.prompt for row in self.rows)):
            if len(words) > MAX_PROMPT:
                raise ConfigError(f"a prompt holds at most {MAX_PROMPT} characters, this has {len(words)}")


def check(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number that is out of range.

    Raises:
        ConfigError: if it is, or is no number.
    """
    if not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} must be between {low:g} and {high:g}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far it is.

    Attributes:
        step: of ``steps`` that are done.
        steps: of the denoising.
        seconds_left: about; None before the first step.
        previews: the pictures so far, as WebP; empty where none was made at this step.
    """

    step: int
    steps: int
    seconds_left: float | None = None
    previews: tuple[bytes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Made:
    """A picture on the disk, and what was measured on it."""

    path: Path
    row: Row
    likeness: Likeness
    is_blocked: bool = False


class _Stopped(Exception):
    """Nobody wants these pictures any more."""


class Workshop:
    """A model with its adapter, opened once, that makes one order after the other.

    Args:
        kit: what sees faces, and the adapter.
        pipe: the model.
        folder: of the model.
    """

    def __init__(self, kit: Kit, pipe: IDPipeline | IDPipelineXL, *, folder: Path) -> None:
        self.kit, self.pipe, self.folder = kit, pipe, folder
        self.name = "mini" if folder == mini.BASE else folder.name  # as pictures say it
        self.model_hash = model_sha256(folder)
        self._turn = threading.Lock()  # a model makes one thing at a time
        pipe.set_progress_bar_config(disable=True)

    @property
    def size_px(self) -> int:
        """Side of its pictures."""
        return int(self.pipe.unet.config["sample_size"] * self.pipe.vae_scale_factor)

    def make(self, order: Order, folder: Path) -> Iterator[Progress | list[Made]]:
        """Make the pictures in ``folder``; whoever stops asking stops the work after the step it is in.

        Returns:
            An iterator over how far it is, and at last the pictures.

        Raises:
            IdgenError: what the library raises.
        """
        job = _Job(order.steps)

        def work() -> None:
            try:
                with self._turn, torch.no_grad(), self._editing(order):
                    job.finish(self._measured(order, self._denoised(order, job), folder))
            except _Stopped:
                job.finish([])
            except BaseException as error:
                job.fail(error)

        worker = threading.Thread(target=work, name="pictures", daemon=True)
        worker.start()
        try:
            yield from job.news()
        finally:
            job.stop()
            worker.join()

    @contextmanager
    def _editing(self, order: Order) -> Iterator[None]:
        """A block in which the model reads codes that can be edited, where people are edited."""
        if order.edit_adapter is None:
            yield
            return
        self.pipe.load_adapter(order.edit_adapter)
        try:
            yield
        finally:
            self.pipe.unload_wplus_adapter()

    def _denoised(self, order: Order, job: "_Job") -> list[tuple[Row, Image.Image, bool]]:
        latents: list[Tensor] = []  # before the step and after it

        def after_step(_: object, step: int, time: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            latents[:] = [*latents[-1:], tensors["latents"]]
            job.report(step + 1, lambda: self._previews(latents, step, int(time)))
            return tensors

        job.report(0, tuple)
        made = self.pipe(
            [row.prompt for row in order.rows],
            negative_prompt=[order.negative] * len(order.rows),
            identity=[row.identity for row in order.rows],
            seed=[row.seed for row in order.rows],
            id_scale=[row.id_scale for row in order.rows],
            id_start=order.id_start,
            num_inference_steps=order.steps,
            guidance_scale=order.guidance,
            callback_on_step_end=after_step,
        )
        blocked = getattr(made, "nsfw_content_detected", None) or [False] * len(order.rows)
        return list(zip(order.rows, made.images, map(bool, blocked), strict=True))

    def _previews(self, latents: Sequence[Tensor], step: int, time: int) -> tuple[bytes, ...]:
        """What the pictures are going to show, as far as that can be seen by now, as small WebP pictures."""
        shown = latents[-1]
        if (
            self.pipe.vae.dtype == torch.float16
        ):  # SDXL's autoencoder overflows; diffusers casts it at the end
            return ()
        if isinstance(self.pipe.scheduler, DDIMScheduler):
            if len(latents) < 2:
                return ()
            then = int(self.pipe.scheduler.timesteps[step + 1])
            levels = self.pipe.scheduler.alphas_cumprod
            shown = clean_latents(latents[0], shown, float(levels[time]), float(levels[then]))
        return tuple(_small(to_pil(image)) for image in decode_latents(self.pipe.vae, shown))

    def _measured(
        self, order: Order, made: Sequence[tuple[Row, Image.Image, bool]], folder: Path
    ) -> list[Made]:
        done = []
        for number, (row, image, is_blocked) in enumerate(made, 1):
            likeness = measure_likeness(image, self.kit.detector, row.eyes)
            path = folder / f"idgen-{row.seed}-{number}.png"
            save_picture(image, path, self._provenance(order, row, likeness))
            done.append(Made(path=path, row=row, likeness=likeness, is_blocked=is_blocked))
        return done

    def _provenance(self, order: Order, row: Row, likeness: Likeness) -> Provenance:
        return Provenance(
            prompt=row.prompt,
            negative_prompt=order.negative,
            seed=row.seed,
            steps=order.steps,
            guidance_scale=order.guidance,
            id_scale=row.id_scale,
            model=self.name,
            model_hash=self.model_hash,
            adapter_hash=self.kit.adapter.sha256,
            encoder=self.kit.encoder.id,
            edit=order.edit,
            similarity={e.id: likeness.similarity[e.id] for e in self.kit.encoders if e.id in row.eyes},
        )


def clean_latents(earlier: Tensor, latents: Tensor, a: float, b: float) -> Tensor:
    """The noise-free latents that a step of DDIM went towards.

    The step takes ``x = sqrt(a) x0 + sqrt(1 - a) e`` to ``y = sqrt(b) x0 + sqrt(1 - b) e`` (Song et al. 2020,
    https://arxiv.org/abs/2010.02502, eq. 12 with sigma 0); without e that is
    ``x0 = (sqrt(1 - a) y - sqrt(1 - b) x) / (sqrt(1 - a) sqrt(b) - sqrt(1 - b) sqrt(a))``.

    Args:
        earlier: x, before the step.
        latents: y, after it.
        a: share of the signal in x, in (0, 1).
        b: share of the signal in y, in (a, 1].
    """
    noise_x, noise_y = math.sqrt(1 - a), math.sqrt(1 - b)
    return (noise_x * latents - noise_y * earlier) / (noise_x * math.sqrt(b) - noise_y * math.sqrt(a))


class _Job:
    """What the thread that works and the one that waits tell each other: the latest news, no old ones."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._changed = threading.Condition()
        self._latest: Progress | list[Made] | BaseException | None = None
        self._is_stopped = self._is_awaited = False
        self._began = self._asked = time.monotonic()
        self._preview_at = 0.0

    # --- the worker's side ---

    def report(self, step: int, draw: Callable[[], tuple[bytes, ...]]) -> None:
        now = time.monotonic()
        if self._is_stopped or not (self._is_awaited or now - self._asked < NOBODY_SECONDS):
            raise _Stopped
        if step == 0:
            self._began = now  # the wait for a turn does not count
        previews: tuple[bytes, ...] = ()
        if 0 < step < self.steps and now >= self._preview_at:
            previews = draw()
        if previews:
            then = time.monotonic()
            self._preview_at = then + (then - now) / PREVIEW_SHARE
        left = None if step == 0 else (now - self._began) / step * (self.steps - step)
        self._tell(Progress(step=step, steps=self.steps, seconds_left=left, previews=previews))

    def finish(self, made: list[Made]) -> None:
        self._tell(made)

    def fail(self, error: BaseException) -> None:
        self._tell(error)

    def _tell(self, news: Progress | list[Made] | BaseException) -> None:
        with self._changed:
            before = self._latest
            if isinstance(news, Progress) and isinstance(before, Progress) and not news.previews:
                news = Progress(step=news.step, steps=news.steps, seconds_left=news.seconds_left,
                                previews=before.previews)  # fmt: skip
            self._latest = news
            self._changed.notify_all()

    # --- the side of who waits ---

    def stop(self) -> None:
        self._is_stopped = True

    def news(self) -> Iterator[Progress | list[Made]]:
        while True:
            with self._changed:
                self._is_awaited = True
                self._changed.wait_for(lambda: self._latest is not None)
                news, self._latest = self._latest, None
                self._is_awaited, self._asked = False, time.monotonic()
            if isinstance(news, BaseException):
                raise news
            assert news is not None
            yield news
            if isinstance(news, list):
                return


def _small(image: Image.Image) -> bytes:
    image.thumbnail((PREVIEW_PX, PREVIEW_PX))
    packed = io.BytesIO()
    image.save(packed, "WEBP", quality=60)
    return packed.getvalue()


def open_workshop(
    model: str = "mini",
    *,
    adapter: Path | None = None,
    encoder: str | None = None,
    judge: str | None = None,
    detector: str = "mini",
    device: str = "auto",
    precision: str = "auto",
) -> Workshop:
    """Open what is named, as `idgen generate` does, and make one small picture so that the next comes soon.

    Raises:
        IdgenError: as `open_kit` and `open_model`.
    """
    device = choose_device(device)
    folder = model_folder(model)
    kit = open_kit(folder, adapter=adapter, encoder=encoder, judge=judge, detector=detector)
    pipe = open_model(folder, kit.adapter, device=device, precision=precision)
    shop = Workshop(kit, pipe, folder=folder)
    _warm(shop)
    return shop


def _warm(shop: Workshop) -> None:
    """The first picture of a process takes longest: memory is claimed, kernels are chosen."""
    with torch.no_grad():
        shop.pipe("a face", seed=0, num_inference_steps=1, guidance_scale=2.0)
