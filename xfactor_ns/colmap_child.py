"""Structure from motion of a folder of frames, in a process of its own: ``python -m xfactor_ns.colmap_child FOLDER``.

pycolmap brings a compression library that breaks Pillow's PNG writer in the same process when it was imported before
Pillow; and COLMAP ends the whole process where it meets what it does not expect. FOLDER holds ``frames/*.png`` and
``options.json``; ``poses.json`` is written: world-to-camera matrices by file name, of the largest model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MISSING = 3
"""Exit status where pycolmap does not load."""
SEQUENTIAL_FROM = 40
"""From this many frames on only neighbours are matched; below, all pairs."""
OVERLAP = 12
"""Neighbours on each side that a frame is then matched with."""


def reconstruct(pycolmap: Any, folder: Path, options: dict[str, Any]) -> dict[str, list[list[float]]]:
    """Poses of the frames that COLMAP could place."""
    database, pictures = folder / "database.db", folder / "frames"
    names = sorted(path.name for path in pictures.iterdir())
    threads, seed = int(options["threads"]), int(options["seed"])
    pycolmap.set_random_seed(seed)
    reader = pycolmap.ImageReaderOptions(camera_model=options["camera_model"])
    features = pycolmap.FeatureExtractionOptions(num_threads=threads, use_gpu=False)
    matching = pycolmap.FeatureMatchingOptions(num_threads=threads, use_gpu=False)
    mapping = pycolmap.IncrementalPipelineOptions(
        # COLMAP's usual smallest model would be no model of a short clip.
        num_threads=threads, random_seed=seed, min_model_size=min(3, len(names)), extract_colors=False,
    )  # fmt: skip
    device = pycolmap.Device.cpu
    pycolmap.extract_features(
        database, pictures, camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader,
        extraction_options=features, device=device,
    )  # fmt: skip
    if len(names) >= SEQUENTIAL_FROM:
        pairing = pycolmap.SequentialPairingOptions(overlap=OVERLAP)
        pycolmap.match_sequential(database, matching_options=matching, pairing_options=pairing, device=device)
    else:
        pycolmap.match_exhaustive(database, matching_options=matching, device=device)
    models = pycolmap.incremental_mapping(database, pictures, folder / "models", options=mapping)
    if not models:
        return {}
    best = max(models.values(), key=lambda model: model.num_reg_images())
    last = [0.0, 0.0, 0.0, 1.0]
    return {
        image.name: [*image.cam_from_world().matrix().tolist(), last]
        for image in best.images.values()
        if image.has_pose
    }


def main(folder: Path) -> int:
    """Read the options, reconstruct, write the poses."""
    try:
        import pycolmap
    except Exception as error:  # a binary that does not fit this machine raises of all kinds
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return MISSING
    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    options = json.loads((folder / "options.json").read_text())
    (folder / "poses.json").write_text(json.dumps(reconstruct(pycolmap, folder, options)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
