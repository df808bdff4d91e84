"""``ns-xscale check``: do photos, cameras and mesh fit together, and if not, which usual mistake explains it?

Spec xscale 2.4 (2) and 10. Everything starts from the float64 cameras of the files, so it also works where no view
sees the mesh. Measurements: `xscale_ns.consistency`; explanations and thresholds: `xscale_ns.diagnosis`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float

from core_ns.atomic import write_json, write_text
from core_ns.errors import DataError
from core_ns.images import IMAGE_SUFFIXES, area_downscale, image_size, read_image, write_image
from dataparsers.mesh import load_mesh
from dataparsers.mvsnet import read_cam
from dataparsers.mvsnet_parser import CAM_SUFFIX, View, find_folders, find_mesh, read_views
from xscale_ns.consistency import FEWEST_POINTS, Judge, Pair, Rig
from xscale_ns.diagnosis import (
    FITTING_FEATURES,
    GOOD_COVERAGE,
    GOOD_DETAIL,
    MOST_VIEWS,
    SURE_DETAIL,
    Mistake,
    Search,
    evenly,
    finite,
)
from xscale_ns.mistakes import EXPORT_BOTH, Cameras

Array = np.ndarray

SKEW_LIMIT = 0.25
"""Pixels at the photo's border by which neglected skew is off (nerfstudio's cameras have none)."""
FITS = "Photos, cameras and mesh fit together."
MODERATELY = " But only moderately: expect blur where the overlays show the mesh off the photo."
PICTURE_WIDTH, CAST_WIDTH = 1200, 600


@dataclass
class ViewReport:
    """One view: share of the photo that hits the mesh, and agreement with its neighbours (None: not compared)."""

    name: str
    coverage: float
    detail: float | None = None
    psnr: float | None = None


@dataclass
class Report:
    """What `check_scene` found; lengths in the units of the files, pixels of the stored photos."""

    scene: str
    photos: str
    mesh: str
    good: bool
    verdict: str
    mistake: Mistake | None
    coverage: float
    """Mean over the views."""
    psnr: float | None
    """Mean PSNR of warps between neighbouring photos, gain and bias per channel fitted, dB at 400 px width."""
    detail: float
    """Mean correlation of their band-passed brightness."""
    comparable: float
    """Mean share of a photo that is comparable with a neighbour."""
    features: float | None
    """Share of feature matches that the cameras explain, the mesh left aside."""
    views: list[ViewReport]
    tried: list[dict[str, Any]] = field(default_factory=list)
    """Every mistake that got past the coverage test."""
    turned: dict[str, list[float]] = field(default_factory=dict)
    """Rotation vector in the camera's axes, degrees, that makes a badly placed view fit."""
    notes: list[str] = field(default_factory=list)
    pictures: str = ""

    def text(self) -> str:
        """A concise account for the terminal."""
        lines = [f"{self.scene}: {self.photos}; {self.mesh}"]
        listed = self.views
        if len(listed) > 24:
            listed = sorted(listed, key=lambda view: (view.detail if view.detail is not None else 1.0, view.coverage))
            lines.append(f"the 12 worst of {len(listed)} views (all in report.json):")
            listed = listed[:12]
        for view in listed:
            agreement = "not compared" if view.detail is None else f"agreement {view.detail:5.2f}"
            lines.append(f"  {view.name:<24} coverage {100 * view.coverage:5.1f} %  {agreement}")
        lines.append(f"coverage: {100 * self.coverage:.1f} % of the photos show the mesh")
        if self.psnr is None:
            lines.append("photo-consistency: no two views show the same part of the mesh")
        else:
            lines.append(
                f"photo-consistency: {self.psnr:.1f} dB, agreement {self.detail:.2f} (1 is perfect, 0 is chance), "
                f"{100 * self.comparable:.0f} % of the pixels comparable"
            )
        if self.features is not None:
            lines.append(f"cameras among themselves: {100 * self.features:.0f} % of matched features fit")
        lines += [f"note: {note}" for note in self.notes]
        lines.append(f"verdict: {'good' if self.good else 'WRONG'}. {self.verdict}")
        if self.mistake is not None:
            psnr = "" if self.mistake.psnr is None else f", {self.mistake.psnr:.1f} dB"
            lines.append(
                f"  remedy: {self.mistake.remedy}\n  with it: coverage {100 * self.mistake.coverage:.1f} %{psnr}, "
                f"agreement {self.mistake.detail:.2f}"
            )
        if self.pictures:
            lines.append(f"mesh edges over the photos: {self.pictures}")
        return "\n".join(lines)


def check_scene(scene: Path, output: Path, downscale_factor: int | None = None, mesh: Path | None = None) -> Report:
    """Measure a scene folder, look for the usual mistakes, and write report.json, report.txt and pictures.

    Args:
        scene: folder with images_D, cams_D and a mesh.
        output: folder for the report; made if absent.
        downscale_factor: which images_D; None if there is only one.
        mesh: mesh file; None for the only one in the scene.

    Raises:
        DataError: photos, cameras or mesh cannot be read at all.
    """
    images, cams, factor = find_folders(scene, downscale_factor)
    views, notes = _read(images, cams)
    path = find_mesh(scene, mesh)
    if path is None:
        raise DataError(scene, "mesh", "holds no mesh.", "Put one there, or name it with --mesh.")
    loaded = load_mesh(path)
    if loaded.dropped_faces:
        notes.append(f"{loaded.dropped_faces} triangles without an area, or with broken corners, are ignored.")
    judge = Judge(loaded, views)
    cameras = Cameras(
        np.stack([view.camera.intrinsics for view in views]),
        np.stack([view.camera.w2c for view in views]),
        judge.sizes,
        factor,
    )
    notes += _skew(views)
    given = judge.frame.rig(cameras.intrinsics, cameras.w2c)
    coverage = judge.coverage(given, range(len(views)))
    search = Search(judge, cameras, given, float(coverage.mean()))
    mistake = search.best()
    turned = search.turned_views([view.name for view in views]) if mistake is None else {}
    verdict = _verdict(mistake, turned, coverage, search)
    blind = [view.name for view, share in zip(views, coverage, strict=True) if share < 0.001]
    if blind and len(blind) < len(views):
        notes.append(f"{len(blind)} views see nothing of the mesh: {', '.join(blind[:10])}")
    sizes = sorted({f"{view.size[0]}x{view.size[1]}" for view in views})
    report = Report(
        scene=scene.name,
        photos=f"{len(views)} photos of {images.name} ({', '.join(sizes[:3])}{', ...' if len(sizes) > 3 else ''})",
        mesh=f"{path.name} ({len(loaded.vertices)} vertices, {len(loaded.faces)} triangles)",
        good=verdict is None,
        verdict=verdict or FITS + (MODERATELY if search.score.detail < SURE_DETAIL else ""),
        mistake=mistake,
        coverage=float(coverage.mean()),
        psnr=finite(search.score.psnr),
        detail=search.score.detail,
        comparable=search.score.share,
        features=finite(search.sparse.fitting),
        views=_by_view(judge, views, coverage, search.pairs),
        tried=search.tried,
        turned=turned,
        notes=notes,
    )
    usual = float(np.median([view.detail for view in report.views if view.detail is not None] or [0.0]))
    weak = [view.name for view in report.views if view.detail is not None and view.detail < 0.65 * usual]
    if weak and report.good:
        notes.append(f"agree least with their neighbours (something in front or moving?): {', '.join(weak[:10])}")
    report.pictures = str(output / "overlays")
    chosen = sorted({*evenly(len(views), MOST_VIEWS), *(i for i, view in enumerate(views) if view.name in turned)})
    for index in chosen:
        write_image(output / "overlays" / f"{views[index].name}.jpg", overlay(judge, given, index, views[index].image))
    write_json(output / "report.json", asdict(report))
    write_text(output / "report.txt", report.text() + "\n")
    return report


def _read(images: Path, cams: Path) -> tuple[list[View], list[str]]:
    """The views, and notes on names without a partner; intrinsics of another resolution are let through."""
    photos = {
        path.stem: path
        for path in sorted(images.iterdir(), key=lambda path: path.name)
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    }
    files = {path.name.removesuffix(CAM_SUFFIX): path for path in cams.glob(f"*{CAM_SUFFIX}")}
    notes = []
    for lack, names in (("camera", set(photos) - set(files)), ("photo", set(files) - set(photos))):
        if names:
            listed = ", ".join(sorted(names)[:10]) + (", ..." if len(names) > 10 else "")
            notes.append(f"{len(names)} without a {lack} left out: {listed}")
    try:
        return read_views(images, cams), notes
    except DataError as error:
        # Training refuses intrinsics of another resolution; finding out which one is the purpose here.
        if error.place != "intrinsic":
            raise
        notes.append(f"training would stop at this: {error.problem}")
        paired = [name for name in photos if name in files]
        return [View(name, photos[name], read_cam(files[name]), image_size(photos[name])) for name in paired], notes


def _skew(views: Sequence[View]) -> list[str]:
    """A note on skew, which training ignores (spec xscale 2.3)."""
    worst = max(views, key=lambda view: abs(_skew_pixels(view)))
    if abs(_skew_pixels(worst)) <= SKEW_LIMIT:
        return []
    off = f"{abs(_skew_pixels(worst)):.2f} px off at the border of {worst.name}"
    return [f"the cameras have skew, which training ignores: up to {off}"]


def _skew_pixels(view: View) -> float:
    return float(view.camera.intrinsics[0, 1] * view.size[1] / (2 * view.camera.intrinsics[1, 1]))


def _verdict(
    mistake: Mistake | None, turned: dict[str, list[float]], coverage: Float[Array, "n"], search: Search
) -> str | None:
    """What is wrong, None if nothing."""
    if mistake is not None:
        return mistake.problem
    if turned:
        listed = ", ".join(f"{name} by {np.linalg.norm(turn):.1f} degrees" for name, turn in turned.items())
        return f"Turned against the others: {listed}. Align these photos again, or list them in ignore_views.txt."
    if float(np.median(coverage)) < GOOD_COVERAGE:
        return f"Most photos hardly show the mesh, and none of the usual mistakes fits. {EXPORT_BOTH}"
    if search.score.pairs == 0:
        return "No two neighbouring views show the same part of the mesh, and none of the usual mistakes fits."
    if search.score.detail < GOOD_DETAIL:
        where = "The cameras fit among themselves, so the mesh is out of place or too coarse"
        if not search.sparse.fitting > FITTING_FEATURES:
            where = "The cameras do not fit among themselves either: look for distorted photos or a bad alignment"
        return f"Neighbouring photos disagree on the mesh, and none of the usual mistakes fits. {where}."
    return None


def _by_view(
    judge: Judge, views: Sequence[View], coverage: Float[Array, "n"], pairs: Sequence[Pair]
) -> list[ViewReport]:
    reports = [ViewReport(view.name, float(share)) for view, share in zip(views, coverage, strict=True)]
    usable = [pair for pair in pairs if len(pair.pixels_first) >= FEWEST_POINTS]
    details, psnrs = [judge.detail(pair) for pair in usable], [judge.warp_psnr(pair) for pair in usable]
    for index, report in enumerate(reports):
        own = [i for i, pair in enumerate(usable) if index in (pair.first, pair.second)]
        if own:
            report.detail = float(np.mean([details[i] for i in own]))
            report.psnr = float(np.mean([psnrs[i] for i in own]))
    return reports


# ---------------------------------------------------------------------- pictures


def mesh_edges(
    depth: Float[Array, "h w"], focal: float, jump: float = 0.02, crease: float = 30.0
) -> tuple[Bool[Array, "h w"], Bool[Array, "h w"]]:
    """(outlines, creases) of a depth map, both one to two pixels wide.

    1/z is an affine function of the pixel on every plane, so its second difference tells where planes end. Outlines:
    the surface ends or jumps by more than ``jump`` of its depth. Creases: its slope, seen along a row or column, turns
    by more than ``crease`` degrees.

    Args:
        depth: along the camera's z, +inf where nothing is hit.
        focal: in pixels of this map.
    """
    hit = np.isfinite(depth)
    inverse = np.where(hit, 1.0 / np.where(hit, depth, 1.0), 0.0)
    outline = cv2.morphologyEx(hit.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)).astype(bool)
    smooth = cv2.bilateralFilter(np.log(np.where(hit, depth, 1.0)).astype(np.float32), 5, jump, 2.0)
    folded = np.zeros_like(outline)
    reach = 3
    for axis in (0, 1):

        def at(values: Array, step: int, axis: int = axis) -> Array:
            return np.roll(values, -step, axis)

        # Rolling wraps round, so pixels at the border have no neighbour.
        inner = np.zeros_like(hit)
        inner[(slice(None),) * axis + (slice(reach, -reach),)] = True
        whole = at(hit, 1) & at(hit, -1) & hit & inner
        second = np.abs(at(inverse, 1) + at(inverse, -1) - 2 * inverse) / np.maximum(inverse, 1e-30)
        outline |= whole & (second > jump)
        left, right = (np.arctan(focal / reach * sign * (at(smooth, sign * reach) - smooth)) for sign in (-1, 1))
        turn = np.abs(right - left)
        peak = (turn >= at(turn, 1)) & (turn > at(turn, -1))
        folded |= peak & (turn > np.radians(crease)) & at(hit, reach) & at(hit, -reach) & inner
    near = cv2.dilate(outline.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    return outline, folded & ~near & hit


def overlay(judge: Judge, rig: Rig, view: int, image: Path) -> Array:
    """The photo, at most 1200 px wide, with the mesh's outlines in magenta and its creases in yellow; uint8."""
    rgb, _ = read_image(image)
    height, width = rgb.shape[:2]
    factor = min(1.0, PICTURE_WIDTH / width)
    picture = area_downscale(rgb, max(1, round(width * factor)), max(1, round(height * factor))).copy()
    columns = min(CAST_WIDTH, width)
    rows = max(1, round(columns * height / width))
    origins, directions = rig.rays(view, judge.grid(view, columns, rows))
    hits = judge.cast(origins, directions)
    along = directions @ rig.linear[view, 2]
    depth = np.where(hits.hit.numpy(), hits.t.numpy() * along, np.inf).reshape(rows, columns)
    focal = abs(np.linalg.det(rig.intrinsics[view])) ** 0.5 * columns / width
    for mask, colour in zip(mesh_edges(depth, focal)[::-1], ((255, 230, 0), (255, 0, 255)), strict=True):
        # The photo's right column of pixels may be hit by nothing: enlarging by nearest neighbour keeps every line.
        large = cv2.resize(mask.astype(np.uint8), (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_NEAREST)
        picture[large.astype(bool)] = colour
    return picture
