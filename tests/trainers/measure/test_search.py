"""Encodings on disk, and the best of them found a block at a time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import TrainingError
from trainers.measure.search import (
    Encodings,
    best,
    best_stretches,
    every_pair,
    every_score,
    places_of,
    write_encodings,
)
from trainers.method import Batch, Encoded

KINDS = [torch.float64, torch.int64, torch.float32, torch.int32, torch.float16, torch.bfloat16, torch.uint8]


def drawn(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def batches(rows: Tensor, size: int) -> Iterator[Batch]:
    for first in range(0, len(rows), size):
        yield {"rows": rows[first : first + size]}


def same(batch: Batch) -> Encoded:
    return {"vector": batch["rows"]}


def written(path: Path, rows: Tensor, size: int = 7) -> Encodings:
    write_encodings(path, same, batches(rows, size), len(rows))
    return Encodings(path)


def product(query: Tensor) -> Callable[[Encoded], Tensor]:
    return lambda items: items["vector"].float() @ query


def slow_top(scores: Tensor, count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: (-float(scores[place]), place))[:count]


def test_encodings_come_back_as_they_were_in_every_kind_of_number(tmp_path):
    values = {str(kind): (drawn(11, 6) * 9).abs().to(kind).reshape(11, 2, 3) for kind in KINDS}
    values["flag"] = drawn(11, 1)[:, 0] > 0

    def encode(batch: Batch) -> Encoded:
        return {name: tensor[batch["at"]] for name, tensor in values.items()}

    path = tmp_path / "file.safetensors"
    write_encodings(path, encode, ({"at": torch.arange(i, min(i + 4, 11))} for i in range(0, 11, 4)), 11)
    whole, found = load_file(path), Encodings(path)
    assert len(found) == 11 and found.bytes_each == sum(tensor[:1].nbytes for tensor in values.values())
    for name, tensor in values.items():
        assert torch.equal(whole[name], tensor) and whole[name].dtype == tensor.dtype
        assert torch.equal(found.block(3, 8)[name], tensor[3:8])
        assert torch.equal(found.block(9, 40)[name], tensor[9:])
        assert torch.equal(found.rows([7, 0, 7])[name], tensor[[7, 0, 7]])


def test_entries_stand_where_the_index_of_their_batch_says(tmp_path):
    rows, order = drawn(10, 3), torch.randperm(10, generator=torch.Generator().manual_seed(1))
    shuffled = ({"rows": rows[part], "index": part} for part in order.split(3))
    write_encodings(tmp_path / "file", same, shuffled, 10)
    assert torch.equal(Encodings(tmp_path / "file").block(0, 10)["vector"], rows)


@pytest.mark.parametrize("count", [9, 11])
def test_an_entry_that_is_missing_or_comes_twice_is_refused(tmp_path, count):
    places = torch.arange(count).clamp_max(9)
    with pytest.raises(ValueError, match="of 10 entries 1 were not encoded exactly once"):
        write_encodings(tmp_path / "file", same, [{"rows": drawn(count, 3), "index": places}], 10)


def test_an_encoding_that_changes_its_shape_is_refused(tmp_path):
    parts = [{"rows": drawn(2, 3)}, {"rows": drawn(2, 1)}]  # which would spread over three columns
    with pytest.raises(ValueError, match=r"vector changes its shape from batch to batch: \(2, 1\)"):
        write_encodings(tmp_path / "file", same, parts, 4)


@pytest.mark.parametrize("entries", [1, 2, 7, 50, 1000])
def test_the_best_of_blocks_of_any_size_are_those_of_the_full_matrix(tmp_path, entries):
    rows, query = drawn(50, 8), drawn(1, 8, seed=1)[0]
    encodings = written(tmp_path / "file", rows)
    memory_mb = entries * 2 * encodings.bytes_each / 2**20
    for count in (1, 10, 50, 60):
        positions, scores = best(product(query), encodings, count, memory_mb=memory_mb)
        assert positions.tolist() == slow_top(rows @ query, count)
        assert np.allclose(scores, (rows @ query)[positions], atol=1e-6)


@pytest.mark.parametrize("entries", [1, 3, 8, 100])
def test_equal_scores_stay_in_gallery_order_over_the_borders_of_blocks(tmp_path, entries):
    levels = torch.tensor([0, 2, 1, 2, 2, 1, 0, 2, 1, 1, 2, 2, 0.0])[:, None]
    encodings = written(tmp_path / "file", levels)
    found, scores = best(product(torch.ones(1)), encodings, 9, memory_mb=entries * 8 / 2**20)
    assert found.tolist() == [1, 3, 4, 7, 10, 11, 2, 5, 8]
    assert scores.tolist() == [2, 2, 2, 2, 2, 2, 1, 1, 1]


def test_a_large_index_is_searched_with_one_block_in_memory(tmp_path):
    rows = drawn(20_000, 64)  # 5 MB
    encodings, seen = written(tmp_path / "file", rows, 4096), []

    def score(items: Encoded) -> Tensor:
        seen.append(len(items["vector"]))
        return items["vector"] @ rows[0]

    tracemalloc.start()
    positions, _ = best(score, encodings, 10, memory_mb=0.25)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(seen) * 64 * 4 <= 0.125 * 2**20 and sum(seen) == 20_000
    assert peak < 0.25 * 2**20
    assert positions.tolist() == slow_top(rows @ rows[0], 10)


@pytest.mark.parametrize("memory_mb", [0.001, 64])
def test_every_score_and_every_pair_are_those_of_one_product_and_places_count_equal_ones_in_order(
    tmp_path, memory_mb
):
    rows, queries = drawn(300, 8), drawn(5, 8)
    encodings = written(tmp_path / "file", rows)
    found = every_score(product(queries[0]), encodings, memory_mb=memory_mb)
    np.testing.assert_allclose(found, (rows @ queries[0]).numpy(), rtol=1e-5)
    pairs = every_pair(lambda items: queries @ items["vector"].T, 5, encodings, memory_mb=memory_mb)
    np.testing.assert_allclose(pairs, (queries @ rows.T).numpy(), rtol=1e-4, atol=1e-5)
    levels = np.array([1.0, 3.0, 2.0, 3.0, 2.0], np.float32)
    assert places_of(levels, range(5)).tolist() == [5, 1, 3, 2, 4] and places_of(levels, []).tolist() == []


def test_scores_that_are_no_numbers_stop_a_search(tmp_path):
    encodings = written(tmp_path / "file", drawn(5, 2))
    with pytest.raises(TrainingError, match="of 5 in this block 5 are NaN"):
        best(product(torch.full((2,), torch.nan)), encodings, 3)


def test_the_best_stretch_is_reported_as_shares_and_of_equal_ones_the_first():
    scores = np.array([[0.1, 0.9, 0.3, 0.9], [0.0, 0.0, 0.0, 0.5]])
    assert best_stretches(scores).tolist() == [[0.25, 0.5], [0.75, 1.0]]
