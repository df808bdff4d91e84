"""Photos over a background: decoded one by one for evaluation, all in memory for training, full size or reduced."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from core_ns.errors import DataError
from core_ns.images import area_downscale, read_image
from dataparsers.object_box import RGB, BackgroundChoice, outputs_background

REDUCTION = 4
"""Linear factor between a photo and its reduced version (spec diver 2, stage 1)."""


def composite(pixels: UInt8[Tensor, "*n c"], background: Float[Tensor, "3"]) -> Float[Tensor, "*n 3"]:
    """Straight-alpha RGBA (c = 4) over a colour, in [0, 1]; RGB (c = 3) as it is."""
    values = pixels.float() / 255.0
    if pixels.shape[-1] == 3:
        return values
    alpha = values[..., 3:]
    return values[..., :3] * alpha + background.to(values) * (1.0 - alpha)


def boxes(image: Float[Tensor, "h w *c"]) -> Float[Tensor, "h4 4 w4 4 *c"]:
    """The 4x4 boxes of a reduced photo's pixels. Right and bottom pixels that fill no box are left out."""
    height, width = image.shape[0] // REDUCTION, image.shape[1] // REDUCTION
    cropped = image[: height * REDUCTION, : width * REDUCTION]
    return cropped.reshape(height, REDUCTION, width, REDUCTION, *image.shape[2:])


def reduce_mask(mask: Bool[Tensor, "h w"]) -> Bool[Tensor, "h4 w4"]:
    """A reduced pixel is kept when all 16 pixels averaged into it are: no colour of a masked pixel leaks in."""
    return boxes(mask).all(dim=3).all(dim=1)


def find_background(outputs: DataparserOutputs, choice: BackgroundChoice = "auto") -> tuple[float, float, float]:
    """The colour behind the object: the choice, else the parser's metadata, else what the photos show.

    Raises:
        DataError: the metadata hold no colour, or a photo that was looked at does not decode.
    """

    def gray(value: float) -> tuple[float, float, float]:
        return value, value, value

    stated = outputs.metadata.get("background")
    if choice != "auto":
        return gray(RGB[choice])
    if stated is None or isinstance(stated, str):
        return gray(RGB[outputs_background(outputs).colour])
    try:
        red, green, blue = (min(max(float(value), 0.0), 1.0) for value in stated)
    except (TypeError, ValueError) as error:
        raise DataError(
            "metadata", "background", f"{stated!r} is no colour.", "Name one with --pipeline.datamanager.background."
        ) from error
    return red, green, blue


def absolute_names(outputs: DataparserOutputs) -> DataparserOutputs:
    """The same with file names that hold in every working folder."""
    masks = outputs.mask_filenames
    return dataclasses.replace(
        outputs,
        image_filenames=[path.absolute() for path in outputs.image_filenames],
        mask_filenames=[path.absolute() for path in masks] if masks is not None else None,
    )


class Photos:
    """All photos of a split as uint8 (3 bytes per pixel, 4 where any photo has transparency).

    While a stage asks for them, also the reduced photos as float32 (0.75 bytes per full pixel).
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], channels: int) -> None:
        """Room for photos of these (width, height)."""
        self.sizes, self.channels = tuple(sizes), channels
        self._starts = torch.tensor([0] + [width * height for width, height in sizes]).cumsum(0)
        self._pixels = torch.empty(int(self._starts[-1]), channels, dtype=torch.uint8)
        self._reduced: tuple[Tensor, Tensor] | None = None

    def put(self, view: int, photo: UInt8[Tensor, "h w c"]) -> None:
        """Store a photo; RGB gets an opaque alpha where others have one."""
        target = self.view(view)
        target[..., : photo.shape[-1]] = photo
        target[..., photo.shape[-1] :] = 255

    def view(self, view: int) -> UInt8[Tensor, "h w c"]:
        """A photo (not a copy)."""
        width, height = self.sizes[view]
        return self._pixels[self._starts[view] : self._starts[view + 1]].view(height, width, self.channels)

    def to(self, device: torch.device | str) -> None:
        """Move the full photos; their pixels are then gathered there."""
        self._pixels = self._pixels.to(device)

    def colours(
        self, views: Int64[Tensor, "n"], pixels: Int64[Tensor, "n"], background: Float[Tensor, "3"], reduced: bool
    ) -> Float[Tensor, "n 3"]:
        """Colours over the background of numbered pixels of the full or the reduced photos."""
        if not reduced:
            self._reduced = None  # the full stages never go back
            return composite(self._pixels[(self._starts[views] + pixels).to(self._pixels.device)], background)
        if self._reduced is None:
            self._reduced = self._reduce(background)
        starts, colours = self._reduced
        return colours[starts[views] + pixels]

    def _reduce(self, background: Tensor) -> tuple[Tensor, Tensor]:
        """Composite, then average (the same as averaging premultiplied colours): no dark fringes (spec diver 4.1)."""
        counts = [0] + [(width // REDUCTION) * (height // REDUCTION) for width, height in self.sizes]
        starts = torch.tensor(counts).cumsum(0)
        colours = torch.empty(int(starts[-1]), 3)
        for view in range(len(self.sizes)):
            full = composite(self.view(view).cpu(), background.cpu())
            colours[starts[view] : starts[view + 1]] = boxes(full).mean(dim=(1, 3)).reshape(-1, 3)
        return starts, colours


class DiverDataset(InputDataset):
    """Photos over the manager's background; thumbnails where only frusta need them, or where the photo is gone."""

    background: Tensor = torch.ones(3)
    thumbnails: Path | None = None
    serve_thumbnails = False

    def size(self, view: int) -> tuple[int, int]:
        """(width, height) by the camera."""
        return int(self.cameras.width[view]), int(self.cameras.height[view])

    def photo(self, view: int) -> UInt8[Tensor, "h w c"]:
        """The decoded photo, straight alpha in a fourth channel where it has any.

        Raises:
            DataError: unreadable, or of another size than its camera says.
        """
        path, (width, height) = self.image_filenames[view], self.size(view)
        rgb, alpha = read_image(path)
        pixels = torch.from_numpy(rgb)
        if alpha is not None:
            pixels = torch.cat([pixels, torch.from_numpy(alpha)[..., None]], dim=-1)
        if self.scale_factor < 1.0:
            opaque = (composite(pixels, self.background) * 255.0).round().byte()
            return torch.from_numpy(area_downscale(opaque.numpy(), width, height))
        if pixels.shape[:2] != (height, width):
            raise DataError(
                path, "size", f"is {pixels.shape[1]}x{pixels.shape[0]}, but its camera says {width}x{height}.",
                "Export photos and cameras at the same resolution.",
            )  # fmt: skip
        return pixels

    def mask(self, view: int) -> Bool[Tensor, "h w"] | None:
        """Pixels that may be used, where the data parser names a mask file: non-zero, or not transparent.

        Raises:
            DataError: unreadable, or of another size than its photo.
        """
        masks = self._dataparser_outputs.mask_filenames
        if masks is None:
            return None
        colour, alpha = read_image(masks[view])
        kept = torch.from_numpy(alpha if alpha is not None and (alpha < 255).any() else colour.max(axis=-1)) > 0
        width, height = self.size(view)
        if self.scale_factor < 1.0:  # the nearest pixel, as nerfstudio does
            rows = ((torch.arange(height) + 0.5) * (kept.shape[0] / height)).long()
            columns = ((torch.arange(width) + 0.5) * (kept.shape[1] / width)).long()
            kept = kept[rows][:, columns]
        if kept.shape != (height, width):
            raise DataError(
                masks[view], "size", f"is {kept.shape[1]}x{kept.shape[0]}, but its photo is {width}x{height}.",
                "Export masks at the photos' resolution.",
            )  # fmt: skip
        return kept

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict[str, Any]:
        """``image`` [H, W, 3] over the background, and ``mask`` [H, W, 1] where the parser names one."""
        thumbnail = self.thumbnails / f"{image_idx:05d}.jpg" if self.thumbnails is not None else None
        if thumbnail is not None and (self.serve_thumbnails or not self.image_filenames[image_idx].is_file()):
            small = thumbnail.is_file()
        else:
            small = False
        pixels = torch.from_numpy(read_image(thumbnail)[0]) if small and thumbnail else self.photo(image_idx)
        image = composite(pixels, self.background)
        data: dict[str, Any] = {"image_idx": image_idx, "image": image}
        if image_type == "uint8":
            data["image"] = (image * 255.0).round().byte()
        mask = None if small else self.mask(image_idx)
        if mask is not None:
            data["mask"] = mask[..., None]
        return data
