"""The run folder's copy of a dataparser's outputs: exact to the last bit, and clear about damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mvsnet_scene  # noqa: F401  (imports nerfstudio with its warnings caught)
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.scene_box import SceneBox

from core_ns.errors import DataError
from dataparsers.snapshot_parser import (
    SPLITS,
    SnapshotParserConfig,
    outputs_from_json,
    outputs_to_json,
    read_snapshot,
    write_snapshot,
)

# nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")

FIELDS = ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height", "camera_type")


def make_outputs(count: int = 4, seed: int = 0, *, distortion: bool = True, times: bool = True, masks: bool = True):
    """Outputs full of numbers that no short decimal can hold."""
    rng = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng) * 10 ** torch.empty(*shape).uniform_(-6, 6, generator=rng)

    cameras = Cameras(
        camera_to_worlds=random(count, 3, 4),
        fx=random(count, 1),
        fy=random(count, 1),
        cx=random(count, 1),
        cy=random(count, 1),
        width=torch.arange(100, 100 + count)[:, None],
        height=torch.arange(50, 50 + count)[:, None],
        distortion_params=random(count, 6) if distortion else None,
        camera_type=[CameraType.PERSPECTIVE, CameraType.FISHEYE] * (count // 2),
        times=torch.rand(count, 1, generator=rng) if times else None,
    )
    return DataparserOutputs(
        image_filenames=[Path(f"/data/scène/{index:03d} a.png") for index in range(count)],
        cameras=cameras,
        scene_box=SceneBox(aabb=random(2, 3)),
        mask_filenames=[Path(f"/data/masks/{index}.png") for index in range(count)] if masks else None,
        dataparser_transform=random(3, 4),
        dataparser_scale=1 / 3,
        metadata={"train_names": ["a", "b"], "space": {"scale": 0.1 + 0.2}, "mesh_path": None, "table": torch.ones(3)},
    )


def assert_same(mine: DataparserOutputs, theirs: DataparserOutputs) -> None:
    for name in FIELDS:
        first, second = getattr(mine.cameras, name), getattr(theirs.cameras, name)
        assert first.dtype == second.dtype, name
        assert torch.equal(first, second), name
    for name in ("distortion_params", "times"):
        first, second = getattr(mine.cameras, name), getattr(theirs.cameras, name)
        assert (first is None) == (second is None), name
        assert first is None or torch.equal(first, second), name
    assert mine.image_filenames == theirs.image_filenames
    assert mine.mask_filenames == theirs.mask_filenames
    assert torch.equal(mine.scene_box.aabb, theirs.scene_box.aabb)
    assert torch.equal(mine.dataparser_transform, theirs.dataparser_transform)
    assert mine.dataparser_scale == theirs.dataparser_scale


@pytest.mark.parametrize("options", [{}, {"distortion": False}, {"times": False}, {"masks": False}])
def test_every_number_survives_exactly(options: dict[str, bool]) -> None:
    outputs = make_outputs(**options)
    assert_same(outputs_from_json(json.loads(json.dumps(outputs_to_json(outputs)))), outputs)


def test_metadata_is_kept_where_json_can_hold_it() -> None:
    metadata = outputs_from_json(outputs_to_json(make_outputs())).metadata
    assert metadata == {"train_names": ["a", "b"], "space": {"scale": 0.1 + 0.2}, "mesh_path": None}


def test_the_parser_gives_each_split_its_own_outputs(tmp_path: Path) -> None:
    file = tmp_path / "run" / "scene" / "snapshot.json"
    splits = {split: make_outputs(2 * (index + 1), seed=index) for index, split in enumerate(SPLITS)}
    write_snapshot(file, splits, {"finest_resolution": 777})
    assert read_snapshot(file)["extra"] == {"finest_resolution": 777}
    parser = SnapshotParserConfig(data=file).setup()
    parser.downscale_factor = 1  # what ns-render sets
    for split in SPLITS:
        assert_same(parser.get_dataparser_outputs(split=split), splits[split])
    assert [path.name for path in file.parent.iterdir()] == ["snapshot.json"], "written atomically, nothing left over"


def test_rays_of_the_copy_are_the_originals(tmp_path: Path) -> None:
    outputs = make_outputs()
    angle = torch.tensor([0.3, -1.2, 2.5, 0.9])
    outputs.cameras.fx[:], outputs.cameras.fy[:] = 80.1, 79.7
    outputs.cameras.cx[:], outputs.cameras.cy[:] = 50.3, 24.9
    outputs.cameras.distortion_params[:] = torch.tensor([0.05, -0.02, 0.0, 0.0, 1e-3, -1e-3])
    outputs.cameras.camera_to_worlds[:, :, 0] = torch.stack([angle.cos(), angle.sin(), 0 * angle], dim=-1)
    copy = outputs_from_json(json.loads(json.dumps(outputs_to_json(outputs))))
    pixels, index = torch.rand(50, 2) * 40, torch.arange(50)[:, None] % 4
    mine, theirs = (cameras.generate_rays(index, coords=pixels) for cameras in (copy.cameras, outputs.cameras))
    assert torch.equal(mine.directions, theirs.directions)
    assert torch.equal(mine.origins, theirs.origins)


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", '{"splits": {}}', '{"splits": {"train": {}, "val": {}}}', '{"extra": 1}', "\x00"]
)
def test_a_damaged_or_foreign_file_is_named(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "snapshot.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=r"snapshot\.json: is not a scene snapshot"):
        read_snapshot(file)


def test_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "snapshot.json"
    file.write_bytes('{"splits": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="is not a scene snapshot"):
        read_snapshot(file)
