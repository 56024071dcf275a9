"""Training pictures in memory, and batches that are a function of (seed, step) alone.

One global batch is planned in every process and cut into equal parts, one for each process and each
accumulated piece: however many there are, together they compute the same loss.

Shapes: N pictures, B rows of a batch, K vectors to choose negatives from, D width of a face vector,
C channels, h and w of the latents.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from torch import Tensor

from idgen.diffusion.denoiser import Denoiser, TextStates
from idgen.diffusion.latents import Latents
from idgen.diffusion.prediction import NoiseSchedule
from idgen.diffusion.rollout import RolloutConfig, roll_out
from idgen.errors import ConfigError
from idgen.objectives.attention import recorded_attention
from idgen.objectives.editing import attention_reader
from idgen.objectives.faces import FaceReader
from idgen.objectives.terms import FaceTargets, Step
from idgen.portraits import Portraits
from idgen.training import batch_rows, step_generator
from idgen.tuning.image_branch import ImageBranch


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Pictures of the people who are learned, then the prior pictures.

    Attributes:
        latents: of all pictures.
        is_prior: (N,) which of them keep the model what it was.
        text_row: (N,) which prompt goes with each.
        id_embedding: (N, D), zero where there is no face.
        person: (N,); each prior picture is a person of its own.
        landmarks: (N, 5, 2) in pixels of the cut pictures, NaN where there is no face.
        codes: (N, L, W) W+ codes, where an adapter reads them.
        seen_embedding: (N, E) by the encoder of the identity terms, where that is another one.
    """

    latents: Latents
    is_prior: Tensor
    text_row: Tensor
    id_embedding: Tensor
    person: Tensor
    landmarks: Tensor
    codes: Tensor | None = None
    seen_embedding: Tensor | None = None

    @property
    def bank_rows(self) -> Tensor:
        """(K,) pictures with a face: their vectors are what negatives are chosen from."""
        return self.id_embedding.any(dim=1).nonzero().flatten()

    def rows_of(self, *, prior: bool) -> Tensor:
        """Pictures of the people, or the prior ones."""
        return (self.is_prior == prior).nonzero().flatten()


def join(
    instances: Portraits, instance_prompts: Sequence[str], prior: Portraits | None, prior_prompt: str,
    texts: TextStates,
) -> Corpus:  # fmt: skip
    """The corpus of a person or several, with prior pictures or without."""
    parts = [instances] if prior is None else [instances, prior]
    num_prior = 0 if prior is None else len(prior)
    others = torch.arange(num_prior) + len(instances.people)
    return Corpus(
        latents=Latents.joined([part.latents for part in parts]),
        is_prior=torch.arange(len(instances) + num_prior) >= len(instances),
        text_row=texts.rows([*instance_prompts, *[prior_prompt] * num_prior]),
        id_embedding=torch.cat([part.id_embedding for part in parts]),
        person=torch.cat([instances.person, others]),
        landmarks=torch.cat([part.landmarks for part in parts]),
        codes=instances.codes,
        seen_embedding=instances.seen_embedding if prior is None else None,
    )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Which pictures, and everything that is drawn at random for them.

    Attributes:
        rows: (B,) of the corpus.
        timesteps: (B,).
        latent_noise: (B, C, h, w), decides the sample of the autoencoder's Gaussian.
        noise: (B, C, h, w).
        draw: (B, K) in [0, 1), decides which negatives are chosen.
        id_noise: (B, D) of about unit length, for identities that are disturbed.
        late: (B,) in [0, 1), the same in all rows: decides where generation stops, for a reward.
    """

    rows: Tensor
    timesteps: Tensor
    latent_noise: Tensor
    noise: Tensor
    draw: Tensor
    id_noise: Tensor
    late: Tensor

    def take(self, index: Tensor) -> Self:
        """These rows of the batch."""
        return replace(self, **{name: getattr(self, name)[index] for name in vars(self)})


B = TypeVar("B", bound=Batch)


def plan_batch(
    corpus: Corpus, schedule: NoiseSchedule, *, size: int, prior_size: int, step: int, seed: int
) -> Batch:
    """Global batch ``step``: rows of people, then prior rows; each epoch is a permutation.

    Timesteps are uniform over the schedule.
    """
    generator = step_generator(seed, step)
    own, other = corpus.rows_of(prior=False), corpus.rows_of(prior=True)
    rows = own[torch.from_numpy(batch_rows(len(own), size, step, seed))]
    if prior_size:
        rows = torch.cat([rows, other[torch.from_numpy(batch_rows(len(other), prior_size, step, seed))]])
    return fill_batch(corpus, schedule, rows, generator)


def fill_batch(corpus: Corpus, schedule: NoiseSchedule, rows: Tensor, generator: torch.Generator) -> Batch:
    """Draw everything else for these rows."""
    shape, width = (len(rows), *corpus.latents.mean.shape[1:]), corpus.id_embedding.shape[1]
    return Batch(
        rows=rows,
        timesteps=torch.randint(schedule.num_timesteps, (len(rows),), generator=generator),
        latent_noise=torch.randn(shape, generator=generator),
        noise=torch.randn(shape, generator=generator),
        draw=torch.rand(len(rows), len(corpus.bank_rows), generator=generator),
        id_noise=torch.randn(len(rows), width, generator=generator) / width**0.5,
        late=torch.rand(1, generator=generator).expand(len(rows)),
    )


def check_divisible(size: int, prior_size: int, num_parts: int) -> None:
    """Equal parts, or no equal loss.

    Raises:
        ConfigError: if the batch cannot be cut into that many.
    """
    for name, count in (("batch_size", size), ("prior_batch_size", prior_size)):
        if count % num_parts:
            raise ConfigError(
                f"{name} {count} cannot be cut into {num_parts} equal parts (processes x accumulation); "
                f"take a multiple of {num_parts}"
            )


def part_of(batch: B, corpus: Corpus, index: int, num_parts: int) -> B:
    """Part ``index`` of equal ones, with the same share of prior rows in each."""
    is_prior = corpus.is_prior[batch.rows]
    pieces = []
    for of_kind in ((~is_prior).nonzero().flatten(), is_prior.nonzero().flatten()):
        share = len(of_kind) // num_parts
        pieces.append(of_kind[index * share : (index + 1) * share])
    return batch.take(torch.cat(pieces))


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What terms want to know beside the model's answer; nothing of it is computed that no term asks for.

    Attributes:
        reader: sees faces in pictures.
        rollout: how pictures are generated; the batch's noise is what they begin with.
        branch: the image branch of the model.
        num_id_tokens: identity tokens behind the text, whose attention is recorded; 0 for none.
        edit_layers: part of the UNet whose text attention is compared under an edit; empty for none.
    """

    reader: FaceReader | None = None
    rollout: RolloutConfig | None = None
    branch: ImageBranch | None = None
    num_id_tokens: int = 0
    edit_layers: str = ""


def run_step(
    corpus: Corpus,
    batch: Batch,
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    *,
    device: torch.device,
    probes: Probes | None = None,
    text_row: Tensor | None = None,
    edit_rows: tuple[Tensor, Tensor] | None = None,
    is_wanted: Tensor | None = None,
    conditions: Mapping[str, Tensor] | None = None,
) -> Step:
    """Noise the pictures, ask the model, and lay out what the terms want to know.

    Args:
        corpus: all pictures.
        batch: which of them.
        denoiser: the model.
        schedule: its noise.
        device: that computes.
        probes: what terms want to know beside the answer.
        text_row: (B,) other prompts than those of the corpus.
        edit_rows: (B,) prompts, and (B,) the same with an edit.
        is_wanted: as in `FaceTargets`.
        conditions: what else the model is told of each row.
    """
    rows, timesteps, wanted = batch.rows, batch.timesteps.to(device), probes or Probes()
    x0 = corpus.latents.sample(rows, batch.latent_noise).to(device)
    noise = batch.noise.to(device)
    noisy = schedule.add_noise(x0, noise, timesteps)
    told = {name: value.to(device) for name, value in (conditions or {}).items()}
    texts = corpus.text_row[rows] if text_row is None else text_row

    def ask(**other: Tensor) -> Tensor:
        return denoiser(noisy, timesteps, texts, **{**told, **other})

    recorder = recorded_attention(denoiser.unet) if wanted.num_id_tokens else nullcontext()
    with recorder as record:
        model_output = ask()
    step = Step(
        schedule=schedule,
        timesteps=timesteps,
        noisy=noisy,
        model_output=model_output,
        target=schedule.target(x0, noise, timesteps),
        is_prior=corpus.is_prior[rows].to(device),
        faces=_targets(corpus, batch, denoiser.size_px, is_wanted, device),
        reader=wanted.reader,
        conditions=told,
        ask=ask if told else None,
    )
    if record is not None:
        step = replace(step, attention_maps=lambda: record.identity_maps(wanted.num_id_tokens))
    if wanted.rollout is not None:
        step = replace(step, generate=_generator(denoiser, schedule, batch, texts, told, wanted.rollout))
    if wanted.branch is not None:
        step = replace(step, image_states=_image_states(denoiser, texts, told, wanted.branch))
    if wanted.edit_layers and edit_rows is not None:
        attend = attention_reader(denoiser, noisy, timesteps, *edit_rows, told, wanted.edit_layers)
        step = replace(step, attend=attend)
    return step


def _targets(
    corpus: Corpus, batch: Batch, picture_px: int, is_wanted: Tensor | None, device: torch.device
) -> FaceTargets:
    rows, bank, codes, seen = batch.rows, corpus.bank_rows, corpus.codes, corpus.seen_embedding

    def codes_of(index: Tensor) -> Tensor:
        assert codes is not None
        return codes[bank[index.cpu()]].to(device)

    return FaceTargets(
        id_embedding=corpus.id_embedding[rows].to(device),
        person=corpus.person[rows].to(device),
        landmarks=corpus.landmarks[rows].to(device),
        bank=corpus.id_embedding[bank].to(device),
        bank_person=corpus.person[bank].to(device),
        draw=batch.draw.to(device),
        picture_px=picture_px,
        bank_codes=None if codes is None else codes_of,
        noise=batch.id_noise.to(device),
        is_wanted=None if is_wanted is None else is_wanted.to(device),
        seen_embedding=None if seen is None else seen[rows].to(device),
        seen_bank=None if seen is None else seen[bank].to(device),
    )


def _generator(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    batch: Batch,
    texts: Tensor,
    told: Mapping[str, Tensor],
    config: RolloutConfig,
) -> Callable[[Tensor], Tensor]:
    """Pictures of some rows from the batch's noise, down to the late step that the batch has drawn."""

    def generate(chosen: Tensor) -> Tensor:
        some = {name: value[chosen] for name, value in told.items()}
        way = config.timesteps(schedule.num_timesteps, float(batch.late[0]))
        ask = denoiser.guided(texts[chosen.to(texts.device)], config.guidance, **some)
        noise = batch.noise.to(chosen.device)[chosen]
        return roll_out(ask, schedule, noise, way, grad_steps=config.grad_steps)

    return generate


def _image_states(
    denoiser: Denoiser, texts: Tensor, told: Mapping[str, Tensor], branch: ImageBranch
) -> Callable[[], tuple[Tensor, Tensor]]:
    """What the text says of each row, and what the image branch adds to it."""

    def states() -> tuple[Tensor, Tensor]:
        vector = told["image_vector"]
        return denoiser.texts.hidden[texts].mean(dim=1).to(vector), branch(vector)

    return states
