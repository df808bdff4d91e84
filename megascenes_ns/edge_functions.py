"""Triangles in homogeneous pixel coordinates: which pixels they cover, how deep they lie, what colour they show.

A triangle with camera-space corners X_k and homogeneous pixels p_k = K X_k covers the pixel q = (u, v, 1) where the
three edge functions e_0 = (p_2 x p_1) . q and its cyclic fellows are not negative. With the volume w = -det [p_0 p_1
p_2], positive for triangles that face the camera, e_k / sum(e) are the perspective-correct weights of the corners and
sum(e) / w is the inverse depth. Nothing is divided by the depth of a corner, so triangles that reach behind the camera
need no clipping. Neighbours compute the functions of their common edge from the same numbers with opposite signs: no
pixel slips between them. Everything is float64: at float32 a deep triangle's edges would be off by a hundredth of a
pixel.

Source: Olano and Greer, "Triangle scan conversion using 2D homogeneous coordinates" (1997).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float32, Float64, Int, Int64, Shaped
from torch import Tensor

Shading = Literal["centre", "sample"]


class SeenFaces(NamedTuple):
    """F triangles of one mesh before n cameras; the last axis runs over cameras, then faces."""

    corners: Float64[Tensor, "3 3 nf"]
    """Homogeneous pixels: corner, component (x, y, z = depth)."""
    edges: Float64[Tensor, "3 3 nf"]
    """Edge function, coefficient (of u, v, 1)."""
    volume: Float64[Tensor, "nf"]
    """Positive where the front is seen."""


def pinhole_rays(Ks: Float[Tensor, "n 3 3"], points: Float64[Tensor, "p 2"]) -> Float64[Tensor, "n p 3"]:
    """Directions K^-1 (u, v, 1) of continuous pixels in the OpenCV camera's frame, of depth 1."""
    homogeneous = torch.cat([points, torch.ones_like(points[:, :1])], dim=1)
    return homogeneous @ torch.linalg.inv(Ks.double()).transpose(1, 2)


def see_faces(
    vertices: Float32[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    Ks: Float64[Tensor, "n 3 3"],
    c2ws_opencv: Float64[Tensor, "n 4 4"],
) -> SeenFaces:
    """Bring a mesh before n pinhole cameras (OpenCV axes, camera to world)."""
    rotation, centre = c2ws_opencv[:, :3, :3], c2ws_opencv[:, :3, 3]
    pixels = (vertices.double() - centre[:, None]) @ rotation @ Ks.transpose(1, 2)
    rows = pixels.permute(2, 0, 1).reshape(-1, len(vertices)).contiguous()  # [3n, v]
    indices = [faces[:, k].long() for k in range(3)]
    corners = torch.stack([row.index_select(0, index) for index in indices for row in rows]).reshape(3, 3, -1)
    a, b, c = corners
    edges = torch.empty_like(corners)
    for k, (p, q) in enumerate(((c, b), (a, c), (b, a))):
        for x, (y, z) in enumerate(((1, 2), (2, 0), (0, 1))):
            # Neighbours have p and q swapped: the same products, exactly the opposite difference.
            torch.sub(p[y] * q[z], p[z] * q[y], out=edges[k, x])
    return SeenFaces(corners, edges, (edges[0] * a).sum(dim=0))


def pick(rows: Shaped[Tensor, "k m"], index: Int64[Tensor, "j"]) -> Shaped[Tensor, "k j"]:
    """``rows[:, index]``, which torch does three times as fast row by row on a CPU."""
    return torch.stack([row.index_select(0, index) for row in rows])


def evaluate(edges: Float64[Tensor, "9 m"], u: Float64[Tensor, "m"], v: Float64[Tensor, "m"]) -> Float64[Tensor, "3 m"]:
    """The three edge functions of m triangles, each at its own pixel."""
    return torch.stack([edges[3 * k] * u + edges[3 * k + 1] * v + edges[3 * k + 2] for k in range(3)])


def shade(
    seen: SeenFaces,
    faces: Int[Tensor, "f 3"],
    colours: Float32[Tensor, "v 3"],
    visible: Int64[Tensor, "n spp p"],
    offsets: Float64[Tensor, "spp 2"],
    width: int,
    shading: Shading,
) -> tuple[Float32[Tensor, "n p 3"], Float32[Tensor, "n p"], Float32[Tensor, "n p"]]:
    """Colours, coverage and depths of pictures, given which triangle each sample sees.

    Args:
        seen: the triangles before the n cameras.
        faces, colours: of the mesh.
        visible: index into the last axis of ``seen``, or -1.
        offsets: of the samples from the pixel's centre.
        width: of the pictures; pixels run row by row.
        shading: "centre" takes a triangle's colour at the pixel's centre, which may lie outside of it.

    Returns:
        rgb with holes black, share of samples that hit, harmonic mean of their depths (0 without any).
    """
    count, spp, pixels = visible.shape
    device = visible.device
    rgb = torch.zeros(count * pixels, 3, device=device)
    hits = torch.zeros(count * pixels, device=device)
    inverse_depth = torch.zeros(count * pixels, dtype=torch.float64, device=device)
    flat, corners = seen.edges.reshape(9, -1), faces.T.long()
    for sample in range(spp):
        chosen, place, times, x, y = _distinct(visible, offsets, sample, shading == "centre")
        edges = pick(flat, chosen)
        pixel = place % pixels
        u, v = (pixel % width).double() + 0.5, (pixel // width).double() + 0.5
        at_centre = evaluate(edges, u, v)
        at_samples = at_centre + x * edges[0::3] + y * edges[1::3]
        total = at_samples.sum(dim=0)
        weights = at_samples / total
        if shading == "centre":
            # Beyond its horizon a triangle has no colour: there its samples' own has to do.
            central = at_centre.sum(dim=0)
            weights = torch.where(central > 0.25 * total, at_centre / central, weights)
        corner = pick(corners, chosen if count == 1 else chosen % len(faces))
        each = [weights[k].float()[:, None] * colours.index_select(0, corner[k]) for k in range(3)]
        rgb[place] += (each[0] + each[1] + each[2]).clamp(0.0, 1.0) * times[:, None]
        hits[place] += times
        inverse_depth[place] += times * total / seen.volume.index_select(0, chosen)
    depth = torch.where(hits > 0, hits / inverse_depth, 0.0).float()
    return (
        (rgb / spp).reshape(count, pixels, 3),
        (hits / spp).reshape(count, pixels),
        depth.reshape(count, pixels),
    )


def _distinct(
    visible: Int64[Tensor, "n spp p"], offsets: Float64[Tensor, "spp 2"], sample: int, merge: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The triangles that one sample of each pixel sees, but for those that an earlier sample saw already.

    Most pixels see one or two triangles with their four samples. Inverse depth being linear over a triangle, its sum
    over samples is that of their mean place, so each triangle of a pixel need be evaluated only once.

    Args:
        visible, offsets: as in `shade`.
        sample: which.
        merge: join samples; otherwise each stands for itself.

    Returns:
        Triangle, pixel (of all pictures), number of samples that see it, and their mean place (x, y).
    """
    own = visible[:, sample]
    new = own >= 0
    times = torch.ones_like(own, dtype=torch.float32)
    x, y = (torch.full_like(own, value, dtype=torch.float64) for value in offsets[sample].tolist())
    for other in range(visible.shape[1]) if merge else ():
        same = visible[:, other] == own
        if other < sample:
            new &= ~same
        elif other > sample:
            times += same
            x += offsets[other, 0].item() * same
            y += offsets[other, 1].item() * same
    place = new.reshape(-1).nonzero()[:, 0]
    chosen, times, x, y = (part.reshape(-1).index_select(0, place) for part in (own, times, x, y))
    return chosen, place, times, x / times, y / times
