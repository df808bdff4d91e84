"""Every file of the original, read and rendered by this package's own path and by the real-time path: its pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from voxel_files import blob, original_state, save

from diver_ns.compositing import composite
from diver_ns.deploy_model import make_deploy
from diver_ns.field import Decoder, VertexIndex, VertexNetwork
from diver_ns.formats import (
    VoxelModel,
    read_original,
    read_safetensors,
    write_safetensors,
    write_serialize,
    write_weight,
)
from diver_ns.grid import Grid
from diver_ns.integrator import chord_weights, corner_ids, integrate
from diver_ns.realtime import render_rays
from diver_ns.voxel_walk import walk

FILES = [
    ("coarse64/last.ckpt", ""), ("fine64/last.ckpt", ""), ("fine32/last.ckpt", ""), ("implicit32/last.ckpt", ""),
    ("fine64/weight.pth", "weight_"), ("fine32/weight.pth", "weight_"), ("fine64/serialize.pth", "weight_"),
    ("fine32/serialize.pth", "weight_"),
]  # fmt: skip


def parts(model: VoxelModel) -> tuple[Grid, Decoder, torch.Tensor]:
    decoder = Decoder(64 if model.width == 64 else 32)
    decoder.load_state_dict(model.decoder_state)
    background = torch.full((3,), 1.0 if model.background == "white" else 0.0)
    return Grid(model.resolution, model.side, model.center), decoder, background


@torch.no_grad()
def exact(model: VoxelModel, origins: torch.Tensor, directions: torch.Tensor):
    """The offline path, as the nerfstudio model strings it together."""
    grid, decoder, background = parts(model)
    table = model.features
    if model.implicit_state is not None:
        network = VertexNetwork(width=len(model.implicit_state["head.weight"][0]))
        network.load_state_dict(model.implicit_state)
        table = network(model.ids, model.resolution)
    s = walk(*grid.to_grid(origins, directions), grid.resolution, occupied=model.mask, parity=model.parity)
    rows = VertexIndex.from_ids(model.ids, grid.resolution).rows(corner_ids(s.voxel, grid.resolution))
    assert (rows >= 0).all()
    sigma, rgb = decoder(integrate(table, rows, chord_weights(s.u_in, s.u_out)), directions, s.ray)
    return composite(sigma, rgb, (s.t_in + s.t_out) / 2, s.ray, s.rays, background), s


@pytest.mark.parametrize(("file", "prefix"), FILES)
@torch.no_grad()
def test_the_originals_pictures(shared_fixtures: Path, file, prefix) -> None:
    path = shared_fixtures / "diver" / file
    model = read_original(path)
    if prefix and "fine32" in file:
        model.background = "black"  # weight.pth and serialize.pth do not tell it
    with np.load(path.parent / "rays.npz") as archive:
        rays = {name: torch.from_numpy(archive[name]) for name in archive.files}
    made, segments = exact(model, rays["o"], rays["d"])
    torch.testing.assert_close(made.rgb, rays[f"{prefix}rgb"], atol=2e-5, rtol=0)
    torch.testing.assert_close(made.accumulation, rays[f"{prefix}accumulation"], atol=2e-5, rtol=0)
    counted = rays["kind"] != 5
    hits = torch.bincount(segments.ray, minlength=segments.rays)
    assert torch.equal(hits[counted], rays[f"{prefix}hits"].long()[counted])
    if model.implicit_state is not None:
        return
    grid, decoder, background = parts(model)
    deployed = make_deploy(grid, model.fine_mask(), model.ids, model.features, decoder, background)
    fast = render_rays(deployed, rays["o"], rays["d"], stop=0.0, skip=0.0)
    # Rays along a grid plane need the original's voxel rule, which the real-time path does not know (spec diver 11).
    torch.testing.assert_close(fast["rgb"][counted], rays[f"{prefix}rgb"][counted], atol=2e-5, rtol=0)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("cells", [6, 24])
@torch.no_grad()
def test_round_trips_leave_the_picture_alone(tmp_path, width, cells) -> None:
    """Spec diver 9, check 7: through weight.pth the same picture, through serialize.pth to 1e-5."""
    state = original_state(24, width, blob(cells, 5))
    state["voxels"] *= 0.7
    model = read_original(save(state, tmp_path / "dense.pth"))
    g = torch.Generator().manual_seed(1)
    origins = torch.nn.functional.normalize(torch.randn(400, 3, generator=g), dim=-1) * 3
    directions = torch.nn.functional.normalize(torch.randn(400, 3, generator=g) * 0.4 - origins, dim=-1)
    picture = exact(model, origins, directions)[0].rgb
    assert (picture.std(0) > 0.05).all()
    for name, writer, reader, tolerance in (
        ("weight.pth", write_weight, read_original, 1e-6),
        ("serialize.pth", write_serialize, read_original, 1e-5),
        ("m.safetensors", lambda path, m: write_safetensors(path, m, "fp32"), read_safetensors, 1e-6),
    ):
        writer(tmp_path / name, model)
        again = reader(tmp_path / name)
        torch.testing.assert_close(exact(again, origins, directions)[0].rgb, picture, atol=tolerance, rtol=0)
        grid, decoder, background = parts(again)
        deployed = make_deploy(grid, again.fine_mask(), again.ids, again.features, decoder, background)
        unnudged = exact(dataclasses.replace(again, parity=False), origins, directions)[0].rgb
        fast = render_rays(deployed, origins, directions, stop=0.0, skip=0.0)["rgb"]
        torch.testing.assert_close(fast, unnudged, atol=1e-5, rtol=0)
