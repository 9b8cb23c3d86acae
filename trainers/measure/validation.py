"""The validation of a training: its figure after each epoch, its progress, and a sentence if it costs too much."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trainers.config import MethodConfig
from trainers.data import SplitIndex
from trainers.measure.evaluate import validation_figure, validation_sample
from trainers.measure.pace import Report
from trainers.method import Method, MethodData

SHARE = 0.1  # of its epoch's time: a validation that takes more is mentioned
NOTICED_SECONDS = 5.0  # a shorter one is not


class Validation:
    """Judges a method on the split `val`, as its settings say: on all captions or on a sample of them.

    `report` receives its progress, `say` at most one sentence: how many captions would take a tenth of an epoch.
    """

    def __init__(
        self, name: str, config: MethodConfig, data: MethodData, index: SplitIndex, device: torch.device,
        report: Report, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._name, self._config, self._data, self._index, self._device = name, config, data, index, device
        self._report, self._say = report, say
        self._sample = validation_sample(index, config.validation_captions, config.seed)
        self._ended_at: float | None = None
        self._said = False

    @property
    def captions(self) -> int:
        """Number of captions in the sample; 0 for all."""
        return 0 if self._sample is None else len(self._sample)

    def __call__(self, method: Method) -> dict[str, float]:
        """The figure that chooses the epoch, by its name, and R@1, R@5 and R@10 of the directions that it ranks."""
        config, began, recalls = self._config, time.monotonic(), dict[str, float]()
        value = validation_figure(
            method, self._data, "val", self._index, self._device, by=config.select_by,
            recalls=recalls, direction=config.select_direction, v2t_rank=config.v2t_rank, sample=self._sample,
            on_progress=self._report,
        )  # fmt: skip
        ended = time.monotonic()
        if (
            self._ended_at is not None
        ):  # the epoch before the first one may have been trained by a killed process
            self._mention(ended - began, began - self._ended_at)
        self._ended_at = ended
        return {config.figure: value} | recalls

    def _mention(self, seconds: float, epoch_seconds: float) -> None:
        if self._said or seconds < NOTICED_SECONDS or seconds <= SHARE * epoch_seconds:
            return
        self._said = True
        captions = self.captions or len(self._index.captions)
        enough = max(1, int(captions * SHARE * epoch_seconds / seconds))
        self._say(
            f"a validation takes {seconds:.0f} s, the steps of an epoch {epoch_seconds:.0f} s; "
            f"trainers.{self._name}.validation_captions = {enough} would bring it to a tenth"
        )


def shown(latest: Mapping[str, Any], work: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a training that is validating: its latest one, with how far the validation is."""
    return {**latest, "validating": dict(work)}
