"""Files of the original read and written: against the fixtures computed by the original, and against damage."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from voxel_files import blob, decoder_state, lightning, load, original_state, render_fixture, save

from core_ns.errors import DataError
from diver_ns.deploy import FusedDecoder
from diver_ns.field import Decoder, VertexNetwork
from diver_ns.formats import VoxelModel, infer_resolution, read_original, write_serialize, write_weight
from diver_ns.occupancy import active_vertices
from diver_ns.voxel_model import lower_corners, mask_from_lower_corners

FACTS = {  # folder: resolution, width, mask size, background
    "coarse64": (8, 64, None, "white"),
    "fine64": (12, 64, 3, "white"),
    "fine32": (10, 32, 10, "black"),
    "implicit32": (8, 32, 4, "white"),
}


@pytest.fixture
def diver(shared_fixtures: Path) -> Path:
    return shared_fixtures / "diver"


def rays_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "rays.npz") as archive:
        return {name: archive[name] for name in archive.files}


def close(actual, expected, atol: float) -> None:
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(actual.double(), expected.double(), atol=atol, rtol=0)


def same_model(a: VoxelModel, b: VoxelModel) -> None:
    for field in dataclasses.fields(VoxelModel):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            assert torch.equal(x, y), field.name
        elif isinstance(x, dict):
            assert x.keys() == y.keys()
            assert all(torch.equal(x[name], y[name]) for name in x)
        else:
            assert x == y, field.name


@pytest.mark.parametrize("folder", FACTS)
@torch.no_grad()
def test_checkpoints_of_every_stage_render_as_in_the_original(diver, folder) -> None:
    model, rays = read_original(diver / folder / "last.ckpt"), rays_of(diver / folder)
    size = None if model.mask is None else len(model.mask)
    assert (model.resolution, model.width, size, model.background) == FACTS[folder]
    assert (model.side, model.center, model.parity) == (2.8, (0.0, 0.0, 0.0), True)
    if folder == "implicit32":
        assert len(model.features) == 0
        assert model.implicit_state is not None
        network = VertexNetwork(width=48)
        network.load_state_dict(model.implicit_state)
        model.features = network(model.ids, model.resolution)
        close(model.features, rays["baked_voxels"].reshape(-1, 32)[model.ids], 1e-5)
    else:
        assert model.implicit_state is None
    found = render_fixture(model, rays)
    for name in ("rgb", "accumulation", "seg_sigma_raw", "seg_rgb"):
        close(found[name], rays[name], 2e-5)
    close(found["depth"], rays["depth"], 1e-4)
    assert torch.equal(found["hits"], torch.from_numpy(rays["hits"]).long())


@pytest.mark.parametrize("folder", ["fine32", "fine64"])
@pytest.mark.parametrize("name", ["weight.pth", "serialize.pth"])
@torch.no_grad()
def test_converted_files_render_as_in_the_original(diver, folder, name) -> None:
    model, rays = read_original(diver / folder / name), rays_of(diver / folder)
    resolution, width, _, background = FACTS[folder]
    assert (model.resolution, model.width, model.mask.shape) == (resolution, width, (resolution,) * 3)
    model.background = background  # neither file tells it
    fused = model.fused()

    def decoder(features, directions):
        return fused(features.float(), fused.direction_term(directions))

    for found in (render_fixture(model, rays), render_fixture(model, rays, decoder, fused.first(model.features))):
        for key in ("rgb", "accumulation"):
            close(found[key], rays[f"weight_{key}"], 2e-5)
        close(found["depth"], rays["weight_depth"], 1e-4)
        assert torch.equal(found["hits"], torch.from_numpy(rays["weight_hits"]).long())


@pytest.mark.parametrize("folder", ["fine32", "fine64"])
def test_the_originals_conversion_is_reproduced(diver, folder, tmp_path) -> None:
    """last.ckpt and alpha_map.pt to weight.pth, weight.pth to serialize.pth, as its convert script does."""
    model = read_original(diver / folder / "last.ckpt")
    model.mask = load(diver / folder / "alpha_map.pt") > 1e-2
    write_weight(tmp_path / "weight.pth", model)
    ours, theirs = (load(base / "weight.pth") for base in (tmp_path, diver / folder))
    assert list(ours) == list(theirs)
    for key, expected in theirs.items():
        assert ours[key].shape == expected.shape
        assert ours[key].dtype == expected.dtype
        assert ours[key].layout == expected.layout
        a, b = ours[key], expected
        if key == "voxels":
            a, b = a.coalesce(), b.coalesce()
            assert torch.equal(a.indices(), b.indices())
            a, b = a.values(), b.values()
        assert torch.equal(a, b), key
    same_model(read_original(tmp_path / "weight.pth"), read_original(diver / folder / "weight.pth"))

    write_serialize(tmp_path / "serialize.pth", read_original(diver / folder / "weight.pth"))
    ours, theirs = (load(base / "serialize.pth") for base in (tmp_path, diver / folder))
    assert list(ours) == list(theirs)
    for key, expected in theirs.items():
        assert (ours[key].shape, ours[key].dtype) == (expected.shape, expected.dtype)
        if key in "im":
            assert torch.equal(ours[key], expected)
        else:
            close(ours[key], expected, 2e-6)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("cells", [4, 8, 16])
def test_synthetic_checkpoints_in_all_layouts(tmp_path, width, cells) -> None:
    """Spec diver 9, check 12: dense checkpoint, sparse weights, both serialised layouts, masks at 0.25, 0.5 and 1."""
    state = original_state(16, width, blob(cells, cells))
    checkpoint = lightning(state, grid_size=2.8, voxel_num=16, white_back=False)
    model = read_original(save(checkpoint, tmp_path / "last.ckpt"))
    assert (model.resolution, model.width, model.background) == (16, width, "black")
    assert torch.equal(model.ids, active_vertices(state["voxel_mask"], 16))
    assert torch.equal(model.features, state["voxels"].reshape(-1, 32)[model.ids])
    Decoder(width).load_state_dict(model.decoder_state)

    write_weight(tmp_path / "weight.pth", model)
    again = read_original(tmp_path / "weight.pth")
    same_model(again, dataclasses.replace(model, mask=model.fine_mask(), background="white"))

    write_serialize(tmp_path / "serialize.pth", again)
    assert len(load(tmp_path / "serialize.pth")["p"]) == {32: 3168, 64: 8288}[width]
    serialized = read_original(tmp_path / "serialize.pth")
    assert (serialized.resolution, serialized.width) == (16, width)
    assert torch.equal(serialized.ids, again.ids)
    assert torch.equal(serialized.mask, again.mask)
    directions = torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    results = []
    for one in (model, serialized):
        decoder = Decoder(width)
        decoder.load_state_dict(one.decoder_state)
        results.append(decoder(one.features[:50], directions))
    for a, b in zip(*results, strict=True):
        close(a, b.detach(), 1e-5)

    # A model read from the fused layout is written again as it was.
    write_serialize(tmp_path / "serialize2.pth", serialized)
    first, second = (load(tmp_path / f"serialize{k}.pth") for k in ("", "2"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_coarse_checkpoint_without_mask_and_a_sparse_one_round_trip(tmp_path) -> None:
    dense = original_state(6, 64, None)
    model = read_original(save(dense, tmp_path / "dense.pth"), parity=False)
    assert model.mask is None
    assert not model.parity
    assert torch.equal(model.ids, torch.arange(343))
    sparse = dense | {"voxels": dense["voxels"].to_sparse(3)}
    same_model(read_original(save(sparse, tmp_path / "sparse.pth"), parity=False), model)
    write_weight(tmp_path / "weight.pth", model)
    again = read_original(tmp_path / "weight.pth", parity=False)
    assert again.mask.all()
    same_model(dataclasses.replace(again, mask=None), model)


def test_what_a_sparse_table_leaves_out_is_zero_and_order_does_not_matter(tmp_path) -> None:
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[1, 2, 3] = True
    state = original_state(4, 32, mask)
    ids = active_vertices(mask, 4).flip(0)[:6]
    where = torch.stack([ids // 25, ids // 5 % 5, ids % 5])
    rows = state["voxels"].reshape(-1, 32)[ids]
    state["voxels"] = torch.sparse_coo_tensor(where, rows, (5, 5, 5, 32), check_invariants=True)
    model = read_original(save(state, tmp_path / "weight.pth"))
    assert torch.equal(model.ids, active_vertices(mask, 4))
    assert torch.equal(model.features, torch.cat([torch.zeros(2, 32), rows.flip(0)]))


@pytest.mark.parametrize("resolution", [64, 80, 128])
def test_resolution_is_inferred_at_real_sizes(resolution) -> None:
    mask = blob(resolution, 3)
    ids = active_vertices(mask, resolution)
    assert infer_resolution(ids, lower_corners(ids, mask)) == resolution


def test_full_layers_do_not_pass_for_a_smaller_grid() -> None:
    """Their ids have no gap, so any shift finds all corners; only voxels that would straddle two rows tell."""
    mask = torch.zeros(10, 10, 10, dtype=torch.bool)
    mask[:3] = True
    ids = active_vertices(mask, 10)
    assert torch.equal(ids, torch.arange(4 * 121))
    assert infer_resolution(ids, lower_corners(ids, mask)) == 10


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_resolution_of_random_occupancies(resolution, voxels, seed, leftover) -> None:
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(resolution, resolution, resolution, dtype=torch.bool)
    mask.view(-1)[torch.randint(resolution**3, (voxels,), generator=g)] = True
    ids = active_vertices(mask, resolution)
    assert infer_resolution(ids, lower_corners(ids, mask)) == resolution
    assert torch.equal(mask_from_lower_corners(ids, lower_corners(ids, mask), resolution), mask)
    if leftover:  # more vertices than needed: the smallest grid that fits, by brute force
        more = torch.unique(torch.cat([ids, torch.randint((resolution + 1) ** 3, (3,), generator=g)]))
        lower = torch.isin(more, ids[lower_corners(ids, mask)])
        found, listed = infer_resolution(more, lower), set(more.tolist())
        assert found is not None
        fitting = [n for n in range(1, 60) if fits_by_loop(listed, more[lower].tolist(), n)]
        assert resolution in fitting
        assert found == fitting[0]


def fits_by_loop(listed: set[int], lower: list[int], n: int) -> bool:
    across = n + 1
    if max(listed) >= across**3:
        return False
    for corner in lower:
        z, y, x = corner // across**2, corner // across % across, corner % across
        if max(z, y, x) >= n:
            return False
        for k in range(8):
            if ((z + (k >> 2)) * across + y + (k >> 1 & 1)) * across + x + (k & 1) not in listed:
                return False
    return True


def test_resolution_of_nothing_is_unknown_unless_given(tmp_path) -> None:
    assert infer_resolution(torch.arange(8), torch.zeros(8, dtype=torch.bool)) is None
    assert infer_resolution(torch.tensor([5, 9]), torch.tensor([True, False])) is None
    content = {
        "f": torch.zeros(0, 32), "i": torch.zeros(0, dtype=torch.int32), "m": torch.zeros(0, dtype=torch.bool),
        "p": FusedDecoder.from_state(decoder_state(32)).to_packed(),
    }  # fmt: skip
    path = save(content, tmp_path / "serialize.pth")
    with pytest.raises(DataError, match="Fits a grid of no size"):
        read_original(path)
    assert read_original(path, resolution=7).mask.shape == (7, 7, 7)


def test_a_given_resolution_is_checked(diver) -> None:
    assert read_original(diver / "fine32" / "serialize.pth", resolution=10).resolution == 10
    with pytest.raises(DataError, match="Does not fit a grid of 11"):
        read_original(diver / "fine32" / "serialize.pth", resolution=11)
    with pytest.raises(DataError, match="Has 12 voxels per axis, not 11"):
        read_original(diver / "fine64" / "last.ckpt", resolution=11)


def test_a_vertex_network_alone_needs_its_settings_or_a_resolution(diver, tmp_path) -> None:
    whole = read_original(diver / "implicit32" / "last.ckpt")
    state = {f"mlp_voxel.pts_linears.{k}.{kind}": whole.implicit_state[f"layers.{k}.{kind}"]
             for k in range(8) for kind in ("weight", "bias")}  # fmt: skip
    state |= {f"mlp_voxel.feature_linear.{kind}": whole.implicit_state[f"head.{kind}"] for kind in ("weight", "bias")}
    state |= decoder_state(32, 0, ("mlp1", "mlp2")) | {"voxel_mask": whole.mask}
    path = save(state, tmp_path / "implicit.pth")
    with pytest.raises(DataError, match=r"does not tell the grid.s size.*voxel_num"):
        read_original(path)
    model = read_original(path, resolution=8)
    assert torch.equal(model.ids, whole.ids)
    for writer in (write_weight, write_serialize):
        with pytest.raises(DataError, match="no table yet"):
            writer(tmp_path / "out" / "file.pth", model)
    assert not (tmp_path / "out").exists()
    # A checkpoint of the explicit stage may still carry the network: the table counts.
    both = read_original(save(state | {"voxels": torch.ones(9, 9, 9, 32)}, tmp_path / "both.pth"))
    assert both.implicit_state is None
    assert both.features.eq(1).all()
    del state["mlp_voxel.pts_linears.3.weight"]
    with pytest.raises(DataError, match=r"pts_linears\.3\.bias.*Is not a key"):
        read_original(save(state, tmp_path / "broken.pth"), resolution=8)


def test_writing_is_deterministic_and_leaves_nothing_else(diver, tmp_path) -> None:
    model = read_original(diver / "fine32" / "weight.pth")
    for name in ("a", "b"):
        write_weight(tmp_path / name / "weight.pth", model)
        write_serialize(tmp_path / name / "serialize.pth", model)
    for name in ("weight.pth", "serialize.pth"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["serialize.pth", "weight.pth"]


@pytest.mark.parametrize("file", ["last.ckpt", "weight.pth"])
def test_the_first_sparse_tensor_of_a_process_does_not_warn(diver, tmp_path, file) -> None:
    """torch complains once per process, unless told whether to check such tensors."""
    code = (
        "import sys, warnings\nfrom diver_ns.formats import read_original, write_weight\n"
        "warnings.simplefilter('error')\nwrite_weight(sys.argv[2], read_original(sys.argv[1]))\n"
        "read_original(sys.argv[2])"
    )
    arguments = [diver / "fine32" / file, tmp_path / "weight.pth"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_model_does_not_depend_on_its_file_any_more(diver, tmp_path) -> None:
    """Files are read through a memory map."""
    for name in ("last.ckpt", "weight.pth", "serialize.pth"):
        whole = (diver / "fine32" / name).read_bytes()
        (tmp_path / name).write_bytes(whole)
        model, same = (read_original(base / name) for base in (tmp_path, diver / "fine32"))
        with open(tmp_path / name, "r+b") as handle:
            handle.write(bytes(len(whole)))
        same_model(model, same)


def test_incomplete_tables_are_not_written(diver, tmp_path) -> None:
    model = read_original(diver / "fine32" / "weight.pth")
    cut = dataclasses.replace(model, ids=model.ids[1:], features=model.features[1:])
    for writer in (write_weight, write_serialize):
        with pytest.raises(DataError, match="Not written: a vertex of an occupied voxel is missing"):
            writer(tmp_path / "file.pth", cut)
    assert not list(tmp_path.iterdir())
