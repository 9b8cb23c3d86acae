"""Reader and writer of the GARE authors' checkpoints: plain state dicts, read without unpickling objects.

Names differ from ours only by prefixes. Tensors that the release creates and never uses are left out when reading, and
written as zeros, or as they were read, because their code requires them. `psi.*` repeats `agent.psi.*`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extractors.backbones.clip_weights import NO_WEIGHTS
from pipeline.errors import UserError
from pipeline.settings import UNSEEN, fill
from trainers.gare.config import GareConfig
from trainers.gare.method import STORED_POSITIONS, Gare
from trainers.gare.model import GareNetwork
from trainers.layers.clip_checkpoints import encoder_of, read_state
from trainers.layers.clip_towers import ClipTowers
from trainers.loop.checkpoint import fill_weights, require_fit
from trainers.loop.trained import TrainedFolder

PSI, ALIAS = "agent.psi.", "psi."
LAYER = "layers.0."
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
POSITIONS = "frame_position_embeddings.weight"
DEAD = re.compile(r"(agent\.psi\.(layers\.0\.(linear2|mlp)|log_std_proj)|weight_fc)\.")
PREFIXES = {"towers.clip.": "clip.", "temporal.": "", "head.psi.": PSI}
"""Our prefix -> the authors' prefix."""

NOT_SHOWN = GareConfig.marked(UNSEEN)
"""Settings that the authors' checkpoints do not show."""

State = dict[str, Tensor]


def read(path: Path) -> State:
    """The state dict of a checkpoint, in its stored dtypes; nothing in the file is executed."""
    return read_state(path, "GARE")


def dead(state: Mapping[str, Tensor]) -> State:
    """The entries of a checkpoint that change no score, without aliases; with an LSTM also the table of positions."""
    recurrent = any(name.startswith("lstm_visual.") for name in state)
    return {name: v for name, v in state.items() if DEAD.match(name) or (name == POSITIONS and recurrent)}


def own_state(state: Mapping[str, Tensor]) -> State:
    """The checkpoint's tensors in float32 under our names. Raises UserError if `psi.*` differs from `agent.psi.*`."""
    out: State = {}
    unused = dead(state)
    for name, value in state.items():
        if name.startswith(ALIAS):
            if not torch.equal(value, state.get(f"agent.{name}", value.new_empty(0))):
                raise UserError(f"{name} is not the same tensor as agent.{name}: this checkpoint is damaged")
        elif name not in unused and name.removeprefix("clip.") not in NO_WEIGHTS:
            out[_ours(name)] = value.float()
    return out


def load_state(network: GareNetwork, state: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint into a network. Raises UserError naming a tensor that does not fit."""
    own = own_state(state)
    require_fit(network.state_dict(), own, "the weights do not fit", official_name)
    network.load_state_dict(own)


def sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that the tensor names of a checkpoint decide."""
    blocks = {name.split(".")[2] for name in state if name.startswith("transformerClip.resblocks.")}
    if blocks:
        return {"agg_module": "seqTransf", "num_hidden_layers": len(blocks)}
    recurrent = any(name.startswith("lstm_visual.") for name in state)
    return {"agg_module": "seqLSTM" if recurrent else "None"}


def network_from(state: Mapping[str, Tensor], config: GareConfig) -> GareNetwork:
    """A network with the sizes and weights of a checkpoint; a checkpoint without CLIP gives one for stored features."""
    query = f"{PSI}{LAYER}cross_attn.q_proj.weight"
    if query not in state:
        raise UserError(f"the checkpoint has no tensor {query}: it is not one of GARE's authors")
    clip = {name.removeprefix("clip."): value for name, value in state.items() if name.startswith("clip.")}
    towers = None
    if set(clip) > {"logit_scale"}:
        towers = ClipTowers.from_state(clip, half=config.precision == "fp16-legacy")
    table = state.get(POSITIONS)
    positions = STORED_POSITIONS if table is None else len(table)
    network = GareNetwork(config, towers, len(state[query]), positions)
    load_state(network, state)
    return network


def state_of(network: GareNetwork, unused: Mapping[str, Tensor] | None = None) -> State:
    """The authors' state dict of a network, with CLIP's tensors in open_clip's order.

    Tensors that their code creates and never uses come from `unused`, or are zeros.
    """
    own = {official_name(name): value for name, value in network.state_dict().items()}
    clip = {name: value for name, value in own.items() if name.startswith("clip.")}
    psi = {name: value for name, value in own.items() if name.startswith(PSI)}
    rest = {name: value for name, value in own.items() if name not in clip and name not in psi}
    positions = network.towers.context_length if isinstance(network.towers, ClipTowers) else STORED_POSITIONS
    idle = _idle(len(psi[f"{PSI}mean_proj.bias"]), positions) | dict(unused or {})
    ordered = {name: psi[name] if name in psi else idle[name] for name in _psi_names()}
    aliases = {name.removeprefix("agent."): value for name, value in ordered.items()}
    heads = {name: value for name, value in idle.items() if name.startswith("weight_fc.")}
    table = {} if network.temporal is None else {POSITIONS: rest.pop(POSITIONS, idle[POSITIONS])}
    return {**clip, **ordered, **aliases, **heads, **table, **rest}


def official_name(name: str) -> str:
    """The authors' name of a tensor of `GareNetwork`."""
    for ours, theirs in PREFIXES.items():
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    return re.sub(rf"^{PSI}(?!mean_proj)", f"{PSI}{LAYER}", _grouped(name))


def _grouped(name: str) -> str:
    """The authors' name of a tensor whose attention projections stand under `cross_attn.`."""
    return re.sub(rf"^({PSI})({'|'.join(ATTENTION)})\.", r"\1cross_attn.\2.", name)


def _ours(name: str) -> str:
    """Our name of a tensor of a checkpoint."""
    if name.startswith(PSI):
        return "head.psi." + name.removeprefix(PSI).removeprefix(LAYER).removeprefix("cross_attn.")
    if name.startswith("clip."):
        return f"towers.{name}"
    return f"temporal.{name}"


def _psi_names() -> list[str]:
    """Every tensor of psi in the authors' order."""
    layer = [f"cross_attn.{name}" for name in ATTENTION] + ["linear1", "linear2", "mlp.0", "mlp.2"]
    layer += [f"layer_norm{n}" for n in (1, 2, 3)]
    modules = [LAYER + name for name in layer] + ["mean_proj", "log_std_proj"]
    return [f"{PSI}{module}.{part}" for module in modules for part in ("weight", "bias")]


def _idle(dims: int, positions: int) -> State:
    """Zeros for the tensors that the authors' modules create and never use."""
    shapes = {
        f"{PSI}{LAYER}linear2": (dims, dims),
        f"{PSI}{LAYER}mlp.0": (4 * dims, dims),
        f"{PSI}{LAYER}mlp.2": (dims, 4 * dims),
        f"{PSI}log_std_proj": (dims, dims),
        "weight_fc.0": (dims // 2, dims // 4),
        "weight_fc.2": (1, dims // 2),
    }
    out = {POSITIONS: torch.zeros(positions, dims)}
    for name, shape in shapes.items():
        out |= {f"{name}.weight": torch.zeros(shape), f"{name}.bias": torch.zeros(shape[0])}
    return out


def import_checkpoint(file: Path, folder: Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write an authors' checkpoint as a trained folder of ours; return the settings that differ from the defaults.

    `given` holds settings that the checkpoint does not show (`NOT_SHOWN`) and that differ from the published ones.
    """
    state = read(file)
    known = {**sizes(state), "base_encoder": encoder_of(state, "GARE"), "backbone_weights": "seed:0"}
    settings = {**known, **(given or {})}
    config = fill(GareConfig, settings, "trainers.gare")
    method = Gare(config, network_from(state, config))
    TrainedFolder(folder).write("gare", config, method)
    usual = GareConfig().model_dump()
    return {name: value for name, value in settings.items() if value != usual[name]}


def export_checkpoint(trained: Path, file: Path) -> None:
    """Write a trained method's folder as a state dict that the authors' code loads."""
    folder = TrainedFolder(trained)
    config = folder.config(GareConfig)
    if config.increment == "video":
        raise UserError(
            f"{trained} was trained with increment = 'video', and the authors' code knows increments of captions alone"
        )
    tensors, _ = folder.tensors()
    own = {official_name(name.removeprefix("network.")): value for name, value in tensors.items()}
    method = Gare(config, network_from(own, config))
    fill_weights(method, tensors, str(trained))
    torch.save({name: value.detach().cpu().float() for name, value in state_of(method.network).items()}, file)
