"""Declaration of CLIP4Clip. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.clip4clip.config import Clip4ClipConfig
from trainers.contract import RetrievalMethod

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trainers.clip4clip.method import Clip4Clip
    from trainers.data import Rows, Split
    from trainers.layers.pair_data import PairData


class Clip4ClipMethod(RetrievalMethod[Clip4ClipConfig]):
    """Text-video retrieval by CLIP's own vectors, fine-tuned, or as they are with `epochs = 0`."""

    name, version, config = "clip4clip", 1, Clip4ClipConfig
    official = "trainers.clip4clip.official"
    cases = "trainers.verify.clip4clip"
    table = "flows.results.board:clip4clip.toml"

    def pack(
        self, folder: Path, config: Clip4ClipConfig, splits: Mapping[str, Split], read: Mapping[str, Rows]
    ) -> None:
        """Write pictures and token ids, or stored features."""
        from trainers.clip4clip.data import pack

        pack(folder, config, splits, read)

    def open_data(self, folder: Path, config: Clip4ClipConfig) -> PairData:
        """The packed arrays as batches."""
        from trainers.clip4clip.data import open_data

        return open_data(folder, config)

    def build(self, config: Clip4ClipConfig, data: PairData) -> Clip4Clip:
        """The network with its initial weights."""
        from trainers.clip4clip.method import build

        return build(config, data)

    def optimizer(self, config: Clip4ClipConfig, method: Clip4Clip, total_steps: int) -> Optimizer:
        """BertAdam with the published schedule."""
        from trainers.clip4clip.method import optimizer

        return optimizer(config, method, total_steps)


CLIP4CLIP = Clip4ClipMethod()
