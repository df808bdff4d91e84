"""The convolutional network that looks at one source photo (spec r4dv 4.4)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEATURES = 8
"""Channels of the full-resolution map."""
EPSILON = 1e-5
Norm = Literal["instance", "group"]


class MaskedNorm(nn.Module):
    """Normalisation by the statistics of the valid pixels of one image, then ReLU; what is not valid becomes zero.

    The original keeps BatchNorm in batch-statistics mode on single images, so that padding changes its features. Here
    the same image gives the same features in training, evaluation and baking, whatever it is padded with.

    Args:
        channels: of the image.
        groups: channels / groups share their statistics; channels: instance norm.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(
        self, x: Float[Tensor, "1 c h w"], valid: Float[Tensor, "1 1 h w"] | None = None
    ) -> Float[Tensor, "1 c h w"]:
        """Normalise ``x``; ``valid`` is 0 or 1 per pixel, None where all are. Statistics are taken in float32."""
        pixels = x.permute(0, 2, 3, 1)
        pixels = pixels.float() if x.dtype in (torch.float16, torch.bfloat16) else pixels
        flat = pixels.reshape(-1, x.shape[1])
        mask = None if valid is None else valid.reshape(-1, 1).to(flat.dtype)
        out = _NormRelu.apply(flat, mask, self.weight, self.bias, self.groups)
        return out.view(pixels.shape).permute(0, 3, 1, 2)  # pyright: ignore[reportAttributeAccessIssue]


class _NormRelu(torch.autograd.Function):
    """``relu((x - mean) / sqrt(var + eps) * weight + bias) * valid`` over [pixels, channels].

    torch's group norm is ten times slower than its formula on channels-last images on CPUs, backward above all.
    """

    @staticmethod
    def forward(ctx, x, valid, weight, bias, groups):  # pyright: ignore[reportIncompatibleMethodOverride]
        x = x if valid is None else x * valid
        count = float(x.shape[0]) if valid is None else valid.sum().clamp_min(1.0)
        mean = _shared(x.sum(dim=0) / count, groups)
        square = _shared((x * x).sum(dim=0) / count, groups)
        inverse = torch.rsqrt((square - mean * mean).clamp_min(0.0) + EPSILON)
        scale = weight * inverse
        out = torch.addcmul(bias - mean * scale, x, scale).relu_()
        out = out if valid is None else out.mul_(valid)
        ctx.save_for_backward(x, valid, weight, out, mean, inverse)
        ctx.count, ctx.groups = count, groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, valid, weight, out, mean, inverse = ctx.saved_tensors
        # The ReLU's output is zero where a pixel is not valid, so its own mask covers both.
        grad = grad * out.sign()
        for_bias = grad.sum(dim=0)
        for_weight = inverse * ((grad * x).sum(dim=0) - mean * for_bias)
        along_mean = _shared(weight * for_bias, ctx.groups) / ctx.count
        along_x = _shared(weight * for_weight, ctx.groups) / ctx.count * inverse
        rest = inverse * (mean * along_x - along_mean)
        for_x = torch.addcmul(rest, x, -inverse * along_x).addcmul_(grad, inverse * weight)
        return for_x if valid is None else for_x.mul_(valid), None, for_weight, for_bias, None


def _shared(per_channel: Float[Tensor, "c"], groups: int) -> Float[Tensor, "c"]:
    """Mean over the channels of each group."""
    grouped = per_channel.view(groups, -1)
    return grouped.mean(dim=1, keepdim=True).expand_as(grouped).reshape(-1)


class _Block(nn.Module):
    """Convolution without bias, normalisation over valid pixels, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = MaskedNorm(outputs, outputs if norm == "instance" else max(1, outputs // 4))

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        return self.norm(self.conv(x), valid)


class _Lateral(nn.Conv2d):
    """Convolution of single pixels as the matrix product that it is: torch's own is slow on CPUs for few channels."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class FeatureNet(nn.Module):
    """A small encoder and feature pyramid; the full-resolution map of 8 channels is what points look up (spec 4.4).

    Args:
        norm: "instance" (what the original's BatchNorm amounts to) or "group" (four channels share statistics); both
            over valid pixels only.
    """

    def __init__(self, norm: Norm = "instance") -> None:
        super().__init__()
        if norm not in ("instance", "group"):
            raise ValueError(f"unknown norm {norm!r}: use 'instance' or 'group'")

        def stage(*blocks: tuple[int, int, int, int]) -> nn.ModuleList:
            return nn.ModuleList(_Block(*block, norm) for block in blocks)

        self.stages = nn.ModuleList(
            [
                stage((3, 8, 3, 1), (8, 8, 3, 1)),
                stage((8, 16, 5, 2), (16, 16, 3, 1)),
                stage((16, 32, 5, 2), (32, 32, 3, 1)),
            ]
        )
        self.laterals = nn.ModuleList(_Lateral(channels, 32, 1) for channels in (8, 16, 32))
        self.smooth = nn.Conv2d(32, FEATURES, 3, padding=1)

    def forward(
        self, image: Float[Tensor, "3 h w"], valid: Bool[Tensor, "h w"] | None = None
    ) -> Float[Tensor, "8 h w"]:
        """Features of every pixel; zero where the photo is not valid.

        Args:
            image: display sRGB in [0, 1].
            valid: False where undistortion left no picture; None: everything is valid.

        The same whatever invalid pixels hold and however many of them follow to the right and below.
        """
        masks: list[Tensor | None] = [None, None, None]
        # Channels last: twice as fast on CPUs, and the order in which points read the map.
        x = (2.0 * image - 1.0)[None].contiguous(memory_format=torch.channels_last)
        if valid is not None and not bool(valid.all()):
            full = valid[None, None].to(x)
            half = F.max_pool2d(full, 2, ceil_mode=True)
            x, masks[:] = x * full, (full, half, F.max_pool2d(half, 2, ceil_mode=True))
        maps = []
        for stage, mask in zip(self.stages, masks, strict=True):
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x, mask)
            maps.append(x)
        out = _cut(self.laterals[2](maps[2]), masks[2])
        out = _cut(_twice(out, maps[1]) + self.laterals[1](maps[1]), masks[1])
        out = self.smooth(_cut(_twice(out, maps[0]), masks[0])) + self._finest(maps[0], masks[0])
        return _cut(out, masks[0])[0]

    def _finest(self, x: Float[Tensor, "1 8 h w"], mask: Tensor | None) -> Float[Tensor, "1 8 h w"]:
        """What the finest lateral contributes to the smoothed map, in one convolution: the 32 channels in between are
        never formed at full resolution. The lateral's bias enters as a ninth channel, which ends at the border."""
        lateral = self.laterals[0]
        assert isinstance(lateral, nn.Conv2d)
        assert lateral.bias is not None
        inner = torch.cat([lateral.weight.flatten(1), lateral.bias[:, None]], dim=1)
        weight = torch.einsum("okyx,kc->ocyx", self.smooth.weight, inner)
        joined = torch.cat([x, torch.ones_like(x[:, :1]) if mask is None else mask], dim=1)
        return F.conv2d(joined, weight, padding=1)


def _cut(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _twice(coarse: Float[Tensor, "1 c h w"], fine: Float[Tensor, "1 d hh ww"]) -> Float[Tensor, "1 c hh ww"]:
    """Bilinear, to the size of ``fine``; zeros follow to the right and below, as they do in a padded image."""
    up = F.interpolate(F.pad(coarse, (0, 1, 0, 1)), scale_factor=2, mode="bilinear", align_corners=False)
    return up[..., : fine.shape[2], : fine.shape[3]]


class FrozenFeatures:
    """Feature maps of photos kept while the network does not change (most steps: spec 4.4 trains it in every 100th).

    Maps are dropped as soon as a parameter is written to or replaced, and the least recently used ones beyond a limit
    in bytes. Holds no gradient. Not a module: nothing of it enters a checkpoint.

    Args:
        net: the network; not owned.
        limit: bytes of feature maps to keep.
    """

    def __init__(self, net: FeatureNet, limit: int = 256 << 20) -> None:
        self._net, self.limit = [net], limit  # a list hides it from nn.Module's registration of attributes
        self._maps: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._state: tuple[tuple[int, int], ...] = ()
        self._bias: Tensor | None = None
        self.bytes = 0

    @torch.no_grad()
    def __call__(
        self, key: Hashable, image: Float[Tensor, "3 h w"], valid: Bool[Tensor, "h w"] | None = None
    ) -> Float[Tensor, "8 h w"]:
        """Features of a photo, computed at most once for a state of the network.

        Args:
            key: what identifies the photo (frame and view); the caller vouches that it is the same image.
            image, valid: as for `FeatureNet`.
        """
        state = tuple((parameter.data_ptr(), parameter._version) for parameter in self._net[0].parameters())
        # Fused optimisers write without counting versions, but every step of theirs moves the last bias.
        bias = self._net[0].smooth.bias
        assert bias is not None
        if state != self._state or self._bias is None or not torch.equal(bias, self._bias):
            self.clear()
            self._state, self._bias = state, bias.detach().clone()
        found = self._maps.get(key)
        if found is None or found.device != image.device or found.shape[1:] != image.shape[1:]:
            self._drop(key)
            found = self._maps[key] = self._net[0](image, valid)
            self.bytes += found.nbytes
            while self.bytes > self.limit and len(self._maps) > 1:
                self._drop(next(iter(self._maps)))
        self._maps.move_to_end(key)
        return found

    def _drop(self, key: Hashable) -> None:
        gone = self._maps.pop(key, None)
        self.bytes -= 0 if gone is None else gone.nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._maps.clear()
        self.bytes = 0
