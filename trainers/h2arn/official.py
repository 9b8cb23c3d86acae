"""Reader and writer of the H2ARN authors' checkpoints; nothing in them is executed.

Their file of the best epoch is a bare state dict. Their checkpoints of every 25 epochs hold one under
`model_state_dict`, beside the states of optimizer and schedule, which are not imported. Our tensors have the same
names. No tensor shows the number of attention heads, so the caller must give it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.settings import UNSEEN, fill
from trainers.h2arn.config import H2arnConfig
from trainers.h2arn.method import H2arn
from trainers.loop.checkpoint import fill_weights, named_tensors, read_foreign, require_fit
from trainers.loop.trained import TrainedFolder

INNER = "model_state_dict"
PREFIX = "module."  # prefix of all names if the model was trained on several devices
ENCODERS = ("text_encoder", "pcd_encoder")
BLOCK = re.compile(r"(text_encoder|pcd_encoder)\.(\d+)\.")

NOT_SHOWN = H2arnConfig.marked(UNSEEN)
"""Settings that the authors' checkpoints do not show."""

State = dict[str, Tensor]


def read(path: Path) -> State:
    """The state dict of a file of the best epoch or of a checkpoint, in float32."""
    content = read_foreign(path)
    if isinstance(content, Mapping) and INNER in content:
        content = content[INNER]
    state = named_tensors(content, PREFIX)
    if state is None:
        raise UserError(
            f"{path} has neither a state dict nor one under {INNER!r}: it is not one of H2ARN's authors"
        )
    return {name: value.float() for name, value in state.items()}


def sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """d_model, num_layers, d_txt and d_pcd, from names and shapes. Raises UserError for weights of another method."""
    first = "text_encoder.0.encoder_layer.linear2.bias"
    if first not in state:
        raise UserError(f"the tensor {first} is missing: these are no weights of H2ARN's authors")
    width = len(state[first])
    blocks = [int(match[2]) for match in map(BLOCK.match, state) if match]
    inputs = {}
    for name, encoder in zip(("d_txt", "d_pcd"), ENCODERS, strict=True):
        projection = state.get(f"{encoder}.0.input_proj.weight")
        inputs[name] = width if projection is None else projection.shape[1]
    return {"d_model": width, "num_layers": 1 + max(blocks), **inputs}


def config_of(state: Mapping[str, Tensor], **settings: Any) -> H2arnConfig:
    """Settings that fit a state dict. Raises UserError unless `nhead` is given, because no tensor shows it.

    Weights also load with a wrong number of heads, and then every score is wrong: Rsum 322 instead of 438.
    """
    known = sizes(state)
    width: int = known["d_model"]
    if "nhead" not in settings:
        possible = ", ".join(str(count) for count in range(1, width + 1) if width % count == 0)
        raise UserError(
            "the checkpoint does not show how many attention heads it was trained with; give them with --set nhead=N, "
            f"which divides its width of {width}: {possible} (published: 64 heads of a width of 512)"
        )
    sized = {"d_model": width, "num_layers": known["num_layers"]}
    return fill(H2arnConfig, {**sized, **settings}, "trainers.h2arn")


def method_from(state: Mapping[str, Tensor], config: H2arnConfig) -> H2arn:
    """A method with the weights of a state dict. Raises UserError naming a missing, unknown or misshapen tensor."""
    known = sizes(state)
    method = H2arn(config, known["d_txt"], known["d_pcd"])
    require_fit(method.network.state_dict(), state, "the weights do not fit")
    method.network.load_state_dict(dict(state))
    return method


def state_of(method: H2arn) -> State:
    """The authors' state dict of a method."""
    return {name: value.detach().cpu() for name, value in method.network.state_dict().items()}


def import_checkpoint(file: Path, folder: Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write an authors' checkpoint as a trained folder of ours; return the settings that its use requires.

    `given` holds settings that the checkpoint does not show; `nhead` must be among them.
    """
    state, given = read(file), dict(given or {})
    config = config_of(state, **given)
    method = method_from(state, config)
    TrainedFolder(folder).write("h2arn", config, method)
    return {name: getattr(config, name) for name in ("d_model", "nhead", "num_layers", *given)}


def export_checkpoint(trained: Path, file: Path) -> None:
    """Write a trained method's folder as a bare state dict, which the authors' inference reads."""
    folder = TrainedFolder(trained)
    config = folder.config(H2arnConfig)
    tensors, _ = folder.tensors()
    own = {name.removeprefix("network."): value for name, value in tensors.items()}
    known = sizes(own)
    method = H2arn(config, known["d_txt"], known["d_pcd"])
    fill_weights(method, tensors, str(trained))
    torch.save(state_of(method), file)
