"""``ns-xscale``: what nerfstudio's commands have no place for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Tuple, Union

import tyro

from core_ns.errors import DataError, MissingExtra


def _scene(data: Path, downscale_factor: int | None, mesh: Path | None) -> Any:
    """A data manager on a scene, without a model or a pixel store; all views are training views."""
    from dataparsers.mvsnet_parser import MvsnetDataParserConfig
    from xscale_ns.datamanager import XScaleDataManager, XScaleDataManagerConfig

    parser = MvsnetDataParserConfig(data=data, downscale_factor=downscale_factor, mesh=mesh, eval_mode="all")
    return XScaleDataManager(XScaleDataManagerConfig(dataparser=parser, data=data), test_mode="inference")


@dataclass
class Tiles:
    """Build, verify or clean the tile store of a scene (training photos too large for memory)."""

    action: tyro.conf.Positional[Literal["build", "verify", "clean"]]
    """build resumes and redoes what is stale; verify lists damage; clean deletes the store's own files."""
    scene: tyro.conf.Positional[Path]
    """Scene folder."""
    folder: Optional[Path] = None
    """Where the tiles lie; default SCENE/xscale_tiles."""
    downscale_factor: Optional[int] = None
    """Which images_D to store."""
    mesh: Optional[Path] = None
    """Mesh; default the only one in the scene folder."""
    cached: bool = False
    """Also store the hit distance of every pixel centre (--pipeline.datamanager.hits cached)."""
    recheck: bool = False
    """build: re-hash finished views too, and redo damaged ones."""
    jobs: int = 2
    """Photos decoded at once."""

    def main(self) -> int:
        """Run the action; 1 when verify finds a problem."""
        from xscale_ns.datamanager import default_tile_folder
        from xscale_ns.pixels import distances, surface_key, view_sources
        from xscale_ns.tiles import TileStore

        folder = self.folder or default_tile_folder(self.scene)
        if self.action == "clean":
            print(f"deleted {len(TileStore.clean(folder))} files of {folder}")
            return 0
        manager = _scene(self.scene, self.downscale_factor, self.mesh)
        views = list(range(len(manager.train_dataset)))
        sources = view_sources(manager.train_dataset, views)
        if self.action == "verify":
            problems = TileStore.verify(folder, sources)
            for problem in problems:
                print(f"{problem.kind}: {problem.view}: {problem.detail}")
            print(f"{folder}: {len(sources)} views, {len(problems)} problems")
            return int(bool(problems))
        TileStore.build(
            folder,
            sources,
            hits=distances(manager.surface, manager.train_dataset.cameras, views) if self.cached else None,
            mesh_hash=surface_key(manager.surface) if self.cached else "",
            jobs=self.jobs,
            recheck=self.recheck,
        )
        return 0


@dataclass
class Check:
    """Look at a scene before training: coverage, edge overlays, photo-consistency, and the mistake that fits."""

    scene: tyro.conf.Positional[Path]
    """Scene folder."""
    output: Optional[Path] = None
    """Folder of the report and pictures; default SCENE-check beside the scene."""
    downscale_factor: Optional[int] = None
    """Which images_D to check."""
    mesh: Optional[Path] = None
    """Mesh; default the only one in the scene folder."""

    def main(self) -> int:
        """Write the report; 1 when the scene looks wrong."""
        from xscale_ns.check import check_scene

        scene = self.scene.resolve()
        report = check_scene(
            scene, self.output or scene.with_name(scene.name + "-check"), self.downscale_factor, self.mesh
        )
        print(report.text())
        return int(not report.good)


@dataclass
class Bake:
    """Write the trained surface's diffuse colour as a textured GLB, and mesh_nerfstudio.ply for Blender."""

    load_config: Path
    """config.yml of the run."""
    output_dir: Path
    """Folder for textured.glb and mesh_nerfstudio.ply."""
    texture_size: int = 4096
    """Texels per side."""
    padding: int = 4
    """Texels by which chart borders are dilated."""
    frame: Literal["gltf", "world"] = "gltf"
    """gltf: viewer axes turned to +y up, unit size; world: the coordinates of the scene's own mesh."""

    def main(self) -> int:
        """Load the run, bake, write."""
        from xscale_ns.export import bake_run

        for path in bake_run(self.load_config, self.output_dir, self.texture_size, self.padding, self.frame):
            print(path)
        return 0


@dataclass
class Import:
    """Turn a checkpoint of the original code into a run folder that every ns-* command reads."""

    checkpoint: tyro.conf.Positional[Path]
    """The original's epoch:NNNNN.pth.tar."""
    scene: tyro.conf.Positional[Path]
    """The scene it was trained on (images_D, cams_D, mesh)."""
    output_dir: Path = Path("outputs")
    """As in ns-train."""
    downscale_factor: Optional[int] = None
    """Which images_D it was trained on."""
    mesh: Optional[Path] = None
    """Mesh; default the only one in the scene folder."""

    def main(self) -> int:
        """Write the run and print what to type next."""
        from xscale_ns.import_run import import_run

        config = import_run(self.checkpoint, self.scene, self.output_dir, self.downscale_factor, self.mesh)
        print(f"View: ns-viewer --load-config {config}")
        return 0


def metashape(
    xml: Path,
    images: Path,
    output_dir: Path,
    mesh: Optional[Path] = None,
    frame: Literal["auto", "local", "world"] = "auto",
    downscale: int = 1,
    keep_distortion: bool = False,
    model_shift: Optional[Tuple[float, float, float]] = None,
    chunk: Optional[str] = None,
    link: bool = False,
) -> None:
    """Make a scene folder from Agisoft Metashape's camera export and photos.

    Args:
        xml: File > Export > Export Cameras.
        images: Folder of the original photos.
        output_dir: Scene folder to make.
        mesh: Exported model; copied into the scene, and needed by --frame auto.
        frame: Coordinate system the model was exported in; auto picks the one that fits.
        downscale: Shrink photos (and intrinsics) by this factor.
        keep_distortion: Leave the photos alone and write transforms.json with the lens terms (nerfstudio-data).
        model_shift: The shift entered at the model export.
        chunk: Label of the chunk, when the file holds several.
        link: Hard-link unchanged files instead of copying.
    """
    from xscale_ns.convert import convert_metashape

    convert_metashape(
        xml, images, output_dir, mesh=mesh, frame=frame, downscale=downscale, keep_distortion=keep_distortion,
        model_shift=model_shift, chunk=chunk, link=link,
    )  # fmt: skip


def colmap(
    model: Path,
    images: Path,
    output_dir: Path,
    mesh: Optional[Path] = None,
    downscale: int = 1,
    keep_distortion: bool = False,
    depth_line: bool = True,
    link: bool = False,
) -> None:
    """Make a scene folder from a COLMAP model and its photos.

    Args:
        model: Folder with cameras, images and points3D (.bin or .txt).
        images: The folder COLMAP called image_path.
        output_dir: Scene folder to make.
        mesh: A mesh in the model's frame, such as meshed-poisson.ply.
        downscale: Shrink photos (and intrinsics) by this factor.
        keep_distortion: Leave the photos alone and write transforms.json with the lens terms (nerfstudio-data).
        depth_line: Write MVSNet's depth range, from the sparse points.
        link: Hard-link unchanged files instead of copying.
    """
    from xscale_ns.convert import convert_colmap

    convert_colmap(
        model, images, output_dir, mesh=mesh, downscale=downscale, keep_distortion=keep_distortion,
        depth_line=depth_line, link=link,
    )  # fmt: skip


Command = Union[
    Annotated[Tiles, tyro.conf.subcommand("tiles")],
    Annotated[Check, tyro.conf.subcommand("check")],
    Annotated[Bake, tyro.conf.subcommand("bake")],
    Annotated[Import, tyro.conf.subcommand("import")],
]


def entrypoint(arguments: list[str] | None = None) -> None:
    """Run ``ns-xscale``; bad input ends with one line on stderr and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["convert"]:
            tyro.extras.subcommand_cli_from_dict(
                {"metashape": metashape, "colmap": colmap}, prog="ns-xscale convert", args=arguments[1:]
            )
            status = 0
        else:
            command = tyro.cli(
                Command,  # type: ignore[arg-type]
                prog="ns-xscale",
                description="Tools of xscale-nvs. Also: ns-xscale convert metashape|colmap.",
                args=arguments,
            )
            status = command.main()
    except (DataError, MissingExtra) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 2
    raise SystemExit(status)
