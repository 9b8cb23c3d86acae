"""DGCNN on clouds of 10,000 points against its literal form, in CPU seconds and in peak memory.

The literal form is the published network as it is written down: three matrices of all distances, an edge tensor
of all neighbours before each pair of layers, batch norms apart, the global vector repeated for each point. Goal:
about 1 CPU second where it takes 4.4, and a fraction of its memory. Values are compared first; both forms run in
turn, and the ratio is that of medians. Memory is what each form adds to the peak of a process of its own.
Neighbours alone are timed too, by products and by tree. Usage:
python benchmarks/cloud_encoders.py [--repeats 3] [--points 10000]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from extractors.backbones import cloud_weights
from extractors.backbones.dgcnn import Dgcnn
from extractors.backbones.neighbours import nearest

FORMS = ("ours", "literal")


def main() -> None:
    """Compare the values, time both forms in turn, print CPU seconds, memory and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each form")
    parser.add_argument("--points", type=int, default=10_000, help="of the cloud")
    parser.add_argument("--memory-of", choices=[*FORMS, *NEIGHBOURS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(added_megabytes(arguments.memory_of, arguments.points))
        return
    peaks = {form: megabytes(form, arguments.points) for form in (*FORMS, *NEIGHBOURS)}  # before we are large
    network, points = made(arguments.points)
    apart = (network(points).tokens - literal(network, points)).abs().flatten()
    print(
        f"{arguments.points} points: tokens apart by {apart.median():.1e} in the median, {apart.max():.1e} at most"
    )
    forms = {"ours": lambda: network(points).tokens, "literal": lambda: literal(network, points)}
    compare("DGCNN", forms, arguments.repeats, peaks)
    wide = torch.randn(arguments.points, 64, generator=torch.Generator().manual_seed(1))
    for title, given in (("64", wide), ("3", points[:, 6:].contiguous())):
        forms = {name: partial(form, given) for name, form in NEIGHBOURS.items()}
        compare(f"neighbours by {title} channels", forms, arguments.repeats, peaks if title == "64" else {})


def compare(
    title: str, forms: dict[str, Callable[[], Tensor]], repeats: int, peaks: dict[str, float]
) -> None:
    """Print CPU seconds of two forms, ours first, and their memory where it is known."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            before = time.process_time()
            form()
            times[name].append(time.process_time() - before)
    ours_s, plain_s = (statistics.median(found) for found in times.values())
    line = f"{title}: ours {ours_s:.2f} CPU s, literal {plain_s:.2f} CPU s, literal / ours {plain_s / ours_s:.1f}"
    if peaks:
        line += "; ours {:.0f} MB, literal {:.0f} MB".format(*(peaks[name] for name in forms))
    print(line)


def megabytes(form: str, points: int) -> float:
    """Memory that a form adds to the peak of a separate process."""
    command = [sys.executable, __file__, "--memory-of", form, "--points", str(points)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def added_megabytes(form: str, points: int) -> float:
    """Memory that a form adds to the peak of this process, after a small cloud that loads the libraries."""
    small, cloud = made(200), made(points)
    features = torch.randn(points, 64)
    before = 0
    for network, given, wide in ((*small, features[:200]), (*cloud, features)):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if form in NEIGHBOURS:
            NEIGHBOURS[form](wide)
        elif form == "ours":
            network(given)
        else:
            literal(network, given)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def made(points: int) -> tuple[Dgcnn, Tensor]:
    """A network with seeded weights, and a cloud (N, 9) on the surface of a noisy torus, coloured by place."""
    network = Dgcnn().eval().requires_grad_(False)
    cloud_weights.draw(network, 0, network)
    generator = torch.Generator().manual_seed(0)
    around, along = torch.rand(2, points, generator=generator) * 2 * torch.pi
    radius = 0.7 + 0.3 * along.cos() + 0.01 * torch.randn(points, generator=generator)
    xyz = torch.stack([radius * around.cos(), radius * around.sin(), 0.3 * along.sin()], 1)
    unit = (xyz - xyz.amin(0)) / (xyz.amax(0) - xyz.amin(0))
    return network, torch.cat([xyz, 255 * unit, unit], 1)


@torch.inference_mode()
def literal(network: Dgcnn, points: Tensor) -> Tensor:
    """Tokens (100, 512) as the network is written down."""
    x = points.T[None]  # (1, C, N)
    blocks: list[Tensor] = []
    for names in (("conv1", "conv2"), ("conv3", "conv4"), ("conv5",)):
        index = literal_nearest((blocks[-1] if blocks else x[:, 6:])[0].T, network.k)
        x = edges(blocks[-1] if blocks else x, index)
        for name in names:
            x = plain_layer(network, name, x)
        blocks.append(x.amax(-1))
    joint = torch.cat(blocks, 1)
    overall = plain_layer(network, "conv6", joint).amax(-1, keepdim=True)
    x = torch.cat([overall.expand(-1, -1, joint.shape[-1]), joint], 1)
    return F.adaptive_max_pool1d(plain_layer(network, "conv7", x), 100)[0].T


def literal_nearest(features: Tensor, k: int = 20) -> Tensor:
    """The k nearest points of each (N, k) by a matrix of all distances."""
    squares = features.square().sum(1)
    return (2 * features @ features.T - squares[:, None] - squares).topk(k, dim=1).indices


def edges(x: Tensor, index: Tensor) -> Tensor:
    """x (1, C, N) to [x_j - x_i, x_i], (1, 2C, N, k)."""
    near = x[0].T[index]  # (N, k, C)
    own = x[0].T[:, None].expand_as(near)
    return torch.cat([near - own, own], 2).permute(2, 0, 1)[None]


def plain_layer(network: Dgcnn, name: str, x: Tensor) -> Tensor:
    """Convolution, batch norm, LeakyReLU, one after the other."""
    return network.get_submodule(name)(x)  # type: ignore[no-any-return]


def ours_nearest(features: Tensor) -> Tensor:
    """The same a few rows at a time, or by tree."""
    return nearest(features, 20)


NEIGHBOURS: dict[str, Callable[[Tensor], Tensor]] = {
    "our neighbours": ours_nearest,
    "literal neighbours": literal_nearest,
}

if __name__ == "__main__":
    main()
