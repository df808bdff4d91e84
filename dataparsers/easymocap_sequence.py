"""A synchronised multi-view recording in EasyMocap's layout: cameras, frames, photos and masks (spec r4dv 2).

Everything here lives in the world of the files, with OpenCV cameras. "view" and "frame" are positions among the chosen
views and frames. No pixel is held: photos are decoded when asked for.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.errors import DataError
from dataparsers.easymocap import FAR, NEAR, Calibrated, CameraModel, find_calibration
from dataparsers.easymocap_attention import (
    aligned_transform,
    attention_point,
    box_corners,
    box_of_attention,
    up_transform,
)
from dataparsers.easymocap_files import find_masks, find_photos
from dataparsers.easymocap_lens import Lens, make_lens
from dataparsers.easymocap_options import (
    HULL_PRESETS,
    SequenceOptions,
    check_options,
    sampled,
    split_views,
    spread_frames,
    with_preset,
)
from dataparsers.easymocap_view import Photo, View

__all__ = ["Photo", "Sequence", "SequenceOptions", "View", "attention_point", "box_of_attention", "open_sequence"]

Array = np.ndarray


@dataclass(eq=False)
class Sequence:
    """The chosen views and frames of a recording. Picklable; copies are cheap and share the views."""

    root: Path
    """Sequence folder."""
    views: list[View]
    """Chosen views, training and held-out together, by sorted name."""
    frames: list[str]
    """File name stems of the chosen frames."""
    times: list[float]
    """Time of each chosen frame in [0, 1]: (position - first) / (last - first) in the recording."""
    train_views: list[int]
    """Views to train on and to take source colours from."""
    eval_views: list[int]
    """Held-out views; none of them is a training view."""
    eval_frames: list[int]
    """Frames to evaluate."""
    bounds: Float[Array, "2 3"] | None
    """Smallest and largest corner of what is reconstructed, if known."""
    images_dir: str
    """Folder the photos were found in, relative to the root."""
    masks_dir: str
    """Folder the masks were found in; "" if there are none."""
    options: SequenceOptions
    """What the sequence was opened with, its preset applied."""
    calibration_dir: Path
    """Folder of the calibration in use."""
    transform: Float[Array, "4 4"] = field(default_factory=lambda: np.eye(4))
    """Rigid map from the files' world to the one that nerfstudio's cameras and viewer are given."""

    @property
    def has_masks(self) -> bool:
        """Whether every photo has a mask."""
        return self.masks_dir != ""

    @property
    def names(self) -> list[str]:
        """Camera name of each view."""
        return [view.name for view in self.views]

    @property
    def hull_preset(self) -> dict[str, float]:
        """What the data set's preset asks of the visual hull; empty without a preset."""
        return dict(HULL_PRESETS.get(self.options.dataset_preset, {}))

    @property
    def near(self) -> float:
        """Nearest depth over all cameras: as given, else from the bounds."""
        return min(near for near, _ in self._depth_ranges())

    @property
    def far(self) -> float:
        """Farthest depth over all cameras: as given, else from the bounds."""
        return max(far for _, far in self._depth_ranges())

    def __deepcopy__(self, memo: dict) -> Sequence:
        """Data sets copy their metadata: views never change, so both copies may have them."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.bounds = None if self.bounds is None else self.bounds.copy()
        twin.transform = self.transform.copy()
        return twin

    # ------------------------------------------------------------------ files

    def image_path(self, view: int, frame: int) -> Path:
        """The stored photo; of a clip, where it would lie had it been extracted."""
        return self.views[view].image_files[frame]

    def mask_path(self, view: int, frame: int) -> Path | None:
        """The stored mask, in the same way; None without masks."""
        files = self.views[view].mask_files
        return None if files is None else files[frame]

    def decode(self, view: int, frame: int) -> Photo:
        """Photo, mask and valid area, undistorted and at the delivered size. Thread-safe.

        Raises:
            DataError: a file is missing or damaged, or its size changed.
        """
        return self.views[view].decode(frame)

    # ------------------------------------------------------------------ cameras

    def camera(self, view: int, frame: int) -> tuple[Float[Array, "3 3"], Float[Array, "4 4"]]:
        """(K of the delivered photo, world to OpenCV camera)."""
        return self.views[view].intrinsics(frame), self.views[view].w2c(frame)

    def depth_range(self, view: int, frame: int) -> tuple[float, float]:
        """(near, far) along the camera's axis: the calibration's, else as given, else by the bounds, else 1e-4, 1e6."""
        model = self.views[view].model(frame)
        near, far = self.options.near or NEAR, self.options.far or FAR
        if self.bounds is not None:
            depths = box_corners(self.bounds) @ model.w2c[2, :3] + model.w2c[2, 3]
            margin = 0.05 * float(depths.max() - depths.min())
            if depths.max() + margin > near:  # else the box is behind the camera
                far = self.options.far or float(depths.max()) + margin
                # A camera in or near the box: a thousandth of the depth keeps the range finite.
                nearest = max(float(depths.min()) - margin, 1e-3 * far)
                near = self.options.near or (nearest if nearest < far else 0.5 * far)
        if not math.isclose(model.near, NEAR):
            near = model.near
        if not math.isclose(model.far, FAR):
            far = model.far
        return near, far

    def _depth_ranges(self) -> Iterator[tuple[float, float]]:
        """Of all poses."""
        for index, view in enumerate(self.views):
            for frame in range(len(view.cameras)):
                yield self.depth_range(index, frame)

    def extent(self, view: int, frame: int, bounds: Float[Array, "2 3"], pad: int = 25) -> tuple[int, int, int, int]:
        """(x, y, width, height): pixels of the delivered photo that the box can cover, ``pad`` added, clipped to it.

        The whole photo when a corner is not in front of the camera, or the box misses the photo.
        """
        camera = self.views[view]
        matrix, w2c = self.camera(view, frame)
        corners = box_corners(np.asarray(bounds, dtype=np.float64)) @ w2c[:3, :3].T + w2c[:3, 3]
        whole = (0, 0, camera.width, camera.height)
        if corners[:, 2].min() <= NEAR:
            return whole
        pixels = (corners @ matrix.T)[:, :2] / corners[:, 2:]
        low = np.floor(np.clip(pixels.min(axis=0) - pad, 0, whole[2:])).astype(int)
        high = np.ceil(np.clip(pixels.max(axis=0) + pad, 0, whole[2:])).astype(int)
        size = high - low
        return whole if size.min() < 1 else (int(low[0]), int(low[1]), int(size[0]), int(size[1]))


def open_sequence(root: Path, options: SequenceOptions | None = None) -> Sequence:
    """Open a recording and check what names and headers tell; decodes only a few masks. Says what it fell back to.

    Args:
        root: folder with images/CAMERA/FRAME.jpg, masks/CAMERA/FRAME.png, intri.yml and extri.yml; or with clips,
            videos_libx265/CAMERA_N..._FH....mp4, instead of images/ or of both.

    Raises:
        DataError: an option or the calibration cannot be used, or a photo or mask is missing, unreadable or of another
            size than its calibration.
    """
    root, options = Path(root), with_preset(options or SequenceOptions())
    if not root.is_dir():
        raise DataError(root, "--data", "is not a folder.", "Name the folder that holds images/, intri.yml, extri.yml.")
    check_options(options, root)
    calibration_dir, calibration = find_calibration(root, options.cameras)
    names = sorted(calibration)
    train, held_out = split_views(names, options, root)
    chosen = sorted([*train, *held_out])
    ratios = _ratios(options, len(names), root)
    photos = find_photos(root, options.images_dir, [names[index] for index in chosen])
    positions = sampled(len(photos.stems), options.frame_sample, root, "--frame-sample")
    frames = [photos.stems[position] for position in positions]
    files = {name: photos.of(name, frames) for name in photos.names}
    masks = find_masks(root, options.masks_dir, photos, frames, options.mask_threshold)
    views = []
    shift = options.pixel_centre_shift
    models = {
        name: photos.fitted(name, _models(calibration[name], name, frames, calibration_dir), files[name], shift)
        for name in photos.names
    }
    sizes = photos.check(files, masks, models, every=options.check_every_header)
    for index, name in zip(chosen, photos.names, strict=True):
        ratio = ratios[index]
        if options.max_side:
            ratio = min(ratio, options.max_side / max(sizes[name]))
        lenses = _lenses(models[name], sizes[name], ratio, options, calibration_dir)
        views.append(
            View(
                name=name,
                cameras=models[name],
                lenses=lenses,
                image_files=tuple(files[name]),
                mask_files=tuple(masks.files[name]) if masks is not None else None,
                stored_size=sizes[name],
                colour_matrix=options.apply_ccm and not _has_plain_colours(models[name]),
                fill_outside_mask=options.fill_outside_mask,
                clip=photos.clips.get(name),
                mask_clip=masks.clips.get(name) if masks is not None else None,
            )
        )
    if not options.apply_ccm and any(not _has_plain_colours(view.cameras) for view in views):
        CONSOLE.print("[yellow]The calibration has colour matrices (ccm), which are not applied: see --apply-ccm.")
    first, last = positions[0], positions[-1]
    sequence = Sequence(
        root=root,
        views=views,
        frames=frames,
        times=[(position - first) / max(last - first, 1) for position in positions],
        train_views=[chosen.index(index) for index in train],
        eval_views=[chosen.index(index) for index in held_out],
        eval_frames=spread_frames(len(frames), options.eval_frames, root),
        bounds=None if options.bounds is None else np.asarray(options.bounds, dtype=np.float64),
        images_dir=photos.folder,
        masks_dir=masks.folder if masks is not None else "",
        options=options,
        calibration_dir=calibration_dir,
    )
    if options.orientation != "none":
        sequence.transform = (up_transform if options.orientation == "up" else aligned_transform)(sequence)
    return sequence


def _ratios(options: SequenceOptions, count: int, root: Path) -> list[float]:
    """One ratio for each camera of the calibration."""
    if len(options.ratio) == 1:
        return [options.ratio[0]] * count
    if len(options.ratio) != count:
        problem = f"has {len(options.ratio)} numbers, the calibration {count} cameras."
        raise DataError(root, "--ratio", problem, "Give one, or one for each camera in the sorted order of the names.")
    return list(options.ratio)


def _models(found: Calibrated, name: str, frames: Items[str], folder: Path) -> tuple[CameraModel, ...]:
    """The camera, or a moving camera's at each chosen frame."""
    if isinstance(found, CameraModel):
        return (found,)
    for frame in frames:
        if frame not in found:
            problem = f"has no pose for frame {frame}; it has {len(found)}, from {min(found)} to {max(found)}."
            remedy = "Name its entries like the photos, or choose the frames it has with --frame-sample."
            raise DataError(folder, f"moving camera {name}", problem, remedy)
    return tuple(found[frame] for frame in frames)


def _lenses(
    models: Items[CameraModel], size: tuple[int, int], ratio: float, options: SequenceOptions, folder: Path
) -> tuple[Lens, ...]:
    """The resampling of each calibration; a single one where all frames agree."""
    made: list[Lens] = []
    known: dict[bytes, Lens] = {}
    for model in models:
        numbers = [model.K.ravel(), model.D, model.fisheye if model.fisheye is not None else np.zeros(0)]
        key = np.concatenate(numbers).tobytes()
        try:
            if key not in known:
                known[key] = make_lens(
                    model.K, model.D, model.fisheye, size, ratio, options.pixel_centre_shift, options.undistort
                )
        except ValueError as error:
            problem = f"cannot be undistorted: {error}."
            remedy = "Use --undistort same, or check the distortion numbers."
            raise DataError(folder, f"camera {model.name}", problem, remedy) from error
        made.append(known[key])
    return tuple(made[:1]) if all(lens == made[0] for lens in made) else tuple(made)


def _has_plain_colours(models: Items[CameraModel]) -> bool:
    return all(np.allclose(model.ccm, np.eye(3)) for model in models)
