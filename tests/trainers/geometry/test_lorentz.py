"""Geometry of the Lorentz model against identities and slow twins."""

from __future__ import annotations

import math

import pytest
import torch

from trainers.geometry import lorentz
from trainers.geometry.cone import CLAMPED, MERU, Bounds, angle_at, exterior_angle, half_aperture

CURVATURES = (0.1, 1.0, 7.3)


def spaces(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("c", CURVATURES)
def test_lifted_points_lie_on_the_hyperboloid_of_curvature_minus_c(c: float) -> None:
    points = lorentz.lift(spaces(5, 4), c)
    assert points.shape == (5, 5)
    products = -(points[:, 0] ** 2) + (points[:, 1:] ** 2).sum(1)
    torch.testing.assert_close(products, torch.full((5,), -1 / c, dtype=torch.float64))


def test_pairwise_products_are_those_of_a_loop_over_pairs() -> None:
    x, y = spaces(2, 3, 4), spaces(2, 5, 4, seed=1)
    found = lorentz.pairwise_inner(x, y)
    assert found.shape == (2, 3, 5)
    for n in range(2):
        for i in range(3):
            for j in range(5):
                expected = -x[n, i, 0] * y[n, j, 0] + sum(x[n, i, k] * y[n, j, k] for k in range(1, 4))
                torch.testing.assert_close(found[n, i, j], expected)


def test_products_of_one_with_one_are_the_diagonal_of_those_of_all() -> None:
    x, y = spaces(2, 3, 4), spaces(2, 3, 4, seed=1)
    found = lorentz.inner(x, y)
    torch.testing.assert_close(found, lorentz.pairwise_inner(x, y).diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(lorentz.inner(x[:, :1], y), lorentz.pairwise_inner(x[:, :1], y).squeeze(1))


@pytest.mark.parametrize("c", CURVATURES)
def test_distance_is_symmetric_obeys_the_triangle_and_adds_up_along_a_ray(c: float) -> None:
    x, y, z = (lorentz.lift(spaces(9, 3, seed=seed), c) for seed in range(3))
    xy, yz, xz = (lorentz.distance(lorentz.inner(a, b), c) for a, b in ((x, y), (y, z), (x, z)))
    torch.testing.assert_close(xy, lorentz.distance(lorentz.inner(y, x), c))
    assert (xz <= xy + yz).all() and xy.min() > 0
    ray = 0.2 * spaces(1, 3) * torch.tensor([[1.0], [2.5]], dtype=torch.float64)
    ends = lorentz.lift(lorentz.exp_origin(ray, c), c)
    found = lorentz.distance(lorentz.inner(ends[0], ends[1]), c)
    assert found.item() == pytest.approx(1.5 * ray[0].norm().item())


def test_distance_of_a_point_from_itself_is_that_of_its_bound_without_a_gradient() -> None:
    space = spaces(4, 3).float().requires_grad_()
    points = lorentz.lift(space, 1.0)
    product = torch.full((4,), -1.0, requires_grad=True)
    distance = lorentz.distance(product, 1.0)
    assert distance.tolist() == pytest.approx([math.acosh(1 + 2**-23)] * 4, rel=1e-3)
    distance.sum().backward()
    assert product.grad is not None and product.grad.tolist() == [0] * 4
    near = lorentz.distance(lorentz.inner(points, points), 1.0)
    assert near.max() < 5e-3 and near.isfinite().all()


def test_logarithm_undoes_the_exponential_map_at_the_origin() -> None:
    tangent = spaces(6, 3)
    points = lorentz.lift(lorentz.exp_origin(tangent, 1.0), 1.0)
    torch.testing.assert_close(lorentz.log_origin(points), tangent)


@pytest.mark.parametrize("c", CURVATURES)
def test_exponential_map_keeps_the_length_of_a_tangent_vector_as_distance(c: float) -> None:
    tangent = spaces(6, 3)
    points = lorentz.lift(lorentz.exp_origin(tangent, c), c)
    distance = torch.acosh(math.sqrt(c) * points[:, 0]) / math.sqrt(c)
    torch.testing.assert_close(distance, tangent.norm(dim=1))


def test_exponential_map_is_finite_at_the_origin_and_far_from_it() -> None:
    tangent = torch.tensor([[0.0, 0.0], [1e6, -1e6]], requires_grad=True)
    space = lorentz.exp_origin(tangent, 1.0)
    space.sum().backward()
    assert space[0].tolist() == [0, 0]
    assert space.isfinite().all() and tangent.grad is not None and tangent.grad.isfinite().all()


def test_midpoint_lies_on_the_hyperboloid_and_of_one_point_is_that_point() -> None:
    points = lorentz.lift(spaces(4, 3), 1.0)
    weights = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(lorentz.midpoint(weights, points), points)
    middle = lorentz.midpoint(torch.full((1, 4), 0.25, dtype=torch.float64), points)
    torch.testing.assert_close(
        -(middle[:, 0] ** 2) + (middle[:, 1:] ** 2).sum(1), torch.tensor([-1.0]).double()
    )


def test_midpoint_of_two_points_is_equally_far_from_both() -> None:
    points = lorentz.lift(spaces(2, 3), 1.0)
    middle = lorentz.midpoint(torch.full((1, 2), 0.5, dtype=torch.float64), points)
    products = lorentz.pairwise_inner(middle, points)
    torch.testing.assert_close(products[0, 0], products[0, 1])


@pytest.mark.parametrize("c", CURVATURES)
def test_exterior_angle_obeys_the_hyperbolic_law_of_cosines(c: float) -> None:
    apex, space = spaces(8, 3), spaces(8, 3, seed=1)
    angle = exterior_angle(apex, space, c)
    x, y = lorentz.lift(apex, c), lorentz.lift(space, c)
    ox, oy = torch.acosh(math.sqrt(c) * x[:, 0]), torch.acosh(math.sqrt(c) * y[:, 0])
    xy = torch.acosh(-c * (-x[:, 0] * y[:, 0] + (x[:, 1:] * y[:, 1:]).sum(1)))
    inner = torch.acos((torch.cosh(ox) * torch.cosh(xy) - torch.cosh(oy)) / (torch.sinh(ox) * torch.sinh(xy)))
    torch.testing.assert_close(angle, math.pi - inner, atol=1e-6, rtol=0)


def test_point_farther_out_on_the_axis_is_inside_the_cone_and_one_nearer_is_not() -> None:
    apex = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
    assert exterior_angle(apex, 2 * apex, 1.0).item() < 0.01
    assert exterior_angle(apex, 0.5 * apex, 1.0).item() > math.pi - 0.01


def test_cone_narrows_away_from_the_origin_and_is_a_half_space_at_it() -> None:
    apexes = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.5, 0.0], [2.0, 0.0]])
    aperture = half_aperture(apexes, 1.0)
    assert aperture[0].item() == pytest.approx(math.pi / 2) == aperture[1].item()
    assert aperture[1] > aperture[2] > aperture[3]
    assert aperture[3].item() == pytest.approx(math.asin(0.1))
    assert half_aperture(apexes[3:], 4.0).item() == pytest.approx(math.asin(0.05))


def test_gradients_of_collinear_points_are_finite_in_float32() -> None:
    apex = torch.tensor([[0.6, 0.8], [0.05, 0.0], [0.0, 0.0]], requires_grad=True)
    space = (2 * apex.detach()).requires_grad_()
    (exterior_angle(apex, space, 1.0) - half_aperture(apex, 1.0)).sum().backward()
    for tensor in (apex, space):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


@pytest.mark.parametrize("bounds", [MERU, CLAMPED])
def test_bounds_do_not_matter_away_from_where_they_bind(bounds: Bounds) -> None:
    apex, space = spaces(8, 3), spaces(8, 3, seed=1)
    free = Bounds(lambda below: below, cut=0.0, slope_cut=0.0)
    for found, expected in (
        (half_aperture(apex, 2.0, bounds=bounds), half_aperture(apex, 2.0, bounds=free)),
        (exterior_angle(apex, space, 2.0, bounds), exterior_angle(apex, space, 2.0, free)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_angle_from_a_product_of_matrices_is_that_of_the_pair() -> None:
    apex, space, c = spaces(4, 3), spaces(5, 3, seed=1), 0.7
    x, y = lorentz.lift(apex, c), lorentz.lift(space, c)
    found = angle_at(apex.norm(dim=1)[:, None], x[:, :1], y[:, 0], lorentz.pairwise_inner(x, y), c, CLAMPED)
    expected = torch.stack([exterior_angle(one.expand(5, 3), space, c, CLAMPED) for one in apex])
    torch.testing.assert_close(found, expected)
