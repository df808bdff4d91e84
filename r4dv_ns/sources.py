"""Photos cropped to what can show the subject: one cache for training targets and the sources of colour (spec 8.3).

Held-out views cannot be had from here: every way to a source's pixels checks the view first, so no render and no loss
can see them (spec r4dv 2.4, check A16).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from dataparsers.easymocap_sequence import Photo, Sequence
from r4dv_ns.appearance import Source
from r4dv_ns.frame_cache import FrameCache

Array = np.ndarray
Rectangle = tuple[int, int, int, int]
"""x, y, width, height in pixels of the delivered photo."""


def unit_floats(pixels: UInt8[Array, "*n"], device: torch.device | str) -> Float[torch.Tensor, "*n"]:
    """0..255 as float32 in [0, 1] in memory of its own, contiguous; bytes travel to a GPU, floats are made there."""
    if torch.device(device).type == "cpu":
        # numpy's memory: torch's is aligned, and the C library reuses aligned memory badly (100 MB of holes here).
        return torch.from_numpy(np.divide(pixels, np.float32(255), dtype=np.float32, order="C"))
    return torch.tensor(pixels).to(device).float().div_(255.0)


@dataclass(frozen=True, eq=False)
class Crop:
    """A rectangle of a delivered photo: uint8 sRGB, mask with 255 for foreground, valid False where it shows nothing.

    None: no masks, valid everywhere. ``x``, ``y`` of its first pixel and ``full_size`` (width, height) in pixels of the
    delivered photo.
    """

    image: UInt8[Array, "h w 3"]
    mask: UInt8[Array, "h w"] | None
    valid: Bool[Array, "h w"] | None
    x: int
    y: int
    full_size: tuple[int, int]

    @classmethod
    def whole(cls, photo: Photo) -> Crop:
        """All of a photo, without a copy."""
        height, width = photo.image.shape[:2]
        return cls(photo.image, photo.mask, photo.valid, 0, 0, (width, height))

    @property
    def rectangle(self) -> Rectangle:
        """x, y, width, height."""
        height, width = self.image.shape[:2]
        return self.x, self.y, width, height

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return sum(part.nbytes for part in (self.image, self.mask, self.valid) if part is not None)

    def cut(self, rectangle: Rectangle) -> Crop:
        """A part of this one (not a copy); ``rectangle`` counts from the photo's corner and lies inside this one."""
        x, y, width, height = rectangle
        part = (slice(y - self.y, y - self.y + height), slice(x - self.x, x - self.x + width))
        mask = None if self.mask is None else self.mask[part]
        valid = None if self.valid is None else self.valid[part]
        return Crop(self.image[part], mask, valid, x, y, self.full_size)

    def kept(self) -> Crop:
        """The same in memory of its own, so that the whole photo can go; ``valid`` only where it says anything."""
        valid = None if self.valid is None or self.valid.all() else self.valid.copy()
        mask = None if self.mask is None else self.mask.copy()
        return replace(self, image=self.image.copy(), mask=mask, valid=valid)

    def around_mask(self, pad: int) -> Crop:
        """The part with all foreground pixels (mask above 128), ``pad`` more on every side; all of it without any."""
        if self.mask is None:
            return self
        rows, columns = (np.flatnonzero((self.mask > 128).any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return self
        height, width = self.mask.shape
        top, bottom = max(int(rows[0]) - pad, 0), min(int(rows[-1]) + 1 + pad, height)
        left, right = max(int(columns[0]) - pad, 0), min(int(columns[-1]) + 1 + pad, width)
        return self.cut((self.x + left, self.y + top, right - left, bottom - top))


def crop_rectangle(
    sequence: Sequence, view: int, frame: int, bounds: Float[Array, "2 3"] | None, pad: int
) -> Rectangle:
    """Where a photo can show what is in the box (files' world), ``pad`` pixels added; the whole photo for None."""
    if bounds is None:
        return 0, 0, sequence.views[view].width, sequence.views[view].height
    return sequence.extent(view, frame, bounds, pad)


def crop_cache(
    sequence: Sequence, bounds: Float[Array, "2 3"] | None, *, capacity: int, workers: int = 2, pad: int = 25
) -> FrameCache[tuple[int, int], Crop]:
    """A cache of crops by (frame, view), empty.

    Args:
        bounds: crop to the projection of this box (files' world); None keeps whole photos.
        capacity: bytes of decoded crops.
        workers: threads that decode.
        pad: pixels added on every side of the projected box.
    """

    def load(key: tuple[int, int]) -> Crop:
        frame, view = key
        rectangle = crop_rectangle(sequence, view, frame, bounds, pad)
        return Crop.whole(sequence.decode(view, frame)).cut(rectangle).kept()

    return FrameCache(load, lambda crop: crop.nbytes, capacity, workers)


class SourceBank:
    """Training photos as the renderer wants them: ``bank.get(frame, views)``.

    Cameras and centres are in nerfstudio's world: the files' world moved by ``sequence.transform`` (identity unless the
    sequence was opened with ``orientation`` "up"). Safe to use from several threads.
    """

    def __init__(
        self,
        sequence: Sequence,
        cache: FrameCache[tuple[int, int], Crop],
        bounds: Float[Array, "2 3"] | None,
        *,
        pad: int = 25,
        device: torch.device | str = "cpu",
    ) -> None:
        """Serve the photos of ``cache`` (see `crop_cache`).

        Args:
            bounds: the box that the cache crops to, files' world; None: it keeps whole photos.
            pad: as in `crop_cache`.
            device: where the tensors of `get` lie.
        """
        self.sequence, self.cache, self.bounds, self.pad = sequence, cache, bounds, pad
        self.device = torch.device(device)
        self.views = list(sequence.train_views)
        """Views that may be used; row i of `centres` belongs to ``views[i]``."""
        self._allowed = frozenset(self.views)
        self._from_world = np.linalg.inv(sequence.transform)
        # One array, not thousands of small ones: those would pin the heap's pages around every batch.
        self._rectangles = np.full((len(sequence.frames), len(sequence.views), 4), -1, np.int32)

    def _check(self, view: int) -> None:
        if view not in self._allowed:
            held_out = "a held-out view" if view in self.sequence.eval_views else "not a view of the sequence"
            raise ValueError(f"view {view} is {held_out}: only training views may be sources")

    def camera(self, frame: int, view: int) -> tuple[Float[Array, "3 3"], Float[Array, "4 4"]]:
        """(K of the crop, nerfstudio's world to OpenCV camera), float64. Raises as `get`."""
        x, y, _, _ = self.rectangle(frame, view)
        K, w2c = self.sequence.camera(view, frame)
        shifted = K.copy()
        shifted[:2, 2] -= (x, y)
        return shifted, w2c @ self._from_world

    def rectangle(self, frame: int, view: int) -> Rectangle:
        """The crop's place in the delivered photo, decoding nothing. Raises as `get`."""
        self._check(view)
        known = self._rectangles[frame, view]
        if known[0] < 0:
            known[:] = crop_rectangle(self.sequence, view, frame, self.bounds, self.pad)
        x, y, width, height = known.tolist()
        return x, y, width, height

    def crop(self, frame: int, view: int) -> Crop:
        """The crop itself; its arrays are shared, read only. Raises as `get`."""
        self._check(view)
        return self.cache.get((frame, view))

    def get(self, frame: int, views: Items[int]) -> list[Source]:
        """Sources of one moment, in the order of ``views``, float32 on ``device``.

        Raises:
            ValueError: a view that is not a training view (the leak guard).
            DataError: a photo or mask cannot be decoded.
        """
        for view in views:
            self._check(view)
        self.prefetch((frame, view) for view in views)
        return [self._source(frame, view) for view in views]

    def _source(self, frame: int, view: int) -> Source:
        K, w2c = self.camera(frame, view)
        crop = self.crop(frame, view)
        image = unit_floats(crop.image.transpose(2, 0, 1), self.device)
        valid = None if crop.valid is None else torch.from_numpy(crop.valid).to(self.device)
        small = (torch.from_numpy(matrix).to(torch.float32).to(self.device) for matrix in (K, w2c))
        return Source(image, *small, valid=valid, view=view)

    def prefetch(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Decode these (frame, view) in the background, in this order, as far as they fit into the cache together.

        Raises:
            ValueError: a view that is not a training view.
        """
        room, wanted = self.cache.capacity, []
        for frame, view in dict.fromkeys(pairs):
            room -= self.crop_bytes(frame, view)
            if room < 0:
                break  # decoding more would push out what is needed first
            wanted.append((frame, view))
        self.cache.prefetch(wanted)

    def crop_bytes(self, frame: int, view: int) -> int:
        """Most bytes that a crop takes in the cache, decoding nothing. Raises as `get`."""
        _, _, width, height = self.rectangle(frame, view)
        distorted = not self.sequence.views[view].lens(frame).is_identity
        return width * height * (3 + int(self.sequence.has_masks) + int(distorted))

    def centres(self, frame: int) -> Float[Array, "v 3"]:
        """Camera centres of `views` at a moment, float64."""
        poses = np.stack([self.camera(frame, view)[1] for view in self.views])
        return -np.einsum("vji,vj->vi", poses[:, :3, :3], poses[:, :3, 3])
