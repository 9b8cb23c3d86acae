"""Declaration of NeighborRetr. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.contract import RetrievalMethod
from trainers.neighborretr.config import NeighborRetrConfig

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trainers.data import Rows, Split
    from trainers.layers.pair_data import PairData
    from trainers.neighborretr.method import NeighborRetr


class NeighborRetrMethod(RetrievalMethod[NeighborRetrConfig]):
    """Text-video retrieval that weighs hubs down."""

    name, version, config = "neighborretr", 2, NeighborRetrConfig
    official = "trainers.neighborretr.official"
    cases = "trainers.verify.neighborretr"
    drawing = "flows.results.report.explained:NEIGHBORRETR"
    table = "flows.results.board:neighborretr.toml"

    def pack(
        self, folder: Path, config: NeighborRetrConfig, splits: Mapping[str, Split], read: Mapping[str, Rows]
    ) -> None:
        """Write pictures and token ids, or stored features."""
        from trainers.neighborretr.data import pack

        pack(folder, config, splits, read)

    def open_data(self, folder: Path, config: NeighborRetrConfig) -> PairData:
        """The packed arrays as batches."""
        from trainers.neighborretr.data import open_data

        return open_data(folder, config)

    def build(self, config: NeighborRetrConfig, data: PairData) -> NeighborRetr:
        """The network with its initial weights."""
        from trainers.neighborretr.method import build

        return build(config, data)

    def optimizer(self, config: NeighborRetrConfig, method: NeighborRetr, total_steps: int) -> Optimizer:
        """BertAdam with the published schedule."""
        from trainers.neighborretr.method import optimizer

        return optimizer(config, method, total_steps)


NEIGHBORRETR = NeighborRetrMethod()
