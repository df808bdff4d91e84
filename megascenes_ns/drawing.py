"""From references and cameras to pictures: warps, then one batch through the networks (spec megascenes 7, 8.3).

The viewer, ``ns-render``, whole trajectories and the generation of a test split all draw here, so that a view is
the same picture wherever it is asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8

from megascenes_ns.conditioning import Uncond, condition
from megascenes_ns.networks import Encoded, Networks
from megascenes_ns.picture_cache import POSE_DIGITS
from megascenes_ns.pose_vector import Squash, diagonal_fov, pose_vector_from_rel
from megascenes_ns.prepare import crop, fitted_size, scaled_intrinsics
from megascenes_ns.reference import Reference
from megascenes_ns.sampler import Sampler, sample, view_generators
from megascenes_ns.warp import Backend, LowMode, Warp, render_many, warp_low

Array = np.ndarray

ENCODED = 16
"""References whose latents are kept; one takes some 20 KB."""


@dataclass(frozen=True)
class Settings:
    """How a picture is sampled."""

    sampler: Sampler
    steps: int
    guidance: float
    uncond: Uncond


@dataclass(frozen=True, eq=False)
class View:
    """A camera that looks at a reference's scene."""

    reference: Reference
    pose: Float[Array, "4 4"]
    """Camera to the canonical world, OpenCV axes; the reference's ``rel`` of it is ``rel`` before the scale."""
    rel: Float[Array, "4 4"]
    """Camera to the reference's frame, in its depth's unit: what the warp and the networks get. Rounded, so that
    cameras the cache takes for one are one."""
    K: Float[Array, "3 3"]
    """On the canvas."""
    size: tuple[int, int]
    """(width, height) on the canvas, unpadded; the longest side is the canvas's."""
    fov: float
    """Diagonal, radians."""
    scale: float = 1.0
    """What the translation was multiplied by."""

    @property
    def unit(self) -> float:
        """Length of a unit of ``rel`` in the canonical world."""
        return self.reference.unit / self.scale


def view_of(
    reference: Reference,
    pose: Float[Array, "4 4"],
    K: Float[Array, "3 3"],
    width: int,
    height: int,
    scale: float = 1.0,
) -> View:
    """A view from a camera of any size.

    Args:
        reference: what is seen.
        pose: camera to the canonical world, OpenCV axes.
        K: for ``width`` x ``height``.
        width, height: pixels.
        scale: multiplies the translation from the reference.
    """
    canvas = reference.prepared.canvas
    size = fitted_size(width, height, canvas)
    rel = reference.rel(pose)
    rel[:3, 3] *= scale
    fov = float(diagonal_fov(K[0, 0], width, height))
    return View(
        reference, np.asarray(pose, np.float64), np.round(rel, POSE_DIGITS) + 0.0,
        scaled_intrinsics(K, (width, height), size), size, fov, scale,
    )  # fmt: skip


class Drawer:
    """Warps and pictures of views; keeps what the networks make of the references used last.

    Args:
        samples_per_pixel: of warps.
        backend: of warps.
        low: how a warp comes to the latents' size.
        squash: of poses.
        precision: bf16 runs the networks under autocast.
    """

    def __init__(
        self,
        samples_per_pixel: int = 4,
        backend: Backend = "auto",
        low: LowMode = "original",
        squash: Squash = "none",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        self.samples_per_pixel = samples_per_pixel
        self.backend: Backend = backend
        self.low: LowMode = low
        self.squash: Squash = squash
        self.precision = precision
        self._encoded: OrderedDict[tuple[str, str], Encoded] = OrderedDict()

    @property
    def warp_settings(self) -> str:
        """What decides about a picture's warp, for cache keys."""
        return f"{self.samples_per_pixel} {self.low} {self.squash}"

    def warps(self, views: Sequence[View], device: torch.device | str = "cpu") -> list[Warp]:
        """Warps on the canvas, in the views' order; depth is in units of ``rel``. Views of one reference, size and
        place in the list's runs are rendered together.

        Args:
            views: any number.
            device: where the rasteriser computes.
        """
        groups: dict[tuple[int, tuple[int, int]], list[int]] = {}
        for place, view in enumerate(views):
            groups.setdefault((id(view.reference), view.size), []).append(place)
        found: dict[int, Warp] = {}
        for (_, (width, height)), places in groups.items():
            many = render_many(
                views[places[0]].reference.mesh,
                np.stack([views[place].K for place in places]),
                np.stack([views[place].rel for place in places]),
                height, width, self.samples_per_pixel, self.backend, device=device,
            )  # fmt: skip
            for row, place in enumerate(places):
                found[place] = Warp(many.rgb[row], many.coverage[row], many.depth[row])
        return [found[place] for place in range(len(views))]

    @torch.no_grad()
    def pictures(
        self,
        nets: Networks,
        views: Sequence[View],
        warps: Sequence[Warp],
        settings: Settings,
        seeds: Sequence[int],
        cancel: Callable[[], bool] | None = None,
    ) -> list[UInt8[Array, "h w 3"]]:
        """Sample views as one batch.

        Args:
            nets: the networks.
            views: of references of one canvas.
            warps: of these views.
            settings: of the sampler.
            seeds: of each view's noise.
            cancel: asked before every step.

        Returns:
            Pictures of the views' sizes, without padding.

        Raises:
            Cancelled: ``cancel`` said so.
        """
        with self._precision(nets.device):
            encoded = [self.encoded(nets, view.reference) for view in views]
            both = Encoded(
                torch.cat([each.latent for each in encoded]), torch.cat([each.embedding for each in encoded])
            )
            pose = np.stack([pose_vector_from_rel(view.rel, view.fov, self.squash) for view in views])
            low = None
            if nets.sizes.warp_channels:
                cells = both.latent.shape[-1]
                low = torch.from_numpy(np.stack([warp_low(warp, cells, self.low) for warp in warps]))
            given = condition(nets, both, torch.from_numpy(pose), low)
            latents = sample(
                nets, given, settings.steps, settings.sampler, settings.guidance, settings.uncond,
                view_generators(seeds), cancel, limit=nets.latent_limit,
            )  # fmt: skip
            squares = nets.decode(latents)
        pixels = (squares.float() * 255 + 0.5).to(torch.uint8).cpu().numpy()
        return [np.ascontiguousarray(crop(square, *view.size)) for square, view in zip(pixels, views, strict=True)]

    def encoded(self, nets: Networks, reference: Reference) -> Encoded:
        """What the frozen networks make of a reference; computed once."""
        key = (reference.key, frozen_version(nets))
        found = self._encoded.get(key)
        if found is None:
            found = nets.encode_reference(torch.from_numpy(reference.prepared.padded)[None])
            self._encoded[key] = found
            while len(self._encoded) > ENCODED:
                self._encoded.popitem(last=False)
        return found

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()


def frozen_version(nets: Networks) -> str:
    """Changes when the frozen networks are replaced, moved or written to."""
    first = next(nets.vae.parameters())
    return f"{id(nets)} {first.device} {first.dtype} {_writes(nets.vae)} {_writes(nets.image_encoder)}"


def weights_version(nets: Networks) -> str:
    """Changes whenever any weight does; means nothing in another process."""
    return f"{id(nets)} {_writes(nets)}"


def _writes(module: torch.nn.Module) -> int:
    """How often the weights have been written to, which torch counts per tensor."""
    return sum(parameter._version for parameter in module.parameters())


def weights_fingerprint(nets: Networks) -> str:
    """Hash of the weights' sums, the same in every process that has them; reads all weights once."""
    import hashlib

    found = hashlib.sha256()
    with torch.no_grad():
        for name, tensor in sorted(nets.state_dict().items()):
            values = tensor.double() if tensor.is_floating_point() else tensor.to(torch.float64)
            ramp = torch.linspace(1.0, 2.0, values.numel(), dtype=torch.float64, device=values.device)
            sums = [float(values.sum()), float(values.abs().sum()), float((values.flatten() * ramp).sum())]
            found.update(f"{name} {tuple(tensor.shape)} {sums}".encode())
    return found.hexdigest()[:24]
