"""The fused decoder against the plain one; the packed vector against a reader that works like the original kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from voxel_files import decode, decoder_state, encode_direction, load

from diver_ns.deploy import PACKED_LENGTHS, PADDING, FusedDecoder
from diver_ns.field import Decoder


def inputs(count: int = 200, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    return torch.randn(count, 32, generator=g) * 2, directions


def run(fused: FusedDecoder, features: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return fused(fused.first(features), fused.direction_term(directions))


def close(actual, expected, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), atol=atol, rtol=0)


@pytest.fixture(params=[32, 64])
def width(request) -> int:
    return request.param


@torch.no_grad()
def test_fused_equals_the_trained_decoder(width) -> None:
    torch.manual_seed(0)
    decoder = Decoder(width)
    features, directions = inputs()
    sigma, rgb = run(FusedDecoder.from_decoder(decoder), features, directions)
    for expected in (decoder(features, directions), decode(decoder.state_dict(), features, directions)):
        close(sigma, expected[0])
        close(rgb, expected[1])


@torch.no_grad()
def test_the_first_layer_commutes_with_the_mean_over_corners(width) -> None:
    state = decoder_state(width)
    fused = FusedDecoder.from_state(state)
    table, directions = inputs(8 * 50)[0].view(50, 8, 32), inputs(50)[1]
    weights = torch.rand(50, 8).softmax(1)[..., None]
    sigma, rgb = fused((fused.first(table) * weights).sum(1), fused.direction_term(directions))
    expected = decode(state, (table * weights).sum(1), directions)
    close(sigma, expected[0])
    close(rgb, expected[1])


@torch.no_grad()
def test_the_parts_are_the_whole_and_half_tables_are_taken(width) -> None:
    fused = FusedDecoder.from_state(decoder_state(width))
    features, directions = inputs()
    table, term = fused.first(features), fused.direction_term(directions)
    sigma, hidden = fused.density(table)
    assert hidden.shape == term.shape == (200, width)
    both = fused(table, term)
    assert torch.equal(sigma, both[0])
    assert torch.equal(fused.colour(hidden, term), both[1])
    half = fused(table.half(), term)
    assert half[0].dtype == torch.float32
    close(half[1], both[1], 1e-2)


class Kernel:
    """Reads a packed decoder as one thread of the original's kernel does: front to back, input by input."""

    def __init__(self, packed: torch.Tensor) -> None:
        self.packed, self.at = packed.double(), 0

    def take(self, count: int) -> torch.Tensor:
        self.at += count
        return self.packed[self.at - count : self.at]

    def layer(self, x: torch.Tensor, outputs: int) -> torch.Tensor:
        """[bias | weight], column by column."""
        total = self.take(outputs).clone()
        for value in x:
            total += self.take(outputs) * value
        return total


def read_as_kernel(packed: torch.Tensor, width: int, feature: torch.Tensor, d: torch.Tensor):
    """Raw density and colour of one segment (spec diver 2, order of ``p``); encoding regrouped per axis."""
    kernel = Kernel(packed)
    h = feature.double()
    if width == 32:
        h = (h + kernel.take(32)).clamp(min=0)
    h = kernel.layer(h, width).clamp(min=0)
    sigma = kernel.layer(h, 1)[0]
    encoded = []
    for axis in range(3):
        value = float(d[axis])
        phases = torch.tensor([2**band * torch.pi * value for band in range(4)], dtype=torch.float64)
        encoded += [value, *phases.sin().tolist(), *phases.cos().tolist()]
    view = kernel.layer(torch.cat([h, torch.tensor(encoded, dtype=torch.float64)]), width).clamp(min=0)
    rgb = torch.sigmoid(kernel.layer(view, 3))
    assert kernel.at + PADDING == len(packed)
    return sigma, rgb


@torch.no_grad()
def test_the_packed_vector_works_in_the_originals_order(width) -> None:
    state = decoder_state(width, seed=2)
    fused = FusedDecoder.from_state(state)
    packed = fused.to_packed()
    assert packed.shape == (PACKED_LENGTHS[width],)
    assert packed.dtype == torch.float32
    assert not packed[-PADDING:].any()
    features, directions = inputs(6)
    sigma, rgb = decode(state, features, directions)
    for k in range(6):
        one = read_as_kernel(packed, width, fused.first(features)[k], directions[k])
        close(one[0], sigma[k])
        close(one[1], rgb[k])


@torch.no_grad()
def test_packed_there_and_back(width) -> None:
    fused = FusedDecoder.from_state(decoder_state(width, seed=3))
    back = FusedDecoder.from_packed(fused.to_packed())
    assert torch.equal(back.first_weight, torch.eye(32))
    for name, value in fused.state_dict().items():
        if name != "first_weight":
            assert torch.equal(back.state_dict()[name], value), name
    assert all(value.is_contiguous() for value in back.state_dict().values())
    assert torch.equal(back.to_packed(), fused.to_packed())
    features, directions = inputs()
    premultiplied = fused.first(features)
    assert torch.equal(back.first(premultiplied), premultiplied)
    for a, b in zip(run(back, premultiplied, directions), run(fused, features, directions), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_a_fused_decoder_becomes_a_trainable_one_again(width) -> None:
    fused = FusedDecoder.from_packed(FusedDecoder.from_state(decoder_state(width, seed=4)).to_packed())
    decoder = Decoder(width)
    decoder.load_state_dict(fused.to_state())
    features, directions = inputs()
    for actual, expected in zip(decoder(features, directions), run(fused, features, directions), strict=True):
        close(actual, expected)
    assert torch.equal(FusedDecoder.from_decoder(decoder).to_packed(), fused.to_packed())


@torch.no_grad()
@pytest.mark.parametrize("folder", ["fine32", "fine64"])
def test_the_originals_own_packed_vector(shared_fixtures: Path, folder) -> None:
    weight = load(shared_fixtures / "diver" / folder / "weight.pth")
    serialized = load(shared_fixtures / "diver" / folder / "serialize.pth")
    state = {
        name.replace("mlp1", "point").replace("mlp2", "view"): value
        for name, value in weight.items()
        if name.startswith("mlp")
    }
    fused = FusedDecoder.from_state(state)
    close(fused.to_packed(), serialized["p"], 1e-6)
    close(fused.first(weight["voxels"].coalesce().values()), serialized["f"], 1e-6)


def test_the_direction_encoding_is_the_decoders(width) -> None:
    fused = FusedDecoder.from_state(decoder_state(width))
    directions = inputs()[1]
    expected = encode_direction(directions.double()) @ fused.direction_weight.double().T + fused.view_bias.double()
    close(fused.direction_term(directions), expected)


def test_other_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3168, 8288\] numbers, not \[3140\]"):
        FusedDecoder.from_packed(torch.zeros(3140))
    with pytest.raises(ValueError, match=r"not \[2, 3168\]"):
        FusedDecoder.from_packed(torch.zeros(2, 3168))
    with pytest.raises(ValueError, match="last 28 numbers"):
        FusedDecoder.from_packed(torch.ones(3168))
    with pytest.raises(ValueError, match="32 or 64 wide, not 48"):
        FusedDecoder(48)
