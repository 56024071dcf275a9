"""Many people at the page at once: does everybody get their own person, and does memory stay flat?

    python benchmarks/page_load.py --faces faces_test.parquet --clients 20 --seconds 120

Starts `idgen app` as a process of its own. Each client comes with the photo of another person, again and
again, and looks at what it got: seed and prompt in the file must be its own, and by the encoder that
conditions the face should be nearer to its own person than to the other clients'.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from idgen.config import Parser
from idgen.data.images import load_faces
from idgen.encoders.arcface import load_encoder
from idgen.faces.detect import load_detector
from idgen.metrics.consistency import find_crop
from idgen.provenance import read_provenance

PHOTO_PX = 384  # aligned portraits, enlarged so that a detector meets them as photos


@dataclass
class Visitor:
    """One client: a person's photo, and what came back."""

    number: int
    photo: Path
    seconds: list[float] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    foreign: int = 0  # pictures with somebody else's prompt or seed

    def stay(self, url: str, until: float, steps: int, folder: Path) -> None:
        """Ask for one picture after the other until it is late."""
        from gradio_client import Client, handle_file

        client = Client(url, verbose=False, download_files=str(folder))
        turn = 0
        while time.monotonic() < until:
            words, seed, began = (
                f"a photo of person {self.number}",
                1000 * self.number + turn,
                time.monotonic(),
            )
            try:
                _, pictures, _, _ = client.predict(
                    [handle_file(self.photo)], prompt=words, seed=seed, count=1, consent=True, steps=steps,
                    api_name="/portrait",
                )  # fmt: skip
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}"[:200])
                continue
            path = Path(pictures[0]["image"])
            said = read_provenance(path)
            self.foreign += (said.prompt, said.seed) != (words, seed)
            self.seconds.append(time.monotonic() - began)
            self.pictures.append(path)
            turn += 1


@contextmanager
def page(port: int) -> Iterator[tuple[str, int]]:
    """`idgen app` in a process of its own: its address and number."""
    command = [sys.executable, "-m", "idgen", "app", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "the page is at" not in line:
            raise SystemExit(f"the page did not start: {line}")
        try:
            yield f"http://127.0.0.1:{port}/", process.pid
        finally:
            process.terminate()


def memory_mb(process: int) -> float:
    """What the process holds (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def share_of_own(visitors: Sequence[Visitor]) -> tuple[float, int]:
    """Share of the pictures that are nearest to the person of their own visitor, and how many have a face."""
    encoder, detector = load_encoder("mini"), load_detector("mini")

    def seen(path: Path) -> np.ndarray | None:
        with Image.open(path) as image:
            crop = find_crop(image.convert("RGB"), detector)
        return None if crop is None else encoder.encode(crop[None]).unit[0].numpy()

    known = {visitor.number: seen(visitor.photo) for visitor in visitors}
    people = np.stack([vector for vector in known.values() if vector is not None])
    numbers = [number for number, vector in known.items() if vector is not None]
    right = [
        numbers[int((people @ vector).argmax())] == visitor.number
        for visitor in visitors
        for path in visitor.pictures
        if (vector := seen(path)) is not None
    ]
    return float(np.mean(right)) if right else float("nan"), len(right)


def visit(visitors: Sequence[Visitor], url: str, process: int, options: Any, folder: Path) -> list[float]:  # noqa: ANN401 - of argparse
    """All at once for as long as was asked; memory of the page, every five seconds."""
    until = time.monotonic() + options.seconds
    threads = [
        threading.Thread(target=visitor.stay, args=(url, until, options.steps, folder))
        for visitor in visitors
    ]
    for thread in threads:
        thread.start()
    held = []
    while any(thread.is_alive() for thread in threads):
        held.append(memory_mb(process))
        time.sleep(5)
    return held


def main(argv: Sequence[str] | None = None) -> None:
    """Start the page, send the visitors, print what they met."""
    parser = Parser(description=__doc__)
    parser.add_argument("--faces", type=Path, required=True, help="table of aligned portraits")
    parser.add_argument("--clients", type=int, default=20, help="at once (20)")
    parser.add_argument("--seconds", type=float, default=120, help="(120)")
    parser.add_argument("--steps", type=int, default=20, help="of the denoising (20)")
    parser.add_argument("--port", type=int, default=7990, help="of the page (7990)")
    options = parser.parse_args(argv)
    table = load_faces(options.faces)
    rows = [rows[0] for rows in table.people().values()][: options.clients]
    with tempfile.TemporaryDirectory() as place, page(options.port) as (url, process):
        folder, visitors = Path(place), []
        for number, row in enumerate(rows):
            photo = folder / f"{number}.png"
            Image.fromarray(table.images[row]).resize((PHOTO_PX, PHOTO_PX)).save(photo)
            visitors.append(Visitor(number, photo))
        held = visit(visitors, url, process, options, folder)
        seconds = sorted(s for visitor in visitors for s in visitor.seconds)
        share, faces = share_of_own(visitors)
        errors = [error for visitor in visitors for error in visitor.errors]
        print(
            f"{len(visitors)} clients, {options.seconds:g} s, {options.steps} steps: {len(seconds)} pictures"
        )
        print(f"errors: {len(errors)}{f', the first: {errors[0]}' if errors else ''}")
        print(f"pictures with another client's prompt or seed: {sum(v.foreign for v in visitors)}")
        print(f"nearest to the client's own person: {share:.1%} of {faces} with a face "
              f"(by chance {1 / len(visitors):.1%})")  # fmt: skip
        if seconds:
            print(
                f"seconds from click to picture: median {np.median(seconds):.1f}, longest {seconds[-1]:.1f}"
            )
        half = len(held) // 2
        print(f"memory of the page, MB: first half up to {max(held[: half or 1]):.0f}, "
              f"second half up to {max(held[half:]):.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
