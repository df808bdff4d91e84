"""``ns-r4dv bg-init``: points that the background of a recording starts from (spec r4dv 3.4)."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Optional

import tyro

from core_ns.errors import DataError
from dataparsers.easymocap_options import SequenceOptions
from r4dv_ns.background_points import BackgroundOptions


@dataclass
class BackgroundInit:
    """Find points of what is behind the subject: from a radiance field, a point cloud, or the photos themselves.

    ns-train r4dv-bg does the last by itself where nothing is there.
    """

    sequence: tyro.conf.Positional[Path]
    """Folder with images/, masks/, intri.yml, extri.yml, and, best, clean plates in bkgd/."""
    load_config: Optional[Path] = None
    """config.yml of a nerfacto run on the clean plates: its depths are taken."""
    ratio: float = 0.15
    """--load-config: size of the depth maps over that of the photos."""
    view_step: int = 3
    """--load-config: of the cameras every so many-th is taken."""
    consistency: bool = False
    """--load-config: only depths that neighbouring cameras confirm."""
    cloud: Optional[Path] = None
    """A PLY of points in the world of the cameras: structure from motion, a scan."""
    output_dir: Optional[Path] = None
    """Receives bkgd/boost/000000.ply. By default the sequence itself, where ns-train looks."""
    data: SequenceOptions = field(default_factory=SequenceOptions)
    """What of the sequence to use."""
    background: Annotated[BackgroundOptions, tyro.conf.arg(name="")] = field(default_factory=BackgroundOptions)
    """How points are found in the photos."""

    def main(self) -> int:
        """Find, write, say what to type next."""
        from dataparsers.easymocap_parser import scene_bounds
        from dataparsers.easymocap_plates import find_plates
        from dataparsers.easymocap_sequence import open_sequence
        from dataparsers.point_ply import read_ply
        from r4dv_ns.background_photos import swept_points
        from r4dv_ns.background_points import fitting, frusta_points, write_background

        self._check()
        sequence = open_sequence(self.sequence, self.data)
        sequence.bounds, source = scene_bounds(sequence)
        if self.cloud is not None:
            # A box that only follows from the cameras is far too large to take points away by.
            box = None if source == "cameras" else sequence.bounds
            how, found = "cloud", fitting(read_ply(self.cloud), self.background, self.cloud, box)
        elif self.load_config is not None:
            from r4dv_ns.background_nerf import depth_points, field_views

            views = field_views(self.load_config, self.ratio, self.view_step)
            depths = depth_points(views, self.consistency)
            how, found = "depths", fitting(depths, self.background, self.load_config)
        elif self.background.start == "frusta":
            how, found = "frusta", frusta_points(sequence, self.background)
        else:
            how, found = "photos", swept_points(sequence, self.background, find_plates(sequence))
        file = write_background(self.output_dir or self.sequence, found, how)
        print(f"{len(found.xyz)} points: {file}\nTrain: ns-train r4dv-bg --data {shlex.quote(str(self.sequence))}")
        return 0

    def _check(self) -> None:
        """Refuse what means nothing.

        Raises:
            DataError: naming the option.
        """
        self.background.check()
        if self.cloud is not None and self.load_config is not None:
            raise DataError("options", "--cloud, --load-config", "are two sources.", "Give one of them.")
        if not 0 < self.ratio <= 1:
            raise DataError("options", "--ratio", f"is {self.ratio}.", "Give a number above 0, at most 1.")
        if self.view_step < 1:
            raise DataError("options", "--view-step", f"is {self.view_step}.", "Give 1 or more.")
