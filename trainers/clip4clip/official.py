"""Reader and writer of the CLIP4Clip authors' checkpoints: plain state dicts, read without unpickling objects.

Names differ from ours only by prefixes. With an LSTM the release has a table of positions that it never uses: it is
left out when reading, and written as zeros because their code requires it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extractors.backbones.clip_weights import NO_WEIGHTS
from pipeline.errors import UserError
from pipeline.settings import UNSEEN, fill
from trainers.clip4clip.config import Clip4ClipConfig
from trainers.clip4clip.method import STORED_POSITIONS, Clip4Clip
from trainers.clip4clip.model import Clip4ClipNetwork
from trainers.layers.clip_checkpoints import encoder_of, read_state
from trainers.layers.clip_towers import ClipTowers
from trainers.loop.checkpoint import fill_weights, require_fit
from trainers.loop.trained import TrainedFolder

POSITIONS = "frame_position_embeddings.weight"
BLOCKS, RECURRENT, CROSS = "transformerClip.resblocks.", "lstm_visual.", ("cross.", "similarity_dense.")
PREFIXES = {"towers.clip.": "clip.", "temporal.": ""}
"""Our prefix -> the authors' prefix."""

NOT_SHOWN = Clip4ClipConfig.marked(UNSEEN)
"""Settings that the authors' checkpoints do not show."""

State = dict[str, Tensor]


def read(path: Path) -> State:
    """The state dict of a checkpoint, in its stored dtypes; nothing in the file is executed."""
    return read_state(path, "CLIP4Clip")


def sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that the tensor names of a checkpoint decide. Raises UserError for a checkpoint of tightTransf."""
    if any(name.startswith(CROSS) for name in state):
        raise UserError("the checkpoint is one of sim_header = 'tightTransf', which is not built here")
    blocks = {name.split(".")[2] for name in state if name.startswith(BLOCKS)}
    if blocks:
        return {"sim_header": "seqTransf", "cross_num_hidden_layers": len(blocks)}
    recurrent = any(name.startswith(RECURRENT) for name in state)
    return {"sim_header": "seqLSTM" if recurrent else "meanP"}


def network_from(
    state: Mapping[str, Tensor], config: Clip4ClipConfig, dims: int = 0, heads: int | None = None
) -> Clip4ClipNetwork:
    """A network with the sizes and weights of a checkpoint; a checkpoint without CLIP gives one for stored features.

    `dims` is the embedding size, which meanP's weights do not show. Raises UserError naming a tensor that does not fit.
    """
    clip = {name.removeprefix("clip."): value for name, value in state.items() if name.startswith("clip.")}
    towers = None
    if set(clip) - set(NO_WEIGHTS) > {"logit_scale"}:
        towers = ClipTowers.from_state(clip, half=config.precision == "fp16-legacy")
        dims = towers.dims
    if POSITIONS in state:
        positions, dims = state[POSITIONS].shape
    else:
        positions = STORED_POSITIONS
        dims = next((v.shape[1] for n, v in state.items() if n.startswith(RECURRENT) and v.ndim > 1), dims)
    network = Clip4ClipNetwork(config, towers, dims, positions, heads)
    _load(network, state)
    return network


def state_of(network: Clip4ClipNetwork) -> State:
    """The authors' state dict of a network."""
    own = {official_name(name): value for name, value in network.state_dict().items()}
    lstm = next((value for name, value in own.items() if name.startswith(RECURRENT)), None)
    if lstm is not None:
        positions = (
            network.towers.context_length if isinstance(network.towers, ClipTowers) else STORED_POSITIONS
        )
        own[POSITIONS] = torch.zeros(positions, lstm.shape[1])
    return own


def official_name(name: str) -> str:
    """The authors' name of a tensor of `Clip4ClipNetwork`."""
    for ours, theirs in PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def import_checkpoint(file: Path, folder: Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write an authors' checkpoint as a trained folder of ours; return the settings that differ from the defaults.

    `given` holds settings that the checkpoint does not show (`NOT_SHOWN`) and that differ from the published ones.
    """
    state = read(file)
    known = {
        **sizes(state),
        "base_encoder": encoder_of(state, "CLIP4Clip"),
        "backbone_weights": "seed:0",  # needs no download; the checkpoint replaces all weights of the towers
    }
    config = fill(Clip4ClipConfig, {**known, **(given or {})}, "trainers.clip4clip")
    method = Clip4Clip(config, network_from(state, config))
    TrainedFolder(folder).write("clip4clip", config, method)
    usual = Clip4ClipConfig().model_dump(mode="json")
    return {name: v for name, v in config.model_dump(mode="json").items() if v != usual[name]}


def export_checkpoint(trained: Path, file: Path) -> None:
    """Write a trained method's folder as a state dict that the authors' code loads.

    Raises UserError if the method was trained on stored features, because the folder then has no CLIP.
    """
    folder = TrainedFolder(trained)
    config = folder.config(Clip4ClipConfig)
    if config.mode == "frozen":
        raise UserError(
            f"{trained} was trained on features and has no CLIP: the authors' code cannot load it"
        )
    tensors, _ = folder.tensors()
    own = {official_name(name.removeprefix("network.")): value for name, value in tensors.items()}
    method = Clip4Clip(config, network_from(own, config))
    fill_weights(method, tensors, str(trained))
    torch.save({name: value.detach().cpu().float() for name, value in state_of(method.network).items()}, file)


def _load(network: Clip4ClipNetwork, state: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint into a network. Raises UserError naming a tensor that does not fit."""
    own = {
        (f"towers.{name}" if name.startswith("clip.") else f"temporal.{name}"): value.float()
        for name, value in state.items()
        if name.removeprefix("clip.") not in NO_WEIGHTS
    }
    have = network.state_dict()
    if f"temporal.{POSITIONS}" not in have and any(name.startswith(RECURRENT) for name in state):
        own.pop(f"temporal.{POSITIONS}", None)
    require_fit(have, own, "the weights are not CLIP4Clip's with such settings", official_name)
    network.load_state_dict(own)
