"""The margins of ArcFace and CosFace, views, and the networks' mirror images."""

import math

import numpy as np
import pytest
import torch

from idgen.data.views import erase
from idgen.errors import ConfigError
from idgen.recognition.margins import MarginHead
from idgen.recognition.optimize import rate_share
from idgen.recognition.squeeze import SqueezeNet112, mirrored_mean


def by_hand(head: MarginHead, embedding: torch.Tensor, person: torch.Tensor) -> list[float]:
    losses = []
    for vector, own in zip(embedding, person, strict=True):
        logits = []
        for number, centre in enumerate(head.centres.detach()):
            cosine = float(vector @ centre / (vector.norm() * centre.norm()))
            if number == own:
                angle = math.acos(cosine)
                if head.kind == "cosface":
                    cosine -= head.margin
                elif angle + head.margin <= math.pi:
                    cosine = math.cos(angle + head.margin)
                else:
                    cosine -= head.margin * math.sin(head.margin)
            logits.append(head.scale * cosine)
        most = max(logits)
        total = sum(math.exp(value - most) for value in logits)
        losses.append(math.log(total) + most - logits[int(own)])
    return losses


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_the_loss_is_the_formula(kind: str) -> None:
    torch.manual_seed(0)
    head = MarginHead(6, 9, kind=kind, margin=0.4, scale=16)
    embedding, person = torch.randn(12, 6), torch.randint(9, (12,))
    embedding[0] = -5 * head.centres[person[0]].detach()  # the angle is pi: where arcface is continued
    with torch.no_grad():
        loss = head(embedding, person)
    np.testing.assert_allclose(loss.numpy(), by_hand(head, embedding, person), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_the_loss_falls_all_the_way_to_the_own_centre(kind: str) -> None:
    head = MarginHead(2, 2, kind=kind, margin=0.5, scale=8)
    head.centres.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    angles = torch.linspace(-math.pi + 1e-3, 0, 60)
    embedding = torch.stack([angles.cos(), angles.sin()], dim=1)
    own = MarginHead.forward(head, embedding, torch.zeros(60, dtype=torch.long))
    logit = (embedding @ head.centres.T)[:, :1]
    harder = head._harder(logit, head.margin)
    assert (harder.diff(dim=0) > 0).all()
    assert own[-1] < own[0]
    assert (head(embedding, torch.zeros(60, dtype=torch.long), 0.0) <= own + 1e-6).all()


def test_wrong_margins_are_refused() -> None:
    for wrong, message in [({"kind": "sphereface"}, "arcface or cosface"), ({"margin": 1.2}, r"\[0, 1\)")]:
        with pytest.raises(ConfigError, match=message):
            MarginHead(4, 3, **wrong)  # pyright: ignore[reportArgumentType]


def test_a_face_and_its_mirror_image_have_one_embedding() -> None:
    torch.manual_seed(0)
    network = SqueezeNet112((32, 64), (1, 1), 8).eval()
    pixel_values = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(
            mirrored_mean(network, pixel_values), mirrored_mean(network, pixel_values.flip(-1))
        )
        assert network(pixel_values).shape == (2, 8)


def test_erasing_takes_one_rectangle_and_no_more() -> None:
    views = torch.full((40, 3, 112, 112), 2.0)  # no colour has this value
    erased = erase(views, 0.5, torch.Generator().manual_seed(1))
    changed = (erased != views).any(dim=1)
    share = changed.float().mean(dim=(1, 2))
    assert 8 <= int((share > 0).sum()) <= 32
    assert share.max() <= 0.25
    for mask in changed[share > 0]:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert mask.sum() == rows.sum() * columns.sum()
    assert torch.equal(erase(views, 0.0, torch.Generator().manual_seed(1)), views)


def test_rates_fall_as_said() -> None:
    steps = {"steps": 100, "warmup_steps": 0}
    dropped = [
        rate_share(step, schedule="steps", drops=(0.5, 0.9), **steps) for step in (0, 49, 50, 89, 90, 99)
    ]
    np.testing.assert_allclose(dropped, [1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = [rate_share(step, schedule="cosine", **steps) for step in (0, 50, 100)]
    np.testing.assert_allclose(cosine, [1, 0.505, 0.01])
    rising = {"steps": 110, "warmup_steps": 10}
    polynomial = [rate_share(step, schedule="polynomial", **rising) for step in (0, 4, 9, 10, 60, 110)]
    np.testing.assert_allclose(polynomial, [0.1, 0.5, 1, 1, 0.25, 0], atol=1e-12)
