"""Shading heads: from a surface feature, a view direction and per-view codes to a display colour.

Directions are unit vectors in world axes that point from the camera to the surface (the ray's own direction), as in
the original (spec xscale 3.1). Colours are display sRGB in [0, 1]; where a network works in linear light the name says
so. Nothing here changes its inputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

SH_TERMS = 16
DIFFUSE_DIRECTIONS = 32
FREQUENCY_GAIN, FREQUENCY_OFFSET = 15.0, 30.0
_SRGB_KNEE = 0.0031308
_SRGB_SLOPE = 12.92
# torch's own embedding renormalisation divides by norm + 1e-7; the same constant keeps imported codes identical.
_RENORM_EPSILON = 1e-7


def srgb_from_linear(linear: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """sRGB transfer curve, linear light to display values (spec xscale 3.4).

    The power branch is evaluated only above the knee, so the gradient is finite everywhere (its slope at 0 is not).
    Values outside [0, 1] are not clipped: negative ones follow the straight line.
    """
    above = linear.clamp_min(_SRGB_KNEE)
    return torch.where(linear <= _SRGB_KNEE, _SRGB_SLOPE * linear, 1.055 * above ** (1.0 / 2.4) - 0.055)


def linear_from_srgb(display: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Inverse of `srgb_from_linear`, display values to linear light; finite gradient everywhere."""
    knee = _SRGB_KNEE * _SRGB_SLOPE
    above = display.clamp_min(knee)
    return torch.where(display <= knee, display / _SRGB_SLOPE, ((above + 0.055) / 1.055) ** 2.4)


def spherical_harmonics(directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 16"]:
    """Real orthonormal spherical harmonics of degrees 0..3, at index l*l + l + m.

    Args:
        directions: unit vectors, components in [-1, 1] (not shifted to [0, 1] as tiny-cuda-nn wants them).

    Without the Condon-Shortley sign: the degree-1 terms are +y, +z, +x times sqrt(3 / 4 pi).
    """
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z

    def c(numerator: float, denominator: float) -> float:
        return math.sqrt(numerator / (denominator * math.pi))

    terms = [
        torch.full_like(x, c(1, 4)),
        c(3, 4) * y,
        c(3, 4) * z,
        c(3, 4) * x,
        c(15, 4) * x * y,
        c(15, 4) * y * z,
        c(5, 16) * (3 * zz - 1),
        c(15, 4) * x * z,
        c(15, 16) * (xx - yy),
        c(35, 32) * y * (3 * xx - yy),
        c(105, 4) * x * y * z,
        c(21, 32) * y * (5 * zz - 1),
        c(7, 16) * z * (5 * zz - 3),
        c(21, 32) * x * (5 * zz - 1),
        c(105, 16) * z * (xx - yy),
        c(35, 32) * x * (xx - 3 * yy),
    ]
    return torch.stack(terms, dim=-1)


def hemisphere_directions(normals: Float[Tensor, "N 3"], count: int) -> Float[Tensor, "count N 3"]:
    """Fibonacci directions over the hemisphere around each normal, uniform in solid angle.

    Args:
        normals: need not have unit length; a zero normal gives directions around some fixed axis.
        count: directions per normal.
    """
    unit = F.normalize(normals, dim=-1)
    # The coordinate axis least aligned with the normal can never be parallel to it.
    helper = F.one_hot(unit.abs().argmin(dim=-1), 3).to(unit.dtype)
    tangent = F.normalize(torch.linalg.cross(unit, helper), dim=-1)
    bitangent = torch.linalg.cross(unit, tangent)
    index = torch.arange(count, dtype=unit.dtype, device=unit.device)
    height = (index + 0.5) / count
    radius = torch.sqrt(1.0 - height * height)
    angle = index * (math.pi * (3.0 - math.sqrt(5.0)))
    local = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle), height], dim=-1)
    return torch.einsum("ck,kni->cni", local, torch.stack([tangent, bitangent, unit]))


def _code_rows(
    code: Float[Tensor, "..."] | None, index: Int[Tensor, "N"] | None, dim: int, rays: int, weight: Tensor, name: str
) -> tuple[Tensor, Tensor | None]:
    """A code argument as ``[K, dim]`` rows in the weights' dtype, and the row of each ray (None: K is 1 or N)."""
    if code is None:
        return weight.new_zeros(1, dim), None
    rows = code if code.ndim == 2 else code[None]
    if rows.shape[-1] != dim or rows.ndim != 2:
        raise ValueError(f"{name} must be [{dim}], [1, {dim}] or [N, {dim}], not {list(code.shape)}")
    if index is None and rows.shape[0] not in (1, rays):
        raise ValueError(f"{name} has {rows.shape[0]} rows for {rays} rays; give {name}_index to choose among them")
    return rows.to(weight.dtype), index


def _per_ray(values: Float[Tensor, "K C"], index: Int[Tensor, "N"] | None) -> Float[Tensor, "M C"]:
    return values if index is None else values.index_select(0, index)


class ExposureAffine(nn.Module):
    """(o, k) = Linear ReLU Linear of an exposure code; a hidden layer h becomes exp(k) h + o (spec xscale 3.4)."""

    def __init__(self, exposure_dim: int, hidden: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(exposure_dim, hidden), nn.ReLU(), nn.Linear(hidden, 2 * width))

    def forward(self, code: Float[Tensor, "K E"]) -> tuple[Float[Tensor, "K W"], Float[Tensor, "K W"]]:
        """The offset o and the gain exp(k)."""
        offset, log_gain = self.net(code).chunk(2, dim=-1)
        return offset, log_gain.exp()


class ShadingHead(nn.Module):
    """What both heads share: conditioning once per surface point, shading for any number of directions.

    Codes may be one row for all rays (``[E]`` or ``[1, E]``), one row per ray (``[N, E]``), or a table ``[K, E]`` with
    an index ``[N]``. Their networks run once per row given, so callers pass one row per view and an index
    (spec xscale 7, defect 14). None stands for the all-zero code, the mean of the initial distribution.
    """

    def condition(
        self,
        features: Float[Tensor, "N D"],
        exposure: Float[Tensor, "..."] | None = None,
        lighting: Float[Tensor, "..."] | None = None,
        exposure_index: Int[Tensor, "N"] | None = None,
        lighting_index: Int[Tensor, "N"] | None = None,
    ) -> Any:
        """Everything that does not depend on the view direction."""
        raise NotImplementedError

    def shade(self, state: Any, directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Display colour for a conditioned state; directions as in the module docstring."""
        raise NotImplementedError

    def forward(
        self,
        features: Float[Tensor, "N D"],
        directions: Float[Tensor, "N 3"],
        exposure: Float[Tensor, "..."] | None = None,
        lighting: Float[Tensor, "..."] | None = None,
        exposure_index: Int[Tensor, "N"] | None = None,
        lighting_index: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, "N 3"]:
        """Display colour of each ray's surface point.

        Args:
            features: hash features; for several sub-samples their mean (spec xscale 3.3).
            directions: unit, world axes, from the camera to the surface.
            exposure: exposure code(s), see the class.
            lighting: lighting code(s), see the class; heads without lighting ignore it.
            exposure_index, lighting_index: row of the code tables for each ray.

        Raises:
            ValueError: a code of the wrong size.
        """
        return self.shade(self.condition(features, exposure, lighting, exposure_index, lighting_index), directions)

    def diffuse(
        self,
        features: Float[Tensor, "N D"],
        normals: Float[Tensor, "N 3"],
        exposure: Float[Tensor, "..."] | None = None,
        lighting: Float[Tensor, "..."] | None = None,
        samples: int = DIFFUSE_DIRECTIONS,
    ) -> Float[Tensor, "N 3"]:
        """Colour averaged over viewers spread evenly on the hemisphere the outward normals point to (for baking).

        A viewer towards +w looks along -w, so the heads see the negated hemisphere directions. No cosine weight: each
        viewing direction counts the same.
        """
        state = self.condition(features, exposure, lighting)
        outward = hemisphere_directions(normals, samples)
        total = self.shade(state, -outward[0])
        for viewer in outward[1:]:
            total = total + self.shade(state, -viewer)
        return total / samples


class _ShState(NamedTuple):
    features: Tensor
    affine: tuple[Tensor, Tensor] | None


class SphericalHarmonicsHead(ShadingHead):
    """The default head (spec xscale 3.7): features and SH of the direction through a small ReLU network to a sigmoid.

    The exposure code, where there is one, is an affine on the last hidden layer, i.e. per-channel gains and an offset
    in front of the sigmoid. ``linear_output``: the sigmoid is linear light and the sRGB curve follows (upstream's
    convention). There is no lighting input; one that is given is ignored.
    """

    def __init__(
        self,
        feature_dim: int,
        exposure_dim: int = 0,
        hidden: int = 64,
        layers: int = 2,
        linear_output: bool = False,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"the head needs at least one hidden layer, not {layers}")
        self.feature_dim, self.exposure_dim, self.linear_output = feature_dim, exposure_dim, linear_output
        widths = [feature_dim + SH_TERMS] + [hidden] * layers
        self.hidden_layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.colour = nn.Linear(hidden, 3)
        self.exposure_map = ExposureAffine(exposure_dim, hidden, hidden) if exposure_dim else None

    def condition(self, features, exposure=None, lighting=None, exposure_index=None, lighting_index=None) -> _ShState:
        """See `ShadingHead.condition`."""
        if self.exposure_map is None:
            if exposure is not None:
                raise ValueError("this head was built without exposure codes (exposure_dim = 0)")
            return _ShState(features, None)
        weight = self.colour.weight
        rows, index = _code_rows(exposure, exposure_index, self.exposure_dim, len(features), weight, "exposure")
        offset, gain = self.exposure_map(rows)
        return _ShState(features, (_per_ray(offset, index), _per_ray(gain, index)))

    def shade(self, state: _ShState, directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """See `ShadingHead.shade`."""
        harmonics = spherical_harmonics(directions.to(self.colour.weight.dtype))
        hidden = torch.cat([state.features.to(harmonics.dtype), harmonics], dim=-1)
        for layer in self.hidden_layers:
            hidden = F.relu(layer(hidden))
        if state.affine is not None:
            offset, gain = state.affine
            hidden = hidden * gain + offset
        logits = self.colour(hidden)
        if logits.dtype in (torch.float16, torch.bfloat16):
            # Under autocast: half precision near 1 has steps of 1/2048 (fp16) or 1/256 (bf16), visible in the output.
            logits = logits.float()
        value = torch.sigmoid(logits)
        return srgb_from_linear(value).clamp(0.0, 1.0) if self.linear_output else value


class FilmLayer(nn.Module):
    """sin(frequency * (A x + a) + phase), the layer of a FiLM-SIREN (spec xscale 3.4)."""

    def __init__(self, inputs: int, width: int, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        bound = 1.0 / inputs if first else math.sqrt(6.0 / inputs) / 25.0
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(
        self, x: Float[Tensor, "N I"], frequency: Float[Tensor, "M W"], phase: Float[Tensor, "M W"]
    ) -> Float[Tensor, "N W"]:
        """Modulate and take the sine; M is N or 1."""
        return torch.sin(frequency * self.linear(x) + phase)


class FilmMap(nn.Module):
    """From a code to the frequencies and phases of ``layers`` FiLM layers (Map in spec xscale 3.4)."""

    def __init__(self, inputs: int, hidden: int, layers: int, width: int) -> None:
        super().__init__()
        self.layers = layers
        first, last = nn.Linear(inputs, hidden), nn.Linear(hidden, 2 * layers * width)
        for linear in (first, last):
            nn.init.kaiming_normal_(linear.weight, a=0.2, mode="fan_in", nonlinearity="leaky_relu")
        with torch.no_grad():
            last.weight.mul_(0.25)
        self.net = nn.Sequential(first, nn.LeakyReLU(0.2), last)

    def forward(self, code: Float[Tensor, "K C"]) -> Float[Tensor, "K 2LW"]:
        """Frequencies of all layers (already scaled by 15 and shifted by 30), then phases of all layers."""
        frequency, phase = self.net(code).chunk(2, dim=-1)
        return torch.cat([FREQUENCY_GAIN * frequency + FREQUENCY_OFFSET, phase], dim=-1)

    def split(self, values: Float[Tensor, "M 2LW"]) -> list[tuple[Tensor, Tensor]]:
        """(frequency, phase) per layer."""
        frequency, phase = values.chunk(2, dim=-1)
        return list(zip(frequency.chunk(self.layers, dim=-1), phase.chunk(self.layers, dim=-1), strict=True))


class FilmSirenHead(ShadingHead):
    """The original's shader: the direction runs through a SIREN that the surface feature modulates (spec xscale 3.4).

    63 683 parameters at the default sizes. Always evaluated in the weights' precision, also under autocast: a sine of
    frequency 30 has no correct digits left in half precision.
    """

    def __init__(
        self,
        feature_dim: int = 128,
        hidden: int = 64,
        light_dim: int = 8,
        exposure_dim: int = 4,
    ) -> None:
        super().__init__()
        self.feature_dim, self.light_dim, self.exposure_dim = feature_dim, light_dim, exposure_dim
        self.light_map = FilmMap(light_dim, hidden, 2, hidden)
        self.feature_films = nn.ModuleList([FilmLayer(feature_dim, hidden, True), FilmLayer(hidden, hidden, False)])
        self.exposure_map = ExposureAffine(exposure_dim, hidden, hidden)
        self.surface_map = FilmMap(hidden, hidden, 2, hidden)
        self.direction_films = nn.ModuleList([FilmLayer(3, hidden, True), FilmLayer(hidden, hidden, False)])
        self.colour = nn.Linear(hidden, 3)
        bound = math.sqrt(6.0 / hidden) / 25.0
        nn.init.uniform_(self.colour.weight, -bound, bound)

    def condition(
        self, features, exposure=None, lighting=None, exposure_index=None, lighting_index=None
    ) -> list[tuple[Tensor, Tensor]]:
        """Frequencies and phases of the direction layers; see `ShadingHead.condition`."""
        weight = self.colour.weight
        light, light_row = _code_rows(lighting, lighting_index, self.light_dim, len(features), weight, "lighting")
        code, code_row = _code_rows(exposure, exposure_index, self.exposure_dim, len(features), weight, "exposure")
        with torch.autocast(features.device.type, enabled=False):
            hidden = features.to(weight.dtype)
            modulation = self.light_map.split(_per_ray(self.light_map(light), light_row))
            for film, (frequency, phase) in zip(self.feature_films, modulation, strict=True):
                hidden = film(hidden, frequency, phase)
            offset, gain = self.exposure_map(code)
            hidden = _per_ray(gain, code_row) * hidden + _per_ray(offset, code_row)
            return self.surface_map.split(self.surface_map(hidden))

    def shade_linear(
        self, state: list[tuple[Tensor, Tensor]], directions: Float[Tensor, "N 3"]
    ) -> Float[Tensor, "N 3"]:
        """The network's own output: linear light in (0, 1)."""
        with torch.autocast(directions.device.type, enabled=False):
            hidden = directions.to(self.colour.weight.dtype)
            for film, (frequency, phase) in zip(self.direction_films, state, strict=True):
                hidden = film(hidden, frequency, phase)
            return torch.sigmoid(self.colour(hidden))

    def shade(self, state: list[tuple[Tensor, Tensor]], directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Display colour in [-0.001, 1.001] (the original's margin lets an L1 loss reach pure black and white)."""
        linear = self.shade_linear(state, directions)
        with torch.autocast(linear.device.type, enabled=False):
            return 1.002 * srgb_from_linear(linear).clamp(0.0, 1.0) - 0.001


class ViewCodes(nn.Module):
    """One code per training view, drawn from N(0, 0.1), never used longer than ``max_norm`` (spec xscale 3.4, 12).

    The original's embedding shortens long rows inside its parameter at look-up. Here the parameter stays and the
    look-up is a pure function of it, so evaluation order and repeated evaluation cannot change a model.
    """

    def __init__(self, views: int, dim: int, max_norm: float = 1.0) -> None:
        super().__init__()
        if views < 1 or dim < 1:
            raise ValueError(f"codes need at least one view and one dimension, not {views} x {dim}")
        self.max_norm = max_norm
        self.weight = nn.Parameter(0.1 * torch.randn(views, dim))

    @property
    def views(self) -> int:
        """Number of views."""
        return self.weight.shape[0]

    def table(self) -> Float[Tensor, "V E"]:
        """All codes as they are used, i.e. after shortening."""
        norm = torch.linalg.vector_norm(self.weight, dim=-1, keepdim=True)
        return self.weight * torch.where(norm > self.max_norm, self.max_norm / (norm + _RENORM_EPSILON), 1.0)

    def lookup(self, view_index: Int[Tensor, "N"]) -> Float[Tensor, "N E"]:
        """Codes of the given positions in the train list; IndexError (CPU) for a view without a code."""
        return F.embedding(view_index, self.table())

    def forward(self, view_index: Int[Tensor, "N"]) -> Float[Tensor, "N E"]:
        """`lookup`."""
        return self.lookup(view_index)

    def mean(self) -> Float[Tensor, "E"]:
        """The test-time code: mean of the shortened codes of all views (spec xscale 3.5)."""
        return self.table().mean(dim=0)

    def mean_of(self, views: Sequence[int] | Int[Tensor, "K"]) -> Float[Tensor, "E"]:
        """Mean of the shortened codes of some views; ValueError for none."""
        index = torch.as_tensor(views, dtype=torch.long, device=self.weight.device)
        if index.numel() == 0:
            raise ValueError("the mean of no view's code is undefined")
        return self.lookup(index).mean(dim=0)
