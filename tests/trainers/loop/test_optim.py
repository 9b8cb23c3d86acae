"""BertAdam against a loop over parameters, its schedule, its groups, its state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainers.loop.optim import BertAdam, decay_groups, tower_groups, warmup_cosine, warmup_linear


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.LayerNorm, self.norm1 = nn.LayerNorm(3), nn.LayerNorm(3)
        self.layer = nn.Linear(3, 2)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.norm1(self.LayerNorm(x)))


def made(seed: int = 0, **options: float) -> tuple[Small, BertAdam]:
    torch.manual_seed(seed)
    model = Small()
    return model, BertAdam(
        decay_groups(model.named_parameters(), 0.01), lr=0.1, total_steps=20, warmup=0.1, **options
    )


def gradients(model: Small, seed: int, scale: float = 3.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name != "unused":
            p.grad = scale * torch.randn(p.shape, generator=generator)


def test_updates_are_those_of_a_loop_over_parameters() -> None:
    model, adam = made()
    twin = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in twin.items()}
    for step in range(6):
        gradients(model, step)
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        adam.step()
        rate = 0.1 * warmup_linear(step / 20, 0.1)
        for name, g in grads.items():
            clipped = g * min(1.0, 1 / (g.norm().item() + 1e-6))
            m, v = moments[name]
            moments[name] = (m := 0.9 * m + 0.1 * clipped), (v := 0.999 * v + 0.001 * clipped**2)
            decay = 0.0 if "bias" in name or "LayerNorm.weight" in name else 0.01
            twin[name] = twin[name] - rate * (m / (v.sqrt() + 1e-6) + decay * twin[name])
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), twin[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(model.unused, torch.ones(2))


def test_first_update_has_rate_zero_and_changes_nothing() -> None:
    model, adam = made()
    before = [p.detach().clone() for p in model.parameters()]
    gradients(model, 0)
    assert adam.learning_rates() == [0.0, 0.0]
    adam.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert adam.learning_rates() == pytest.approx([0.05, 0.05])


def test_restored_optimizer_goes_on_with_the_very_bits() -> None:
    torch.manual_seed(1)
    whole, adam = made()
    for step in range(6):
        gradients(whole, step)
        adam.step()
    half, first = made()
    for step in range(3):
        gradients(half, step)
        first.step()
    resumed, second = made(seed=5)
    resumed.load_state_dict(half.state_dict())
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        gradients(resumed, step)
        second.step()
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_clipping_can_be_turned_off_and_is_of_each_tensor_alone() -> None:
    clipped, adam = made()
    gradients(clipped, 0, scale=100.0)
    clipped.layer.bias.grad = torch.tensor([0.1, 0.0])
    adam.step()
    norms = {name: p.grad.norm().item() for name, p in clipped.named_parameters() if p.grad is not None}
    assert norms.pop("layer.bias") == pytest.approx(0.1)
    assert all(norm == pytest.approx(1.0, abs=1e-5) for norm in norms.values())
    free, adam = made(max_grad_norm=0.0)
    gradients(free, 0, scale=100.0)
    before = [p.grad.clone() for p in free.parameters() if p.grad is not None]
    adam.step()
    assert all(
        torch.equal(a, p.grad)
        for a, p in zip(before, [p for p in free.parameters() if p.grad is not None], strict=True)
    )


def test_decay_spares_biases_and_layer_norm_weights_but_not_other_norms() -> None:
    named = list(Small().named_parameters())
    decayed, spared = decay_groups(named, 0.5)
    names = {id(p): name for name, p in named}
    assert [names[id(p)] for p in decayed["params"]] == ["unused", "norm1.weight", "layer.weight"]
    assert [names[id(p)] for p in spared["params"]] == [
        "LayerNorm.weight",
        "LayerNorm.bias",
        "norm1.bias",
        "layer.bias",
    ]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)


def test_schedules_rise_from_zero_and_fall_to_zero() -> None:
    assert [warmup_linear(x, 0.01) for x in (0.0, 0.005, 0.01, 0.505, 1.0, 1.2)] == pytest.approx(
        [0, 0.5, 1, 0.5, 0, 0]
    )
    found = [warmup_cosine(x, 0.1) for x in (0.0, 0.05, 0.1, 1.0)]
    assert found == pytest.approx([0, 0.5, 0.5 * (1 + math.cos(0.1 * math.pi)), 0], abs=1e-12)
    assert warmup_linear(0.0, 0.0) == 1.0


def test_schedule_without_updates_is_refused() -> None:
    with pytest.raises(ValueError, match="total_steps = 0"):
        BertAdam(Small().parameters(), lr=0.1, total_steps=0)


def test_towers_have_a_rate_of_their_own_and_only_biases_are_not_decayed() -> None:
    names = [
        "clip.visual.proj",
        "clip.ln_final.bias",
        "transformerClip.w",
        "psi.layer_norm1.weight",
        "psi.bias",
        "network.logit_scale",
    ]
    named = [(name, nn.Parameter(torch.zeros(1))) for name in names]
    groups = tower_groups(named, 0.2, lr=1e-4, tower_lr=1e-7)
    by_id = {id(p): name for name, p in named}
    found = [(g["lr"], g["weight_decay"], [by_id[id(p)] for p in g["params"]]) for g in groups]
    assert found == [
        (1e-7, 0.2, ["clip.visual.proj", "network.logit_scale"]),
        (1e-4, 0.2, ["transformerClip.w", "psi.layer_norm1.weight"]),
        (1e-7, 0.0, ["clip.ln_final.bias"]),
        (1e-4, 0.0, ["psi.bias"]),
    ]
    assert len(tower_groups(named[:1], 0.2, lr=1e-4, tower_lr=1e-7)) == 1


def half_precision(steps: int, size: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A float16 parameter after updates, the same by a loop over rounded operations, and its beginning."""
    generator = torch.Generator().manual_seed(0)
    start = 0.02 * torch.randn(500, generator=generator)
    half, single = nn.Parameter(start.half()), nn.Parameter(torch.ones(3))
    adam = BertAdam(
        [half, single], 1e-3, 100, warmup=0.1, schedule="cosine", betas=(0.9, 0.98), weight_decay=0.2
    )
    twin = start.half()
    m, q = torch.zeros_like(twin), torch.zeros_like(twin)
    for step in range(steps):
        half.grad = (size * torch.randn(500, generator=generator)).half()
        single.grad, g = torch.ones(3), half.grad.clone()
        adam.step()
        m = (m * 0.9).add(g, alpha=0.1)
        q = (q * 0.98).addcmul(g, g, value=0.02)
        update = (m / (q.sqrt() + 1e-6)).add(twin, alpha=0.2)
        twin = twin - update * (1e-3 * warmup_cosine(step / 100, 0.1))
    assert half.dtype == adam.state[half]["second"].dtype == torch.float16
    assert single.dtype == torch.float32 and adam.state[single]["second"].dtype == torch.float32
    return half.detach(), twin, start


def test_half_precision_is_rounded_after_every_operation() -> None:
    found, twin, start = half_precision(30, 0.01)
    assert torch.equal(found, twin)
    assert not torch.equal(found, start.half())


def test_small_gradients_in_half_precision_make_steps_of_momentum() -> None:
    """Second moments under 1.2e-3 are 0, so an update is m / 1e-6 instead of one of about a unit."""
    found, _, start = half_precision(3, 1e-4)
    moved = (found.float() - start).abs().median().item()
    generator = torch.Generator().manual_seed(0)
    single = nn.Parameter(0.02 * torch.randn(500, generator=generator))
    before = single.detach().clone()
    adam = BertAdam([single], 1e-3, 100, warmup=0.1, schedule="cosine", betas=(0.9, 0.98), weight_decay=0.2)
    for _ in range(3):
        single.grad = 1e-4 * torch.randn(500, generator=generator)
        adam.step()
    assert moved > 5 * (single.detach() - before).abs().median().item()
