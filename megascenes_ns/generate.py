"""Generating and scoring a test split over many processes (spec megascenes 7).

    accelerate launch --num-processes 2 -m megascenes_ns.generate --load-config RUN/config.yml --out FOLDER

The pairs are cut into batches before they are shared out, and every pair has a seed of its own, so that the pictures,
and with them the scores, do not depend on the number of processes. Pictures that are there already are kept: an
interrupted run goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from core_ns.atomic import write_json
from core_ns.errors import DataError
from core_ns.images import read_image, write_image
from megascenes_ns.drawing import Drawer, Settings, view_of
from megascenes_ns.evaluation import Case, Generated, generate, judged, score
from megascenes_ns.networks import Networks
from megascenes_ns.pair_reader import PairReader
from megascenes_ns.pose_vector import relative_pose

Array = np.ndarray

PICTURES, SETTINGS, SCORES = "pictures", "settings.json", "scores.json"


def case_of(reader: PairReader, number: int) -> Case:
    """A pair as a view of its reference, with the photo that it stands for.

    Raises:
        DataError: a photo, or its depth, cannot be read.
    """
    pair, target = reader.pair(number), reader.prepared(number, "tgt")
    assert pair.scale is not None  # the data parser leaves others out
    pose = relative_pose(pair.ref_w2c, pair.tgt_w2c, pair.scale)
    view = view_of(reader.reference(number), pose, target.K, *target.size)
    return Case(number, f"{number:07d}__{Path(pair.tgt_path).stem}", view, target.image)


def blocks(numbers: Sequence[int], batch: int) -> list[list[int]]:
    """The batches, whatever the number of processes."""
    return [list(numbers[start : start + batch]) for start in range(0, len(numbers), batch)]


def picture_file(folder: Path, case: Case) -> Path:
    """Where a pair's picture goes."""
    return folder / PICTURES / f"{case.name}.png"


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make the results' folder, or go on with one that was begun with the same settings.

    Raises:
        DataError: it holds pictures of other settings, weights or pairs.
    """
    file = folder / SETTINGS
    if folder.is_file():
        raise DataError(folder, "--out", "is a file.", "Name a folder.")
    if not file.is_file():
        write_json(file, settings)
        return
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(file, "", f"is not JSON ({error}).", "Remove the folder.") from error
    wrong = sorted(name for name in {*known, *settings} if known.get(name) != settings.get(name))
    if wrong:
        raise DataError(file, ", ".join(wrong), "differ from what was asked for.", "Name another folder with --out.")


def generate_share(
    nets: Networks,
    drawer: Drawer,
    reader: PairReader,
    numbers: Sequence[int],
    settings: Settings,
    seed: int,
    batch: int,
    folder: Path,
    rank: int = 0,
    processes: int = 1,
) -> int:
    """Write the pictures of this process's batches.

    Args:
        nets: the networks.
        drawer: of warps and pictures.
        reader: of the pairs.
        numbers: of all pairs, those of other processes included.
        settings: of the sampler.
        seed: of the noise: pair n has ``seed + n``.
        batch: pairs at once.
        folder: for the pictures.
        rank: of this process.
        processes: how many there are.

    Returns:
        The number of pictures that were not there yet.

    Raises:
        DataError: a photo, or its depth, cannot be read.
    """
    written = 0
    for block in blocks(numbers, batch)[rank::processes]:
        todo = [case_of(reader, number) for number in block]
        if all(_whole(folder, case) for case in todo):
            continue
        # The whole batch again, even where a part is there: another batch could round another way.
        for one in generate(nets, drawer, todo, settings, seed, batch):
            write_image(picture_file(folder, one.case), one.picture)
            written += 1
    return written


def _whole(folder: Path, case: Case) -> bool:
    file = picture_file(folder, case)
    if not file.is_file():
        return False
    try:
        return read_image(file)[0].shape == case.truth.shape
    except DataError:
        return False


def generated(drawer: Drawer, reader: PairReader, numbers: Sequence[int], folder: Path) -> Iterator[Generated]:
    """The written pictures in order, with their photos and warps, one at a time.

    Raises:
        DataError: one is missing or damaged.
    """
    for number in numbers:
        case = case_of(reader, number)
        (warp,) = drawer.warps([case.view])
        picture: UInt8[Array, "h w 3"] = read_image(picture_file(folder, case))[0]
        yield Generated(case, warp, picture, judged(case.truth, warp, picture))


def score_folder(
    drawer: Drawer,
    reader: PairReader,
    numbers: Sequence[int],
    folder: Path,
    settings: dict[str, Any],
    device: str,
    *,
    features: bool = True,
    strips: bool = False,
) -> dict[str, Any]:
    """Score what `generate_share` wrote, and write scores.json.

    Args:
        drawer: of warps.
        reader: of the pairs.
        numbers: of all pairs.
        folder: of the pictures.
        settings: recorded in the file; its ``seed`` is that of the noise.
        device: of the networks that FID and KID look through.
        features: compute FID and KID.
        strips: write reference, warp, view and photo side by side too.

    Returns:
        The file's content: means, what was skipped and why, the settings, a row per pair.
    """
    canvas = reader.options.picture
    output = folder / "strips" if strips else None
    found = score(
        generated(drawer, reader, numbers, folder), canvas, device, output=output, features=features,
        seed=int(settings["seed"]),
    )  # fmt: skip
    content = {
        "means": found.means, "count": len(found.rows), "skipped": found.skipped, "settings": settings,
        "pairs": found.rows,
    }  # fmt: skip
    write_json(folder / SCORES, _finite(content))
    return content


def _finite(content: Any) -> Any:
    """NaN and infinity, which JSON has no word for, as None."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not np.isfinite(content):
        return None
    return content


def entrypoint(arguments: list[str] | None = None) -> None:
    """``python -m megascenes_ns.generate``: what ``ns-megascenes generate`` does, on each process of accelerate."""
    from core_ns.console import run_command
    from megascenes_ns.generate_command import GenerateCommand

    run_command(GenerateCommand, "megascenes_ns.generate", "Generate and score a split's views.", arguments)


if __name__ == "__main__":
    entrypoint()
