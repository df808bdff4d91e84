"""The corrections of cameras: algebra against oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from core_ns.demo_scenes import look_at
from core_ns.frames import c2w_opengl_from_w2c_opencv
from r4dv_ns.camera_refinement import CameraRefinement, CameraRefinementConfig, rotation_from_vector


def poses(count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([look_at(rng.normal(size=3) * 3, rng.normal(size=3) * 0.1) for _ in range(count)]))


def active(count: int, **options) -> CameraRefinement:
    return CameraRefinement(CameraRefinementConfig(mode="SO3xR3", **options), count)


@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-4, 9e-4, 1.1e-3, 0.3, 3.0, 7.0])
def test_rotation_is_the_matrix_exponential(length):
    vector = torch.nn.functional.normalize(torch.tensor([0.3, -0.8, 0.4], dtype=torch.float64), dim=0) * length
    x, y, z = vector.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    torch.testing.assert_close(rotation_from_vector(vector), torch.linalg.matrix_exp(cross), rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.5])
def test_gradient_is_right_also_at_zero(scale):
    vectors = (
        scale * torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    assert torch.autograd.gradcheck(rotation_from_vector, (vectors,), eps=1e-6, atol=1e-7)


def test_zero_changes_nothing_and_off_returns_the_same_tensor():
    w2c = poses(4)
    torch.testing.assert_close(active(4)(w2c, torch.arange(4)), w2c, rtol=0, atol=1e-14)
    off = CameraRefinement(CameraRefinementConfig(), 4)
    assert off(w2c, torch.arange(4)) is w2c
    assert off.param_groups() == {}
    assert off.metrics() == {}
    assert float(off.penalty()) == 0
    assert not off.adjustment.requires_grad


def test_a_correction_turns_about_the_centre_and_shifts_in_the_world():
    """The same as nerfstudio's: R' = E R, C' = C + d on the camera-to-world side."""
    refinement, w2c = active(5), poses(5)
    with torch.no_grad():
        refinement.adjustment.copy_(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)) * 0.2)
    views = torch.tensor([3, 0, 0])
    found = c2w_opengl_from_w2c_opencv(refinement(w2c[views], views).detach().numpy())
    old = c2w_opengl_from_w2c_opencv(w2c[views].numpy())
    shift, vector = refinement.adjustment.detach().double()[views].split(3, dim=-1)
    np.testing.assert_allclose(found[:, :3, 3], old[:, :3, 3] + shift.numpy(), atol=1e-12)
    np.testing.assert_allclose(found[:, :3, :3], rotation_from_vector(vector).numpy() @ old[:, :3, :3], atol=1e-12)


def test_one_matrix_and_an_int_index():
    refinement, w2c = active(2), poses(2)
    with torch.no_grad():
        refinement.adjustment[1, :3] = torch.tensor([0.5, 0.0, 0.0])
    moved = refinement(w2c[1], 1)
    assert moved.shape == (4, 4)
    assert moved.dtype == torch.float64
    centre = -(moved[:3, :3].T @ moved[:3, 3]) + w2c[1, :3, :3].T @ w2c[1, :3, 3]
    np.testing.assert_allclose(centre.detach().numpy(), [0.5, 0, 0], atol=1e-12)


def test_penalty_and_metrics():
    refinement = active(2, trans_l2_penalty=2.0, rot_l2_penalty=3.0)
    assert torch.isfinite(torch.autograd.grad(refinement.penalty(), refinement.adjustment)[0]).all()
    with torch.no_grad():
        refinement.adjustment[0] = torch.tensor([3.0, 4.0, 0.0, 0.0, 0.0, math.radians(90)])
    assert float(refinement.penalty().detach()) == pytest.approx(2 * 2.5 + 3 * math.pi / 4)
    assert float(refinement.penalty(torch.tensor([1])).detach()) == 0
    metrics = {name: float(value) for name, value in refinement.metrics().items()}
    assert metrics == pytest.approx(
        {"camera_shift_mean": 2.5, "camera_shift_max": 5.0, "camera_turn_mean": 45.0, "camera_turn_max": 90.0}
    )
    assert list(refinement.param_groups()) == ["camera_opt"]
