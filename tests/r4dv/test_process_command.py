"""``ns-r4dv process``: every subcommand's way through its options, and bad input as one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from clip_scenes import subject
from prepared_scenes import NAMES, SIZE, empty_scene, iou, make_photos, make_raw

from core_ns.console import run_command
from core_ns.images import image_size, read_image, write_image
from r4dv_ns.process_command import Process


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        run_command(Process, "ns-r4dv process", "Prepare.", [str(argument) for argument in arguments])
    return int(end.value.code or 0)


def masks_of(folder: Path, name: str) -> list[np.ndarray]:
    return [read_image(path)[0][..., 0] for path in sorted((folder / name).glob("*.png"))]


@pytest.mark.parametrize("command", ["", "images", "masks", "encode", "link-backgrounds", "plates"])
def test_help(command: str, capsys) -> None:
    assert run(*filter(None, [command]), "--help") == 0
    shown = capsys.readouterr().out
    assert (command or "link-backgrounds") in shown
    assert "--action" not in shown
    assert "--options" not in shown


def test_raw_videos_to_shared_clips_and_back(tmp_path: Path, capsys) -> None:
    """Videos of an empty and a full scene: photos, plate masks, clips; then photos and masks of the clips alone."""
    raw, scene = make_raw(tmp_path / "raw"), tmp_path / "scene"
    assert run("images", scene, "--video-dir", raw, "--suffix", "png") == 0
    for name in NAMES:
        write_image(scene / "bkgd" / f"{name}.png", empty_scene())
    assert run("link-backgrounds", scene) == 0
    assert (scene / "bkgd" / "images" / "b" / "000000.png").is_file()
    assert run("masks", scene, "--method", "plate") == 0
    assert "Check: ns-r4dv hull" in capsys.readouterr().out
    truth = [subject(SIZE, frame + 1)[1] for frame in range(4)]
    assert min(map(iou, masks_of(scene / "masks", "b"), truth)) > 0.9
    assert run("encode", scene, "--crf", 15, "--ratio", 0.6, "--workers", 1, "--key-every", 2) == 0
    assert "Share them with intri.yml and extri.yml" in capsys.readouterr().out
    shared = tmp_path / "shared"
    for folder in ("videos_libx265", "videos_masks_libx265"):
        shutil.copytree(scene / folder, shared / folder)
    assert run("images", shared, "--full-size") == 0
    assert run("masks", shared, "--full-size", "--threshold", 20) == 0
    assert run("masks", shared, "--single-channel", "--full-size", "--mask-dir", "masks", "--frames", 0, "None", 2) == 0
    assert image_size(shared / "images_libx265" / "b" / "000003.png") == SIZE
    assert min(map(iou, masks_of(shared / "masks_libx265", "b"), truth)) > 0.88
    assert min(map(iou, masks_of(shared / "masks", "b"), truth[::2])) > 0.88


def test_raw_videos_are_no_subject_on_black(tmp_path: Path, capsys) -> None:
    """Without --method all of every picture would be foreground."""
    make_raw(tmp_path / "videos")
    assert run("masks", tmp_path) == 2
    assert "holds no clips of a subject on black" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
    assert run("masks", tmp_path, "--video-dir", "videos") == 0


def test_plates(tmp_path: Path, capsys) -> None:
    scene = make_photos(tmp_path)
    assert run("plates", scene, "--dilate", 0.02, 0.005, "--plate-dir", "clean") == 0
    shown = capsys.readouterr().out
    assert "never seen, made up" in shown
    assert (scene / "clean" / "b.jpg").is_file()


def test_bad_input_is_one_line(tmp_path: Path, capsys) -> None:
    scene = make_photos(tmp_path / "scene")
    cases = [
        ("images", tmp_path / "absent"),
        ("images", scene),
        ("masks", scene),
        ("masks", scene, "--method", "plate", "--mask-dir", "new"),
        ("masks", scene, "--method", "rvm", "--mask-dir", "new"),
        ("masks", scene, "--video-dir", "a", "--image-dir", "b"),
        ("encode", scene, "--ratio", 3),
        ("plates", scene, "--mask-dir", "absent"),
        ("link-backgrounds", scene),
    ]
    for case in cases:
        assert run(*case) == 2, case
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == len(cases)
    assert all(line.startswith("DataError: ") for line in shown)
    assert "holds no clips of a subject on black" in shown[2]
    assert sorted(path.name for path in scene.iterdir()) == ["images", "masks"]
