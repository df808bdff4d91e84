"""The reference photo seen from another camera: its depth mesh, rendered with holes (spec megascenes 3.3, 3.4).

What the original's OpenGL renderer does, without OpenGL: unlit vertex colours, back faces culled, a black background,
four samples per pixel whose mean darkens the borders of holes. Two backends find out which triangle each sample sees,
`warp_cast` with the shared ray caster and `warp_torch` with a batched rasteriser; colours and depths come from
`edge_functions.shade` for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from core_ns.raycast import CasterName
from megascenes_ns.edge_functions import Shading, see_faces, shade
from megascenes_ns.mesh import DepthMesh
from megascenes_ns.prepare import pad, resize_pad
from megascenes_ns.warp_cast import cast_faces
from megascenes_ns.warp_torch import rasterise

Array = np.ndarray
Backend = Literal["auto", "cast", "torch"]
LowMode = Literal["original", "area_from_256"]

NEAR = 1e-3
FACES_AT_A_TIME = 1 << 21
"""Triangles times cameras rendered together on a CUDA device, at some 500 bytes each."""
LOW = 32
"""Side of the latents of a picture of 256."""


class Warp(NamedTuple):
    """Float32 pictures; `render_many` stacks them along a leading axis."""

    rgb: Float32[Array, "*n h w 3"]
    """[0, 1]; holes are black, and where only part of a pixel's samples hit, so is the rest: see ``coverage``."""
    coverage: Float32[Array, "*n h w"]
    """Share of the samples that hit, in [0, 1]; the hole mask is ``coverage == 0``."""
    depth: Float32[Array, "*n h w"]
    """Along the target's z, in the mesh's units; 0 in holes. Of several surfaces in a pixel the harmonic mean."""


@dataclass(frozen=True)
class RenderOptions:
    """How `render` samples; the defaults are the original's."""

    spp: int = 4
    """Samples per pixel: 1 at the centre, 4 on the rotated grid of graphics cards, 9 or 16 on a regular one."""
    near: float = NEAR
    far: float = math.inf
    shading: Shading = "centre"
    """Where each visible triangle's colour is taken: at the pixel's centre, as graphics cards do with several samples
    (the original's pictures are met three to forty times as closely), or at every sample."""
    caster: CasterName = "auto"
    """Ray caster of the backend "cast"."""


def sample_offsets(spp: int) -> Float[Tensor, "spp 2"]:
    """Places of the samples relative to the pixel's centre, in pixels, float64.

    Raises:
        ValueError: neither 4 nor a square number from 1 to 64.
    """
    if spp == 4:
        return torch.tensor([[-1, -3], [3, -1], [1, 3], [-3, 1]], dtype=torch.float64) / 8
    side = math.isqrt(max(spp, 0))
    if side * side != spp or not 1 <= side <= 8:
        raise ValueError(f"samples per pixel must be 1, 4, 9, 16, ..., 64, got {spp}")
    places = (torch.arange(side, dtype=torch.float64) + 0.5) / side - 0.5
    return torch.cartesian_prod(places, places)


def render(
    mesh: DepthMesh,
    K: Float[Array, "3 3"],
    c2w_opencv: Float[Array, "4 4"],
    height: int,
    width: int,
    spp: int = 4,
    backend: Backend = "auto",
    *,
    device: torch.device | str = "cpu",
    options: RenderOptions | None = None,
) -> Warp:
    """Render a mesh from one camera.

    Args:
        mesh: of the reference.
        K: target intrinsics for ``width`` x ``height``, pixel centres at +0.5.
        c2w_opencv: target camera to the mesh's world, OpenCV axes, in the mesh's units.
        height, width: of the picture.
        spp: samples per pixel; ``options.spp`` is not looked at.
        backend: "torch" (rasteriser, on ``device``), "cast" (ray caster, on the CPU), or "auto": torch, which is the
            faster of the two there as well (benchmarks/warp.py).
        device: where "torch" computes.
        options: everything else.

    Raises:
        ValueError: a camera that is none, or an unknown backend or number of samples.
    """
    many = render_many(
        mesh,
        np.asarray(K)[None],
        np.asarray(c2w_opencv)[None],
        height,
        width,
        spp,
        backend,
        device=device,
        options=options,
    )
    return Warp(many.rgb[0], many.coverage[0], many.depth[0])


def render_many(
    mesh: DepthMesh,
    Ks: Float[Array, "n 3 3"],
    c2ws_opencv: Float[Array, "n 4 4"],
    height: int,
    width: int,
    spp: int = 4,
    backend: Backend = "auto",
    *,
    device: torch.device | str = "cpu",
    options: RenderOptions | None = None,
) -> Warp:
    """`render` for n cameras at once; results do not depend on how many are rendered together.

    Args: see `render`; one K for all cameras, [1, 3, 3], will do.

    Raises: see `render`.
    """
    chosen = options or RenderOptions()
    offsets = sample_offsets(spp)
    intrinsics, poses = _cameras(Ks, c2ws_opencv, height, width)
    place = torch.device(device)
    if backend == "auto":
        backend = "torch"
    if backend not in ("cast", "torch"):
        raise ValueError(f"unknown backend {backend!r}; there are auto, cast and torch")
    place = place if backend == "torch" else torch.device("cpu")
    views = [_empty(0, height, width)]
    step = max(1, FACES_AT_A_TIME // max(len(mesh.faces), 1)) if place.type == "cuda" else 1
    for start in range(0, len(poses), step):
        part = slice(start, start + step)
        views.append(_render(mesh, intrinsics[part], poses[part], height, width, offsets, backend, place, chosen))
    return Warp(*(np.concatenate(each) for each in zip(*views, strict=True)))


def _cameras(Ks: Array, c2ws: Array, height: int, width: int) -> tuple[Tensor, Tensor]:
    """As float64 tensors [n, 3, 3] and [n, 4, 4]; refuses what is no camera."""
    intrinsics, poses = np.array(Ks, dtype=np.float64), np.array(c2ws, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
        raise ValueError(f"expected finite camera-to-world matrices [n, 4, 4], got {poses.shape}")
    if np.abs(poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1) - np.eye(3)).max(initial=0.0) > 1e-3:
        raise ValueError("a camera-to-world matrix is not rigid")
    if intrinsics.shape not in ((len(poses), 3, 3), (1, 3, 3)) or not np.isfinite(intrinsics).all():
        raise ValueError(f"expected finite intrinsics [{len(poses)} or 1, 3, 3], got {intrinsics.shape}")
    if (intrinsics[:, [0, 1], [0, 1]] <= 0).any() or not np.allclose(intrinsics[:, 2], [0, 0, 1]):
        raise ValueError("intrinsics need positive focal lengths and the last row 0 0 1")
    if min(height, width) < 1:
        raise ValueError(f"cannot render {width}x{height} pixels")
    intrinsics = np.broadcast_to(intrinsics, (len(poses), 3, 3)).copy()
    return torch.from_numpy(intrinsics), torch.from_numpy(poses)


def _empty(count: int, height: int, width: int) -> Warp:
    flat = np.zeros((count, height, width), np.float32)
    return Warp(np.zeros((count, height, width, 3), np.float32), flat, flat.copy())


@torch.no_grad()
def _render(
    mesh: DepthMesh, Ks: Tensor, c2ws: Tensor, height: int, width: int, offsets: Tensor, backend: str,
    device: torch.device, options: RenderOptions,
) -> Warp:  # fmt: skip
    """`render_many` of as many cameras as fit into memory together."""
    if len(mesh.faces) == 0:
        return _empty(len(c2ws), height, width)
    vertices, faces, colours = (torch.from_numpy(x).to(device) for x in (mesh.vertices, mesh.faces, mesh.colours))
    seen = see_faces(vertices, faces, Ks.to(device), c2ws.to(device))
    if backend == "torch":
        visible = rasterise(seen, len(c2ws), offsets, height, width, options.near, options.far)
    else:
        front = seen.volume > 0
        visible = cast_faces(
            mesh, front, Ks[0], c2ws[0], offsets, height, width, options.near, options.far, options.caster
        )[None]  # fmt: skip
    rgb, coverage, depth = shade(seen, faces, colours, visible, offsets, width, options.shading)
    size = (len(c2ws), height, width)
    return Warp(
        rgb.reshape(*size, 3).cpu().numpy(), coverage.reshape(size).cpu().numpy(), depth.reshape(size).cpu().numpy()
    )


# ---------------------------------------------------------------------- for the networks


def warp_bytes(rgb: Float[Array, "*n h w 3"]) -> UInt8[Array, "*n h w 3"]:
    """Floats in [0, 1] to the 8-bit picture that a graphics card would have written."""
    return np.rint(np.clip(rgb, 0.0, 1.0) * 255).astype(np.uint8)


def warp_low(
    warp: Warp | UInt8[Array, "h w 3"], canvas: int = LOW, mode: LowMode = "original"
) -> Float32[Array, "canvas canvas 3"]:
    """A warp at the latents' resolution, RGB on white: three input channels of the network.

    "original" resizes the unpadded warp by itself (Lanczos), so that its place in the small square may differ by up to
    half a cell from its place in the large one; "area_from_256" pads it in the large square first and averages blocks,
    of 8 x 8 for a picture of 256 (spec megascenes 3.3).

    Args:
        warp: unpadded, its longest side that of the networks' pictures; or its 8-bit colours.
        canvas: side of the latents.
        mode: see above.

    Returns:
        [0, 1]; networks take 2 x - 1.

    Raises:
        ValueError: an unknown mode, or, of "area_from_256", a warp whose longest side is no multiple of ``canvas``.
    """
    picture = warp_bytes(warp.rgb) if isinstance(warp, Warp) else warp
    if mode == "original":
        return resize_pad(picture, canvas).astype(np.float32) / np.float32(255)
    if mode != "area_from_256":
        raise ValueError(f"unknown mode {mode!r}; there are original and area_from_256")
    side = max(picture.shape[:2])
    if side % canvas:
        raise ValueError(f"blocks of a picture of {side} pixels do not fill {canvas} cells")
    block = side // canvas
    blocks = pad(picture, side).reshape(canvas, block, canvas, block, 3)
    return blocks.mean(axis=(1, 3), dtype=np.float32) / np.float32(255)
