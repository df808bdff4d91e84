"""An original checkpoint becomes a run folder that every ``ns-*`` command reads (``ns-xscale import``)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from core_ns.errors import DataError
from dataparsers.mvsnet_parser import MvsnetDataParserConfig
from xscale_ns.checkpoint_import import UPSTREAM_LEVELS, infer_log2_table, load_upstream_checkpoint


def import_run(
    checkpoint: Path,
    scene: Path,
    output_dir: Path,
    downscale_factor: int | None = None,
    mesh: Path | None = None,
    base_resolution: int = 16,
    per_level_scale: float = 1.4768261459394993,
) -> Path:
    """Write a run of ``xscale-nvs-paper`` that holds the original's weights.

    The scene keeps its world axes: the original's grid is stretched along them, and its shader sees directions in
    them. Views are split as the original does (every seventh is held out), so exposure codes meet their photos.

    Args:
        checkpoint: the original's ``epoch:NNNNN.pth.tar``.
        scene: folder with images_D, cams_D and the mesh it was trained with.
        output_dir: as in ``ns-train``.
        base_resolution, per_level_scale: the original's constants; its checkpoints do not hold them.

    Returns:
        The run's ``config.yml``.

    Raises:
        DataError: the checkpoint or scene is unusable, or they do not belong together.
    """
    from xscale_ns.config import xscale_nvs_paper

    shader = load_upstream_checkpoint(checkpoint)
    head = shader.build_head()
    features = head.feature_dim // UPSTREAM_LEVELS
    log2_table = infer_log2_table(len(shader.hash_params), UPSTREAM_LEVELS, features, base_resolution, per_level_scale)
    if log2_table is None or features * UPSTREAM_LEVELS != head.feature_dim:
        raise DataError(
            checkpoint,
            "spatial_enc.params",
            f"{len(shader.hash_params)} parameters are no hash grid of {UPSTREAM_LEVELS} levels, base resolution "
            f"{base_resolution} and scale {per_level_scale}.",
            "Name the values it was trained with.",
        )
    config: Any = copy.deepcopy(xscale_nvs_paper.config)
    config.output_dir, config.data = output_dir, scene
    config.vis = "tensorboard"
    manager, model = config.pipeline.datamanager, config.pipeline.model
    manager.data = scene
    manager.dataparser = MvsnetDataParserConfig(
        data=scene, downscale_factor=downscale_factor, mesh=mesh, up="keep", eval_mode="interval", eval_interval=7
    )
    manager.storage = "decode-pool"
    model.features_per_level, model.log2_table = features, log2_table
    model.base_resolution, model.per_level_scale = base_resolution, per_level_scale
    model.light_dim, model.exposure_dim = head.light_dim, head.exposure_dim
    model.num_lights = len(shader.lighting_codes)
    views = len(manager.dataparser.setup().get_dataparser_outputs("train").image_filenames)
    if views != len(shader.exposure_codes):
        raise DataError(
            checkpoint,
            "x_embeddings_list",
            f"holds exposure codes of {len(shader.exposure_codes)} training views; the scene has {views}.",
            "Use the photos it was trained on: all but every seventh are training views.",
        )
    config.set_timestamp()
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    field = trainer.pipeline.model.field
    with torch.no_grad():
        field.head.load_state_dict(shader.head_state)
        field.grid.load_tcnn_params(shader.hash_params.to(field.grid.tables[0].device))
        field.exposure.weight.copy_(shader.exposure_codes)
        field.lighting.weight.copy_(shader.lighting_codes)
    trainer.save_checkpoint(int(shader.iteration))
    if trainer.pipeline.datamanager.pixels is not None:
        trainer.pipeline.datamanager.pixels.close()
    return config.get_base_dir() / "config.yml"
