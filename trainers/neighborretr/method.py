"""NeighborRetr as the engine sees it: its loss terms, its encodings, its scores, its optimizer.

A batch holds, of B pairs, or of items or captions alone, with P = max_words, Q = max_frames, side R, size D:
`frame_mask` (B, Q), `word_mask` (B, P), 1 where real, at least at the first slot; in mode `finetune` `frames`
(B, Q, R, R, 3) uint8 and `tokens` (B, P) ids as `trainers.layers.clip_input` makes them; in mode `frozen`
`frames` (B, Q, D) and `words` (B, P, D), features of CLIP that are not normalised, padded slots included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import UserError
from trainers.layers import clip_input
from trainers.layers.clip_towers import ClipTowers, load_towers
from trainers.layers.pair_data import PairData
from trainers.loop import distributed
from trainers.loop.optim import BertAdam, tower_groups
from trainers.method import Batch, Encoded, Method
from trainers.neighborretr import objective
from trainers.neighborretr.bank import Bank, Pairs
from trainers.neighborretr.config import BESIDES, NeighborRetrConfig
from trainers.neighborretr.model import NeighborRetrNetwork
from trainers.neighborretr.similarity import Tokens, local_similarity

BETAS = (0.9, 0.98)
EPS = 1e-6


class NeighborRetr(Method):
    """Ranks videos by the best partners of words and frames, trained so that no video is everyone's neighbour."""

    pairs_at_once = 2**18  # 1 s on a core

    def __init__(self, config: NeighborRetrConfig, towers: ClipTowers | None, dims: int) -> None:
        super().__init__()
        self.config = config
        self.network = NeighborRetrNetwork(config, towers, dims)
        self.bank = Bank(config.bank_size, config.max_words, config.max_frames, dims)
        self._bank_texts: Tokens | None = None  # the bank's captions, prepared for `explain`

    def train(self, mode: bool = True) -> NeighborRetr:
        """Change the mode, and drop the prepared captions of the bank: training changes the weights they depend on."""
        self._bank_texts = None
        return super().train(mode)

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """C, U, N and KL of the joint batch of all processes, which then enters the bank.

        The bank does not hold the batch that is measured against it, except the first one, which finds it
        empty and stands in.
        """
        net = self.network
        net.clamp_()
        if not self.config.carry_over:
            self.bank.begin(epoch)
        pairs = self.joint(self.pairs(batch), distributed.joint_order(batch))
        self._require_others(len(pairs.words))
        kept = Pairs(*(part.detach() for part in pairs))
        # float32: G reaches hundreds, and C and N depend on small differences of cosines
        with torch.autocast(pairs.words.device.type, enabled=False):
            sharded = distributed.world() > 1 and self.config.gather_grad == "sum"
            out = objective.outputs(net.head, pairs, self.bank.content() or kept, sharded)
            terms = objective.terms(net.head, out, net.scale.float())
        self.bank.push(kept)
        return terms

    def _require_others(self, count: int) -> None:
        """Raise UserError if a joint batch is too small: N would divide by a range of zero."""
        least = self.config.num_neighbors + BESIDES
        if count < least:
            raise UserError(
                f"a batch of {count} pairs is too small for {self.config.num_neighbors} neighbours, "
                f"which take {least}; lower num_neighbors, or leave out the rest of an epoch that fills no batch"
            )

    def pairs(self, batch: Batch) -> Pairs:
        """The token features of this process's pairs."""
        word_mask, frame_mask = batch["word_mask"].bool(), batch["frame_mask"].bool()
        return Pairs(self.words(batch), word_mask, self.frames(batch), frame_mask)

    def words(self, batch: Batch) -> Tensor:
        """Word features (B, P, D) float32."""
        if self.network.towers is None:
            return batch["words"].float()
        return self.network.words(batch["tokens"], batch["word_mask"])

    def frames(self, batch: Batch) -> Tensor:
        """Frame features (B, Q, D) float32 after the temporal transformer."""
        frames, mask = batch["frames"], batch["frame_mask"].bool()
        if self.network.towers is not None:
            frames = self.network.frame_features(clip_input.pixels(frames, mask))
        return self.network.in_context(frames.float(), mask)

    def joint(self, pairs: Pairs, order: Tensor | None) -> Pairs:
        """The pairs of all processes, in the order of the joint batch."""
        if order is None:
            return pairs
        if self.config.gather_grad == "local":
            return Pairs(*(_gather_local(part)[order] for part in pairs))
        return Pairs(*(distributed.joint(part, order) for part in pairs))

    def encode_texts(self, batch: Batch) -> Encoded:
        """Unit word features, their weights, and numbers of filled slots."""
        return _encoded(self.network.head.tokens("text", self.words(batch), batch["word_mask"]))

    def encode_items(self, batch: Batch) -> Encoded:
        """Unit frame features, their weights, and numbers of filled slots."""
        return _encoded(self.network.head.tokens("video", self.frames(batch), batch["frame_mask"]))

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        """The token-wise scores (Q, V); global scores are used in training only."""
        return local_similarity(self._tokens(texts), self._tokens(items))

    def explain(self, texts: Encoded, items: Encoded) -> dict[str, Tensor]:
        """Centrality (Q, V), each video's mean score with the bank, with which training gives hubs less weight.

        It is r of the published neighbour term, with the captions in the bank at the end of training, and is
        not part of the score. Empty if the bank is empty, because the weights were not trained here.
        """
        bank = self.bank.content()
        if bank is None:
            return {}
        if self._bank_texts is None:
            self._bank_texts = self.network.head.tokens("text", bank.words, bank.word_mask)
        centrality = local_similarity(self._bank_texts, self._tokens(items)).mean(0)
        return {"centrality": centrality.expand(len(texts["length"]), -1)}

    def _tokens(self, encoded: Encoded) -> Tokens:
        zero = self.config.mask_mode == "zero"
        return Tokens(encoded["unit"], encoded["weights"], encoded["length"], zero)


def _encoded(tokens: Tokens) -> Encoded:
    return {"unit": tokens.unit, "weights": tokens.weights, "length": tokens.length}


def _gather_local(rows: Tensor) -> Tensor:
    """The rows of all processes; only the own rows have a gradient, and only of this process's loss."""
    parts = distributed.gather(rows)
    parts[distributed.rank()] = rows
    return torch.cat(parts)


def build(config: NeighborRetrConfig, data: PairData) -> NeighborRetr:
    """A NeighborRetr around pretrained CLIP towers, or, in mode `frozen`, for the size of the packed features."""
    if config.mode == "frozen":
        return NeighborRetr(config, None, data.dims)
    towers = load_towers(config, data.side)
    return NeighborRetr(config, towers, towers.dims)


def optimizer(config: NeighborRetrConfig, method: NeighborRetr, total_steps: int) -> BertAdam:
    """The published optimizer: CLIP has a share of the learning rate, and all but biases have weight decay.

    The release means to spare norms as well, but looks for a name that none has; so do we spare none.
    """
    named = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    return BertAdam(
        tower_groups(named, config.weight_decay, lr=config.lr, tower_lr=config.lr * config.coef_lr),
        lr=config.lr,
        total_steps=total_steps,
        warmup=config.warmup,
        schedule="cosine",
        betas=BETAS,
        eps=EPS,
        max_grad_norm=config.max_grad_norm,
    )
