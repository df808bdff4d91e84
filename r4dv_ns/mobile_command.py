"""``ns-r4dv charge mobile``: a charge without photos, and splat files for other programs (spec r4dv 5.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

import tyro


@dataclass
class Mobile:
    """Fit harmonics to all that a charge's photos show: a sixth of the size, and a PLY of Gaussian splats per frame."""

    folder: tyro.conf.Positional[Path]
    """A charged folder (ns-r4dv charge bake)."""
    out: Optional[Path] = None
    """Folder to make; by default the charged folder's name with _mb."""
    degree: int = 2
    """Of the harmonics, 0 to 2. With fewer than 20 cameras 1 looks better between them, and takes half the room."""
    ply: bool = True
    """Write splats/FRAME.ply, which splat viewers open; more than twice as large."""
    ridge: float = 0.05
    """How strongly what was not seen is taken to look like the mean of what was."""
    viewpoints: int = 64
    """Places that colours are looked at from, at most: training cameras, and places between neighbours."""
    frame_sample: Optional[Tuple[Optional[int], ...]] = None
    """Only these frames: begin, end (exclusive, None for all) and step, or a list."""
    pack: bool = False
    """One compressed file a frame, for shipping: smaller, but slower to open."""

    def main(self) -> int:
        """Export, print size and what to type next."""
        from r4dv_ns.charge_command import commands
        from r4dv_ns.charge_manifest import read_manifest
        from r4dv_ns.mobile import export_mobile

        folder = self.folder.expanduser().resolve()
        out = self.out or folder.with_name(f"{folder.name}_mb")
        export_mobile(
            folder, out, degree=self.degree, ply=self.ply, ridge=self.ridge, count=self.viewpoints,
            frame_sample=self.frame_sample, pack=self.pack, progress=True,
        )  # fmt: skip
        manifest = read_manifest(out)
        sizes = [manifest.bytes(frame) / 1e6 for frame in range(len(manifest.frames))]
        print(f"{out}: {len(sizes)} frames, {sum(sizes):.1f} MB ({sum(sizes) / len(sizes):.2f} MB a frame).")
        if self.ply:
            each = (out / "splats" / f"{manifest.frames[0]}.ply").stat().st_size / 1e6
            print(f"{out / 'splats'}: a PLY of Gaussian splats per frame, {each:.2f} MB each.")
        print("\n".join(commands(out)))
        return 0
