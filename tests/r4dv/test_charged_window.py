"""What a camera has in view: nothing that shows is left out (spec r4dv 4.6)."""

from __future__ import annotations

import capture_runs  # noqa: F401 (silences the warnings of nerfstudio's imports)
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r4dv_ns.charged_window import Window, in_view
from r4dv_ns.drawing import Drawing
from r4dv_ns.peel import peel
from r4dv_ns.peel_fragments import Window as Camera
from r4dv_ns.peel_fragments import visible_discs


def camera(width: int = 40, height: int = 30, focal: float = 35.0) -> Drawing:
    K = torch.tensor([[focal, 0.0, 0.45 * width], [0.0, 1.1 * focal, 0.6 * height], [0.0, 0.0, 1.0]])
    return Drawing(K, torch.eye(4), height, width)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), spread=st.floats(0.01, 8), depth=st.floats(-1, 6), radius=st.floats(1e-4, 1.0),
    count=st.integers(1, 30), least=st.sampled_from([0.0, 0.75, 3.0]), width=st.integers(1, 50),
)  # fmt: skip
def test_every_disc_that_shows_is_kept_and_the_window_holds_its_pixels(
    seed, spread, depth, radius, count, least, width
):
    generator = torch.Generator().manual_seed(seed)
    placed = spread * torch.randn(3, count, generator=generator)
    placed[2] += depth
    radii, alpha = radius * torch.rand(count, generator=generator), torch.rand(count, generator=generator).round()
    look = camera(width)
    fx, fy, cx, cy = (float(look.K[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2)))
    discs = visible_discs(
        placed.t(), radii, alpha, Camera(fx, fy, cx, cy, look.height, look.width), near=1e-4, min_radius=least
    )
    kept, window = in_view(placed, radii, alpha, look, least)
    assert set(discs.index.tolist()) <= set(kept.tolist())
    assert 0 <= window.x < window.x + window.width <= look.width
    assert 0 <= window.y < window.y + window.height <= look.height

    def drawn(look: Drawing) -> torch.Tensor:
        cx, cy = float(look.K[0, 2]), float(look.K[1, 2])
        seen = peel(
            placed.t(), radii, alpha, torch.ones(count, 1), fx=fx, fy=fy, cx=cx, cy=cy, height=look.height,
            width=look.width, layers=4, min_radius=least,
        )  # fmt: skip
        return seen.color

    whole = drawn(look)
    pasted = window.paste(drawn(window.of(look)), torch.zeros_like(whole))
    # The opacity at a disc's rim is all that rounding of the shifted centre can change.
    torch.testing.assert_close(pasted, whole, atol=2e-3, rtol=0)


def test_without_a_point_the_window_is_one_pixel():
    kept, window = in_view(torch.tensor([[0.0], [0.0], [-1.0]]), torch.ones(1), torch.ones(1), camera(), 0.75)
    assert len(kept) == 0
    assert window == Window(0, 0, 1, 1)
    whole = torch.rand(30, 40, 3)
    assert torch.equal(Window(0, 0, 40, 30).paste(whole, torch.zeros(1).expand(30, 40, 3)), whole)
