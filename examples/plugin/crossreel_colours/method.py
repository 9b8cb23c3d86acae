"""Two towers: a linear map of videos and one of captions into one space, where cosines are scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossreel_colours.config import TwoTowersConfig
from trainers.method import Batch, Encoded, Method


class TwoTowers(Method):
    """Axes: B pairs of a batch, Q captions, V videos."""

    def __init__(self, config: TwoTowersConfig, video_size: int, text_size: int) -> None:
        super().__init__()
        self.config = config
        self.video, self.text = nn.Linear(video_size, config.width), nn.Linear(text_size, config.width)

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Each caption against the videos of the batch, as in InfoNCE."""
        scores = self.scores(self.encode_texts(batch), self.encode_items(batch))
        own = torch.arange(len(scores), device=scores.device)
        return {"nce": F.cross_entropy(scores / self.config.temperature, own)}

    def encode_texts(self, batch: Batch) -> Encoded:
        """Captions as unit vectors (Q, width)."""
        return {"text": F.normalize(self.text(batch["text"]), dim=-1)}

    def encode_items(self, batch: Batch) -> Encoded:
        """Videos as unit vectors (V, width)."""
        return {"item": F.normalize(self.video(batch["item"]), dim=-1)}

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        """Cosines (Q, V)."""
        return texts["text"] @ items["item"].T
