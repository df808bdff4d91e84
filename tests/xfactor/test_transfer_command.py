"""``ns-xfactor transfer`` on files of weights: films, stills, latents."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from small_clips import SIDE, options, refusal, write_clips, write_weights

from core_ns.images import image_size, read_image
from xfactor_ns.clip_source import read_clip
from xfactor_ns.latent_file import read_latents
from xfactor_ns.probe_fit import encoder_fingerprint
from xfactor_ns.transfer import clip_latents, transfer
from xfactor_ns.transfer_command import TransferCommand
from xfactor_ns.transfer_video import GAP


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    write_clips(folder / "clips", clips=2)
    write_weights(folder / "weights.safetensors")
    return folder


@pytest.fixture
def command(files, tmp_path):
    def make(**changes) -> TransferCommand:
        given = {
            "source": str(files / "clips" / "path00_a"),
            "onto": str(files / "clips" / "path00_b"),
            "out": tmp_path / "out" / "film.mp4",
            "net": options(files / "weights.safetensors"),
        }
        return TransferCommand(**(given | changes))

    return make


def film(file) -> tuple[np.ndarray, float]:
    with av.open(str(file)) as container:
        rate = float(container.streams.video[0].average_rate)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), rate


def panel(frames: np.ndarray, number: int) -> np.ndarray:
    """One of the pictures of a film, at the network's size."""
    return frames[:, 4 :: 256 // SIDE, number * (256 + GAP) + 4 :: 256 // SIDE][:, :, :SIDE].astype(int)


def test_the_film_shows_the_clip_and_its_motion_elsewhere(command, files, tmp_path, capsys):
    assert command(show_context=True, frames=7).main() == 0
    frames, rate = film(tmp_path / "out" / "film.mp4")
    assert (frames.shape, rate) == ((7, 256, 3 * 256 + 2 * GAP, 3), 10)
    a = read_clip(str(files / "clips" / "path00_a"), SIDE, "reference").frames[:7]
    b = read_clip(str(files / "clips" / "path00_b"), SIDE, "reference").frames[:7]
    opened = options(files / "weights.safetensors").open()
    drawn = transfer(opened.net, a, b).frames.numpy()
    assert np.abs(panel(frames, 0) - a).mean() < 6
    assert np.abs(panel(frames, 1) - drawn).mean() < 6
    assert np.abs(panel(frames, 2) - b[3]).mean() < 6
    assert image_size(tmp_path / "out" / "film.png") == (6 * (256 + GAP) + GAP, 3 * (256 + 18 + GAP) + GAP)
    said = capsys.readouterr().out
    assert "film.mp4 (7 frames of 784x256, 10 a second)" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["film.mp4", "film.png"]


def test_chosen_frames(command, files, tmp_path):
    assert command(from_reference=4, onto_reference=6, from_start=2, onto_start=2, stride=2, stills=False).main() == 0
    frames, _ = film(tmp_path / "out" / "film.mp4")
    a = read_clip(str(files / "clips" / "path00_a"), SIDE, "reference").frames[2::2]
    b = read_clip(str(files / "clips" / "path00_b"), SIDE, "reference").frames[2::2]
    opened = options(files / "weights.safetensors").open()
    drawn = transfer(opened.net, a, b, source_reference=1, context=[2]).frames.numpy()
    assert np.abs(panel(frames, 1) - drawn).mean() < 6
    assert not (tmp_path / "out" / "film.png").exists()


def test_pictures_in_between(command, tmp_path):
    assert command(interpolate=2, frames=4).main() == 0
    frames, rate = film(tmp_path / "out" / "film.mp4")
    assert (len(frames), rate) == (10, 30)
    assert command(interpolate=9, frames=2, fps=24.0).main() == 0
    assert (len(film(tmp_path / "out" / "film.mp4")[0]), film(tmp_path / "out" / "film.mp4")[1]) == (11, 24)


def test_motion_without_its_clip(command, files, tmp_path):
    """Saved latents draw the same pictures."""
    saved = tmp_path / "motion.npz"
    assert command(save_latents=saved).main() == 0
    first, _ = film(tmp_path / "out" / "film.mp4")
    opened = options(files / "weights.safetensors").open()
    motion = read_latents(saved, encoder_fingerprint(opened.net), 6)
    a = read_clip(str(files / "clips" / "path00_a"), SIDE, "reference").frames
    assert np.array_equal(motion.latents, clip_latents(opened.net, a, 6).numpy())
    assert (motion.reference, motion.clip) == (6, "path00_a")
    assert command(source=None, from_latents=saved).main() == 0
    second, _ = film(tmp_path / "out" / "film.mp4")
    assert second.shape == (12, 256, 256, 3)
    assert np.abs(panel(second, 0) - panel(first, 1)).mean() < 3
    other = write_weights(tmp_path / "other.safetensors", seed=1)
    error = refusal(command(source=None, from_latents=saved, net=options(other)))
    assert "not the one of these weights" in error.problem


def test_several_context_frames(command, files, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "xfactor_ns.transfer_video.write_film", lambda file, panels, fps: shown.append(panels) or (0, 0)
    )
    assert command(net=options(files / "weights.safetensors", context_frames=5)).main() == 0
    a, b = (read_clip(str(files / "clips" / f"path00_{c}"), SIDE, "reference").frames for c in "ab")
    opened = options(files / "weights.safetensors").open()
    drawn = transfer(opened.net, a, b, context=[6, 0, 3, 8, 11]).frames.numpy()
    assert np.array_equal(shown[0][1], drawn)
    assert not np.array_equal(drawn, transfer(opened.net, a, b).frames.numpy())


def test_stills_are_of_the_film(command, files, tmp_path):
    command(frames=3).main()
    page, _ = read_image(tmp_path / "out" / "film.png")
    a = read_clip(str(files / "clips" / "path00_a"), SIDE, "reference").frames[:3]
    top = GAP + 18
    for k in range(3):
        left = GAP + k * (256 + GAP)
        assert (page[top : top + 256 : 8, left : left + 256 : 8] == a[k]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": None}, "name one motion"),
        ({"from_latents": "x.npz"}, "name one motion"),
        ({"out": "film.avi"}, "no .mp4 file"),
        ({"save_latents": "x.json"}, "no .npz file"),
        ({"interpolate": -1}, "interpolate"),
        ({"fps": 0.0}, "interpolate, --fps"),
        ({"onto": "nowhere"}, "is no clip"),
        ({"from_start": 99}, "has 12 frames"),
        ({"from_reference": 99}, "--from-reference"),
        ({"onto_reference": 99}, "--onto-reference"),
        ({"net": {}}, "name one network"),
        ({"net": {"weights": "none.safetensors"}}, "is not a file"),
        ({"net": {"image_size": 36}}, "no multiple of the patch"),
        ({"net": {"batch": 0}}, "--batch"),
        ({"net": {"context_frames": 0}}, "--context-frames"),
    ],
)
def test_what_cannot_be_done_is_one_error_and_writes_nothing(command, files, tmp_path, monkeypatch, changes, words):
    from dataclasses import replace
    from pathlib import Path

    from xfactor_ns.open_net import NetOptions

    monkeypatch.chdir(tmp_path)
    for name in ("out", "from_latents", "save_latents"):
        if name in changes:
            changes = changes | {name: Path(changes[name])}
    if "net" in changes:
        given = {key: Path(value) if key == "weights" else value for key, value in changes["net"].items()}
        changes = {"net": replace(options(files / "weights.safetensors"), **given) if given else NetOptions()}
    assert words in str(refusal(command(**changes)))
    assert list(tmp_path.iterdir()) == []


def test_an_old_film_survives_an_error(command, files, tmp_path, monkeypatch):
    command(frames=2).main()
    before = (tmp_path / "out" / "film.mp4").read_bytes()

    def broken(*_, **__):
        raise RuntimeError("no memory")

    monkeypatch.setattr("xfactor_ns.transfer_video.write_clip", broken)
    with pytest.raises(RuntimeError):
        command(frames=3).main()
    assert (tmp_path / "out" / "film.mp4").read_bytes() == before


def test_networks_are_opened_ready_for_use(files):
    opened = options(files / "weights.safetensors").open()
    assert not opened.net.training
    assert (opened.image_size, opened.context_frames, opened.resize_mode) == (SIDE, 1, "reference")
    assert opened.folder == files
    whole = options(files / "weights.safetensors")
    whole.image_size = None
    assert whole.open().image_size == 16 * 8
    assert next(opened.net.parameters()).dtype == torch.float32
