"""The colour of a charged point as its definition says it, for comparison."""

from __future__ import annotations

import numpy as np
import torch

from r4dv_ns import harmonics
from r4dv_ns.charge_store import UNSEEN, ChargedFrame


def plain_colour(frame: ChargedFrame, chosen: list[int], centre: np.ndarray, limit: float) -> np.ndarray:
    """Colour [N, 3] in float64, one point at a time, as `ChargedFrame` defines it."""
    out = np.zeros((len(frame), 3))
    for n, place in enumerate(frame.positions().astype(np.float64)):
        direction = torch.from_numpy((place - centre) / np.linalg.norm(place - centre))
        degree = round(np.sqrt(frame.sh.shape[1])) - 1
        basis = harmonics.basis(direction, degree).numpy()
        view_dependent = basis @ frame.sh[n].astype(np.float64)
        if not chosen:
            out[n] = np.clip(0.5 + view_dependent, 0, 1)
            continue
        logits = np.array([float(frame.src_logit[s, n]) for s in chosen])
        seen = logits > UNSEEN / 2
        weights = np.where(seen | ~seen.any(), np.exp(logits - logits.max()), 0.0)
        rgb = frame.src_rgb[chosen, n].astype(np.float64)
        rgb = rgb / 255 if frame.src_rgb.dtype == np.uint8 else rgb
        out[n] = np.clip(weights / weights.sum() @ rgb + limit * np.tanh(view_dependent), 0, 1)
    return out
