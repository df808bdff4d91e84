"""``ns-xfactor import`` and ``export``: weights of the original, ours, and back (spec xfactor 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import tyro

from core_ns.errors import DataError


@dataclass
class Import:
    """Turn weights of the original (ckpt-N.flax) or of a run into a safetensors file with a JSON beside it."""

    source: tyro.conf.Positional[Path]
    """ckpt-N.flax; the folder checkpoints-0 or the one around it; or a .ckpt of a run of this package."""
    out: Path
    """NAME.safetensors to write."""
    number: Optional[int] = None
    """Which ckpt-N.flax of a folder; default: the newest."""

    def main(self) -> int:
        """Read, check every weight, write; say what was found."""
        from xfactor_ns.checkpoint_import import import_checkpoint, load_weights

        out = import_checkpoint(self.source, self.out, self.number)
        size, state = load_weights(out)
        print(
            f"{out}: {sum(value.numel() for value in state.values()):,} parameters in {len(state)} weights; "
            f"width {size.width}, {size.heads} heads, {size.blocks} + {size.blocks} blocks, patch {size.patch}, "
            f"pose {size.pose}, {size.registers} registers"
        )
        return 0


@dataclass
class Export:
    """Write weights for the original's code (.flax), or a run's as safetensors."""

    source: tyro.conf.Positional[Path]
    """NAME.safetensors, a .ckpt of a run, or anything that import reads."""
    out: Path
    """NAME.flax (params only) or NAME.safetensors."""

    def main(self) -> int:
        """Read, check every weight, write."""
        from xfactor_ns.checkpoint_import import export_checkpoint, import_checkpoint

        if self.out.suffix not in (".flax", ".safetensors"):
            raise DataError(self.out, "out", "names no kind of file that can be written.", "Use .flax or .safetensors.")
        written = (export_checkpoint if self.out.suffix == ".flax" else import_checkpoint)(self.source, self.out)
        print(f"{written}: {written.stat().st_size / 1e6:.2f} MB")
        return 0
