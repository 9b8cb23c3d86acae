"""Runs the recorded cases of the encoders of point clouds, and of the sampling before them.

Sizes come from the case and its weights. A tensor that is not understood is a failure; a weights file that is not
on this machine is reported and not compared.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from extractors.backbones import cloud_weights
from extractors.backbones.dgcnn import CloudFeatures, Dgcnn
from extractors.backbones.grouped import CloudNetwork
from extractors.backbones.pointnet import WIDTHS, PointNet
from extractors.backbones.pointnet2 import PointNet2, Sampled
from pipeline.errors import UserError
from pipeline.media.clouds.sampling import farthest_points
from trainers.h2arn import hashed
from trainers.verify.cases import Quantity, Recorded, compare, failure, same, skipped
from trainers.verify.tensors import array, read_tensors

Case = Mapping[str, Any]
N = TypeVar("N", bound=CloudNetwork)

ATOL, RTOL = 2e-4, 1e-4  # tolerances of tokens, which the cases give
USUAL, USUAL_SHARE, LARGEST = 0.01, 0.99, 0.25  # absolute, where neighbours near a tie may differ
DATA = Path("../../data/weights")  # from the folder of a case: weights that no case carries


def dgcnn(path: Path, case: Case) -> Iterator[Quantity]:
    """Neighbours by graph, and tokens, of each cloud."""
    recorded = _recorded(path, case)
    network = _filled(Dgcnn(case["k"]), recorded)
    for name in recorded.names("in."):
        computed = network(recorded[f"in.{name}"])
        yield from _graphs(computed, recorded, name)
        yield _close(f"{name}.tokens", computed.tokens, recorded[f"out.{name}.tokens"])
    yield from recorded.left()


def dgcnn_published(path: Path, case: Case) -> Iterator[Quantity]:
    """Tokens of a large cloud under weights that are computed by a rule."""
    recorded = _recorded(path, case)
    network = Dgcnn(case["k"])
    cloud_weights.put(network, _computed_weights(network, case["base_stream"]), "computed weights do not fit")
    (name,) = recorded.names("in.")
    computed = network(recorded[f"in.{name}"]).tokens
    yield from _mostly_close("tokens", computed, recorded["out.tokens"])
    exact = recorded.get("f64.tokens_max_per_channel")
    if exact is not None:
        yield from _mostly_close("tokens, greatest of a channel (float64)", computed.amax(0), exact)
    yield from recorded.left()


def dgcnn_public(path: Path, case: Case) -> Iterator[Quantity]:
    """Tokens under the public weights of each area whose file is on this machine."""
    recorded = _recorded(path, case)
    here = 0
    for model in case["models"]:
        area = f"area{model['area']}"
        points, expected = recorded[f"in.{area}"], recorded[f"out.{area}.tokens"]
        file = _file_with(model["sha256"], [path.parent / model["file"], *_files(path.parent / DATA)])
        if file is None:
            yield skipped(f"{area}.tokens", f"{model['file']} is not on this machine")
            continue
        here += 1
        network = Dgcnn(case["k"])
        cloud_weights.fill(network, file, "dgcnn")
        yield _close(f"{area}.tokens", network.eval()(points).tokens, expected)
    if not here:
        yield skipped("models", "none of the case's weights files is on this machine: nothing was compared")
    yield from recorded.left()


def pointnet(path: Path, case: Case) -> Iterator[Quantity]:
    """Tokens and transforms of each batch."""
    recorded = _recorded(path, case)
    reference = PointNet(case["d_pcd"], case["feature_transform"], case["input_dim"])
    network = _filled(reference, recorded)
    for name in recorded.names("in."):
        clouds = [network(cloud) for cloud in recorded[f"in.{name}"]]
        computed: dict[str, list[Tensor | None]] = {
            "tokens": [cloud.tokens for cloud in clouds],
            "transform": [cloud.transform for cloud in clouds],
        }
        for output in recorded.names(f"out.{name}."):
            expected = recorded[f"out.{name}.{output}"]
            if output not in computed and expected.shape[1:] == (WIDTHS[0], WIDTHS[0]):
                computed[output] = [cloud.feature_transform for cloud in clouds]
            mine = [value for value in computed.get(output, []) if value is not None]
            if mine:
                yield _close(f"{name}.{output}", torch.stack(mine), expected)
            else:
                yield failure(f"{name}.{output}", "this quantity is not understood")
    yield from recorded.left()


def pointnet2(path: Path, case: Case) -> Iterator[Quantity]:
    """Sampled points and groups of each level, and tokens, from the recorded starts."""
    recorded = _recorded(path, case)
    network = _filled(PointNet2(case["input_dim"]), recorded)
    for name in recorded.names("in."):
        levels = network(recorded[f"in.{name}"], case["start_indices_per_level"])
        yield from _levels(levels, recorded)
        yield _close("tokens", levels[-1].features, recorded["out.tokens"])
    yield from recorded.left()


def sampling(path: Path, case: Case) -> Iterator[Quantity]:
    """Sampled points of each cloud, in order."""
    recorded = _recorded(path, case)
    for name in sorted(recorded.names("")):
        tag, _, what = name.rpartition(".")
        if what != "xyz":
            continue
        xyz, expected = array(recorded[name]), array(recorded[f"{tag}.indices"])
        clouds = xyz if xyz.ndim == 3 else xyz[None]
        computed = [farthest_points(cloud, expected.shape[-1]) for cloud in clouds]
        yield _equal(f"{tag}.indices", np.stack(computed) if xyz.ndim == 3 else computed[0], expected)
    yield from recorded.left()


KINDS: dict[str, Callable[[Path, Case], Iterator[Quantity]]] = {
    "dgcnn_encoder": dgcnn,
    "dgcnn_encoder_published_size": dgcnn_published,
    "dgcnn_public_weights": dgcnn_public,
    "pointnet_encoder": pointnet,
    "pointnet2_msg_encoder": pointnet2,
    "farthest_point_sampling": sampling,
}
"""Kind of a case -> the function that runs it."""


def _computed_weights(network: Dgcnn, base_stream: int) -> dict[str, Tensor]:
    """The weights of a network by the rule of the cases, which counts the keys of the authors' layout."""
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    again = {
        alias + key.removeprefix(own): shape
        for alias, own in network.aliases.items()
        for key, shape in shapes.items()
        if key.startswith(own)
    }
    state = hashed.state(shapes | again, base_stream)
    return {key: value for key, value in state.items() if key in shapes}


def _recorded(path: Path, case: Case) -> Recorded[Tensor]:
    """The tensors beside a case, which may have been renamed."""
    names = [path.with_suffix(".safetensors"), path.parent / f"{case.get('case')}.safetensors"]
    computed = next((name for name in names if name.is_file()), None)
    if computed is None:
        raise UserError(f"there is no {names[0]}")
    return Recorded(read_tensors(computed))


def _filled(network: N, recorded: Recorded[Tensor]) -> N:
    """The network with the recorded weights, all of them."""
    cloud_weights.put(network, recorded.under("state."), "the recorded weights do not fit")
    return network.eval()


def _graphs(computed: CloudFeatures, recorded: Recorded[Tensor], name: str) -> Iterator[Quantity]:
    """The neighbours of each point in each graph, as sets."""
    for number, graph in enumerate(computed.graphs, 1):
        expected = recorded.get(f"out.{name}.knn{number}")
        if expected is not None:
            yield _equal(f"{name}.knn{number}", array(graph.sort(1).values), array(expected.sort(1).values))


def _levels(levels: list[Sampled], recorded: Recorded[Tensor]) -> Iterator[Quantity]:
    """The sampled points and the groups of each level that are recorded."""
    for number, level in enumerate(levels, 1):
        indices = {f"fps{number}": level.samples}
        indices |= {f"group{number}_{scale}": groups for scale, groups in enumerate(level.groups)}
        for name, computed in indices.items():
            expected = recorded.get(f"out.{name}")
            if expected is not None:
                yield _equal(name, array(computed), array(expected))


def _close(name: str, computed: Tensor, expected: Tensor) -> Quantity:
    """Every value within its own tolerance; the error is in shares of it."""
    if computed.shape != expected.shape:
        return compare(name, computed, expected, ATOL)
    share = (computed - expected).abs() / (ATOL + RTOL * expected.abs())
    return Quantity(name, _finite(share.max()), 1.0, "in shares of 2e-4 + 1e-4 of the value")


def _mostly_close(name: str, computed: Tensor, expected: Tensor) -> Iterator[Quantity]:
    """Nearly all values within a tolerance, and all within a larger one; both are absolute."""
    if computed.shape != expected.shape:
        yield compare(name, computed, expected, LARGEST)
        return
    apart = (computed - expected).abs()
    usual = torch.quantile(apart, USUAL_SHARE)
    yield Quantity(f"{name}, all but 1 %", _finite(usual), USUAL, "absolute")
    yield Quantity(f"{name}, all", _finite(apart.max()), LARGEST, "absolute")


def _finite(value: Tensor) -> float:
    return value.item() if value.isfinite() else math.inf


def _equal(name: str, computed: ArrayLike, expected: NDArray[Any]) -> Quantity:
    """Whether indices are the recorded ones to the last; the error is the share of those that are not."""
    mine = np.asarray(computed)
    if mine.shape != expected.shape:
        return same(name, mine.shape, expected.shape)
    return Quantity(name, float((mine != expected).mean()), 0.0, "share of indices that differ")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _file_with(digest: str, candidates: Sequence[Path]) -> Path | None:
    """The file of that SHA-256."""
    for path in candidates:
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return path
    return None
