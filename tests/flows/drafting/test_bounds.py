"""Least hours of published experiments on named GPUs: held against sums written out by hand."""

from __future__ import annotations

import pytest

from extractors.backbones import clip_configs
from flows.costs import text_operations, vision_operations
from flows.drafting.bounds import GPUS, bound
from trainers.recipes import every_recipe, find


def test_fine_tuning_is_three_passes_of_every_picture_and_caption_of_every_pair_and_what_stands_behind():
    row = find("clip4clip", "msrvtt")
    assert row is not None
    network = clip_configs.read("ViT-B-32-quickgelu")
    pair = 12 * vision_operations(network["vision_cfg"]) + text_operations(network["text_cfg"], 32)
    found = bound(row)
    assert found is not None and found.extraction == 0 and found.precision == "fp16"
    assert found.training == pytest.approx(5 * 180_000 * 3 * pair)
    assert found.input == pytest.approx(5 * 180_000 * 12 * 224 * 224 * 3)
    assert found.hours(GPUS[0])[1] == pytest.approx(5 * 180_000 * 3 * pair / 312e12 / 3600)


def test_a_link_that_is_slower_than_the_processor_bounds_the_time():
    row = find("clip4clip", "msrvtt")
    found = bound(row) if row else None
    assert found is not None
    link_hours = found.input / 64e9 / 3600
    compute_hours = found.training / 989e12 / 3600
    assert found.hours(GPUS[1])[1] == pytest.approx(max(link_hours, compute_hours))


@pytest.mark.parametrize("row", every_recipe(), ids=lambda row: f"{row.method}/{row.name}")
def test_every_experiment_has_a_bound_that_a_newer_gpu_does_not_raise(row):
    found = bound(row)
    assert found is not None
    hours = [found.hours(gpu) for gpu in GPUS]
    assert sum(hours[0]) > 0 and (hours[0][1] > 0) == row.trained
    assert all(newer <= older for older, newer in zip(hours[0], hours[1], strict=True))
    assert all(newer <= older for older, newer in zip(hours[1], hours[2], strict=True))
