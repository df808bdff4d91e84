"""``ns-diver``: convert, bench, export, and what it says about bad input (issue 3; spec diver 5.5)."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
import trimesh
import yaml
from commands import run
from diver_runs import NOISE, bundle

from dataparsers.blender_parser import ObjectBlenderDataParserConfig
from diver_ns.cli import entrypoint
from diver_ns.export import load_run, voxel_model
from diver_ns.formats import read_original, read_safetensors
from diver_ns.import_run import fill, read_model, run_config

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(line) for line in NOISE)]

KINDS = {
    "fp32.safetensors": ("--format", "safetensors", "--dtype", "fp32"),
    "fp16.safetensors": (),
    "int8.safetensors": ("--dtype", "int8"),
    "weight.pth": ("--format", "weight"),
    "serialize.pth": ("--format", "serialize"),
}


@pytest.fixture(scope="module")
def tool() -> Callable[..., int]:
    """``ns-diver`` in this process: its exit status. (`test_each_command_is_a_program` runs the real ones.)"""

    def call(*words: object) -> int:
        with pytest.raises(SystemExit) as ended:
            entrypoint([str(word) for word in words])
        return int(ended.value.code or 0)

    return call


@torch.no_grad()
def picture(found) -> torch.Tensor:
    """Colours of rays around the object, by the exact path of a model that holds ``found``; [900, 3]."""
    model = run_config(found).pipeline.model.setup(
        scene_box=None, num_train_data=1,
        metadata={"grid_side": found.side, "grid_center": list(found.center), "background": [1.0, 1.0, 1.0]},
    )  # fmt: skip
    fill(model.eval(), found)
    model.config.parity = False  # not every layout keeps it
    g = torch.Generator().manual_seed(2)
    origins = torch.nn.functional.normalize(torch.randn(900, 3, generator=g), dim=-1) * 3.5
    directions = torch.nn.functional.normalize(torch.randn(900, 3, generator=g) * 0.6 - origins, dim=-1)
    return model.get_outputs(bundle(origins, directions))["rgb"]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().clamp_min(1e-12).log10())


def test_convert_a_run_to_every_layout(trained, tmp_path, tool, capsys):
    _, model = load_run(trained / "config.yml")
    whole = voxel_model(model)
    expected = picture(whole)
    assert expected.std() > 0.1
    sizes = {}
    for name, options in KINDS.items():
        assert tool("convert", trained / "config.yml", tmp_path / name, *options) == 0
        assert f"{name}: " in capsys.readouterr().out
        found = read_model(tmp_path / name)
        assert (found.resolution, found.width) == (32, 32)
        assert torch.equal(found.compact().ids, whole.compact().ids)
        quality = psnr(picture(found), expected)
        assert quality > {"int8.safetensors": 38, "fp16.safetensors": 60}.get(name, 90), (name, quality)
        sizes[name] = (tmp_path / name).stat().st_size
    assert sizes["int8.safetensors"] < 0.65 * sizes["fp16.safetensors"] < 0.4 * sizes["fp32.safetensors"]
    assert read_safetensors(tmp_path / "fp32.safetensors").background == "white"


@pytest.mark.parametrize("kind", ["coarse64", "fine64", "fine32", "implicit32"])
def test_convert_the_originals_files(shared_fixtures, tmp_path, tool, kind):
    source = shared_fixtures / "diver" / kind / "last.ckpt"
    found = read_original(source)
    if kind == "implicit32":  # convert bakes
        with np.load(source.parent / "rays.npz") as archive:
            found.features = torch.from_numpy(archive["baked_voxels"]).reshape(-1, 32)[found.ids]
        found.implicit_state = None
    expected = picture(found)
    for name, options in KINDS.items():
        assert tool("convert", source, tmp_path / name, *options) == 0
        assert psnr(picture(read_model(tmp_path / name)), expected) > 38, name
    assert read_safetensors(tmp_path / "fp16.safetensors").background == found.background
    # From file to file, through the layout that only keeps the fused decoder.
    assert tool("convert", tmp_path / "serialize.pth", tmp_path / "back.pth", "--format", "weight") == 0
    assert psnr(picture(read_model(tmp_path / "back.pth")), expected) > 80


def test_bench_measures_both_paths(trained, tmp_path, tool, capsys):
    assert tool("bench", "--load-config", trained / "config.yml", "--views", 2, "--output", tmp_path / "b.json") == 0
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "b.json").read_text())
    for path in ("exact", "realtime"):
        assert path in out
        assert figures[path]["fps"] > 0
        assert figures[path]["psnr"] > 15
        assert 0 < figures[path]["ssim"] < 1
    assert figures["picture"] == [64, 64]
    assert figures["views"] == 2
    assert figures["megabytes"] > 0.01
    assert 30 < figures["realtime_against_exact_psnr"] < 100, "two different paths"
    assert "times as fast" in out


def test_bench_of_imported_weights_compares_two_paths(shared_fixtures, monument, tmp_path, tool, capsys):
    assert tool("import", shared_fixtures / "diver" / "fine64" / "last.ckpt", monument, "--output-dir", tmp_path) == 0
    config = next(tmp_path.rglob("config.yml"))
    assert tool("bench", "--load-config", config, "--views", 1, "--output", tmp_path / "b.json") == 0
    assert 35 < json.loads((tmp_path / "b.json").read_text())["realtime_against_exact_psnr"] < 100


def test_export_points_and_mesh(trained, tmp_path, tool):
    assert tool("export", "--load-config", trained / "config.yml", "--output-dir", tmp_path / "out") == 0
    _, model = load_run(trained / "config.yml")
    cloud = trimesh.load(tmp_path / "out" / "points.ply", process=False)
    mesh = trimesh.load(tmp_path / "out" / "mesh.ply", process=False)
    count, edge = int(model.mask.sum()), model.grid.voxel_size
    assert len(cloud.vertices) == count
    assert mesh.volume == pytest.approx(count * edge**3, rel=1e-4), "closed, faces outward"
    assert np.abs(mesh.vertices).max() <= 1.4 + 1e-5
    np.testing.assert_allclose(mesh.bounds, [cloud.bounds[0] - edge / 2, cloud.bounds[1] + edge / 2], atol=1e-5)


def test_each_command_is_a_program(trained, work):
    config = trained / "config.yml"
    assert "MB" in run("ns-diver", "convert", config, "made/small.safetensors", "--dtype", "int8", cwd=work)
    assert (work / "made" / "small.safetensors").is_file()
    assert "times as fast" in run("ns-diver", "bench", "--load-config", config, "--views", "1", cwd=work)
    assert "mesh.ply" in run("ns-diver", "export", "--load-config", config, "--output-dir", "shapes", cwd=work)


def test_bad_input_is_one_line_and_status_two(trained, monument, tmp_path, tool, capsys, shared_fixtures):
    good = trained / "config.yml"
    (tmp_path / "text.pth").write_text("no file of ours")
    (tmp_path / "list.yml").write_text("- 1\n")
    (tmp_path / "torn.yml").write_text("a: [\n")
    (tmp_path / "foreign.yml").write_text("!!python/object:no.such.Class {}\n")
    run_without = tmp_path / "nothing.yml"
    run_without.write_text(good.read_text().replace("timestamp: first", "timestamp: never"))
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "out.safetensors"
    for words in (
        ("convert", tmp_path / "absent.pth", out),
        ("convert", tmp_path / "text.pth", out),
        ("convert", tmp_path / "absent.yml", out),
        ("convert", tmp_path / "list.yml", out),
        ("convert", tmp_path / "torn.yml", out),
        ("convert", tmp_path / "foreign.yml", out),
        ("convert", run_without, out),
        ("convert", good, tmp_path),
        ("convert", shared_fixtures / "diver" / "fine32" / "last.ckpt", out, "--resolution", 12),
        ("bench", "--load-config", good, "--views", 0),
        ("bench", "--load-config", tmp_path / "absent.yml"),
        ("export", "--load-config", tmp_path / "absent.yml", "--output-dir", tmp_path / "shapes"),
        ("import", tmp_path / "text.pth", monument, "--output-dir", tmp_path / "outputs"),
        ("import", shared_fixtures / "diver" / "fine32" / "last.ckpt", tmp_path, "--output-dir", tmp_path / "outputs"),
    ):
        assert tool(*words) == 2, words
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, (words, lines)
        assert lines[0].startswith("DataError: "), lines
        assert set(tmp_path.rglob("*")) == before, words
    output = run("ns-diver", "convert", "absent.pth", out, cwd=tmp_path, status=2)
    assert output.startswith("DataError")
    assert "Traceback" not in output


def test_another_methods_run_is_refused(trained, tmp_path, tool, capsys):
    from nerfstudio.configs.method_configs import all_methods

    config = all_methods["xscale-nvs-tiny"]
    (tmp_path / "config.yml").write_text(yaml.dump(config))
    assert tool("convert", tmp_path / "config.yml", tmp_path / "m.safetensors") == 2
    assert "is not a diver run" in capsys.readouterr().err


def test_a_torn_checkpoint_is_skipped(trained, tmp_path, tool):
    """A crash of another program leaves half a file: the newest whole checkpoint is converted."""
    folder = trained / "nerfstudio_models"
    torn = folder / "step-000000999.ckpt"
    torn.write_bytes(b"PK\x03\x04 torn")
    try:
        assert tool("convert", trained / "config.yml", tmp_path / "m.safetensors") == 0
        assert not torn.exists()
    finally:
        for left in (torn, trained / f"torn-{torn.name}"):
            if left.exists():
                left.unlink()


def test_demo_scene_is_one_the_parser_reads(tmp_path):
    output = run(
        "ns-diver", "demo-scene", tmp_path / "scene", "--train", "4", "--test", "2", "--size", "24", cwd=tmp_path
    )
    assert "ns-train diver-tiny" in output
    parser = ObjectBlenderDataParserConfig(data=tmp_path / "scene").setup()
    counts = [len(parser.get_dataparser_outputs(split).image_filenames) for split in ("train", "val", "test")]
    assert counts == [4, 2, 2]
    assert "Traceback" not in run("ns-diver", "demo-scene", tmp_path / "scene", cwd=tmp_path, status=2)
