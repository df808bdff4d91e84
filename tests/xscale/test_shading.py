"""Shading heads against slow twins, analytic facts and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import sph_harm_y
from torch.nn.functional import normalize

from xscale_ns.shading import (
    DIFFUSE_DIRECTIONS,
    FilmSirenHead,
    ShadingHead,
    SphericalHarmonicsHead,
    ViewCodes,
    hemisphere_directions,
    linear_from_srgb,
    spherical_harmonics,
    srgb_from_linear,
)


def unit_vectors(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def small_film(seed: int = 0, dtype: torch.dtype = torch.float64) -> FilmSirenHead:
    torch.manual_seed(seed)
    return FilmSirenHead(feature_dim=6, hidden=5, light_dim=3, exposure_dim=2).to(dtype)


def small_sh(seed: int = 0, **options) -> SphericalHarmonicsHead:
    torch.manual_seed(seed)
    return SphericalHarmonicsHead(6, exposure_dim=2, hidden=8, **options).double()


def scipy_real_harmonics(directions: np.ndarray) -> np.ndarray:
    """The same basis from scipy's complex harmonics (which carry the Condon-Shortley sign)."""
    polar, azimuth = np.arccos(np.clip(directions[:, 2], -1, 1)), np.arctan2(directions[:, 1], directions[:, 0])
    columns = []
    for degree in range(4):
        for order in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(order), polar, azimuth)
            part = value.imag if order < 0 else value.real
            columns.append(part if order == 0 else math.sqrt(2) * (-1) ** order * part)
    return np.stack(columns, axis=1)


def test_spherical_harmonics_equal_scipy_at_random_directions_and_the_poles() -> None:
    directions = torch.cat([unit_vectors(500), torch.eye(3).double(), -torch.eye(3).double()])
    np.testing.assert_allclose(
        spherical_harmonics(directions).numpy(), scipy_real_harmonics(directions.numpy()), atol=1e-13
    )


def test_spherical_harmonics_are_orthonormal_under_exact_quadrature() -> None:
    # Gauss-Legendre in z times equal angles integrates polynomials of degree 6 on the sphere exactly.
    z, weight = np.polynomial.legendre.leggauss(8)
    angle = np.arange(16) * 2 * np.pi / 16
    radius = np.sqrt(1 - z**2)
    directions = np.stack(
        [np.outer(radius, np.cos(angle)), np.outer(radius, np.sin(angle)), np.repeat(z[:, None], 16, 1)], axis=-1
    )
    basis = spherical_harmonics(torch.from_numpy(directions.reshape(-1, 3))).numpy()
    gram = basis.T @ (basis * np.repeat(weight * 2 * np.pi / 16, 16)[:, None])
    np.testing.assert_allclose(gram, np.eye(16), atol=1e-13)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: sum(x * x for x in q) > 0.01))
def test_a_rotation_keeps_the_energy_of_each_degree_and_the_addition_theorem(quaternion: list[float]) -> None:
    w, x, y, z = np.array(quaternion) / np.linalg.norm(quaternion)
    rotation = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )
    a, b = unit_vectors(20, seed=1), unit_vectors(20, seed=2)
    before = spherical_harmonics(a) * spherical_harmonics(b)
    after = spherical_harmonics(a @ rotation.T) * spherical_harmonics(b @ rotation.T)
    cosine = (a * b).sum(-1)
    legendre = [torch.ones_like(cosine), cosine, (3 * cosine**2 - 1) / 2, (5 * cosine**3 - 3 * cosine) / 2]
    for degree in range(4):
        part = slice(degree * degree, (degree + 1) ** 2)
        expected = (2 * degree + 1) / (4 * math.pi) * legendre[degree]
        torch.testing.assert_close(before[:, part].sum(-1), expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(after[:, part].sum(-1), expected, atol=1e-12, rtol=0)


def test_srgb_curve_is_the_standard_one_and_its_inverse_inverts() -> None:
    values = torch.tensor([0.0, 0.0031308, 0.2140411, 0.5, 1.0], dtype=torch.float64)
    known = torch.tensor([0.0, 0.040449936, 0.5, 0.7353569, 1.0], dtype=torch.float64)
    torch.testing.assert_close(srgb_from_linear(values), known, atol=2e-7, rtol=0)
    grid = torch.linspace(-0.2, 1.5, 2001, dtype=torch.float64)
    torch.testing.assert_close(linear_from_srgb(srgb_from_linear(grid)), grid, atol=1e-7, rtol=0)
    assert (srgb_from_linear(grid).diff() > 0).all()


@pytest.mark.parametrize("curve", [srgb_from_linear, linear_from_srgb])
def test_srgb_gradients_are_finite_and_right_also_at_zero_and_below(curve) -> None:
    values = torch.tensor([-1.0, -1e-9, 0.0, 1e-12, 0.001, 0.02, 0.3, 1.0, 2.0], dtype=torch.float64).requires_grad_()
    assert torch.isfinite(torch.autograd.grad(curve(values).sum(), values)[0]).all()
    assert torch.autograd.gradcheck(curve, values)


def test_hemisphere_directions_are_outward_unit_and_uniform_in_solid_angle() -> None:
    normals = torch.cat([unit_vectors(50), torch.eye(3).double(), -torch.eye(3).double()])
    directions = hemisphere_directions(3.0 * normals, 256)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones_like(directions[..., 0]))
    assert ((directions * normals).sum(-1) > 0).all()
    # Moments of the uniform hemisphere: mean w = n / 2, mean w w^T = I / 3.
    torch.testing.assert_close(directions.mean(0), normals / 2, atol=0.01, rtol=0)
    second = torch.einsum("cni,cnj->nij", directions, directions) / 256
    torch.testing.assert_close(second, torch.eye(3).double().expand_as(second) / 3, atol=0.01, rtol=0)


def twin_map(weights: dict[str, np.ndarray], name: str, code: np.ndarray, width: int) -> tuple[list, list]:
    first, last = weights[f"{name}.net.0.weight"], weights[f"{name}.net.2.weight"]
    hidden = []
    for unit in range(first.shape[0]):
        total = weights[f"{name}.net.0.bias"][unit]
        for i in range(len(code)):
            total += first[unit, i] * code[i]
        hidden.append(total if total > 0 else 0.2 * total)
    out = []
    for unit in range(last.shape[0]):
        total = weights[f"{name}.net.2.bias"][unit]
        for i in range(len(hidden)):
            total += last[unit, i] * hidden[i]
        out.append(total)
    frequency = [[15 * out[layer * width + i] + 30 for i in range(width)] for layer in range(2)]
    phase = [[out[2 * width + layer * width + i] for i in range(width)] for layer in range(2)]
    return frequency, phase


def twin_siren(weights: dict[str, np.ndarray], name: str, value: list, frequency: list, phase: list) -> list:
    for layer in range(2):
        matrix, bias = weights[f"{name}.{layer}.linear.weight"], weights[f"{name}.{layer}.linear.bias"]
        new = []
        for unit in range(matrix.shape[0]):
            total = bias[unit]
            for i in range(len(value)):
                total += matrix[unit, i] * value[i]
            new.append(math.sin(frequency[layer][unit] * total + phase[layer][unit]))
        value = new
    return value


def twin_film(weights: dict[str, np.ndarray], feature, direction, exposure, light) -> list[float]:
    """Spec xscale 3.4 for one ray, one unit at a time."""
    width = weights["colour.weight"].shape[1]
    hidden = twin_siren(weights, "feature_films", list(feature), *twin_map(weights, "light_map", light, width))
    first, last = weights["exposure_map.net.0.weight"], weights["exposure_map.net.2.weight"]
    relu = [max(0.0, weights["exposure_map.net.0.bias"][u] + float(first[u] @ exposure)) for u in range(len(first))]
    affine = [weights["exposure_map.net.2.bias"][u] + float(last[u] @ np.array(relu)) for u in range(len(last))]
    modulated = [math.exp(affine[width + i]) * hidden[i] + affine[i] for i in range(width)]
    modulation = twin_map(weights, "surface_map", np.array(modulated), width)
    out = twin_siren(weights, "direction_films", list(direction), *modulation)
    rgb = []
    for channel in range(3):
        logit = weights["colour.bias"][channel] + sum(
            weights["colour.weight"][channel, i] * out[i] for i in range(width)
        )
        linear = 1 / (1 + math.exp(-logit))
        display = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
        rgb.append(1.002 * min(max(display, 0), 1) - 0.001)
    return rgb


def test_film_siren_equals_the_loop_over_units_on_random_weights() -> None:
    head = small_film()
    with torch.no_grad():
        head.colour.weight.mul_(40)
    weights = {key: value.numpy() for key, value in head.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    features, exposure, light = (torch.randn(20, n, generator=generator, dtype=torch.float64) for n in (6, 2, 3))
    directions = unit_vectors(20)
    expected = [twin_film(weights, *(x[i].numpy() for x in (features, directions, exposure, light))) for i in range(20)]
    result = head(features, directions, exposure, light).detach()
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)
    assert result.std() > 0.01


def test_film_siren_has_the_originals_size_and_initial_ranges() -> None:
    torch.manual_seed(0)
    head = FilmSirenHead()
    assert sum(p.numel() for p in head.parameters()) == 63_683
    for linear, bound in [
        (head.feature_films[0].linear, 1 / 128),
        (head.feature_films[1].linear, math.sqrt(6 / 64) / 25),
        (head.direction_films[0].linear, 1 / 3),
        (head.direction_films[1].linear, math.sqrt(6 / 64) / 25),
        (head.colour, math.sqrt(6 / 64) / 25),
    ]:
        largest = linear.weight.abs().max().item()
        assert 0.95 * bound < largest <= bound
        assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    for mapping, inputs in [(head.light_map, 8), (head.surface_map, 64)]:
        gain = math.sqrt(2 / (1 + 0.2**2))
        assert mapping.net[0].weight.std().item() == pytest.approx(gain / math.sqrt(inputs), rel=0.1)
        assert mapping.net[2].weight.std().item() == pytest.approx(0.25 * gain / math.sqrt(64), rel=0.05)


@pytest.mark.parametrize(
    "make", [small_film, small_sh, lambda: small_sh(linear_output=True), lambda: small_sh(layers=1)]
)
def test_gradients_of_both_heads_match_finite_differences(make) -> None:
    head = make()
    generator = torch.Generator().manual_seed(5)
    features, exposure, light = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (6, 2, 3))
    inputs = [x.requires_grad_() for x in (features, unit_vectors(4), exposure, light)]
    assert torch.autograd.gradcheck(head, inputs)
    names, weights = zip(*head.named_parameters(), strict=True)

    def of_weights(*values):
        return torch.func.functional_call(head, dict(zip(names, values, strict=True)), tuple(inputs))

    assert torch.autograd.gradcheck(of_weights, weights)


@pytest.mark.parametrize("make", [small_film, small_sh])
def test_one_code_for_all_rays_a_row_per_ray_and_a_table_with_index_agree(make) -> None:
    head = make()
    generator = torch.Generator().manual_seed(1)
    features, table, lights = (torch.randn(n, w, generator=generator).double() for n, w in ((9, 6), (3, 2), (2, 3)))
    index = torch.tensor([0, 1, 2, 2, 1, 0, 1, 1, 2])
    light_index = index % 2
    directions = unit_vectors(9)
    by_table = head(features, directions, table, lights, exposure_index=index, lighting_index=light_index)
    torch.testing.assert_close(by_table, head(features, directions, table[index], lights[light_index]))
    alone = head(features, directions, table[1], lights[0])
    torch.testing.assert_close(alone, head(features, directions, table[1:2], lights[:1]))
    torch.testing.assert_close(alone, head(features, directions, table[1].expand(9, 2), lights[0].expand(9, 3)))
    assert not torch.allclose(alone, head(features, directions, table[0], lights[0]))
    zero = head(features, directions, torch.zeros(2).double(), torch.zeros(3).double())
    torch.testing.assert_close(head(features, directions), zero)
    with pytest.raises(ValueError, match="exposure"):
        head(features, directions, torch.zeros(5).double())
    with pytest.raises(ValueError, match="exposure_index"):
        head(features, directions, table)


def test_maps_of_constant_codes_run_once_per_row_not_per_ray() -> None:
    head = small_film()
    seen: dict[str, int] = {}
    for name in ("light_map", "exposure_map"):
        getattr(head, name).register_forward_hook(lambda _, args, __, name=name: seen.update({name: len(args[0])}))
    index = torch.arange(50) % 4
    head(torch.zeros(50, 6).double(), unit_vectors(50), torch.zeros(4, 2), torch.zeros(3), exposure_index=index)
    assert seen == {"light_map": 1, "exposure_map": 4}


def test_the_exposure_code_is_an_affine_on_the_hidden_layer() -> None:
    head = small_sh()
    features, directions, code = torch.randn(7, 6).double(), unit_vectors(7), torch.tensor([[0.7, -1.2]]).double()
    hidden = torch.cat([features, spherical_harmonics(directions)], -1)
    for layer in head.hidden_layers:
        hidden = torch.relu(hidden @ layer.weight.T + layer.bias)
    first, last = head.exposure_map.net[0], head.exposure_map.net[2]
    offset, log_gain = (torch.relu(code @ first.weight.T + first.bias) @ last.weight.T + last.bias).split(8, dim=-1)
    logits = (hidden * log_gain.exp() + offset) @ head.colour.weight.T + head.colour.bias
    torch.testing.assert_close(head(features, directions, code), 1 / (1 + torch.exp(-logits)))
    with pytest.raises(ValueError, match="exposure_dim"):
        SphericalHarmonicsHead(6)(features.float(), directions.float(), code)


def test_linear_output_applies_the_transfer_curve_to_the_same_network() -> None:
    display, linear = small_sh(), small_sh(linear_output=True)
    linear.load_state_dict(display.state_dict())
    features, directions = torch.randn(30, 6).double(), unit_vectors(30)
    torch.testing.assert_close(linear(features, directions), srgb_from_linear(display(features, directions)))


class Lambert(ShadingHead):
    """A head with a known hemisphere mean: the cosine between the viewer and +z, positive part left unclipped."""

    def condition(self, features, exposure=None, lighting=None, exposure_index=None, lighting_index=None):
        return features

    def shade(self, state, directions):
        return state[:, :3] - directions[:, 2:3]


def test_diffuse_averages_over_viewers_on_the_outward_side() -> None:
    # A viewer towards +w sees the ray direction -w, so shade = feature + w_z, whose hemisphere mean is f + n_z / 2.
    normals, features = unit_vectors(40), torch.randn(40, 3).double()
    result = Lambert().diffuse(features, normals)
    torch.testing.assert_close(result, features + normals[:, 2:] / 2, atol=0.02, rtol=0)


@pytest.mark.parametrize("make", [small_film, small_sh])
def test_diffuse_is_the_mean_of_forward(make) -> None:
    head = make()
    features, normals = torch.randn(6, 6).double(), unit_vectors(6)
    code = torch.tensor([0.3, -0.4]).double()
    directions = -hemisphere_directions(normals, DIFFUSE_DIRECTIONS)
    mean = torch.stack([head(features, d, code) for d in directions]).mean(0)
    torch.testing.assert_close(head.diffuse(features, normals, code), mean)


def test_autocast_does_not_touch_the_siren_and_returns_full_precision_colours() -> None:
    film, sh = small_film(dtype=torch.float32), small_sh().float()
    features, directions = torch.randn(64, 6), unit_vectors(64, dtype=torch.float32)
    plain = film(features, directions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = film(features, directions)
        assert sh(features, directions).dtype == torch.float32
    assert torch.equal(plain, half)


def test_view_codes_equal_torchs_renormalising_embedding_without_changing_their_parameter() -> None:
    torch.manual_seed(2)
    codes = ViewCodes(6, 4)
    with torch.no_grad():
        codes.weight.mul_(torch.tensor([1.0, 30, 0, 8, 3, 12])[:, None])
    stored = codes.weight.detach().clone()
    twin = torch.nn.Embedding(6, 4, max_norm=1.0, _weight=stored.clone())
    index = torch.tensor([0, 1, 2, 3, 4, 5, 1, 1])
    with torch.no_grad():
        expected = twin(index)
    torch.testing.assert_close(codes(index), expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(codes.mean(), twin.weight.mean(0), atol=1e-7, rtol=0)
    torch.testing.assert_close(codes.mean_of([1, 3]), twin.weight[[1, 3]].mean(0), atol=1e-7, rtol=0)
    assert torch.equal(codes.weight, stored)
    codes.mean().sum().backward()
    assert torch.isfinite(codes.weight.grad).all()
    with pytest.raises(ValueError, match="no view"):
        codes.mean_of([])
    with pytest.raises(IndexError):
        codes.lookup(torch.tensor([6]))


def test_view_codes_start_as_drawn_from_a_normal_of_a_tenth_and_have_right_gradients() -> None:
    torch.manual_seed(0)
    assert ViewCodes(2000, 4).weight.std().item() == pytest.approx(0.1, rel=0.05)
    codes = ViewCodes(3, 4).double()
    values = torch.randn(3, 4).double() * torch.tensor([0.1, 1.0, 5.0]).double()[:, None]

    def table(weight):
        return torch.func.functional_call(codes, {"weight": weight}, (torch.tensor([0, 2, 1, 2]),))

    assert torch.autograd.gradcheck(table, values.requires_grad_())


def test_codes_learn_the_exposure_of_their_view() -> None:
    """Two views of one surface at different brightness: only the codes can explain it."""
    torch.manual_seed(0)
    head, codes = SphericalHarmonicsHead(4, exposure_dim=4, hidden=16), ViewCodes(2, 4)
    features, directions = torch.rand(256, 4), unit_vectors(256, dtype=torch.float32)
    view = torch.arange(256) % 2
    target = features[:, :3] * torch.tensor([0.5, 0.9])[view][:, None]
    optimizer = torch.optim.Adam([*head.parameters(), *codes.parameters()], lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (head(features, directions, codes.table(), exposure_index=view) - target).abs().mean()
        loss.backward()
        optimizer.step()
    swapped = head(features, directions, codes.table(), exposure_index=1 - view)
    assert loss.item() < 0.02
    assert (swapped - target).abs().mean().item() > 0.1
