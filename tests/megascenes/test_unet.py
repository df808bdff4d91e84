"""The UNet against the original's outputs (acceptance 1)."""

from __future__ import annotations

import pytest
import torch
from original_networks import HAVE, VARIANTS, arrays, imported, largest

from megascenes_ns.sizes import Sizes
from megascenes_ns.unet import build_unet, unet_config, unet_size, widen_input

needs_fixtures = pytest.mark.skipif(not HAVE, reason="the shared fixtures are not beside this checkout")


@needs_fixtures
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("branch", ["condition", "legacy empty condition"])
def test_the_unet_computes_what_the_original_computes(variant, branch):
    io, nets = arrays(variant), imported(variant).networks
    names = ("c_crossattn", "c_concat", "unet_eps")
    if branch != "condition":
        names = ("uncond_crossattn", "uncond_concat", "unet_eps_uncond")
    context, concat, wanted = (io[name] for name in names)
    with torch.no_grad():
        found = nets.predict_noise(io["unet_x_t"], io["unet_t"].long(), context, concat)
    assert largest(found, wanted) < 2e-5  # the fixtures' tolerance; acceptance asks for 1e-4


@pytest.mark.parametrize("in_channels", [8, 11])
def test_new_input_channels_change_nothing_at_first(in_channels):
    size = Sizes.tiny(8).unet
    torch.manual_seed(0)
    narrow = build_unet(size)
    wide = build_unet(Sizes.tiny(in_channels).unet)
    state = narrow.state_dict()
    wide.load_state_dict({**state, "conv_in.weight": widen_input(state["conv_in.weight"], in_channels)})
    noisy = torch.randn(2, 8, 8, 8)
    extra = torch.cat([noisy, torch.randn(2, in_channels - 8, 8, 8)], 1)
    context, times = torch.randn(2, 1, size.context), torch.tensor([3, 900])
    with torch.no_grad():
        first, second = narrow(noisy, times, context).sample, wide(extra, times, context).sample
    assert largest(first, second) < 1e-5


def test_channels_are_never_taken_away():
    with pytest.raises(ValueError, match="11 input channels"):
        widen_input(torch.zeros(4, 11, 3, 3), 8)


@pytest.mark.parametrize("size", [Sizes.full().unet, Sizes.tiny(8).unet])
def test_a_config_tells_the_size(size):
    assert unet_size(unet_config(size)) == size
