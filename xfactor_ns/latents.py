"""Pose latents of the gallery's clips, computed when first asked for and kept until the weights change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from xfactor_ns.camera_control import Mixture, PosePath
from xfactor_ns.transfer import Net, clip_latents, context_frames, device_of


@dataclass(frozen=True)
class ShownClip:
    """A clip of the gallery (spec xfactor 8.2), as the pictures need it.

    Attributes:
        id: its name.
        split: ``train`` or ``test``.
        numbers: of the shown frames, in the whole clip; ascending.
        c2w: their cameras in the gallery's world, OpenGL axes, float64.
        read: gives their pixels, uint8 [F H W 3].
        window: the longest window of training samples from it, frames; None: not known.
    """

    id: str
    split: str
    numbers: tuple[int, ...]
    c2w: Float[np.ndarray, "f 3 4"]
    read: Callable[[], UInt8[np.ndarray, "f h w 3"]]
    window: float | None = None

    @property
    def reference(self) -> int:
        """The middle frame: latents are poses relative to it, and alone it is the stereo model's context."""
        return len(self.numbers) // 2

    @cached_property
    def path(self) -> PosePath:
        """The cameras relative to the reference."""
        return PosePath.of(self.c2w, self.reference)


class LatentBank:
    """Latents by clip and frame, pixels by clip (the most recent few).

    A picture on the way can be interrupted at any line (nerfstudio's viewer raises in it when the mouse moves), and
    several browsers ask: everything is computed first and stored by one assignment.
    """

    def __init__(self, batch: int = 8, clips_kept: int = 8) -> None:
        self.batch, self.clips_kept = batch, clips_kept
        self._version: tuple = ()
        self._latents: dict[tuple[str, int], Tensor] = {}
        self._pixels: OrderedDict[tuple[str, torch.device], Tensor] = OrderedDict()

    @staticmethod
    def version(net: Net) -> tuple:
        """Changes whenever a weight does: torch counts the in-place writes of every tensor."""
        parameters = list(net.pose_encoder.parameters()) + list(net.renderer.parameters())
        places = tuple(value.data_ptr() for value in parameters[:1])
        return id(net), places, sum(value._version for value in parameters)

    def pixels(self, net: Net, clip: ShownClip) -> UInt8[Tensor, "f h w 3"]:
        """The clip's shown frames on the network's device."""
        key = clip.id, device_of(net)
        found = self._pixels.get(key)
        if found is None:
            found = torch.from_numpy(np.array(clip.read())).to(key[1])
            self._pixels[key] = found
            while len(self._pixels) > self.clips_kept:
                self._pixels.popitem(last=False)
        return found

    def latents(self, net: Net, clip: ShownClip, frames: Sequence[int]) -> Float[Tensor, "n p"]:
        """Latents of some frames of a clip relative to its reference, whose own is exactly zero.

        Args:
            frames: indices into the clip's shown frames.
        """
        version = self.version(net)
        if version != self._version:
            self._latents = {}
            self._version = version
        store = self._latents
        missing = [frame for frame in dict.fromkeys(frames) if (clip.id, frame) not in store]
        if missing:
            pixels = self.pixels(net, clip)
            found = clip_latents(net, pixels[[clip.reference, *missing]], 0, self.batch)
            new = {(clip.id, frame): row for frame, row in zip(missing, found[1:], strict=True)}
            new |= {(clip.id, clip.reference): torch.zeros_like(found[0])}
            store.update(new)
        return torch.stack([store[clip.id, frame] for frame in frames])

    def mixed(self, net: Net, clip: ShownClip, mixture: Mixture) -> Float[Tensor, "p"]:
        """The weighted sum of frames' latents."""
        latents = self.latents(net, clip, mixture.frames)
        return latents.new_tensor(mixture.weights) @ latents

    def context(
        self, net: Net, clip: ShownClip, count: int
    ) -> tuple[list[int], UInt8[Tensor, "v h w 3"], Float[Tensor, "v p"]]:
        """What the renderer sees of a clip: which frames (the reference first), their pixels and latents."""
        chosen = context_frames(len(clip.numbers), count, clip.reference)
        return chosen, self.pixels(net, clip)[chosen], self.latents(net, clip, chosen)
