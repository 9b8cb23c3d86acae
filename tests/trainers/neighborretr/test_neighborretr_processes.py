"""NeighborRetr's gradients do not depend on how many processes share a batch; the release's do, and can be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from extractors.backbones.weights import import_open_clip
from trainers.loop.gradients import MeanGradients
from trainers.neighborretr.bank import Pairs
from trainers.neighborretr.config import NeighborRetrConfig
from trainers.neighborretr.method import NeighborRetr

DIMS = 64
SHARES = {1: [8], 2: [3, 5], 4: [2, 1, 2, 3]}  # unequal on purpose
SMALL = {
    "max_words": 6,
    "max_frames": 4,
    "num_neighbors": 3,
    "batch_size": 8,
    "bank_size": 11,
    "temporal_layers": 1,
}

Step = tuple[dict[str, Tensor], list[float]]


def made(count: int, seed: int) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    real = [
        torch.arange(slots) < torch.randint(3, slots + 1, (count, 1), generator=drawn) for slots in (6, 4)
    ]
    words, frames = (torch.randn(count, slots, DIMS, generator=drawn) for slots in (6, 4))
    return {"words": words, "word_mask": real[0], "frames": frames, "frame_mask": real[1]}


def steps(from_processes: Callable[..., list[Any]], world: int, **options: object) -> list[Step]:
    """Every process's gradients of two batches, averaged over processes, and what it says of losses and bank."""

    def body(rank: int) -> Step:
        torch.manual_seed(1)
        method = NeighborRetr(NeighborRetrConfig.model_validate({**SMALL, **options}), None, DIMS)
        older = made(11, 5)
        method.bank.push(Pairs(*(older[name] for name in Pairs._fields)))
        torch.manual_seed(7 + rank)  # the others' draws must not matter
        start = sum(SHARES[world][:rank])
        mine = slice(start, start + SHARES[world][rank])
        losses = []
        for step in range(2):
            batch = {name: part[mine] for name, part in made(8, step).items()}
            batch["place"] = torch.arange(8)[mine]
            loss = torch.stack(list(method.losses(batch, 0).values())).sum()
            loss.backward()
            losses.append(loss.item())
        MeanGradients(method.parameters()).finish()
        grads = {name: p.grad for name, p in method.network.named_parameters() if p.grad is not None}
        return grads | method.bank.state_dict(), losses

    found: list[Step] = from_processes(world, body)
    return found


@pytest.fixture(scope="module")
def alone(from_processes: Callable[..., list[Any]]) -> Step:
    import_open_clip()  # once, before any process starts
    (found,) = steps(from_processes, 1, mode="frozen")
    return found


def near(found: Tensor, expected: Tensor) -> None:
    found, expected = found.float(), expected.float()
    floor = 1e-5  # the rounding of gradients that reach hundreds and cancel to less
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4 * float(expected.abs().max()) + floor)


@pytest.mark.parametrize("world", [2, 4])
def test_gradients_losses_and_bank_are_the_same_however_many_processes_share_a_batch(
    world: int, alone: Step, from_processes: Callable[..., list[Any]]
) -> None:
    wanted, losses = alone
    for grads, found in steps(from_processes, world, mode="frozen"):
        assert found == pytest.approx(losses, rel=1e-5)
        assert set(grads) == set(wanted) and "temporal.frame_position_embeddings.weight" in grads
        for name, expected in wanted.items():
            near(grads[name], expected)


def test_gradient_of_the_release_is_a_share_in_front_of_the_gather_and_whole_behind_it(
    alone: Step, from_processes: Callable[..., list[Any]]
) -> None:
    for grads, _ in steps(from_processes, 2, mode="frozen", gather_grad="local"):
        for name, expected in alone[0].items():
            share = 0.5 if name.startswith("temporal.") else 1.0
            if expected.is_floating_point():
                near(grads[name], share * expected)
