"""H2ARN's checkpoints in the format of its authors, both ways, read without executing anything in them.

Their best files are bare state dicts; the checkpoints they write every 25 epochs hold one under `model_state_dict`
beside the states of optimizer and schedule, which are not imported. Our tensors have the same names. The
number of attention heads does not show in any tensor, so that the caller must pass it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError, nearest
from pipeline.settings import UNSEEN, fill
from trainers.h2arn.config import H2arnConfig
from trainers.h2arn.method import H2arn
from trainers.loop.checkpoint import fill_weights, read_foreign
from trainers.loop.trained import TrainedFolder

INNER = "model_state_dict"
PREFIX = "module."  # of a model that was trained on several devices
ENCODERS = ("text_encoder", "pcd_encoder")
BLOCK = re.compile(r"(text_encoder|pcd_encoder)\.(\d+)\.")

NOT_SHOWN = H2arnConfig.marked(UNSEEN)
"""Settings that are in no checkpoint of theirs."""

State = dict[str, Tensor]


def read(path: Path) -> State:
    """The state dict of a best file or of a checkpoint, as float32."""
    found = read_foreign(path)
    if isinstance(found, Mapping) and INNER in found:
        found = found[INNER]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(
            f"{path} has neither a state dict nor one under {INNER!r}: it is not one of H2ARN's authors"
        )
    return {name.removeprefix(PREFIX): value.float() for name, value in found.items()}


def sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """d_model, num_layers, d_txt and d_pcd, which names and shapes decide. Raises UserError if they cannot."""
    first = "text_encoder.0.encoder_layer.linear2.bias"
    if first not in state:
        raise UserError(f"the tensor {first} is missing: these are no weights of H2ARN's authors")
    width = len(state[first])
    blocks = [int(found[2]) for found in map(BLOCK.match, state) if found]
    inputs = {}
    for name, encoder in zip(("d_txt", "d_pcd"), ENCODERS, strict=True):
        projection = state.get(f"{encoder}.0.input_proj.weight")
        inputs[name] = width if projection is None else projection.shape[1]
    return {"d_model": width, "num_layers": 1 + max(blocks), **inputs}


def config_of(state: Mapping[str, Tensor], **settings: Any) -> H2arnConfig:
    """Settings that fit a state dict. Raises UserError unless `nhead` is among those given: no tensor shows it.

    With another number of heads the weights fit just as well, and every score is wrong: Rsum 322 instead of 438.
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
    """A method with the weights of a state dict. Raises UserError naming what is missing, unknown or misshapen."""
    known = sizes(state)
    method = H2arn(config, known["d_txt"], known["d_pcd"])
    have = method.network.state_dict()
    for name in have:
        if name not in state:
            raise UserError(f"the tensor {name} is missing: the weights do not fit")
    for name in state:
        if name not in have:
            raise UserError(f"the tensor {name} is not known: the weights do not fit; {nearest(name, have)}")
        if have[name].shape != state[name].shape:
            shapes = tuple(state[name].shape), tuple(have[name].shape)
            raise UserError(f"the tensor {name} is {shapes[0]}, {shapes[1]} is needed")
    method.network.load_state_dict(dict(state))
    return method


def state_of(method: H2arn) -> State:
    """The authors' state dict of a method."""
    return {name: value.detach().cpu() for name, value in method.network.state_dict().items()}


def import_checkpoint(file: Path, folder: Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write an authors' checkpoint as weights and settings of ours; returns the settings to use them with.

    `given` are settings that the checkpoint does not show: `nhead` must be among them.
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
