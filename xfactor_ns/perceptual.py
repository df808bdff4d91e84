"""LPIPS with VGG-16 as a training loss, where its weights are on this machine (spec xfactor 4.2).

Never a download, never a network module inside a checkpoint: without weights there is one warning and no term.
"""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from core_ns.errors import DataError
from core_ns.metrics import backbone_problem

SMALLEST_SIDE = 16
"""Four poolings leave one value of so many pixels."""

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""torchvision's numbers of the convolutions, up to each pooling."""
WIDTHS = (64, 128, 256, 512, 512)

logger = logging.getLogger(__name__)


class PerceptualLoss:
    """LPIPS of batches of pictures in [-1, 1], or None. Not a module: a model may keep it as an attribute.

    Args:
        weights: file with torchvision's VGG-16 weights (all of them, or ``features.*`` alone); None: the one that
            torch.hub keeps in its cache. The five linear layers come with torchmetrics.
    """

    _warned = False

    def __init__(self, weights: Path | None = None) -> None:
        self.weights = weights
        self._network: Lpips | None = None
        self._tried = False

    def __call__(self, pred: Float[Tensor, "b h w 3"], truth: Float[Tensor, "b h w 3"]) -> Float[Tensor, ""] | None:
        """Mean distance, differentiable; None without weights, or below 16 pixels a side.

        Raises:
            DataError: the file named in the options cannot be used.
        """
        if min(truth.shape[1:3]) < SMALLEST_SIDE:
            return None
        if not self._tried:
            self._tried = True
            self._network = self._build()
        if self._network is None:
            return None
        network = self._network.to(truth.device)
        return network(*(images.permute(0, 3, 1, 2).float() for images in (pred, truth))).mean()

    def _build(self) -> Lpips | None:
        if self.weights is not None:
            return Lpips(read_vgg(self.weights))
        try:
            problem = backbone_problem("vgg16")
            if problem is None:
                return Lpips(read_vgg(_cached()))
        except Exception as error:  # an optional term must never end a training run
            problem = f"{type(error).__name__}: {error}"
        if not PerceptualLoss._warned:
            PerceptualLoss._warned = True
            logger.warning("The loss is L1 alone, without LPIPS: %s", problem)
        return None


def _cached() -> Path:
    from torchvision.models import VGG16_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(VGG16_Weights.DEFAULT.url).path).name


def read_vgg(path: Path) -> dict[str, Tensor]:
    """The convolutions of a VGG-16 state dict: ``0.weight``, ``0.bias``, ``2.weight``, ... (tensors only, no pickle).

    Raises:
        DataError: no such file, or not these weights.
    """
    remedy = "Give the file of torchvision's VGG-16 weights, or leave --pipeline.model.lpips-weights out."
    if not path.is_file():
        raise DataError(path, "", "is not a file.", remedy)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise DataError(path, "", f"does not load ({type(error).__name__}: {first_line}).", remedy) from error
    wanted = [f"{layer}.{part}" for layers in STAGES for layer in layers for part in ("weight", "bias")]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(path, f"features.{missing[0]}", "is missing.", remedy)
    return found


class Lpips:
    """LPIPS (Zhang et al. 2018) of VGG-16 features, the five relu stages ``relu1_2`` ... ``relu5_3``.

    Plain tensors and no module: nothing here trains, or finds its way into a checkpoint.

    Args:
        convolutions: of `read_vgg`.
        weights: one per channel of each stage; default: the published ones, which torchmetrics brings along.

    Raises:
        DataError: convolutions of other shapes.
    """

    def __init__(self, convolutions: dict[str, Tensor], weights: list[Tensor] | None = None) -> None:
        channels = 3
        self._stages: list[list[tuple[Tensor, Tensor]]] = []
        for layers, width in zip(STAGES, WIDTHS, strict=True):
            self._stages.append([])
            for layer in layers:
                kernel, bias = (convolutions[f"{layer}.{part}"].float() for part in ("weight", "bias"))
                if kernel.shape != (width, channels, 3, 3) or bias.shape != (width,):
                    problem = f"has the shape {list(kernel.shape)}."
                    raise DataError("VGG-16 weights", f"features.{layer}", problem, "Use torchvision's VGG-16.")
                self._stages[-1].append((kernel, bias))
                channels = width
        self._weights = [value.flatten().float() for value in (published() if weights is None else weights)]
        self._shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        self._scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]

    def to(self, device: torch.device) -> Lpips:
        """Move everything; itself."""
        self._stages = [[(kernel.to(device), bias.to(device)) for kernel, bias in each] for each in self._stages]
        self._weights = [value.to(device) for value in self._weights]
        self._shift, self._scale = self._shift.to(device), self._scale.to(device)
        return self

    def __call__(self, pred: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """Distances of pictures in [-1, 1]."""
        x, total = (torch.cat([pred, truth]) - self._shift) / self._scale, pred.new_zeros(len(pred))
        for stage, (layers, weights) in enumerate(zip(self._stages, self._weights, strict=True)):
            x = F.max_pool2d(x, 2) if stage else x
            for kernel, bias in layers:
                x = F.relu(F.conv2d(x, kernel, bias, padding=1))
            unit = x / torch.sqrt(x.square().sum(dim=1, keepdim=True) + 1e-8)
            first, second = unit.chunk(2)
            total = total + (first - second).square().mean(dim=(2, 3)) @ weights
        return total


def published() -> list[Tensor]:
    """The weights per channel that torchmetrics brings along, stage by stage."""
    import torchmetrics.functional.image.lpips as lpips

    file = Path(str(lpips.__file__)).with_name("lpips_models") / "vgg.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{stage}.model.1.weight"].flatten() for stage in range(len(STAGES))]
