"""Settings of H2ARN: published values, what it asks of other stages, and what is impossible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from extractors.bert import BertParams
from extractors.clip_text import ClipTextParams
from pipeline.errors import UserError
from pipeline.settings import PACKS, Params, fill
from trainers.config import MethodConfig, VideoMethodConfig
from trainers.gare.config import GareConfig
from trainers.h2arn.config import H2arnConfig
from trainers.hlformer.config import HLFormerConfig
from trainers.lean.config import LeanConfig
from trainers.neighborretr.config import NeighborRetrConfig


def test_published_settings_are_the_defaults() -> None:
    c = H2arnConfig()
    assert (c.d_model, c.nhead, c.num_layers, c.dropout) == (512, 64, 6, 0.1)
    assert (c.loss_temp, c.loss_lambda, c.hyperbolic_c, c.warmup_ratio) == (0.07, 0.2, 1.0, 0.1)
    assert (c.lr, c.epochs, c.batch_size, c.weight_decay, c.clip_norm) == (2e-3, 100, 256, 0.01, 1.0)
    assert c.epochs <= c.patience  # no early stopping


def test_it_ranks_point_clouds_and_the_others_videos() -> None:
    assert H2arnConfig.kind == "pointcloud" and "video_features" not in H2arnConfig.model_fields
    for other in (GareConfig, HLFormerConfig, LeanConfig, NeighborRetrConfig):
        assert issubclass(other, VideoMethodConfig) and other.kind == "video"
        assert {"video_features", "text_features"} <= other.marked(PACKS)


def test_inputs_are_tokens_of_clouds_and_captions() -> None:
    assert H2arnConfig().inputs() == {"cloud": ("dgcnn", ""), "text": ("clip_text", "")}
    other = H2arnConfig(cloud_features="import-pc", text_features="bert")
    assert other.features() == ("import-pc", "bert")
    assert MethodConfig().inputs() == {"text": ("clip_text", "")}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"clip_text": {"pad": True, "max_tokens": 77, "padding": "masked"}}),
        ({"mask_padding": True}, {"clip_text": {"pad": False, "max_tokens": 77}}),
        ({"text_features": "bert"}, {"bert": {"pad": True, "max_tokens": 77}}),
        ({"text_features": "import-t"}, {}),
    ],
)
def test_captions_are_requested_with_their_padding_unless_it_is_masked(
    settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert H2arnConfig(**settings).wishes() == expected


@pytest.mark.parametrize("text", ["clip_text", "bert"])
@pytest.mark.parametrize("mask_padding", [True, False])
def test_what_is_requested_of_a_stage_is_possible_there(text: str, mask_padding: bool) -> None:
    wishes = H2arnConfig(text_features=text, mask_padding=mask_padding).wishes()[text]
    kinds: dict[str, type[Params]] = {"clip_text": ClipTextParams, "bert": BertParams}
    made = fill(kinds[text], wishes, "extractors")
    assert {name: getattr(made, name) for name in wishes} == wishes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nhead": 48}, "t.nhead = 48 is not possible: d_model, 512, must be divisible by it"),
        ({"d_model": 100}, "t.nhead = 64 is not possible: d_model, 100, must be divisible by it"),
        ({"geometry": "euclidean"}, "set loss_lambda to 0"),
        (
            {"geometry": "euclidean", "loss_lambda": 0, "similarity": "distance"},
            "it is a choice of geometry = 'lorentz' alone; possible here: 'inner'",
        ),
        ({"loss_temp": 0}, "greater than 0"),
        ({"video_features": "clip"}, "unknown setting t.video_features"),
        ({"temperature": "fixed"}, "t.temperature = 'fixed' is not possible"),
    ],
)
def test_impossible_settings_are_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        fill(H2arnConfig, settings, "t")
    assert message in str(error.value)


def test_declaration_imports_no_torch(run_python: Callable[..., Any]) -> None:
    code = "import sys, trainers.h2arn.config; sys.exit('torch' in sys.modules)"
    assert run_python(code).code == 0
