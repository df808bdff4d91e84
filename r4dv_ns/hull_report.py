"""A page that shows what the hulls are worth: a table by frame, and the hulls drawn over photos (spec r4dv 12)."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from core_ns.atomic import write_text
from core_ns.images import write_image
from dataparsers.easymocap_sequence import Sequence
from dataparsers.point_ply import read_ply
from r4dv_ns.hull_meta import HullMeta

_TILE = 320
"""Longer side of a photo on the contact sheet."""
_STYLE = (
    "body{font:15px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:right}img{max-width:100%}.flag{color:#b00}"
)


def hull_silhouette(
    points: Float[np.ndarray, "p 3"],
    voxel: float,
    K: Float[np.ndarray, "3 3"],
    w2c: Float[np.ndarray, "4 4"],
    height: int,
    width: int,
    near: float = 1e-4,
) -> Bool[np.ndarray, "height width"]:
    """Pixels that voxels cover: each one as the square its side spans at its depth (axes as the photo's).

    All squares are added as corners of a difference image; one pair of running sums fills them.
    """
    camera = np.asarray(points, dtype=np.float64) @ w2c[:3, :3].T + w2c[:3, 3]
    camera = camera[camera[:, 2] > near]
    uv = (camera @ K.T)[:, :2] / camera[:, 2:]
    half = 0.5 * voxel * np.array([K[0, 0], K[1, 1]]) / camera[:, 2:]
    # Pixels whose centre lies inside: the first at or after low - 1/2, up to the one before high - 1/2.
    size = np.array([width, height])
    low = np.clip(np.ceil(uv - half - 0.5), 0, size).astype(np.int64)
    high = np.clip(np.ceil(uv + half - 0.5), 0, size).astype(np.int64)
    row = width + 1
    corners = np.zeros((height + 1) * row, dtype=np.int64)
    for y, x, sign in ((low, low, 1), (low, high, -1), (high, low, -1), (high, high, 1)):
        corners += sign * np.bincount(y[:, 1] * row + x[:, 0], minlength=len(corners))
    return corners.reshape(height + 1, row).cumsum(0).cumsum(1)[:height, :width] > 0


def iou(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"] | None = None) -> float:
    """Intersection over union; 1 when both are empty."""
    if valid is not None:
        a, b = a & valid, b & valid
    union = int((a | b).sum())
    return float((a & b).sum()) / union if union else 1.0


@dataclass
class Overlap:
    """One photo and the hull drawn over it."""

    view: str
    iou: float | None
    """With the mask; None without masks."""
    picture: UInt8[np.ndarray, "h w 3"]


def draw(sequence: Sequence, meta: HullMeta, frame: int, view: int, points: Float[np.ndarray, "p 3"]) -> Overlap:
    """The hull over a photo: outside it darkened, its outline green, the mask's outline red.

    Raises:
        DataError: a photo or mask cannot be read.
    """
    photo = sequence.decode(view, frame)
    height, width = photo.image.shape[:2]
    hull = hull_silhouette(points, meta.voxel, *sequence.camera(view, frame), height, width)
    picture = np.where(hull[..., None], photo.image, photo.image // 3)
    scale = min(1.0, _TILE / max(height, width))
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    outlines = [(hull, (0, 255, 0))]
    if photo.mask is not None:
        outlines.append((photo.mask > 127, (255, 60, 60)))
    for flags, colour in reversed(outlines):
        shape = cv2.resize(flags.astype(np.uint8), small.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(shape, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(small, contours, -1, colour, 1)
    value = None if photo.mask is None else iou(hull, photo.mask > 127, photo.valid)
    return Overlap(sequence.views[view].name, value, small)


def contact_sheet(overlaps: list[Overlap], columns: int = 6) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures in rows, each with its camera's name and overlap written into it."""
    cell = [max(each.picture.shape[axis] for each in overlaps) + 2 for axis in (0, 1)]
    columns = min(columns, len(overlaps))
    rows = -(-len(overlaps) // columns)
    sheet = np.full((rows * cell[0], columns * cell[1], 3), 24, dtype=np.uint8)
    for number, each in enumerate(overlaps):
        y, x = number // columns * cell[0], number % columns * cell[1]
        height, width = each.picture.shape[:2]
        sheet[y : y + height, x : x + width] = each.picture
        text = each.view if each.iou is None else f"{each.view}  {each.iou:.3f}"
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(sheet, text, (x + 4, y + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, thickness, cv2.LINE_AA)
    return sheet


def spread(items: list[int], count: int) -> list[int]:
    """At most ``count`` of the items, first and last among them, evenly spaced."""
    return [
        items[i] for i in sorted({round(float(at)) for at in np.linspace(0, len(items) - 1, min(count, len(items)))})
    ]


def write_report(
    sequence: Sequence, meta: HullMeta, folder: str | Path, *, frames: int = 4, views: int = 12
) -> dict[str, float | None]:
    """Write ``index.html`` and one contact sheet for each shown frame (``hull_STEM.png``).

    Args:
        folder: receives the files.
        frames: shown, evenly spaced; flagged ones are shown besides, as many again at most.
        views: training views shown of each.

    Returns:
        Mean overlap of hull and mask for every shown frame's stem; None without masks.

    Raises:
        DataError: a photo, mask or point cloud cannot be read.
    """
    folder = Path(folder)
    flagged = [frame for frame, entry in enumerate(meta.frames) if entry["flags"]]
    shown = set(spread(list(range(len(meta.frames))), frames))
    if flagged:
        shown |= set(spread(flagged, frames))
    overlap: dict[str, float | None] = {}
    for frame in sorted(shown):
        points = read_ply(meta.places(frame)).xyz
        overlaps = [draw(sequence, meta, frame, view, points) for view in spread(sequence.train_views, views)]
        stem = meta.frames[frame]["stem"]
        values = [each.iou for each in overlaps if each.iou is not None]
        overlap[stem] = float(np.mean(values)) if values else None
        write_image(folder / _picture(stem), contact_sheet(overlaps))
    write_text(folder / "index.html", _page(sequence, meta, overlap))
    return overlap


def _picture(stem: str) -> str:
    """File name of a frame's contact sheet."""
    return f"hull_{stem}.png"


def _page(sequence: Sequence, meta: HullMeta, overlap: dict[str, float | None]) -> str:
    """The HTML."""
    rows = []
    for entry in meta.frames:
        size = np.diff(np.asarray(entry["bbox"]), axis=0)[0]
        value = overlap.get(entry["stem"])
        cells = [
            html.escape(entry["stem"]),
            f"{entry['count']:,}",
            f"{entry['volume']:.6g}",
            " × ".join(f"{side:.4g}" for side in size),
            "" if value is None else f"{value:.3f}",
            f"<span class=flag>{html.escape('; '.join(entry['flags']))}</span>",
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    pictures = "".join(f"<h2>Frame {html.escape(stem)}</h2><img src='{quote(_picture(stem))}'>" for stem in overlap)
    corners = " to ".join("(" + ", ".join(f"{value:.4g}" for value in corner) + ")" for corner in meta.bounds)
    heads = "".join(f"<th>{name}</th>" for name in ("frame", "voxels", "volume", "size", "overlap", "remarks"))
    return (
        f"<!doctype html><meta charset=utf-8><title>Visual hulls</title><style>{_STYLE}</style>"
        f"<h1>Visual hulls of {html.escape(sequence.root.name)}</h1>"
        f"<p>{len(meta.frames)} frames, {len(sequence.train_views)} training views, voxels of {meta.voxel:.4g}; "
        f"box of all frames {corners} (world units).</p>"
        "<p>Overlap: intersection over union of hull and mask, mean over the views shown. In the pictures the hull's "
        "outline is green, the mask's red.</p>"
        f"<table><tr>{heads}</tr>{''.join(rows)}</table>{pictures}\n"
    )
