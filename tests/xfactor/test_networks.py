"""Both networks: packed halves against the masked twin; what is zero, equal or unseen (spec xfactor 12, 3, 6-9)."""

from __future__ import annotations

import pytest
import torch
from small_networks import CHECK, SMALL, latents, pictures, quadrants, random_network
from torch import Tensor

from xfactor_ns.attention import rotary_table, unturned
from xfactor_ns.masked_twin import masked_frame, masked_latents, same_group
from xfactor_ns.network import XFactorNet
from xfactor_ns.packing import patchify
from xfactor_ns.size import Size


@pytest.fixture(scope="module")
def checked() -> XFactorNet:
    """Of the acceptance checks' size."""
    return random_network(CHECK).eval()


def close(a: Tensor, b: Tensor, bound: float) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max().item() <= bound


def gradients(net: XFactorNet, made: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Of a weighted sum of squares."""
    net.zero_grad()
    total = sum((part.square() * torch.linspace(0, 1, part.numel()).view_as(part)).sum() for part in made)
    assert isinstance(total, Tensor)
    total.backward()
    found = {name: value.grad.clone() for name, value in net.named_parameters() if value.grad is not None}
    net.zero_grad()
    return found


def test_the_released_size_has_its_parameters():
    """Check 3: counts of spec 3.8."""
    with torch.device("meta"):
        net = XFactorNet(Size())
    sums = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert sums == {"pose_encoder": 148_013_312, "renderer": 157_165_312}
    leaves = {name: len(list(part.parameters())) for name, part in net.named_children()}
    assert leaves == {"pose_encoder": 139, "renderer": 144}


def test_packed_halves_are_masked_attention(checked):
    """Check 7: all layouts and an unmasked sample in one batch; latents, pictures and gradients."""
    mask, x = quadrants(8, 8)[[0, 2, 5, 6]], pictures(4, 2, 128)
    poses = latents(4, 2, CHECK)
    of_latents = checked.pose_encoder(x, mask), masked_latents(checked.pose_encoder, x, mask)
    of_frames = checked.renderer(x[:, :1], poses, mask), masked_frame(checked.renderer, x[:, :1], poses, mask)
    close(*of_latents, 1e-6)
    close(*of_frames, 1e-6)
    packed, masked = (gradients(checked, made) for made in zip(of_latents, of_frames, strict=True))
    for name, value in packed.items():
        assert (value - masked[name]).abs().max() <= 1e-4 * masked[name].abs().max(), name


def test_trimmed_twins_are_the_twins():
    net, mask, x = random_network(), quadrants(4, 4), pictures(7, 3, 16)
    poses = latents(7, 3, SMALL)
    with torch.no_grad():
        close(masked_latents(net.pose_encoder, x, mask, True), masked_latents(net.pose_encoder, x, mask), 2e-6)
        close(
            masked_frame(net.renderer, x[:, :2], poses, mask, True), masked_frame(net.renderer, x[:, :2], poses, mask),
            1e-6,
        )  # fmt: skip


def test_unequal_groups_are_exact_too():
    """Any mask: groups of every size, each sample its own; a grid that is not square."""
    net, x = random_network(), pictures(5, 3, (16, 24))
    mask = (torch.rand(5, 24, generator=torch.Generator().manual_seed(2)) < torch.linspace(0, 1, 5)[:, None]).long()
    assert mask.sum(1).tolist()[::4] == [0, 24]
    poses = latents(5, 3, SMALL)
    with torch.no_grad():
        close(net.pose_encoder(x, mask), masked_latents(net.pose_encoder, x, mask), 5e-6)
        close(net.renderer(x[:, :2], poses, mask), masked_frame(net.renderer, x[:, :2], poses, mask), 1e-6)


def test_groups_do_not_leak(checked):
    """Check 6: pixels of group 1 leave the latents of group 0 bit-equal; of the picture, group 0's patches."""
    mask, x = quadrants(8, 8)[:3], pictures(3, 2, 128)
    other = torch.where(
        mask.view(3, 1, 8, 8, 1).repeat_interleave(16, 2).repeat_interleave(16, 3).bool(), pictures(3, 2, 128, 9), x
    )
    poses = latents(3, 2, CHECK)
    with torch.no_grad():
        first, second = checked.pose_encoder(x, mask), checked.pose_encoder(other, mask)
        assert (first[:, :, 0] == second[:, :, 0]).all()
        assert (first[:, 1, 1] != second[:, 1, 1]).all()
        made = [patchify(checked.renderer(y[:, :1], poses, mask), 16) for y in (x, other)]
        assert (made[0] == made[1])[mask == 0].all()
        assert not (made[0] == made[1])[mask == 1].all(-1).any()


def test_the_isolated_registers_can_be_dropped(checked):
    """Check 8: without a mask, the second register copy is in no one's sight."""
    x = pictures(2, 2, 128)
    with torch.no_grad():
        close(checked.pose_encoder(x), masked_latents(checked.pose_encoder, x, quadrants(8, 8)[[6, 6]])[:, :, 0], 1e-6)


def test_the_latent_of_an_empty_group_is_zero_with_no_gradient():
    net, x, mask = random_network(), pictures(1, 2, 16), quadrants(4, 4)[[6]]
    literal = masked_latents(net.pose_encoder, x, mask)[:, :, 1]
    assert literal.abs().max() <= 1e-6
    literal.sum().backward()
    assert all(value.grad is None or value.grad.abs().max() <= 1e-5 for value in net.pose_encoder.parameters())
    assert (net.pose_encoder(x, mask)[:, :, 1] == 0).all()


def test_what_is_zero(checked):
    """Check 9: the reference's latent, equal frames, the gradient of the head's last bias."""
    x, mask = pictures(3, 2, 128), quadrants(8, 8)[[1, 3, 6]]
    for made in (checked.pose_encoder(x), checked.pose_encoder(x, mask)):
        assert (made[:, 0] == 0).all()
    checked.zero_grad()
    made[:, 1].square().sum().backward()
    assert (checked.pose_encoder.head.get_parameter("fc2.bias").grad == 0).all()
    assert checked.pose_encoder.head.get_parameter("fc2.weight").grad.abs().max() > 0
    checked.zero_grad()
    with torch.no_grad():
        close(checked.pose_encoder(x[:, :1].repeat(1, 3, 1, 1, 1)), torch.zeros(3, 3, CHECK.pose), 1e-6)


def test_the_order_of_views_does_not_matter(checked):
    """Check 9: blocks are equivariant to it, Render is invariant to the order of context frames with their latents."""
    x, poses = pictures(1, 5, 128), latents(1, 6, CHECK)[:, :, 0]
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        shuffled = checked.renderer(x[:, order], torch.cat([poses[:, order], poses[:, 5:]], 1))
        close(checked.renderer(x, poses), shuffled, 1e-6)
        z = torch.randn(1, 5, 6, CHECK.width, generator=torch.Generator().manual_seed(0))
        table = rotary_table(2, 3, CHECK.head)[None]
        close(checked.renderer.blocks(z, table)[:, order], checked.renderer.blocks(z[:, order], table), 5e-6)
        # Of further views behind the reference too.
        views = torch.tensor([0, 2, 1])
        close(checked.pose_encoder(x[:, :3])[:, views], checked.pose_encoder(x[:, views]), 5e-6)


def test_one_pose_for_both_groups():
    """Three-dimensional poses mean the same for all patches; four-dimensional ones without a mask, those of group 0."""
    net, x, mask = random_network(), pictures(7, 2, 16), quadrants(4, 4)
    poses = latents(7, 2, SMALL)
    same = poses[:, :, :1].expand(-1, -1, 2, -1)
    with torch.no_grad():
        close(net.renderer(x[:, :1], poses[:, :, 0], mask), net.renderer(x[:, :1], same, mask), 0)
        close(net.renderer(x[:, :1], poses), net.renderer(x[:, :1], poses[:, :, 0]), 0)


def test_wrong_counts_of_latents_are_refused():
    with pytest.raises(ValueError, match="need 3 latents, not 2"):
        random_network().renderer(pictures(1, 2, 16), latents(1, 2, SMALL))


@pytest.mark.parametrize("masked", [False, True])
def test_recomputed_blocks_have_the_same_gradients(masked):
    size = Size(width=16, heads=2, blocks=3, patch=4, pose=6, registers=3)
    plain = random_network(size)
    saving = XFactorNet(size, checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x, mask = pictures(7, 2, 16), quadrants(4, 4) if masked else None
    for net in (plain, saving):
        poses = net.pose_encoder(x, mask)
        net.renderer(x[:, :1], poses, mask).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert a.grad is not None, name
        assert (a.grad == b.grad).all(), name


def test_bfloat16_stays_close_and_leaves_float32_outside(checked):
    """Products and attention are rounded, norms, residuals and outputs are not; the reference's latent stays zero."""
    half = XFactorNet(CHECK, "bf16")
    half.load_state_dict(checked.state_dict())
    x, mask = pictures(2, 2, 128), quadrants(8, 8)[[0, 6]]
    poses = checked.pose_encoder(x, mask).detach()
    rough = half.pose_encoder(x, mask)
    made = half.renderer(x[:, :1], poses, mask)
    assert rough.dtype == made.dtype == torch.float32
    assert (rough[:, 0] == 0).all()
    relative = (rough - poses).norm() / poses.norm()
    assert 1e-4 < relative < 0.05
    assert 1e-5 < (made - checked.renderer(x[:, :1], poses, mask)).abs().max() < 0.05
    (rough.square().sum() + made.square().sum()).backward()
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in half.parameters())


def test_groups_of_the_twin_see_only_themselves():
    everywhere, inside = same_group(torch.tensor([[0, 1, 1]]), 2)
    assert everywhere.shape == (1, 1, 6, 6)
    assert inside.shape == (2, 1, 3, 3)
    assert everywhere[0, 0, 1].tolist() == [False, True, True, False, True, True]
    assert inside[1, 0, 0].tolist() == [True, False, False]


def test_registers_have_no_position():
    table = unturned(rotary_table(2, 2, 4)[None], 3)
    assert table.shape == (1, 7, 2, 2)
    assert (table[0, 4:, :, 0] == 1).all()
    assert (table[0, 4:, :, 1] == 0).all()


def test_tf32_on_a_cpu_is_float32():
    plain, other = random_network(), random_network(precision="tf32")
    x = pictures(2, 2, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # an outer autocast changes nothing either
        close(other.pose_encoder(x), plain.pose_encoder(x), 0)
    with torch.no_grad():
        close(other.pose_encoder(x), plain.pose_encoder(x), 0)


@pytest.mark.parametrize("side", [(16, 24), (32, 16), (4, 4)])
def test_any_grid_of_patches(side):
    """Pictures that are not square, and of a single patch: the unmasked forms are the twin's with nothing masked."""
    net, x = random_network(), pictures(2, 3, side)
    none = torch.zeros(2, side[0] * side[1] // 16, dtype=torch.long)
    poses = latents(2, 3, SMALL)
    with torch.no_grad():
        close(net.pose_encoder(x), masked_latents(net.pose_encoder, x, none)[:, :, 0], 5e-6)
        close(net.renderer(x[:, :2], poses), masked_frame(net.renderer, x[:, :2], poses, none), 1e-6)
        assert net.renderer(x[:, :2], poses).shape == (2, *side, 3)
