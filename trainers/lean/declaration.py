"""Declaration of LEAN. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.contract import RetrievalMethod
from trainers.lean.config import LeanConfig

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trainers.data import Rows, Split
    from trainers.lean.data import LeanData
    from trainers.lean.method import Lean


class LeanMethod(RetrievalMethod[LeanConfig]):
    """Text-video retrieval by the hypergraph of each pair of a caption and a video."""

    name, version, config = "lean", 1, LeanConfig
    cases = "trainers.verify.lean"
    drawing = "flows.results.report.explained:LEAN"
    table = "flows.results.board:lean.toml"

    def pack(
        self, folder: Path, config: LeanConfig, splits: Mapping[str, Split], read: Mapping[str, Rows]
    ) -> None:
        """Write the nodes of captions and videos."""
        from trainers.lean.data import pack

        pack(folder, config, splits, read)

    def open_data(self, folder: Path, config: LeanConfig) -> LeanData:
        """The packed arrays as batches."""
        from trainers.lean.data import open_data

        return open_data(folder, config)

    def build(self, config: LeanConfig, data: LeanData) -> Lean:
        """The network with its initial weights."""
        from trainers.lean.method import build

        return build(config, data)

    def optimizer(self, config: LeanConfig, method: Lean, total_steps: int) -> Optimizer:
        """AdamW at a constant rate."""
        from trainers.lean.method import optimizer

        return optimizer(config, method, total_steps)


LEAN = LeanMethod()
