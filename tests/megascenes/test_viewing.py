"""From cameras to pictures: references, stages, cache, interruption (spec megascenes 8.3; checks 10 and 12)."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_views import NOISE, camera_at, moved_pose, small_reference, small_viewing, tiny_networks, write_photo

from core_ns.errors import DataError
from megascenes_ns import viewing as viewing_module
from megascenes_ns.drawing import Settings, view_of
from megascenes_ns.reference_shelf import ReferenceShelf
from megascenes_ns.view_outputs import OUTPUTS, rgba

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]
POSE = moved_pose()


class Moved(Exception):
    """What nerfstudio's viewer raises when the camera moves."""


class Browser(threading.Thread):
    """nerfstudio's render thread, as far as pictures know it: draws once, traced or not."""

    client = None

    def __init__(self, viewing: Any, draw: Callable[[], Any], state: str = "high", trace: Any = None) -> None:
        super().__init__(daemon=True)
        self.state, self.draw, self.trace = state, draw, trace
        self.actions: list[str] = []
        self.result: Any = None
        self.error: BaseException | None = None
        self.viewer = SimpleNamespace(render_statemachines={0: self}, get_camera_state=lambda client: None)
        viewing.panel.viewer_control.viewer = self.viewer

    def action(self, action: Any) -> None:
        self.actions.append(action.action)

    def run(self) -> None:
        try:
            with torch.no_grad():
                if self.trace is not None:
                    sys.settrace(self.trace)
                try:
                    self.result = self.draw()
                finally:
                    sys.settrace(None)
        except BaseException as error:
            self.error = error

    def drawn(self) -> Any:
        """Run to the end; the outputs."""
        self.start()
        self.join(60)
        assert not self.is_alive(), "the render thread hangs"
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture(scope="module")
def nets():
    return tiny_networks()


def viewer_camera(size: tuple[int, int] = (64, 48), index: int = 0, pose: np.ndarray = POSE) -> Any:
    return camera_at(pose, *size, focal=size[0] * 0.86, metadata={"cam_idx": index})


def test_outputs_of_a_tool(nets):
    viewing = small_viewing()
    found = viewing.outputs(nets, camera_at(POSE, 80, 60, 69.0))
    assert tuple(found) == OUTPUTS
    for name, value in found.items():
        assert value.shape == (60, 80, 3 if name in ("rgb", "warp", "reference") else 1), name
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert name == "depth" or (value.min() >= 0 and value.max() <= 1), name
    assert not torch.equal(found["rgb"], found["warp"]), "sampled, not warped"
    assert found["depth"].max() > 1
    assert list(viewing.parameters()) == []
    assert rgba(found).shape == (60, 80, 4)
    assert rgba(found, "warp")[..., 3].min() < 1


def test_the_warp_is_where_the_camera_says(nets):
    """A floor point seen by the reference lands where the pinhole formula puts it."""
    viewing, reference = small_viewing(), small_reference()
    found = viewing.outputs(nets, camera_at(POSE, 64, 48, 55.0))
    assert found["depth"][40, 30, 0] == pytest.approx(float(reference.depth.values[40, 30]), rel=1e-3), "no z changed"
    depth = float(reference.depth.values[40, 34])
    K = reference.prepared.K
    x = (34.5 - K[0, 2]) / K[0, 0] * depth - 0.2
    column = int(55.0 * x / depth + 32.0)
    assert np.abs(found["warp"][40, column].numpy() * 255 - reference.prepared.image[40, 34]).max() < 12


def test_the_same_seed_is_the_same_picture_in_any_batch(nets):
    viewing, settings = small_viewing(), Settings("unipc", 4, 3.0, "legacy")
    reference = small_reference()
    views = [view_of(reference, moved_pose(x), reference.prepared.K, 64, 48) for x in (-0.2, 0.0, 0.1, 0.2)]
    warps = viewing.drawer.warps(views)
    alone = [viewing.drawer.pictures(nets, [v], [w], settings, [3])[0] for v, w in zip(views, warps, strict=True)]
    together = viewing.drawer.pictures(nets, views, warps, settings, [3] * 4)
    worst = max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(alone, together, strict=True))
    assert worst <= 1, "rounded to 8 bits after a difference below 1e-4"
    again = viewing.drawer.pictures(nets, views, warps, settings, [3] * 4)
    other = viewing.drawer.pictures(nets, views, warps, settings, [4] * 4)
    assert all(np.array_equal(a, b) for a, b in zip(together, again, strict=True))
    assert all((a != b).any() for a, b in zip(together, other, strict=True))


def test_a_tool_asks_twice_and_samples_once(nets, monkeypatch):
    viewing = small_viewing()
    calls = counted(viewing, monkeypatch)
    first = viewing.outputs(nets, camera_at(POSE))
    second = viewing.outputs(nets, camera_at(POSE))
    assert calls == [4]
    assert torch.equal(first["rgb"], second["rgb"])
    viewing.outputs(nets, camera_at(moved_pose(0.21)))
    viewing.outputs(nets, camera_at(POSE), seed=5)
    assert calls == [4, 4, 4]
    with torch.no_grad():
        nets.unet.conv_out.bias.add_(0.0)  # pyright: ignore
    viewing.outputs(nets, camera_at(POSE))
    assert len(calls) == 4, "weights that were written to make other pictures"


def counted(viewing: Any, monkeypatch: Any) -> list[int]:
    """Steps of each sampling from now on."""
    calls: list[int] = []
    pictures = viewing.drawer.pictures

    def recorded(nets: Any, views: Any, warps: Any, settings: Settings, *more: Any) -> Any:
        calls.append(settings.steps)
        return pictures(nets, views, warps, settings, *more)

    monkeypatch.setattr(viewing.drawer, "pictures", recorded)
    return calls


def test_another_run_finds_the_folders_pictures(nets, tmp_path: Path, monkeypatch):
    first = small_viewing(cache_folder=tmp_path).outputs(nets, camera_at(POSE))
    viewing = small_viewing(cache_folder=tmp_path)
    calls = counted(viewing, monkeypatch)
    assert torch.equal(viewing.outputs(tiny_networks(), camera_at(POSE))["rgb"], first["rgb"]), "equal weights"
    assert calls == []
    viewing.outputs(tiny_networks(seed=1), camera_at(POSE))
    assert calls == [4]


# ---------------------------------------------------------------------- which reference


def test_a_dataset_camera_has_its_own_reference(nets):
    viewing = small_viewing(5)
    camera = camera_at(POSE, metadata={"pair_idx": torch.tensor([[3]])})
    assert viewing.reference(camera).name == "waves1.5"
    assert viewing.reference(camera_at(POSE, metadata={"cam_idx": 2})).name == "waves1", "--camera-idx"
    assert viewing.reference(camera_at(POSE)).name == "waves0"


def test_a_browser_changes_it_by_clicking_or_in_the_panel(tmp_path: Path, capsys):
    viewing = small_viewing(5)
    browser, panel = object(), viewing.panel
    assert panel is not None

    def shown(index: int = 0) -> str:
        return viewing.reference(viewer_camera(index=index), browser).name

    assert shown() == "waves0"
    panel._pair(SimpleNamespace(value=2))
    assert shown() == "waves1"
    assert shown(4) == "waves2", "clicked"
    panel._pair(SimpleNamespace(value=1))
    assert shown(4) == "waves0.5", "the last choice counts"
    panel._pair(SimpleNamespace(value=99))
    assert shown(4) == "waves0.5", "no such pair"
    assert "is not among the data's pairs" in capsys.readouterr().out
    file = write_photo(tmp_path, "mine")
    panel._photo(SimpleNamespace(value=str(file)[:-2]))
    assert shown(4) == "waves0.5", "half typed"
    panel._photo(SimpleNamespace(value=f" {file} "))
    assert shown(4) == "mine"
    file.with_suffix(".npy").unlink()
    panel._photo(SimpleNamespace(value=str(file)))
    assert "has none" in capsys.readouterr().out
    assert viewing.reference(viewer_camera()).name == "waves0", "tools keep the config's"


def test_the_options_photo_comes_before_the_datas(tmp_path: Path):
    viewing = small_viewing(2, reference_image=write_photo(tmp_path, "mine"))
    assert viewing.reference(camera_at(POSE)).name == "mine"
    assert viewing.reference(camera_at(POSE, metadata={"cam_idx": 1})).name == "waves0.5"


def test_a_view_becomes_the_reference_where_it_stands(nets):
    viewing = small_viewing()
    assert viewing.panel is not None
    viewing.panel._view(None)  # nothing is shown yet
    Browser(viewing, lambda: viewing.outputs(nets, viewer_camera())).drawn()
    viewing.panel._view(None)
    found = viewing.reference(viewer_camera(), object())
    assert found.name == "view"
    np.testing.assert_allclose(found.pose, POSE, atol=1e-6)
    np.testing.assert_allclose(found.rel(POSE), np.eye(4), atol=1e-6)
    shown = Browser(viewing, lambda: viewing.outputs(nets, viewer_camera()), state="low_static").drawn()
    assert shown["coverage"].mean() > 0.9, "from its own place it is whole"


# ---------------------------------------------------------------------- stages


def test_small_or_moving_pictures_are_the_warp_at_once(nets, monkeypatch):
    viewing = small_viewing()
    calls = counted(viewing, monkeypatch)
    Browser(viewing, lambda: viewing.outputs(nets, viewer_camera((40, 30)))).drawn()  # opens the reference
    start = time.monotonic()
    small = Browser(viewing, lambda: viewing.outputs(nets, viewer_camera((40, 30)))).drawn()
    moving = Browser(viewing, lambda: viewing.outputs(nets, viewer_camera((80, 60))), state="low_move").drawn()
    assert time.monotonic() - start < 1.0
    for found in (small, moving):
        assert torch.equal(found["rgb"], found["warp"])
    assert calls == []
    direct = viewing.outputs(nets, camera_at(POSE, 40, 30, 34.4))
    assert not torch.equal(direct["rgb"], direct["warp"]), "a tool gets what it asked for"


def test_few_steps_then_the_finished_picture_then_the_cache(nets, monkeypatch):
    viewing = small_viewing()
    calls = counted(viewing, monkeypatch)

    def draw(state: str = "high") -> tuple[Any, list[str]]:
        browser = Browser(viewing, lambda: viewing.outputs(nets, viewer_camera()), state)
        return browser.drawn()["rgb"], browser.actions

    few, again = draw()
    assert (calls, again) == ([2], ["step"]), "it asks to be drawn once more"
    full, again = draw()
    assert (calls, again) == ([2, 4], [])
    assert not torch.equal(few, full)
    same, again = draw()
    assert (calls, again) == ([2, 4], [])
    assert torch.equal(same, full)
    low, _ = draw("low_static")
    assert torch.equal(low, full), "what is finished is shown at once"
    tool = viewing.outputs(nets, camera_at(POSE, 64, 48, 64 * 0.86))
    assert torch.equal(tool["rgb"], full)
    assert calls == [2, 4]


def test_the_panel_speaks_to_browsers_alone(nets):
    viewing = small_viewing()
    panel: Any = viewing.panel
    Browser(viewing, lambda: None)
    panel.seed.default_value, panel.scale.default_value, panel.steps.default_value = 7, 2.0, 3
    browser = object()
    assert panel.look(None) == panel.default
    look = panel.look(browser)
    assert (look.seed, look.scale, look.steps) == (7, 2.0, 3)
    view = view_of(small_reference(), POSE, small_reference().prepared.K, 64, 48, look.scale)
    np.testing.assert_allclose(view.rel[:3, 3], [0.4, 0, 0])
    assert view.unit == 0.5
    other = view_of(small_reference(), moved_pose(0.3), small_reference().prepared.K, 64, 48)
    assert viewing_module.own_seed(7, view) == viewing_module.own_seed(7, view) != viewing_module.own_seed(7, other)


# ---------------------------------------------------------------------- interruption


def raising_after(seconds: float, moment: list[float] | None = None) -> Any:
    """A trace hook as nerfstudio's ``check_interrupt``: raises once, at the first line after so many seconds."""
    deadline = time.monotonic() + seconds
    fired: list[bool] = []

    def trace(frame: Any, event: str, _: Any) -> Any:
        if event == "line" and not fired and time.monotonic() > deadline:
            fired.append(True)
            if moment is not None:
                moment.append(time.monotonic())
            raise Moved
        return trace

    return trace


def test_a_moving_camera_cancels_within_a_step(nets, monkeypatch):
    viewing = small_viewing(steps=200, preview_steps=0)
    times: list[float] = []
    predict = nets.predict_noise

    def slowly(*given: Any) -> Any:
        time.sleep(0.02)
        times.append(time.monotonic())
        return predict(*given)

    monkeypatch.setattr(nets, "predict_noise", slowly)
    moment: list[float] = []
    browser = Browser(viewing, lambda: viewing.outputs(nets, viewer_camera()), trace=raising_after(0.5, moment))
    with pytest.raises(Moved):
        browser.drawn()
    left = time.monotonic()
    assert left - moment[0] < 0.2, "the train lock is free at once"
    assert viewing.worker.idle(5)
    assert 1 <= len(times) < 100
    assert sum(each > moment[0] for each in times) <= 2, "at most the step under way"
    assert len(viewing.cache) == 0, "nothing partial is kept"
    monkeypatch.undo()
    viewing.sampling.steps = 4
    viewing.attach(ReferenceShelf(lambda pair: small_reference(), range(1)))
    after = Browser(viewing, lambda: viewing.outputs(nets, viewer_camera())).drawn()
    fresh = small_viewing(preview_steps=0)
    expected = Browser(fresh, lambda: fresh.outputs(nets, viewer_camera())).drawn()
    assert torch.equal(after["rgb"], expected["rgb"])


def test_interrupted_at_any_line_the_next_picture_is_whole(nets):
    viewing = small_viewing()
    camera = viewer_camera()
    expected = viewing.outputs(nets, camera_at(POSE, 64, 48, 64 * 0.86))["rgb"]
    interrupted = 0
    for line in range(1, 400):
        fresh, left = small_viewing(preview_steps=2), [line * 3]

        def trace(frame: Any, event: str, _: Any, left: list[int] = left) -> Any:
            if event == "line" and "megascenes_ns" in frame.f_code.co_filename:
                left[0] -= 1
                if left[0] == 0:
                    raise Moved
            return trace

        browser = Browser(fresh, lambda: fresh.outputs(nets, camera), trace=trace)  # noqa: B023 (runs now)
        try:
            browser.drawn()
            break
        except Moved:
            interrupted += 1
        found = None
        for _ in range(3):
            found = Browser(fresh, lambda: fresh.outputs(nets, camera)).drawn()["rgb"]  # noqa: B023
        assert found is not None
        assert torch.equal(found, expected)
        if line > 12:
            break
    assert interrupted > 8


def test_errors_do_not_end_a_browsers_thread(nets, capsys):
    viewing = small_viewing()

    def broken(pair: int) -> Any:
        raise DataError("photo.jpg", "", "is gone.", "Put it back.")

    viewing.attach(ReferenceShelf(broken, range(2)))
    found = Browser(viewing, lambda: viewing.outputs(nets, viewer_camera())).drawn()
    assert tuple(found) == OUTPUTS
    assert max(float(value.max()) for value in found.values()) == 0
    assert "photo.jpg: is gone." in capsys.readouterr().out
    with pytest.raises(DataError):
        viewing.outputs(nets, camera_at(POSE))


def test_other_cameras_are_refused(nets):
    from nerfstudio.cameras.cameras import CameraType

    camera = camera_at(POSE)
    camera.camera_type = torch.full_like(camera.camera_type, CameraType.EQUIRECTANGULAR.value)
    with pytest.raises(DataError, match="equirectangular"):
        small_viewing().outputs(nets, camera)
    with pytest.raises(RuntimeError):
        type(small_viewing())(small_viewing().options, small_viewing().sampling, "legacy").outputs(nets, camera)
