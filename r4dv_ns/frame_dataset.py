"""One split's photos for nerfstudio's tools, each decoded when it is asked for (spec r4dv 8.3)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from core_ns.errors import DataError
from core_ns.images import area_downscale
from dataparsers.easymocap_sequence import Photo, Sequence
from r4dv_ns.sources import Crop, unit_floats

THUMBNAIL = 160
"""Longest side of the pictures the viewer's camera frusta show."""


def photo_batch(
    crop: Crop, *, index: int, view: int, frame: int, device: torch.device | str = "cpu", mask: bool = True
) -> dict[str, Any]:
    """A photo as losses and metrics take it.

    Returns:
        image [H, W, 3] float32 in [0, 1] as in the file; mask [H, W, 1] float32, 1 is foreground (all ones without
        masks); valid [H, W, 1] bool; image_idx in its split, view_idx and frame_idx in the sequence; crop_xywh and
        full_size (width, height) in pixels of the delivered photo.
    """
    height, width = crop.image.shape[:2]
    batch: dict[str, Any] = {
        "image_idx": index,
        "image": unit_floats(crop.image, device),
        "view_idx": view,
        "frame_idx": frame,
        "crop_xywh": crop.rectangle,
        "full_size": crop.full_size,
    }
    if mask:
        foreground = np.full((height, width), 255, np.uint8) if crop.mask is None else crop.mask
        valid = np.ones((height, width), bool) if crop.valid is None else crop.valid
        batch["mask"] = unit_floats(foreground, device)[..., None]
        batch["valid"] = torch.tensor(valid).to(device)[..., None]
    return batch


class FrameDataset(InputDataset):
    """The photos of a split, full size, undistorted; nothing is kept.

    ``metadata["sequence"]`` is the data parser's own sequence, not a copy: bounds set there hold everywhere.
    """

    exclude_batch_keys_from_device: list[str] = []  # noqa: RUF012 (nerfstudio's name and type)
    serve_thumbnails = False
    """Items are small pictures without a mask: for the viewer's frusta, which shrink them to 100 pixels anyway."""

    def __init__(self, dataparser_outputs: DataparserOutputs) -> None:
        """Take over a split.

        Raises:
            DataError: the data parser is not one of multi-view recordings.
        """
        super().__init__(dataparser_outputs)
        self.sequence = sequence_of(dataparser_outputs)
        self.metadata["sequence"] = self.sequence
        indices = dataparser_outputs.cameras.metadata
        assert indices is not None
        self._views, self._frames = (indices[name].flatten().tolist() for name in ("view_idx", "frame_idx"))

    def view(self, index: int) -> int:
        """Which of the sequence's views an item is of."""
        return self._views[index]

    def frame(self, index: int) -> int:
        """Which of the sequence's frames an item is of."""
        return self._frames[index]

    def get_numpy_image(self, image_idx: int) -> UInt8[np.ndarray, "h w 3"]:
        """The photo, full size. Raises DataError when it does not decode."""
        return self.sequence.views[self.view(image_idx)].decode(self.frame(image_idx), with_mask=False).image

    def get_image_float32(self, image_idx: int) -> Float[Tensor, "h w 3"]:
        """The photo in [0, 1], full size."""
        return unit_floats(self.get_numpy_image(image_idx), "cpu")

    def get_image_uint8(self, image_idx: int) -> UInt8[Tensor, "h w 3"]:
        """The photo, full size."""
        return torch.tensor(self.get_numpy_image(image_idx))

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict[str, Any]:
        """See `photo_batch`; of a thumbnail only the image.

        Raises:
            DataError: photo or mask cannot be decoded.
        """
        view, frame = self.view(image_idx), self.frame(image_idx)
        if self.serve_thumbnails:
            small = Crop.whole(Photo(self._thumbnail(image_idx), None, None))
            data = photo_batch(small, index=image_idx, view=view, frame=frame, mask=False)
        else:
            photo = self.sequence.decode(view, frame)
            data = photo_batch(Crop.whole(photo), index=image_idx, view=view, frame=frame)
        if image_type == "uint8":
            data["image"] = data["image"].mul(255.0).round().byte()
        return data

    def _thumbnail(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        image = self.get_numpy_image(index)
        height, width = image.shape[:2]
        scale = min(THUMBNAIL / max(width, height), 1.0)
        return area_downscale(image, max(round(width * scale), 1), max(round(height * scale), 1))


def sequence_of(outputs: DataparserOutputs) -> Sequence:
    """The recording behind a data parser's outputs.

    Raises:
        DataError: there is none.
    """
    sequence = outputs.metadata.get("sequence")
    if not isinstance(sequence, Sequence):
        folder = outputs.image_filenames[0].parent if outputs.image_filenames else "data"
        raise DataError(
            folder, "data parser", "gives single photos, not the views and frames of a recording.",
            "Use easymocap-data; `ns-r4dv convert` makes its layout from COLMAP models and transforms.json.",
        )  # fmt: skip
    return sequence
