"""What travels with the package: its sizes, its second eye, its cards."""

from pathlib import Path

import pytest

from idgen import mini
from idgen.adapters.checkpoint import read_adapter
from idgen.encoders.arcface import find_recogniser, judge_encoder, load_encoder, load_encoders, mini_encoder
from idgen.encoders.card import read_encoder_card, related
from idgen.errors import WeightsError

MB = 1_000_000
PARTS = [path for path in mini.ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_mini_is_small() -> None:
    """48 MB for the model with all that sees faces; 16 MB for the codes and what reads them."""
    size = {path: path.stat().st_size for path in PARTS}
    codes = sum(bytes_ for path, bytes_ in size.items() if mini.WPLUS.parent in path.parents)
    assert 0 < codes < 16 * MB
    assert sum(size.values()) - codes < 48 * MB
    assert max(size.values()) < 16 * MB


def test_the_judge_never_conditioned_and_had_no_teacher() -> None:
    judge, encoder = judge_encoder(), mini_encoder()
    assert judge.id != encoder.id
    assert not related(judge, [encoder.id], [encoder])
    assert related(encoder, [encoder.id], [judge])
    card = read_encoder_card(judge)
    assert card is not None
    assert card.taught_by == ()


def test_the_judge_lies_where_insightface_does_not_look() -> None:
    assert mini.FACES not in mini.JUDGE.parents
    assert find_recogniser(mini.FACES).name == "rec_mini.onnx"


@pytest.mark.parametrize("spec", ["judge", str(mini.JUDGE), str(mini.JUDGE.parent)])
def test_the_judge_has_one_name(spec: str) -> None:
    assert load_encoder(spec).id == judge_encoder().id
    assert judge_encoder().name == "judge"


def test_the_embedded_ones_come_once() -> None:
    names = [encoder.name for encoder in load_encoders(["judge", "mini", str(mini.JUDGE)])]
    assert names == ["mini", "judge"]
    with pytest.raises(WeightsError):
        load_encoders([str(mini.FACES / "det_mini.onnx")])


def test_the_adapter_reads_minis_recogniser() -> None:
    assert read_adapter(mini.ADAPTER).card.encoder == mini_encoder().id


@pytest.mark.parametrize("encoder", [mini_encoder(), judge_encoder()], ids=lambda e: e.name)
def test_cards_name_the_weights_beside_them(encoder: object) -> None:
    path = Path(encoder.path)  # pyright: ignore[reportAttributeAccessIssue]
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert encoder.sha256[:12] in text  # pyright: ignore[reportAttributeAccessIssue]
    assert "research only" in text
