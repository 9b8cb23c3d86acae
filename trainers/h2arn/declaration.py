"""Declaration of H2ARN. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.contract import RetrievalMethod
from trainers.h2arn.config import H2arnConfig

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trainers.data import Rows, Split
    from trainers.h2arn.data import H2arnData
    from trainers.h2arn.method import H2arn


class H2arnMethod(RetrievalMethod[H2arnConfig]):
    """Text-3D retrieval in hyperbolic space."""

    name, version, config = "h2arn", 1, H2arnConfig
    official = "trainers.h2arn.official"
    cases = "trainers.verify.h2arn"
    drawing = "flows.results.report.explained:H2ARN"
    table = "flows.results.board:h2arn.toml"

    def pack(
        self, folder: Path, config: H2arnConfig, splits: Mapping[str, Split], read: Mapping[str, Rows]
    ) -> None:
        """Write the tokens of clouds and captions."""
        from trainers.h2arn.data import pack

        pack(folder, config, splits, read)

    def open_data(self, folder: Path, config: H2arnConfig) -> H2arnData:
        """The packed arrays as batches."""
        from trainers.h2arn.data import open_data

        return open_data(folder, config)

    def build(self, config: H2arnConfig, data: H2arnData) -> H2arn:
        """The network with its initial weights."""
        from trainers.h2arn.method import build

        return build(config, data)

    def optimizer(self, config: H2arnConfig, method: H2arn, total_steps: int) -> Optimizer:
        """AdamW with a warm-up and a linear decay."""
        from trainers.h2arn.method import optimizer

        return optimizer(config, method, total_steps)


H2ARN = H2arnMethod()
