"""GARE's settings: published defaults, and a weight that belongs to its reduction."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.settings import PACKS
from trainers.gare.config import GareConfig


def test_defaults_are_the_published_ones() -> None:
    c = GareConfig()
    assert (c.lr, c.coef_lr, c.warmup_proportion, c.weight_decay, c.epochs) == (1e-4, 1e-3, 0.1, 0.2, 5)
    assert (c.batch_size, c.max_words, c.max_frames, c.seed, c.num_hidden_layers) == (128, 32, 12, 42, 4)
    assert (c.temp, c.alpha, c.lambda_dir, c.lambda_epsilon, c.lambda_lower) == (3.0, 2.0, 0.01, 0.01, 0.5)
    assert (c.kl_reduction, c.beta, c.psi_dropout, c.mode) == ("event", 1e-4, 0.3, "finetune")
    assert c.clip_model == "ViT-B-32-quickgelu" and c.backbone_weights == "openai"


def test_beta_follows_the_reduction_unless_it_is_set() -> None:
    assert GareConfig(kl_reduction="dim").beta == 0.07
    assert GareConfig(kl_reduction="dim", beta=0.05).beta == 0.05
    assert GareConfig.model_validate(GareConfig(kl_reduction="dim").model_dump()) == GareConfig(
        kl_reduction="dim"
    )


@pytest.mark.parametrize(("reduction", "beta", "other"), [("event", 0.07, "dim"), ("dim", 1e-4, "event")])
def test_beta_of_the_other_reduction_is_refused(reduction: str, beta: float, other: str) -> None:
    with pytest.raises(ValidationError, match=f"set kl_reduction to '{other}'"):
        GareConfig(kl_reduction=reduction, beta=beta)
    if reduction == "event":
        with pytest.raises(ValidationError, match="hundreds of times more"):
            GareConfig(beta=beta)


def test_only_what_shapes_the_inputs_packs_again() -> None:
    assert {"mode", "max_words", "max_frames"} <= GareConfig.marked(PACKS)
    assert not {"lr", "temp", "beta"} & GareConfig.marked(PACKS)
    assert "batch_size_val" not in GareConfig().decisive()


def test_networks_keep_their_name_unless_it_is_one_of_openai() -> None:
    assert GareConfig(base_encoder="ViT-B/16").clip_model == "ViT-B-16-quickgelu"
    assert GareConfig(base_encoder="crossreel-demo").clip_model == "crossreel-demo"


def test_inputs_follow_the_mode() -> None:
    assert GareConfig().features() == ("frames",)
    frozen = GareConfig(mode="frozen")
    text = ("clip_text", "pooled")
    assert frozen.inputs() == {"video": ("clip", ""), "text": text, "time": ("clip", "time")}
    imported = GareConfig(mode="frozen", text_features="import-text", video_features="import-i3d")
    assert imported.inputs() == {"video": ("import-i3d", ""), "text": ("import-text", "")}  # and no times


class NoDigests:
    """Weights drawn from a seed have no file to take a digest of."""

    def file(self, path: Path) -> str:
        raise AssertionError(path)

    def located(self, name: str, find: object) -> None:
        raise AssertionError(name)


def test_clips_weights_count_and_must_be_here_only_where_they_are_trained(tmp_path: Path) -> None:
    seeds = [GareConfig(backbone_weights=f"seed:{n}").identity(NoDigests()) for n in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]
    missing = {"backbone_weights": str(tmp_path / "none.safetensors")}
    with pytest.raises(UserError, match="no weights file"):
        GareConfig(**missing).require()
    frozen = GareConfig(**missing, mode="frozen")
    frozen.require()
    assert frozen.identity(NoDigests()) == {}


def test_frames_are_requested_as_the_release_takes_them_at_the_size_of_the_network() -> None:
    frames = {"rate": 1, "select": "uniform", "count": 12, "size": 224}
    assert GareConfig().wishes() == {"frames": frames}
    demo = GareConfig(base_encoder="crossreel-demo", max_frames=5, video_framerate=3)
    assert demo.wishes() == {"frames": {**frames, "rate": 3, "count": 5, "size": 64}}
    assert GareConfig(mode="frozen").wishes() == {}
