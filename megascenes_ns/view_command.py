"""``ns-megascenes view``: from a photo to a run that every ns-* command opens (spec megascenes 13, demo mode)."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import tyro

from core_ns.errors import DataError


@dataclass
class ViewCommand:
    """Make a run of one photo, without training, and open it in the viewer."""

    photo: tyro.conf.Positional[Path]
    """The photo that views are made of."""
    weights: Optional[Path] = None
    """Folder of weights (ns-megascenes import)."""
    tiny: bool = False
    """Instead of weights: the untrained tiny networks, which show the warp and noise; to try the commands."""
    depth: str = ""
    """Depth of the photo: a .npy file, a COLMAP depth map (.bin), a folder of a transformers depth model, or plane.
    Default: PHOTO.npy beside the photo."""
    fov: str = "auto"
    """Its lens: auto (EXIF, else 55 degrees), 60 or 60h (horizontal), 75d (diagonal), legacy80."""
    output_dir: Path = Path("outputs")
    """As in ns-train."""
    open: bool = True
    """Start the viewer on it; else only write the run and print the commands."""
    port: Optional[int] = None
    """Of the viewer."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run when the run is made."""

    def main(self) -> int:
        """Write the run, print what to type next, open the viewer.

        Raises:
            DataError: no photo, depth or weights; nothing is written.
        """
        self._check()
        file = self._make()
        for line in view_commands(file, self.photo):
            print(line, flush=True)
        if self.open:
            from nerfstudio.scripts.viewer.run_viewer import RunViewer, ViewerConfigWithoutNumRays

            viewer = ViewerConfigWithoutNumRays(websocket_host="127.0.0.1", websocket_port=self.port)
            RunViewer(load_config=file, viewer=viewer).main()
        return 0

    def _check(self) -> None:
        if not self.photo.is_file():
            raise DataError(self.photo, "", "is not a file.", "Name a photo.")
        if (self.weights is None) == (not self.tiny):
            problem = "name no networks." if self.weights is None else "name two kinds of networks."
            raise DataError("options", "--weights, --tiny", problem, "Give a folder of weights, or --tiny.")

    def _make(self) -> Path:
        """The run's config.yml."""
        import copy

        from nerfstudio.scripts.train import main as train

        from megascenes_ns import config as methods

        if self.tiny:
            method: Any = methods.megascenes_tiny
        else:
            from megascenes_ns.weights_folder import read_info

            assert self.weights is not None
            sizes, _ = read_info(self.weights)
            method = methods.megascenes_nvs if sizes.warp_channels else methods.megascenes_zeronvs
        config: Any = copy.deepcopy(method.config)
        config.data, config.output_dir, config.max_num_iterations = self.photo, self.output_dir, 0
        config.vis = "tensorboard"
        if self.device != "auto":
            config.machine.device_type = self.device
        model = config.pipeline.model
        model.weights = None if self.weights is None else self.weights.expanduser().resolve()
        if model.weights is not None:
            model.precision = "fp32" if config.machine.device_type == "cpu" else model.precision
        model.view.depth, model.view.fov = _absolute(self.depth), self.fov
        config.experiment_name = self.photo.stem
        train(config)
        return config.get_base_dir() / "config.yml"


def _absolute(depth: str) -> str:
    """A path among the depth options, so that the run can be opened from anywhere."""
    path = Path(depth).expanduser()
    return str(path.resolve()) if depth and path.exists() else depth


def view_commands(config: Path, photo: Path) -> list[str]:
    """The commands that draw views of a photo's run, one line each, ready to paste."""
    quoted, folder = shlex.quote(str(config)), config.parent

    def inside(name: str) -> str:
        return shlex.quote(str(folder / name))

    return [
        f"View:   ns-viewer --load-config {quoted}",
        f"Path:   ns-megascenes path orbit --photo {shlex.quote(str(photo))} --out {inside('orbit.json')}",
        f"Render: ns-megascenes render --load-config {quoted} --out {inside('orbit')}",
    ]
