"""A validation that costs much is mentioned once, with the number of captions that would cost less."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainers.lean.config import LeanConfig
from trainers.measure import validation
from trainers.measure.validation import Validation

CAPTIONS = 1000
INDEX: Any = SimpleNamespace(captions=["c"] * CAPTIONS)


def said(monkeypatch: pytest.MonkeyPatch, epochs: list[tuple[float, float]]) -> list[str]:
    """Sentences of a training whose epochs and validations take these seconds."""
    clock = [0.0]
    monkeypatch.setattr(validation.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(validation, "validation_sample", lambda *_: None)
    sentences: list[str] = []
    data: Any = None
    judge = Validation(
        "lean", LeanConfig(), data, INDEX, torch.device("cpu"), lambda work: None, sentences.append
    )
    for steps, validating in epochs:

        def figure(*_: Any, taken: float = validating, **__: Any) -> float:
            clock[0] += taken
            return 1.0

        clock[0] += steps
        monkeypatch.setattr(validation, "validation_figure", figure)
        assert judge(data) == {"SumR": 1.0}
    return sentences


def test_one_that_takes_more_than_a_tenth_of_its_epoch_is_mentioned_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sentences = said(monkeypatch, [(100, 40), (100, 40), (100, 40)])
    assert sentences == [
        "a validation takes 40 s, the steps of an epoch 100 s; trainers.lean.validation_captions = 250 would bring "
        "it to a tenth"
    ]


@pytest.mark.parametrize(
    "epochs",
    [
        [(100, 9), (100, 9)],
        [(3, 40)],  # the rest of an epoch that a killed process began
        [(1, 2), (1, 2)],  # nobody notices two seconds
    ],
)
def test_one_that_is_short_is_not_mentioned(
    monkeypatch: pytest.MonkeyPatch, epochs: list[tuple[float, float]]
) -> None:
    assert said(monkeypatch, epochs) == []
