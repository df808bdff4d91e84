"""The camera motion of one clip in the scene of another (XFactor, Mitchel et al. 2026; spec xfactor 6).

Frames are uint8 ``[F H W 3]``, display sRGB; a latent ``[Dp]`` is the pose of a frame relative to the clip's reference
frame, whose own latent is exactly zero. Rendered with frames of another scene as context, the latents of a clip move
that scene's reference camera as the clip's camera moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, Union

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

Frames = Union[UInt8[Tensor, "F H W 3"], UInt8[np.ndarray, "F H W 3"]]


class Net(Protocol):
    """What of the network is used here: `XFactorNet`, or a double in tests."""

    @property
    def pose_encoder(self) -> nn.Module:
        """Pairs of frames to latents."""
        ...

    @property
    def renderer(self) -> nn.Module:
        """Context frames and latents to a frame."""
        ...


class Transfer(NamedTuple):
    """A trajectory carried over: the rendered frames uint8 ``[F H W 3]``, and the latents ``[F Dp]`` they show."""

    frames: UInt8[Tensor, "F H W 3"]
    latents: Float[Tensor, "F Dp"]


def device_of(net: Net) -> torch.device:
    """Where the network lives; the CPU for one without parameters."""
    return next((value.device for value in net.pose_encoder.parameters()), torch.device("cpu"))


def to_network(frames: UInt8[Tensor, "*shape"], device: torch.device | None = None) -> Float[Tensor, "*shape"]:
    """uint8 to the networks' range: x = 2 (u / 255) - 1 (spec 2.2)."""
    return frames.to(device).float() / 255 * 2 - 1


def from_network(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """The networks' range (-1, 1) to the nearest uint8."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _checked(frames: Frames) -> UInt8[Tensor, "F H W 3"]:
    if isinstance(frames, np.ndarray):  # torch warns of arrays that may not be written to; caches hand those out
        frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"expected frames as uint8 [F, H, W, 3], got {frames.dtype} {tuple(frames.shape)}")
    return frames


def _slices(count: int, batch: int) -> Iterator[slice]:
    if batch < 1:
        raise ValueError(f"the batch is {batch}, not at least 1")
    return (slice(first, min(first + batch, count)) for first in range(0, count, batch))


def _index(value: int, count: int) -> int:
    if not -count <= value < count:
        raise ValueError(f"frame {value} is not one of {count}")
    return value % count


@torch.no_grad()
def clip_latents(net: Net, frames: Frames, reference: int, batch: int = 8) -> Float[Tensor, "F Dp"]:
    """Pose latents of every frame of a clip relative to one of them: ``Z_i = PoseEnc(frames[reference], frames[i])``.

    Latents are pairwise, whatever the clip's length (also those of the multi-view model, spec 4.3).

    Args:
        frames: uint8 ``[F H W 3]``, sides multiples of the patch; on any device.
        reference: index of the frame to which the poses are relative; its own row is exactly zero.
        batch: pairs per call of the network.

    Returns:
        float32 ``[F Dp]`` on the network's device.

    Raises:
        ValueError: frames of another form, or no such reference.
    """
    frames = _checked(frames)
    reference, device = _index(reference, len(frames)), device_of(net)
    first = to_network(frames[reference], device)
    found = []
    for part in _slices(len(frames), batch):
        others = to_network(frames[part], device)
        pairs = torch.stack([first.expand_as(others), others], dim=1)
        found.append(net.pose_encoder(pairs)[:, 1].float())
    latents = torch.cat(found)
    latents[reference] = 0  # so by the head's difference; rows of one matrix product may differ in the last bit
    return latents


@torch.no_grad()
def render_images(
    net: Net,
    context: Frames,
    context_latents: Float[Tensor, "Vc Dp"],
    latents: Float[Tensor, "F Dp"],
    batch: int = 8,
) -> Iterator[Float[Tensor, "_ H W 3"]]:
    """`render_latents` a batch at a time, as the network gives it: float32 in (-1, 1), on its device."""
    context = _checked(context)
    if context_latents.ndim != 2 or len(context_latents) != len(context):
        raise ValueError(f"{len(context)} context frames with latents {tuple(context_latents.shape)}")
    if latents.ndim != 2 or latents.shape[1] != context_latents.shape[1]:
        raise ValueError(f"latents {tuple(latents.shape)}, context latents {tuple(context_latents.shape)}")
    device = device_of(net)
    seen, known = to_network(context, device), context_latents.to(device).float()
    for part in _slices(len(latents), batch):
        wanted = latents[part].to(device).float()
        poses = torch.cat([known.expand(len(wanted), -1, -1), wanted[:, None]], dim=1)
        yield net.renderer(seen.expand(len(wanted), *seen.shape), poses).float()


def render_latents(
    net: Net,
    context: Frames,
    context_latents: Float[Tensor, "Vc Dp"],
    latents: Float[Tensor, "F Dp"],
    batch: int = 8,
) -> UInt8[Tensor, "F H W 3"]:
    """Views of the context's scene at pose latents, of this clip's or another's.

    Args:
        context: uint8 ``[Vc H W 3]``: one frame for the stereo model, five for the multi-view one (any number goes).
        context_latents: their poses ``[Vc Dp]`` relative to the context's reference frame, whose row is zero.
        latents: poses to render ``[F Dp]``.
        batch: frames per call of the network; each holds the context once more.

    Returns:
        uint8 ``[F H W 3]`` on the network's device.

    Raises:
        ValueError: the shapes do not fit one another.
    """
    if not len(latents):
        raise ValueError("there are no latents to render")
    return torch.cat([from_network(images) for images in render_images(net, context, context_latents, latents, batch)])


def context_frames(length: int, count: int, reference: int | None = None) -> list[int]:
    """Which frames of a clip serve as context: the reference first, then the others in order (spec 6).

    Args:
        length: frames of the clip.
        count: context frames wanted; no more are given than the clip has.
        reference: default: the middle frame.

    Returns:
        Distinct indices: the reference, and ``count - 1`` others spread evenly over the whole clip.
    """
    reference = _index(length // 2 if reference is None else reference, length)
    others = [index for index in range(length) if index != reference]
    wanted = min(count, length) - 1
    if wanted < 0:
        raise ValueError(f"{count} context frames are too few")
    if wanted == 1:
        places = [len(others) - 1]
    else:
        places = [round(i * (len(others) - 1) / max(wanted - 1, 1)) for i in range(wanted)]
    return [reference, *(others[place] for place in places)]


def transfer(
    net: Net,
    source: Frames,
    scene: Frames,
    *,
    source_reference: int | None = None,
    context: Sequence[int] | None = None,
    batch: int = 8,
) -> Transfer:
    """The camera motion of ``source`` in the scene of ``scene``.

    Args:
        source: clip A, uint8 ``[F H W 3]``: its motion.
        scene: clip B, uint8 ``[G H W 3]``: its looks.
        source_reference: frame of A that stands where B's reference stands; default: the middle one.
        context: frames of B that the renderer sees, the reference first; default: its middle frame alone.
        batch: frames or pairs per call of the network.

    Returns:
        Frame i is B seen from where ``context[0]`` comes to stand when it is moved as A's camera moved from its
        reference to its frame i.

    Raises:
        ValueError: frames of another form, or no such frame.
    """
    source, scene = _checked(source), _checked(scene)
    latents = clip_latents(net, source, len(source) // 2 if source_reference is None else source_reference, batch)
    chosen = list(context) if context is not None else context_frames(len(scene), 1)
    seen, known = scene_context(net, scene, chosen, batch)
    return Transfer(render_latents(net, seen, known, latents, batch), latents)


def scene_context(
    net: Net, scene: Frames, chosen: Sequence[int], batch: int = 8
) -> tuple[UInt8[Tensor, "Vc H W 3"], Float[Tensor, "Vc Dp"]]:
    """Context frames of a scene and their latents relative to the first of them.

    Args:
        chosen: indices into ``scene``, the reference first (see `context_frames`).
    """
    scene = _checked(scene)
    seen = scene[torch.tensor([_index(index, len(scene)) for index in chosen])]
    return seen, clip_latents(net, seen, 0, batch)


def interpolate_latents(
    latents: Float[Tensor, "F Dp"], positions: Union[Float[Tensor, "P"], Float[np.ndarray, "P"]]
) -> Float[Tensor, "P Dp"]:
    """Latents between frames: the two neighbours blended linearly; at a whole position the frame's own, bit for bit.

    Args:
        positions: in frames, 0 to F - 1; values beyond are clamped to the ends.
    """
    places = torch.as_tensor(positions, dtype=torch.float64, device=latents.device).clamp(0, len(latents) - 1)
    below = places.floor().long()
    above = (below + 1).clamp(max=len(latents) - 1)
    share = (places - below).to(latents.dtype)[:, None]
    return torch.where(share == 0, latents[below], torch.lerp(latents[below], latents[above], share))


def inserted(length: int, between: int) -> Float[np.ndarray, "P"]:
    """Positions of ``length`` frames with ``between`` more, evenly spaced, in each gap."""
    if length < 1 or between < 0:
        raise ValueError(f"{length} frames with {between} between them")
    return np.arange((length - 1) * (between + 1) + 1) / (between + 1)


def nearest_frames(positions: Float[np.ndarray, "P"], length: int) -> Int[np.ndarray, "P"]:
    """The frame of a clip that stands nearest to each position (the later one half-way)."""
    return np.clip(np.floor(np.asarray(positions) + 0.5), 0, length - 1).astype(np.int64)
