"""LEAN as the engine sees it: its loss terms, its encodings, its scores, its optimizer.

Axes: Q captions, V videos, B pairs of a batch, b those of this process, m frames, M most triples, N nodes,
D hidden size, Z latent size, k top frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.lean import losses
from trainers.lean.config import LeanConfig
from trainers.lean.data import LeanData
from trainers.lean.model import LeanNetwork
from trainers.loop import distributed
from trainers.measure.scoring import tiles
from trainers.method import Batch, Encoded, Method

CPU_BYTES = 2**26  # memory of the pairs that are scored at once, 64 MB: more gives no speed
LEAST_DEVIATION = 1e-6  # relative to a dimension's mean; a smaller deviation is the rounding of a constant


class Pairs(NamedTuple):
    """Inputs of the losses: scores and divergences of captions (b) with all videos (B), both (b, B)."""

    scores: Tensor
    divergence: Tensor


class Standard(nn.Module):
    """Standardises rows (..., D) by mean and deviation of the training rows, which are saved with the weights."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def fit(self, mean: Tensor, deviation: Tensor) -> None:
        """Set mean and deviation (D,); a dimension without variance is only shifted."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.where(deviation > LEAST_DEVIATION * mean.abs(), 1.0))

    def forward(self, rows: Tensor) -> Tensor:
        """The standardised rows."""
        return (rows - self.mean) / self.deviation


class Lean(Method):
    """Classifies the hypergraph of each pair of a caption and a video as matching or not."""

    pairs_at_once = 2**12  # 0.8 s on a core at the published width

    def __init__(self, config: LeanConfig, visual_dim: int, text_dim: int) -> None:
        super().__init__()
        self.config = config
        self.network = LeanNetwork(config, visual_dim, text_dim)
        if config.standardise:
            self.standard = nn.ModuleDict({"frames": Standard(visual_dim), "triples": Standard(text_dim)})

    def encode_texts(self, batch: Batch) -> Encoded:
        """Start values (Q, M, D) of the triples, their numbers (Q,), and the characters of their words."""
        triples = self.network.texts(self._rows(batch, "triples"))
        kept = torch.arange(triples.shape[1], device=triples.device) < batch["count"][:, None]
        return {
            "triples": (triples * kept[..., None]).float(), "count": batch["count"], "words": batch["words"],
        }  # fmt: skip

    def encode_items(self, batch: Batch) -> Encoded:
        """Start values (V, 1 + m, D) of the video and its frames, and its top frames (V, k)."""
        return {"nodes": self.network.videos(self._rows(batch, "frames")).float(), "top": batch["top"]}

    def _rows(self, batch: Batch, name: str) -> Tensor:
        """The `frames` or `triples` of a batch, standardised for the network."""
        return self.standard[name](batch[name]) if self.config.standardise else batch[name]

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Losses (eq. 17-20) of the joint batch; each process scores its captions with all videos."""
        texts, items = self.encode_texts(batch), self.encode_items(batch)
        order = distributed.joint_order(batch)
        joint = {name: distributed.joint(values, order) for name, values in items.items()}
        eps = self.noise(len(joint["nodes"]), items["nodes"]) if self.config.variational else None
        own = self.pairs(texts, joint, None if eps is None else eps[batch["place"]])
        scores, divergence = (distributed.joint(rows, order) for rows in own)
        return self.terms(scores, divergence, distributed.joint(batch["video"], order))

    def terms(self, scores: Tensor, divergence: Tensor, video: Tensor) -> dict[str, Tensor]:
        """The weighted loss terms of the joint batch: scores and divergences (B, B), video (B,)."""
        c = self.config
        found = {
            "t2v": c.t2v_weight * losses.contrastive(scores, video),
            "v2t": c.v2t_weight * losses.contrastive(scores.T, video),
        }
        if c.variational:
            found["kl"] = c.kl_weight * divergence.mean()
        return found

    def noise(self, pairs: int, like: Tensor) -> Tensor:
        """Draws (B, B, N, Z) for captions with videos, the same in every process."""
        generator = torch.Generator(like.device).manual_seed(distributed.shared_seed(2**52))
        shape = pairs, pairs, like.shape[1] + self.config.max_triples, self.config.latent
        return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)

    def pairs(self, texts: Encoded, items: Encoded, eps: Tensor | None) -> Pairs:
        """Captions with all videos, with the noise eps (b, B, N, Z); without noise z = mu."""
        places, parts = [], []
        for where, group in by_count(texts):
            drawn = None if eps is None else eps[where, :, : items["nodes"].shape[1] + group.shape[1]]
            places.append(where)
            parts.append(self._pairs(group, items, drawn))
        back = torch.cat(places).argsort()
        scores, divergence = (torch.cat(rows)[back] for rows in zip(*parts, strict=True))
        return Pairs(scores, divergence)

    def _pairs(self, textual: Tensor, items: Encoded, eps: Tensor | None) -> Pairs:
        net, visual = self.network, items["nodes"]
        latent = net.infer(visual, textual, net.graphs(items["top"], visual, textual))
        if eps is None:
            scores = net.expected(latent).scores.T
            return Pairs(scores, torch.zeros_like(scores))
        mean, log_sigma = net.mean(latent), net.log_sigma(latent)
        scores = net.drawn(latent, mean, log_sigma, eps.transpose(0, 1)).scores
        return Pairs(scores.T, losses.divergence(mean, log_sigma, latent.counts).T)

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        """Scores (Q, V) with z = mu, in blocks of pairs that need at most `work_bytes`."""
        out = texts["triples"].new_empty(len(texts["count"]), len(items["nodes"]))
        for where, group in by_count(texts):
            rows = out.new_empty(len(where), out.shape[1])
            for part, tile in self.blocks(len(where), out.shape[1], group.shape[1], out.device):
                visual, textual = items["nodes"][tile], group[part]
                graphs = self.network.graphs(items["top"][tile], visual, textual)
                latent = self.network.infer(visual, textual, graphs)
                rows[part, tile] = self.network.expected(latent).scores.T
            out[where] = rows
        return out

    def blocks(
        self, texts: int, videos: int, triples: int, device: torch.device
    ) -> Iterator[tuple[slice, slice]]:
        """Numbers of captions with `triples` triples and of videos whose pairs are scored at once."""
        memory = min(CPU_BYTES, self.work_bytes) if device.type == "cpu" else self.work_bytes
        return tiles(texts, videos, max(1, memory // self.pair_bytes(triples)))

    def pair_bytes(self, triples: int) -> int:
        """Upper bound in bytes of the memory for scoring a pair with `triples` triples."""
        c = self.config
        nodes, edges = 1 + c.frames + triples, 3 + triples
        floats = 5 * c.hidden * (nodes + edges)
        if c.layer == "hgnn":
            floats += 2 * c.hidden * nodes * edges  # a message for each member of a hyperedge, twice
        elif c.layer in ("gcn", "gat"):
            floats += 3 * c.hidden * nodes**2  # a message for each pair of nodes
        return 4 * floats

    def cheap_scores(self, texts: Encoded, items: Encoded) -> Tensor:
        """Cosines (Q, V) of the mean start values of both sides, for a first choice in a large gallery."""
        means = texts["triples"].sum(1) / texts["count"][:, None]
        return F.normalize(means, dim=-1) @ F.normalize(items["nodes"][:, 0], dim=-1).T

    def explain(self, texts: Encoded, items: Encoded) -> dict[str, Tensor]:
        """Weights that explain each match, zero beyond a caption's triples.

        edge_weights (Q, V, 3 + M): attention of the last layer to the hyperedges global, visual, text and each
        triple's; it sums to 1. node_weights (Q, V, 1 + m + M): shares of V, the frames and the triples in the
        vector that is classified; they sum to 1. words (Q, V, M, S, 2): characters [start, end) of the words of
        each triple, (0, 0) where it has fewer. top (Q, V, k): places of the top frames.
        """
        visual, most = items["nodes"], texts["triples"].shape[1]
        shape = len(texts["count"]), len(visual)
        edges, nodes = (visual.new_zeros(*shape, size + most) for size in (3, visual.shape[1]))
        for where, group in by_count(texts):
            alpha, beta = (rows.transpose(0, 1) for rows in self._weights(group, items))
            edges[where, :, : alpha.shape[2]], nodes[where, :, : beta.shape[2]] = alpha, beta
        return {
            "edge_weights": edges,
            "node_weights": nodes,
            "words": texts["words"][:, None].expand(*shape, *texts["words"].shape[1:]),
            "top": items["top"].expand(*shape, -1),
        }

    def _weights(self, textual: Tensor, items: Encoded) -> tuple[Tensor, Tensor]:
        """Weights (V, Q, K) of hyperedges, zero without the hypergraph network, and (V, Q, N) of nodes."""
        net, visual = self.network, items["nodes"]
        graphs = net.graphs(items["top"], visual, textual)
        if self.config.hypergraph:
            refined = net.refine(visual, textual, graphs)
            latent, alpha = net.encode(refined, graphs), refined.alpha
        else:
            latent = net.infer(visual, textual, graphs)
            alpha = visual.new_zeros(len(visual), len(textual), len(graphs.edges))
        each = net.expected(latent).beta / latent.counts[:, None].clamp_min(1)
        return alpha, latent.spread(each[..., None]).squeeze(-1)


def by_count(texts: Encoded) -> Iterator[tuple[Tensor, Tensor]]:
    """Captions with the same number n of triples: their positions (q,) and triples (q, n, D) without padding."""
    for count in texts["count"].unique().tolist():
        (where,) = (texts["count"] == count).nonzero(as_tuple=True)
        yield where, texts["triples"][where, :count]


def build(config: LeanConfig, data: LeanData) -> Lean:
    """A freshly initialised LEAN for the feature sizes of the packed data.

    Without a training split the standardisation is not computed: it is loaded later with trained weights.
    """
    method = Lean(config, data.visual_dim, data.text_dim)
    if config.standardise and "train" in data.splits:
        for name in ("frames", "triples"):
            cast(Standard, method.standard[name]).fit(*data.spread(name))
    return method


def optimizer(config: LeanConfig, method: Lean, total_steps: int) -> torch.optim.AdamW:
    """AdamW at a constant rate, because the paper gives no schedule."""
    return torch.optim.AdamW(method.parameters(), lr=config.lr, weight_decay=config.weight_decay)
