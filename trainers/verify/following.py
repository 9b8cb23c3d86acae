"""The training loop itself on the recorded batches, against the losses that the authors' training had.

The modules of the cases make the recorded updates one by one, because gradients, rates and norms are recorded between
them. Users train with `trainers.loop.engine.fit`; here it makes the same updates, with its clipping, its order of work
and its files, and is compared with both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainers.config import Recipe
from trainers.loop.engine import fit
from trainers.method import Batch, Method
from trainers.verify.cases import Quantity, compare, worst

SAME = 1e-4  # of the greatest value: a gradient of rounding alone, as of a bias that a softmax ignores, makes 1e-5
FIGURE = "one"  # what is validated, since the last epoch is the only one

Loss = Callable[[int], Tensor]
"""The whole loss of an update by its number, from 0."""


def training_loop(
    method: Method,
    loss: Loss,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    expected: Sequence[float],
    allowed: float,
    updated: Method,
) -> Iterator[Quantity]:
    """Losses of the training loop against `expected`, and its weights against those of `updated`.

    `method` has the recorded weights, `optimizer` its parameters, `loss` its losses; `updated` is another that made
    the same updates one by one. `allowed` is the absolute error of a loss.
    """
    losses = trained(method, loss, recipe, optimizer, len(expected))
    yield compare("training loop losses", losses, expected, allowed, f"{len(expected)} updates")
    others = dict(updated.named_parameters())
    weights = [
        compare(name, value.detach(), others[name].detach(), SAME * float(others[name].detach().abs().max()))
        for name, value in method.named_parameters()
    ]
    yield from worst("training loop weights", weights)


def trained(
    method: Method, loss: Loss, recipe: Recipe, optimizer: torch.optim.Optimizer, updates: int
) -> list[float]:
    """The loss before each update that the training loop makes; on return the method has the last weights."""
    following = _Following(method, loss)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            following, _Updates(updates), recipe.model_copy(update={"epochs": 1}), optimizer,
            validate=lambda _: {FIGURE: 1.0}, figure=FIGURE, folder=Path(folder), device=torch.get_default_device(),
        )  # fmt: skip
    return following.seen


class _Following(Method):
    """A method whose loss is that of a recorded update."""

    def __init__(self, method: Method, loss: Loss) -> None:
        super().__init__()
        self.method, self.loss = method, loss
        self.seen: list[float] = []

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The loss of the update that the batch names."""
        value = self.loss(int(batch["number"]))
        self.seen.append(value.item())
        return {"loss": value}


class _Updates:
    """An epoch whose batches are the numbers of recorded updates."""

    def __init__(self, count: int) -> None:
        self.count = count

    def train_steps(self, world: int = 1) -> int:
        """The number of updates."""
        return self.count

    def train_batches(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The number of each update, in order."""
        yield from ({"number": torch.tensor(number)} for number in range(self.count))

    def item_batches(self, split: str) -> Iterator[Batch]:
        """Nothing: nothing is evaluated."""
        return iter(())

    def text_batches(self, split: str) -> Iterator[Batch]:
        """Nothing: nothing is evaluated."""
        return iter(())
