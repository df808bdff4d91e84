"""Pose similarity of transfers in ns-eval: with an oracle that reads the camera off the pixels, and with a probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gallery_worlds import NOISE, gallery, lively
from knowing_network import Knowing, moving, place

from core_ns.errors import DataError
from xfactor_ns.eval_similarity import make_oracle, motion_scores
from xfactor_ns.oracle_options import OracleOptions
from xfactor_ns.probe import Probe, save_probe
from xfactor_ns.probe_fit import encoder_fingerprint

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


def reading(images: torch.Tensor) -> np.ndarray:
    """World-to-camera matrices of clips of `moving`: along x, as far as the window has moved; a step up as well."""
    where = place(images.permute(0, 1, 3, 4, 2) * 2 - 1).double().numpy()
    poses = np.tile(np.eye(4), (*where.shape, 1, 1))
    poses[..., 0, 3], poses[..., 1, 3] = where, 0.01 * where**2
    return poses


def nothing(images: torch.Tensor) -> np.ndarray:
    """No frame can be placed."""
    return np.full((*images.shape[:2], 4, 4), np.nan)


def test_a_motion_that_transfers_scores_one_and_one_that_does_not_less():
    clips = [moving("a", 40), moving("b", 200)]
    known = motion_scores(Knowing(), clips, reading, 1, 4)
    assert known["tps_placed"] == 1
    assert known["tps_Tac_10"] == pytest.approx(1)
    assert known["tps_Rac_10"] == pytest.approx(1)
    blind = motion_scores(Knowing(blind=True), clips, reading, 1, 4)
    assert blind["tps_Tac_10"] < 0.5


def test_clips_that_the_oracle_cannot_place_are_counted(capsys):
    clips = [moving("a", 40), moving("b", 200)]
    assert motion_scores(Knowing(), clips, nothing, 1, 4) == {"tps_placed": 0.0}
    assert "Pose similarity of a in b" in capsys.readouterr().out
    assert motion_scores(Knowing(), clips[:1], reading, 1, 4) == {}


def test_the_runs_probe_as_oracle(tmp_path):
    net = lively()
    options = OracleOptions("probe")
    with pytest.raises(DataError, match="is probe, but the run has none"):
        make_oracle(options, net, None)
    torch.manual_seed(0)
    save_probe(tmp_path / "probe.safetensors", Probe(6), {"encoder": encoder_fingerprint(net)})
    found = motion_scores(net, gallery(), make_oracle(options, net, tmp_path / "probe.safetensors"), 1, 8)
    assert found["tps_placed"] == 1
    assert 0 <= found["tps_Tac_30"] <= 1
    with pytest.raises(DataError, match="is not the one of these weights"):
        make_oracle(options, lively(4), tmp_path / "probe.safetensors")


def test_a_pipeline_reports_them(tmp_path, rooms):
    from training_runs import run_config

    config: Any = run_config(rooms, tmp_path, 1)
    config.pipeline.eval_oracle, config.pipeline.eval_untrained = "probe", True
    config.pipeline.datamanager.run_dir = tmp_path / "run"
    net = config.pipeline.model.setup(scene_box=None, num_train_data=1, metadata={}).net
    save_probe(tmp_path / "run" / "probe.safetensors", Probe(6), {"encoder": encoder_fingerprint(net)})
    pipeline = config.pipeline.setup(device="cpu", test_mode="test")
    found = pipeline.get_average_eval_image_metrics(output_path=tmp_path / "shown", get_std=True)
    assert found["untrained_psnr"] == pytest.approx(found["psnr"], abs=1e-3), "these weights are the fresh ones"
    assert "tps_Rac_10" in found
    assert len(found["per_image"]) == len(list((tmp_path / "shown").iterdir())) == 8
    during = pipeline.get_average_eval_image_metrics(step=3)
    assert all(isinstance(value, float) for value in during.values()), "what tensorboard takes"
    assert not [key for key in during if key.startswith(("tps", "untrained"))]
