"""Whole scenes charged: the background's geometry is stored once, pictures stay the same (A19, spec r4dv 5.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capture_runs import NOISE, train
from charge_twin import contents, drawn, psnr
from joint_runs import joint_config
from nerfstudio.cameras.cameras import Cameras

from core_ns import runs
from dataparsers.moving_scene import make_moving_scene
from r4dv_ns import charge_bake
from r4dv_ns.charge_bake import PIPELINES, bake
from r4dv_ns.charge_store import ChargedStore

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> tuple[Path, Any, Any]:
    """config.yml, pipeline and model of a juggler in a room: 6 cameras, 2 frames."""
    folder = tmp_path_factory.mktemp("joint")
    make_moving_scene(folder / "room", 6, 2, (48, 60), background="room", supersample=1)
    wanted = joint_config(folder / "room", folder / "outputs", (2, 2, 2))
    wanted.save_config()
    train(wanted)
    config = wanted.get_base_dir() / "config.yml"
    pipeline, model = runs.load_run(config, *PIPELINES)
    return config, pipeline, model


@pytest.fixture
def loaded(scene, monkeypatch) -> Any:
    """The model, without loading it for every bake."""
    _, pipeline, model = scene
    monkeypatch.setattr(runs, "load_run", lambda file, *names: (pipeline, model))
    return model


def camera(model: Any, pipeline: Any, row: int) -> Cameras:
    """Of an evaluation photo, without metadata."""
    chosen = pipeline.datamanager.eval_dataset.cameras[row : row + 1]
    fields = ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height", "times")
    return Cameras(**{name: getattr(chosen, name) for name in fields})


# Nearly half of this small room is seen by none of the photos that a picture takes its colours from: f32 has the logits
# of such points to 0.004 (beside `UNSEEN`), f16 takes these photos evenly. All other arrays alone leave 67 dB and more.
@pytest.mark.parametrize(("options", "least"), [
    ({"colours": "f32"}, 80), ({}, 48), ({"xyz": "u16", "pack": True}, 48),
])  # fmt: skip
def test_a_whole_scene_draws_as_the_run(scene, loaded, tmp_path, options, least):
    config, pipeline, model = scene
    manifest = bake(config, tmp_path / "charge", **options)
    store = ChargedStore(tmp_path / "charge")
    store.verify()
    assert manifest.layers == model.config.layers
    assert manifest.dtypes["branch"] == "|u1"
    assert manifest.static_count == len(model.room.points.points[0])
    assert len([path for path in store.hashes if path.startswith("static/")]) == 4
    room = model.room.state()
    for index in range(2):
        frame = store.frame(index)
        assert len(frame) == manifest.counts[index] == len(model.points.points[index]) + manifest.static_count
        np.testing.assert_array_equal(frame.branch, np.repeat([0, 1], [len(frame) - len(room.xyz), len(room.xyz)]))
        np.testing.assert_array_equal(frame.positions()[-len(room.xyz) :], room.xyz.detach().numpy())
        photo = camera(model, pipeline, index)
        want = model.get_outputs_for_camera(photo)
        quality = psnr(drawn(store, photo, index, model.config), want["rgb"])
        print(f"{options}: {quality:.1f} dB")
        assert quality >= least
        assert float(want["accumulation"].mean()) > 0.3  # of a scene that fills its pictures


def test_a_damaged_background_is_stored_again(scene, loaded, tmp_path):
    config, out = scene[0], tmp_path / "charge"
    manifest = bake(config, out)
    before = contents(out)
    (out / "manifest.json").unlink()  # as if killed at the end
    (out / "static" / "alpha.npy").write_bytes(b"")
    charge_bake.write_json(out / charge_bake.SETTINGS, manifest.settings)
    charge_bake.write_json(out / "bake" / "static.json", {"hashes": {"static/alpha.npy": "0" * 64}})
    bake(config, out)
    assert contents(out) == before
