"""One physical camera of a sequence: its files, its calibration for every frame, and the pinhole camera delivered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from core_ns.errors import DataError
from core_ns.images import read_image
from dataparsers.clip_masks import ClipMasks
from dataparsers.easymocap_camera import CameraModel
from dataparsers.easymocap_lens import Lens, deliver, valid_area
from dataparsers.video_read import Clip

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Photo:
    """A delivered photo.

    ``image`` uint8 sRGB; ``mask`` uint8, 255 is foreground, soft between, None without masks; ``valid`` False where the
    undistorted photo shows nothing, None where all is valid; it is shared between photos: read only.
    """

    image: UInt8[Array, "h w 3"]
    mask: UInt8[Array, "h w"] | None
    valid: Bool[Array, "h w"] | None


@dataclass(frozen=True, eq=False)
class View:
    """A camera over all chosen frames. Lists with one entry hold for every frame; a moving camera has one per frame.

    Frames are numbers among the chosen ones. Matrices are OpenCV world-to-camera in the files' world, float64.
    """

    name: str
    cameras: tuple[CameraModel, ...]
    """Calibration as in the file, in pixels of the stored photo; one, or one for each frame."""
    lenses: tuple[Lens, ...]
    """Resampling to the delivered photo; one, or one for each frame."""
    image_files: tuple[Path, ...]
    """The stored photo of each frame; as if it had been extracted, where there is a clip."""
    mask_files: tuple[Path, ...] | None
    """The mask of each frame, if there are masks; in the same way."""
    stored_size: tuple[int, int]
    """(width, height) of the stored photos."""
    colour_matrix: bool = False
    """Multiply colours by the calibration's ccm."""
    fill_outside_mask: bool = False
    """Blacken the photo outside of the mask."""
    clip: Clip | None = None
    """The clip that photos are read from, instead of from files."""
    mask_clip: ClipMasks | None = None
    """The same for masks."""

    @property
    def camera(self) -> CameraModel | Sequence[CameraModel]:
        """The calibration, or the list of it by frame of a moving camera."""
        return self.cameras if self.is_moving else self.cameras[0]

    @property
    def is_moving(self) -> bool:
        """Whether the calibration changes from frame to frame."""
        return len(self.cameras) > 1

    @property
    def K(self) -> Float[Array, "3 3"]:
        """Intrinsics of the delivered photo in its pixels (of the first frame; see `intrinsics`)."""
        return self.intrinsics(0)

    @property
    def width(self) -> int:
        """Of the delivered photo, in pixels."""
        return self.lenses[0].target.width

    @property
    def height(self) -> int:
        """Of the delivered photo, in pixels."""
        return self.lenses[0].target.height

    def model(self, frame: int) -> CameraModel:
        """The file's calibration at a frame."""
        return self.cameras[frame if self.is_moving else 0]

    def lens(self, frame: int) -> Lens:
        """The resampling at a frame."""
        return self.lenses[frame if len(self.lenses) > 1 else 0]

    def intrinsics(self, frame: int) -> Float[Array, "3 3"]:
        """K of the delivered photo at a frame."""
        return self.lens(frame).target.intrinsics

    def w2c(self, frame: int) -> Float[Array, "4 4"]:
        """World to OpenCV camera at a frame."""
        return self.model(frame).w2c

    def centre(self, frame: int) -> Float[Array, "3"]:
        """Camera centre in the world at a frame."""
        return self.model(frame).centre

    def valid(self, frame: int) -> Bool[Array, "h w"] | None:
        """Where the delivered photo shows something; None: everywhere. Shared: read only."""
        return valid_area(self.lens(frame))

    def decode(self, frame: int, with_mask: bool = True) -> Photo:
        """Photo and mask of a frame as delivered. Thread-safe; nothing but undistortion tables is kept.

        Raises:
            DataError: a file is missing, does not decode, or has another size than at the start.
        """
        lens, mask = self.lens(frame), None
        image = self._stored_photo(frame)
        if self.colour_matrix:
            coloured = image.astype(np.float32) @ self.model(frame).ccm.T.astype(np.float32)
            image = np.clip(coloured + 0.5, 0, 255).astype(np.uint8)
        image = deliver(image, lens, "cubic")
        if self.mask_files is not None and (with_mask or self.fill_outside_mask):
            mask = self.decode_mask(frame)
            if self.fill_outside_mask:
                image = ((image.astype(np.uint16) * mask[..., None] + 127) // 255).astype(np.uint8)
        return Photo(image, mask if with_mask else None, valid_area(lens))

    def decode_mask(self, frame: int) -> UInt8[Array, "h w"]:
        """The mask alone, resampled as the photo; zero where the photo shows nothing. Raises as `decode`."""
        if self.mask_files is None:
            raise ValueError("the sequence has no masks")
        file = self.mask_files[frame]
        if self.mask_clip is not None:
            mask = self.mask_clip.read(frame_number(file))
        else:
            mask = self._of_right_size(read_mask(file), file)
        return deliver(mask, self.lens(frame), "linear")

    def mask_stamp(self, frame: int) -> list[Any]:
        """Names, size and time of change of the file a mask comes from, and what is read from it: not its pixels.

        Raises:
            DataError: the file is gone.
        """
        if self.mask_files is None:
            raise ValueError("the sequence has no masks")
        file = self.mask_files[frame]
        if self.mask_clip is None:
            return _stamp(file)
        return [*_stamp(self.mask_clip.clip.file), file.stem, self.mask_clip.threshold]

    def _stored_photo(self, frame: int) -> UInt8[Array, "h w 3"]:
        file = self.image_files[frame]
        if self.clip is not None:
            return self.clip.read(frame_number(file))
        return self._of_right_size(read_image(file)[0], file)

    def _of_right_size(self, array: Array, file: Path) -> Array:
        if array.shape[1::-1] != self.stored_size:
            raise wrong_size(file, self.name, array.shape[1::-1], self.stored_size, "its camera's first photo")
        return array


def frame_number(file: Path) -> int:
    """The frame of a clip that a path stands for."""
    return int(file.stem)


def _stamp(file: Path) -> list[Any]:
    try:
        status = file.stat()
    except OSError as error:
        raise DataError(file, "mask", f"cannot be read ({error}).", "Check the folder of masks.") from error
    return [file.parent.name, file.name, status.st_size, status.st_mtime_ns]


def wrong_size(file: Path, camera: str, found: Sequence[int], expected: Sequence[int], reference: str) -> DataError:
    """The error for a photo or mask whose size disagrees with ``reference``."""
    problem = f"is {found[0]}x{found[1]} pixels, {reference} {expected[0]}x{expected[1]}."
    remedy = "Photos, masks and calibration of a camera must share one size; use --ratio to shrink all of them."
    return DataError(file, f"camera {camera}, size", problem, remedy)


def read_mask(file: Path) -> UInt8[Array, "h w"]:
    """A mask as grey values; where the file has transparency, times that (a cut-out counts by what it cuts out).

    Raises:
        DataError: it does not decode.
    """
    rgb, alpha = read_image(file)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)  # exact for grey files
    if alpha is not None:
        grey = ((grey.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
    return grey
