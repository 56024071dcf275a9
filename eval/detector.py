"""How well a detector finds faces: `python eval/detector.py --detector mini --out docs/detector.json`.

Real portraits of people that no part of mini has seen are pasted at 40 to 400 pixels onto pictures that
training does not know: photographs without faces of `skimage.data`, and patterns of other generators. A face
is found if a detection covers it with an intersection over union of at least 0.5. What is true is what YuNet
says about the clean portrait, on average. Then come 50 pictures without a face, and the astronaut's portrait.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from idgen.data.images import FaceTable, load_faces, split_people
from idgen.data.places import data_file
from idgen.data.scenes import (
    Placement,
    Portrait,
    agreed_portrait,
    ellipse_mask,
    paste,
    placed_box,
    placed_landmarks,
    square_mask,
)
from idgen.faces.boxes import iou
from idgen.faces.detect import Detector, Face, detectors
from idgen.faces.yunet import YunetDetector
from idgen.pixels import to_rgb

SEED = 20_26
IOU_BAR = 0.5
TEACHER_PX = (320, 448)  # a portrait of 128 with its margin, 1.7 and 2.3 times as large
FACE_PX = (40.0, 400.0)
SCENE_PX = (480, 800)
# Every picture of skimage.data that comes with the package and shows no person.
PHOTOS = (
    "brick", "cell", "chelsea", "checkerboard", "clock", "coffee", "coins", "colorwheel", "grass", "gravel",
    "horse", "hubble_deep_field", "immunohistochemistry", "logo", "microaneurysms", "moon", "page", "retina",
    "rocket", "shepp_logan_phantom", "text",
)  # fmt: skip
NUM_FACE_FREE = 50


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the bars are about."""

    detector: str
    num_scenes: int
    num_faces: int
    found: float  # share of the faces
    found_low: float  # lower end of its 95 % interval (Wilson 1927)
    landmark_error: float  # mean distance of the five landmarks, as a share of the distance of the eyes
    mean_iou: float
    false_in_scenes: int  # detections beside the pasted faces
    false_faces: int  # in the face-free pictures
    num_face_free: int
    astronaut_iou: float  # with YuNet's box
    milliseconds: float  # a scene
    found_by_size: dict[str, float]


# --- pictures without faces ---------------------------------------------------------------------------------


def photographs() -> list[Image.Image]:
    """The pictures of skimage.data without a person, 8-bit RGB."""
    pictures = []
    for name in PHOTOS:
        values = np.asarray(getattr(skimage.data, name)())
        if values.dtype != np.uint8:
            values = (np.clip(values.astype(np.float64), 0, 1) * 255).astype(np.uint8)
        pictures.append(to_rgb(Image.fromarray(values)))
    return pictures


def spectral(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Noise with the spectrum of natural pictures, amplitude 1 / f^a, coloured by a random mixture."""
    frequency = np.hypot(np.fft.fftfreq(size_px)[:, None], np.fft.rfftfreq(size_px)[None])
    frequency[0, 0] = 1
    amplitude = frequency ** -rng.uniform(0.8, 2.0)
    phases = rng.uniform(0, 2 * np.pi, (3, *frequency.shape))
    planes = np.fft.irfft2(amplitude * np.exp(1j * phases), s=(size_px, size_px))
    planes = (planes - planes.mean((1, 2), keepdims=True)) / planes.std((1, 2), keepdims=True)
    mixed = np.tensordot(rng.normal(0, 1, (3, 3)) + np.ones((3, 1)), planes, axes=1)
    return np.clip(mixed.transpose(1, 2, 0) * rng.uniform(15, 50) + rng.uniform(60, 200, 3), 0, 255).astype(
        np.uint8
    )


def cells(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Voronoi cells, shaded by the distance from their middles."""
    middles = rng.uniform(0, size_px, (int(rng.integers(8, 60)), 2)).astype(np.float32)
    axis = np.arange(size_px, dtype=np.float32)
    nearest, owner = np.full((size_px, size_px), np.inf, np.float32), np.zeros((size_px, size_px), int)
    for i, (x, y) in enumerate(middles):
        distance = np.hypot(axis[None] - x, axis[:, None] - y)
        owner = np.where(distance < nearest, i, owner)
        nearest = np.minimum(nearest, distance)
    shade = 1 - nearest / nearest.max() * rng.uniform(0, 0.9)
    return (rng.integers(0, 256, (len(middles), 3))[owner] * shade[..., None]).astype(np.uint8)


def julia(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """A Julia set of z^2 + c with c near the border of the Mandelbrot set, in a random palette."""
    angle = rng.uniform(0, 2 * np.pi)
    c = np.exp(1j * angle) / 2 - np.exp(2j * angle) / 4 + rng.normal(0, 0.02) + 1j * rng.normal(0, 0.02)
    axis = np.linspace(-1.5, 1.5, size_px) * rng.uniform(0.2, 1)
    z = axis[None] + 1j * axis[:, None]
    steps = np.zeros(z.shape, int)
    for _ in range(40):
        inside = np.abs(z) < 2
        z = np.where(inside, z * z + c, z)
        steps += inside
    palette = np.cumsum(rng.normal(0, 25, (41, 3)), axis=0) + rng.uniform(60, 200, 3)
    return np.clip(palette, 0, 255).astype(np.uint8)[steps]


def walks(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Piled traces of random walks on a plain ground, softened."""
    image = np.tile(rng.integers(0, 256, 3), (size_px, size_px, 1)).astype(np.float32)
    for _ in range(rng.integers(10, 80)):
        steps = rng.normal(0, rng.uniform(0.5, 3), (2, 2000))
        rows, columns = (np.cumsum(steps, axis=1) + rng.uniform(0, size_px, (2, 1))).astype(int) % size_px
        image[rows, columns] = rng.integers(0, 256, 3)
    for axis in (0, 1):
        image = (image + np.roll(image, 1, axis) + np.roll(image, -1, axis)) / 3
    return image.astype(np.uint8)


PATTERNS = (spectral, cells, julia, walks)


def photo_cut(rng: np.random.Generator, picture: Image.Image, size_px: int) -> np.ndarray:
    """A random part of a picture, at least half of its shorter side, scaled to the scene."""
    side = round(min(picture.size) * rng.uniform(0.5, 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
    part = picture.crop((left, top, left + side, top + side))
    return np.array(part.resize((size_px, size_px), Image.Resampling.BICUBIC))


def face_free(seed: int, photos: list[Image.Image]) -> list[np.ndarray]:
    """The 50 pictures without a face: every photograph whole, the rest patterns."""
    rng = np.random.default_rng([seed, 1])
    patterns = [PATTERNS[i % len(PATTERNS)](rng, 640) for i in range(NUM_FACE_FREE - len(photos))]
    return [np.array(photo) for photo in photos] + patterns


# --- scenes -------------------------------------------------------------------------------------------------


def portraits(table: FaceTable, teachers: Sequence[Detector], count: int, seed: int) -> list[Portrait]:
    """Portraits of random rows in which every teacher sees a face, with their box and landmarks."""
    rows = np.random.default_rng([seed, 0]).permutation(len(table))
    found: list[Portrait] = []
    for row in rows:
        portrait = agreed_portrait(table.images[row], teachers)
        if portrait is not None:
            found.append(portrait)
        if len(found) == count:
            break
    return found


def scene(
    rng: np.random.Generator, portrait: Portrait, photos: list[Image.Image]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture with one whole face: (S, S, 3) uint8, its box (4,) and its landmarks (5, 2)."""
    size_px = int(rng.integers(*SCENE_PX))
    if rng.random() < 0.5:
        picture = photo_cut(rng, photos[rng.integers(len(photos))], size_px)
    else:
        picture = PATTERNS[rng.integers(len(PATTERNS))](rng, size_px)
    face_px = math.exp(rng.uniform(*np.log(FACE_PX)))
    placement = Placement(
        scale=face_px / portrait.size_px,
        angle_rad=math.radians(rng.uniform(-25, 25)),
        centre=tuple(rng.uniform(0.6 * face_px, size_px - 0.6 * face_px, 2).tolist()),
    )
    if rng.random() < 0.5:
        mask = square_mask(len(portrait.image), feather_px=rng.uniform(0, 12))
    else:
        grow, feather = rng.uniform(1.05, 1.3), rng.uniform(0.02, 0.3)
        mask = ellipse_mask(len(portrait.image), portrait.box, grow=grow, feather=feather)
    paste(picture, portrait, placement, mask)
    light = (np.arange(256) / 255) ** rng.uniform(0.7, 1.5) * rng.uniform(0.6, 1.1)
    picture = np.clip(light * 255, 0, 255).astype(np.uint8)[picture]
    return picture, placed_box(portrait, placement), placed_landmarks(portrait, placement)


# --- numbers ------------------------------------------------------------------------------------------------


def best_match(faces: list[Face], box: np.ndarray) -> tuple[Face | None, float]:
    """The detection that covers a box best, and its intersection over union."""
    if not faces:
        return None, 0.0
    overlaps = iou(np.stack([face.box for face in faces]), box[None])[:, 0]
    return faces[int(overlaps.argmax())], float(overlaps.max())


def wilson_low(successes: int, count: int) -> float:
    """Lower end of the 95 % score interval of a share (Wilson 1927)."""
    z, share = 1.96, successes / count
    middle = share + z * z / (2 * count)
    return (middle - z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))) / (
        1 + z * z / count
    )


def measure(
    detector: Detector, table: FaceTable, teacher_path: Path, *, num_scenes: int, seed: int = SEED
) -> Result:
    """The whole protocol for one detector."""
    photos = photographs()
    teachers = [YunetDetector(teacher_path, size_px=size_px) for size_px in TEACHER_PX]
    people = portraits(table, teachers, num_scenes, seed)
    overlaps, errors, sizes, num_false, seconds = [], [], [], 0, 0.0
    for i in range(num_scenes):
        picture, box, landmarks = scene(np.random.default_rng([seed, 2, i]), people[i % len(people)], photos)
        began = time.perf_counter()
        faces = detector.detect(picture)
        seconds += time.perf_counter() - began
        face, overlap = best_match(faces, box)
        is_found = face is not None and overlap >= IOU_BAR
        overlaps.append(overlap)
        sizes.append(math.sqrt((box[2:] - box[:2]).prod()))
        num_false += len(faces) - is_found
        if face is not None and is_found:
            eyes = np.linalg.norm(landmarks[0] - landmarks[1])
            errors.append(np.linalg.norm(face.landmarks - landmarks, axis=1).mean() / eyes)
    hits = np.array(overlaps) >= IOU_BAR
    astronaut = skimage.data.astronaut()
    reference = YunetDetector(teacher_path).detect(astronaut)[0]
    empty = face_free(seed, photos)
    return Result(
        detector=detector.name,
        num_scenes=num_scenes,
        num_faces=len(hits),
        found=float(hits.mean()),
        found_low=wilson_low(int(hits.sum()), len(hits)),
        landmark_error=float(np.mean(errors)) if errors else math.nan,
        mean_iou=float(np.array(overlaps)[hits].mean()) if hits.any() else math.nan,
        false_in_scenes=num_false,
        false_faces=sum(len(detector.detect(picture)) for picture in empty),
        num_face_free=len(empty),
        astronaut_iou=best_match(detector.detect(astronaut), reference.box)[1],
        milliseconds=1000 * seconds / num_scenes,
        found_by_size=by_size(np.array(sizes), hits),
    )


def by_size(sizes: np.ndarray, hits: np.ndarray) -> dict[str, float]:
    """Share found in each octave of face size."""
    edges = (0, 56, 80, 113, 160, 226, 320, 10_000)
    groups = {f"{low}-{high} px": (sizes >= low) & (sizes < high) for low, high in pairwise(edges)}
    return {name: round(float(hits[rows].mean()), 4) for name, rows in groups.items() if rows.any()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one detector and print the numbers."""
    parser = argparse.ArgumentParser(description="How well a detector finds faces.")
    parser.add_argument("--detector", default="mini", help="mini, scrfd, yunet or insightface")
    parser.add_argument("--path", help="ONNX file or pack, for the detectors that take one")
    parser.add_argument("--scenes", type=int, default=1000, help="number of scenes (1000)")
    parser.add_argument("--people", choices=("test", "held-out"), default="test", help="test (for tables)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(argv)
    settings = {"path": options.path} if options.path else {}
    if options.people == "test":
        table = load_faces(data_file(None, "IDGEN_FACES", "faces_test.parquet"))
    else:
        table = split_people(load_faces(data_file(None, "IDGEN_FACES", "faces_train.parquet")))[1]
    result = measure(
        detectors.build(options.detector, **settings), table, data_file(None, "IDGEN_WEIGHTS", "yunet.onnx"),
        num_scenes=options.scenes, seed=options.seed,
    )  # fmt: skip
    text = json.dumps(asdict(result), indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
