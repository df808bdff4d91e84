"""A file of the original code becomes a run folder that every ``ns-*`` command reads (``ns-diver import``)."""

from __future__ import annotations

import copy
import itertools
import shutil
from pathlib import Path
from typing import Any, Literal, Optional

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError
from diver_ns.compact_file import read_safetensors
from diver_ns.formats import read_original
from diver_ns.occupancy import pack_mask
from diver_ns.stages import Stage
from diver_ns.voxel_model import VoxelModel

TRIED_VIEWS, TRIED_PIXELS = 4, 4096
"""Training photos, and pixels of each, that choose between readings of a scene."""


def read_model(path: Path, resolution: Optional[int] = None) -> VoxelModel:
    """Any file of a voxel model: the original's kinds, or our safetensors export.

    Raises:
        DataError: it is none of them.
    """
    return read_safetensors(path) if path.suffix == ".safetensors" else read_original(path, resolution)


def import_run(
    file: Path,
    scene: Path,
    output_dir: Path,
    resolution: Optional[int] = None,
    background: Literal["auto", "white", "black"] = "auto",
) -> Path:
    """Write a run that holds the file's weights.

    An NSVF scene can be read in two ways (the original scaled by a wrong extent) and its photos lie on white or black,
    which the original's files do not tell reliably: what fits four training photos best is taken, and printed.

    Args:
        file: Lightning checkpoint, ``weight.pth``, ``serialize.pth`` or our ``.safetensors``.
        scene: the photos it was trained on, NeRF-synthetic or NSVF layout.
        output_dir: as in ``ns-train``.
        resolution: voxels per axis, where the file leaves it open.
        background: behind the object; auto: what the file says, and for NSVF scenes what fits.

    Returns:
        The run's ``config.yml``.

    Raises:
        DataError: file or scene is unusable, or the file's cube is not the scene's; nothing is written.
    """
    found, scene = read_model(file, resolution), scene.expanduser().resolve()
    config = run_config(found)
    config.output_dir, config.data = output_dir.expanduser().resolve(), scene
    manager = config.pipeline.datamanager
    parsers = readings(scene, found.side)
    colours: list[Any] = [found.background if background == "auto" else background]
    if background == "auto" and len(parsers) > 1 and file.suffix != ".safetensors":
        colours += [colour for colour in ("white", "black") if colour not in colours]
    manager.data, manager.dataparser, manager.background = scene, parsers[0], colours[0]
    opened = opened_manager(manager)
    cube = opened.cube.at(found.resolution)
    if abs(cube.side - found.side) > 1e-4 * found.side or any(
        abs(mine - theirs) > 1e-4 * found.side for mine, theirs in zip(cube.center, found.center, strict=True)
    ):
        raise DataError(
            file, "cube", f"has side {found.side:g} around {found.center}; the scene's has {cube.side:g} around "
            f"{cube.center}.", "Use the photos it was trained on.",
        )  # fmt: skip
    config.pipeline.check_data()
    if len(parsers) * len(colours) > 1:
        manager.dataparser, manager.background = best_reading(config, found, list(itertools.product(parsers, colours)))
    config.set_timestamp()
    folder = config.get_base_dir()
    if folder.exists():
        raise DataError(folder, "", "exists already.", "Wait a second and try again.")
    try:
        config.save_config()
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        fill(trainer.pipeline.model, found)
        trainer.save_checkpoint(0)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder / "config.yml"


def run_config(found: VoxelModel) -> Any:
    """Trainer configuration of a run that can hold the model; ``diver-rt`` or ``diver`` by the decoder's width."""
    from diver_ns.config import diver, diver_rt

    config: Any = copy.deepcopy((diver_rt if found.width == 32 else diver).config)
    config.vis = "tensorboard"
    model = config.pipeline.model
    size = len(found.mask) if found.mask is not None else found.resolution
    model.resolution, model.parity = found.resolution, found.parity
    model.coarse_resolution = size if found.resolution % size == 0 else found.resolution
    if found.implicit_state is not None:
        model.implicit_width, model.implicit_depth = network_size(found.implicit_state)
    return config


def network_size(state: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Width and depth of the vertex network that a state dict belongs to."""
    layers = [name for name in state if name.startswith("layers.") and name.endswith("weight")]
    return len(state["layers.0.weight"]), len(layers)


def readings(scene: Path, side: float) -> list[Any]:
    """The data parsers that a scene may be meant for, by what lies in its folder.

    Raises:
        DataError: neither of the original's layouts.
    """
    from dataparsers.blender_parser import ObjectBlenderDataParserConfig
    from dataparsers.nsvf_parser import NsvfDataParserConfig

    if (scene / "transforms_train.json").is_file():
        return [ObjectBlenderDataParserConfig(data=scene, grid_side=side)]
    if (scene / "rgb").is_dir() and (scene / "pose").is_dir():
        return [NsvfDataParserConfig(data=scene, grid_side=side, legacy_scale=legacy) for legacy in (False, True)]
    raise DataError(
        scene, "", "is no scene: it holds neither transforms_train.json nor the folders rgb and pose.",
        "Name the photos the model was trained on (NeRF-synthetic or NSVF layout).",
    )  # fmt: skip


def opened_manager(config: Any) -> Any:
    """A data manager on a scene that decodes no training photo and writes nothing."""
    config = copy.deepcopy(config)
    config.run_dir = None
    return config.setup(device="cpu", test_mode="inference")


@torch.no_grad()
def best_reading(config: Any, found: VoxelModel, choices: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """The data parser and background whose training photos the model resembles most (spec diver 5.6)."""
    best, best_psnr = choices[0], -float("inf")
    for parser, colour in choices:
        manager_config = copy.deepcopy(config.pipeline.datamanager)
        manager_config.dataparser, manager_config.background = parser, colour
        manager = opened_manager(manager_config)
        model: Any = config.pipeline.model.setup(
            scene_box=manager.train_dataset.scene_box,
            num_train_data=len(manager.train_dataset),
            metadata=manager.train_dataset.metadata,
        )
        fill(model, found)
        psnr = resemblance(model.eval(), manager)
        CONSOLE.print(f"legacy-scale {parser.legacy_scale!s:5}, background {colour}: {psnr:.2f} dB on training photos")
        if psnr > best_psnr:
            best, best_psnr = (parser, colour), psnr
    CONSOLE.print(f"Chosen: legacy-scale {best[0].legacy_scale}, background {best[1]}.")
    return best


def resemblance(model: Any, manager: Any) -> float:
    """PSNR in dB over pixels of evenly spread training photos."""
    views = torch.linspace(0, len(manager.train_dataset) - 1, min(TRIED_VIEWS, len(manager.train_dataset)))
    errors = []
    for view in views.round().int().tolist():
        truth = manager.train_dataset.get_data(view)["image"].reshape(-1, 3)
        origins, directions = manager.view_rays(view, reduced=False)
        pixels = torch.arange(0, len(truth), max(len(truth) // TRIED_PIXELS, 1))
        rays = RayBundle(origins[pixels], directions[pixels], torch.ones(len(pixels), 1))
        errors.append((model.get_outputs(rays)["rgb"] - truth[pixels]).square())
    return float(-10 * torch.cat(errors).mean().clamp_min(1e-10).log10())


@torch.no_grad()
def fill(model: Any, found: VoxelModel) -> None:
    """Put a voxel model's weights into a `DiverModel` of its resolution and decoder width."""
    implicit = found.implicit_state is not None and len(found.features) == 0
    size = len(found.mask) if found.mask is not None else found.resolution
    mask = found.mask if found.mask is not None else torch.ones(size, size, size, dtype=torch.bool)
    stage = Stage.IMPLICIT if implicit else Stage.EXPLICIT if size < found.resolution else Stage.PRUNED
    state: dict[str, torch.Tensor] = dict(model.state_dict())
    state |= {
        "stage_code": torch.tensor(int(stage)),
        "mask_bits": pack_mask(mask),
        "mask_size": torch.tensor(size),
        "vertex_ids": found.ids,
        "voxels": found.features,
    }
    state |= {f"decoder.{name}": value for name, value in found.decoder_state.items()}
    if implicit:
        state |= {f"implicit.{name}": value for name, value in (found.implicit_state or {}).items()}
    model.load_state_dict(state)
