"""``ns-xscale`` and ``ns-export`` as processes, and training without each optional package (spec xscale 9, A15)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import convert_projects
import numpy as np
import pytest
import trimesh
from commands import run
from PIL import Image

pytestmark = pytest.mark.slow


def test_check_passes_a_good_scene_with_pictures(demo_scene, work):
    output = run("ns-xscale", "check", demo_scene, "--output", work / "checked", cwd=work)
    assert "verdict: good" in output
    report = json.loads((work / "checked" / "report.json").read_text())
    assert report["good"]
    assert len(report["views"]) == 12
    pictures = [path for path in (work / "checked").rglob("*") if path.suffix in (".jpg", ".png")]
    assert len(pictures) >= 12
    with Image.open(pictures[0]) as picture:
        assert np.asarray(picture).std() > 10


def test_check_names_a_mirrored_mesh_and_exits_with_one(demo_scene, work):
    wrong = work / "mirrored"
    shutil.copytree(demo_scene, wrong)
    mesh = trimesh.load(wrong / "scene.ply", process=False)
    mesh.vertices = mesh.vertices * [-1.0, 1.0, 1.0]
    mesh.export(wrong / "scene.ply")
    output = run("ns-xscale", "check", wrong, cwd=work, status=1)
    assert "verdict: WRONG" in output
    assert "mirrored" in output
    assert (work / "mirrored-check" / "report.json").is_file()


def test_tiles_are_built_trained_from_verified_and_cleaned(demo_scene, work):
    scene = work / "tiled"
    shutil.copytree(demo_scene, scene)
    before = {path.relative_to(scene) for path in scene.rglob("*")}
    run("ns-xscale", "tiles", "build", scene, "--cached", cwd=work)
    assert "0 problems" in run("ns-xscale", "tiles", "verify", scene, cwd=work)
    run("ns-train", "xscale-nvs-tiny", "--data", scene, "--output-dir", work / "outputs", "--timestamp", "tiles",
        "--max-num-iterations", "20", "--vis", "tensorboard", "--pipeline.model.levels", "4",
        "--pipeline.datamanager.storage", "tiles", "--pipeline.datamanager.hits", "cached",
        "--pipeline.datamanager.train-num-rays-per-batch", "512", cwd=work)  # fmt: skip
    assert sorted((work / "outputs" / "tiled" / "xscale-nvs-tiny" / "tiles" / "nerfstudio_models").iterdir())
    largest = max(
        (path for path in (scene / "xscale_tiles").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert "1 problems" in run("ns-xscale", "tiles", "verify", scene, cwd=work, status=1)
    run("ns-xscale", "tiles", "build", scene, "--cached", "--recheck", cwd=work)
    run("ns-xscale", "tiles", "verify", scene, cwd=work)
    run("ns-xscale", "tiles", "clean", scene, cwd=work)
    assert {path.relative_to(scene) for path in scene.rglob("*")} - {Path("xscale_tiles")} == before


def test_a_metashape_project_becomes_a_scene_that_checks_out(tmp_path, work):
    project = convert_projects.Project(tmp_path)
    run("ns-xscale", "convert", "metashape", "--xml", project.xml, "--images", project.images, "--mesh", project.mesh,
        "--output-dir", project.out, cwd=work)  # fmt: skip
    assert len(list(project.out.glob("images*/*"))) == len(convert_projects.POSES)
    assert "verdict: good" in run("ns-xscale", "check", project.out, cwd=work)


def test_a_colmap_project_becomes_a_scene_that_checks_out(tmp_path, work):
    convert_projects.colmap_project(tmp_path)
    run("ns-xscale", "convert", "colmap", "--model", tmp_path / "sparse" / "0", "--images", tmp_path / "photos",
        "--mesh", tmp_path / "meshed-poisson.ply", "--output-dir", tmp_path / "scene", cwd=work)  # fmt: skip
    assert "verdict: good" in run("ns-xscale", "check", tmp_path / "scene", cwd=work)


def test_bad_input_is_one_line_and_status_two(tmp_path, work):
    (tmp_path / "cams.xml").write_text("<document/>")
    (tmp_path / "photos").mkdir()
    output = run("ns-xscale", "convert", "metashape", "--xml", tmp_path / "cams.xml", "--images", tmp_path / "photos",
                 "--output-dir", tmp_path / "scene", cwd=work, status=2)  # fmt: skip
    assert "DataError" in output
    assert "Traceback" not in output
    assert not (tmp_path / "scene").exists()
    assert "DataError" in run("ns-xscale", "check", tmp_path / "absent", cwd=work, status=2)


def test_ns_export_writes_the_cameras(trained, work):
    run("ns-export", "cameras", "--load-config", trained / "config.yml", "--output-dir", work / "cameras", cwd=work)
    frames = json.loads((work / "cameras" / "transforms_train.json").read_text())
    assert len(frames) == 9
    snapshot = json.loads((trained / "scene" / "snapshot.json").read_text())["splits"]["train"]["cameras"]
    np.testing.assert_allclose(frames[0]["transform"], snapshot["camera_to_worlds"][0], atol=1e-6)


OPTIONAL = ("tinycudann", "nvdiffrast", "nvdiffrast.torch", "pycolmap", "xatlas", "cupy")
"""Never needed to train and render; most are absent on a CPU machine anyway."""


@pytest.fixture(scope="module")
def coarse_scene(tmp_path_factory) -> Path:
    """Few triangles: the torch caster tries them all for every ray."""
    from core_ns.demo_scenes import make_demo_scene

    folder = tmp_path_factory.mktemp("coarse") / "monument"
    make_demo_scene(folder, views=4, test_views=1, width=60, height=45, supersample=1, mesh_faces=500)
    return folder


@pytest.mark.parametrize(
    ("absent", "caster"),
    [(("embreex",), "open3d"), (("embreex", "open3d"), "warp"), (("embreex", "open3d", "warp"), "torch")],
)
def test_training_and_rendering_without_each_package(coarse_scene, work, absent, caster):
    block = f"import sys\nfor name in {OPTIONAL + absent!r}: sys.modules[name] = None\n"
    options = ["--pipeline.model.caster", "torch"] if caster == "torch" else []
    out = work / f"without-{len(absent)}"

    def blocked(script: str, *arguments: str | Path) -> str:
        code = f"{block}from nerfstudio.scripts.{script} import entrypoint\nentrypoint()"
        return run("python", "-c", code, *arguments, cwd=work)

    blocked("train", "xscale-nvs-tiny", "--data", coarse_scene, "--output-dir", out, "--timestamp", "r",
            "--max-num-iterations", "10", "--vis", "tensorboard", "--pipeline.model.levels", "4",
            "--pipeline.datamanager.train-num-rays-per-batch", "256", *options)  # fmt: skip
    config = out / "monument" / "xscale-nvs-tiny" / "r" / "config.yml"
    blocked("eval", "--load-config", config, "--output-path", out / "eval.json")
    assert json.loads((out / "eval.json").read_text())["results"]["coverage"] > 0.2


def test_without_any_caster_one_line_says_what_to_install(demo_scene, work):
    code = (
        "import sys\nfor name in ('embreex', 'open3d', 'warp', 'nvdiffrast'): sys.modules[name] = None\n"
        "from nerfstudio.scripts.train import entrypoint\nentrypoint()"
    )
    output = run("python", "-c", code, "xscale-nvs-tiny", "--data", demo_scene, "--output-dir", work / "none", cwd=work,
                 status=1)  # fmt: skip
    assert "pip install embreex" in output
    assert "Traceback" not in output
