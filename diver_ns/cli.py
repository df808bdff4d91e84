"""``ns-diver``: what nerfstudio's commands have no place for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Optional, Union

import tyro

from core_ns.console import run_command
from core_ns.errors import DataError


@dataclass
class Convert:
    """Write a trained model as one file."""

    source: tyro.conf.Positional[Path]
    """config.yml of a run, or any file that import reads."""
    output: tyro.conf.Positional[Path]
    """File to write."""
    format: Literal["safetensors", "weight", "serialize"] = "safetensors"
    """safetensors: ours, with box and background; weight, serialize: the original's weight.pth and serialize.pth."""
    dtype: Literal["fp32", "fp16", "int8"] = "fp16"
    """Features of the safetensors file; int8 has one scale per channel."""
    resolution: Optional[int] = None
    """Voxels per axis, where the source leaves it open."""

    def main(self) -> int:
        """Read, write, print the size."""
        from diver_ns.export import convert

        convert(self.source, self.output, self.format, self.dtype, self.resolution)
        print(f"{self.output}: {self.output.stat().st_size / 1e6:.2f} MB")
        return 0


@dataclass
class Import:
    """Turn a file of the original code into a run folder that every ns-* command reads."""

    file: tyro.conf.Positional[Path]
    """Lightning checkpoint, weight.pth, serialize.pth, or our safetensors export."""
    scene: tyro.conf.Positional[Path]
    """The photos it was trained on (NeRF-synthetic or NSVF layout)."""
    output_dir: Path = Path("outputs")
    """As in ns-train."""
    resolution: Optional[int] = None
    """Voxels per axis, where the file leaves it open."""
    background: Literal["auto", "white", "black"] = "auto"
    """Behind the object. auto: what the file says (white where it says nothing); for NSVF scenes what fits best."""

    def main(self) -> int:
        """Write the run and print what to type next."""
        from diver_ns.import_run import import_run

        config = import_run(self.file, self.scene, self.output_dir, self.resolution, self.background)
        for line in run_commands(config):
            print(line)
        return 0


def run_commands(config: Path) -> list[str]:
    """The commands that open a run, one line each, ready to paste."""
    quoted, folder = shlex.quote(str(config)), config.parent
    return [
        f"View:     ns-viewer --load-config {quoted}",
        f"Evaluate: ns-eval --load-config {quoted} --output-path {shlex.quote(str(folder / 'eval.json'))}",
        f"Render:   ns-render interpolate --load-config {quoted} --output-path "
        f"{shlex.quote(str(folder / 'render.mp4'))}",
    ]


@dataclass
class Bench:
    """Measure a run: PSNR, SSIM, frames per second and MB, exact against real-time."""

    load_config: Path
    """config.yml of the run."""
    views: int = 4
    """Held-out views to render, evenly spread."""
    output: Optional[Path] = None
    """JSON file for the figures."""

    def main(self) -> int:
        """Render, print a table."""
        from diver_ns.bench import bench_run

        print(bench_run(self.load_config, self.views, self.output))
        return 0


@dataclass
class Export:
    """Write the occupied voxels as a point cloud and as a mesh of their outer faces."""

    load_config: Path
    """config.yml of the run."""
    output_dir: Path
    """Folder for points.ply and mesh.ply, in the coordinates of the photos' cameras."""

    def main(self) -> int:
        """Load the run, write both files."""
        from diver_ns.export import export_occupancy

        for path in export_occupancy(self.load_config, self.output_dir):
            print(path)
        return 0


@dataclass
class DemoScene:
    """Make a small object to try the method on: photos with transparency in NeRF-synthetic layout."""

    output_dir: tyro.conf.Positional[Path]
    """Folder to make."""
    train: int = 60
    """Training photos."""
    test: int = 8
    """Held-out photos."""
    size: int = 200
    """Pixels per side."""

    def main(self) -> int:
        """Render and write."""
        from dataparsers.blender_parser import write_blender
        from dataparsers.object_scene import demo_object

        if min(self.train, self.test) < 1 or self.size < 8:
            raise DataError("options", "train, test, size", "are too small.", "At least 1, 1 and 8.")
        scene = demo_object(
            train=self.train, val=self.test, test=self.test, size=self.size, texture_detail=512, mesh_faces=40000
        )
        write_blender(self.output_dir, scene)
        print(f"Train: ns-train diver-tiny --data {self.output_dir}")
        return 0


Command = Union[
    Annotated[Convert, tyro.conf.subcommand("convert")],
    Annotated[Import, tyro.conf.subcommand("import")],
    Annotated[Bench, tyro.conf.subcommand("bench")],
    Annotated[Export, tyro.conf.subcommand("export")],
    Annotated[DemoScene, tyro.conf.subcommand("demo-scene")],
]


def entrypoint(arguments: list[str] | None = None) -> None:
    """Run ``ns-diver``; bad input ends with one line on stderr and exit status 2."""
    run_command(Command, "ns-diver", "Tools of diver.", arguments)
