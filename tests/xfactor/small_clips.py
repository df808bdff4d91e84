"""Weights of small networks and generated clips, as files, for the tests of the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from small_networks import random_network

from core_ns.errors import DataError
from dataparsers.demo_clips import make_demo_clips
from xfactor_ns.open_net import NetOptions
from xfactor_ns.size import Size

SIDE = 32
SIZE = Size(width=16, heads=2, blocks=2, patch=8, pose=6, registers=2)


def write_weights(file: Path, seed: int = 0, size: Size = SIZE) -> Path:
    """A file of random weights."""
    save_file(random_network(size, seed).state_dict(), file)
    return file


def write_clips(folder: Path, frames: int = 12, clips: int = 4) -> Path:
    """Pairs of clips with the same camera path through two rooms, and their poses."""
    make_demo_clips(folder, kind="room", clips=clips, frames=frames, size=SIDE)
    return folder


def options(weights: Path, **others: Any) -> NetOptions:
    """The networks of a file."""
    return NetOptions(weights=weights, image_size=SIDE, **others)


def refusal(command: Any) -> DataError:
    """The error that a command ends with."""
    try:
        command.main()
    except DataError as error:
        return error
    raise AssertionError("the command did not refuse")
