"""H2ARN as the engine sees it: its loss terms, its encodings, its scores, its optimizer.

Axes: Q captions, V clouds, B pairs of a joint batch, b captions and u distinct clouds of this process, L tokens of a
caption, P of a cloud, D d_model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.errors import TrainingError
from trainers.geometry import cone
from trainers.h2arn import losses
from trainers.h2arn.config import H2arnConfig
from trainers.h2arn.data import H2arnData
from trainers.h2arn.model import H2arnNetwork, Pooled
from trainers.loop import distributed
from trainers.loop.optim import WarmupAdamW
from trainers.method import Batch, Encoded, Method

BETAS = (0.91, 0.9993)


class H2arn(Method):
    """Ranks clouds by the Lorentz product of their point with the caption's."""

    def __init__(self, config: H2arnConfig, text_dim: int, cloud_dim: int) -> None:
        super().__init__()
        self.config, self.network = config, H2arnNetwork(config, text_dim, cloud_dim)

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Every term of the joint batch of all processes, which each of them computes whole."""
        self.require_usable_scalars()
        texts = _joint(self._texts(batch).point, batch, "text_place")
        clouds = _joint(self.network.clouds(batch["cloud"]).point, batch, "cloud_place")
        return self.terms(texts, clouds[batch["owner"]], batch["positive"])

    def terms(self, texts: Tensor, clouds: Tensor, positive: Tensor) -> dict[str, Tensor]:
        """The weighted terms of captions and their clouds, points (B, 1 + D) each; positive (B, B) bool.

        A cloud of several captions comes several times.
        """
        c, net = self.config, self.network
        with torch.autocast(texts.device.type, enabled=False):
            inner = net.inner(texts, clouds)
            scores = net.similarity(inner)
            found = {
                "t2c": 0.5 * losses.contrastive(scores, positive, c.loss_temp),
                "c2t": 0.5 * losses.contrastive(scores.T, positive.T, c.loss_temp),
            }
            if c.loss_lambda:
                outside = losses.entailment(texts, clouds, inner, positive, net.c, c.K)
                found["entailment"] = c.loss_lambda * outside
        return found

    def require_usable_scalars(self) -> None:
        """Raise TrainingError if the curvature or a temperature has a value with which learning is impossible.

        A temperature below 0 is none: as released, far tokens then weigh most.
        """
        named = {
            "log_c": self.network.log_c,
            "text_aggregator.temperature": self.network.text_aggregator.temperature,
            "pcd_aggregator.temperature": self.network.pcd_aggregator.temperature,
        }
        values = torch.stack([value.detach() for value in named.values()]).tolist()
        for name, value in zip(named, values, strict=True):
            if not math.isfinite(value) or (value == 0 and name != "log_c"):
                raise TrainingError(f"{name} has become {value}: try a smaller lr than {self.config.lr:g}")

    def _texts(self, batch: Batch) -> Pooled:
        return self.network.texts(batch["text"], batch.get("text_padding"))

    def encode_texts(self, batch: Batch) -> Encoded:
        """Points (Q, 1 + D) of the captions, and the weights (Q, L) of their tokens."""
        found = self._texts(batch)
        return {"point": found.point, "weights": found.weights}

    def encode_items(self, batch: Batch) -> Encoded:
        """Points (V, 1 + D) of the clouds, and the weights (V, P) of their tokens."""
        found = self.network.clouds(batch["cloud"])
        return {"point": found.point, "weights": found.weights}

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        """Lorentz products (Q, V), at most -1/c, from one matrix product; or negative distances, or cosines."""
        return self.network.similarity(self.network.inner(texts["point"], items["point"]))

    def explain(self, texts: Encoded, items: Encoded) -> dict[str, Tensor]:
        """Explanation of each match: angle of the cloud to the caption's cone, and the weight of each token.

        angle, aperture (Q, V), in radians: the cloud's exterior angle and half the opening of the caption's cone; a
        cloud is inside where the angle is the smaller. text_weights (Q, V, L), cloud_weights (Q, V, P): each sums to 1.
        Euclidean space has no cones.
        """
        caption, cloud = texts["point"], items["point"]
        shape = len(caption), len(cloud)
        found = {
            "text_weights": texts["weights"][:, None].expand(*shape, -1),
            "cloud_weights": items["weights"].expand(*shape, -1),
        }
        if self.config.geometry == "euclidean":
            return found
        norm, c = caption[:, 1:].norm(dim=-1)[:, None].clamp_min(losses.LEAST_NORM), self.network.c
        inner = self.network.inner(caption, cloud)
        angle = cone.angle_at(norm, caption[:, :1], cloud[:, 0], inner, c, cone.CLAMPED)
        aperture = cone.aperture_at(norm, c, self.config.K, cone.CLAMPED).expand(*shape)
        return {"angle": angle, "aperture": aperture} | found


def _joint(points: Tensor, batch: Batch, place: str) -> Tensor:
    """The rows of all processes in the order of their places, each place once."""
    return distributed.joint(points, distributed.joint_order(batch, place))


def build(config: H2arnConfig, data: H2arnData) -> H2arn:
    """A freshly initialised H2ARN for the feature sizes of the packed data."""
    return H2arn(config, data.text_dim, data.cloud_dim)


def optimizer(config: H2arnConfig, method: H2arn, total_steps: int) -> WarmupAdamW:
    """The published optimizer: all parameters have weight decay, and the first update has rate 0."""
    return WarmupAdamW(
        method.parameters(),
        lr=config.lr,
        total_steps=total_steps,
        warmup_steps=int(config.warmup_ratio * total_steps),
        betas=BETAS,
        weight_decay=config.weight_decay,
    )
