"""References to the weights of point cloud encoders, and the loading of a weights file into a network.

A reference is the path of a local file or "seed:N", random weights for tests and the demo. A path may hold
`{area}`: scenes of S3DIS, called `Area_<n>_<room>`, each take the file of their own area, whose weights were trained
without that area. Files are safetensors, or files of torch without Python objects. Finding them imports no torch.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractors.backbones import weights as weight_files
from pipeline.errors import ItemError, UserError
from pipeline.run.stage import Digests

if TYPE_CHECKING:
    from torch import Tensor

    from extractors.backbones.grouped import CloudNetwork

AREA = "{area}"
SUFFIXES = (*weight_files.SUFFIXES, ".t7")
NESTED = ("state_dict", "model_state_dict")  # keys under which a checkpoint holds its weights
COUNTERS = "num_batches_tracked"  # batch norms count training steps; a frozen network does not use them


def identity(weights: str, stage: str, known: Digests) -> str | dict[str, str]:
    """The fingerprint's record of these weights: the seed, the file's digest, or those of all areas' files."""
    if weight_files.seed_of(weights) is not None:
        return weight_files.seed_name(weights)
    digests = {area: known.file(path) for area, path in files(weights, stage).items()}
    return digests if AREA in weights else digests[""]


def require(weights: str, stage: str) -> None:
    """Raise UserError unless the weights are on this machine."""
    if weight_files.seed_of(weights) is None:
        files(weights, stage)


def files(weights: str, stage: str) -> dict[str, Path]:
    """The file of each area, or the only one under "". Raises UserError if there is none."""
    if not weights:
        raise UserError(
            f"extractors.{stage}.weights is not set; give the path of a weights file, which may hold {AREA} "
            "for scenes of S3DIS, or seed:N (random, to try things)"
        )
    if not weights.endswith(SUFFIXES):
        raise UserError(f"weights {weights!r} are not possible: a file ends in {', '.join(SUFFIXES)}")
    if AREA in weights:
        paths = _area_files(weights)
    else:
        paths = {"": Path(weights)} if Path(weights).is_file() else {}
    if not paths:
        raise UserError(f"no weights file {weights}" + (", whatever the area" if AREA in weights else ""))
    return paths


def file_for(weights: str, stage: str, item: str) -> Path:
    """The weights file for an item. Raises ItemError if it has no area, or there is no file for its area."""
    paths = files(weights, stage)
    if AREA not in weights:
        return paths[""]
    area = re.search(r"(?<![A-Za-z0-9])Area_(\d+)[_/]", item)
    if area is None:
        raise ItemError(
            item, f"its id names no area, as Area_<n>_... or Area_<n>/..., to choose the weights {weights} by"
        )
    if area[1] not in paths:
        raise ItemError(item, f"no weights file {weights.replace(AREA, area[1])} for its area {area[1]}")
    return paths[area[1]]


def fill(network: CloudNetwork, path: Path, model: str) -> None:
    """Fill a network from a file. Raises UserError if the file does not fit, to the last key."""
    with weight_files.fitting(path, model):
        state = weight_files.read_state(path, NESTED)
    put(network, state, f"the weights in {path} do not fit {model}")


def put(network: CloudNetwork, state: Mapping[str, Tensor], misfit: str) -> None:
    """Fill a network from tensors under our own or the authors' names.

    A leading `module.` is stripped, and layers that the network does not use are dropped. Raises UserError, which
    begins with `misfit`, for a key that is missing, unknown or of another shape, for a tensor that is stored twice
    with different values, and for one that is not finite.
    """
    expected = {key: value for key, value in network.state_dict().items() if not key.endswith(COUNTERS)}
    given = _named(network, state, misfit)
    complaint = _complaint(given, expected)
    if complaint:
        raise UserError(f"{misfit}: {complaint}")
    network.load_state_dict(given, strict=False)  # the counters are missing


def draw(network: CloudNetwork, seed: int, run: Callable[[Tensor], Any]) -> None:
    """Fill a network with random weights; `run` gives it a cloud (N, 9)."""
    from extractors.backbones import seeded, seeded_clouds

    seeded.initialise(network, seed)
    seeded_clouds.settle(network, seed, run)


def _area_files(weights: str) -> dict[str, Path]:
    """Files that match a path with {area}, by area; the path may contain {area} more than once."""
    first, *rest = (re.escape(part) for part in weights.split(AREA))
    pattern = re.compile(first + r"(?P<area>\d+)" + r"(?P=area)".join(rest))
    paths = glob.glob("*".join(glob.escape(part) for part in weights.split(AREA)))
    matches = {path: pattern.fullmatch(path) for path in sorted(paths) if Path(path).is_file()}
    return {match["area"]: Path(path) for path, match in matches.items() if match}


def _named(network: CloudNetwork, state: Mapping[str, Tensor], misfit: str) -> dict[str, Tensor]:
    """The tensors that the network uses, under its own names."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if name.split(".")[0] in network.unused or name.endswith(COUNTERS):
            continue
        start = next((alias for alias in network.aliases if name.startswith(alias)), "")
        own = network.aliases.get(start, "") + name.removeprefix(start)
        if own in out and not (out[own].shape == value.shape and bool((out[own] == value).all())):
            raise UserError(f"{misfit}: {name} and its other name hold different values")
        out[own] = value
    return out


def _complaint(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first problem of the given tensors compared with the expected ones, "" if they fit."""
    for problem, keys in (
        ("missing", sorted(set(expected) - set(given))),
        ("not known", sorted(set(given) - set(expected))),
        (
            "of another shape",
            sorted(k for k in set(given) & set(expected) if given[k].shape != expected[k].shape),
        ),
        ("not finite", sorted(k for k, v in given.items() if not v.isfinite().all())),
    ):
        if not keys:
            continue
        words = f"{keys[0]} is {problem}"
        if problem == "of another shape":
            words = f"{keys[0]} is {_shape(given[keys[0]])} where {_shape(expected[keys[0]])} is needed"
        return words + (f", and so are {len(keys) - 1} more" if len(keys) > 1 else "")
    return ""


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape))
