"""The authors' checkpoint format, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from trainers.hlformer import official
from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.method import HLFormer, optimizer
from trainers.loop.optim import BertAdam

CONFIG = HLFormerConfig(
    preset="act", hidden_size=8, heads=2, lorentz_dim=7, blocks=6, map_size=4, max_ctx_l=6, max_desc_l=5
)


def trained(updates: int = 3) -> tuple[HLFormer, BertAdam]:
    torch.manual_seed(0)
    method = HLFormer(CONFIG, 9, 7)
    adam = optimizer(CONFIG, method, 50)
    for seed in range(updates):
        step(method, adam, seed)
    return method, adam


def step(method: HLFormer, adam: BertAdam, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in method.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    adam.step()


def test_written_checkpoint_gives_back_settings_weights_and_optimizer(tmp_path: Path) -> None:
    method, adam = trained()
    official.write(tmp_path / "a.ckpt", method, adam, 25, [1, 2, 3, 4, 10])
    found = official.read(tmp_path / "a.ckpt")
    assert (found.epoch, found.model_val) == (25, [1, 2, 3, 4, 10])
    assert found.config["attention_num"] == 6 and found.config["use_hard_negative"]
    again = official.method_from(found)
    assert again.config == CONFIG
    restored = official.optimizer_from(again, found)
    step(method, adam, 9)
    step(again, restored, 9)
    for (name, a), b in zip(method.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_constants_are_repeated_once_for_each_lorentz_module() -> None:
    method, _ = trained(0)
    state = official.state_of(method)
    constants = [name for name in state if name.endswith("manifold.k")]
    assert len(constants) == 1 + 5 * CONFIG.blocks
    assert list(state).index("manifold.k") == 3
    assert len(state) - len(constants) == len(method.network.state_dict())


def test_settings_that_shapes_decide_are_read_from_shapes_and_not_from_the_file(tmp_path: Path) -> None:
    method, adam = trained(1)
    official.write(tmp_path / "a.ckpt", method, adam, 0, [])
    found = official.read(tmp_path / "a.ckpt")
    found.config.update(attention_num=8, max_desc_l=30)
    assert official.method_from(found).config.blocks == 6


def test_prefix_of_a_parallel_wrapper_is_removed(tmp_path: Path) -> None:
    method, _ = trained(0)
    state = {f"module.{name}": value for name, value in official.state_of(method).items()}
    torch.save({"state_dict": state, "config": {"n_heads": 2}}, tmp_path / "a.ckpt")
    found = official.method_from(official.read(tmp_path / "a.ckpt"), "cha")
    assert found.config.recipe == "charades" and (found.config.dropout, found.config.heads) == (0.25, 2)
    assert torch.equal(found.network.curv, method.network.curv)


def test_tensor_that_does_not_fit_is_named() -> None:
    method, _ = trained(0)
    state = official.state_of(method)
    with pytest.raises(UserError, match=r"curv is \(2,\), \(\) is needed"):
        official.load_state(method, {**state, "curv": torch.zeros(2)})
    with pytest.raises(UserError, match="tensor extra is not known"):
        official.load_state(method, {**state, "extra": torch.zeros(2)})
    del state["video_alpha"]
    with pytest.raises(UserError, match="tensor video_alpha is missing"):
        official.load_state(method, state)


class Harmful:
    """What a pickle could hold beside weights."""


def test_file_that_holds_more_than_weights_is_refused_unexecuted(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "config": Harmful()}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="not a checkpoint that can be read safely"):
        official.read(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="there is no checkpoint"):
        official.read(tmp_path / "b.ckpt")
    torch.save({"weights": {}}, tmp_path / "c.ckpt")
    with pytest.raises(UserError, match="has no 'state_dict'"):
        official.read(tmp_path / "c.ckpt")
    torch.save({"state_dict": {"curv": torch.zeros(())}}, tmp_path / "d.ckpt")
    with pytest.raises(UserError, match="no tensor"):
        official.method_from(official.read(tmp_path / "d.ckpt"))
