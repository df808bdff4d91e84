"""FID and KID of sets of pictures, where Inception's weights are on this machine; no download (spec megascenes 7)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Array = np.ndarray

FILE = "weights-inception-2015-12-05-6726825d.pth"
"""What torch-fidelity (and so torchmetrics) calls the network that the papers' numbers come from."""
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
FEWEST = 2
"""Pictures below which there is no covariance."""
KID_SUBSET, KID_SUBSETS = 1000, 100


def inception_problem() -> str | None:
    """Why Inception's features cannot be had; None when they can. Touches no network.

    The file's name ends in the first digits of its SHA-256; another file would give wrong numbers. It must open without
    unpickling objects, because torch-fidelity itself loads with ``weights_only=False``.
    """
    try:
        import torch_fidelity.feature_extractor_inceptionv3  # noqa: F401
    except Exception as error:
        return f"torch-fidelity does not load ({type(error).__name__}: {error})"
    path = _weights()
    if not path.is_file():
        return f"Inception's weights are not in {path.parent} (put {URL} there to have it)"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(path.stem.rpartition("-")[2]):
        return f"{path} is not the published file (SHA-256 {digest[:8]}...); delete it"
    torch.load(path, map_location="cpu", weights_only=True)
    return None


def _weights() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE


class Inception:
    """2048 features per picture. Not a module: its network belongs in no checkpoint.

    Args:
        device: of the network.

    Raises:
        RuntimeError: `inception_problem` has something to say.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        problem = inception_problem()
        if problem is not None:
            raise RuntimeError(problem)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        extractor: Any = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(_weights())
        )
        self._network, self._device = extractor.to(device), device

    @torch.no_grad()
    def __call__(self, pictures: UInt8[Tensor, "b h w 3"]) -> Float[Array, "b 2048"]:
        """Features of pictures, float64."""
        found = self._network(pictures.permute(0, 3, 1, 2).contiguous().to(self._device))[0]
        return found.double().cpu().numpy()


def _root(features: Float[Array, "n d"]) -> Float[Array, "d k"]:
    """A with A A^T the covariance, of no more columns than needed."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")).T if len(features) > features.shape[1] else centred.T


def fid(first: Float[Array, "n d"], second: Float[Array, "m d"]) -> float:
    """Frechet distance of two sets of features, |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017).

    With S = A A^T the trace of the root is the sum of the singular values of A1^T A2: no root of a matrix is taken, and
    sets smaller than the features' number are no trouble.

    Raises:
        ValueError: fewer than two pictures.
    """
    if min(len(first), len(second)) < FEWEST:
        raise ValueError(f"FID needs {FEWEST} pictures, got {len(first)} and {len(second)}")
    one, two = _root(np.asarray(first, np.float64)), _root(np.asarray(second, np.float64))
    root = np.linalg.svd(one.T @ two, compute_uv=False).sum()
    shift = first.mean(axis=0) - second.mean(axis=0)
    return float(max(shift @ shift + (one**2).sum() + (two**2).sum() - 2 * root, 0.0))


def kid(first: Float[Array, "n d"], second: Float[Array, "n d"], seed: int = 0) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y/d + 1)^3 (Binkowski et al. 2018).

    Sets of up to 1000 at once; of larger ones the mean over 100 random subsets of 1000.

    Raises:
        ValueError: fewer than two pictures.
    """
    count = min(len(first), len(second))
    if count < FEWEST:
        raise ValueError(f"KID needs {FEWEST} pictures, got {len(first)} and {len(second)}")
    if count <= KID_SUBSET:
        return _discrepancy(first, second)
    random = np.random.default_rng(seed)
    values = []
    for _ in range(KID_SUBSETS):
        rows = [random.choice(len(each), KID_SUBSET, replace=False) for each in (first, second)]
        values.append(_discrepancy(first[rows[0]], second[rows[1]]))
    return float(np.mean(values))


def _discrepancy(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> float:
    def kernel(a: Array, b: Array) -> Array:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    own_x, own_y, both = kernel(x, x), kernel(y, y), kernel(x, y)
    n, m = len(x), len(y)
    within_x = (own_x.sum() - np.trace(own_x)) / (n * (n - 1))
    within_y = (own_y.sum() - np.trace(own_y)) / (m * (m - 1))
    return float(within_x + within_y - 2 * both.mean())
