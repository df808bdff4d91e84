"""``ns-megascenes path`` and ``warp``: what they write, and what they refuse before writing anything."""

from __future__ import annotations

import json
from pathlib import Path

import commands
import numpy as np
import pytest
import tyro
from PIL import Image

from core_ns.errors import DataError
from megascenes_ns import paths
from megascenes_ns.path_command import PathCommand, PathOptions
from megascenes_ns.path_file import CameraPath, read_path, write_path
from megascenes_ns.warp_command import WarpCommand

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def photo(tmp_path) -> Path:
    """96 x 64 pixels of stripes, with a depth file beside it: a wall at 2, its right half at 5."""
    v, u = np.mgrid[0:64, 0:96]
    Image.fromarray(np.stack([u * 2, v * 3, 255 - u], axis=-1).astype(np.uint8)).save(tmp_path / "photo.png")
    np.save(tmp_path / "photo.npy", np.where(u < 48, 2.0, 5.0).astype(np.float32))
    return tmp_path / "photo.png"


def run(kind, *words: object) -> int:
    return tyro.cli(kind, args=[str(word) for word in words]).main()


@pytest.mark.parametrize("kind", ["orbit", "orbit-legacy", "spiral", "dolly"])
def test_a_path_has_the_photos_aspect_and_lens(kind, photo, tmp_path, capsys):
    out = tmp_path / "new" / "path.json"
    assert run(PathCommand, kind, "--out", out, "--photo", photo, "--fov", "60") == 0
    path = read_path(out)
    assert (path.width, path.height) == (256, 170)
    np.testing.assert_allclose(path.K[:, 0, 0], 128 / np.tan(np.radians(30)))
    expected = {
        "orbit": paths.orbit(),
        "orbit-legacy": paths.orbit_legacy(),
        "spiral": paths.spiral(),
        "dolly": paths.dolly(),
    }
    np.testing.assert_allclose(path.c2w_opencv, expected[kind], atol=1e-9)
    printed = capsys.readouterr().out
    assert f"{len(path.fov)} pictures of 256x170" in printed
    assert "ns-render camera-path" in printed


def test_options_reach_the_path(tmp_path):
    out = tmp_path / "path.json"
    run(PathCommand, "orbit", "--out", out, "--frames", 5, "--degrees", 40, "--pivot", 3, "--tilt", 10, "--width", 320,
        "--height", 200, "--fov", "75d", "--fps", 25)  # fmt: skip
    path = read_path(out)
    np.testing.assert_allclose(path.c2w_opencv, paths.orbit(5, 40, 3, 10), atol=1e-9)
    assert (path.width, path.height, round(path.fps, 6)) == (320, 200, 25)
    half_diagonal = np.hypot(160, 100) / path.K[0, 0, 0]
    assert np.degrees(2 * np.arctan(half_diagonal)) == pytest.approx(75)
    run(PathCommand, "dolly", "--out", out, "--zoom", "--distance", 1, "--frames", 7)
    zoomed = read_path(out)
    assert zoomed.fov[-1] > zoomed.fov[0] + 10
    run(PathCommand, "orbit", "--out", out, "--frames", 4, "--swing")
    np.testing.assert_allclose(read_path(out).c2w_opencv, paths.orbit(4)[[0, 1, 2, 3, 2, 1]], atol=1e-9)
    assert read_path(out).closed
    run(PathCommand, "spiral", "--out", out, "--turns", 2)
    assert read_path(out).closed
    run(PathCommand, "spiral", "--out", out, "--turns", 1.5)
    assert not read_path(out).closed


@pytest.mark.parametrize(
    "words",
    [
        ("orbit", "--size", 2), ("orbit-legacy", "--frames", 5), ("dolly", "--pivot", 2), ("spiral", "--degrees", 5),
        ("orbit", "--zoom"), ("orbit", "--frames", 1), ("orbit", "--frames", 1_000_000), ("orbit", "--pivot", -1),
        ("dolly", "--zoom", "--distance", 2.2), ("dolly", "--distance", 0), ("orbit", "--fov", "wide"),
        ("orbit", "--fov", 190), ("orbit", "--fps", 0), ("orbit", "--width", 4), ("orbit", "--height", 100_000),
        ("orbit", "--photo", "absent.jpg"), ("spiral", "--swing"),
    ],
)  # fmt: skip
def test_a_path_that_cannot_be_meant_is_refused(words, tmp_path):
    with pytest.raises(DataError):
        run(PathCommand, *words, "--out", tmp_path / "path.json")
    assert not any(tmp_path.iterdir())


def test_a_path_goes_into_a_json_file(tmp_path):
    with pytest.raises(DataError, match="json"):
        run(PathCommand, "--out", tmp_path / "path.yml")


def test_the_warp_command_draws_what_the_depth_says(photo, tmp_path, capsys):
    out = tmp_path / "warps"
    assert run(WarpCommand, photo, "dolly", "--output-dir", out, "--canvas", 96, "--frames", 3, "--distance", 0.2) == 0
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert names == [
        "mesh.ply", "path.json", "warps.gif", "warps.mp4", "warps/00000.png", "warps/00001.png", "warps/00002.png",
    ]  # fmt: skip
    first = np.array(Image.open(out / "warps" / "00000.png"))
    original = np.array(Image.open(photo))
    assert first.shape == (64, 96, 4)
    # The first camera is the photo's: it shows the photo, but for the border and the torn edge.
    whole = first[..., 3] == 255
    assert whole.mean() > 0.9
    assert np.abs(first[..., :3].astype(int) - original)[whole].max() <= 1
    # 0.2 nearer to a wall at 1 (in units of its quantile): larger by 1 / 0.8.
    last = np.array(Image.open(out / "warps" / "00002.png")).astype(float)
    v, u = 32.5, 20.5
    expected = original[round(32 + (v - 32) * 0.8 - 0.5), round(48 + (u - 48) * 0.8 - 0.5)]
    assert np.abs(last[int(v), int(u), :3] - expected).max() <= 4
    assert "Coverage" in capsys.readouterr().out
    with Image.open(out / "warps.gif") as film:
        assert film.n_frames == 3  # type: ignore[attr-defined]
        assert film.info["duration"] == 100


def test_the_warp_command_follows_a_path_file(photo, tmp_path):
    run(PathCommand, "orbit", "--out", tmp_path / "path.json", "--frames", 2, "--width", 40, "--height", 31)
    out = tmp_path / "warps"
    run(WarpCommand, photo, "--output-dir", out, "--camera-path", tmp_path / "path.json", "--backend", "torch")
    with Image.open(out / "warps" / "00001.png") as drawn:
        assert drawn.size == (40, 31)
    with pytest.raises(DataError, match="another is asked for"):
        run(WarpCommand, photo, "spiral", "--output-dir", out / "more", "--camera-path", tmp_path / "path.json")
    written, asked = (json.loads((folder / "path.json").read_text()) for folder in (out, tmp_path))
    assert written["camera_path"][0]["fov"] == pytest.approx(asked["camera_path"][0]["fov"])


@pytest.mark.parametrize(
    "words",
    [
        ("--depth", "nowhere"), ("--canvas", 4), ("--fps", 0), ("--samples-per-pixel", 3),
        ("--camera-path", "absent.json"), ("--fov", "x"), ("--tilt", 91),
    ],
)  # fmt: skip
def test_the_warp_command_refuses_and_writes_nothing(words, photo, tmp_path):
    with pytest.raises(DataError):
        run(WarpCommand, photo, "--output-dir", tmp_path / "warps", *words)
    assert not (tmp_path / "warps").exists()


def test_a_path_too_large_for_memory_is_refused(photo, tmp_path):
    path = CameraPath(paths.orbit(100), np.full(100, 50.0), 4096, 4096)
    write_path(tmp_path / "path.json", path)
    with pytest.raises(DataError, match="1678 megapixels"):
        run(WarpCommand, photo, "--output-dir", tmp_path / "warps", "--camera-path", tmp_path / "path.json")
    assert not (tmp_path / "warps").exists()


def test_the_warp_command_leaves_other_things_alone(photo, tmp_path):
    with pytest.raises(DataError, match="not empty"):
        run(WarpCommand, photo, "--output-dir", tmp_path)
    (tmp_path / "photo.npy").unlink()
    with pytest.raises(DataError, match="depth"):
        run(WarpCommand, photo, "--output-dir", tmp_path / "warps")


def test_a_path_without_options_is_the_orbit():
    assert len(PathOptions().lay(50.0, 64, 48).fov) == 19


def test_both_as_processes(photo, tmp_path):
    """As a user types them, from another folder; bad input is one line and status 2."""
    printed = commands.run("ns-megascenes", "path", "orbit", "--out", "o.json", "--photo", photo, cwd=tmp_path)
    assert "Written: o.json" in printed
    printed = commands.run(
        "ns-megascenes", "warp", photo, "--output-dir", "look", "--camera-path", "o.json", cwd=tmp_path
    )  # fmt: skip
    assert "Coverage" in printed
    assert (tmp_path / "look" / "warps.mp4").stat().st_size > 0
    assert sorted(int(file.stem) for file in (tmp_path / "look" / "warps").iterdir()) == list(range(19))
    refused = commands.run("ns-megascenes", "warp", photo, "--output-dir", "look", cwd=tmp_path, status=2)
    assert refused.startswith("DataError: look (folder)")
    assert refused.count("\n") == 1
