"""`ns-diver import`: every file of the original becomes a run that renders what the original renders (acceptance 3)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from diver_runs import NOISE, bundle
from PIL import Image

from core_ns.errors import DataError
from dataparsers.nsvf import normalization, write_nsvf
from dataparsers.object_scene import ObjectPicture, ObjectScene, demo_object
from diver_ns.compact_file import write_safetensors
from diver_ns.formats import read_original, write_weight
from diver_ns.import_run import fill, import_run, opened_manager, run_config
from diver_ns.stages import Stage

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(line) for line in NOISE)]

FILES = [
    ("coarse64/last.ckpt", "", Stage.PRUNED), ("fine64/last.ckpt", "", Stage.EXPLICIT),
    ("fine32/last.ckpt", "", Stage.PRUNED), ("implicit32/last.ckpt", "", Stage.IMPLICIT),
    ("fine64/weight.pth", "weight_", Stage.PRUNED), ("fine32/weight.pth", "weight_", Stage.PRUNED),
    ("fine64/serialize.pth", "weight_", Stage.PRUNED), ("fine32/serialize.pth", "weight_", Stage.PRUNED),
]  # fmt: skip


def rays_of(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path.parent / "rays.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def opened(config: Path) -> Any:
    from nerfstudio.utils.eval_utils import eval_setup

    return eval_setup(config, test_mode="test")[1]


@pytest.mark.parametrize(("file", "prefix", "stage"), FILES)
@torch.no_grad()
def test_the_run_renders_what_the_original_renders(
    shared_fixtures: Path, monument: Path, tmp_path: Path, file: str, prefix: str, stage: Stage
) -> None:
    path = shared_fixtures / "diver" / file
    # weight.pth and serialize.pth do not tell what lies behind the object.
    background = "black" if prefix and "fine32" in file else "auto"
    config = import_run(path, monument, tmp_path, background=background)
    assert config.is_file()
    assert sorted(file.name for file in (config.parent / "nerfstudio_models").iterdir()) == ["step-000000000.ckpt"]
    pipeline = opened(config)
    model, rays = pipeline.model.eval(), rays_of(path)
    assert model.stage == stage
    made = model.get_outputs(bundle(rays["o"], rays["d"]))
    torch.testing.assert_close(made["rgb"], rays[f"{prefix}rgb"], atol=1e-4, rtol=0)
    torch.testing.assert_close(made["accumulation"][:, 0], rays[f"{prefix}accumulation"], atol=1e-4, rtol=0)
    assert made["rgb"].std() > 0.02, "and there is something to see"
    # A picture of the scene's own camera, by the path that the viewer takes (the original's rule for rays along a grid
    # plane is the exact path's own).
    camera = pipeline.datamanager.eval_dataset.cameras[:1]
    fast = model.get_outputs_for_camera(camera)["rgb"]
    model.exact = True
    exact = model.get_outputs_for_camera(camera)["rgb"]
    assert exact.std() > 0.02
    assert float((fast - exact).square().mean()) < 1e-4, "40 dB; thresholds of 0.01"


def test_the_command_makes_a_run_that_the_others_open(shared_fixtures: Path, monument: Path, tmp_path: Path) -> None:
    file = shared_fixtures / "diver" / "fine32" / "weight.pth"
    output = run("ns-diver", "import", file, monument, "--output-dir", "outputs", "--background", "black", cwd=tmp_path)
    config = next((tmp_path / "outputs").rglob("config.yml"))
    for line in ("View:     ns-viewer", "Evaluate: ns-eval", "Render:   ns-render"):
        assert line in output
    assert output.count(str(config)) >= 3, "absolute, whatever the folder"
    run("ns-eval", "--load-config", config, "--output-path", "eval.json", "--render-output-path", "eval", cwd=tmp_path)
    rows = json.loads((tmp_path / "eval.json").read_text())["results"]["per_image"]
    assert [row["file"] for row in rows] == ["r_0.png", "r_1.png"]
    with Image.open(tmp_path / "eval" / "eval_r_0_img.png") as picture:
        shown = np.asarray(picture)
    assert shown[:4, 64:68].max() == 0, "black where no ray meets the cube"
    run("ns-render", "dataset", "--load-config", config, "--output-path", "made", "--rendered-output-names", "rgb",
        cwd=tmp_path)  # fmt: skip
    assert len(list((tmp_path / "made" / "test" / "rgb").iterdir())) == 2


def test_training_goes_on_from_an_imported_model(shared_fixtures: Path, monument: Path, tmp_path: Path) -> None:
    """Fine-tuning starts in the stage the file was in, and ends pruned."""
    config = import_run(shared_fixtures / "diver" / "implicit32" / "last.ckpt", monument, tmp_path)
    run("ns-train", "diver-rt", "--data", monument, "--output-dir", tmp_path, "--timestamp", "on", "--load-dir",
        config.parent / "nerfstudio_models", "--max-num-iterations", "6", "--vis", "tensorboard",
        "--pipeline.model.resolution", "8", "--pipeline.model.coarse-resolution", "4", "--pipeline.model.fine-rays",
        "256", "--pipeline.model.implicit-width", "48", cwd=tmp_path)  # fmt: skip
    files = sorted((tmp_path / "monument" / "diver-rt" / "on" / "nerfstudio_models").iterdir())
    state = torch.load(files[-1], weights_only=True)["pipeline"]
    assert int(state["_model.stage_code"]) == Stage.PRUNED


# ---------------------------------------------------------------------- NSVF scenes: which scale, which background


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("background", ["white", "black"])
@torch.no_grad()
def test_the_reading_of_an_nsvf_scene_that_fits_is_taken(
    shared_fixtures: Path, tmp_path: Path, capsys, legacy: bool, background: str
) -> None:
    found = read_original(shared_fixtures / "diver" / "fine64" / "weight.pth")
    box = np.array([[-1.0, -0.9, -2.0], [1.0, 1.4, 0.1]])
    middle, half = normalization(box, legacy)
    assert abs(normalization(box, True)[1] - normalization(box, False)[1]) > 0.2
    # Photos of the model itself, taken with the scale and background that the import has to find.
    shapes = demo_object(train=6, val=0, test=2, size=48, supersample=1, texture_detail=16, mesh_faces=800)
    cameras = SimpleNamespace(k=shapes.intrinsics, poses=[picture.c2w for picture in shapes.pictures])
    model = run_config(found).pipeline.model.setup(
        scene_box=None, num_train_data=1,
        metadata={"grid_side": 2.8, "grid_center": [0, 0, 0], "background": [float(background == "white")] * 3},
    )  # fmt: skip
    fill(model.eval(), found)
    rows, columns = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    focal, centre = cameras.k[0, 0], cameras.k[0, 2]
    local = torch.stack([(columns - centre) / focal, (rows - centre) / focal, torch.ones(48, 48)], dim=-1).reshape(
        -1, 3
    )
    pictures = []
    for picture, c2w in zip(shapes.pictures, cameras.poses, strict=True):
        rotation = torch.from_numpy(c2w[:3, :3]).float()
        directions = torch.nn.functional.normalize(local @ rotation.T, dim=-1)
        origins = torch.from_numpy(c2w[:3, 3]).float().expand(len(directions), 3)
        rgb = model.get_outputs(bundle(origins.contiguous(), directions))["rgb"].reshape(48, 48, 3)
        rgba = np.concatenate([(rgb * 255).round().byte().numpy(), np.full((48, 48, 1), 255, np.uint8)], axis=-1)
        world = c2w.copy()
        world[:3, 3] = c2w[:3, 3] * half + middle
        pictures.append(ObjectPicture(picture.split, rgba, world))
    scene = tmp_path / "scene"
    write_nsvf(scene, ObjectScene(tuple(pictures), shapes.intrinsics, box), background=background)
    config = import_run(shared_fixtures / "diver" / "fine64" / "weight.pth", scene, tmp_path / "outputs")
    assert f"Chosen: legacy-scale {legacy}, background {background}." in capsys.readouterr().out
    pipeline = opened(config)
    assert pipeline.model.background.tolist() == [float(background == "white")] * 3
    metrics = pipeline.get_average_eval_image_metrics()
    assert metrics["psnr"] > 45, "the photos are 8-bit pictures of this very model"


# ---------------------------------------------------------------------- what cannot be


def test_another_cube_is_refused_unless_the_parser_can_have_it(
    shared_fixtures: Path, monument: Path, tmp_path: Path
) -> None:
    found = read_original(shared_fixtures / "diver" / "fine64" / "weight.pth")
    found.side = 3.2
    write_safetensors(tmp_path / "wide.safetensors", found, "fp32")
    pipeline = opened(import_run(tmp_path / "wide.safetensors", monument, tmp_path / "outputs"))
    assert pipeline.model.grid.side == pytest.approx(3.2)
    found.center = (0.5, 0.0, 0.0)
    write_safetensors(tmp_path / "aside.safetensors", found, "fp32")
    with pytest.raises(DataError, match=r"has side 3\.2 around"):
        import_run(tmp_path / "aside.safetensors", monument, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_bad_scenes_and_files_leave_nothing(shared_fixtures: Path, monument: Path, tmp_path: Path) -> None:
    good = shared_fixtures / "diver" / "fine32" / "last.ckpt"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    for file, scene, resolution, says in (
        (good, tmp_path / "empty", None, "is no scene"),
        (good, tmp_path / "absent", None, "is no scene"),
        (tmp_path / "absent.ckpt", monument, None, "no such file"),
        (tmp_path / "text.ckpt", monument, None, "Not readable"),
        (good, monument, 12, "10 voxels"),
    ):
        with pytest.raises(DataError, match=says):
            import_run(file, scene, tmp_path / "outputs", resolution)
    assert not (tmp_path / "outputs").exists()


def test_a_broken_photo_leaves_no_half_run(shared_fixtures: Path, monument: Path, tmp_path: Path) -> None:
    import shutil

    scene = tmp_path / "scene"
    shutil.copytree(monument, scene)
    photo = scene / "train" / "r_5.png"  # not one of those that show the background
    photo.write_bytes(photo.read_bytes()[:600])
    with pytest.raises(DataError, match=r"r_5\.png"):
        import_run(shared_fixtures / "diver" / "fine32" / "last.ckpt", scene, tmp_path / "outputs")
    assert not list((tmp_path / "outputs").rglob("config.yml"))


def test_looking_at_a_scene_writes_nothing(monument: Path, shared_fixtures: Path) -> None:
    found = read_original(shared_fixtures / "diver" / "fine32" / "last.ckpt")
    manager = run_config(found).pipeline.datamanager
    manager.data, before = monument, sorted(monument.rglob("*"))
    assert opened_manager(manager).photos is None
    assert sorted(monument.rglob("*")) == before


def test_a_weight_file_written_from_an_import_is_the_same_model(shared_fixtures: Path, tmp_path: Path) -> None:
    found = read_original(shared_fixtures / "diver" / "fine32" / "weight.pth")
    write_weight(tmp_path / "again.pth", found)
    again = read_original(tmp_path / "again.pth")
    assert torch.equal(again.ids, found.ids)
    assert torch.equal(again.features, found.features)
