"""Rays of a camera give back the camera."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets)
    warnings.simplefilter("ignore")
    from nerfstudio.cameras.cameras import Cameras, CameraType

from core_ns.ray_cameras import pinhole_from_rays

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


def camera(kind=CameraType.PERSPECTIVE, width=37, height=22, times=None) -> Cameras:
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    turn = turn * torch.sign(torch.det(turn))
    c2w = torch.cat([turn, torch.tensor([[1.0], [-20.0], [3.0]])], dim=1)
    return Cameras(
        c2w[None], torch.tensor([[31.0]]), torch.tensor([[40.0]]), torch.tensor([[15.2]]), torch.tensor([[13.7]]),
        width=torch.tensor([[width]]), height=torch.tensor([[height]]), camera_type=kind, times=times,
    )  # fmt: skip


@pytest.mark.parametrize("times", [None, torch.tensor([[0.25]])])
def test_an_off_centre_camera_with_unequal_focal_lengths_comes_back(times):
    asked = camera(times=times)
    found = pinhole_from_rays(asked.generate_rays(camera_indices=0, keep_shape=True))
    for name in ("fx", "fy", "cx", "cy"):
        assert float(getattr(found, name)) == pytest.approx(float(getattr(asked, name)), abs=1e-3), name
    torch.testing.assert_close(found.camera_to_worlds, asked.camera_to_worlds, atol=1e-5, rtol=0)
    assert (int(found.width), int(found.height)) == (37, 22)
    assert (found.times is None) == (times is None)
    assert times is None or math.isclose(float(found.times), 0.25)


def test_rays_of_another_kind_of_camera_are_refused():
    with pytest.raises(ValueError, match="one pinhole camera"):
        pinhole_from_rays(camera(CameraType.FISHEYE).generate_rays(camera_indices=0, keep_shape=True))
    with pytest.raises(ValueError, match="2 x 2"):
        pinhole_from_rays(camera(width=1).generate_rays(camera_indices=0, keep_shape=True))
