"""The model as nerfstudio calls it: outputs, compositing, who trains what, crops, camera types."""

from __future__ import annotations

import pytest
import torch
from xscale_models import (
    NOISE,
    CameraType,
    box_surface,
    bundle,
    camera,
    generator,
    make_model,
    quad_surface,
)

from core_ns.errors import DataError
from xscale_ns.model import XScaleModel, XScaleModelConfig
from xscale_ns.rays import image_pixels, pixel_rays

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

CHANNELS = {"rgb": 3, "accumulation": 1, "depth": 1, "normal": 3, "face_id": 1}


def rays_at_quad(pixels: int, samples: int, seed: int = 0, spread: float = 1.6):
    """[N, S] rays from above towards random points of the plane z = 0; the quad covers |x|, |y| < 1 of it."""
    rng = generator(seed)
    target = (torch.rand(pixels, 1, 3, generator=rng) * 2 - 1) * spread
    target = target + 0.2 * (torch.rand(pixels, samples, 3, generator=rng) * 2 - 1)
    target[..., 2] = 0
    origins = torch.tensor([0.3, -0.2, 2.5]).expand(pixels, samples, 3).contiguous()
    hit = (target[..., :2].abs() < 1).all(dim=-1)
    return origins, torch.nn.functional.normalize(target - origins, dim=-1), hit


@pytest.fixture(scope="module")
def model() -> XScaleModel:
    return make_model(quad_surface(), output_face_id=True)


# -------------------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (6, 1), (5, 4), (4,)])
def test_rays_give_all_outputs_in_shape(model: XScaleModel, training: bool, shape: tuple) -> None:
    model.train(training)
    origins, directions, _ = rays_at_quad(shape[0], shape[1] if len(shape) == 2 else 1)
    if len(shape) == 1:
        origins, directions = origins[:, 0], directions[:, 0]
    outputs = model(bundle(origins, directions, torch.zeros(shape[0], dtype=torch.int64)))
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {
        key: (shape[0], channels) for key, channels in CHANNELS.items()
    }
    for key, value in outputs.items():
        assert value.dtype == torch.float32, key
        assert torch.isfinite(value).all(), key
    assert outputs["rgb"].requires_grad


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 2), (5, 7), (7, 1)])
@pytest.mark.parametrize("batched", [True, False])
def test_cameras_give_images_of_any_size(model: XScaleModel, training, width, height, batched) -> None:
    model.train(training)
    view = camera(width, height, focal=3.0)
    assert view.times is None
    outputs = model.get_outputs_for_camera(view if batched else view[0])
    expected = {key: (height, width, channels) for key, channels in CHANNELS.items()}
    assert {key: tuple(value.shape) for key, value in outputs.items()} == expected
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in outputs.values())
    assert not outputs["rgb"].requires_grad
    assert outputs["rgb"].min() >= 0
    assert outputs["rgb"].max() <= 1
    timed = camera(width, height, focal=3.0, times=torch.zeros(1, 1))
    assert torch.equal(model.eval().get_outputs_for_camera(timed)["depth"], outputs["depth"])


def test_chunks_and_camera_images_equal_plain_rays() -> None:
    whole = make_model(quad_surface(), eval_sub_samples=4, eval_num_rays_per_chunk=1 << 20).eval()
    pieces = make_model(quad_surface(), eval_sub_samples=4, eval_num_rays_per_chunk=100).eval()
    view = camera(13, 11, focal=11.0, principal=(6.1, 4.7))
    image, chunked = whole.get_outputs_for_camera(view), pieces.get_outputs_for_camera(view)
    for key in image:
        torch.testing.assert_close(image[key], chunked[key], atol=1e-6, rtol=0)
    index = torch.zeros(13 * 11, dtype=torch.int64)
    parts = [pixel_rays(view, index, image_pixels(13, range(11), (x, y))) for y in (0.25, 0.75) for x in (0.25, 0.75)]
    origins, directions = (torch.stack([part[i] for part in parts], dim=1) for i in (0, 1))
    outputs = whole(bundle(origins, directions))
    for key in image:
        torch.testing.assert_close(image[key].reshape(143, -1), outputs[key], atol=1e-5, rtol=0)
    partly = (image["accumulation"] > 0) & (image["accumulation"] < 1)
    assert partly.any(), "the silhouette crosses pixels"


def test_alpha_is_the_share_of_hits_and_misses_lie_behind(model: XScaleModel) -> None:
    origins, directions, hit = rays_at_quad(300, 4)
    outputs = model.eval()(bundle(origins, directions))
    torch.testing.assert_close(outputs["accumulation"][:, 0], hit.float().mean(dim=1))
    distance = -origins[..., 2] / directions[..., 2]
    seen = hit.any(dim=1)
    mean = (distance * hit).sum(dim=1)[seen] / hit.sum(dim=1)[seen]
    torch.testing.assert_close(outputs["depth"][seen, 0], mean, atol=1e-5, rtol=0)
    assert (~seen).sum() > 20
    assert (outputs["depth"][~seen] >= outputs["depth"][seen].max()).all()
    assert torch.equal(outputs["normal"][seen], torch.tensor([0.5, 0.5, 1.0]).expand(int(seen.sum()), 3))
    assert (outputs["normal"][~seen] == 0).all()
    assert set(outputs["face_id"][hit[:, 0]].unique().tolist()) == {0.0, 1.0}
    assert (outputs["face_id"][~hit[:, 0]] == -1).all()
    nothing = model(bundle(*rays_at_quad(5, 2, spread=0.1)[:1], -rays_at_quad(5, 2)[1]))
    assert (nothing["accumulation"] == 0).all()
    assert torch.isfinite(nothing["depth"]).all()


def test_the_composite_equals_a_loop_over_pixels() -> None:
    model = make_model(quad_surface(), exposure_dim=0).eval()
    origins, directions, hit = rays_at_quad(60, 4, seed=3)
    outputs = model(bundle(origins, directions))
    field = model.field
    for pixel in range(60):
        rays, flags = directions[pixel], hit[pixel]
        behind = model.background(torch.nn.functional.normalize(rays.sum(dim=0, keepdim=True), dim=-1))[0]
        colour, alpha = torch.zeros(3), flags.float().mean()
        if flags.any():
            t = -origins[pixel, :, 2] / rays[:, 2]
            points = (origins[pixel] + t[:, None] * rays)[flags]
            towards = torch.nn.functional.normalize(rays[flags].sum(dim=0, keepdim=True), dim=-1)
            colour = field(field.features(points).mean(dim=0, keepdim=True), towards, {})[0]
        expected = alpha * colour + (1 - alpha) * behind
        torch.testing.assert_close(outputs["rgb"][pixel], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "shade"), [("white", 1.0), ("black", 0.0)])
def test_constant_backgrounds_show_where_nothing_is_hit(name: str, shade: float) -> None:
    model = make_model(quad_surface(), background=name).eval()
    origins, directions, hit = rays_at_quad(200, 1)
    outputs = model(bundle(origins, directions))
    assert (outputs["rgb"][~hit[:, 0]] == shade).all()
    assert "background" not in model.get_param_groups()


def test_rgba_has_the_hit_share_as_alpha(model: XScaleModel) -> None:
    outputs = model.eval().get_outputs_for_camera(camera(8, 6))
    rgba = model.get_rgba_image(outputs)
    assert torch.equal(rgba, torch.cat([outputs["rgb"], outputs["accumulation"]], dim=-1))


def test_a_model_without_a_surface_is_refused() -> None:
    with pytest.raises(DataError, match="no mesh"):
        XScaleModelConfig().setup(scene_box=None, num_train_data=1, metadata={}, device="cpu", grad_scaler=None)


# ------------------------------------------------------------------------------------------------------------- training


def moved(model: XScaleModel) -> dict[str, bool]:
    """Which parameter groups have a gradient that is not zero."""
    groups = model.get_param_groups()
    return {
        name: any(p.grad is not None and bool((p.grad.to_dense() != 0).any()) for p in parameters)
        for name, parameters in groups.items()
    }


@pytest.mark.parametrize(("which", "surface", "background"),
                         [("hits", True, False), ("misses", False, True), ("silhouette", True, False)])  # fmt: skip
def test_surface_learns_from_hits_and_background_from_pure_misses(which, surface, background) -> None:
    model = make_model(quad_surface()).train()
    origins, directions, hit = rays_at_quad(400, 4)
    share = hit.float().mean(dim=1)
    chosen = {"hits": share == 1, "misses": share == 0, "silhouette": (share > 0) & (share < 1)}[which]
    assert chosen.sum() > 10
    rays = bundle(origins[chosen], directions[chosen], torch.zeros(int(chosen.sum()), dtype=torch.int64))
    outputs = model(rays)
    losses = model.get_loss_dict(outputs, {"image": torch.rand(int(chosen.sum()), 3, generator=generator(1))})
    sum(losses.values()).backward()
    expected = {"hash": surface, "head": surface, "exposure": surface, "background": background}
    assert moved(model) == expected
    assert (float(losses["surface"].detach()) > 0) is surface
    assert (float(losses["background"].detach()) > 0) is background


def test_loss_is_the_mean_absolute_error_over_the_batch() -> None:
    model = make_model(quad_surface()).train()
    origins, directions, hit = rays_at_quad(100, 1)
    with torch.no_grad():
        outputs = model(bundle(origins, directions, torch.zeros(100, dtype=torch.int64)))
    truth = torch.rand(100, 4, generator=generator(2))
    losses = model.get_loss_dict(outputs, {"image": truth})
    error = (outputs["rgb"] - truth[:, :3]).abs().mean(dim=-1)
    assert float(losses["surface"] + losses["background"]) == pytest.approx(float(error.mean()), rel=1e-5)
    assert float(losses["surface"]) == pytest.approx(float(error[hit[:, 0]].sum() / 100), rel=1e-5)
    metrics = model.get_metrics_dict(outputs, {"image": truth})
    mse = (outputs["rgb"] - truth[:, :3])[hit[:, 0]].square().mean()
    assert float(metrics["psnr"]) == pytest.approx(float(-10 * torch.log10(mse)), rel=1e-4)
    assert float(metrics["coverage"]) == pytest.approx(float(hit.float().mean()))


def test_training_rays_take_their_views_exposure_and_evaluation_the_mean() -> None:
    model = make_model(quad_surface(), views=4)
    with torch.no_grad():
        model.field.exposure.weight.copy_(torch.randn(4, 4, generator=generator(3)))
    origins, directions, _ = rays_at_quad(30, 2, spread=0.7)
    views = torch.arange(30) % 4
    train = model.train()(bundle(origins, directions, views))["rgb"]
    train.sum().backward()
    mean = model.eval()(bundle(origins, directions, views))["rgb"]
    table = model.field.exposure.table()
    for view in range(4):
        with torch.no_grad():
            model.field.exposure.weight.copy_(table[view].expand(4, 4))  # now the mean is this view's code
        assert torch.allclose(model(bundle(origins, directions))["rgb"][views == view], train[views == view], atol=1e-6)
    with torch.no_grad():
        model.field.exposure.weight.copy_(table.mean(dim=0).expand(4, 4))
    torch.testing.assert_close(model(bundle(origins, directions))["rgb"], mean, atol=1e-6, rtol=0)
    assert (mean - train).abs().max() > 1e-3


def test_displacement_moves_points_in_training_only_and_by_at_most_its_share_of_a_cell() -> None:
    plain, displaced = make_model(quad_surface()), make_model(quad_surface(), displacement=0.5)
    seen: list[torch.Tensor] = []
    features = displaced.field.features
    displaced.field.features = lambda points: (seen.append(points), features(points))[1]  # type: ignore[method-assign]
    origins, directions, hit = rays_at_quad(2000, 1, spread=0.7)
    rays = bundle(origins, directions, torch.zeros(2000, dtype=torch.int64))
    assert torch.equal(plain.eval()(rays)["rgb"], displaced.eval()(rays)["rgb"])
    exact = seen.pop()
    displaced.train()(rays)
    shift = seen.pop() - exact
    cell = 2.0 / displaced.finest_resolution
    along = (shift * directions[hit]).sum(-1)
    torch.testing.assert_close(shift, along[:, None] * directions[hit], atol=1e-6, rtol=0)
    assert along.abs().max() <= 0.5 * cell * 1.001
    assert along.min() < -0.45 * cell
    assert along.max() > 0.45 * cell
    assert abs(float(along.mean())) < 0.02 * cell


def test_known_distances_give_what_casting_gives() -> None:
    model = make_model(quad_surface()).train()
    origins, directions, hit = rays_at_quad(200, 1)
    views = torch.arange(200) % 3
    cast = model(bundle(origins, directions, views))
    t = torch.where(hit, -origins[..., 2] / directions[..., 2], torch.inf)
    model.surface.caster.cast = lambda *_: pytest.fail("cast although distances are known")  # type: ignore[method-assign]
    known = model(bundle(origins, directions, views, t=t[..., None]))
    for key in ("rgb", "accumulation", "depth"):
        torch.testing.assert_close(known[key], cast[key], atol=2e-5, rtol=0)


def test_a_batch_without_hits_trains_without_error() -> None:
    model = make_model(quad_surface()).train()
    origins, directions, _ = rays_at_quad(20, 1)
    outputs = model(bundle(origins, -directions, torch.zeros(20, dtype=torch.int64)))
    losses = model.get_loss_dict(outputs, {"image": torch.zeros(20, 3)})
    assert losses["surface"].item() == 0
    sum(losses.values()).backward()
    assert torch.isfinite(model.get_metrics_dict(outputs, {"image": torch.zeros(20, 3)})["psnr"])


# -------------------------------------------------------------------------------------------------- crops, camera types


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # in nerfstudio's OrientedBox
def test_a_crop_box_hides_what_lies_in_front() -> None:
    from nerfstudio.data.scene_box import OrientedBox

    model = make_model(box_surface((-1.0, -1, -1), (1.0, 1, 1))).eval()
    view = camera(9, 9, focal=9.0, distance=4.0)
    assert model.get_outputs_for_camera(view)["depth"][4, 4].item() == pytest.approx(3.0)
    lower_half = OrientedBox(torch.eye(3), torch.tensor([0.0, 0, -2.0]), torch.tensor([3.0, 3.0, 3.0]))
    outputs = model.get_outputs_for_camera(view, obb_box=lower_half)
    assert outputs["depth"][4, 4].item() == pytest.approx(5.0)
    away = OrientedBox(torch.eye(3), torch.tensor([9.0, 0, 0]), torch.tensor([1.0, 1.0, 1.0]))
    assert (model.get_outputs_for_camera(view, obb_box=away)["accumulation"] == 0).all()


@pytest.mark.parametrize("kind", [CameraType.FISHEYE, CameraType.EQUIRECTANGULAR])
@pytest.mark.parametrize("size", [(32, 16), (5, 7)])
def test_fisheye_and_equirectangular_views_inside_a_closed_box_see_it_everywhere(kind, size) -> None:
    """Acceptance A16."""
    model = make_model(box_surface(), eval_sub_samples=4).eval()
    view = camera(*size, focal=size[0] / 2 if kind == CameraType.EQUIRECTANGULAR else 8.0, distance=0.3, kind=kind)
    outputs = model.get_outputs_for_camera(view)
    assert outputs["rgb"].shape == (size[1], size[0], 3)
    assert all(torch.isfinite(value).all() for value in outputs.values())
    assert (outputs["accumulation"] == 1).all()
    assert outputs["depth"].min() >= 0.69
    assert outputs["depth"].max() <= 3**0.5 + 0.3


def test_outside_an_equirectangular_view_misses_without_nan(model: XScaleModel) -> None:
    outputs = model.eval().get_outputs_for_camera(camera(32, 16, focal=16.0, kind=CameraType.EQUIRECTANGULAR))
    assert all(torch.isfinite(value).all() for value in outputs.values())
    assert 0 < outputs["accumulation"].mean() < 0.5


def test_image_metrics_leave_masked_out_pixels_alone(model: XScaleModel) -> None:
    outputs = model.eval().get_outputs_for_camera(camera(24, 24, focal=16.0))
    truth = torch.rand(24, 24, 3, generator=generator(8))
    mask = torch.rand(24, 24, 1, generator=generator(9)) < 0.7
    plain, _ = model.get_image_metrics_and_images(outputs, {"image": truth})
    spoiled = torch.where(mask, truth, 1 - truth)
    metrics, images = model.get_image_metrics_and_images(outputs, {"image": truth, "mask": mask})
    again, _ = model.get_image_metrics_and_images(outputs, {"image": spoiled, "mask": mask})
    hit = outputs["accumulation"][..., 0] > 0.5
    error = (outputs["rgb"] - truth).square()
    assert plain["coverage"] == pytest.approx(float(hit.float().mean()))
    assert plain["psnr_masked"] == pytest.approx(float(-10 * error[hit].mean().log10()), abs=1e-3)
    valid = hit & mask[..., 0]
    assert metrics["psnr_masked"] == pytest.approx(float(-10 * error[valid].mean().log10()), abs=1e-3)
    assert again["psnr_masked"] == pytest.approx(metrics["psnr_masked"], abs=1e-4)
    assert images["img"].shape == (24, 72, 3)


def test_directions_and_views_are_not_changed_in_place(model: XScaleModel) -> None:
    """Spec xscale 7, defect 15."""
    origins, directions, _ = rays_at_quad(50, 2)
    before = origins.clone(), directions.clone()
    model.train()(bundle(origins, directions, torch.zeros(50, dtype=torch.int64)))
    assert torch.equal(origins, before[0])
    assert torch.equal(directions, before[1])
