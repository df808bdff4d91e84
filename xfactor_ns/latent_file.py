"""A clip's pose latents as a file: a camera motion without its pictures."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from core_ns.atomic import atomic_path
from core_ns.errors import DataError

FORMAT = "xfactor-latents-1"
_AGAIN = "Write it again: ns-xfactor transfer --save-latents."
MAX_FRAMES = 1_000_000


class LatentFile(NamedTuple):
    """Latents of a clip's frames relative to one of them.

    Attributes:
        latents: float32 ``[F Dp]``.
        reference: index of the frame whose latent is zero.
        fps: frames per second; 0 where the clip had no rate.
        encoder: fingerprint of the pose encoder that they mean something to (`probe_fit.encoder_fingerprint`).
        clip: what they were read from, for people.
    """

    latents: Float[np.ndarray, "F Dp"]
    reference: int
    fps: float
    encoder: str
    clip: str


def write_latents(file: Path, content: LatentFile) -> None:
    """Write an .npz file, atomically; plain arrays only."""
    with atomic_path(file) as temporary, temporary.open("wb") as handle:
        np.savez(
            handle,
            format=np.array(FORMAT),
            latents=content.latents.astype(np.float32),
            reference=np.array(content.reference),
            fps=np.array(float(content.fps)),
            encoder=np.array(content.encoder),
            clip=np.array(content.clip),
        )


def read_latents(file: Path, encoder: str, pose: int) -> LatentFile:
    """Read what `write_latents` wrote.

    Args:
        encoder: fingerprint of the encoder at hand.
        pose: numbers in one of its latents.

    Raises:
        DataError: unreadable, or another encoder's: latents of one mean nothing to another.
    """
    if not file.is_file():
        raise DataError(file, "path", "is not a file.", "Name one that ns-xfactor transfer --save-latents wrote.")
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
            found = {name: content[name] for name in ("format", "latents", "reference", "fps", "encoder", "clip")}
        if str(found["format"]) != FORMAT:
            raise ValueError("another format")
        latents = found["latents"]
        read = LatentFile(
            latents, int(found["reference"]), float(found["fps"]), str(found["encoder"]), str(found["clip"])
        )
        if latents.dtype != np.float32 or latents.ndim != 2 or not 0 < len(latents) <= MAX_FRAMES:
            raise ValueError(f"latents are {latents.dtype} {latents.shape}")
        if not np.isfinite(latents).all() or not 0 <= read.reference < len(latents):
            raise ValueError("values out of range")
        if not 0 <= read.fps <= 1e6:
            raise ValueError(f"{read.fps} frames per second")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(file, "content", f"is no file of latents ({type(error).__name__}: {error}).", _AGAIN) from error
    if latents.shape[1] != pose:
        raise DataError(file, "latents", f"have {latents.shape[1]} numbers, the network's {pose}.", _AGAIN)
    if read.encoder != encoder:
        raise DataError(file, "encoder", "is not the one of these weights, to which the latents mean nothing.", _AGAIN)
    return read
