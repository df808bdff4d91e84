"""The cameras that a path is laid along: of a recording, of a trained run, or of a charged folder (spec r4dv 6.3).

Training views only, so that a path does not show where the held-out cameras stand. Everything is in the files' world,
whichever it comes from. A camera that moves is taken where it stands in the first frame.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from core_ns import runs
from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv, transform_cameras, transform_points
from dataparsers.easymocap_attention import box_corners
from dataparsers.easymocap_sequence import Sequence, SequenceOptions, open_sequence
from r4dv_ns.hull_meta import read_meta

if TYPE_CHECKING:
    from r4dv_ns.charge_manifest import Manifest

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Rig:
    """Cameras of a recording as paths see them."""

    source: Path
    """What errors name."""
    names: tuple[str, ...]
    c2w: Float[Array, "v 4 4"]
    """OpenGL axes, files' world."""
    focal: Float[Array, "v 2"]
    """Focal lengths over the photo's width and height."""
    transform: Float[Array, "4 4"]
    """Rigid map from the files' world to nerfstudio's."""
    times: tuple[float, ...]
    """Of the recording's frames, rising, in [0, 1]."""
    middle: Float[Array, "3"] | None
    """Middle of what is reconstructed, where that is known."""

    def chosen(self, names: Items[str]) -> Rig:
        """The cameras of these names in this order; one may come twice.

        Raises:
            DataError: one that is not there. Numbers do not count: with held-out cameras they would name others.
        """
        for name in names:
            if name not in self.names:
                known = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
                problem = f"names {name}, which is no training camera."
                raise DataError(self.source, "--views", problem, f"There are {known}.")
        return self.rows([self.names.index(name) for name in names])

    def rows(self, rows: Items[int]) -> Rig:
        """The cameras with these numbers, in this order."""
        rows = list(rows)
        names = tuple(self.names[row] for row in rows)
        return replace(self, names=names, c2w=self.c2w[rows], focal=self.focal[rows])


def rig_of_sequence(sequence: Sequence, refinement: Any = None) -> Rig:
    """Cameras of an opened recording.

    Args:
        refinement: `CameraRefinement` of a run, if any: its corrections are applied.
    """
    views = [sequence.views[view] for view in sequence.train_views]
    w2c = np.stack([view.w2c(0) for view in views])
    if refinement is not None and refinement.active:
        # Without `gauge`: the run draws with them as they are.
        w2c = refinement.corrected(w2c, sequence.train_views, sequence.transform)
    matrices = np.stack([view.intrinsics(0) for view in views])
    sizes = np.array([(view.width, view.height) for view in views], dtype=np.float64)
    return Rig(
        source=sequence.root,
        names=tuple(view.name for view in views),
        c2w=c2w_opengl_from_w2c_opencv(w2c),
        focal=matrices[:, [0, 1], [0, 1]] / sizes,
        transform=sequence.transform,
        times=tuple(sequence.times),
        middle=None if sequence.bounds is None else sequence.bounds.mean(axis=0),
    )


def rig_of_manifest(manifest: Manifest, source: Path) -> Rig:
    """Cameras of a charged folder, whose manifest is all that is read."""
    views = [manifest.views[view] for view in manifest.train_views]
    cameras = [view.camera(0) for view in views]
    sizes = np.array([(view.width, view.height) for view in views], dtype=np.float64)
    back = np.linalg.inv(manifest.transform)
    return Rig(
        source=source,
        names=tuple(view.name for view in views),
        c2w=transform_cameras(c2w_opengl_from_w2c_opencv(np.stack([w2c for _, w2c in cameras])), back[:3]),
        focal=np.stack([K[[0, 1], [0, 1]] for K, _ in cameras]) / sizes,
        transform=manifest.transform,
        times=tuple(manifest.times),
        middle=transform_points(box_corners(manifest.bounds), back[:3]).mean(axis=0),
    )


def open_rig(config_file: Path | None, data: Path | None, options: SequenceOptions) -> Rig:
    """The cameras of ``--load-config`` (a trained run or a charged folder) or of ``--data`` (a recording).

    Raises:
        DataError: not exactly one of them, an option that the run decides, or what is named cannot be used.
    """
    if (config_file is None) == (data is None):
        remedy = "Name either a run's or a charged folder's config.yml, or a recording."
        raise DataError("options", "--load-config, --data", "must be given one at a time.", remedy)
    if data is not None:
        sequence = open_sequence(data, options)
        hulls = read_meta(sequence.root)
        if sequence.bounds is None and hulls is not None:
            sequence.bounds = np.asarray(hulls.bounds, dtype=np.float64)
        return rig_of_sequence(sequence)
    assert config_file is not None
    if options != SequenceOptions():
        problem = "options of the recording are given, which the run has chosen already."
        raise DataError(config_file, "--load-config", problem, "Leave them out, or use --data instead.")
    pipeline = _setting(config_file, "pipeline")
    named = "" if pipeline is None else pipeline.tag.rpartition(":")[2]
    if named.startswith("r4dv_ns.charged_"):
        return rig_of_manifest(_played(config_file), config_file)
    # Files of other packages are refused there.
    plain = "r4dv_ns.pipeline.R4DVPipelineConfig"
    loaded, model = runs.load_run(config_file, named if named.startswith("r4dv_ns.") else plain)
    rig = rig_of_sequence(loaded.datamanager.sequence, getattr(model, "camera_refinement", None))
    return replace(rig, source=config_file)


def _played(config_file: Path) -> Manifest:
    """The manifest of a charged folder, with the frames that its config.yml plays; no array is opened.

    Raises:
        DataError: config.yml or manifest.json cannot be used.
    """
    from r4dv_ns.charge_store import ChargedStore

    place = ("pipeline", "datamanager", "dataparser")
    sample, first = (_setting(config_file, *place, key) for key in ("frame_sample", "first_frame"))
    try:
        items = [each.value for each in sample.value] if sample is not None and isinstance(sample.value, list) else []
        frames = tuple(None if item.lower() in ("null", "~", "") else int(item) for item in items)
    except (ValueError, AttributeError, TypeError) as error:
        problem = "is no list of frames."
        raise DataError(
            config_file, "frame_sample", problem, "Write the file again with 'ns-r4dv charge open'."
        ) from error
    alone = first is not None and first.value.lower() in ("true", "yes", "on")
    return ChargedStore(config_file.parent, frame_sample=frames or None, first_frame=alone).manifest


def _setting(config_file: Path, *keys: str) -> Any:
    """A node of a run's config.yml, whose objects are not made; None where it is absent or the file is no such one."""
    import yaml

    try:
        node = yaml.compose(config_file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        for key in keys:
            node = next(value for name, value in node.value if name.value == key)
    except (OSError, yaml.YAMLError, StopIteration, AttributeError, TypeError, ValueError):
        return None
    return node
