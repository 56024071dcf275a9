"""Distances, triplets and mining against loops over all of them."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from idgen.errors import ConfigError
from idgen.objectives.identity import MININGS, choose_negatives, cosine_distance, triplet_loss


def unit(*shape: int) -> Tensor:
    return normalize(torch.randn(*shape), dim=-1)


def test_distance_and_triplet_are_those_of_a_loop() -> None:
    a, p, n = unit(6, 8), unit(6, 8), unit(6, 8)
    for i in range(6):
        to_p, to_n = (
            1 - sum(x * y for x, y in zip(a[i].tolist(), q[i].tolist(), strict=True)) for q in (p, n)
        )
        assert cosine_distance(a, p)[i].item() == pytest.approx(to_p, abs=1e-6)
        for margin in (0.2, 1.0):
            loss = triplet_loss(a, p, n, margin=margin)[i].item()
            assert loss == pytest.approx(max(0.0, to_p - to_n + margin), abs=1e-6)


def test_turning_all_vectors_changes_nothing() -> None:
    a, p, n = unit(6, 8), unit(6, 8), unit(6, 8)
    turn, _ = torch.linalg.qr(torch.randn(8, 8))
    assert torch.allclose(triplet_loss(a, p, n), triplet_loss(a @ turn, p @ turn, n @ turn), atol=1e-6)


def test_gradients_pull_to_the_person_and_away_from_others() -> None:
    a = unit(3, 8).requires_grad_()
    p, n = unit(3, 8), unit(3, 8)
    triplet_loss(a, p, n, margin=2.0).sum().backward()
    assert a.grad is not None
    assert torch.allclose(a.grad, n - p, atol=1e-6)


def test_satisfied_triplets_are_still() -> None:
    a = unit(3, 8).requires_grad_()
    loss = triplet_loss(a, a.detach(), -a.detach(), margin=1.0)
    loss.sum().backward()
    assert not loss.any()
    assert a.grad is not None
    assert not a.grad.any()


def by_loop(a: Tensor, p: Tensor, person: Tensor, bank: Tensor, of: Tensor, mining: str) -> list[int]:
    chosen = []
    for i in range(len(a)):
        others = [(1 - float(a[i] @ bank[j]), j) for j in range(len(bank)) if of[j] != person[i]]
        farther = [pair for pair in others if pair[0] > 1 - float(a[i] @ p[i])]
        if mining == "hard":
            chosen.append(min(others)[1])
        else:
            chosen.append(min(farther)[1] if farther else max(others)[1])
    return chosen


@pytest.mark.parametrize("mining", ["semi-hard", "hard"])
@pytest.mark.parametrize("seed", range(5))
def test_mining_is_that_of_a_loop(mining: str, seed: int) -> None:
    torch.manual_seed(seed)
    bank, of = unit(12, 6), torch.arange(12) // 3
    person = torch.tensor([0, 1, 2, 3, 0, 9])
    a = unit(6, 6)
    p = normalize(a + (0.2 if seed % 2 else 3.0) * unit(6, 6), dim=-1)
    rows = choose_negatives(a, p, person, bank, of, mining=mining)  # pyright: ignore[reportArgumentType]
    assert rows.tolist() == by_loop(a, p, person, bank, of, mining)


def test_chance_reaches_everybody_else_and_nobody_of_the_same_person() -> None:
    bank, of = unit(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    a, person = unit(1, 4).expand(3000, 4), torch.zeros(3000, dtype=torch.long)
    draw = torch.rand(len(a), len(bank), generator=torch.Generator().manual_seed(1))
    rows = choose_negatives(a, a, person, bank, of, draw=draw)
    counts = torch.bincount(rows, minlength=6)
    assert not counts[:2].any()
    assert (counts[2:] > 650).all()  # 750 expected each, standard deviation 24


@pytest.mark.parametrize("mining", MININGS)
def test_a_batch_of_one_person_has_no_negative(mining: str) -> None:
    a = unit(2, 4)
    with pytest.raises(ConfigError, match="no negative for row 1"):
        choose_negatives(a, a, torch.tensor([0, 5]), a, torch.tensor([5, 5]), mining=mining)  # pyright: ignore


def test_bad_settings_are_refused() -> None:
    a = unit(2, 4)
    with pytest.raises(ConfigError, match=r"\(0, 2\].*got 3"):
        triplet_loss(a, a, a, margin=3)
    with pytest.raises(ConfigError, match="'easy'"):
        choose_negatives(a, a, torch.tensor([0, 1]), a, torch.tensor([0, 1]), mining="easy")  # pyright: ignore
