"""Charges opened as the tools open them, for the tests of what draws them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import capture_runs  # noqa: F401 (silences the warnings of nerfstudio's imports)
import torch
from nerfstudio.cameras.cameras import Cameras

from core_ns.images import write_image
from r4dv_ns.charge_hashes import file_sha256
from r4dv_ns.charge_manifest import EvalPhoto, write_manifest
from r4dv_ns.charged_config import write_run
from r4dv_ns.charged_data import ChargedDataManagerConfig, ChargedDataParserConfig, charged_cameras
from r4dv_ns.charged_model import ChargedModelConfig
from r4dv_ns.charged_pipeline import ChargedPipelineConfig


def open_charge(folder: Path, mode: str = "test", parser: dict[str, Any] | None = None, **model: Any) -> Any:
    """The pipeline of a charge on the CPU, as ``eval_setup`` makes it; model options as keywords."""
    manager = ChargedDataManagerConfig(data=folder, dataparser=ChargedDataParserConfig(**(parser or {})))
    config: Any = ChargedPipelineConfig(datamanager=manager, model=ChargedModelConfig(**model))
    pipeline = config.setup(device="cpu", test_mode=mode)
    pipeline.eval()
    return pipeline


def load_run(folder: Path, monkeypatch: Any, mode: str = "test", **options: Any) -> Any:
    """The pipeline that nerfstudio's ``eval_setup`` makes of a charge's config.yml."""
    from nerfstudio.configs.method_configs import all_methods
    from nerfstudio.utils.eval_utils import eval_setup

    from r4dv_ns.charged_config import r4dv_charged

    monkeypatch.setitem(all_methods, "r4dv-charged", r4dv_charged.config)
    return eval_setup(write_run(folder, **options), test_mode=mode)[1]  # type: ignore[arg-type]


def plain_camera(cameras: Cameras, index: int = 0, **changes: Any) -> Cameras:
    """A camera as a viewer has it: without metadata."""
    chosen = cameras[index : index + 1]
    fields: dict[str, Any] = {
        name: getattr(chosen, name) for name in ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height")
    }
    return Cameras(**(fields | {"times": chosen.times} | changes))


def at_time(time: float) -> torch.Tensor:
    """Of one camera."""
    return torch.tensor([[time]])


def add_photos(folder: Path) -> None:
    """Put photos to compare with into a charge: what it draws in its held-out cameras, at its first and last frame."""
    pipeline = open_charge(folder)
    store, photos = pipeline.datamanager.store, []
    manifest, hashes = store.manifest, dict(store.hashes)
    frames = sorted({0, len(manifest.frames) - 1})
    cameras = charged_cameras(manifest, [(view, frame) for frame in frames for view in manifest.eval_views])
    for index, (frame, view) in enumerate((frame, view) for frame in frames for view in manifest.eval_views):
        seen = pipeline.model.get_outputs_for_camera(cameras[index : index + 1])
        pixels = {"image": seen["rgb"], "mask": (seen["accumulation"][..., 0] > 0).float()}
        paths = {}
        for kind, picture in pixels.items():
            paths[kind] = f"eval/{kind}/{manifest.views[view].name}/{manifest.frames[frame]}.png"
            write_image(folder / paths[kind], (picture * 255 + 0.5).byte().numpy())
            hashes[paths[kind]] = file_sha256(folder / paths[kind])
        photos.append(EvalPhoto(view=view, frame=frame, valid=None, box=(8, 4, 40, 36), **paths))
    pipeline.model.close()
    write_manifest(folder, replace(manifest, eval_frames=frames, eval_photos=tuple(photos)), hashes)
