"""What a training will need in memory and on disk, said before it starts (spec r4dv 12.2, 8.3).

Every number follows from sizes known without decoding a photo; the largest that used to surprise people (all photos in
memory) is listed beside what is kept here instead.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
from jaxtyping import Float

from dataparsers.easymocap_sequence import Sequence
from dataparsers.video_read import IDLE_BYTES, decoder_bytes
from r4dv_ns.sources import crop_rectangle

Place = Literal["memory", "device", "disk"]

FLOAT = 4
ADAM = 3
"""Copies of a parameter that stay: itself and Adam's two moments (gradients exist for one frame at a time)."""
TABLE_LIMIT = 512 << 20
"""Undistortion tables kept at most (dataparsers/easymocap_lens.py)."""
TABLE_BYTES = 7
"""Per pixel of a distorted camera's photo: two 16-bit positions, 16 bits between them, one valid flag."""
CNN_BYTES = 370
"""Per source pixel: what the feature network keeps for its backward pass. This and the next three were measured."""
POINT_BYTES, POINT_SOURCE_BYTES = 1850, 150
"""Per point, and per point and source photo: what planes, heads and blending keep for the backward pass."""
FRAGMENT_BYTES = 50
"""Per fragment (point on a pixel) while a photo is drawn and differentiated."""
LIBRARIES = 670_000_000
"""torch, nerfstudio and the rest, resident once imported."""


@dataclass(frozen=True)
class Need:
    """One item: what, where and how much."""

    what: str
    where: Place
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Preflight:
    """All needs, the room there is, and what to do when it is too little."""

    needs: tuple[Need, ...]
    avoided: int
    """Bytes that holding all decoded photos would take; they are not held."""
    free: dict[Place, int | None]
    """Bytes available now; None where unknown."""
    facts: str
    """What the numbers were computed from."""
    warnings: tuple[str, ...] = field(default=())

    def total(self, where: Place) -> int:
        """Bytes needed at a place."""
        return sum(need.size for need in self.needs if need.where == where)

    def __str__(self) -> str:
        lines = [self.facts]
        for where in ("memory", "device", "disk"):
            own = [need for need in self.needs if need.where == where]
            if not own:
                continue
            free = self.free.get(where)
            lines.append(f"{where}: {shown(self.total(where))}" + ("" if free is None else f" of {shown(free)} free"))
            lines += [f"  {shown(need.size):>9}  {need.what}" for need in own]
        lines.append(f"not held: {shown(self.avoided)} of decoded photos")
        return "\n".join([*lines, *(f"! {warning}" for warning in self.warnings)])


def shown(size: float) -> str:
    """Bytes for people: decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:.3g} TB"


def crop_pixels(sequence: Sequence, bounds: Float[np.ndarray, "2 3"] | None, pad: int = 25) -> tuple[float, int]:
    """(mean, largest) number of pixels of the training photos' crops; static cameras are looked at once."""
    pixels = []
    for view in sequence.train_views:
        moving = sequence.views[view].is_moving
        for frame in range(len(sequence.frames)) if moving else (0,):
            _, _, width, height = crop_rectangle(sequence, view, frame, bounds, pad)
            pixels.append((width * height, 1 if moving else len(sequence.frames)))
    counts, weights = np.array(pixels).T
    return float(np.average(counts, weights=weights)), int(counts.max())


def estimate(
    sequence: Sequence,
    *,
    points: int = 65536,
    still_points: int = 0,
    shared_parameters: int = 8_500_000,
    sources: int = 4,
    layers: int = 15,
    cache_bytes: int = 2_000_000_000,
    workers: int = 2,
    bounds: Float[np.ndarray, "2 3"] | None = None,
    pad: int = 25,
    checkpoints: int = 1,
    hulls_exist: bool = False,
    folder: Path | None = None,
    on_gpu: bool = False,
) -> Preflight:
    """What training on this sequence takes.

    Args:
        points: per frame.
        still_points: common to all frames (a background's).
        shared_parameters: numbers learned for all frames together (planes and networks).
        sources: photos blended per step.
        layers: fragments kept per pixel.
        cache_bytes: room for decoded photos.
        workers: decoding threads.
        bounds: box that photos are cropped to, files' world; None: whole photos.
        pad: pixels around its projection.
        checkpoints: files kept by the trainer.
        hulls_exist: the point clouds lie on the disk already.
        folder: where checkpoints go, to look up the room; None: the sequence's folder.
        on_gpu: model and batches are on a GPU, whose memory is then listed as "device".
    """
    frames, views = len(sequence.frames), len(sequence.train_views)
    mean, largest = crop_pixels(sequence, bounds, pad)
    shared = [sequence.views[view] for view in sequence.train_views]
    full = max(view.width * view.height for view in shared)
    stored = max(view.stored_size[0] * view.stored_size[1] for view in shared)
    channels = 3 + int(sequence.has_masks)
    bent = [view for view in shared if any(not lens.is_identity for lens in view.lenses)]
    photos = frames * sum(view.width * view.height for view in shared) * channels
    drawn, shared_parameters = points + still_points, shared_parameters + 3 * still_points
    parameters = (frames * points * 3 + shared_parameters) * FLOAT
    device: Place = "device" if on_gpu else "memory"
    needs = [
        Need("Python, torch and nerfstudio", "memory", LIBRARIES),
        Need("decoded photos kept (cache-gb)", "memory", int(min(cache_bytes, frames * views * mean * channels))),
        Need(f"photos being decoded ({workers} at once)", "memory", workers * (2 * 4 * stored + channels * full)),
        Need("points of all frames and their Adam moments", device, frames * points * 3 * FLOAT * ADAM),
        Need("planes and networks, their gradients and Adam moments", device, shared_parameters * FLOAT * (ADAM + 1)),
        Need(f"{sources} source photos in the feature network", device, int(sources * mean * CNN_BYTES)),
        Need("one frame's points in planes and heads", device, drawn * (POINT_BYTES + sources * POINT_SOURCE_BYTES)),
        Need(f"one photo drawn with {layers} layers", device, int(largest * layers * FRAGMENT_BYTES)),
        Need(f"checkpoints kept ({checkpoints}, and one being written)", "disk", (checkpoints + 1) * ADAM * parameters),
    ]
    if bent:
        tables = sum(view.width * view.height * TABLE_BYTES for view in bent)
        needs.insert(3, Need(f"undistortion tables of {len(bent)} cameras", "memory", min(tables, TABLE_LIMIT)))
    clips = {clip.file: clip for view in shared for clip in (view.clip, view.mask_clip and view.mask_clip.clip) if clip}
    if clips:
        kept = min(sum(decoder_bytes(*clip.size) for clip in clips.values()), IDLE_BYTES)
        needs.insert(3, Need(f"open decoders of {len(clips)} clips", "memory", kept))
    if not hulls_exist:
        # The hull has about as many points as its surface; both files hold three floats a point.
        needs.append(Need("hulls and surface points", "disk", 2 * frames * points * 3 * FLOAT))
    room: dict[Place, int | None] = {
        "memory": int(psutil.virtual_memory().available),
        "disk": _free_disk(folder or sequence.root),
        "device": _free_device() if on_gpu else None,
    }
    behind = f", {still_points} behind them" if still_points else ""
    facts = (
        f"{frames} frames of {views} training views, {points} points a frame{behind}, "
        f"crops of {mean / 1e6:.3g} megapixels on average, {largest / 1e6:.3g} at most"
    )
    result = Preflight(tuple(needs), photos, room, facts)
    return Preflight(tuple(needs), photos, room, facts, tuple(_warnings(result, sources, mean * channels, cache_bytes)))


def _free_disk(folder: Path) -> int | None:
    """Bytes free where a folder is, or will be made."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def _free_device() -> int | None:
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def _warnings(result: Preflight, sources: int, crop_bytes: float, cache_bytes: int) -> list[str]:
    """Sentences for what does not fit."""
    remedies = {
        "memory": "Use fewer frames (--frame-sample), fewer points (--pipeline.datamanager.hull.points), a smaller "
        "--ratio, or less --pipeline.datamanager.cache-gb.",
        "device": "Use fewer points (--pipeline.datamanager.hull.points), a smaller --ratio, or fewer layers.",
        "disk": "Use fewer frames or points, or write elsewhere (--output-dir, --pipeline.datamanager.points-dir).",
    }
    lines = []
    for where in ("memory", "device", "disk"):
        need, free = result.total(where), result.free.get(where)
        if free is not None and need > free:
            lines.append(f"{where}: {shown(need)} needed, {shown(free)} free. {remedies[where]}")
    step = (sources + 1) * crop_bytes
    if cache_bytes < 2 * step:
        lines.append(
            f"cache-gb {cache_bytes / 1e9:.3g} holds less than the photos of two steps ({shown(2 * step)}): they will "
            "be decoded again and again."
        )
    return lines
