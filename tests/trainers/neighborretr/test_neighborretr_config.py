"""NeighborRetr's settings: published values by corpus, and sentences that say what to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from trainers.neighborretr.config import NeighborRetrConfig


def test_defaults_are_those_published_for_msrvtt() -> None:
    config = NeighborRetrConfig()
    assert (config.max_words, config.max_frames, config.epochs, config.batch_size) == (24, 12, 5, 128)
    assert (config.bank_size, config.num_neighbors, config.temperature) == (480, 20, 3.0)
    assert (config.lr, config.coef_lr, config.warmup, config.weight_decay) == (1e-4, 1e-3, 0.1, 0.2)


def test_older_preset_still_fills_what_is_not_set() -> None:
    config = NeighborRetrConfig(preset="activitynet", max_frames=32)
    assert (config.max_words, config.max_frames, config.epochs, config.bank_size) == (64, 32, 10, 240)
    assert NeighborRetrConfig(preset="didemo").max_words == 64  # ours, which nobody published


def test_batch_that_leaves_too_few_others_is_refused_with_what_to_change() -> None:
    with pytest.raises(ValidationError, match="raise batch_size to 23 or lower num_neighbors to 16"):
        NeighborRetrConfig(batch_size=19)
    assert NeighborRetrConfig(batch_size=23).num_neighbors == 20


@pytest.mark.parametrize("name", ["max_words", "max_frames"])
def test_fewer_slots_than_nearest_tokens_are_refused_with_what_to_change(name: str) -> None:
    with pytest.raises(ValidationError, match=f"raise {name} to 5 or lower knn to 4"):
        NeighborRetrConfig(**{name: 4, "knn": 5})


def test_share_of_clusters_over_one_is_refused() -> None:
    with pytest.raises(ValidationError, match="both shares must be over 0 and at most 1"):
        NeighborRetrConfig(text_ratios=(1 / 6, 1.5))


def test_encoder_is_the_one_with_the_activation_of_its_weights() -> None:
    assert NeighborRetrConfig().clip_model == "ViT-B-32-quickgelu"
    assert NeighborRetrConfig(base_encoder="crossreel-demo").clip_model == "crossreel-demo"


def test_importing_the_settings_imports_no_torch(run_python: Callable[..., Any]) -> None:
    code = "import sys, trainers.neighborretr.config; sys.exit('torch' in sys.modules)"
    assert run_python(code).code == 0
