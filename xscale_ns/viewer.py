"""The model's controls in nerfstudio's viewer, read by the renderer through plain functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from nerfstudio.viewer.viewer_elements import (
    ViewerCheckbox,
    ViewerControl,
    ViewerDropdown,
    ViewerSlider,
)
from torch import Tensor, nn

from core_ns.viewer_threads import asking_browser

if TYPE_CHECKING:
    from xscale_ns.model import XScaleModel

VISER_SCALE = 10.0
"""nerfstudio multiplies scene coordinates by this for viser."""
PROXY_NAME = "/xscale_mesh"
"""The proxy mesh in viser's scene tree."""


class ViewerControls(nn.Module):
    """Exposure, background, sub-samples, geometry-only, show-misses and the proxy mesh.

    nerfstudio finds the elements as attributes of modules, hence the base class. They speak to the viewer's own
    render threads only: evaluation during a watched training, ``ns-eval`` and ``ns-render`` keep the config's settings,
    whatever somebody in a browser has chosen.
    """

    def __init__(self, model: XScaleModel) -> None:
        super().__init__()
        # In a list: as a submodule the model would contain itself.
        self._model = [model]
        self.viewer_control = ViewerControl()
        self.background = ViewerDropdown("Background", "trained", ["trained", "white", "black"])
        self.show_misses = ViewerCheckbox("Show misses", False, hint="Paint what the mesh does not cover in magenta")
        self.geometry = ViewerCheckbox("Geometry only", False, hint="Grey mesh lit from the camera")
        samples = model.config.eval_sub_samples
        self.samples = ViewerSlider(
            "Sub-samples", samples, 1, max(16, samples), 1, hint="Rays per pixel while the camera rests"
        )
        self.proxy = ViewerCheckbox("Proxy mesh", False, cb_hook=self._toggle_proxy)
        self._mesh_handle: Any = None
        if model.field.exposure is not None:
            # Numbered: a browser's menu refuses equal entries, and a photo may be called "mean".
            views = [f"{index}: {name}" for index, name in enumerate(model.train_names)]
            self.exposure = ViewerDropdown(
                "Exposure", "mean", ["mean", "sliders", *views], cb_hook=lambda _: self._show_sliders()
            )
            self.exposure_sliders = [
                ViewerSlider(f"Exposure {index}", 0.0, -1.0, 1.0, 0.01, visible=False)
                for index in range(model.config.exposure_dim)
            ]
            for index, slider in enumerate(self.exposure_sliders):
                setattr(self, f"exposure_{index}", slider)

    def exposure_code(self) -> Tensor | None:
        """The chosen exposure code, or None for the mean."""
        model = self._model[0]
        if model.field.exposure is None or asking_browser(self.viewer_control) is None or self.exposure.value == "mean":
            return None
        if self.exposure.value == "sliders":
            return torch.tensor([float(slider.value) for slider in self.exposure_sliders], device=model.device)
        return model.field.exposure.table()[self.exposure.options.index(self.exposure.value) - 2]

    def light_index(self) -> int:
        """The lighting code in use."""
        return 0

    def background_mode(self) -> str:
        """``trained``, ``white``, ``black`` or ``magenta`` (misses shown)."""
        if asking_browser(self.viewer_control) is None:
            return "trained"
        return "magenta" if self.show_misses.value else self.background.value

    def geometry_only(self) -> bool:
        """Whether to render the bare geometry."""
        return asking_browser(self.viewer_control) is not None and bool(self.geometry.value)

    def sub_samples(self, resting: int, moving: int) -> int:
        """Rays per pixel: the slider's in the viewer at rest, few while its camera moves, the config's elsewhere."""
        machine = asking_browser(self.viewer_control)
        if machine is None:
            return resting
        return moving if machine.state == "low_move" else int(self.samples.value)

    def _show_sliders(self) -> None:
        for slider in self.exposure_sliders:
            slider.set_visible(self.exposure.value == "sliders")

    def _toggle_proxy(self, element: ViewerCheckbox) -> None:
        server = getattr(self.viewer_control, "viser_server", None)
        if server is None:
            return
        if self._mesh_handle is not None:
            self._mesh_handle.remove()
            self._mesh_handle = None
        if element.value:
            surface = self._model[0].surface
            self._mesh_handle = server.scene.add_mesh_simple(
                PROXY_NAME,
                vertices=surface.vertices.cpu().numpy() * VISER_SCALE,
                faces=surface.faces.cpu().numpy().astype("uint32"),
                color=(150, 160, 170),
                opacity=self._model[0].config.mesh_opacity,
                flat_shading=True,
                # The renderer draws both sides of a face, whatever its winding.
                side="double",
            )
