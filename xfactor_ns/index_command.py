"""``ns-xfactor index`` and ``ns-xfactor demo-clips``: what there is to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

import tyro


@dataclass
class Index:
    """Look at every clip of a folder once, and write down what there is: large collections then open at once.

    The index holds while no folder and no video in it changes."""

    data: tyro.conf.Positional[Path]
    """Folder of the clips."""
    dataset: Literal["auto", "folder", "re10k", "dl3dv", "mvimgnet", "co3dv2"] = "auto"
    """How it is laid out."""
    output: Optional[Path] = None
    """File to write; default: clips_index.json in the folder. Another one is named by --index when training."""
    splits: Optional[Path] = None
    """Split file to check, as when training."""

    def main(self) -> int:
        """Look, check the splits, write, say what there is."""
        from core_ns.errors import DataError
        from dataparsers.clips import catalogue
        from dataparsers.clips_index import take_inventory, write_index

        if not self.data.is_dir():
            raise DataError(self.data, "path", "is not a folder.", "Name the folder of the clips.")
        inventory = take_inventory(self.data, self.dataset, every_size=True)
        file = write_index(inventory, self.output)
        for line in catalogue(self.data, self.dataset, splits=self.splits, index=file).describe():
            print(line)
        print(f"Index: {file}")
        return 0


@dataclass
class DemoClips:
    """Make clips to try the method on, two of every camera path: what a transferred path must look like is known."""

    output_dir: tyro.conf.Positional[Path]
    """Folder to make."""
    kind: Literal["planes", "room"] = "room"
    """planes: shifted cut-outs of smooth pictures; room: a walk through furnished rooms, with the true cameras."""
    clips: int = 24
    """Even number; the last two are held out."""
    frames: int = 40
    """Of each clip."""
    size: int = 64
    """Side of the square frames, pixels."""
    seed: int = 0
    """Of worlds and paths."""
    video: bool = False
    """Write .mp4 files, without cameras, instead of folders of pictures."""

    def main(self) -> int:
        """Render, write, say how to train."""
        from dataparsers.demo_clips import make_demo_clips

        pairs = make_demo_clips(
            self.output_dir, kind=self.kind, clips=self.clips, frames=self.frames, size=self.size, seed=self.seed,
            video=self.video,
        )  # fmt: skip
        print(f"{2 * len(pairs)} clips of {self.frames} frames; {pairs[-1][0]} and {pairs[-1][1]} are held out")
        print(f"Train: ns-train xfactor-tiny --data {self.output_dir}")
        return 0
