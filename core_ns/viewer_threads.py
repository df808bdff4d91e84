"""Who asks for a picture: a browser's render thread of nerfstudio's viewer, or a tool."""

from __future__ import annotations

import threading
from typing import Any

from nerfstudio.viewer.viewer_elements import ViewerControl


def asking_browser(control: ViewerControl) -> Any:
    """The viewer's render thread (nerfstudio's ``RenderStateMachine``) that is the caller; None for every other caller.

    Settings in a browser thus speak to its pictures only: evaluation during a watched training, ``ns-eval`` and
    ``ns-render`` keep the config's.
    """
    viewer = getattr(control, "viewer", None)
    # Copied first: browsers come and go on other threads.
    machines = list(getattr(viewer, "render_statemachines", {}).values())
    return next((machine for machine in machines if machine is threading.current_thread()), None)
