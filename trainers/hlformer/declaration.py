"""Declaration of HLFormer. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.contract import RetrievalMethod
from trainers.hlformer.config import HLFormerConfig

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trainers.data import Rows, Split
    from trainers.hlformer.data import HLFormerData
    from trainers.hlformer.method import HLFormer


class HLFormerMethod(RetrievalMethod[HLFormerConfig]):
    """Partially relevant video retrieval in Euclidean and hyperbolic space (ICCV 2025).

    Version 2: on several processes the losses are those of the joint batch. Earlier trainings are made again,
    those on one process too, because the store does not record the number of processes of a training.
    """

    name, version, config = "hlformer", 2, HLFormerConfig
    official = "trainers.hlformer.official"
    cases = "trainers.verify.hlformer"
    drawing = "flows.results.report.explained:HLFORMER"
    table = "flows.results.board:hlformer.toml"

    def pack(
        self, folder: Path, config: HLFormerConfig, splits: Mapping[str, Split], read: Mapping[str, Rows]
    ) -> None:
        """Write frames, clips and tokens as unit rows."""
        from trainers.hlformer.data import pack

        pack(folder, config, splits, read)

    def open_data(self, folder: Path, config: HLFormerConfig) -> HLFormerData:
        """The packed arrays as batches."""
        from trainers.hlformer.data import open_data

        return open_data(folder, config)

    def build(self, config: HLFormerConfig, data: HLFormerData) -> HLFormer:
        """The network with its initial weights."""
        from trainers.hlformer.method import build

        return build(config, data)

    def optimizer(self, config: HLFormerConfig, method: HLFormer, total_steps: int) -> Optimizer:
        """BertAdam with the published schedule."""
        from trainers.hlformer.method import optimizer

        return optimizer(config, method, total_steps)


HLFORMER = HLFormerMethod()
