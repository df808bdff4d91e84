"""A charge in nerfstudio's viewer without a browser: start camera, frames, play, loading ahead (spec r4dv 6.4, 8.5)."""

from __future__ import annotations

import threading
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browser import free_port, wait_until
from capture_runs import NOISE
from charge_folders import make_charge
from charged_scenes import load_run
from nerfstudio.configs.base_config import ViewerConfig

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]
SCALE = 10.0


class Client:
    """A browser's camera and picture, as far as the render thread sees them."""

    client_id = 0

    def __init__(self) -> None:
        self.shown: list[np.ndarray] = []
        self.camera = SimpleNamespace(fov=0.8, aspect=4 / 3, on_update=lambda callback: None)
        self.scene = SimpleNamespace(set_background_image=self._show)

    def _show(self, image: np.ndarray, format: str, jpeg_quality: int, depth: np.ndarray | None) -> None:
        assert depth is not None
        self.shown.append(image)


@pytest.fixture
def viewer(tmp_path, monkeypatch):
    """nerfstudio's viewer on a charge of ten frames, a fifth of the points background."""
    make_charge(tmp_path / "charge", 10, 400, 4, views=6, static=80)
    pipeline = load_run(tmp_path / "charge", monkeypatch, ahead=2)
    config = ViewerConfig(websocket_host="127.0.0.1", websocket_port=free_port(), max_num_display_images=64)
    with warnings.catch_warnings():  # viser serves through websockets' old interface
        warnings.simplefilter("ignore")
        from nerfstudio.viewer.viewer import Viewer

        data, lock = pipeline.datamanager, threading.Lock()
        made = Viewer(config, tmp_path / "log.txt", data.get_datapath(), pipeline, train_lock=lock)
        made.init_scene(data.train_dataset, "completed", data.eval_dataset)
    made.update_scene(step=0)
    made.control_panel._max_res.value = 64
    yield made
    made.viser_server.stop()
    pipeline.model.close()


def shoot(viewer: Any, client: Client) -> np.ndarray:
    """What the viewer's render thread sends to a browser."""
    from nerfstudio.viewer.render_state_machine import RenderStateMachine

    machine = RenderStateMachine(viewer, SCALE, client)
    machine.state = "high"
    viewer.render_statemachines[client.client_id] = machine
    before = len(client.shown)
    machine.run = lambda: machine._send_output_to_viewer(machine._render_img(viewer.get_camera_state(client)))
    machine.start()
    machine.join()
    del viewer.render_statemachines[client.client_id]
    assert len(client.shown) == before + 1, "the render thread died; a browser would show nothing more"
    return client.shown[-1]


@pytest.fixture
def client(viewer) -> Client:
    import viser.transforms

    made, pose = Client(), viewer.pipeline.datamanager.train_dataset.cameras.camera_to_worlds[1].double().numpy()
    flip = viser.transforms.SO3.from_x_radians(np.pi)  # viser's cameras look along +z, y down
    made.camera.wxyz = (viser.transforms.SO3.from_matrix(pose[:, :3]) @ flip).wxyz
    made.camera.position = SCALE * pose[:, 3]
    return made


def chosen(element: Any, value: Any) -> None:
    """Set a control as a click does; returns when its callback is through."""
    done, hook = threading.Event(), element.cb_hook
    element.cb_hook = lambda handle: (hook(handle), done.set())
    element.value = value
    assert done.wait(30), f"the callback of {element.name} failed"
    element.cb_hook = hook


def frames_held(viewer: Any) -> set[int]:
    frames = viewer.pipeline.model.opened()
    frames.cache.settle()
    return {frame for frame in range(10) if (frame, None) in frames.cache}


def test_a_charge_in_the_viewer(viewer, client):
    controls = viewer.pipeline.model.controls
    start = viewer.pipeline.model.manifest.start
    # The start camera is the manifest's.
    placed = SimpleNamespace(camera=SimpleNamespace())
    controls.viewer_control._place(placed)
    np.testing.assert_allclose(placed.camera.position, SCALE * start.position)
    np.testing.assert_allclose(placed.camera.look_at, SCALE * start.middle)
    np.testing.assert_allclose(placed.camera.up_direction, start.up)
    assert len(viewer.camera_handles) == 5, "a frustum for each training camera, not for each frame"

    # The frame slider moves the points, and frames are loaded ahead the way it goes.
    first = shoot(viewer, client)
    assert first.std() > 5
    held = frames_held(viewer)
    chosen(controls.frame, 1)
    assert np.abs(first.astype(int) - shoot(viewer, client)).mean() > 1
    assert frames_held(viewer) == held | {1, 2, 3}
    chosen(controls.frame, 0)
    assert np.array_equal(first, shoot(viewer, client))
    assert frames_held(viewer) == {0, 1, 2, 3, 9, 8}, "back, and round"

    # Subject and background can be switched off for this browser.
    chosen(controls.surroundings, False)
    subject = shoot(viewer, client)
    chosen(controls.subject, False)
    assert shoot(viewer, client).std() < 1, "nothing is left"
    chosen(controls.surroundings, True)
    background = shoot(viewer, client)
    chosen(controls.subject, True)
    assert np.array_equal(first, shoot(viewer, client))
    assert (background > 5).sum() < (subject > 5).sum() < (first > 5).sum() + 100

    # Play runs on and round while it is switched on.
    chosen(controls.rate, 60.0)
    visited = []
    chosen(controls.play, True)
    wait_until(
        "the recording to play round", lambda: visited.append(int(controls.frame.value)) or {0, 9} <= set(visited), 20
    )
    chosen(controls.play, False)
    for name in ("accumulation", "depth", "layers"):
        chosen(viewer.control_panel._output_render, name)
        assert shoot(viewer, client).dtype == np.uint8


def test_nerfstudios_time_slider_stays_between_frames(viewer, client):
    """The frame slider follows it, through viser's threads, and does not move it to a frame."""
    controls, panel, model = viewer.pipeline.model.controls, viewer.control_panel, viewer.pipeline.model
    model.settings = model.settings._replace(time_mode="blend")
    panel.time = 0.37
    first = shoot(viewer, client)
    wait_until("the frame slider to follow", lambda: int(controls.frame.value) == 3)
    # One of its threads is free again when all that waited before is through.
    viewer.viser_server.gui._thread_executor.submit(lambda: None).result(30)
    assert np.array_equal(first, shoot(viewer, client)), "still a blend of two frames"
    assert panel.time == 0.37
    chosen(controls.frame, 4)
    assert panel.time == 0.44
    assert not np.array_equal(first, shoot(viewer, client))
