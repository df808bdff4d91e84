"""Colours of points in training: what no source shows takes the target's own colour, all else is as without it."""

from __future__ import annotations

import warnings

import pytest
import torch

with warnings.catch_warnings():  # nerfstudio's own imports warn
    warnings.simplefilter("ignore")
    import r4dv_ns.model  # noqa: F401
    from r4dv_ns.appearance import Source
    from r4dv_ns.branch import HIDDEN
    from r4dv_ns.model_config import R4DVModelConfig
    from r4dv_ns.room_branch import Room

POINTS = torch.tensor([[-0.5, 0.0, 2.0], [0.0, 0.0, 2.0], [0.5, 0.0, 2.0], [0.5, 0.0, -2.0]])
"""Seen by the left photo and the target; by all three; by the target alone; by nobody."""


def photo(x: float, grey: float, view: int) -> Source:
    """A picture of one colour, taken at x along z; it shows half a metre to either side at two metres."""
    K = torch.tensor([[48.0, 0.0, 12.0], [0.0, 48.0, 12.0], [0.0, 0.0, 1.0]])
    w2c = torch.eye(4)
    w2c[0, 3] = -x
    return Source(torch.full((3, 24, 24), grey), K, w2c, None, view)


@pytest.fixture(scope="module")
def room() -> Room:
    torch.manual_seed(0)
    config = R4DVModelConfig(static=True, motion=False, plane_levels=1, plane_base=8, sh_limit=0.0)
    made = Room(config, POINTS, scale=1.0)
    with torch.no_grad():
        made.points.points[0].copy_(POINTS)  # in our order
    return made


def colours(room: Room, own: Source | None, penalty: torch.Tensor | None = None) -> torch.Tensor:
    sources = [photo(-0.5, 0.2, 0), photo(-0.4, 0.4, 1)]
    return room.learned(0, room.state(), sources, torch.zeros(3), False, penalty, own).colour[:, 0]


def test_the_target_colours_what_no_source_shows_and_nothing_else(room):
    target = photo(0.05, 0.9, 2)
    without, with_own = colours(room, None), colours(room, target)
    assert with_own[2].item() == pytest.approx(0.9)
    torch.testing.assert_close(with_own[:2], without[:2], rtol=0, atol=1e-6)
    assert without[2] < 0.41, "a blend of the sources' borders"
    state = room.state()
    learned = room.learned(0, state, [photo(-0.5, 0.2, 0)], torch.zeros(3), True, None, target)
    learned.colour.sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in room.parameters())


def test_what_something_hides_from_all_sources_is_the_targets_too(room):
    penalty = torch.zeros(2, 4)
    penalty[:, 1] = HIDDEN + 1
    assert colours(room, photo(0.05, 0.9, 2), penalty)[1].item() == pytest.approx(0.9)
    penalty[1, 1] = 0.0
    assert colours(room, photo(0.05, 0.9, 2), penalty)[1] < 0.41
