"""Several processes that train one model, as torchrun starts them; alone, a process needs no group.

What a rank must agree on with the others goes through here: gathered embeddings, decisions; gradients go through
`trainers.loop.gradients`. With one process every function gives back what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """Which process this is, from 0; the first alone writes files."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world() -> int:
    """How many of these processes run on this machine, and share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The group of all processes for as long as the block runs; nothing is started for a single process."""
    if world() == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        dist.barrier()


def agree(*flags: int) -> tuple[int, ...]:
    """The largest value of each flag over all processes: what one asks for, all do."""
    if world() == 1:
        return flags
    values = torch.tensor(flags, dtype=torch.int64, device=_device())
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return tuple(int(value) for value in values.tolist())


def from_first(values: Sequence[float]) -> list[float]:
    """The values of the first process, on every process."""
    return _joint(values, lambda tensor: dist.broadcast(tensor, 0))


def shared_seed(below: int = 2**31) -> int:
    """A seed drawn by the first process, for what all processes must draw alike."""
    return int(from_first([float(torch.randint(below, (), dtype=torch.int64))])[0])


def mean(values: Sequence[float]) -> list[float]:
    """The mean of each value over all processes."""
    return [value / world() for value in _joint(values, dist.all_reduce)]


def _joint(values: Sequence[float], collective: Any) -> list[float]:
    if world() == 1:
        return list(values)
    tensor = torch.tensor(list(values), dtype=torch.float64, device=_device())
    collective(tensor)
    return tensor.tolist()


def share_module(module: nn.Module) -> None:
    """Give every process the weights and buffers of the first."""
    for tensor in module.state_dict().values():
        share(tensor)


def share(tensor: Tensor) -> Tensor:
    """The tensor, whose values in every process are then those of the first."""
    if world() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def gather_with_grad(rows: Tensor) -> Tensor:
    """The rows (n_r, ...) of every process r end to end, (sum n_r, ...), in order of rank.

    The gradient flows back to the process each row came from, summed over the losses of all
    processes. With `trainers.loop.gradients`, a loss of the joint batch that every process computes gives the
    gradient one process would have had. Processes may hold different numbers of rows.
    """
    return _Gather.apply(rows) if world() > 1 else rows


def gather(rows: Tensor) -> list[Tensor]:
    """The rows (n_r, ...) of every process, in order of rank, without a gradient."""
    rows = rows.detach().contiguous()
    if world() == 1:
        return [rows]
    if rows.dtype is torch.bool:  # which gloo does not carry
        return [part.bool() for part in gather(rows.to(torch.uint8))]
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    lengths = [int(count) for count in counts]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])  # collectives want equal shapes
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


def joint_order(batch: Mapping[str, Tensor], name: str = "place") -> Tensor | None:
    """Positions (B,) among the gathered rows of the joint batch's rows, in its order; None for one process.

    `batch[name]` (n,) int64 says where each row of this process stands in the joint batch. A place that several
    processes have, because a small batch had no other for them, counts once.
    """
    if world() == 1:
        return None
    places = torch.cat(gather(batch[name]))
    order = places.argsort(stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = places[order][1:] != places[order][:-1]
    return order[first]


def joint(rows: Tensor, order: Tensor | None) -> Tensor:
    """The rows of the joint batch in its own order, with gradients as `gather_with_grad` has them.

    `order` is what `joint_order` gave. In one order whatever the number of processes, what is drawn for a row, which
    rows a memory forgets, and sums are those of one process.
    """
    return rows if order is None else gather_with_grad(rows)[order]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = gather(rows)
        ctx.lengths = [len(part) for part in parts]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        joint = gradients[0].clone(memory_format=torch.contiguous_format)  # autograd owns its buffer
        dist.all_reduce(joint)
        return joint.split(ctx.lengths)[rank()]


def scaled_gradient(value: Tensor, factor: float) -> Tensor:
    """The value as it is, whose gradient is multiplied by `factor` on its way back."""
    return value if factor == 1 else _ScaleGradient.apply(value, factor)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def _device() -> torch.device:
    """Where the group's small messages must live."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
