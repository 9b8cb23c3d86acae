"""The curves of a training run: `history.jsonl`, a line an epoch, and TensorBoard points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from trainers.loop.trained import TrainedFolder

HistoryRow = dict[str, Any]
"""One epoch, with the fields of `trainers.loop.trained.Epoch`."""


class Curves:
    """Writes both logs of a run that stands at `steps` steps, forgetting what was logged after them.

    `points` are those of that very step, by group: a killed run may or may not have come to write them,
    so they are forgotten too and written anew.
    """

    def __init__(self, folder: Path, steps: int, points: Mapping[str, Mapping[str, float]]) -> None:
        self._trained = TrainedFolder(folder)
        _number_old_files(self._trained.tensorboard)
        self._board = SummaryWriter(str(self._trained.tensorboard), purge_step=steps)
        for group, values in points.items():
            self.add(group, values, steps)

    def write_history(self, rows: Sequence[HistoryRow]) -> None:
        """Replace the file by these rows, whole or not at all."""
        self._trained.write_history(rows)

    def add(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Add a point at a step, counted over the whole run, to each of a group of curves."""
        for name, value in values.items():
            self._board.add_scalar(f"{group}/{name}", value, step)

    def flush(self) -> None:
        """Hand every point to the operating system: a kill loses none of them any more."""
        self._board.flush()

    def close(self) -> None:
        """End the logs."""
        self._board.close()


def _number_old_files(folder: Path) -> None:
    """Give the files of a broken run names that sort before any new one, in the order they were written.

    A reader takes files in order of name, and a name begins with the second it was opened: a run
    resumed within that second, or on a machine whose clock is behind, would be read first.
    """
    for number, path in enumerate(sorted(folder.glob("events.out.tfevents.*"))):
        path.rename(path.with_name(f"events.out.tfevents.{number:010d}"))
