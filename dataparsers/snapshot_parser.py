"""A dataparser's outputs, stored in the run folder: cameras, names and transform outlive the scene folder.

A viewed or rendered model must see the cameras, normalisation and view order it was trained with, whatever happened to
the scene since. Plain JSON: float32 numbers survive the round trip through Python floats exactly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Type

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox

from core_ns.atomic import write_json
from core_ns.errors import DataError

SPLITS = ("train", "val", "test")
_CAMERA_FIELDS = ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height", "camera_type")


def outputs_to_json(outputs: DataparserOutputs) -> dict[str, Any]:
    """Everything a rendering needs of a split. Metadata is kept where JSON can hold it."""
    cameras = outputs.cameras
    metadata = {}
    for key, value in outputs.metadata.items():
        try:
            metadata[key] = json.loads(json.dumps(value))
        except TypeError:
            continue
    return {
        "image_filenames": [str(path) for path in outputs.image_filenames],
        "mask_filenames": [str(path) for path in outputs.mask_filenames] if outputs.mask_filenames else None,
        "cameras": {name: getattr(cameras, name).tolist() for name in _CAMERA_FIELDS},
        "distortion": cameras.distortion_params.tolist() if cameras.distortion_params is not None else None,
        "times": cameras.times.tolist() if cameras.times is not None else None,
        "aabb": outputs.scene_box.aabb.tolist(),
        "transform": outputs.dataparser_transform.tolist(),
        "scale": float(outputs.dataparser_scale),
        "metadata": metadata,
    }


def outputs_from_json(data: dict[str, Any]) -> DataparserOutputs:
    """The inverse of `outputs_to_json`."""
    fields: dict[str, Any] = {name: torch.tensor(value) for name, value in data["cameras"].items()}
    cameras = Cameras(
        **fields,
        distortion_params=torch.tensor(data["distortion"]) if data["distortion"] is not None else None,
        times=torch.tensor(data["times"]) if data["times"] is not None else None,
    )
    return DataparserOutputs(
        image_filenames=[Path(name) for name in data["image_filenames"]],
        mask_filenames=[Path(name) for name in data["mask_filenames"]] if data["mask_filenames"] else None,
        cameras=cameras,
        scene_box=SceneBox(aabb=torch.tensor(data["aabb"])),
        dataparser_transform=torch.tensor(data["transform"]),
        dataparser_scale=data["scale"],
        metadata=dict(data["metadata"]),
    )


def write_snapshot(file: Path, splits: dict[str, DataparserOutputs], extra: dict[str, Any]) -> None:
    """Write a snapshot atomically; ``extra`` holds the method's own JSON values."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"splits": {name: outputs_to_json(outputs) for name, outputs in splits.items()}, "extra": extra})


def read_snapshot(file: Path) -> dict[str, Any]:
    """Read a snapshot.

    Raises:
        DataError: absent or not a snapshot.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if not set(SPLITS) <= set(data["splits"]):
            raise ValueError("a split is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(file, "", f"is not a scene snapshot ({error}).", "Train again, or restore it.") from error
    return data


@dataclass
class SnapshotParserConfig(DataParserConfig):
    """Reads the scene as it was at training time from a run folder."""

    _target: Type = field(default_factory=lambda: SnapshotParser)
    data: Path = Path()
    """The snapshot file."""
    downscale_factor: Optional[int] = None
    """Not used; nerfstudio's tools set it."""


class SnapshotParser(DataParser):
    """See `SnapshotParserConfig`."""

    config: SnapshotParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        return outputs_from_json(read_snapshot(self.config.data)["splits"][split])
