"""``ns-megascenes precompute``: depth, warps and latents of listed pairs, made once (spec megascenes 12)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, List, Literal, Optional

import tyro

from core_ns.errors import DataError

if TYPE_CHECKING:
    from dataparsers.megascenes_table import PairTable
    from megascenes_ns.precompute_steps import Step


@dataclass
class Precompute:
    """Make the depth, the warps and the latents of converted pairs; the same command goes on after an interruption."""

    data: tyro.conf.Positional[Path]
    """Folder that convert-splits wrote, or one of its splits."""
    images: Optional[Path] = None
    """Folder of the photos: that which holds AAA/BBB/commons or CATEGORY/commons, or the one above. Default: images in
    the data folder."""
    depth: str = ""
    """What depth is from: a folder of .npy files (CATEGORY/commons/PART/aligned_depth_maps/NAME.npy, or laid out like
    the photos), a folder with a transformers depth model, a COLMAP dense workspace, or plane (plane:2.5). Default:
    depth in the data folder."""
    what: str = "depth,warp"
    """Of depth, warp and latents, with commas."""
    cache: Optional[Path] = None
    """Where to; default: cache in the data folder."""
    model: Optional[Path] = None
    """COLMAP model (or the bucket's reconstruct folder) whose points the depth model's disparity is aligned to."""
    disparity: bool = False
    """The .npy files hold disparity: large is near."""
    categories: Optional[Path] = None
    """metadata/categories.json of the bucket, for photos under their scene's number."""
    weights: Optional[Path] = None
    """For latents: folder of converted weights (ns-megascenes import)."""
    splits: Optional[List[str]] = None
    """Which of the splits; default: all."""
    processes: int = 1
    """Processes to share the work out to."""
    shard: str = "0/1"
    """Part of the work, for several machines with one cache: 0/4, 1/4, 2/4 or 3/4."""
    dry_run: bool = False
    """Only say how much there is to do: a few pairs are made into a temporary folder and measured."""
    strict: bool = False
    """Stop at the first photo or pair that cannot be made. Else they are listed in failed_pairs.txt in the cache."""
    canvas: int = 256
    """Longest side of the networks' pictures."""
    samples_per_pixel: int = 4
    """Of warps; 4 as the original's renderer."""
    backend: Literal["auto", "cast", "torch"] = "auto"
    """What draws the warps."""
    device: str = "cpu"
    """Where networks and the torch backend run: cpu, cuda."""
    download: bool = False
    """Let --depth be the name of a model of the Hugging Face hub, and fetch it."""

    def main(self) -> int:
        """Make them; 1 if some could not be made."""
        from dataparsers.megascenes_table import PairTable, list_splits
        from megascenes_ns.precompute import FAILED, estimate, precompute

        self._check()
        shard, failed = parse_shard(self.shard), 0
        splits = list_splits(self.data)
        root = self.data if splits else self.data.parent
        splits = splits or {self.data.name: self.data}
        chosen = self.splits or list(splits)
        unknown = sorted(set(chosen) - set(splits))
        if unknown:
            raise DataError(self.data, "--splits", f"has no {', '.join(unknown)}.", f"There are {', '.join(splits)}.")
        cache = self.cache or root / "cache"
        tables = {name: PairTable.open(splits[name]) for name in dict.fromkeys(chosen)}
        steps = self._steps(root)
        for name, table in tables.items():
            if self.dry_run:
                lines = estimate(steps(table), cache, shard=shard).lines(self.processes)
            else:
                done = precompute(
                    steps(table), cache, processes=self.processes, shard=shard, strict=self.strict,
                    progress=sys.stderr.isatty(),
                )  # fmt: skip
                lines, failed = done.lines(), failed + len(done.failures)
                if done.failures:
                    lines.append(f"see {cache / FAILED}")
            print("\n".join(f"{name}: {line}" for line in lines), flush=True)
        return 1 if failed else 0

    def _steps(self, root: Path) -> Callable[[PairTable], list[Step]]:
        """What to make of a split, in order."""
        from dataparsers.megascenes_paths import read_categories
        from megascenes_ns.depth_sources import FileDepth, open_source
        from megascenes_ns.precompute_steps import DepthStep, PairPhotos, WarpStep

        images, wanted = self.images or root / "images", self._wanted()
        usual = (folder / "categories.json" for folder in (root, images))
        categories = self.categories or next((file for file in usual if file.is_file()), None)
        if not images.is_dir():
            raise DataError(images, "--images", "is no folder.", "Name the folder of the photos.")
        source = None
        if "depth" in wanted or "warp" in wanted:
            depth_folder = root / "depth"
            if not self.depth and not depth_folder.is_dir():
                remedy = "Name a folder of .npy files, of a depth model, a COLMAP workspace, or plane."
                raise DataError("options", "--depth", f"is not given, and {depth_folder} is no folder.", remedy)
            source = open_source(
                self.depth or str(depth_folder), model=self.model, disparity=self.disparity, device=self.device,
                download=self.download,
                categories=None if categories is None else read_categories(categories),
            )  # fmt: skip
            if isinstance(source, FileDepth) and source.path.is_file():
                remedy = "Name a folder of .npy files."
                raise DataError(source.path, "--depth", "is the depth of one photo, and pairs have many.", remedy)
        weights = self.weights

        def steps(table: PairTable) -> list[Step]:
            photos = PairPhotos(table, images, categories, self.canvas)
            found: list[Step] = []
            if source is not None:
                depth = DepthStep(photos, source)
                found += [depth] if "depth" in wanted else []
                found += (
                    [WarpStep(depth, self.samples_per_pixel, self.backend, self.device)] if "warp" in wanted else []
                )
            if weights is not None and "latents" in wanted:
                from megascenes_ns.precompute_latents import LatentStep

                found.append(LatentStep(photos, weights, device=self.device))
            return found

        return steps

    def _wanted(self) -> list[str]:
        return [word.strip() for word in self.what.split(",") if word.strip()]

    def _check(self) -> None:
        """Refuse options that cannot be meant. Raises DataError."""
        known, wanted = ("depth", "warp", "latents"), self._wanted()
        wrong = [word for word in wanted if word not in known]
        if wrong or not wanted:
            problem = f"'{self.what}' is no choice of {', '.join(known)}."
            raise DataError("options", "--what", problem, "Say for example depth,warp.")
        if "latents" in wanted and self.weights is None:
            remedy = "Name the folder of converted weights (ns-megascenes import)."
            raise DataError("options", "--weights", "is not given, and latents are what networks make.", remedy)
        if self.samples_per_pixel not in (1, 4, 9, 16):
            raise DataError("options", "--samples-per-pixel", f"is {self.samples_per_pixel}.", "Give 1, 4, 9 or 16.")
        for name, value, least in (("--processes", self.processes, 1), ("--canvas", self.canvas, 16)):
            if value < least:
                raise DataError("options", name, f"is {value}.", f"Give {least} or more.")


def parse_shard(text: str) -> tuple[int, int]:
    """``1/4`` to (1, 4).

    Raises:
        DataError: it is none.
    """
    part, slash, count = text.partition("/")
    if not (slash and part.isdecimal() and count.isdecimal() and int(part) < int(count)):
        raise DataError("options", "--shard", f"'{text}' is none.", "Say 0/4, 1/4, 2/4 and 3/4.")
    return int(part), int(count)
