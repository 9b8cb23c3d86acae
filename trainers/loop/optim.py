"""The optimizers of the published methods, with their warm-up schedules and groups of parameters.

BertAdam is Adam without bias correction, eps outside the root, weight decay added to the update, every tensor's
gradient clipped by itself. The learning rate is a function of the count of updates, which travels in the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

NO_DECAY = ("bias", "LayerNorm.weight")
TOWERS = (
    "clip.",
    "logit_scale",
)  # in the names of what belongs to CLIP; a scale kept without towers has no "clip."


def warmup_linear(progress: float, warmup: float) -> float:
    """Factor of the learning rate: up from 0 over the share `warmup` of all updates, then in a line down to 0."""
    if progress < warmup:
        return progress / warmup
    return max((progress - 1) / (warmup - 1), 0.0) if warmup < 1 else 0.0


def warmup_cosine(progress: float, warmup: float) -> float:
    """Factor of the learning rate: up from 0 over the share `warmup`, then (1 + cos(pi x)) / 2 of all progress x.

    It falls a little at the end of the warm-up, as in the published code, because x is not counted from there.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float, float], float]] = {"linear": warmup_linear, "cosine": warmup_cosine}


def decay_groups(
    named: Iterable[tuple[str, Parameter]], weight_decay: float, no_decay: tuple[str, ...] = NO_DECAY
) -> list[dict[str, Any]]:
    """Two groups in the order of `named`: decayed, and undecayed where the name contains one of `no_decay`."""
    groups: tuple[list[Parameter], list[Parameter]] = ([], [])
    for name, parameter in named:
        groups[any(part in name for part in no_decay)].append(parameter)
    return [
        {"params": params, "weight_decay": decay}
        for params, decay in zip(groups, (weight_decay, 0.0), strict=True)
        if params
    ]


def tower_groups(
    named: Iterable[tuple[str, Parameter]],
    weight_decay: float,
    lr: float,
    tower_lr: float,
    towers: tuple[str, ...] = TOWERS,
    no_decay: tuple[str, ...] = NO_DECAY,
) -> list[dict[str, Any]]:
    """The four groups of the methods that train CLIP: `tower_lr` where the name contains one of `towers`.

    In the release's order: decayed towers, decayed rest, undecayed towers, undecayed rest. The names of
    their norms do not contain "LayerNorm", so gains, positions and the logit scale are decayed.
    """
    every = [
        (parameter, any(part in name for part in no_decay), any(part in name for part in towers))
        for name, parameter in named
    ]
    groups = []
    for undecayed in (False, True):
        for rate, inside in ((tower_lr, True), (lr, False)):
            params = [parameter for parameter, *kind in every if kind == [undecayed, inside]]
            groups.append({"params": params, "weight_decay": 0.0 if undecayed else weight_decay, "lr": rate})
    return [group for group in groups if group["params"]]


class BertAdam(Optimizer):
    """p -= lr f(t/T) (m / (sqrt(v) + eps) + decay p), t the updates done so far; the first update has rate 0.

    `max_grad_norm` clips each tensor's gradient by itself, in place (0: no clipping). A parameter without a
    gradient is left alone.

    float16 parameters have float16 moments, and every operation of the update rounds to float16, in the order
    of the published code. Second moments of gradients under about 1.2e-3 are then 0, and an update is m / eps:
    momentum with a rate of lr / eps, most of which is lost again where it is under half a unit of the weight.
    """

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[dict[str, Any]],
        lr: float,
        total_steps: int,
        warmup: float = 0.01,
        schedule: str = "linear",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps = {total_steps}: a schedule needs at least one update")
        defaults = {
            "lr": lr,
            "total_steps": total_steps,
            "warmup": warmup,
            "schedule": schedule,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "updates": 0,
        }
        super().__init__(params, defaults)

    def learning_rates(self) -> list[float]:
        """The learning rate that each group's next update will have."""
        return [_rate(group) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            used: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            for kind in dict.fromkeys(p.dtype for p in used):
                self._update([p for p in used if p.dtype is kind], group)
            group["updates"] += 1
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """The update of one group's parameters of one type, as lists: a few calls for hundreds of tensors."""
        grads = [p.grad for p in params if p.grad is not None]
        if group["max_grad_norm"] > 0:
            _clip_each(grads, group["max_grad_norm"])
        first, second = self._moments(params)
        if params[0].dtype is torch.float16:
            for tensors in zip(params, grads, first, second, strict=True):
                _update_rounding(*tensors, group)
            return
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, grads, alpha=1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)
        below = torch._foreach_sqrt(second)
        torch._foreach_add_(below, group["eps"])
        rate = _rate(group)
        if group["weight_decay"] > 0:
            torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
        torch._foreach_addcdiv_(params, first, below, value=-rate)

    def _moments(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for p in params:
            if not self.state[p]:
                self.state[p] = {"first": torch.zeros_like(p), "second": torch.zeros_like(p)}
        return [self.state[p]["first"] for p in params], [self.state[p]["second"] for p in params]


class WarmupAdamW(torch.optim.AdamW):
    """AdamW whose rate rises in a line from 0 over the first updates, then falls in a line to 0 at the last.

    Rate of update t, from 0: lr t / warmup_steps, then lr (total_steps - t) / (total_steps - warmup_steps).
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float,
        total_steps: int,
        warmup_steps: int,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
    ) -> None:
        if not 0 <= warmup_steps < max(1, total_steps):
            raise ValueError(f"warmup_steps = {warmup_steps} of {total_steps} updates: some must follow")
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)
        for group in self.param_groups:
            group |= {"peak": lr, "total_steps": total_steps, "warmup_steps": warmup_steps, "updates": 0}

    def learning_rates(self) -> list[float]:
        """The learning rate that each group's next update will have."""
        return [_linear_rate(group) for group in self.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns the closure's loss."""
        for group, rate in zip(self.param_groups, self.learning_rates(), strict=True):
            group["lr"] = rate
            group["updates"] += 1
        return super().step(closure)


def _linear_rate(group: dict[str, Any]) -> float:
    done, warmup, total = group["updates"], group["warmup_steps"], group["total_steps"]
    if done < warmup:
        return group["peak"] * done / warmup
    return group["peak"] * max(0, total - done) / max(1, total - warmup)


def _rate(group: dict[str, Any]) -> float:
    progress = group["updates"] / group["total_steps"]
    return group["lr"] * SCHEDULES[group["schedule"]](progress, group["warmup"])


def _update_rounding(p: Tensor, grad: Tensor, first: Tensor, second: Tensor, group: dict[str, Any]) -> None:
    """The update of one parameter, rounded after each operation, in the order of the published code.

    A tensor at a time: operations on lists round factors too where the device is a CPU.
    """
    beta1, beta2 = group["betas"]
    first.mul_(beta1).add_(grad, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    update = first / (second.sqrt() + group["eps"])
    if group["weight_decay"] > 0:
        update.add_(p, alpha=group["weight_decay"])
    p.sub_(update * _rate(group))


def _clip_each(grads: list[Tensor], limit: float) -> None:
    """Scale each gradient to a norm of at most `limit`, without a look at any value on the host."""
    norms = torch.stack(torch._foreach_norm(grads))
    factors = (limit / (norms + 1e-6)).clamp_max(1.0)
    torch._foreach_mul_(grads, list(factors.unbind()))
