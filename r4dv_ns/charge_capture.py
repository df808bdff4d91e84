"""One frame of a trained model as the arrays of a charge: everything that no later picture changes (spec r4dv 5.2)."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32

from core_ns.errors import DataError
from r4dv_ns.charge_parts import DTYPES
from r4dv_ns.charge_store import UNSEEN, ChargedFrame, quantise
from r4dv_ns.point_state import PointState

Array = np.ndarray
HALF_RANGE = (2e-4, 6e4)
"""Radii within this keep 11 bits as 16-bit floats; other scenes' are stored as 32-bit ones."""


@dataclass(frozen=True)
class Precision:
    """How the arrays of a charge are stored."""

    xyz: Literal["f32", "u16"] = "f32"
    colours: Literal["u8", "f32"] = "u8"
    wide_radius: bool = False
    """Radii as f32."""
    branch: bool = False
    """Points of a background are there as well."""

    def dtypes(self) -> dict[str, str]:
        """Of each array, as the manifest has them."""
        chosen = {key: kinds[int(self.colours == "f32" and len(kinds) > 1)] for key, kinds in DTYPES.items()}
        chosen["xyz"] = "<u2" if self.xyz == "u16" else "<f4"
        if self.wide_radius:
            chosen["radius"] = "<f4"
        if not self.branch:
            del chosen["branch"]
        return chosen


def farthest_views(centres: Float[Array, "v f 3"], count: int | None) -> list[int]:
    """Rows of ``count`` cameras that are far from one another (farthest-point sampling), ascending; all for None.

    It begins with the one farthest from the middle of all and adds, each time, the one farthest from those chosen; of
    equal ones the first.

    Args:
        centres: camera centres at each frame; one frame is enough where nothing moves.
    """
    paths = np.asarray(centres, np.float64).reshape(len(centres), -1)
    if count is None or count >= len(paths):
        return list(range(len(paths)))
    chosen = [int(np.linalg.norm(paths - paths.mean(axis=0), axis=1).argmax())]
    nearest = np.linalg.norm(paths - paths[chosen[0]], axis=1)
    while len(chosen) < count:
        nearest[chosen] = -1.0  # also where cameras stand in the same place
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(paths - paths[chosen[-1]], axis=1))
    return sorted(chosen)


@torch.no_grad()
def capture_frame(model: Any, frame: int, views: Items[int], degree: int, precision: Precision) -> ChargedFrame:
    """Points of a frame and what each source photo says about them (4K4D sec. 3.4).

    Args:
        model: `R4DVModel`; whether occlusion counts is its setting. Of a `JointModel` the background's points are last.
        frame: of the run's frames.
        views: source views, training views; none for the points alone.
        degree: of the harmonics to keep, at most the model's.

    Raises:
        DataError: a photo cannot be decoded, or the model holds numbers that are not finite.
    """
    kinds = precision.dtypes()
    state = model.state(frame, model.sequence.times[frame])
    n, static, terms = len(state.xyz), background_points(state), (degree + 1) ** 2
    rgb = np.empty((len(views), n, 3), kinds["src_rgb"])
    logit, visible = np.empty((len(views), n), np.float32), np.empty((len(views), n), bool)
    for row, view in enumerate(views):
        seen = model._sighting(frame, state, view)
        colours, logit[row], visible[row] = _float(seen.rgb), _float(seen.logit), seen.visible.cpu().numpy()
        rgb[row] = np.rint(255 * colours.clip(0, 1)) if kinds["src_rgb"] == "|u1" else colours
    arrays = {
        "radius": _float(state.radius),
        "alpha": _float(state.alpha),
        "sh": _float(state.coefficients[..., :terms]).transpose(0, 2, 1),
        "src_logit": logit,
    }
    xyz, box = _float(state.xyz), None
    for key, array in {"xyz": xyz, **arrays}.items():
        if not np.isfinite(array).all():
            raise DataError(
                "checkpoint", f"frame {model.sequence.frames[frame]}, {key}", "holds numbers that are not finite.",
                "The training diverged: take an older checkpoint, or train again with lower rates.",
            )  # fmt: skip
    # A point that no photo sees is blended from all of them, by its own logits, as the model does.
    hidden = ~visible & visible.any(axis=0)
    # One that only photos see which are not chosen for a picture has no weights but these; 16 bits hold no more.
    unseen = UNSEEN if kinds["src_logit"] == "<f2" else UNSEEN + logit
    arrays["src_logit"] = np.where(hidden, unseen, logit.clip(UNSEEN / 4, -UNSEEN / 4))
    arrays["sh"] = arrays["sh"].clip(UNSEEN, -UNSEEN)  # finite in 16 bits; the limit is long reached
    stored = {key: array.astype(kinds[key]) for key, array in arrays.items()}
    if precision.xyz == "u16":  # the background's positions are not in the frame's file (`write_static`)
        steps, box = quantise(xyz[: n - static])
        xyz = np.concatenate([steps, np.zeros((static, 3), np.uint16)])
    branch = None if state.branch is None else state.branch.cpu().numpy()
    return ChargedFrame(xyz=xyz, src_rgb=rgb, src_id=np.asarray(views, np.uint16), branch=branch, box=box, **stored)


def background_points(state: PointState) -> int:
    """How many points at the end do not change from frame to frame.

    Raises:
        ValueError: subject and background are mixed.
    """
    if state.branch is None:
        return 0
    if (state.branch.int().diff() < 0).any():
        raise ValueError("the background's points must follow the subject's")
    return int((state.branch > 0).sum())


def _float(tensor: torch.Tensor) -> Float32[Array, "*n"]:
    return tensor.detach().float().cpu().numpy()
