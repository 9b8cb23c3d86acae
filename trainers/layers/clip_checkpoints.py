"""Common parts of the checkpoints of CLIP4Clip and its successors: a state dict with CLIP under `clip.`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipeline.errors import UserError
from trainers.loop.checkpoint import named_tensors, read_foreign

SIZES = {
    (768, 32, 12): "ViT-B/32",
    (768, 16, 12): "ViT-B/16",
    (1024, 14, 24): "ViT-L/14",
    (256, 8, 1): "crossreel-demo",
}
"""(vision width, patch side, number of blocks) -> CLIP network: those of the releases and our small one."""


def read_state(path: Path, method: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint in their stored dtypes, without the prefix `module.`; nothing is executed.

    Raises UserError for a file of another kind, or with more than named tensors. `method` is the published name.
    """
    state = named_tensors(read_foreign(path), "module.")
    if state is None:
        raise UserError(
            f"{path} is not a state dict: {method}'s checkpoints hold named tensors and nothing else"
        )
    return state


def encoder_of(state: Mapping[str, Tensor], method: str) -> str:
    """The name of the CLIP network in a checkpoint. Raises UserError if there is none, or an unknown one."""
    first = state.get("clip.visual.conv1.weight")
    if first is None:
        raise UserError(f"the checkpoint has no CLIP in it: it is not one of {method}'s authors")
    blocks = {n.split(".")[4] for n in state if n.startswith("clip.visual.transformer.resblocks.")}
    size = (first.shape[0], first.shape[-1], len(blocks))
    if size not in SIZES:
        raise UserError(
            f"the checkpoint's CLIP has width {size[0]}, patches of {size[1]} pixels and {size[2]} blocks; "
            f"known are {', '.join(SIZES.values())}"
        )
    return SIZES[size]
