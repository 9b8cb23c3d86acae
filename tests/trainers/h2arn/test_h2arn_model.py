"""H2ARN's network: its aggregation against loops, its options, its invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import TrainingError
from trainers.geometry import lorentz
from trainers.geometry.cone import CLAMPED, exterior_angle, half_aperture
from trainers.h2arn.config import H2arnConfig
from trainers.h2arn.method import H2arn, optimizer
from trainers.h2arn.model import CPU_BATCH, Aggregator, H2arnNetwork

SIZES: dict[str, Any] = {"d_model": 8, "nhead": 2, "num_layers": 2, "dropout": 0.0}
EUCLIDEAN = {"geometry": "euclidean", "loss_lambda": 0.0}


def made(**settings: Any) -> H2arn:
    torch.manual_seed(0)
    return H2arn(H2arnConfig(**{**SIZES, **settings}), 6, 8).double().eval()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(aggregator: Aggregator, temperature: float = 0.3) -> Aggregator:
    with torch.no_grad():
        aggregator.temperature.fill_(temperature)
    return aggregator


def test_published_size_has_149_tensors_and_37_828_613_parameters() -> None:
    with torch.device("meta"):
        network = H2arnNetwork(H2arnConfig(), 512, 512)
    assert len(network.state_dict()) == 149
    assert sum(p.numel() for p in network.parameters()) == 37_828_613


def test_start_is_that_of_the_release() -> None:
    network = made(hyperbolic_c=2.5).network
    assert network.c.item() == pytest.approx(2.5)
    assert network.log_alpha_txt.exp().item() == pytest.approx(8**-0.5) == network.log_alpha_pcd.exp().item()
    assert network.text_aggregator.temperature.item() == pytest.approx(0.07)
    state = network.state_dict()
    assert state["text_encoder.0.input_proj.weight"].shape == (8, 6)
    assert "pcd_encoder.0.input_proj.weight" not in state  # its width is d_model already
    assert state["text_encoder.1.encoder_layer.self_attn.in_proj_bias"].abs().max() == 0


def test_aggregation_is_that_of_a_loop_over_tokens() -> None:
    aggregator = spread(Aggregator(H2arnConfig(**SIZES)).double())
    tokens, c = draw(3, 5, 8), torch.tensor(0.7, dtype=torch.float64)
    found = aggregator(tokens, c)
    assert found.point.shape == (3, 9) and found.weights.shape == found.distances.shape == (3, 5)
    for n in range(3):
        anchor = tokens[n].mean(0)
        times = [math.sqrt(1 / 0.7 + float(v @ v)) for v in (anchor, *tokens[n])]
        products = [float(anchor @ tokens[n, i]) - times[0] * times[1 + i] for i in range(5)]
        distances = [math.acosh(-0.7 * p) / math.sqrt(0.7) for p in products]
        powers = [math.exp(-d / 0.3) for d in distances]
        pooled = sum((p / sum(powers) * tokens[n, i] for i, p in enumerate(powers)), torch.zeros(8).double())
        torch.testing.assert_close(found.distances[n], torch.tensor(distances, dtype=torch.float64))
        torch.testing.assert_close(found.point[n, 1:], pooled)
        assert found.point[n, 0].item() == pytest.approx(math.sqrt(1 / 0.7 + float(pooled @ pooled)))


def test_negative_temperature_weighs_far_tokens_most_as_released() -> None:
    aggregator = Aggregator(H2arnConfig(**SIZES)).double()
    tokens, c = draw(2, 6, 8), torch.tensor(1.0, dtype=torch.float64)
    near, far = (spread(aggregator, t)(tokens, c) for t in (0.3, -0.3))
    assert (near.weights.argmax(1) == near.distances.argmin(1)).all()
    assert (far.weights.argmax(1) == far.distances.argmax(1)).all()


def test_paper_weighs_tokens_without_a_temperature() -> None:
    tokens, c = draw(2, 6, 8), torch.tensor(1.0, dtype=torch.float64)
    config = H2arnConfig(**SIZES, temperature="none")
    found = spread(Aggregator(config).double(), 0.001)(tokens, c)
    one = spread(Aggregator(H2arnConfig(**SIZES)).double(), 1.0)(tokens, c)
    torch.testing.assert_close(found.weights, one.weights)


def test_mean_aggregation_is_the_lifted_mean_of_the_scaled_tokens() -> None:
    tokens, c = draw(2, 6, 8), torch.tensor(1.3, dtype=torch.float64)
    found = Aggregator(H2arnConfig(**SIZES, aggregation="mean"))(tokens, c)
    torch.testing.assert_close(found.point, lorentz.lift(tokens.mean(1), c))
    torch.testing.assert_close(found.weights, torch.full((2, 6), 1 / 6, dtype=torch.float64))


def test_order_of_tokens_does_not_matter() -> None:
    method, tokens = made(), draw(3, 7, 6)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    a, b = method.network.texts(tokens), method.network.texts(tokens[:, order])
    torch.testing.assert_close(a.point, b.point)
    torch.testing.assert_close(a.weights[:, order], b.weights)


def test_masked_padding_changes_nothing_whatever_it_holds_and_unmasked_does() -> None:
    net, tokens = made(mask_padding=True).network, draw(3, 5, 6)
    with torch.inference_mode():
        alone = net.texts(tokens)
        for filler in (0.0, 9.0):
            longer = torch.cat([tokens, torch.full((3, 4, 6), filler, dtype=torch.float64)], 1)
            padding = torch.arange(9).expand(3, 9) >= 5
            found = net.texts(longer, padding)
            torch.testing.assert_close(found.point, alone.point)
            assert found.weights[:, 5:].abs().max() == 0
            torch.testing.assert_close(found.weights[:, :5], alone.weights)
        assert (net.texts(longer).point - alone.point).abs().max() > 1e-3


@pytest.mark.parametrize("masked", [True, False])
def test_encoding_a_few_at_a_time_changes_nothing(masked: bool) -> None:
    net, tokens = made(mask_padding=masked).network, draw(2 * CPU_BATCH + 3, 5, 6)
    padding = torch.arange(5) >= torch.arange(len(tokens))[:, None] % 5 + 1 if masked else None
    whole = net.texts(tokens, padding)
    with torch.no_grad():
        parts = net.texts(tokens, padding)
    torch.testing.assert_close(parts.point, whole.point)
    torch.testing.assert_close(parts.weights, whole.weights)


@pytest.mark.parametrize(
    "settings", [{}, {"lift": "exponential"}, {"similarity": "distance"}, {"aggregation": "mean"}]
)
def test_points_are_on_the_hyperboloid_and_scores_bounded(settings: dict[str, Any]) -> None:
    method = made(hyperbolic_c=0.5, **settings)
    with torch.inference_mode():
        texts = method.encode_texts({"text": draw(4, 5, 6)})
        items = method.encode_items({"cloud": draw(3, 6, 8, seed=1)})
        scores = method.scores(texts, items)
    assert scores.shape == (4, 3)
    for points in (texts["point"], items["point"]):
        torch.testing.assert_close(lorentz.inner(points, points), torch.full((len(points),), -2.0).double())
    if settings.get("similarity") == "distance":
        assert scores.max() < 0
    else:
        assert scores.max() <= -2 + 1e-9


def test_distances_rank_as_inner_products_do() -> None:
    a, b = made(), made(similarity="distance")
    texts, items = {"text": draw(4, 5, 6)}, {"cloud": draw(9, 6, 8, seed=1)}
    with torch.inference_mode():
        first, second = (m.scores(m.encode_texts(texts), m.encode_items(items)) for m in (a, b))
    assert torch.equal(first.argsort(1), second.argsort(1)) and not torch.allclose(first, second)


def test_exponential_lift_is_as_far_from_the_origin_as_the_vector_is_long() -> None:
    aggregator = Aggregator(H2arnConfig(**SIZES, lift="exponential"))
    vectors, c = draw(4, 8), torch.tensor(0.7, dtype=torch.float64)
    origin = lorentz.lift(torch.zeros(8, dtype=torch.float64), c)
    found = lorentz.distance(lorentz.inner(aggregator.lifted(vectors, c), origin), c)
    torch.testing.assert_close(found, vectors.norm(dim=-1))


def test_euclidean_scores_are_cosines_and_have_no_cones() -> None:
    method = made(**EUCLIDEAN)
    with torch.inference_mode():
        texts = method.encode_texts({"text": draw(4, 5, 6)})
        items = method.encode_items({"cloud": draw(3, 6, 8, seed=1)})
        scores = method.scores(texts, items)
        said = method.explain(texts, items)
    assert texts["point"].shape == (4, 8) and scores.abs().max() <= 1
    torch.testing.assert_close(texts["point"].norm(dim=-1), torch.ones(4, dtype=torch.float64))
    assert said.keys() == {"text_weights", "cloud_weights"}
    positive = torch.eye(3, dtype=torch.bool)
    assert method.terms(texts["point"][:3], items["point"], positive).keys() == {"t2c", "c2t"}


def test_euclidean_weights_come_from_dot_products_with_the_mean() -> None:
    tokens, c = draw(2, 6, 8), torch.tensor(1.0, dtype=torch.float64)
    found = spread(Aggregator(H2arnConfig(**SIZES, **EUCLIDEAN)).double())(tokens, c)
    dots = torch.einsum("nld,nd->nl", tokens, tokens.mean(1))
    torch.testing.assert_close(found.weights, (dots / 0.3).softmax(1))


def test_curvature_is_clamped_without_a_gradient_and_decay_still_moves_it() -> None:
    method = made(hyperbolic_c=14.0).train()
    assert method.network.c.item() == 10
    adam = optimizer(H2arnConfig(**SIZES, warmup_ratio=0.0), method, 4)
    points = method.network.texts(draw(3, 5, 6)).point, method.network.clouds(draw(3, 6, 8)).point
    torch.stack(list(method.terms(*points, torch.eye(3, dtype=torch.bool)).values())).sum().backward()
    before = method.network.log_c.item()
    assert method.network.log_c.grad is not None and method.network.log_c.grad.item() == 0
    adam.step()
    assert method.network.log_c.item() == pytest.approx(before * (1 - 2e-3 * 0.01), rel=1e-9)


def test_explanation_tells_the_cone_and_what_each_token_weighs() -> None:
    method = made()
    with torch.inference_mode():
        texts = method.encode_texts({"text": draw(2, 5, 6)})
        items = method.encode_items({"cloud": draw(3, 7, 8, seed=1)})
        said = method.explain(texts, items)
    assert said["angle"].shape == said["aperture"].shape == (2, 3)
    assert said["text_weights"].shape == (2, 3, 5) and said["cloud_weights"].shape == (2, 3, 7)
    for weights in (said["text_weights"], said["cloud_weights"]):
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    x, y = texts["point"][1, 1:], items["point"][2, 1:]
    c = method.network.c
    torch.testing.assert_close(said["angle"][1, 2], exterior_angle(x, y, c, CLAMPED))
    torch.testing.assert_close(said["aperture"][1, 0], half_aperture(x, c, bounds=CLAMPED))


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("log_c", math.nan, "log_c has become nan"),
        ("text_aggregator.temperature", 0.0, "text_aggregator.temperature has become 0.0"),
        ("pcd_aggregator.temperature", math.inf, "pcd_aggregator.temperature has become inf"),
    ],
)
def test_scalars_that_nothing_can_be_learned_with_stop_the_run(name: str, value: float, shown: str) -> None:
    method = made()
    with torch.no_grad():
        dict(method.network.named_parameters())[name].fill_(value)
    with pytest.raises(TrainingError, match=f"{shown}: try a smaller lr than 0.002"):
        method.require_usable_scalars()


def test_hyperbolic_parts_stay_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    method = H2arn(H2arnConfig(**SIZES, precision="bf16"), 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        texts = method.encode_texts({"text": draw(2, 5, 6).float()})
        items = method.encode_items({"cloud": draw(3, 7, 8, seed=1).float()})
        scores = method.scores(texts, items)
    assert texts["point"].dtype == texts["weights"].dtype == scores.dtype == torch.float32
    products = lorentz.inner(texts["point"], texts["point"])
    torch.testing.assert_close(products, torch.full((2,), -1.0), atol=1e-5, rtol=0)
