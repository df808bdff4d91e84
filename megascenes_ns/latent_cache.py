"""What the frozen networks make of photos, kept in memory and on disk: training needs it once per photo, not per step.

A photo is the reference of some pairs and the target of others, so both are kept: mean and deviation of its latent (a
target is drawn afresh from them every time) and its image embedding. Source: spec megascenes 6.
"""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from core_ns.atomic import atomic_path
from core_ns.errors import DataError
from dataparsers.megascenes_paths import image_key
from megascenes_ns.autoencoder import Moments
from megascenes_ns.networks import Encoded, Networks

Array = np.ndarray
Precision = Literal["fp16", "fp32"]

FORMAT = 1
FOLDER = "latents"
_KINDS = {"fp16": np.float16, "fp32": np.float32}


@dataclass(frozen=True, eq=False)
class PhotoLatent:
    """Of one photo, in the precision that it is kept in."""

    mean: Float[Array, "4 h w"]
    """Unscaled mode of the posterior: a reference's latent as it is."""
    std: Float[Array, "4 h w"]
    embedding: Float[Array, "e"]
    """CLIP's, not normalised."""

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        return self.mean.nbytes + self.std.nbytes + self.embedding.nbytes


class LatentCache:
    """Latents by key, those used last in memory and, with a folder, all on disk. Any thread may ask.

    What is put in is rounded to the cache's precision at once: the first step with a photo sees what later ones see.

    Args:
        digest: of the frozen networks, `frozen_digest`: others make other latents.
        picture: side of the pictures.
        folder: of the cache; files are in its folder ``latents``. None: memory alone.
        precision: of what is kept.
        memory: bytes kept in memory.
    """

    def __init__(
        self,
        digest: str,
        picture: int,
        folder: Path | None = None,
        precision: Precision = "fp16",
        memory: int = 1 << 30,
    ) -> None:
        self.folder = None if folder is None else Path(folder) / FOLDER
        self._kind, self._memory, self._used = _KINDS[precision], memory, 0
        self._settings = json.dumps({"format": FORMAT, "frozen": digest, "picture": picture, "precision": precision})
        self._known: OrderedDict[str, PhotoLatent] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, path: str) -> str:
        """Name of a photo's latents: SHA-1 of its listed path and of what makes them.

        Raises:
            ValueError: the path cannot be used.
        """
        return image_key(path, self._settings)

    def get(self, key: str) -> PhotoLatent | None:
        """Latents by key; None where there are none yet.

        Raises:
            DataError: a damaged file.
        """
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found
        file = self.file(key)
        if file is None or not file.is_file():
            return None
        found = _read(file, self._kind)
        self._remember(key, found)
        return found

    def put(self, key: str, latent: PhotoLatent) -> PhotoLatent:
        """Keep latents; give them back as they are kept."""
        rounded = PhotoLatent(*(np.ascontiguousarray(part, self._kind) for part in _parts(latent)))
        file = self.file(key)
        if file is not None:
            with atomic_path(file) as temporary, open(temporary, "wb") as handle:
                np.savez(handle, mean=rounded.mean, std=rounded.std, embedding=rounded.embedding)
        self._remember(key, rounded)
        return rounded

    def file(self, key: str) -> Path | None:
        """Where latents are, or would be, on disk."""
        return None if self.folder is None else self.folder / key[:2] / f"{key[2:]}.npz"

    def _remember(self, key: str, latent: PhotoLatent) -> None:
        with self._lock:
            old = self._known.pop(key, None)
            self._used += latent.bytes - (old.bytes if old is not None else 0)
            self._known[key] = latent
            while self._used > self._memory and len(self._known) > 1:
                self._used -= self._known.popitem(last=False)[1].bytes


def _parts(latent: PhotoLatent) -> tuple[Array, Array, Array]:
    return latent.mean, latent.std, latent.embedding


def _read(file: Path, kind: type) -> PhotoLatent:
    try:
        # numpy leaves a damaged file open that it opened itself.
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            found = PhotoLatent(arrays["mean"], arrays["std"], arrays["embedding"])
        if any(part.dtype != kind for part in _parts(found)) or found.mean.ndim != 3 or found.embedding.ndim != 1:
            raise ValueError(f"{found.mean.dtype} {found.mean.shape}")
        if found.mean.shape != found.std.shape or not all(np.isfinite(part).all() for part in _parts(found)):
            raise ValueError("shapes that differ, or a value that is no number")
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        problem = f"holds no latents ({type(error).__name__}: {error})."
        raise DataError(file, "content", problem, "Delete it: it is made again.") from error
    return found


def encode_photos(
    nets: Networks, cache: LatentCache, photos: Sequence[tuple[str, Array]], batch: int = 8
) -> dict[str, PhotoLatent]:
    """Encode photos and keep what comes out.

    Args:
        nets: the frozen networks count.
        cache: to put it into.
        photos: key and white padded square, uint8 [s, s, 3], of each.
        batch: photos that go through at once.

    Returns:
        By key, as kept.
    """
    found: dict[str, PhotoLatent] = {}
    for start in range(0, len(photos), batch):
        part = photos[start : start + batch]
        squares = torch.from_numpy(np.stack([square for _, square in part])).to(nets.device)
        encoded, moments = nets.encode_reference(squares), nets.encode_target(squares)
        arrays = [each.float().cpu().numpy() for each in (moments.mean, moments.std, encoded.embedding)]
        for row, (key, _) in enumerate(part):
            found[key] = cache.put(key, PhotoLatent(*(each[row] for each in arrays)))
    return found


def stacked(latents: Sequence[PhotoLatent], device: torch.device | str) -> tuple[Moments, Encoded]:
    """Latents of a batch, float32: as targets and as references."""

    def tensor(name: str) -> Tensor:
        arrays = np.stack([getattr(each, name) for each in latents])
        return torch.from_numpy(arrays.astype(np.float32)).to(device)

    mean = tensor("mean")
    return Moments(mean, tensor("std")), Encoded(mean, tensor("embedding"))


def frozen_digest(nets: Networks) -> str:
    """SHA-256 (hex) of the frozen networks' weights, byte by byte: the same on every machine and device."""
    found = hashlib.sha256()
    for part in (nets.vae, nets.image_encoder):
        assert isinstance(part, nn.Module)
        for name, tensor in sorted(part.state_dict().items()):
            values = tensor.detach().float().cpu().contiguous().numpy()
            found.update(f"{name} {values.shape}".encode())
            found.update(values.tobytes())
    return found.hexdigest()
