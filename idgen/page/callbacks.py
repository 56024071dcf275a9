"""What the page does when somebody clicks, as gradio calls it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from idgen.page.blend import Side, find_end, order_between, who_they_are
from idgen.page.edits import edits_of
from idgen.page.keeping import Keeping
from idgen.page.looking import look_at_photos, person_in
from idgen.page.making import Made, Progress, Workshop
from idgen.page.markup import caption, numbers, photos_html, progress_html, sentence, verdict_html
from idgen.page.people import Guest, order_for
from idgen.page.portrait import Wish, order_of, packed, read_person
from idgen.page.sentences import in_words

Shown = tuple[Any, ...]  # values of status, gallery, zip and numbers


@dataclass(frozen=True)
class Callbacks:
    """Every mistake becomes a sentence, never a traceback.

    Attributes:
        shop: who makes pictures.
        keeping: where they lie.
        galleries: face vectors (M, D) of real people whom new ones keep away from.
    """

    shop: Workshop
    keeping: Keeping
    galleries: Sequence[np.ndarray] = ()

    def look(self, photos: list[str] | None, who: str) -> str:
        """The photos with the face that was found, as HTML."""

        def work() -> Iterator[str]:
            if not photos:
                yield ""
                return
            sights = look_at_photos([Path(photo) for photo in photos], self.shop.kit.detector, who=who)
            if all(sight.problem is None for sight in sights):
                sights = list(person_in(sights, self.shop.kit.encoders).sights)
            yield photos_html(sights)

        return next(self.in_words(work))

    def portrait(
        self, photos: list[str] | None, prompt: str, strength: float = 1.0, start: float = 0.0, seed: int = 0,
        count: int = 4, consent: bool = False, who: str = "the only one", negative: str = "",
        steps: int | None = None, guidance: float | None = None, *amounts: float,
    ) -> Iterator[Shown]:  # fmt: skip
        """How far it is, and at last pictures with their similarity, a zip of them, and the numbers."""

        def work() -> Iterator[Shown]:
            defaults = self.shop.pipe.defaults
            wish = Wish(
                prompt=prompt or "", negative=negative or "", strength=strength, start=start, seed=seed,
                count=count, steps=steps or defaults.num_inference_steps,
                guidance=guidance or defaults.guidance_scale,
                edits=dict(zip(edits_of(self.shop.folder), amounts, strict=False)),
            )  # fmt: skip
            person = read_person(photos or [], who, self.shop, consent=consent)
            order, effects = order_of(wish, person, self.shop)
            news = self.shop.make(order, self.keeping.new_folder())
            yield from self.shown(news, first=" ".join(map(sentence, effects)))

        yield from self.in_words(work)

    def people(
        self, photos_1: list[str] | None, prompt_1: str, photos_2: list[str] | None, prompt_2: str,
        photos_3: list[str] | None, prompt_3: str, strength: float, seed: int, count: int, consent: bool,
        steps: int, guidance: float,
    ) -> Iterator[Shown]:  # fmt: skip
        """The same for several people at once."""

        def work() -> Iterator[Shown]:
            given = ((photos_1, prompt_1), (photos_2, prompt_2), (photos_3, prompt_3))
            order = order_for(
                [Guest(photos=tuple(photos or ()), prompt=prompt or "") for photos, prompt in given],
                self.shop, who="the largest", strength=strength, seed=seed, count=count, steps=steps,
                guidance=guidance, consent=consent,
            )  # fmt: skip
            yield from self.shown(self.shop.make(order, self.keeping.new_folder()), whom="their person")

        yield from self.in_words(work)

    def blend(
        self, photos_1: list[str] | None, number_1: int, photos_2: list[str] | None, number_2: int,
        way: float, prompt: str, seed: int, count: int, consent: bool, steps: int, guidance: float,
    ) -> Iterator[Shown]:  # fmt: skip
        """The same for somebody between two people."""

        def work() -> Iterator[Shown]:
            sides = [Side(photos=tuple(photos_1 or ()), number=number_1),
                     Side(photos=tuple(photos_2 or ()), number=number_2)]  # fmt: skip
            first, second = (
                find_end(side, "the largest", self.shop, self.galleries, consent=consent) for side in sides
            )
            order = order_between(
                (first, second), self.shop, way=way, prompt=prompt or "", seed=seed, count=count, steps=steps,
                guidance=guidance,
            )  # fmt: skip
            news = self.shop.make(order, self.keeping.new_folder())
            yield from self.shown(news, whom="who lies between", first=who_they_are(first, second))

        yield from self.in_words(work)

    def shown(self, news: Iterator[Progress | list[Made]], **words: str) -> Iterator[Shown]:
        """Progress and pictures as values of status, gallery, zip and numbers."""
        encoders = self.shop.kit.encoders
        for item in news:
            if isinstance(item, Progress):
                yield progress_html(item), [], None, None
            elif item:
                pictures = [(str(made.path), caption(made, encoders)) for made in item]
                yield verdict_html(item, encoders, **words), pictures, str(packed(item)), numbers(item)

    def in_words(self, work: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """What ``work`` yields; what it raises as an error that gradio shows, in a sentence."""
        import gradio as gr

        try:
            yield from work()
        except Exception as error:
            words = escape(in_words(error, hide=self.keeping.root))
            raise gr.Error(words, duration=None, title="That did not work", print_exception=False) from None
