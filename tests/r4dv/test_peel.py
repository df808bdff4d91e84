"""Depth peeling against a per-pixel sort, the original's outputs and central differences."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peel_reference import Cloud, View, awkward_cloud, brute_peel, random_cloud

from r4dv_ns import peel as peel_module
from r4dv_ns import peel_fragments
from r4dv_ns.peel import peel
from r4dv_ns.peel_fragments import Window, layer_indices, visible_discs

VIEW = View()


def indices(cloud: Cloud, view: View, layers: int, near=1e-4, min_radius=0.75) -> torch.Tensor:
    window = Window(*view)
    discs = visible_discs(cloud.points, cloud.radius, cloud.alpha, window, near=near, min_radius=min_radius)
    return layer_indices(discs, window, layers)


def same_layers(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two index images agree; they may differ in how many empty layers follow."""
    most = max(one.shape[2], other.shape[2])
    one, other = (torch.nn.functional.pad(x, (0, most - x.shape[2]), value=-1) for x in (one, other))
    return torch.equal(one, other)


def loss_of(outputs, seed: int = 5) -> torch.Tensor:
    """A scalar with every output in it."""
    generator = torch.Generator().manual_seed(seed)
    color, accumulation, depth = outputs[:3]
    total = (color * torch.rand(color.shape, generator=generator, dtype=torch.float64)).sum()
    for part in (accumulation, depth):
        total = total + (part * torch.rand(part.shape, generator=generator, dtype=torch.float64)).sum()
    return total


@pytest.mark.parametrize("layers", [1, 4, 15, None])
@pytest.mark.parametrize("min_radius", [0.0, 0.75])
def test_a5_equals_sorting_each_pixel(layers, min_radius):
    """A5: 3000 points on 40x50 pixels, with everything that is awkward."""
    cloud, background = awkward_cloud(3000), torch.tensor([0.3, 0.9, 0.1], dtype=torch.float64)
    expected = brute_peel(cloud, VIEW, layers=layers, min_radius=min_radius, background=background)
    got = peel(*cloud, **VIEW._asdict(), layers=layers, min_radius=min_radius, background=background)
    found = indices(cloud, VIEW, expected[3].shape[2] if layers is None else layers, min_radius=min_radius)
    assert same_layers(found, expected[3])
    assert torch.equal(got.fragments, (expected[3] >= 0).sum(2).int())
    for one, other in zip(got, expected[:3], strict=False):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("layers", [4, None])
def test_a5_float32(layers):
    """Single precision: the same fragments but for the rare centre on a rim, whose opacity is zero."""
    cloud = awkward_cloud(3000, dtype=torch.float32)
    expected = brute_peel(cloud.to(torch.float64), VIEW, layers=layers)
    got = peel(*cloud, **VIEW._asdict(), layers=layers)
    assert (got.fragments == (expected[3] >= 0).sum(2)).float().mean() > 0.998
    assert (got.color - expected[0]).abs().max() < 1e-5
    assert (got.accumulation - expected[1]).abs().max() < 1e-5
    assert (got.depth - expected[2]).abs().max() < 1e-4


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 60),
    layers=st.sampled_from([1, 2, 5, None]),
    min_radius=st.sampled_from([0.0, 0.75, 3.0]),
    seed=st.integers(0, 10**6),
    piece=st.sampled_from([20, 300, 1 << 17]),
    rows=st.integers(1, 9),
    columns=st.integers(1, 11),
)
def test_a5_any_small_scene(count, layers, min_radius, seed, piece, rows, columns):
    """Also a lattice of centres, radii and depths that meets rims and ties exactly."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(-4, 25, (count, 4), generator=generator).double()
    depth = torch.where(draw[:, 2] % 3 == 0, 2.0, 1.0) * torch.where(draw[:, 2] < -2, -1.0, 1.0)
    points = torch.stack([draw[:, 0] / 2 * depth, draw[:, 1] / 2 * depth, depth], 1)
    alpha = 0.5 + 0.02 * draw[:, 3]
    cloud = Cloud(points, (draw[:, 3] - 1) / 4, alpha.clamp(0, 1), draw[:, :2] / 25)
    view = View(1.0, 1.0, 0.0, 0.0, rows, columns)
    expected = brute_peel(cloud, view, layers=layers, min_radius=min_radius)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peel_fragments, "PIECE", piece)
        got = peel(*cloud, **view._asdict(), layers=layers, min_radius=min_radius)
        found = indices(cloud, view, layers or max(1, count), min_radius=min_radius)
    assert same_layers(found, expected[3])
    torch.testing.assert_close(got.color, expected[0], atol=1e-12, rtol=0)


def test_original_peel(shared_fixtures):
    """The original's layers, blending and gradients; its accumulation is a known fault, `true_acc` the right one.

    The original divides by z + 1e-10: the same is done to the input for the comparison to nine digits.
    """
    file = np.load(shared_fixtures / "r4dv" / "peel.npz")
    data = {name: torch.from_numpy(file[name]) for name in file.files}
    world = {name: data[name].requires_grad_() for name in ("xyz", "radius", "opacity", "rgb")}
    height, width = (int(x) for x in data["hw"])
    k = data["K"]
    window = Window(float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]), height, width)
    points = world["xyz"] @ data["R"].T + data["T"].reshape(3)
    cloud = Cloud(points, world["radius"][:, 0], world["opacity"][:, 0], world["rgb"])
    layers = data["index"].shape[2]
    got = peel(*cloud, **window._asdict(), layers=layers, min_radius=0)

    discs = visible_discs(*cloud[:3], window, near=1e-4, min_radius=0)
    assert torch.equal(layer_indices(discs, window, layers), data["index"])
    (got.color * data["grad_seed"]).sum().backward()
    for name, leaf in world.items():
        assert leaf.grad is not None
        assert (leaf.grad - data[f"grad_{name}"]).abs().max() < 1e-6

    rays = points.detach() @ k.T
    shifted = points.detach().clone()
    shifted[:, 0] = (rays[:, 0] / (rays[:, 2] + 1e-10) - window.cx) * rays[:, 2] / window.fx
    shifted[:, 1] = (rays[:, 1] / (rays[:, 2] + 1e-10) - window.cy) * rays[:, 2] / window.fy
    exact = peel(*cloud._replace(points=shifted), **window._asdict(), layers=layers, min_radius=0)
    for image, bound in ((got, 1e-8), (exact, 1e-9)):
        assert (image.color - data["upstream_rgb"]).abs().max() < bound
        assert (image.accumulation - data["true_acc"][..., 0]).abs().max() < bound


@pytest.mark.parametrize("layers", [1, 4, 15, None])
@pytest.mark.parametrize("min_radius", [0.0, 0.75])
def test_gradients_equal_autograd_of_the_slow_twin(layers, min_radius):
    cloud = awkward_cloud(1500)
    mine, slow = cloud.clone(), cloud.clone()
    loss_of(peel(*mine, **VIEW._asdict(), layers=layers, min_radius=min_radius)).backward()
    loss_of(brute_peel(slow, VIEW, layers=layers, min_radius=min_radius)).backward()
    for one, other in zip(mine, slow, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("parts", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_gradients_of_some_outputs(parts):
    """Only colour, only accumulation, only depth, and pairs."""
    cloud = random_cloud(800)
    mine, slow = cloud.clone(), cloud.clone()
    for leaves, render in ((mine, lambda c: peel(*c, **VIEW._asdict())), (slow, lambda c: brute_peel(c, VIEW))):
        outputs = render(leaves)
        sum((outputs[k] ** 2).sum() for k in parts).backward()
    for one, other in zip(mine[:3], slow[:3], strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-9, rtol=1e-9)
    if 0 in parts:
        torch.testing.assert_close(mine.color.grad, slow.color.grad, atol=1e-9, rtol=1e-9)


def rotation(axis_angle: torch.Tensor) -> torch.Tensor:
    """Rotation matrix of a vector, differentiable."""
    x, y, z = axis_angle
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(
        torch.stack([torch.stack([zero, -z, y]), torch.stack([z, zero, -x]), torch.stack([-y, x, zero])])
    )


@pytest.mark.parametrize("min_radius", [0.0, 0.75])
def test_a6_gradients_equal_central_differences(min_radius):
    """A6: along random lines of positions, radii, opacities, colours, camera translation and rotation.

    1e-4 where both ends of the line have the same layers; 1e-3 where fragments enter or leave, if all layers count and
    depths keep their order. Depth is the sum T a z here: the quotient jumps where a pixel's first fragment enters.
    """
    cloud = random_cloud(1200, seed=3)
    world = {**cloud._asdict(), "t": torch.zeros(3).double(), "r": torch.tensor([0.02, -0.01, 0.03]).double()}

    def run(values, layers):
        points = values["points"] @ rotation(values["r"]).T + values["t"]
        moved = Cloud(points, values["radius"], values["alpha"], values["color"])
        got = peel(*moved, **VIEW._asdict(), layers=layers, min_radius=min_radius)
        return moved, loss_of((got.color, got.accumulation, got.depth * got.accumulation))

    generator = torch.Generator().manual_seed(1)
    cases = []
    for layers in (8, None):
        leaves = {name: value.clone().requires_grad_() for name, value in world.items()}
        run(leaves, layers)[1].backward()
        for name, value in world.items():
            for step in (1e-6, 1e-7, 1e-8):
                line = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                ends = [run({**world, name: value + sign * step * line}, layers) for sign in (-1, 1)]
                expected = float((leaves[name].grad * line).sum())
                error = abs(float(ends[1][1] - ends[0][1]) / (2 * step) - expected) / abs(expected)
                same = same_layers(*(indices(end[0], VIEW, layers or 40, min_radius=min_radius) for end in ends))
                cases.append((error, same, layers, name, step))
                order = [end[0].points[:, 2].argsort() for end in ends]
                if same or (layers is None and torch.equal(*order)):
                    assert error < (1e-4 if same else 1e-3), cases[-1]
    assert sum(same for _, same, *_ in cases) >= 20
    assert {name for _, same, _, name, _ in cases if same} == set(world)


def test_a7_tiles_and_pieces_change_nothing(monkeypatch):
    cloud, plain = awkward_cloud(3000), {}
    ways = {"plain": (512 << 20, 1 << 17), "tiles": (9000, 1 << 17), "pieces": (512 << 20, 500), "both": (200000, 900)}
    for setting, (limit, piece) in ways.items():
        monkeypatch.setattr(peel_fragments, "PIECE", piece)
        leaves = cloud.clone()
        got = peel(*leaves, **VIEW._asdict(), layers=6, max_fragment_bytes=limit)
        loss_of(got).backward()
        if setting == "plain":
            plain = got, leaves
        for one, other in zip(got, plain[0], strict=True):
            assert torch.equal(one, other), setting
        for one, other in zip(leaves, plain[1], strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-11, rtol=1e-11)


def test_a7_all_layers_and_bounds():
    cloud = awkward_cloud(3000)
    everything = peel(*cloud, **VIEW._asdict(), layers=None)
    for one, other in zip(everything, peel(*cloud, **VIEW._asdict(), layers=3000), strict=True):
        assert torch.equal(one, other)
    assert int(everything.fragments.max()) > 15
    single = cloud.to(torch.float32)
    for layers in (1, 15, None):
        opaque = single._replace(alpha=torch.ones_like(single.alpha))
        accumulation = peel(*opaque, **VIEW._asdict(), layers=layers).accumulation
        assert accumulation.min() >= 0
        assert accumulation.max() <= 1


def test_a7_background():
    cloud, background = random_cloud(300), torch.tensor([0.2, -1.0, 3.0], dtype=torch.float64, requires_grad=True)
    black = peel(*cloud, **VIEW._asdict())
    got = peel(*cloud, **VIEW._asdict(), background=background)
    assert torch.equal(got.color, black.color + (1 - black.accumulation)[..., None] * background)
    got.color.sum().backward()
    torch.testing.assert_close(background.grad, (1 - black.accumulation).sum().expand(3))


def test_opaque_points_have_gradients():
    """An opacity of exactly 1 at the very centre hides all behind; no division by zero."""
    points = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0], [0.01, 0.0, 3.0]], dtype=torch.float64)
    cloud = Cloud(points, torch.full((3,), 0.3).double(), torch.ones(3).double(), torch.rand(3, 3).double())
    view = View(10.0, 10.0, 2.5, 2.5, 5, 5)
    mine, slow = cloud.clone(), cloud.clone()
    got = peel(*mine, **view._asdict())
    assert float(got.accumulation[2, 2].detach()) == 1
    loss_of(got).backward()
    loss_of(brute_peel(slow, view)).backward()
    for one, other in zip(mine, slow, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-12, rtol=1e-12)


def test_one_disc_in_closed_form():
    """A lone disc of many pixels holds half its area times its opacity; a tiny one the same, by the sub-pixel rule."""
    view = View(100.0, 100.0, 50.0, 50.0, 100, 100)
    for radius in (0.2, 0.05):
        disc = torch.tensor([[0.003, 0.001, 1.0]]), torch.tensor([radius]), torch.tensor([0.8]), torch.ones(1, 1)
        got = peel(*disc, **view._asdict())
        assert float(got.accumulation.sum()) == pytest.approx(0.4 * math.pi * (100 * radius) ** 2, rel=2e-2)
        assert got.depth[50, 50] == pytest.approx(1)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(20000, 2, generator=generator) * 0.9 - 0.45
    points = torch.cat([points, torch.linspace(1, 1.001, 20000)[:, None]], 1)
    radius = torch.full((20000,), 0.001, requires_grad=True)
    alpha = torch.full((20000,), 0.02)
    got = peel(points, radius, alpha, torch.ones(20000, 1), **view._asdict(), layers=None)
    # rho = 0.1 px: transmittances are nearly 1, so light adds up.
    assert got.accumulation.sum().item() == pytest.approx(0.01 * math.pi * 0.01 * 20000, rel=3e-2)
    got.accumulation.sum().backward()
    assert radius.grad is not None
    assert float(radius.grad.mean()) == pytest.approx(2 * 0.01 * math.pi * 0.1 * 100, rel=5e-2)
    none = peel(points, radius.detach(), alpha, torch.ones(20000, 1), **view._asdict(), layers=None, min_radius=0)
    assert float((none.accumulation > 0).float().mean()) < 0.1


@pytest.mark.parametrize("count", [0, 5])
def test_nothing_to_see(count):
    points = torch.full((count, 3), -1.0, requires_grad=True)
    color = torch.rand(count, 4, requires_grad=True)
    background = torch.arange(4.0)
    got = peel(points, torch.ones(count), torch.ones(count), color, **VIEW._asdict(), background=background)
    assert torch.equal(got.color, background.expand(40, 50, 4))
    assert got.accumulation.abs().max() == got.depth.abs().max() == got.fragments.max() == 0
    (got.color.sum() + got.depth.sum() + got.accumulation.sum()).backward()
    assert points.grad is not None
    assert points.grad.abs().sum() == 0
    peel(points, torch.ones(count), torch.ones(count), color[:, :0], **VIEW._asdict()).depth.sum().backward()


def test_what_is_not_a_number_does_not_show_nor_spoil():
    cloud = random_cloud(400, dtype=torch.float32)
    expected = peel(*cloud, **VIEW._asdict())
    nan, inf = float("nan"), float("inf")
    bad = [
        [nan, 0, 2],
        [0, nan, 2],
        [0, 0, nan],
        [0, 0, inf],
        [inf, 0, 2],
        [0, -inf, 2],
        [0, 0, 0],
        [0, 0, 2],
        [0, 0, 2],
    ]
    more = torch.full((9,), 0.1)
    opacity = torch.full((9,), 0.9)
    more[7], opacity[8] = nan, nan
    added = Cloud(torch.tensor(bad), more, opacity, torch.rand(9, 3))
    grown = Cloud(*(torch.cat(pair) for pair in zip(cloud, added, strict=True))).clone()
    got = peel(*grown, **VIEW._asdict())
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
    (got.color.sum() + got.depth.sum()).backward()
    for part in grown:
        assert part.grad is not None
        assert bool(part.grad.isfinite().all())
    disc = torch.tensor([[0.0, 0, 1]]), torch.tensor([inf]), torch.tensor([0.5]), torch.ones(1, 1)
    huge = peel(*disc, **VIEW._asdict())
    assert torch.equal(huge.accumulation, torch.full((40, 50), 0.5))


def test_half_precision_and_autocast():
    cloud = random_cloud(400, dtype=torch.float32)
    rounded = cloud.to(torch.bfloat16)
    expected = peel(*rounded.to(torch.float32), **VIEW._asdict())
    with torch.autocast("cpu", torch.bfloat16):
        got = peel(*rounded, **VIEW._asdict())
    assert got.color.dtype == torch.float32
    assert torch.equal(got.color, expected.color)


def test_without_gradients_nothing_is_kept():
    cloud = random_cloud(400)
    expected = peel(*cloud.clone(), **VIEW._asdict())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = peel(*cloud.clone(), **VIEW._asdict())
        assert got.color.grad_fn is None
        assert torch.equal(got.color, expected.color.detach())


def test_second_derivatives_are_refused():
    cloud = random_cloud(50).clone()
    loss = peel(*cloud, **VIEW._asdict()).color.square().sum()
    (gradient,) = torch.autograd.grad(loss, cloud.points, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"points_camera": torch.zeros(3, 2)}, r"points_camera must be \[N, 3\]"),
        ({"radius": torch.zeros(3, 1)}, r"radius must be \[3\]"),
        ({"alpha": torch.zeros(2)}, r"alpha must be \[3\]"),
        ({"color": torch.zeros(2, 3)}, r"color must be \[3, channels\]"),
        ({"background": torch.zeros(4)}, r"background must be \[3\]"),
        ({"layers": 0}, "must be positive"),
        ({"height": 0}, "must be positive"),
        ({"near": 0.0}, "near 0.0 must be above 0"),
        ({"min_radius": -1.0}, "min_radius -1.0"),
        ({"backend": "opengl"}, "unknown backend 'opengl'"),
        ({"backend": "gsplat"}, "needs a CUDA device"),
        ({"backend": "triton"}, "riton"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_bad_arguments(change, text):
    tensors = {"points_camera": torch.zeros(3, 3), "radius": torch.ones(3), "alpha": torch.ones(3)}
    arguments = {**tensors, "color": torch.ones(3, 3), **VIEW._asdict(), **change}
    with pytest.raises(ValueError, match=text):
        peel(**arguments)


def test_auto_falls_back_with_one_line(monkeypatch, caplog):
    monkeypatch.setattr(peel_module, "is_importable", lambda _: False)
    peel_module._say_once.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(3):
            assert peel_module._choose("auto", torch.device("cuda")) == "torch"
    assert sum("triton" in line for line in caplog.messages) == 1
    with pytest.raises(ValueError, match="needs the package triton"):
        peel_module._choose("triton", torch.device("cuda"))


def test_imports_with_torch_alone():
    """Neither nerfstudio nor triton, gsplat, scipy or cv2."""
    code = (
        "import sys\nfor name in ('nerfstudio', 'triton', 'gsplat', 'scipy', 'cv2'): sys.modules[name] = None\n"
        "import torch\nfrom r4dv_ns.peel import peel\n"
        "print(peel(torch.ones(1, 3), torch.ones(1), torch.ones(1), torch.ones(1, 3), fx=1, fy=1, cx=1, cy=1,"
        " height=2, width=2).color.shape)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "torch.Size([2, 2, 3])" in result.stdout, result.stderr[-2000:]


@pytest.mark.parametrize("count", [1, 5, 4000])
def test_grouping_by_counting_is_a_stable_sort(count, monkeypatch):
    generator = torch.Generator().manual_seed(count)
    keys = torch.randint(0, count, (20000,), generator=generator, dtype=torch.int32)
    values = torch.arange(20000, dtype=torch.int32).flip(0)
    counted = peel_fragments._grouped(keys, values, count)
    monkeypatch.setattr(peel_fragments, "_sparse", lambda: None)
    assert torch.equal(counted, peel_fragments._grouped(keys, values, count))
    assert torch.equal(counted, values[keys.sort(stable=True).indices])
    assert len(peel_fragments._grouped(keys[:0], values[:0], count)) == 0
