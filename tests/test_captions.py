import numpy as np
import pytest

from idgen.data.captions import OPENINGS, Attributes, attributes, caption, colour_name, every_phrase
from idgen.data.images import FaceTable


def table(image: np.ndarray, **labels: float) -> FaceTable:
    values = {"p_female": 0.5, "p_happy": 0.5, "yaw": 10.0, **labels}
    return FaceTable(
        images=image[None], files=("a",), identities=("A",),
        labels={name: np.array([value], dtype=np.float32) for name, value in values.items()},
    )  # fmt: skip


def portrait(background: tuple[int, int, int], face: int = 120) -> np.ndarray:
    image = np.full((128, 128, 3), background, dtype=np.uint8)
    image[30:, 30:98] = face
    return image


def test_what_is_not_clear_is_not_said() -> None:
    two_colours = portrait((200, 30, 30))
    two_colours[:, 64:] = (20, 20, 220)
    two_colours[36:108, 36:92] = 120
    assert attributes(table(two_colours), 0) == Attributes()


def test_clear_labels_are_said() -> None:
    labelled = table(portrait((30, 60, 220), face=200), p_female=0.95, p_happy=0.9, yaw=25.0)
    assert attributes(labelled, 0) == Attributes(
        presentation="woman", smiling=True, turn="left", background="blue", light="bright"
    )


def test_a_mirror_image_swaps_left_and_right_only() -> None:
    seen = Attributes(presentation="man", turn="left", background="red")
    assert seen.mirrored() == Attributes(presentation="man", turn="right", background="red")
    assert Attributes(turn="ahead").mirrored().turn == "ahead"


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((5, 5, 5), "black"), ((250, 250, 250), "white"), ((128, 128, 128), "grey"), ((220, 20, 20), "red"),
     ((20, 200, 30), "green"), ((20, 40, 220), "blue"), ((240, 220, 40), "yellow"), ((110, 70, 40), "brown")],
)  # fmt: skip
def test_colours_have_their_everyday_names(rgb: tuple[int, int, int], name: str) -> None:
    assert colour_name(np.array(rgb)) == name


def test_captions_use_only_words_that_the_tokenizer_learns() -> None:
    known = {word.strip(",") for phrase in every_phrase() for word in phrase.split()}
    rng = np.random.default_rng(0)
    full = Attributes(presentation="woman", smiling=False, turn="right", background="pink", light="dim")
    said = {word.strip(",") for _ in range(500) for word in caption(full, rng).split()}
    assert said <= known
    assert {"woman", "pink", "dim", "right"} <= said


def test_a_caption_is_a_function_of_its_seed() -> None:
    full = Attributes(presentation="man", smiling=True, turn="left", background="grey")
    assert caption(full, np.random.default_rng(3)) == caption(full, np.random.default_rng(3))
    silent = {caption(full, np.random.default_rng(i), keep=0.0) for i in range(200)}
    assert silent == {f"{o} {a} person".strip() for o in OPENINGS for a in ("a", "the")}
