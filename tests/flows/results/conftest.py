"""Folders as trainings and evaluations leave them: a small method is trained and measured by the product's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from flows.cli import app
from trainers.data import SplitIndex
from trainers.measure.evaluate import evaluate
from trainers.measure.evaluated import EvaluatedFolder
from trainers.method import Batch, Encoded, Method

FIXTURES = Path(__file__).parents[2] / "fixtures"
TINY = FIXTURES / "hlformer/mssl_tiny/tiny"
SETTINGS = f"""
{(FIXTURES / "experiments/mssl_tiny.toml").read_text()}
[evaluate]
directions = "both"
post_processing = ["dual_softmax", "qb_norm", "sinkhorn"]
[evaluate.qb_norm]
k = 2
"""


class Given(Method):
    """A method whose scores are given: a text is its row of them, an item the unit vector of its column.

    `said` gives what is said of a match, from the positions of the caption and of the item.
    """

    def __init__(self, said: Callable[[int, int], Mapping[str, np.ndarray]] | None = None) -> None:
        super().__init__()
        self.said = said

    def encode_texts(self, batch: Batch) -> Encoded:
        return {"row": batch["row"], "place": batch["index"]}

    def encode_items(self, batch: Batch) -> Encoded:
        return {"column": batch["column"], "place": torch.arange(len(batch["column"]))}

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        return texts["row"] @ items["column"].T  # exact: all terms of a sum but one are 0

    def explain(self, texts: Encoded, items: Encoded) -> dict[str, Tensor]:
        if self.said is None:
            return {}
        (query,) = texts["place"].tolist()
        every = [self.said(query, item) for item in items["place"].tolist()]
        return {name: torch.from_numpy(np.stack([one[name] for one in every])[None]) for name in every[0]}


class GivenData:
    """The rows of a matrix of scores as captions, its columns as items."""

    def __init__(self, scores: np.ndarray) -> None:
        self.rows = torch.from_numpy(scores.astype(np.float32))

    def train_steps(self, world: int = 1) -> int:
        raise NotImplementedError

    def train_batches(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        raise NotImplementedError

    def item_batches(self, split: str) -> Iterator[Batch]:
        yield {"column": torch.eye(self.rows.shape[1])}

    def text_batches(self, split: str) -> Iterator[Batch]:
        yield {"row": self.rows, "index": torch.arange(len(self.rows))}


@pytest.fixture(scope="session")
def evaluated_from() -> Callable[..., EvaluatedFolder]:
    """`evaluated_from(folder, scores, index, directions, split, said, ...)` evaluates given scores (Q, V)."""

    def make(
        folder: Path, scores: np.ndarray, index: SplitIndex, directions: tuple[str, ...] = ("t2v", "v2t"),
        split: str = "test", said: Callable[[int, int], Mapping[str, np.ndarray]] | None = None, **more: Any,
    ) -> EvaluatedFolder:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        evaluate(Given(said), GivenData(scores), split, index, directions, **more).write(folder)
        return EvaluatedFolder(folder)

    return make


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory, called: Callable[..., str]) -> Path:
    """An experiment on imported features with a trained method, evaluated in both directions with every option.

    `printed.txt` beside it is what the evaluation printed. Tests only read it.
    """
    folder = tmp_path_factory.mktemp("experiment")
    path = folder / "experiment.toml"
    path.write_text(SETTINGS)
    called("import", "features", TINY, "--store", folder / "store", "--out", folder / "corpus.jsonl")
    (folder / "printed.txt").write_text(called("stage", "evaluate", path))
    return path


@pytest.fixture(scope="session")
def called(fork_children: Callable[[], AbstractContextManager[None]]) -> Callable[..., str]:
    """`called(*words)` is what a verb prints, which ends with 0."""

    def call(*words: object) -> str:
        with fork_children():
            result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, (words, result.output, result.exception)
        return result.stdout

    return call
