"""Compare and the report show one interval for one run: both draw items with all their captions, by one seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flows.results.report.leaderboard import boards
from trainers.data import SplitIndex
from trainers.measure.evaluate import evaluate
from trainers.measure.evaluated import EvaluatedFolder
from trainers.method import Batch, Encoded, Method

ITEMS, EACH = 40, 5


class Recorded(Method):
    """Scores that are made up: a caption's place and an item's look them up."""

    def __init__(self, scores: np.ndarray) -> None:
        super().__init__()
        self.matrix = torch.from_numpy(scores)

    def encode_texts(self, batch: Batch) -> Encoded:
        return {"x": batch["x"]}

    encode_items = encode_texts

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        return self.matrix[texts["x"][:, 0]][:, items["x"][:, 0]]


class Places:
    """The places of all captions and items."""

    def __init__(self, items: int, captions: int) -> None:
        self.items, self.captions = items, captions

    def item_batches(self, split: str) -> Iterator[Batch]:
        yield {"x": torch.arange(self.items)[:, None]}

    def text_batches(self, split: str) -> Iterator[Batch]:
        yield {"x": torch.arange(self.captions)[:, None]}


def evaluated(folder: Path, seed: int, several: bool, draws: int) -> Path:
    """The folder of an evaluation, an item's captions alike, with ties; `several`: bare items share a caption."""
    random = np.random.default_rng(seed)
    own, gallery = np.repeat(np.arange(ITEMS), EACH), ITEMS + 10
    scores = random.integers(0, 12, (len(own), gallery)).astype(np.float32)
    scores[np.arange(len(own)), own] += random.integers(0, 10, ITEMS)[own]
    index = SplitIndex(
        items=[f"v{n * 7 % gallery:02}" for n in range(gallery)],  # not in the order of their names
        item_rows=list(range(gallery)),
        captions=[f"c{n}" for n in range(len(own))],
        caption_rows=list(range(len(own))),
        caption_item=own.tolist(),
        texts=["said"] * len(own),
    )
    if several:
        lent = np.random.default_rng(9).integers(ITEMS, gallery, len(own))
        index = replace(index, caption_also=[[int(v)] if n % 3 == 0 else [] for n, v in enumerate(lent)])
    found = evaluate(Recorded(scores), Places(gallery, len(own)), "test", index, ("t2v", "v2t"), seed=draws)  # type: ignore[arg-type]
    folder.mkdir()
    found.write(folder)
    return folder


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("draws", [0, 3])
def test_compare_and_the_report_give_the_same_interval_for_the_same_run(
    tmp_path: Path, crossreel: Callable, several: bool, draws: int
) -> None:
    folders = [evaluated(tmp_path / name, seed, several, draws) for seed, name in enumerate("ab")]
    ended = crossreel("compare", *folders, "--json")
    assert ended.code == 0, ended.err
    pairs = {pair["direction"]: pair for pair in json.loads(ended.out)["pairs"]}
    stored = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    for side, report in zip(("of_a", "of_b"), stored, strict=True):
        assert {direction: pairs[direction][side] for direction in pairs} == report["mean_ties"]
    printed = crossreel("compare", *folders).out
    for folder, report in zip(folders, stored, strict=True):
        for direction in ("t2v", "v2t"):
            found = report["mean_ties"][direction]["R@1"]
            assert f"{found['low']:.0f}-{found['high']:.0f}" in printed
        for board in boards({"m": EvaluatedFolder(folder).metrics}):
            shown = [cell.interval for cell in board.rows[0][1]]
            expected = report["mean_ties"][board.direction].items()
            digits = {"MRR": 3}
            assert shown == [
                f"{f['low']:.{digits.get(n, 1)}f}–{f['high']:.{digits.get(n, 1)}f}" for n, f in expected
            ]
