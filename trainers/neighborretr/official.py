"""Reader and writer of the NeighborRetr authors' checkpoints: a plain state dict in one torch file.

Names differ from ours only by prefixes. Checkpoints made on a GPU hold float16 tensors, which are read as float32.
Networks that the release creates and never uses are kept with the setting `unused_nets`, so that nothing is lost.
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
from trainers.layers.clip_towers import ClipTowers
from trainers.loop.checkpoint import named_tensors, read_foreign, require_fit
from trainers.loop.trained import TrainedFolder
from trainers.neighborretr.config import NeighborRetrConfig
from trainers.neighborretr.method import NeighborRetr

PREFIXES = {
    "network.towers.clip.": "clip.",
    "network.temporal.": "",
    "network.head.": "",
    "network.": "clip.",  # the logit scale of a method without towers
}
"""Our prefix -> the authors' prefix."""

NOT_SHOWN = NeighborRetrConfig.marked(UNSEEN)
"""Settings that the authors' checkpoints do not show."""

BANK = "bank."  # prefix of the memory bank, which their checkpoints do not hold
TEMPORAL = "transformerClip."
ENCODERS = {(768, 32): "ViT-B/32", (768, 16): "ViT-B/16", (256, 8): "crossreel-demo"}
"""(vision width, patch side) -> CLIP network: those of the release and our small one."""


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of an authors' checkpoint, in float32; nothing in it is executed."""
    state = named_tensors(read_foreign(path), "module.")
    if state is None:
        raise UserError(f"{path} is not a plain state dict: it is not a checkpoint of NeighborRetr's authors")
    ignored = {f"clip.{name}" for name in NO_WEIGHTS}
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if name not in ignored
    }


def sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that a state dict decides, except CLIP's."""
    blocks = {name.split(".")[2] for name in state if name.startswith(f"{TEMPORAL}resblocks.")}
    return {"temporal_layers": len(blocks), "unused_nets": "text_weight_fc1.0.weight" in state}


def width(state: Mapping[str, Tensor]) -> int:
    """The embedding size D."""
    try:
        return int(state["text_weight_fc.0.weight"].shape[1])
    except KeyError as error:
        raise UserError(
            f"the checkpoint has no tensor {error}: it is not one of NeighborRetr's authors"
        ) from None


def base_encoder(state: Mapping[str, Tensor]) -> str:
    """The CLIP network that the weights belong to. Raises UserError for one that the authors never trained."""
    patches = state.get("clip.visual.conv1.weight")
    shape = None if patches is None else (patches.shape[0], patches.shape[-1])
    if shape is None or shape not in ENCODERS:
        raise UserError(f"the CLIP weights are of no ViT-B/32 or ViT-B/16: the patch convolution is {shape}")
    return ENCODERS[shape]


def method_from(state: Mapping[str, Tensor], config: NeighborRetrConfig) -> NeighborRetr:
    """NeighborRetr with an authors' weights and our settings; the weights decide sizes and unused networks."""
    dims = width(state)
    clip = {name.removeprefix("clip."): t for name, t in state.items() if name.startswith("clip.")}
    half = config.precision == "fp16-legacy"
    towers = None if config.mode == "frozen" else ClipTowers.from_state(clip, half=half)
    ours = NeighborRetr(config.model_copy(update=sizes(state)), towers, dims)
    load_state(ours, state)
    return ours


def load_state(method: NeighborRetr, state: Mapping[str, Tensor]) -> None:
    """Copy an authors' state dict into a method. Raises UserError naming a tensor that does not fit.

    A method without towers takes only the logit scale of CLIP's tensors.
    """
    own = _own(method)
    taken = dict(state)
    if method.network.towers is None:
        taken = {n: t for n, t in state.items() if not n.startswith("clip.") or n in own}
    require_fit(own, taken, "the weights are not NeighborRetr's with such settings")
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)


def state_of(method: NeighborRetr) -> dict[str, Tensor]:
    """The authors' state dict of a method, which does not hold the bank."""
    return {name: tensor.detach().cpu() for name, tensor in _own(method).items()}


def official_name(name: str) -> str:
    """The authors' name of one of our parameters."""
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    return PREFIXES[prefix] + name.removeprefix(prefix)


def _own(method: NeighborRetr) -> dict[str, Tensor]:
    """Our tensors under the authors' names."""
    state = method.state_dict()
    return {official_name(name): tensor for name, tensor in state.items() if not name.startswith(BANK)}


def import_checkpoint(file: Path, folder: Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write an authors' checkpoint as a trained folder of ours; return the settings that differ from the defaults.

    `given` holds settings that the checkpoint does not show (`NOT_SHOWN`) and that differ from the published ones.
    """
    state = read(file)
    # seed:0 needs no download; the checkpoint replaces all weights of the towers.
    known = {**sizes(state), "base_encoder": base_encoder(state), "backbone_weights": "seed:0"}
    config = fill(NeighborRetrConfig, {**known, **(given or {})}, "trainers.neighborretr")
    TrainedFolder(folder).write("neighborretr", config, method_from(state, config))
    usual = NeighborRetrConfig().model_dump(mode="json")
    return {name: v for name, v in config.model_dump(mode="json").items() if v != usual[name]}


def export_checkpoint(trained: Path, file: Path) -> None:
    """Write a trained method's folder as a state dict that the authors' code loads."""
    folder = TrainedFolder(trained)
    if folder.config(NeighborRetrConfig).mode == "frozen":
        raise UserError(
            f"{trained} was trained on features and has no CLIP: the authors' code cannot load it"
        )
    tensors, _ = folder.tensors()
    state = {official_name(name): tensor for name, tensor in tensors.items() if not name.startswith(BANK)}
    torch.save(state, file)
