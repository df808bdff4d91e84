"""Where the object is and what lies behind it: a cube for any dataparser's cameras, and the background colour.

Grids want a cube; nerfstudio's scene boxes are what their parsers find convenient: the object in some, all cameras in
others. Backgrounds must be known too, since a pixel without object has to come out as something (spec diver 4.2, 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from torch import Tensor

from core_ns.errors import DataError
from core_ns.images import has_alpha, read_image

Colour = Literal["white", "black"]
BackgroundChoice = Literal["auto", "white", "black"]

GRID_SIDE = 2.8
"""Side of the original's cube about the origin, world units (spec diver, symbols)."""
RGB: dict[Colour, float] = {"white": 1.0, "black": 0.0}
SAMPLED_PHOTOS = 8
PLAIN_DISTANCE = 0.15
"""How far, in [0, 1] and in any channel, a border pixel may be from the background colour and still count as it."""
PLAIN_SHARE = 0.5
OUTWARD_SHARE = 0.2
"""Share of cameras with the cube's centre behind them from which a capture counts as unbounded."""

_UNBOUNDED = "DIVeR models what is inside one cube: unbounded surroundings end up as fog at its faces."


class Background(NamedTuple):
    """Answer of `detect_background`."""

    colour: Colour
    alpha: bool
    """Whether the sampled photos store real transparency (somewhere not opaque)."""
    plain: float
    """Share of border pixels (after compositing on ``colour``) that show the colour."""


class ObjectBox(NamedTuple):
    """Answer of `cubic_box`; in the space of the dataparser's outputs."""

    center: tuple[float, float, float]
    side: float
    source: Literal["declared", "scene_box", "cameras"]
    """Stated by the parser; the cube about its scene box; what the cameras look at together."""
    warnings: tuple[str, ...]
    """Sentences for the user; empty for an ordinary capture of an object."""


def object_metadata(center: Sequence[float], side: float, background: Background) -> dict[str, object]:
    """What our own dataparsers put in their outputs' metadata; JSON values, so that it survives snapshots."""
    return {
        "object_box": {"center": [float(value) for value in center], "side": float(side)},
        "background": background.colour,
        "has_alpha": background.alpha,
    }


def _border(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "n c"]:
    """The outermost pixels, each once but for the corners."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def detect_background(photos: Sequence[Path], choice: BackgroundChoice = "auto") -> Background:
    """The plain colour behind an object (spec diver 4.2).

    ``auto``: white when the photos are transparent somewhere, else the median of the border pixels of up to eight
    photos, spread over the list: white or black, whichever it is nearer to. An alpha channel that is opaque everywhere
    counts as none. A stated colour is taken as it is, and then only headers are read.

    Raises:
        DataError: no photos, or one of the sampled ones does not decode.
        ValueError: an unknown choice.
    """
    if choice not in ("auto", "white", "black"):
        raise ValueError(f"background must be auto, white or black, not '{choice}'")
    if not photos:
        raise DataError("images", "", "there is no photo to take the background from.", "Check the image folder.")
    picks = np.unique(np.linspace(0, len(photos) - 1, min(len(photos), SAMPLED_PHOTOS)).round().astype(int))
    sample = [photos[pick] for pick in picks]
    if choice != "auto":
        return Background(choice, any(has_alpha(path) for path in sample), 1.0)
    borders, alphas, transparent = [], [], False
    for path in sample:
        rgb, alpha = read_image(path)
        alpha = np.full(rgb.shape[:2], 255, np.uint8) if alpha is None else alpha
        transparent |= bool((alpha < 255).any())
        borders.append(_border(rgb) / 255.0)
        alphas.append(_border(alpha[..., None]) / 255.0)
    border, cover = np.concatenate(borders), np.concatenate(alphas)
    colour: Colour = "white" if transparent or np.median(border, axis=0).mean() > 0.5 else "black"
    shown = border * cover + RGB[colour] * (1 - cover)
    plain = np.abs(shown - RGB[colour]).max(axis=1) <= PLAIN_DISTANCE
    return Background(colour, transparent, float(plain.mean()))


def background_color(colour: Colour) -> Float[Tensor, "3"]:
    """The colour as a tensor in [0, 1], nerfstudio's ``alpha_color``."""
    return torch.full((3,), RGB[colour])


def background_warning(background: Background) -> str | None:
    """A sentence when the photos' borders do not show the plain colour; None when they do."""
    if background.plain >= PLAIN_SHARE:
        return None
    return (
        f"Only {background.plain:.0%} of the photos' border pixels are {background.colour}: the background is not "
        f"plain. {_UNBOUNDED} Cut the object out (alpha channel), or choose a method for whole scenes."
    )


def outputs_background(outputs: DataparserOutputs, choice: BackgroundChoice = "auto") -> Background:
    """The background of any dataparser's outputs: the choice; else what a parser of ours declared; else a white or
    black ``alpha_color`` that transparent photos are composited on; else `detect_background`.

    Raises:
        DataError, ValueError: as `detect_background`.
    """
    declared = outputs.metadata.get("background")
    if choice == "auto" and declared in RGB:
        return Background(declared, bool(outputs.metadata.get("has_alpha")), 1.0)
    found = detect_background(outputs.image_filenames, choice)
    if choice == "auto" and found.alpha and outputs.alpha_color is not None:
        for name in RGB:
            if torch.equal(outputs.alpha_color.float().cpu(), background_color(name)):
                return found._replace(colour=name)
    return found


def focus(cameras: Cameras) -> tuple[Float[Tensor, "3"], Float[Tensor, "n"]] | None:
    """The point nearest to all optical axes (least squares, float64) and its distance along each camera's view.

    None when the axes are too parallel to say (a single camera, a panning row).
    """
    pose = cameras.camera_to_worlds.reshape(-1, 3, 4).double().cpu()
    centre, view = pose[:, :, 3], -torch.nn.functional.normalize(pose[:, :, 2], dim=-1)
    across = torch.eye(3, dtype=torch.float64) - view[:, :, None] * view[:, None, :]
    system = across.mean(dim=0)
    # The eigenvalues of the mean projector are in [0, 1]; the least is sin^2 of the typical angle between the axes.
    if float(torch.linalg.eigvalsh(system)[0]) < 1e-3:
        return None
    point = torch.linalg.solve(system, (across @ centre[:, :, None]).mean(dim=0))[:, 0]
    return point, ((point - centre) * view).sum(dim=-1)


def _view_radius(cameras: Cameras, distance: Float[Tensor, "n"]) -> float:
    """Half width of the widest view of the focus plane: what is photographed whole at least once is inside it."""
    halves = []
    for side, focal in ((cameras.width, cameras.fx), (cameras.height, cameras.fy)):
        halves.append(side.reshape(-1).double().cpu() / (2 * focal.reshape(-1).double().cpu()))
    return float((distance * torch.maximum(*halves)).max())


def _outward(cameras: Cameras, centre: Float[Tensor, "3"]) -> float:
    """Share of the cameras that have the point behind them."""
    pose = cameras.camera_to_worlds.reshape(-1, 3, 4).double().cpu()
    ahead = ((centre - pose[:, :, 3]) * -pose[:, :, 2]).sum(dim=-1)
    return float((ahead <= 0).double().mean())


def _photos_have_alpha(outputs: DataparserOutputs) -> bool:
    """Whether transparency or masks tell the object from its surroundings; headers of a few photos only."""
    if outputs.mask_filenames or outputs.metadata.get("has_alpha"):
        return True
    photos = outputs.image_filenames
    try:
        return bool(photos) and all(has_alpha(path) for path in photos[:: max(1, len(photos) // SAMPLED_PHOTOS)])
    except DataError:  # a finished run is viewed without its photos: nothing to say about them then
        return True


def _declared_cube(declared: Mapping[str, Any]) -> tuple[Float[Tensor, "3"], float]:
    """Centre and side of ``metadata["object_box"]``; DataError if they are none."""
    middle, side = torch.tensor(declared["center"], dtype=torch.float64), float(declared["side"])
    if not (middle.shape == (3,) and bool(torch.isfinite(middle).all()) and 0 < side < math.inf):
        raise DataError("metadata", "object_box", f"is {declared}, no cube.", "Give a finite center and side.")
    return middle, side


def cubic_box(outputs: DataparserOutputs, fit: Literal["auto", "scene_box"] = "auto") -> ObjectBox:
    """A cube for the grid of any nerfstudio dataparser (spec diver 4.3).

    A parser of ours declares it (``metadata["object_box"]``). For the others it is the cube about the scene box. But
    when half of the cameras or more are inside that cube, the box was drawn round the capture, not round the object:
    then the cube is centred where the cameras look and as wide as the widest view there, if that is smaller. An object
    that some photo shows whole is inside it, and gets up to several times the voxels.

    Args:
        fit: ``scene_box`` never looks at the cameras.

    Raises:
        DataError: the scene box, or the declared cube, is empty or not finite.
    """
    cameras, warnings = outputs.cameras, []
    declared = outputs.metadata.get("object_box")
    low, high = outputs.scene_box.aabb.detach().double().cpu()
    extent = float((high - low).max())
    if not (bool(torch.isfinite(outputs.scene_box.aabb).all()) and extent > 0):
        box = outputs.scene_box.aabb.tolist()
        raise DataError("scene box", str(box), "is empty or not finite.", "Choose another dataparser for this scene.")
    middle, side = (low + high) / 2, extent
    source: Literal["declared", "scene_box", "cameras"] = "scene_box"
    if declared is not None:
        middle, side, source = *_declared_cube(declared), "declared"
    elif fit == "auto":
        centres = cameras.camera_to_worlds.reshape(-1, 3, 4)[:, :, 3].double().cpu()
        inside = float(((centres - middle).abs() <= side / 2).all(dim=-1).double().mean())
        seen = focus(cameras) if inside >= 0.5 else None
        if seen is not None and _outward(cameras, seen[0]) < OUTWARD_SHARE:
            width = 2 * _view_radius(cameras, seen[1])
            if 0 < width < side:
                middle, side, source = seen[0], width, "cameras"
    outward = _outward(cameras, middle)
    if outward >= OUTWARD_SHARE and not _photos_have_alpha(outputs):
        warnings.append(
            f"{outward:.0%} of the cameras do not face the middle of the cube, and the photos have no alpha channel: "
            f"this looks like an unbounded capture. {_UNBOUNDED}"
        )
    return ObjectBox((float(middle[0]), float(middle[1]), float(middle[2])), side, source, tuple(warnings))
