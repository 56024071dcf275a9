"""A small dataset as `idgen synthesize` writes it: pictures with their provenance, kept and rejected rows."""

import contextlib
import functools
import io
import json
import resource
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from idgen.provenance import Provenance, save_picture
from idgen.synth.shards import write_shard

PEOPLE, EACH = 6, 3  # of whom each has three planned pictures; the middle one of everybody odd was rejected
ABOUT: dict[str, Any] = {
    "models": [{"name": "mini", "role": "base", "licence": "research only", "sha256": "ab" * 32}],
    "licences": {"pictures": "research only"},
    "encoder_ids": ["mini@0123456789ab"],
    "seed": 7,
    "plan_sha256": "cd" * 32,
    "num_shards": 3,
    "similarity": {"inter": {"mean": 0.0123, "most": 0.41}},
    "leakage": {"nearest_training_photo": 0.37, "threshold": 0.52},
}


@functools.cache
def picture(number: int, *, kind: str = "png", size_px: int = 16, prompt: str = "a man") -> bytes:
    """A picture of its own colours, that says how it was made."""
    pixels = np.random.default_rng([3, number]).integers(0, 255, (size_px, size_px, 3), dtype=np.uint8)
    said = Provenance(
        prompt=prompt, negative_prompt="", seed=number, steps=1, guidance_scale=1.0, id_scale=1.0,
        model="mini", model_hash="ab" * 32, created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"picture.{kind}"
        save_picture(Image.fromarray(pixels), file, said)
        return file.read_bytes()


def rows_of(people: range, **settings: Any) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    """Rows and pictures of some people; every second person lacks the picture in the middle."""
    for person in people:
        for number in range(EACH):
            is_kept = not (person % 2 and number == 1)
            row = {
                "identity": f"{person:05d}",
                "person": person,
                "picture": number,
                "key": f"{person:05d}_{number:03d}",
                "decision": "kept" if is_kept else "no face",
                "seed": 1000 * person + number,
                "prompt": "a man",
                "expression": ("neutral", "smiling", "angry")[number],
                "similarity": 0.5 + number / 10 if is_kept else float("nan"),
            }
            yield row, picture(EACH * person + number, **settings) if is_kept else None


def make_dataset(
    folder: Path, *, num_shards: int = 2, about: dict[str, Any] | None = None, **settings: Any
) -> Path:
    """Six people in shards of equal size."""
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(ABOUT if about is None else about))
    size = PEOPLE // num_shards
    for shard in range(num_shards):
        write_shard(folder, shard, rows_of(range(shard * size, (shard + 1) * size), **settings))
    return folder


def kept_pictures(**settings: Any) -> dict[str, bytes]:
    """Key -> encoded picture of what `make_dataset` keeps."""
    rows = rows_of(range(PEOPLE), **settings)
    return {row["key"]: data for row, data in rows if data is not None}


def with_chunk(png: bytes, data: bytes) -> bytes:
    """The same picture with a private chunk whose data begins at a multiple of 4."""
    filled = b"abc" + data  # a PNG's first chunk ends at 33, and the head of a chunk has 8 bytes
    chunk = b"prVt" + filled
    return png[:33] + struct.pack(">I", len(filled)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def plain_png(colour: int, size_px: int = 8) -> bytes:
    """A small picture of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (size_px, size_px), (colour, 10, 20)).save(stream, "PNG")
    return stream.getvalue()


@contextlib.contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The operating system refuses to let any file grow further, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
