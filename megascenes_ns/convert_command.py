"""``ns-megascenes inspect | convert-splits | pairs | subset``: lists of pairs, before any network sees them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import tyro

from core_ns.errors import DataError
from core_ns.images import IMAGE_SUFFIXES


@dataclass
class Inspect:
    """Say what a pickled list asks for, without running it; what a converted folder holds; or what lens a photo has."""

    source: tyro.conf.Positional[Path]
    """A .pkl file, a folder that convert-splits wrote, or a photo."""
    fov: str = "auto"
    """Of a photo: its field of view, as ns-megascenes view takes it."""

    def main(self) -> int:
        """Print the report; 1 if the list would be refused."""
        if self.source.suffix.lower() in IMAGE_SUFFIXES:
            from megascenes_ns.photo import describe_photo

            print("\n".join(describe_photo(self.source, self.fov)))
            return 0
        lines, sound = inspect_lines(self.source)
        print("\n".join(lines))
        return 0 if sound else 1


def inspect_lines(source: Path) -> tuple[list[str], bool]:
    """The report on a pickle or a converted folder, and whether it can be used.

    Raises:
        DataError: neither.
    """
    if source.is_dir():
        return _table_lines(source), True
    from dataparsers.megascenes_pickle import ALLOWED, inspect_pickle

    report = inspect_pickle(source)
    lines = [f"{source}: protocol {report.protocol}, {report.instructions} instructions; nothing was carried out."]
    for (module, name), count in sorted(report.names.items()):
        verdict = "known" if (module, name) in ALLOWED else "REFUSED"
        lines.append(f"  asks {count} times for {ascii(module)[1:-1][:80]} {ascii(name)[1:-1][:80]}: {verdict}")
    if not report.names:
        lines.append("  asks for no function or class: plain lists and numbers.")
    lines += [f"  REFUSED: {ascii(what)[1:-1][:160]} at byte {at}" for what, at in sorted(report.refused.items())]
    if report.broken:
        lines.append(f"  ends early: {report.broken}")
    sound = not report.refused and not report.broken
    lines.append("convert-splits may read it." if sound else "convert-splits will refuse it.")
    return lines, sound


def _table_lines(folder: Path) -> list[str]:
    from dataparsers.megascenes_table import META, PairTable, list_splits

    splits = {folder.name: folder} if (folder / META).is_file() else list_splits(folder)
    if not splits:
        problem = "holds no converted split."
        raise DataError(folder, "folder", problem, "Run ns-megascenes convert-splits LIST.pkl FOLDER first.")
    lines = []
    for name, place in splits.items():
        table = PairTable.open(place)
        source, missing = table.meta.get("source", "?"), table.meta.get("missing", 0)
        left_out = f", {missing} left out for want of photos" if missing else ""
        lines.append(f"{name}: {len(table)} pairs of {table.path_count} photos, from {source}{left_out}")
    return lines


@dataclass
class ConvertSplits:
    """Rewrite pickled pair lists as plain arrays that training maps; nothing else ever opens a pickle."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """trainsplit.pkl, testsplit.pkl, ..., and last the folder of converted splits to write: list "trainsplit.pkl"
    becomes FOLDER/train."""
    output: Optional[Path] = None
    """The folder, if it is not the last of the paths."""
    images: Optional[Path] = None
    """Folder of the photos: pairs whose photos are not there are left out and listed in missing_pairs.txt."""
    categories: Optional[Path] = None
    """metadata/categories.json of the public bucket, for photos in its layout AAA/BBB/commons."""
    resized: Optional[Path] = None
    """Folder of resized copies of the photos, where the photos themselves are not."""
    strict: bool = False
    """End with an error when a photo is missing; nothing is written then."""

    def main(self) -> int:
        """Convert, say what was left out."""
        from dataparsers.megascenes_missing import MISSING_FILE
        from dataparsers.megascenes_paths import read_categories
        from dataparsers.megascenes_splits import convert_splits

        words = self.paths if self.output is None else (*self.paths, self.output)
        if len(words) < 2 or words[-1].suffix == ".pkl":
            problem = "are not one or more lists, and then a folder to write."
            raise DataError("options", "paths", problem, "ns-megascenes convert-splits LIST.pkl FOLDER")
        if self.images is None and (self.strict or self.resized is not None or self.categories is not None):
            problem = "is missing: --strict, --resized and --categories are about photos."
            raise DataError("options", "images", problem, "Name the folder of the photos.")
        categories = None if self.categories is None else read_categories(self.categories)
        for each in convert_splits(
            words[:-1], words[-1], images=self.images, categories=categories, cache=self.resized, strict=self.strict
        ):
            print(f"{each.table.folder}: {len(each.table)} of {each.listed} pairs, {each.table.path_count} photos")
            if each.missing:
                print(f"  {len(each.missing)} pairs lack a photo: {each.table.folder / MISSING_FILE}")
        return 0


@dataclass
class Pairs:
    """Mine pairs from a COLMAP model of your own photos: 50 shared points, taken within 3 hours."""

    model: tyro.conf.Positional[Path]
    """Folder of the sparse model (cameras, images, points3D; .bin or .txt), or the one above."""
    output: Path
    """Folder of converted splits to write."""
    images: Optional[Path] = None
    """The model's photos: their times of capture count then."""
    min_shared: int = 50
    """Sparse points that both photos must see."""
    max_hours: float = 3.0
    """Longest time between the two photos."""
    prefix: str = ""
    """Folder to put before each name in the model, if training will name a folder further up."""
    test_every: int = 0
    """Keep every so manieth photo for testing; 0: none."""

    def main(self) -> int:
        """Mine and write."""
        from dataparsers.megascenes_mining import mine_splits

        if self.min_shared < 1 or not self.max_hours > 0.0 or self.test_every < 0:
            problem = "min-shared, max-hours or test-every is too small."
            raise DataError("options", "numbers", problem, "At least 1 point, more than 0 hours.")
        mined = mine_splits(
            self.model, self.output, images=self.images, min_shared=self.min_shared, max_hours=self.max_hours,
            prefix=self.prefix, test_every=self.test_every,
        )  # fmt: skip
        for table in mined.tables.values():
            print(f"{table.folder}: {len(table)} pairs of {table.path_count} photos")
        if self.images is not None and mined.untimed:
            print(f"  {mined.untimed} photos have no time of capture; the rule of hours did not count for them.")
        return 0


@dataclass
class Subset:
    """List what to download for the first scenes or pairs of a converted split (`s5cmd --no-sign-request run LIST`)."""

    data: tyro.conf.Positional[Path]
    """A converted split (a folder with meta.json), of which the pairs are taken."""
    output: Path
    """Text file to write, one copy command per photo."""
    categories: Path
    """metadata/categories.json of the public bucket."""
    scenes: Optional[int] = None
    """So many scenes."""
    pairs: Optional[int] = None
    """So many pairs; with --scenes: at most."""
    destination: str = "."
    """Folder that the photos will be copied into, as DESTINATION/images/AAA/BBB/..."""
    table: Optional[Path] = None
    """Write the chosen pairs as a converted split of their own, to this folder."""

    def main(self) -> int:
        """Choose, write the list and the split."""
        from core_ns.atomic import write_text
        from dataparsers.megascenes_paths import read_categories
        from dataparsers.megascenes_subset import choose_subset, download_lines, write_subset
        from dataparsers.megascenes_table import PairTable

        wanted = [number for number in (self.scenes, self.pairs) if number is not None]
        if not wanted or min(wanted) < 1:
            raise DataError("options", "scenes, pairs", "ask for nothing.", "Give --scenes N or --pairs N, 1 or more.")
        if any(letter in self.destination for letter in "\n\r\0"):
            raise DataError("options", "destination", "holds a line break.", "Name another folder.")
        subset = choose_subset(PairTable.open(self.data), read_categories(self.categories), self.scenes, self.pairs)
        write_text(self.output, "\n".join(download_lines(subset.files, self.destination)) + "\n")
        print(f"{self.output}: {len(subset.files)} photos for {len(subset.table)} pairs of {subset.scenes} scenes")
        if subset.unmapped:
            print(f"  {len(subset.unmapped)} categories are not in {self.categories}: {subset.unmapped[0]!r}, ...")
        if self.table is not None:
            print(f"{write_subset(self.table, subset).folder}: the pairs")
        print(f"Download: s5cmd --no-sign-request run {self.output}")
        return 0
