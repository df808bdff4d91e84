"""Points put elsewhere in training: to the hull's voxels, or to given points where there is no hull."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from capture_runs import NOISE

from dataparsers.point_ply import write_ply
from r4dv_ns.drawing import Drawing
from r4dv_ns.hull_meta import HullMeta
from r4dv_ns.reseed import Reseeder

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]

GIVEN, CARVED = [0.0, 0.0, 2.0], [0.1, 0.0, 2.0]


@pytest.mark.parametrize("carved", [True, False])
def test_points_go_to_the_hull_or_to_the_given_points(tmp_path: Path, carved: bool) -> None:
    entry = {"stem": "000000", "count": 3, "bbox": [[0, 0, 0], [1, 1, 1]], "volume": 0.0, "flags": [], "hash": ""}
    hulls = HullMeta(tmp_path, np.array([[0.0] * 3, [1.0] * 3]), 0.02, [entry])
    write_ply(hulls.points(0), np.array([GIVEN] * 3))
    if carved:
        write_ply(hulls.hull(0), np.array([CARVED] * 3))
    parameter = torch.nn.Parameter(torch.zeros(5, 3))
    model = SimpleNamespace(
        hulls=hulls, sequence=SimpleNamespace(transform=np.eye(4)), points=SimpleNamespace(points=[parameter])
    )
    alpha = torch.tensor([0.5, 0.01, 0.5, 0.001, 0.5], requires_grad=True)
    K = torch.tensor([[10.0, 0.0, 5.0], [0.0, 10.0, 5.0], [0.0, 0.0, 1.0]])
    reseeder = Reseeder(every=3, seed=0)
    reseeder.note(0, Drawing(K, torch.eye(4), 10, 10), SimpleNamespace(alpha=alpha))  # type: ignore[arg-type]
    reseeder.note_error(torch.ones(10, 10))
    alpha.sum().backward()
    reseeder.after_step(model, None, 3)  # type: ignore[arg-type]
    moved = parameter.detach()
    assert moved[[0, 2, 4]].eq(0).all()
    assert (moved[[1, 3]] - torch.tensor(CARVED if carved else GIVEN)).abs().max() <= 0.01 + 1e-6
