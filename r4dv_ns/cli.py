"""``ns-r4dv``: what nerfstudio's commands have no place for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Optional, Tuple, Union

import tyro

from core_ns.console import run_command
from core_ns.errors import DataError
from dataparsers.easymocap_options import SequenceOptions
from r4dv_ns.background_command import BackgroundInit
from r4dv_ns.charge_command import Charge
from r4dv_ns.hull_meta import HullOptions
from r4dv_ns.path_command import CameraPathCommand
from r4dv_ns.process_command import Process


@dataclass
class Hull:
    """Carve a point cloud from the masks of every frame: the search box, hulls, surface points, and a report.

    ns-train does the same by itself; this shows what it will start from.
    """

    sequence: tyro.conf.Positional[Path]
    """Folder with images/, masks/, intri.yml and extri.yml."""
    output_dir: Optional[Path] = None
    """Folder for vhulls/, surfs/ and r4dv/. By default the sequence itself, where ns-train looks."""
    report: bool = True
    """Write r4dv/report/: counts, volumes, and the hulls drawn over the photos."""
    data: Annotated[SequenceOptions, tyro.conf.arg(name="")] = field(default_factory=SequenceOptions)
    """What of the sequence to use."""
    hull: Annotated[HullOptions, tyro.conf.arg(name="")] = field(default_factory=HullOptions)
    """How to carve."""

    def main(self) -> int:
        """Carve or reuse, report, print a summary."""
        from dataparsers.easymocap_sequence import open_sequence
        from r4dv_ns.hull_report import write_report
        from r4dv_ns.hull_run import ensure_hulls

        sequence = open_sequence(self.sequence, self.data)
        folder = self.output_dir or self.sequence
        meta = ensure_hulls(sequence, folder, self.hull)
        counts = [frame["count"] for frame in meta.frames]
        low, high = ("(" + ", ".join(f"{value:.4g}" for value in corner) + ")" for corner in meta.bounds)
        print(
            f"{len(counts)} frames, voxel {meta.voxel:.4g}, {min(counts)} to {max(counts)} voxels, box {low} to {high}"
        )
        for frame in meta.frames:
            for flag in frame["flags"]:
                print(f"frame {frame['stem']}: {flag}")
        if self.report:
            for stem, overlap in write_report(sequence, meta, folder / "r4dv" / "report").items():
                shown = "no masks" if overlap is None else f"{overlap:.3f}"
                print(f"frame {stem}: overlap of hull and masks {shown}")
            print(f"Report: {folder / 'r4dv' / 'report' / 'index.html'}")
        return 0


@dataclass
class DemoScene:
    """Make a small multi-view video to try the method on: a toy juggler in a studio, with masks."""

    output_dir: tyro.conf.Positional[Path]
    """Folder to make."""
    cameras: int = 16
    """Cameras on two rings around the toy."""
    frames: int = 12
    """Moments of its motion, 60 at most."""
    size: Tuple[int, int] = (256, 320)
    """Width and height of the photos."""
    subject: Literal["juggler", "ball"] = "juggler"
    """What moves."""
    background: Literal["studio", "room"] = "studio"
    """room: textured walls behind the subject, things in front of it, and clean plates (for r4dv-bg)."""
    distorted: bool = False
    """Lenses with barrel distortion."""
    seed: int = 0
    """Of cloth and of the cameras' small differences."""

    def main(self) -> int:
        """Render and write."""
        from dataparsers.moving_scene import MAX_FRAMES, make_moving_scene

        remedy = f"At least 2 cameras, 1 to {MAX_FRAMES} frames, 8x8 pixels, and no negative seed."
        if self.cameras < 2 or not 1 <= self.frames <= MAX_FRAMES or min(self.size) < 8 or self.seed < 0:
            raise DataError("options", "cameras, frames, size, seed", "are out of range.", remedy)
        make_moving_scene(
            self.output_dir, self.cameras, self.frames, self.size, self.seed,
            subject=self.subject, background=self.background, distorted=self.distorted, progress=True,
        )  # fmt: skip
        method = "r4dv-tiny" if self.background == "studio" else "r4dv-bg-tiny"
        print(f"Train: ns-train {method} --data {shlex.quote(str(self.output_dir))}")
        return 0


@dataclass
class Convert:
    """Turn a COLMAP model or a nerfstudio transforms.json into a sequence folder in EasyMocap's layout."""

    source: tyro.conf.Positional[Path]
    """Folder of a COLMAP model (cameras.bin or cameras.txt), or transforms.json or its folder."""
    output_dir: tyro.conf.Positional[Path]
    """Folder to make."""
    images: Optional[Path] = None
    """COLMAP: the folder that image names are relative to. By default "images" beside the model or above it."""
    masks: Optional[Path] = None
    """Folder with a mask for every photo, under its name. By default the photos' transparency, if all have it."""
    layout: Literal["auto", "photos", "rig", "moving", "timed"] = "auto"
    """photos: every photo is a camera, one moment. rig: a folder per camera, which stands still; its photos are frames.
    moving: a folder per camera, every photo with its own pose. timed: transforms.json with times."""
    copy: bool = False
    """Copy photos instead of linking to them."""

    def main(self) -> int:
        """Convert, print what to type next."""
        from dataparsers.easymocap_write import colmap_to_easymocap, transforms_to_easymocap

        link = "copy" if self.copy else "symlink"
        if self.source.suffix == ".json" or (self.source / "transforms.json").is_file():
            transforms_to_easymocap(self.source, self.output_dir, self.masks, self.layout, link)
        else:
            images = self.images or images_of_model(self.source)
            colmap_to_easymocap(self.source, images, self.output_dir, self.masks, self.layout, link)
        quoted = shlex.quote(str(self.output_dir))
        print(f"Check: ns-r4dv hull {quoted}\nTrain: ns-train r4dv --data {quoted}")
        return 0


def images_of_model(model: Path) -> Path:
    """The folder ``images`` in or above the folder of a COLMAP model, as PROJECT/sparse/0 has it.

    Raises:
        DataError: there is none.
    """
    model = model.absolute()
    for folder in (model, *model.parents[:3]):
        if (folder / "images").is_dir():
            return folder / "images"
    raise DataError(
        model, "--images", "has no folder 'images' in or above it.", "Name the photos' folder with --images."
    )


@dataclass
class Cameras:
    """Write the cameras that a run with --pipeline.model.camera-refinement.mode SO3xR3 has corrected."""

    action: tyro.conf.Positional[Literal["export"]]
    """export: as intri.yml and extri.yml."""
    load_config: Path
    """config.yml of the run."""
    out: Path
    """New folder. As SEQUENCE/optimized later runs of the sequence take these cameras by themselves."""

    def main(self) -> int:
        """Load the run, write, print how far each camera went."""
        from r4dv_ns.camera_export import export_cameras

        changes = export_cameras(self.load_config, self.out)
        print("camera           degrees     distance")
        for each in changes:
            print(f"{each.name:<14} {each.degrees:9.4f} {each.distance:12.6g}")
        print(f"Written: {self.out}. Hulls of the sequence are carved again with the new cameras.")
        return 0


Command = Union[
    Annotated[Hull, tyro.conf.subcommand("hull")],
    Annotated[DemoScene, tyro.conf.subcommand("demo-scene")],
    Annotated[Convert, tyro.conf.subcommand("convert")],
    Annotated[Cameras, tyro.conf.subcommand("cameras")],
    Annotated[Process, tyro.conf.subcommand("process")],
    Annotated[BackgroundInit, tyro.conf.subcommand("bg-init")],
    Annotated[Charge, tyro.conf.subcommand("charge")],
    Annotated[CameraPathCommand, tyro.conf.subcommand("path")],
]


def entrypoint(arguments: list[str] | None = None) -> None:
    """Run ``ns-r4dv``; bad input ends with one line on stderr and exit status 2."""
    run_command(Command, "ns-r4dv", "Tools of r4dv.", arguments)
