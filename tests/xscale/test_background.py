"""Backgrounds: constants, and a learned sky that must carry both gradients and a skyline."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from xscale_ns.background import Background, encode_directions


def directions_of(count: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(
    ("kind", "expected"), [("white", (1, 1, 1)), ("black", (0, 0, 0)), ("color", (0.25, 0.5, 0.75))]
)
def test_constant_backgrounds_return_their_colour_and_have_nothing_to_train(kind, expected) -> None:
    background = Background(kind, color=(0.25, 0.5, 0.75))
    rgb = background(directions_of(5, 0))
    assert torch.equal(rgb, torch.tensor(expected, dtype=torch.float32).expand(5, 3))
    assert not background.is_learned
    assert not list(background.parameters())
    assert not background.state_dict()
    assert background(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("color", [(0.0, 0.5), (0.0, 0.5, 1.5), (0.0, float("nan"), 1.0)])
def test_a_colour_outside_the_cube_is_refused(color) -> None:
    with pytest.raises(ValueError, match="colour"):
        Background("color", color=color)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="far-mesh"):
        Background("far-mesh")  # type: ignore[arg-type]


def sky(directions: torch.Tensor) -> torch.Tensor:
    """Blue above, dark ground below a skyline that undulates with azimuth, and a bright patch."""
    azimuth = torch.atan2(directions[:, 1], directions[:, 0])
    height = directions[:, 2] - 0.15 * torch.sin(3 * azimuth)
    above = torch.sigmoid(15 * height)[:, None]
    blue = torch.stack([0.3 + 0.2 * directions[:, 2], 0.5 + 0.2 * directions[:, 2], torch.full_like(height, 0.9)], -1)
    sun = torch.sigmoid(30 * (directions @ torch.tensor([0.6, 0.0, 0.8]) - 0.9))[:, None]
    return (above * blue + (1 - above) * 0.15) * (1 - sun) + sun


def test_env_learns_a_sky_and_generalises_to_unseen_directions() -> None:
    torch.manual_seed(0)
    background = Background("env")
    assert background.is_learned
    optimizer = torch.optim.Adam(background.parameters(), lr=1e-2)
    for step in range(400):
        rays = directions_of(1024, step)
        loss = (background(rays) - sky(rays)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen = directions_of(4096, 10_000)
    with torch.no_grad():
        error = (background(unseen) - sky(unseen)).square().mean()
    constant = sky(unseen).var(0).mean()
    assert -10 * torch.log10(error) > 32
    assert error < 0.01 * constant


def test_env_gradients_match_finite_differences_and_colours_stay_in_range() -> None:
    torch.manual_seed(1)
    background = Background("env", hidden=4, octaves=1).double()
    rays = directions_of(5, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(background, rays)
    rgb = Background("env")(directions_of(1000, 4))
    assert ((rgb > 0) & (rgb < 1)).all()


def test_the_encoding_separates_directions_by_the_octaves_it_claims() -> None:
    directions = directions_of(7, 0).double()
    encoded = encode_directions(directions, octaves=3)
    assert encoded.shape == (7, 16 + 6 * 3)
    sines = encoded[:, 16:25].reshape(7, 3, 3)
    for octave in range(3):
        torch.testing.assert_close(sines[:, octave], torch.sin(torch.pi * 2**octave * directions))
