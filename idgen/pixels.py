"""Pictures in, tensors out and back: the only place that knows about colour order, ranges and file decoding.

Shapes: B batch, C channels, H height, W width. ``image`` is in [0, 1], ``pixel_values`` in [-1, 1], both RGB.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from idgen.errors import ImageError

MAX_PIXELS = 100_000_000  # a 100-megapixel camera; 400 MB once decoded with its working copy


def load_image(path: str | Path) -> Image.Image:
    """Open a photo as 8-bit RGB: upright by its EXIF, alpha on white, grey, palette and 16-bit converted.

    Args:
        path: JPEG, PNG, WebP or any other format Pillow reads; HEIC where pillow-heif is installed.

    Raises:
        ImageError: if the file is missing, is not a picture, is truncated, or has more than 100 megapixels.
    """
    path = Path(path)
    _register_heif(path, _first_bytes(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is ours
            with Image.open(path) as opened:
                _check_size(opened, path)
                opened.load()
                return to_rgb(ImageOps.exif_transpose(opened))
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImageError(_why_unreadable(path, error)) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path} is damaged or cut short: {error}") from None


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(32)
    except FileNotFoundError:
        raise ImageError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not a picture") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        shown = str(path) if len(str(path)) <= 100 else f"{str(path)[:97]}..."
        raise ImageError(f"{shown} cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def _register_heif(path: Path, head: bytes) -> None:
    """Phones give HEIC any name, so the content decides: an ISO media file (``ftyp``) of a HEIF brand."""
    brands = (b"heic", b"heix", b"heim", b"mif1")
    is_heif = head[4:8] == b"ftyp" and any(brand in head[8:] for brand in brands)
    if not is_heif or b"avif" in head:
        return
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ImageError(f"{path} is HEIC; install the reader with `pip install 'idgen[heic]'`") from None
    register_heif_opener()


def _check_size(image: Image.Image, path: Path) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{path} has {width} x {height} pixels; at most {MAX_PIXELS / 1e6:.0f} megapixels are opened. "
            "Scale the picture down first"
        )


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"{path} is too large to open safely: {error}"
    if path.stat().st_size == 0:
        return f"{path} is empty"
    return f"{path} is not a picture that can be read (JPEG, PNG, WebP and the other formats of Pillow are)"


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as 8-bit RGB; transparent pixels become white, 16 bits are scaled, not clipped."""
    if image.mode in {"I;16", "I;16B", "I;16L", "I"}:
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(values / 65535 * 255 + 0.5, 0, 255).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 1.0 if values.max(initial=0) <= 1 else 255.0
        image = Image.fromarray(np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def to_array(image: Image.Image) -> np.ndarray:
    """An RGB picture as uint8 (H, W, 3), writable."""
    return np.array(to_rgb(image), dtype=np.uint8)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as float32 (3, H, W) in [0, 1]."""
    return torch.from_numpy(to_array(image)).permute(2, 0, 1).float() / 255


def to_pil(image: Tensor) -> Image.Image:
    """A (3, H, W) tensor in [0, 1] as a picture; values outside are clipped, rounding is to nearest."""
    levels = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def to_pixel_values(image: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], the range of diffusion models and of ArcFace."""
    return image * 2 - 1


def to_image(pixel_values: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], unclipped."""
    return pixel_values / 2 + 0.5


def rgb_to_bgr(image: np.ndarray) -> np.ndarray:
    """Reverse the colour order of (H, W, 3), contiguous; its own inverse."""
    return np.ascontiguousarray(image[..., ::-1])
