"""The folder of an evaluation: what is read is what was measured, and what is damaged is named in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from pipeline.errors import UserError
from trainers.data import SplitIndex
from trainers.measure.evaluate import Evaluation, evaluate
from trainers.measure.evaluated import EXPLANATION, METRICS, QUERIES, RANKING, EvaluatedFolder
from trainers.method import Batch, Encoded, Method
from trainers.stages import EvaluateParams

CAPTIONS, ITEMS = 9, 6


class Drawn(Method):
    """Scores drawn once, in steps so wide that some are equal; what is said of a match is its score."""

    table = torch.randint(0, 4, (CAPTIONS, ITEMS), generator=torch.Generator().manual_seed(0)).float()

    def encode_texts(self, batch: Batch) -> Encoded:
        return dict(batch)

    def encode_items(self, batch: Batch) -> Encoded:
        return dict(batch)

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        return self.table[texts["index"]][:, items["index"]]

    def explain(self, texts: Encoded, items: Encoded) -> dict[str, Tensor]:
        return {"said": self.scores(texts, items)}


class Numbers:
    """Captions and items that are their positions."""

    def train_steps(self, world: int = 1) -> int:
        raise NotImplementedError

    def train_batches(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        raise NotImplementedError

    def item_batches(self, split: str) -> Iterator[Batch]:
        yield {"index": torch.arange(ITEMS)}

    def text_batches(self, split: str) -> Iterator[Batch]:
        yield {"index": torch.arange(CAPTIONS)}


def index_of(several: bool = False) -> SplitIndex:
    """The last item has no caption; every third caption describes the first item too."""
    own = [1 + q % (ITEMS - 2) for q in range(CAPTIONS)]
    return SplitIndex(
        [f"v{v}" for v in range(ITEMS)], list(range(ITEMS)), [f"c{q}" for q in range(CAPTIONS)],
        list(range(CAPTIONS)), own, [f"text {q}" for q in range(CAPTIONS)],
        [[0] if q % 3 == 0 else [] for q in range(CAPTIONS)] if several else [],
    )  # fmt: skip


def written(
    folder: Path, several: bool = False, directions: tuple[str, ...] = ("t2v", "v2t")
) -> tuple[EvaluatedFolder, Evaluation]:
    params = EvaluateParams(post_processing=("sinkhorn",))
    corpus = {"name": "a set", "sentence": "a set: its list", "digest": "d", "queries": 10, "gallery": 6}
    result = evaluate(
        Drawn(),
        Numbers(),
        "test",
        index_of(several),
        directions,
        post_processing=params,
        queries=10,
        corpus=corpus,
    )
    result.write(folder)
    return EvaluatedFolder(folder), result


@pytest.mark.parametrize("several", [False, True], ids=["one positive", "several"])
@pytest.mark.parametrize("directions", [("t2v",), ("v2t",), ("t2v", "v2t")])
def test_what_is_read_is_what_was_measured(
    tmp_path: Path, several: bool, directions: tuple[str, ...]
) -> None:
    folder, result = written(tmp_path, several, directions)
    metrics, index = folder.metrics, result.index
    assert (metrics.metrics, metrics.mean_ties, metrics.hubness) == (
        result.metrics, result.mean_ties, result.hubness,
    )  # fmt: skip
    assert metrics.protocol.as_json() == result.protocol and metrics.post_processed == result.post_processed
    assert metrics.tied and metrics.estimates == metrics.mean_ties != metrics.metrics
    sinkhorn = metrics.post_processed["sinkhorn"]
    assert sinkhorn.estimates == (sinkhorn.mean_ties or sinkhorn.metrics) and "other queries" in sinkhorn.note
    queries, found = folder.queries, result.ranking
    assert (queries.items, queries.captions, queries.texts) == (index.items, index.captions, index.texts)
    assert queries.positives == index.positives and queries.several == several
    ranking = folder.ranking
    assert list(ranking.ranks) == list(directions) == list(metrics.protocol.directions)
    for direction, ranks in ranking.ranks.items():
        assert np.array_equal(ranks.strict, found.ranks[direction].strict)
        assert np.array_equal(ranks.mean, found.ranks[direction].mean)
        assert np.array_equal(ranking.occurrences[direction], found.occurrences[direction])
        side = metrics.protocol.side(direction)
        assert side is not None and queries.gallery(direction) == side.gallery
        assert len(queries.positive_counts(direction)) == len(ranks.mean) == side.queries
        assert metrics.protocol.chance(direction) == side.chance
    assert metrics.protocol.chance("both") == {} and metrics.protocol.side("both") is None
    assert np.array_equal(ranking.query_items, found.query_items if "v2t" in directions else [])
    if "t2v" in directions:
        assert np.array_equal(ranking.best_positives, found.best_positives)
    assert np.array_equal(ranking.top_items, found.top_items)
    assert np.array_equal(ranking.top_scores, found.top_scores)
    assert folder.explanation.keys() == {"query", "item", "said"}
    assert all(
        np.array_equal(folder.explanation[name], result.explanation[name]) for name in result.explanation
    )


def test_items_know_their_captions_and_their_positives_are_counted_once(tmp_path: Path) -> None:
    queries = written(tmp_path, several=True)[0].queries
    assert queries.captions_of[0] == [0, 3, 6] and queries.captions_of[-1] == []
    assert queries.positive_counts("t2v").tolist() == [2, 1, 1] * 3
    assert queries.positive_counts("v2t").tolist() == [3, 3, 2, 2, 2]


def test_an_evaluation_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """The kind, dropped captions, hubness and occurrences came later; other keys are those of a later version."""
    folder, result = written(tmp_path)
    told = json.loads((tmp_path / METRICS).read_text())
    protocol = {k: v for k, v in told["protocol"].items() if k not in ("kind", "dropped", "corpus")}
    earlier = {"metrics": told["metrics"], "mean_ties": {}, "protocol": protocol | {"later": 1}, "later": {}}
    (tmp_path / METRICS).write_text(json.dumps(earlier))
    arrays = load_file(tmp_path / RANKING)
    save_file({n: a for n, a in arrays.items() if "occurrences" not in n}, tmp_path / RANKING)
    (tmp_path / EXPLANATION).unlink()
    folder = EvaluatedFolder(tmp_path)
    read = folder.metrics.protocol
    assert (read.kind, read.dropped, read.corpus, read.rerank) == ("video", 0, None, "")
    assert read.as_json() == protocol | {"later": 1}
    assert folder.metrics.hubness == {} == folder.metrics.post_processed == folder.ranking.occurrences
    assert folder.explanation == {} and not folder.metrics.tied
    assert folder.metrics.estimates == result.metrics


def rewritten(name: str, change: Callable[[dict], dict]) -> Callable[[Path], None]:
    """A harm to one file: JSON or arrays that were changed."""

    def harm(folder: Path) -> None:
        path = folder / name
        if path.suffix == ".json":
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
        else:
            save_file({n: np.ascontiguousarray(a) for n, a in change(load_file(path)).items()}, path)

    return harm


def bytes_of(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def without(*names: str) -> Callable[[dict], dict]:
    return lambda told: {name: value for name, value in told.items() if name not in names}


def with_(**changes: object) -> Callable[[dict], dict]:
    """The content with entries replaced; a function is called with the former entry."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return lambda told: told | {n: v(told[n]) if callable(v) else v for n, v in named.items()}


@pytest.mark.parametrize(
    ("what", "harm", "sentence"),
    [
        ("metrics", gone(METRICS), "there is no .*metrics.json; .* is not the folder of an evaluated method"),
        ("metrics", bytes_of(METRICS, b"{"), "is damaged or not of an evaluated method: invalid json"),
        ("metrics", rewritten(METRICS, with_(metrics={"t2v": {"R@1": 3}})), r"metrics.t2v.R@1: "),
        ("metrics", rewritten(METRICS, with_(protocol={})), "protocol.split: field required"),
        ("queries", gone(QUERIES), "there is no .*queries.json"),
        ("queries", rewritten(QUERIES, with_(texts=[])), "its lists of captions differ in length"),
        ("queries", rewritten(QUERIES, with_(caption_item=[-1] * CAPTIONS)), "beyond the 6 there are"),
        ("ranking", gone(RANKING), "there is no .*ranking.safetensors; evaluate the method again"),
        ("ranking", bytes_of(RANKING, bytes(40)), "ranking.safetensors is damaged: "),
        ("ranking", rewritten(RANKING, lambda told: {"top.items": told["top.items"]}), "holds no ranks"),
        ("ranking", rewritten(RANKING, without("t2v.rank")), "it holds no t2v.rank"),
        ("ranking", rewritten(RANKING, without("v2t.item")), "whose the ranks of items are"),
        ("ranking", rewritten(RANKING, with_(t2v__rank=lambda a: a[1:])), "is of another evaluation than"),
        ("ranking", rewritten(RANKING, with_(v2t__rank=lambda a: 0 * a)), "no numbers from 1 on"),
        ("ranking", rewritten(RANKING, with_(top__items=lambda a: a + 9)), "positions of the 6 items"),
        ("ranking", rewritten(RANKING, with_(top__scores=lambda a: a[:, 1:])), r"first places \(9, 6\)"),
        ("ranking", rewritten(RANKING, with_(v2t__occurrences=lambda a: a[:6])), r"\(6,\) members in v2t"),
        ("explanation", bytes_of(EXPLANATION, b""), "explanation.safetensors is damaged"),
        ("explanation", rewritten(EXPLANATION, without("query")), "it holds no query"),
        (
            "explanation",
            rewritten(EXPLANATION, with_(said=lambda a: a[:, :1])),
            r"said has the shape \(9, 1\)",
        ),
        ("explanation", rewritten(EXPLANATION, with_(query=lambda a: a + 1)), "pairs that are not there"),
    ],
)
def test_a_missing_or_damaged_file_is_named_in_one_sentence(
    tmp_path: Path, what: str, harm: Callable[[Path], None], sentence: str
) -> None:
    written(tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError, match=sentence) as error:
        getattr(EvaluatedFolder(tmp_path), what)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_reading_imports_no_torch(run_python: Callable[..., Any]) -> None:
    code = "import sys, trainers.measure.evaluated, trainers.loop.trained; sys.exit('torch' in sys.modules)"
    assert run_python(code).code == 0
