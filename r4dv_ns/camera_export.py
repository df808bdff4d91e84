"""Learned camera corrections become a calibration that every reader of EasyMocap files takes (spec r4dv 7).

Photos fix cameras and points only up to a common rigid motion. The corrected cameras are moved back as a whole so that
the centres of the training cameras lie as near as possible to where they were; K, lens terms and size stay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from core_ns import runs
from core_ns.errors import DataError
from dataparsers.easymocap import Calibrated, CameraModel, find_calibration, write_cameras
from dataparsers.easymocap_sequence import Sequence
from dataparsers.object_scene import new_folder
from r4dv_ns.camera_refinement import CameraRefinement

Array = np.ndarray


@dataclass(frozen=True)
class CameraChange:
    """How far a camera was corrected after the common motion was taken out; of a moving camera the largest."""

    name: str
    degrees: float
    """Angle between the old and the new orientation."""
    distance: float
    """Between the old and the new centre, world units."""


def rigid_fit(points: Float[Array, "n 3"], targets: Float[Array, "n 3"]) -> Float[Array, "4 4"]:
    """The rotation and translation (no scale) that bring points nearest to targets in least squares (Kabsch 1976).

    Points on a line leave the turn about it open; the solution is then one of many.

    Raises:
        ValueError: different shapes, or no points.
    """
    points, targets = np.asarray(points, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if points.shape != targets.shape or points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"expected two [N > 0, 3] arrays, got {points.shape} and {targets.shape}")
    middle, target_middle = points.mean(axis=0), targets.mean(axis=0)
    left, _, right = np.linalg.svd((targets - target_middle).T @ (points - middle))
    turned = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])  # never a mirror image
    result = np.eye(4)
    result[:3, :3] = left @ turned @ right
    result[:3, 3] = target_middle - result[:3, :3] @ middle
    return result


def gauge(refined: Float[Array, "n 4 4"], original: Float[Array, "n 4 4"]) -> Float[Array, "4 4"]:
    """The rigid motion of the world that brings refined cameras (w2c) nearest to the original ones.

    It fits the centres. Where they lie on a line (one or two cameras, a straight rail) it also fits a point ahead of,
    beside and below every camera, so that the turn about the line is fixed as well.
    """
    centres, targets = (-np.einsum("nji,nj->ni", w2c[:, :3, :3], w2c[:, :3, 3]) for w2c in (refined, original))
    spread = np.linalg.svd(targets - targets.mean(axis=0), compute_uv=False)
    if len(targets) < 3 or spread[1] < max(1e-3 * spread[0], 1e-6 * np.abs(targets).max()):
        # Rows of R are the camera's axes in the world.
        arm = max(float(spread[0]) / np.sqrt(len(targets)), 1e-3)
        centres, targets = (
            np.concatenate([middle, (middle[:, None] + arm * w2c[:, :3, :3]).reshape(-1, 3)])
            for middle, w2c in ((centres, refined), (targets, original))
        )
    return rigid_fit(centres, targets)


def refined_calibration(
    sequence: Sequence, refinement: CameraRefinement
) -> tuple[dict[str, Calibrated], list[CameraChange]]:
    """The sequence's calibration with the corrections of its training views.

    Cameras that were not trained on (held out, or left out by the selection) stay as they were. A moving camera has one
    correction at all its frames.

    Args:
        sequence: as the run opened it; ``refinement`` has one row for each of its views.

    Raises:
        DataError: the run had no correction to learn.
        ValueError: another number of cameras.
    """
    if not refinement.active:
        raise DataError(
            sequence.root, "camera corrections", "are off in this run.",
            "Train with --pipeline.model.camera-refinement.mode SO3xR3.",
        )  # fmt: skip
    if len(refinement.adjustment) != len(sequence.views):
        raise ValueError(f"{len(refinement.adjustment)} corrections for {len(sequence.views)} views")
    source = "plain" if sequence.calibration_dir == sequence.root else "optimized"
    _, calibration = find_calibration(sequence.root, source)
    corrected: list[tuple[str, str | None, CameraModel, Array]] = []
    for view in sequence.train_views:
        name = sequence.views[view].name
        found = calibration[name]
        for stem, camera in {None: found}.items() if isinstance(found, CameraModel) else found.items():
            moved = refinement.corrected(camera.w2c[None], [view], sequence.transform)[0]
            corrected.append((name, stem, camera, moved))
    back = gauge(np.stack([moved for *_, moved in corrected]), np.stack([old.w2c for _, _, old, _ in corrected]))
    result, changes = dict(calibration), dict[str, CameraChange]()
    for name, stem, old, moved in corrected:
        w2c = moved @ np.linalg.inv(back)
        new = replace(old, R=w2c[:3, :3], T=w2c[:3, 3])
        if stem is None:
            result[name] = new
        else:
            result[name] = {**result[name], stem: new}  # type: ignore[dict-item]
        changes[name] = _larger(changes.get(name), change(name, old, new))
    return result, list(changes.values())


def change(name: str, old: CameraModel, new: CameraModel) -> CameraChange:
    """Angle and distance between two poses of a camera."""
    # From the chord, which keeps its digits at small angles: |R - S| = 2 sqrt(2) sin(angle / 2).
    chord = np.linalg.norm(new.R - old.R) / (2 * np.sqrt(2))
    degrees = float(np.degrees(2 * np.arcsin(min(chord, 1.0))))
    return CameraChange(name, degrees, float(np.linalg.norm(new.centre - old.centre)))


def _larger(first: CameraChange | None, second: CameraChange) -> CameraChange:
    if first is None:
        return second
    return CameraChange(first.name, max(first.degrees, second.degrees), max(first.distance, second.distance))


def write_calibration(folder: Path, calibration: dict[str, Calibrated]) -> None:
    """Write cameras as ``intri.yml`` and ``extri.yml``, moving ones into ``cameras/CAM``; whole or not at all.

    Raises:
        DataError: ``folder`` is a file or holds something; nothing is written.
    """
    with new_folder(folder) as draft:
        still = {name: camera for name, camera in calibration.items() if isinstance(camera, CameraModel)}
        if still:
            write_cameras(draft, still)
        for name, camera in calibration.items():
            if not isinstance(camera, CameraModel):
                write_cameras(draft / "cameras" / name, camera)


def check_calibration_age(sequence: Sequence, config_file: Path) -> None:
    """Corrections belong to the cameras that the run was trained with. A run that takes ``optimized/`` "if there is
    any" must not put them on refined cameras that came later: on its own export, say.

    Raises:
        DataError: ``optimized/`` is younger than the run, which does not say which cameras it took.
    """
    refined = sequence.calibration_dir
    if sequence.options.cameras != "auto" or refined == sequence.root:
        return
    if max(file.stat().st_mtime for file in refined.rglob("*.yml")) > config_file.stat().st_mtime:
        raise DataError(
            refined, "", "is younger than the run, which takes it by itself (cameras: auto).",
            f"Write cameras: plain in {config_file} if the run was trained without it, else cameras: optimized.",
        )  # fmt: skip


def export_cameras(config_file: Path, folder: Path) -> list[CameraChange]:
    """Write the corrected cameras of a run; as ``SEQ/optimized`` later runs of the sequence take them by themselves.

    Returns:
        How far each training camera was corrected.

    Raises:
        DataError: no such run, one without corrections, or a folder that holds something; nothing is written.
    """
    pipeline, model = runs.load_run(config_file, "r4dv_ns.pipeline.R4DVPipelineConfig")
    check_calibration_age(pipeline.datamanager.sequence, config_file)
    calibration, changes = refined_calibration(pipeline.datamanager.sequence, model.camera_refinement)
    write_calibration(folder, calibration)
    return changes
