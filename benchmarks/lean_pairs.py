"""Pairs that LEAN scores in a second, compared with one pair at a time and with its matrix products alone.

Run `python benchmarks/lean_pairs.py`; the forms alternate in one process and are measured in CPU seconds, so that a
busy machine slows none of them more than another. There are two plain forms: one goes through nodes, pairs of nodes
and hyperedges as the equations do, one treats the nodes of a pair as a matrix. `--full` scores a split of 1000 x 1000
and takes a training step, and prints the greatest memory of the process.
Axes: Q captions, V videos, n triples, m frames, D hidden size.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.lean.config import LeanConfig
from trainers.lean.layer import LeanLayer
from trainers.lean.method import Lean, by_count
from trainers.lean.model import LeanNetwork
from trainers.method import Encoded

FASTER, NEAR = 50.0, 3.0  # goals: times the plain form, times the products alone
SLOPE = 0.2
FEW = 24  # pairs of the plain forms

Members = list[list[int]]
"""The nodes of each hyperedge of a pair."""

Layered = tuple[Tensor, Tensor, Tensor]
LayerForm = Callable[[LeanLayer, Tensor, Members, Tensor, int], Layered]
Form = Callable[[Lean, Encoded, Encoded], object]


def made(method: Lean, texts: int, videos: int) -> tuple[Encoded, Encoded]:
    """Random captions of 1 to 8 triples, as many of each, and random videos."""
    random = torch.Generator().manual_seed(0)
    c = method.config
    count = torch.arange(texts) % c.max_triples + 1
    triples = torch.randn(texts, c.max_triples, c.hidden, generator=random)
    triples *= (torch.arange(c.max_triples) < count[:, None])[..., None]
    top = torch.stack([torch.randperm(c.frames, generator=random)[:3].sort().values for _ in range(videos)])
    nodes = torch.randn(videos, 1 + c.frames, c.hidden, generator=random)
    return {"triples": triples, "count": count}, {"nodes": nodes, "top": top}


def starts(layer: LeanLayer, x: Tensor, members: Members, slots: int) -> Tensor:
    """Eq. 9-10 of one pair: hyperedges (K, D)."""
    visual = len(members[3]) - 1
    padded = torch.cat([x, x.new_zeros(slots - len(x), x.shape[1])])
    shown = torch.zeros_like(padded[:visual])
    shown[members[1]] = x[members[1]]
    edges = [
        F.leaky_relu(padded.flatten() @ layer.edge_global.weight.T, SLOPE),
        F.leaky_relu(shown.flatten() @ layer.edge_visual.weight.T, SLOPE),
        F.leaky_relu(padded[visual:].flatten() @ layer.edge_text.weight.T, SLOPE),
    ]
    for triple in x[visual:]:
        edges.append(F.normalize((triple @ x[:visual].T) @ x[:visual], dim=-1, eps=1e-12))
    return torch.stack(edges)


def matrix_layer(layer: LeanLayer, x: Tensor, members: Members, before: Tensor, slots: int) -> Layered:
    """A layer of one pair on the matrix of its nodes: nodes (N, D), attention (K,), hyperedges (K, D)."""
    others = (x.sum(0) - x) / (len(x) - 1)
    x = F.relu(others @ layer.neighbour.weight.T + x @ layer.self.weight.T)
    e = starts(layer, x, members, slots) + before
    left, right = x @ layer.attn_left.weight.T, x @ layer.attn_right.weight.T
    s = F.leaky_relu(left[:, None] + right[None], SLOPE) @ layer.attn_out.weight
    alpha = torch.stack([s[edge][:, edge].mean() for edge in members]).softmax(0)
    incidence = matrix(x, members)
    x = (incidence * alpha) @ e / (incidence @ alpha)[:, None] + x
    if layer.last:
        return x, alpha, e
    weighed = x * torch.exp((-layer.gamma * x).clamp(-10, 10))
    means = torch.stack([weighed[edge].mean(0) for edge in members])
    return x, alpha, F.relu(means @ layer.edge_refine.weight.T)


def literal_layer(layer: LeanLayer, x: Tensor, members: Members, before: Tensor, slots: int) -> Layered:
    """The same, a node, a pair of nodes and a hyperedge at a time."""
    every = range(len(x))
    means = [torch.stack([x[j] for j in every if j != i]).mean(0) for i in every]
    x = torch.stack([F.relu(layer.neighbour.weight @ means[i] + layer.self.weight @ x[i]) for i in every])
    e = starts(layer, x, members, slots) + before
    left = [layer.attn_left.weight @ row for row in x]
    right = [layer.attn_right.weight @ row for row in x]
    logits = []
    for edge in members:
        pairs = [F.leaky_relu(left[i] + right[j], SLOPE) @ layer.attn_out.weight for i in edge for j in edge]
        logits.append(torch.stack(pairs).mean())
    alpha = torch.stack(logits).softmax(0)
    own = [[k for k, edge in enumerate(members) if i in edge] for i in every]
    got = [sum(alpha[k] * e[k] for k in own[i]) / sum(alpha[k] for k in own[i]) for i in every]
    x = torch.stack([got[i] + x[i] for i in every])
    if layer.last:
        return x, alpha, e
    weighed = [row * torch.exp((-layer.gamma * row).clamp(-10, 10)) for row in x]
    sums = [torch.stack([weighed[i] for i in edge]).mean(0) for edge in members]
    return x, alpha, torch.stack([F.relu(layer.edge_refine.weight @ row) for row in sums])


def matrix(x: Tensor, members: Members) -> Tensor:
    """Incidence (N, K) of one pair."""
    incidence = x.new_zeros(len(x), len(members))
    for number, edge in enumerate(members):
        incidence[edge, number] = 1
    return incidence


def plain_score(
    form: LayerForm, net: LeanNetwork, nodes: Tensor, top: list[int], triples: Tensor, slots: int
) -> Tensor:
    """The score of one pair as the equations read."""
    visual, n = len(nodes), len(triples)
    every = list(range(visual + n))
    members = [every, [0, *(1 + frame for frame in top)], every[visual:]]
    members += [[*range(visual), visual + j] for j in range(n)]
    x, edges = torch.cat([nodes, triples]), nodes.new_zeros(len(members), nodes.shape[1])
    for layer in net.layers:
        x, alpha, edges = form(layer, x, members, edges, slots)
    incidence = matrix(x, members)
    scale = torch.diag((incidence @ alpha) ** -0.5)
    step = scale @ incidence @ torch.diag(alpha / incidence.sum(0)) @ incidence.T @ scale
    hidden = F.relu(step @ x @ net.gcn.weight.T)
    z = step @ hidden @ net.gcn_mu.weight.T
    beta = (torch.tanh(z @ net.readout.weight.T) @ net.readout.vector).softmax(0)
    return F.leaky_relu(torch.sigmoid(beta @ z) @ net.classifier.weight, SLOPE) * net.log_scale.exp()


def plain(form: LayerForm, method: Lean, texts: Encoded, items: Encoded) -> Tensor:
    """Scores (Q, V), one pair at a time."""
    slots = 1 + method.config.frames + method.config.max_triples
    tops = items["top"].tolist()
    rows = []
    for triples, count in zip(texts["triples"], texts["count"].tolist(), strict=True):
        sides = zip(items["nodes"], tops, strict=True)
        rows += [
            plain_score(form, method.network, nodes, top, triples[:count], slots) for nodes, top in sides
        ]
    return torch.stack(rows).view(len(texts["count"]), -1)


class Products:
    """The products with weights that scoring cannot do without, on inputs that are there already.

    Of the visual hyperedge these are V and three frames; the method multiplies all slots.
    """

    def __init__(self, method: Lean, texts: Encoded, items: Encoded) -> None:
        self.method, self.work = method, []
        for where, group in by_count(texts):
            n = group.shape[1]
            for part, tile in method.blocks(len(where), len(items["nodes"]), n, torch.device("cpu")):
                self.work.append((part.stop - part.start, tile.stop - tile.start, n))
        c = method.config
        pairs = max(q * v for q, v, _ in self.work)
        self.rows = torch.randn(pairs, (1 + c.frames + c.max_triples) * c.hidden)
        self.members = torch.randn(c.hidden, 4 * c.hidden)

    def __call__(self, method: Lean, texts: Encoded, items: Encoded) -> None:
        """All of them once."""
        for q, v, n in self.work:
            self.block(q, v, n)

    def block(self, q: int, v: int, n: int) -> None:
        """Those of a block of q captions of n triples and v videos."""
        net, c = self.method.network, self.method.config
        pairs, nodes, kinds = q * v, 1 + c.frames + n, 2 + n
        rows = self.rows.view(-1, c.hidden)
        for number, layer in enumerate(net.layers):
            if number:
                F.linear(rows[: pairs * nodes], layer.self.weight)
                F.linear(rows[:pairs], layer.neighbour.weight)
            else:
                F.linear(rows[: v * (1 + c.frames) + q * n], layer.self.weight)
            F.linear(self.rows[:pairs, : nodes * c.hidden], layer.edge_global.weight[:, : nodes * c.hidden])
            F.linear(self.rows[:pairs, : n * c.hidden], layer.edge_text.weight[:, : n * c.hidden])
            F.linear(self.rows[:pairs, : 4 * c.hidden], self.members)
            attention = torch.cat([layer.attn_left.weight, layer.attn_right.weight])
            F.linear(rows[: pairs * nodes], attention)
            if not layer.last:
                F.linear(rows[: pairs * kinds], layer.edge_refine.weight)
        F.linear(rows[: pairs * kinds], net.gcn.weight)
        F.linear(rows[: pairs * kinds], net.gcn_mu.weight)
        F.linear(rows[:pairs], net.gcn_mu.weight)


def in_blocks(method: Lean, texts: Encoded, items: Encoded) -> Tensor:
    """The product's scores (Q, V)."""
    return method.scores(texts, items)


def seconds(form: Form, method: Lean, sides: tuple[Encoded, Encoded]) -> float:
    """CPU seconds of one call, over all threads."""
    start = time.process_time()
    form(method, *sides)
    return time.process_time() - start


def compare(method: Lean, args: argparse.Namespace) -> None:
    """Print pairs a second of each form, and the ratios of rounds in which they alternate."""
    many, few = made(method, args.texts, args.videos), made(method, 8, FEW // 8)
    products, pairs = Products(method, *many), args.texts * args.videos
    forms: dict[str, tuple[Form, tuple[Encoded, Encoded], int]] = {
        "node by node": (partial(plain, literal_layer), few, FEW),
        "pair by pair": (partial(plain, matrix_layer), few, FEW),
        "in blocks": (in_blocks, many, pairs),
        "products alone": (products, many, pairs),
    }
    for name in ("node by node", "pair by pair"):
        torch.testing.assert_close(
            forms[name][0](method, *few), in_blocks(method, *few), rtol=1e-3, atol=1e-3
        )
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(args.rounds):
        for name, (form, sides, count) in forms.items():
            times[name].append(seconds(form, method, sides) / count)
    for name, column in times.items():
        ratio = statistics.median(a / b for a, b in zip(column, times["in blocks"], strict=True))
        print(
            f"{name:15} {1 / statistics.median(column):9.0f} pairs a CPU second, {ratio:8.2f} times the blocks' time"
        )
    print(f"goals: node by node at least {FASTER:.0f} times, products alone at least {1 / NEAR:.2f} times")
    print(f"medians of {args.rounds} rounds, hidden size {args.hidden}")


def full(method: Lean, size: int) -> None:
    """Print time and memory of a training step of 16 pairs and of a split of `size` x `size`."""
    c = method.config
    batch = {
        "triples": torch.randn(16, c.max_triples, 768), "count": torch.arange(16) % c.max_triples + 1,
        "frames": torch.randn(16, c.frames, 4096), "top": torch.tensor([[1, 4, 7]]).expand(16, -1),
        "words": torch.zeros(16, c.max_triples, 1, 2), "video": torch.arange(16), "place": torch.arange(16),
    }  # fmt: skip
    for name in ("first", "second"):
        start = time.process_time()
        torch.stack(list(method.losses(batch, 0).values())).sum().backward()
        print(f"{name} training step {time.process_time() - start:.2f} CPU s, at most {_gigabytes():.2f} GB")
    sides, start, wall = made(method, size, size), time.process_time(), time.perf_counter()
    with torch.inference_mode():
        method.scores(*sides)
    used, wall = time.process_time() - start, time.perf_counter() - wall
    print(f"{size} x {size}: {used:.0f} CPU s, {wall:.0f} s, at most {_gigabytes():.2f} GB")


def _gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Compare, or score everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", type=int, nargs="?", const=1000, default=0, metavar="SIZE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = LeanConfig(hidden=args.hidden, latent=args.hidden)
    method = Lean(config, visual_dim=4096, text_dim=768)
    if args.full:
        full(method, args.full)
        return
    with torch.inference_mode():
        compare(method, args)


if __name__ == "__main__":
    main()
