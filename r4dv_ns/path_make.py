"""From the options of ``ns-r4dv path`` and the cameras of a recording to a camera path (spec r4dv 6.3, 15)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
from jaxtyping import Float

from core_ns.errors import DataError
from r4dv_ns import paths
from r4dv_ns.path_curves import CURVES, even_pace, linear_values, smoothed
from r4dv_ns.path_file import CameraPath, fov_of, read_path, read_path_yml
from r4dv_ns.path_options import PathOptions, check_path
from r4dv_ns.path_rig import Rig
from r4dv_ns.path_times import check_range, played, temporal_range

Array = np.ndarray
DEFAULT_COUNT, DEFAULT_SIZE = 300, (1920, 1080)


@dataclass(frozen=True, eq=False)
class _Route:
    """Poses and focal lengths (over the picture's width and height), one or as many as poses; times of a file."""

    c2w: Float[Array, "n 4 4"]
    focal: Float[Array, "#n 2"]
    times: Optional[Float[Array, "n"]] = None
    closed: bool = False


def make_path(rig: Rig, options: PathOptions, say: Callable[[str], None] = print) -> CameraPath:
    """The path that the options ask for.

    Args:
        say: told what was decided where the options leave it open.

    Raises:
        DataError: an option that cannot be, or cameras that the kind of path is not possible with.
    """
    check_path(options, rig.source)
    size, fps = options.size, options.fps
    if options.type == "yml":
        route, known_size, known_fps = _from_file(rig, options, say)
        size, fps = size or known_size, fps or known_fps
    else:
        if options.views:
            rig = rig.chosen(options.views)
        route = _laid(rig, options, options.n or DEFAULT_COUNT, say)
    width, height = size or DEFAULT_SIZE
    fps = fps or 60.0
    count = len(route.c2w)
    if options.smoothing > count / fps:
        problem = f"{options.smoothing:g} s is longer than the path, {count / fps:.3g} s."
        raise DataError(rig.source, "--smoothing", problem, "Use a part of a second.")
    c2w = smoothed(route.c2w, options.smoothing * fps, route.closed)
    if options.fov is not None:
        fov = np.full(count, options.fov)
    else:
        # All that a photo shows fits into the picture, whatever their shapes.
        focal = (route.focal * (width, height)).min(axis=1) * options.focal_ratio
        fov = fov_of(np.broadcast_to(focal, count), height)
    return CameraPath(c2w, fov, _times(rig, options, count, fps, route.times), width, height, fps, route.closed)


def _times(
    rig: Rig, options: PathOptions, count: int, fps: float, known: Float[Array, "n"] | None
) -> Float[Array, "n"]:
    knots = (0.0, 1.0) if options.time is None else options.time
    place = "--time"
    try:
        check_range(knots)
        if options.play_fps is not None:
            place = "--play-fps, --time"
            return played(count, fps, options.play_fps, rig.times, knots)
        if options.time is None and known is not None:
            return known
        return temporal_range(count, knots)
    except ValueError as error:
        raise DataError(rig.source, place, f"{error}.", "Times run from 0 (first frame) to 1 (last).") from error


# ---------------------------------------------------------------------- laid along the recording's cameras


def _laid(rig: Rig, options: PathOptions, count: int, say: Callable[[str], None]) -> _Route:
    """Every kind but yml."""
    try:
        if options.type in ("cubic", "linear"):
            if options.order == "azimuth":
                rig = rig.rows(_round_the_subject(rig, options, say))
            route = _along(rig.c2w, rig.focal, None, options, count)
            _say_if_through(rig, route, options, say)
            return route
        up = _up(rig, options)
        if options.type == "spiral":
            return _spiral(rig, options, count, up, say)
        c2w = _circling(rig, options, count, up, say)
        closed = options.swing if options.type == "sector" else float(options.turns or 1).is_integer()
        return _Route(c2w, np.median(rig.focal, axis=0)[None], closed=closed)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(rig.source, f"--type {options.type}", f"{error}.", _REMEDIES[options.type]) from error


_ANOTHER = "Give --attention x y z or --up x y z, choose cameras with --views, or another --type."
_REMEDIES: dict[str, str] = {
    "cubic": "Name more cameras with --views, or use --type orbit.",
    "linear": "Name at least two cameras with --views.",
    "orbit": _ANOTHER, "sector": _ANOTHER, "spiral": _ANOTHER,
}  # fmt: skip


def _up(rig: Rig, options: PathOptions) -> Float[Array, "3"]:
    if options.up is not None:
        return paths.unit(np.asarray(options.up))
    return paths.common_up(rig.c2w) if options.original else paths.upright(rig.c2w)


def _attention(rig: Rig, options: PathOptions, say: Callable[[str], None]) -> Float[Array, "3"]:
    """As given, else nearest to the cameras' axes, else the middle of what is reconstructed."""
    if options.attention is not None:
        return np.asarray(options.attention, dtype=np.float64)
    try:
        return paths.original_attention_point(rig.c2w) if options.original else paths.attention_point(rig.c2w)
    except ValueError as error:
        if rig.middle is None:
            raise
        shown = " ".join(f"{value:.4g}" for value in rig.middle)
        say(f"{str(error)[0].upper()}{str(error)[1:]}; the middle of the bounds is looked at: {shown}.")
        return rig.middle


def _circling(
    rig: Rig, options: PathOptions, count: int, up: Float[Array, "3"], say: Callable[[str], None]
) -> Float[Array, "n 4 4"]:
    """orbit and sector."""
    size = {"radius": options.radius, "radius_ratio": options.radius_ratio, "height": options.height}
    if options.type == "orbit" and options.original:
        return paths.original_orbit(rig.c2w, count, **size)
    attention = _attention(rig, options, say)
    if options.type == "sector":
        return paths.sector(rig.c2w, _shares(count, options.swing), attention, up, **size)
    turns = 1.0 if options.turns is None else options.turns
    # A whole orbit ends one step before its beginning, so that it plays in a loop.
    shares = options.phase / 360 + turns * np.arange(count) / count
    return paths.orbit(rig.c2w, shares, attention, up, **size)


def _spiral(rig: Rig, options: PathOptions, count: int, up: Float[Array, "3"], say: Callable[[str], None]) -> _Route:
    attention = _attention(rig, options, say)
    around = options.around
    if around is None and paths.surrounds(rig.c2w, attention) and not options.original:
        around = rig.names[0]
        say(f"The cameras stand on all sides: the spiral is in front of camera {around} (--around CAM).")
    if around is not None:
        middle = rig.chosen((around,)).names[0]
        rig = rig.rows(paths.front_views(rig.c2w, attention, rig.names.index(middle)))
    turns = 2.0 if options.turns is None else options.turns
    c2w = paths.spiral(
        rig.c2w, count, attention, up, turns=turns, rate=options.rate, percentile=options.percentile,
        radius_ratio=options.radius_ratio, xyz_ratio=options.xyz_ratio, xyz_offset=options.xyz_offset,
        focal_offset=options.focal_offset, radii_along="world" if options.original else "camera",
    )  # fmt: skip
    whole = float(turns).is_integer() and float(turns * options.rate).is_integer()
    return _Route(c2w, np.median(rig.focal, axis=0)[None], closed=whole)


def _round_the_subject(rig: Rig, options: PathOptions, say: Callable[[str], None]) -> list[int]:
    """The cameras' numbers by their direction round the attention point, the first camera first."""
    turns = paths.azimuths(rig.c2w, _attention(rig, options, say), _up(rig, options))
    return [int(row) for row in np.argsort(turns, kind="stable")]


def _say_if_through(rig: Rig, route: _Route, options: PathOptions, say: Callable[[str], None]) -> None:
    """Tell where a path cuts through the subject, because consecutive cameras stand on opposite sides of it."""
    try:
        point = paths.attention_point(rig.c2w) if options.attention is None else np.asarray(options.attention)
    except ValueError:
        return  # they look at no common point: there is nothing to cut through
    path, cameras = (np.linalg.norm(c2w[:, :3, 3] - point, axis=1).min() for c2w in (route.c2w, rig.c2w))
    if path < 0.5 * cameras:
        remedy = (
            "--order azimuth goes round it" if options.order == "name" else "more cameras with --views keep it away"
        )
        say(f"The path comes as near as {path:.3g} to what the cameras look at, from {cameras:.3g} away: {remedy}.")


# ---------------------------------------------------------------------- along key cameras


def _shares(count: int, swing: bool, closed: bool = False) -> Float[Array, "n"]:
    """Even steps from 0 to 1; with ``swing`` to 1 and back in a cosine, the last one step before the first."""
    if swing:
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(count) / count)
    return np.linspace(0.0, 1.0, count, endpoint=not closed)


def _along(
    keys: Float[Array, "k 4 4"],
    focal: Float[Array, "k 2"],
    times: Float[Array, "k"] | None,
    options: PathOptions,
    count: int,
) -> _Route:
    """A curve along keys; focal lengths and times run linearly from key to key."""
    curve = "linear" if options.type == "linear" else options.spline
    shares = _shares(count, options.swing, options.loop)
    if options.pace == "even":
        shares = even_pace(curve, keys, shares, options.loop)
    c2w = CURVES[curve](keys, shares, options.loop)
    # Half-angles' tangents, not angles: the picture of a plane grows evenly.
    extent = linear_values(1 / focal, shares, options.loop)
    timed = None if times is None else _moments(times, shares, options.loop)
    return _Route(c2w, 1 / extent, timed, closed=options.loop or options.swing)


def _moments(times: Float[Array, "k"], shares: Float[Array, "n"], closed: bool) -> Float[Array, "n"]:
    """Times between those of keys. From the last key back to the first time stands still, unless it is as near as any
    other: else what took the whole path would run backwards within one part."""
    count, back = len(times), abs(times[0] - times[-1])
    if closed and back > np.abs(np.diff(times)).max() + 1e-9:
        shares, closed = np.minimum(shares * count / (count - 1), 1.0), False
    return linear_values(times[:, None], shares, closed)[:, 0].clip(0.0, 1.0)


def _from_file(
    rig: Rig, options: PathOptions, say: Callable[[str], None]
) -> tuple[_Route, Optional[tuple[int, int]], Optional[float]]:
    """The cameras of --file as they are, or a curve along them where --n asks for another number."""
    assert options.file is not None
    if options.file.suffix.lower() == ".json":
        path = read_path(options.file, rig.transform)
        extents = path.focal[:, None] / (path.width, path.height)
        c2w, times, size, fps, closed = path.c2w, path.times, (path.width, path.height), path.fps, path.closed
    else:
        found = read_path_yml(options.file)
        if not found.plain:
            say(f"{options.file}: lenses and off-centre principal points are not drawn.")
        c2w, extents, times, size, fps, closed = found.c2w, found.focal, found.times, found.size, None, False
    reshaped = options.loop or options.swing or options.pace == "even"
    along = replace(options, loop=options.loop or (closed and not options.swing))
    if not reshaped and (options.n is None or options.n == len(c2w)):
        return _Route(c2w, extents, times, closed), size, fps
    try:
        return _along(c2w, extents, times, along, options.n or len(c2w)), size, fps
    except ValueError as error:
        raise DataError(options.file, "--n", f"{error}.", "Add cameras, or use --spline interpolating.") from error
