"""Generating and scoring pairs of a data manager, in batches (spec megascenes 7, 8.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from core_ns.images import write_image
from megascenes_ns.canonical import rel_from_c2w_ns
from megascenes_ns.drawing import Drawer, Settings, View, view_of
from megascenes_ns.eval_metrics import Judged, LpipsVgg, averaged, padded, row_of
from megascenes_ns.feature_metrics import FEWEST, Inception, fid, inception_problem, kid
from megascenes_ns.networks import Networks
from megascenes_ns.warp import Warp

Array = np.ndarray


class Case(NamedTuple):
    """A pair to generate."""

    number: int
    name: str
    view: View
    truth: UInt8[Array, "h w 3"]


class Generated(NamedTuple):
    """A generated pair."""

    case: Case
    warp: Warp
    picture: UInt8[Array, "h w 3"]
    judged: Judged


class Scores(NamedTuple):
    """What `score` found."""

    means: dict[str, float]
    rows: list[dict[str, Any]]
    skipped: dict[str, str]
    """Why metrics are missing, by name."""


def cases(manager: Any, limit: int | None = None) -> Iterator[Case]:
    """The shown held-out pairs of a data manager, as the cameras that nerfstudio gets.

    Args:
        manager: `PairDataManager`.
        limit: no more than so many.

    Raises:
        DataError: a photo, or its depth, cannot be read.
    """
    dataset, shelf = manager.eval_dataset, manager.shelf()
    for index, number in list(enumerate(dataset.numbers))[:limit]:
        camera = dataset.cameras[index]
        truth = dataset.get_numpy_image(index)
        K = np.array([[float(camera.fx), 0, float(camera.cx)], [0, float(camera.fy), float(camera.cy)], [0, 0, 1]])
        pose = rel_from_c2w_ns(camera.camera_to_worlds.double().cpu().numpy())
        view = view_of(shelf.at(number), pose, K, int(camera.width), int(camera.height))
        yield Case(number, dataset.image_filenames[index].stem, view, truth)


def generate(
    nets: Networks, drawer: Drawer, todo: Sequence[Case], settings: Settings, seed: int, batch: int
) -> Iterator[Generated]:
    """Sample pairs; each has a seed of its own, ``seed`` plus its number, so that batches change nothing.

    Args:
        nets: the networks.
        drawer: of warps and pictures.
        todo: pairs.
        settings: of the sampler.
        seed: of the first noise.
        batch: pairs at once.
    """
    for start in range(0, len(todo), batch):
        part = todo[start : start + batch]
        views = [case.view for case in part]
        warps = drawer.warps(views, nets.device)
        pictures = drawer.pictures(nets, views, warps, settings, [seed + case.number for case in part])
        for case, warp, picture in zip(part, warps, pictures, strict=True):
            yield Generated(case, warp, picture, judged(case.truth, warp, picture))


def judged(truth: UInt8[Array, "h w 3"], warp: Warp, picture: UInt8[Array, "h w 3"]) -> Judged:
    """A generated view next to its photo, as `eval_metrics` takes them."""
    unit = [torch.from_numpy(np.ascontiguousarray(each)).float() / 255 for each in (picture, truth)]
    coverage = torch.from_numpy(np.ascontiguousarray(warp.coverage))
    return Judged(unit[0], unit[1], torch.from_numpy(np.ascontiguousarray(warp.rgb)).clamp(0, 1), coverage)


def strip(one: Generated) -> UInt8[Array, "h w 3"]:
    """Reference, warp, generated view and photo side by side, each in the networks' square."""
    canvas = one.case.view.reference.prepared.canvas
    reference = torch.from_numpy(one.case.view.reference.prepared.image).float() / 255
    pictures = [reference, one.judged.warp, one.judged.drawn, one.judged.truth]
    row = torch.cat([padded(each, canvas) for each in pictures], dim=1)
    return (row.clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()


def score(
    found: Iterator[Generated], canvas: int, device: torch.device | str, *, output: Path | None = None,
    deviation: bool = False, features: bool = True, seed: int = 0,
) -> Scores:  # fmt: skip
    """Measure generated pairs.

    Args:
        found: of `generate`.
        canvas: side of the networks' square.
        device: of the networks that FID and KID look through.
        output: folder for one strip of pictures per pair, or None.
        deviation: with standard deviations.
        features: with FID and KID.
        seed: recorded.
    """
    lpips = LpipsVgg()
    skipped = {}
    problem = lpips.problem()
    if problem is not None:
        skipped["lpips"] = problem
    inception, sets = None, _FeatureSets()
    if features:
        problem = inception_problem()
        if problem is None:
            inception = Inception(device)
        else:
            skipped |= {"fid": problem, "kid": problem}
    rows: list[dict[str, Any]] = []
    for one in found:
        row: dict[str, Any] = {"file": one.case.name, "pair": one.case.number, "seed": seed + one.case.number}
        row |= row_of(one.judged, canvas, lpips if "lpips" not in skipped else None)
        rows.append(row)
        if inception is not None:
            sets.add(one.judged, canvas, inception)
        if output is not None:
            write_image(output / f"{one.case.name}.png", strip(one))
    means = averaged(rows, deviation)
    if inception is not None:
        if len(rows) < FEWEST:
            problem = f"{len(rows)} pictures are too few"
            skipped |= {"fid": problem, "kid": problem}
        else:
            means |= sets.distances(seed)
    return Scores(means, rows, skipped)


class _FeatureSets:
    """Features of photos, views, views with what the warp shows taken from the photo, and warps."""

    def __init__(self) -> None:
        self._sets: dict[str, list[Array]] = {}

    def add(self, one: Judged, canvas: int, inception: Inception) -> None:
        """Take a view in."""
        # Only what was invented counts: the photo is laid over what the reference shows.
        inside = one.mask[..., None]
        pictures = {
            "truth": one.truth,
            "": one.drawn,
            "_masked": torch.where(inside, one.truth, one.drawn),
            "copy_warp_": one.warp,
        }
        squares = torch.stack([_bytes(padded(each, canvas)) for each in pictures.values()])
        for name, features in zip(pictures, inception(squares), strict=True):
            self._sets.setdefault(name, []).append(features)

    def distances(self, seed: int) -> dict[str, float]:
        """FID and KID of each set to the photos."""
        truth = np.stack(self._sets["truth"])
        found = {}
        for name in ("", "_masked", "copy_warp_"):
            these = np.stack(self._sets[name])
            for metric, value in (("fid", fid(these, truth)), ("kid", kid(these, truth, seed))):
                found[f"{name}{metric}" if name.endswith("warp_") else f"{metric}{name}"] = value
        return found


def _bytes(picture: Float[Tensor, "h w 3"]) -> UInt8[Tensor, "h w 3"]:
    return (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
