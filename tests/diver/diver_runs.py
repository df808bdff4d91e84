"""Small objects, models and training runs of diver for the tests of its model, its stages and its commands."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    import nerfstudio.engine.trainer  # noqa: F401
    from nerfstudio.cameras.cameras import Cameras, CameraType
    from nerfstudio.cameras.rays import RayBundle
    from nerfstudio.data.scene_box import SceneBox
    from nerfstudio.utils.rich_utils import CONSOLE

    from diver_ns.config import diver_tiny

from dataparsers.blender_parser import write_blender
from dataparsers.object_scene import demo_object, orbit_poses
from diver_ns.model import DiverModel, DiverModelConfig

NOISE = (
    # nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
    "ignore:Using a non-tuple sequence:UserWarning",
    # nerfstudio's trainer still builds torch.cuda.amp's scaler.
    r"ignore:`?torch.cuda.amp:FutureWarning",
    # ... and logs losses with their graph attached.
    "ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning",
)
"""Warnings of nerfstudio's that every run raises; for ``pytest.mark.filterwarnings``."""

SMALL: dict[str, Any] = {
    "resolution": 32,
    "coarse_resolution": 8,
    "decoder_width": 32,
    "coarse_rays": 256,
    "fine_rays": 512,
    "implicit_width": 32,
    "implicit_depth": 2,
    "prune_stride": 1,
}
"""Model options with which a step takes some 20 ms on one core."""


def write_object(folder: Path, train: int = 16, size: int = 64) -> Path:
    """The demo object as a NeRF-synthetic scene; two views held out for each of validation and test."""
    scene = demo_object(train=train, val=2, test=2, size=size, supersample=2, texture_detail=64, mesh_faces=3000)
    write_blender(folder, scene)
    return folder


def run_config(scene: Path, output_dir: Path, steps: tuple[int, int, int], name: str = "run", **model: Any) -> Any:
    """A config of diver-tiny on the CPU without viewer, evaluation and log; model options as keywords."""
    config: Any = copy.deepcopy(diver_tiny.config)
    config.output_dir, config.data, config.timestamp = output_dir, scene, name
    config.experiment_name = scene.name
    config.vis, config.machine.device_type, config.max_num_iterations = "tensorboard", "cpu", sum(steps)
    config.steps_per_save = config.steps_per_eval_batch = config.steps_per_eval_image = 10**6
    config.steps_per_eval_all_images = config.logging.steps_per_log = 10**6
    config.save_only_latest_checkpoint = False
    config.logging.local_writer.enable = False
    config.pipeline.datamanager.data = scene
    for option, value in {**SMALL, "stage_steps": steps, **model}.items():
        assert hasattr(config.pipeline.model, option), option
        setattr(config.pipeline.model, option, value)
    return config


def open_trainer(config: Any, until: int | None = None) -> Any:
    """A trainer that is set up, and remembers what happened.

    Args:
        config: of `run_config` or `resumed`.
        until: stop after this step as SIGTERM does, instead of at the end.

    Attributes of the result, by step: ``losses``, ``adam_steps`` and ``rates`` (by group), ``shown`` (the viewer's
    text); ``last_state``: the model's state dict after the last step, before what follows it.
    """
    torch.manual_seed(config.machine.seed)  # as ns-train does
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.losses, trainer.adam_steps, trainer.rates, trainer.shown = {}, {}, {}, {}
    step_once, model = trainer.train_iteration, trainer.pipeline.model

    def recorded(step: int) -> Any:
        trainer.shown[step] = model.stage_text.value
        output = step_once(step)
        trainer.losses[step] = float(output[0].detach())
        groups = trainer.optimizers.optimizers.items()
        trainer.adam_steps[step] = {
            name: max([0, *(int(state["step"]) for state in optimizer.state.values())]) for name, optimizer in groups
        }
        trainer.rates[step] = {name: optimizer.param_groups[0]["lr"] for name, optimizer in groups}
        if step == until:
            trainer.stop_training = True
        if step in (until, trainer._start_step + config.max_num_iterations - 1):
            trainer.last_state = copy.deepcopy(model.state_dict())
        return output

    trainer.train_iteration = recorded
    return trainer


def train(config: Any, until: int | None = None) -> Any:
    """Train to the end (or until a step); the finished trainer of `open_trainer`, its ``log`` is what was printed."""
    with CONSOLE.capture() as printed:
        trainer = open_trainer(config, until)
        trainer.config.viewer.quit_on_train_completion = True
        trainer.train()
    trainer.log = printed.get()
    return trainer


def checkpoint(folder: Path, step: int) -> dict[str, Any]:
    """A checkpoint of a run, as strictly as torch can read it."""
    path = folder / "nerfstudio_models" / f"step-{step:09d}.ckpt"
    return torch.load(path, weights_only=True, map_location="cpu")


def model_state(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The model's part of a checkpoint."""
    return {name.removeprefix("_model."): value for name, value in state["pipeline"].items() if "_model." in name}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Of two state dicts with the same names and shapes."""
    assert one.keys() == other.keys()
    assert all(one[name].shape == other[name].shape for name in one)
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel())


def resumed(config: Any, folder: Path, step: int, further: int) -> Any:
    """The same configuration, going on from one checkpoint for so many further steps."""
    other = copy.deepcopy(config)
    other.load_dir, other.load_step, other.max_num_iterations = folder, step, further
    other.timestamp = f"from-{step}-for-{further}"
    return other


def make_model(background: tuple[float, float, float] = (1.0, 1.0, 1.0), **options: Any) -> DiverModel:
    """A fresh model in the usual cube, without data."""
    settings = {**SMALL, "stage_steps": (2, 2, 2), **options}
    torch.manual_seed(1)
    return DiverModelConfig(**settings).setup(
        scene_box=SceneBox(torch.tensor([[-1.4, -1.4, -1.4], [1.4, 1.4, 1.4]])),
        num_train_data=2,
        metadata={"grid_side": 2.8, "grid_center": [0.0, 0.0, 0.0], "background": list(background)},
        device="cpu",
        grad_scaler=None,
    )


def orbit_camera(
    size: int = 48, kind: CameraType = CameraType.PERSPECTIVE, which: int = 3, focal: float | None = None
) -> Cameras:
    """One camera that looks at the origin from the demo object's orbit."""
    pose = torch.from_numpy(orbit_poses(8, 0.4)[which]).float() * torch.tensor([1.0, -1.0, -1.0, 1.0])
    fx, middle, side = (torch.tensor([[value]]) for value in (focal or 1.39 * size, size / 2, size))
    return Cameras(pose[None, :3], fx, fx, middle, middle, side, side, camera_type=kind)


def bundle(origins: torch.Tensor, directions: torch.Tensor) -> RayBundle:
    """Rays [R] as the data manager hands them to the model."""
    return RayBundle(origins, directions, torch.ones(len(origins), 1))


def rays_from(camera: Cameras) -> RayBundle:
    """All rays of a perspective camera, one after the other."""
    return camera.generate_rays(camera_indices=0, keep_shape=True).flatten()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two pictures with values up to 1, dB; infinite when they are equal."""
    return float(-10 * torch.log10((a - b).square().mean()))
