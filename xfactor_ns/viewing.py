"""Pictures for nerfstudio's cameras from networks that know none (spec xfactor 8.2, 8.3).

A camera is compared with the cameras of a clip's frames, their pose latents are mixed, and the renderer draws the scene
of a (possibly other) clip at that latent: one square picture, set into the frame that was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from core_ns.errors import DataError
from core_ns.metrics import LpipsOrNothing, image_metrics
from core_ns.start_camera import StartCamera
from xfactor_ns import camera_control
from xfactor_ns.camera_control import Mixture
from xfactor_ns.latents import LatentBank, ShownClip
from xfactor_ns.letterbox import fit, inside, tiled
from xfactor_ns.probe_control import ProbeControl
from xfactor_ns.transfer import render_images
from xfactor_ns.view_options import EXPERIMENTAL, ViewOptions
from xfactor_ns.viewer_panel import Look, ViewerPanel

START_DISTANCE = 1.0
"""From a browser's first camera to the point that the mouse turns it around, in units of the first clip's path."""


class Drawn(NamedTuple):
    """A square picture and what it was made from."""

    picture: Float[Tensor, "h w 3"]
    """In [0, 1]."""
    context: tuple[int, list[int]]
    """Clip, and its frames that the renderer saw."""
    pose: tuple[int, int]
    """Clip, and its frame whose latent weighs most."""


class Viewing(nn.Module):
    """The pictures of a model, and the viewer's panel; without parameters, so that no checkpoint knows it.

    Attributes:
        clips: the gallery, in the order of its ids.
        panel: the controls; None before `attach`.
    """

    def __init__(self, options: ViewOptions) -> None:
        super().__init__()
        self.options = options
        self.clips: list[ShownClip] = []
        self.panel: ViewerPanel | None = None
        self.bank = LatentBank(options.batch)
        self.probe: ProbeControl | None = None
        self.lpips = LpipsOrNothing()
        self._clicked: list[int] = []
        self._centres = np.zeros((0, 3))
        self._owners = np.zeros(0, np.int64)
        self._last: tuple[Any, Drawn] | None = None
        self._probe_refused = False

    def attach(
        self, clips: Sequence[ShownClip], train_clips: Sequence[int], context_frames: int, probe: Path | None = None
    ) -> None:
        """Take the gallery; called once, before the first picture and before a viewer looks for controls.

        Args:
            clips: those to be shown.
            train_clips: clip of each training camera, an index into ``clips``.
            context_frames: that the renderer was trained with; what ``--pipeline.model.view.context-frames 0`` means.
            probe: the run's own, where the options name none; it need not exist.

        Raises:
            DataError: the options name a clip that is not there, or no clip is, or no probe that they need.
        """
        if self.options.probe is not None:
            probe = self.options.probe
        elif probe is not None and not probe.is_file():
            probe = None
        self.options.check(probe is not None)
        self.probe = ProbeControl(probe, self.options.invert_steps) if probe is not None else None
        if not clips:
            raise DataError("gallery", "", "holds no clip.", "Add clips of at least 10 frames.")
        self.clips, self._clicked = list(clips), list(train_clips)
        self._centres = np.concatenate([np.asarray(clip.c2w, np.float64)[:, :3, 3] for clip in clips])
        self._owners = np.repeat(np.arange(len(clips)), [len(clip.numbers) for clip in clips])
        options = self.options
        default = Look(
            options.control,
            self._named("context-clip", options.context_clip),
            self._named("pose-clip", options.pose_clip),
            options.context_frames or context_frames,
        )
        first = clips[self._clicked[0] if self._clicked else 0]
        start = StartCamera.of(first.c2w[first.reference], START_DISTANCE * first.path.scale)
        most = max(len(clip.numbers) for clip in clips)
        self.panel = ViewerPanel([clip.id for clip in clips], default, most, start, probe is not None)

    def _named(self, option: str, name: str) -> int | None:
        names = [clip.id for clip in self.clips]
        if not name:
            return None
        if name not in names:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise DataError(
                "config", f"pipeline.model.view.{option}", f"'{name}' is not in the gallery.", f"Choose of: {shown}."
            )
        return names.index(name)

    # ------------------------------------------------------------------ from a camera to a latent

    def home_of(self, camera: Cameras) -> int:
        """The clip a camera belongs to: its own if it is a gallery frame's, else the clicked one, else the nearest."""
        known = frame_of(camera)
        if known is not None and known[0] < len(self.clips):
            return known[0]
        clicked = (camera.metadata or {}).get("cam_idx")
        if clicked is not None and 0 <= int(clicked) < len(self._clicked):
            return self._clicked[int(clicked)]
        centre = pose_of(camera)[:, 3]
        return int(self._owners[((self._centres - centre) ** 2).sum(axis=1).argmin()])

    def pose_at(self, camera: Cameras) -> Float[np.ndarray, "4 4"]:
        """The camera as the reference of the clip that it belongs to sees it, in that clip's unit."""
        home = self.clips[self.home_of(camera)]
        return home.path.seen(pose_of(camera), home.c2w[home.reference])

    def mixture(self, look: Look, camera: Cameras, scene: int) -> tuple[int, Mixture]:
        """The clip whose latents are used, and which of them: for every control that needs no probe.

        A gallery frame moves as its own clip does, whatever the scene; other cameras as the scene's clip, unless the
        look names one.
        """
        known = frame_of(camera)
        owner = look.pose if look.pose is not None else scene if known is None else self.home_of(camera)
        clip = self.clips[owner]
        if look.share is not None:
            return owner, camera_control.between(look.share * (len(clip.numbers) - 1), len(clip.numbers))
        if known is not None and known[0] == owner and known[1] < len(clip.numbers):
            return owner, Mixture((known[1],), (1.0,))
        # As far in units of the motion's own clip as the camera is in units of its clip's.
        pose, weight = self.pose_at(camera), self.options.rotation_weight
        if look.control == "nearest":
            return owner, camera_control.nearest(clip.path, pose, weight)
        if look.control == "blend":
            return owner, camera_control.blend(clip.path, pose, self.options.neighbours, weight)
        return owner, camera_control.along(clip.path, pose, weight)

    # ------------------------------------------------------------------ pictures

    def draw(self, model: Any, camera: Cameras, look: Look) -> Drawn:
        """One call of the renderer; none when only the frame around the picture changed."""
        net, scene = model.net, self.home_of(camera) if look.context is None else look.context
        owner, mixture = self.mixture(look, camera, scene)
        context, motion = self.clips[scene], self.clips[owner]
        pose = self.pose_at(camera)
        probed = look.control in EXPERIMENTAL and look.share is None
        key = (self.bank.version(net), scene, owner, mixture, look.frames, pose.tobytes() if probed else look.control)
        last = self._last
        if last is not None and last[0] == key:
            return last[1]
        frames, pixels, latents = self.bank.context(net, context, look.frames)
        latent = self._probed(net, look, pose) if probed else None
        if latent is None:
            latent = self.bank.mixed(net, motion, mixture)
        (image,) = next(iter(render_images(net, pixels, latents, latent[None])))
        drawn = Drawn(((image + 1) / 2).clamp(0, 1), (scene, frames), (owner, mixture.strongest))
        self._last = key, drawn
        return drawn

    def _probed(self, net: Any, look: Look, pose: Float[np.ndarray, "4 4"]) -> Float[Tensor, "p"] | None:
        """The probe's latent; in a browser, whose render thread an error would end, None after one printed line."""
        assert self.probe is not None, "checked when the gallery was attached"
        try:
            return self.probe.latent(net, self.bank.version(net), pose, invert=look.control == "invert")
        except DataError as error:
            if self.panel is None or look is self.panel.default:
                raise
            if not self._probe_refused:
                self._probe_refused = True
                CONSOLE.print(f"[bold yellow]No probe, trajectory instead: {error}", soft_wrap=True)
            return None

    @torch.no_grad()
    def outputs_for_camera(self, model: Any, camera: Cameras) -> dict[str, Float[Tensor, "h w c"]]:
        """What nerfstudio shows for a camera [1].

        Args:
            model: has the networks as ``net``.
            camera: perspective; only its pose and its size in pixels count, since the networks draw one square with the
                lens of the context frames.

        Returns:
            ``rgb`` [H, W, 3], the square in the middle; ``accumulation`` [H, W, 1], 1 inside it; ``depth`` [H, W, 1],
            zeros, because the networks have none; ``context`` [H, W, 3], the frames that the renderer saw;
            ``pose_frame`` [H, W, 3], the frame whose latent weighs most.

        Raises:
            DataError: a camera of another kind (not from a browser, whose render thread an error would end).
            RuntimeError: no gallery was attached.
        """
        if self.panel is None:
            raise RuntimeError("no gallery is attached: pictures need clips")
        look = self.panel.look()
        kind = int(camera.camera_type.reshape(-1)[0])
        if kind != CameraType.PERSPECTIVE.value and look is self.panel.default:
            raise DataError(
                "camera", "camera_type", f"is {CameraType(kind).name.lower()}; the networks draw square pictures with "
                "the lens of the clip.", "Choose the camera type perspective.",
            )  # fmt: skip
        drawn = self.draw(model, camera, look)
        rows, columns = int(camera.height.reshape(-1)[0]), int(camera.width.reshape(-1)[0])
        height, width = drawn.picture.shape[:2]
        device = drawn.picture.device

        def pixels(clip: int, frames: list[int]) -> list[Tensor]:
            return list(self.bank.pixels(model.net, self.clips[clip])[frames].float() / 255)

        covered = inside(height, width, rows, columns, device)
        return {
            "rgb": fit(drawn.picture, rows, columns).clamp(0, 1),
            "accumulation": covered,
            "depth": torch.zeros(rows, columns, 1, device=device),
            "context": fit(tiled(pixels(*drawn.context), rows, columns), rows, columns).clamp(0, 1),
            "pose_frame": fit(pixels(drawn.pose[0], [drawn.pose[1]])[0], rows, columns).clamp(0, 1),
        }

    @torch.no_grad()
    def image_metrics(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Float[Tensor, "h w 3"]]]:
        """Metrics of one gallery frame inside the square, and truth, rendering and error side by side.

        Its pose is read from the frame itself: a reconstruction, not a transfer (`eval_metrics` has those).
        """
        rgb = outputs["rgb"]
        truth = fit(batch["image"].to(rgb.device)[..., :3].float(), *rgb.shape[:2]) * outputs["accumulation"]
        columns, rows = outputs["accumulation"][..., 0].amax(dim=0) > 0, outputs["accumulation"][..., 0].amax(dim=1) > 0
        metrics = image_metrics(rgb[rows][:, columns], truth[rows][:, columns], None, self.lpips)
        pictures = {
            "img": torch.cat([truth, rgb, (rgb - truth).abs()], dim=1),
            "context": outputs["context"],
        }
        return metrics, pictures


def rgba(outputs: dict[str, Tensor], name: str = "rgb") -> Float[Tensor, "h w 4"]:
    """An output with what is beside the square cut out, as ``ns-render ... rgba`` asks for it."""
    colour = outputs[name]
    return torch.cat([colour.expand(*colour.shape[:2], 3), outputs["accumulation"]], dim=-1)


def pose_of(camera: Cameras) -> Float[np.ndarray, "3 4"]:
    """Camera-to-world matrix of a camera [1], OpenGL axes, float64."""
    return camera.camera_to_worlds.reshape(-1, 3, 4)[0].detach().cpu().double().numpy()


def frame_of(camera: Cameras) -> tuple[int, int] | None:
    """Clip and frame of a gallery camera, from its metadata; None for every other camera."""
    metadata = camera.metadata or {}
    if "clip_id" not in metadata or "frame_pos" not in metadata:
        return None
    return int(metadata["clip_id"].reshape(-1)[0]), int(metadata["frame_pos"].reshape(-1)[0])
