"""Where a browser of the viewer begins."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np

with warnings.catch_warnings():  # nerfstudio's own imports warn
    warnings.simplefilter("ignore")
    from core_ns.start_camera import StartCamera


def test_every_browser_is_placed_and_the_scene_turned_upright():
    c2w = np.array([[1.0, 0, 0, 3], [0, 0, -1, 4], [0, 1, 0, 5]])  # looks along +y, z is up
    placed, up = [], []
    server = SimpleNamespace(
        scene=SimpleNamespace(set_up_direction=up.append), on_client_connect=lambda callback: placed.append(callback)
    )
    start = StartCamera.of(c2w, 2.0)
    start._setup(SimpleNamespace(viser_server=server))
    assert up == [(0.0, 0.0, 1.0)]
    for _ in range(2):
        client = SimpleNamespace(camera=SimpleNamespace())
        placed[0](client)
        np.testing.assert_allclose(client.camera.position, [30, 40, 50])
        np.testing.assert_allclose(client.camera.look_at, [30, 60, 50], err_msg="two units ahead, in viser's tenths")
        np.testing.assert_allclose(client.camera.up_direction, [0, 0, 1])
