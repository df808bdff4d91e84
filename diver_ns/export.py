"""Take a trained voxel model out of nerfstudio: one file in several layouts, points, mesh."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, Optional

import numpy as np
import torch

from core_ns import runs
from core_ns.atomic import atomic_path
from core_ns.errors import DataError
from core_ns.frames import transform_points
from diver_ns.compact_file import write_safetensors
from diver_ns.field import VertexNetwork
from diver_ns.formats import write_serialize, write_weight
from diver_ns.import_run import network_size, read_model
from diver_ns.occupancy import occupancy_mesh, occupancy_points
from diver_ns.stages import Stage
from diver_ns.voxel_model import VoxelModel


def load_run(config_file: Path) -> tuple[Any, Any]:
    """Pipeline and model of a diver run; raises as `core_ns.runs.load_run`."""
    return runs.load_run(config_file, "diver_ns.pipeline.DiverPipelineConfig")


@torch.no_grad()
def voxel_model(model: Any) -> VoxelModel:
    """What the files hold, of a loaded `DiverModel` in any stage; a vertex network is tabulated."""
    background = "white" if float(model.background.mean()) > 0.5 else "black"
    table = model.voxels
    if model.stage == Stage.IMPLICIT:
        table = model.implicit(model.vertex_ids, model.grid.resolution)
    return VoxelModel(
        resolution=model.grid.resolution, side=model.grid.side, center=model.grid.center, background=background,
        ids=model.vertex_ids.cpu(), features=table.detach().cpu(), mask=model.mask.cpu(),
        decoder_state={name: value.detach().cpu() for name, value in model.decoder.state_dict().items()},
        width=model.config.decoder_width, implicit_state=None, parity=model.config.parity,
    )  # fmt: skip


@torch.no_grad()
def tabulated(found: VoxelModel) -> VoxelModel:
    """The same model with a table: the original's baking, of the vertices that occupied voxels touch."""
    if found.implicit_state is None or len(found.features):
        return found
    width, depth = network_size(found.implicit_state)
    network = VertexNetwork(width, depth)
    network.load_state_dict(found.implicit_state)
    return dataclasses.replace(found, features=network(found.ids, found.resolution), implicit_state=None)


def convert(
    source: Path,
    output: Path,
    layout: Literal["safetensors", "weight", "serialize"],
    dtype: Literal["fp32", "fp16", "int8"] = "fp16",
    resolution: Optional[int] = None,
) -> None:
    """Write a run (``config.yml``) or a file that `read_model` reads in one of three layouts.

    Raises:
        DataError: the source is unusable.
    """
    if output.is_dir():
        raise DataError(output, "", "is a folder.", "Name the file to write.")
    run = source.suffix in (".yml", ".yaml")
    found = voxel_model(load_run(source)[1]) if run else tabulated(read_model(source, resolution))
    if layout == "safetensors":
        write_safetensors(output, found, dtype)
    elif layout == "weight":
        write_weight(output, found)
    else:
        write_serialize(output, found)


def export_occupancy(config_file: Path, output_dir: Path) -> list[Path]:
    """Write ``points.ply`` (centres of occupied voxels) and ``mesh.ply`` (their outer faces).

    Coordinates are those of the photos' cameras as the files give them.

    Raises:
        DataError: no such run, or one whose occupancy is not known yet; nothing is written.
    """
    import trimesh

    pipeline, model = load_run(config_file)
    if model.stage == Stage.COARSE or not bool(model.mask.any()):
        problem = "is coarse: nothing is known to be empty yet" if model.stage == Stage.COARSE else "left no voxel"
        raise DataError(config_file, "stage", f"{problem}.", "Train it to its end.")
    grid = model.grid.at(len(model.mask))
    outputs = pipeline.datamanager.train_dataparser_outputs
    rotation, shift = np.split(outputs.dataparser_transform.double().numpy(), [3], axis=1)
    inverse = np.concatenate([rotation.T, -rotation.T @ shift], axis=1)

    def to_files(points: np.ndarray) -> np.ndarray:
        return transform_points(points / float(outputs.dataparser_scale), inverse, 1.0)

    output_dir.mkdir(parents=True, exist_ok=True)
    points, (vertices, faces) = occupancy_points(model.mask, grid), occupancy_mesh(model.mask, grid)
    cloud = trimesh.PointCloud(to_files(points.double().cpu().numpy()))
    mesh = trimesh.Trimesh(to_files(vertices.double().cpu().numpy()), faces.cpu().numpy(), process=False)
    written = []
    for name, thing in (("points.ply", cloud), ("mesh.ply", mesh)):
        with atomic_path(output_dir / name) as temporary:
            thing.export(temporary, file_type="ply")
        written.append(output_dir / name)
    return written
