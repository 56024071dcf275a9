"""What the page does when somebody clicks, as gradio calls it."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from idgen.page.blend import Side, find_end, order_between, who_they_are
from idgen.page.dataset import Growth, SetWish, make_set
from idgen.page.edits import edits_of
from idgen.page.evaluate import Looked, evaluate
from idgen.page.galleries import Galleries
from idgen.page.keeping import Keeping
from idgen.page.looking import look_at_photos, person_in
from idgen.page.making import Order, Progress, Workshop
from idgen.page.markup import (
    caption,
    message_html,
    numbers,
    photos_html,
    progress_html,
    sentence,
    verdict_html,
)
from idgen.page.models import Models
from idgen.page.people import Guest, order_for
from idgen.page.portrait import Wish, order_of, packed, read_person
from idgen.page.sentences import in_words
from idgen.page.showing import (
    growth_html,
    looked_html,
    made_set_html,
    report_html,
    report_numbers,
    set_numbers,
)

Shown = tuple[Any, ...]  # values of status, gallery, zip and numbers


@dataclass(frozen=True)
class Callbacks:
    """Every mistake becomes a sentence, never a traceback.

    Attributes:
        shop: who makes pictures where nobody chooses another model.
        keeping: where they lie.
        galleries: real people whom new ones keep away from.
        models: others that can be chosen; None where there are none.
    """

    shop: Workshop
    keeping: Keeping
    galleries: Galleries = field(default_factory=Galleries)
    models: Models | None = None

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
        steps: int | None = None, guidance: float | None = None, model: str | None = None,
        adapter: str | None = None, *amounts: float,
    ) -> Iterator[Shown]:  # fmt: skip
        """How far it is, and at last pictures with their similarity, a zip of them, and the numbers."""

        def work() -> Iterator[Shown]:
            shop = yield from self.opened(model, adapter)
            names, defaults = edits_of(self.shop.folder), shop.defaults
            wish = Wish(
                prompt=prompt or "", negative=negative or "", strength=strength, start=start, seed=seed,
                count=count, steps=steps or defaults.num_inference_steps,
                guidance=guidance or defaults.guidance_scale,
                edits=dict(zip(names, amounts, strict=False)),
            )  # fmt: skip
            person = read_person(photos or [], who, shop, consent=consent)
            order, effects = order_of(wish, person, shop)
            yield from self.shown(shop, order, first=" ".join(map(sentence, effects)))

        yield from self.in_words(work)

    def people(
        self, photos_1: list[str] | None, prompt_1: str, photos_2: list[str] | None, prompt_2: str,
        photos_3: list[str] | None, prompt_3: str, strength: float, seed: int, count: int, consent: bool,
        steps: int, guidance: float, model: str | None = None, adapter: str | None = None,
    ) -> Iterator[Shown]:  # fmt: skip
        """The same for several people at once."""

        def work() -> Iterator[Shown]:
            shop = yield from self.opened(model, adapter)
            given = ((photos_1, prompt_1), (photos_2, prompt_2), (photos_3, prompt_3))
            order = order_for(
                [Guest(photos=tuple(photos or ()), prompt=prompt or "") for photos, prompt in given],
                shop, who="the largest", strength=strength, seed=seed, count=count, steps=steps,
                guidance=guidance, consent=consent,
            )  # fmt: skip
            yield from self.shown(shop, order, whom="their person")

        yield from self.in_words(work)

    def blend(
        self, photos_1: list[str] | None, number_1: int, photos_2: list[str] | None, number_2: int,
        way: float, prompt: str, seed: int, count: int, consent: bool, steps: int, guidance: float,
        model: str | None = None, adapter: str | None = None,
    ) -> Iterator[Shown]:  # fmt: skip
        """The same for somebody between two people."""

        def work() -> Iterator[Shown]:
            shop = yield from self.opened(model, adapter)
            galleries = self.galleries.vectors(shop.kit)
            sides = [Side(photos=tuple(photos_1 or ()), number=number_1),
                     Side(photos=tuple(photos_2 or ()), number=number_2)]  # fmt: skip
            first, second = (
                find_end(side, "the largest", shop, galleries, consent=consent) for side in sides
            )
            order = order_between(
                (first, second), shop, way=way, prompt=prompt or "", seed=seed, count=count, steps=steps,
                guidance=guidance,
            )  # fmt: skip
            yield from self.shown(shop, order, whom="who lies between", first=who_they_are(first, second))

        yield from self.in_words(work)

    def dataset(
        self, people: int = 4, pictures: int = 4, seed: int = 0, name: str = "new", steps: int | None = None,
        guidance: float | None = None, model: str | None = None, adapter: str | None = None,
    ) -> Iterator[Shown]:  # fmt: skip
        """How far it is, and at last the pictures of new people, a zip of everything, and the findings."""

        def work() -> Iterator[Shown]:
            shop = yield from self.opened(model, adapter)
            wish = SetWish(
                people=people, each=pictures, seed=seed, name=name or "new",
                steps=steps or shop.defaults.num_inference_steps,
                guidance=guidance or shop.defaults.guidance_scale,
            )  # fmt: skip
            for news in make_set(wish, shop, self.galleries, self.keeping.new_folder()):
                if isinstance(news, Growth):
                    yield growth_html(news), [], None, None
                else:
                    shown = [(str(path), words) for path, words in news.pictures]
                    yield made_set_html(news), shown, str(news.archive), set_numbers(news)

        yield from self.in_words(work)

    def evaluate(self, pictures: list[str] | None, references: list[str] | None = None) -> Iterator[Shown]:
        """How far it is, and at last the tables, the report as an HTML file and as a zip, and the numbers."""

        def work() -> Iterator[Shown]:
            folder = self.keeping.new_folder()
            for news in evaluate(pictures or [], references or [], self.shop.kit, folder):
                if isinstance(news, Looked):
                    yield looked_html(news), None, None
                else:
                    yield report_html(news), [str(news.page), str(news.archive)], report_numbers(news)

        yield from self.in_words(work)

    def open(self, model: str, adapter: str) -> Iterator[tuple[Any, ...]]:
        """Open a model with an adapter, and say what it likes best: a line, steps and guidance."""

        def work() -> Iterator[tuple[Any, ...]]:
            import gradio as gr

            opening = self.opened(model, adapter)
            for status, *_ in opening:
                yield status, gr.skip(), gr.skip()
            defaults = self.chosen(model, adapter).defaults
            words = f"the model {model} is open; steps and guidance are what it likes best"
            yield message_html(words), defaults.num_inference_steps, defaults.guidance_scale

        yield from self.in_words(work)

    def chosen(self, model: str | None, adapter: str | None) -> Workshop:
        """Who makes pictures with this model and adapter."""
        return self.shop if self.models is None else self.models.choose(model, adapter)

    def opened(self, model: str | None, adapter: str | None) -> Generator[Shown, None, Workshop]:
        """The same, once it is open; says so where that takes time."""
        if self.models is not None:
            yield message_html(f"looking for {model or self.shop.name}"), [], None, None
        shop = self.chosen(model, adapter)
        if not shop.is_open:
            yield message_html(f"opening {shop.name}; that may take a minute"), [], None, None
            with shop.turn():
                pass
        return shop

    def shown(self, shop: Workshop, order: Order, **words: str) -> Iterator[Shown]:
        """Progress and pictures as values of status, gallery, zip and numbers."""
        encoders = shop.kit.encoders
        for item in shop.make(order, self.keeping.new_folder()):
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
            words = in_words(error, hide=self.keeping.root)
            for folder in self.models.shelf.folders if self.models else ():
                words = words.replace(f"{folder}/", "")
            raise gr.Error(
                escape(words), duration=None, title="That did not work", print_exception=False
            ) from None
