"""The slow way to draw a charge, and to compare charges; for the tests of baking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from r4dv_ns.appearance import view_directions
from r4dv_ns.charge_store import UNSEEN, ChargedStore
from r4dv_ns.drawing import draw, pinhole
from r4dv_ns.harmonics import evaluate
from r4dv_ns.viewer import Look


def contents(folder: Path) -> dict[str, bytes]:
    """All files; config.yml names its own place, and is left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "config.yml")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * torch.log10((one - other).square().mean().clamp_min(1e-20)))


def drawn(store: ChargedStore, camera: Any, index: int, config: Any) -> torch.Tensor:
    """A charged picture the slow way, from the manifest and arrays alone (4K4D eq. 3 to 6)."""
    frame, manifest, look = store.frame(index), store.manifest, pinhole(camera)
    distance = np.linalg.norm(manifest.centres(index, frame.src_id.tolist()) - look.centre.numpy(), axis=1)
    rows = np.argsort(distance, kind="stable")[: manifest.sources]
    logit = torch.from_numpy(frame.src_logit[rows].astype(np.float32))
    seen = logit > UNSEEN / 2
    weights = torch.softmax(torch.where(seen | ~seen.any(dim=0), logit, -torch.inf), dim=0)
    rgb = torch.from_numpy(frame.src_rgb[rows].astype(np.float32)) / (255 if frame.src_rgb.dtype == np.uint8 else 1)
    xyz = torch.from_numpy(np.array(frame.positions()))
    harmonics = evaluate(
        torch.from_numpy(frame.sh.astype(np.float32)).transpose(1, 2), view_directions(xyz, look.centre)
    )
    colour = (torch.einsum("sn,snc->nc", weights, rgb) + manifest.sh_limit * torch.tanh(harmonics)).clamp(0, 1)
    radius, alpha = (torch.from_numpy(part.astype(np.float32)) for part in (frame.radius, frame.alpha))
    found = draw(look, xyz, radius, alpha, colour, Look(manifest.layers), config)
    return found.color + (1 - found.accumulation[..., None]) * manifest.background
