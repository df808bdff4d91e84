"""Stages: every step has one, rescaled plans keep all of them, a resumed run goes on where it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_ns.errors import DataError
from r4dv_ns.joint_stages import Freeze, Stage, StagePlan

COUNTS = st.tuples(*[st.integers(0, 5000)] * 3).filter(any)


@given(COUNTS)
def test_the_steps_of_every_stage_are_counted_one_by_one(steps):
    plan = StagePlan.of(steps, sum(steps))
    assert (plan.background, plan.foreground, plan.joint) == steps
    counted = [0, 0, 0]
    borders = {0, *(edge + by for edge in (steps[0], steps[0] + steps[1], sum(steps)) for by in (-1, 0, 1))}
    stages = [plan.stage(step) for step in sorted(borders) if 0 <= step < plan.total]
    assert stages == sorted(stages), "never back to an earlier stage"
    for step in range(min(plan.total, 300)):
        counted[plan.stage(step)] += 1
    assert counted[0] == min(steps[0], plan.total, 300)


@given(COUNTS, st.integers(3, 20000))
def test_another_total_is_shared_out_and_no_wanted_stage_is_lost(steps, total):
    plan = StagePlan.of(steps, total)
    counts = (plan.background, plan.foreground, plan.joint)
    assert sum(counts) == total
    for given_, planned in zip(steps, counts, strict=True):
        assert (planned > 0) == (given_ > 0)
        assert abs(planned - given_ * total / sum(steps)) <= 3


@given(COUNTS, st.integers(1, 30000))
def test_a_run_that_goes_on_keeps_its_earlier_stages(steps, total):
    plan = StagePlan.of(steps, sum(steps))
    longer = plan.going_on(total)
    assert (longer.background, longer.foreground) == steps[:2]
    if total > steps[0] + steps[1]:
        assert longer.total == total
    for step in range(0, min(total, steps[0] + steps[1]), 97):
        assert longer.stage(step) is plan.stage(step)


def test_rates_fall_to_a_tenth_over_a_stage_and_begin_anew_together():
    plan = StagePlan(100, 200, 400)
    assert plan.factor(0, 0.3) == 1
    assert plan.factor(99, 0.3) == pytest.approx(0.1**0.99)
    assert plan.factor(100, 0.3) == 1
    assert plan.factor(200, 0.3) == pytest.approx(0.1**0.5)
    assert plan.factor(300, 0.3) == pytest.approx(0.3)
    assert plan.factor(500, 0.3) == pytest.approx(0.03), "a tenth after half of the stage, as the original's"
    assert plan.factor(699, 0.3) == pytest.approx(0.3 * 0.1 ** (2 * 399 / 400))
    assert plan.factor(10**6, 0.3) == pytest.approx(0.003)
    assert all(isinstance(plan.factor(step, 0.3), float) for step in range(0, 700, 50))


def test_after_the_end_the_last_stage_that_there_is_holds():
    assert StagePlan(5, 5, 5).stage(100) is Stage.JOINT
    assert StagePlan(5, 5, 0).stage(100) is Stage.FOREGROUND
    assert StagePlan(5, 0, 0).stage(100) is Stage.BACKGROUND
    assert StagePlan(0, 0, 1).stage(0) is Stage.JOINT
    assert [stage.title[0] for stage in Stage] == ["A", "B", "C"]


@pytest.mark.parametrize(("steps", "total"), [((0, 0, 0), 5), ((-1, 2, 3), 4), ((10, 10, 10), 2), ((5, 0, 5), 1)])
def test_what_cannot_be_is_refused(steps, total):
    with pytest.raises(DataError, match="stage-steps"):
        StagePlan.of(steps, total)


def test_frozen_parts_by_name():
    assert Freeze().parts() == set()
    assert Freeze(points=True, colours=True).parts() == {"points", "colours"}
