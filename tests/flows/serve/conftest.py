"""Stores with evaluated runs whose ranks are given: the product's own writer makes their folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Caption, Corpus, Item
from pipeline.store.fingerprint import Fingerprint, digest_text
from pipeline.store.store import Store
from trainers.measure.evaluated import EvaluatedFolder, Metrics, Protocol, Queries, Ranking, Side, Spread
from trainers.measure.metrics import Estimate, Ranks

TOP = 10


@dataclass(frozen=True)
class Given:
    """A corpus of `items` items with `captions` captions each, all of the split test, and a store."""

    store: Store
    contents: Contents

    def evaluate(
        self, method: str, scores: np.ndarray, made: str = "a", queries: slice = slice(None), **params: object
    ) -> Path:
        """A training and its evaluation, with the scores (Q, V) that it gave. `made` tells runs of a method apart."""
        needs = {f"pack-{method}": digest_text(f"pack {method}")}
        train = Fingerprint(digest_text(f"train {method} {made}"), {"params": params, "needs": needs})
        self._publish(f"train-{method}", train, lambda folder: None)
        components = {"params": {"split": "test"}, "needs": {f"train-{method}": train.hex}}
        fingerprint = Fingerprint(digest_text(f"evaluate {method} {made}"), components)
        return self._publish(
            f"evaluate-{method}", fingerprint, lambda folder: self._write(folder, scores[queries], queries)
        )

    def _publish(self, stage: str, fingerprint: Fingerprint, write: Callable[[Path], None]) -> Path:
        work = self.store.work_folder(stage, fingerprint.hex)
        work.mkdir(parents=True)
        write(work)
        return self.store.publish(stage, fingerprint, 1.0, {})

    def _write(self, folder: Path, scores: np.ndarray, queries: slice) -> None:
        pairs = list(self.contents.queries("test"))[queries]
        items = list(self.contents.items())
        own = np.array([items.index(key) for key, _, _ in pairs]) if len(pairs) < 1000 else _own(pairs, items)
        top = np.argsort(-scores, 1, kind="stable")[:, :TOP]
        rank = 1 + (scores > scores[np.arange(len(own)), own, None]).sum(1)
        ranking = Ranking(
            {"t2v": Ranks(rank.astype(np.int64), rank.astype(np.float64))}, np.empty(0, np.int64), own, top,
            np.take_along_axis(scores, top, 1).astype(np.float32),
            {"t2v": np.bincount(top.ravel(), minlength=len(items))},
        )  # fmt: skip
        one = Spread(min=1, mean=1, max=1)
        protocol = Protocol(
            split="test", split_digest="0", items=len(items), captions=len(pairs), captions_per_item=one,
            directions={"t2v": Side(queries=len(pairs), gallery=len(items))}, ties="", v2t_rank="", post_processing="",
            intervals="",
        )  # fmt: skip
        found = Queries(
            items=items, captions=[caption.digest for _, _, caption in pairs], caption_item=own.tolist(),
            texts=[caption.text for _, _, caption in pairs],
        )  # fmt: skip
        estimates = {"t2v": {"R@1": Estimate(float(100 * (rank == 1).mean()), 0.0, 100.0)}}
        EvaluatedFolder(folder).write(Metrics(metrics=estimates, protocol=protocol), found, ranking)


def _own(pairs: list[tuple[str, Item, Caption]], items: list[str]) -> np.ndarray:
    place = {key: number for number, key in enumerate(items)}
    return np.array([place[key] for key, _, _ in pairs])


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., Given]:
    """`given(items, captions, texts)` is a corpus and an empty store."""

    def make(items: int, captions: int = 2, texts: Mapping[int, str] | None = None) -> Given:
        members = tuple(
            Item(
                f"item{n}", "test",
                tuple(
                    Caption(f"item{n}#{k}", (texts or {}).get(n * captions + k, f"caption {k} of the item {n}"))
                    for k in range(captions)
                ), digest=digest_text(f"item {n}"),
            )
            for n in range(items)
        )  # fmt: skip
        corpus = Corpus(tmp_path / "corpus.jsonl", members)
        return Given(Store(tmp_path / "store"), Contents(corpus, {item.id: item.digest for item in members}))

    return make
