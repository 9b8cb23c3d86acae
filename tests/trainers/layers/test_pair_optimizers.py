"""The learning rates of CLIP4Clip, GARE and NeighborRetr: CLIP has its own, whether its towers are trained or not."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainers.registry import METHODS

LR, SHARE, DECAY = 1e-3, 0.02, 0.2
DIMS, SIDE = 64, 16
SETTINGS = {
    "clip4clip": {"sim_header": "seqTransf", "cross_num_hidden_layers": 1, "freeze_layer_num": -1},
    "gare": {"num_hidden_layers": 1},
    "neighborretr": {"temporal_layers": 1, "max_words": 6},
}


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_whatever_is_clip_s_has_the_rate_of_the_towers_and_all_else_the_full_one(
    tmp_path: Path, name: str, mode: str
) -> None:
    vision = {"layers": 1, "width": DIMS, "patch_size": 8, "image_size": SIDE}
    text = {"context_length": 8, "vocab_size": 49408, "width": DIMS, "heads": 1, "layers": 1}
    network = {"embed_dim": DIMS, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    (tmp_path / "tiny.json").write_text(json.dumps(network))
    config = METHODS.find(name).config(
        **SETTINGS[name], mode=mode, max_frames=4, base_encoder=str(tmp_path / "tiny.json"),
        backbone_weights="seed:1", lr=LR, coef_lr=SHARE, weight_decay=DECAY,
    )  # fmt: skip
    module = importlib.import_module(f"trainers.{name}.method")
    method = module.build(config, SimpleNamespace(dims=DIMS, side=SIDE))
    by_id = {id(parameter): name for name, parameter in method.named_parameters()}
    found = {
        by_id[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in module.optimizer(config, method, 10).param_groups
        for parameter in group["params"]
    }
    assert {name for name, parameter in method.named_parameters() if parameter.requires_grad} <= set(found)
    assert sum("logit_scale" in parameter for parameter in found) == 1
    for parameter, rates in found.items():
        of_clip = ".towers." in parameter or "logit_scale" in parameter
        assert rates == (LR * SHARE if of_clip else LR, 0.0 if "bias" in parameter else DECAY), parameter
