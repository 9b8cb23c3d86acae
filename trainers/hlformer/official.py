"""Reader and writer of the HLFormer authors' checkpoints: one torch file with weights and optimizer.

Their optimizer holds a pickled schedule object, which safe loading refuses, so a stub of the same name is allowed.
Their state dict repeats the constant curvature 1 for every Lorentz module: left out when reading, added when writing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.method import HLFormer, optimizer
from trainers.loop.checkpoint import fill_weights, named_tensors, read_foreign, require_fit
from trainers.loop.optim import NO_DECAY, BertAdam
from trainers.loop.trained import TrainedFolder
from trainers.recipes import PublishedRecipe, recipes

CURVATURE = "manifold.k"
SCHEDULE_MODULE = "Opts.optimization"

CONFIG_NAMES = {
    "hidden_size": "hidden_size",
    "n_heads": "heads",
    "lorentz_dim": "lorentz_dim",
    "attention_num": "blocks",
    "max_desc_l": "max_desc_l",
    "max_ctx_l": "max_ctx_l",
    "map_size": "map_size",
    "sft_factor": "tau",
    "drop": "dropout",
    "input_drop": "input_dropout",
    "initializer_range": "init_std",
    "lr": "lr",
    "lr_warmup_proportion": "warmup",
    "n_epoch": "epochs",
    "batchsize": "batch_size",
    "seed": "seed",
    "max_es_cnt": "patience",
    "margin": "margin",
    "hard_negative_start_epoch": "hard_from_epoch",
    "hard_pool_size": "hard_pool_size",
    "clip_scale_w": "clip_weight",
    "frame_scale_w": "frame_weight",
    "curv_init": "curvature",
    "learn_curv_bool": "learn_curvature",
    "eval_query_bsz": "text_batch",
    "eval_context_bsz": "item_batch",
}
"""The authors' setting -> ours. Their code never reads their `wd`: its decay is the literal 0.01, our default."""

LOSS_FACTOR = ("clip_nce_weight", "frame_nce_weight", "diversity_weight", "partial_order_weight")
NEG_FACTOR = ("mu", "diversity_scale", "diversity_power")
DATA_OF = {  # by recipe, the authors' names of data set, collection and features
    "tvr": ("tvr", "tvr", "i3d_resnet"),
    "activitynet": ("act", "activitynet", "i3d"),
    "charades": ("cha", "charades", "i3d_rgb_lgi"),
}
USUAL = "tvr"  # the recipe of checkpoints that do not name their data set


class WarmupLinearSchedule:
    """Stub of the authors' schedule object, with its attributes only."""

    def __init__(self, warmup: float, t_total: float) -> None:
        self.warmup, self.t_total = warmup, t_total
        self.warned_for_t_total_at_progress = -1


WarmupLinearSchedule.__module__ = SCHEDULE_MODULE


@dataclass(frozen=True)
class Checkpoint:
    """The content of an authors' checkpoint, without the prefix of a parallel wrapper."""

    config: dict[str, Any]
    epoch: int
    model_val: list[float]  # R@1, R@5, R@10, R@100, SumR on val
    state_dict: dict[str, Tensor]
    optimizer: dict[str, Any]


def read(path: Path) -> Checkpoint:
    """Read an authors' checkpoint; nothing in it is executed."""
    with torch.serialization.safe_globals(
        [(WarmupLinearSchedule, f"{SCHEDULE_MODULE}.WarmupLinearSchedule")]
    ):
        content = read_foreign(path)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path} has no 'state_dict': it is not a checkpoint of HLFormer's authors")
    state = named_tensors(content["state_dict"], "module.")
    if state is None:
        raise UserError(
            f"{path} holds no named tensors under 'state_dict': it is not a checkpoint of HLFormer's authors"
        )
    try:
        return Checkpoint(
            config=dict(content.get("config", {})),
            epoch=int(content.get("epoch", 0)),
            model_val=[float(value) for value in content.get("model_val", [])],
            state_dict=state,
            optimizer=dict(content.get("optimizer", {})),
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path} has something else under config, epoch, model_val or optimizer than HLFormer's authors: {error}"
        ) from None


def sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The settings that the shapes of a state dict decide, and `visual_dim` and `text_dim`."""
    try:
        hidden, visual = state["clip_input_proj.net.1.weight"].shape
        first = state["clip_encoder.h_attns.0.self.input_proj.net.1.weight"]
        half = len({name.split(".")[2] for name in state if name.startswith("clip_encoder.h_attns.")})
        return {
            "hidden_size": hidden,
            "visual_dim": visual,
            "text_dim": state["query_input_proj.net.1.weight"].shape[1],
            "blocks": 2 * half,
            "lorentz_dim": first.shape[0],
            "max_desc_l": state["query_pos_embed.position_embeddings.weight"].shape[0],
            "max_ctx_l": state["frame_pos_embed.position_embeddings.weight"].shape[0],
            "map_size": state["clip_encoder.layer2.weight"].shape[0],
        }
    except KeyError as error:
        raise UserError(
            f"the checkpoint has no tensor {error}: it is not one of HLFormer's authors"
        ) from None


def config_from(official: Mapping[str, Any], recipe: str | None = None, **known: Any) -> HLFormerConfig:
    """Our settings for the authors' ones; `known` (sizes read from shapes) wins over what they say.

    recipe: the name of the published experiment that gives the settings of which they say nothing, or an alias of it.
    """
    ours = {CONFIG_NAMES[name]: value for name, value in official.items() if name in CONFIG_NAMES}
    ours |= dict(zip(LOSS_FACTOR, official.get("loss_factor", ()), strict=False))
    ours |= dict(zip(NEG_FACTOR, official.get("neg_factor", ()), strict=False))
    row = _row(recipe or str(official.get("collection", official.get("dataset_name"))))
    return HLFormerConfig(**{**row.settings, **ours, "recipe": row.name, **known})


def _row(name: str) -> PublishedRecipe:
    """The published experiment of a name or alias, of any other name that of `USUAL`."""
    rows = recipes("hlformer")
    usual = next(row for row in rows if row.name == USUAL)
    return next((row for row in rows if name in (row.name, *row.aliases)), usual)


def method_from(checkpoint: Checkpoint, recipe: str | None = None) -> HLFormer:
    """HLFormer with the checkpoint's weights; what shapes cannot tell comes from its config, else from a recipe."""
    known = sizes(checkpoint.state_dict)
    dims = known.pop("visual_dim"), known.pop("text_dim")
    method = HLFormer(config_from(checkpoint.config, recipe, **known), *dims)
    load_state(method, checkpoint.state_dict)
    return method


def load_state(method: HLFormer, state: Mapping[str, Tensor]) -> None:
    """Copy an authors' state dict into the network. Raises UserError naming what does not fit."""
    own = {name: value for name, value in state.items() if not name.endswith(CURVATURE)}
    require_fit(method.network.state_dict(), own, "the weights do not fit")
    method.network.load_state_dict(own)


def state_of(method: HLFormer) -> dict[str, Tensor]:
    """The authors' state dict of a method, in their order, the repeated constants included."""
    own = method.network.state_dict()
    return {name: own[name] if name in own else torch.tensor(1.0) for name in _with_constants(own)}


def _with_constants(names: Sequence[str] | Mapping[str, Tensor]) -> Iterator[str]:
    """Our names, and those of the constants at the positions where the authors' modules register them."""
    for name in names:
        if name.endswith(".self.output_proj.LayerNorm.weight"):
            yield name.replace("output_proj.LayerNorm.weight", CURVATURE)
        yield name
        if name == "video_alpha":
            yield CURVATURE
        elif re.search(r"lorentz_multiattention\.(bias|linear_\w+\.scale)$", name):
            yield f"{name.rpartition('.')[0]}.{CURVATURE}"


def load_optimizer(ours: BertAdam, method: HLFormer, official: Mapping[str, Any]) -> None:
    """Copy an authors' optimizer state into ours: moments, number of updates, schedule."""
    groups = official["param_groups"]
    names = _optimizer_names(method)
    indices = dict(zip(names, [i for group in groups for i in group["params"]], strict=True))
    steps = {0}
    for name, parameter in method.network.named_parameters():
        state = official["state"].get(indices[name])
        if state is None:
            continue
        ours.state[parameter] = {
            "first": state["next_m"].detach().clone(),
            "second": state["next_v"].detach().clone(),
        }
        steps.add(int(state["step"]))
    for mine, theirs in zip(ours.param_groups, groups, strict=True):
        mine |= {
            "lr": theirs["lr"],
            "weight_decay": theirs["weight_decay"],
            "betas": (theirs["b1"], theirs["b2"]),
            "eps": theirs["e"],
            "max_grad_norm": max(theirs["max_grad_norm"], 0.0),  # theirs: -1 for no clipping
            "updates": max(steps),
            "warmup": theirs["schedule"].warmup,
            "total_steps": int(theirs["schedule"].t_total),
        }


def optimizer_from(method: HLFormer, checkpoint: Checkpoint) -> BertAdam:
    """The checkpoint's optimizer for a method that has the checkpoint's weights."""
    ours = optimizer(method.config, method, total_steps=1)
    load_optimizer(ours, method, checkpoint.optimizer)
    return ours


def optimizer_state_of(method: HLFormer, ours: BertAdam) -> dict[str, Any]:
    """The authors' optimizer state: group 0 with weight decay, group 1 without, both in their order of parameters."""
    index = {name: number for number, name in enumerate(_optimizer_names(method))}
    state = {}
    for name, parameter in method.network.named_parameters():
        moments = ours.state.get(parameter)
        if moments:
            state[index[name]] = {
                "step": ours.param_groups[0]["updates"],
                "next_m": moments["first"].detach().cpu().clone(),
                "next_v": moments["second"].detach().cpu().clone(),
            }
    decayed = sum(not _undecayed(name) for name in index)
    numbers = (list(range(decayed)), list(range(decayed, len(index))))
    group = ours.param_groups[0]
    schedule = WarmupLinearSchedule(group["warmup"], float(group["total_steps"]))
    groups = [
        {
            "weight_decay": group["weight_decay"],
            "lr": group["lr"],
            "schedule": schedule,
            "b1": group["betas"][0],
            "b2": group["betas"][1],
            "e": group["eps"],
            "max_grad_norm": group["max_grad_norm"] or -1,
            "params": params,
        }
        for group, params in zip(ours.param_groups, numbers, strict=True)
    ]
    return {"state": dict(sorted(state.items())), "param_groups": groups}


def _optimizer_names(method: HLFormer) -> list[str]:
    """Names of the authors' parameters in the order of their optimizer, which also holds the curvature, once."""
    names: list[str] = []
    for name, _ in method.network.named_parameters():
        names += [name, CURVATURE] if name == "video_alpha" else [name]
    return sorted(names, key=_undecayed)


def _undecayed(name: str) -> bool:
    return any(part in name for part in NO_DECAY)


def config_of(method: HLFormer, carried: Mapping[str, Any], epoch: int) -> dict[str, Any]:
    """The authors' config of a method; entries without a setting of ours are kept from `carried`."""
    c = method.config
    known = sizes(method.network.state_dict())
    name, collection, feature = DATA_OF.get(c.recipe, DATA_OF[USUAL])
    return {
        "model_name": "HLFormer",
        "dataset_name": name,
        "collection": collection,
        "visual_feature": feature,
        "num_workers": 0,
        "pin_memory": False,
        "wd": c.weight_decay,
        "use_hard_negative": epoch >= c.hard_from_epoch,
        **carried,
        **{theirs: getattr(c, ours) for theirs, ours in CONFIG_NAMES.items()},
        "loss_factor": [getattr(c, name) for name in LOSS_FACTOR],
        "neg_factor": [getattr(c, name) for name in NEG_FACTOR],
        "q_feat_size": known["text_dim"],
        "visual_feat_dim": known["visual_dim"],
    }


def write(
    path: Path,
    method: HLFormer,
    ours: BertAdam,
    epoch: int,
    model_val: Sequence[float],
    carried: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint that the authors' code loads. `epoch` counts from 0; see `Checkpoint`."""
    content = {
        "config": config_of(method, carried or {}, epoch),
        "epoch": epoch,
        "model_val": list(model_val),
        "state_dict": {name: value.detach().cpu() for name, value in state_of(method).items()},
        "optimizer": optimizer_state_of(method, ours),
    }
    with _schedule_module():
        torch.save(content, path)


@contextmanager
def _schedule_module() -> Iterator[None]:
    """Provide the authors' module under its name while a schedule is pickled, because pickle looks it up by name."""
    names = [SCHEDULE_MODULE.partition(".")[0], SCHEDULE_MODULE]
    kept = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = ModuleType(name)
    sys.modules[SCHEDULE_MODULE].WarmupLinearSchedule = WarmupLinearSchedule  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def import_checkpoint(file: Path, folder: Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write an authors' checkpoint as a trained folder of ours; return the settings that differ from the defaults.

    Their checkpoints hold every setting. Raises UserError if one is `given` nevertheless.
    """
    for name in given or {}:
        raise UserError(f"{name} stands in the checkpoint; HLFormer's checkpoints hold all settings")
    checkpoint = read(file)
    method = method_from(checkpoint)
    about = {"epoch": checkpoint.epoch, "validation": checkpoint.model_val}
    TrainedFolder(folder).write("hlformer", method.config, method, about=about)
    usual = HLFormerConfig(recipe=method.config.recipe).model_dump(mode="json")
    settings = method.config.model_dump(mode="json")
    return {n: v for n, v in settings.items() if v != usual[n]}


def export_checkpoint(trained: Path, file: Path) -> None:
    """Write a trained method's folder as a checkpoint that the authors' code loads, with a new optimizer state."""
    folder = TrainedFolder(trained)
    config = folder.config(HLFormerConfig)
    tensors, about = folder.tensors()
    state = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
    known = sizes(state)
    method = HLFormer(config, known["visual_dim"], known["text_dim"])
    fill_weights(method, tensors, str(trained))
    ours = optimizer(config, method, total_steps=1)
    write(file, method, ours, int(about.get("epoch", 0)), [float(v) for v in about.get("validation", [])])
