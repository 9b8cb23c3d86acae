"""GARE's gradients do not depend on how many processes share a batch; the release's do, and can be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from trainers.gare import official
from trainers.gare.config import GareConfig
from trainers.gare.method import Gare
from trainers.loop.gradients import MeanGradients

FIXTURES = Path(__file__).parents[2] / "fixtures" / "gare"
SHARES = {1: [6], 2: [2, 4], 4: [2, 1, 1, 2]}  # unequal on purpose

Gradients = dict[str, Tensor]


def gradients(
    from_processes: Callable[..., list[Any]], world: int, **options: float
) -> tuple[list[Gradients], list[float]]:
    """Every process's gradients and loss of the recorded batch after they have been averaged."""
    state, inputs = (load_file(FIXTURES / f"full.{part}.safetensors") for part in ("weights", "inputs"))
    tokens, pixels, masks = inputs["in/text_ids"], inputs["in/video"].float(), inputs["in/video_mask"]

    def body(rank: int) -> tuple[Gradients, float]:
        method = Gare(config, official.network_from(state, config)).train()
        torch.manual_seed(7 + rank)  # the others' draws must not matter
        start = sum(SHARES[world][:rank])
        mine = slice(start, start + SHARES[world][rank])
        network, mask = method.network, masks[mine]
        shown, real = pixels[mine].flatten(0, 1), mask.bool().flatten()
        features = network.pixel_features(network.towers, shown, real).unflatten(0, mask.shape)
        frozen = {"words": network.texts(tokens[mine])[:, None], "frames": features, "frame_mask": mask}
        frozen["place"] = torch.arange(len(masks))[mine]
        loss = torch.stack(list(method.losses(frozen, 0).values())).sum()
        loss.backward()
        MeanGradients(method.parameters()).finish()
        return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}, loss.item()

    config = GareConfig(num_hidden_layers=2, mode="frozen", **options)
    found = from_processes(world, body)
    return [grads for grads, _ in found], [loss for _, loss in found]


@pytest.mark.parametrize("world", [2, 4])
def test_gradients_are_the_same_however_many_processes_share_a_batch(
    world: int, from_processes: Callable[..., list[Any]]
) -> None:
    (alone,), (loss,) = gradients(from_processes, 1)
    shared, losses = gradients(from_processes, world)
    assert losses == pytest.approx([loss] * world, rel=1e-5)
    assert any(name.startswith("towers.clip.visual") for name in alone)
    for grads in shared:
        assert set(grads) == set(alone)
        for name, expected in alone.items():
            torch.testing.assert_close(
                grads[name], expected, rtol=1e-3, atol=2e-4 * float(expected.abs().max()) + 1e-6
            )


def test_share_for_the_encoders_gives_the_gradients_of_the_release(
    from_processes: Callable[..., list[Any]],
) -> None:
    shared, _ = gradients(from_processes, 2, encoder_grad_scale=0.5, psi_dropout=0.0)
    recorded = load_file(FIXTURES / "full.expected.safetensors")
    own = {official.official_name(name): value for name, value in shared[1].items()}
    names = [name for name in recorded if name.startswith("ddp_w2/grad/")]
    assert len(names) >= 5
    for name in names:
        expected = recorded[name]
        torch.testing.assert_close(
            own[name.removeprefix("ddp_w2/grad/")], expected, rtol=0, atol=5e-4 * float(expected.abs().max())
        )
