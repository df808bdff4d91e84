"""Frames of a charge in memory, ready to draw: bounded in bytes, loaded ahead in the direction of play (spec r4dv 5.2).

Everything about a frame that does not depend on the camera's exact place is made once, on the loading thread: its
points, and the colour that they get from a set of source photos, which many neighbouring cameras share.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from core_ns.errors import DataError
from r4dv_ns.charge_fields import REMEDY
from r4dv_ns.charge_store import ChargedFrame, ChargedStore
from r4dv_ns.frame_cache import FrameCache

Array = np.ndarray
FAR = 8
"""Frames between two pictures beyond which somebody jumped instead of playing."""
Key = tuple[int, tuple[int, ...] | None]
"""A frame and its sources (`SourceColour`), or None (`ChargedPoints`)."""


@dataclass(frozen=True, eq=False)
class ChargedPoints:
    """Points of a frame, axis first: arithmetic on short last dimensions is slow."""

    xyz: Float[Tensor, "3 n"]
    """World."""
    radius: Float[Tensor, "n"]
    alpha: Float[Tensor, "n"]
    coefficients: Float[Tensor, "3 k n"]
    """Spherical harmonics per channel, in the precision of the file: they are most of a frame."""
    branch: UInt8[Tensor, "n"] | None
    """0 for the subject, 1 for the background; None: all subject."""
    views: tuple[int, ...] = ()
    """View of each stored source."""
    centres: Float[Array, "s 3"] | None = None
    """Of the cameras of the sources, world; None without any."""

    @classmethod
    def none(cls, device: torch.device | str = "cpu") -> ChargedPoints:
        """No point at all."""
        one = torch.zeros(0, device=device)
        return cls(one.view(3, 0), one, one, one.view(3, 1, 0), None)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(part.nbytes for part in vars(self).values() if isinstance(part, Tensor))


@dataclass(frozen=True, eq=False)
class SourceColour:
    """Colour of the points, blended from some photos."""

    rgb: Float[Tensor, "3 n"]

    @property
    def nbytes(self) -> int:
        """Of the colours."""
        return self.rgb.nbytes


def points_of(
    frame: ChargedFrame, device: torch.device | str = "cpu", centres: Float[Array, "s 3"] | None = None
) -> ChargedPoints:
    """What of a frame does not depend on the choice of sources, read from disk, on ``device``."""

    def tensor(array: Array, *order: int) -> Tensor:
        # Copied from the file in its own order and type, and turned by torch, which is faster at that.
        return torch.from_numpy(np.array(array)).to(device).permute(*order).contiguous()

    branch = None if frame.branch is None else torch.from_numpy(np.array(frame.branch)).to(device)
    return ChargedPoints(
        tensor(frame.positions(), 1, 0), tensor(frame.radius, 0).float(), tensor(frame.alpha, 0).float(),
        tensor(frame.sh, 2, 1, 0), branch, tuple(frame.src_id.tolist()), centres,
    )  # fmt: skip


def source_views(store: ChargedStore, index: int, frame: ChargedFrame) -> list[int]:
    """The view of each source of a frame.

    Raises:
        DataError: one is no training view: no held-out photo may colour a picture, whoever wrote the file.
    """
    manifest, views = store.manifest, frame.src_id.tolist()
    wrong = [view for view in views if view >= len(manifest.views) or not manifest.views[view].train]
    if wrong:
        file = store.folder / manifest.files(index)["src_id"]
        raise DataError(file, "src_id", f"names view {wrong[0]}, which is no training view.", REMEDY)
    return views


def colour_of(frame: ChargedFrame, sources: Items[int], device: torch.device | str = "cpu") -> SourceColour:
    """``sum_s w_s rgb_s`` with w the softmax of the sources' logits (4K4D eq. 4; `ChargedFrame`); nothing else is read.

    A photo that cannot see a point has a logit so low that its weight is exactly zero beside one that can.

    Args:
        sources: positions in the frame's ``src_id``, at least one.
    """
    chosen = list(sources)
    logits = torch.from_numpy(np.stack([frame.src_logit[s] for s in chosen])).to(device, torch.float32)
    total: Tensor | None = None
    for weight, s in zip(torch.softmax(logits, dim=0), chosen, strict=True):
        photo = torch.from_numpy(np.array(frame.src_rgb[s])).to(device)
        shown = photo.t().to(torch.float32).contiguous()
        if photo.dtype == torch.uint8:
            weight = weight / 255.0
        total = shown.mul_(weight) if total is None else total.addcmul_(shown, weight)
    assert total is not None
    return SourceColour(total)


class PlayDirection:
    """Which frames come next, judged by the last step; recordings are taken to repeat."""

    def __init__(self, frames: int) -> None:
        self.frames, self._step = frames, 0
        self._last: int | None = None

    def note(self, frame: int) -> bool:
        """A frame is drawn; whether it is another one than before."""
        half, last = self.frames // 2, frame if self._last is None else self._last
        step = (frame - last + half) % self.frames - half
        self._last = frame
        if step:
            # After a jump playing goes on as before, from another place.
            self._step = step if abs(step) <= FAR else self._step or 1
        return bool(step)

    def next(self, count: int) -> list[int]:
        """At most ``count`` different frames that follow the last one."""
        if self._last is None or not self._step:
            return []
        count = min(count, self.frames - 1)
        wanted = [(self._last + k * self._step) % self.frames for k in range(1, count + 1)]
        return [frame for frame in dict.fromkeys(wanted) if frame != self._last]


class ChargedFrames:
    """Frames of a store as tensors; `get` waits for what is not there yet.

    Args:
        store: of the charge.
        capacity: bytes of memory on ``device``.
        device: where the tensors lie.
        ahead: frames that are loaded ahead while frames change; 0: none.
    """

    def __init__(
        self, store: ChargedStore, capacity: int, *, device: torch.device | str = "cpu", ahead: int = 3
    ) -> None:
        self.store, self.device, self.ahead = store, torch.device(device), ahead
        self._direction = PlayDirection(len(store))
        self._opened: tuple[int, ChargedFrame] | None = None
        self.cache: FrameCache[Key, ChargedPoints | SourceColour] = FrameCache(
            self._load, lambda value: value.nbytes, capacity, workers=1
        )

    def _load(self, key: Key) -> ChargedPoints | SourceColour:
        """On the one loading thread."""
        index, sources = key
        opened = self._opened
        if opened is None or opened[0] != index:
            # A packed frame is unpacked as a whole: not again for its colours, nor for others of the same moment.
            self._opened = opened = index, self.store.frame(index)
        if sources is not None:
            return colour_of(opened[1], sources, self.device)
        manifest, views = self.store.manifest, source_views(self.store, index, opened[1])
        return points_of(opened[1], self.device, manifest.centres(index, views) if views else None)

    def points(self, frame: int) -> ChargedPoints:
        """Points of a frame alone. Raises as `get`."""
        points = self.cache.get((frame, None))
        assert isinstance(points, ChargedPoints)
        return points

    def get(self, frame: int, choose: Callable[[ChargedPoints], Items[int]]) -> tuple[ChargedPoints, Tensor | None]:
        """Points of a frame, and their colour [3, N] from some sources; None where none are stored.

        Args:
            choose: which sources, as positions in ``views``.

        Raises:
            DataError: a file of the frame is missing or damaged.
        """
        points = self.points(frame)
        chosen = tuple(choose(points)) if points.views else ()
        colour = self.cache.get((frame, chosen)) if chosen else None
        assert colour is None or isinstance(colour, SourceColour)
        if self._direction.note(frame) and self.ahead:
            self._load_ahead(chosen, points.nbytes + (colour.nbytes if colour is not None else 0))
        return points, None if colour is None else colour.rgb

    def _load_ahead(self, chosen: tuple[int, ...], size: int) -> None:
        # Never so many that they push one another, or the frame being drawn, out again.
        room = int(self.cache.capacity // max(size, 1)) - 2
        wanted: list[Key] = []
        for frame in self._direction.next(min(self.ahead, room)):
            wanted += [(frame, None), *([(frame, chosen)] if chosen else [])]
        if wanted:
            self.cache.prefetch(wanted)

    def close(self) -> None:
        """End the loading thread and drop the frames."""
        self.cache.close()
