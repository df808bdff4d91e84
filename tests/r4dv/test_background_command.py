"""``ns-r4dv bg-init``: every source of points, and bad input as one line; depth maps of a radiance field."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core_ns.console import run_command
from dataparsers.moving_room import strike
from dataparsers.moving_scene import make_moving_scene
from dataparsers.point_ply import read_ply, write_ply
from r4dv_ns.background_command import BackgroundInit
from r4dv_ns.background_points import POINTS, RECORD

with warnings.catch_warnings():  # nerfstudio's own imports warn
    warnings.simplefilter("ignore")
    import nerfstudio.utils.eval_utils  # noqa: F401

    from dataparsers.easymocap_parser import EasyMocapDataParserConfig


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init") / "room"
    make_moving_scene(folder, 6, 1, (40, 50), background="room", supersample=1)
    return folder


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        run_command(BackgroundInit, "ns-r4dv bg-init", "", [str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_from_photos_and_at_random(room, tmp_path, capsys):
    for start in ("photos", "frusta"):
        out = tmp_path / start
        assert run(room, "--output-dir", out, "--points", 300, "--start", start, "--depths", 16) == 0
        assert "ns-train r4dv-bg --data" in capsys.readouterr().out
        assert 100 < len(read_ply(out / POINTS).xyz) <= 300
        assert json.loads((out / RECORD).read_text()) == {
            "version": 1, "how": start, "points": len(read_ply(out / POINTS).xyz), "fingerprint": "",
        }  # fmt: skip
    assert not (room / POINTS).exists()


def test_from_a_cloud_without_what_lies_in_the_given_box(room, tmp_path):
    write_ply(tmp_path / "scan.ply", np.array([[0.0, 0.0, 0.5], [3.0, 0.0, 1.0], [3.0, 1.0, 1.0]]))
    options = ("--cloud", tmp_path / "scan.ply", "--output-dir", tmp_path / "out")
    assert run(room, *options) == 0
    assert len(read_ply(tmp_path / "out" / POINTS).xyz) == 3, "the box that follows from the cameras takes nothing away"
    assert run(room, *options, "--data.bounds", *(-1, -1, -1), *(1, 1, 2)) == 0
    assert len(read_ply(tmp_path / "out" / POINTS).xyz) == 2


def test_bad_input_is_one_line_and_nothing_is_written(room, tmp_path, capsys):
    (tmp_path / "no.ply").write_text("nothing")
    out = tmp_path / "out"
    for options in (
        ("--cloud", tmp_path / "no.ply"), ("--cloud", tmp_path / "absent.ply"), ("--load-config", tmp_path / "absent"),
        ("--points", 0), ("--ratio", 0), ("--view-step", 0), ("--cloud", "a", "--load-config", "b"),
    ):  # fmt: skip
        assert run(room, "--output-dir", out, *options) == 2, options
    assert run(tmp_path / "nowhere", "--output-dir", out) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 8
    assert all(line.startswith("DataError: ") for line in shown)
    assert not out.exists()


class Field(torch.nn.Module):
    """Draws the true room as nerfacto draws what it has learned: distances along unit rays."""

    def get_outputs_for_camera(self, camera):
        rays = camera.generate_rays(camera_indices=0, keep_shape=True)
        shape = (*rays.origins.shape[:2], 1)
        origins = (rays.origins.reshape(-1, 3) / self.scale - self.shift) @ self.turn
        struck = strike(origins, rays.directions.reshape(-1, 3) @ self.turn)
        distance = self.scale * struck.t.reshape(shape)
        rgb = (struck.points / 8 + 0.5).reshape(*shape[:2], 3)
        return {"rgb": rgb.clamp(0, 1), "depth": distance, "accumulation": torch.ones(shape)}


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_from_the_depths_of_a_radiance_field(room, tmp_path, monkeypatch, scale):
    """Also where nerfstudio's world is turned, moved and scaled: the points lie on the room's surfaces."""
    parser = EasyMocapDataParserConfig(data=room, orientation="up", eval_views=("none",)).setup()
    outputs = parser.get_dataparser_outputs("train")
    outputs.cameras.camera_to_worlds[:, :, 3] *= scale
    outputs.dataparser_scale = scale
    field = Field()
    transform = outputs.dataparser_transform
    field.turn, field.shift, field.scale = transform[:, :3], transform[:, 3], scale
    manager = SimpleNamespace(train_dataparser_outputs=outputs, train_dataset=SimpleNamespace(cameras=outputs.cameras))
    pipeline = SimpleNamespace(datamanager=manager, model=field, device="cpu")
    monkeypatch.setattr("nerfstudio.utils.eval_utils.eval_setup", lambda *_, **__: (None, pipeline, None, None))
    (tmp_path / "config.yml").write_text("")
    options = ("--load-config", tmp_path / "config.yml", "--ratio", 0.5, "--view-step", 1, "--output-dir", tmp_path)
    assert run(room, *options) == 0
    whole = read_ply(tmp_path / POINTS)
    on_surface = np.abs(np.stack([np.abs(whole.xyz[:, 0]) - 3.9, np.abs(whole.xyz[:, 1]) - 3.9, whole.xyz[:, 2]])).min(
        0
    )
    assert np.quantile(on_surface, 0.7) < 1e-3, "walls and floor; the rest is furniture"
    colours = np.abs(whole.rgb / 255 - (whole.xyz / 8 + 0.5).clip(0, 1))
    assert colours.max() < 0.01
    assert run(room, *options, "--consistency") == 0
    assert 0.2 * len(whole.xyz) < len(read_ply(tmp_path / POINTS).xyz) < len(whole.xyz)
