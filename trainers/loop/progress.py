"""Progress of a training run, reported at most twice a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

SECONDS_BETWEEN = 0.5


@dataclass(frozen=True)
class Progress:
    """One look at a run. Epochs and steps count from 1."""

    epoch: int
    epochs: int  # at most: early stopping may end the run sooner
    step: int  # done in this epoch
    steps: int  # in an epoch
    loss: float
    terms: Mapping[str, float]
    lr: float
    items_per_second: float  # of training since this process began, validation left out
    eta_seconds: float  # to the last epoch, validation included
    validation: Mapping[str, float]  # the latest figures; empty in the first epoch
    waiting: float = (
        0.0  # share of the epoch's training time, in this process, in which a step waited for its data
    )


class Meter:
    """Measures the rates of one process and decides when progress is reported."""

    def __init__(self, items_per_step: int, report: Callable[[Progress], None] | None) -> None:
        self._items_per_step, self._report = items_per_step, report
        self._began, self._reported_at = time.monotonic(), float("-inf")
        self.steps, self._paused = 0, 0.0
        self._epoch_began, self._waited = self._began, 0.0

    @property
    def seconds(self) -> float:
        """Seconds since this process began."""
        return time.monotonic() - self._began

    def begin_epoch(self) -> None:
        """Begin to measure an epoch."""
        self._epoch_began, self._waited = time.monotonic(), 0.0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """A block in which a step waits for its data."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - began

    @property
    def waiting(self) -> float:
        """Share of the time since the epoch began in which a step waited for its data."""
        return self._waited / max(self.epoch_seconds, 1e-9)

    @property
    def epoch_seconds(self) -> float:
        """Seconds since the epoch began, or since this process went on with it."""
        return time.monotonic() - self._epoch_began

    def pause(self, seconds: float) -> None:
        """Leave out time in which no step was done."""
        self._paused += seconds

    @property
    def steps_per_second(self) -> float:
        """Training steps per second, pauses left out."""
        return self.steps / max(self.seconds - self._paused, 1e-9)

    def show(
        self,
        *,
        epoch: int,
        epochs: int,
        step: int,
        steps: int,
        terms: Mapping[str, float],
        lr: float,
        validation: Mapping[str, float],
    ) -> None:
        """Report the progress, unless the last report is less than half a second old."""
        last = epoch == epochs and step == steps
        if self._report is None or (time.monotonic() - self._reported_at < SECONDS_BETWEEN and not last):
            return
        self._reported_at = time.monotonic()
        left = (epochs - epoch) * steps + steps - step
        self._report(
            Progress(
                epoch=epoch,
                epochs=epochs,
                step=step,
                steps=steps,
                loss=sum(terms.values()),
                terms=terms,
                lr=lr,
                items_per_second=self.steps_per_second * self._items_per_step,
                eta_seconds=left * self.seconds / max(self.steps, 1),
                validation=validation,
                waiting=self.waiting,
            )
        )
