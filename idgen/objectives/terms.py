"""Terms of a training objective: each reads one batch, gives one value a row, and is weighed by its settings.

Shapes: B rows of a batch, C channels, h and w of the latents, D width of the face vectors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from idgen.diffusion.prediction import NoiseSchedule
from idgen.errors import ConfigError
from idgen.objectives.denoising import denoising_loss, late_weight, min_snr_weight
from idgen.objectives.faces import FaceReader, PredictedFaces
from idgen.objectives.identity import Mining, choose_negatives, cosine_distance, triplet_loss
from idgen.objectives.region import face_mask


@dataclass(frozen=True, kw_only=True)
class FaceTargets:
    """Whom each row shows, and against whom it stands.

    Attributes:
        id_embedding: (B, D) face vector of the training picture of each row.
        person: (B,) number of its person.
        landmarks: (B, 5, 2) in pixels of the decoded picture, NaN where unknown.
        bank: (N, D) vectors that negatives are chosen from, of all rows of all processes.
        bank_person: (N,) their people.
        bank_codes: W+ codes (M, L, W) of M of them, where the model is conditioned on those.
        draw: (B, N) numbers from [0, 1) that decide what is chosen at random.
        picture_px: side of the decoded picture, which the landmarks are pixels of.
        noise: (B, D) of about unit length, for what is disturbed at random; None without such a term.
        is_wanted: (B,) whether the face should be that person's: not in rows from which the identity was left
            out. None where it should in all rows.
        seen_embedding: (B, E) as ``id_embedding`` by the encoder that sees predicted faces, where that is not
            the one that conditions.
        seen_bank: (N, E) likewise.
    """

    id_embedding: Tensor
    person: Tensor
    landmarks: Tensor
    bank: Tensor
    bank_person: Tensor
    bank_codes: Callable[[Tensor], Tensor] | None = None
    draw: Tensor | None = None
    picture_px: int = 0
    noise: Tensor | None = None
    is_wanted: Tensor | None = None
    seen_embedding: Tensor | None = None
    seen_bank: Tensor | None = None

    @property
    def people(self) -> Tensor:
        """What predicted faces are compared with: (B, D), or (B, E) of another encoder."""
        return self.id_embedding if self.seen_embedding is None else self.seen_embedding

    @property
    def others(self) -> Tensor:
        """Whom a triplet chooses from: (N, D), or (N, E) of another encoder."""
        return self.bank if self.seen_bank is None else self.seen_bank


@dataclass(frozen=True, kw_only=True)
class Step:
    """One batch as the terms see it. What is costly is computed when a term asks for it, and once.

    Attributes:
        schedule: noise of the model.
        timesteps: (B,).
        noisy: (B, C, h, w) what the model saw.
        model_output: (B, C, h, w) what it said, with gradients.
        target: (B, C, h, w) what it should have said.
        is_prior: (B,) rows of prior pictures, which keep the model what it was and belong to nobody.
        faces: of the rows, where a term on identity is wanted.
        reader: sees the faces in the prediction.
        conditions: what the model was told of each row beside the text, such as ``id_embedding`` (B, D).
        ask: the model's answer (B, C, h, w) to the same noise under other conditions.
        generate: pictures of some rows, as latents (R, C, h, w), made from pure noise as in generation; with
            gradients in the last steps.
        image_states: the text of each row, averaged over its tokens, and what the image branch adds to it,
            both (B, W), with gradients.
        attend: ``attend(rows, edited, with_identity)``: what the recorded layers say of the text, each
            (R, P, C) with P places, for these rows of the same noise, under the edited or the plain prompt;
            with gradients only with identity.
        attention_maps: attention (B, H, P) of the identity tokens in each cross-attention layer in the
            model's answer, H heads and P places; with gradients.
    """

    schedule: NoiseSchedule
    timesteps: Tensor
    noisy: Tensor
    model_output: Tensor
    target: Tensor
    is_prior: Tensor
    faces: FaceTargets | None = None
    reader: FaceReader | None = None
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    ask: Callable[..., Tensor] | None = None
    generate: Callable[[Tensor], Tensor] | None = None
    image_states: Callable[[], tuple[Tensor, Tensor]] | None = None
    attend: Callable[[Tensor, bool, bool], list[Tensor]] | None = None
    attention_maps: Callable[[], list[Tensor]] | None = None

    @cached_property
    def face_mask(self) -> Tensor:
        """(B, h, w) in [0, 1], how much each place of the latents belongs to the face.

        Raises:
            ConfigError: if the batch was given without faces.
        """
        if self.faces is None or not self.faces.picture_px:
            raise ConfigError("a term on the region of the face needs the landmarks of the pictures")
        height, width = self.model_output.shape[-2:]
        return face_mask(self.faces.landmarks, self.faces.picture_px, (height, width))

    @cached_property
    def instance_rows(self) -> Tensor:
        """Rows that show the people who are learned."""
        return (~self.is_prior).nonzero().flatten()

    @cached_property
    def face_rows(self) -> Tensor:
        """Instance rows whose face should be that of their person."""
        wanted = None if self.faces is None else self.faces.is_wanted
        return self.instance_rows if wanted is None else (~self.is_prior & wanted).nonzero().flatten()

    @cached_property
    def predicted_faces(self) -> PredictedFaces:
        """Faces in the predicted pictures of `face_rows`; ``rows`` are rows of the batch.

        Raises:
            ConfigError: if the batch was given without faces or reader.
        """
        if self.reader is None or self.faces is None:
            raise ConfigError("a term on identity needs face vectors of the pictures and a reader of faces")
        rows = self.face_rows
        x0 = self.schedule.x0(self.model_output[rows], self.noisy[rows], self.timesteps[rows])
        seen = self.reader.read(x0, self.faces.landmarks[rows])
        return replace(seen, rows=rows[seen.rows])

    @cached_property
    def generated_faces(self) -> PredictedFaces:
        """Faces in pictures of `face_rows` made from pure noise; ``rows`` are rows of the batch.

        Landmarks are those of the picture; those of the training picture only where no detector looks.

        Raises:
            ConfigError: if the batch was given without faces or reader, or nothing generates.
        """
        if self.reader is None or self.faces is None or self.generate is None:
            raise ConfigError("a reward needs a reader of faces and pictures generated while training")
        rows = self.face_rows
        known = self.faces.landmarks[rows]
        elsewhere = known if self.reader.detector is None else torch.full_like(known, torch.nan)
        x0 = self.generate(rows) if len(rows) else self.noisy[rows]
        seen = self.reader.read(x0, elsewhere)
        return replace(seen, rows=rows[seen.rows])


@dataclass(frozen=True, kw_only=True)
class Values:
    """What a term says.

    Attributes:
        rows: (R,) rows of the batch that it is about; the mean is over these. As many in each equal part of a
            batch: else the parts together would not be the whole.
        loss: (R,) with gradients; 0 where there is nothing to say: a face that is not found, an identity that
            was left out.
        said: further numbers for the log, detached.
    """

    rows: Tensor
    loss: Tensor
    said: Mapping[str, float] = field(default_factory=dict)


def spread(step: Step, rows: Tensor, loss: Tensor) -> Values:
    """Values of all instance rows, 0 in those that the term has nothing to say of.

    Args:
        step: the batch.
        rows: (R,) rising, of ``instance_rows``.
        loss: (R,) of these.
    """
    everyone = step.instance_rows
    whole = loss.new_zeros(len(everyone)).index_put((torch.searchsorted(everyone, rows),), loss)
    return Values(rows=everyone, loss=whole)


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """How much a term counts, and when.

    Attributes:
        weight: factor, >= 0; at 0 the term is not computed.
        warmup_steps: training steps over which the weight rises from 0.
        timesteps: first and last timestep at which it counts, as shares of T in [0, 1].
        time_power: weight ``(1 - t / T)^time_power`` of a row.
    """

    weight: float = 1.0
    warmup_steps: int = 0
    timesteps: tuple[float, ...] = (0.0, 1.0)
    time_power: float = 0.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ConfigError(f"the weight of a term must not be negative, got {self.weight}")
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if len(self.timesteps) != 2 or not 0 <= self.timesteps[0] < self.timesteps[1] <= 1:
            raise ConfigError(
                f"timesteps must be two rising shares of the schedule in [0, 1], got {list(self.timesteps)}"
            )

    def weight_at(self, step: int) -> float:
        """The weight in training step ``step``, counted from 0."""
        return self.weight * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def weight_of_rows(self, schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
        """(B,) weight over the timesteps, 0 outside of their range."""
        share = timesteps.float() / schedule.num_timesteps
        counts = (share >= self.timesteps[0]) & (share <= self.timesteps[1])
        return late_weight(schedule, timesteps, self.time_power) * counts


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig(TermConfig):
    """Squared error on the pictures of the people.

    Attributes:
        min_snr_gamma: see `min_snr_weight`; 0 weighs all timesteps alike.
        outside: how much places outside of the face count, in [0, 1]; 1 is no mask.
    """

    min_snr_gamma: float = 0.0
    outside: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.outside <= 1:
            raise ConfigError(f"outside must be in [0, 1], got {self.outside}")
        if self.min_snr_gamma < 0:
            raise ConfigError(f"min_snr_gamma must not be negative, got {self.min_snr_gamma}")


@dataclass(frozen=True, kw_only=True)
class PriorConfig(DenoisingConfig):
    """The same on prior pictures, which keep the model what it was (DreamBooth, Ruiz et al. 2022)."""


@dataclass(frozen=True, kw_only=True)
class CosineConfig(TermConfig):
    """Distance of the predicted face to the person, weighed over time as in ID-Booth's program."""

    time_power: float = 2.0


@dataclass(frozen=True, kw_only=True)
class TripletConfig(TermConfig):
    """ID-Booth's triplet: closer to the person than to somebody else, by a margin."""

    time_power: float = 2.0
    margin: float = 1.0
    mining: Mining = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.margin <= 2:
            raise ConfigError(
                f"triplet.margin must be in (0, 2] (distances are 1 - cosine), got {self.margin}"
            )


class Term(Protocol):
    """Reads a batch, says one value a row."""

    def __call__(self, step: Step) -> Values:
        """The values of the rows that the term is about."""
        ...


def _denoising(config: DenoisingConfig, step: Step, rows: Tensor) -> Values:
    mask = None
    if config.outside < 1:
        face = step.face_mask[rows]
        has_face = face.amax(dim=(1, 2), keepdim=True) > 0  # without a face the whole picture counts
        mask = torch.where(has_face, face + config.outside * (1 - face), 1.0)
    loss = denoising_loss(step.model_output[rows], step.target[rows], mask)
    if config.min_snr_gamma:
        loss = loss * min_snr_weight(step.schedule, step.timesteps[rows], config.min_snr_gamma)
    return Values(rows=rows, loss=loss)


def denoising(config: DenoisingConfig) -> Term:
    """The denoiser's error on the pictures of the people."""
    return lambda step: _denoising(config, step, step.instance_rows)


def prior(config: PriorConfig) -> Term:
    """The denoiser's error on prior pictures."""
    return lambda step: _denoising(config, step, step.is_prior.nonzero().flatten())


def distance_to_person(step: Step, seen: PredictedFaces) -> Tensor:
    """Cosine distance (F,) of faces that were seen to those of the training pictures of their rows."""
    assert step.faces is not None
    return cosine_distance(seen.id_embedding, step.faces.people[seen.rows])


def on_faces(step: Step, seen: PredictedFaces, loss_of: Callable[[PredictedFaces], Tensor]) -> Values:
    """Values of all instance rows from faces that were seen.

    Args:
        step: the batch.
        seen: `Step.predicted_faces` or `Step.generated_faces`.
        loss_of: (F,) values of the faces.

    Returns:
        0 in rows without a face; how many those are, and how alike the others.
    """
    assert step.faces is not None
    rows, wanted = step.instance_rows, max(1, len(step.face_rows))
    loss = torch.zeros(len(rows), device=rows.device)
    said = {"no_face": (len(step.face_rows) - len(seen.rows)) / wanted,
            "face_detected": float(seen.is_detected.float().sum()) / wanted}  # fmt: skip
    if len(seen.rows):
        loss = loss.index_put((torch.searchsorted(rows, seen.rows),), loss_of(seen))
        people = step.faces.people[seen.rows]
        said["similarity"] = float(1 - cosine_distance(seen.id_embedding.detach(), people).mean())
    return Values(rows=rows, loss=loss, said=said)


def cosine(_config: CosineConfig) -> Term:
    """Distance of the predicted face to the face of the training picture."""
    return lambda step: on_faces(step, step.predicted_faces, lambda seen: distance_to_person(step, seen))


def triplet(config: TripletConfig) -> Term:
    """Triplet of the predicted face, the face of the training picture, and somebody else of the batch."""

    def term(step: Step) -> Values:
        def loss_of(seen: PredictedFaces) -> Tensor:
            anchor, rows, targets = seen.id_embedding, seen.rows, step.faces
            assert targets is not None
            positive = targets.people[rows]
            negatives = choose_negatives(
                anchor, positive, targets.person[rows], targets.others, targets.bank_person,
                mining=config.mining, draw=None if targets.draw is None else targets.draw[rows],
            )  # fmt: skip
            return triplet_loss(anchor, positive, targets.others[negatives], margin=config.margin)

        return on_faces(step, step.predicted_faces, loss_of)

    return term


def weighed(
    terms: Mapping[str, tuple[TermConfig, Term]], step: Step, step_number: int
) -> tuple[Tensor, dict[str, float]]:
    """The scalar to minimise and what it is made of.

    ``sum_k w_k(s) mean_i w_k(t_i) L_ki`` over terms k and their rows i, in training step s. Terms of weight 0
    are not computed.

    Returns:
        The loss, and ``<term>`` (the weighed mean over rows, before the factor), ``<term>/<what it says>``.
    """
    total = 0 * step.model_output.sum()  # with gradients, also where no term has anything to say of a batch
    said: dict[str, float] = {}
    for name, (config, term) in terms.items():
        if not config.weight:
            continue
        values = term(step)
        if len(values.rows):
            by_time = config.weight_of_rows(step.schedule, step.timesteps[values.rows])
            mean = (by_time * values.loss).mean()
            total = total + config.weight_at(step_number) * mean
            said[name] = float(mean.detach())
        said.update({f"{name}/{key}": value for key, value in values.said.items()})
    return total, said
