"""The model in each of its stages, without a scene (acceptance 3, 6; issue 3: cameras, crop box, background)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diver_runs import NOISE, bundle, largest_difference, make_model, orbit_camera, psnr, rays_from
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context
from nerfstudio.viewer.viewer_elements import ViewerText

from core_ns.errors import DataError
from diver_ns.occupancy import active_vertices
from diver_ns.stages import Stage

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]

KINDS = [CameraType.PERSPECTIVE, CameraType.FISHEYE, CameraType.EQUIRECTANGULAR]


def random_mask(cells: int, share: float = 0.3, seed: int = 3) -> torch.Tensor:
    return torch.rand(cells, cells, cells, generator=torch.Generator().manual_seed(seed)) < share


def in_stage(stage: Stage, mask: torch.Tensor | None = None, **options: Any) -> Any:
    """A model with visible random features in any stage."""
    model: Any = make_model(**options)
    torch.manual_seed(5)
    if stage == Stage.COARSE:
        model.voxels.data.normal_()
    else:
        mask = random_mask(model.config.coarse_resolution) if mask is None else mask
        ids = active_vertices(mask, model.config.resolution)
        model.start_implicit(mask, ids)
        with torch.no_grad():  # as after some training: features of every size
            model.implicit.head.weight.mul_(20)
            model.decoder.point[-1].bias[0] += 0.2
    if stage >= Stage.EXPLICIT:
        with torch.no_grad():
            model.start_explicit(model.implicit(model.vertex_ids, model.grid.resolution))
    if stage == Stage.PRUNED:
        model.prune(random_mask(model.config.resolution, 0.5) & fine_mask(model))
    return model.eval()


def fine_mask(model: Any) -> torch.Tensor:
    return model.mask.repeat_interleave(model.config.resolution // len(model.mask), 0).repeat_interleave(
        model.config.resolution // len(model.mask), 1).repeat_interleave(
        model.config.resolution // len(model.mask), 2)  # fmt: skip


STAGES = list(Stage)


# ------------------------------------------------------------------ implicit and explicit


@torch.no_grad()
def test_baking_changes_no_picture():
    """Acceptance 6."""
    model = in_stage(Stage.IMPLICIT)
    camera = orbit_camera()
    implicit = model.get_outputs_for_camera(camera)
    assert implicit["rgb"].std() > 0.02, "there is something to see"
    table = model.implicit(model.vertex_ids, model.grid.resolution)
    model.implicit.chunk = 100
    assert torch.allclose(model.implicit(model.vertex_ids, model.grid.resolution), table, atol=1e-6)
    model.start_explicit(table)
    model.exact = True
    explicit = model.get_outputs_for_camera(camera)
    difference = max(float((implicit[name] - explicit[name]).abs().max()) for name in implicit)
    print(f"implicit against baked: {difference:.1e}")
    assert difference <= 1e-5
    assert torch.equal(implicit["hits"], explicit["hits"])


def test_checkpointed_evaluation_gives_the_same_pixels_and_gradients():
    model = in_stage(Stage.IMPLICIT)
    rays = rays_from(orbit_camera(size=12))

    def gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        rgb = model.get_outputs(rays)["rgb"]
        rgb.square().sum().backward()
        found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        return rgb.detach(), found

    whole, expected = gradients()
    model.implicit.checkpoint_above, model.implicit.chunk = 0, 64
    chunked, found = gradients()
    assert (whole - chunked).abs().max() <= 1e-5
    assert "implicit.head.weight" in found
    assert "voxels" not in found
    scale = max(float(value.abs().max()) for value in expected.values())
    assert largest_difference(found, expected) <= 1e-5 * scale


def test_only_vertices_of_crossed_voxels_are_evaluated(monkeypatch):
    model, asked = in_stage(Stage.IMPLICIT), []
    evaluate = model.implicit._evaluate
    monkeypatch.setattr(model.implicit, "_evaluate", lambda ids, n: asked.append(ids) or evaluate(ids, n))
    segments, _ = model.features_along(torch.tensor([[0.05, 0.05, 4.0]]), torch.tensor([[0.0, 0.0, -1.0]]))
    ids = torch.cat(asked)
    assert len(ids) == len(ids.unique())
    across = model.grid.resolution + 1
    corners = {(int(z) + k // 4) * across**2 + (int(y) + k // 2 % 2) * across + int(x) + k % 2
               for x, y, z in segments.voxel for k in range(8)}  # fmt: skip
    assert set(ids.tolist()) == corners


# ------------------------------------------------------------------ batches


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("background", [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.1, 0.5, 0.9)])
def test_rays_that_miss_show_the_background_and_teach_nothing(stage, background):
    model = in_stage(stage, background=background).train()
    origins = torch.tensor([[0.0, 0.0, 4.0], [5.0, 5.0, 5.0], [0.0, -4.0, 0.0]])
    directions = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    outputs = model.get_outputs(bundle(origins, directions))
    assert torch.allclose(outputs["rgb"], torch.tensor([background] * 3))
    assert all(float(outputs[name].detach().abs().max()) == 0 for name in ("accumulation", "depth", "hits"))
    losses = model.get_loss_dict(outputs, {"image": torch.full((3, 3), 0.5)})
    (losses["rgb"] + losses["sparsity"]).backward()
    assert losses["sparsity"] == 0
    assert all(float(value.grad.abs().max()) == 0 for value in model.parameters()
               if value.grad is not None and value.grad.numel())  # fmt: skip
    model.eval()
    if stage != Stage.IMPLICIT:
        fast = model._render_realtime(bundle(origins, directions))
        assert torch.allclose(fast["rgb"], torch.tensor([background] * 3))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_trains_exactly_its_parameters(stage):
    model = in_stage(stage).train()
    outputs = model.get_outputs(rays_from(orbit_camera(size=8)))
    losses = model.get_loss_dict(outputs, {"image": torch.zeros(64, 3)})
    assert float(losses["rgb"]) == pytest.approx(float(outputs["rgb"].square().mean()))
    assert float(losses["sparsity"]) == pytest.approx(1e-5 * float(outputs["sparsity"]))
    (losses["rgb"] + losses["sparsity"]).backward()
    trained = {name for name, group in model.get_param_groups().items() for parameter in group
               if parameter.grad is not None and float(parameter.grad.abs().max()) > 0}  # fmt: skip
    assert trained == {"decoder", "implicit" if stage == Stage.IMPLICIT else "voxels"}
    metrics = model.get_metrics_dict(outputs, {"image": torch.zeros(64, 3)})
    assert int(metrics["stage"]) == stage
    assert float(metrics["psnr"]) == pytest.approx(-10 * float(torch.log10(losses["rgb"])), abs=1e-4)
    assert "sparsity" not in model.eval().get_outputs(rays_from(orbit_camera(size=4)))


# ------------------------------------------------------------------ cameras and crop box


LOW, HIGH = torch.tensor([-0.7, -0.35, -0.35]), torch.tensor([0.7, 0.7, 0.35])


@pytest.fixture(scope="module")
def brick() -> Any:
    """An opaque orange brick from `LOW` to `HIGH`, on white: all that is seen of it follows from plain geometry."""
    mask = torch.zeros(8, 8, 8, dtype=torch.bool)
    mask[3:5, 3:6, 2:6] = True  # z, y, x; cells of 0.35
    model = in_stage(Stage.EXPLICIT, mask)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
        model.decoder.point[-1].bias[0] = 30.0
        model.decoder.view[-1].bias.copy_(torch.logit(torch.tensor([0.9, 0.5, 0.1])))
    return model


def interval(o: torch.Tensor, d: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> tuple[Any, Any]:
    """Entry and exit distance of lines and an axis-aligned box, float64."""
    one, other = ((bound.double() - o.double()) / d.double() for bound in (low, high))
    return torch.minimum(one, other).amax(-1), torch.maximum(one, other).amin(-1)


CROP = OrientedBox.from_params((0.3, 0.1, 0.0), (0.2, -0.4, 0.7), (0.9, 0.8, 0.6))


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "realtime"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("crop", [None, CROP], ids=["whole", "crop"])
def test_both_renderers_see_a_brick_where_it_is(brick, kind, crop, exact):
    size = 40
    camera = orbit_camera(size, kind, focal=25.0 if kind == CameraType.FISHEYE else None)
    brick.exact = exact
    outputs = brick.get_outputs_for_camera(camera, obb_box=crop)
    brick.exact = False
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "rgb": (size, size, 3), "accumulation": (size, size, 1), "depth": (size, size, 1), "hits": (size, size, 1),
    }  # fmt: skip
    rays = camera.generate_rays(camera_indices=0, keep_shape=True)
    enter, leave = interval(rays.origins, rays.directions, LOW, HIGH)
    if crop is not None:
        turned = (rays.origins - crop.T.float()) @ crop.R.float(), rays.directions @ crop.R.float()
        near, far = interval(*turned, -crop.S / 2, crop.S / 2)
        enter, leave = torch.maximum(enter, near), torch.minimum(leave, far)
    enter = enter.clamp_min(0)
    surely, surely_not = leave - enter > 1e-3, leave - enter < -1e-3
    seen = outputs["accumulation"][..., 0]
    assert (seen[surely] > 0.999).all()
    assert (seen[surely_not] == 0).all()
    assert 10 < int(surely.sum()) < size * size - 10
    assert torch.allclose(outputs["rgb"][surely], torch.tensor([0.9, 0.5, 0.1]), atol=2e-3)
    assert torch.equal(outputs["rgb"][surely_not], torch.ones(int(surely_not.sum()), 3))
    depth = outputs["depth"][..., 0]
    first = (depth - enter.float())[surely]
    assert (first > -1e-3).all()
    assert (first < 0.35 / 4 * 3**0.5 / 2 + 1e-2).all(), "the middle of the first voxel's piece"


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "realtime"])
def test_depth_is_a_distance_also_where_the_object_is_translucent(brick, exact):
    """A thin brick's mean distance lies inside it, whatever its opacity; the sum of weight and distance does not."""
    thin = copy.deepcopy(brick)
    with torch.no_grad():
        thin.decoder.point[-1].bias[0] = 0.1
    thin.exact = exact
    camera = orbit_camera(24)
    outputs = thin.get_outputs_for_camera(camera)
    rays = camera.generate_rays(camera_indices=0, keep_shape=True)
    enter, leave = interval(rays.origins, rays.directions, LOW, HIGH)
    seen = leave - enter > 1e-3
    opacity, depth = outputs["accumulation"][..., 0][seen], outputs["depth"][..., 0][seen]
    assert opacity.max() < 0.9, "nowhere opaque"
    assert (depth > enter[seen] - 1e-3).all()
    assert (depth < leave[seen] + 1e-3).all()


def test_a_crop_box_shows_the_colour_the_tools_put_behind_it(brick):
    colour = torch.tensor([0.2, 0.4, 0.6])
    for exact in (True, False):
        brick.exact = exact
        plain = brick.get_outputs_for_camera(orbit_camera(24), obb_box=CROP)
        with background_color_override_context(colour):
            other = brick.get_outputs_for_camera(orbit_camera(24), obb_box=CROP)
        brick.exact = False
        empty = plain["accumulation"][..., 0] == 0
        assert torch.allclose(other["rgb"][empty], colour.expand(int(empty.sum()), 3))
        assert torch.allclose(other["rgb"][~empty], plain["rgb"][~empty], atol=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_both_renderers_agree_in_every_stage(stage):
    model = in_stage(stage)
    fast = model.get_outputs_for_camera(orbit_camera())
    model.exact = True
    exact = model.get_outputs_for_camera(orbit_camera())
    assert (fast["rgb"] - exact["rgb"]).abs().max() <= 0.05
    assert psnr(fast["rgb"], exact["rgb"]) > 45
    model.config.eval_num_rays_per_chunk = 100
    chunked = model.get_outputs_for_camera(orbit_camera())
    assert all(torch.allclose(chunked[name], exact[name], atol=1e-5) for name in exact)


def test_the_realtime_table_follows_training():
    model = in_stage(Stage.PRUNED)
    first = model.get_outputs_for_camera(orbit_camera())["rgb"]
    assert model.deploy() is model.deploy(), "made once"
    cells = model.deploy().cells
    optimizer = torch.optim.Adam([model.voxels, *model.decoder.parameters()], lr=0.1)
    model.train().get_outputs(rays_from(orbit_camera(size=8)))["rgb"].sum().backward()
    optimizer.step()
    model.eval()
    second = model.get_outputs_for_camera(orbit_camera())["rgb"]
    assert model.deploy().cells is cells, "the occupancy stays"
    assert (first - second).abs().max() > 0.01
    model.exact = True
    assert psnr(model.get_outputs_for_camera(orbit_camera())["rgb"], second) > 40


def test_the_originals_voxel_rule_looks_the_same_in_real_time():
    """It concerns rays within 1e-4 voxel of a grid plane only (spec diver 11)."""
    model = in_stage(Stage.PRUNED, parity=True)
    shown = model.get_outputs_for_camera(orbit_camera())
    model.exact = True
    exact = model.get_outputs_for_camera(orbit_camera())
    assert psnr(shown["rgb"], exact["rgb"]) > 45


@pytest.mark.parametrize("background", [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
def test_rgba_over_the_background_is_the_picture(background):
    model = in_stage(Stage.EXPLICIT, background=background)
    outputs = model.get_outputs_for_camera(orbit_camera(24))
    rgba = model.get_rgba_image(outputs)
    assert rgba.shape == (24, 24, 4)
    over = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]) * model.background
    assert torch.allclose(over, outputs["rgb"], atol=1e-5)


def test_evaluation_compares_with_the_photo_on_the_same_background():
    model = in_stage(Stage.EXPLICIT, background=(0.0, 0.0, 0.0))
    outputs = model.get_outputs_for_camera(orbit_camera(24))
    photo = torch.cat([outputs["rgb"].clamp(0, 1), torch.ones(24, 24, 1)], dim=-1)
    metrics, pictures = model.get_image_metrics_and_images(outputs, {"image": photo})
    assert metrics["psnr"] > 60
    assert pictures["img"].shape == (24, 72, 3)
    photo[:12] = 0.0  # transparent: the black background
    truth = model.composited(photo)
    assert float(truth[:12].max()) == 0
    mask = torch.ones(24, 24, 1)
    mask[:12] = 0
    masked, _ = model.get_image_metrics_and_images(outputs, {"image": photo, "mask": mask})
    assert masked["psnr"] > 60, "what the mask leaves out does not count"


# ------------------------------------------------------------------ stages and checkpoints


def test_a_stage_changes_data_but_never_parameters():
    model = make_model()
    identity = {name: id(value) for name, value in model.named_parameters()}
    shapes = []
    for stage in (Stage.COARSE, Stage.IMPLICIT, Stage.EXPLICIT, Stage.PRUNED):
        if stage == Stage.IMPLICIT:
            mask = random_mask(8)
            model.start_implicit(mask, active_vertices(mask, 32))
        elif stage == Stage.EXPLICIT:
            model.start_explicit(model.implicit(model.vertex_ids, 32).detach())
        elif stage == Stage.PRUNED:
            model.prune(fine_mask(model) & random_mask(32))
        assert model.stage == stage
        assert {name: id(value) for name, value in model.named_parameters()} == identity
        shapes.append((len(model.voxels), len(model.vertex_ids), sum(p.numel() for p in model.implicit.parameters())))
        assert isinstance(model.stage_text, ViewerText)
        assert model.stage_text.value.startswith(stage.name.lower())
    coarse, implicit, explicit, pruned = shapes
    assert coarse[0] == coarse[1] == 9**3
    assert implicit[0] == 0
    assert explicit[0] == explicit[1] == implicit[1] > pruned[0] == pruned[1] > 0
    assert [shape[2] > 0 for shape in shapes] == [False, True, False, False]


def test_the_networks_of_the_implicit_stage_are_fresh_and_seeded():
    models: list[Any] = [make_model(), make_model()]
    torch.nn.init.constant_(models[1].decoder.point[0].weight, 3.0)
    mask = random_mask(8)
    for model in models:
        torch.manual_seed(11)
        model.start_implicit(mask, active_vertices(mask, 32))
    assert largest_difference(*(dict(model.state_dict()) for model in models)) == 0


@pytest.mark.parametrize("of", STAGES)
def test_any_stage_loads_into_any_other(of, tmp_path):
    source = in_stage(of)
    torch.save(source.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    rays = rays_from(orbit_camera(size=8))
    with torch.no_grad():
        expected = source.get_outputs(rays)["rgb"]
        for target in STAGES:
            model = in_stage(target)
            identity = [id(value) for value in model.parameters()]
            model.load_state_dict(state)
            assert [id(value) for value in model.parameters()] == identity
            assert model.stage == of
            assert model.grid == source.grid
            assert torch.equal(model.get_outputs(rays)["rgb"], expected)


@pytest.mark.parametrize("option", ["decoder_width", "implicit_width", "implicit_depth"])
def test_a_checkpoint_of_another_network_is_refused(option):
    """Its shapes are not simply taken over."""
    other: Any = {option: {"decoder_width": 64, "implicit_width": 48, "implicit_depth": 3}[option]}
    state = in_stage(Stage.IMPLICIT, **other).state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch|Unexpected key"):
        make_model().load_state_dict(state)


@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize("resolution", [16, 64])
def test_a_checkpoint_of_another_resolution_is_refused(stage, resolution):
    state = in_stage(stage).state_dict()
    with pytest.raises(DataError, match="does not fit this model"):
        make_model(resolution=resolution).load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stage_code", torch.tensor(7)),
        ("mask_size", torch.tensor(5)),
        ("vertex_ids", torch.tensor([5, 4, 3])),
        ("voxels", torch.zeros(10, 32)),
        ("mask_bits", torch.zeros(3, dtype=torch.uint8)),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(name, value):
    state = dict(in_stage(Stage.PRUNED).state_dict())
    state[name] = value
    with pytest.raises(DataError, match="does not fit this model"):
        make_model().load_state_dict(state)


def test_a_coarse_grid_that_does_not_divide_the_fine_one_is_refused():
    with pytest.raises(DataError, match="does not divide"):
        make_model(resolution=32, coarse_resolution=12)


@pytest.mark.parametrize("stage", STAGES)
def test_moving_the_model_moves_what_is_derived_from_it(stage):
    """Grid look-ups are no buffers; on a GPU they must be where the buffers are."""
    model = in_stage(stage)
    before = model.index, model.mask
    model.to(torch.device("cpu"))
    assert model.index is not before[0], "made anew"
    assert model.mask is not before[1]
    assert model.mask.device == model.voxels.device


@pytest.mark.gpu
@pytest.mark.parametrize("stage", STAGES)
def test_a_gpu_renders_the_same(stage):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = in_stage(stage)
    expected = model.get_outputs_for_camera(orbit_camera())["rgb"]
    found = model.to("cuda").get_outputs_for_camera(orbit_camera())["rgb"].cpu()
    assert psnr(found, expected) > 45
