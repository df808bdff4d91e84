"""Driving a headless Chromium through its DevTools protocol: no driver program, no package beyond websockets.

The browser resolves no host but 127.0.0.1, so a page that needs the network fails here as it does offline.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from commands import start
from PIL import Image

BINARY = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--no-first-run", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)  # fmt: skip


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what: str, done: Callable[[], Any], timeout: float = 120) -> Any:
    """Ask until the answer is neither None nor False; AssertionError with ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while (answer := done()) is None or answer is False:
        assert time.monotonic() < deadline, f"waited {timeout} s for: {what}"
        time.sleep(0.05)
    return answer


class Chromium:
    """One browser window with everything its page and the page's workers do; a context manager.

    Attributes:
        frames: websocket traffic in order, as ("sent" or "received", payload).
    """

    def __init__(self, folder: Path, width: int = 900, height: int = 600) -> None:
        assert BINARY is not None
        self.folder = folder
        self.frames: list[tuple[str, bytes]] = []
        self._calls = 0
        self._open = contextlib.ExitStack()
        self.process = subprocess.Popen(
            [BINARY, *FLAGS, f"--window-size={width},{height}", f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._connect()
        except BaseException:
            self._end()
            raise

    def _connect(self) -> None:
        from websockets.sync.client import connect

        file = self.folder / "DevToolsActivePort"
        wait_until("Chromium's DevTools port", lambda: file.is_file() and len(file.read_text().split()) == 2)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://127.0.0.1:{file.read_text().split()[0]}/json/list", timeout=30) as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        self.socket = self._open.enter_context(connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None))
        # viser's websocket lives in a worker: it is attached before it starts, so that no frame is missed.
        self.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._open.close()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(30)

    def _send(self, method: str, session: str | None = None, **parameters: Any) -> int:
        self._calls += 1
        target = {"sessionId": session} if session else {}
        self.socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters} | target))
        return self._calls

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a DevTools method of the page and return its answer, noting the events that arrive before it."""
        number = self._send(method, **parameters)
        while True:
            message = json.loads(self.socket.recv(timeout=120))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message.get("method"), message.get("params"))

    def _note(self, event: str | None, parameters: Any) -> None:
        if event == "Target.attachedToTarget":
            for method in ("Network.enable", "Runtime.runIfWaitingForDebugger"):
                self._send(method, parameters["sessionId"])
        elif event in ("Network.webSocketFrameSent", "Network.webSocketFrameReceived"):
            direction = event.removeprefix("Network.webSocketFrame").lower()
            self.frames.append((direction, base64.b64decode(parameters["response"]["payloadData"])))

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def screenshot(self, selector: str) -> np.ndarray:
        """What the window shows where the first match of a CSS selector lies, uint8 [H, W, 3]."""
        script = f"(() => {{const r = document.querySelector('{selector}').getBoundingClientRect();"
        left, top, right, bottom = self.evaluate(f"{script} return [r.left, r.top, r.right, r.bottom]}})()")
        picture = Image.open(io.BytesIO(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])))
        return np.asarray(picture.convert("RGB").crop((round(left), round(top), round(right), round(bottom))))

    def drag(self, start: tuple[float, float], by: tuple[float, float], steps: int = 8) -> None:
        """Press the left mouse button, move and release; window pixels."""
        for step in range(-1, steps + 2):
            kind = "mousePressed" if step < 0 else "mouseReleased" if step > steps else "mouseMoved"
            share = min(max(step, 0), steps) / steps
            x, y = start[0] + by[0] * share, start[1] + by[1] * share
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)


def pictures_sent(frames: list[tuple[str, bytes]]) -> list[np.ndarray]:
    """The renderings among the messages a browser received, oldest first."""
    payloads = (payload for direction, payload in frames if direction == "received")
    starts = ((payload, payload.find(b"\xff\xd8\xff")) for payload in payloads)
    return [np.asarray(Image.open(io.BytesIO(payload[start:]))) for payload, start in starts if start >= 0]


def answers(port: int) -> bool:
    """Whether somebody listens on a local port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def viewer_page(
    config: Path, cwd: Path, profile: Path, within: float = 3
) -> Iterator[tuple[Chromium, Callable[[], np.ndarray]]]:
    """A run in ``ns-viewer`` and its page in Chromium.

    Args:
        config: ``config.yml`` of the run.
        cwd: where ns-viewer runs.
        profile: folder for the browser.
        within: grey levels that page and rendering may differ in the median; the page scales the rendering, so that
            finely textured ones differ more.

    Yields:
        The page, and a function that waits until the page shows the last fine rendering and gives it, uint8 [H, W, 3].
    """
    port = free_port()
    server = start("ns-viewer", "--load-config", config, "--viewer.websocket-port", str(port), cwd=cwd)
    try:
        wait_until("ns-viewer's port", lambda: answers(port) or server.poll() is not None)
        assert server.poll() is None, server.communicate()[0]
        with Chromium(profile) as page:
            page.call("Page.navigate", url=f"http://127.0.0.1:{port}")

            def settled() -> np.ndarray | None:
                """The page's picture once the fine rendering, not a coarse one on the way to it, is what it shows."""
                page.evaluate("1")  # takes in what has arrived
                sent = pictures_sent(page.frames)
                if not sent or max(sent[-1].shape) < 512 or page.evaluate("!document.querySelector('canvas')"):
                    return None
                seen = page.screenshot("canvas")  # reaches under the control panel on the right; the rendering does not
                seen = seen[:, : round(seen.shape[0] * sent[-1].shape[1] / sent[-1].shape[0])]
                size = (seen.shape[1], seen.shape[0])
                expected = np.asarray(Image.fromarray(sent[-1]).resize(size, Image.Resampling.BILINEAR)).astype(int)
                # Where something is to be seen, and the median: training cameras and axes are drawn over the rendering.
                subject = (np.abs(expected - expected[0, 0]) > 20).any(axis=-1)
                return seen if subject.any() and np.median(np.abs(expected - seen)[subject]) <= within else None

            yield page, lambda: wait_until("the rendering in the page", settled)
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.communicate(timeout=30)
        except Exception:
            server.kill()
            server.communicate()


def drag_turns_the_page(config: Path, cwd: Path, profile: Path) -> np.ndarray:
    """Assert that a run's page in ``ns-viewer`` shows its rendering and that a drag turns it.

    Returns:
        What the page showed first, uint8 [H, W, 3].
    """
    with viewer_page(config, cwd, profile) as (page, shown):
        first = shown()
        assert first.std() > 20, "a blank page"
        count = len(pictures_sent(page.frames))
        page.drag((300, 250), (120, -30))
        wait_until(
            "renderings of the dragged view", lambda: page.evaluate("1") and len(pictures_sent(page.frames)) > count
        )
        time.sleep(1)  # the camera glides on after the button is up
        second = shown()
        assert np.abs(first.astype(int) - second).mean() > 5, "the picture did not follow the mouse"
        return first
