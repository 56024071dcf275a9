"""Train a small StyleGAN with its encoder: photos to codes that can be edited, and codes to pictures.

    idgen train wplus --config train/configs/wplus_cpu.yaml --out runs/wplus

An autoencoder with style modulation: the encoder says one code for each layer of the generator, which has to
give the picture back, and the person that face encoders see in it; small pictures first (``growth``), since
these cost a fraction and teach the coarse layers as much. With ``adversarial`` a discriminator
learns to tell what comes back from photos, as a GPU allows. Goes on from the checkpoint in the run folder.
Leaves ``wplus.safetensors``, which `idgen.encoders.wplus.load_wplus` opens.

Shapes: B rows, L layers and C width of the codes, S side of the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, l1_loss, softplus

from idgen.config import program_arguments
from idgen.data.images import arcface_crops, training_faces
from idgen.encoders.arcface import load_encoder
from idgen.encoders.onnx_torch import TorchEncoder
from idgen.errors import ConfigError, TrainingError
from idgen.stylegan.checkpoint import WPlusCard, write_wplus
from idgen.stylegan.compact import CompactEncoder
from idgen.stylegan.discriminator import Discriminator
from idgen.stylegan.generator import FIRST_SIZE_PX, StyleGenerator
from idgen.stylegan.model import WPlusModel
from idgen.stylegan.operations import ModulatedConv2d
from idgen.training import (
    MovingAverage,
    Progress,
    TrainingRun,
    batch_rows,
    reduced_precision,
    step_generator,
)

NAME, STATE = "wplus.safetensors", "wplus"
SMALLEST_PX = 16  # of the pictures that are compared first
MEAN_CODE_PICTURES = 2048  # that the mean code is measured on


@dataclass(frozen=True, kw_only=True)
class WPlusConfig:
    """Everything that decides a run of train/wplus.py."""

    seed: int = 0
    faces: Path | None = None  # a Parquet of portraits; by default faces_train.parquet of $IDGEN_FACES
    num_threads: int = 1
    start: Path | None = None  # the run folder of a training to go on from: its averaged weights
    size_px: int = 64
    style_dim: int = 256
    channels: tuple[int, ...] = (256, 192, 128, 64, 32)  # of the generator, from 4 pixels up
    widths: tuple[int, ...] = (32, 64, 128, 256)  # of the encoder, down to 4 pixels
    bottleneck: int = 512
    vector_noise: float = 0.1  # added to the encoder's vector, of unit variance: neighbours look alike
    growth: tuple[int, ...] = (2500, 3500)  # steps at 16 pixels, 32, ... before those of the whole size
    steps: int = 12000  # all of them
    batch_size: int = 8  # small: the number of steps is what an autoencoder of styles needs
    encoders: tuple[str, ...] = ("mini",)  # what they see in both pictures should be the same
    id_rows: int = 4  # of a batch that they look at
    id_weight: float = 0.4
    edge_weight: float = 1.0  # L1 on differences of neighbouring pixels: L1 alone blurs
    adversarial: float = 0.0  # weight of the discriminator's say; 0 is an autoencoder
    r1_gamma: float = 1.0
    generator_rate: float = 4e-3
    encoder_rate: float = 2e-4
    warmup_steps: int = 100
    cooldown: float = 0.4  # share of the steps over which the rates fall to 0
    ema_decay: float = 0.998
    licence: str = "research only"

    def __post_init__(self) -> None:
        if FIRST_SIZE_PX << (len(self.channels) - 1) != self.size_px:
            raise ConfigError(
                f"channels must name a width for each size from 4 to {self.size_px} pixels, "
                f"got {self.channels}"
            )
        if min(self.steps, self.batch_size) < 1 or not 0 <= self.id_rows <= self.batch_size:
            raise ConfigError("steps and batch_size must be at least 1, id_rows in [0, batch_size]")
        if sum(self.growth) >= self.steps or SMALLEST_PX << len(self.growth) > self.size_px:
            raise ConfigError(
                f"growth {self.growth} begins at {SMALLEST_PX} pixels and must leave some of the "
                f"{self.steps} steps for {self.size_px} pixels"
            )
        if not 0 < self.cooldown <= 1:
            raise ConfigError(f"cooldown must be in (0, 1], got {self.cooldown}")
        if self.id_rows and not self.encoders:
            raise ConfigError("id_rows need encoders that look at them; say id_rows: 0 for none")

    def size_at(self, step: int) -> int:
        """Side of the pictures that a step compares."""
        past = sum(step >= end for end in accumulate(self.growth))
        return self.size_px if past == len(self.growth) else SMALLEST_PX << past

    def rate(self, step: int) -> float:
        """Share of the full learning rates at a step: a linear start, then constant, then linear to 0."""
        return min(1.0, (step + 1) / self.warmup_steps, (self.steps - step) / (self.cooldown * self.steps))


class Autoencoder(torch.nn.Module):
    """Encoder and generator, by the names that the file has."""

    def __init__(self, config: WPlusConfig) -> None:
        super().__init__()
        sizes = [FIRST_SIZE_PX << level for level in range(len(config.channels))]
        channels = dict(zip(sizes, config.channels, strict=True))
        # without a mapping network: codes come from pictures
        self.decoder = StyleGenerator(config.size_px, config.style_dim, channels, num_mapping_layers=0)
        self.encoder = CompactEncoder(
            size_px=config.size_px, num_layers=self.decoder.num_layers, style_dim=config.style_dim,
            widths=config.widths, bottleneck=config.bottleneck,
        )  # fmt: skip
        for module in self.decoder.to_rgbs.modules():
            if isinstance(module, ModulatedConv2d):  # a level that is new adds nothing at first
                torch.nn.init.zeros_(module.weight)

    def forward(self, pixel_values: Tensor, noise: Tensor, size_px: int) -> Tensor:
        """The pictures that come back, of ``size_px``; ``noise`` (B, bottleneck) is added to the vector."""
        codes = self.encoder.codes(self.encoder.vector(pixel_values) + noise)
        return self.decoder(codes, size_px=size_px)


def reconstruction(
    made: Tensor, wanted: Tensor, encoders: Sequence[TorchEncoder], config: WPlusConfig
) -> tuple[Tensor, dict[str, float]]:
    """L1 on pixels and edges, and ``1 - cos`` of what each encoder sees in the first rows."""
    pixel = l1_loss(made, wanted)
    edge = l1_loss(made.diff(dim=-1), wanted.diff(dim=-1)) + l1_loss(made.diff(dim=-2), wanted.diff(dim=-2))
    loss = pixel + config.edge_weight * edge
    said = {"l1": pixel.item(), "edge": edge.item()}
    for number, encoder in enumerate(encoders if config.id_rows else ()):
        crops = [arcface_crops(x[: config.id_rows] / 2 + 0.5, encoder.crop.size_px) for x in (made, wanted)]
        with torch.no_grad():
            person = encoder(crops[1])
        similarity = (encoder(crops[0]) * person).sum(dim=1).mean()
        loss = loss + config.id_weight / len(encoders) * (1 - similarity)
        said[f"similarity_{number}"] = similarity.item()
    return loss, said


def r1_penalty(discriminator: Discriminator, photos: Tensor) -> Tensor:
    """``E |dD/dx|^2`` on photos (Mescheder et al. 2018, https://arxiv.org/abs/1801.04406, eq. 9)."""
    photos = photos.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(photos).sum(), photos, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


class Training:
    """Networks, optimisers and progress: what a checkpoint holds."""

    def __init__(self, config: WPlusConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.model = Autoencoder(config).to(device)
        for name, value in self.model.decoder.named_parameters():
            value.requires_grad_(not name.endswith("noise.weight"))  # what varies should be in the codes
        rates = {"decoder": config.generator_rate, "encoder": config.encoder_rate}
        groups = [{"params": [p for p in getattr(self.model, part).parameters() if p.requires_grad],
                   "lr": rate, "full_rate": rate} for part, rate in rates.items()]  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-5)
        self.discriminator = Discriminator(config.channels).to(device) if config.adversarial else None
        self.judge_optimizer = None
        if self.discriminator is not None:
            rate = config.generator_rate
            groups = [{"params": list(self.discriminator.parameters()), "lr": rate, "full_rate": rate}]
            self.judge_optimizer = torch.optim.Adam(groups, betas=(0.0, 0.99))
        self.average = MovingAverage({"model": self.model}, config.ema_decay)
        self.progress = Progress()

    def step(self, pixel_values: Tensor, noise: Tensor, encoders: Sequence[TorchEncoder]) -> dict[str, float]:
        """One update; the named terms of its loss."""
        size = self.config.size_at(self.progress.step)
        is_grown = size == self.config.size_px
        with reduced_precision(pixel_values.device):
            made = self.model(pixel_values, noise, size)
        wanted = pixel_values if is_grown else interpolate(pixel_values, size=(size, size), mode="area")
        loss, said = reconstruction(made.float(), wanted, encoders if is_grown else (), self.config)
        if self.discriminator is not None and is_grown:
            fooled = softplus(-self.discriminator(made.float())).mean()
            loss = loss + self.config.adversarial * fooled
            said["fooled"] = fooled.item()
        if not loss.isfinite():
            raise TrainingError(f"the loss is {loss.item()} in step {self.progress.step}: {said}")
        loss.backward()
        self._update(self.optimizer, self.model)
        if self.discriminator is not None and is_grown:
            said["told_apart"] = self._judge_step(pixel_values, made.detach().float())
        self.progress.step += 1
        self.progress.images_seen += len(pixel_values)
        self.average.update({"model": self.model}, self.progress.step)
        return said

    def _judge_step(self, photos: Tensor, made: Tensor) -> float:
        """Teach the discriminator: ``softplus(-D(x)) + softplus(D(x')) + gamma/2 R1``."""
        assert self.discriminator is not None
        assert self.judge_optimizer is not None
        self.discriminator.zero_grad(set_to_none=True)  # of the model's step
        loss = softplus(-self.discriminator(photos)).mean() + softplus(self.discriminator(made)).mean()
        (loss + self.config.r1_gamma / 2 * r1_penalty(self.discriminator, photos)).backward()
        self._update(self.judge_optimizer, self.discriminator)
        return loss.item()

    def _update(self, optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> None:
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * self.config.rate(self.progress.step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def averaged(self) -> Autoencoder:
        """The model with averaged weights."""
        model = Autoencoder(self.config)
        model.load_state_dict(self.average.of("model"))
        return model.eval().requires_grad_(False)

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "discriminator": self.discriminator,
                 "judge_optimizer": self.judge_optimizer}  # fmt: skip
        return {name: part for name, part in parts.items() if part is not None}

    def state(self) -> dict[str, Any]:
        """Everything a run needs to go on."""
        said = {name: part.state_dict() for name, part in self._parts().items()}
        return {**said, "average": self.average.weights, "progress": vars(self.progress)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        own = self.average.weights
        self.average.weights = {name: value.to(own[name].device) for name, value in state["average"].items()}
        self.progress = Progress(**state["progress"])

    def begin_from(self, folder: Path) -> None:
        """Take over the averaged weights of another run; optimisers and progress begin anew.

        Raises:
            ConfigError: if there are none, or they are of other networks.
        """
        path = folder / f"{STATE}.pt"
        if not path.is_file():
            raise ConfigError(f"start: {folder} is no run of this program: it holds no {path.name}")
        weights = torch.load(path, map_location="cpu", weights_only=True)["average"]
        try:
            self.model.load_state_dict(
                {name.removeprefix("model/"): value for name, value in weights.items()}
            )
        except RuntimeError as error:
            raise ConfigError(
                f"start: the networks of {folder} differ: {str(error).splitlines()[1]}"
            ) from None
        self.average = MovingAverage({"model": self.model}, self.config.ema_decay)


def train(task: Training, run: TrainingRun, images: Tensor, device: torch.device) -> None:
    """The loop, from wherever the run stands to its last step."""
    config = task.config
    encoders = [
        load_encoder(name).torch_encoder().requires_grad_(False).to(device) for name in config.encoders
    ]
    while task.progress.step < config.steps:
        step = task.progress.step
        generator = step_generator(config.seed, step)
        rows = batch_rows(len(images), config.batch_size, step, config.seed)
        pixel_values = images[rows].float() / 127.5 - 1
        mirrored = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
        pixel_values = torch.where(mirrored, pixel_values.flip(-1), pixel_values).to(device)
        noise = config.vector_noise * torch.randn(len(rows), config.bottleneck, generator=generator)
        said = task.step(pixel_values, noise.to(device), encoders)
        if task.progress.step % 50 == 0:
            run.log(STATE, task.progress, said)
        if run.checkpoint_due(task.progress.step, config.steps):
            run.save(STATE, task.state())


@torch.no_grad()
def move_mean_code(model: Autoencoder, images: Tensor) -> Tensor:
    """The mean code (C,) of photos, and the encoder made to say offsets from it."""
    samples = images[:: max(1, len(images) // MEAN_CODE_PICTURES)].float() / 127.5 - 1
    codes = torch.cat([model.encoder(part) for part in samples.split(64)])
    mean = codes.mean(dim=(0, 1))
    model.encoder.to_codes.bias.sub_(mean.repeat(model.decoder.num_layers))
    return mean


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure the mean code, save."""
    arguments = program_arguments(
        WPlusConfig, __doc__ or "", argv, settings={"faces": "Parquet of portraits"}
    )
    if arguments.dry_run:
        return 0
    config = arguments.config
    torch.set_num_threads(config.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = TrainingRun(arguments.out, config)
    images = training_faces(config.faces).pictures(config.size_px)
    task = Training(config, device)
    if state := run.load(STATE):
        task.load(state)
    elif config.start is not None:
        task.begin_from(config.start)
    train(task, run, images, device)
    model = task.averaged()
    latent_avg = move_mean_code(model, images)
    crop = {"size_px": config.size_px, "template": "portrait", "mean": 127.5, "std": 127.5}
    card = WPlusCard(kind="compact", crop=crop, licence=config.licence, settings=dict(model.encoder.settings))
    whole = WPlusModel(model.encoder, model.decoder, latent_avg.expand(model.decoder.num_layers, -1).clone())
    write_wplus(run.folder / NAME, whole, card, dtype=torch.float16)
    print(f"saved {run.folder / NAME}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
