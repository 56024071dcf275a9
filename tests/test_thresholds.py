"""Thresholds by an encoder's id alone."""

import pytest

from idgen.encoders.arcface import judge_encoder, mini_encoder
from idgen.encoders.card import read_encoder_card
from idgen.encoders.thresholds import threshold_at
from idgen.errors import ConfigError


def test_the_card_is_found_by_the_id() -> None:
    for encoder in (mini_encoder(), judge_encoder()):
        card = read_encoder_card(encoder)
        assert card is not None
        assert len(card.thresholds) == 3
        for fmr, cosine in card.thresholds.items():
            assert threshold_at(encoder.id, fmr) == threshold_at(encoder, fmr) == cosine


@pytest.mark.parametrize(
    ("encoder_id", "fmr", "message"),
    [
        (mini_encoder().id, "1e-5", r"no threshold at FMR 1e-5 in its card; did you mean '1e-\d'"),
        (mini_encoder().id, "0.001", "no threshold at FMR 0.001 in its card.*--write-card"),
        ("mini@0123456789ab", "1e-3", r"not on this disk \(under that name lies mini@"),
        (
            "nobody@0123456789ab",
            "1e-3",
            r"not on this disk \(there is nothing of that name\); give the cosine",
        ),
    ],
)
def test_what_no_card_says(encoder_id: str, fmr: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        threshold_at(encoder_id, fmr)
