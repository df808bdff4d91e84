"""The key map against diffusers' own conversion, and every tensor of the full-size model (acceptance 1)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from original_networks import HAVE, VARIANTS, checkpoint, full_size_shapes

from megascenes_ns.autoencoder import vae_config
from megascenes_ns.checkpoint_import import account, read_state
from megascenes_ns.key_map import UNET, VAE, Origin, expected_shapes, key_map, unet_name, unread_kind, vae_name
from megascenes_ns.sizes import ClipSize, Sizes, UNetSize, VaeSize
from megascenes_ns.unet import unet_config

needs_fixtures = pytest.mark.skipif(not HAVE, reason="the shared fixtures are not beside this checkout")


def original_state(sizes: Sizes) -> dict[str, torch.Tensor]:
    """A random state dict under the original's names, as our map says it is stored."""
    generator, state = torch.Generator().manual_seed(0), {}
    origins = key_map(sizes)
    for name, shape in expected_shapes(sizes).items():
        origin = origins[name]
        if origin.third is not None:
            shape = (3 * shape[0], *shape[1:])
        if origin.convolution:
            shape = (*shape, 1, 1)
        state[origin.name] = torch.randn(shape[::-1] if origin.transposed else shape, generator=generator)
    return state


SMALL = [
    Sizes(UNetSize(channels, 32, (1, 2, 2, 2), blocks, 4, 24), VaeSize(32, multipliers, blocks), ClipSize(32, 1, 2))
    for channels, blocks, multipliers in ((11, 2, (1, 2, 2)), (8, 1, (1, 1, 2, 1)))
]


@pytest.mark.parametrize("sizes", SMALL, ids=["11 channels", "8 channels"])
def test_the_map_equals_diffusers_conversion(sizes):
    """Spec 5: ``convert_ldm_*_checkpoint`` are half private, so the map is ours; on all keys the two agree."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    state, origins = original_state(sizes), key_map(sizes)
    config = {**unet_config(sizes.unet), "class_embed_type": None, "addition_embed_type": None}
    theirs = {
        "unet": convert_ldm_unet_checkpoint(dict(state), config),
        "vae": convert_ldm_vae_checkpoint(dict(state), vae_config(sizes.vae)),
    }
    for part, wanted in theirs.items():
        ours = {name: origin.take(state[origin.name]) for name, origin in origins.items()}
        ours = {name.partition(".")[2]: value for name, value in ours.items() if name.split(".")[0] == part}
        assert set(ours) == set(wanted)
        for name, value in wanted.items():
            assert torch.equal(ours[name], value.reshape(ours[name].shape)), name


@needs_fixtures
@pytest.mark.parametrize(("variant", "in_channels"), [("warp_plus_pose", 11), ("zeronvs", 8)])
def test_every_key_of_the_full_size_is_accounted_for(variant, in_channels):
    shapes = full_size_shapes(variant)
    assert len(shapes) == 1938
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
    sizes = Sizes.full(in_channels)
    found = account(Path("full"), state, sizes)
    assert sum(found.values()) == len(shapes)
    assert found == {"mapped": 1232, "ema": 688, "text": 6, "schedule": 12}
    wanted = expected_shapes(sizes)
    for name, origin in key_map(sizes).items():
        assert tuple(origin.take(state[origin.name]).shape) == wanted[name]


@needs_fixtures
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_key_of_the_fixtures_is_accounted_for(variant):
    state = read_state(checkpoint(variant))
    sizes = Sizes.of_original({name: tuple(value.shape) for name, value in state.items()})
    assert sum(account(checkpoint(variant), state, sizes).values()) == len(state)


def test_each_kind_of_unread_tensor_is_told():
    mapped = [f"{UNET}out.0.weight", f"{VAE}quant_conv.bias"]
    assert unread_kind("model_ema.diffusion_modelout0weight", mapped) == "ema"
    assert unread_kind("model_ema.num_updates", mapped) == "ema"
    assert unread_kind("model_ema.diffusion_modelout0bias", mapped) is None
    assert unread_kind("cond_stage_model.model.token_embedding.weight", mapped) == "text"
    assert unread_kind("cond_stage_model.model.transformer.resblocks.3.ln_1.bias", mapped) == "text"
    assert unread_kind("cond_stage_model.model.visual.extra", mapped) is None
    assert unread_kind("posterior_variance", mapped) == "schedule"
    assert unread_kind("optimizer.step", mapped) is None


def test_a_name_without_a_rule_is_an_error():
    for name in ("time_embedding.cond_proj.weight", "down_blocks.0.motion_modules.0.weight"):
        with pytest.raises(ValueError, match=name):
            unet_name(name, 2)
    with pytest.raises(ValueError, match=r"decoder\.tanh"):
        vae_name("decoder.tanh.weight", 4)


def test_weights_are_taken_out_of_what_holds_them():
    rows = torch.arange(12.0).reshape(6, 2)
    assert torch.equal(Origin("", third=1).take(rows), rows[2:4])
    assert torch.equal(Origin("", transposed=True).take(rows), rows.T)
    assert torch.equal(Origin("", convolution=True).take(rows[..., None, None]), rows)
    with pytest.raises(ValueError, match="three"):
        Origin("", third=1).take(rows[:4])
    with pytest.raises(ValueError, match="one pixel"):
        Origin("", convolution=True).take(torch.zeros(2, 2, 3, 3))
