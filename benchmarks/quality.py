"""Sharper pictures than nerfacto after equal wall time on a CPU? (spec xscale 9, check A11)

Three ways to a novel view, each given the same training time on the same photos, cameras and split:

1. ``xscale-nvs-tiny``, its cosine schedule spread over the time budget (ns-train spreads it over --max-num-iterations).
2. ``nerfacto`` of stock nerfstudio, its own settings except: ``--pipeline.model.implementation torch``, device cpu, no
   viewer, 512 rays per batch instead of 4096 (--nerfacto-rays; see "Batch" below), and a transforms.json whose cameras
   are those of our MVSNet reader, left in its frame (mesh in [-1, 1]; --nerfacto-frame own lets nerfstudio orient,
   centre and scale by its cameras). Evaluation chunks are smaller to save memory, and the LPIPS network that its model
   holds and never trains is left out.
3. A floor that learns nothing: every mesh vertex gets the mean of the training photos that see it, interpolated over
   the triangles; rays that miss get the mean colour of the training photos' misses.

Scenes: the castle (9 training, 2 held-out photos, 708x532; left out with a word if absent) and a generated monument
(56 and 8 views, 320x240, supersampled 4x, textures of 4096 texels). Only training steps count as time: loading and
evaluation are kept apart (``setup_seconds``, ``eval_seconds``). At marks of 10, 20, 40 and 100 % of the budget the same
code scores every method on the same pixels with the same hit mask, cast from the mesh through pixel centres:

* ``psnr`` and ``psnr_masked`` at every mark on a grid of every k-th row and column of every held-out view (k such that
  one evaluation takes about 16 000 pixels: nerfacto renders a few thousand per second here), mean over views.
* ``frames`` at the last mark: whole frames of --frames held-out views (evenly spread), the only ones with SSIM, and
  with LPIPS where its weights are on the machine.

Batch: what nerfacto does with its time depends on the rays per step; BATCH_PROBE

Prediction, written before the first full run: masked PSNR at 300 s on two cores: monument 26 dB (ours), 20 (nerfacto),
22 (floor); castle 19, 16 and 18, where differing exposures cap every method. nerfacto needs 300 s for what ours shows
before the first mark; on the full frame it catches up some, since sky is easy. SSIM in the same order.

==== RESULT: output of ``python benchmarks/quality.py --report`` ====
not run yet
==== END RESULT ====

Run: ``python benchmarks/quality.py [--seconds 300] [--castle PATH] [--scenes monument castle]``; about 22 minutes.
Writes benchmarks/results/quality.json and quality.png. Exit code 1: ours leads nerfacto by less than 2 dB of masked
PSNR on the monument, or has a higher LPIPS where that is known.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # also without an installed package; nerfacto's worker process imports this file too

if TYPE_CHECKING:
    import torch
    from nerfstudio.cameras.cameras import Cameras
    from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
    from nerfstudio.engine.trainer import Trainer

    from xscale_ns.surface import Surface

    Render = Callable[[int, torch.Tensor], torch.Tensor]
    """(held-out view, continuous pixel positions (x, y) [h, w, 2]) -> rgb [h, w, 3]."""

SHARES = (0.1, 0.2, 0.4, 1.0)
GRID_PIXELS = 16384
NEEDED_LEAD_DB = 2.0
OURS, THEIRS, FLOOR = "xscale-nvs-tiny", "nerfacto", "vertex-colours"
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"


@dataclass
class Scene:
    """One data set with everything that scoring needs; cameras and mesh in the MVSNet reader's frame."""

    name: str
    folder: Path
    train: DataparserOutputs
    test: DataparserOutputs
    surface: Surface
    truths: list[torch.Tensor]
    """Held-out photos, [h, w, 3] in [0, 1]."""
    step: int
    """Every how many rows and columns the grid has a pixel."""
    frames: list[int]
    """Held-out views that are rendered whole at the last mark."""


def load_scene(name: str, folder: Path, frames: int) -> Scene:
    """Read a scene folder in the MVSNet layout."""
    import numpy as np
    import torch

    from core_ns.frames import transform_points
    from dataparsers.mesh import load_mesh
    from dataparsers.mvsnet_parser import MvsnetDataParserConfig
    from xscale_ns.surface import Surface

    parser = MvsnetDataParserConfig(data=folder).setup()
    train, test = (parser.get_dataparser_outputs(split=split) for split in ("train", "test"))
    mesh = load_mesh(Path(test.metadata["mesh_path"]))
    space = test.metadata["mesh_transform"]
    vertices = transform_points(mesh.vertices, np.array(space["transform"]), space["scale"])
    surface = Surface(torch.from_numpy(vertices), torch.from_numpy(mesh.faces), torch.device("cpu"))
    truths = [photo(path) for path in test.image_filenames]
    pixels = sum(truth.shape[0] * truth.shape[1] for truth in truths)
    step = max(1, round(math.sqrt(pixels / GRID_PIXELS)))
    count = min(frames, len(truths))
    chosen = [int((k + 0.5) * len(truths) / count) for k in range(count)]
    return Scene(name, folder, train, test, surface, truths, step, chosen)


def photo(path: Path) -> torch.Tensor:
    """[h, w, 3] in [0, 1]."""
    import torch

    from core_ns.images import read_image

    return torch.from_numpy(read_image(path)[0]).float() / 255.0


# ---------------------------------------------------------------------- scoring, the same for all methods


def pixel_centres(height: int, width: int, step: int = 1) -> torch.Tensor:
    """Positions (x, y) of every ``step``-th pixel, [h, w, 2], starting in the middle of the first cell."""
    import torch

    rows, columns = torch.arange(step // 2, height, step), torch.arange(step // 2, width, step)
    y, x = torch.meshgrid(rows + 0.5, columns + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1)


def hit_mask(scene: Scene, cameras: Cameras, view: int, centres: torch.Tensor) -> torch.Tensor:
    """Which of the pixels [h, w, 2] look at the mesh."""
    return cast(scene, cameras, view, centres)[2].hit.reshape(centres.shape[:2])


def cast(scene: Scene, cameras: Cameras, view: int, pixels: torch.Tensor) -> tuple[Any, Any, Any]:
    """Origins, directions and `Hits` of rays through pixels [..., 2]."""
    import torch

    from xscale_ns.rays import pixel_rays

    points = pixels.reshape(-1, 2)
    origins, directions = pixel_rays(cameras, torch.full((len(points),), view), points)
    origins = origins.contiguous()
    return origins, directions, scene.surface.caster.cast(origins, directions)


def score(scene: Scene, render: Render, whole: bool) -> dict[str, Any]:
    """PSNR on the grid of every held-out view; with ``whole`` also all metrics of the chosen frames."""
    from core_ns.metrics import LpipsOrNothing, image_metrics, masked_psnr, psnr

    start = time.perf_counter()
    rows = []
    for view, truth in enumerate(scene.truths):
        centres = pixel_centres(*truth.shape[:2], scene.step)
        rgb = render(view, centres).clamp(0, 1)
        y, x = centres[..., 1].long(), centres[..., 0].long()
        mask = hit_mask(scene, scene.test.cameras, view, centres)
        rows.append({"psnr": psnr(rgb, truth[y, x]), "psnr_masked": masked_psnr(rgb, truth[y, x], mask)})
    result: dict[str, Any] = mean_of(rows)
    result["eval_seconds"] = time.perf_counter() - start
    if whole:
        start, lpips, rows = time.perf_counter(), LpipsOrNothing(), []
        for view in scene.frames:
            truth = scene.truths[view]
            centres = pixel_centres(*truth.shape[:2])
            mask = hit_mask(scene, scene.test.cameras, view, centres)
            rows.append(image_metrics(render(view, centres), truth, mask, lpips))
        names = [scene.test.metadata["split_names"][view] for view in scene.frames]
        result["frames"] = {"views": names, **mean_of(rows), "eval_seconds": time.perf_counter() - start}
    return result


def mean_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of every metric over the views that define it."""
    keys = sorted({key for row in rows for key, value in row.items() if value is not None})
    values = {key: [row[key] for row in rows if row.get(key) is not None] for key in keys}
    return {key: sum(some) / len(some) for key, some in values.items()}


# ---------------------------------------------------------------------- the two trained methods


class Clock:
    """Stops the training time during evaluations, and the training at the end of the budget."""

    def __init__(self, trainer: Trainer, scene: Scene, seconds: float) -> None:
        self.trainer, self.scene, self.seconds = trainer, scene, seconds
        self.waiting = [share * seconds for share in SHARES]
        self.marks: list[dict[str, Any]] = []
        self.start, self.paused = math.nan, 0.0

    def trained(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self.start - self.paused

    def after_step(self, step: int) -> None:
        """Training callback: score if the step ended beyond a mark."""
        trained, begin = self.trained(), time.perf_counter()
        mark = None
        while self.waiting and trained >= self.waiting[0]:
            mark = self.waiting.pop(0)
        if mark is None:
            return
        self.trainer.pipeline.eval()
        scores = score(self.scene, model_renderer(self.trainer), whole=not self.waiting)
        self.trainer.pipeline.train()
        self.marks.append({"mark": mark, "seconds": trained, "steps": step + 1, **scores})
        print(f"  {trained:6.1f} s  {step + 1:6d} steps  {scores['psnr_masked']:.2f} dB masked", flush=True)
        self.paused += time.perf_counter() - begin
        self.trainer.stop_training = not self.waiting

    def anneal(self) -> None:
        """Let our cosine schedules run over the time budget: how many steps that is, is not known beforehand."""
        from core_ns.schedules import cosine_factor

        def factor(step: int) -> float:
            milliseconds = 0 if math.isnan(self.start) else int(1000 * self.trained())
            return cosine_factor(milliseconds, max_steps=int(1000 * self.seconds))

        for schedule in self.trainer.optimizers.schedulers.values():
            schedule.lr_lambdas = [factor for _ in schedule.lr_lambdas]  # type: ignore[attr-defined]


def model_renderer(trainer: Trainer) -> Render:
    """Renders pixels of the trainer's held-out cameras through nerfstudio's own chunked path."""
    import torch

    model, cameras = trainer.pipeline.model, trainer.pipeline.datamanager.eval_dataset.cameras  # type: ignore

    @torch.no_grad()
    def render(view: int, centres: torch.Tensor) -> torch.Tensor:
        rays = cameras[view : view + 1].generate_rays(camera_indices=0, coords=centres.flip(-1))
        return model.get_outputs_for_camera_ray_bundle(rays)["rgb"]

    return render


def common_options(config: Any, data: Path, work: Path) -> Any:
    """What both trainers get: data, CPU, no viewer, no logs, no evaluation of their own."""
    config = copy.deepcopy(config)
    config.pipeline.datamanager.data = data
    config.output_dir, config.timestamp = work / "runs", "run"
    config.machine.device_type = "cpu"
    config.vis = "none"  # any word nerfstudio does not know switches viewer, writers and evaluation off
    config.viewer.quit_on_train_completion = True
    config.logging.local_writer.enable = False
    config.logging.profiler = "none"
    config.max_num_iterations, config.steps_per_save = 10**9, 10**9
    return config


def our_config(scene: Scene, work: Path) -> Any:
    """The preset as it is."""
    from xscale_ns.config import xscale_nvs_tiny

    return common_options(xscale_nvs_tiny.config, scene.folder, work)


def nerfacto_config(scene: Scene, work: Path, rays: int, frame: str) -> Any:
    """Stock nerfacto with the exceptions of the module docstring."""
    from nerfstudio.configs.method_configs import method_configs

    config = common_options(method_configs["nerfacto"], write_transforms(scene, work / "nerfacto"), work)
    config.pipeline.model.implementation = "torch"
    config.pipeline.model.eval_num_rays_per_chunk = 4096
    config.pipeline.datamanager.train_num_rays_per_batch = rays
    if frame == "mesh":
        parser = config.pipeline.datamanager.dataparser
        parser.orientation_method = parser.center_method = "none"
        parser.auto_scale_poses = False
    return config


def write_transforms(scene: Scene, folder: Path) -> Path:
    """transforms.json of the reader's cameras in its frame with its split; photos by absolute path."""
    import torch

    frames, files = [], {}
    for split, outputs in (("train", scene.train), ("test", scene.test)):
        files[split] = [str(path.resolve()) for path in outputs.image_filenames]
        cameras = outputs.cameras
        for index, file in enumerate(files[split]):
            pose = torch.eye(4, dtype=torch.float64)
            pose[:3] = cameras.camera_to_worlds[index].double()
            numbers = {"fl_x": cameras.fx, "fl_y": cameras.fy, "cx": cameras.cx, "cy": cameras.cy}
            numbers |= {"w": cameras.width, "h": cameras.height}
            frame = {key: value[index].item() for key, value in numbers.items()}
            frames.append({"file_path": file, "transform_matrix": pose.tolist(), **frame})
    content = {"frames": frames, "train_filenames": files["train"]}
    content |= {"val_filenames": files["test"], "test_filenames": files["test"]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def train(scene: Scene, config: Any, seconds: float, anneal: bool) -> dict[str, Any]:
    """Train until the budget is spent, scoring at the marks."""
    import numpy as np
    import torch
    from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation

    print(f"{scene.name}: {config.method_name}, {seconds:g} s", flush=True)
    begin = time.perf_counter()
    random.seed(config.machine.seed)
    np.random.seed(config.machine.seed)  # noqa: NPY002  # as ns-train does
    torch.manual_seed(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    Path(trainer.base_dir).mkdir(parents=True, exist_ok=True)
    # nerfacto's model builds a LPIPS network for evaluations of its own, which would download weights.
    with mock.patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", lambda **_: torch.nn.Identity()):
        trainer.setup()
    manager = trainer.pipeline.datamanager
    seen = [path.stem for path in manager.eval_dataset.image_filenames]
    assert seen == scene.test.metadata["split_names"], f"held-out views differ: {seen}"
    assert len(manager.train_dataset) == len(scene.train.image_filenames)
    clock = Clock(trainer, scene, seconds)
    after = [TrainingCallbackLocation.AFTER_TRAIN_ITERATION]
    trainer.callbacks.append(TrainingCallback(where_to_run=after, update_every_num_iters=1, func=clock.after_step))
    if anneal:
        clock.anneal()
    manager.next_train(0)  # nerfacto's worker process starts and reads the photos before its first batch
    setup_seconds = time.perf_counter() - begin
    clock.start = time.perf_counter()
    trainer.train()
    for process in getattr(manager, "data_procs", []):
        process.terminate()
        process.join()
    rays = manager.get_train_rays_per_batch()
    return {"setup_seconds": setup_seconds, "rays_per_batch": rays, "marks": clock.marks}


# ---------------------------------------------------------------------- the floor


def vertex_colours(scene: Scene) -> dict[str, Any]:
    """Score the floor; its time is what the projection takes."""
    import torch

    from core_ns.raycast import interpolate

    begin = time.perf_counter()
    vertices = scene.surface.vertices
    total, count = torch.zeros_like(vertices), torch.zeros(len(vertices), 1)
    missed_total, missed_count = torch.zeros(3), 0
    cameras = scene.train.cameras
    for view, path in enumerate(scene.train.image_filenames):
        image = photo(path)
        index, pixels = visible_vertices(scene, cameras, view, image)
        total[index] += bilinear(image, pixels)
        count[index] += 1
        centres = pixel_centres(*image.shape[:2], 4)
        missed = centres[~hit_mask(scene, cameras, view, centres)].long()
        missed_total += image[missed[:, 1], missed[:, 0]].sum(dim=0)
        missed_count += len(missed)
    seen = count[:, 0] > 0
    colours = total / count.clamp_min(1)
    colours[~seen] = colours[seen].mean(dim=0)
    background = missed_total / max(missed_count, 1)
    seconds = time.perf_counter() - begin

    def render(view: int, centres: torch.Tensor) -> torch.Tensor:
        _, _, hits = cast(scene, scene.test.cameras, view, centres)
        rgb = interpolate(hits, scene.surface.faces, colours).float()
        return torch.where(hits.hit[:, None], rgb, background).reshape(*centres.shape[:2], 3)

    scores = score(scene, render, whole=True)
    print(f"{scene.name}: {FLOOR}, {seconds:.1f} s, {scores['psnr_masked']:.2f} dB masked", flush=True)
    share = float(seen.float().mean())
    return {"seen_vertices": share, "marks": [{"mark": seconds, "seconds": seconds, "steps": 0, **scores}]}


def visible_vertices(
    scene: Scene, cameras: Cameras, view: int, image: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the vertices inside the picture and not hidden, and their pixel positions (x, y)."""
    import torch

    c2w = cameras.camera_to_worlds[view]
    local = (scene.surface.vertices - c2w[:, 3]) @ c2w[:, :3]
    depth = -local[:, 2]
    x = cameras.cx[view] + cameras.fx[view] * local[:, 0] / depth
    y = cameras.cy[view] - cameras.fy[view] * local[:, 1] / depth
    height, width = image.shape[:2]
    inside = (depth > 1e-3) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = inside.nonzero()[:, 0]
    pixels = torch.stack([x, y], dim=-1)[index]
    origins, _, hits = cast(scene, cameras, view, pixels)
    distance = (scene.surface.vertices[index] - origins).norm(dim=-1)
    # A ray may slip past the vertex it aims at, over the silhouette: a miss hides nothing.
    shown = hits.t >= distance - 2e-3 * scene.surface.extent
    return index[shown], pixels[shown]


def bilinear(image: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Colours [n, 3] at continuous positions (x, y); pixel centres lie at halves."""
    import torch

    size = torch.tensor([image.shape[1], image.shape[0]])
    places = (2 * pixels / size - 1)[None, None]
    planes = image.permute(2, 0, 1)[None]
    sampled = torch.nn.functional.grid_sample(planes, places, padding_mode="border", align_corners=False)
    return sampled[0, :, 0].T


# ---------------------------------------------------------------------- running and reporting


def scene_folder(name: str, arguments: argparse.Namespace, work: Path) -> Path | None:
    """Where a scene lies; the monument is made if need be. None: it is not there."""
    if name == "castle":
        return arguments.castle if arguments.castle.is_dir() else None
    if arguments.monument is not None:
        return arguments.monument
    from core_ns.demo_scenes import make_demo_scene

    print("monument: rendering 64 views", flush=True)
    width, height = arguments.size
    make_demo_scene(work / "monument", views=64, test_views=8, width=width, height=height, transforms=False)
    return work / "monument"


def run_scene(name: str, folder: Path, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All methods on one scene."""
    scene = load_scene(name, folder, arguments.frames)
    theirs = nerfacto_config(scene, work, arguments.nerfacto_rays, arguments.nerfacto_frame)
    methods = {
        FLOOR: vertex_colours(scene),
        OURS: train(scene, our_config(scene, work), arguments.seconds, anneal=True),
        THEIRS: train(scene, theirs, arguments.seconds, anneal=False),
    }
    views = [len(scene.train.image_filenames), len(scene.truths)]
    size = [scene.truths[0].shape[1], scene.truths[0].shape[0]]
    faces = len(scene.surface.faces)
    return {"views": views, "size": size, "faces": faces, "grid_step": scene.step, "methods": methods}


def verdict(scenes: dict[str, Any]) -> dict[str, Any]:
    """The lead over nerfacto at the last mark of every scene; ``passed`` is A11 on the monument."""
    result: dict[str, Any] = {}
    for name, scene in scenes.items():
        if "methods" in scene:
            ours, theirs = (scene["methods"][method]["marks"][-1] for method in (OURS, THEIRS))
            result[name] = {"lead_db": ours["psnr_masked"] - theirs["psnr_masked"]}
            if "lpips_masked" in ours["frames"]:
                result[name]["lpips_lower"] = ours["frames"]["lpips_masked"] < theirs["frames"]["lpips_masked"]
    if "monument" in result:
        monument = result["monument"]
        result["passed"] = monument["lead_db"] >= NEEDED_LEAD_DB and monument.get("lpips_lower", True)
    return result


def report(result: dict[str, Any]) -> str:
    """The table of quality.json."""
    device, setting = result["device"], result["setting"]
    lines = [f"{device['cpus']} CPUs, {device['threads']} threads, {setting['seconds']:g} s of training each"]
    lines.append(f"{'':24s}{'seconds':>9s}{'steps':>8s}{'PSNR masked':>13s}{'full':>7s}{'SSIM masked':>13s}{'LPIPS':>7s}")
    for name, scene in result["scenes"].items():
        if "skipped" in scene:
            lines.append(f"{name}: {scene['skipped']}")
            continue
        train_views, test_views = scene["views"]
        lines.append(f"{name}: {train_views} + {test_views} views, {scene['size'][0]}x{scene['size'][1]}")
        for method, run in scene["methods"].items():
            for row in run["marks"]:
                frames = row.get("frames", {})
                similar, lpips = (
                    f"{frames[key]:.3f}" if key in frames else "-" for key in ("ssim_masked", "lpips_masked")
                )
                lines.append(
                    f"  {method:22s}{row['seconds']:9.1f}{row['steps']:8d}{row['psnr_masked']:13.2f}{row['psnr']:7.2f}"
                    f"{similar:>13s}{lpips:>7s}"
                )
    return "\n".join([*lines, f"verdict: {json.dumps(result['verdict'])}"])


def plot(result: dict[str, Any], path: Path) -> None:
    """Masked PSNR against training time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scenes = {name: scene for name, scene in result["scenes"].items() if "methods" in scene}
    if not scenes:
        return
    figure, axes = pyplot.subplots(1, len(scenes), figsize=(5 * len(scenes), 3.6), squeeze=False)
    for axis, (name, scene) in zip(axes[0], scenes.items(), strict=True):
        for method, run in scene["methods"].items():
            x, y = zip(*((row["seconds"], row["psnr_masked"]) for row in run["marks"]), strict=True)
            if method == FLOOR:
                axis.axhline(y[0], linestyle="--", color="grey", label=f"{method} ({x[0]:.1f} s)")
            else:
                axis.plot(x, y, marker="o", label=method)
        axis.set(title=name, xlabel="training time, s", ylabel="masked PSNR of held-out views, dB", xlim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="training time of each method on each scene")
    parser.add_argument("--castle", type=Path, default=ROOT.parent / "shared" / "data" / "castle_mvsnet")
    parser.add_argument("--monument", type=Path, help="an ns-demo-scene folder, instead of rendering one")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240), help="of the rendered monument's pictures")
    parser.add_argument("--scenes", nargs="+", choices=["monument", "castle"], default=["monument", "castle"])
    parser.add_argument("--frames", type=int, default=1, help="held-out views rendered whole at the end, for SSIM")
    parser.add_argument("--nerfacto-rays", type=int, default=512)
    parser.add_argument("--nerfacto-frame", choices=["mesh", "own"], default="mesh")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only print the table of --out")
    arguments = parser.parse_args()
    if arguments.report:
        print(report(json.loads(arguments.out.read_text())))
        return 0
    import torch

    names = ("seconds", "size", "frames", "nerfacto_rays", "nerfacto_frame")
    result: dict[str, Any] = {
        "question": "A11: quality on held-out views against training time, CPU",
        "device": {
            "machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "python": platform.python_version(),
        },
        "setting": {name: getattr(arguments, name) for name in names},
        "scenes": {},
    }  # fmt: skip
    begin = time.perf_counter()
    for name in arguments.scenes:
        with tempfile.TemporaryDirectory(prefix="quality-") as work:
            folder = scene_folder(name, arguments, Path(work))
            skipped = {"skipped": f"{name} left out: its data are not there (--{name} PATH)"}
            result["scenes"][name] = run_scene(name, folder, arguments, Path(work)) if folder else skipped
        result["verdict"] = verdict(result["scenes"])
        result["minutes"] = (time.perf_counter() - begin) / 60
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
        plot(result, arguments.out.with_suffix(".png"))
    print(report(result))
    return 0 if result["verdict"].get("passed", True) else 1


if __name__ == "__main__":
    sys.exit(main())
