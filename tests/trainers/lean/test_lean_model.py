"""LEAN's scores against a slow twin of one pair, its invariances, its switches, its behaviour at the edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from trainers.lean import layer as layers
from trainers.lean.config import LeanConfig
from trainers.lean.layer import LeanLayer
from trainers.lean.method import Lean, by_count
from trainers.lean.model import LeanNetwork
from trainers.lean.replacements import Replacement
from trainers.measure.scoring import tiles
from trainers.method import Encoded

SMALL = {
    "hidden": 6,
    "latent": 5,
    "attention_hidden": 4,
    "frames": 5,
    "max_triples": 4,
    "layers": 3,
    "batch_size": 4,
}
TEXT, VISUAL = 7, 9
COUNTS = [3, 1, 4, 3, 2, 1]
TOPS = [[0, 2, 3], [4, 1, 1], [2, 3, 4], [0, 1, 2], [1, 2, 3]]


def made(**changes: Any) -> Lean:
    torch.manual_seed(0)
    method = Lean(LeanConfig(**{**SMALL, **changes}), VISUAL, TEXT).double()
    for name, p in method.named_parameters():
        if not name.endswith("gamma"):
            p.data = 0.4 * torch.randn_like(p)
    return method


def text_batch(counts: list[int] = COUNTS, most: int = 4) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    count = torch.tensor(counts)
    triples = torch.randn(len(counts), most, TEXT, generator=draw, dtype=torch.float64)
    kept = torch.arange(most) < count[:, None]
    words = torch.zeros(len(counts), most, 2, 2, dtype=torch.int32)
    return {"triples": triples * kept[..., None], "count": count, "words": words}


def video_batch(frames: int = 5) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    rows = torch.rand(len(TOPS), frames, VISUAL, generator=draw, dtype=torch.float64)
    return {"frames": rows, "top": torch.tensor(TOPS)}


def encoded(method: Lean) -> tuple[Encoded, Encoded]:
    """Both sides in float64, which `encode_*` would leave."""
    texts, videos = text_batch(), video_batch()
    kept = torch.arange(texts["triples"].shape[1]) < texts["count"][:, None]
    texts["triples"] = method.network.texts(texts["triples"]) * kept[..., None]
    return texts, {"nodes": method.network.videos(videos["frames"]), "top": videos["top"]}


def leaky(value: Tensor) -> Tensor:
    return torch.where(value > 0, value, 0.2 * value)


class Twin:
    """One pair, one node and one hyperedge at a time, as the page of LEAN reads."""

    def __init__(self, net: LeanNetwork, text: Tensor, video: Tensor, top: list[int]) -> None:
        c, self.net, self.m = net.config, net, len(video)
        self.slots = c.max_triples
        frames = [net.visual_proj.weight @ row + net.visual_proj.bias for row in video]
        words = [net.text_proj.weight @ row + net.text_proj.bias for row in text]
        self.x = [sum(frames) / len(frames), *frames, *words]
        self.n, self.size = len(words), len(self.x)
        visual = list(range(1 + self.m))
        texts = [1 + self.m + j for j in range(self.n)]
        self.edges = [visual + texts, [0, *sorted({1 + i for i in top})], texts]
        self.edges += [[*visual, word] for word in texts]
        kinds = ["global", "visual", "text", *["cross"] * self.n]
        self.there = [kind not in c.without for kind in kinds]
        self.before = [torch.zeros(c.hidden, dtype=torch.float64) for _ in self.edges]
        for layer in net.layers:
            self.layer(layer)

    def slot_sum(self, weight: Tensor, members: dict[int, Tensor], slots: int) -> Tensor:
        zero = torch.zeros_like(self.x[0])
        return leaky(weight @ torch.cat([members.get(slot, zero) for slot in range(slots)]))

    def layer(self, p: LeanLayer) -> None:
        m, x = self.m, []
        for i in range(self.size):
            others = sum(self.x[j] for j in range(self.size) if j != i) / (self.size - 1)
            x.append((p.neighbour.weight @ others + p.self.weight @ self.x[i]).relu())
        visual = {i: x[i] for i in self.edges[1]}
        texts = {i - 1 - m: x[i] for i in self.edges[2]}
        e = [
            self.slot_sum(p.edge_global.weight, dict(enumerate(x)), 1 + m + self.slots),
            self.slot_sum(p.edge_visual.weight, visual, 1 + m),
            self.slot_sum(p.edge_text.weight, texts, self.slots),
        ]
        for word in self.edges[2]:
            cross = sum((x[word] @ x[i]) * x[i] for i in range(1 + m))
            e.append(cross / cross.norm().clamp_min(1e-12))
        e = [one + more for one, more in zip(e, self.before, strict=True)]
        logits = []
        for members, there in zip(self.edges, self.there, strict=True):
            pairs = [
                p.attn_out.weight @ leaky(p.attn_left.weight @ x[i] + p.attn_right.weight @ x[j])
                for i in members
                for j in members
            ]
            logits.append(sum(pairs) / len(pairs) if there else torch.tensor(-math.inf, dtype=torch.float64))
        self.alpha = torch.stack(logits).softmax(0)
        self.x = []
        for i in range(self.size):
            own = [k for k, members in enumerate(self.edges) if i in members and self.there[k]]
            self.x.append(sum(self.alpha[k] * e[k] for k in own) / sum(self.alpha[k] for k in own) + x[i])
        if not p.last:
            weighed = [row * (-p.gamma * row).clamp(-10, 10).exp() for row in self.x]
            self.before = [
                (p.edge_refine.weight @ (sum(weighed[i] for i in members) / len(members))).relu()
                for members in self.edges
            ]

    def latent(self) -> tuple[Tensor, Tensor]:
        net, size = self.net, self.size
        degree = [
            sum(self.alpha[k] for k, e in enumerate(self.edges) if i in e and self.there[k])
            for i in range(size)
        ]
        a = torch.zeros(size, size, dtype=torch.float64)
        for i in range(size):
            for j in range(size):
                shared = [k for k, e in enumerate(self.edges) if i in e and j in e and self.there[k]]
                flow = sum(self.alpha[k] / len(self.edges[k]) for k in shared)
                a[i, j] = flow / (degree[i] * degree[j]).sqrt()
        hidden = (a @ torch.stack(self.x) @ net.gcn.weight.T).relu()
        return a @ hidden @ net.gcn_mu.weight.T, a @ hidden @ net.gcn_logsigma.weight.T

    def score(self, eps: Tensor | None = None) -> Tensor:
        mu, log_sigma = self.latent()
        z = mu if eps is None else mu + eps[: self.size] * log_sigma.exp()
        beta = torch.stack(
            [self.net.readout.vector @ (self.net.readout.weight @ row).tanh() for row in z]
        ).softmax(0)
        g = sum(b * row for b, row in zip(beta, z, strict=True)).sigmoid()
        return leaky(self.net.classifier.weight @ g) * self.net.log_scale.exp()

    def divergence(self) -> Tensor:
        mu, log_sigma = self.latent()
        normal = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
        return torch.distributions.kl_divergence(
            torch.distributions.Normal(mu, log_sigma.exp()), normal
        ).mean()


def twins(method: Lean, texts: int = len(COUNTS), videos: int = len(TOPS)) -> list[list[Twin]]:
    batch = {**text_batch(), **video_batch()}
    return [
        [
            Twin(method.network, batch["triples"][q, : COUNTS[q]], batch["frames"][v], TOPS[v])
            for v in range(videos)
        ]
        for q in range(texts)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "without", [(), ("global",), ("text",), ("visual",), ("cross",), ("visual", "cross")]
)
@torch.no_grad()
def test_scores_and_attention_are_those_of_a_twin_that_loops(without: tuple[str, ...]) -> None:
    method = made(without=without, layers=2)
    expected = twins(method)
    scores = torch.stack([torch.stack([twin.score() for twin in row]) for row in expected])
    torch.testing.assert_close(method.scores(*encoded(method)), scores)
    said = method.explain(*encoded(method))
    alpha = expected[1][2].alpha
    torch.testing.assert_close(said["edge_weights"][1, 2, :4], alpha)
    assert said["edge_weights"].shape == (6, 5, 3 + 4) and said["node_weights"].shape == (6, 5, 6 + 4)


def test_drawn_scores_divergence_and_gradients_are_those_of_the_twin() -> None:
    method = made()
    eps = torch.randn(3, 2, 10, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    texts, items = encoded(method)
    texts, items = (
        {name: rows[:count] for name, rows in side.items()} for side, count in ((texts, 3), (items, 2))
    )
    found = method.pairs(texts, items, eps)
    (found.scores.square().sum() + found.divergence.sum()).backward()
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    rows = twins(method, 3, 2)
    scores = torch.stack(
        [torch.stack([t.score(eps[q, v]) for v, t in enumerate(row)]) for q, row in enumerate(rows)]
    )
    divergence = torch.stack([torch.stack([t.divergence() for t in row]) for row in rows])
    torch.testing.assert_close(found.scores, scores)
    torch.testing.assert_close(found.divergence, divergence)
    (scores.square().sum() + divergence.sum()).backward()
    expected = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys() == dict(method.named_parameters()).keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_explained_weights_sum_to_one_and_stop_at_the_last_triple() -> None:
    method = made()
    said = method.explain(*encoded(method))
    for name, offset in (("edge_weights", 3), ("node_weights", 6)):
        torch.testing.assert_close(said[name].sum(-1), torch.ones(6, 5, dtype=torch.float64))
        for q, count in enumerate(COUNTS):
            assert (said[name][q, :, offset + count :] == 0).all() and (
                said[name][q, :, : offset + count] > 0
            ).all()
    assert torch.equal(said["top"][3, 1], torch.tensor([4, 1, 1]))


@pytest.mark.parametrize(
    "changes", [{}, {"layer": "hgnn"}, {"layer": "gcn"}, {"layer": "gat"}, {"hypergraph": False}]
)
@torch.no_grad()
def test_score_of_a_pair_depends_on_no_other_pair(changes: dict[str, Any]) -> None:
    method = made(**changes)
    texts, items = encoded(method)
    every = method.scores(texts, items)
    for q, v in ((0, 0), (2, 1), (5, 4)):
        one = {name: rows[q : q + 1] for name, rows in texts.items()}
        alone = method.scores(one, {name: rows[v : v + 1] for name, rows in items.items()})
        torch.testing.assert_close(alone, every[q : q + 1, v : v + 1])


@torch.no_grad()
def test_padding_beyond_the_triples_is_never_read() -> None:
    method = made()
    texts, items = encoded(method)
    expected = method.scores(texts, items)
    beyond = torch.arange(4) >= texts["count"][:, None]
    texts["triples"] = texts["triples"].masked_fill(beyond[..., None], 1e6)
    assert torch.equal(method.scores(texts, items), expected)


@pytest.mark.parametrize("pairs", [1, 4, 7, 10**6])
@torch.no_grad()
def test_blocks_of_any_size_give_the_same_scores(pairs: int) -> None:
    method = made()
    texts, items = encoded(method)
    expected = method.scores(texts, items)
    method.work_bytes = pairs * method.pair_bytes(4)
    torch.testing.assert_close(method.scores(texts, items), expected)


@torch.no_grad()
def test_node_attention_in_parts_is_that_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right, out = torch.randn(3, 5, 6, 4), torch.randn(3, 5, 6, 4), torch.randn(4)
    whole = layers.node_attention(left, right, out)
    monkeypatch.setattr(layers, "ATTENTION_FLOATS", 2 * 6 * 6 * 4)
    torch.testing.assert_close(layers.node_attention(left, right, out), whole)


@torch.no_grad()
def test_frames_may_be_permuted_with_their_slots_and_not_without() -> None:
    method = made()
    texts, items = encoded(method)
    expected = method.scores(texts, items)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = {
        "nodes": torch.cat([items["nodes"][:, :1], items["nodes"][:, 1 + order]], 1),
        "top": order.argsort()[items["top"]],
    }
    assert not torch.allclose(method.scores(texts, moved), expected)
    for layer in method.network.layers:
        for name, count in (("edge_global", 10), ("edge_visual", 6)):
            weight = getattr(layer, name).weight
            slots = weight.unflatten(1, (count, -1))
            slots[:, 1:6] = slots[:, 1 + order].clone()
    torch.testing.assert_close(method.scores(texts, moved), expected)


@torch.no_grad()
def test_the_order_of_top_frames_and_a_repeated_one_change_nothing() -> None:
    method = made()
    texts, items = encoded(method)
    other = {**items, "top": torch.tensor([[3, 0, 2], [4, 4, 1], [4, 3, 2], [2, 1, 0], [3, 2, 1]])}
    assert torch.equal(method.scores(texts, items), method.scores(texts, other))


@torch.no_grad()
def test_all_frames_may_be_top_frames() -> None:
    method = made(frames=3)
    texts, _ = encoded(method)
    videos = video_batch(3)
    top = torch.tensor([[0, 1, 2]] * 5)
    scores = method.scores(texts, {"nodes": method.network.videos(videos["frames"]), "top": top})
    twin = Twin(method.network, text_batch()["triples"][0, :3], videos["frames"][1], [0, 1, 2])
    torch.testing.assert_close(scores[0, 1], twin.score())


@torch.no_grad()
def test_without_the_hypergraph_network_each_node_stands_for_itself() -> None:
    method = made(hypergraph=False)
    net = method.network
    texts, items = encoded(method)
    assert not any(name.startswith("layers") for name in net.state_dict())
    nodes = torch.cat([items["nodes"][2], texts["triples"][0, :3]])
    z = (nodes @ net.gcn.weight.T).relu() @ net.gcn_mu.weight.T
    beta = ((z @ net.readout.weight.T).tanh() @ net.readout.vector).softmax(0)
    expected = leaky((beta @ z).sigmoid() @ net.classifier.weight) * net.log_scale.exp()
    torch.testing.assert_close(method.scores(texts, items)[0, 2], expected)
    assert (method.explain(texts, items)["edge_weights"] == 0).all()


def batch() -> dict[str, Tensor]:
    texts, videos = text_batch(COUNTS[:5]), video_batch()
    found = {**texts, **videos, "video": torch.tensor([7, 3, 7, 1, 2]), "place": torch.arange(5)}
    return {name: rows.float() if rows.is_floating_point() else rows for name, rows in found.items()}


@pytest.mark.parametrize(
    "changes",
    [{}, {"variational": False}, {"hypergraph": False}, {"without": ("global",)}, {"layers": 1}]
    + [{"layer": kind} for kind in ("hgnn", "gcn", "gat")],
)
def test_every_parameter_gets_a_finite_gradient_also_under_bfloat16(changes: dict[str, Any]) -> None:
    for precision in (torch.float32, torch.bfloat16):
        method = made(**changes).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            terms = method.losses(batch(), 0)
        assert set(terms) == {"t2v", "v2t"} | ({"kl"} if method.config.variational else set())
        torch.stack([term.float() for term in terms.values()]).sum().backward()
        for name, p in method.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), (name, precision)


def test_noise_follows_the_seed_and_training_without_the_variational_part_draws_none() -> None:
    values = []
    for seed in (1, 1, 2):
        method = made().float()
        torch.manual_seed(seed)
        values.append(method.losses(batch(), 0)["t2v"].item())
    assert values[0] == values[1] != values[2]
    method = made(variational=False).float()
    one, two = (method.losses(batch(), 0)["t2v"].item() for _ in range(2))
    assert one == two
    assert "gcn_logsigma.weight" not in method.network.state_dict()


def test_replaced_layers_are_torch_geometrics() -> None:
    for kind, name in (("hgnn", "HypergraphConv"), ("gcn", "GCNConv"), ("gat", "GATConv")):
        method = made(layer=kind)
        assert all(isinstance(layer, Replacement) for layer in method.network.layers)
        assert type(method.network.layers[0].network).__name__ == name


def test_published_network_has_its_parameters_under_the_names_of_its_page() -> None:
    with torch.device("meta"):
        network = LeanNetwork(LeanConfig(), 4096, 768)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes["layers.0.edge_global.weight"] == (512, 19 * 512)
    assert shapes["layers.0.edge_visual.weight"] == (512, 11 * 512)
    assert shapes["layers.1.edge_text.weight"] == (512, 8 * 512)
    assert shapes["layers.0.attn_out.weight"] == (64,) and shapes["readout.vector"] == (512,)
    assert shapes["log_scale"] == shapes["layers.0.gamma"] == ()
    assert "layers.0.edge_refine.weight" in shapes and "layers.1.edge_refine.weight" not in shapes


@torch.no_grad()
def test_attention_that_rounds_to_zero_gives_no_nan() -> None:
    method = made()
    for layer in method.network.layers:
        layer.attn_out.weight *= 1e6
    assert method.scores(*encoded(method)).isfinite().all()


@torch.no_grad()
def test_cheap_scores_are_cosines_of_the_mean_start_values() -> None:
    method = made()
    texts, items = encoded(method)
    mean = texts["triples"][0, :3].mean(0)
    video = items["nodes"][1, 1:].mean(0)
    cosine = torch.nn.functional.cosine_similarity(mean, video, dim=0)
    torch.testing.assert_close(method.cheap_scores(texts, items)[0, 1], cosine)


def test_captions_are_grouped_by_their_triples_without_padding() -> None:
    texts = text_batch()
    groups = {rows.shape[1]: where.tolist() for where, rows in by_count(texts)}
    assert groups == {1: [1, 5], 2: [4], 3: [0, 3], 4: [2]}


@pytest.mark.parametrize(
    ("texts", "items", "pairs"), [(7, 5, 6), (1, 9, 4), (9, 1, 4), (3, 3, 1), (40, 2, 50), (4, 4, 99)]
)
def test_blocks_hold_every_pair_once_and_no_more_than_they_may(texts: int, items: int, pairs: int) -> None:
    seen = torch.zeros(texts, items)
    for rows, columns in tiles(texts, items, pairs):
        assert seen[rows, columns].numel() <= pairs
        seen[rows, columns] += 1
    assert (seen == 1).all()
