"""Photos of people as a training set: faces found and embedded, pictures cut, latents computed, each once.

Shapes: N pictures, D width of a face vector, C channels, h and w of the latents, L layers and W width of a
W+ code.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from safetensors.numpy import load_file, save
from torch import Tensor

from idgen.data.pictures import Picture, batches
from idgen.diffusion.latents import Latents, encode_latents, weights_sha256
from idgen.encoders.base import FaceEncoder
from idgen.encoders.gallery import CROP_PX, Gallery, embed_pictures
from idgen.encoders.wplus import WPlusEncoder
from idgen.errors import FaceNotFoundError, ImageError
from idgen.faces.align import ARCFACE_TEMPLATE
from idgen.faces.detect import Detector
from idgen.faces.framing import Framing, Kind
from idgen.identity import Feature, find_outliers, mean_similarity
from idgen.pixels import to_tensor
from idgen.storage import write_bytes

PIECE = 16  # pictures encoded and kept at once: of 512 pixels they fit beside a model
LISTED = 10  # names in a message
TWO_PEOPLE_RATIO = 0.5  # measured: see find_second_person
SPLIT_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Portraits:
    """Training pictures.

    Attributes:
        names: of the pictures, N.
        people: names of the people.
        person: (N,) which of ``people`` each shows.
        prompts: what is known to be in each picture, in words; empty where nothing is.
        id_embedding: (N, D) face vector, zero where no face was found.
        landmarks: (N, 5, 2) in pixels of the cut picture, NaN likewise.
        latents: of the cut pictures.
        codes: (N, L, W) W+ codes, zero where no face was found; None where the studio reads none.
        seen_embedding: (N, E) face vector by the studio's second encoder; None where it has none.
        skipped: names of pictures that cannot be used.
    """

    names: tuple[str, ...]
    people: tuple[str, ...]
    person: Tensor
    prompts: tuple[str, ...]
    id_embedding: Tensor
    landmarks: Tensor
    latents: Latents
    codes: Tensor | None = None
    seen_embedding: Tensor | None = None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_face(self) -> Tensor:
        """(N,) whether a face was found."""
        return self.id_embedding.any(dim=1)

    def subset(self, rows: Sequence[int]) -> "Portraits":
        """The training set of these rows."""
        index = torch.tensor(rows, dtype=torch.long)
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            prompts=tuple(self.prompts[row] for row in rows),
            person=self.person[index],
            id_embedding=self.id_embedding[index],
            landmarks=self.landmarks[index],
            latents=Latents(self.latents.mean[index], self.latents.std[index]),
            codes=None if self.codes is None else self.codes[index],
            seen_embedding=None if self.seen_embedding is None else self.seen_embedding[index],
        )


@dataclass(frozen=True, kw_only=True)
class Studio:
    """What photos are looked at with and cut for.

    Attributes:
        detector: finds the faces.
        encoder: describes them.
        vae: of the model that is trained.
        framing: how pictures are cut.
        wplus: describes them by codes that can be edited, where those are wanted.
        second: describes them too: whom identity terms compare with, where another encoder sees for them.
        store: folder that keeps what was computed, each piece under a name that stands for everything that it
            depends on.
        landmark_noise: standard deviation of what is added to the landmarks before a code is read, in
            distances of the eyes; a detector scatters by 0.085, and codes should mean the same to an
            adapter wherever it puts the eyes.
    """

    detector: Detector
    encoder: FaceEncoder
    vae: AutoencoderKL
    framing: Framing
    store: Path
    wplus: WPlusEncoder | None = None
    second: FaceEncoder | None = None
    landmark_noise: float = 0.0

    @property
    def encoders(self) -> list[FaceEncoder]:
        """One or both."""
        return [self.encoder] if self.second is None else [self.encoder, self.second]

    def framed(self, kind: Kind) -> "Studio":
        """The same, cutting pictures another way."""
        return replace(self, framing=replace(self.framing, kind=kind))


def read_portraits(
    pictures: Sequence[Picture],
    studio: Studio,
    *,
    aligned: bool = False,
    faces_needed: bool = True,
    skip_bad: bool = False,
) -> Portraits:
    """Pictures as a training set; those that cannot be used are listed, and left out on request.

    Args:
        pictures: any number.
        studio: what they are looked at with.
        aligned: they are aligned already: 112 pixels, or 128 with 8 pixels around the crop.
        faces_needed: whether a picture without a face is a bad one.
        skip_bad: leave out pictures that do not open or lack a face, instead of refusing them all.

    Raises:
        ImageError: if files are no pictures; all are listed.
        FaceNotFoundError: if faces are needed and missing, or no picture is left; all such are listed.
    """
    good, unreadable = _readable(pictures, studio, aligned=aligned)
    if unreadable and not skip_bad:
        raise ImageError(
            f"{len(unreadable)} of {len(pictures)} files are no pictures that can be read: "
            f"{_listed(unreadable)}; remove them, or leave them out with --skip-bad"
        )
    gallery = embed_pictures(
        good, studio.detector, studio.encoders, store=studio.store / "faces", aligned=aligned
    )
    faceless = [picture.name for picture, found in zip(good, gallery.found, strict=True) if not found]
    if faceless and faces_needed and not skip_bad:
        raise FaceNotFoundError(
            f"no face found in {len(faceless)} of {len(pictures)} pictures: {_listed(faceless)}; "
            "remove them, or leave them out with --skip-bad"
        )
    rows = np.flatnonzero(gallery.found) if faces_needed else np.arange(len(good))
    if not len(rows):
        raise FaceNotFoundError(
            f"none of the {len(pictures)} pictures can be used: {_listed([*unreadable, *faceless])}"
        )
    kept = [good[row] for row in rows]
    latents, landmarks, codes = _cut_and_encode(kept, _landmarks(kept, gallery.subset(rows), aligned), studio)
    people = sorted({picture.identity for picture in kept})
    return Portraits(
        names=tuple(picture.name for picture in kept),
        people=tuple(people),
        person=torch.tensor([people.index(picture.identity) for picture in kept], dtype=torch.long),
        prompts=tuple(picture.prompt for picture in kept),
        id_embedding=torch.from_numpy(gallery.vectors[studio.encoder.id][rows]),
        landmarks=landmarks,
        latents=latents,
        codes=codes,
        seen_embedding=(
            None if studio.second is None else torch.from_numpy(gallery.vectors[studio.second.id][rows])
        ),
        skipped=(*unreadable, *(faceless if faces_needed else ())),
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _readable(
    pictures: Sequence[Picture], studio: Studio, *, aligned: bool
) -> tuple[list[Picture], list[str]]:
    """The pictures that open, and the names of the others; looked at one by one only where one fails."""
    try:
        embed_pictures(
            pictures, studio.detector, studio.encoders, store=studio.store / "faces", aligned=aligned,
            label="looking for faces",
        )  # fmt: skip
        return list(pictures), []
    except ImageError:
        good, bad = [], []
        for picture in pictures:
            try:
                picture.open()
                good.append(picture)
            except ImageError:
                bad.append(picture.name)
        if not bad:  # they open; what is wrong is something else, such as the size of aligned pictures
            raise
        return good, bad


def _landmarks(pictures: Sequence[Picture], gallery: Gallery, aligned: bool) -> np.ndarray:
    """(N, 5, 2) in pixels of the pictures as they are."""
    if not aligned:
        return gallery.landmarks
    template = ARCFACE_TEMPLATE.numpy()
    return np.stack([template + (picture.open().width - CROP_PX) / 2 for picture in pictures])


def _cut_and_encode(
    pictures: Sequence[Picture], landmarks: np.ndarray, studio: Studio
) -> tuple[Latents, Tensor, Tensor | None]:
    from tqdm import tqdm

    common = f"{weights_sha256(studio.vae)} {studio.vae.dtype} {studio.framing}"
    if studio.wplus is not None:
        common += f" {studio.wplus.id} {studio.landmark_noise}"
    parts, moved, codes = [], [], []
    with tqdm(total=len(pictures), desc="computing latents", unit="picture", disable=None) as bar:
        for start, piece in batches(tuple(pictures), PIECE):
            points = landmarks[start : start + len(piece)]
            arrays = _kept_piece(piece, points, studio, common)
            parts.append(Latents(torch.from_numpy(arrays["mean"]), torch.from_numpy(arrays["std"])))
            moved.append(torch.from_numpy(arrays["landmarks"]))
            codes += [torch.from_numpy(arrays["codes"])] if "codes" in arrays else []
            bar.update(len(piece))
    return Latents.joined(parts), torch.cat(moved), torch.cat(codes) if codes else None


def _kept_piece(
    pictures: Sequence[Picture], landmarks: np.ndarray, studio: Studio, common: str
) -> dict[str, np.ndarray]:
    key = hashlib.sha256(common.encode() + landmarks.tobytes())
    for picture in pictures:
        key.update(hashlib.sha256(picture.read_bytes()).digest())
    path = studio.store / "latents" / f"{key.hexdigest()[:24]}.safetensors"
    if path.exists():
        return load_file(path)
    cuts = [studio.framing.cut(p.open(), points) for p, points in zip(pictures, landmarks, strict=True)]
    latents = encode_latents(studio.vae, torch.stack([to_tensor(image) for image, _ in cuts]))
    arrays = {"mean": latents.mean.numpy(), "std": latents.std.numpy(),
              "landmarks": np.stack([points for _, points in cuts]).astype(np.float32)}  # fmt: skip
    if studio.wplus is not None:
        scattered = _scattered(pictures, landmarks, studio.landmark_noise)
        arrays["codes"] = read_codes([p.open() for p in pictures], scattered, studio.wplus)
    # safetensors writes the numbers of an array in the order of memory, whatever its strides say
    arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(arrays))
    return arrays


def _scattered(pictures: Sequence[Picture], landmarks: np.ndarray, noise: float) -> np.ndarray:
    """Landmarks (N, 5, 2) with noise that depends on the picture alone."""
    eyes = np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=-1)
    seeds = [int(hashlib.sha256(picture.read_bytes()).hexdigest()[:16], 16) for picture in pictures]
    drawn = np.stack([np.random.default_rng(seed).standard_normal((5, 2)) for seed in seeds])
    return (landmarks + noise * eyes[:, None, None] * drawn).astype(np.float32)


def read_codes(images: Sequence[Image.Image], landmarks: np.ndarray, wplus: WPlusEncoder) -> np.ndarray:
    """W+ codes (N, L, W) of the faces in pictures; zero where the landmarks (N, 5, 2) are not known."""
    codes = np.zeros((len(images), wplus.num_layers, wplus.style_dim), dtype=np.float32)
    rows = np.flatnonzero(np.isfinite(landmarks).all(axis=(1, 2))).tolist()
    if rows:
        crops = torch.stack([wplus.cut(images[row], landmarks[row]) for row in rows])
        codes[rows] = wplus.encode(crops.clamp(0, 1)).numpy()
    return codes


def code_of(picture: Picture, studio: Studio, wplus: WPlusEncoder, *, aligned: bool) -> Feature:
    """The W+ code of the face in a picture.

    Raises:
        FaceNotFoundError: if there is none.
    """
    gallery = embed_pictures([picture], studio.detector, [], aligned=aligned)
    if not gallery.found[0]:
        raise FaceNotFoundError(f"no face found in {picture.name}")
    landmarks = _landmarks([picture], gallery, aligned)
    return wplus.feature(torch.from_numpy(read_codes([picture.open()], landmarks, wplus)[0]))


def cut_pictures(pictures: Sequence[Picture], studio: Studio) -> list[Image.Image]:
    """A few pictures as the model will see them, for a sheet; those without a face are left out."""
    gallery = embed_pictures(pictures, studio.detector, [])
    shown = zip(pictures, gallery.landmarks, gallery.found, strict=True)
    return [studio.framing.cut(picture.open(), points)[0] for picture, points, found in shown if found]


def find_second_person(vectors: np.ndarray) -> np.ndarray:
    """Which of the unit face vectors (N, D) of a folder show somebody else than most of them, (N,) of bool.

    The vectors are split around the least similar pair (spherical k-means, Dhillon and Modha 2001,
    https://doi.org/10.1023/A:1007612920971): two people, if the mean cosine across is below
    `TWO_PEOPLE_RATIO` of the mean cosine within. Where it is not, single strangers are looked for as
    `idgen.identity.fuse` does. Of two photos nothing can be said.

    Measured with mini's recogniser on 34 people of the tenth of the training people set aside, 300 draws
    each: two people (1 + 4, 2 + 2, 2 + 4, 3 + 3, 3 + 7, 5 + 5 photos) are found in 97 to 100 % of the draws,
    with the right groups in 95 to 98 %; 4, 6, 8 and 10 photos of one person raise an alarm in 2, 3, 6 and
    9 %.
    """
    is_second = _split(vectors) if len(vectors) > 3 else None
    return find_outliers(vectors) if is_second is None else is_second


def _split(vectors: np.ndarray) -> np.ndarray | None:
    """The smaller of two groups; None where these are not two people, or one of them is a single photo."""
    cosines = vectors @ vectors.T
    first, second = np.unravel_index(cosines.argmin(), cosines.shape)
    is_second = cosines[second] > cosines[first]
    for _ in range(SPLIT_ROUNDS):
        if min(is_second.sum(), (~is_second).sum()) < 2:
            return None
        towards_first, towards_second = (
            vectors @ (mean / np.linalg.norm(mean))
            for mean in (vectors[~is_second].mean(axis=0), vectors[is_second].mean(axis=0))
        )
        is_second = towards_second > towards_first
    if min(is_second.sum(), (~is_second).sum()) < 2:
        return None
    across = cosines[~is_second][:, is_second].mean()
    within = np.concatenate([mean_similarity(vectors[~is_second]), mean_similarity(vectors[is_second])])
    if across >= TWO_PEOPLE_RATIO * within.mean():
        return None
    return is_second if 2 * is_second.sum() <= len(vectors) else ~is_second
