"""Two views of one camera motion without common pixels: quadrant masks, colour jitter and blur (spec xfactor 4.1, 4.4).

All draws come from an explicit CPU generator, whatever the device of the pictures.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

LAYOUTS = ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2))
"""Quadrants (top left, top right, bottom left, bottom right) of group 1, one layout a row."""
COLOUR_SHARE, BLUR_SHARE = 0.9, 0.3
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.2, 0.2, 0.2, 0.05
"""Half widths of the uniform draws; hue in turns, brightness of a range of 1, the others as factors around 1."""
SMALLEST_WINDOW = 0.7
"""Of a varied scene at least this share of the frame's side is shown."""
BLUR_REACH = 3
BLUR_SIGMA = (0.1, 2.0)
"""Pixels."""


def quadrant_masks(
    batch: int, rows: int, cols: int, generator: Generator, unmasked: float = 0.05
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b"]]:
    """Group (0 or 1) of each patch: two of the four quadrants of the grid are group 1, or nothing is.

    The six layouts are equiprobable. Each sample stays without mask with probability ``unmasked``, but their number in
    a batch is held at ``unmasked * batch``, rounded up or down by chance: at most two different shapes of sub-batches
    (spec xfactor 13.1).

    Args:
        batch: samples.
        rows: patches per column of the picture; an odd middle row counts as lower half.
        cols: likewise.
        generator: of the CPU.
        unmasked: probability, in [0, 1].

    Returns:
        Masks, patches row by row, and the number of quadrants in group 1 (2; 0 where unmasked).

    Raises:
        ValueError: a quadrant would have no patch.

    Source: XFactor (Mitchel et al. 2026), transferability objective; spec xfactor 4.1.
    """
    if min(rows, cols) < 2:
        raise ValueError(f"a grid of {rows} x {cols} patches has no four quadrants")
    choice = torch.randint(len(LAYOUTS), (batch,), generator=generator)
    whole = int(unmasked * batch + float(torch.rand((), generator=generator, dtype=torch.float64)))
    bare = torch.randperm(batch, generator=generator)[:whole]
    ones = torch.zeros(len(LAYOUTS), 4, dtype=torch.int64)
    for layout, quadrants in enumerate(LAYOUTS):
        ones[layout, list(quadrants)] = 1
    groups = ones[choice]
    groups[bare] = 0
    row, col = torch.arange(rows) >= rows // 2, torch.arange(cols) >= cols // 2
    quadrant = 2 * row[:, None].long() + col[None, :].long()
    return groups[:, quadrant.flatten()], groups.sum(dim=1)


class Jitter(NamedTuple):
    """Draws of colour jitter and blur for N groups of frames; see `jitter_blur`."""

    coloured: Bool[Tensor, "n"]
    order: Int[Tensor, "n 4"]
    """Which adjustment comes first, second, ...: 0 brightness, 1 contrast, 2 saturation, 3 hue."""
    brightness: Float[Tensor, "n"]
    """Added."""
    contrast: Float[Tensor, "n"]
    """Factor about the mean of each channel of each picture."""
    saturation: Float[Tensor, "n"]
    """Factor on HSV saturation."""
    hue: Float[Tensor, "n"]
    """Turns, added."""
    blurred: Bool[Tensor, "n"]
    sigma: Float[Tensor, "n"]
    """Pixels."""


def draw_jitter(count: int, generator: Generator) -> Jitter:
    """Draws for ``count`` groups of frames that are to look alike (spec xfactor 4.4)."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    return Jitter(
        coloured=torch.rand(count, generator=generator) < COLOUR_SHARE,
        order=torch.rand(count, 4, generator=generator).argsort(dim=1),
        brightness=uniform(-BRIGHTNESS, BRIGHTNESS),
        contrast=uniform(1 - CONTRAST, 1 + CONTRAST),
        saturation=uniform(1 - SATURATION, 1 + SATURATION),
        hue=uniform(-HUE, HUE),
        blurred=torch.rand(count, generator=generator) < BLUR_SHARE,
        sigma=uniform(*BLUR_SIGMA),
    )


def apply_jitter(frames: Float[Tensor, "n v h w 3"], jitter: Jitter) -> Float[Tensor, "n v h w 3"]:
    """Each group's draw on all of its frames: colours in the drawn order without clipping, clip, blur."""
    frames = frames.clone()
    for place in range(4):
        for kind in range(4):
            chosen = torch.nonzero(jitter.coloured & (jitter.order[:, place] == kind))[:, 0]
            if len(chosen):
                amount = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)[kind][chosen]
                rows = chosen.to(frames.device)
                frames[rows] = _adjust(frames[rows], kind, amount.to(frames)[:, None, None, None, None])
    frames = frames.clamp(0.0, 1.0)
    chosen = torch.nonzero(jitter.blurred)[:, 0]
    if len(chosen):
        rows = chosen.to(frames.device)
        frames[rows] = gaussian_blur(frames[rows], jitter.sigma[chosen].to(frames))
    return frames


def jitter_blur(
    frames: Float[Tensor, "b v h w 3"], generator: Generator, per_frame: bool = False
) -> Float[Tensor, "b v h w 3"]:
    """Colour jitter (probability 0.9) and blur (0.3) of frames in [0, 1]; the same draw for all views of a sample.

    Args:
        frames: pictures of at least 4 pixels a side.
        generator: of the CPU.
        per_frame: draw for each frame anew.

    Source: spec xfactor 4.4; reflecting borders instead of the original's grey ones.
    """
    batch, views = frames.shape[:2]
    if not per_frame:
        return apply_jitter(frames, draw_jitter(batch, generator))
    single = apply_jitter(frames.flatten(0, 1)[:, None], draw_jitter(batch * views, generator))
    return single.reshape(frames.shape)


class Scenes(NamedTuple):
    """Draws that turn a clip into another scene's: mirrored, transposed, recoloured, seen closer. N samples."""

    rows: Bool[Tensor, "n"]
    """Upside down."""
    columns: Bool[Tensor, "n"]
    """Left and right exchanged."""
    transposed: Bool[Tensor, "n"]
    """Rows and columns exchanged, after the flips."""
    channels: Int[Tensor, "n 3"]
    """Which channel becomes red, green, blue."""
    window: Float[Tensor, "n 3"]
    """The part that is shown: middle (column, row) and half side, in units of half the frame's, from its middle."""


def draw_scenes(count: int, generator: Generator) -> Scenes:
    """For each sample one of 8 x 6 mirrored and recoloured scenes, equiprobable, and a square part of the frame."""
    rows, columns, transposed = torch.randint(2, (3, count), generator=generator).bool()
    channels = torch.rand(count, 3, generator=generator).argsort(dim=1)
    half = SMALLEST_WINDOW + (1.0 - SMALLEST_WINDOW) * torch.rand(count, 1, generator=generator)
    middle = (2.0 * torch.rand(count, 2, generator=generator) - 1.0) * (1.0 - half)
    return Scenes(rows, columns, transposed, channels, torch.cat([middle, half], dim=1))


def apply_scenes(frames: Float[Tensor, "n v s s 3"], scenes: Scenes) -> Float[Tensor, "n v s s 3"]:
    """The same change to all frames of a sample: another scene, seen along another path, as consistent as the first.

    Beyond the paper: few clips become many, so that small collections teach motion and not their own pictures.

    Raises:
        ValueError: frames that are not square.
    """
    if frames.shape[2] != frames.shape[3]:
        raise ValueError(f"frames of {frames.shape[3]} x {frames.shape[2]} pixels cannot be transposed")

    def where(flag: Bool[Tensor, "n"], changed: Tensor, kept: Tensor) -> Tensor:
        return torch.where(flag.to(kept.device)[:, None, None, None, None], changed, kept)

    frames = where(scenes.rows, frames.flip(2), frames)
    frames = where(scenes.columns, frames.flip(3), frames)
    frames = where(scenes.transposed, frames.transpose(2, 3), frames)
    channels = scenes.channels.to(frames.device)[:, None, None, None, :].expand(frames.shape)
    return _windows(frames.gather(4, channels), scenes.window.to(frames))


def _windows(frames: Float[Tensor, "n v s s 3"], window: Float[Tensor, "n 3"]) -> Float[Tensor, "n v s s 3"]:
    """Parts of the frames, enlarged bilinearly to their size."""
    n, v, side = frames.shape[:3]
    middle, half = window[:, :2, None], window[:, 2:, None]
    affine = torch.cat([half * torch.eye(2).to(frames), middle], dim=2)
    grid = F.affine_grid(affine, [n, 3 * v, side, side], align_corners=False)
    planes = frames.permute(0, 1, 4, 2, 3).reshape(n, 3 * v, side, side)
    seen = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return seen.reshape(n, v, 3, side, side).permute(0, 1, 3, 4, 2)


def _adjust(frames: Float[Tensor, "n v h w 3"], kind: int, amount: Float[Tensor, "n 1 1 1 1"]) -> Tensor:
    if kind == 0:
        return frames + amount
    if kind == 1:
        mean = frames.mean(dim=(2, 3), keepdim=True)
        return mean + amount * (frames - mean)
    hue, saturation, value = hsv_from_rgb(frames)
    amount = amount[..., 0]
    if kind == 2:
        return rgb_from_hsv(hue, saturation * amount, value)
    return rgb_from_hsv(hue + amount, saturation, value)


def hsv_from_rgb(rgb: Float[Tensor, "*s 3"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Hue in turns [0, 1), saturation, value; also for values outside [0, 1] (black and grey have hue 0)."""
    value, index = rgb.max(dim=-1)
    spread = value - rgb.amin(dim=-1)
    safe = torch.where(spread > 0, spread, 1.0)
    red, green, blue = rgb.unbind(-1)
    sixths = torch.where(
        index == 0, (green - blue) / safe,
        torch.where(index == 1, (blue - red) / safe + 2.0, (red - green) / safe + 4.0),
    )  # fmt: skip
    coloured = value.abs() > 1e-6
    return (sixths / 6.0) % 1.0, torch.where(coloured, spread / torch.where(coloured, value, 1.0), 0.0), value


def rgb_from_hsv(
    hue: Float[Tensor, "*s"], saturation: Float[Tensor, "*s"], value: Float[Tensor, "*s"]
) -> Float[Tensor, "*s 3"]:
    """Inverse of `hsv_from_rgb`; the hue may lie outside [0, 1)."""
    offsets = torch.tensor([5.0, 3.0, 1.0], dtype=hue.dtype, device=hue.device)
    k = (offsets + 6.0 * hue[..., None]) % 6.0
    away = torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)
    return value[..., None] * (1.0 - saturation[..., None] * away)


def gaussian_blur(frames: Float[Tensor, "n v h w 3"], sigma: Float[Tensor, "n"]) -> Float[Tensor, "n v h w 3"]:
    """Normalised window of 7 x 7 pixels, one sigma [pixels] per group; mirrored borders (the edge is not repeated)."""
    n, v, h, w, _ = frames.shape
    at = torch.arange(-BLUR_REACH, BLUR_REACH + 1, dtype=frames.dtype, device=frames.device)
    taps = torch.exp(-0.5 * (at / sigma[:, None]).square())
    taps = taps / taps.sum(dim=1, keepdim=True)
    planes = frames.permute(0, 1, 4, 2, 3).reshape(n, v * 3, h, w)
    planes = F.pad(planes, (BLUR_REACH,) * 4, mode="reflect")
    for dim, size in ((2, h), (3, w)):
        parts = (planes.narrow(dim, k, size) * taps[:, k, None, None, None] for k in range(len(at)))
        planes = torch.stack(list(parts)).sum(dim=0)
    return planes.reshape(n, v, 3, h, w).permute(0, 1, 3, 4, 2)
