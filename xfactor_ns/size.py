"""How large the two networks are (XFactor, sec. 3 / spec xfactor 3.8). No torch here: the configs import it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core_ns.errors import DataError

_BLOCK = re.compile(r"(pose_encoder|renderer)\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class Size:
    """Everything that decides the shapes of `XFactorNet`; the defaults are those of the released weights.

    Raises:
        DataError: sizes that no network can have.
    """

    width: int = 1024
    """C: channels of a token."""
    heads: int = 16
    """h: attention heads, of d = C / h channels."""
    blocks: int = 8
    """In each of the two networks."""
    patch: int = 16
    """p: pixels per side of a token's patch."""
    pose: int = 256
    """Dp: numbers in a pose latent."""
    registers: int = 32
    """Learned tokens per mask group and view in the pose encoder; the first of them carries the pose."""
    layer_scale: float = 0.01
    """What the residual branches are multiplied by at the start. Not a shape: `of` cannot know it."""

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("width", "heads", "blocks", "patch", "pose", "registers")}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise DataError("size of the networks", name, f"is {value!r}.", "Give a whole number from 1.")
        if self.width % (4 * self.heads):
            # Rotary positions turn pairs of channels, half of them by the row and half by the column.
            raise DataError(
                "size of the networks", "width, heads", f"{self.width} channels do not make {self.heads} heads.",
                "Choose a width that is a multiple of four times the heads.",
            )  # fmt: skip

    @property
    def head(self) -> int:
        """d: channels of one head."""
        return self.width // self.heads

    @property
    def pixels(self) -> int:
        """Numbers in a patch: 3 p^2, ordered (row, column, channel)."""
        return 3 * self.patch**2

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Size:
        """The size of weights under this package's names, from their shapes (spec xfactor 5).

        Args:
            state: state dict of `XFactorNet`; only ``.shape`` of a few entries is looked at. Whether all others fit is
                for the loader to find out.

        Raises:
            DataError: an entry that tells a size is missing or makes no sense; its place is the entry's name.
        """

        def shape(name: str, dimensions: int) -> tuple[int, ...]:
            found = tuple(int(length) for length in state[name].shape) if name in state else None
            if found is None or len(found) != dimensions:
                problem = "is missing." if found is None else f"has the shape {list(found)}."
                raise DataError("weights", name, problem, "Give the weights of both networks of XFactor.")
            return found

        heads, head = shape("pose_encoder.blocks.0.q_norm.weight", 2)
        registers, width = shape("pose_encoder.registers", 2)
        pixels = shape("pose_encoder.patch_embed.weight", 2)[1]
        patch = math.isqrt(pixels // 3)
        counts: dict[Any, int] = dict.fromkeys(("pose_encoder", "renderer"), 0)
        for name in state:
            if match := _BLOCK.match(name):
                counts[match[1]] = max(counts[match[1]], int(match[2]) + 1)
        problem = None
        if heads * head != width:
            problem = f"{heads} heads of {head} channels do not make a width of {width}."
        elif 3 * patch**2 != pixels:
            problem = f"{pixels} numbers are not a square patch of RGB pixels."
        elif counts["pose_encoder"] != counts["renderer"]:
            problem = f"{counts['pose_encoder']} and {counts['renderer']} blocks: both networks need as many."
        if problem:
            raise DataError("weights", "shapes", problem, "Give the weights of both networks of XFactor.")
        return cls(
            width=width, heads=heads, blocks=counts["pose_encoder"], patch=patch,
            pose=shape("pose_encoder.head.fc2.weight", 2)[0], registers=registers,
        )  # fmt: skip
