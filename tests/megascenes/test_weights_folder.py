"""Folders of weights: out and in, read by diffusers and transformers too, damaged ones refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from original_networks import CLIPVisionModelWithProjection, UNet2DConditionModel, fresh_small, largest, small

from core_ns.errors import DataError
from megascenes_ns.noise_schedule import alphas_cumprod
from megascenes_ns.weights_folder import INFO, WeightsInfo, load, read_info, save

CONFIGS = [INFO, "unet/config.json", "vae/config.json", "image_encoder/config.json"]
UNET = "unet/diffusion_pytorch_model.safetensors"


def test_networks_come_back_as_they_were(tmp_path):
    info = WeightsInfo(source="iter_1/model.safetensors", sha256="ab", accounted={"mapped": 3}, step=5)
    folder = save(small(), tmp_path / "deep" / "w", info)
    assert read_info(folder) == (small().sizes, info)
    found, wanted = load(folder), small().state_dict()
    assert not found.training
    assert set(found.state_dict()) == set(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())
    assert {name.split(".")[0] for name, value in found.named_parameters() if value.requires_grad} == {
        "unet", "cc_projection",
    }  # fmt: skip
    picture = torch.rand(1, 16, 16, 3)
    assert largest(found.encode_reference(picture).embedding, small().encode_reference(picture).embedding) == 0
    assert [path.name for path in folder.parent.iterdir()] == ["w"]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_the_size_is_nearly_the_same(tmp_path, dtype):
    whole, half = save(small(), tmp_path / "a"), save(small(), tmp_path / "b", dtype=dtype)
    assert (half / UNET).stat().st_size < 0.55 * (whole / UNET).stat().st_size
    found = load(half).state_dict()
    assert all(value.dtype == torch.float32 for value in found.values())
    assert all(largest(value, small().state_dict()[name]) < 0.02 for name, value in found.items())
    assert next(load(half, dtype=dtype).unet.parameters()).dtype != torch.float32


def test_diffusers_and_transformers_read_the_parts(tmp_path):
    from diffusers import AutoencoderKL, DDIMScheduler

    folder = save(small(), tmp_path / "w")
    generator = torch.Generator().manual_seed(0)
    noisy, context = torch.randn(1, 11, 8, 8, generator=generator), torch.randn(1, 1, 24, generator=generator)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    with torch.no_grad():
        first, second = (net(noisy, 3, context).sample for net in (unet, small().unet))
    assert largest(first, second) < 1e-5
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    assert all(torch.equal(value, small().vae.state_dict()[name]) for name, value in vae.state_dict().items())
    tower = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    wanted = small().image_encoder.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in tower.state_dict().items())
    scheduler: Any = DDIMScheduler.from_pretrained(folder / "scheduler")
    assert largest(scheduler.alphas_cumprod, alphas_cumprod()) < 1e-6


def test_a_writing_that_fails_leaves_nothing(tmp_path, monkeypatch):
    import safetensors.torch

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(small(), tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_more_input_channels_begin_at_zero_and_fewer_are_refused(tmp_path):
    narrow, wide = save(fresh_small(8), tmp_path / "8"), save(fresh_small(11), tmp_path / "11")
    weight = load(narrow, in_channels=11).unet.conv_in.weight
    assert weight.shape[1] == 11
    assert not weight[:, 8:].any()
    assert weight[:, :8].all()
    with pytest.raises(DataError, match="11 input channels, 8 are wanted"):
        load(wide, in_channels=8)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder of the small networks, to be left as it is."""
    return save(small(), tmp_path_factory.mktemp("weights") / "w")


def edit(file: Path, **values: object) -> None:
    """Change a JSON file."""
    content = json.loads(file.read_text())
    content.update(values)
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


JSON_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.floats(), st.text(max_size=5),
    st.lists(st.integers(-3, 2000), max_size=5), st.just({}),
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(CONFIGS), data=st.data())
def test_any_value_in_a_config_is_taken_or_is_one_error(written, file, data):
    folder = written
    before = (folder / file).read_text()
    name = data.draw(st.sampled_from(sorted(json.loads(before))))
    edit(folder / file, **{name: data.draw(JSON_VALUES)})
    refused = []
    try:
        read_info(folder)
    except DataError as error:
        refused.append(error.file)
    finally:  # others read this folder too
        (folder / file).write_text(before)
    assert all(named.startswith(str(folder)) for named in refused)


DAMAGE = {
    "no info": lambda folder: (folder / INFO).unlink(),
    "another format": lambda folder: edit(folder / INFO, format="other"),
    "another version": lambda folder: edit(folder / INFO, version=2),
    "an info of a list": lambda folder: (folder / INFO).write_text("[]"),
    "an info of nothing": lambda folder: (folder / INFO).write_text(""),
    "an unknown squash": lambda folder: edit(folder / INFO, pose_squash="hard"),
    "no unconditional branch": lambda folder: edit(folder / INFO, uncond=None),
    "other channels": lambda folder: edit(folder / INFO, in_channels=8),
    "no config": lambda folder: (folder / "unet/config.json").unlink(),
    "other attention": lambda folder: edit(folder / "unet/config.json", use_linear_projection=True),
    "other widths": lambda folder: edit(folder / "unet/config.json", block_out_channels=[32, 64, 64]),
    "no widths": lambda folder: edit(folder / "vae/config.json", block_out_channels=[]),
    "widths of words": lambda folder: edit(folder / "vae/config.json", block_out_channels=["a"]),
    "another activation": lambda folder: edit(folder / "image_encoder/config.json", hidden_act="gelu"),
    "another embedding": lambda folder: edit(folder / "image_encoder/config.json", projection_dim=12),
    "no weights": lambda folder: (folder / UNET).unlink(),
    "cut weights": lambda folder: (folder / UNET).write_bytes((folder / UNET).read_bytes()[:5000]),
    "weights of another part": lambda folder: (folder / UNET).write_bytes(
        (folder / "cc_projection.safetensors").read_bytes()
    ),
}


@pytest.mark.parametrize("case", list(DAMAGE))
def test_a_damaged_folder_is_one_error(tmp_path, written, case):
    folder = tmp_path / "w"
    shutil.copytree(written, folder)
    DAMAGE[case](folder)
    with pytest.raises(DataError) as raised:
        load(folder)
    assert raised.value.file.startswith(str(folder))


def test_no_folder_is_an_error_that_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="ns-megascenes import"):
        read_info(tmp_path / "nothing")
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "x").write_text("")
    with pytest.raises(DataError, match="is there already"):
        save(small(), tmp_path / "w")
