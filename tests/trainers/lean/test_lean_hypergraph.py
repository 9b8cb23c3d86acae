"""The hypergraphs of pairs: incidence against what the equations say, convolutions against torch-geometric's."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import HypergraphConv

from trainers.lean.hypergraph import Hypergraphs, hypergraphs
from trainers.lean.replacements import clique_expansion, hyperedge_index

TOP = torch.tensor([[0, 2, 3], [4, 1, 1], [2, 3, 4]])  # the second video's are two
FRAMES = 5


def made(triples: int, without: tuple[str, ...] = ()) -> Hypergraphs:
    return hypergraphs(TOP, FRAMES, triples, torch.float64, without)


def member_lists(top: list[int], triples: int) -> list[list[int]]:
    """Equations 4 to 7, one hyperedge at a time."""
    visual = [0, *range(1, FRAMES + 1)]
    words = [FRAMES + 1 + j for j in range(triples)]
    own = [0, *sorted({1 + place for place in top})]
    return [visual + words, own, words, *([*visual, word] for word in words)]


@pytest.mark.parametrize("triples", [1, 2, 4])
def test_incidence_is_that_of_the_equations(triples: int) -> None:
    incidence = made(triples).incidence()
    assert incidence.shape == (3, 1 + FRAMES + triples, 3 + triples)
    for video, top in enumerate(TOP.tolist()):
        for edge, members in enumerate(member_lists(top, triples)):
            assert incidence[video, :, edge].nonzero().flatten().tolist() == members


def test_kinds_count_all_nodes_and_sums_and_spread_are_those_of_the_nodes() -> None:
    graphs, x = made(3), torch.randn(3, 2, 1 + FRAMES + 3, 4, dtype=torch.float64)
    assert graphs.counts.tolist() == [[4, 2, 1, 1, 1], [3, 3, 1, 1, 1], [4, 2, 1, 1, 1]]
    assert torch.equal(graphs.degrees, graphs.incidence().sum(1))
    torch.testing.assert_close(graphs.sums(x)[1, 0, 0], x[1, 0, 0] + x[1, 0, 2] + x[1, 0, 5])
    kinds = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(graphs.sums(graphs.spread(kinds)), kinds * graphs.counts[:, None, :, None])


@pytest.mark.parametrize("without", [(), ("visual",), ("global",), ("text", "cross")])
@pytest.mark.parametrize("seed", range(3))
def test_propagation_is_torch_geometrics_up_to_its_one_sided_normalisation(
    seed: int, without: tuple[str, ...]
) -> None:
    """Hyperedges weigh the same here: torch-geometric's convolution reads weights in the degrees of nodes alone."""
    draw = torch.Generator().manual_seed(seed)
    triples, frames = seed + 1, 4 + seed
    top = torch.randint(frames, (2, 3), generator=draw)
    graphs = hypergraphs(top, frames, triples, torch.float64, without)
    x = torch.randn(2, 2, 1 + frames + triples, 4, dtype=torch.float64, generator=draw)
    alpha = graphs.edges.double().expand(2, 2, -1)
    found = graphs.spread(graphs.propagation(alpha) @ graphs.sums(x))
    layer = HypergraphConv(4, 4, bias=False).double()
    layer.lin.weight.data = torch.eye(4, dtype=torch.float64)
    for video, incidence in enumerate(graphs.incidence()):
        scale = incidence.sum(1, keepdim=True).sqrt()
        for caption, rows in enumerate(x[video]):
            expected = scale * layer(rows / scale, hyperedge_index(incidence[None]), num_edges=3 + triples)
            torch.testing.assert_close(found[video, caption], expected)


def test_propagation_is_the_laplacian_of_the_paper() -> None:
    graphs = made(2)
    alpha = torch.rand(3, 1, 5, dtype=torch.float64).softmax(-1)
    incidence = graphs.incidence()[1]
    scale = torch.diag((incidence @ alpha[1, 0]) ** -0.5)
    members = torch.diag(incidence.sum(0) ** -1)
    full = scale @ incidence @ torch.diag(alpha[1, 0]) @ members @ incidence.T @ scale
    kinds = torch.tensor([0, 1, 0, 1, 1, 0, 2, 3])  # of V, five frames, two triples
    torch.testing.assert_close(graphs.propagation(alpha)[1, 0][kinds][:, kinds], full)


def test_left_out_hyperedges_have_no_members() -> None:
    incidence = made(2, ("visual", "cross")).incidence()
    assert incidence[:, :, [1, 3, 4]].abs().sum() == 0 and (incidence[:, :, 0] == 1).all()


def test_hyperedges_of_several_graphs_are_numbered_through() -> None:
    incidence = torch.tensor([[[1.0, 0], [1, 1]], [[0, 1], [0, 1]]])
    assert hyperedge_index(incidence).tolist() == [[0, 1, 1, 2, 3], [0, 0, 1, 3, 3]]


def test_clique_expansion_joins_nodes_that_share_hyperedges_and_counts_them() -> None:
    index, shared = clique_expansion(made(2).incidence()[:1])
    weights = {(a, b): w for (a, b), w in zip(index.T.tolist(), shared.tolist(), strict=True)}
    assert weights[0, 1] == 4 and weights[1, 2] == 3  # V and a top frame: also the visual hyperedge
    assert weights[6, 7] == 2 and weights[0, 6] == 2
    assert (0, 0) not in weights and len(weights) == 8 * 7
