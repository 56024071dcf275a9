"""What the tests of the page share: photos, mini opened once in few steps, the page behind a port."""

import functools
import runpy
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from generating import astronaut
from PIL import Image

from idgen.page.keeping import KEEP_SECONDS, Keeping, private_folder
from idgen.page.making import Made, Progress, Workshop, open_workshop
from idgen.page.portrait import Wish, order_of, read_person
from idgen.page.serving import Address, free_port, serve
from idgen.pipeline import Defaults

STEPS = 2
PROGRAM = Path(__file__).parents[1] / "app" / "main.py"


@functools.cache
def small_shop() -> Workshop:
    """mini, in two steps where nobody says otherwise; shared, for it holds nothing of anybody."""
    shop = open_workshop("mini", device="cpu")
    with shop.turn() as pipe:
        pipe._defaults = Defaults(num_inference_steps=STEPS, guidance_scale=3.5)
    return shop


@functools.cache
def program() -> dict[str, Any]:
    """The names of app/main.py."""
    return runpy.run_path(str(PROGRAM))


@dataclass(frozen=True)
class Served:
    """A page that runs."""

    url: str
    keeping: Keeping
    shop: Workshop


@contextmanager
def running_page(*users: tuple[str, str], keep_seconds: float = KEEP_SECONDS) -> Iterator[Served]:
    """The page on a free port of this machine."""
    build: Callable[..., Any] = program()["build_page"]
    with private_folder(keep_seconds=keep_seconds) as keeping:
        page = build(small_shop(), keeping)
        with socket.socket() as probe:  # far from where other processes look for theirs
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        address = Address(port=free_port("127.0.0.1", port), users=users)
        try:
            yield Served(serve(page, address, wait=False), keeping, small_shop())
        finally:
            page.close(verbose=False)


def made_portraits(
    wish: Wish, photos: Sequence[str], who: str, shop: Workshop, keeping: Keeping, *, consent: bool
) -> Iterator[Progress | list[Made]]:
    """What a click on the tab Portrait does, without the page."""
    order, _ = order_of(wish, read_person(photos, who, shop, consent=consent), shop)
    yield from shop.make(order, keeping.new_folder())


@dataclass(frozen=True)
class Photos:
    """Files that people might upload."""

    person: Path
    two_people: Path
    nobody: Path
    no_picture: Path


def write_photos(folder: Path) -> Photos:
    """One astronaut, two of her, nobody, and a text that calls itself a picture."""
    photos = Photos(*(folder / name for name in ("ann.png", "two.png", "nobody.png", "text.png")))
    image = astronaut().crop((100, 0, 360, 260))
    image.save(photos.person)
    twice = Image.new("RGB", (520, 260))
    twice.paste(image, (0, 0))
    twice.paste(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (260, 0))
    twice.save(photos.two_people)
    Image.fromarray(np.full((200, 200, 3), 127, np.uint8)).save(photos.nobody)
    photos.no_picture.write_text("this is no picture")
    return photos


def wish(**changes: Any) -> Wish:
    """One picture in few steps."""
    return Wish(**{"prompt": "a photo of a woman", "count": 1, "steps": STEPS, "guidance": 3.5, **changes})


def made_of(news: Iterator[Progress | list[Made]]) -> list[Made]:
    """What came last: the pictures."""
    *_, last = news
    assert isinstance(last, list)
    return last
