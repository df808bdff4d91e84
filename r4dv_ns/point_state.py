"""Everything about the points of one moment that does not depend on the view that is drawn (spec r4dv 4.1 to 4.5).

That is nearly all of the network's work: between two changes of the weights it is done once per moment and photo.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class PointState:
    """Points of one frame at one time."""

    xyz: Float[Tensor, "n 3"]
    """World, motion residual included."""
    displacement: Float[Tensor, "n 3"] | None
    """The residual alone; None without a residual field."""
    features: Float[Tensor, "n f"]
    radius: Float[Tensor, "n"]
    """World units."""
    alpha: Float[Tensor, "n"]
    coefficients: Float[Tensor, "n 3 k"]
    """Spherical harmonics of the view-dependent colour."""
    branch: UInt8[Tensor, "n"] | None = None
    """0: subject, 1: background; None where there is nothing but the subject."""


@dataclass(frozen=True)
class JointState(PointState):
    """Points of several branches, one after the other; ``features`` are empty, those of the parts differ in length."""

    parts: tuple[PointState, ...] = ()


def joined(parts: Items[PointState]) -> JointState:
    """The points of all parts (the first is the subject), in this order."""
    xyz = torch.cat([part.xyz for part in parts])
    counts = torch.tensor([len(part.xyz) for part in parts], device=xyz.device)
    return JointState(
        xyz=xyz,
        displacement=None,
        features=xyz[:, :0],
        radius=torch.cat([part.radius for part in parts]),
        alpha=torch.cat([part.alpha for part in parts]),
        coefficients=torch.cat([part.coefficients for part in parts]),
        branch=torch.arange(len(parts), dtype=torch.uint8, device=xyz.device).repeat_interleave(counts),
        parts=tuple(parts),
    )


@dataclass(frozen=True)
class Sighting:
    """What one source photo says about every point."""

    rgb: Float[Tensor, "n 3"]
    logit: Float[Tensor, "n"]
    visible: Bool[Tensor, "n"]


@dataclass(frozen=True)
class Front:
    """The surface that one source camera saw."""

    depth: Float[Tensor, "h w"]
    accumulation: Float[Tensor, "h w"]


def _bytes(value: Any) -> int:
    own = sum(part.nbytes for part in vars(value).values() if isinstance(part, Tensor))
    return own + sum(_bytes(part) for part in getattr(value, "parts", ()))


class StateCache:
    """Results that hold until the weights change, bounded in bytes; least recently used ones go first.

    A browser's render thread can be interrupted at any line: a value is made first and stored by one assignment.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._version: Hashable = None
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, version: Hashable, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of a key, made if it is not there or belongs to other weights.

        Args:
            version: changes whenever the weights do.
            key: what the value is of.
            make: makes it; a dataclass of tensors.
        """
        if version != self._version:
            self._values, self._version = OrderedDict(), version
        found = self._values.get(key)
        if found is None:
            found = make()
            self._values[key] = found
            held = sum(_bytes(value) for value in self._values.values())
            while held > self.capacity and len(self._values) > 1:
                held -= _bytes(self._values.popitem(last=False)[1])
        else:
            self._values.move_to_end(key)
        return found
