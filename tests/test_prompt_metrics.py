"""What a prompt asks, and whether it is there."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from idgen.data.captions import SMILES, TURNS
from idgen.metrics.prompt import asked_of, clip_scores, smile_obeyed, turn_obeyed

NAN = float("nan")


@pytest.mark.parametrize("wanted", [True, False])
def test_every_phrase_of_a_smile_is_understood(wanted: bool) -> None:
    for phrase in SMILES[wanted]:
        assert asked_of(f"a photo of a woman, {phrase}, blue background").smile is wanted, phrase


@pytest.mark.parametrize("turn", list(TURNS))
def test_every_phrase_of_a_turn_is_understood(turn: str) -> None:
    for phrase in TURNS[turn]:
        assert asked_of(f"a portrait of a man, {phrase}, in dim light").turn == turn, phrase


@pytest.mark.parametrize(
    ("prompt", "smile", "turn"),
    [
        ("a photo of a person", None, None),
        ("A SMILING man in Paris", True, None),
        ("a woman without a smile", False, None),
        ("she turns her head; the left hand is up", None, None),
        ("a man facing left, grinning", True, "left"),
        ("a person looking toward the right", None, "right"),
        ("a similar house", None, None),
        ("", None, None),
    ],
)
def test_prompts_in_other_words(prompt: str, smile: bool | None, turn: str | None) -> None:
    asked = asked_of(prompt)
    assert (asked.smile, asked.turn) == (smile, turn)


def test_smiles_are_counted_where_asked() -> None:
    assert [smile_obeyed(True, 0.9), smile_obeyed(True, 0.1), smile_obeyed(False, 0.1)] == [1, 0, 1]
    assert smile_obeyed(True, NAN) == smile_obeyed(False, NAN) == 0  # no face, not obeyed
    assert np.isnan(smile_obeyed(None, 0.9))


def test_turns_are_counted_where_asked() -> None:
    assert [turn_obeyed("left", 20), turn_obeyed("right", 20), turn_obeyed("right", -3)] == [1, 0, 1]
    assert turn_obeyed("left", NAN) == turn_obeyed("right", NAN) == 0
    assert np.isnan(turn_obeyed(None, 9))
    assert np.isnan(turn_obeyed("ahead", 9))


def test_clip_scores_are_a_hundred_cosines() -> None:
    pictures, texts = torch.randn(9, 7), torch.randn(9, 7)
    expected = 100 * cosine_similarity(pictures, texts).clamp(min=0)
    np.testing.assert_allclose(clip_scores(pictures.numpy(), texts.numpy()), expected.numpy(), atol=1e-4)
    assert (clip_scores(pictures.numpy(), -pictures.numpy()) == 0).all()
