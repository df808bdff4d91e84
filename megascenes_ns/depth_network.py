"""Monocular depth from a transformers network whose weights lie in a folder (spec megascenes 3.1).

Depth Anything v1 as the original runs it: the photo with its short side at 518 pixels, both sides multiples of 14,
bicubic, ImageNet's mean and deviation. (The processor that comes with the weights picks the scale nearest to 1 instead,
which is another one for photos below 518.) Other networks get what their own processor makes. Nothing is downloaded
unless asked for, and no weights are read that are not safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from core_ns.errors import DataError, need
from megascenes_ns.depth import Depth, depth_from_disparity, in_units, resize_depth
from megascenes_ns.depth_sources import resized_disparity

Array = np.ndarray

SHORT_SIDE = 518
MULTIPLE = 14
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EXTRA = 'pip install "nvs-zoo[megascenes]"'
RECOMMENDED = "LiheYoung/depth-anything-large-hf"
"""Depth Anything v1 ViT-L, the original's. (The weights of v2's large network are not for commercial use.)"""
DISPARITY_NETWORKS = ("depth_anything", "dpt")
METRIC_NETWORKS = ("glpn", "zoedepth")
_ENDS = 1 << 20
"""Bytes from each end of a weights file that go into its fingerprint; whole files take seconds."""


def network_size(width: int, height: int, short_side: int = SHORT_SIDE, multiple: int = MULTIPLE) -> tuple[int, int]:
    """(width, height) that a photo is resized to: the short side becomes ``short_side`` or a little more, each side the
    nearest multiple that is not below it. Aspects change by the rounding."""

    def rounded(side: float) -> int:
        near = round(side / multiple) * multiple
        return near if near >= short_side else math.ceil(side / multiple) * multiple

    ratio = short_side / min(width, height)
    return rounded(width * ratio), rounded(height * ratio)


def network_input(
    image: UInt8[Array, "h w 3"], short_side: int = SHORT_SIDE, multiple: int = MULTIPLE
) -> Float32[Array, "3 h2 w2"]:
    """The photo as Depth Anything takes it: [0, 1], bicubic to `network_size`, less the mean, over the deviation."""
    import cv2

    size = network_size(image.shape[1], image.shape[0], short_side, multiple)
    small = cv2.resize(image.astype(np.float32) / 255.0, size, interpolation=cv2.INTER_CUBIC)
    small = (small - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(small.transpose(2, 0, 1))


class NetworkDepth:
    """Disparity or depth of a transformers depth-estimation network.

    Args:
        weights: folder with config.json and safetensors; with ``download`` also a name at the Hugging Face hub.
        device: torch's name of where it runs.
        download: let weights that are not there be fetched from the hub.
        short_side: of Depth Anything's input.
    """

    def __init__(
        self, weights: str | Path, *, device: str = "cpu", download: bool = False, short_side: int = SHORT_SIDE
    ) -> None:
        self.weights, self.device, self.download, self.short_side = str(weights), device, download, short_side
        self.name = f"network {Path(self.weights).name}"
        self._network: Any = None
        self._processor: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_network": None, "_processor": None}

    # ------------------------------------------------------------------ what a source offers

    def settings(self) -> dict[str, Any]:
        """See `depth.DepthSource`: a fingerprint of the weights, wherever they lie."""
        folder = Path(self.weights)
        if folder.is_dir():
            fingerprint = weights_fingerprint(folder)
        else:
            commit = getattr(self.load().config, "_commit_hash", None)
            fingerprint = f"{self.weights}@{commit}"
        return {"source": "network", "weights": fingerprint, "short_side": self.short_side}

    def disparity(self, image: UInt8[Array, "h w 3"], key: str, size: tuple[int, int]) -> Float64[Array, "h2 w2"]:
        """Disparity at a size (height, width), bicubic; of metric networks 1/z.

        Raises:
            DataError: as `load`, or the network gives numbers that are not finite.
        """
        raw = self.predict(image, key)
        if self.is_metric:
            return 1.0 / np.maximum(resize_depth(raw, *size), 1e-9)
        return resized_disparity(raw, *size)

    def depth(
        self,
        image: UInt8[Array, "h w 3"],
        K: Float[Array, "3 3"],
        key: str,
        *,
        size: tuple[int, int] | None = None,
        scale: float | None = None,
        w2c: Float[Array, "4 4"] | None = None,
    ) -> Depth:
        """See `depth.DepthSource`; divided by its own quantile, because its unit is no reconstruction's."""
        shape = size or (image.shape[0], image.shape[1])
        raw = self.predict(image, key)
        values = resize_depth(raw, *shape) if self.is_metric else depth_from_disparity(resized_disparity(raw, *shape))
        found = in_units(values, self.name, scale=scale, relative=True)
        if found is None:
            raise DataError(self.weights, key, "the network sees no surface.", "Check the weights.")
        return found

    # ------------------------------------------------------------------ the network

    @property
    def is_metric(self) -> bool:
        """Whether it gives depth instead of disparity.

        Raises:
            DataError: as `load`, or the network's kind is not known here.
        """
        config = self.load().config
        kind = config.model_type
        if kind in METRIC_NETWORKS or getattr(config, "depth_estimation_type", "") == "metric":
            return True
        if kind in DISPARITY_NETWORKS:
            return False
        problem = f"is a network of kind '{kind}'; known are {', '.join(DISPARITY_NETWORKS + METRIC_NETWORKS)}."
        raise DataError(self.weights, "config.json", problem, "Run it yourself and give its results as .npy files.")

    def predict(self, image: UInt8[Array, "h w 3"], key: str) -> Float64[Array, "h2 w2"]:
        """What the network says, at its own size. Raises DataError as `disparity`."""
        import torch

        network = self.load()
        if self._processor is None:
            patch = int(getattr(network.config, "patch_size", MULTIPLE))
            pixels = torch.from_numpy(network_input(image, self.short_side, patch))[None]
        else:
            pixels = self._processor(images=image, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            result = network(pixels.to(self.device)).predicted_depth[0].float().cpu().numpy()
        if not np.isfinite(result).all():
            raise DataError(self.weights, key, "the network gives numbers that are not finite.", "Check the weights.")
        return result.astype(np.float64)

    def load(self) -> Any:
        """The network, read at the first call.

        Raises:
            DataError: the folder holds none, or not all of it.
            MissingExtra: transformers is not installed.
        """
        if self._network is None:
            transformers = need("transformers", "Depth from a network", EXTRA)
            folder = Path(self.weights)
            if not folder.is_dir() and not self.download:
                remedy = f"Name the folder of a model, e.g. of {RECOMMENDED}, or give --download."
                raise DataError(self.weights, "depth", "is not a folder.", remedy)
            if folder.is_dir():
                _check_folder(folder)
            options = {"local_files_only": not self.download, "trust_remote_code": False}
            try:
                network, found = transformers.AutoModelForDepthEstimation.from_pretrained(
                    self.weights, use_safetensors=True, output_loading_info=True, **options
                )
                if network.config.model_type != "depth_anything":
                    self._processor = transformers.AutoImageProcessor.from_pretrained(self.weights, **options)
            except Exception as error:  # the libraries below raise whatever they like
                problem = f"cannot be read as a depth network ({type(error).__name__}: {_first_line(error)})."
                raise DataError(self.weights, "network", problem, f"Fetch {RECOMMENDED} again.") from error
            absent = sorted(found["missing_keys"])
            if absent:
                problem = f"lacks {len(absent)} tensors, '{absent[0]}' first."
                raise DataError(self.weights, "weights", problem, f"Fetch {RECOMMENDED} again.")
            self._network = network.eval().requires_grad_(False).to(self.device)
        return self._network


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 over config.json and, of each safetensors file, its name, size and both ends.

    Raises:
        DataError: the folder holds no such network.
    """
    _check_folder(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with open(file, "rb") as handle:
            digest.update(handle.read(_ENDS))
            handle.seek(max(size - _ENDS, 0))
            digest.update(handle.read(_ENDS))
    return digest.hexdigest()


def _check_folder(folder: Path) -> None:
    """Refuse what would end deep in a library."""
    remedy = f"Name the folder of a model, e.g. of {RECOMMENDED}."
    if not (folder / "config.json").is_file():
        raise DataError(folder, "config.json", "is not there.", remedy)
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "model_type" not in content:
            raise ValueError("no model_type")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(folder / "config.json", "", f"cannot be used ({_first_line(error)}).", remedy) from error
    if not any(folder.glob("*.safetensors")):
        problem = "is not there (weights of other formats are pickles, and are not read)."
        raise DataError(folder, "model.safetensors", problem, "Convert the weights, or fetch them as safetensors.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
