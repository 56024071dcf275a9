"""Optimisers of a recogniser and its head, and how the rate falls."""

import math
from typing import Literal

import torch
from torch import nn

from idgen.errors import ConfigError
from idgen.recognition.muon import Muon
from idgen.recognition.partial import PartialHead, RowSGD

Schedule = Literal["cosine", "steps", "polynomial"]


def rate_share(
    step: int, steps: int, *, schedule: Schedule, warmup_steps: int, drops: tuple[float, ...] = ()
) -> float:
    """Share of the full rates at ``step``, after a linear start.

    ``cosine`` falls to 1 %; ``steps`` to a tenth at each of ``drops`` (shares of all steps); ``polynomial``
    as ``(1 - t)^2`` with t from 0 to 1 after the start, the schedule of insightface's arcface_torch.
    """
    start = min(1.0, (step + 1) / max(1, warmup_steps))
    if schedule == "cosine":
        return start * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
    if schedule == "steps":
        return start * 0.1 ** sum(step >= drop * steps for drop in drops)
    done = max(0, step - warmup_steps) / max(1, steps - warmup_steps)
    return start * (1 - done) ** 2


def muon_and_adam(
    network: nn.Module, head: nn.Module, *, muon_rate: float, adam_rate: float, decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions behind the first that mix channels, AdamW for everything else.

    Raises:
        ConfigError: for a head of which some centres take part only.
    """
    if isinstance(head, PartialHead):
        raise ConfigError("a share of the centres (centre_share) needs optimizer: sgd, got muon")
    matrices = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1][1:]
    chosen = {id(p) for p in matrices}
    rest = [p for module in (network, head) for p in module.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, adam_rate, betas=(0.9, 0.99), weight_decay=decay)
    return [Muon(matrices, muon_rate), adam]


def sgd(
    network: nn.Module, head: nn.Module, *, rate: float, momentum: float, decay: float
) -> list[torch.optim.Optimizer]:
    """SGD for both; centres of which some take part only move when they do."""
    if isinstance(head, PartialHead):
        rows = RowSGD(list(head.parameters()), rate, momentum, decay)
        return [torch.optim.SGD(network.parameters(), rate, momentum=momentum, weight_decay=decay), rows]
    both = [*network.parameters(), *head.parameters()]
    return [torch.optim.SGD(both, rate, momentum=momentum, weight_decay=decay)]
