"""What ns-eval measures: against plain restatements, and on networks whose scores are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gallery_worlds import NOISE, gallery, lively
from knowing_network import Knowing, moving

from core_ns.errors import DataError
from core_ns.metrics import image_metrics, psnr
from xfactor_ns.eval_metrics import Judged, Plan, averaged, judge, recon_psnr, strip
from xfactor_ns.transfer import clip_latents, render_images

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]
CLIPS = gallery()
PLAN = Plan(samples=3, batch=4)


def scores(net: Any, clips: list, plan: Plan = PLAN, others: list | None = None) -> dict[str, float]:
    return averaged([each.row for each in judge(net, clips, others or [], plan)], False)


def test_a_network_that_knows_is_perfect_and_a_blind_one_is_a_copy():
    clips = [moving("a", 40), moving("b", 200)]
    known = scores(Knowing(), clips, PLAN._replace(jitter=False))
    for name in ("recon", "masked_transfer", "cycle"):
        assert known[f"{name}_psnr"] > 60, name
    assert known["psnr"] == known["recon_psnr"]
    assert 20 < known["copy_psnr"] < 40
    blind = scores(Knowing(blind=True), clips)
    for name in ("recon", "masked_transfer", "cycle"):
        assert blind[f"{name}_psnr"] == pytest.approx(blind["copy_psnr"], abs=1e-3), name


def test_the_motion_is_drawn_in_the_other_scene():
    clips = [moving("a", 40), moving("b", 200)]
    first = next(iter(judge(Knowing(), clips, [], PLAN)))
    assert list(first.pictures) == ["context", "truth", "recon", "masked_transfer", "transfer", "cycle"]
    assert float(first.pictures["transfer"][..., 1].mean()) == pytest.approx(200 / 255, abs=1e-3)
    assert float(first.pictures["recon"][..., 1].mean()) == pytest.approx(40 / 255, abs=1e-3)
    assert strip(first).shape == (32, 6 * 32, 3)
    assert strip(first).dtype == torch.uint8


def test_reconstruction_and_copy_of_real_networks():
    """By the plain functions, one sample at a time."""
    net = lively()
    rows = list(judge(net, CLIPS[:1], CLIPS, PLAN))
    assert len(rows) == 3
    clip = CLIPS[0]
    frames = torch.from_numpy(clip.read())
    for judged, (reference, target) in zip(rows, PLAN.samples_of(clip), strict=True):
        latents = clip_latents(net, frames, reference)
        (picture,) = next(iter(render_images(net, frames[[reference]], latents[[reference]], latents[[target]])))
        truth = frames[target] / 255
        expected = image_metrics((picture + 1) / 2, truth)
        row = judged.row
        assert (row["reference"], row["target"]) == (clip.numbers[reference], clip.numbers[target])
        assert row["recon_psnr"] == pytest.approx(expected["psnr"], abs=1e-3)
        assert row["recon_ssim"] == pytest.approx(expected["ssim"], abs=1e-3)
        assert row["copy_psnr"] == pytest.approx(psnr(frames[reference] / 255, truth), abs=1e-4)


@torch.no_grad()
def test_the_cycle_of_real_networks():
    net, scene, clip = lively(), CLIPS[1], CLIPS[0]
    judged = list(judge(net, [clip, scene], [], PLAN))
    own, other = (torch.from_numpy(each.read()).float() / 255 * 2 - 1 for each in (clip, scene))
    reference, target = PLAN.samples_of(clip)[0]
    b0 = other[None, [scene.reference]]
    z = net.pose_encoder(own[None, [reference, target]])
    away = net.renderer(b0, z)
    back = net.renderer(own[None, [reference]], net.pose_encoder(torch.cat([b0, away[:, None]], dim=1)))
    assert torch.allclose(judged[0].pictures["transfer"], (away[0] + 1) / 2, atol=1e-4)
    assert torch.allclose(judged[0].pictures["cycle"], (back[0] + 1) / 2, atol=1e-4)


def test_masked_transfer_is_a_training_step_that_is_the_same_every_time():
    net = lively()
    first, again = (list(judge(net, CLIPS[:2], [], PLAN)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.pictures["masked_transfer"], other.pictures["masked_transfer"])
        assert not torch.allclose(one.pictures["masked_transfer"], one.pictures["recon"], atol=1e-3)
    alone = list(judge(net, CLIPS[1:2], CLIPS, PLAN))
    assert torch.equal(alone[0].pictures["masked_transfer"], first[3].pictures["masked_transfer"]), "by the clip's name"
    other_seed = list(judge(net, CLIPS[:1], CLIPS, PLAN._replace(seed=1)))
    assert not torch.equal(other_seed[0].pictures["masked_transfer"], first[0].pictures["masked_transfer"])


@pytest.mark.parametrize("context", [2, 5])
def test_several_context_frames(context):
    net = lively()
    plan = PLAN._replace(context_frames=context)
    rows = list(judge(net, [CLIPS[0], CLIPS[2], CLIPS[3]], [], plan))
    frames = torch.from_numpy(CLIPS[0].read())
    sample = plan.samples_of(CLIPS[0])[0]
    latents = clip_latents(net, frames[list(sample)], 0)
    (picture,) = next(iter(render_images(net, frames[list(sample[:-1])], latents[:-1], latents[-1:])))
    assert torch.allclose(rows[0].pictures["recon"], (picture + 1) / 2, atol=1e-4)
    nearest = min(sample[:-1], key=lambda k: abs(k - sample[-1]))
    assert torch.allclose(rows[0].pictures["context"], frames[nearest] / 255)


def test_the_batch_changes_nothing():
    net = lively()
    one, many = (scores(net, CLIPS, PLAN._replace(batch=batch)) for batch in (1, 64))
    for key in one:
        if key != "fps":
            assert one[key] == pytest.approx(many[key], abs=2e-3), key


def test_a_single_clip_has_no_cycle_unless_another_lends_its_scene():
    assert "cycle_psnr" not in scores(lively(), CLIPS[:1])
    assert "cycle_psnr" in scores(lively(), CLIPS[:1], others=CLIPS[:2])


def test_clips_too_short_are_left_out_and_none_at_all_is_an_error():
    plan = PLAN._replace(context_frames=5)
    rows = list(judge(lively(), [CLIPS[1], CLIPS[0]], [], plan))
    assert {each.row["clip"] for each in rows} == {"kitchen"}
    with pytest.raises(DataError, match="no clip of 6 frames"):
        list(judge(lively(), [CLIPS[1]], [], plan))


def test_means_and_deviations():
    rows = [{"clip": "a", "reference": 0, "target": 4, "recon_psnr": 10.0, "cycle_psnr": 3.0},
            {"clip": "b", "reference": 1, "target": 5, "recon_psnr": 14.0}]  # fmt: skip
    assert averaged(rows, False) == {"recon_psnr": 12.0, "psnr": 12.0, "cycle_psnr": 3.0}
    found = averaged(rows, True)
    assert found["recon_psnr_std"] == found["psnr_std"] == pytest.approx(np.std([10, 14], ddof=1))
    assert found["cycle_psnr_std"] == 0.0


def test_comparing_networks():
    net = lively()
    expected = scores(net, CLIPS)["recon_psnr"]
    assert recon_psnr(net, CLIPS, PLAN) == pytest.approx(expected, abs=1e-4)
    assert np.isnan(recon_psnr(net, [], PLAN))


def test_rows_are_plain_numbers():
    import json

    judged = next(iter(judge(lively(), CLIPS[:2], [], PLAN)))
    assert isinstance(judged, Judged)
    json.dumps(judged.row, allow_nan=False)
