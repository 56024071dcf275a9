"""Many people at the page at once: does everybody get their own person, and does memory stay flat?

    python benchmarks/page_load.py --faces faces_test.parquet --clients 20 --seconds 120

Starts `idgen app` as a process of its own. Each client comes with the photo of another person, again and
again, and looks at what it got, in three ways:

- seed and prompt in the file must be its own;
- each encoder should find the face nearer to its own person than to the other clients'; an adapter that keeps
  people only roughly misses some of them, but not because they were mixed up, and so
- its first picture is asked for once more when everybody has left: every pixel must be the same.

Prints a table in Markdown.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from idgen.config import Parser
from idgen.data.images import FaceTable, load_faces
from idgen.encoders.base import FaceEncoder
from idgen.faces.detect import Detector, load_detector
from idgen.metrics.consistency import find_crop
from idgen.opening import model_folder, open_kit
from idgen.provenance import read_provenance

PHOTO_PX = 384  # aligned portraits, enlarged so that a detector meets them as photos
SAMPLE_SECONDS = 1.0  # between two looks at the memory


@dataclass
class Visitor:
    """One client: a person's photo, and what came back."""

    number: int
    photo: Path
    folder: Path
    seconds: list[float] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    num_foreign: int = 0  # pictures with somebody else's prompt or seed

    def ask(self, client: Any, turn: int, steps: int) -> Path:  # noqa: ANN401 - gradio_client is loaded late
        """One picture; the same for the same turn."""
        from gradio_client import handle_file

        words, seed = f"a photo of person {self.number}", 1000 * self.number + turn
        _, pictures, _, _ = client.predict(
            [handle_file(self.photo)], prompt=words, seed=seed, count=1, consent=True, steps=steps,
            api_name="/portrait",
        )  # fmt: skip
        path = Path(pictures[0]["image"])
        said = read_provenance(path)
        self.num_foreign += (said.prompt, said.seed) != (words, seed)
        return path

    def stay(self, url: str, until: float, steps: int) -> None:
        """Ask for one picture after the other until it is late."""
        from gradio_client import Client

        client = Client(url, verbose=False, download_files=str(self.folder))
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                path = self.ask(client, len(self.pictures), steps)
            except Exception as error:  # whatever a client may meet is counted
                self.errors.append(f"{type(error).__name__}: {error}")
                time.sleep(1)  # as a person would, and not to ask a page that is down as fast as can be
                continue
            self.seconds.append(time.monotonic() - began)
            self.pictures.append(path)

    def comes_back(self, url: str, steps: int) -> bool:
        """Whether every pixel of the first picture is the same now that nobody else asks."""
        from gradio_client import Client

        client = Client(url, verbose=False, download_files=str(self.folder / "again"))
        try:
            again = self.ask(client, 0, steps)
        except Exception as error:  # counted like the others
            self.errors.append(f"{type(error).__name__}: {error}")
            return False
        with Image.open(self.pictures[0]) as before, Image.open(again) as after:
            return np.array_equal(np.asarray(before), np.asarray(after))  # the files say when they were made


# --- the page ---------------------------------------------------------------------------------------------


@contextmanager
def page(port: int, place: Path) -> Iterator[tuple[str, int]]:
    """`idgen app` in a process of its own, whose files lie in ``place``: its address and number."""
    command = [sys.executable, "-m", "idgen", "app", "--port", str(port)]
    environment = {**os.environ, "TMPDIR": str(place)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
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
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def visit(visitors: Sequence[Visitor], url: str, process: int, options: Namespace) -> list[float]:
    """All at once for as long as was asked: the memory of the page meanwhile."""
    until = time.monotonic() + options.seconds
    threads = [threading.Thread(target=v.stay, args=(url, until, options.steps)) for v in visitors]
    for thread in threads:
        thread.start()
    held = []
    while any(thread.is_alive() for thread in threads):
        held.append(memory_mb(process))
        time.sleep(SAMPLE_SECONDS)
    return held


# --- what they met ----------------------------------------------------------------------------------------


def own_share(visitors: Sequence[Visitor], detector: Detector, encoder: FaceEncoder) -> tuple[int, int]:
    """How many pictures are nearest to the person of their own visitor, and how many show a face at all."""

    def seen(path: Path) -> np.ndarray | None:
        with Image.open(path) as image:
            crop = find_crop(image.convert("RGB"), detector)
        return None if crop is None else encoder.encode(crop[None]).unit[0].numpy()

    known = {visitor.number: vector for visitor in visitors if (vector := seen(visitor.photo)) is not None}
    people, numbers = np.stack(list(known.values())), list(known)
    nearest = [
        numbers[int((people @ vector).argmax())] == visitor.number
        for visitor in visitors
        for path in visitor.pictures
        if (vector := seen(path)) is not None
    ]
    return sum(nearest), len(nearest)


def kinds(errors: Sequence[str]) -> str:
    """How many of which sort, numbers left out."""
    counted = Counter(re.sub(r"\d+", "N", error.splitlines()[0])[:80] for error in errors)
    return "; ".join(f"{count} x {kind}" for kind, count in counted.most_common()) or "none"


def rows_of(
    visitors: Sequence[Visitor], held: Sequence[float], num_same: int, options: Namespace
) -> dict[str, str]:
    """The table: what, and how much of it."""
    seconds = sorted(s for visitor in visitors for s in visitor.seconds)
    thirds = [part for part in np.array_split(np.array(held), 3) if len(part)]
    rows: dict[str, str] = {
        "clients, seconds, steps": f"{len(visitors)}, {options.seconds:g}, {options.steps}",
        "pictures, of the client with fewest": f"{len(seconds)}, {min(len(v.pictures) for v in visitors)}",
        "errors": kinds([error for visitor in visitors for error in visitor.errors]),
        "pictures with another client's prompt or seed": str(sum(v.num_foreign for v in visitors)),
        "first pictures that are the same in every pixel when made alone":
            f"{num_same} of {sum(bool(v.pictures) for v in visitors)}",
        "memory of the page in each third, median (highest)":
            ", ".join(f"{np.median(part):.0f} ({part.max():.0f})" for part in thirds) + " MB",
    }  # fmt: skip
    if seconds:
        late = float(np.quantile(seconds, 0.95))
        rows["from click to picture: median, 95 %, longest"] = (
            f"{np.median(seconds):.1f} s, {late:.1f} s, {seconds[-1]:.1f} s"
        )
        kit = open_kit(model_folder("mini"), adapter=None, encoder=None, judge=None, detector="mini")
        for encoder, role in zip(kit.encoders, ("conditions", "only looks"), strict=False):
            own, faces = own_share(visitors, kit.detector, encoder)
            rows[f"nearest to the client's own person, by the encoder that {role}"] = (
                f"{own} of {faces} with a face (by chance 1 in {len(visitors)})"
            )
    return rows


def invite(table: FaceTable, place: Path, clients: int) -> list[Visitor]:
    """One client a person, of the first people on whose photo the page will find a face."""
    detector, visitors = load_detector("mini"), []
    for rows in table.people().values():
        photo = Image.fromarray(table.images[rows[0]]).resize((PHOTO_PX, PHOTO_PX))
        if len(visitors) < clients and find_crop(photo, detector) is not None:
            folder = place / f"visitor-{len(visitors)}"
            folder.mkdir()
            photo.save(folder / "photo.png")
            visitors.append(Visitor(len(visitors), folder / "photo.png", folder))
    return visitors


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
    with tempfile.TemporaryDirectory() as place:
        kept = Path(place) / "page"
        kept.mkdir()
        visitors = invite(table, Path(place), options.clients)
        with page(options.port, kept) as (url, process):
            held = visit(visitors, url, process, options)
            same = [visitor.comes_back(url, options.steps) for visitor in visitors if visitor.pictures]
        found = rows_of(visitors, held, sum(same), options)
        found["files that the page left behind"] = str(sum(1 for path in kept.rglob("*") if path.is_file()))
    print("| measure | value |\n| --- | --- |")
    print("\n".join(f"| {what} | {value} |" for what, value in found.items()))


if __name__ == "__main__":
    main()
