"""Sizes of networks: the released ones' parameter counts, and what a state dict tells."""

from __future__ import annotations

import pytest
import torch
from original_networks import HAVE, VARIANTS, arrays, checkpoint, full_size_shapes

from core_ns.errors import DataError
from megascenes_ns.sizes import ClipSize, Sizes, UNetSize, VaeSize


@pytest.mark.parametrize(("in_channels", "unet"), [(11, 859_541_124), (8, 859_532_484)])
def test_the_full_size_has_the_parameters_of_the_released_models(in_channels, unet):
    from megascenes_ns.key_map import expected_shapes

    counts: dict[str, int] = {}
    names: dict[str, int] = {}
    for name, shape in expected_shapes(Sizes.full(in_channels)).items():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + int(torch.Size(shape).numel())
        names[part] = names.get(part, 0) + 1
    assert counts == {
        "unet": unet, "vae": 83_653_863, "image_encoder": 303_966_208, "cc_projection": 787 * 768 + 768,
    }  # fmt: skip
    assert names["unet"] == 686


@pytest.mark.skipif(not HAVE, reason="the shared fixtures are not beside this checkout")
@pytest.mark.parametrize(("variant", "in_channels"), [("warp_plus_pose", 11), ("zeronvs", 8)])
def test_a_full_size_state_dict_tells_its_sizes(variant, in_channels):
    assert Sizes.of_original(full_size_shapes(variant)) == Sizes.full(in_channels)


@pytest.mark.skipif(not HAVE, reason="the shared fixtures are not beside this checkout")
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_fixtures_tell_their_sizes(variant):
    from megascenes_ns.checkpoint_import import read_state

    state = read_state(checkpoint(variant))
    found = Sizes.of_original({name: tuple(value.shape) for name, value in state.items()})
    wanted = {
        "warp_plus_pose": Sizes(
            UNetSize(11, 32, (1, 2, 1, 1), 2, 8, 48), VaeSize(32, (1, 2, 1, 1), 1), ClipSize(64, 2, 1, 14, 224)
        ),
        "zeronvs": Sizes(
            UNetSize(8, 32, (1, 1, 1, 1), 1, 8, 40), VaeSize(32, (1, 1, 1, 1), 1), ClipSize(128, 1, 2, 14, 224)
        ),
    }
    assert found == wanted[variant]
    assert found.variant == variant
    assert found.shrink == 8
    latent = arrays(variant)["unet_x_t"]
    assert arrays(variant)["image_ref_u8"].shape[1] == latent.shape[-1] * found.shrink


def test_a_state_dict_without_a_telling_tensor_is_refused_by_its_name():
    with pytest.raises(DataError, match=r"input_blocks\.0\.0\.weight"):
        Sizes.of_original({"model.diffusion_model.time_embed.0.weight": (4, 4)})


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="norm groups"):
        Sizes(UNetSize(width=48))
    with pytest.raises(ValueError, match="input channels"):
        Sizes(UNetSize(in_channels=4))
    for blocks in (0, -1, 2.5, True, "2", None, 10**9):
        with pytest.raises(ValueError, match="whole numbers"):
            Sizes(UNetSize(blocks=blocks))  # pyright: ignore
    for wrong in (UNetSize(blocks=5000), UNetSize(multipliers=()), UNetSize(multipliers=(1,) * 100)):
        with pytest.raises(ValueError, match="counts"):
            Sizes(wrong)


def test_variants_are_told_by_the_input_channels():
    assert [Sizes.tiny(channels).variant for channels in (11, 8)] == ["warp_plus_pose", "zeronvs"]
    assert Sizes.full().shrink == Sizes.tiny().shrink == 8
