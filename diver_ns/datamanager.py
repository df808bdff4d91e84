"""Training pixels by stage: quarter photos first, then the full photos' pixels that can see something (spec diver 5.3).

The run folder receives cameras and thumbnails, so that a trained model can be viewed and rendered without its scene.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional, Type

import psutil
import torch
import tyro
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from core_ns.errors import DataError
from core_ns.images import has_alpha, write_image
from dataparsers.object_box import cubic_box
from dataparsers.snapshot_parser import SPLITS, SnapshotParserConfig, read_snapshot, write_snapshot
from diver_ns.grid import Grid
from diver_ns.photos import REDUCTION, DiverDataset, Photos, absolute_names, composite, find_background, reduce_mask
from diver_ns.pixel_choice import PixelMasks, ViewRays, meets_cube, seeded, stage_points

THUMBNAIL = 160
"""Longest side of the pictures the viewer's camera frusta show."""
FEWEST_HITS = 0.01
"""Below this share of training rays through the box, nothing can be learned (spec diver 8, issue 2)."""
EVAL, SURVEY = 2, 3
"""Last number of a generator's seed; 0 and 1 are the stages with full and reduced photos."""


@dataclass
class DiverDataManagerConfig(VanillaDataManagerConfig):
    """Training pixels for voxel models of bounded objects."""

    _target: Type = field(default_factory=lambda: DiverDataManager)
    train_num_rays_per_batch: int = 8192
    """Pixels per training step, until a stage asks for another number."""
    eval_num_rays_per_batch: int = 4096
    """Pixels per evaluation batch."""
    background: Literal["auto", "white", "black"] = "auto"
    """What transparent photos lie on, and what rays that hit nothing show. auto: what the data parser states, else what
    the photos' borders show, white where they are transparent."""
    seed: int = 9
    """Batches depend on this number, the step, the stage and the process alone: a resumed run sees the same ones."""
    jobs: int = 4
    """Photos decoded at once."""
    run_dir: tyro.conf.Suppress[Optional[Path]] = None
    """Filled by the trainer: holds the scene snapshot."""


class DiverDataManager(VanillaDataManager):
    """Serves rays through training pixels of the current stage.

    Memory in a training run: 3 bytes per training pixel (4 with transparency), 2 bits for each pixel mask, and in the
    stage with reduced photos 0.75 bytes more. 100 photos of 800x800 with alpha: 256 + 32 (+ 48) MB. Evaluation photos
    are decoded when asked for; the command line tools load no photo before they ask for a training batch.
    """

    config: DiverDataManagerConfig
    train_dataset: DiverDataset
    eval_dataset: DiverDataset
    background: Float[Tensor, "3"]
    """What transparent photos lie on, and the model's background.

    Both data sets' ``metadata`` holds it as ``background`` (three numbers), beside ``grid_side`` and ``grid_center``.
    """
    cube: Grid
    """The scene's cube, at resolution 1."""

    def __init__(
        self,
        config: DiverDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        self.training_run = test_mode == "val"
        self.scene_dir = config.run_dir / "scene" if config.run_dir is not None else None
        self.snapshot: dict[str, Any] | None = self._find_snapshot(config)
        if self.snapshot is not None and self.scene_dir is not None:
            config.data = self.scene_dir / "snapshot.json"
            config.dataparser = SnapshotParserConfig(data=config.data)
        self.photos: Photos | None = None
        self.reduced = False
        self.masks: PixelMasks | None = None
        """Pixels that the current stage draws from; None until it is known."""
        self._stage_masks: PixelMasks | None = None
        self._allowed: PixelMasks | None = None
        self._hit_shares: dict[Grid, float] = {}
        super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)

    def _find_snapshot(self, config: DiverDataManagerConfig) -> dict[str, Any] | None:
        """The run's own snapshot for the tools, unless they are pointed at other data.

        ``ns-render dataset --split val`` opens the manager as training does: there it counts when the scene is gone.
        """
        file = self.scene_dir / "snapshot.json" if self.scene_dir is not None else None
        if file is None or not file.is_file():
            return None
        named = Path(config.data if config.data is not None else config.dataparser.data)
        if named != file and self.training_run and named.exists():
            return None
        snapshot = read_snapshot(file)
        return snapshot if named in (file, Path(snapshot["extra"]["data"])) else None

    # ------------------------------------------------------------------ data sets

    def create_train_dataset(self) -> DiverDataset:
        """The training views; decides on cube and background."""
        outputs = self.train_dataparser_outputs
        if self.snapshot is not None:
            known = self.snapshot["extra"]
        else:
            box = cubic_box(outputs)
            for warning in box.warnings if self.training_run else ():
                CONSOLE.print(f"[yellow]{warning}")
            known = {"grid_side": box.side, "grid_center": box.center, "background": None}
        self.cube = Grid(1, float(known["grid_side"]), tuple(known["grid_center"]))
        stored = known["background"] if self.config.background == "auto" else None
        self.background = torch.tensor(stored or find_background(outputs, self.config.background))
        dataset = self._dataset(outputs)
        dataset.thumbnails = self.scene_dir / "thumbnails" if self.scene_dir is not None else None
        sizes = [dataset.size(view) for view in range(len(dataset))]
        if min(map(min, sizes)) < REDUCTION:
            small = dataset.image_filenames[min(range(len(sizes)), key=lambda view: min(sizes[view]))]
            raise DataError(small, "size", f"is smaller than {REDUCTION} pixels.", "Leave the photo out.")
        self._widths = torch.tensor([width for width, _ in sizes])
        self._rays = ViewRays(dataset.cameras, self.device)
        return dataset

    def create_eval_dataset(self) -> DiverDataset:
        """The held-out views, over the same background."""
        dataset = self._dataset(self.dataparser.get_dataparser_outputs(split=self.test_split))
        self._eval_rays = ViewRays(dataset.cameras, self.device)
        return dataset

    def _dataset(self, outputs: DataparserOutputs) -> DiverDataset:
        dataset = DiverDataset(outputs, self.config.camera_res_scale_factor)
        dataset.background = self.background
        dataset.metadata.update(self._known())
        return dataset

    def _known(self) -> dict[str, Any]:
        """What the model is told and the snapshot keeps."""
        cube, background = self.cube, self.background.tolist()
        return {"grid_side": cube.side, "grid_center": list(cube.center), "background": background}

    # ------------------------------------------------------------------ set-up

    def setup_train(self) -> None:
        """Check the box, read all photos and write the snapshot; the tools leave all that alone."""
        self.train_dataset.serve_thumbnails = True
        self.train_pixel_sampler = BatchSize(self.config.train_num_rays_per_batch)  # type: ignore[assignment]
        if self.training_run:
            self.hit_share()
            self._open_photos()
            if self.scene_dir is not None and self.snapshot is None and comms.is_main_process():
                self._write_scene(self.scene_dir)

    def setup_eval(self) -> None:
        """nerfstudio's loaders of single images; no image is cached."""
        self.eval_pixel_sampler = BatchSize(self.config.eval_num_rays_per_batch)  # type: ignore[assignment]
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)
        self.eval_dataloader = RandIndicesEvalDataloader(self.eval_dataset, device=self.device)

    def _open_photos(self) -> Photos:
        """Decode all training photos.

        Raises:
            DataError: a photo cannot be read, or all together do not fit in memory.
        """
        if self.photos is None:
            dataset, views = self.train_dataset, range(len(self.train_dataset))
            sizes = [dataset.size(view) for view in views]
            transparent = dataset.scale_factor >= 1.0 and any(has_alpha(path) for path in dataset.image_filenames)
            channels = 4 if transparent else 3
            size = channels * sum(width * height for width, height in sizes)
            if size > psutil.virtual_memory().available:
                raise DataError(
                    self.config.data or "", "photos", f"take {size / 1e9:.1f} GB, more than is free.",
                    "Shrink them with --pipeline.datamanager.camera-res-scale-factor 0.5.",
                )  # fmt: skip
            photos = Photos(sizes, channels)
            with ThreadPoolExecutor(max(self.config.jobs, 1)) as pool:
                list(pool.map(lambda view: photos.put(view, dataset.photo(view)), views))
            if self.config.images_on_gpu:
                photos.to(self.device)
            self.photos = photos
            CONSOLE.print(f"Training photos: {len(views)}, {size / 1e6:.0f} MB in memory")
        return self.photos

    def _write_scene(self, folder: Path) -> None:
        """Cameras of all splits, cube, background and thumbnails into the run folder."""
        splits = {"train": self.train_dataparser_outputs, self.test_split: self.eval_dataset._dataparser_outputs}
        try:
            for split in set(SPLITS) - set(splits):
                splits[split] = self.dataparser.get_dataparser_outputs(split=split)
        except (OSError, ValueError, KeyError) as error:
            CONSOLE.print(f"[yellow]The run folder gets no copy of the cameras: a split cannot be read ({error}).")
            return
        photos = self._open_photos()
        thumbnails = folder / "thumbnails"
        thumbnails.mkdir(parents=True, exist_ok=True)
        for view, size in enumerate(photos.sizes):
            step = -(-max(size) // THUMBNAIL)
            small = composite(photos.view(view)[::step, ::step].cpu(), self.background)
            write_image(thumbnails / f"{view:05d}.jpg", (small * 255.0).round().byte().numpy())
        absolute = {split: absolute_names(outputs) for split, outputs in splits.items()}
        write_snapshot(folder / "snapshot.json", absolute, {"data": str(self.config.data), **self._known()})

    # ------------------------------------------------------------------ stages

    def set_stage(self, reduced: bool, rays: int, masks: PixelMasks | None = None) -> None:
        """Choose what the following batches hold.

        Args:
            reduced: photos averaged over 4x4 boxes, intrinsics divided by 4.
            rays: per batch and process.
            masks: pixels to draw from, of photos at this stage's resolution; None for all. Pixels that the scene's own
                mask files exclude are never drawn.

        Raises:
            ValueError: masks of photos of another size.
            DataError: no pixel is left.
        """
        self.reduced, self._stage_masks, self.masks = reduced, masks, None
        if self.train_pixel_sampler is None:
            self.train_pixel_sampler = BatchSize(rays)  # type: ignore[assignment]
        else:
            self.train_pixel_sampler.num_rays_per_batch = rays
        if self.training_run:
            self._choose()

    def _choose(self) -> PixelMasks:
        if self.masks is None:
            masks = self.allowed_pixels(self.reduced)
            if self._stage_masks is not None:
                masks = masks.intersect(self._stage_masks)
            self.masks = self._some(masks)
        return self.masks

    def _some(self, masks: PixelMasks) -> PixelMasks:
        if masks.kept == 0:
            raise DataError(
                self.config.data or "", "masks", "leave no training pixel.",
                "Check the mask files (white is kept), and that the object lies inside the box.",
            )  # fmt: skip
        return masks

    def allowed_pixels(self, reduced: bool) -> PixelMasks:
        """Training pixels that the scene's own mask files leave, whatever the stage; all where it has none."""
        views = range(len(self.train_dataset))

        def read() -> Iterator[Tensor]:
            for view in views:
                mask = self.train_dataset.mask(view)
                assert mask is not None
                yield reduce_mask(mask) if reduced else mask

        if self.train_dataset._dataparser_outputs.mask_filenames is None or self._photos_gone():
            sizes = [self.view_size(view, reduced) for view in views]
            return PixelMasks.full(width * height for width, height in sizes)
        if reduced:
            return PixelMasks.of(read())
        if self._allowed is None:
            self._allowed = PixelMasks.of(read())
        return self._allowed

    def _photos_gone(self) -> bool:
        """A tool looks at a run whose scene was moved or deleted."""
        return self.snapshot is not None and not all(path.is_file() for path in self.train_dataset.image_filenames)

    # ------------------------------------------------------------------ batches

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays [R] through pixel centres, ``image`` [R, 3] over the background and ``indices`` [R, 3] (view, row,
        column in the stage's photos), drawn with replacement.

        In a training run the batch depends on seed, step, process and stage alone. Tools ask for step 0 again and again
        (``ns-export pointcloud``), so there the number of the call counts. They get no ``image`` when the photos are
        gone.
        """
        self.train_count += 1
        number = step if self.training_run else self.train_count
        generator = seeded(self.config.seed, number, comms.get_rank(), int(self.reduced))
        views, pixels = self._choose().draw(self.get_train_rays_per_batch(), generator)
        widths = (self._widths // REDUCTION if self.reduced else self._widths)[views]
        cells, points = stage_points(pixels, widths, self.reduced)
        batch: dict[str, Any] = {"indices": torch.cat([views[:, None], cells.flip(-1)], dim=-1)}
        if self.photos is not None or not self._photos_gone():
            colours = self._open_photos().colours(views, pixels, self.background, self.reduced)
            batch["image"] = colours.to(self.device)
        return self._bundle(self._rays, views, points), batch

    def next_eval(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Pixels of one held-out photo, at full resolution; also by seed, step and process."""
        self.eval_count += 1
        generator = seeded(self.config.seed, step, comms.get_rank(), EVAL)
        view = int(torch.randint(len(self.eval_dataset), (1,), generator=generator))
        data = self.eval_dataset.get_data(view)
        image, mask = data["image"], data.get("mask")
        if mask is None or not bool(mask.any()):
            mask = torch.ones(image.shape[:2], dtype=torch.bool)
        _, pixels = PixelMasks.of([mask]).draw(self.get_eval_rays_per_batch(), generator)
        views = torch.full_like(pixels, view)
        cells, points = stage_points(pixels, image.shape[1], reduced=False)
        colours = image.reshape(-1, 3)[pixels].to(self.device)
        indices = torch.cat([views[:, None], cells.flip(-1)], dim=-1)
        return self._bundle(self._eval_rays, views, points), {"image": colours, "indices": indices}

    def _bundle(self, rays: ViewRays, views: Tensor, points: Tensor) -> RayBundle:
        origins, directions = rays(views, points)
        near, far = self._range()
        return RayBundle(
            origins=origins,
            directions=directions,
            pixel_area=torch.ones_like(origins[:, :1]),
            camera_indices=views[:, None].to(origins.device),
            nears=torch.full_like(origins[:, :1], near) if near is not None else None,
            fars=torch.full_like(origins[:, :1], far) if far is not None else None,
        )

    def _range(self) -> tuple[float | None, float | None]:
        """Distances along the rays that the data parser names (metadata ``near``, ``far``), if any."""
        near, far = (self.train_dataparser_outputs.metadata.get(key) for key in ("near", "far"))
        return (None if near is None else float(near)), (None if far is None else float(far))

    # ------------------------------------------------------------------ whole views

    def view_size(self, view: int, reduced: bool) -> tuple[int, int]:
        """(width, height) of a training photo."""
        width, height = self.train_dataset.size(view)
        return (width // REDUCTION, height // REDUCTION) if reduced else (width, height)

    def view_rays(self, view: int, reduced: bool) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Origins and unit directions through all pixel centres of a training photo, row-major, on the device."""
        width, height = self.view_size(view, reduced)
        pixels = torch.arange(width * height)
        _, points = stage_points(pixels, width, reduced)
        return self._rays(torch.full_like(pixels, view), points)

    def hit_share(self, grid: Grid | None = None, sample: int = 20_000) -> float:
        """Share of training rays that meet the cube, estimated from a sample; printed once per cube.

        Args:
            grid: the cube, at any resolution; default the scene's.

        Raises:
            DataError: below 1 %: box and cameras do not belong together (spec diver 8, issue 2).
        """
        cube = (grid or self.cube).at(1)
        if cube in self._hit_shares:
            return self._hit_shares[cube]
        allowed = self._some(self.allowed_pixels(reduced=False))
        views, pixels = allowed.draw(sample, seeded(self.config.seed, 0, 0, SURVEY))
        _, points = stage_points(pixels, self._widths[views], reduced=False)
        near, far = self._range()
        limits = (near or 0.0, far if far is not None else float("inf"))
        origins, directions = self._rays(views, points)
        share = float(meets_cube(origins, directions, cube, *limits).float().mean())
        CONSOLE.print(f"Box: {100 * share:.1f} % of the training rays meet it")
        if share < FEWEST_HITS:
            turned = meets_cube(origins, self._rays.turned(views, directions), cube, *limits)
            hint = ""
            if float(turned.float().mean()) > max(10 * share, FEWEST_HITS):
                hint = " They look away from it: the poses are probably in OpenCV axes (y down); convert them."
            low, high = _numbers(origins.amin(dim=0).tolist()), _numbers(origins.amax(dim=0).tolist())
            raise DataError(
                self.config.data or "", "box",
                f"only {100 * share:.2f} % of the training rays meet the cube of side {cube.side:.4g} around "
                f"{_numbers(cube.center)}; the {len(self.train_dataset)} cameras lie between {low} and {high}.{hint}",
                "Give a box that holds the object, in the frame and units of the camera poses (bbox.txt, or the data "
                "parser's box and scale options).",
            )  # fmt: skip
        self._hit_shares[cube] = share
        return share


@dataclass
class BatchSize:
    """Stands where nerfstudio's tools look for a pixel sampler, to read and set the batch size."""

    num_rays_per_batch: int


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"
