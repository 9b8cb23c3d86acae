"""Encoders of the Hugging Face hub as networks: captions to token states. Knows nothing of stages.

A CLIP model is reduced to its text side; its states are those after the final norm, before the projection.

Axes: N captions, L tokens of a caption, D state size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extractors.backbones import hub, seeded, torchvision_ops
from extractors.backbones import weights as weight_files
from extractors.backbones.lane import Arrays, Lane, Shaped
from extractors.backbones.precision import Precision, autocast
from pipeline.errors import UserError

UNKNOWN_LENGTH = 1_000_000  # transformers gives a tokenizer whose limit it does not know a larger one


class Tokens(NamedTuple):
    """The tokens of a caption: states (L, D) float32, characters [start, end) (L, 2), mask of special ones (L,)."""

    states: NDArray[np.float32]
    offsets: NDArray[np.int32]
    special: NDArray[np.bool_]

    def words(self) -> Tokens:
        """The tokens without special ones."""
        kept = ~self.special
        return Tokens(self.states[kept], self.offsets[kept], self.special[kept])


class BertBackbone:
    """A frozen encoder with its tokenizer."""

    def __init__(
        self, settings: weight_files.NetworkSettings, layers: Sequence[int] = (-1,), max_tokens: int = 77,
        pad: bool = False, device: str | torch.device = "cpu", precision: Precision = "auto",
    ) -> None:  # fmt: skip
        folder = hub.require(settings)
        torchvision_ops.ensure()  # transformers imports it with every network
        self.device, self.precision = torch.device(device), precision
        self.max_tokens, self.pad = max_tokens, pad
        self._tokenizer = _tokenizer(folder, settings.model)
        network = _network(folder, settings)
        self._layers = _chosen(layers, network.config.num_hidden_layers, settings.model)
        _require_room(max_tokens, network, self._tokenizer, settings.model)
        self.lane = Lane(self.device)
        self.network: Any = network.to(self.device).float().eval().requires_grad_(False)

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each caption, including special ones, and with `pad` the padding.

        A caption longer than `max_tokens` loses its tail, not its end token. Other captions of the batch make no
        difference: padding stands on the right and is masked.
        """
        return self.launch(texts).arrays()

    def launch(self, texts: Sequence[str]) -> Shaped[list[Tokens]]:
        """Start to compute what `tokens` returns; on a GPU this returns before it is there."""
        batch = self.tokenized(texts)
        offsets = batch.pop("offset_mapping").numpy().astype(np.int32)
        special = batch.pop("special_tokens_mask").numpy().astype(bool)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        names = list(batch)

        def network(*inputs: Tensor) -> dict[str, Tensor]:
            with autocast(self.precision, self.device):
                out = self.network(**dict(zip(names, inputs, strict=True)), output_hidden_states=True)
            # CLIP applies its final norm after the layers
            hidden = (*out.hidden_states[:-1], out.last_hidden_state)
            return {"state": torch.stack([hidden[layer].float() for layer in self._layers]).mean(dim=0)}

        def cut(found: Arrays) -> list[Tokens]:
            rows = zip(texts, found["state"], offsets, special, lengths, strict=True)
            return [
                _cut(text, Tokens(*parts), self.max_tokens if self.pad else length)
                for text, *parts, length in rows
            ]

        return self.lane.launch([batch[name].numpy() for name in names], network).then(cut)

    def tokenized(self, texts: Sequence[str]) -> Any:
        """The inputs of the network, each (N, L): `input_ids`, `attention_mask` (0 for padding), ...

        Also `offset_mapping` (N, L, 2) and `special_tokens_mask` (N, L), which the network does not read.
        """
        return self._tokenizer(
            list(texts), padding="max_length" if self.pad else "longest", truncation=True,
            max_length=self.max_tokens, return_offsets_mapping=True, return_special_tokens_mask=True,
            return_tensors="pt",
        )  # fmt: skip


def _cut(text: str, tokens: Tokens, length: int) -> Tokens:
    """The first `length` tokens of a row; special ones get the position (0, 0), others lose spaces at their ends."""
    offsets = tokens.offsets[:length].copy()
    special = tokens.special[:length]
    offsets[special] = 0
    for place in offsets:
        start, end = place
        while start < end and text[start].isspace():  # byte-level tokens begin with the space before the word
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        place[:] = start, end
    return Tokens(tokens.states[:length].copy(), offsets, special)


def _tokenizer(folder: Path, model: str) -> Any:
    """The model's tokenizer, padding on the right. Raises UserError if it cannot give the positions of tokens."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, LookupError) as error:
        raise UserError(f"the tokenizer of {model!r} cannot be read: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {model!r} does not tell which characters a token stands for")
    if tokenizer.pad_token is None:
        raise UserError(
            f"{model!r} has no padding token; possible are encoders such as bert-base-uncased or roberta-large"
        )
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def _network(folder: Path, settings: weight_files.NetworkSettings) -> Any:
    """The encoder with its own or seeded weights; torch's own random state is left alone."""
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    seed = weight_files.seed_of(settings.weights)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = _text_side(config)
        _require_encoder(config, settings.model)
        with torch.random.fork_rng(devices=[]), weight_files.fitting(folder, settings.model):
            if seed is not None:
                network = AutoModel.from_config(config, trust_remote_code=False)
                seeded.initialise(network, seed)
                return network
            network, report = AutoModel.from_pretrained(
                folder, config=config, local_files_only=True, trust_remote_code=False, weights_only=True,
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"the model {settings.model!r} cannot be read: {_first_line(error)}") from error
    # the pooler is not read, so that weights without one are fine
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(f"the weights of {settings.model!r} lack {missing[0]} and {len(missing) - 1} others")
    return network


def _text_side(config: Any) -> Any:
    """The configuration of a CLIP model's text side; that of any other model unchanged."""
    return config.text_config if config.model_type == "clip" else config


def _require_encoder(config: Any, model: str) -> None:
    if config.is_encoder_decoder or not getattr(config, "hidden_size", None):
        raise UserError(
            f"{model!r} ({config.model_type}) is not a text encoder; "
            "possible are those such as bert-base-uncased or roberta-large"
        )


def _chosen(layers: Sequence[int], count: int, model: str) -> list[int]:
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise UserError(f"layers = {list(layers)} is not possible: {model!r} has the layers 0 to {count}")
    return list(layers)


def _require_room(max_tokens: int, network: Any, tokenizer: Any, model: str) -> None:
    """Raise UserError for more tokens than the network has positions (RoBERTa reserves its first two)."""
    embeddings = getattr(network, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", getattr(embeddings, "position_embedding", None))
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < UNKNOWN_LENGTH else []
    if positions is not None:
        reserved = positions.padding_idx
        limits.append(positions.num_embeddings - (0 if reserved is None else reserved + 1))
    if limits and max_tokens > min(limits):
        raise UserError(f"max_tokens = {max_tokens} is not possible: {model!r} takes at most {min(limits)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].strip() if str(error).strip() else type(error).__name__
