"""One training step: leakage, swap, self reference, accumulation (acceptance 6, 11), and that it can learn (15)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from xfactor_ns.augment import apply_scenes
from xfactor_ns.network import XFactorNet
from xfactor_ns.objective import draw, photometric, psnr, seeded, step, swap
from xfactor_ns.size import Size

SMALL = Size(width=32, heads=2, blocks=2, patch=8, pose=6, registers=2, layer_scale=0.3)


def net(size: Size = SMALL, seed: int = 0) -> XFactorNet:
    return XFactorNet(size, seed=seed)


def frames(batch: int, n: int, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (batch, n, side, side, 3), dtype=torch.uint8, generator=seeded(seed))


def times(batch: int, n: int) -> torch.Tensor:
    return (torch.arange(n) * 3).expand(batch, -1)


def test_seeds_depend_on_every_number_and_their_order():
    first = {
        tuple(torch.rand(2, generator=seeded(*key)).tolist()) for key in [(1, 2), (2, 1), (1, 3), (1, 2, 0), (-1,)]
    }
    assert len(first) == 5
    assert torch.equal(torch.rand(3, generator=seeded(4, 5)), torch.rand(3, generator=seeded(4, 5)))


# ------------------------------------------------------------------ swap


def test_swap_exchanges_the_groups_and_fills_unmasked_samples():
    latents = torch.arange(2 * 3 * 2 * 4.0).reshape(2, 3, 2, 4)
    swapped = swap(latents, torch.tensor([False, True]))
    assert torch.equal(swapped[0, :, 0], latents[0, :, 1])
    assert torch.equal(swapped[0, :, 1], latents[0, :, 0])
    assert torch.equal(swapped[1, :, 0], latents[1, :, 0])
    assert torch.equal(swapped[1, :, 1], latents[1, :, 0])


def test_swap_is_the_originals(shared_fixtures: Path):
    with np.load(shared_fixtures / "xfactor" / "stereo_monocular" / "io.npz", allow_pickle=False) as stored:
        latents, swapped, ones = (torch.from_numpy(stored[key]) for key in ("train_P", "train_P_swapped", "train_qc"))
    assert torch.equal(swap(latents, ones == 0), swapped)


# ------------------------------------------------------------------ a step


@torch.no_grad()
@pytest.mark.parametrize("n", [2, 4])
def test_a_half_is_rendered_with_the_pose_of_the_other_half_alone(n):
    """No pixel of the target's own half reaches it: neither by its latent nor by attention (acceptance 6)."""
    network, pictures = net().eval(), frames(4, n)
    draws = draw(times(4, n), (4, 4), seeded(1), unmasked=0.0, self_reference=0.0, jitter=False)
    assert draws.mask is not None
    before = step(network, pictures, draws)
    own = draws.mask.reshape(4, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2).bool()  # group 1
    changed = pictures.clone()
    target = draws.order[:, -1]
    for sample in range(4):
        changed[sample, int(target[sample])][own[sample]] += 77  # the target's group 1, wherever it is looked at
    after = step(network, changed, draws)
    assert torch.equal(before["render"][own], after["render"][own]), "group 1 uses group 0's latent"
    assert (before["render"][~own] != after["render"][~own]).any(), "group 0 uses group 1's"
    assert torch.equal(before["latents"][:, :, 0], after["latents"][:, :, 0])


@torch.no_grad()
def test_a_step_is_the_networks_one_sample_at_a_time():
    """Oracle: the definition of spec 4.3, sample by sample."""
    network, pictures, n = net().eval(), frames(6, 4), 4
    draws = draw(times(6, n), (4, 4), seeded(2), unmasked=0.4, self_reference=0.5, jitter=False)
    found = step(network, pictures, draws)
    assert draws.mask is not None
    assert 0 < int(draws.unmasked.sum()) < 6
    for i in range(6):
        x = pictures[i][draws.order[i]].float() / 127.5 - 1
        mask = draws.mask[i : i + 1]
        latents = torch.zeros(n, 2, SMALL.pose)
        for j in range(1, n):
            if draws.unmasked[i]:
                latents[j] = network.pose_encoder(torch.stack([x[0], x[j]])[None])[0, 1]
            else:
                latents[j] = network.pose_encoder(torch.stack([x[0], x[j]])[None], mask)[0, 1].flip(0)
        expected = network.renderer(x[None, :-1], latents[None], mask)[0]
        torch.testing.assert_close(found["render"][i], expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(found["target"][i], x[-1])
        torch.testing.assert_close(found["context"][i], x[0])


def test_self_reference_takes_one_of_the_context_frames():
    draws = draw(times(4000, 6), (2, 2), seeded(3), self_reference=0.25)
    own = (draws.order[:, :-1] == draws.order[:, -1:]).any(dim=1)
    assert float(own.float().mean()) == pytest.approx(0.25, abs=0.03)
    where = (draws.order[own][:, :-1] == draws.order[own][:, -1:]).float().mean(dim=0)
    torch.testing.assert_close(where, torch.full((5,), 0.2), atol=0.06, rtol=0)
    pairs = draw(times(1000, 2), (2, 2), seeded(3), self_reference=1.0)
    assert (pairs.order == 0).all()


def test_autoencoding_neither_masks_nor_swaps():
    draws = draw(times(3, 2), (4, 4), seeded(4), objective="autoencode", self_reference=0.0)
    assert draws.mask is None
    assert draws.unmasked.all()
    network, pictures = net().eval(), frames(3, 2)
    with torch.no_grad():
        found = step(network, pictures, draws._replace(jitter=None))
        x = pictures.float() / 127.5 - 1
        expected = network.renderer(x[:, :1], network.pose_encoder(x))
    torch.testing.assert_close(found["render"], expected, atol=1e-6, rtol=0)
    assert found["latents"].shape == (3, 2, SMALL.pose)


@torch.no_grad()
def test_jitter_is_seen_by_the_pose_encoder_only_and_drawn_per_pair():
    network, pictures = net().eval(), frames(3, 4)
    draws = draw(times(3, 4), (4, 4), seeded(5), self_reference=0.0, unmasked=0.0)
    assert draws.jitter is not None
    assert len(draws.jitter.sigma) == 9, "three pairs a sample"
    plain, jittered = step(network, pictures, draws._replace(jitter=None)), step(network, pictures, draws)
    assert torch.equal(plain["target"], jittered["target"])
    assert torch.equal(plain["context"], jittered["context"])
    assert not torch.equal(plain["latents"], jittered["latents"])
    single = draw(times(3, 4), (4, 4), seeded(5), per_frame=True)
    assert single.jitter is not None
    assert len(single.jitter.sigma) == 18
    assert step(network, pictures, single)["render"].shape == (3, 32, 32, 3)


def test_micro_batches_add_up_to_one_batch():
    """Acceptance 11, first half: the same masks, loss over k, gradients summed."""
    pictures, gradients = frames(8, 3), []
    draws = draw(times(8, 3), (4, 4), seeded(6), unmasked=0.3)
    for k in (1, 4):
        network = net()
        for part in range(k):
            rows = slice(part * 8 // k, (part + 1) * 8 // k)
            (photometric(step(network, pictures[rows], draws.part(rows.start, rows.stop - rows.start))) / k).backward()
        gradients.append({name: value.grad for name, value in network.named_parameters()})
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, atol=1e-6, rtol=1e-4, msg=name)


def test_a_part_of_a_batch_gets_its_part_of_the_draws():
    whole = draw(times(8, 4), (4, 4), seeded(7), unmasked=0.3, self_reference=0.5)
    for first, count in ((0, 8), (0, 3), (3, 3), (6, 2)):
        part = draw(times(count, 4), (4, 4), seeded(7), unmasked=0.3, self_reference=0.5, part_of=(8, first))
        expected = whole.part(first, count)
        assert whole.mask is not None
        assert part.mask is not None
        assert whole.jitter is not None
        assert part.jitter is not None
        assert torch.equal(part.order, expected.order)
        assert torch.equal(part.order, whole.order[first : first + count])
        assert torch.equal(part.mask, whole.mask[first : first + count])
        assert torch.equal(part.unmasked, whole.unmasked[first : first + count])
        for mine, all_of_them in zip(part.jitter, whole.jitter, strict=True):
            assert torch.equal(mine, all_of_them[3 * first : 3 * (first + count)])


@torch.no_grad()
def test_a_varied_scene_is_a_step_on_varied_frames():
    network, pictures = net().eval(), frames(3, 2)
    draws = draw(times(3, 2), (4, 4), seeded(8), self_reference=0.0, jitter=False, scenes=True)
    assert draws.scenes is not None
    found = step(network, pictures, draws)
    varied = apply_scenes(pictures.float() / 255, draws.scenes)
    expected = step(network, varied, draws._replace(scenes=None))
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    part = draw(times(2, 2), (4, 4), seeded(8), self_reference=0.0, jitter=False, scenes=True, part_of=(3, 1))
    assert part.scenes is not None
    assert all(torch.equal(mine, whole[1:]) for mine, whole in zip(part.scenes, draws.scenes, strict=True))


def test_scores_on_both_scales():
    black, grey = torch.full((2, 4, 4, 3), -1.0), torch.zeros(2, 4, 4, 3)
    assert float(photometric({"render": black, "target": grey})) == 1.0, "half of [0, 1] is 1 on [-1, 1]"
    assert float(psnr(black, grey)) == pytest.approx(6.0206, abs=1e-3)


@pytest.mark.slow
def test_one_masked_pair_can_be_learned_by_heart():
    """Acceptance 15."""
    size = Size(width=64, heads=4, blocks=2, patch=8, pose=16, registers=2, layer_scale=0.1)
    network = net(size)
    rows, cols = torch.meshgrid(torch.linspace(0, 3, 32), torch.linspace(0, 3, 32), indexing="ij")
    waves = torch.stack([torch.sin(rows + phase) * torch.cos(cols * 2 - phase) for phase in (0.0, 1.0, 2.0)], dim=-1)
    pair = torch.stack([waves, waves.roll((3, -2), dims=(0, 1))])[None] * 0.45 + 0.5
    draws = draw(times(1, 2), (4, 4), seeded(0), unmasked=0.0, self_reference=0.0, jitter=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0)
    for _ in range(300):
        loss = photometric(step(network, pair, draws))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    last = float(photometric(step(network, pair, draws)).detach())
    print(f"L1 after 300 updates: {last:.4f}")
    assert last < 0.03
