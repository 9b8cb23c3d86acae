"""CLIP4Clip's header and loss against slow twins, and which of CLIP's weights are trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from trainers.clip4clip import losses, official
from trainers.clip4clip.config import Clip4ClipConfig
from trainers.clip4clip.data import open_data, pack
from trainers.clip4clip.method import Clip4Clip, build, optimizer
from trainers.clip4clip.model import Clip4ClipNetwork, freeze
from trainers.layers.clip_towers import ClipTowers
from trainers.loop.gradients import MeanGradients

FIXTURES = Path(__file__).parents[2] / "fixtures" / "clip4clip"
HEADERS = ("meanP", "seqTransf", "seqLSTM")
WIDTH = 64


def network(**options: object) -> Clip4ClipNetwork:
    torch.manual_seed(0)
    config = Clip4ClipConfig(**{"mode": "frozen", "cross_num_hidden_layers": 2, **options})
    return Clip4ClipNetwork(config, None, WIDTH, 16).eval()


def features(videos: int = 4, frames: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, frames + 1, (videos,), generator=generator)
    return torch.randn(videos, frames, WIDTH, generator=generator), torch.arange(frames) < lengths[:, None]


@pytest.mark.parametrize("normalise", [True, False])
def test_mean_pooling_is_that_of_a_loop_over_videos_and_frames(normalise: bool) -> None:
    frames, mask = features()
    expected = []
    for rows, real in zip(frames.numpy().astype(np.float64), mask.numpy(), strict=True):
        kept = [row / np.linalg.norm(row) if normalise else row for row in rows[real]]
        mean = sum(kept) / len(kept)
        expected.append(mean / np.linalg.norm(mean))
    found = network(normalise_frames=normalise).videos(frames, mask)
    assert found.shape == (4, WIDTH)
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-6)


@pytest.mark.parametrize("header", HEADERS)
def test_what_stands_behind_the_mask_and_how_much_of_it_changes_nothing(header: str) -> None:
    net, (frames, mask) = network(sim_header=header), features()
    with torch.no_grad():
        found = net.videos(frames, mask)
        noisy = torch.where(mask[..., None], frames, torch.full_like(frames, 1e3))
        torch.testing.assert_close(net.videos(noisy, mask), found, rtol=1e-5, atol=1e-6)
        longer = torch.cat([frames, torch.randn(4, 3, WIDTH)], 1)
        wider = torch.cat([mask, torch.zeros(4, 3, dtype=torch.bool)], 1)
        torch.testing.assert_close(net.videos(longer, wider), found, rtol=1e-5, atol=1e-6)
        for n, length in enumerate(mask.sum(1).tolist()):
            alone = net.videos(frames[n : n + 1, :length], mask[n : n + 1, :length])
            torch.testing.assert_close(alone[0], found[n], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))


@pytest.mark.parametrize("header", HEADERS)
def test_a_video_without_a_frame_is_no_nan(header: str) -> None:
    frames, mask = features()
    mask[2] = False
    with torch.no_grad():
        found = network(sim_header=header).videos(frames, mask)
    assert found.isfinite().all() and not found[2].any()


def test_losses_are_those_of_a_loop_and_captions_of_one_video_can_be_masked() -> None:
    logits, video = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)), torch.tensor([5, 2, 5, 7])

    def twin(rows: Tensor, masked: bool) -> float:
        out = 0.0
        for i in range(4):
            kept = [j for j in range(4) if j == i or not masked or video[i] != video[j]]
            out -= math.log(math.exp(rows[i, i]) / sum(math.exp(rows[i, j]) for j in kept))
        return out / 4

    for masked in (False, True):
        t2v, v2t = losses.directions(logits, video if masked else None)
        assert float(t2v) == pytest.approx(twin(logits, masked), rel=1e-5)
        assert float(v2t) == pytest.approx(twin(logits.T, masked), rel=1e-5)


def small_towers(layers: int = 3) -> ClipTowers:
    from extractors.backbones.weights import import_open_clip

    vision = {"layers": layers, "width": WIDTH, "patch_size": 8, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": WIDTH, "heads": 1, "layers": layers}
    torch.manual_seed(0)
    return ClipTowers(import_open_clip().CLIP(WIDTH, vision, text, quick_gelu=True))


@pytest.mark.parametrize(("number", "blocks"), [(0, {0, 1, 2}), (2, {2}), (3, set())])
def test_clip_is_frozen_as_the_release_does(number: int, blocks: set[int]) -> None:
    towers = small_towers()
    freeze(towers, number)
    trained = {name for name, p in towers.clip.named_parameters() if p.requires_grad}
    ends = {"ln_final.weight", "ln_final.bias", "text_projection", "logit_scale", "visual.proj"}
    ends |= {"visual.ln_post.weight", "visual.ln_post.bias"}
    assert {name for name in trained if "resblocks" not in name} == ends
    assert {int(name.split("resblocks.")[1][0]) for name in trained - ends} == blocks
    assert {name.startswith("visual") for name in trained - ends} == ({True, False} if blocks else set())


def test_all_of_clip_is_trained_where_the_setting_says_so() -> None:
    towers = small_towers()
    freeze(towers, -1)
    assert all(p.requires_grad for p in towers.clip.parameters())


def test_the_temporal_transformer_starts_from_clip_s_text_tower() -> None:
    towers = small_towers()
    config = Clip4ClipConfig(sim_header="seqTransf", cross_num_hidden_layers=2)
    temporal = Clip4ClipNetwork(config, towers, WIDTH, 8).temporal
    assert temporal is not None
    state, block = temporal.state_dict(), towers.text_blocks[1].state_dict()
    assert all(
        torch.equal(state[f"transformerClip.resblocks.1.{name}"], value) for name, value in block.items()
    )
    torch.testing.assert_close(state["frame_position_embeddings.weight"], towers.text_positions.detach())


def test_clip_learns_at_its_share_of_the_rate_and_frozen_weights_are_in_no_group() -> None:
    config = Clip4ClipConfig(sim_header="seqLSTM", lr=1e-3, coef_lr=1e-2)
    method = Clip4Clip(config, Clip4ClipNetwork(config, small_towers(), WIDTH, 8))
    names = {id(p): name for name, p in method.named_parameters()}
    rates = {
        names[id(p)]: group["lr"]
        for group in optimizer(config, method, 10).param_groups
        for p in group["params"]
    }
    assert {rate for name, rate in rates.items() if ".clip." in name} == {1e-5}
    assert {rate for name, rate in rates.items() if ".clip." not in name} == {1e-3}
    assert (
        "network.towers.clip.visual.conv1.weight" not in rates
        and "network.temporal.lstm_visual.bias_hh_l0" in rates
    )


# Zero-shot -------------------------------------------------------------------------------------------

VIDEOS = [f"v{n}" for n in range(6)]
SPLITS = {
    split: (VIDEOS, [(f"{video}#{n}", f"caption {n}", video) for video in VIDEOS for n in range(2)])
    for split in ("train", "val")
}


def stored(key: str) -> np.ndarray:
    """Two to nine rows of an item, one of a caption, which is nearest to its own video in most cases."""
    rng = np.random.default_rng(list(key.encode()))
    own = np.random.default_rng(list(key.partition("#")[0].encode())).normal(size=WIDTH)
    count = 1 if "#" in key else int(rng.integers(2, 10))
    return (own + 2 * rng.normal(size=(count, WIDTH))).astype(np.float32) * rng.uniform(
        0.1, 9, (count, 1)
    ).astype(np.float32)


def test_without_training_scores_are_cosines_of_stored_vectors_and_mean_frames(tmp_path: Path) -> None:
    config = Clip4ClipConfig(mode="frozen", epochs=0, max_frames=1000)
    pack(tmp_path, config, SPLITS, {"video": stored, "text": stored})
    data = open_data(tmp_path, config)
    (items,), (texts,) = list(data.item_batches("val")), list(data.text_batches("val"))
    assert items["frames"].shape[1] == max(len(stored(video)) for video in VIDEOS)  # not a thousand slots
    method = build(config, data)
    found = method.scores(method.encode_texts(texts), method.encode_items(items)).numpy()
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)  # noqa: E731
    videos = unit(np.stack([unit(stored(video).astype(np.float64)).mean(0) for video in VIDEOS]))
    captions = unit(np.concatenate([stored(c).astype(np.float64) for c, _, _ in SPLITS["val"][1]]))
    np.testing.assert_allclose(found, captions @ videos.T, atol=1e-6)
    assert (found.argmax(1) == np.arange(12) // 2).mean() > 0.5
    assert [name for name, _ in method.named_parameters()] == ["network.towers.clip.logit_scale"]


def test_training_that_changes_no_ranking_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    Clip4ClipConfig(mode="frozen", epochs=0).require()
    Clip4ClipConfig(mode="frozen", sim_header="seqLSTM").require()
    assert not caplog.records
    Clip4ClipConfig(mode="frozen").require()
    assert "epochs = 0 gives the same figures" in caplog.records[0].getMessage()


# Several processes -----------------------------------------------------------------------------------


def gradients(
    from_processes: Callable[..., list[Any]], world: int, **options: float
) -> list[tuple[dict[str, Tensor], float]]:
    """Every process's gradients and loss of a recorded batch after they have been averaged."""
    tensors = load_file(FIXTURES / "seqtransf_a.safetensors")
    state = {name.removeprefix("weight/"): v for name, v in tensors.items() if name.startswith("weight/")}
    config = Clip4ClipConfig(mode="frozen", sim_header="seqTransf", cross_num_hidden_layers=2, **options)
    shares = {1: [6], 2: [2, 4], 3: [1, 3, 2]}[world]  # unequal on purpose

    def body(rank: int) -> tuple[dict[str, Tensor], float]:
        method = Clip4Clip(config, official.network_from(state, config, heads=2)).train()
        mine = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
        batch = {"words": tensors["in/text"][mine, None], "frames": tensors["in/frames"][mine]}
        batch |= {
            "frame_mask": tensors["in/frame_mask"][mine].bool(),
            "video": torch.tensor([0, 1, 0, 2, 3, 1])[mine],
            "place": torch.arange(6)[mine],
        }
        loss = torch.stack(list(method.losses(batch, 0).values())).sum()
        loss.backward()
        MeanGradients(method.parameters()).finish()
        return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}, loss.item()

    found: list[tuple[dict[str, Tensor], float]] = from_processes(world, body)
    return found


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_gradients_are_the_same_however_many_processes_share_a_batch(
    world: int, masked: bool, from_processes: Callable[..., list[Any]]
) -> None:
    ((alone, loss),) = gradients(from_processes, 1, mask_same_video=masked)
    for grads, other in gradients(from_processes, world, mask_same_video=masked):
        assert other == pytest.approx(loss, rel=1e-5) and set(grads) == set(alone)
        for name, expected in alone.items():
            torch.testing.assert_close(grads[name], expected, rtol=1e-4, atol=1e-6)


def test_the_share_for_what_encodes_is_the_release_s_gradient_of_several_processes(
    from_processes: Callable[..., list[Any]],
) -> None:
    """Their gather hands back a process's own slice of one loss, and the mean over processes divides it again."""
    ((alone, _),) = gradients(from_processes, 1)
    for grads, _ in gradients(from_processes, 2, encoder_grad_scale=0.5):
        for name, expected in alone.items():
            share = 1.0 if "logit_scale" in name else 0.5
            torch.testing.assert_close(grads[name], share * expected, rtol=1e-4, atol=1e-6)
