"""Latents of photos: kept exactly, shared between runs, never mistaken for those of other networks."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from tiny_runs import NOISE

from core_ns.errors import DataError
from megascenes_ns.latent_cache import LatentCache, PhotoLatent, encode_photos, frozen_digest, stacked
from megascenes_ns.networks import Networks
from megascenes_ns.sizes import Sizes

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]


@pytest.fixture(scope="module")
def nets() -> Networks:
    return Networks.fresh(Sizes.tiny(), 0)


def latent(seed: int) -> PhotoLatent:
    random = np.random.default_rng(seed)
    return PhotoLatent(*(random.normal(size=shape).astype(np.float32) for shape in ((4, 2, 2), (4, 2, 2), (5,))))


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_what_comes_back_is_what_was_put_in_rounded_once(tmp_path, precision):
    cache = LatentCache("d", 64, tmp_path, precision)
    key = cache.key("a/b.jpg")
    assert cache.get(key) is None
    kept = cache.put(key, latent(0))
    again = LatentCache("d", 64, tmp_path, precision).get(key)
    assert again is not None
    for name in ("mean", "std", "embedding"):
        assert np.array_equal(getattr(kept, name), getattr(again, name))
        assert np.allclose(getattr(kept, name), getattr(latent(0), name), atol=0 if precision == "fp32" else 2e-3)


def test_other_networks_sizes_and_precisions_have_other_keys(tmp_path):
    keys = {
        LatentCache(digest, picture, tmp_path, precision).key("a/b.jpg")
        for digest in ("d", "e")
        for picture in (64, 256)
        for precision in ("fp16", "fp32")
    }
    assert len(keys) == 8
    one = LatentCache("d", 64, None)
    assert one.key("/x/main/images/a/b.jpg") == one.key("/y/main/images/a/b.jpg"), "wherever the list's author kept it"


def test_memory_is_bounded_and_the_disk_remembers(tmp_path):
    cache = LatentCache("d", 64, tmp_path, "fp32", memory=3 * latent(0).bytes)
    keys = [cache.key(f"a/{index}.jpg") for index in range(10)]
    for index, key in enumerate(keys):
        cache.put(key, latent(index))
    assert len(cache._known) == 3
    found = cache.get(keys[0])
    assert found is not None
    assert np.array_equal(found.mean, latent(0).mean)
    assert len(cache._known) == 3
    alone = LatentCache("d", 64, None, "fp32", memory=latent(0).bytes)
    for index in range(3):
        alone.put(keys[index], latent(index))
    assert alone.get(keys[0]) is None
    assert alone.get(keys[2]) is not None


def test_threads_may_ask_at_once(tmp_path):
    cache = LatentCache("d", 64, tmp_path, "fp32", memory=4 * latent(0).bytes)
    wrong = []

    def work(start: int) -> None:
        for index in range(40):
            number = (start + index) % 8
            key = cache.key(f"a/{number}.jpg")
            cache.put(key, latent(number))
            found = cache.get(key)
            if found is None or not np.array_equal(found.mean, latent(number).mean):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache._used == sum(each.bytes for each in cache._known.values())


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 half a zip"])
def test_damaged_files_are_named(tmp_path, content):
    cache = LatentCache("d", 64, tmp_path)
    file = cache.file(cache.key("a/b.jpg"))
    assert file is not None
    os.makedirs(file.parent)
    file.write_bytes(content)
    with pytest.raises(DataError, match="holds no latents"):
        cache.get(cache.key("a/b.jpg"))


def test_pickled_arrays_are_not_opened(tmp_path):
    cache = LatentCache("d", 64, tmp_path)
    file = cache.file(cache.key("a/b.jpg"))
    assert file is not None
    os.makedirs(file.parent)
    with open(file, "wb") as handle:
        np.savez(handle, mean=np.array([{}], object), std=np.zeros(1), embedding=np.zeros(1))
    with pytest.raises(DataError, match="holds no latents"):
        cache.get(cache.key("a/b.jpg"))


def test_the_scaling_trap(nets):
    """Check 3: the reference's latent is the mode as it is, the target's 0.18215 times a sample."""
    random = np.random.default_rng(0)
    square = random.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    found = encode_photos(nets, LatentCache("d", 64, precision="fp32"), [("k", square)])
    target, reference = stacked([found["k"]], "cpu")
    direct = nets.encode_target(torch.from_numpy(square)[None])
    assert torch.equal(reference.latent, direct.mean)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = target.target(noise)
    assert torch.allclose(drawn, 0.18215 * (direct.mean + direct.std * noise), atol=1e-6)
    assert not torch.allclose(drawn, direct.mean, atol=0.1), "swapping them would be seen"


def test_batches_change_nothing(nets):
    squares = [np.random.default_rng(i).integers(0, 256, (64, 64, 3)).astype(np.uint8) for i in range(5)]
    photos = [(str(index), square) for index, square in enumerate(squares)]
    one = encode_photos(nets, LatentCache("d", 64, precision="fp32"), photos, batch=1)
    many = encode_photos(nets, LatentCache("d", 64, precision="fp32"), photos, batch=3)
    assert list(one) == list(many)
    for key, each in one.items():
        assert np.allclose(each.mean, many[key].mean, atol=1e-4)  # of up to 30
        assert np.allclose(each.embedding, many[key].embedding, atol=1e-5)


def test_the_digest_sees_every_frozen_weight_and_no_other(nets):
    before = frozen_digest(nets)
    other = Networks.fresh(Sizes.tiny(), 0)
    assert frozen_digest(other) == before
    with torch.no_grad():
        other.unet.conv_in.weight.add_(1)
        other.cc_projection.bias.add_(1)
    assert frozen_digest(other) == before
    with torch.no_grad():
        next(other.image_encoder.parameters()).flatten()[0] += 1e-3
    assert frozen_digest(other) != before
