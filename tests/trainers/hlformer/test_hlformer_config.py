"""Settings of HLFormer: older presets, refusals, and what importing them costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.settings import fill
from trainers.hlformer.config import HLFormerConfig


def test_default_is_the_published_tvr_recipe() -> None:
    config = HLFormerConfig()
    assert config.model_copy(update={"recipe": "tvr"}) == HLFormerConfig(preset="tvr")
    assert (config.lr, config.tau, config.mu, config.margin) == (3e-4, 0.09, 0.15, 0.1)
    assert (config.blocks, config.hidden_size, config.lorentz_dim, config.epochs) == (8, 384, 127, 100)


def test_older_preset_still_fills_what_is_not_set_and_leaves_what_is() -> None:
    config = HLFormerConfig(preset="act", tau=0.5)
    assert (config.tau, config.dropout, config.lr, config.diversity_weight) == (0.5, 0.31, 2.5e-4, 3e-3)
    assert HLFormerConfig(preset="cha").input_dropout == 0.25
    assert HLFormerConfig(preset="cha").recipe == "charades"


def test_settings_survive_a_round_trip() -> None:
    config = HLFormerConfig(preset="act", heads=2, window="additive")
    assert HLFormerConfig(**config.model_dump()) == config


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"heads": 5}, "t.heads = 5"),
        ({"lorentz_dim": 12}, "t.lorentz_dim = 12"),
        ({"blocks": 3}, "t.blocks = 3"),
        ({"map_size": 200}, "at least map_size, 200"),
        ({"preset": "msrvtt"}, "preset = 'msrvtt': there is no such recipe; possible: tvr"),
        ({"dropuot": 0.1}, "did you mean"),
        ({"window": "additiv"}, "t.window = 'additiv'"),
    ],
)
def test_impossible_setting_is_named_with_its_value(setting: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fill(HLFormerConfig, setting, "t")


def test_importing_the_settings_imports_no_torch(run_python: Callable[..., Any]) -> None:
    code = "import sys, trainers.hlformer.config; sys.exit('torch' in sys.modules)"
    assert run_python(code).code == 0
