"""CLIP as a network: frames and captions to vectors of one space. Independent of files and stages.

Axes: N frames or captions, H and W pixels, L tokens of the longest caption, D embedding size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from extractors.backbones import clip_configs, seeded
from extractors.backbones import weights as weight_files
from extractors.backbones.lane import Arrays, Lane, Results, Shaped
from extractors.backbones.precision import Precision, autocast
from pipeline.errors import UserError

Floats = NDArray[np.float32]
TextTokens = tuple[list[Floats], list[Floats], Floats]
"""For each caption token states (t, width) and their projections (t, D); for all, vectors of the ends (N, D)."""
Padding = Literal["open", "masked"]
"""Token behind a caption's end: "open" for zeros as in open_clip, "masked" for the end token as in Hugging Face."""

CONTEXT_LENGTH = 77  # tokens, for a network whose file does not give it
WHITEN = "whiten_when_seeded"  # a key of our own in a network's file, beside those of open_clip


class ClipBackbone:
    """A frozen CLIP network: `image_features` of frames, `text_tokens` of captions, both of size `dims`.

    With `texts_only` the image tower of a seeded network is not whitened, which takes 3 CPU seconds: its features are
    then not those of the stage `clip`. The text tower is the same.
    """

    def __init__(
        self,
        model: str,
        weights: str,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
        download: bool = False,
        texts_only: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.model, self.precision = clip_configs.resolve(model), precision
        model = self.model
        config = clip_configs.read(model)
        seed = weight_files.seed_of(weights)
        published = (
            {}
            if seed is not None or weight_files.is_path(weights)
            else weight_files.tag_config(model, weights)
        )
        if seed is None:
            weight_files.require_activation(model, weights)
        network = _build(model, config)
        self._resize, mean, std = _preprocessing(model, network, published)
        if seed is None:
            weight_files.load(network, model, weights, download)
        else:
            whitened = bool(config.get(WHITEN)) and not texts_only
            key = ("clip", json.dumps(config, sort_keys=True), seed, whitened)
            seeded.draw_once(network, key, lambda: _draw(network, mean, std, seed, whitened))
        self.network: Any = network.to(self.device).eval().requires_grad_(False)
        self.dims: int = config["embed_dim"]
        self.context_length: int = config["text_cfg"].get("context_length", CONTEXT_LENGTH)
        self._tokenize = _tokenizer(config)
        self._mean, self._std = mean.to(self.device), std.to(self.device)
        self.lane = Lane(self.device)

    def image_features(self, frames: NDArray[np.uint8]) -> Floats:
        """Projected features (N, D), not normalised, of RGB frames (N, H, W, 3)."""
        return self.crop_features(self.crops(frames))

    def crops(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Frames (N, H, W, 3) resized and cropped to the network's size by open_clip's own steps, (N, 3, S, S)."""
        pixels = torch.from_numpy(np.array(frames)).permute(
            0, 3, 1, 2
        )  # a copy: what is received may be read-only
        cropped: NDArray[np.uint8] = self._resize(pixels).contiguous().numpy()
        return cropped

    def crop_features(self, crops: NDArray[np.uint8]) -> Floats:
        """Projected features (N, D), not normalised, of crops (N, 3, S, S) from `crops`."""
        return self.launch(crops).arrays()["frame"]

    def crop_tokens(self, crops: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """The features (N, D) of `crop_features`, and the last layer's state of every patch (N, P, width).

        Raises UserError if the image tower is not open_clip's own vision transformer.
        """
        found = self.launch(crops, patches=True).arrays()
        return found["frame"], found["patch"]

    def launch(self, crops: NDArray[np.uint8], patches: bool = False) -> Results:
        """Start to compute the output `frame`, as in `crop_features`, and with `patches` also `patch`: the states.

        On a GPU this returns at once; the results are waited for when they are asked for.
        """
        return self.lane.launch(crops, self._states if patches else self._features)

    def _features(self, crops: Tensor) -> dict[str, Tensor]:
        with self._autocast():
            return {"frame": self.network.encode_image(self._pixels(crops))}

    def _states(self, crops: Tensor) -> dict[str, Tensor]:
        from open_clip.transformer import VisionTransformer

        tower = self.network.visual
        if not isinstance(tower, VisionTransformer):
            raise UserError(f"{self.model} has no patch states: its image tower is a {type(tower).__name__}")
        tower.output_tokens = True
        try:
            with self._autocast():
                features, states = tower(self._pixels(crops))
        finally:
            tower.output_tokens = False
        return {"frame": features, "patch": states}

    def _pixels(self, crops: Tensor) -> Tensor:
        """Crops on the device as the network takes them: floats, normalised."""
        return (crops.float() / 255 - self._mean) / self._std

    def text_tokens(
        self,
        texts: Sequence[str],
        max_tokens: int | None = None,
        pad: bool = False,
        padding: Padding = "open",
    ) -> TextTokens:
        """For each caption token states (t, width) and their projections (t, D); for all, vectors of the ends (N, D).

        States come from the last layer after the final norm; the projected state of the end token is CLIP's own vector
        of a caption. The t states run from the start token to the end token: open_clip pads behind it without a mask,
        so the states there have no meaning. A caption of more than `max_tokens` (None: the context length) loses the
        tokens before its end token, as in open_clip.

        With `pad` every caption has `max_tokens` states. Those of the padding attend to real tokens only, unlike in
        open_clip (NeighborRetr page, section 3.1). The padding's tokens are zeros, or with `padding` "masked" the end
        token, as in Hugging Face's CLIP (H2ARN page, section 4).
        """
        return self.launch_texts(texts, max_tokens, pad, padding).arrays()

    def launch_texts(
        self,
        texts: Sequence[str],
        max_tokens: int | None = None,
        pad: bool = False,
        padding: Padding = "open",
    ) -> Shaped[TextTokens]:
        """Start to compute what `text_tokens` returns; on a GPU this returns before it is there."""
        longest = min(max_tokens or self.context_length, self.context_length)
        tokens = self._tokenize(list(texts), context_length=longest)
        ends = tokens.argmax(dim=-1)  # the end token has the highest id of the vocabulary
        if padding == "masked":
            behind = torch.arange(longest) > ends[:, None]
            tokens = tokens.masked_fill(behind, self._tokenize.eot_token_id)
        if not pad and self._text_tower.attn_mask is not None:
            # Under a causal mask no state depends on later ones, so the padding behind the longest caption of the batch
            # is left out: captions fill 10 to 20 of 77 positions.
            tokens = tokens[:, : int(ends.max()) + 1]
        places = ends.tolist()
        kept = [longest if pad else end + 1 for end in places]

        def network(tokens: Tensor, ends: Tensor) -> dict[str, Tensor]:
            with self._autocast():
                hidden = self._text_states(tokens, ends, pad)
                return {"token": hidden, "projected": self._project(hidden)}

        def cut(found: Arrays) -> TextTokens:
            ragged, shared = (
                [row[:n].copy() for row, n in zip(found[name], kept, strict=True)]
                for name in ("token", "projected")
            )
            return ragged, shared, np.stack([row[end] for row, end in zip(shared, places, strict=True)])

        return self.lane.launch((tokens.numpy(), ends.numpy()), network).then(cut)

    @property
    def _text_tower(self) -> Any:
        return getattr(self.network, "text", self.network)  # CustomTextCLIP has its text tower as a module

    def _text_states(self, tokens: Tensor, ends: Tensor, pad: bool) -> Tensor:
        """Last hidden states after the final norm, (N, L, width), of tokens (N, L) with their ends (N,)."""
        text = self._text_tower
        mask = text.attn_mask
        if mask is not None and pad:
            real = torch.arange(tokens.shape[1], device=self.device) <= ends[:, None]
            mask = attention_mask(real, text.transformer.resblocks[0].attn.num_heads)
        elif mask is not None:
            mask = mask[: tokens.shape[1], : tokens.shape[1]]
        states = text.token_embedding(tokens) + text.positional_embedding[: tokens.shape[1]]
        out: Tensor = text.ln_final(text.transformer(states, attn_mask=mask))
        return out

    def _project(self, states: Tensor) -> Tensor:
        """Projections (N, L, D) of states (N, L, width) into the space that captions and frames share."""
        projection = self._text_tower.text_projection
        if projection is None:
            return states
        out: Tensor = projection(states) if isinstance(projection, nn.Linear) else states @ projection
        return out

    def _autocast(self) -> Any:
        return autocast(self.precision, self.device)


def attention_mask(real: Tensor, heads: int) -> Tensor:
    """Additive mask of attention logits, (N heads, L, L): -inf for later keys and for keys that are not real.

    real: (N, L) bool. The first position must be real: a row of -inf alone would make its softmax NaN.
    """
    later = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool, device=real.device).triu(1)
    hidden = (later | ~real[:, None]).repeat_interleave(heads, 0)
    return torch.zeros(hidden.shape, device=real.device).masked_fill(hidden, -math.inf)


def _tokenizer(config: clip_configs.Config) -> Any:
    """open_clip's own tokenizer, whose vocabulary comes with the package."""
    text = config["text_cfg"]
    open_clip = weight_files.import_open_clip()
    return open_clip.SimpleTokenizer(
        context_length=text.get("context_length", CONTEXT_LENGTH),
        **text.get("tokenizer_kwargs", {}),
    )


def _build(model: str, config: clip_configs.Config) -> nn.Module:
    """The network with weights from its constructor; torch's global random state is not advanced."""
    open_clip = weight_files.import_open_clip()
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    settings = {key: value for key, value in config.items() if key not in ("custom_text", WHITEN)}
    try:
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = kind(**settings)
    except (TypeError, AttributeError) as error:  # a key that open_clip does not know
        raise UserError(f"{clip_configs.path_of(model)} is not a CLIP model: {error}") from error
    return network


def _draw(network: Any, mean: Tensor, std: Tensor, seed: int, whitened: bool) -> None:
    """Fill a network with weights that depend on the seed alone."""
    seeded.initialise(network, seed)
    if whitened:
        seeded.whiten(network.eval().visual, mean, std, seed)


def _preprocessing(
    model: str, network: Any, published: Mapping[str, Any]
) -> tuple[nn.Module, Tensor, Tensor]:
    """The geometric steps of open_clip's transform, which also take tensors, and mean and std (3, 1, 1).

    Weights from a file or a seed get the same mean and std as the model's published weights.
    """
    from open_clip import transform
    from torchvision.transforms import Compose, Normalize

    if not published:
        published = weight_files.any_tag_config(model)
    settings = transform.merge_preprocess_dict(transform.PreprocessCfg(), dict(published))
    settings["size"] = network.visual.image_size
    steps = transform.image_transform_v2(transform.PreprocessCfg(**settings), is_train=False).transforms
    converting = (transform.MaybeConvertMode, transform.MaybeToTensor, Normalize)
    resize = Compose([step for step in steps if not isinstance(step, converting)])
    mean, std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("mean", "std"))
    return resize, mean, std
