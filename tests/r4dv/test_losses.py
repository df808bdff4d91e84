"""Loss terms against loops, known values and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from r4dv_ns.losses import entropy, huber, residual_size, sh_size, soft_iou


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_huber_equals_torch_and_half_the_mse():
    a, b = torch.rand(5, 4, 3), torch.rand(5, 4, 3)
    assert float(huber(a, b)) == pytest.approx(0.5 * float((a - b).square().mean()), rel=1e-5)
    for delta in (0.1, 1.0, 3.0):
        expected = torch.nn.functional.huber_loss(a * 5, b, delta=delta)
        assert float(huber(a * 5, b, delta)) == pytest.approx(float(expected), rel=1e-5)


def test_huber_counts_valid_pixels_only():
    a, b = torch.rand(6, 5, 3), torch.rand(6, 5, 3)
    valid = torch.rand(6, 5, 1) < 0.5
    keep = valid.expand(6, 5, 3)
    assert float(huber(a, b, weight=valid)) == pytest.approx(float(huber(a[keep], b[keep])), rel=1e-5)
    a.requires_grad_()
    nothing = huber(a, b, weight=torch.zeros(6, 5, 1))
    nothing.backward()
    assert nothing.item() == 0.0
    assert a.grad is not None
    assert bool(a.grad.isfinite().all())


def test_iou_of_known_silhouettes():
    mask = torch.zeros(4, 4)
    mask[:2] = 1.0
    other = torch.zeros(4, 4)
    other[:, :2] = 1.0
    assert float(soft_iou(mask, mask)) == 0.0
    assert float(soft_iou(other, mask)) == pytest.approx(1 - 4 / 12)
    assert float(soft_iou(1 - mask, mask)) == pytest.approx(1.0)
    assert float(soft_iou(other, mask, weight=mask)) == pytest.approx(0.5)


def test_overshoot_shrinks_only_with_the_full_gradient():
    """Spec 10.1 B2: with the union detached nothing outside the mask ever shrinks."""
    mask = torch.zeros(4, 4, dtype=torch.float64)
    mask[:2] = 1.0
    gradients = []
    for detach in (False, True):
        m = torch.full((4, 4), 0.5, dtype=torch.float64, requires_grad=True)
        soft_iou(m, mask, detach_union=detach).backward()
        assert m.grad is not None
        gradients.append(m.grad)
    assert bool((gradients[0][2:] > 0).all())
    assert not gradients[1][2:].any()
    assert bool((gradients[0][:2] < 0).all())
    assert bool((gradients[1][:2] < 0).all())


def test_iou_is_finite_for_empty_silhouettes():
    empty, mask = torch.zeros(3, 3, requires_grad=True), torch.zeros(3, 3)
    loss = soft_iou(empty, mask)
    loss.backward()
    assert loss.item() == 0.0
    assert empty.grad is not None
    assert bool(empty.grad.isfinite().all())


def test_gradients_by_finite_differences():
    m, mask = torch.rand(4, 5, dtype=torch.float64).requires_grad_(), torch.rand(4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(soft_iou, (m, mask))
    assert torch.autograd.gradcheck(lambda a: huber(3 * a, mask), (m,))
    assert torch.autograd.gradcheck(entropy, (m,))


def test_sizes():
    assert float(residual_size(torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]))) == 12.5
    assert float(sh_size(torch.tensor([[1.0, 0.0, -1.0]]))) == pytest.approx(2 / 3)


def test_entropy_is_greatest_at_one_half_and_finite_at_the_ends():
    ends = torch.tensor([0.0, 1.0], requires_grad=True)
    loss = entropy(ends)
    loss.backward()
    assert 0.0 <= loss.item() < 1e-4
    assert ends.grad is not None
    assert bool(ends.grad.isfinite().all())
    assert float(entropy(torch.tensor([0.5]))) == pytest.approx(math.log(2))
