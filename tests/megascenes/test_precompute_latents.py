"""Latents made ahead are those that training looks up."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from depth_scenes import make_scene

from core_ns.errors import DataError
from megascenes_ns.precompute import precompute
from megascenes_ns.precompute_steps import PairPhotos, pair_of

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with tiny random networks."""
    from megascenes_ns.networks import Networks
    from megascenes_ns.sizes import Sizes
    from megascenes_ns.weights_folder import WeightsInfo, save

    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save(Networks.fresh(Sizes.tiny(), seed=0), folder, WeightsInfo())
    return folder


def test_every_photo_is_encoded_once_as_training_would(weights, tmp_path):
    from megascenes_ns.latent_cache import LatentCache, encode_photos, frozen_digest
    from megascenes_ns.precompute_latents import LatentStep
    from megascenes_ns.prepare import resize_pad
    from megascenes_ns.weights_folder import load

    scene = make_scene(tmp_path / "wall", photos=3, targets=2)
    photos = PairPhotos(scene.table, scene.images, canvas=64)
    step = pickle.loads(pickle.dumps(LatentStep(photos, weights)))
    summary = precompute([step], tmp_path / "cache")
    assert (summary.counts["latents"].made, summary.failures) == (3, [])
    nets = load(weights)
    cache = LatentCache(frozen_digest(nets), 64, tmp_path / "cache")
    alone = LatentCache(frozen_digest(nets), 64)
    for row in range(len(scene.table)):
        pair = pair_of(scene.table, row)
        found = cache.get(cache.key(pair.tgt_path))
        assert found is not None
        square = resize_pad(photos.photo(pair.tgt_path, pair.tgt_K, pair.tgt_size)[0], 64)
        (made,) = encode_photos(nets, alone, [("k", square)]).values()
        for name in ("mean", "std", "embedding"):
            np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    again = precompute([LatentStep(photos, weights)], tmp_path / "cache")
    assert (again.counts["latents"].made, again.counts["latents"].there) == (0, 3)


def test_no_weights_no_files(tmp_path):
    from megascenes_ns.precompute_latents import LatentStep

    scene = make_scene(tmp_path / "wall", photos=2, targets=1)
    with pytest.raises(DataError):
        precompute([LatentStep(PairPhotos(scene.table, scene.images), tmp_path / "none")], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
