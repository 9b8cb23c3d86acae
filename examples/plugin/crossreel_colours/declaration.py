"""Declaration of the method two_towers. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from crossreel_colours.config import TwoTowersConfig
from trainers.contract import RetrievalMethod

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from crossreel_colours.method import TwoTowers
    from trainers.data import Rows, Split
    from trainers.layers.vector_data import VectorData


class TwoTowersMethod(RetrievalMethod[TwoTowersConfig]):
    """Text-video retrieval by two linear maps."""

    name, version, config = "two_towers", 1, TwoTowersConfig

    def pack(
        self, folder: Path, config: TwoTowersConfig, splits: Mapping[str, Split], read: Mapping[str, Rows]
    ) -> None:
        """Write one vector for each video and caption."""
        from trainers.layers.vector_data import pack

        pack(folder, splits, item=read["video"], text=read["text"])

    def open_data(self, folder: Path, config: TwoTowersConfig) -> VectorData:
        """The packed vectors as batches."""
        from trainers.layers.vector_data import VectorData

        return VectorData(folder, config.batch_size)

    def build(self, config: TwoTowersConfig, data: VectorData) -> TwoTowers:
        """Both maps with random weights."""
        from crossreel_colours.method import TwoTowers

        return TwoTowers(config, data.item_size, data.text_size)

    def optimizer(self, config: TwoTowersConfig, method: TwoTowers, total_steps: int) -> Optimizer:
        """AdamW at a constant rate."""
        from torch.optim import AdamW

        return AdamW(method.parameters(), lr=config.lr)


TWO_TOWERS = TwoTowersMethod()
