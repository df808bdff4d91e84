"""Finding and moving the controls of nerfstudio's viewer in a page."""

from __future__ import annotations

from browser import Chromium

FIND = """(() => {
    const labels = Array.from(document.querySelectorAll('label, div, span')).filter(
        each => !each.children.length && each.textContent.trim() === '%s');
    for (let part = labels[0]; part; part = part.parentElement) {
        const slider = part.querySelector('[role=slider]');
        if (slider) return slider;
    }
})()"""
FIND_BOX = FIND.replace("[role=slider]", "input[type=checkbox]")


def slider(page: Chromium, label: str, attribute: str = "aria-valuenow") -> float:
    """What a slider of the control panel says."""
    return float(page.evaluate(f"{FIND % label}.getAttribute('{attribute}')"))


def press(page: Chromium, label: str, key: str, code: int) -> None:
    """A key on a focused slider."""
    page.evaluate(f"{FIND % label}.focus()")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
