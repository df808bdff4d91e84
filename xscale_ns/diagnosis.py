"""Which explanation of a scene fits best: the usual mistakes, principal point, placement of the mesh, single views.

Thresholds were chosen on the Sceaux castle and on generated scenes (``core_ns.demo_scenes``), as given and with each
mistake put in; the figures stand with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]

from xscale_ns.consistency import FEWEST_POINTS, Judge, Rig, Score, descend
from xscale_ns.mistakes import EXPORT_BOTH, Cameras, Suspect, suspects

Array = np.ndarray

GOOD_COVERAGE = 0.05
"""Median share of a photo that hits the mesh; less is hardly ever meant."""
GOOD_DETAIL = 0.4
"""Agreement of neighbouring photos. As given: castle 0.81, generated scenes 0.80. Every other view turned by half a
degree: 0.33 and 0.49; by one degree 0.09 and 0.19."""
CLEAR_DETAIL, CLEAR_PSNR = 0.1, 0.5
"""A mistake is named when undoing it gains this much detail agreement and dB ..."""
SMALL_DETAIL, SMALL_PSNR = 0.015, 1.0
"""... or this much: fine mistakes (half a pixel: 0.023 and 1.7 dB; a mirrored, nearly symmetric mesh: 0.04 and 2.6 dB)
against what searches gain where nothing is wrong (castle 0.003 and 0.08 dB)."""
NAMED_DETAIL, SURE_DETAIL = 0.3, 0.6
"""Less agreement names nothing; up to the second only a "perhaps" (the castle with its mesh mirrored reaches 0.55)."""
FITTING_FEATURES = 0.3
"""Share of matched features that cameras explain which fit among themselves. Castle 0.83, generated scenes 0.45; with
two views turned 0.42 and 0.37; with wrong matrices or intrinsics 0 to 0.2."""
TURN_GAIN = 0.1
"""A view counts as turned when turning it back gains this much (unturned views: at most 0.003)."""
MOST_VIEWS = 40
"""Views that photo-consistency starts from, evenly taken; also the most pictures."""


@dataclass
class Mistake:
    """The explanation that fits clearly better than the files as they are."""

    key: str
    problem: str
    remedy: str
    coverage: float
    psnr: float | None
    detail: float


def finite(value: float) -> float | None:
    """None for NaN and infinity, which JSON does not know."""
    return float(value) if np.isfinite(value) else None


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` positions, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _clearly_better(new: Score, old: Score) -> bool:
    """Whether an explanation deserves to be named."""
    # A small overlap may agree by chance: a mesh of another scale shows the few pixels round the look-at point.
    if new.pairs == 0 or new.share < max(0.02, 0.3 * old.share) or new.detail < NAMED_DETAIL:
        return False
    if old.pairs == 0:
        return True
    detail, psnr = new.detail - old.detail, new.psnr - old.psnr
    return (detail > CLEAR_DETAIL and psnr > CLEAR_PSNR) or (detail > SMALL_DETAIL and psnr > SMALL_PSNR)


class Search:
    """Scores the files as given, then every explanation that may fit better."""

    def __init__(self, judge: Judge, cameras: Cameras, given: Rig, coverage: float) -> None:
        self.judge, self.cameras, self.given, self.coverage = judge, cameras, given, coverage
        self.all_views = range(len(judge.sizes))
        self.references = evenly(len(judge.sizes), MOST_VIEWS)
        self.few = evenly(len(judge.sizes), 8)
        self.tried: list[dict[str, Any]] = []
        wanted = judge.wanted(given, self.references, self.all_views, 2)
        self.pairs = judge.pairs(given, wanted)
        self.score = judge.score(self.pairs)
        self.sparse = triangulate(judge, given, wanted[:60])

    def measure(self, rig: Rig) -> Score:
        """Full score of an explanation; its neighbours are its own."""
        return self.judge.score(self.judge.pairs(rig, self.judge.wanted(rig, self.references, self.all_views, 2)))

    def glance(self, rig: Rig) -> Score:
        """A tenth of the work of `measure`."""
        return self.judge.score(self.judge.pairs(rig, self.judge.wanted(rig, self.few, self.all_views, 1), columns=64))

    def best(self) -> Mistake | None:
        """The explanation that fits clearly better than the files, or None."""
        candidates = [*self._usual(), *self._principal_point(), *self._placed()]
        chosen: tuple[Suspect, Score] | None = None
        for suspect, score in candidates:
            self.tried.append({"key": suspect.key, **score._asdict(), "psnr": finite(score.psnr)})
            # Earlier ones are simpler: a later one must fit visibly better.
            if _clearly_better(score, self.score) and (chosen is None or score.detail > chosen[1].detail + 0.01):
                chosen = suspect, score
        if chosen is None:
            return self._by_coverage(candidates)
        suspect, score = chosen
        coverage = float(self.judge.coverage(suspect.rig, self.references).mean())
        problem = suspect.problem if score.detail >= SURE_DETAIL else f"Perhaps: {suspect.problem}"
        return Mistake(suspect.key, problem, suspect.remedy, coverage, finite(score.psnr), score.detail)

    def _usual(self) -> list[tuple[Suspect, Score]]:
        """Screened by coverage, then by a glance; the best five are measured."""
        seen = []
        for suspect in suspects(self.judge, self.cameras):
            if float(self.judge.coverage(suspect.rig, self.few).mean()) >= 0.03:
                seen.append((suspect, self.glance(suspect.rig)))
        order = sorted(range(len(seen)), key=lambda i: -seen[i][1].detail)
        return [(seen[i][0], self.measure(seen[i][0].rig)) for i in sorted(order[:5])]

    def _principal_point(self) -> list[tuple[Suspect, Score]]:
        usable = [pair for pair in self.pairs if len(pair.pixels_first) >= FEWEST_POINTS]
        if not usable:
            return []
        judge, k = self.judge, self.cameras.intrinsics
        shift = judge.principal_point_shift(usable)[None] * judge.sizes[:, :1]
        moved = k.copy()
        moved[:, :2, 2] += shift
        x, y = shift.mean(axis=0)
        if np.abs(shift - 0.5).max() < 0.2:
            key, problem = (
                "integer-pixel-centres",
                "The cam files put pixel centres at integers (0, 0), not (0.5, 0.5).",
            )
            remedy = (
                "Train with `ns-train xscale-nvs ... mvsnet-data --pixel-center-offset 0.0`, or add 0.5 to cx and cy."
            )
        else:
            key, problem = "principal-point", f"The principal point is off by about ({x:.1f}, {y:.1f}) px."
            if np.abs(k[:, :2, 2] - judge.sizes / 2).max() < 0.51:
                key = "principal-point-centred"
                problem = f"All principal points are forced to the photo's centre, about ({x:.1f}, {y:.1f}) px off."
            remedy = "Export the optimised (not the initial) calibration's cx, cy, for these very photos."
        suspect = Suspect(key, problem, remedy, judge.frame.rig(moved, self.cameras.w2c))
        return [(suspect, self.measure(suspect.rig))]

    def _placed(self) -> list[tuple[Suspect, Score]]:
        """The mesh moved, or scaled and moved, onto points triangulated from the photos."""
        judge, found = self.judge, []
        for with_scale in (False, True):
            place = register(judge, self.sparse, with_scale)
            if place is None:
                continue
            if self.score.detail < GOOD_DETAIL:
                place = self._polished(place, with_scale)
            size = judge.frame.extent * place.scale
            # Millimetres of a 1 m mesh: geo-referenced shifts have seven digits before the point.
            digits = max(0, 3 - int(np.floor(np.log10(size))))
            where = ", ".join(f"{value:.{digits}f}" for value in place.shift)
            if not with_scale:
                key, problem = (
                    "mesh-shifted",
                    "The mesh is shifted against the cameras (a removed offset, or centred on export).",
                )
                remedy = f"Add about ({where}) to the vertices, better the exact offset of the export. {EXPORT_BOTH}"
            elif np.linalg.norm(place.shift) < 0.05 * size:
                key, problem = (
                    "mesh-scale",
                    f"The mesh has another scale than the cameras: {1 / place.scale:.4g} times theirs.",
                )
                remedy = f"Multiply the vertices by about {place.scale:.4g}. {EXPORT_BOTH}"
            else:
                key, problem = "mesh-scaled-and-shifted", "The mesh is scaled and shifted against the cameras."
                remedy = f"Multiply the vertices by about {place.scale:.4g}, then add about ({where}). {EXPORT_BOTH}"
            rig = self._rig(place)
            found.append((Suspect(key, problem, remedy, rig), self.measure(rig)))
        return found

    def _polished(self, place: Placement, with_scale: bool) -> Placement:
        """Shift (and scale) moved to where the photos agree best: few features make a rough fit."""
        centre = self.judge.frame.centre

        def at(step: Array) -> Placement:
            scale = place.scale * float(np.exp(step[3])) if with_scale else place.scale
            moved = place.shift + centre * (place.scale - scale)  # scaled about the mesh's own centre
            return Placement(scale, moved + self.judge.frame.extent * place.scale * step[:3])

        best = descend(lambda step, _: self.glance(self._rig(at(step))).detail, np.zeros(3 + with_scale), 0.01, 0.0006)
        return at(best)

    def _rig(self, place: Placement) -> Rig:
        k, w2c = self.cameras.intrinsics, self.cameras.w2c
        return self.judge.frame.rig(k, w2c, np.eye(3) * place.scale, place.shift)

    def _by_coverage(self, candidates: Sequence[tuple[Suspect, Score]]) -> Mistake | None:
        """Where the files miss the mesh altogether: the one explanation that hits it, unconfirmed by the photos."""
        if self.coverage >= GOOD_COVERAGE:
            return None
        hits = [
            (float(self.judge.coverage(suspect.rig, self.references).mean()), suspect, score)
            for suspect, score in candidates
        ]
        hits = [hit for hit in hits if hit[0] >= max(0.15, 3 * self.coverage)]
        if len(hits) != 1:
            return None
        coverage, suspect, score = hits[0]
        problem = f"Perhaps: {suspect.problem} (By coverage alone; the photos do not confirm it.)"
        return Mistake(suspect.key, problem, suspect.remedy, coverage, finite(score.psnr), score.detail)

    def turned_views(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Views whose photo fits after a small turn of the camera, with that turn in degrees."""
        judge, own = self.judge, {}
        for view in self.all_views:
            values = [judge.detail(pair) for pair in self.pairs if view in (pair.first, pair.second)]
            if values:
                own[view] = float(np.mean(values))
        if len(own) < 3:
            return {}
        usual = float(np.median(list(own.values())))
        # One bad view also spoils its neighbours' values, so that they are looked at as well: a dozen is plenty.
        suspicious = sorted((view for view in own if own[view] < 0.9 * usual), key=lambda view: own[view])[:12]
        turned = {}
        for view in suspicious:
            wanted = [(other, view) for other in judge.neighbours(self.given, view, self.all_views, 4)]
            pairs = [p for p in judge.pairs(self.given, wanted, columns=96) if len(p.pixels_first) >= FEWEST_POINTS]
            if not pairs:
                continue
            vector, still, best = judge.view_turn(self.given, pairs)
            if best - still > TURN_GAIN and best > GOOD_DETAIL:
                turned[names[view]] = np.degrees(vector).round(3).tolist()
        return turned


# ---------------------------------------------------------------------- features matched between photos


class Sparse(NamedTuple):
    """Points triangulated from features of neighbouring photos, without the mesh."""

    points: Float[Array, "m 3"]
    """Unit frame of the mesh as given."""
    fitting: float
    """Share of the matches that the cameras explain within 1.5 px of the reduced photos; NaN without matches."""
    matches: int


def triangulate(judge: Judge, rig: Rig, wanted: Sequence[tuple[int, int]]) -> Sparse:
    """Match SIFT features of pairs of photos and triangulate them: what the cameras say without the mesh."""
    sift, matcher = cv2.SIFT.create(nfeatures=1500), cv2.BFMatcher(cv2.NORM_L2)  # pyright: ignore
    features: dict[int, tuple[Array, Array]] = {}
    origin = rig.centres.mean(axis=0)  # geo-referenced cameras may be far from a mesh that is not
    points, fitting, matches = [], 0, 0
    for pair in {(min(pair), max(pair)) for pair in wanted}:
        for view in pair:
            if view not in features:
                grey = np.round(judge.photo(view)[0].mean(axis=2) * 255).astype(np.uint8)
                keys, codes = sift.detectAndCompute(grey, None)  # pyright: ignore
                to_stored = judge.sizes[view] / (grey.shape[1], grey.shape[0])
                at = np.array([key.pt for key in keys], dtype=np.float64).reshape(-1, 2)
                features[view] = (at + 0.5) * to_stored, codes
        if min(len(features[view][0]) for view in pair) < 10:
            continue
        # Lowe's ratio test: a feature that resembles two others is no match.
        nearest = matcher.knnMatch(features[pair[0]][1], features[pair[1]][1], k=2)
        ratios = np.array([two[0].distance / max(two[1].distance, 1e-9) if len(two) == 2 else 1.0 for two in nearest])
        found = [two[0] for two, ratio in zip(nearest, ratios, strict=True) if ratio < 0.9]
        if not found:
            continue
        # The cameras sort out doubtful matches; their own share of fitting ones counts among the safe.
        safe = ratios[ratios < 0.9] < 0.8
        pixels = [
            features[view][0][[getattr(match, name) for match in found]]
            for view, name in zip(pair, ("queryIdx", "trainIdx"), strict=True)
        ]
        world, good = _meet(judge, rig, pair, pixels, origin)
        points.append(world[good])
        fitting, matches = fitting + int((good & safe).sum()), matches + int(safe.sum())
    cloud = np.concatenate(points) if points else np.zeros((0, 3))
    return Sparse(cloud, fitting / matches if matches else float("nan"), matches)


def _meet(
    judge: Judge, rig: Rig, pair: tuple[int, int], pixels: Sequence[Array], origin: Array
) -> tuple[Float[Array, "m 3"], Array]:
    """Midpoints of rays through matched pixels, and which of them are ahead, well conditioned and on both pixels."""
    (start_a, along_a), (start_b, along_b) = (rig.rays(v, p) for v, p in zip(pair, pixels, strict=True))
    between = start_b - start_a
    cosine = (along_a * along_b).sum(axis=1)
    sine2 = np.maximum(1.0 - cosine**2, 1e-12)
    to_a, to_b = (between * along_a).sum(axis=1), (between * along_b).sum(axis=1)
    t_a, t_b = (to_a - cosine * to_b) / sine2, (cosine * to_a - to_b) / sine2
    middle = ((start_a - origin) + t_a[:, None] * along_a + (start_b - origin) + t_b[:, None] * along_b) / 2 + origin
    good = (t_a > 0) & (t_b > 0) & (sine2 > np.sin(np.radians(1.0)) ** 2)
    for view, wanted in zip(pair, pixels, strict=True):
        again, ahead = rig.project(view, middle)
        tolerance = 1.5 * judge.sizes[view][0] / judge.photo(view)[0].shape[1]
        good &= ahead & (np.linalg.norm(again - wanted, axis=1) < tolerance)
    return middle, good


class Placement(NamedTuple):
    """The mesh's true place is scale x + shift, x being the vertices in the file."""

    scale: float
    shift: Float[Array, "3"]


def register(judge: Judge, sparse: Sparse, with_scale: bool) -> Placement | None:
    """Move (and scale) the mesh onto triangulated points: trimmed ICP from several starts; None with too few points."""
    if len(sparse.points) < 50:
        return None
    rng = np.random.default_rng(0)
    points = rng.permutation(sparse.points)[:800]
    centroids = judge.vertices[judge.faces.numpy()].mean(axis=1, dtype=np.float64)
    surface = rng.permutation(centroids)[:20000]
    tree = cKDTree(surface)
    middle = np.median(points, axis=0)
    spread = float(np.median(np.linalg.norm(points - middle, axis=1)))
    own = float(np.median(np.linalg.norm(surface - np.median(surface, axis=0), axis=1)))
    scales = [spread / own * step for step in (0.6, 0.85, 1.2, 1.7)] if with_scale else [1.0]
    sides = np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)]) * 0.15
    starts = [(s, middle - s * (np.median(surface, axis=0) + side)) for s in scales for side in sides]
    # Scaled about the origin of the file, as exports in other units are; with 1, the mesh as given.
    origin = judge.frame.centre / judge.frame.extent
    starts += [(s, origin * (s - 1.0)) for s in ((0.5, 0.7, 1.0, 1.4, 2.0) if with_scale else (1.0,))]
    ends = [_icp(points, surface, tree, scale, shift, with_scale, 8) for scale, shift in starts]
    ends = sorted(ends, key=lambda end: end[0])[:3]
    _, scale, shift = min(
        (_icp(points, surface, tree, *end[1:], with_scale, 60) for end in ends), key=lambda end: end[0]
    )
    frame = judge.frame
    return Placement(scale, frame.centre * (1.0 - scale) + frame.extent * shift)


def _icp(
    points: Array, surface: Array, tree: cKDTree, scale: float, shift: Array, with_scale: bool, rounds: int
) -> tuple[float, float, Array]:
    """(trimmed mean distance, scale, shift) with points ~ scale * surface + shift.

    The distance counts in the points' units: in the mesh's, blowing it up until all points lie on one face would fit.
    """
    residual = np.inf
    for _ in range(rounds):
        distance, index = tree.query((points - shift) / scale)
        kept = distance <= np.quantile(distance, 0.8)
        target, own = points[kept], surface[index[kept]]
        if with_scale:
            centred = own - own.mean(axis=0)
            scale = float((centred * target).sum() / max(float((centred**2).sum()), 1e-12))
            if not scale > 1e-9:
                return np.inf, 1.0, np.zeros(3)
        shift = (target - scale * own).mean(axis=0)
        before, residual = residual, scale * float(distance[kept].mean())
        if before - residual < 1e-5 * residual:
            break
    return residual, scale, shift
