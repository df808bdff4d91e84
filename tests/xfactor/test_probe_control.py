"""What viewing calls a camera and what a probe calls a pose are the same thing."""

from __future__ import annotations

import numpy as np
import torch
from gallery_worlds import lively, orbit

from core_ns.frames import w2c_opencv_from_c2w_opengl
from xfactor_ns.camera_control import PosePath
from xfactor_ns.latents import LatentBank
from xfactor_ns.probe import Probe, save_probe
from xfactor_ns.probe_control import ProbeControl, probe_pose
from xfactor_ns.probe_fit import encoder_fingerprint, relative_poses


def test_poses_are_those_that_a_probe_was_fitted_to():
    c2w = orbit(9, 1)
    known = relative_poses(w2c_opencv_from_c2w_opengl(c2w), 4)
    path = PosePath.of(c2w, 4)
    np.testing.assert_allclose(np.stack([probe_pose(each) for each in path.relative]), known, atol=1e-12)


def test_latents_are_the_probes(tmp_path):
    net = lively()
    torch.manual_seed(0)
    probe = Probe(6)
    save_probe(tmp_path / "probe.safetensors", probe, {"encoder": encoder_fingerprint(net)})
    control = ProbeControl(tmp_path / "probe.safetensors", 5)
    relative = PosePath.of(orbit(9, 1), 4).relative[7]
    pose = torch.from_numpy(probe_pose(relative)).float()[None]
    version = LatentBank.version(net)
    assert torch.allclose(control.latent(net, version, relative, invert=False), probe.latents(pose)[0], atol=1e-6)
    inverted = control.latent(net, version, relative, invert=True)
    assert torch.allclose(inverted, probe.invert(pose, 5)[0], atol=1e-6)
    assert not inverted.requires_grad
