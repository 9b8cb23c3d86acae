"""What the checkpoints of CLIP4Clip and its successors have in common: a state dict with CLIP under `clip.`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipeline.errors import UserError
from trainers.loop.checkpoint import read_foreign

SIZES = {
    (768, 32, 12): "ViT-B/32",
    (768, 16, 12): "ViT-B/16",
    (1024, 14, 24): "ViT-L/14",
    (256, 8, 1): "crossreel-demo",
}
"""The networks of the releases and our small one by vision width, patch and number of blocks."""


def read_state(path: Path, method: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint as they are stored, without `module.`; nothing in the file is executed.

    Raises UserError for a file that is none, or holds more than named tensors. `method` is the published name.
    """
    found = read_foreign(path)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(
            f"{path} is not a state dict: {method}'s checkpoints hold named tensors and nothing else"
        )
    return {name.removeprefix("module."): value for name, value in found.items()}


def encoder_of(state: Mapping[str, Tensor], method: str) -> str:
    """The name of the CLIP network in a checkpoint. Raises UserError if there is none, or an unknown one."""
    first = state.get("clip.visual.conv1.weight")
    if first is None:
        raise UserError(f"the checkpoint has no CLIP in it: it is not one of {method}'s authors")
    blocks = {n.split(".")[4] for n in state if n.startswith("clip.visual.transformer.resblocks.")}
    found = (first.shape[0], first.shape[-1], len(blocks))
    if found not in SIZES:
        raise UserError(
            f"the checkpoint's CLIP has width {found[0]}, patches of {found[1]} pixels and {found[2]} blocks; "
            f"known are {', '.join(SIZES.values())}"
        )
    return SIZES[found]
