"""``make demo``: a scene, a training, metrics, a video and a contact sheet, each by the command a user would type."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def run(*command: str | Path) -> None:
    """Show and run a command; the demo ends where one fails."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    subprocess.run(words, check=True)


def video_frames(path: Path, count: int) -> list[Image.Image]:
    """Evenly spaced frames of a video."""
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    size = next(reader)["size"]
    frames = [Image.frombytes("RGB", size, frame) for frame in reader]
    return [frames[index] for index in np.linspace(0, len(frames) - 1, count).astype(int)]


def contact_sheet(rows: list[tuple[str, list[Image.Image]]], width: int, path: Path) -> None:
    """Rows of pictures under a caption, as one JPEG."""
    sheets, margin, caption = [], 6, 18
    for title, images in rows:
        cell = (width - margin * (len(images) + 1)) // len(images)
        cells = [image.convert("RGB").resize((cell, image.height * cell // image.width)) for image in images]
        strip = Image.new("RGB", (width, caption + max(image.height for image in cells) + margin), "white")
        ImageDraw.Draw(strip).text((margin, 3), title, fill="black")
        for index, image in enumerate(cells):
            strip.paste(image, (margin + index * (cell + margin), caption))
        sheets.append(strip)
    sheet = Image.new("RGB", (width, sum(strip.height for strip in sheets)), "white")
    top = 0
    for strip in sheets:
        sheet.paste(strip, (0, top))
        top += strip.height
    sheet.save(path, quality=88)


def main() -> None:
    """Run the demo into a folder; a finished scene is used again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo"))
    parser.add_argument("--steps", type=int, default=1500)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    scene, outputs = folder / "scene", folder / "outputs"
    run_dir = outputs / "scene" / "xscale-nvs-tiny" / "demo"
    if not (scene / "scene.ply").is_file():
        run("ns-demo-scene", "--output-dir", scene)
    run("ns-train", "xscale-nvs-tiny", "--data", scene, "--output-dir", outputs, "--timestamp", "demo",
        "--max-num-iterations", str(arguments.steps), "--vis", "tensorboard")  # fmt: skip
    config = run_dir / "config.yml"
    evaluation = folder / "eval.json"
    run("ns-eval", "--load-config", config, "--output-path", evaluation, "--render-output-path", folder / "eval")
    video = folder / "video.mp4"
    run("ns-render", "interpolate", "--load-config", config, "--output-path", video,
        "--interpolation-steps", "12", "--frame-rate", "12")  # fmt: skip
    pairs = [Image.open(path) for path in sorted((folder / "eval").glob("*_img.png"))[:3]]
    thirds = [image.crop((k * image.width // 3, 0, (k + 1) * image.width // 3, image.height))
              for image in pairs for k in (0, 1)]  # fmt: skip
    sheet = folder / "contact_sheet.jpg"
    contact_sheet([("held-out photo | render", thirds), ("frames of the video", video_frames(video, 6))], 1400, sheet)
    metrics = json.loads(evaluation.read_text())["results"]
    shown = ", ".join(f"{key} {metrics[key]:.3f}" for key in ("psnr", "psnr_masked", "ssim_masked") if key in metrics)
    print(f"\nMetrics on held-out views: {shown}  ({evaluation})")
    print(f"Video:         {video}\nContact sheet: {sheet}")
    print(f"Viewer:        {Path(sys.executable).parent / 'ns-viewer'} --load-config {config}")


if __name__ == "__main__":
    main()
