"""One frame as arrays: what is seen, what is refused, which photos are kept."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from charge_folders import ring_views

from core_ns.errors import DataError
from r4dv_ns.charge_capture import Precision, background_points, capture_frame, farthest_views
from r4dv_ns.charge_store import UNSEEN
from r4dv_ns.point_state import PointState, Sighting, joined

N = 40


def points(seed: int = 0, n: int = N) -> PointState:
    """Of one branch."""
    rng = torch.Generator().manual_seed(seed)
    return PointState(
        xyz=torch.randn(n, 3, generator=rng), displacement=None, features=torch.zeros(n, 4),
        radius=torch.rand(n, generator=rng) + 0.1, alpha=torch.rand(n, generator=rng),
        coefficients=torch.randn(n, 3, 16, generator=rng),
    )  # fmt: skip


def model(state: PointState, sightings: list[Sighting]) -> Any:
    """What baking asks of a model: view k says ``sightings[k]``."""
    sequence = SimpleNamespace(times=[0.0, 1.0], frames=["000000", "000001"])
    return SimpleNamespace(
        state=lambda frame, time: state, _sighting=lambda frame, points, view: sightings[view], sequence=sequence
    )


def sighting(seed: int, n: int = N) -> Sighting:
    """Seen by half of the points."""
    rng = torch.Generator().manual_seed(100 + seed)
    return Sighting(torch.rand(n, 3, generator=rng), torch.randn(n, generator=rng), torch.rand(n, generator=rng) < 0.5)


@pytest.mark.parametrize("colours", ["u8", "f32"])
def test_what_the_model_says_is_what_is_stored(colours):
    state, seen = points(), [sighting(0), sighting(1), sighting(2)]
    frame = capture_frame(model(state, seen), 0, [2, 0], 2, Precision(colours=colours))
    np.testing.assert_array_equal(frame.positions(), state.xyz)
    assert frame.src_id.tolist() == [2, 0]
    exact = colours == "f32"
    np.testing.assert_allclose(frame.radius, state.radius, rtol=0 if exact else 5e-4)
    np.testing.assert_allclose(frame.alpha, state.alpha, atol=0 if exact else 3e-4)
    np.testing.assert_allclose(frame.sh, state.coefficients[..., :9].transpose(1, 2), atol=0 if exact else 2e-3)
    for row, view in enumerate((2, 0)):
        rgb = frame.src_rgb[row] / (1 if exact else 255)
        np.testing.assert_allclose(rgb, seen[view].rgb, atol=0 if exact else 0.5 / 255 + 1e-6)
        known = seen[view].visible
        np.testing.assert_allclose(frame.src_logit[row][known], seen[view].logit[known], atol=0 if exact else 2e-3)


@pytest.mark.parametrize(("colours", "unseen"), [("u8", UNSEEN), ("f32", UNSEEN + 4)])
def test_points_that_no_photo_sees_keep_their_logits(colours, unseen):
    even = torch.arange(N) % 2 == 0
    seen = [replace(sighting(row), logit=torch.full((N,), 3.0 + row), visible=even & (row == 0)) for row in range(2)]
    frame = capture_frame(model(points(), seen), 0, [0, 1], 3, Precision(colours=colours))
    for row, (one, other) in enumerate(((3.0, 3.0), (unseen, 4.0))):
        assert (frame.src_logit[row, ::2] == one).all()
        assert (frame.src_logit[row, 1::2] == other).all()


def test_huge_numbers_stay_finite_and_say_the_same():
    state = replace(points(), coefficients=torch.full((N, 3, 16), -1e6))
    seen = [replace(sighting(0), logit=torch.full((N,), -1e5), visible=torch.ones(N, dtype=torch.bool))]
    frame = capture_frame(model(state, seen), 0, [0], 3, Precision())
    assert np.isfinite(frame.sh).all()
    assert (frame.src_logit > UNSEEN / 2).all()


@pytest.mark.parametrize("key", ["xyz", "radius", "alpha", "coefficients"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_run_is_refused(key, value):
    state = points()
    getattr(state, key).view(-1)[5] = value
    with pytest.raises(DataError, match=f"frame 000001, {'sh' if key == 'coefficients' else key}"):
        capture_frame(model(state, [sighting(0)]), 1, [0], 3, Precision())


def test_a_background_follows_the_subject():
    subject, room = points(0), points(1, 7)
    state = joined([subject, room])
    seen = [sighting(0, N + 7)]
    assert background_points(state) == 7
    assert background_points(subject) == 0
    frame = capture_frame(model(state, seen), 0, [0], 3, Precision(branch=True))
    np.testing.assert_array_equal(frame.branch, np.repeat([0, 1], [N, 7]))  # type: ignore[arg-type]
    np.testing.assert_array_equal(frame.positions(), state.xyz)
    steps = capture_frame(model(state, seen), 0, [0], 3, Precision("u16", branch=True))
    np.testing.assert_allclose(steps.box, [subject.xyz.amin(dim=0), subject.xyz.amax(dim=0)], rtol=1e-6)
    alone = capture_frame(model(state, []), 0, [], 3, Precision(branch=True))
    assert alone.src_rgb.shape == (0, N + 7, 3)
    mixed = SimpleNamespace(branch=torch.tensor([0, 1, 0], dtype=torch.uint8))
    with pytest.raises(ValueError, match="follow"):
        background_points(mixed)  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "key", "kind"), [
    ({}, "radius", "<f2"), ({"wide_radius": True}, "radius", "<f4"), ({"colours": "f32"}, "src_rgb", "<f4"),
    ({"colours": "f32"}, "src_id", "<u2"), ({"xyz": "u16"}, "xyz", "<u2"), ({"colours": "f32"}, "xyz", "<f4"),
])  # fmt: skip
def test_types(options, key, kind):
    assert Precision(**options).dtypes()[key] == kind
    assert ("branch" in Precision(branch=True, **options).dtypes()) != ("branch" in Precision(**options).dtypes())


def test_farthest_views():
    centres = np.stack([view.centre(0) for view in ring_views(12, 1)])[:, None]
    assert np.diff(farthest_views(centres, 4)).tolist() == [3, 3, 3]
    assert farthest_views(centres, None) == farthest_views(centres, 20) == list(range(12))
    assert farthest_views(np.zeros((5, 1, 3)), 3) == [0, 1, 2]
    assert len(farthest_views(centres, 1)) == 1


def test_moving_cameras_are_far_apart_over_all_frames():
    """Two cameras that start together and part are both kept."""
    centres = np.zeros((3, 2, 3))
    centres[1, 1], centres[2] = [5, 0, 0], [1, 0, 0]
    assert farthest_views(centres, 2) == [0, 1]
