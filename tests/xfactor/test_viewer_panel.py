"""An xfactor run in nerfstudio's viewer without a browser: start, panel, outputs (handbook 10; spec xfactor 8.2)."""

from __future__ import annotations

import threading
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from browser import free_port
from training_runs import NOISE, run_config

from core_ns.start_camera import VISER_SCALE
from xfactor_ns.probe import Probe, save_probe
from xfactor_ns.probe_fit import encoder_fingerprint
from xfactor_ns.viewer_panel import CLICKED, SAME, SLIDER

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


class Client:
    """A browser's camera and picture, as far as the render thread sees them."""

    client_id = 0

    def __init__(self) -> None:
        self.shown: list[np.ndarray] = []
        self.camera = SimpleNamespace(fov=0.8, aspect=4 / 3, on_update=lambda callback: None)
        self.scene = SimpleNamespace(set_background_image=self._show)

    def _show(self, image: np.ndarray, format: str, jpeg_quality: int, depth: np.ndarray | None) -> None:
        assert image.dtype == np.uint8
        self.shown.append(image)


@pytest.fixture(scope="module")
def viewer(rooms, tmp_path_factory):
    """nerfstudio's viewer on fresh weights, with a probe of theirs beside the run."""
    folder = tmp_path_factory.mktemp("viewed")
    config = run_config(rooms, folder, 1)
    config.pipeline.model.layer_scale = 1.0
    manager = config.pipeline.datamanager
    manager.run_dir = folder / "run"
    manager.run_dir.mkdir()
    net = config.pipeline.model.setup(scene_box=None, num_train_data=1, metadata={}).net
    torch.manual_seed(0)
    save_probe(manager.run_dir / "probe.safetensors", Probe(6), {"encoder": encoder_fingerprint(net)})
    pipeline = config.pipeline.setup(device="cpu", test_mode="test")
    config.viewer.websocket_port = free_port()
    with warnings.catch_warnings():  # viser serves through websockets' old interface
        warnings.simplefilter("ignore")
        from nerfstudio.viewer.viewer import Viewer

        data = pipeline.datamanager
        made = Viewer(config.viewer, folder / "log.txt", data.get_datapath(), pipeline, train_lock=threading.Lock())
        made.init_scene(data.train_dataset, "completed", data.eval_dataset)
    made.update_scene(step=0)
    made.control_panel._max_res.value = 64
    yield made
    made.viser_server.stop()


@pytest.fixture
def panel(viewer) -> Any:
    """The controls, put back afterwards."""
    made = viewer.pipeline.model.viewing.panel
    elements = [made.context_clip, made.pose_clip, made.control, made.frames]
    before = [element.value for element in elements]
    yield made
    for element, value in zip(elements, before, strict=True):
        chosen(element, value)
    viewer.current_camera_idx = 0


def chosen(element: Any, value: Any) -> None:
    """Set a control as a click does; returns when its callback is through."""
    done, hook = threading.Event(), element.cb_hook
    element.cb_hook = lambda handle: (hook(handle), done.set())
    element.value = value
    assert done.wait(30), f"the callback of {element.name} failed"
    element.cb_hook = hook


def shoot(viewer: Any, camera: int, output: str = "rgb") -> np.ndarray:
    """What the viewer's render thread sends to a browser that stands at a training camera."""
    import viser.transforms
    from nerfstudio.viewer.render_state_machine import RenderStateMachine

    client = Client()
    pose = viewer.pipeline.datamanager.train_dataset.cameras.camera_to_worlds[camera].double().numpy()
    flip = viser.transforms.SO3.from_x_radians(np.pi)  # viser's cameras look along +z, y down
    client.camera.wxyz = (viser.transforms.SO3.from_matrix(pose[:, :3]) @ flip).wxyz
    client.camera.position = VISER_SCALE * pose[:, 3]
    machine = RenderStateMachine(viewer, VISER_SCALE, client)
    machine.state = "high"
    viewer.render_statemachines[client.client_id] = machine

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


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= 2)


def test_every_output_can_be_shown(viewer):
    shown = {name: shoot(viewer, 2, name) for name in ("rgb", "depth", "accumulation", "context", "pose_frame")}
    for name, picture in shown.items():
        assert picture.shape == (48, 64, 3), name
    assert shown["rgb"][:, 9:55].std() > 2
    assert shown["rgb"][:, :7].max() == 0, "a square in the middle"
    assert np.abs(shown["context"] - shown["pose_frame"]).mean() > 1


def test_a_browser_starts_at_the_first_clips_reference(viewer):
    start, clip = viewer.pipeline.model.viewing.panel.viewer_control, viewer.pipeline.model.viewing.clips[0]
    client = SimpleNamespace(camera=SimpleNamespace())
    start._place(client)
    reference = clip.c2w[clip.reference]
    np.testing.assert_allclose(client.camera.position, VISER_SCALE * reference[:, 3])
    ahead = client.camera.look_at - client.camera.position
    np.testing.assert_allclose(ahead / np.linalg.norm(ahead), -reference[:, 2], atol=1e-9)
    np.testing.assert_allclose(client.camera.up_direction, reference[:, 1], atol=1e-9)


def test_the_scene_follows_the_clicked_camera_or_the_panel(viewer, panel):
    first = shoot(viewer, 2, "context")
    viewer.current_camera_idx = 3 * 9 + 4  # a frame of the fourth clip: training samples reach over 9
    clicked = shoot(viewer, 2, "context")
    assert not same(clicked, first)
    entries = panel.context_clip.options
    assert entries[0] == CLICKED
    chosen(panel.context_clip, entries[1])
    assert same(shoot(viewer, 2, "context"), first), "the panel's choice goes first"
    chosen(panel.context_clip, entries[4])
    assert same(shoot(viewer, 2, "context"), clicked)


def test_the_motion_of_another_clip(viewer, panel):
    own = shoot(viewer, 2, "pose_frame")
    assert panel.pose_clip.value == SAME
    chosen(panel.pose_clip, panel.pose_clip.options[3])
    assert not same(shoot(viewer, 2, "pose_frame"), own)
    assert same(shoot(viewer, 2, "context"), shoot(viewer, 7, "context")), "in the same scene"


def test_the_position_slider_takes_over(viewer, panel):
    viewing = viewer.pipeline.model.viewing
    before = shoot(viewer, 2)
    chosen(panel.position, 1.0)
    deadline = threading.Event()
    for _ in range(100):
        if panel.control.value == SLIDER:
            break
        deadline.wait(0.05)
    assert panel.control.value == SLIDER, "who takes the slider means it"
    last = shoot(viewer, 2, "pose_frame")
    assert same(last, shoot(viewer, 0, "pose_frame")), "wherever the camera is"
    assert viewing._last[1].pose == (0, 8)
    assert not same(shoot(viewer, 2), before)
    chosen(panel.control, "trajectory")
    assert same(shoot(viewer, 2), before)


def test_more_context(viewer, panel):
    one = shoot(viewer, 2)
    chosen(panel.frames, 5)
    assert viewer.pipeline.model.viewing.panel.look().frames == 1, "the tools keep the config's"
    assert not same(shoot(viewer, 2), one)


def test_every_control_draws(viewer, panel):
    labels = panel.control.options
    assert [label.split()[0] for label in labels] == ["trajectory", "nearest", "blend", "regress", "invert", "position"]
    pictures = {}
    for label in labels:
        chosen(panel.control, label)
        pictures[label] = shoot(viewer, 2)
        assert pictures[label][:, 9:55].std() > 2, label
    assert same(pictures["trajectory"], pictures["nearest"]), "at a frame's own camera"


def test_a_probe_of_other_weights_does_not_end_the_browsers_pictures(viewer, panel, capsys):
    trajectory = shoot(viewer, 2)
    chosen(panel.control, "regress (experimental)")
    assert not same(shoot(viewer, 2), trajectory)
    renderer = viewer.pipeline.model.net.pose_encoder.norm.weight
    with torch.no_grad():
        renderer.mul_(1.0).add_(0.0)  # another version of the same weights still fits
    assert not same(shoot(viewer, 2), trajectory)
    with torch.no_grad():
        renderer.mul_(1.001)
    regressed = shoot(viewer, 2)
    chosen(panel.control, "trajectory")
    assert same(regressed, shoot(viewer, 2)), "trajectory instead, and a printed line"
    assert "No probe, trajectory instead" in capsys.readouterr().out


def test_interrupted_pictures_leave_nothing_behind(viewer, monkeypatch):
    """The viewer raises at any line when the mouse moves: the next picture must be whole (handbook 5)."""
    import sys

    from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException

    model = viewer.pipeline.model
    camera = viewer.pipeline.datamanager.train_dataset.cameras[3:4]
    expected = model.get_outputs_for_camera(camera)["rgb"].clone()

    def interrupting(after: int) -> Any:
        left = [after]

        def trace(frame: Any, event: str, _: Any) -> Any:
            if event == "line" and "xfactor_ns" in frame.f_code.co_filename:
                left[0] -= 1
                if left[0] == 0:
                    raise IOChangeException
            return trace

        return trace

    interrupted, after = 0, 1
    while True:
        model.viewing.bank._latents, model.viewing.bank._version, model.viewing._last = {}, (), None
        before = sys.gettrace()
        sys.settrace(interrupting(after))
        try:
            model.get_outputs_for_camera(camera)
            break
        except IOChangeException:
            interrupted += 1
        finally:
            sys.settrace(before)
        assert torch.equal(model.get_outputs_for_camera(camera)["rgb"], expected)
        after += 7
    assert interrupted > 5
