"""Charged folders of random points, made without a training, for the tests of what reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from r4dv_ns.charge_manifest import ChargedView, Manifest, Start, write_manifest
from r4dv_ns.charge_store import UNSEEN, ChargedFrame, quantise, write_frame, write_static


def random_frame(rng: np.random.Generator, n: int = 50, s: int = 3, degree: int = 3, **changes: Any) -> ChargedFrame:
    """Points in a box of +-1 with sizes, colours and logits; a tenth of the sightings see nothing."""
    logit = rng.normal(size=(s, n)).astype(np.float16)
    logit[rng.random((s, n)) < 0.1] = UNSEEN
    frame = ChargedFrame(
        xyz=rng.uniform(-1, 1, (n, 3)).astype(np.float32),
        radius=rng.uniform(0.01, 0.05, n).astype(np.float16),
        alpha=rng.uniform(0.5, 1, n).astype(np.float16),
        sh=(0.2 * rng.normal(size=(n, (degree + 1) ** 2, 3))).astype(np.float16),
        src_rgb=rng.integers(0, 256, (s, n, 3), dtype=np.uint8),
        src_logit=logit,
        src_id=np.arange(s, dtype=np.uint16),
    )
    return replace(frame, **changes)


def ring_views(count: int, frames: int, moving: tuple[int, ...] = ()) -> tuple[ChargedView, ...]:
    """Cameras on a circle of radius 4 around the origin, the last of them held out."""
    views = []
    for index in range(count):
        poses = []
        for step in range(frames if index in moving else 1):
            angle = 2 * np.pi * index / count + 0.05 * step
            forward = -np.array([np.cos(angle), np.sin(angle), 0.0])
            right = np.cross(forward, [0.0, 0.0, 1.0])
            w2c = np.eye(4)
            w2c[:3, :3] = np.stack([right, np.cross(forward, right), forward])
            w2c[:3, 3] = w2c[:3, :3] @ (4 * forward)
            poses.append(w2c)
        K = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
        pose = np.stack(poses) if index in moving else poses[0]
        views.append(ChargedView(f"cam_{index}", K, 64, 48, pose, train=index < count - 1))
    return tuple(views)


def make_charge(
    folder: Path, frames: int = 3, n: int = 50, s: int = 3, *, degree: int = 3, pack: bool = False,
    u16: bool = False, static: int = 0, views: int = 5, moving: tuple[int, ...] = (), seed: int = 0,
) -> tuple[Manifest, list[ChargedFrame]]:  # fmt: skip
    """A charge of random points, whole; its manifest and frames."""
    rng = np.random.default_rng(seed)
    made, hashes, boxes = [], {}, []
    branch = np.r_[np.zeros(n - static, np.uint8), np.ones(static, np.uint8)] if static else None
    last: ChargedFrame | None = None
    for index in range(frames):
        frame = random_frame(rng, n, s, degree, branch=branch)
        if last is not None and static:
            joined = {key: np.concatenate([getattr(frame, key)[:-static], getattr(last, key)[-static:]])
                      for key in ("xyz", "radius", "alpha", "sh")}  # fmt: skip
            frame = replace(frame, **joined)
        last = frame
        if u16:
            xyz, box = quantise(frame.xyz)
            frame = replace(frame, xyz=xyz, box=box)
            boxes.append(box)
        if static and not index:
            hashes |= write_static(folder, frame, static)
        hashes |= write_frame(folder, f"{index:06d}", frame, pack=pack, static_count=static)
        made.append(frame)
    manifest = Manifest(
        frames=[f"{index:06d}" for index in range(frames)],
        times=np.linspace(0, 1, frames).tolist() if frames > 1 else [0.0],
        counts=[n] * frames,
        bounds=np.array([[-1.0] * 3, [1.0] * 3]),
        views=ring_views(views, frames, moving),
        start=Start(np.array([2.0, 0, 0]), np.zeros(3), np.array([0.0, 0, 1])),
        sh_degree=degree,
        stored_sources=s,
        packed=pack,
        boxes=tuple(boxes),
        static_count=static,
        dtypes={key: array.dtype.str for key, array in made[0].arrays().items()},
        eval_frames=[0],
    )
    return write_manifest(folder, manifest, hashes), made
