"""Decoder, vertex network and vertex index: against plain forms, finite differences and the original's outputs."""

from __future__ import annotations

import argparse
import collections
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diver_ns.compositing import composite
from diver_ns.field import Decoder, VertexIndex, VertexNetwork, compact, encode

EXPLICIT = ["coarse64", "fine64", "fine32"]
WIDTHS = {"coarse64": 64, "fine64": 64, "fine32": 32, "implicit32": 32}


class ModelCheckpoint:
    """Stands in for Lightning's callback, a dictionary key of the pickle."""


STAND_INS = [
    argparse.Namespace,
    (collections.OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (ModelCheckpoint, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]


def original_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of a fixture's Lightning checkpoint, without the prefix."""
    with torch.serialization.safe_globals(STAND_INS):
        state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return {key.removeprefix("model."): value for key, value in state.items()}


def original_decoder(state: dict[str, Tensor], width) -> Decoder:
    decoder = Decoder(width)
    names = {"mlp1": "point", "mlp2": "view"}
    parts = {key: value for key, value in state.items() if key.split(".")[0] in names}
    decoder.load_state_dict({names[key[:4]] + key[4:]: value for key, value in parts.items()})
    return decoder


def original_network(state: dict[str, Tensor], **options) -> VertexNetwork:
    width, depth = len(state["mlp_voxel.pts_linears.0.weight"]), 8
    network = VertexNetwork(width, depth, **options)
    renamed = {}
    for key, value in state.items():
        if key.startswith("mlp_voxel."):
            key = key.removeprefix("mlp_voxel.").replace("pts_linears", "layers").replace("feature_linear", "head")
            renamed[key] = value
    network.load_state_dict(renamed)
    return network


def original_rays(folder: Path) -> dict[str, Tensor]:
    with np.load(folder / "rays.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


def mean_features(voxels: Tensor, data: dict[str, Tensor]) -> Tensor:
    """The slow twin of the integral: five-point Gauss rule on the trilinear field, corner by corner, float64."""
    nodes, shares = np.polynomial.legendre.leggauss(5)
    voxel, voxels = data["seg_voxel_xyz"].long(), voxels.double()
    enter, leave = data["seg_in"].double() - voxel, data["seg_out"].double() - voxel
    total = torch.zeros(len(voxel), voxels.shape[-1], dtype=torch.float64)
    for node, share in zip((nodes + 1) / 2, shares / 2, strict=True):
        local = enter + node * (leave - enter)
        for corner in itertools.product((0, 1), repeat=3):
            x, y, z = (voxel + torch.tensor(corner)).unbind(1)
            weight = torch.where(torch.tensor(corner) == 1, local, 1 - local).prod(dim=1)
            total += share * weight[:, None] * voxels[z, y, x]
    return total.float()


def unit(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=g, dtype=dtype), dim=1)


# encode


@pytest.mark.parametrize(("size", "bands", "columns"), [(3, 4, 27), (3, 10, 63), (2, 0, 2), (1, 1, 3)])
def test_encoding_order_is_value_then_sines_and_cosines_per_band(size, bands, columns) -> None:
    x = torch.rand(6, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    got = encode(x, bands)
    assert got.shape == (6, columns)
    for row, values in zip(got.tolist(), x.tolist(), strict=True):
        expected = list(values)
        for band in range(bands):
            expected += [math.sin(2**band * math.pi * value) for value in values]
            expected += [math.cos(2**band * math.pi * value) for value in values]
        assert row == pytest.approx(expected, abs=1e-12)


# decoder


def plain_decoder(decoder: Decoder, features: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Spec diver 3.4 as written: two networks in a row, the direction concatenated."""
    hidden = features
    for number, layer in enumerate(decoder.point):
        hidden = torch.relu(hidden) if number % 2 else hidden @ layer.weight.T + layer.bias
    raw_sigma, view = hidden[:, 0], hidden[:, 1:]
    first, last = decoder.view[0], decoder.view[2]
    hidden = torch.relu(torch.cat([view, encode(directions, 4)], dim=1) @ first.weight.T + first.bias)
    return raw_sigma, torch.sigmoid(hidden @ last.weight.T + last.bias)


@pytest.mark.parametrize("width", [64, 32])
def test_the_layers_have_the_originals_names_and_shapes(width) -> None:
    shapes = {key: tuple(value.shape) for key, value in Decoder(width).state_dict().items() if "weight" in key}
    if width == 64:
        assert shapes == {
            "point.0.weight": (64, 32), "point.2.weight": (65, 64), "view.0.weight": (64, 91), "view.2.weight": (3, 64)
        }  # fmt: skip
    else:
        assert shapes == {
            "point.0.weight": (32, 32), "point.2.weight": (32, 32), "point.4.weight": (33, 32),
            "view.0.weight": (32, 59), "view.2.weight": (3, 32),
        }  # fmt: skip
    with pytest.raises(ValueError, match="width 48"):
        Decoder(48)


@pytest.mark.parametrize("width", [64, 32])
@pytest.mark.parametrize("per_ray", [False, True])
def test_the_short_form_and_its_gradients_equal_the_plain_one(width, per_ray) -> None:
    torch.manual_seed(width)
    decoder = Decoder(width).double()
    features = torch.randn(50, 32, dtype=torch.float64)
    ray = torch.randint(0, 9, (50,)).sort().values if per_ray else None
    directions = unit(9 if per_ray else 50, 1, torch.float64)
    spread = directions if ray is None else directions[ray]
    weight, colour_weight = torch.randn(50, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)

    def separate(values: Tensor) -> tuple[Tensor, Tensor]:
        raw_sigma, view = decoder.density(values)
        assert view.shape == (50, width)
        return raw_sigma, decoder.colour(view, directions, ray)

    results = []
    for function in (
        lambda values: plain_decoder(decoder, values, spread),
        lambda values: decoder(values, directions, ray),
        separate,
    ):
        values = features.clone().requires_grad_()
        raw_sigma, rgb = function(values)
        score = (raw_sigma * weight).sum() + (rgb * colour_weight).sum()
        results.append((raw_sigma, rgb, *torch.autograd.grad(score, [values, *decoder.parameters()])))
    for other in results[1:]:
        for expected, got in zip(results[0], other, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)
    assert results[0][1].min() > 0
    assert results[0][1].max() < 1


@pytest.mark.parametrize("width", [64, 32])
def test_no_segments_give_no_output_and_zero_gradients(width) -> None:
    decoder = Decoder(width)
    raw_sigma, rgb = decoder(torch.zeros(0, 32), torch.ones(4, 3), torch.zeros(0, dtype=torch.int64))
    assert raw_sigma.shape == (0,)
    assert rgb.shape == (0, 3)
    (raw_sigma.sum() + rgb.sum()).backward()
    for parameter in decoder.parameters():
        assert parameter.grad is None or not parameter.grad.any()


@pytest.mark.parametrize("name", EXPLICIT)
def test_the_originals_features_give_the_originals_densities_and_colours(shared_fixtures, name) -> None:
    folder = shared_fixtures / "diver" / name
    state, data = original_state(folder), original_rays(folder)
    decoder, ray = original_decoder(state, WIDTHS[name]), data["seg_ray"].long()
    voxels = state["voxels"]
    features = mean_features(voxels.to_dense() if voxels.is_sparse else voxels, data)
    with torch.no_grad():
        raw_sigma, rgb = decoder(features, data["d"].float(), ray)
    torch.testing.assert_close(raw_sigma, data["seg_sigma_raw"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rgb, data["seg_rgb"], atol=2e-5, rtol=0)
    bg = torch.full((3,), 0.0 if name == "fine32" else 1.0)
    pixels = composite(raw_sigma, rgb, data["seg_t_out"], ray, len(data["o"]), bg)
    torch.testing.assert_close(pixels.rgb, data["rgb"].float(), atol=2e-5, rtol=0)
    torch.testing.assert_close(pixels.weights, data["seg_weight"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("width", [64, 32])
def test_gradients_from_features_to_pixels_equal_finite_differences(width) -> None:
    """Spec diver 9 (3): a table of features through a weighted sum, decoder and compositing, in float64."""
    torch.manual_seed(5)
    decoder = Decoder(width).double()
    with torch.no_grad():  # densities on both sides of zero, clear of the kink
        decoder.point[-1].weight[0] *= 5
    ray = torch.tensor([0, 0, 0, 2, 2])
    rows, weights = torch.randint(0, 6, (5, 8)), torch.rand(5, 8, dtype=torch.float64).softmax(dim=1)
    table = torch.randn(6, 32, dtype=torch.float64, requires_grad=True)
    directions, t = unit(3, 6, torch.float64), torch.rand(5, dtype=torch.float64)

    def pixels(values: Tensor) -> tuple[Tensor, ...]:
        features = (values[rows] * weights[..., None]).sum(dim=1)
        raw_sigma, rgb = decoder(features, directions, ray)
        return tuple(composite(raw_sigma, rgb, t, ray, 3, torch.ones(3, dtype=torch.float64)))

    assert float(pixels(table)[1].detach().max()) > 0.05
    assert torch.autograd.gradcheck(pixels, (table,), atol=1e-6)


# vertex network


def plain_network(network: VertexNetwork, vertex: tuple[int, int, int], resolution: int) -> Tensor:
    """Spec diver 3.3 for one vertex (z, y, x)."""
    place = torch.tensor([[2 * index / (resolution + 1) - 1 for index in vertex]], dtype=torch.float64)
    encoded = hidden = encode(place, 10)
    for number, layer in enumerate(network.layers):
        if number == network.skip:
            hidden = torch.cat([encoded, hidden], dim=1)
        hidden = torch.relu(hidden @ layer.weight.T + layer.bias)
    return (hidden @ network.head.weight.T + network.head.bias)[0]


@pytest.mark.parametrize(("depth", "skip"), [(8, 4), (3, 4), (3, 1), (1, 1)])
def test_the_network_evaluates_vertices_in_zyx_order(depth, skip) -> None:
    torch.manual_seed(0)
    network = VertexNetwork(16, depth, skip, channels=5).double()
    resolution = 4
    ids = torch.randperm(125)[:40]
    got = network(ids, resolution)
    for row, number in zip(got, ids.tolist(), strict=True):
        vertex = number // 25, number // 5 % 5, number % 5
        torch.testing.assert_close(row, plain_network(network, vertex, resolution), atol=1e-12, rtol=0)


def test_the_paper_sized_network_has_its_parameters() -> None:
    network = VertexNetwork()
    assert network.layers[4].weight.shape == (512, 575)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.92e6, rel=0.01)
    with pytest.raises(ValueError, match="at least 1"):
        VertexNetwork(skip=0)


def test_the_originals_baked_table_comes_out_of_the_network(shared_fixtures) -> None:
    folder = shared_fixtures / "diver" / "implicit32"
    state, data = original_state(folder), original_rays(folder)
    network = original_network(state)
    resolution = len(data["baked_voxels"]) - 1
    with torch.no_grad():
        table = network(torch.arange((resolution + 1) ** 3), resolution).view_as(data["baked_voxels"])
    torch.testing.assert_close(table, data["baked_voxels"], atol=2e-6, rtol=0)


def test_rendering_with_the_network_equals_rendering_from_its_table(shared_fixtures) -> None:
    """Spec diver 9 (6): touched vertices in chunks, all vertices baked, and the original's picture."""
    folder = shared_fixtures / "diver" / "implicit32"
    state, data = original_state(folder), original_rays(folder)
    decoder, resolution = original_decoder(state, 32), len(data["baked_voxels"]) - 1
    ray, voxel = data["seg_ray"].long(), data["seg_voxel_xyz"].long()
    corners = torch.stack(
        [
            ((voxel[:, 2] + k) * (resolution + 1) + voxel[:, 1] + j) * (resolution + 1) + voxel[:, 0] + i
            for i, j, k in itertools.product((0, 1), repeat=3)
        ]
    )
    used, _ = compact(corners, (resolution + 1) ** 3)
    assert 0 < len(used) < (resolution + 1) ** 3

    def render(voxels: Tensor) -> Tensor:
        raw_sigma, rgb = decoder(mean_features(voxels, data), data["d"].float(), ray)
        return composite(raw_sigma, rgb, data["seg_t_out"], ray, len(data["o"]), torch.ones(3)).rgb

    with torch.no_grad():
        baked = render(data["baked_voxels"])
        for options in ({}, {"chunk": 50}):
            table = torch.zeros((resolution + 1) ** 3, 32)
            table[used] = original_network(state, **options)(used, resolution)
            pixels = render(table.view_as(data["baked_voxels"]))
            torch.testing.assert_close(pixels, baked, atol=1e-5, rtol=0)
            torch.testing.assert_close(pixels, data["rgb"].float(), atol=2e-5, rtol=0)
    torch.testing.assert_close(baked, data["baked_rgb"].float(), atol=2e-5, rtol=0)


def test_chunks_and_checkpoints_change_neither_values_nor_gradients() -> None:
    torch.manual_seed(1)
    plain = VertexNetwork(24, 6, 3, chunk=1000)
    ids = torch.randperm(9**3)[:333]
    weight = torch.randn(333, 32)
    expected = plain(ids, 8)
    gradients = torch.autograd.grad((expected * weight).sum(), list(plain.parameters()))
    for chunk in (1, 100, 333, 500):
        lean = VertexNetwork(24, 6, 3, chunk=chunk, checkpoint_above=10)
        lean.load_state_dict(plain.state_dict())
        got = lean(ids, 8)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
        for result, wanted in zip(
            torch.autograd.grad((got * weight).sum(), list(lean.parameters())), gradients, strict=True
        ):
            torch.testing.assert_close(result, wanted, atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(lean(ids, 8), expected, atol=1e-6, rtol=0)
    assert plain(ids[:0], 8).shape == (0, 32)
    with torch.no_grad():
        assert plain(ids[:0], 8).shape == (0, 32)


def test_checkpoints_keep_only_the_features() -> None:
    """What autograd stores between the passes must not grow with depth."""

    def stored(network: VertexNetwork) -> int:
        sizes = []
        known = {parameter.data_ptr() for parameter in network.parameters()}

        def note(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in known:
                sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(torch.arange(1000), 9).sum()
        return sum(sizes)

    torch.manual_seed(2)
    full, lean = VertexNetwork(64), VertexNetwork(64, chunk=100, checkpoint_above=0)
    assert stored(full) > 8 * 1000 * 64 * 4
    assert stored(lean) < 0.05 * stored(full)


# vertex index


@pytest.mark.parametrize("dense_limit", [0, None])
@pytest.mark.parametrize("resolution", [1, 2, 9])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 1.0])
def test_rows_are_the_places_in_the_list(dense_limit, resolution, share) -> None:
    vertices = (resolution + 1) ** 3
    g = torch.Generator().manual_seed(resolution)
    ids = (torch.rand(vertices, generator=g) < share).nonzero()[:, 0]
    index = VertexIndex.from_ids(ids, resolution, dense_limit)
    place = {number: row for row, number in enumerate(ids.tolist())}
    asked = torch.randint(0, vertices, (13, 8), generator=g)
    rows = index.rows(asked)
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[place.get(number, -1) for number in line] for line in asked.tolist()]
    everything = torch.arange(vertices)
    assert index.rows(everything).tolist() == [place.get(number, -1) for number in range(vertices)]
    assert len(index) == index.count == len(ids)
    moved = index.to("cpu")
    assert torch.equal(moved.rows(asked), rows)
    assert moved.nbytes == index.nbytes


def test_the_small_form_takes_less_than_a_byte_per_vertex() -> None:
    ids = torch.arange(0, 65**3, 7)
    small, quick = VertexIndex.from_ids(ids, 64, dense_limit=0), VertexIndex.from_ids(ids, 64)
    assert small.nbytes < 0.7 * 65**3
    assert quick.nbytes == 4 * 65**3


@pytest.mark.parametrize("ids", [[3, 2], [1, 1], [-1, 4], [0, 8]])
def test_vertex_lists_that_are_not_increasing_or_leave_the_grid_are_refused(ids) -> None:
    with pytest.raises(ValueError, match=r"must increase and lie in \[0, 8\)"):
        VertexIndex.from_ids(torch.tensor(ids), 1)


@pytest.mark.parametrize("shape", [(0,), (50,), (20, 8)])
def test_compacting_equals_sorting_out_duplicates(shape) -> None:
    numbers = torch.randint(0, 60, shape, generator=torch.Generator().manual_seed(3))
    used, place = compact(numbers, 60)
    expected, inverse = torch.unique(numbers, return_inverse=True)
    assert torch.equal(used, expected)
    assert torch.equal(place, inverse)
    assert torch.equal(used[place], numbers)


@pytest.mark.gpu
@pytest.mark.parametrize("dense_limit", [0, None])
def test_everything_runs_on_the_gpu(dense_limit) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(4)
    ids = torch.arange(0, 17**3, 3)
    index = VertexIndex.from_ids(ids, 16, dense_limit)
    asked = torch.randint(0, 17**3, (100, 8))
    assert torch.equal(index.to("cuda").rows(asked.cuda()).cpu(), index.rows(asked))
    assert torch.equal(VertexIndex.from_ids(ids.cuda(), 16, dense_limit).rows(asked.cuda()).cpu(), index.rows(asked))
    network, decoder = VertexNetwork(64, chunk=100, checkpoint_above=10).double(), Decoder(64).double()
    ray, directions = torch.arange(len(ids)) // 9, unit(200, 7, torch.float64)
    t, bg = torch.rand(len(ids), dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    results = []
    for device in ("cpu", "cuda"):
        network, decoder = network.to(device), decoder.to(device)
        raw_sigma, rgb = decoder(network(ids.to(device), 16), directions.to(device), ray.to(device))
        pixels = composite(raw_sigma, rgb, t.to(device), ray.to(device), 200, bg.to(device))
        gradient = torch.autograd.grad(pixels.rgb.sum() + pixels.depth.sum(), list(network.parameters()))
        results.append([part.cpu() for part in (*pixels, *gradient)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
