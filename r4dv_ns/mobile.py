"""A charge without photos: harmonics fitted to the whole colour, and splat files for any viewer (spec r4dv 5.3).

What the original announced as its mobile version. The result is a charge like any other, a sixth of the size, and one
PLY file of Gaussian splats per frame.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from rich.progress import track
from torch import Tensor

from core_ns.errors import DataError
from dataparsers.object_scene import new_folder
from r4dv_ns import harmonics
from r4dv_ns.charge_capture import farthest_views
from r4dv_ns.charge_fields import REMEDY
from r4dv_ns.charge_manifest import Manifest, write_manifest
from r4dv_ns.charge_store import UNSEEN, ChargedFrame, ChargedStore, write_frame
from r4dv_ns.charged_frames import source_views
from r4dv_ns.sh_fit import RIDGE, fit_sh
from r4dv_ns.source_choice import choose_sources
from r4dv_ns.splat_ply import splats_of_points, write_splats

Array = np.ndarray
MOST_DEGREE = 2
"""Harmonics of a higher degree ring between the viewpoints (spec r4dv 5.3)."""
VIEWPOINTS = 64
"""Places that a frame's colours are looked at from; more change nothing and cost their time."""
CHUNK = 4096
"""Points at a time."""
FAINT = 1e-4
"""Weight of a viewpoint whose photos do not see the point, so that a point that none sees has a colour too."""


def viewpoints(manifest: Manifest, frame: int, count: int = VIEWPOINTS) -> Float[Array, "d 3"]:
    """Where to look at a frame's colours from: the training cameras, and between neighbouring ones (spec r4dv 5.3).

    A midpoint is as far from the middle of the subject as its two cameras are on average, so that a ring stays a ring.

    Args:
        count: at most so many; a subset whose members lie far from one another, if there are more.

    Returns: camera centres, world.
    """
    centres = manifest.centres(frame, manifest.train_views)
    middle = manifest.bounds.mean(axis=0)
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    neighbours = {
        tuple(sorted((view, int(other)))) for view in range(len(centres)) for other in apart[view].argsort()[:2]
    }
    pairs = [centres[list(pair)] - middle for pair in sorted(neighbours) if pair[0] != pair[1]]
    between = []
    for pair in pairs:
        way = pair.mean(axis=0)
        length, wanted = np.linalg.norm(way), np.linalg.norm(pair, axis=1).mean()
        between.append(middle + way * (wanted / length if length > 1e-6 * wanted else 1.0))
    found = np.concatenate([centres, np.array(between).reshape(-1, 3)])
    return found[farthest_views(found[:, None], count)]


def chosen_sources(
    manifest: Manifest, frame: int, source_views: Items[int], centres: Float[Array, "d 3"]
) -> Int64[Array, "d s"]:
    """The stored sources that colour a picture from each viewpoint: positions in ``source_views``."""
    places = manifest.centres(frame, source_views)
    middle = manifest.bounds.mean(axis=0)
    rows = [choose_sources(c, places, manifest.sources, manifest.source_metric, middle) for c in centres]
    return np.array(rows)


def seen_colours(
    frame: ChargedFrame, part: slice, chosen: Int64[Array, "d s"], centres: Float[Array, "d 3"], limit: float
) -> tuple[Float[Tensor, "d n 3"], Float[Tensor, "d n"], Float[Tensor, "d n 3"]]:
    """What some points of a frame look like from each viewpoint (`ChargedFrame`).

    Args:
        chosen: sources of each viewpoint, positions in ``frame.src_id``.
        limit: of the view-dependent change.

    Returns:
        colours in [0, 1]; weights: share of the viewpoint's sources in the softmax over all stored ones, so that what
        its photos do not see, or something hides from them, hardly counts; unit directions to the points.
    """
    xyz, logit, rgb, sh = (
        torch.from_numpy(np.array(array[part] if own else array[:, part])).float()
        for array, own in (
            (frame.positions(), True),
            (frame.src_logit, False),
            (frame.src_rgb, False),
            (frame.sh, True),
        )
    )
    if frame.src_rgb.dtype == np.uint8:
        rgb = rgb / 255
    share = torch.softmax(logit, dim=0) * (logit > UNSEEN / 2)
    rows = torch.from_numpy(chosen)
    weights = share[rows].sum(dim=1).clamp_min(FAINT)
    blend = torch.softmax(logit[rows], dim=1)
    directions = torch.nn.functional.normalize(xyz - torch.from_numpy(centres).float()[:, None], dim=-1)
    base = torch.einsum("dsn,dsnc->dnc", blend, rgb[rows])
    degree = int(sh.shape[1] ** 0.5) - 1
    residual = limit * torch.tanh(torch.einsum("dnk,nkc->dnc", harmonics.basis(directions, degree), sh))
    return (base + residual).clamp(0, 1), weights, directions


@torch.no_grad()
def mobile_frame(
    frame: ChargedFrame,
    manifest: Manifest,
    index: int,
    *,
    degree: int = MOST_DEGREE,
    ridge: float = RIDGE,
    count: int = VIEWPOINTS,
) -> ChargedFrame:
    """A frame whose harmonics alone are its colour; positions, sizes and opacities stay.

    Args:
        frame: of ``manifest``, at position ``index``; with at least one source.
        degree, ridge: see `fit_sh`.
        count: of viewpoints.
    """
    centres = viewpoints(manifest, index, count)
    chosen = chosen_sources(manifest, index, frame.src_id.tolist(), centres)
    fitted = np.zeros((len(frame), harmonics.terms(degree), 3), np.float16)
    for start in range(0, len(frame), CHUNK):
        part = slice(start, start + CHUNK)
        colours, weights, directions = seen_colours(frame, part, chosen, centres, manifest.sh_limit)
        fitted[part] = fit_sh(colours - 0.5, weights, directions, degree, ridge).numpy()
    nothing = {key: array[:0] for key, array in frame.arrays().items() if key.startswith("src_")}
    return replace(frame, sh=fitted, **nothing)


def export_mobile(
    charged: Path,
    out: Path,
    *,
    degree: int = MOST_DEGREE,
    ply: bool = True,
    ridge: float = RIDGE,
    count: int = VIEWPOINTS,
    frame_sample: Items[int | None] | None = None,
    pack: bool = False,
    progress: bool = False,
) -> Path:
    """Write a charge without photos and, for other programs, a splat file per frame (``splats/STEM.ply``).

    Args:
        charged: folder of a charge with photos.
        out: folder to make.
        degree: of the harmonics, 0 to 2.
        ply: write splat files.
        ridge: see `fit_sh`.
        count: viewpoints that the harmonics are fitted to.
        frame_sample: frames to take: begin, end and step, or a list.
        pack: one compressed file per frame.
        progress: show a bar.

    Returns:
        The new charge's ``config.yml``.

    Raises:
        DataError: the charge cannot be used or has no photos, or ``out`` holds something; nothing is left.
    """
    from r4dv_ns.charged_config import write_run  # nerfstudio, which the list of commands must not wait for

    if not 0 <= degree <= MOST_DEGREE:
        raise DataError("options", "--degree", f"is {degree}.", f"Choose 0 to {MOST_DEGREE}.")
    if not (ridge > 0 and count >= 1):
        raise DataError("options", "--ridge, --viewpoints", f"are {ridge} and {count}.", "Both must be above zero.")
    store = ChargedStore(charged, frame_sample=frame_sample)
    if not store.manifest.stored_sources:
        raise DataError(charged, "stored_sources", "is 0: it has no photos.", "Name the charge that was baked.")
    with new_folder(out) as draft:
        _write(store, draft, degree=degree, ply=ply, ridge=ridge, count=count, pack=pack, progress=progress)
    return write_run(Path(out))


def _write(
    store: ChargedStore, draft: Path, *, degree: int, ply: bool, ridge: float, count: int, pack: bool, progress: bool
) -> None:
    """Everything but the run files; the manifest last, photos first: one that is missing shall not be missed late."""
    manifest, hashes, kinds = store.manifest, dict[str, str](), dict[str, str]()
    for photo in manifest.eval_photos:
        for path in (photo.image, photo.mask, photo.valid):
            if path is not None and path not in hashes:
                (draft / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(store.folder / path, draft / path)
                hashes[path] = store.hashes[path]
    for index, stem in enumerate(_bar(manifest.frames, progress)):
        whole = store.frame(index)
        source_views(store, index, whole)
        frame = mobile_frame(whole, manifest, index, degree=degree, ridge=ridge, count=count)
        hashes |= write_frame(draft, stem, frame, pack=pack)
        kinds = {key: array.dtype.str for key, array in frame.arrays().items()}
        if ply:
            alpha = np.asarray(frame.alpha, np.float32)
            splats = splats_of_points(frame.positions(), frame.radius, alpha, frame.sh)
            try:
                write_splats(draft / "splats" / f"{stem}.ply", splats)
            except ValueError as error:
                raise DataError(store.folder, f"frame {stem}", f"cannot be splats: {error}.", REMEDY) from error
    settings = {"degree": degree, "ridge": ridge, "viewpoints": count}
    write_manifest(
        draft,
        replace(
            manifest, sh_degree=degree, stored_sources=0, packed=pack, dtypes=kinds, static_count=0,
            boxes=() if manifest.static_count else manifest.boxes,
            settings={"baked": manifest.settings, "mobile": settings},  # not the bake's own: it would go on with this
        ),
        hashes,
    )  # fmt: skip


def _bar(stems: list[str], progress: bool) -> Iterator[str]:
    yield from track(stems, "Fitting", disable=not progress)
