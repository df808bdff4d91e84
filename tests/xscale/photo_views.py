"""Small noise photos with cameras, masks and made-up ray distances, and how to compare stores of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xscale_ns.tile_format import ViewSource
from xscale_ns.tiles import TileStore

SIZES = [(1, 1), (64, 64), (65, 63), (200, 130), (128, 1), (3, 129)]


def quiet(_: str) -> None:
    """Progress nobody reads."""


def make_views(folder: Path, sizes=SIZES, masked=(), suffix=".png") -> list[ViewSource]:
    """Noise photos; ``masked`` lists the positions that get a mask keeping about a third of the pixels."""
    views = []
    for index, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(index)
        path, mask = folder / f"photo_{index}{suffix}", None
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        if index in masked:
            mask = folder / f"mask_{index}.png"
            Image.fromarray((noise.random((height, width)) < 1 / 3).astype(np.uint8) * 255).save(mask)
        camera = {"fx": 100.0 + index / 3, "pose": np.eye(4)[:3].tolist()}
        views.append(ViewSource(path.name, path, width, height, camera, mask))
    return views


def distance(view: int, xy: torch.Tensor) -> torch.Tensor:
    """A recognisable distance: depends on view, column and row; every fifth column misses."""
    t = view * 1e4 + xy[:, 1] * 30 + xy[:, 0] / 7
    return torch.where(xy[:, 0].long() % 5 == 0, torch.inf, t)


def assembled(store: TileStore, view: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Padded colour, distance and validity images of a view, put together tile by tile."""
    rows, columns = store.views[view].grid
    tiles = [[store.read_tile(view, row, column) for column in range(columns)] for row in range(rows)]

    def image(part: str):
        return np.concatenate([np.concatenate([getattr(tile, part) for tile in row], axis=1) for row in tiles])

    return image("rgb"), image("t") if store.has_distances else None, image("valid")


def content_hashes(folder: Path) -> dict[str, str]:
    """Every file's hash, the manifest included, the lock not."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != "build.lock"}
