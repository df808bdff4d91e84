"""Training pixels as rays, bounded in memory, and what the run folder needs to live without the scene."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Type

import numpy as np
import psutil
import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE

from core_ns.atomic import atomic_path
from core_ns.errors import DataError
from core_ns.frames import transform_points
from core_ns.images import read_image, write_image
from core_ns.raycast import CasterName
from dataparsers.mesh import load_mesh
from dataparsers.mvsnet_parser import MvsnetDataParserConfig
from dataparsers.snapshot_parser import SPLITS, SnapshotParserConfig, read_snapshot, write_snapshot
from xscale_ns.pixels import PixelSource, open_pixels, view_sources
from xscale_ns.rays import pixel_rays
from xscale_ns.surface import Surface, auto_finest_resolution, footprint

THUMBNAIL = 160
"""Longest side of the pictures the viewer's camera frusta show."""
FEWEST_HITS = 1e-3
"""Training views that see less of the mesh than this share are left out (spec xscale 7, defect 7)."""


@dataclass
class XScaleDataManagerConfig(VanillaDataManagerConfig):
    """Training pixels for surface methods."""

    _target: Type = field(default_factory=lambda: XScaleDataManager)
    dataparser: AnnotatedDataParserUnion = field(default_factory=MvsnetDataParserConfig)
    """Reads the scene; any nerfstudio dataparser works with --pipeline.model.mesh-path."""
    train_num_rays_per_batch: int = 65536
    """Pixels per training step."""
    eval_num_rays_per_batch: int = 4096
    """Pixels per evaluation batch."""
    train_sub_samples: int = 1
    """Rays per training pixel; their features are averaged before shading."""
    jitter: bool = True
    """Training rays go through random points of the pixel instead of its centre (or sub-pixel centres)."""
    storage: Literal["auto", "ram", "tiles", "decode-pool"] = "auto"
    """Where training pixels wait: all photos in memory, tiles on disk (any size, bounded memory), or a rotating pool of
    decoded photos. auto: memory when the photos take less than half of what is free, else tiles."""
    hits: Literal["auto", "on-the-fly", "cached"] = "auto"
    """Cast rays at every step, or store the distance of every pixel centre with the tiles. auto: cast."""
    tile_folder: Optional[Path] = None
    """Where the tiles lie; default: SCENE/xscale_tiles."""
    pool_tiles: int = 4096
    """Tiles of 64x64 pixels held in memory at a time with --storage tiles."""
    jobs: int = 2
    """Photos decoded at once while building tiles."""
    mesh_path: tyro.conf.Suppress[Optional[Path]] = None
    """Filled by the pipeline from --pipeline.model.mesh-path."""
    caster: tyro.conf.Suppress[CasterName] = "auto"
    """Filled by the pipeline from --pipeline.model.caster."""
    run_dir: tyro.conf.Suppress[Optional[Path]] = None
    """Filled by the trainer: holds the scene snapshot."""


class XScaleDataset(InputDataset):
    """Photos decoded on demand; thumbnails where only the viewer's frusta need them, or where the photo is gone."""

    thumbnails: Path | None = None
    serve_thumbnails = False

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict[str, Any]:
        """``image`` [H, W, 3], and ``mask`` [H, W, 1] where the parser names one."""
        path = self.image_filenames[image_idx]
        thumbnail = self.thumbnails / f"{image_idx:05d}.jpg" if self.thumbnails is not None else None
        small = thumbnail is not None and thumbnail.is_file() and (self.serve_thumbnails or not path.is_file())
        rgb, transparency = read_image(thumbnail if small and thumbnail is not None else path)
        image = torch.from_numpy(rgb)
        if image_type == "float32":
            image = image.float() / 255.0
        data: dict[str, Any] = {"image_idx": image_idx, "image": image}
        masks = self._dataparser_outputs.mask_filenames
        if masks is not None and not small:
            colour, alpha = read_image(masks[image_idx])
            mask = alpha if alpha is not None and (alpha < 255).any() else colour.max(axis=-1)
            data["mask"] = torch.from_numpy(mask > 0)[..., None]
        elif transparency is not None and not small:
            data["mask"] = torch.from_numpy(transparency > 0)[..., None]
        return data


class XScaleDataManager(VanillaDataManager):
    """Serves rays through training pixels, and owns the mesh (`surface`), which the model takes from the metadata."""

    config: XScaleDataManagerConfig
    train_dataset: XScaleDataset
    eval_dataset: XScaleDataset

    def __init__(
        self,
        config: XScaleDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        self.training_run = test_mode == "val"
        self.scene_dir = config.run_dir / "scene" if config.run_dir is not None else None
        self.snapshot: dict[str, Any] | None = None
        if not self.training_run and self._snapshot_applies(config):
            assert self.scene_dir is not None
            file = self.scene_dir / "snapshot.json"
            self.snapshot = read_snapshot(file)
            config.dataparser, config.data = SnapshotParserConfig(data=file), file
        self.pixels: PixelSource | None = None
        self.eval_rng = torch.Generator().manual_seed(comms.get_rank())
        super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)

    @staticmethod
    def _snapshot_applies(config: XScaleDataManagerConfig) -> bool:
        """A run's own snapshot, unless the user points the tool at other data."""
        if config.run_dir is None or not (config.run_dir / "scene" / "snapshot.json").is_file():
            return False
        trained_on = read_snapshot(config.run_dir / "scene" / "snapshot.json")["extra"]["data"]
        named = config.data if config.data is not None else config.dataparser.data
        return Path(named) in (Path(trained_on), config.run_dir / "scene" / "snapshot.json")

    # ------------------------------------------------------------------ data sets

    def create_train_dataset(self) -> XScaleDataset:
        """The training views with the mesh; in a training run also the snapshot."""
        self.surface = self._load_surface()
        dataset = XScaleDataset(self.train_dataparser_outputs, self.config.camera_res_scale_factor)
        if self.snapshot is not None:
            extra = self.snapshot["extra"]
        else:
            extra = self._survey(dataset.cameras)
            extra["data"] = str(self.config.data)
            if self.training_run and self.scene_dir is not None and comms.is_main_process():
                self._write_scene(dataset, extra)
        self.kept_views: list[int] = extra["kept_views"]
        dataset.thumbnails = self.scene_dir / "thumbnails" if self.scene_dir is not None else None
        dataset.metadata.update(surface=self.surface, finest_resolution=extra["finest_resolution"])
        names = [path.stem for path in dataset.image_filenames]
        dataset.metadata["train_names"] = names
        return dataset

    def create_eval_dataset(self) -> XScaleDataset:
        """The held-out views."""
        outputs = self.dataparser.get_dataparser_outputs(split=self.test_split)
        return XScaleDataset(outputs, self.config.camera_res_scale_factor)

    def _load_surface(self) -> Surface:
        outputs = self.train_dataparser_outputs
        if self.snapshot is not None:
            assert self.scene_dir is not None
            file = self.scene_dir / "mesh.npz"
            try:
                with np.load(file, allow_pickle=False) as arrays:
                    vertices, faces = arrays["vertices"], arrays["faces"]
            except (OSError, KeyError, ValueError) as error:
                raise DataError(file, "", f"cannot be read ({error}).", "Train again, or restore it.") from error
        else:
            path = self.config.mesh_path or outputs.metadata.get("mesh_path")
            if path is None:
                raise DataError(self.config.data or "", "", "no mesh is named.", "Add --pipeline.model.mesh-path MESH.")
            mesh = load_mesh(Path(path))
            if mesh.dropped_faces:
                CONSOLE.print(f"[yellow]{Path(path).name}: dropped {mesh.dropped_faces} unusable faces.")
            # float64 until here: geo-referenced coordinates lose whole pixels in float32 (spec xscale 2.8). nerfstudio
            # keeps the transform in float32, so mvsnet-data hands over its own.
            exact = outputs.metadata.get("mesh_transform")
            transform = exact["transform"] if exact else outputs.dataparser_transform.double().numpy()
            scale = exact["scale"] if exact else outputs.dataparser_scale
            vertices = transform_points(mesh.vertices, np.asarray(transform), scale)
            faces = mesh.faces
        return Surface(
            torch.from_numpy(np.asarray(vertices, dtype=np.float32)),
            torch.from_numpy(np.asarray(faces, dtype=np.int64)),
            torch.device(self.device),
            self.config.caster,
        )

    def _survey(self, cameras: Cameras, samples: int = 100_000) -> dict[str, Any]:
        """Cast a random sample of training pixels: which views see the mesh, and how large is a pixel on it.

        Raises:
            DataError: no view sees the mesh.
        """
        generator = torch.Generator().manual_seed(0)
        per_view = max(samples // len(cameras), 64)
        shares, sizes = [], []
        for view in range(len(cameras)):
            extent = torch.tensor([float(cameras.width[view]), float(cameras.height[view])])
            pixels = torch.rand(per_view, 2, generator=generator) * extent
            origins, directions = pixel_rays(cameras, torch.full((per_view,), view), pixels)
            hits = self.surface.first_hits(origins.to(self.surface.device), directions.to(self.surface.device))
            cosine = (hits.normals * directions.to(hits.normals.device)).sum(-1).abs()
            shares.append(float(hits.hit.float().mean()))
            focal = cameras.fy[view].to(hits.t.device).expand(int(hits.hit.sum()))
            sizes.append(footprint(hits.t[hits.hit], cosine[hits.hit], focal))
        kept = [view for view, share in enumerate(shares) if share >= FEWEST_HITS]
        if not kept:
            raise DataError(
                self.config.data or "scene",
                "mesh",
                "no training view sees the mesh: cameras and mesh are not in the same frame.",
                "Run `ns-xscale check SCENE`, which tries the usual mistakes and names the one that fits.",
            )
        for view in set(range(len(shares))) - set(kept):
            name = self.train_dataparser_outputs.image_filenames[view].name
            CONSOLE.print(f"[yellow]View {name} sees nothing of the mesh and is left out of the training.")
        finest = auto_finest_resolution(self.surface.extent, torch.cat(sizes))
        return {"kept_views": kept, "hit_shares": shares, "finest_resolution": finest}

    def _write_scene(self, dataset: XScaleDataset, extra: dict[str, Any]) -> None:
        """Mesh, cameras and thumbnails into the run folder."""
        assert self.scene_dir is not None
        self.scene_dir.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.scene_dir / "mesh.npz") as temporary, open(temporary, "wb") as file:
            np.savez(
                file, vertices=self.surface.vertices.cpu().numpy(), faces=self.surface.faces.cpu().numpy().astype("i4")
            )
        for index in range(min(len(dataset), 64)):
            rgb, _ = read_image(dataset.image_filenames[index])
            step = max(1, -(-max(rgb.shape[:2]) // THUMBNAIL))
            (self.scene_dir / "thumbnails").mkdir(exist_ok=True)
            write_image(self.scene_dir / "thumbnails" / f"{index:05d}.jpg", np.ascontiguousarray(rgb[::step, ::step]))
        splits = {split: self.dataparser.get_dataparser_outputs(split=split) for split in SPLITS}
        write_snapshot(self.scene_dir / "snapshot.json", splits, json.loads(json.dumps(extra)))

    # ------------------------------------------------------------------ batches

    def setup_train(self) -> None:
        """Open the pixel store in a training run; the tools open it only if they ask for a batch."""
        self.train_dataset.serve_thumbnails = True
        self.train_pixel_sampler = BatchSize(self.config.train_num_rays_per_batch)  # type: ignore[assignment]
        if self.training_run:
            self._open_pixels()

    def setup_eval(self) -> None:
        """nerfstudio's loaders of single images; no image is cached."""
        from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader

        self.eval_pixel_sampler = BatchSize(self.config.eval_num_rays_per_batch)  # type: ignore[assignment]
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)
        self.eval_dataloader = RandIndicesEvalDataloader(self.eval_dataset, device=self.device)

    def _open_pixels(self) -> PixelSource:
        if self.pixels is None:
            sources = view_sources(self.train_dataset, self.kept_views)
            raw = sum(3 * source.width * source.height for source in sources)
            storage = self.config.storage
            if storage == "auto":
                storage = "ram" if raw <= psutil.virtual_memory().available / 2 else "tiles"
            folder = self.config.tile_folder or default_tile_folder(self.config.data)
            CONSOLE.print(f"Training pixels: {storage}, {raw / 1e9:.2f} GB raw, {len(sources)} views")
            self.pixels = open_pixels(
                storage, sources, folder, self.surface, self.train_dataset.cameras, self.kept_views,
                cached=self.config.hits == "cached", pool_tiles=self.config.pool_tiles, jobs=self.config.jobs,
                rank=comms.get_rank(), step=self.train_count,
            )  # fmt: skip
        return self.pixels

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays through ``train_sub_samples`` points of each drawn pixel, shape [N, S], and the pixels' colours [N, 3].

        The generator is seeded with step and rank, so a resumed run draws fresh pixels and ranks draw different ones.
        """
        self.train_count += 1
        source = self._open_pixels()
        generator = torch.Generator().manual_seed((step + 1) * 1_000_003 + comms.get_rank())
        drawn = source.draw(self.get_train_rays_per_batch(), generator)
        views = torch.as_tensor(self.kept_views)[drawn.view]
        if drawn.t is not None:
            # Stored distances belong to pixel centres.
            offsets = torch.full((len(views), 1, 2), 0.5)
        else:
            offsets = sub_pixel_offsets(len(views), self.config.train_sub_samples, self.config.jitter, generator)
        bundle = self._bundle(self.train_dataset.cameras, views, drawn.xy.float()[:, None] + offsets)
        if drawn.t is not None:
            bundle.metadata["t"] = drawn.t.to(self.device)[:, None, None]
        return bundle, self._batch(views, drawn.xy, drawn.rgb)

    def next_eval(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Pixels of one random held-out photo."""
        self.eval_count += 1
        view = int(torch.randint(len(self.eval_dataset), (1,), generator=self.eval_rng))
        image = self.eval_dataset.get_data(view, "uint8")["image"]
        count = self.get_eval_rays_per_batch()
        rows = torch.randint(image.shape[0], (count,), generator=self.eval_rng)
        columns = torch.randint(image.shape[1], (count,), generator=self.eval_rng)
        views, pixels = torch.full((count,), view), torch.stack([columns, rows], dim=-1)
        bundle = self._bundle(self.eval_dataset.cameras, views, pixels[:, None].float() + 0.5)
        return bundle, self._batch(views, pixels, image[rows, columns])

    def _bundle(self, cameras: Cameras, views: torch.Tensor, points: torch.Tensor) -> RayBundle:
        count, samples = points.shape[:2]
        origins, directions = pixel_rays(cameras, views.repeat_interleave(samples), points.reshape(-1, 2))
        bundle = RayBundle(
            origins=origins.reshape(count, samples, 3),
            directions=directions.reshape(count, samples, 3),
            pixel_area=torch.ones(count, samples, 1),
            camera_indices=views[:, None, None].expand(count, samples, 1),
            metadata={"directions_norm": torch.ones(count, samples, 1)},
        )
        return bundle.to(self.device)

    def _batch(self, views: torch.Tensor, pixels: torch.Tensor, rgb: torch.Tensor) -> dict[str, Any]:
        indices = torch.stack([views, pixels[:, 1].long(), pixels[:, 0].long()], dim=-1)
        return {"image": (rgb.float() / 255.0).to(self.device), "indices": indices}


@dataclass
class BatchSize:
    """Stands where nerfstudio's tools look for a pixel sampler, to read and set the batch size."""

    num_rays_per_batch: int


def default_tile_folder(data: Path | None) -> Path:
    """SCENE/xscale_tiles."""
    folder = Path(data) if data is not None else Path()
    return (folder.parent if folder.is_file() else folder) / "xscale_tiles"


def sub_pixel_offsets(count: int, samples: int, jitter: bool, generator: torch.Generator) -> torch.Tensor:
    """Points inside the unit pixel, [count, samples, 2]: the cells of a near-square grid, centred or jittered."""
    rows = int(samples**0.5)
    while samples % rows:
        rows -= 1
    columns = samples // rows
    cells = torch.stack(
        torch.meshgrid(
            torch.arange(columns, dtype=torch.float32), torch.arange(rows, dtype=torch.float32), indexing="xy"
        ),
        dim=-1,
    ).reshape(samples, 2)
    inside = torch.rand(count, samples, 2, generator=generator) if jitter else torch.full((count, samples, 2), 0.5)
    return (cells + inside) / torch.tensor([float(columns), float(rows)])
