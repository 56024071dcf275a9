"""Every head against its formula in plain Python, and what partial classification leaves alone."""

import itertools
import math
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from idgen.errors import ConfigError, UnknownNameError
from idgen.recognition.heads import build_head, heads
from idgen.recognition.in_batch import usual_negatives
from idgen.recognition.margins import AdaFaceHead, AngularHead, CentreHead
from idgen.recognition.pairs import PairHead
from idgen.recognition.partial import PartialHead, RowSGD

DIM, PEOPLE = 6, 9
WITH_CENTRES = ["softmax", "asoftmax", "cosface", "arcface", "subcenter_arcface", "adaface", "unpg",
                "softmax_triplet"]  # fmt: skip
PAIRS = ["triplet", "multi_similarity", "supcon", "distance_margin"]
Vector = Sequence[float]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a: Vector) -> list[float]:
    return [x / math.sqrt(dot(a, a)) for x in a]


def cos(a: Vector, b: Vector) -> float:
    return dot(unit(a), unit(b))


def cross_entropy(logits: Vector, own: int) -> float:
    most = max(logits)
    return math.log(sum(math.exp(value - most) for value in logits)) + most - logits[own]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Three faces of each of five people, of very different lengths."""
    torch.manual_seed(1)
    length = torch.linspace(0.5, 40, 15)[:, None]
    return torch.nn.functional.normalize(torch.randn(15, DIM)) * length, torch.arange(5).repeat_interleave(
        3
    ) + 2


def as_lists(head: torch.nn.Module, embedding: torch.Tensor) -> tuple[list[list[float]], list[list[float]]]:
    assert isinstance(head, CentreHead)
    return head.centres.detach().double().tolist(), embedding.double().tolist()


def test_softmax_is_plain(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    head = build_head("softmax", DIM, PEOPLE)
    centres, faces = as_lists(head, batch[0])
    expected = [
        cross_entropy([dot(face, centre) for centre in centres], own)
        for face, own in zip(faces, batch[1].tolist(), strict=True)
    ]
    np.testing.assert_allclose(head(*batch).detach(), expected, rtol=1e-4, atol=1e-4)


def psi(angle: float, m: int) -> float:
    """SphereFace, by the intervals of its definition."""
    for k in range(m):
        if k * math.pi / m <= angle <= (k + 1) * math.pi / m:
            return (-1) ** k * math.cos(m * angle) - 2 * k
    raise AssertionError(angle)


@pytest.mark.parametrize("m", [1, 3, 4])
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_asoftmax_multiplies_the_angle(
    batch: tuple[torch.Tensor, torch.Tensor], m: int, strength: float
) -> None:
    head = build_head("asoftmax", DIM, PEOPLE, margin=m)
    centres, faces = as_lists(head, batch[0])
    expected = []
    for face, own in zip(faces, batch[1].tolist(), strict=True):
        logits = []
        for number, centre in enumerate(centres):
            cosine = cos(face, centre)
            if number == own and strength:
                weight = 5 / strength  # the annealed lambda
                cosine = (weight * cosine + psi(math.acos(cosine), m)) / (1 + weight)
            logits.append(math.sqrt(dot(face, face)) * cosine)
        expected.append(cross_entropy(logits, own))
    np.testing.assert_allclose(head(*batch, strength).detach(), expected, rtol=1e-3, atol=1e-3)


def test_psi_falls_from_one_end_to_the_other() -> None:
    head = AngularHead(2, 2, margin=4, least_lambda=0.0)
    cosine = torch.linspace(1, -1, 400)[:, None]
    values = head.own(cosine, cosine, 1.0)
    assert (values.diff(dim=0) < 0).all()
    assert values[0] == 1
    assert values[-1] == pytest.approx(-7)  # 1 - 2 m


def test_subcenter_arcface_takes_the_nearest_of_three(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    head = build_head("subcenter_arcface", DIM, PEOPLE, margin=0.3, scale=8)
    centres, faces = as_lists(head, batch[0])
    expected = []
    for face, own in zip(faces, batch[1].tolist(), strict=True):
        logits = []
        for number, row in enumerate(centres):
            cosine = max(cos(face, row[k * DIM : (k + 1) * DIM]) for k in range(3))
            if number == own:
                angle = math.acos(cosine)
                cosine = math.cos(angle + 0.3) if angle + 0.3 <= math.pi else cosine - 0.3 * math.sin(0.3)
            logits.append(8 * cosine)
        expected.append(cross_entropy(logits, own))
    np.testing.assert_allclose(head(*batch).detach(), expected, rtol=1e-4, atol=1e-4)


def test_adaface_goes_by_the_length_and_remembers_lengths(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    head = build_head("adaface", DIM, PEOPLE, scale=16)
    assert isinstance(head, AdaFaceHead)
    centres, faces = as_lists(head, batch[0])
    mean, std = 20.0, 100.0
    for _ in range(3):  # the running numbers move with every batch
        lengths = [min(max(math.sqrt(dot(face, face)), 1e-3), 100) for face in faces]
        of_batch = sum(lengths) / len(lengths)
        spread = math.sqrt(sum((x - of_batch) ** 2 for x in lengths) / (len(lengths) - 1))
        mean, std = 0.99 * mean + 0.01 * of_batch, 0.99 * std + 0.01 * spread
        expected = []
        for face, own, length in zip(faces, batch[1].tolist(), lengths, strict=True):
            z = min(max((length - mean) / (std + 1e-3) * 0.333, -1), 1)
            logits = []
            for number, centre in enumerate(centres):
                cosine = min(max(cos(face, centre), -1 + 1e-3), 1 - 1e-3)
                if number == own:
                    angle = min(max(math.acos(cosine) - 0.4 * z, 1e-3), math.pi - 1e-3)
                    cosine = math.cos(angle) - (0.4 + 0.4 * z)
                logits.append(16 * cosine)
            expected.append(cross_entropy(logits, own))
        np.testing.assert_allclose(head(*batch).detach(), expected, rtol=1e-4, atol=1e-4)
    assert set(head.state_dict()) == {"centres", "norm_mean", "norm_std"}
    before = head.norm_mean.clone()
    head.eval()(*batch)
    assert head.norm_mean == before


def test_unpg_adds_the_usual_pairs_of_two_people(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    embedding, person = batch
    embedding[0] = 3 * embedding[4]  # a pair of two people that is far too alike
    head = build_head("unpg", DIM, PEOPLE, margin=0.2, scale=8)
    centres, faces = as_lists(head, embedding)
    owners = person.tolist()
    negatives = sorted(
        cos(faces[i], faces[j])
        for i, j in itertools.combinations(range(len(faces)), 2)
        if owners[i] != owners[j]
    )
    low, high = negatives[int(0.25 * len(negatives))], negatives[int(0.75 * len(negatives))]
    reach = 0.4 * (high - low)  # so that some are outliers
    kept = [value for value in negatives if low - reach <= value <= high + reach]
    assert 0 < len(kept) < len(negatives)
    torch.testing.assert_close(
        usual_negatives(embedding, person, 0.4).sort().values, torch.tensor(kept), atol=1e-5, rtol=0
    )
    head.whisker = 0.4
    expected = []
    for face, own in zip(faces, owners, strict=True):
        logits = []
        for number, centre in enumerate(centres):
            angle = math.acos(cos(face, centre))
            logits.append(8 * math.cos(angle + (0.2 if number == own else 0.0)))
        expected.append(cross_entropy([*logits, *(8 * value for value in kept)], own))
    np.testing.assert_allclose(head(*batch).detach(), expected, rtol=1e-4, atol=1e-4)
    alone = torch.zeros(15, dtype=torch.long)  # nobody else in the batch: plain ArcFace
    arcface = build_head("arcface", DIM, PEOPLE, margin=0.2, scale=8)
    arcface.load_state_dict(head.state_dict())
    torch.testing.assert_close(head(embedding, alone), arcface(embedding, alone))


def hardest(faces: list[list[float]], owners: list[int], row: int) -> tuple[float, float]:
    def distance(other: int) -> float:
        return math.dist(unit(faces[row]), unit(faces[other]))

    positives = [distance(j) for j in range(len(faces)) if owners[j] == owners[row] and j != row]
    return max(positives), min(distance(j) for j in range(len(faces)) if owners[j] != owners[row])


def test_the_joint_head_adds_the_hardest_triplet(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    head = build_head("softmax_triplet", DIM, PEOPLE, margin=0.3)
    centres, faces = as_lists(head, batch[0])
    owners = batch[1].tolist()
    expected = []
    for row, own in enumerate(owners):
        positive, negative = hardest(faces, owners, row)
        plain = cross_entropy([dot(faces[row], centre) for centre in centres], own)
        expected.append(plain + max(0.0, positive - negative + 0.3))
    np.testing.assert_allclose(head(*batch).detach(), expected, rtol=1e-4, atol=1e-4)


def test_a_batch_without_a_second_picture_or_a_second_person_has_no_triplet() -> None:
    head, plain = build_head("softmax_triplet", DIM, PEOPLE), build_head("softmax", DIM, PEOPLE)
    plain.load_state_dict(head.state_dict())
    embedding = torch.randn(4, DIM, requires_grad=True)
    for person in (torch.arange(4), torch.zeros(4, dtype=torch.long)):
        loss = head(embedding, person)
        torch.testing.assert_close(loss, plain(embedding, person))
        (gradient,) = torch.autograd.grad(loss.sum(), embedding)
        assert gradient.isfinite().all()


# ---- losses of pytorch-metric-learning, which state their units nowhere but here


def triplets(owners: list[int]) -> list[tuple[int, int, int]]:
    rows = range(len(owners))
    return [(a, p, n) for a in rows for p in rows for n in rows
            if a != p and owners[a] == owners[p] and owners[a] != owners[n]]  # fmt: skip


def test_triplet_is_semi_hard_on_squared_distances(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    faces, owners = [unit(face) for face in batch[0].double().tolist()], batch[1].tolist()
    violations = []
    for a, p, n in triplets(owners):
        gap = math.dist(faces[a], faces[n]) ** 2 - math.dist(faces[a], faces[p]) ** 2
        if 0 < gap <= 0.5:  # farther than the positive, and still within the margin
            violations.append(0.5 - gap)
    assert len(violations) > 5
    expected = sum(violations) / sum(value > 0 for value in violations)
    assert build_head("triplet", DIM, PEOPLE, margin=0.5)(*batch).item() == pytest.approx(expected, rel=1e-4)


def test_multi_similarity_mines_and_weighs(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    faces, owners = batch[0].double().tolist(), batch[1].tolist()
    rows = range(len(faces))
    total = 0.0
    for a in rows:
        positive = {j: cos(faces[a], faces[j]) for j in rows if owners[j] == owners[a] and j != a}
        negative = {j: cos(faces[a], faces[j]) for j in rows if owners[j] != owners[a]}
        kept_positive = [s for s in positive.values() if s - 0.1 < max(negative.values())]
        kept_negative = [s for s in negative.values() if s + 0.1 > min(positive.values())]
        total += math.log(1 + sum(math.exp(-2 * (s - 0.5)) for s in kept_positive)) / 2
        total += math.log(1 + sum(math.exp(50 * (s - 0.5)) for s in kept_negative)) / 50
    head = build_head("multi_similarity", DIM, PEOPLE)
    assert head(*batch).item() == pytest.approx(total / len(faces), rel=1e-4)


def test_supcon_is_its_formula(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    faces, owners = batch[0].double().tolist(), batch[1].tolist()
    rows, total = range(len(faces)), 0.0
    for a in rows:
        logits = {j: cos(faces[a], faces[j]) / 0.1 for j in rows if j != a}
        whole = math.log(sum(math.exp(value) for value in logits.values()))
        own = [logits[j] for j in logits if owners[j] == owners[a]]
        total += sum(whole - value for value in own) / len(own)
    assert build_head("supcon", DIM, PEOPLE)(*batch).item() == pytest.approx(total / len(faces), rel=1e-4)


def test_the_margin_loss_is_its_formula_on_what_was_mined(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    head = build_head("distance_margin", DIM, PEOPLE)
    assert isinstance(head, PairHead)
    faces, owners = [unit(face) for face in batch[0].double().tolist()], batch[1].tolist()
    torch.manual_seed(5)
    mined = list(zip(*(part.tolist() for part in head.mine(*batch)), strict=True))
    assert mined
    assert set(mined) <= set(triplets(owners))
    positive = [max(0.0, 0.2 + math.dist(faces[a], faces[p]) - 1.2) for a, p, _ in mined]
    negative = [max(0.0, 0.2 + 1.2 - math.dist(faces[a], faces[n])) for a, _, n in mined]
    active = sum(value > 0 for value in (*positive, *negative))
    torch.manual_seed(5)
    assert head(*batch).item() == pytest.approx((sum(positive) + sum(negative)) / active, rel=1e-4)


def test_negatives_are_drawn_by_their_distance() -> None:
    """Wu et al. 2017, eq. 4: as often as ``1 / q(d)``, q the density of distances on the sphere."""
    head = build_head("distance_margin", 16, 3)
    assert isinstance(head, PairHead)
    torch.manual_seed(0)
    anchor = torch.nn.functional.normalize(torch.randn(16), dim=0)
    away = torch.nn.functional.normalize(torch.randn(16) - (torch.randn(16) @ anchor) * anchor, dim=0)
    away = torch.nn.functional.normalize(away - (away @ anchor) * anchor, dim=0)
    wanted = [0.2, 0.7, 0.9, 1.1, 1.3, 1.6]  # 0.2 counts as 0.5, and 1.6 is too far to be drawn
    angles = [2 * math.asin(distance / 2) for distance in wanted]
    faces = torch.stack([anchor, anchor, *(math.cos(a) * anchor + math.sin(a) * away for a in angles)])
    person = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    drawn: Counter[int] = Counter()
    for _ in range(1500):
        anchors, _, negatives = head.mine(faces, person)
        drawn.update(negatives[anchors == 0].tolist())

    def weight(distance: float) -> float:
        near = max(distance, 0.5)
        return math.exp((2 - 16) * math.log(near) - (16 - 3) / 2 * math.log(1 - near**2 / 4))

    weights = [weight(distance) if distance < 1.4 else 0.0 for distance in wanted]
    for row, expected in enumerate(weights, 2):
        share = drawn[row] / drawn.total()
        assert share == pytest.approx(expected / sum(weights), abs=0.03), wanted[row - 2]


def test_a_missing_library_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ConfigError) as caught:
        build_head("supcon", DIM, PEOPLE)
    assert str(caught.value) == (
        "the head supcon needs pytorch-metric-learning, which is not installed: pip install 'idgen[metric]'"
    )


# ---- all of them


@pytest.mark.parametrize("name", [*WITH_CENTRES, *PAIRS])
def test_every_head_pulls_a_face_and_gives_finite_gradients(
    batch: tuple[torch.Tensor, torch.Tensor], name: str
) -> None:
    head = build_head(name, DIM, PEOPLE)
    embedding = batch[0].clone().requires_grad_()
    loss = head(embedding, batch[1], 0.5).mean()
    loss.backward()
    assert embedding.grad is not None
    assert embedding.grad.isfinite().all()
    assert embedding.grad.any()
    moved = head((embedding - 1e-3 * embedding.grad / embedding.grad.norm()).detach(), batch[1], 0.5).mean()
    assert name == "distance_margin" or moved < loss  # that one draws other triplets


def test_all_heads_are_known() -> None:
    assert set(heads) == {*WITH_CENTRES, *PAIRS}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("arcfase", {}, "no head called 'arcfase'; did you mean 'arcface'?"),
        ("arcface", {"margin": 1.2}, "margin must be in [0, 1) and scale positive and finite, got 1.2"),
        ("adaface", {"scale": 0.0}, "margin must be in [0, 1) and scale positive and finite, got 0.4"),
        ("asoftmax", {"margin": 2.5}, "the margin of asoftmax must be a whole number from 1 to 8, got 2.5"),
        ("asoftmax", {"scale": 8.0}, "the head asoftmax has no scale, got 8.0; leave it out"),
        ("softmax", {"margin": 0.3}, "the head softmax has no margin, got 0.3; leave it out"),
        ("softmax_triplet", {"margin": 2.0}, "the margin of softmax_triplet must be in [0, 2)"),
        ("triplet", {"margin": 4.0}, "the margin of triplet must be in [0, 4), got 4.0"),
        ("distance_margin", {"margin": 2.0}, "the margin of distance_margin must be in [0, 2), got 2.0"),
        ("supcon", {"margin": 0.1}, "the head supcon has no margin, got 0.1; leave it out"),
        ("triplet", {"scale": 2.0}, "the head triplet has no scale, got 2.0; leave it out"),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError)) as caught:
        build_head(name, DIM, PEOPLE, **settings)
    assert str(caught.value).startswith(message)


# ---- a share of the centres


@pytest.mark.parametrize("name", WITH_CENTRES)
def test_the_whole_share_is_the_head_itself(batch: tuple[torch.Tensor, torch.Tensor], name: str) -> None:
    """Ten steps with momentum and weight decay: the same losses, the same centres."""
    torch.manual_seed(2)
    whole = build_head(name, DIM, PEOPLE)
    partial = PartialHead(build_head(name, DIM, PEOPLE), 1.0)
    partial.head.load_state_dict(whole.state_dict())
    plain = torch.optim.SGD(whole.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    rows = RowSGD(list(partial.parameters()), 0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(10):
        losses = [head(*batch) for head in (whole, partial)]
        assert torch.equal(*losses)
        for loss, optimizer in zip(losses, (plain, rows), strict=True):
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
    assert isinstance(whole, CentreHead)
    torch.testing.assert_close(whole.centres, partial.head.centres, rtol=1e-6, atol=1e-7)


def test_centres_that_are_not_drawn_stay_bit_for_bit() -> None:
    """Also those that were drawn before, which momentum and weight decay move in plain SGD."""
    torch.manual_seed(0)
    partial = PartialHead(build_head("cosface", DIM, 400, scale=8), 0.1)
    rows = RowSGD(list(partial.parameters()), 0.5, momentum=0.9, weight_decay=0.1)
    centres, person = partial.head.centres, torch.tensor([3, 3, 7, 250])
    before_ever: set[int] = set()
    num_rested = 0
    for step in range(12):
        rows.zero_grad()
        before = centres.detach().clone()
        torch.manual_seed(step)
        partial(torch.randn(4, DIM), person).mean().backward()
        assert centres.grad is not None
        assert centres.grad.is_sparse
        drawn = set(centres.grad.coalesce().indices()[0].tolist())
        rows.step()
        moved = set((centres != before).any(dim=1).nonzero().flatten().tolist())
        assert moved == drawn
        assert {3, 7, 250} <= drawn
        assert len(drawn) == 40
        num_rested += len(before_ever - drawn)
        before_ever |= drawn
    assert num_rested > 100
    assert len(before_ever) > 200  # others are drawn every time


def test_a_batch_of_more_people_than_the_share_has_them_all() -> None:
    partial = PartialHead(build_head("arcface", DIM, 100), 0.05)
    person = torch.tensor([90, 3, 3, 41, 99, 0, 12, 77])
    assert partial.sample(person).tolist() == [0, 3, 12, 41, 77, 90, 99]
    few = partial.sample(torch.tensor([50]))
    assert len(few) == 5
    assert 50 in few
    assert (few.diff() > 0).all()


def test_wrong_shares_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the share of the centres must be in \(0, 1\], got 0"):
        PartialHead(build_head("arcface", DIM, PEOPLE), 0)
    with pytest.raises(ConfigError, match="is for heads with a centre for each person"):
        PartialHead(build_head("supcon", DIM, PEOPLE), 0.5)
