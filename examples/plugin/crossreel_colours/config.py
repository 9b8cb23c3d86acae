"""Settings of two towers. Importing it imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.settings import PACKS
from trainers.config import VideoMethodConfig


class TwoTowersConfig(VideoMethodConfig):
    """A recipe that nobody published: chosen to train in seconds."""

    video_features: Annotated[str, PACKS] = "colour_histogram"

    width: int = Field(64, ge=1)  # size of the space that both sides are mapped to
    temperature: float = Field(0.07, gt=0)
    lr: float = Field(1e-3, gt=0)
