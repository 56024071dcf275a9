"""What new people are drawn from: distributions of real people, the sphere, files, mixtures of these.

Shapes: N given people, D width of a face vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from idgen import mini
from idgen.errors import ConfigError, EncoderMismatchError, IdentityError
from idgen.registry import Registry
from idgen.synth.gaussian import load_people
from idgen.synth.mises_fisher import load_mises_fisher
from idgen.synth.vectors import read_vectors, unit_rows

OPPOSITE = 1e-6  # 1 + cos below which two vectors have no shortest way between them


class Source(Protocol):
    """Unit vectors as one encoder would give them, drawn at random."""

    @property
    def encoder(self) -> str:
        """Id of the encoder whose vectors these are."""
        ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    def sample(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """(num, D) float32 of unit length; the same for the same state of ``rng``."""
        ...


sources: Registry[Source] = Registry("source of identities")
"""Filled here: "pca", "vmf", "uniform", "file", "mixture" and "interpolation"."""


@dataclass(frozen=True, kw_only=True)
class UniformSphere:
    """Every direction alike: no knowledge of faces at all, as in IDiff-Face (Boutros et al. 2023)."""

    encoder: str
    dim: int

    def sample(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """(num, D) float32 of unit length."""
        drawn = rng.standard_normal((num, self.dim))
        return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


class GivenVectors:
    """People who are there already: rows of a file.

    `separated_people` goes through them in their order; as a part of a mixture they are drawn at random.

    Args:
        encoder: id of the encoder whose vectors these are.
        vectors: (N, D) of unit length.

    Raises:
        IdentityError: if there is no row, or one is not of unit length.
    """

    def __init__(self, *, encoder: str, vectors: np.ndarray) -> None:
        self.encoder = encoder
        self.vectors = unit_rows(vectors, "given people")
        if not len(self.vectors):
            raise IdentityError("there is no given person: the file holds no row")

    @property
    def dim(self) -> int:
        """D."""
        return self.vectors.shape[1]

    def sample(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """(num, D) of the rows, each drawn from all."""
        return np.asarray(self.vectors[rng.integers(len(self.vectors), size=num)])

    def pairs(self, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Twice (num, D): two different rows each.

        Raises:
            IdentityError: if there is only one row.
        """
        if len(self.vectors) < 2:
            raise IdentityError("between given people needs two of them at least, got one")
        first = rng.integers(len(self.vectors), size=num)
        second = (first + rng.integers(1, len(self.vectors), size=num)) % len(self.vectors)
        return np.asarray(self.vectors[first]), np.asarray(self.vectors[second])


class Mixture:
    """Each sample is drawn from one of several sources.

    Args:
        parts: at least one, all of one encoder.
        weights: one a part, positive; their sum need not be 1.

    Raises:
        ConfigError: for no part, or unusable weights.
        EncoderMismatchError: if the parts are not of one encoder and width.
    """

    def __init__(self, parts: Sequence[Source], weights: Sequence[float]) -> None:
        self.parts = tuple(parts)
        shares = np.asarray(weights, dtype=np.float64)
        if not self.parts or shares.shape != (len(self.parts),):
            raise ConfigError(
                f"a mixture needs a weight a part, got {len(self.parts)} parts, {shares.size} weights"
            )
        if not (np.isfinite(shares) & (shares > 0)).all():
            raise ConfigError(f"weights of a mixture must be positive and finite, got {shares.tolist()}")
        self.weights = shares / shares.sum()
        kinds = sorted({f"{part.encoder} ({part.dim}-d)" for part in self.parts})
        if len(kinds) > 1:
            raise EncoderMismatchError(f"a mixture must be of one encoder, got {' and '.join(kinds)}")

    @property
    def encoder(self) -> str:
        """Id of the encoder of all parts."""
        return self.parts[0].encoder

    @property
    def dim(self) -> int:
        """D."""
        return self.parts[0].dim

    def sample(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """(num, D) float32 of unit length."""
        part_of = rng.choice(len(self.parts), size=num, p=self.weights)
        drawn = np.empty((num, self.dim), np.float32)
        for number, part in enumerate(self.parts):
            own = part_of == number
            drawn[own] = part.sample(int(own.sum()), rng)
        return drawn


class Interpolation:
    """People on the way between two others: two samples of a source, or two different given people.

    Args:
        ends: where the two come from.
        between: how far on the way, least and most; drawn evenly. 0 and 1 are the two themselves.

    Raises:
        ConfigError: if ``between`` is not ``0 <= least <= most <= 1``.
    """

    def __init__(self, ends: Source, between: tuple[float, float] = (0.0, 1.0)) -> None:
        if not 0 <= between[0] <= between[1] <= 1:
            raise ConfigError(f"between must be two numbers, 0 <= least <= most <= 1, got {between}")
        self.ends, self.between = ends, between

    @property
    def encoder(self) -> str:
        """Id of the encoder of both ends."""
        return self.ends.encoder

    @property
    def dim(self) -> int:
        """D."""
        return self.ends.dim

    def sample(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """(num, D) float32 of unit length."""
        if isinstance(self.ends, GivenVectors):
            first, second = self.ends.pairs(num, rng)
        else:
            first, second = self.ends.sample(num, rng), self.ends.sample(num, rng)
        return slerp(first, second, rng.uniform(*self.between, size=num))


def slerp(first: np.ndarray, second: np.ndarray, way: np.ndarray) -> np.ndarray:
    """Points on the shorter great circle between unit vectors, at even speed.

    ``(sin((1 - t) w) a + sin(t w) b) / sin(w)`` with w the angle between a and b (Shoemake 1985, "Animating
    rotation with quaternion curves", https://doi.org/10.1145/325334.325242, sec. 3.3).

    Args:
        first: (N, D) a.
        second: (N, D) b.
        way: (N,) t in [0, 1].

    Returns:
        (N, D) float32 of unit length.

    Raises:
        IdentityError: if two vectors are opposite: there are many ways between them.
    """
    a, b, t = first.astype(np.float64), second.astype(np.float64), way[:, None]
    cosine = np.einsum("nd,nd->n", a, b)
    if len(cosine) and cosine.min() < -1 + OPPOSITE:
        raise IdentityError(f"vectors {int(cosine.argmin())} are opposite: no shortest way between them")
    # The angle from the chord: the arc cosine loses half its digits between neighbours.
    angle = 2 * np.arcsin(np.minimum(np.linalg.norm(a - b, axis=1) / 2, 1))[:, None]
    # np.sinc(x) is sin(pi x) / (pi x), and 1 at 0: two equal vectors have themselves between them
    point = (1 - t) * np.sinc((1 - t) * angle / np.pi) * a + t * np.sinc(t * angle / np.pi) * b
    return (point / np.linalg.norm(point, axis=1, keepdims=True)).astype(np.float32)


# --- by name ----------------------------------------------------------------------------------------------


def load_source(spec: str, *, encoder: str, dim: int) -> Source:
    """The source that a command line means.

    Args:
        spec: ``pca`` (mini's people) or ``pca:FILE``, ``vmf:FILE``, ``uniform``, ``file:FILE``,
            ``interpolation:SPEC`` (between samples of another source), or ``mixture:WEIGHT*SPEC,...`` such
            as ``mixture:0.8*pca,0.2*uniform``, of sources that are no mixtures themselves.
        encoder: id of the encoder in use, which the source must be of.
        dim: its D.

    Raises:
        UnknownNameError: if there is no such source.
        ConfigError: if a file or a weight is left out.
        IdentityError: if a file is missing, damaged, or something else.
        EncoderMismatchError: if it is of another encoder; both are named.
    """
    name, _, rest = spec.partition(":")
    source = sources.build(name, rest=rest, encoder=encoder, dim=dim)
    if (source.encoder, source.dim) != (encoder, dim):
        raise EncoderMismatchError(
            f"the source {spec!r} gives vectors of {source.encoder} ({source.dim}-d), wanted are those of "
            f"{encoder} ({dim}-d). `idgen train people --encoder SPEC --out FILE` fits one to that encoder"
        )
    return source


def _file(name: str, rest: str) -> Path:
    if not rest:
        raise ConfigError(f"the source {name} needs its file: {name}:FILE")
    return Path(rest).expanduser()


@sources.register("pca")
def _pca(*, rest: str, encoder: str, dim: int) -> Source:
    return load_people(_file("pca", rest) if rest else mini.PEOPLE)


@sources.register("vmf")
def _vmf(*, rest: str, encoder: str, dim: int) -> Source:
    return load_mises_fisher(_file("vmf", rest))


@sources.register("uniform")
def _uniform(*, rest: str, encoder: str, dim: int) -> Source:
    if rest:
        raise ConfigError(f"the source uniform takes nothing, got uniform:{rest}")
    return UniformSphere(encoder=encoder, dim=dim)


@sources.register("file")
def _given(*, rest: str, encoder: str, dim: int) -> Source:
    return GivenVectors(encoder=encoder, vectors=read_vectors(_file("file", rest), encoder=encoder)[0])


@sources.register("interpolation")
def _interpolation(*, rest: str, encoder: str, dim: int) -> Source:
    if not rest:
        raise ConfigError("the source interpolation needs another one: interpolation:SPEC")
    return Interpolation(load_source(rest, encoder=encoder, dim=dim))


def _refuse_mixture(spec: str, mixture: str) -> None:
    """Parts of a mixture within would be taken for parts of this one: commas do not say whose they are."""
    while spec.startswith("interpolation:"):
        spec = spec.removeprefix("interpolation:")
    if spec.partition(":")[0] == "mixture":
        raise ConfigError(
            f"a mixture holds no other one, got mixture:{mixture}; give all its parts side by side, each "
            "with the product of its weights"
        )


@sources.register("mixture")
def _mixture(*, rest: str, encoder: str, dim: int) -> Source:
    parts, weights = [], []
    for text in rest.split(","):
        weight, star, spec = text.strip().partition("*")
        try:
            weights.append(float(weight) if star else float("nan"))
        except ValueError:
            weights.append(float("nan"))
        if np.isnan(weights[-1]):
            raise ConfigError(f"a mixture is mixture:WEIGHT*SPEC,WEIGHT*SPEC; there stands {text!r}")
        _refuse_mixture(spec, rest)
        parts.append(load_source(spec, encoder=encoder, dim=dim))
    return Mixture(parts, weights)
