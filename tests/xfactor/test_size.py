"""Sizes: checked when made, and read off weights."""

from __future__ import annotations

import dataclasses

import pytest
from small_networks import SMALL, random_network

from core_ns.errors import DataError
from xfactor_ns.size import Size


def test_the_defaults_are_the_released_weights():
    size = Size()
    assert (size.head, size.pixels) == (64, 768)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"width": 0}, "width"), ({"blocks": True}, "blocks"), ({"pose": 2.0}, "pose"),
        ({"registers": -1}, "registers"),
        ({"width": 60, "heads": 8}, "width, heads"), ({"width": 24, "heads": 4}, "width, heads"),
    ],
)  # fmt: skip
def test_impossible_sizes_are_refused(change, place):
    with pytest.raises(DataError) as caught:
        Size(**change)
    assert caught.value.place == place


def test_the_size_of_weights_is_found():
    other = Size(width=24, heads=3, blocks=1, patch=2, pose=5, registers=7, layer_scale=0.1)
    for size in (SMALL, other):
        found = Size.of(random_network(size).state_dict())
        assert found == dataclasses.replace(size, layer_scale=0.01)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("pose_encoder.registers", "is missing"),
        ("pose_encoder.blocks.0.q_norm.weight", "is missing"),
        ("pose_encoder.head.fc2.weight", "has the shape"),
        ("renderer.blocks.1", "2 and 1 blocks"),
        ("pose_encoder.patch_embed.weight", "not a square patch"),
    ],
)
def test_weights_that_tell_no_size_are_refused(name, problem):
    state = dict(random_network().state_dict())
    if problem == "is missing":
        del state[name]
    elif name == "renderer.blocks.1":
        state = {key: value for key, value in state.items() if not key.startswith(name)}
    elif "square" in problem:
        state[name] = state[name][:, :-1]
    else:
        state[name] = state[name][0]
    with pytest.raises(DataError, match=problem):
        Size.of(state)
