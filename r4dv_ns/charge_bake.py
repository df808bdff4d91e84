"""``ns-r4dv charge bake``: a trained run becomes a folder that plays without photos and networks (spec r4dv 5.2).

Frames are finished one by one, each with a record of its files' hashes. After a kill the same command goes on after the
last one; whatever would mix two bakes is refused, and so is a second process at the same folder. ``hashes.json`` and
``manifest.json`` come last, and the records go.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core_ns import runs
from core_ns.atomic import write_json
from core_ns.errors import DataError
from core_ns.file_lock import held
from core_ns.images import write_image
from dataparsers.easymocap_options import sampled, spread_frames
from dataparsers.easymocap_sequence import Sequence
from r4dv_ns.camera_export import check_calibration_age
from r4dv_ns.charge_capture import HALF_RANGE, Precision, background_points, capture_frame, farthest_views
from r4dv_ns.charge_fields import plain_name, read_fields
from r4dv_ns.charge_hashes import file_sha256
from r4dv_ns.charge_manifest import Manifest, read_manifest, write_manifest
from r4dv_ns.charge_options import BakeOptions
from r4dv_ns.charge_parts import FILE, VERSION, ChargedView, EvalPhoto, Start, spread_times
from r4dv_ns.charge_store import write_frame, write_static

PIPELINES = "r4dv_ns.pipeline.R4DVPipelineConfig", "r4dv_ns.joint_config.JointPipelineConfig"
"""Runs that can be baked: subjects alone, and whole scenes."""
LAYERS = 12
"""Points blended per pixel, of a subject (spec r4dv 4.6: real time)."""
RECORDS = Path("bake")
"""Folder inside an unfinished charge: what is being baked, and a record of each finished frame."""
SETTINGS = RECORDS / "settings.json"
LOCK = RECORDS / "lock"
"""Held while a process bakes."""


def bake(load_config: Path, out: Path, *, progress: bool = False, **options: Any) -> Manifest:
    """Bake a run, or go on with a bake that was interrupted; a finished one is left as it is.

    Args:
        load_config: ``config.yml`` of a trained run; its recording must be there.
        out: folder of the charge: new, or that of the same bake unfinished.
        progress: show a bar.
        options: of `BakeOptions`.

    Returns:
        What was written. ``out`` also holds the ``config.yml`` that nerfstudio's tools open.

    Raises:
        DataError: no such run, an option out of range, a photo that does not decode, too little room, or a folder that
            holds something else or that another process is baking into. Nothing but finished frames is left.
    """
    chosen = BakeOptions(**options)
    chosen.check(load_config)
    pipeline, model = runs.load_run(load_config, *PIPELINES)
    sequence: Sequence = pipeline.datamanager.sequence
    if model.camera_refinement.active:
        check_calibration_age(sequence, load_config)
    model.config.occlusion = chosen.visibility
    job = _Job(model, sequence, Path(out), chosen, load_config)
    if not job.finished():
        with held(job.out / LOCK) as alone:
            if not alone:
                problem = "is being made by another process."
                raise DataError(job.out, "charge", problem, "Wait for that one, or name another folder with --out.")
            job.run(progress)
    shutil.rmtree(job.out / RECORDS, ignore_errors=True)
    from r4dv_ns.charged_config import write_run  # which the list of methods must not wait for

    write_run(job.out)
    return read_manifest(job.out)


class _Job:
    """One bake: what is asked, and what of it is there."""

    def __init__(self, model: Any, sequence: Sequence, out: Path, options: BakeOptions, config_file: Path) -> None:
        self.model, self.sequence, self.out, self.options = model, sequence, out, options
        self.frames = sampled(len(sequence.frames), options.frame_sample, config_file, "--frame-sample")
        for place, names in (("frame", [sequence.frames[frame] for frame in self.frames]), ("camera", sequence.names)):
            for name in names:
                if not plain_name(name):
                    raise DataError(sequence.root, f"{place} {name!r}", "cannot name a file everywhere.", "Rename it.")
        self.cameras = [self._view(view) for view in range(len(sequence.views))]
        sources = sequence.train_views
        centres = np.stack(
            [[self.cameras[view].centre(frame) for frame in range(len(self.frames))] for view in sources]
        )
        self.sources = [sources[row] for row in farthest_views(centres, options.max_sources)]
        with torch.no_grad():
            state = model.state(self.frames[0], sequence.times[self.frames[0]])
        self.static = background_points(state)
        low, high = model.geometry.limits.tolist()
        # What is far away has large radii.
        wide = bool(self.static) or low < HALF_RANGE[0] or high > HALF_RANGE[1]
        self.precision = Precision(options.xyz, options.colours, wide, state.branch is not None)
        checkpoint = sorted(runs.checkpoint_folder(config_file, *PIPELINES).glob("step-*.ckpt"))[-1]
        self.settings = {
            "format": VERSION,
            "checkpoint": file_sha256(checkpoint),
            "config": file_sha256(config_file),
            "cameras": self._cameras_hash(),
            "frames": [sequence.frames[frame] for frame in self.frames],
            "options": json.loads(json.dumps(asdict(options))),
        }

    # ------------------------------------------------------------------ cameras

    def _view(self, view: int) -> ChargedView:
        """A camera with the run's correction, in nerfstudio's world."""
        recorded, from_world = self.sequence.views[view], np.linalg.inv(self.sequence.transform)
        refinement = self.model.camera_refinement
        poses = []
        for frame in self.frames if recorded.is_moving else self.frames[:1]:
            w2c = torch.from_numpy(recorded.w2c(frame) @ from_world).to(refinement.adjustment.device)
            poses.append(refinement(w2c, view).detach().cpu().numpy())
        matrices = [recorded.intrinsics(frame) for frame in (self.frames if len(recorded.lenses) > 1 else [0])]
        return ChargedView(
            name=recorded.name,
            K=np.stack(matrices) if len(recorded.lenses) > 1 else matrices[0],
            width=recorded.width,
            height=recorded.height,
            w2c=np.stack(poses) if recorded.is_moving else poses[0],
            train=view in self.sequence.train_views,
        )

    def _cameras_hash(self) -> str:
        digest = hashlib.sha256()
        for view in self.cameras:
            digest.update(f"{view.name}\0{view.width}x{view.height}\0{view.train}".encode())
            digest.update(np.ascontiguousarray(view.K).tobytes() + np.ascontiguousarray(view.w2c).tobytes())
        return digest.hexdigest()

    # ------------------------------------------------------------------ the folder

    def finished(self) -> bool:
        """Whether this bake is there already; nothing is written.

        Raises:
            DataError: the folder holds something else, or there is too little room.
        """
        out, remedy = self.out, "Choose a new folder, or remove this one first."
        if out.exists() and not out.is_dir():
            raise DataError(out, "", "is a file, not a folder.", "Choose another output folder.")
        if (out / FILE).is_file():
            self._compare("a charge", read_manifest(out).settings, remedy)
            return True
        if (out / SETTINGS).is_file():
            self._compare("an unfinished bake", read_fields(out / SETTINGS).content, remedy)
        elif out.is_dir():
            left = [path for path in out.glob("*") if path.name != RECORDS.name]
            records = [path for path in (out / RECORDS).glob("*") if path.name != LOCK.name]
            if left or [path for path in records if not path.name.startswith(".tmp-")]:
                raise DataError(out, "", "is not empty.", remedy)
        self._check_room()
        return False

    def run(self, progress: bool) -> None:
        """Bake what is missing, the manifest last; for the one process that holds the lock. Raises as `finished`."""
        if self.finished():  # by another process, between our look and our lock
            return
        if not (self.out / SETTINGS).is_file():
            write_json(self.out / SETTINGS, self.settings)
        steps: Any = range(len(self.frames))
        if progress:
            from rich.progress import track

            steps = track(steps, "Baking")
        static = self.background()
        records = [self.frame(index) for index in steps]
        write_manifest(self.out, *self.manifest(records, static))

    def _compare(self, kind: str, known: dict[str, Any], remedy: str) -> None:
        other = [key for key, value in self.settings.items() if known.get(key) != value]
        if other:
            raise DataError(self.out, "", f"holds {kind} of another kind: {', '.join(other)} differ.", remedy)

    def _check_room(self) -> None:
        """Refuse a bake that the disk has no room for.

        Raises:
            DataError: it has not.
        """
        there = next(folder for folder in (self.out.absolute(), *self.out.absolute().parents) if folder.is_dir())
        kinds = {key: np.dtype(kind).itemsize for key, kind in self.precision.dtypes().items()}
        harmonics = 3 * (self.options.sh_degree + 1) ** 2 * kinds["sh"]
        photos = len(self.sources) * (3 * kinds["src_rgb"] + kinds["src_logit"])
        geometry = 3 * kinds["xyz"] + kinds["radius"] + kinds["alpha"] + harmonics
        points = sum(len(self.model.points.points[frame]) for frame in self.frames)
        needed = points * (geometry + photos) + self.static * (geometry + len(self.frames) * photos)
        there_already = sum(file.stat().st_size for file in self.out.rglob("*") if file.is_file())
        free = shutil.disk_usage(there).free + there_already
        if not self.options.pack and needed > free:
            problem = f"needs {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free."
            raise DataError(there, "room", problem, "Use --max-sources, --frame-sample or another disk.")

    # ------------------------------------------------------------------ frames

    def background(self) -> dict[str, str]:
        """Store the geometry of the background unless it is there; the hashes of its files, none without one."""
        file = self.out / RECORDS / "static.json"
        record = self._known(file)
        if record is None and self.static:
            precision = replace(self.precision, xyz="f32")
            captured = capture_frame(self.model, self.frames[0], [], self.options.sh_degree, precision)
            record = {"hashes": write_static(self.out, captured, self.static)}
            write_json(file, record)
        return {} if record is None else record["hashes"]

    def frame(self, index: int) -> dict[str, Any]:
        """Bake one frame unless it is there; its record: hashes, count and box."""
        frame = self.frames[index]
        stem = self.sequence.frames[frame]
        file = self.out / RECORDS / "frames" / f"{stem}.json"
        known = self._known(file)
        if known is not None:
            return known
        self.model.sources.prefetch((frame, view) for view in self.sources)
        captured = capture_frame(self.model, frame, self.sources, self.options.sh_degree, self.precision)
        record = {
            "hashes": write_frame(self.out, stem, captured, pack=self.options.pack, static_count=self.static),
            "count": len(captured),
            "box": None if captured.box is None else captured.box.tolist(),
        }
        write_json(file, record)
        return record

    def _known(self, file: Path) -> dict[str, Any] | None:
        """A record whose files are those that it was written about."""
        if not file.is_file():
            return None
        record = read_fields(file).content
        try:
            same = all(file_sha256(self.out / path) == value for path, value in record["hashes"].items())
        except OSError:
            return None
        return record if same else None

    # ------------------------------------------------------------------ photos to compare with

    def photos(self) -> tuple[list[int], list[EvalPhoto], dict[str, str]]:
        """Frames to evaluate, their photos, and the hashes of these: held-out views, or all where none is held out."""
        sequence, found, hashes = self.sequence, list[EvalPhoto](), dict[str, str]()
        frames = [index for index, frame in enumerate(self.frames) if frame in sequence.eval_frames]
        frames = frames or spread_frames(len(self.frames), (), sequence.root)
        if not self.options.eval_photos:
            return frames, found, hashes
        for index in frames:
            for view in sequence.eval_views or sequence.train_views:
                photo = sequence.decode(view, self.frames[index])
                pictures: dict[str, Any] = {"image": photo.image, "mask": photo.mask}
                pictures["valid"] = None if photo.valid is None else photo.valid.astype(np.uint8) * 255
                paths: dict[str, Any] = dict.fromkeys(pictures)
                for kind, picture in pictures.items():
                    if picture is not None:
                        paths[kind] = (
                            f"eval/{kind}/{sequence.views[view].name}/{sequence.frames[self.frames[index]]}.png"
                        )
                        write_image(self.out / paths[kind], picture)
                        hashes[paths[kind]] = file_sha256(self.out / paths[kind])
                box = None
                if sequence.bounds is not None:
                    box = sequence.extent(view, self.frames[index], sequence.bounds, pad=0)
                found.append(EvalPhoto(view=view, frame=index, box=box, **paths))
        return frames, found, hashes

    # ------------------------------------------------------------------ the end

    def manifest(self, records: list[dict[str, Any]], static: dict[str, str]) -> tuple[Manifest, dict[str, str]]:
        """Everything else that a reader needs, and the hashes of all files; photos are written on the way, drafts of a
        killed bake removed."""
        for draft in sorted(self.out.rglob(".tmp-*")):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)
        eval_frames, photos, photo_hashes = self.photos()
        model, config, start = self.model, self.model.config, self.model.controls.viewer_control
        trained = [self.sequence.times[frame] for frame in self.frames]
        hashes = {path: value for record in records for path, value in record["hashes"].items()}
        quantised = self.options.xyz == "u16"
        manifest = Manifest(
            frames=self.settings["frames"],
            times=spread_times(trained),
            counts=[record["count"] for record in records],
            bounds=model.bounds.double().cpu().numpy(),
            views=tuple(self.cameras),
            start=Start(start.position, start.middle, start.up),
            transform=self.sequence.transform,
            layers=self.options.layers or (config.layers if self.static else LAYERS),
            min_radius=config.min_pixel_radius,
            sh_degree=self.options.sh_degree,
            sh_limit=config.sh_limit,
            background=max(config.background, 0.0),
            sources=config.sources,
            stored_sources=len(self.sources),
            source_metric=config.source_metric,
            time_mode=config.time_mode,
            packed=self.options.pack,
            dtypes=self.precision.dtypes(),
            boxes=tuple(np.asarray(record["box"]) for record in records) if quantised else (),
            static_count=self.static,
            eval_frames=eval_frames,
            eval_photos=tuple(photos),
            checkpoint=self.settings["checkpoint"],
            settings=self.settings,
            notes={
                "motion": "folded into the positions" if model.motion is not None else "none",
                "occlusion": "lowers the logits" if self.options.visibility else "ignored",
                "trained_times": trained,
            },
        )
        return manifest, hashes | static | photo_hashes
