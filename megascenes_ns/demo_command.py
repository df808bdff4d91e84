"""``ns-megascenes demo-pairs``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass
class DemoPairs:
    """Make pairs to try the method on: photos of a generated monument with their exact depth."""

    output_dir: tyro.conf.Positional[Path]
    """Folder to make."""
    views: int = 36
    """Photos on a circle; every sixth is held out."""
    reach: int = 2
    """How many photos the two of a pair may be apart."""
    width: int = 192
    """Of the photos, pixels."""
    height: int = 144
    """Of the photos, pixels."""
    seed: int = 0
    """Of scene and cameras."""

    def main(self) -> int:
        """Render, write, say how to train."""
        from megascenes_ns.demo_pairs import make_demo_pairs

        tables = make_demo_pairs(
            self.output_dir, views=self.views, reach=self.reach, width=self.width, height=self.height, seed=self.seed
        )
        print(", ".join(f"{len(table)} pairs to {name}" for name, table in tables.items()))
        print(f"Train: ns-train megascenes-tiny --data {self.output_dir}")
        return 0
