"""The checkpoints in a run's folder: `last`, the `previous` one to fall back on, and `best-<epoch>`.

The best weights are named by their epoch, so whichever of `last` and `previous` a run is taken up
from, the best weights that it speaks of are there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainers.loop import checkpoint

NAMES = ("last.safetensors", "previous.safetensors")

log = logging.getLogger(__name__)


class Snapshots:
    """Writes, finds and clears the checkpoints of one run. Only the first process of a run writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._referred = [0]  # the best epochs that the checkpoints kept speak of, newest last

    def newest(self) -> Path | None:
        """The newest whole checkpoint; a damaged one is set aside with a warning that says why."""
        for path in (self.folder / name for name in NAMES):
            try:
                checkpoint.load(path)
                return path
            except FileNotFoundError:
                continue
            except checkpoint.DamagedCheckpoint as error:
                log.warning("%s; going back to the checkpoint before it", error)
                path.replace(path.with_suffix(".damaged"))  # it must not push out a whole `previous`
        return None

    def resumed(self, best_epoch: int) -> None:
        """Note the best epoch of the checkpoint that the run went on from."""
        self._referred = [best_epoch]

    def best(self, epoch: int) -> Path:
        """Where the weights of a best epoch are."""
        return self.folder / f"best-{epoch:04d}.safetensors"

    def save_best(self, method: nn.Module, epoch: int, figures: Mapping[str, float]) -> None:
        """Write the weights of the best epoch so far. Those before it stay until no checkpoint needs them."""
        checkpoint.save_weights(self.best(epoch), method, {"epoch": epoch, "validation": dict(figures)})

    def save(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], best_epoch: int) -> None:
        """Write `last`, keep the one before as `previous`, clear weights that neither calls the best."""
        last, previous = (self.folder / name for name in NAMES)
        fresh = self.folder / "next.safetensors"
        checkpoint.save(fresh, tensors, meta)
        if last.exists():
            last.replace(previous)
        fresh.replace(last)
        checkpoint.sync_folder(self.folder)
        self._referred = [self._referred[-1], best_epoch]
        for path in set(self.folder.glob("best-*.safetensors")) - {
            self.best(epoch) for epoch in self._referred
        }:
            path.unlink()
