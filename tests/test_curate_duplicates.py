"""Copies of one picture are told from different pictures of one person, by real drawings of mini."""

import io
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from training_runs import nobodies

from idgen.synth.curate import COPY, CurationRules
from idgen.synth.duplicates import SHIFT_PX, SIDES_PX, THUMBNAIL_PX, WINDOW_PX, resemblance, thumbnail


def shifted(image: Image.Image, right: int, down: int) -> Image.Image:
    """What comes in at the border is the border."""
    room = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), mode="edge")
    return Image.fromarray(room[4 - down : 4 - down + image.height, 4 - right : 4 - right + image.width])


def cut(image: Image.Image, share: float, at: float = 0.5) -> Image.Image:
    side = round(image.width * share)
    corner = round((image.width - side) * at)
    box = (corner, corner, corner + side, corner + side)
    return image.crop(box).resize(image.size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 10, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same": lambda image: image,
    "mirrored": ImageOps.mirror,
    "one pixel to the right": lambda image: shifted(image, 1, 0),
    "one pixel to the left, one up": lambda image: shifted(image, -1, -1),
    "three pixels down": lambda image: shifted(image, 0, 3),
    "mirrored and shifted": lambda image: shifted(ImageOps.mirror(image), 1, -2),
    "cut to 95 %": lambda image: cut(image, 0.95),
    "cut to 90 % at a corner": lambda image: cut(image, 0.9, 0),
    "cut to 90 % at the other corner, mirrored": lambda image: ImageOps.mirror(cut(image, 0.9, 1)),
    "JPEG of quality 30": lambda image: jpeg(image, 30),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "without colour": lambda image: ImageEnhance.Color(image).enhance(0),
    "soft": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "noisy": noisy,
    "larger": lambda image: image.resize((512, 512), Image.Resampling.BICUBIC),
}


@pytest.fixture(scope="module")
def drawings() -> list[list[Image.Image]]:
    """Two people, three drawings each, of one prompt: as alike as different drawings can be."""
    return nobodies((5, 8), 3)


@pytest.mark.parametrize("change", COPIES)
def test_a_copy_is_found_whichever_of_the_two_came_first(
    drawings: list[list[Image.Image]], change: str
) -> None:
    for image in (drawings[0][0], drawings[1][0]):
        whole, copy = thumbnail(image), thumbnail(COPIES[change](image))
        assert min(resemblance(whole, [copy]), resemblance(copy, [whole])) > COPY


def test_different_drawings_of_one_person_are_no_copies(drawings: list[list[Image.Image]]) -> None:
    for own in drawings:
        for one, two in combinations(map(thumbnail, own), 2):
            assert resemblance(one, [two]) < COPY - 0.03


def test_the_most_alike_of_several_counts(drawings: list[list[Image.Image]]) -> None:
    first, *others = map(thumbnail, drawings[0])
    each = [resemblance(first, [other]) for other in others]
    assert resemblance(first, others) == pytest.approx(max(each), abs=1e-6)
    assert CurationRules().near_duplicate == COPY


def test_it_is_the_highest_correlation_of_any_view(drawings: list[list[Image.Image]]) -> None:
    """A plain loop over sizes, sides and shifts, by NumPy's own correlation."""
    one, two = thumbnail(drawings[0][0]), thumbnail(drawings[0][1])

    def relief(grey: np.ndarray) -> np.ndarray:
        room = np.pad(grey.astype(float), 7, mode="reflect")
        side = len(grey)
        flat = np.array([[room[y : y + 15, x : x + 15].mean() for x in range(side)] for y in range(side)])
        rest = grey - flat
        return np.array(
            [[rest[y : y + 2, x : x + 2].mean() for x in range(side - 1)] for y in range(side - 1)]
        )

    def window(values: np.ndarray, top: int, left: int) -> np.ndarray:
        span = 2 * WINDOW_PX
        return values[top : top + span : 2, left : left + span : 2][:WINDOW_PX, :WINDOW_PX].ravel()

    middle = (THUMBNAIL_PX - 2 * WINDOW_PX) // 2
    wanted, highest = window(relief(two), middle, middle), -1.0
    for side in SIDES_PX:
        values = relief(np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BILINEAR)))
        room = side - 2 * WINDOW_PX
        places = [place for place in range(room + 1) if abs(place - room // 2) <= SHIFT_PX]
        for view in (values, values[:, ::-1]):
            highest = max(
                highest,
                *(np.corrcoef(wanted, window(view, y, x))[0, 1] for y in places for x in places),
            )
    assert resemblance(one, [two]) == pytest.approx(highest, abs=1e-5)


def test_where_nothing_is_to_be_seen_there_is_no_copy(drawings: list[list[Image.Image]]) -> None:
    grey, dim = (thumbnail(Image.new("RGB", (64, 64), colour)) for colour in ("grey", "black"))
    assert resemblance(grey, [dim]) == resemblance(grey, [thumbnail(drawings[0][0])]) == 0
