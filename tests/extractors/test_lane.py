"""A lane computes what the network computes, and on a GPU returns before it is done."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from extractors.backbones.clip import ClipBackbone
from extractors.backbones.lane import Lane


def network(batch):
    return {"sum": batch.float().sum(1), "half": batch.to(torch.bfloat16), "count": batch.long()}


def test_a_cpu_computes_at_once_with_plain_memory():
    lane = Lane(torch.device("cpu"))
    room = lane.room((5, 3), np.uint8)
    assert room.shape == (5, 3) and room.dtype == np.uint8
    room[:] = np.arange(15, dtype=np.uint8).reshape(5, 3)
    results = lane.launch(room, network)
    assert results.ready()
    found = results.arrays()
    np.testing.assert_array_equal(found["sum"], room.sum(1, dtype=np.float32))
    assert found["half"].dtype == np.float32 and found["count"].dtype == np.int64
    copy, compute = lane.taken_seconds()
    assert copy > 0 and compute > 0 and lane.taken_seconds() == (0, 0)


def test_clips_features_through_the_lane_are_those_of_the_network_to_the_bit():
    backbone = ClipBackbone("crossreel-demo", "seed:0")
    size = backbone.network.visual.image_size
    side = size if isinstance(size, int) else size[0]
    crops = np.random.default_rng(0).integers(0, 256, (6, 3, side, side), np.uint8)
    with torch.inference_mode():
        pixels = (torch.from_numpy(crops).float() / 255 - backbone._mean) / backbone._std
        expected = backbone.network.encode_image(pixels).numpy()
    np.testing.assert_array_equal(backbone.launch(crops).arrays()["frame"], expected)
    np.testing.assert_array_equal(backbone.crop_features(crops), expected)


def both(rows, index):
    return {"picked": rows[index], "sum": rows.sum(0)}


def test_several_arrays_of_a_batch_travel_together_and_results_take_another_form():
    rows, index = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2], np.array([3, 0])
    later = Lane(torch.device("cpu")).launch((rows, index), both)
    np.testing.assert_array_equal(later.arrays()["picked"], rows[index])
    first = later.then(lambda found: found["picked"]).then(lambda picked: picked[0].tolist())
    assert first.ready() and first.arrays() == rows[3].tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_sent_several_arrays_of_a_batch():
    rows, index = np.random.default_rng(0).random((50, 7), np.float32), np.arange(49, -1, -1)
    lane = Lane(torch.device("cuda:0"))
    launched = [lane.launch((rows + n, index), both) for n in range(5)]
    for n, results in enumerate(launched):
        np.testing.assert_array_equal(results.arrays()["picked"], (rows + n)[index])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_returns_before_it_is_done_and_gives_the_same():
    device = torch.device("cuda:0")
    lane = Lane(device)
    matrix = torch.randn(4096, 4096, device=device)

    def slow(batch):
        product = matrix
        for _ in range(40):
            product = product @ matrix / 64
        return {"rows": batch.float() * 2 + 0 * product[0, 0].nan_to_num(0, 0, 0)}

    lane.launch(np.ones((2, 2), np.float32), slow).arrays()
    batches = [np.full((64, 100), n, np.float32) for n in range(6)]
    launched = []
    for batch in batches:
        room = lane.room(batch.shape, batch.dtype)
        room[:] = batch
        launched.append(lane.launch(room, slow))
    assert not launched[-1].ready()
    for batch, results in zip(batches, launched, strict=True):
        np.testing.assert_array_equal(results.arrays()["rows"], 2 * batch)
    assert min(lane.taken_seconds()) > 0
