"""Pictures for cameras: which clip, which latent, which outputs (spec xfactor 8.2, 8.3; handbook 4.4, 5, 10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gallery_worlds import NOISE, SIDE, camera, gallery, lively, make_model, orbit
from nerfstudio.cameras.camera_paths import get_interpolated_camera_path, get_spiral_path
from nerfstudio.cameras.cameras import Cameras, CameraType

from core_ns.errors import DataError
from xfactor_ns import viewing as viewing_module
from xfactor_ns.probe import Probe, save_probe
from xfactor_ns.probe_fit import encoder_fingerprint
from xfactor_ns.transfer import clip_latents, render_images
from xfactor_ns.view_options import ViewOptions
from xfactor_ns.viewer_panel import Look
from xfactor_ns.viewing import Viewing, frame_of, pose_of, rgba

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]
KITCHEN, GARDEN, STATUE, HALL = range(4)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model()


def expected(model: Any, scene: int, latent: torch.Tensor, frames: int = 1) -> torch.Tensor:
    """The picture by the plain functions, without bank and cache; [S S 3] in [0, 1]."""
    clip = model.viewing.clips[scene]
    _, pixels, known = model.viewing.bank.context(model.net, clip, frames)
    (picture,) = next(iter(render_images(model.net, pixels, known, latent[None])))
    return (picture + 1) / 2


def latents_of(model: Any, clip: int) -> torch.Tensor:
    found = model.viewing.clips[clip]
    return clip_latents(model.net, torch.from_numpy(found.read()), found.reference)


def shows(outputs: dict[str, torch.Tensor], picture: torch.Tensor) -> bool:
    return bool((outputs["rgb"] - picture).abs().max() < 1e-4)


def at(model: Any, clip: int, frame: int, size: int = SIDE, **metadata: Any) -> Cameras:
    return camera(model.viewing.clips[clip].c2w[frame], size, size, **metadata)


# ------------------------------------------------------------------ outputs


@pytest.mark.parametrize(("height", "width"), [(24, 24), (2, 2), (31, 17), (1, 9), (40, 70)])
def test_outputs_fit_the_frame_that_was_asked_for(model, height, width):
    outputs = model.viewing.outputs_for_camera(model, camera(gallery()[0].c2w[2], height, width))
    channels = {"rgb": 3, "accumulation": 1, "depth": 1, "context": 3, "pose_frame": 3}
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        name: (height, width, count) for name, count in channels.items()
    }
    for value in outputs.values():
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert 0 <= float(value.min()) <= float(value.max()) <= 1
    side = min(height, width)
    assert outputs["accumulation"].sum() == side**2
    beside = outputs["accumulation"][..., 0] == 0
    assert outputs["rgb"][beside].abs().sum() == 0, "never stretched"
    assert outputs["depth"].abs().sum() == 0
    cut = rgba(outputs)
    assert cut.shape == (height, width, 4)
    assert torch.equal(cut[..., 3:], outputs["accumulation"])


def test_a_frames_own_camera_shows_it_with_its_own_latent(model):
    """Exact pose copying, from the pose alone and from the metadata of the gallery."""
    for clip in range(4):
        latents = latents_of(model, clip)
        for frame in range(len(latents)):
            picture = expected(model, clip, latents[frame])
            assert shows(model.viewing.outputs_for_camera(model, at(model, clip, frame)), picture)
            tagged = at(model, clip, frame, clip_id=torch.tensor([[clip]]), frame_pos=torch.tensor([[frame]]))
            outputs = model.viewing.outputs_for_camera(model, tagged)
            assert shows(outputs, picture)
            truth = torch.from_numpy(model.viewing.clips[clip].read()[frame]) / 255
            assert torch.allclose(outputs["pose_frame"], truth, atol=1e-6)
            middle = torch.from_numpy(model.viewing.clips[clip].read()[model.viewing.clips[clip].reference]) / 255
            assert torch.allclose(outputs["context"], middle, atol=1e-6)


def test_between_two_frames_their_latents_are_blended(model):
    clip = model.viewing.clips[STATUE]
    latents = latents_of(model, STATUE)
    halfway = orbit(17, 2)[7]  # between frames 3 and 4 of the nine
    outputs = model.viewing.outputs_for_camera(model, camera(halfway, SIDE, SIDE))
    owner, mixture = model.viewing.mixture(model.viewing.panel.look(), camera(halfway), STATUE)
    assert (owner, mixture.frames) == (STATUE, (3, 4))
    np.testing.assert_allclose(mixture.weights, 0.5, atol=0.02)
    blended = mixture.weights[0] * latents[3] + mixture.weights[1] * latents[4]
    assert shows(outputs, expected(model, STATUE, blended))
    assert clip.reference == 4


def test_moving_sideways_along_a_film_strip_goes_through_the_clip(model):
    weights = []
    for place in np.linspace(0, 1.2, 13):
        c2w = np.eye(4)
        c2w[0, 3] = place
        _, mixture = model.viewing.mixture(model.viewing.panel.look(), camera(c2w), KITCHEN)
        weights.append(float(np.dot(mixture.frames, mixture.weights)))
    np.testing.assert_allclose(weights, np.linspace(0, 6, 13), atol=1e-5)


# ------------------------------------------------------------------ which clip


def test_the_scene_is_the_frames_own_then_the_clicked_then_the_nearest(model):
    viewing = model.viewing
    assert viewing.home_of(at(model, HALL, 1)) == HALL
    assert viewing.home_of(at(model, HALL, 1, cam_idx=8)) == GARDEN, "the ninth training camera is the garden's"
    assert viewing.home_of(at(model, HALL, 1, cam_idx=0)) == KITCHEN
    assert viewing.home_of(at(model, HALL, 1, cam_idx=999)) == HALL, "no such training camera"
    tagged = at(model, HALL, 1, cam_idx=0, clip_id=torch.tensor([[STATUE]]), frame_pos=torch.tensor([[2]]))
    assert viewing.home_of(tagged) == STATUE
    assert frame_of(at(model, HALL, 1)) is None
    assert frame_of(at(model, HALL, 1, cam_idx=3)) is None


def test_motion_of_another_clip_in_this_scene():
    """The transfer that the paper is about, driven by a camera."""
    model = make_model(ViewOptions(pose_clip="statue"))
    latents, statue = latents_of(model, STATUE), model.viewing.clips[STATUE]
    kitchen = model.viewing.clips[KITCHEN]
    for frame in (0, 4, 8):
        # The statue's camera motion, laid out from the kitchen's reference in the kitchen's own unit.
        relative = statue.path.relative[frame].copy()
        relative[:3, 3] *= kitchen.path.scale
        reference = np.vstack([kitchen.c2w[kitchen.reference], [0, 0, 0, 1]])
        moved = camera(reference @ relative, SIDE, SIDE, cam_idx=0)
        assert shows(model.viewing.outputs_for_camera(model, moved), expected(model, KITCHEN, latents[frame]))
    # A frame of the kitchen keeps its own scene but not its own latent.
    tagged = at(model, KITCHEN, 1, clip_id=torch.tensor([[KITCHEN]]), frame_pos=torch.tensor([[1]]))
    owner, _ = model.viewing.mixture(model.viewing.panel.look(), tagged, KITCHEN)
    assert owner == STATUE


def test_a_frame_of_one_clip_in_the_scene_of_another():
    """``ns-render dataset`` with a scene that the config names: every clip's own motion, drawn there."""
    model = make_model(ViewOptions(context_clip="garden"))
    latents = latents_of(model, STATUE)
    for frame in (0, 3, 8):
        tagged = at(model, STATUE, frame, clip_id=torch.tensor([[STATUE]]), frame_pos=torch.tensor([[frame]]))
        assert shows(model.viewing.outputs_for_camera(model, tagged), expected(model, GARDEN, latents[frame]))


def test_options_choose_the_scene_and_the_context():
    model = make_model(ViewOptions(context_clip="garden", context_frames=3))
    outputs = model.viewing.outputs_for_camera(model, at(model, KITCHEN, 2))
    assert outputs["context"].shape == (SIDE, SIDE, 3)
    drawn = model.viewing.draw(model, at(model, KITCHEN, 2), model.viewing.panel.look())
    assert drawn.context == (GARDEN, [2, 0, 4])
    assert make_model(context_frames=5).viewing.panel.look().frames == 5, "as in training"


@pytest.mark.parametrize("control", ["trajectory", "nearest", "blend"])
def test_controls(control):
    model = make_model(ViewOptions(control=control, neighbours=2))
    seen = at(model, STATUE, 4)
    owner, mixture = model.viewing.mixture(model.viewing.panel.look(), seen, STATUE)
    assert owner == STATUE
    assert mixture.strongest == 4
    assert len(mixture.frames) == (2 if control == "blend" else 1)
    assert model.viewing.outputs_for_camera(model, seen)["rgb"].std() > 0


def test_the_position_slider_needs_no_camera(model):
    latents = latents_of(model, GARDEN)
    look = Look("trajectory", GARDEN, None, 1, share=0.25)
    drawn = model.viewing.draw(model, camera(np.eye(4)), look)
    assert drawn.pose == (GARDEN, 1)
    assert torch.allclose(drawn.picture, expected(model, GARDEN, latents[1]), atol=1e-4)


# ------------------------------------------------------------------ nerfstudio's own paths


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # nerfstudio's interpolation
@pytest.mark.filterwarnings("ignore:Using torch.cross without:UserWarning")  # nerfstudio's spiral
def test_paths_of_the_tools_carry_no_metadata_and_work(model):
    """``ns-render interpolate`` and ``spiral`` drop it (handbook 5)."""
    hall = model.viewing.clips[HALL]
    cameras = Cameras(
        torch.from_numpy(hall.c2w).float(), 20.0, 20.0, 16.0, 16.0, width=SIDE, height=SIDE,
        metadata={"clip_id": torch.full((6, 1), HALL), "frame_pos": torch.arange(6)[:, None]},
    )  # fmt: skip
    assert frame_of(cameras[2:3]) == (HALL, 2), "as the loaders hand them out"
    path = get_interpolated_camera_path(cameras, steps=3, order_poses=False)
    pictures = [model.viewing.outputs_for_camera(model, path[index : index + 1])["rgb"] for index in range(len(path))]
    assert all(model.viewing.home_of(path[index : index + 1]) == HALL for index in range(len(path)))
    assert len({tuple(picture.flatten()[:50].tolist()) for picture in pictures}) > 6, "they move"
    spiral = get_spiral_path(cameras[0:1], steps=4, radius=0.1)
    for index in range(4):
        assert model.viewing.home_of(spiral[index : index + 1]) == HALL
    path.metadata = {"cam_idx": 0}
    assert model.viewing.home_of(path[1:2]) == KITCHEN, "--camera-idx"


@pytest.mark.parametrize("kind", [CameraType.FISHEYE, CameraType.EQUIRECTANGULAR])
def test_other_cameras_are_refused(model, kind):
    with pytest.raises(DataError, match="Choose the camera type perspective"):
        model.viewing.outputs_for_camera(model, camera(np.eye(4), kind=kind))


# ------------------------------------------------------------------ cache


def test_a_new_size_costs_no_network(model, monkeypatch):
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return render_images(*arguments)

    monkeypatch.setattr(viewing_module, "render_images", counted)
    made = make_model()
    for size in (30, 60, 512):
        made.viewing.outputs_for_camera(made, at(made, KITCHEN, 1, size))
    assert len(calls) == 1
    made.viewing.outputs_for_camera(made, at(made, KITCHEN, 2))
    assert len(calls) == 2
    first = made.viewing.outputs_for_camera(made, at(made, KITCHEN, 1))["rgb"]
    with torch.no_grad():
        made.net.renderer.head.fc2.bias.add_(0.7)
    second = made.viewing.outputs_for_camera(made, at(made, KITCHEN, 1))["rgb"]
    assert len(calls) == 4
    assert (first - second).abs().max() > 0.05, "new weights, new picture"


def test_no_checkpoint_knows_the_viewing(model):
    assert list(model.viewing.state_dict()) == []
    assert list(model.viewing.parameters()) == []


# ------------------------------------------------------------------ metrics


def test_metrics_of_a_frame(model):
    tagged = at(model, KITCHEN, 1, clip_id=torch.tensor([[KITCHEN]]), frame_pos=torch.tensor([[1]]))
    outputs = model.viewing.outputs_for_camera(model, tagged)
    truth = torch.from_numpy(model.viewing.clips[KITCHEN].read()[1]) / 255
    metrics, pictures = model.viewing.image_metrics(outputs, {"image": truth})
    mse = (outputs["rgb"] - truth).square().mean()
    assert metrics["psnr"] == pytest.approx(float(-10 * torch.log10(mse)), abs=1e-4)
    assert "ssim" in metrics
    assert pictures["img"].shape == (SIDE, 3 * SIDE, 3)
    with_alpha = torch.cat([truth, torch.ones(SIDE, SIDE, 1)], dim=-1)
    assert model.viewing.image_metrics(outputs, {"image": with_alpha})[0] == metrics
    perfect = dict(outputs, rgb=truth)
    assert model.viewing.image_metrics(perfect, {"image": truth})[0]["psnr"] == 100


def test_metrics_leave_the_black_bars_out(model):
    wide = camera(model.viewing.clips[KITCHEN].c2w[1], SIDE, 2 * SIDE)
    outputs = model.viewing.outputs_for_camera(model, wide)
    square = model.viewing.outputs_for_camera(model, at(model, KITCHEN, 1))
    truth = torch.from_numpy(model.viewing.clips[KITCHEN].read()[1]) / 255
    found, known = (model.viewing.image_metrics(each, {"image": truth})[0]["psnr"] for each in (outputs, square))
    assert found == pytest.approx(known, abs=1e-4)


# ------------------------------------------------------------------ probe


def probe_file(folder: Any, net: Any) -> Any:
    torch.manual_seed(0)
    probe = Probe(6)
    save_probe(folder / "probe.safetensors", probe, {"encoder": encoder_fingerprint(net)})
    return folder / "probe.safetensors"


@pytest.mark.parametrize("control", ["regress", "invert"])
def test_a_probe_gives_latents_that_no_frame_has(tmp_path, control):
    net = lively()
    model = make_model(ViewOptions(control=control, probe=probe_file(tmp_path, net), invert_steps=3))
    still = model.viewing.outputs_for_camera(model, at(model, STATUE, 4))["rgb"]
    at_rest = expected(model, STATUE, torch.zeros(6))
    if control == "regress":
        assert torch.allclose(still, at_rest, atol=1e-4), "the reference camera is the zero latent"
    away = np.array(model.viewing.clips[STATUE].c2w[4])
    away[:, 3] += 0.5
    assert (model.viewing.outputs_for_camera(model, camera(away, SIDE, SIDE))["rgb"] - at_rest).abs().max() > 1e-3


def test_a_probe_of_other_weights_is_refused(tmp_path):
    model = make_model(ViewOptions(control="regress", probe=probe_file(tmp_path, lively(5))))
    with pytest.raises(DataError, match="is not the one of these weights"):
        model.viewing.outputs_for_camera(model, at(model, STATUE, 1))


# ------------------------------------------------------------------ what cannot be drawn


def test_clips_that_are_not_there_are_named():
    with pytest.raises(DataError, match=r"'attic' is not in the gallery\. Choose of: kitchen, garden, statue, hall"):
        make_model(ViewOptions(context_clip="attic"))
    viewing = Viewing(ViewOptions())
    with pytest.raises(DataError, match="holds no clip"):
        viewing.attach([], [], 1)
    with pytest.raises(RuntimeError, match="no gallery"):
        viewing.outputs_for_camera(make_model(), camera(np.eye(4)))


def test_poses_are_read_in_double_precision():
    assert pose_of(camera(np.eye(4))).dtype == np.float64
    paths = Cameras(torch.eye(4)[None, :3].int(), 20.0, 20.0, 8.0, 8.0, width=16, height=16)
    assert np.array_equal(pose_of(paths), np.eye(4)[:3]), "a path whose JSON says 1, not 1.0"
