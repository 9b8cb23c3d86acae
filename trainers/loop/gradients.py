"""Gradients averaged over all processes while the backward pass still computes others.

Parameters are put into buckets, in the order in which the gradients of the first update came. A bucket is sent as soon
as all its gradients are there, one message for many tensors. Every process sends its buckets in the same order, over a
group of its own, so that the gathers of a method's loss cannot be mixed up with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.loop import distributed

BUCKET_BYTES = 25 * 2**20  # of a message: many small ones cost time each, few large ones begin late


@dataclass
class _Bucket:
    """Numbers of the parameters whose gradients travel together, how many are still to come, and the message."""

    parameters: list[int]
    missing: int = 0
    flat: Tensor | None = None
    work: Any = None


class MeanGradients:
    """Replaces the gradients of parameters by their means over all processes; with one process it does nothing.

    A parameter without a gradient here but with one elsewhere counts as zero; one that no process used keeps None, so
    that an optimizer leaves it alone exactly as a single process would. Messages have one type for all, the one that
    holds every gradient: sums of float16 gradients beside float32 ones are float32.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
        self._parameters, self._bucket_bytes = list(parameters), bucket_bytes
        self._sent, self._sending = 0, False
        self._hooks: list[Any] = []
        self._buckets: list[_Bucket] = []
        self._arrivals: list[int] | None = []  # in the first update
        if distributed.world() == 1 or not self._parameters:
            return
        self._dtype = self._parameters[0].dtype
        for parameter in self._parameters:
            self._dtype = torch.promote_types(self._dtype, parameter.dtype)
        self._group = dist.new_group()
        self._arrange(range(len(self._parameters) - 1, -1, -1))
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, number))
            for number, parameter in enumerate(self._parameters)
            if parameter.requires_grad
        ]

    @property
    def sent(self) -> int:
        """Number of buckets that this update has sent."""
        return self._sent

    @contextmanager
    def last_backward(self) -> Iterator[None]:
        """The backward pass after which no gradient of this update changes: what is complete in it is sent."""
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._sending = True
        try:
            yield
        finally:
            self._sending = False

    def _arrived(self, number: int, _: Tensor) -> None:
        if not self._sending:
            return
        if self._arrivals is not None:
            self._arrivals.append(number)
        self._bucket_of[number].missing -= 1
        while self._sent < len(self._buckets) and self._buckets[self._sent].missing == 0:
            self._send()

    def _send(self) -> None:
        """Send the next bucket; a gradient that is not there counts as zero."""
        bucket = self._buckets[self._sent]
        own = [self._parameters[number] for number in bucket.parameters]
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in own]
        bucket.flat = torch.cat([part.to(self._dtype) for part in parts])
        bucket.work = dist.all_reduce(bucket.flat, group=self._group, async_op=True)
        self._sent += 1

    def finish(self) -> None:
        """Send what is left, wait for all messages, and put the means into the gradients."""
        if not self._buckets:
            return
        used = distributed.agree(*(parameter.grad is not None for parameter in self._parameters))
        while self._sent < len(self._buckets):
            self._send()
        for bucket in self._buckets:
            self._receive(bucket, used)
        self._sent = 0
        if self._arrivals is not None:
            self._arrange(self._shared_order(self._arrivals))
            self._arrivals = None

    def _receive(self, bucket: _Bucket, used: Sequence[int]) -> None:
        """Wait for a bucket and put its means into the gradients of the parameters that any process used."""
        bucket.work.wait()
        assert bucket.flat is not None
        bucket.flat /= distributed.world()
        own = [self._parameters[number] for number in bucket.parameters]
        parts = bucket.flat.split([parameter.numel() for parameter in own])
        for number, parameter, part in zip(bucket.parameters, own, parts, strict=True):
            if used[number]:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(part.view_as(parameter))
        bucket.flat = bucket.work = None

    def _shared_order(self, arrivals: list[int]) -> list[int]:
        """The order of the first process: as its gradients came, then what got none, which nothing is to wait for."""
        rest = set(range(len(self._parameters))) - set(arrivals)
        order = torch.tensor([*arrivals, *sorted(rest)], device=self._parameters[0].device)
        return [int(number) for number in distributed.share(order).tolist()]

    def _arrange(self, order: Iterable[int]) -> None:
        """Put the parameters into buckets, in some order."""
        self._buckets, size = [_Bucket([])], 0
        for number in order:
            own = self._parameters[number].numel() * self._dtype.itemsize
            if self._buckets[-1].parameters and size + own > self._bucket_bytes:
                self._buckets.append(_Bucket([]))
                size = 0
            self._buckets[-1].parameters.append(number)
            size += own
        self._bucket_of = {number: bucket for bucket in self._buckets for number in bucket.parameters}

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
