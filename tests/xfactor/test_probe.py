"""The probe's mathematics, and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial.transform import Rotation

from core_ns.errors import DataError
from xfactor_ns.probe import Probe, load_probe, nearest_rotation, save_probe


def random_matrices(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_poses(count: int, seed: int = 0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(random.normal(size=(count, 3)) * 0.3).as_matrix()
    poses[:, :3, 3] = random.normal(size=(count, 3))
    return torch.from_numpy(poses).float()


def test_the_nearest_rotation_is_one_and_nothing_is_nearer():
    matrices = random_matrices(40)
    rotations = nearest_rotation(matrices)
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.det(rotations), torch.ones(40, dtype=torch.float64))
    distance = (rotations - matrices).square().sum((1, 2))
    for seed in range(20):
        other = torch.from_numpy(Rotation.random(40, random_state=seed).as_matrix())
        assert (distance <= (other - matrices).square().sum((1, 2)) + 1e-12).all()
    for seed in range(10):
        turns = Rotation.from_rotvec(np.random.default_rng(seed).normal(size=(40, 3)) * 0.05).as_matrix()
        near = torch.from_numpy(turns) @ rotations
        assert (distance <= (near - matrices).square().sum((1, 2)) + 1e-12).all()


def test_its_derivative():
    """Finite differences, also of reflections and where torch's own derivative of the SVD is not finite."""
    matrices = random_matrices(6, 1).requires_grad_()
    assert (torch.det(matrices) < 0).any()
    assert torch.autograd.gradcheck(nearest_rotation, matrices)
    assert torch.autograd.gradcheck(nearest_rotation, torch.eye(3, dtype=torch.float64)[None].requires_grad_())
    flat = torch.zeros(1, 3, 3).requires_grad_()
    nearest_rotation(flat).sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_standing_still_is_certain():
    probe = Probe(8)
    probe.mean.normal_(generator=torch.Generator().manual_seed(0))
    assert torch.allclose(probe.poses(torch.zeros(3, 8)), torch.eye(4).expand(3, 4, 4), atol=1e-6)
    assert (probe.latents(torch.eye(4).expand(2, 4, 4)) == 0).all()


def test_sizes_are_those_of_the_paper_and_poses_are_rigid():
    probe = Probe(256)
    shapes = {name: tuple(value.shape) for name, value in probe.state_dict().items() if name.endswith("weight")}
    assert list(shapes.values()) == [(256, 256), (64, 256), (12, 64), (256, 9), (1024, 256), (1024, 1024), (256, 1024)]
    poses = probe.poses(torch.randn(5, 256, generator=torch.Generator().manual_seed(0)))
    rotation = poses[:, :3, :3]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand(5, 3, 3), atol=1e-5)
    assert (poses[:, 3] == torch.tensor([0.0, 0, 0, 1])).all()


def test_inverting_brings_the_probed_pose_nearer():
    torch.manual_seed(0)
    probe, wanted = Probe(16), some_poses(4)
    before = (probe.poses(probe.latents(wanted)) - wanted).square().sum()
    assert torch.equal(probe.invert(wanted, steps=0), probe.latents(wanted).detach())
    found = probe.invert(wanted, steps=100, lr=0.1)
    assert not found.requires_grad
    assert (probe.poses(found) - wanted).square().sum() < 0.05 * before
    with torch.no_grad():
        assert torch.equal(probe.invert(wanted, steps=100, lr=0.1), found)
    assert all(value.grad is None for value in probe.parameters())
    again = probe.invert(wanted, steps=1, start=found)
    assert (probe.poses(again) - wanted).square().sum() < before


def test_files_come_back(tmp_path):
    torch.manual_seed(0)
    probe, file = Probe(8), tmp_path / "deep" / "probe.safetensors"
    save_probe(file, probe, {"encoder": "abc", "pose": {"x": 1.0}})
    read, facts = load_probe(file, 8, "abc")
    assert facts == {"encoder": "abc", "pose": {"x": 1.0}}
    assert all(torch.equal(a, b) for a, b in zip(probe.state_dict().values(), read.state_dict().values(), strict=True))
    assert not read.training


@pytest.mark.parametrize("what", ["absent", "text", "truncated", "foreign", "shape", "facts", "latent", "encoder"])
def test_other_files_are_refused(tmp_path, what):
    file = tmp_path / "probe.safetensors"
    save_probe(file, Probe(8), {"encoder": "abc"})
    header = {"format": "xfactor-probe-1", "facts": "{}"}
    state = Probe(8).state_dict()
    match what:
        case "absent":
            file = Path(tmp_path / "none.safetensors")
        case "text":
            file.write_text("hello")
        case "truncated":
            file.write_bytes(file.read_bytes()[:2000])
        case "foreign":
            save_file(state, file)
        case "shape":
            save_file(state | {"mean": torch.zeros(9)}, file, header)
        case "facts":
            save_file(state, file, header | {"facts": "{"})
    pose, encoder = (9 if what == "latent" else 8), ("other" if what == "encoder" else "abc")
    with pytest.raises(DataError) as caught:
        load_probe(file, pose, encoder)
    assert caught.value.file == str(file)
    assert "ns-xfactor probe" in caught.value.remedy
