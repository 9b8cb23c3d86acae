"""CLIP's two towers as a method trains them: frames to vectors, captions to one state for each token.

Axes: N frames, R their side in pixels, A captions, L token positions, D embedding size. Names of parameters are
open_clip's, which are OpenAI's, under the prefix `clip.`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from extractors.backbones.clip import ClipBackbone, attention_mask
from extractors.backbones.clip_weights import NO_WEIGHTS
from extractors.backbones.weights import import_open_clip
from pipeline.errors import UserError
from trainers.layers.pair_config import ClipPairConfig
from trainers.loop.checkpoint import require_fit

HEAD_WIDTH = 64  # width of an attention head in every CLIP network: a tower of width W has W / 64 heads
MAX_LOGIT_SCALE = math.log(100)


class LogitScale(nn.Module):
    """Base of modules with CLIP's logit scale, the logarithm of the factor of cosines in a contrastive loss."""

    clip: Any

    @property
    def scale(self) -> Tensor:
        """The factor, exp(logit_scale)."""
        out: Tensor = self.clip.logit_scale.exp()
        return out

    @torch.no_grad()
    def clamp_scale_(self) -> None:
        """Limit the factor to 100, as in CLIP's own training."""
        self.clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


class StoredScale(LogitScale):
    """Takes the place of the towers if CLIP is not trained: only their logit scale, at CLIP's trained value of 100."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = nn.Module()
        self.clip.logit_scale = nn.Parameter(torch.tensor(MAX_LOGIT_SCALE))


class ClipTowers(LogitScale):
    """An open_clip network to be trained. LayerNorms compute in float32 whatever the rest does.

    `freeze_patches` freezes the patch convolution, as CLIP4Clip and its successors do. `half` converts the weights of
    linear layers, convolutions, attention and both projections to float16, as OpenAI's loader does on a GPU. This
    exists for the published runs only, because gradients and the optimizer's moments are then float16 too.
    """

    def __init__(self, clip: nn.Module, freeze_patches: bool = True, half: bool = False) -> None:
        super().__init__()
        _norms_in_float32(clip)
        self.clip = clip.requires_grad_(True)
        self.half_weights = half
        if freeze_patches:
            patches = getattr(self.clip.visual, "conv1", None)
            if patches is None:
                raise UserError(
                    "this CLIP network has no patch convolution to freeze; set freeze_patches to false"
                )
            patches.requires_grad_(False)
        if half:
            _halve(self.clip)

    @classmethod
    def load(
        cls,
        model: str,
        weights: str,
        download: bool = False,
        freeze_patches: bool = True,
        half: bool = False,
    ) -> ClipTowers:
        """The towers of any network of open_clip or of ours, with weights from a tag, a file or a seed.

        OpenAI's weights need a model whose name ends in `-quickgelu`; other combinations are refused.
        """
        return cls(ClipBackbone(model, weights, download=download).network, freeze_patches, half)

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        quick_gelu: bool = True,
        freeze_patches: bool = True,
        half: bool = False,
    ) -> ClipTowers:
        """Towers with the sizes and weights of a state dict in OpenAI's names, without the prefix `clip.`.

        float16 tensors are converted to float32. Raises UserError naming a missing or unknown tensor.
        """
        own = {name: tensor.float() for name, tensor in state.items() if name not in NO_WEIGHTS}
        network = _build(own, quick_gelu)
        require_fit(network.state_dict(), own, "the CLIP weights are not those of a vision transformer")
        network.load_state_dict(own)
        return cls(network, freeze_patches, half)

    @property
    def dims(self) -> int:
        """The embedding size D."""
        projection = self._text.text_projection
        out = projection.weight.T if isinstance(projection, nn.Linear) else projection
        return int(out.shape[1])

    @property
    def image_size(self) -> int:
        """The side R of the frames, in pixels."""
        size = self.clip.visual.image_size
        return int(size[0] if isinstance(size, tuple) else size)

    @property
    def context_length(self) -> int:
        """Largest number of token positions of a caption."""
        return int(self._text.positional_embedding.shape[0])

    @property
    def text_positions(self) -> Tensor:
        """Positional embeddings (context length, text width) of the text tower."""
        out: Tensor = self._text.positional_embedding
        return out

    @property
    def text_blocks(self) -> nn.ModuleList:
        """The blocks of the text tower, in order."""
        out: nn.ModuleList = self._text.transformer.resblocks
        return out

    def image(self, pixels: Tensor) -> Tensor:
        """Projected features (N, D) float32, not normalised, of frames (N, 3, R, R) normalised for CLIP."""
        features: Tensor = self.clip.encode_image(pixels.half() if self.half_weights else pixels)
        return features.float()

    def text(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Projected states (A, L, D) float32, not normalised, of every position of the captions.

        tokens: (A, L) int64, L at most the context length. They are not padded to it, which halves the work at 32
        positions. mask: (A, L) bool, true for real tokens, of which the first must be one. A position attends to
        earlier ones and itself, with a mask only to real ones; the mask changes the states of padding only. Raises
        UserError if the captions are too long.
        """
        text, length = self._text, tokens.shape[1]
        if length > self.context_length:
            raise UserError(
                f"captions of {length} tokens are longer than the {self.context_length} positions of this CLIP network"
            )
        kind = text.transformer.get_cast_dtype()
        states = text.token_embedding(tokens).to(kind) + text.positional_embedding[:length].to(kind)
        heads = text.transformer.resblocks[0].attn.num_heads
        if mask is None:
            seen = attention_mask(torch.ones_like(tokens[:1], dtype=torch.bool), 1)[0]
        else:
            seen = attention_mask(mask.bool(), heads)
        states = text.transformer(states, attn_mask=seen)
        states = text.ln_final(states)
        projection = text.text_projection
        out: Tensor = projection(states) if isinstance(projection, nn.Linear) else states @ projection
        return out.float()

    def end(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The states (A, D) of the end tokens, which have the highest id of the vocabulary."""
        return states[torch.arange(len(states), device=states.device), tokens.argmax(dim=-1)]

    @property
    def _text(self) -> Any:
        """The module with the text tower's parts: the network itself, or `text` in some networks of open_clip."""
        return getattr(self.clip, "text", self.clip)


def load_towers(config: ClipPairConfig, side: int) -> ClipTowers:
    """The towers that a training starts from. Raises UserError if they do not read pictures of `side` pixels."""
    half = config.precision == "fp16-legacy"
    towers = ClipTowers.load(config.clip_model, config.backbone_weights, config.backbone_download, half=half)
    if towers.image_size != side:
        raise UserError(
            f"{config.base_encoder} reads pictures of {towers.image_size} pixels, and the frames have {side}: "
            f"set extractors.frames.size to {towers.image_size}"
        )
    return towers


def _build(state: Mapping[str, Tensor], quick_gelu: bool) -> nn.Module:
    """An open_clip network with the sizes of a state dict."""
    try:
        width, _, _, patch = state["visual.conv1.weight"].shape
        grid = math.isqrt(len(state["visual.positional_embedding"]) - 1)
        text_width = len(state["ln_final.weight"])
        vocabulary, context = len(state["token_embedding.weight"]), len(state["positional_embedding"])
        dims = state["text_projection"].shape[1]
    except KeyError as error:
        raise UserError(
            f"CLIP weight {error} is missing: these weights are not those of a vision transformer"
        ) from None
    vision = {"layers": _blocks(state, "visual.transformer."), "width": width, "head_width": HEAD_WIDTH}
    vision |= {"patch_size": patch, "image_size": patch * grid}
    text = {"context_length": context, "vocab_size": vocabulary, "width": text_width}
    text |= {"heads": max(1, text_width // HEAD_WIDTH), "layers": _blocks(state, "transformer.")}
    if width < HEAD_WIDTH:
        vision["head_width"] = width
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = import_open_clip().CLIP(dims, vision, text, quick_gelu=quick_gelu)
    return network


def _blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    start = f"{prefix}resblocks."
    return len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)})


def _norms_in_float32(network: nn.Module) -> None:
    """Give every LayerNorm a forward pass in float32, under the same names and with the same weights."""
    import_open_clip()
    from open_clip.transformer import LayerNormFp32

    for parent in list(network.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, nn.LayerNorm) and not isinstance(norm, LayerNormFp32):
                exact = LayerNormFp32(norm.normalized_shape, eps=norm.eps)
                exact.weight, exact.bias = norm.weight, norm.bias
                setattr(parent, name, exact)


def _halve(network: nn.Module) -> None:
    import_open_clip()
    from open_clip.model import convert_weights_to_fp16

    convert_weights_to_fp16(network)
