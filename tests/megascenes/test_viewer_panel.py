"""A megascenes run in nerfstudio's viewer without a browser: panel, stages, outputs (spec megascenes 8.3, check 12)."""

from __future__ import annotations

import threading
import time
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browser import free_port
from planar_pairs import write_pairs
from tiny_runs import NOISE, run_config

from core_ns.start_camera import VISER_SCALE
from megascenes_ns.canonical import c2w_ns_from_rel
from megascenes_ns.view_outputs import OUTPUTS

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


class Client:
    """A browser's camera and picture, as far as the render thread sees them."""

    client_id = 0

    def __init__(self, pose: np.ndarray) -> None:
        import viser.transforms

        self.shown: list[np.ndarray] = []
        flip = viser.transforms.SO3.from_x_radians(np.pi)  # viser's cameras look along +z, y down
        wxyz = (viser.transforms.SO3.from_matrix(pose[:3, :3]) @ flip).wxyz
        self.camera = SimpleNamespace(
            fov=0.8, aspect=4 / 3, wxyz=wxyz, position=VISER_SCALE * pose[:3, 3], on_update=lambda callback: None
        )
        self.scene = SimpleNamespace(set_background_image=self._show)

    def _show(self, image: np.ndarray, format: str, jpeg_quality: int, depth: np.ndarray | None) -> None:
        assert image.dtype == np.uint8
        self.shown.append(image)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory):
    """nerfstudio's viewer on fresh tiny networks and eight pairs."""
    folder = tmp_path_factory.mktemp("viewed")
    config: Any = run_config(write_pairs(folder / "pairs", 8, 2), folder, 1)
    pipeline = config.pipeline.setup(device="cpu", test_mode="test")
    config.viewer.websocket_port = free_port()
    with warnings.catch_warnings():  # viser serves through websockets' old interface
        warnings.simplefilter("ignore")
        from nerfstudio.viewer.viewer import Viewer

        data = pipeline.datamanager
        made = Viewer(config.viewer, folder / "log.txt", folder, pipeline, train_lock=threading.Lock())
        made.init_scene(data.train_dataset, "completed", data.eval_dataset)
    made.update_scene(step=0)
    made.control_panel._max_res.value = 64
    yield made
    made.viser_server.stop()


def machine_of(viewer: Any, x: float = 0.1) -> tuple[Any, Client]:
    """nerfstudio's render thread for a browser beside the reference."""
    from nerfstudio.viewer.render_state_machine import RenderStateMachine

    pose = np.eye(4)
    pose[0, 3] = x
    client: Any = Client(c2w_ns_from_rel(pose))
    machine = RenderStateMachine(viewer, VISER_SCALE, client)
    viewer.render_statemachines[client.client_id] = machine
    return machine, client


def shoot(viewer: Any, output: str = "rgb", state: str = "high", x: float = 0.1) -> np.ndarray:
    """What one pass of the render thread sends."""
    machine, client = machine_of(viewer, x)
    machine.state = state

    def once() -> None:
        outputs = machine._render_img(viewer.get_camera_state(client))
        machine._send_output_to_viewer(outputs)
        viewer.control_panel._output_render.value = output
        viewer.output_type_changed = True
        machine._send_output_to_viewer(outputs)

    machine.run = once
    machine.start()
    machine.join()
    del viewer.render_statemachines[client.client_id]
    assert len(client.shown) == 2, "the render thread died; a browser would show nothing more"
    return client.shown[-1].astype(int)


def finished(viewer: Any, x: float = 0.1) -> np.ndarray:
    """The finished picture: what comes after the one of few steps."""
    shoot(viewer, x=x)
    return shoot(viewer, x=x)


def chosen(element: Any, value: Any) -> None:
    """Set a control as a click does; returns when its callback is through."""
    done, hook = threading.Event(), element.cb_hook
    element.cb_hook = lambda handle: (hook(handle), done.set())
    element.value = value
    assert done.wait(30), f"the callback of {element.name} failed"
    element.cb_hook = hook


def test_every_output_can_be_shown(viewer):
    for name in OUTPUTS:
        assert shoot(viewer, name).shape == (48, 64, 3), name
    assert np.abs(shoot(viewer, "warp") - shoot(viewer, "reference")).mean() > 1


def test_the_real_loop_shows_warp_then_few_steps_then_the_picture(viewer, monkeypatch):
    """Nobody helps nerfstudio's render thread: it starts low, and ends with the finished picture (check 12)."""
    from nerfstudio.viewer.render_state_machine import RenderAction

    viewing = viewer.pipeline.model.viewing
    steps: list[int] = []
    pictures = viewing.drawer.pictures

    def recorded(nets: Any, views: Any, warps: Any, settings: Any, *more: Any) -> Any:
        steps.append(settings.steps)
        return pictures(nets, views, warps, settings, *more)

    monkeypatch.setattr(viewing.drawer, "pictures", recorded)
    shoot(viewer, "rgb", x=0.5)  # the output that is shown
    steps.clear()
    machine, client = machine_of(viewer, 0.23)
    machine.action(RenderAction("move", viewer.get_camera_state(client)))  # what a page sends when it opens
    machine.start()
    deadline = time.monotonic() + 20
    while len(client.shown) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    machine.running = False
    machine.join(10)
    del viewer.render_statemachines[client.client_id]
    assert steps == [2, 5]
    assert len(client.shown) == 4, "and then it rests"
    moving, still, few, full = (picture.astype(int) for picture in client.shown)
    assert np.abs(moving - still).mean() < 12, "the warp, twice, at other sizes and qualities"
    assert np.abs(few - full).mean() > 1
    assert np.abs(finished(viewer, 0.23) - full).max() <= 2, "the same from the cache"


def test_moving_pictures_are_the_warp_within_half_a_second(viewer):
    viewer.control_panel._max_res.value = 48
    try:
        shoot(viewer, "rgb", "low_move", 0.31)
        start = time.monotonic()
        moving = shoot(viewer, "rgb", "low_move", 0.32)
        seconds = time.monotonic() - start
        warp = shoot(viewer, "warp", "low_move", 0.32)
    finally:
        viewer.control_panel._max_res.value = 64
    assert np.abs(moving - warp).max() == 0
    print(f"warp preview in {seconds:.3f} s")
    assert seconds < 0.5


def test_picking_a_reference(viewer):
    panel = viewer.pipeline.model.viewing.panel
    first = shoot(viewer, "reference")
    before = finished(viewer)
    chosen(panel.pair, 5)
    picked = shoot(viewer, "reference")
    assert np.abs(picked - first).mean() > 3
    assert np.abs(finished(viewer) - before).mean() > 1
    viewer.current_camera_idx = 2
    clicked = shoot(viewer, "reference")
    assert np.abs(clicked - picked).mean() > 3
    viewer.current_camera_idx = 0
    assert np.abs(shoot(viewer, "reference") - first).max() <= 2
    finished(viewer)
    panel.use_view.cb_hook(panel.use_view)
    assert np.abs(shoot(viewer, "reference") - before).mean() < 8, "the view itself, through JPEG and a resize"
    chosen(panel.pair, 0)
    assert np.abs(shoot(viewer, "reference") - first).max() <= 2


def test_seed_scale_steps_and_guidance(viewer):
    panel = viewer.pipeline.model.viewing.panel
    before, warp = finished(viewer), shoot(viewer, "warp")
    for name, value in (("seed", 3), ("steps", 3), ("guidance", 1.0), ("scale", 2.0), ("lock", False)):
        element = getattr(panel, name)
        old = element.value
        chosen(element, value)
        assert np.abs(finished(viewer) - before).mean() > 0.3, name
        assert (np.abs(shoot(viewer, "warp") - warp).mean() > 0.5) == (name == "scale"), name
        chosen(element, old)
    assert np.abs(finished(viewer) - before).max() <= 2
    assert viewer.pipeline.model.viewing.panel.look(None) == panel.default
