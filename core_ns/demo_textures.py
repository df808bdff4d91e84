"""The look of the demo scenes: closed-form colours of a surface point and of the sky, in display sRGB.

Everything is a function of position, normal and direction alone, so a picture has a ground truth at any resolution
and a test can ask for the colour of a single point. Patterns are mosaics, bricks, stripes and veins, and on all of
them lies isotropic noise down to a chosen number of texels across the scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from core_ns import demo_meshes as shapes

EXTENT = 2 * shapes.PLAZA_RADIUS
VOXELS = 96
SUN = functional.normalize(torch.tensor([0.62, -0.48, 0.72]), dim=0)
SUN_COLOUR = torch.tensor([3.05, 2.62, 2.05])
SKY_COLOUR = torch.tensor([0.50, 0.66, 0.92])
BOUNCE_COLOUR = torch.tensor([0.42, 0.34, 0.26])
HORIZON = torch.tensor([1.45, 1.20, 0.94])
ZENITH = torch.tensor([0.08, 0.27, 0.70])
BELOW = torch.tensor([0.10, 0.22, 0.38])


def _palette(*codes: str) -> Float[Tensor, "n 3"]:
    """Web colours to linear light."""
    srgb = torch.tensor([[int(code[k : k + 2], 16) / 255 for k in (0, 2, 4)] for code in codes])
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


SANDSTONE = _palette("d8b98a", "c79f6b", "e6cfa5", "b98d63", "cfae8e")
GRANITE = _palette("4a4f57", "2f343b", "6a6f78")
BRICKS = _palette("a4452f", "8c3426", "b85c3a", "74302a", "c26f4e")
MORTAR = _palette("c9bfae")[0]
MARBLE = _palette("f0ebe0", "7f8a86", "2d6a5f")
GLAZE = _palette("0e3a66", "1a7f8e", "3fb6a8", "f1e3c3", "d9772f", "7b1e2b")
BRASS = _palette("d9a441", "8a5a1e")
STRATA = _palette("7a5237", "a87b52", "5d3f2d", "c29a6c")


class Noise:
    """Isotropic Gaussian noise with unit variance in three channels, periodic, from one spectral table."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        frequency = np.fft.fftfreq(VOXELS, 1 / VOXELS)
        x, y, z = np.meshgrid(frequency, frequency, frequency[: VOXELS // 2 + 1], indexing="ij")
        radius = np.sqrt(x * x + y * y + z * z)
        # Power falls with frequency as in stone; the band ends below Nyquist, where trilinear look-up is still smooth.
        shape = np.where((radius >= 4) & (radius <= 0.4 * VOXELS), np.maximum(radius, 1.0) ** -1.9, 0.0)
        channels = []
        for _ in range(3):
            field = np.fft.irfftn(np.fft.rfftn(rng.normal(size=(VOXELS,) * 3)) * shape)
            channels.append(np.pad(field / field.std(), ((0, 1), (0, 1), (0, 1)), "wrap"))
        self._table = torch.tensor(np.stack(channels), dtype=torch.float32)[None]
        self._table = self._table.contiguous(memory_format=torch.channels_last_3d)  # one cache line per look-up

    def __call__(self, points: Float[Tensor, "n 3"], tile: float) -> Float[Tensor, "n 3"]:
        """Values at points (scene units) when the table repeats every ``tile`` units."""
        phase = torch.frac(points / tile)
        phase = torch.where(phase < 0, phase + 1, phase)
        return functional.grid_sample(self._table, (2 * phase - 1)[None, None, None], align_corners=True)[0, :, 0, 0].T


class Looks:
    """Base of a scene's materials: noise, sky and per-tile random numbers."""

    casts_shadows = False

    def __init__(self, seed: int, texture_detail: int) -> None:
        self.noise = Noise(seed)
        self.fine_tile = EXTENT * VOXELS / texture_detail
        self._random = torch.tensor(np.random.default_rng([seed, 2]).random(4096), dtype=torch.float32)

    def colour(
        self,
        points: Float[Tensor, "n 3"],
        normals: Float[Tensor, "n 3"],
        directions: Float[Tensor, "n 3"],
        sunlit: Bool[Tensor, "n"],
    ) -> Float[Tensor, "n 3"]:
        """Display sRGB of surface points; ``directions`` are unit and point away from the camera."""
        raise NotImplementedError

    def grain(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """The finest noise: about ``texture_detail`` texels across the plaza."""
        return self.noise(points, self.fine_tile)

    def random(self, *indices: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """A number in [0, 1) for every tuple of tile indices."""
        mixed = sum(index.long() * factor for index, factor in zip(indices, (1, 757, 1901, 2963), strict=False))
        return self._random[torch.remainder(torch.as_tensor(mixed), 4096)]

    def sky(self, directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Display sRGB by unit direction: a gradient from horizon to zenith with soft clouds, haze below."""
        height = directions[:, 2:]
        upper = HORIZON + (ZENITH - HORIZON) * _step(-0.02, 0.40, height) ** 0.6
        lower = HORIZON + (BELOW - HORIZON) * _step(-0.02, 0.50, -height)
        linear = torch.where(height > 0, upper, lower)
        flat = directions / (height.abs() + 0.35)
        cloud = self.noise(flat * torch.tensor([1.0, 1.0, 0.0]), 6.0)[:, :2] @ torch.tensor([[0.8], [0.2]])
        linear = linear + (1.5 - linear) * 0.8 * _step(0.5, 2.0, cloud) * _step(0.04, 0.25, height)
        towards = (directions @ SUN).clamp(min=0)[:, None]
        return _display(linear + SUN_COLOUR * (0.10 * towards**12 + 0.35 * towards**160))


def dot(a: Float[Tensor, "n 3"], b: Float[Tensor, "n 3"]) -> Float[Tensor, "n 1"]:
    """Row-wise inner product; summing three columns is several times faster than reducing over the short axis."""
    return a[:, :1] * b[:, :1] + a[:, 1:2] * b[:, 1:2] + a[:, 2:] * b[:, 2:]


def _step(low: float, high: float, x: Tensor) -> Tensor:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    x = ((x - low) / (high - low)).clamp(0, 1)
    return x * x * (3 - 2 * x)


def _display(linear: Tensor) -> Tensor:
    """Linear light to display sRGB in [0, 1] through a filmic curve, which keeps highlights from clipping."""
    x = linear.clamp(min=0) * 0.62
    x = (x * (2.51 * x + 0.03)) / (x * (2.43 * x + 0.59) + 0.14)
    return x.clamp(0, 1) ** (1 / 2.2)


def _polar_tiles(
    radius: Tensor, angle: Tensor, circumference: Callable[[Tensor], Tensor], width: float, length: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rings of tiles: ring and tile index, angle of the tile's centre, distance to the nearest joint (scene units)."""
    ring = torch.floor(radius / width)
    around = circumference((ring + 0.5) * width)
    count = torch.round(around / length).clamp(min=3)
    place = torch.frac(angle / math.tau + 2.0 + 0.137 * torch.remainder(ring, 7)) * count
    tile = torch.floor(place)
    along = (0.5 - (place - tile - 0.5).abs()) * around / count
    across = (0.5 - (radius / width - ring - 0.5).abs()) * width
    centre = ((tile + 0.5) / count - 0.137 * torch.remainder(ring, 7)) * math.tau
    return ring, tile, centre, torch.minimum(along, across)


def _pick(palette: Float[Tensor, "k 3"], share: Float[Tensor, "n"]) -> Float[Tensor, "n 3"]:
    """A palette entry for a number in [0, 1)."""
    return palette[(share * len(palette)).long().clamp(0, len(palette) - 1)]


def _mix(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return a + (b - a) * weight[:, None]


class QuadLooks(Looks):
    """Mosaic tiles on the plane z = 0, the same from every direction."""

    def colour(self, points, normals, directions, sunlit):
        """Display sRGB of surface points [N, 3] with their normals, seen along the directions."""
        cell = torch.floor(points[:, :2] / 0.125)
        inside = points[:, :2] / 0.125 - cell
        joint = (0.5 - (inside - 0.5).abs()).amin(-1) * 0.125
        colour = _pick(GLAZE, self.random(cell[:, 0] + 64, cell[:, 1] + 64))
        stripes = torch.frac((points[:, 0] + 0.6 * points[:, 1]) * 11 + 40) < 0.5
        striped = stripes & (self.random(cell[:, 0] + 64, cell[:, 1] + 64, cell[:, 0] * 0 + 3) < 0.4)
        colour = torch.where(striped[:, None], colour * 0.35 + 0.3, colour)
        colour = _mix(MORTAR.expand_as(colour), colour, _step(0.003, 0.007, joint))
        return _display(2.0 * colour * (1 + 0.35 * self.grain(points)[:, :1]).clamp(0.1, 2))


class MonumentLooks(Looks):
    """Glazed mosaic orb, brick and marble plinth, striped columns, paved plaza; sun, sky light and slight gloss."""

    casts_shadows = True

    def colour(self, points, normals, directions, sunlit):
        """Display sRGB of surface points [N, 3] with their normals, seen along the directions."""
        albedo, gloss = torch.empty_like(points), torch.zeros(len(points), 1)
        distance = points[:, :2].norm(dim=-1)
        ground, inner = points[:, 2] < 1e-3, distance < 1.5
        raised = ~ground & inner
        kinds = (
            (ground, self._plaza),
            (raised & (points[:, 2] <= shapes.PLINTH_TOP + 1e-3), self._plinth),
            (raised & (points[:, 2] > shapes.PLINTH_TOP + 1e-3), self._orb),
            (~ground & ~inner, self._column),
        )
        for mask, paint in kinds:
            index = mask.nonzero()[:, 0]
            if len(index):
                part = points[index]
                albedo[index], gloss[index] = paint(part, normals[index], self.noise(part, 2.9), self.grain(part))
        return self._light(albedo, gloss, points, normals, directions, sunlit)

    def _light(self, albedo, gloss, points, normals, directions, sunlit):
        """Sun with cast shadow, sky from above, bounce from below, and a Blinn-Phong highlight."""
        facing = torch.where(dot(normals, directions) > 0, -normals, normals)
        up = 0.5 + 0.5 * facing[:, 2:]
        ambient = (SKY_COLOUR * up + BOUNCE_COLOUR * (1 - up)) * self._openness(points, facing)
        sun = SUN_COLOUR * (facing @ SUN).clamp(min=0)[:, None] * sunlit[:, None]
        half = functional.normalize(SUN - directions, dim=-1)
        highlight = dot(facing, half).clamp(min=0)
        grazing = (1 + dot(facing, directions)).clamp(0, 1) ** 4
        mirrored = directions - 2 * dot(facing, directions) * facing
        reflected = HORIZON + (ZENITH - HORIZON) * mirrored[:, 2:].clamp(0, 1).sqrt()
        shine = gloss * (0.55 * highlight**48 * SUN_COLOUR * sunlit[:, None] + (0.06 + 0.30 * grazing) * reflected)
        return _display(albedo * (ambient + sun) + shine)

    def _openness(self, points, normals):
        """Share of the sky a point sees, by closed forms for the orb (a sphere) and the feet of plinth and columns."""
        to_orb = torch.tensor(shapes.ORB_CENTRE) - points
        distance = to_orb.norm(dim=-1).clamp(min=shapes.ORB_RADIUS)
        facing = (dot(to_orb, normals)[:, 0] / distance + 0.25).clamp(0, 1)
        outside = _step(0.0, 0.06, points[:, :2].norm(dim=-1) - 0.2)
        on_orb = (points[:, 2] > shapes.PLINTH_TOP + 1e-3) & (points[:, :2].norm(dim=-1) < 1.5)
        hidden = torch.where(on_orb, 0.0, 0.9 * facing * outside * (shapes.ORB_RADIUS / distance) ** 2)
        below = _step(0.0, 0.7, points[:, 2] - shapes.PLINTH_TOP)
        hidden = torch.where(on_orb, 0.6 * (1 - below), hidden)
        flat = (normals[:, 2] > 0.5) & (points[:, 2] < 1e-3)
        gap = (points[:, :2].abs().amax(-1) - shapes.PLINTH_STEPS[0][0]).clamp(min=0)
        columns = torch.tensor(shapes.column_centres(), dtype=torch.float32)
        around = (torch.cdist(points[:, :2], columns).amin(-1) - shapes.COLUMN_PROFILE[0][0]).clamp(min=0)
        foot = torch.where(flat, 0.45 * torch.exp(-gap / 0.16) + 0.4 * torch.exp(-around / 0.10), 0.0)
        return ((1 - hidden) * (1 - foot)).clamp(min=0.05)[:, None]

    def _plaza(self, points, normals, coarse, grain):
        """Ring paving with a star and a dark border; layers of earth on the rim."""
        x, y = points[:, 0], points[:, 1]
        radius, angle = torch.hypot(x, y), torch.atan2(y, x)
        ring, tile, _, joint = _polar_tiles(radius, angle, lambda r: math.tau * r, 0.17, 0.27)
        stone = _pick(SANDSTONE, self.random(ring, tile)) * (0.8 + 0.4 * self.random(tile, ring))[:, None]
        saw = (torch.frac(angle / math.tau * 12 + 12.5) - 0.5).abs() * 2
        star = (saw < (1.98 - radius) / 0.62) & (radius < 1.98)
        dark = star | (radius > 2.72) | ((radius - 2.04).abs() < 0.035)
        slate = _pick(GRANITE, self.random(ring, tile, ring)) * 1.3
        half = (saw < 0.5 * (1.98 - radius) / 0.62) & (radius < 1.98)
        stone = torch.where(dark[:, None], slate, stone)
        stone = torch.where(half[:, None], GLAZE[1] * (0.7 + 0.5 * self.random(tile, ring))[:, None], stone)
        stone = _mix(0.25 * MORTAR.expand_as(stone), stone, _step(0.004, 0.012, joint))
        stone = stone * (1 + 0.10 * coarse[:, :1] + 0.22 * grain[:, :1]).clamp(0.2, 2)
        layer = torch.floor((points[:, 2] + 0.02 * coarse[:, 0]) / 0.045)
        earth = _pick(STRATA, self.random(layer + 64)) * (0.85 + 0.25 * grain[:, :1] + 0.1 * coarse[:, 1:2])
        rim = (points[:, 2] < -1e-3) & (normals[:, 2] < 0.9)
        return torch.where(rim[:, None], earth.clamp(min=0.02), stone), (0.10 * (dark & ~rim))[:, None]

    def _plinth(self, points, normals, coarse, grain):
        """Brick walls between a granite foot and a marble cap."""
        along = torch.where(normals[:, 0].abs() > normals[:, 1].abs(), points[:, 1], points[:, 0])
        row = torch.floor(points[:, 2] / 0.0633)
        place = along / 0.195 + 0.5 * torch.remainder(row, 2) + 16
        brick = torch.floor(place)
        joint = torch.minimum(
            (0.5 - (place - brick - 0.5).abs()) * 0.195, (0.5 - (points[:, 2] / 0.0633 - row - 0.5).abs()) * 0.0633
        )
        side = (normals @ torch.tensor([1.0, 2.0, 0.0]) + 4).round()
        wall = _pick(BRICKS, self.random(row, brick, side)) * (0.75 + 0.5 * self.random(brick, row, side))[:, None]
        wall = wall * (1 + 0.12 * coarse[:, :1] + 0.28 * grain[:, 1:2]).clamp(0.2, 2)
        wall = _mix(MORTAR * (0.8 + 0.15 * grain[:, 2:]).clamp(0.2), wall, _step(0.003, 0.009, joint))
        granite = _pick(GRANITE, torch.sigmoid(1.4 * grain[:, 0])) * (1.5 + 0.15 * coarse[:, :1]).clamp(0.2)
        marble = self._marble(coarse, grain)
        foot, cap = points[:, 2] < shapes.PLINTH_STEPS[1][1] + 1e-3, points[:, 2] > shapes.PLINTH_STEPS[2][1] - 1e-3
        albedo = torch.where(cap[:, None], marble, torch.where(foot[:, None], granite, wall))
        return albedo, (0.35 * cap + 0.2 * foot)[:, None]

    def _marble(self, coarse, grain):
        """White stone with grey veins where a noise crosses zero."""
        vein = torch.exp(-((coarse[:, 0] + 0.25 * grain[:, 0]).abs() / 0.10)) + 0.5 * torch.exp(
            -(coarse[:, 1].abs() / 0.05)
        )
        white = MARBLE[0] * (0.92 + 0.05 * coarse[:, 2:] + 0.05 * grain[:, 2:]).clamp(0.3)
        return _mix(white, MARBLE[1].expand_as(white), (0.8 * vein).clamp(0, 0.85))

    def _orb(self, points, normals, coarse, grain):
        """Glazed mosaic; every tile takes its colour from the pattern at its own centre."""
        offset = points - torch.tensor(shapes.ORB_CENTRE)
        direction = functional.normalize(offset, dim=-1)
        polar = torch.acos(direction[:, 2].clamp(-1, 1))
        angle = torch.atan2(direction[:, 1], direction[:, 0])
        width = 0.052
        ring, tile, centre, joint = _polar_tiles(polar, angle, lambda a: math.tau * torch.sin(a), width, width * 1.15)
        height = torch.cos((ring + 0.5) * width)
        twist = shapes.ORB_RIDGES * (centre + shapes.ORB_TWIST / 4 * height) / math.tau
        ridge = torch.frac(twist + 64)
        wave = torch.frac(2.5 * height + 0.22 * torch.cos(math.tau * ridge) + 8)
        band = torch.frac((torch.cos(math.tau * ridge) * 0.5 + 0.5) * 0.82 + 0.09 * self.random(ring, tile))
        glaze = _pick(GLAZE[:4], band.clamp(0, 0.999))
        glaze = torch.where((wave < 0.16)[:, None], GLAZE[4], glaze)
        glaze = torch.where(((wave >= 0.16) & (wave < 0.24))[:, None], GLAZE[5], glaze)
        glaze = glaze * (0.65 + 0.7 * self.random(tile, ring, ring))[:, None]
        glaze = glaze * (1 + 0.06 * coarse[:, 1:2] + 0.16 * grain[:, :1]).clamp(0.2, 2)
        solid = _step(0.0035, 0.0085, joint)
        return _mix(0.55 * MORTAR.expand_as(glaze), glaze, solid), (0.9 * solid)[:, None]

    def _column(self, points, normals, coarse, grain):
        """Barber stripes of white and green marble; brass balls with fine rings."""
        centres = torch.tensor(shapes.column_centres(), dtype=torch.float32)
        nearest = torch.cdist(points[:, :2], centres).argmin(-1)
        local = points[:, :2] - centres[nearest]
        angle = torch.atan2(local[:, 1], local[:, 0]) / math.tau
        stripe = (torch.frac(2 * angle + 3.2 * points[:, 2] + 8) - 0.5).abs() * 2
        marble = self._marble(coarse, grain)
        green = MARBLE[2] * (0.8 + 0.15 * coarse[:, 1:2] + 0.15 * grain[:, 1:2]).clamp(0.2)
        shaft = (points[:, 2] > shapes.COLUMN_PROFILE[2][1]) & (points[:, 2] < shapes.COLUMN_PROFILE[3][1])
        albedo = _mix(marble, green, _step(0.47, 0.53, stripe) * shaft)
        top = shapes.COLUMN_PROFILE[-1][1]
        groove = _step(0.25, 0.75, (torch.frac((points[:, 2] - top) * 22 + 4) - 0.5).abs() * 2)
        brass = _mix(BRASS[0].expand_as(albedo), BRASS[1].expand_as(albedo), groove) * (1 + 0.1 * grain[:, :1])
        ball = points[:, 2] > top + 1e-3
        return torch.where(ball[:, None], brass.clamp(min=0.02), albedo), (0.3 + 0.6 * ball)[:, None]
