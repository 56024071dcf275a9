"""Decoding of every kind of file that a user may hand in, and conversions between pictures and tensors."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image

from idgen.errors import ImageError
from idgen.pixels import (
    MAX_PIXELS,
    load_image,
    rgb_to_bgr,
    to_array,
    to_image,
    to_pil,
    to_pixel_values,
    to_rgb,
    to_tensor,
)


def picture(width: int = 24, height: int = 16) -> np.ndarray:
    """A picture without symmetry: red grows to the right, green downwards, the top left corner is blue."""
    values = np.zeros((height, width, 3), np.uint8)
    values[..., 0] = np.linspace(0, 255, width)[None]
    values[..., 1] = np.linspace(0, 255, height)[:, None]
    values[: height // 4, : width // 4, 2] = 255
    return values


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [("png", 0), ("webp", 12), ("bmp", 0), ("tiff", 0), ("jpg", 12)]
)
def test_ordinary_formats_give_rgb(tmp_path: Path, suffix: str, tolerance: int) -> None:
    path = tmp_path / f"a.{suffix}"
    rows, columns = np.mgrid[:64, :96] / 96  # smooth, so that lossy formats stay close
    smooth = (np.dstack([rows, columns, rows * columns]) * 255).astype(np.uint8)
    Image.fromarray(smooth).save(path, quality=95)
    loaded = load_image(path)
    assert loaded.mode == "RGB"
    assert np.abs(np.asarray(loaded).astype(int) - smooth).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(tmp_path: Path, orientation: int) -> None:
    upright = picture()
    # what a camera stores so that the given orientation brings it upright again
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), upright)


def test_damaged_exif_does_not_hide_the_picture(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\xff\0\0\0\0"
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif)
    with pytest.warns(UserWarning, match="Skipping tag|Truncated File Read"):
        assert load_image(tmp_path / "a.jpg").size == (24, 16)


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    values = np.dstack([picture(), np.full((16, 24), 255, np.uint8)])
    values[8:, :, 3] = 0
    values[:8, :4, 3] = 128
    Image.fromarray(values).save(tmp_path / "a.png")
    loaded = np.asarray(load_image(tmp_path / "a.png")).astype(int)
    assert (loaded[8:] == 255).all()
    np.testing.assert_array_equal(loaded[:8, 4:], picture()[:8, 4:])
    half = picture()[:8, :4] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(loaded[:8, :4] - half).max() <= 1


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=1)
    expected = [[[255, 0, 0], [255, 255, 255]], [[0, 0, 255], [255, 255, 255]]]
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), expected)


def test_grey_and_16_bit_are_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray((levels // 257).astype(np.uint8)).save(tmp_path / "b.png")
    deep, shallow = (np.asarray(load_image(tmp_path / name)) for name in ("a.png", "b.png"))
    assert deep.shape == (16, 16, 3)
    np.testing.assert_array_equal(deep, shallow)
    assert deep.min() == 0
    assert deep.max() == 255


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
)
def test_every_pillow_mode_becomes_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (4, 3))).mode == "RGB"


def test_float_pictures_in_either_range() -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    ones, levels = to_array(Image.fromarray(values)), to_array(Image.fromarray(values * 255))
    np.testing.assert_array_equal(ones, levels)


@pytest.mark.parametrize("name", ["a.heic", "IMG_0001.jpg"])
def test_heic_is_read_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    pillow_heif.register_heif_opener()
    stream = io.BytesIO()
    Image.fromarray(np.full((64, 96, 3), (200, 40, 90), np.uint8)).save(stream, "HEIF", quality=95)
    (tmp_path / name).write_bytes(stream.getvalue())
    loaded = np.asarray(load_image(tmp_path / name)).astype(int)
    assert loaded.shape == (64, 96, 3)
    assert np.abs(loaded - (200, 40, 90)).max() <= 6


def test_truncated_heic_is_refused(tmp_path: Path) -> None:
    pillow_heif.register_heif_opener()
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(
        stream, "HEIF"
    )
    (tmp_path / "a.heic").write_bytes(stream.getvalue()[: stream.tell() // 2])
    with pytest.raises(ImageError, match=r"a\.heic"):
        load_image(tmp_path / "a.heic")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(stream.getvalue()[: int(len(stream.getvalue()) * share)])
    with pytest.raises(ImageError, match=rf"a\.{suffix} is (damaged or cut short|not a picture)"):
        load_image(path)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few bytes of compressed nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [30_000, 10_001])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    assert side * side > MAX_PIXELS
    with pytest.raises(
        ImageError, match=r"bomb\.png (is too large|has 10001 x 10001 pixels; at most 100 mega)"
    ):
        load_image(tmp_path / "bomb.png")


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="is not a picture"):
        load_image(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="is empty"):
        load_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b.png"])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image(name)


def test_tensors_and_pictures_are_inverse() -> None:
    image = Image.fromarray(picture())
    tensor = to_tensor(image)
    assert tensor.shape == (3, 16, 24)
    assert tensor.min() >= 0
    assert tensor.max() == 1
    np.testing.assert_array_equal(np.asarray(to_pil(tensor)), picture())
    torch.testing.assert_close(to_image(to_pixel_values(tensor)), tensor)


def test_to_pil_rounds_and_clips() -> None:
    tensor = torch.tensor([-0.5, 0.4999 / 255, 0.5001 / 255, 1.5]).view(1, 1, 4).repeat(3, 1, 1)
    assert np.asarray(to_pil(tensor))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_colour_order_is_its_own_inverse() -> None:
    reversed_ = rgb_to_bgr(picture())
    assert reversed_.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(reversed_[..., 0], picture()[..., 2])
    np.testing.assert_array_equal(rgb_to_bgr(reversed_), picture())
