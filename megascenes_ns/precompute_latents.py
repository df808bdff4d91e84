"""Latents as one more thing to precompute: what the frozen networks make of every photo (spec megascenes 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from core_ns.errors import DataError
from megascenes_ns.latent_cache import LatentCache, Precision, encode_photos, frozen_digest
from megascenes_ns.precompute_steps import PairPhotos, Thing, pair_of
from megascenes_ns.prepare import resize_pad


@dataclass(frozen=True)
class LatentStep:
    """Latents of every photo of the pairs, references and targets, as training looks them up."""

    photos: PairPhotos
    weights: Path
    """Folder of converted weights."""
    precision: Precision = "fp16"
    device: str = "cpu"
    name: str = "latents"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "networks"}

    @cached_property
    def networks(self) -> Any:
        """Read at the first use. Raises DataError where they cannot be."""
        from megascenes_ns.weights_folder import load

        return load(self.weights).to(self.device)

    def check(self, cache: Path) -> None:
        """See `precompute_steps.Step`; others' latents have other names, and so are in nobody's way.

        Raises:
            DataError: there are no weights.
        """
        from megascenes_ns.weights_folder import read_info

        read_info(self.weights)

    def begin(self, cache: Path) -> None:
        """See `precompute_steps.Step`."""

    def open(self, cache: Path) -> LatentMaker:
        """See `precompute_steps.Step`."""
        digest = frozen_digest(self.networks)
        return LatentMaker(self, LatentCache(digest, self.photos.canvas, cache, self.precision, memory=0))


class LatentMaker:
    """Encodes photos."""

    def __init__(self, step: LatentStep, cache: LatentCache) -> None:
        self.step, self.cache = step, cache

    def things(self, rows: Sequence[int]) -> dict[Path, Thing]:
        """See `precompute_steps.Maker`."""
        found: dict[Path, Thing] = {}
        for row in rows:
            for photo, path in enumerate(self.step.photos.table.paths(row)):
                found.setdefault(self._file(self.cache.key(path)), Thing(row, photo))
        return found

    def make(self, thing: Thing) -> int:
        """See `precompute_steps.Maker`."""
        pair = pair_of(self.step.photos.table, thing.row)
        listed = (
            (pair.ref_path, pair.ref_K, pair.ref_size)
            if thing.photo == 0
            else (pair.tgt_path, pair.tgt_K, pair.tgt_size)
        )
        square: UInt8[ndarray, "s s 3"] = resize_pad(self.step.photos.photo(*listed)[0], self.step.photos.canvas)
        key = self.cache.key(listed[0])
        encode_photos(self.step.networks, self.cache, [(key, square)])
        return self._file(key).stat().st_size

    def _file(self, key: str) -> Path:
        file = self.cache.file(key)
        if file is None:
            raise DataError("latents", "cache", "has no folder.", "Name one with --cache.")
        return file
