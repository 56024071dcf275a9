"""Pictures without a face, made by procedure: what a detector is trained to leave alone.

Pictures are uint8 (S, S, 3) RGB. Everything depends on the generator alone.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from idgen.data.scenes import Portrait, ellipse_mask

Generator = np.random.Generator
SKIN = np.array(
    [[236, 188, 156], [198, 134, 102], [141, 85, 60], [92, 56, 40], [255, 219, 190]], dtype=np.float64
)


def colour(rng: Generator) -> tuple[int, int, int]:
    """Any colour, one in three of skin."""
    if rng.random() < 0.33:
        mixed = SKIN[rng.integers(len(SKIN))] * rng.uniform(0.7, 1.1) + rng.normal(0, 8, 3)
        return tuple(np.clip(mixed, 0, 255).astype(int).tolist())
    return tuple(rng.integers(0, 256, 3).tolist())


def _canvas(rng: Generator, size_px: int) -> Image.Image:
    """A gradient between four corner colours."""
    corners = np.array([colour(rng) for _ in range(4)], dtype=np.uint8).reshape(2, 2, 3)
    return Image.fromarray(corners).resize((size_px, size_px), Image.Resampling.BICUBIC)


def noise_octaves(rng: Generator, size_px: int) -> Image.Image:
    """Clouds: noise of several coarsenesses added up, grey or coloured."""
    total = np.zeros((size_px, size_px, 3), dtype=np.float32)
    channels = 3 if rng.random() < 0.5 else 1
    falloff = rng.uniform(0.4, 0.9)
    for octave in range(1, int(rng.integers(3, 8))):
        cells = np.clip(rng.normal(128, 60, (2**octave, 2**octave, channels)), 0, 255).astype(np.uint8)
        layer = Image.fromarray(np.broadcast_to(cells, (*cells.shape[:2], 3)).copy())
        layer = layer.resize((size_px, size_px), Image.Resampling.BICUBIC)
        total += (np.asarray(layer, dtype=np.float32) - 128) * falloff**octave
    base = np.asarray(_canvas(rng, size_px), dtype=np.float32)
    return Image.fromarray(np.clip(base + total * rng.uniform(0.3, 2.0), 0, 255).astype(np.uint8))


def shapes(rng: Generator, size_px: int) -> Image.Image:
    """Ellipses, rectangles, polygons and lines of every size."""
    image = _canvas(rng, size_px)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(5, 60)):
        extent = size_px * rng.uniform(0.01, 0.4)
        x, y = rng.uniform(0, size_px, 2)
        box = (x, y, x + extent * rng.uniform(0.3, 1.5), y + extent * rng.uniform(0.3, 1.5))
        kind = rng.integers(4)
        if kind == 0:
            draw.ellipse(box, fill=colour(rng))
        elif kind == 1:
            draw.rectangle(box, fill=colour(rng), outline=colour(rng))
        elif kind == 2:
            points = rng.normal((x, y), extent / 2, (int(rng.integers(3, 8)), 2))
            draw.polygon([tuple(p) for p in points], fill=colour(rng))
        else:
            draw.line((x, y, *rng.uniform(0, size_px, 2)), fill=colour(rng), width=int(rng.integers(1, 9)))
    return image


def stripes(rng: Generator, size_px: int) -> Image.Image:
    """Waves in two directions: stripes, checks, gratings."""
    axis = np.arange(size_px, dtype=np.float32)
    value = np.zeros((size_px, size_px), dtype=np.float32)
    for _ in range(rng.integers(1, 4)):
        angle, period = rng.uniform(0, np.pi), size_px * rng.uniform(0.01, 0.2)
        wave = np.sin((axis[None] * np.cos(angle) + axis[:, None] * np.sin(angle)) * 2 * np.pi / period)
        value += np.sign(wave) if rng.random() < 0.5 else wave
    share = ((value - value.min()) / (np.ptp(value) + 1e-6))[..., None]
    mixed = share * np.array(colour(rng)) + (1 - share) * np.array(colour(rng))
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def strokes(rng: Generator, size_px: int) -> Image.Image:
    """Lines of small bent strokes, like writing."""
    image = _canvas(rng, size_px)
    draw = ImageDraw.Draw(image)
    height = size_px * rng.uniform(0.01, 0.08)
    ink, y = colour(rng), height
    while y < size_px:
        x = rng.uniform(0, 4 * height)
        while x < size_px:
            points = rng.uniform(0, height, (int(rng.integers(2, 6)), 2)) * (0.6, 1.0) + (x, y)
            draw.line([tuple(p) for p in points], fill=ink, width=max(1, int(height / 7)))
            x += height * (0.8 if rng.random() < 0.8 else 1.6)
        y += height * rng.uniform(1.2, 2.5)
    return image


def blobs(rng: Generator, size_px: int) -> Image.Image:
    """Soft ovals of the colour of skin with dark spots at random places: like faces, but none."""
    image = noise_octaves(rng, size_px)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 7)):
        extent = size_px * rng.uniform(0.05, 0.5)
        x, y = rng.uniform(-0.1, 0.9, 2) * size_px
        skin = tuple(
            np.clip(SKIN[rng.integers(len(SKIN))] * rng.uniform(0.6, 1.1), 0, 255).astype(int).tolist()
        )
        draw.ellipse((x, y, x + extent, y + extent * rng.uniform(0.7, 1.6)), fill=skin)
        for _ in range(rng.integers(0, 6)):
            spot, (u, v) = extent * rng.uniform(0.03, 0.2), rng.uniform(0.1, 0.9, 2) * extent
            draw.ellipse((x + u, y + v, x + u + spot * 2, y + v + spot), fill=colour(rng))
    return image.filter(ImageFilter.GaussianBlur(size_px * rng.uniform(0, 0.01)))


def solids(rng: Generator, size_px: int) -> Image.Image:
    """Round bodies lit from one side, in rows or anywhere: balls, coins, cups, fruit."""
    image = np.asarray(_canvas(rng, size_px), dtype=np.float32).copy()
    axis = np.arange(size_px, dtype=np.float32)
    light = rng.normal(0, 1, 3)
    light = light / np.linalg.norm(light) * np.array([1, 1, 0.7])
    for _ in range(rng.integers(2, 16)):
        x, y = rng.uniform(0, size_px, 2)
        radii = size_px * rng.uniform(0.03, 0.3) * rng.uniform(0.7, 1.4, 2)
        u, v = (axis[None] - x) / radii[0], (axis[:, None] - y) / radii[1]
        depth = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
        shade = np.clip(
            rng.uniform(0.2, 0.6) + light[0] * u + light[1] * v + np.abs(light[2]) * depth, 0, 1.6
        )
        ring = 1 + rng.uniform(0, 0.4) * np.sin(np.hypot(u, v) * rng.uniform(3, 25))
        body = np.array(colour(rng)) * (shade * ring)[..., None]
        soft = np.clip(depth * rng.uniform(2, 12), 0, 1)[..., None]
        image = image * (1 - soft) + body * soft
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def folds(rng: Generator, size_px: int) -> Image.Image:
    """Noise bent by noise: cloth, wood, smoke, tissue."""
    flow = [np.asarray(noise_octaves(rng, size_px).convert("L"), dtype=np.float32) / 255 for _ in range(2)]
    axis = np.arange(size_px, dtype=np.float32) / size_px
    bent = axis[None] * rng.uniform(1, 12) + axis[:, None] * rng.uniform(1, 12) + flow[0] * rng.uniform(1, 8)
    share = (0.5 + 0.5 * np.sin(2 * np.pi * bent))[..., None] * flow[1][..., None] ** 0.5
    mixed = share * np.array(colour(rng)) + (1 - share) * np.array(colour(rng))
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def relief(rng: Generator, size_px: int) -> Image.Image:
    """Bumps lit from one side, everywhere or on discs: stone, plaster, craters, worn coins; mostly grey."""
    height = np.zeros((size_px, size_px), dtype=np.float32)
    for _ in range(rng.integers(1, 4)):
        cells = int(rng.integers(4, 60))
        layer = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
        height += np.asarray(layer.resize((size_px, size_px), Image.Resampling.BICUBIC)) * size_px / cells
    slope_y, slope_x = np.gradient(height)
    angle = rng.uniform(0, 2 * np.pi)
    shade = 0.5 + (slope_x * np.cos(angle) + slope_y * np.sin(angle)) * rng.uniform(0.1, 0.5)
    if rng.random() < 0.6:
        shade *= _discs(rng, size_px)
    tint = np.array(colour(rng)) if rng.random() < 0.3 else np.full(3, rng.uniform(90, 255))
    ground = np.asarray(_canvas(rng, size_px).convert("L"), dtype=np.float32)[..., None] * rng.uniform(0, 0.5)
    return Image.fromarray(np.clip(shade[..., None] * tint + ground, 0, 255).astype(np.uint8))


def _discs(rng: Generator, size_px: int) -> np.ndarray:
    """A mask (S, S) of discs in rows."""
    step = size_px * rng.uniform(0.08, 0.45)
    axis = np.arange(size_px, dtype=np.float32) + rng.uniform(0, step)
    place = (axis % step) / step - 0.5
    radius = np.hypot(place[None], place[:, None])
    return np.clip((rng.uniform(0.3, 0.5) - radius) * step / rng.uniform(1, 6), 0, 1)


def letters(rng: Generator, size_px: int) -> Image.Image:
    """Printed letters in lines."""
    image = _canvas(rng, size_px)
    draw = ImageDraw.Draw(image)
    height = float(rng.uniform(9, size_px / 6))
    font, ink, y = ImageFont.load_default(height), colour(rng), 0.0
    while y < size_px:
        text = "".join(
            chr(c) for c in rng.choice([32, 46, *range(48, 58), *range(65, 91), *range(97, 123)], 60)
        )
        draw.text((-rng.uniform(0, height), y), text, fill=ink, font=font)
        y += height * rng.uniform(1.0, 1.8)
    return image.rotate(rng.normal(0, 6), Image.Resampling.BILINEAR)


def mirrored(rng: Generator, size_px: int) -> Image.Image:
    """Any pattern with its mirror image: like a face it is symmetric, but it is none."""
    half = np.asarray((solids, folds, relief, noise_octaves, shapes)[rng.integers(5)](rng, size_px))
    count = int(rng.integers(1, 4)) * 2
    strip = half[: size_px - size_px % count, : size_px // count]
    joined = np.concatenate([strip, strip[:, ::-1]] * (count // 2), axis=1)
    return Image.fromarray(joined).resize((size_px, size_px), Image.Resampling.BILINEAR)


def without_faces(rng: Generator, size_px: int, portraits: list[Portrait]) -> Image.Image:
    """Portraits whose face is gone: hair, ears and neck around plain skin, noise or solids."""
    image = folds(rng, size_px) if rng.random() < 0.5 else noise_octaves(rng, size_px)
    for _ in range(rng.integers(1, 8)):
        portrait = portraits[rng.integers(len(portraits))]
        person = Image.fromarray(portrait.image)
        kind = rng.random()
        if kind < 0.4:
            cover = person.filter(ImageFilter.GaussianBlur(len(portrait.image) * 0.12))
        else:
            cover = (solids if kind < 0.7 else noise_octaves)(rng, len(portrait.image))
        oval = ellipse_mask(len(portrait.image), portrait.box, grow=rng.uniform(0.9, 1.1), feather=0.15)
        person.paste(cover, mask=Image.fromarray(oval))
        target = int(size_px * rng.uniform(0.08, 0.7))
        x, y = rng.integers(-target // 3, size_px - target // 3, 2)
        image.paste(person.resize((target, target), Image.Resampling.BILINEAR), (int(x), int(y)))
    return image


def face_scraps(rng: Generator, size_px: int, portraits: list[Portrait]) -> Image.Image:
    """Small pieces of portraits in wild order: skin, hair, an eye, a chin, but never a whole face."""
    image = noise_octaves(rng, size_px)
    for _ in range(rng.integers(4, 40)):
        portrait = portraits[rng.integers(len(portraits))]
        side = int(portrait.size_px * rng.uniform(0.2, 0.45))
        limit = len(portrait.image) - side
        left, top = rng.integers(0, limit, 2)
        piece = Image.fromarray(portrait.image[top : top + side, left : left + side])
        if rng.random() < 0.5:
            piece = piece.transpose(Image.Transpose(int(rng.integers(7))))
        target = int(size_px * rng.uniform(0.04, 0.4))
        piece = piece.resize((target, max(1, int(target * rng.uniform(0.6, 1.6)))), Image.Resampling.BILINEAR)
        x, y = rng.integers(-target // 2, size_px, 2)
        image.paste(piece, (int(x), int(y)))
    return image


def shuffled_faces(rng: Generator, size_px: int, portraits: list[Portrait]) -> Image.Image:
    """Portraits cut into tiles that change places, each on a spot of its own."""
    image = stripes(rng, size_px) if rng.random() < 0.3 else noise_octaves(rng, size_px)
    for _ in range(rng.integers(1, 6)):
        portrait = portraits[rng.integers(len(portraits))].image
        count = int(rng.integers(3, 6))
        side = len(portrait) // count
        tiles = portrait[: side * count, : side * count].reshape(count, side, count, side, 3).swapaxes(1, 2)
        order = rng.permutation(count * count)
        mixed = tiles.reshape(-1, side, side, 3)[order].reshape(count, count, side, side, 3).swapaxes(1, 2)
        target = int(size_px * rng.uniform(0.1, 0.6))
        piece = Image.fromarray(mixed.reshape(side * count, side * count, 3)).resize((target, target))
        x, y = rng.integers(-target // 3, size_px - target // 3, 2)
        image.paste(piece, (int(x), int(y)))
    return image


PLAIN: tuple[Callable[[Generator, int], Image.Image], ...] = (
    noise_octaves, shapes, stripes, strokes, blobs, solids, folds, letters, mirrored, relief,
)  # fmt: skip
WITH_PORTRAITS = (face_scraps, shuffled_faces, without_faces)


def background(rng: Generator, size_px: int, portraits: list[Portrait]) -> np.ndarray:
    """One picture without a face, of any kind; four of ten hold pieces of portraits."""
    if portraits and rng.random() < 0.4:
        image = WITH_PORTRAITS[rng.integers(len(WITH_PORTRAITS))](rng, size_px, portraits)
    else:
        image = PLAIN[rng.integers(len(PLAIN))](rng, size_px)
    return np.array(image)
