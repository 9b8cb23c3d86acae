"""Makes torchvision importable beside a torch that its compiled operators were not built for.

torchvision's usual wheel is built for CUDA. Beside a CPU build of torch its compiled library does not
load; torchvision itself carries on without it, but then describes the operators `nms` and `qnms` to
torch, which refuses because nobody has declared them. open_clip and timm import torchvision for its
image transforms and never call these two, so a declaration without an implementation is enough.
"""

from __future__ import annotations

import importlib

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_declared: list[torch.library.Library] = []  # kept alive: a Library's operators vanish with it


def ensure() -> None:
    """Import torchvision; if its own library does not load, declare its missing operators first."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        _declare()
        importlib.import_module("torchvision")


def _declare() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _declared.append(library)
