"""Declaration of GARE. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.contract import RetrievalMethod
from trainers.gare.config import GareConfig

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trainers.data import Rows, Split
    from trainers.gare.method import Gare
    from trainers.layers.pair_data import PairData


class GareMethod(RetrievalMethod[GareConfig]):
    """Text-video retrieval with an increment for each pair."""

    name, version, config = "gare", 1, GareConfig
    official = "trainers.gare.official"
    cases = "trainers.verify.gare"
    drawing = "flows.results.report.explained:GARE"
    table = "flows.results.board:gare.toml"

    def pack(
        self, folder: Path, config: GareConfig, splits: Mapping[str, Split], read: Mapping[str, Rows]
    ) -> None:
        """Write pictures and token ids, or stored features."""
        from trainers.gare.data import pack

        pack(folder, config, splits, read)

    def open_data(self, folder: Path, config: GareConfig) -> PairData:
        """The packed arrays as batches."""
        from trainers.gare.data import open_data

        return open_data(folder, config)

    def build(self, config: GareConfig, data: PairData) -> Gare:
        """The network with its initial weights."""
        if config.increment == "video":
            from trainers.gare.video_side import build as build_video_side

            return build_video_side(config, data)
        from trainers.gare.method import build

        return build(config, data)

    def optimizer(self, config: GareConfig, method: Gare, total_steps: int) -> Optimizer:
        """BertAdam with the published schedule."""
        from trainers.gare.method import optimizer

        return optimizer(config, method, total_steps)


GARE = GareMethod()
