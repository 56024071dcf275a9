"""Directions in W+: read from the usual files, learned from labels, followed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from idgen.editing.directions import Direction, Directions, Edit, parse_edits, read_directions
from idgen.editing.learn import learn_directions
from idgen.errors import ConfigError, EncoderMismatchError, MeasureError, ModelNotFoundError, WeightsError
from idgen.identity import Feature

E4E = "e4e@" + "0" * 12
RNG = np.random.default_rng(0)


def code() -> Feature:
    return Feature(E4E, "wplus", RNG.standard_normal((6, 8)))


def test_edits_are_read_as_they_are_written() -> None:
    assert parse_edits("smile=+2, turn=-1.5") == (
        Edit(name="smile", amount=2),
        Edit(name="turn", amount=-1.5),
    )
    assert parse_edits("pc10@2-3=.5") == (Edit(name="pc10", amount=0.5, layers=(2, 3)),)


@pytest.mark.parametrize(
    "text", ["smile", "smile=much", "=2", "", "smile=1,,turn=2", "smile@3=1", "smile=nan"]
)
def test_other_edits_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="an edit is written NAME=AMOUNT"):
        parse_edits(text)


def test_an_edit_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="smile is given twice"):
        parse_edits("smile=1,smile=2")


def test_a_code_moves_by_the_sum_of_its_edits() -> None:
    smile, turn = RNG.standard_normal((6, 8)), RNG.standard_normal((1, 8))
    directions = Directions([Direction("smile", smile, E4E), Direction("turn", turn)])
    before = code()
    after = directions.moved(before, parse_edits("smile=2,turn@1-3=-1"))
    wanted = before.value + 2 * smile
    wanted[1:4] -= turn
    assert np.allclose(after.value, wanted, atol=1e-6)
    assert (after.encoder, after.kind) == (E4E, "wplus")


def test_directions_survive_a_file(tmp_path: Path) -> None:
    smile = RNG.standard_normal((6, 8)).astype(np.float32)
    Directions([Direction("smile", smile, E4E), Direction("turn", smile[:1])]).save(
        tmp_path / "d.safetensors"
    )
    found = read_directions(tmp_path / "d.safetensors")
    assert list(found) == ["smile", "turn"]
    assert np.array_equal(found["smile"].value, smile)
    assert (found["smile"].encoder, found["turn"].encoder) == (E4E, None)


def test_the_usual_files_are_read(tmp_path: Path) -> None:
    boundary = RNG.standard_normal((1, 8)).astype(np.float32)
    np.save(tmp_path / "age.npy", boundary)
    assert np.array_equal(read_directions(tmp_path / "age.npy")["age"].value, boundary)
    torch.save(torch.from_numpy(boundary[0]), tmp_path / "pose.pt")
    assert read_directions(tmp_path / "pose.pt")["pose"].value.shape == (1, 8)
    torch.save({"smile": torch.ones(1, 6, 8), "age": torch.ones(8)}, tmp_path / "both.pth")
    assert {name: d.value.shape for name, d in read_directions(tmp_path / "both.pth").items()} == {
        "smile": (6, 8), "age": (1, 8),
    }  # fmt: skip
    torch.save({"comp": torch.eye(8)[:3, None], "std": torch.tensor([2.0, 1, 1])}, tmp_path / "pca.pt")
    components = read_directions(tmp_path / "pca.pt")
    assert list(components) == ["pc0", "pc1", "pc2"]
    assert components["pc0"].value[0, 0] == 2


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file of directions"):
        read_directions(tmp_path / "none.npy")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    np.save(tmp_path / "many.npy", np.zeros((2, 2, 2, 2), np.float32))
    torch.save([1], tmp_path / "list.pt")
    torch.save({"smile": torch.full((8,), torch.nan)}, tmp_path / "nan.pt")
    torch.save({"run": Path}, tmp_path / "code.pt")
    for name in ("cut.npy", "words.npy", "many.npy", "list.pt", "nan.pt", "code.pt"):
        with pytest.raises(WeightsError, match=name):
            read_directions(tmp_path / name)


def test_an_unknown_direction_shows_the_nearest() -> None:
    directions = Directions([Direction("smile", np.ones((1, 8), np.float32))])
    with pytest.raises(ConfigError, match=r"no direction 'smlie'.*smile"):
        directions.moved(code(), parse_edits("smlie=1"))
    with pytest.raises(ConfigError, match="layers go from 0 to 5"):
        directions.moved(code(), parse_edits("smile@4-6=1"))


def test_a_direction_of_another_generator_is_refused() -> None:
    other = "mine@" + "1" * 12
    with pytest.raises(EncoderMismatchError, match=f"of codes of {other}, these are of {E4E}"):
        Directions([Direction("smile", np.ones((1, 8)), other)]).moved(code(), parse_edits("smile=1"))
    with pytest.raises(EncoderMismatchError, match="it is of another generator"):
        Directions([Direction("smile", np.ones((1, 16)))]).moved(code(), parse_edits("smile=1"))


def world(*, correlated: bool) -> tuple[np.ndarray, dict[str, np.ndarray], list[str], dict[str, np.ndarray]]:
    """Codes of 300 people, three pictures each, that change with their labels in a known way."""
    rng = np.random.default_rng(1)
    people = np.repeat(np.arange(300), 3)
    truth = {name: rng.standard_normal((6, 8)) for name in ("smile", "turn", "woman")}
    woman = rng.standard_normal(300)[people]
    smile, turn = rng.standard_normal((2, 900))
    smile = smile + turn if correlated else smile
    labels = {"smile": smile, "turn": 10 * turn, "woman": woman}
    codes = rng.standard_normal((300, 6, 8))[people] * 0.3
    codes = codes + sum(value[:, None, None] * truth[name] for name, value in
                        (("smile", smile), ("turn", turn), ("woman", woman)))  # fmt: skip
    return codes, labels, [str(p) for p in people], truth


@pytest.mark.parametrize("correlated", [False, True])
def test_what_a_label_does_to_a_code_is_found_also_where_labels_go_together(correlated: bool) -> None:
    codes, labels, people, truth = world(correlated=correlated)
    for direction in learn_directions(codes, labels, people, E4E):
        per_unit = direction.value / labels[direction.name].std() * (10 if direction.name == "turn" else 1)
        assert np.abs(per_unit - truth[direction.name]).max() < 0.12, direction.name


def test_with_mirror_images_people_turn_alike_on_the_whole_and_differ_in_the_rest() -> None:
    """The mean turn of everybody is 0 then: nothing to regress between people, and no reason to stop."""
    codes, labels, people, truth = world(correlated=False)
    turned = 2 * (labels["turn"] / 10)[:, None, None] * truth["turn"]
    both = {name: np.concatenate([y, -y if name == "turn" else y]) for name, y in labels.items()}
    learned = learn_directions(np.concatenate([codes, codes - turned]), both, people * 2, E4E)
    for direction in learned:
        per_unit = direction.value / both[direction.name].std() * (10 if direction.name == "turn" else 1)
        assert np.abs(per_unit - truth[direction.name]).max() < 0.12, direction.name


def test_labels_of_too_few_or_alike_are_refused() -> None:
    codes, labels, people, _ = world(correlated=False)
    rare = np.full(900, np.nan)
    rare[:30] = labels["smile"][:30]
    with pytest.raises(MeasureError, match="rare differs in 30 pictures; a direction needs 50"):
        learn_directions(codes, {"rare": rare}, people, E4E)
    with pytest.raises(MeasureError, match="say the same"):
        learn_directions(codes, {"a": labels["smile"], "b": 2 * labels["smile"]}, people, E4E)
