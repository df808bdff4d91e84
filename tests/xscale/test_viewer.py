"""The viewer: every output and control without a browser (A15), and the page of ``ns-viewer`` in headless Chromium."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from browser import BINARY, drag_turns_the_page, free_port, wait_until
from commands import run

pytestmark = [
    pytest.mark.slow,
    # nerfstudio 1.1.5 indexes cameras with a list in its render thread, which torch 2.12 announces to forbid.
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing"),
]
SCALE = 10.0  # viser units per nerfstudio unit
SIZE = (48, 64)  # of every picture at rest here: height, width


@pytest.fixture(scope="module")
def watched(demo_scene, work) -> Path:
    """A short run with exposure codes and every optional output."""
    run("ns-train", "xscale-nvs-tiny", "--data", demo_scene, "--output-dir", work / "outputs", "--timestamp", "watched",
        "--max-num-iterations", "100", "--vis", "tensorboard", "--pipeline.model.levels", "8",
        "--pipeline.datamanager.train-num-rays-per-batch", "2048", "--pipeline.model.exposure-dim", "4",
        "--pipeline.model.output-face-id", "True", cwd=work)  # fmt: skip
    return work / "outputs" / "monument" / "xscale-nvs-tiny" / "watched" / "config.yml"


@pytest.fixture(scope="module")
def loaded(watched):
    """Config and pipeline of the run."""
    with warnings.catch_warnings():  # nerfstudio's own imports warn
        warnings.simplefilter("ignore")
        import nerfstudio.viewer.viewer  # noqa: F401
        from nerfstudio.utils.eval_utils import eval_setup

        config, pipeline, _, _ = eval_setup(watched, test_mode="test")
    return config, pipeline


@pytest.fixture(scope="module")
def viewer(loaded, tmp_path_factory):
    """nerfstudio's viewer on the run, with its server."""
    from nerfstudio.viewer.viewer import Viewer

    config, pipeline = loaded
    assert config.viewer.websocket_host == "127.0.0.1", "not open to the network by default"
    config.viewer.websocket_port = free_port()
    log = tmp_path_factory.mktemp("viewer") / "log.txt"
    lock = threading.Lock()
    data = pipeline.datamanager
    # viser serves through websockets' old interface (as an error the warning would end the server's thread); nerfstudio
    # hands tensors to numpy.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Viewer(config.viewer, log, data.get_datapath(), pipeline, train_lock=lock)
        made.init_scene(data.train_dataset, "completed", data.eval_dataset)
    try:
        made.update_scene(step=100)
        made.control_panel._max_res.value = max(SIZE)
        yield made
    finally:
        made.viser_server.stop()


class Client:
    """A browser's camera and picture, as far as the render thread sees them."""

    client_id = 0

    def __init__(self, pipeline: Any, view: int = 0) -> None:
        self.frames: list[tuple[np.ndarray, np.ndarray | None]] = []
        self.moved: Any = None
        self.camera = SimpleNamespace(fov=0.8, aspect=SIZE[1] / SIZE[0], on_update=self._on_update)
        self.scene = SimpleNamespace(set_background_image=self._show)
        self.place(pipeline, view)

    def _on_update(self, callback: Any) -> None:
        self.moved = callback

    def _show(self, image: np.ndarray, format: str, jpeg_quality: int, depth: np.ndarray | None) -> None:
        self.frames.append((image, depth))

    def place(self, pipeline: Any, view: int, distance: float = 0.0) -> None:
        """Stand where a training photo was taken (y up, looking along -z), ``distance`` further back."""
        import viser.transforms

        pose = pipeline.datamanager.train_dataset.cameras.camera_to_worlds[view].double().numpy()
        flip = viser.transforms.SO3.from_x_radians(np.pi)  # viser's cameras look along +z, y down
        self.camera.wxyz = (viser.transforms.SO3.from_matrix(pose[:, :3]) @ flip).wxyz
        self.camera.position = SCALE * (pose[:, 3] + distance * pose[:, 2])


@pytest.fixture
def client(viewer) -> Client:
    return Client(viewer.pipeline)


def shoot(viewer, client, state: str = "high") -> tuple[np.ndarray, np.ndarray, dict[str, torch.Tensor]]:
    """One picture as the viewer's render thread makes and sends it: frame, depth, and the model's outputs."""
    from nerfstudio.viewer.render_state_machine import RenderStateMachine

    machine = RenderStateMachine(viewer, SCALE, client)
    machine.state = state
    viewer.render_statemachines[client.client_id] = machine
    made: list[Any] = []

    def once() -> None:
        outputs = machine._render_img(viewer.get_camera_state(client))
        machine._send_output_to_viewer(outputs)
        made.append(outputs)

    machine.run = once
    try:
        machine.start()
        machine.join()
    finally:
        del viewer.render_statemachines[client.client_id]
    assert made, "the render thread died; a browser would show nothing more"
    frame, depth = client.frames[-1]
    assert depth is not None
    return frame, depth, made[0]


def plain(viewer, client, size: tuple[int, int] = SIZE) -> dict[str, torch.Tensor]:
    """The same view as ``ns-render`` and evaluation get it, outside the viewer's threads."""
    from nerfstudio.viewer.utils import get_camera

    camera = get_camera(viewer.get_camera_state(client), *size)
    viewer.pipeline.eval()
    return viewer.pipeline.model.get_outputs_for_camera(camera)


def bytes_of(rgb: torch.Tensor) -> np.ndarray:
    return (rgb.cpu() * 255).to(torch.uint8).numpy()


@contextlib.contextmanager
def chosen(element, value):
    """Set a control as a click does, wait until its callback is through, and set it back at the end."""

    def choose(new) -> None:
        done, hook = threading.Event(), element.cb_hook
        element.cb_hook = lambda handle: (hook(handle), done.set())
        try:
            element.value = new
            assert done.wait(60), f"the callback of {element.name} failed"
        finally:
            element.cb_hook = hook

    before = element.value
    choose(value)
    try:
        yield
    finally:
        choose(before)


@contextlib.contextmanager
def every_code_is(model, code: torch.Tensor):
    """All exposure codes replaced by one, so that their mean, which plain renderings take, is that one."""
    weight = model.field.exposure.weight
    before = weight.data.clone()
    try:
        weight.data[:] = code
        yield
    finally:
        weight.data[:] = before


def test_the_server_listens_on_this_machine_only(viewer):
    assert viewer.viser_server.get_host() == "127.0.0.1"
    assert all("127.0.0.1" in line for line in viewer.viewer_info)


def test_every_output_is_drawn(viewer, client):
    _, depth, outputs = shoot(viewer, client)
    assert set(outputs) >= {"rgb", "accumulation", "depth", "normal", "face_id"}
    hit = outputs["accumulation"][..., 0].numpy() > 0
    assert 0.1 < hit.mean() < 0.95, "the view holds surface and background"
    assert depth.shape == (*SIZE, 1)
    # viser compares depth along the optical axis, in its own units.
    x, y = np.meshgrid(np.arange(SIZE[1]) + 0.5 - SIZE[1] / 2, np.arange(SIZE[0]) + 0.5 - SIZE[0] / 2)
    axis = 1 / np.hypot(1, np.hypot(x, y) / (SIZE[0] / 2 / math.tan(client.camera.fov / 2)))
    np.testing.assert_allclose(depth[..., 0], outputs["depth"][..., 0].numpy() * axis * SCALE, rtol=1e-4)
    pictures = {}
    for name in (key for key in outputs if key != "gl_z_buf_depth"):
        with chosen(viewer.control_panel._output_render, name):
            frame, depth, _ = shoot(viewer, client)
        assert frame.dtype == np.uint8
        assert frame.shape == (*SIZE, 3), name
        assert frame.std() > 2, f"{name} is blank"
        assert np.isfinite(depth).all()
        assert (depth > 0).all()
        pictures[name] = frame
    assert len({frame.tobytes() for frame in pictures.values()}) == len(pictures), "each output looks different"
    np.testing.assert_array_equal(pictures["rgb"], bytes_of(plain(viewer, client)["rgb"]))


def test_a_view_without_any_surface_is_drawn(viewer, client):
    client.place(viewer.pipeline, 0, distance=-60)
    _, _, outputs = shoot(viewer, client)
    assert not outputs["accumulation"].any()
    for name in outputs:
        with chosen(viewer.control_panel._output_render, name):
            _, depth, _ = shoot(viewer, client)
        assert np.isfinite(depth).all(), name


def test_the_picture_follows_the_camera(viewer, client):
    frames = []
    for view in (0, 1, 2):
        client.place(viewer.pipeline, view)
        frame, _, _ = shoot(viewer, client)
        np.testing.assert_array_equal(frame, bytes_of(plain(viewer, client)["rgb"]))
        frames.append(frame.astype(int))
    assert min(np.abs(frames[i] - frames[j]).mean() for i, j in ((0, 1), (1, 2), (0, 2))) > 3
    client.camera.fov = 0.4
    assert np.abs(shoot(viewer, client)[0] - frames[2]).mean() > 3


def test_the_crop_box_removes_what_is_outside(viewer, client):
    # nerfstudio's box copies its size by torch.tensor(tensor), a warning that ends the render thread only in tests.
    warnings.filterwarnings("ignore", "To copy construct from a tensor")
    whole = shoot(viewer, client)[2]["accumulation"] > 0
    with chosen(viewer.control_panel._crop_viewport, True), chosen(viewer.control_panel._crop_scale, (0.6, 0.6, 0.6)):
        part = shoot(viewer, client)[2]["accumulation"] > 0
    assert 0 < part.sum() < whole.sum()


@pytest.mark.parametrize("kind", ["white", "black", "misses"])
def test_backgrounds(viewer, client, kind):
    controls = viewer.pipeline.model.controls
    normal, _, outputs = shoot(viewer, client)
    miss = outputs["accumulation"][..., 0].numpy() == 0
    element, value = (controls.show_misses, True) if kind == "misses" else (controls.background, kind)
    with chosen(element, value):
        frame, _, _ = shoot(viewer, client)
        untouched = bytes_of(plain(viewer, client)["rgb"])
    assert miss.any()
    assert (frame[miss] == {"white": (255, 255, 255), "black": (0, 0, 0), "misses": (255, 0, 255)}[kind]).all()
    np.testing.assert_array_equal(frame[~miss], normal[~miss])
    np.testing.assert_array_equal(untouched, normal, err_msg="evaluation is none of the viewer's business")


def test_geometry_only_is_a_headlight_on_the_mesh(viewer, client):
    from nerfstudio.viewer.utils import get_camera

    normal, _, outputs = shoot(viewer, client)
    with chosen(viewer.pipeline.model.controls.geometry, True):
        frame, _, _ = shoot(viewer, client)
        np.testing.assert_array_equal(bytes_of(plain(viewer, client)["rgb"]), normal)
    hit = outputs["accumulation"][..., 0].numpy() == 1
    rays = get_camera(viewer.get_camera_state(client), *SIZE).generate_rays(0)
    cosine = -((outputs["normal"] * 2 - 1) * rays.directions).sum(-1).numpy()
    expected = 255 * (0.15 + 0.85 * cosine)[..., None].repeat(3, axis=-1)
    assert np.abs(frame[hit] - expected[hit]).max() <= 1
    np.testing.assert_array_equal(frame[~hit], normal[~hit])


def test_sub_samples(viewer, client):
    model = viewer.pipeline.model
    single = shoot(viewer, client)[2]["accumulation"]
    assert set(single.unique().tolist()) <= {0.0, 1.0}
    with chosen(model.controls.samples, 4):
        resting, _, outputs = shoot(viewer, client)
        moving = shoot(viewer, client, state="low_move")[2]["accumulation"]
        alone = plain(viewer, client)["accumulation"]
    assert set(outputs["accumulation"].unique().tolist()) == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert set(moving.unique().tolist()) <= {0.0, 1.0}, "one ray while the camera moves"
    assert torch.equal(alone, single), "the slider is the viewer's own"
    model.config.eval_sub_samples = 4
    try:
        np.testing.assert_array_equal(resting, bytes_of(plain(viewer, client)["rgb"]))
    finally:
        model.config.eval_sub_samples = 1


def test_exposures(viewer, client):
    model = viewer.pipeline.model
    controls, table = model.controls, model.field.exposure.table().detach().clone()
    assert len(controls.exposure.options) == 2 + len(model.train_names)
    assert all(name in option for name, option in zip(model.train_names, controls.exposure.options[2:], strict=True))
    mean, _, _ = shoot(viewer, client)
    seen = {mean.tobytes()}
    for index, option in enumerate(controls.exposure.options[2:]):
        with chosen(controls.exposure, option):
            frame, _, _ = shoot(viewer, client)
            np.testing.assert_array_equal(bytes_of(plain(viewer, client)["rgb"]), mean)
        with every_code_is(model, table[index]):
            expected = bytes_of(plain(viewer, client)["rgb"])
        assert np.abs(frame.astype(int) - expected).max() <= 1, option
        seen.add(frame.tobytes())
    assert len(seen) == 1 + len(model.train_names), "each exposure looks different"


def test_exposure_sliders(viewer, client):
    model = viewer.pipeline.model
    controls = model.controls
    code = (0.4, -0.5, 0.1, 0.3)
    mean, _, _ = shoot(viewer, client)
    with contextlib.ExitStack() as stack:
        for slider, value in zip(controls.exposure_sliders, code, strict=True):
            assert not slider.gui_handle.visible
            stack.enter_context(chosen(slider, value))
        np.testing.assert_array_equal(shoot(viewer, client)[0], mean, err_msg="sliders wait until they are chosen")
        stack.enter_context(chosen(controls.exposure, "sliders"))
        assert all(slider.gui_handle.visible for slider in controls.exposure_sliders)
        frame, _, _ = shoot(viewer, client)
    assert not any(slider.gui_handle.visible for slider in controls.exposure_sliders)
    with every_code_is(model, torch.tensor(code)):
        expected = bytes_of(plain(viewer, client)["rgb"])
    assert np.abs(frame.astype(int) - expected).max() <= 1
    assert (frame != mean).any()


def test_the_proxy_mesh_comes_and_goes(viewer, monkeypatch):
    scene, model = viewer.viser_server.scene, viewer.pipeline.model
    added, shown, add = [], [], scene.add_mesh_simple

    def watched_add(*args, **options):
        handle = add(*args, **options)
        added.append(options)
        shown.append(args[0])
        monkeypatch.setattr(handle, "remove", lambda remove=handle.remove: (shown.remove(args[0]), remove()))
        return handle

    monkeypatch.setattr(scene, "add_mesh_simple", watched_add)
    for count in (1, 2):
        with chosen(model.controls.proxy, True):
            assert shown == ["/xscale_mesh"]
        assert shown == []
        assert len(added) == count
    np.testing.assert_allclose(added[0]["vertices"], SCALE * model.surface.vertices.numpy())
    np.testing.assert_array_equal(added[0]["faces"], model.surface.faces.numpy())


def test_the_render_thread_survives_a_moving_camera(viewer, client, monkeypatch):
    """Coarse, then fine, interrupted by moves and controls: the last picture is the right one."""
    controls = viewer.pipeline.model.controls
    monkeypatch.setattr(viewer.viser_server, "get_clients", lambda: {client.client_id: client})
    viewer.handle_new_client(client)
    machine = viewer.render_statemachines[client.client_id]

    def settled() -> bool:
        # The last picture must be of the last camera: nothing waits, nothing is being rendered at a lower resolution.
        return machine.state == "high" and machine.next_action is None and bool(client.frames) and fresh()

    def fresh() -> bool:
        expected = bytes_of(plain(viewer, client)["rgb"])
        frame = client.frames[-1][0]
        return frame.shape == expected.shape and np.array_equal(frame, expected)

    try:
        wait_until("the first fine picture", settled, 60)
        for index in range(40):
            client.place(viewer.pipeline, index % 9)
            client.moved(None)
            time.sleep(0.01 * (index % 5))
        with chosen(controls.show_misses, True), chosen(controls.geometry, True):
            assert machine.is_alive()
        client.place(viewer.pipeline, 4)
        client.moved(None)
        wait_until("the picture of the last camera", settled, 60)
        assert machine.is_alive()
    finally:
        viewer.handle_disconnect(client)
        machine.join(60)
    assert not machine.is_alive()


@pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")
def test_the_page_shows_the_scene_and_follows_the_mouse(watched, work, tmp_path):
    """``ns-viewer`` and a browser, each a process: the rendering fills the page, and a drag turns it."""
    drag_turns_the_page(watched, work, tmp_path / "profile")
