"""``ns-r4dv charge import``: models of the original's authors as runs (spec r4dv 5.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dataparsers.easymocap_options import SequenceOptions


@dataclass
class Import:
    """Turn a model of the original (charged .npz, or .pt of a training) into a run: view it, bake it, train on."""

    file: tyro.conf.Positional[Path]
    """latest.npz or latest.pt."""
    sequence: tyro.conf.Positional[Path]
    """The recording it was trained on: colours come from its photos."""
    output_dir: Path = Path("outputs")
    """Where runs go, as in ns-train."""
    alignment: Literal["auto", "none", "aligned"] = "auto"
    """Axes of the model's points: the calibration's (none), or turned by the original's use_aligned_cameras (aligned);
    auto: what puts the points onto the subject."""
    radius_min: float = 0.001
    """Smallest radius of a point in the original's configuration, world units."""
    radius_max: float = 0.015
    """Largest radius; 0.25 in its "views" configuration."""
    radius_shift: float = -5.0
    """Its radius_shift."""
    alpha_shift: float = 5.0
    """Its alpha_shift."""
    sh_limit: float = 0.25
    """Its resd_limit: largest view-dependent change of a colour; 1 in older files."""
    data: Annotated[SequenceOptions, tyro.conf.arg(name="")] = field(default_factory=SequenceOptions)
    """What of the recording to use: the frames and views that the model was trained on, at its size."""

    def main(self) -> int:
        """Import; says what was found and what to type next."""
        from r4dv_ns.checkpoint_import import Constants, import_released

        constants = Constants(self.radius_min, self.radius_max, self.radius_shift, self.alpha_shift, self.sh_limit)
        import_released(
            self.file, self.sequence, self.output_dir, options=self.data, alignment=self.alignment, constants=constants
        )
        return 0
