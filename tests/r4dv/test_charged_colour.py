"""Colours of stored points against the plain formula, point by point (4K4D eq. 3 and 4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from charge_folders import random_frame
from charged_formula import plain_colour

from r4dv_ns import charged_colour, harmonics
from r4dv_ns.charge_store import UNSEEN
from r4dv_ns.charged_colour import harmonic_colour, shaded
from r4dv_ns.charged_frames import colour_of, points_of


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_with_axes_first_are_the_harmonics(degree, monkeypatch):
    monkeypatch.setattr(charged_colour, "CHUNK", 7)
    generator = torch.Generator().manual_seed(degree)
    xyz, centre = torch.randn(3, 20, generator=generator), torch.tensor([3.0, -1.0, 0.5])
    coefficients = torch.randn(3, (degree + 1) ** 2, 20, generator=generator)
    directions = torch.nn.functional.normalize(xyz.t() - centre, dim=1)
    expected = harmonics.evaluate(coefficients.permute(2, 0, 1), directions).t()
    torch.testing.assert_close(harmonic_colour(xyz, coefficients, centre), expected, atol=1e-5, rtol=1e-5)
    assert harmonic_colour(centre[:, None], coefficients[..., :1], centre).isfinite().all(), "a point in the camera"


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("chosen", [[2], [1, 0, 3], []])
def test_colours_are_those_of_the_plain_formula(chosen, kind):
    rng = np.random.default_rng(len(chosen))
    frame = random_frame(rng, n=40, s=4)
    if kind == np.float32:
        frame = random_frame(rng, n=40, s=4, src_rgb=rng.random((4, 40, 3), dtype=np.float32))
    frame.src_logit[:, 0] = UNSEEN  # seen by no chosen photo: all of them count
    centre = np.array([2.5, 0.5, -1.0])
    points = points_of(frame)
    base = colour_of(frame, chosen).rgb if chosen else None
    found = shaded(points.xyz, points.coefficients, base, torch.from_numpy(centre).float(), 0.25)
    np.testing.assert_allclose(found.t().numpy(), plain_colour(frame, chosen, centre, 0.25), atol=2e-6)


def test_the_viewers_switches():
    frame = random_frame(np.random.default_rng(0))
    points, base, centre = points_of(frame), colour_of(frame, [0, 1]).rgb, torch.tensor([3.0, 0, 0])

    def colour(**switches: bool) -> torch.Tensor:
        return shaded(points.xyz, points.coefficients, base, centre, 0.25, **switches)

    torch.testing.assert_close(colour(show_residual=False), base.clamp(0, 1))
    assert not colour(show_base=False, show_residual=False).any()
    residual = 0.25 * torch.tanh(harmonic_colour(points.xyz, points.coefficients, centre))
    torch.testing.assert_close(colour(show_base=False), residual.clamp(0, 1))
    torch.testing.assert_close(colour(), (base + residual).clamp(0, 1))
    assert base.max() <= 1.0001, "the stored colour is not changed"
