"""Masks by RobustVideoMatting, for recordings without plates: an opt-in, nothing is fetched unasked (spec r4dv 8.7).

The network (Lin et al., WACV 2022; GPL-3.0, not part of this package) carries a state r1 to r4 from frame to frame:
``model(rgb, r1, r2, r3, r4, downsample_ratio) -> (foreground, alpha, r1, r2, r3, r4)``, rgb [1, 3, H, W] in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from core_ns.errors import DataError
from r4dv_ns.clip_extract import Convert

Array = np.ndarray

REPOSITORY = "PeterL1n/RobustVideoMatting"
_WORKING_SIDE = 512
_CLONE = f"Clone github.com/{REPOSITORY} and name the folder with --rvm-repository"


@dataclass
class VideoMatting:
    """See the module docstring. The network's own code runs, and asks torch.hub for its weights."""

    repository: Path | None = None
    """A clone of the network's repository; None with ``download``."""
    download: bool = False
    """Let torch.hub fetch the repository."""
    in_order: bool = True
    by_brightness: bool = False
    _model: Any = None

    @property
    def settings(self) -> dict[str, Any]:
        """For the record."""
        return {"method": "rvm"}

    def check(self, name: str, size: tuple[int, int]) -> list[Path]:
        """Load the network, once.

        Raises:
            DataError: there is none, or it cannot be fetched.
        """
        if self._model is None:
            self._model = self._load()
        return []

    def _load(self) -> Any:
        if self.repository is None and not self.download:
            remedy = f"{_CLONE}, or let torch.hub fetch and run it (GPL-3.0) with --download."
            raise DataError("options", "--method rvm", "needs a network that is not part of this package.", remedy)
        if self.repository is not None and not (self.repository / "hubconf.py").is_file():
            raise DataError(self.repository, "--rvm-repository", "holds no hubconf.py.", f"{_CLONE}.")
        place, kind = (REPOSITORY, "github") if self.repository is None else (str(self.repository), "local")
        load: Any = torch.hub.load
        try:
            loaded = load(place, "mobilenetv3", source=kind, trust_repo=True)
        except Exception as error:  # no connection, no weights, or anything in code that is not ours
            problem = f"cannot be had ({type(error).__name__}: {error})."
            raise DataError(
                place, "RobustVideoMatting", problem, f"{_CLONE}, its weights in torch.hub's cache."
            ) from error
        return loaded.eval()

    def start(self, name: str) -> Convert:
        """A camera's photos, frame by frame, to soft masks."""
        state: list[Any] = [None] * 4

        @torch.inference_mode()
        def convert(picture: UInt8[Array, "h w 3"]) -> UInt8[Array, "h w"]:
            photo = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255.0
            ratio = min(1.0, _WORKING_SIDE / max(picture.shape[:2]))
            _, alpha, *state[:] = self._model(photo, *state, ratio)
            return alpha[0, 0].mul(255.0).round().clamp(0, 255).to(torch.uint8).numpy()

        return convert
