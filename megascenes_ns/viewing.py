"""From nerfstudio's cameras to pictures: reference, warp, sampling, cache (spec megascenes 8.3).

For the model: ``Viewing(view, sampling, ...)`` once, `Viewing.attach` when the data are known, `Viewing.outputs` in
``get_outputs_for_camera``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from core_ns.errors import DataError
from core_ns.start_camera import StartCamera
from megascenes_ns.canonical import c2w_ns_from_rel, rel_from_c2w_ns
from megascenes_ns.conditioning import Uncond
from megascenes_ns.drawing import Drawer, Settings, View, view_of, weights_fingerprint, weights_version
from megascenes_ns.model_config import SamplingOptions
from megascenes_ns.networks import Networks
from megascenes_ns.picture_cache import PictureCache, PictureKey, rounded
from megascenes_ns.pose_vector import Squash
from megascenes_ns.reference import Reference, reference_of_photo, reference_of_view
from megascenes_ns.reference_shelf import ReferenceShelf
from megascenes_ns.view_options import ViewOptions, preview_below
from megascenes_ns.view_outputs import blank, outputs_of
from megascenes_ns.view_worker import ViewWorker
from megascenes_ns.viewer_panel import Look, Picks, ViewerPanel
from megascenes_ns.warp import Warp

Array = np.ndarray

TURNING_DISTANCE = 2.2
"""From a browser's first camera to the point that the mouse turns it around; units of q20, as the orbit's (spec 7)."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What a browser was shown last."""

    view: View
    warp: Warp
    picture: UInt8[Array, "h w 3"]


class Drawn(NamedTuple):
    """What drawing one camera came to."""

    outputs: dict[str, Float[Tensor, "h w c"]]
    shown: Shown | None = None
    """A sampled picture, if it is one."""
    few: PictureKey | None = None
    """Key of a picture of few steps: the next one at the same camera is to be the finished one."""
    again: bool = False
    """Ask for that next one."""


class Viewing(nn.Module):
    """The pictures of a model, and the viewer's panel; without parameters, so that no checkpoint knows it.

    Args:
        options: reference, warp and cache.
        sampling: of pictures.
        uncond: what guidance starts from, resolved.
        picture: side of the networks' square.
        squash: of poses.
        precision: of the networks.

    Attributes:
        panel: the controls; None before `attach`.
        drawer: draws warps and pictures.
        cache: finished pictures.
    """

    def __init__(
        self,
        options: ViewOptions,
        sampling: SamplingOptions,
        uncond: Uncond,
        picture: int = 256,
        squash: Squash = "none",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        super().__init__()
        self.options, self.sampling, self.picture = options, sampling, picture
        self.uncond: Uncond = uncond
        self.drawer = Drawer(options.samples_per_pixel, options.warp_backend, options.warp_low, squash, precision)
        self.cache = PictureCache(options.cache_pictures, options.cache_folder)
        self.worker = ViewWorker()
        self.panel: ViewerPanel | None = None
        self.shelf: ReferenceShelf | None = None
        self._picked: Reference | int | None = None
        self._clicked = 0
        self._shown: Shown | None = None
        self._optional: Reference | None = None
        self._warp: tuple[tuple[Any, ...], Warp] | None = None
        self._few: PictureKey | None = None
        self._weights: tuple[str, str] = ("", "")
        self._complained = ""

    def attach(self, shelf: ReferenceShelf) -> None:
        """Take the references; called once, before the first picture and before a viewer looks for controls.

        The option ``reference_image``, where set, replaces the first of them; it is opened when first drawn.
        """
        self.shelf = shelf
        sampling = self.sampling
        default = Look(sampling.steps, sampling.guidance, sampling.seed, True, self.options.scale)
        pose = c2w_ns_from_rel(np.eye(4))[:3]
        start = StartCamera.of(pose, TURNING_DISTANCE)
        picks = Picks(self._pick_pair, self._pick_photo, self._pick_view)
        self.panel = ViewerPanel(default, shelf.first, picks, start)

    # ------------------------------------------------------------------ references

    def open_photo(self, file: Path) -> Reference:
        """A photo as reference, with the options' lens and depth.

        Raises:
            DataError: no photo, or no depth of it.
        """
        options = self.options
        own = options.reference_image is not None and file.resolve() == Path(options.reference_image).resolve()
        # Another photo has another depth, unless the option makes one for any.
        general = options.depth.partition(":")[0] == "plane" or Path(options.depth).is_dir()
        depth = options.depth if own or general else ""
        return reference_of_photo(file, depth, options.fov, self.picture)

    def reference(self, camera: Cameras, browser: Any = None) -> Reference:
        """The active reference of a camera: its own pair's, else the clicked or picked one, else the first.

        Args:
            camera: [1].
            browser: the asking render thread of the viewer, None for a tool.

        Raises:
            DataError: it cannot be opened.
            RuntimeError: nothing was attached.
        """
        if self.shelf is None:
            raise RuntimeError("no references are attached: pictures need one")
        metadata = camera.metadata or {}
        if "pair_idx" in metadata:
            return self.shelf.at(int(torch.as_tensor(metadata["pair_idx"]).reshape(-1)[0]))
        index = metadata.get("cam_idx")
        if index is not None:
            index = int(torch.as_tensor(index).reshape(-1)[0])
            pair = self.shelf.of_camera(index)
            if browser is None and pair is not None:
                return self.shelf.at(pair)
            # The viewer sends one always, 0 until a camera is clicked: only a change means something.
            if browser is not None and index != self._clicked:
                if pair is not None:
                    self._picked = pair
                self._clicked = index
        picked = self._picked if browser is not None else None
        if isinstance(picked, Reference):
            return picked
        if picked is None and self.options.reference_image is not None:
            return self._option_reference()
        return self.shelf.at(self.shelf.first if picked is None else picked)

    def _option_reference(self) -> Reference:
        found = self._optional
        if found is None:
            assert self.options.reference_image is not None
            found = self.open_photo(Path(self.options.reference_image))
            self._optional = found
        return found

    def _pick_pair(self, pair: int) -> None:
        assert self.shelf is not None
        try:
            self.shelf.at(pair)
            self._picked = pair
        except DataError as error:
            self._complain(error)

    def _pick_photo(self, file: Path) -> None:
        try:
            self._picked = self.open_photo(file)
        except DataError as error:
            self._complain(error)

    def _pick_view(self) -> None:
        shown = self._shown
        if shown is None:
            return
        view = shown.view
        try:
            # The slider goes on multiplying: the depth is kept in the unit that it will be divided by.
            self._picked = reference_of_view(
                np.array(shown.picture), view.K, shown.warp.depth * np.float32(view.reference.unit), view.pose,
                self.picture, "view",
            )  # fmt: skip
        except DataError as error:
            self._complain(error)

    def _complain(self, error: DataError) -> None:
        """Say once what is wrong; a browser's render thread must not end."""
        if str(error) != self._complained:
            self._complained = str(error)
            CONSOLE.print(f"[bold yellow]{error}", soft_wrap=True)

    # ------------------------------------------------------------------ keys

    def weights(self, nets: Networks) -> str:
        """Name of the weights in keys; costs a look at all of them after each change if there is a folder."""
        version = weights_version(nets)
        if self._weights[0] != version:
            name = version if self.options.cache_folder is None else weights_fingerprint(nets)
            self._weights = (version, name)
        return self._weights[1]

    def key(self, view: View, settings: Settings, seed: int, weights: str) -> PictureKey:
        """Everything that a view's picture depends on."""
        lens = (view.K[0, 0], view.K[1, 1], view.K[0, 2], view.K[1, 2], view.fov)
        return PictureKey(
            reference=view.reference.key, rel=rounded(view.rel), lens=rounded(np.array(lens)), size=view.size,
            sampler=settings.sampler, steps=settings.steps, guidance=settings.guidance, uncond=settings.uncond,
            seed=seed, warp=self.drawer.warp_settings, weights=f"{weights} {self.drawer.precision}",
        )  # fmt: skip

    def settings(self, look: Look | None = None) -> Settings:
        """Of the config, or as a browser asks."""
        steps, guidance = self.sampling.steps, self.sampling.guidance
        if look is not None:
            steps, guidance = look.steps, look.guidance
        return Settings(self.sampling.sampler, steps, guidance, self.uncond)

    # ------------------------------------------------------------------ pictures

    def warp(self, view: View, device: torch.device | str = "cpu") -> Warp:
        """The warp of a view; the last one is kept."""
        key = (view.reference.key, view.rel.tobytes(), view.K.tobytes(), view.size)
        last = self._warp
        if last is not None and last[0] == key:
            return last[1]
        (found,) = self.drawer.warps([view], device)
        self._warp = (key, found)
        return found

    def outputs(self, nets: Networks, camera: Cameras, *, seed: int | None = None) -> dict[str, Float[Tensor, "h w c"]]:
        """What nerfstudio shows for a camera [1].

        Args:
            nets: the networks.
            camera: perspective, in the canonical world; distortion is not drawn.
            seed: of the noise instead of the options'.

        Returns:
            See `view_outputs.outputs_of`; the same names for every camera. A browser's small pictures, and those while
            its camera moves, are the warp; then comes a picture of few steps, then the finished one.

        Raises:
            DataError: a camera of another kind, or a reference that cannot be opened (not from a browser, whose render
                thread an error would end: it gets black pictures, or the warp, and one printed line).
        """
        if self.panel is None:
            raise RuntimeError("no references are attached: pictures need one")
        browser = self.panel.browser()
        kind = int(camera.camera_type.reshape(-1)[0])
        if kind != CameraType.PERSPECTIVE.value and browser is None:
            problem = f"is {CameraType(kind).name.lower()}; the networks know perspective pictures only."
            raise DataError("camera", "camera_type", problem, "Choose the camera type perspective.")
        look = self.panel.look(browser)
        if seed is not None:
            look = replace(look, seed=seed)
        # All on the worker's thread: in a browser's this code could be left at any line, with some library's lock held.
        drawn = self.worker.run(lambda cancelled: self._drawn(nets, camera, look, browser, cancelled))
        if browser is not None:
            self._shown, self._few = drawn.shown or self._shown, drawn.few
            if drawn.again:
                self.worker.run(lambda _: render_again(browser))
        return drawn.outputs

    def _drawn(self, nets: Networks, camera: Cameras, look: Look, browser: Any, cancelled: Callable[[], bool]) -> Drawn:
        """Reference, warp and picture of one camera; changes nothing that a browser was not shown."""
        pose, K, width, height = pinhole_of(camera)
        with torch.no_grad():
            try:
                view = view_of(self.reference(camera, browser), pose, K, width, height, look.scale)
                warp = self.warp(view, nets.device)
                picture, few = self._picture(nets, view, warp, look, browser, max(height, width), cancelled)
            except DataError as error:
                if browser is None:
                    raise
                self._complain(error)
                return Drawn(blank(height, width, nets.device))
            outputs = outputs_of(picture, warp, view.reference.prepared.image, view.unit, height, width, nets.device)
        shown = None if picture is None else Shown(view, warp, picture)
        return Drawn(outputs, shown, few, few is not None)

    def _picture(
        self,
        nets: Networks,
        view: View,
        warp: Warp,
        look: Look,
        browser: Any,
        longest: int,
        cancelled: Callable[[], bool],
    ) -> tuple[UInt8[Array, "h w 3"] | None, PictureKey | None]:
        """The finished picture; for a browser perhaps the one of few steps, with its key, or None: the warp."""
        weights, settings = self.weights(nets), self.settings(look)
        seed = look.seed if look.locked else own_seed(look.seed, view)
        key = self.key(view, settings, seed, weights)
        found = self.cache.get(key)
        if found is not None:
            return found, None
        if browser is not None and (browser.state != "high" or longest < preview_below(self.picture)):
            return None, None
        few = replace(settings, steps=self.sampling.preview_steps)
        few_key = self.key(view, few, seed, weights)
        staged = browser is not None and 0 < few.steps < settings.steps and self._few != few_key
        if staged:
            settings, key = few, few_key
            found = self.cache.get(key, disk=False)
        if found is None:
            (found,) = self.drawer.pictures(nets, [view], [warp], settings, [seed], cancelled)
            self.cache.put(key, found, store=browser is None)
        return found, few_key if staged else None


def own_seed(seed: int, view: View) -> int:
    """A seed of a camera's own, the same whenever the camera comes back."""
    digest = hashlib.sha256(f"{seed} {rounded(view.rel)} {rounded(view.K)}".encode()).digest()
    return int.from_bytes(digest[:4], "little") & 0x7FFFFFFF


def render_again(browser: Any) -> None:
    """Let a browser's render thread draw once more at full size, unless its camera moves before."""
    from nerfstudio.viewer.render_state_machine import RenderAction

    browser.action(RenderAction("step", browser.viewer.get_camera_state(browser.client)))


def pinhole_of(camera: Cameras) -> tuple[Float[Array, "4 4"], Float[Array, "3 3"], int, int]:
    """Pose (camera to canonical world, OpenCV axes), K, width and height of a camera [1]. float64."""

    def number(values: Tensor) -> float:
        return float(values.reshape(-1)[0])

    rel = rel_from_c2w_ns(camera.camera_to_worlds.reshape(-1, 3, 4)[0].detach().cpu().double().numpy())
    fx, fy, cx, cy = (number(values) for values in (camera.fx, camera.fy, camera.cx, camera.cy))
    K = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    return rel, K, int(number(camera.width)), int(number(camera.height))
