"""Partial classification: of many people, each step looks at those of its batch and at a share of the others.

Shapes: B batch, D embedding width, C people, n people of a step.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding as rows_of

from idgen.errors import ConfigError
from idgen.recognition.margins import CentreHead


class PartialHead(nn.Module):
    """A head that sees, each step, the centres of the batch's people and some others drawn at random.

    An et al. 2021, https://arxiv.org/abs/2010.05222, and 2022, https://arxiv.org/abs/2203.15565: the number
    of centres of a step is ``share`` of all, or that of the batch's people where these are more. Only the
    chosen rows get a gradient, as a sparse tensor, so `RowSGD` need not touch the others.

    Args:
        head: whose centres and formula are used.
        share: of the centres, in (0, 1]; 1 is the head itself.

    Raises:
        ConfigError: for another share, or a head without centres.
    """

    def __init__(self, head: nn.Module, share: float) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ConfigError(f"the share of the centres must be in (0, 1], got {share}")
        if not isinstance(head, CentreHead):
            raise ConfigError("a share of the centres is for heads with a centre for each person")
        self.head, self.share, self.needs_pairs = head, share, head.needs_pairs

    def forward(self, embedding: Tensor, person: Tensor, strength: float = 1.0) -> Tensor:
        """The loss of each face: (B,); the others are drawn by torch's global generator."""
        rows = self.sample(person)
        centres = rows_of(rows, self.head.centres, sparse=True)
        return self.head.loss(embedding, centres, torch.searchsorted(rows, person), strength)

    def sample(self, person: Tensor) -> Tensor:
        """The people of a step, rising: (n,)."""
        num_people = len(self.head.centres)
        order = torch.rand(num_people, device=person.device)
        own = person.unique()
        order[own] = 2.0  # they come first
        count = max(len(own), int(self.share * num_people))
        return order.topk(count).indices.sort().values


class RowSGD(torch.optim.Optimizer):
    """SGD with momentum and weight decay for the rows that have a gradient; all others stay as they are.

    A row that is not drawn would move in plain SGD by what its momentum remembers of earlier steps, and
    shrink by weight decay. Here its weight and its momentum are frozen until it is drawn again: the gradient
    of a centre says nothing once the embeddings have moved on, and its length has no part in a cosine. With
    all rows in every step it equals ``torch.optim.SGD``, which cannot decay weights with sparse gradients.

    Args:
        parameters: matrices whose gradients are sparse in the first axis.
        lr: length of a step.
        momentum: share of the old direction that is kept, in [0, 1).
        weight_decay: share of the weight that is added to its gradient.
    """

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of the rows with a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = weight.grad.coalesce()
                rows = gradient.indices()[0]
                kept = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                old = weight[rows]
                new = kept[rows].mul_(group["momentum"])
                new.add_(gradient.values().add(old, alpha=group["weight_decay"]))
                kept[rows] = new
                weight[rows] = old.add(new, alpha=-group["lr"])
