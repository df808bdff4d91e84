"""``ns-r4dv path``: camera paths for ``ns-render camera-path``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Optional

import tyro

from core_ns.errors import DataError
from dataparsers.easymocap_options import SequenceOptions
from r4dv_ns.path_options import PathOptions


@dataclass
class CameraPathCommand:
    """Lay a camera path about a recording: for ns-render camera-path, and as intri.yml and extri.yml."""

    out: Path
    """Camera path to write, a .json file. The viewer's render tab finds it as RECORDING/camera_paths/NAME.json, that of
    a charged folder as CHARGED/camera_paths/NAME.json."""
    load_config: Optional[Path] = None
    """config.yml of a trained run or of a charged folder; its training cameras are gone by."""
    data: Optional[Path] = None
    """Or a recording, which need not be trained yet."""
    yml: bool = True
    """Write the path's cameras with their times as intri.yml and extri.yml too, into NAME_cameras/."""
    path: Annotated[PathOptions, tyro.conf.arg(name="")] = field(default_factory=PathOptions)
    """Which path."""
    recording: Annotated[SequenceOptions, tyro.conf.arg(name="")] = field(default_factory=SequenceOptions)
    """What of --data to use."""

    def main(self) -> int:
        """Lay, write, print what to type next.

        Raises:
            DataError: see `make_path`; nothing is written.
        """
        from r4dv_ns.path_file import write_path, write_path_yml
        from r4dv_ns.path_make import make_path
        from r4dv_ns.path_rig import open_rig

        folder = self.out.with_name(f"{self.out.stem}_cameras")
        if self.out.suffix.lower() != ".json":
            raise DataError(self.out, "--out", "is no .json file.", "Name it like path.json.")
        if self.out.is_dir() or (self.yml and folder.exists() and not folder.is_dir()):
            raise DataError(self.out, "--out", "or the folder beside it is in the way.", "Choose another name.")
        rig = open_rig(self.load_config, self.data, self.recording)
        path = make_path(rig, self.path)
        write_path(self.out, path, rig.transform)
        if self.yml:
            write_path_yml(folder, path)
        low, high = path.fov.min(), path.fov.max()
        view = f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
        print(
            f"{len(path)} pictures of {path.width}x{path.height}, {len(path) / path.fps:.4g} s at {path.fps:g} a "
            f"second, field of view {view} degrees, times {path.times[0]:g} to {path.times[-1]:g}"
        )
        print(f"Written: {self.out}" + (f", {folder}/intri.yml, {folder}/extri.yml" if self.yml else ""))
        config = "RUN/config.yml" if self.load_config is None else str(self.load_config)
        files = {"load-config": config, "camera-path-filename": self.out, "output-path": self.out.with_suffix(".mp4")}
        print("Render: ns-render camera-path", *(f"--{key} {shlex.quote(str(file))}" for key, file in files.items()))
        return 0
