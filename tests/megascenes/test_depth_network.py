"""Networks from a folder: tiny random ones, their input against torch, their output against transformers."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from depth_scenes import K, texture, wall_model, write_model
from hypothesis import given
from hypothesis import strategies as st

from core_ns.errors import DataError
from megascenes_ns.depth_network import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NetworkDepth,
    network_input,
    network_size,
    weights_fingerprint,
)
from megascenes_ns.depth_sources import open_source

pytest.importorskip("transformers")
IMAGE = texture(3, 150, 100)


def tiny_depth_anything(folder, kind="relative", **changes):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, patch_size=14, image_size=70,
        out_indices=[1, 2, 3, 4], out_features=None, reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
        head_hidden_size=4, depth_estimation_type=kind, max_depth=20, **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    network = DepthAnythingForDepthEstimation(config).eval()
    network.save_pretrained(folder)
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights")
    tiny_depth_anything(path)
    return path


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_sizes(width, height):
    if max(width, height) > 40 * min(width, height):
        return
    wide, high = network_size(width, height)
    assert min(wide, high) == 518  # 37 x 14
    assert wide % 14 == high % 14 == 0
    ratio = 518 / min(width, height)
    assert abs(wide - width * ratio) <= 7 + 1e-6
    assert abs(high - height * ratio) <= 7 + 1e-6


def test_sizes_of_the_usual_photos():
    assert network_size(1024, 768) == (686, 518)
    assert network_size(256, 256) == (518, 518)  # the weights' own processor keeps 252 here
    assert network_size(300, 1000) == (518, 1722)


def test_the_input_is_bicubic_and_normalised():
    found = network_input(IMAGE, 56)
    assert found.shape == (3, 56, 84)
    assert found.dtype == np.float32
    photo = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].double() / 255
    exact = torch.nn.functional.interpolate(photo, (56, 84), mode="bicubic", align_corners=False)[0]
    exact = (exact - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    np.testing.assert_allclose(found, exact.numpy(), atol=2e-4)


def test_depth_of_a_network_is_that_of_transformers(folder):
    """Spec 3.1 step by step: disparity at short side 518, bicubic to the picture, 1/max(., 1e-3), over its quantile."""
    network = tiny_depth_anything(folder)
    with torch.no_grad():
        raw = network(torch.from_numpy(network_input(IMAGE))[None]).predicted_depth
    assert raw.shape == (1, 518, 784)
    assert float(raw.std()) > 0
    small = torch.nn.functional.interpolate(raw[None].double(), (80, 120), mode="bicubic", align_corners=False)[0, 0]
    depth = 1 / np.maximum(small.numpy(), 1e-3)
    found = open_source(str(folder)).depth(IMAGE, K, "x.png", size=(80, 120), scale=3.0)
    np.testing.assert_allclose(found.values, np.minimum(depth / np.quantile(depth, 0.2), 100), rtol=1e-4)
    assert (found.q20, found.unit_known) == (3.0, True)
    assert not open_source(str(folder)).depth(IMAGE, K, "x.png", size=(8, 12)).unit_known


def test_metric_networks_give_depth(tmp_path):
    tiny_depth_anything(tmp_path, kind="metric")
    source = NetworkDepth(tmp_path, short_side=70)
    assert source.is_metric
    raw = source.predict(IMAGE, "x")
    found = source.depth(IMAGE, K, "x.png", size=raw.shape)
    np.testing.assert_allclose(found.values, np.minimum(raw / np.quantile(raw, 0.2), 100), rtol=1e-5)
    np.testing.assert_allclose(source.disparity(IMAGE, "x.png", raw.shape), 1 / raw, rtol=1e-6)


def test_other_networks_get_their_own_processors_input(tmp_path):
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False,
    )  # fmt: skip
    torch.manual_seed(0)
    DPTForDepthEstimation(config).save_pretrained(tmp_path)
    processor = DPTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(tmp_path)
    source = NetworkDepth(tmp_path)
    raw = source.predict(IMAGE, "x")
    with torch.no_grad():
        exact = source.load()(processor(images=IMAGE, return_tensors="pt")["pixel_values"]).predicted_depth[0]
    np.testing.assert_allclose(raw, exact.numpy(), atol=1e-6)
    assert not source.is_metric


def test_alignment_of_a_network(folder, tmp_path):
    """A random network knows nothing, so whatever comes of it must be said."""
    from depth_scenes import camera, key_of

    model = write_model(tmp_path / "model", wall_model([camera(0), camera(1)]))
    source = open_source(str(folder), model=model)
    found = source.depth(texture(1), K, key_of(1), scale=2.0)
    assert found.alignment is not None
    assert found.alignment.points > 100
    assert found.q20 == 2.0


def test_the_fingerprint_tells_weights_apart(folder, tmp_path):
    assert weights_fingerprint(folder) == weights_fingerprint(folder)
    tiny_depth_anything(tmp_path, kind="metric")
    assert weights_fingerprint(folder) != weights_fingerprint(tmp_path)
    assert json.dumps(NetworkDepth(folder).settings())


def test_a_network_travels_as_the_name_of_its_folder(folder):
    source = NetworkDepth(folder, short_side=70)
    before = source.predict(IMAGE, "x")
    data = pickle.dumps(source)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).predict(IMAGE, "x"), before)


# ---------------------------------------------------------------------- refused


def test_nothing_is_downloaded_unasked(monkeypatch):
    import transformers

    def never(*_, **__):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(transformers.AutoModelForDepthEstimation, "from_pretrained", never)
    with pytest.raises(DataError, match="--download"):
        NetworkDepth("LiheYoung/depth-anything-large-hf").depth(IMAGE, K, "x")


def test_download_is_passed_on_and_only_then(monkeypatch, folder):
    import transformers

    asked = []

    def note(name, **options):
        asked.append((name, options["local_files_only"], options["trust_remote_code"], options["use_safetensors"]))
        raise OSError("offline\nmore")

    monkeypatch.setattr(transformers.AutoModelForDepthEstimation, "from_pretrained", note)
    for source in (NetworkDepth(folder), open_source("some/name", download=True)):
        with pytest.raises(DataError, match=r"offline\)"):
            source.depth(IMAGE, K, "x")
    assert asked == [(str(folder), True, False, True), ("some/name", False, False, True)]


def spoiled(folder, tmp_path, name):
    import shutil

    target = tmp_path / "weights"
    shutil.copytree(folder, target)
    config, weights = target / "config.json", target / "model.safetensors"
    if name == "pickle":
        weights.rename(target / "pytorch_model.bin")
    elif name == "json":
        config.write_text("{")
    elif name == "kind":
        config.write_text('{"model_type": "bert"}')
    elif name == "none":
        config.write_text("[]")
    elif name == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif name == "code":
        config.write_text(
            json.dumps({**json.loads(config.read_text()), "model_type": "x", "auto_map": {"AutoConfig": "a.B"}})
        )
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        if name == "missing":
            del tensors["head.conv1.weight"]
        else:
            tensors["head.conv3.bias"] = torch.full_like(tensors["head.conv3.bias"], float("nan"))
        save_file(tensors, weights, metadata={"format": "pt"})
    return target


@pytest.mark.filterwarnings("ignore")  # the library grumbles before it refuses
@pytest.mark.parametrize("name", ["pickle", "json", "kind", "none", "truncated", "missing", "nan", "code"])
def test_unusable_folders_are_one_data_error(folder, tmp_path, name):
    target = spoiled(folder, tmp_path, name)
    with pytest.raises(DataError) as caught:
        NetworkDepth(target, short_side=70).depth(IMAGE, K, "x.png")
    assert "weights" in str(caught.value)
    assert "\n" not in str(caught.value)
