"""The chord integral against its closed form, the midpoint rule, analytic fields and finite differences."""

from __future__ import annotations

import pytest
import torch

from diver_ns.integrator import chord_weights, corner_ids, integrate

CORNERS = torch.tensor([[c & 1, (c >> 1) & 1, (c >> 2) & 1] for c in range(8)])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def chords(count: int, dtype=torch.float64):
    return torch.rand(count, 3, dtype=dtype), torch.rand(count, 3, dtype=dtype)


def trilinear(points):
    """Corner weights at single points."""
    return torch.where(CORNERS.bool(), points[:, None], 1 - points[:, None]).prod(-1)


def closed_form_weights(u_in, u_out):
    """The expanded moments of spec diver 3.2."""
    (x0, y0, z0), (x1, y1, z1) = u_in.unbind(1), u_out.unbind(1)

    def pair(a0, a1, b0, b1):
        return (2 * a0 * b0 + 2 * a1 * b1 + a0 * b1 + a1 * b0) / 6

    x, y, z = (x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2
    xy, yz, xz = pair(x0, x1, y0, y1), pair(y0, y1, z0, z1), pair(x0, x1, z0, z1)
    xyz = ((x0 + x1) * (y0 + y1) * (z0 + z1) + 2 * x0 * y0 * z0 + 2 * x1 * y1 * z1) / 12
    return torch.stack(
        [
            1 - x - y - z + xy + yz + xz - xyz,
            x - xy - xz + xyz,
            y - xy - yz + xyz,
            xy - xyz,
            z - xz - yz + xyz,
            xz - xyz,
            yz - xyz,
            xyz,
        ],
        dim=1,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_equals_the_closed_form(dtype, tolerance):
    ends = chords(5000, dtype)
    weights = chord_weights(*ends)
    assert weights.dtype == dtype
    torch.testing.assert_close(weights, closed_form_weights(*ends), rtol=0, atol=tolerance)
    assert weights.min() >= -1e-7
    assert (weights.sum(1) - 1).abs().max() <= 1e-6


def test_equals_the_midpoint_rule():
    u_in, u_out = chords(50)
    steps = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    points = u_in[:, None] + steps[:, None] * (u_out - u_in)[:, None]
    expected = trilinear(points.reshape(-1, 3)).view(50, 2000, 8).mean(1)
    torch.testing.assert_close(chord_weights(u_in, u_out), expected, rtol=0, atol=1e-6)


def test_a_point_has_plain_trilinear_weights():
    points, _ = chords(100)
    torch.testing.assert_close(chord_weights(points, points), trilinear(points), rtol=0, atol=1e-14)
    corners = CORNERS.double()
    torch.testing.assert_close(chord_weights(corners, corners), torch.eye(8).double(), rtol=0, atol=1e-14)


def test_direction_does_not_matter():
    u_in, u_out = chords(100)
    torch.testing.assert_close(chord_weights(u_in, u_out), chord_weights(u_out, u_in), rtol=0, atol=1e-15)


def test_no_chords():
    empty = torch.zeros(0, 3)
    assert chord_weights(empty, empty).shape == (0, 8)
    assert corner_ids(torch.zeros(0, 3, dtype=torch.int64), 4).shape == (0, 8)
    table = torch.rand(5, 3, requires_grad=True)
    result = integrate(table, torch.zeros(0, 8, dtype=torch.int64), torch.zeros(0, 8))
    assert result.shape == (0, 3)
    result.sum().backward()
    assert table.grad is not None
    assert torch.equal(table.grad, torch.zeros(5, 3))


def test_corner_ids_count_z_slowest():
    voxel = torch.tensor([[0, 1, 2], [3, 3, 3]])
    expected = [
        [(z + k) * 25 + (y + j) * 5 + x + i for k in (0, 1) for j in (0, 1) for i in (0, 1)] for x, y, z in voxel
    ]
    assert corner_ids(voxel, 4).tolist() == torch.tensor(expected).tolist()


def test_constant_and_linear_fields():
    """A constant field is its own mean; a field linear in x has its mean at the chord's middle."""
    n = 4
    index = torch.arange((n + 1) ** 3)
    x, y, z = index % (n + 1), index // (n + 1) % (n + 1), index // (n + 1) ** 2
    table = torch.stack([torch.full_like(x, 7), x, y, z, 2 * x - 3 * z + 1], dim=1).double()
    voxel = torch.randint(0, n, (200, 3))
    u_in, u_out = chords(200)
    mean = integrate(table, corner_ids(voxel, n), chord_weights(u_in, u_out))
    middle = voxel + (u_in + u_out) / 2
    expected = torch.cat([torch.full((200, 1), 7.0).double(), middle], dim=1)
    torch.testing.assert_close(mean[:, :4], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(mean[:, 4], 2 * middle[:, 0] - 3 * middle[:, 2] + 1, rtol=0, atol=1e-12)


def test_equals_the_plain_gather():
    table = torch.rand(300, 32)
    rows = torch.randint(0, 300, (1000, 8))
    weights = chord_weights(*chords(1000, torch.float32))
    expected = (table[rows] * weights[:, :, None]).sum(1)
    torch.testing.assert_close(integrate(table, rows, weights), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [32, 3, 1])
def test_gradients_equal_the_plain_gather(channels):
    """With many equal rows, and more distinct ones than a batch touches."""
    for vertices in (7, 5000):
        table = torch.rand(vertices, channels, requires_grad=True)
        weights = torch.rand(400, 8, requires_grad=True)
        rows, seen = torch.randint(0, vertices, (400, 8)), torch.rand(400, channels)
        (integrate(table, rows, weights) * seen).sum().backward()
        ours = [table.grad, weights.grad]
        table.grad = weights.grad = None
        ((table[rows] * weights[:, :, None]).sum(1) * seen).sum().backward()
        for grad, expected in zip(ours, (table.grad, weights.grad), strict=True):
            torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


def test_gradcheck():
    table = torch.rand(11, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.randint(0, 11, (6, 8))
    u_in, u_out = (x.requires_grad_() for x in chords(6))
    assert torch.autograd.gradcheck(lambda t, a, b: integrate(t, rows, chord_weights(a, b)), (table, u_in, u_out))


def test_the_feature_gradient_is_the_weight():
    weights = chord_weights(*chords(1))
    table = torch.zeros(8, 1, dtype=torch.float64, requires_grad=True)
    integrate(table, torch.arange(8)[None], weights).sum().backward()
    assert table.grad is not None
    torch.testing.assert_close(table.grad[:, 0], weights[0], rtol=0, atol=0)


def test_the_gradient_on_the_ray_equals_finite_differences():
    """Through entry and exit points of a ray that crosses one voxel, moved sideways and along."""
    table = torch.rand(8, 3, dtype=torch.float64)
    direction = torch.tensor([0.2, 1.0, 0.35], dtype=torch.float64)

    def feature(origin):
        # Enters through y = 0, leaves through y = 1: both crossing times depend on the origin.
        u_in, u_out = (origin + (y - origin[1]) / direction[1] * direction for y in (0.0, 1.0))
        return integrate(table, torch.arange(8)[None], chord_weights(u_in[None], u_out[None])).sum()

    origin = torch.tensor([0.3, -0.4, 0.2], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(feature(origin), origin)
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = 1e-5
        with torch.no_grad():
            slope = (feature(origin + step) - feature(origin - step)) / 2e-5
        assert abs(float(slope - grad[axis])) < 1e-8
