"""Settings of CLIP4Clip. Importing it imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.settings import UNSEEN
from trainers.config import TrainingSizes
from trainers.layers.pair_config import ClipPairConfig

log = logging.getLogger(__name__)


class Clip4ClipConfig(ClipPairConfig):
    """CLIP4Clip's settings, with the defaults of MSR-VTT; recipes.toml has the published ones.

    Names are those of the release; settings that it does not have are under "ours".

    `epochs = 0` with `sim_header = "meanP"` is zero-shot CLIP: it has no parameters of its own and learns nothing.
    """

    text_output: ClassVar[str] = "pooled"  # the vector of the whole caption

    sim_header: Literal["meanP", "seqTransf", "seqLSTM"] = "meanP"  # tightTransf of the release is not built
    cross_num_hidden_layers: int = Field(4, ge=1)  # blocks of seqTransf
    freeze_layer_num: int = Field(
        0, ge=-1
    )  # blocks of each tower that stay as they are; -1: all of CLIP is trained

    epochs: int = Field(5, ge=0)
    lr: float = Field(1e-4, gt=0)
    warmup_proportion: float = Field(0.1, ge=0, lt=1)  # share of all updates in which the rate rises

    # ours
    normalise_frames: Annotated[bool, UNSEEN] = (
        True  # false: the mean of the frames as they are, as arXiv 2102.12443 takes it
    )
    mask_same_video: bool = False  # published: other captions of a pair's video count as wrong
    encoder_grad_scale: float = Field(1.0, gt=0)  # 1 / processes for the gradient of the release

    def require(self) -> None:
        """CLIP's weights. A training in which nothing that ranks is learned is a warning."""
        super().require()
        if self.mode == "frozen" and self.sim_header == "meanP" and self.epochs > 0:
            log.warning(
                "clip4clip with mode = 'frozen' and sim_header = 'meanP' learns a factor of its scores alone, which "
                "changes no ranking; epochs = 0 gives the same figures"
            )

    def unsuited(self, sizes: TrainingSizes) -> Iterator[tuple[str, str]]:
        """Also more frames than the CLIP network has positions for."""
        yield from super().unsuited(sizes)
        if self.sim_header == "seqTransf":
            yield from self._too_many_frames()
