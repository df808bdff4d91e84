"""What a console command draws with: a run, or a folder of weights and a photo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional

from core_ns.errors import DataError

PIPELINE = "megascenes_ns.pipeline.MegaScenesPipelineConfig"


class OpenView(NamedTuple):
    """Networks, what draws with them, and a reference."""

    nets: Any
    """`networks.Networks`."""
    viewing: Any
    """`viewing.Viewing`."""
    reference: Any
    """`reference.Reference`."""


@dataclass
class ViewSource:
    """A run of megascenes, or imported weights and a photo."""

    load_config: Optional[Path] = None
    """config.yml of a run."""
    weights: Optional[Path] = None
    """Or a folder of weights (ns-megascenes import), with --photo."""
    photo: Optional[Path] = None
    """Photo to make views of; default: the run's reference."""
    pair: Optional[int] = None
    """Or the number of a pair of the run."""
    depth: str = ""
    """Depth of --photo: a .npy file, a COLMAP depth map (.bin), a folder of a transformers depth model, or plane.
    Default: PHOTO.npy beside the photo."""
    fov: str = "auto"
    """Lens of --photo: auto (EXIF, else 55 degrees), 60 or 60h (horizontal), 75d (diagonal), legacy80."""
    picture: int = 256
    """Side of the networks' square, of --weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks of --weights run; a run's are on the GPU if there is one."""
    cache: Optional[Path] = None
    """Keep finished pictures in this folder, and take from it what is there; default: that of the run."""

    def check(self) -> None:
        """Refuse options that do not go together.

        Raises:
            DataError: naming them.
        """
        if (self.load_config is None) == (self.weights is None):
            raise DataError("options", "--load-config, --weights", "name one source of networks.", "Give one of them.")
        if self.weights is not None and self.photo is None:
            raise DataError("options", "--photo", "is missing.", "Name the photo to make views of.")
        if self.photo is not None and self.pair is not None:
            raise DataError("options", "--photo, --pair", "name two references.", "Give one of them.")
        if self.pair is not None and self.load_config is None:
            raise DataError("options", "--pair", "needs a run.", "Give --load-config.")
        if self.photo is not None and not self.photo.is_file():
            raise DataError(self.photo, "", "is not a file.", "Correct --photo.")

    def open(self) -> OpenView:
        """Load the networks and open the reference.

        Raises:
            DataError: no such run, weights, photo or depth.
        """
        self.check()
        from megascenes_ns.photo import parse_fov

        parse_fov(self.fov)
        nets, viewing = self._run() if self.load_config is not None else self._weights()
        if self.cache is not None:
            viewing.cache.folder = viewing.options.cache_folder = self.cache
        if self.photo is not None:
            from megascenes_ns.reference import reference_of_photo

            reference = reference_of_photo(self.photo, self.depth, self.fov, viewing.picture)
        else:
            reference = viewing.shelf.at(viewing.shelf.first if self.pair is None else self.pair)
        return OpenView(nets, viewing, reference)

    def _run(self) -> tuple[Any, Any]:
        from core_ns.runs import load_run

        assert self.load_config is not None
        _, model = load_run(self.load_config, PIPELINE)
        model.eval()
        return model.sampling_networks(), model.viewing

    def _weights(self) -> tuple[Any, Any]:
        import torch

        from megascenes_ns.model_config import SamplingOptions
        from megascenes_ns.view_options import ViewOptions
        from megascenes_ns.viewing import Viewing
        from megascenes_ns.weights_folder import load, read_info

        assert self.weights is not None
        sizes, info = read_info(self.weights)
        if self.picture < 2 * sizes.shrink or self.picture % sizes.shrink:
            remedy = f"Give a multiple of {sizes.shrink}."
            raise DataError("options", "--picture", f"is {self.picture}.", remedy)
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        nets = load(self.weights).to(device).eval()
        return nets, Viewing(ViewOptions(), SamplingOptions(), info.uncond, self.picture, info.pose_squash)
