"""Charges without photos: fitted colours, folders and splat files (spec r4dv 5.3, acceptance A21)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import capture_runs  # noqa: F401  (silences nerfstudio's imports first)
import numpy as np
import pytest
import torch
from capture_runs import NOISE
from charge_folders import make_charge, ring_views
from charged_scenes import add_photos, load_run, open_charge, plain_camera
from test_charged_colour import plain_colour

from core_ns.errors import DataError
from r4dv_ns import harmonics
from r4dv_ns.charge_manifest import Manifest, read_manifest, write_manifest
from r4dv_ns.charge_store import UNSEEN, ChargedFrame, ChargedStore, write_frame
from r4dv_ns.charged_data import charged_cameras
from r4dv_ns.mobile import chosen_sources, export_mobile, mobile_frame, seen_colours, viewpoints
from r4dv_ns.source_choice import choose_sources
from r4dv_ns.splat_ply import SHARE, Splats, read_splats

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


# ------------------------------------------------------------------ where colours are looked at from


def test_viewpoints_are_the_training_cameras_and_places_between_neighbours(tmp_path):
    manifest, _ = make_charge(tmp_path, frames=2, views=9, moving=(1,))
    found = viewpoints(manifest, 1)
    train = manifest.centres(1, manifest.train_views)
    np.testing.assert_array_equal(found[:8], train)
    held_out = manifest.centres(1, manifest.eval_views)[0]
    assert np.linalg.norm(found - held_out, axis=1).min() > 0.1, "never a held-out camera itself"
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 4, atol=1e-9, err_msg="a ring stays a ring")
    between = {
        tuple(sorted(int(row) for row in np.linalg.norm(train - point, axis=1).argsort()[:2])) for point in found[8:]
    }
    assert between >= {(view, view + 1) for view in range(7)}
    few = viewpoints(manifest, 1, 5)
    assert len(few) == 5
    apart = np.linalg.norm(few[:, None] - few[None], axis=-1) + 10 * np.eye(5)
    assert apart.min() > 2.5, "spread around the ring"


def test_two_cameras_that_face_each_other_are_enough(tmp_path):
    manifest, _ = make_charge(tmp_path, frames=1, views=3, s=2)
    views = ring_views(2, 1)
    manifest = replace(manifest, views=(views[0], replace(views[1], train=True)))
    assert np.isfinite(viewpoints(manifest, 0)).all()


def test_colours_and_weights_are_those_of_the_formula(tmp_path):
    """One point and viewpoint at a time."""
    manifest, frames = make_charge(tmp_path, frames=1, n=30, s=6, views=9)
    frame = frames[0]
    frame.src_logit[:, 3] = UNSEEN  # type: ignore[index]
    frame.src_logit[:, 4] = np.array([5, UNSEEN, UNSEEN, UNSEEN, UNSEEN, UNSEEN], np.float16)  # type: ignore[index]
    centres = viewpoints(manifest, 0)
    chosen = chosen_sources(manifest, 0, frame.src_id.tolist(), centres)
    colours, weights, directions = seen_colours(frame, slice(2, 20), chosen, centres, manifest.sh_limit)
    places = manifest.centres(0, frame.src_id.tolist())
    logit = frame.src_logit.astype(np.float64)
    for index, centre in enumerate(centres):
        rows = choose_sources(centre, places, 4)
        assert chosen[index].tolist() == rows
        expected = plain_colour(frame, rows, centre, manifest.sh_limit)[2:20]
        np.testing.assert_allclose(colours[index].numpy(), expected, atol=1e-5)
        share = np.exp(logit - logit.max(axis=0))
        share = np.where(logit > UNSEEN / 2, share / share.sum(axis=0), 0.0)
        np.testing.assert_allclose(weights[index].numpy(), share[rows].sum(axis=0)[2:20].clip(1e-4), rtol=1e-4)
        way = frame.positions()[2:20] - centre
        np.testing.assert_allclose(
            directions[index].numpy(), way / np.linalg.norm(way, axis=1, keepdims=True), atol=1e-6
        )
    assert weights[:, 1].max() == pytest.approx(1e-4), "seen by nobody"
    sees = (chosen == 0).any(axis=1)
    assert weights[sees, 2].min() == pytest.approx(1)
    assert weights[~sees, 2].max() == pytest.approx(1e-4)


# ------------------------------------------------------------------ A21


def texture(direction: np.ndarray) -> np.ndarray:
    """Colours on a sphere that change over a few degrees, and do not change with the viewer."""
    x, y, z = (4 * direction).T
    return 0.5 + 0.4 * np.stack([np.sin(2 * x) * np.cos(y), np.cos(2 * y + z), np.sin(z) * np.sin(x + y)], axis=1)


def lambertian(folder: Path, n: int = 3000, gloss: float = 0.0) -> Manifest:
    """A sphere of radius 1 as a charge of 12 cameras: photos see what faces them, and black elsewhere.

    Args:
        gloss: strength of a view-dependent part.
    """
    manifest, _ = make_charge(folder, frames=1, n=10, s=3)
    index = np.arange(n) + 0.5
    height, angle = 1 - 2 * index / n, np.pi * (1 + 5**0.5) * index
    ring = np.sqrt(1 - height**2)
    xyz = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    views = ring_views(13, 1)
    centres = np.stack([view.centre(0) for view in views[:12]])
    facing = np.einsum("nc,snc->sn", xyz, centres[:, None] - xyz[None]) > 0
    sh = np.zeros((n, 16, 3))
    sh[:, 1:4] = gloss
    frame = ChargedFrame(
        xyz=xyz.astype(np.float32), radius=np.full(n, 0.06, np.float16), alpha=np.full(n, 0.98, np.float16),
        sh=sh.astype(np.float16),
        src_rgb=np.where(facing[..., None], 255 * texture(xyz), 0).round().astype(np.uint8),
        src_logit=np.where(facing, 0, -10).astype(np.float16), src_id=np.arange(12, dtype=np.uint16),
    )  # fmt: skip
    hashes = write_frame(folder, "000000", frame)
    kinds = {key: array.dtype.str for key, array in frame.arrays().items()}
    manifest = replace(
        manifest, views=views, counts=[n], stored_sources=12, dtypes=kinds,
        bounds=np.array([[-1.1] * 3, [1.1] * 3]),
    )  # fmt: skip
    return write_manifest(folder, manifest, hashes)


def pictures(folder: Path, manifest: Manifest, **options: Any) -> list[torch.Tensor]:
    """From all cameras, the held-out one last."""
    pipeline = open_charge(folder, **options)
    cameras = charged_cameras(manifest, [(view, 0) for view in range(len(manifest.views))])
    seen = [
        pipeline.model.get_outputs_for_camera(plain_camera(cameras, view))["rgb"] for view in range(len(manifest.views))
    ]
    pipeline.model.close()
    return seen


def decibel(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * torch.log10((one - other).square().mean().clamp_min(1e-10)))


def test_a_matt_scene_looks_the_same_without_photos(tmp_path):
    """A21: at least 35 dB, in the held-out camera too."""
    manifest = lambertian(tmp_path / "charge")
    config = export_mobile(tmp_path / "charge", tmp_path / "mobile")
    assert config == (tmp_path / "mobile" / "config.yml").resolve()
    before, after = (pictures(tmp_path / name, manifest) for name in ("charge", "mobile"))
    values = [decibel(one, other) for one, other in zip(before, after, strict=True)]
    print(f"A21: {min(values[:-1]):.1f} dB at least in training cameras, {values[-1]:.1f} held out")
    assert min(values) > 35
    assert before[0].std() > 0.1, "there is something to see"
    splats = read_splats(tmp_path / "mobile" / "splats" / "000000.ply")
    frame = ChargedStore(tmp_path / "mobile").frame(0)
    np.testing.assert_array_equal(splats.xyz, frame.xyz)
    np.testing.assert_array_equal(splats.sh, frame.sh.astype(np.float32))
    np.testing.assert_allclose(splats.scale, SHARE * frame.radius.astype(np.float32)[:, None].repeat(3, 1), rtol=1e-5)
    np.testing.assert_allclose(splats.opacity, frame.alpha.astype(np.float32), atol=1e-5)


def splat_picture(splats: Splats, K: np.ndarray, w2c: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Gaussian splatting as its paper has it, every splat at every pixel: for round splats only."""
    xyz = (
        torch.from_numpy(splats.xyz).float() @ torch.from_numpy(w2c[:3, :3]).float().T
        + torch.from_numpy(w2c[:3, 3]).float()
    )
    order = xyz[:, 2].argsort()
    depth = xyz[order, 2]
    place = xyz[order, :2] / depth[:, None] * float(K[0, 0]) + torch.from_numpy(K[:2, 2]).float()
    variance = (torch.from_numpy(splats.scale[:, 0]).float()[order] * float(K[0, 0]) / depth) ** 2 + 0.3
    centre = -w2c[:3, :3].T @ w2c[:3, 3]
    way = torch.from_numpy(splats.xyz - centre).float()[order]
    basis = harmonics.basis(way / way.norm(dim=1, keepdim=True), 2)
    colour = (0.5 + torch.einsum("nk,nkc->nc", basis, torch.from_numpy(splats.sh).float()[order])).clamp_min(0)
    opacity = torch.from_numpy(splats.opacity).float()[order]
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    found = []
    for pixels in torch.stack([columns, rows], dim=-1).reshape(-1, 2).float().split(512):
        far = torch.cdist(pixels, place).square()
        alpha = (opacity * torch.exp(-0.5 * far / variance)).clamp_max(0.99)
        alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
        through = torch.cumprod(1 - alpha, dim=1)
        light = torch.cat([torch.ones(len(pixels), 1), through[:, :-1]], dim=1)
        found.append((light * alpha) @ colour)
    return torch.cat(found).reshape(height, width, 3)


def test_the_splat_file_shows_the_same_scene_to_a_splat_renderer(tmp_path):
    """A splat has no edge and no limit of layers: 27 to 30 dB is what there is to get (spec 6.1)."""
    manifest = lambertian(tmp_path / "charge")
    zoom = np.diag([2.0, 2.0, 1.0])
    views = tuple(replace(view, K=zoom @ view.K, width=128, height=96) for view in manifest.views)
    manifest = replace(manifest, views=views)
    write_manifest(tmp_path / "charge", manifest)
    export_mobile(tmp_path / "charge", tmp_path / "mobile")
    splats = read_splats(tmp_path / "mobile" / "splats" / "000000.ply")
    before = pictures(tmp_path / "charge", manifest)[-1]
    value = decibel(splat_picture(splats, *manifest.camera(12, 0), 96, 128), before)
    print(f"A21: the splat file, {value:.1f} dB in the held-out camera")
    assert value > 27


def test_what_changes_with_the_viewer_is_kept_in_part(tmp_path):
    manifest = lambertian(tmp_path / "charge", gloss=0.6)
    quality = {}
    for degree in (0, 1, 2):
        export_mobile(tmp_path / "charge", tmp_path / f"degree_{degree}", degree=degree, ply=False)
        before, after = (pictures(tmp_path / name, manifest)[-1] for name in ("charge", f"degree_{degree}"))
        quality[degree] = decibel(before, after)
    assert quality[1] > quality[0] + 6
    assert quality[2] > 32


# ------------------------------------------------------------------ folders


@pytest.mark.parametrize(
    "charge",
    [{}, {"u16": True}, {"pack": True}, {"static": 20}, {"static": 20, "u16": True}, {"degree": 1}],
    ids=lambda charge: "-".join(charge) or "plain",
)
def test_a_mobile_folder_is_a_charge_like_any_other(tmp_path, monkeypatch, charge):
    make_charge(tmp_path / "charge", frames=2, n=200, **charge)
    add_photos(tmp_path / "charge")
    source = ChargedStore(tmp_path / "charge")
    export_mobile(tmp_path / "charge", tmp_path / "mobile")
    store = ChargedStore(tmp_path / "mobile")
    manifest = store.manifest
    store.verify()
    assert (manifest.stored_sources, manifest.sh_degree, manifest.static_count) == (0, 2, 0)
    assert manifest.settings["mobile"] == {"degree": 2, "ridge": 0.05, "viewpoints": 64}
    assert [vars(photo) for photo in manifest.eval_photos] == [vars(photo) for photo in source.manifest.eval_photos]
    assert len(manifest.eval_photos) == 2
    for index in range(2):
        before, after = source.frame(index), store.frame(index)
        np.testing.assert_array_equal(before.positions(), after.positions())
        np.testing.assert_array_equal(before.radius, after.radius)
        assert after.sh.shape == (200, 9, 3)
        assert after.sh.dtype == np.float16
        assert (before.branch is None) == (after.branch is None)
        assert len(read_splats(tmp_path / "mobile" / "splats" / f"{index:06d}.ply")) == 200
    pipeline = load_run(tmp_path / "mobile", monkeypatch)
    camera, batch = next(iter(pipeline.datamanager.fixed_indices_eval_dataloader))
    outputs = pipeline.model.get_outputs_for_camera(camera)
    assert pipeline.model.get_image_metrics_and_images(outputs, batch)[0]["psnr"] > 5
    pipeline.model.close()


def test_bytes_of_a_frame(tmp_path):
    """18 MB for 262144 points at degree 2, 10 at degree 1 (spec 5.3)."""
    make_charge(tmp_path / "charge", frames=1, n=100)
    for degree, each in ((2, 70), (1, 40), (0, 22)):
        export_mobile(tmp_path / "charge", tmp_path / f"{degree}", degree=degree, ply=False)
        assert ChargedStore(tmp_path / f"{degree}").bytes(0) == 100 * each
        assert not (tmp_path / f"{degree}" / "splats").exists()
    assert pytest.approx(18e6, rel=0.03) == 262144 * 70


def test_some_frames_and_the_same_bytes_again(tmp_path):
    make_charge(tmp_path / "charge", frames=4, n=60, pack=True)
    for name in ("one", "two"):
        export_mobile(tmp_path / "charge", tmp_path / name, frame_sample=(1, None, 2))
    one, two = (read_manifest(tmp_path / name) for name in ("one", "two"))
    assert one.frames == ["000001", "000003"]
    assert one.times == [0, 1]
    assert one.hashes == two.hashes
    files = [(tmp_path / name / "splats" / "000003.ply").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_what_cannot_be_exported_is_refused_and_nothing_left(tmp_path):
    make_charge(tmp_path / "charge", frames=2)
    make_charge(tmp_path / "bare", s=0)
    out = tmp_path / "out"
    cases: tuple[tuple[Path, dict[str, Any], str], ...] = (
        (tmp_path / "none", {}, "is not a folder"),
        (tmp_path / "bare", {}, "has no photos"),
        (tmp_path / "charge", {"degree": 3}, "--degree"),
        (tmp_path / "charge", {"ridge": 0.0}, "--ridge"),
        (tmp_path / "charge", {"count": 0}, "--viewpoints"),
        (tmp_path / "charge", {"frame_sample": (5,)}, "frame-sample"),
    )
    for folder, options, problem in cases:
        with pytest.raises(DataError, match=problem):
            export_mobile(folder, out, **options)
        assert not out.exists()
    (tmp_path / "charge" / "frames" / "000001" / "src_logit.npy").unlink()
    with pytest.raises(DataError, match=r"000001/src_logit\.npy"):
        export_mobile(tmp_path / "charge", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "charge"]
    out.mkdir()
    (out / "file").touch()
    with pytest.raises(DataError, match="not empty"):
        export_mobile(tmp_path / "charge", out, frame_sample=(0,))


def test_what_a_stranger_wrote_into_a_charge(tmp_path):
    """A held-out photo, a camera that does not exist, sizes that no splat has."""
    for view in (4, 9):
        charge = tmp_path / f"view_{view}"
        make_charge(charge)
        np.save(charge / "frames" / "000000" / "src_id.npy", np.array([0, 1, view], np.uint16))
        with pytest.raises(DataError, match=f"view {view}, which is no training view"):
            export_mobile(charge, tmp_path / "out")
    make_charge(tmp_path / "flat")
    file = tmp_path / "flat" / "frames" / "000000" / "radius.npy"
    np.save(file, 0 * np.load(file))
    with pytest.raises(DataError, match=r"frame 000000.*size that is not positive"):
        export_mobile(tmp_path / "flat", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_photos_that_are_gone_are_missed_before_the_work(tmp_path, monkeypatch):
    make_charge(tmp_path / "charge")
    add_photos(tmp_path / "charge")
    photo = read_manifest(tmp_path / "charge").eval_photos[-1].image
    (tmp_path / "charge" / photo).unlink()
    monkeypatch.setattr("r4dv_ns.mobile.mobile_frame", lambda *arguments, **options: pytest.fail("fitted"))
    with pytest.raises(FileNotFoundError, match=photo):
        export_mobile(tmp_path / "charge", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bake_does_not_take_a_mobile_folder_for_its_own(tmp_path):
    """It tells its folder by its settings (`charge_bake`), which must not be found there."""
    manifest, _ = make_charge(tmp_path / "charge")
    asked = {"checkpoint": "0" * 64, "options": {"max_sources": 3}}
    write_manifest(tmp_path / "charge", replace(manifest, settings=asked), ChargedStore(tmp_path / "charge").hashes)
    export_mobile(tmp_path / "charge", tmp_path / "mobile", ply=False)
    known = read_manifest(tmp_path / "mobile").settings
    assert known["baked"] == asked
    assert not set(asked) & set(known)


def test_chunks_do_not_show(tmp_path, monkeypatch):
    manifest, frames = make_charge(tmp_path, frames=1, n=50)
    whole = mobile_frame(frames[0], manifest, 0)
    monkeypatch.setattr("r4dv_ns.mobile.CHUNK", 7)
    np.testing.assert_allclose(mobile_frame(frames[0], manifest, 0).sh, whole.sh, atol=2e-3)
