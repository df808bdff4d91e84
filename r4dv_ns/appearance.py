"""Colour of a point: photos of the source views blended, plus a view-dependent residual (spec r4dv 4.4 and 4.5).

``c = clamp(c_ibr + c_sh, 0, 1)``. The blend depends on the point and the photos, never on the view that is rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from r4dv_ns import harmonics
from r4dv_ns.blend_logits import blend_logits
from r4dv_ns.feature_net import FEATURES, FeatureNet
from r4dv_ns.row_blend import corner_weights, interpolate_rows
from r4dv_ns.source_choice import choose_sources, rank_sources, training_sources

__all__ = [
    "BlendHead",
    "FeatureNet",
    "ShHead",
    "Source",
    "choose_sources",
    "occlusion_penalty",
    "project",
    "rank_sources",
    "sample_source",
    "sample_sources",
    "training_sources",
    "view_directions",
]

SAMPLE = FEATURES + 3
"""Length of g: 8 features of the network, then the photo's red, green and blue."""
INVALID = -1e4
"""Logit of a source that cannot see the point: its weight is exactly zero."""
NEAR = 1e-4
_ACROSS_AND_DOWN = ((0, 1),)


@dataclass(frozen=True)
class Source:
    """One photo of a source view at one moment, cropped."""

    image: Float[Tensor, "3 h w"]
    """Display sRGB in [0, 1]."""
    K: Float[Tensor, "3 3"]
    """Intrinsics in pixels of this crop; the outer corner of its first pixel is (0, 0)."""
    w2c: Float[Tensor, "4 4"]
    """OpenCV world-to-camera."""
    valid: Bool[Tensor, "h w"] | None
    """False where undistortion left no picture; None: all of it is valid."""
    view: int
    """Index of the view among the selected ones."""

    def to(self, device: torch.device | str) -> Source:
        """The same source with its tensors on ``device``."""
        valid = None if self.valid is None else self.valid.to(device, non_blocking=True)
        image, K, w2c = (tensor.to(device, non_blocking=True) for tensor in (self.image, self.K, self.w2c))
        return replace(self, image=image, K=K, w2c=w2c, valid=valid)


def project(
    xyz_world: Float[Tensor, "n 3"], K: Float[Tensor, "3 3"], w2c: Float[Tensor, "4 4"]
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n"]]:
    """Pixel coordinates (u, v) and depth z; what lies nearer than 1e-4, or behind, is divided by 1e-4 instead of z."""
    K, w2c = K.to(xyz_world), w2c.to(xyz_world)
    camera = xyz_world @ w2c[:3, :3].T + w2c[:3, 3]
    depth = camera[:, 2]
    scaled = camera[:, :2] / depth.clamp_min(NEAR)[:, None]
    return scaled @ K[:2, :2].T + K[:2, 2], depth


def sample_source(
    source: Source, features: Float[Tensor, "8 h w"], xyz_world: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, "n 11"], Bool[Tensor, "n"]]:
    """What one source photo shows at the points: see `sample_sources`."""
    g, visible = sample_sources([source], [features], xyz_world)
    return g[0], visible[0]


def sample_sources(
    sources: Sequence[Source], features: Sequence[Float[Tensor, "8 h w"]], xyz_world: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, "s n 11"], Bool[Tensor, "s n"]]:
    """``g_s = [feature, rgb]``, bilinear at the points' projections into every source (spec r4dv 4.4).

    Args:
        sources: photos; their sizes may differ.
        features: `FeatureNet` of each.
        xyz_world: points.

    Returns:
        g: read at the nearest place inside the photo where the projection falls outside it. Differentiable in the
            features and the points.
        visible: the point is in front of the camera, its projection inside the photo, and all four pixels that it was
            read from are valid.

    Raises:
        ValueError: no source, or features of another size than their photo.
    """
    if not sources:
        raise ValueError("a point needs at least one source photo")
    tables, rows, fractions, visible, start = [], [], [], [], 0
    for source, feature in zip(sources, features, strict=True):
        if feature.shape[1:] != source.image.shape[1:]:
            raise ValueError(f"features {tuple(feature.shape)} do not belong to a photo {tuple(source.image.shape)}")
        height, width = source.image.shape[1:]
        pixel, depth = project(xyz_world, source.K, source.w2c)
        corner, fraction = _corners(pixel, height, width)
        seen = (depth > NEAR) & ((pixel >= 0) & (pixel <= pixel.new_tensor([width, height]))).all(dim=1)
        if source.valid is not None:
            unread = corner_weights(fraction.detach(), _ACROSS_AND_DOWN) == 0
            seen = seen & (source.valid.reshape(-1)[corner] | unread).all(dim=0)
        joined = torch.cat([feature.permute(1, 2, 0), source.image.permute(1, 2, 0).to(feature)], dim=2)
        tables.append(joined.reshape(height * width, SAMPLE))
        rows.append(corner + start)
        fractions.append(fraction)
        visible.append(seen)
        start += height * width
    places = torch.cat(rows, dim=1), torch.cat(fractions, dim=1)
    g = interpolate_rows(torch.cat(tables), *places, _ACROSS_AND_DOWN, joined=True)
    return g.reshape(len(sources), -1, SAMPLE), torch.stack(visible)


def _corners(pixel: Float[Tensor, "n 2"], height: int, width: int) -> tuple[Int[Tensor, "4 n"], Float[Tensor, "2 n"]]:
    """Rows of the four pixels around a place, and the shares (across, down) of the way between them.

    Pixel (i, j) has its centre at (i + .5, j + .5); a place beyond the outermost centres is moved to them.
    """
    place = pixel.t().nan_to_num() - 0.5
    across, down = (place[k].clamp(0.0, size - 1.0) for k, size in enumerate((width, height)))
    column = across.detach().to(torch.int32).clamp_(0, max(width - 2, 0))
    row = down.detach().to(torch.int32).clamp_(0, max(height - 2, 0))
    # A photo one pixel wide or high has no neighbour to blend with.
    right, below = int(width > 1), width * int(height > 1)
    corner = row * width + column
    corners = torch.stack([corner, corner + right, corner + below, corner + (below + right)])
    return corners, torch.stack([across - column, down - row])


def occlusion_penalty(
    xyz_world: Float[Tensor, "n 3"],
    radius: Float[Tensor, "n"],
    source: Source,
    depth: Float[Tensor, "h w"],
    accumulation: Float[Tensor, "h w"],
    strength: float = 10.0,
) -> Float[Tensor, "n"]:
    """What to subtract from a source's logit for points that something hides from it; no gradient (spec r4dv 4.4).

    Zero up to a tolerance of 2 radii + 1 % of the depth behind the surface, then rising to ``strength`` over the same
    length again. Pixels that the surface covers less than half hide nothing.

    Args:
        depth, accumulation: of the points drawn from the source's camera at the source's size (`peel`).
    """
    with torch.no_grad():
        pixel, z = project(xyz_world, source.K, source.w2c)
        height, width = depth.shape
        column, row = pixel.nan_to_num().floor().to(torch.int64).unbind(1)
        inside = (z > NEAR) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        front, covered = depth.reshape(-1)[place], accumulation.reshape(-1)[place] > 0.5
        tolerance = 2.0 * radius + 0.01 * front
        behind = ((z - front) / tolerance.clamp_min(1e-12) - 1.0).clamp(0.0, 1.0)
        return torch.where(inside & covered, strength * behind, 0.0)


class BlendHead(nn.Module):
    """Weights of the source photos: ``l_s = MLP([f, g_s])`` with one hidden layer, softmax over s (spec r4dv 4.4).

    Args:
        features: length of a point's feature f.
        hidden: width of the hidden layer.
    """

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        self.features = features
        self.hidden = nn.Linear(features + SAMPLE, hidden)
        self.out = nn.Linear(hidden, 1)

    def logits(self, f: Float[Tensor, "n features"], g: Float[Tensor, "s n 11"]) -> Float[Tensor, "s n"]:
        """Unmasked logits, what baking stores; in the dtype of the parameters, also under autocast."""
        with torch.autocast(f.device.type, enabled=False):
            dtype = self.hidden.weight.dtype
            hidden = self.hidden.weight, self.hidden.bias, self.out.weight[0]
            return blend_logits(f.to(dtype), g.to(dtype), *hidden) + self.out.bias

    def forward(
        self,
        f: Float[Tensor, "n features"],
        g: Float[Tensor, "s n 11"],
        visible: Bool[Tensor, "s n"],
        penalty: Float[Tensor, "s n"] | None = None,
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "s n"], Int64[Tensor, ""]]:
        """Blend the photos.

        Args:
            f: features of the points.
            g: samples of the sources (`sample_sources`).
            visible: sources without a valid sample get weight zero; a point without any valid source blends all of
                them (each read at its border) and counts as an orphan.
            penalty: subtracted from the logits (`occlusion_penalty`).

        Returns:
            rgb ``c_ibr``; weights, which sum to one over the sources; number of orphans.
        """
        logits = self.logits(f, g)
        if penalty is not None:
            logits = logits - penalty
        weights, orphans = blend_weights(logits, visible)
        rgb = (weights.unsqueeze(-1) * g[..., FEATURES:]).sum(dim=0)
        return rgb, weights, orphans


def blend_weights(
    logits: Float[Tensor, "s n"], visible: Bool[Tensor, "s n"]
) -> tuple[Float[Tensor, "s n"], Int64[Tensor, ""]]:
    """Softmax over the sources that see the point, over all where none does; and the number of such orphans."""
    orphan = ~visible.any(dim=0)
    return torch.softmax(torch.where(visible | orphan, logits, INVALID), dim=0), orphan.sum()


class ShHead(nn.Module):
    """View-dependent residual ``limit tanh(sum_k s_k Y_k(d))`` of degree 3 (spec r4dv 4.5).

    Args:
        features: length of a point's feature.
        limit: largest residual; 0.25, or 1 for older released checkpoints.
        hidden: width of the hidden layer.
        degree: of the harmonics.
    """

    def __init__(
        self, features: int, limit: float = 0.25, hidden: int = 64, degree: int = harmonics.MAX_DEGREE
    ) -> None:
        super().__init__()
        self.limit, self.terms = limit, harmonics.terms(degree)
        self.hidden, self.out = nn.Linear(features, hidden), nn.Linear(hidden, 3 * self.terms)
        for layer, bias in ((self.hidden, -1.0), (self.out, 0.0)):
            nn.init.normal_(layer.weight, 0.0, 0.01)
            nn.init.constant_(layer.bias, bias)

    def coefficients(self, f: Float[Tensor, "n features"]) -> Float[Tensor, "n 3 terms"]:
        """Harmonic coefficients per colour channel, before the limit; what baking stores."""
        return self.out(F.softplus(self.hidden(f))).reshape(f.shape[0], 3, self.terms)

    def forward(self, f: Float[Tensor, "n features"], directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Residual colour in [-limit, limit] seen along unit directions from the camera to the points, world axes."""
        coefficients = self.coefficients(f)
        raw = harmonics.evaluate(coefficients.to(directions), directions)
        return self.limit * torch.tanh(raw)


def view_directions(xyz_world: Float[Tensor, "n 3"], centre: Float[Tensor, "3"]) -> Float[Tensor, "n 3"]:
    """``normalize(x - C)``: unit directions from the camera to the points, without gradient to the points."""
    return F.normalize(xyz_world.detach() - centre.to(xyz_world), dim=-1)
