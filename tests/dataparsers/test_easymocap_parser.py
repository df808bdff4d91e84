"""The dataparser: nerfstudio's cameras against the files', splits, slicing, time, bounds, command line."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
import yaml
from easymocap_scene import HEIGHT, WIDTH, make_sequence, ring

from core_ns.errors import DataError
from core_ns.frames import w2c_opencv_from_c2w_opengl
from dataparsers.easymocap_sequence import box_of_attention

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # nerfstudio's imports warn about their own age
    from nerfstudio.cameras.cameras import CameraType
    from nerfstudio.data.dataparsers.base_dataparser import transform_poses_to_original_space
    from nerfstudio.data.datasets.base_dataset import InputDataset

    from dataparsers.easymocap_parser import (
        EasyMocapDataParser,
        EasyMocapDataParserConfig,
        easymocap_data,
        scene_bounds,
    )

# nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cameras, four frames; do not write to it."""
    return make_sequence(tmp_path_factory.mktemp("sequence"), frames=4)


def parser(scene: Path, **options) -> EasyMocapDataParser:
    return EasyMocapDataParserConfig(data=scene, **options).setup()


def test_cameras_frame_by_frame(scene: Path) -> None:
    outputs = parser(scene).get_dataparser_outputs("train")
    cameras, sequence = outputs.cameras, outputs.metadata["sequence"]
    assert len(cameras) == 5 * 4 == len(outputs.image_filenames)
    assert outputs.dataparser_scale == 1.0
    torch.testing.assert_close(outputs.dataparser_transform, torch.eye(4)[:3])
    assert cameras.metadata is not None
    assert cameras.times is not None
    assert cameras.times.shape == cameras.metadata["view_idx"].shape == cameras.metadata["frame_idx"].shape == (20, 1)
    assert cameras.metadata["frame_idx"][:, 0].tolist() == sorted([0, 1, 2, 3] * 5)
    assert cameras.metadata["view_idx"][:5, 0].tolist() == sequence.train_views
    assert cameras.metadata["view_idx"].dtype == torch.int64
    for row in (0, 7, 19):
        view, frame = int(cameras.metadata["view_idx"][row]), int(cameras.metadata["frame_idx"][row])
        K, w2c = sequence.camera(view, frame)
        assert outputs.image_filenames[row] == sequence.image_path(view, frame)
        assert outputs.mask_filenames is not None
        assert outputs.mask_filenames[row] == sequence.mask_path(view, frame)
        back = w2c_opencv_from_c2w_opengl(cameras.camera_to_worlds[row].double().numpy())
        np.testing.assert_allclose(back, w2c, rtol=0, atol=1e-6)
        np.testing.assert_allclose(cameras.get_intrinsics_matrices()[row], K, rtol=1e-6)
        assert (int(cameras.width[row]), int(cameras.height[row])) == (WIDTH, HEIGHT)
        assert float(cameras.times[row]) == pytest.approx(sequence.times[frame])
        assert int(cameras.camera_type[row]) == CameraType.PERSPECTIVE.value


def test_rays_go_through_the_projected_point(scene: Path) -> None:
    outputs = parser(scene, ratio=(0.5,)).get_dataparser_outputs("train")
    sequence, point = outputs.metadata["sequence"], np.array([0.3, 0.1, 1.1])
    K, w2c = sequence.camera(2, 1)
    pixel = K @ (w2c[:3, :3] @ point + w2c[:3, 3])
    coords = torch.tensor([[pixel[1] / pixel[2], pixel[0] / pixel[2]]], dtype=torch.float32)
    row = 5 * 1 + sequence.train_views.index(2)
    rays = outputs.cameras.generate_rays(torch.tensor([[row]]), coords=coords)
    toward = torch.tensor(point, dtype=torch.float32) - rays.origins[0]
    torch.testing.assert_close(toward / toward.norm(), rays.directions[0], rtol=0, atol=1e-6)
    assert rays.times is not None
    assert float(rays.times[0, 0]) == pytest.approx(1 / 3)


def test_metadata_survives_slicing(scene: Path) -> None:
    cameras = parser(scene).get_dataparser_outputs("train").cameras
    for part in (cameras[3:9], cameras[7:8], cameras[torch.tensor([3, 11])], copy.deepcopy(cameras)[3:9]):
        assert part.metadata is not None
        assert part.metadata["view_idx"].shape == (len(part), 1)
        assert part.times is not None
        assert part.times.shape == (len(part), 1)
    assert cameras[7:8].metadata["frame_idx"].tolist() == [[1]]
    single = cameras[7]
    assert single.metadata["view_idx"].tolist() == cameras.metadata["view_idx"][7].tolist()


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_views(scene: Path, split: str) -> None:
    built = parser(scene, eval_views=("01", "-1"), eval_frames=(0, 3))
    train, held_out = built.get_dataparser_outputs("train"), built.get_dataparser_outputs(split)
    assert held_out.cameras.metadata is not None
    assert held_out.cameras.metadata["view_idx"][:, 0].tolist() == [1, 5, 1, 5]
    assert held_out.cameras.metadata["frame_idx"][:, 0].tolist() == [0, 0, 3, 3]
    assert train.cameras.metadata is not None
    assert not set(train.cameras.metadata["view_idx"][:, 0].tolist()) & {1, 5}
    assert not set(train.image_filenames) & set(held_out.image_filenames)
    assert held_out.metadata["eval_on_train"] is False
    assert held_out.metadata["sequence"] is train.metadata["sequence"]


def test_nothing_held_out(scene: Path, capsys) -> None:
    built = parser(scene, eval_views=("none",))
    outputs = built.get_dataparser_outputs("test")
    built.get_dataparser_outputs("val")
    assert outputs.metadata["eval_on_train"] is True
    assert len(outputs.cameras) == 6 * 4
    assert built.get_dataparser_outputs("train").metadata["eval_on_train"] is False
    assert " ".join(capsys.readouterr().out.split()).count("No view is held out") == 1


def test_time(scene: Path) -> None:
    assert EasyMocapDataParser.includes_time is True
    assert parser(scene).includes_time is True
    outputs = parser(scene, frame_sample=(1, 4, 2)).get_dataparser_outputs("train")
    assert outputs.cameras.times is not None
    assert sorted(set(outputs.cameras.times[:, 0].tolist())) == [0.0, 1.0]


def test_one_camera_and_one_frame(tmp_path: Path) -> None:
    root = make_sequence(tmp_path, ring(1), frames=1, masks=False)
    with pytest.raises(DataError, match="parallel"):
        parser(root).get_dataparser_outputs("train")
    outputs = parser(root, bounds=((-1.0, -1.0, 0.0), (1.0, 1.0, 2.0))).get_dataparser_outputs("train")
    assert outputs.cameras.camera_to_worlds.shape == (1, 3, 4)
    assert outputs.cameras.fx.shape == outputs.cameras.times.shape == outputs.cameras.width.shape == (1, 1)
    assert outputs.mask_filenames is None


def test_bounds_from_option_hulls_and_cameras(tmp_path: Path) -> None:
    root = make_sequence(tmp_path, frames=1)
    built = parser(root)
    box, source = scene_bounds(built.sequence)
    assert source == "cameras"
    np.testing.assert_array_equal(box, box_of_attention(built.sequence))
    file = root / "r4dv" / "meta.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"bounds": [[-0.5, -0.7, -1.0], [0.4, 0.7, 0.9]]}))
    outputs = built.get_dataparser_outputs("train")
    assert outputs.metadata["bounds_source"] == "hulls"
    torch.testing.assert_close(outputs.scene_box.aabb, torch.tensor([[-0.5, -0.7, -1.0], [0.4, 0.7, 0.9]]))
    given = parser(root, bounds=((0.0, 0.0, 0.0), (1.0, 2.0, 3.0))).get_dataparser_outputs("train")
    assert given.metadata["bounds_source"] == "option"
    torch.testing.assert_close(given.scene_box.aabb, torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]))
    for damaged in (
        "",
        "[1]",
        '{"bounds": 3}',
        '{"bounds": [[0,0,0],[0,1,1]]}',
        '{"bounds": [[0,0,0],[1,1,NaN]]}',
        "[" * 9999,
    ):
        file.write_text(damaged)
        with pytest.raises(DataError, match=r"meta.json.*Delete the file"):
            built.get_dataparser_outputs("train")


def test_up_moves_cameras_and_box_together(tmp_path: Path) -> None:
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # z up becomes -y up
    turned = {name: replace(camera, R=camera.R @ turn.T) for name, camera in ring(6).items()}
    root = make_sequence(tmp_path, turned)
    box = ((-0.5, -1.5, -0.5), (0.9, -0.5, 0.4))
    plain, moved = (
        parser(root, bounds=box, orientation=name, eval_views=("none",)).get_dataparser_outputs("train")
        for name in ("none", "up")
    )
    up = moved.cameras.camera_to_worlds[:, :3, 1].mean(dim=0)
    torch.testing.assert_close(up / up.norm(), torch.tensor([0.0, 0.0, 1.0]), rtol=0, atol=1e-5)
    sequence = moved.metadata["sequence"]
    np.testing.assert_array_equal(sequence.camera(0, 0)[1], plain.metadata["sequence"].camera(0, 0)[1])
    original = transform_poses_to_original_space(
        moved.cameras.camera_to_worlds, moved.dataparser_transform, moved.dataparser_scale, camera_convention="opengl"
    )
    torch.testing.assert_close(original, plain.cameras.camera_to_worlds, rtol=0, atol=1e-5)
    # The same point is seen at the same pixel, and the box still holds it.
    point = torch.tensor([0.1, -1.1, 0.2])
    matrix = moved.dataparser_transform
    there = matrix[:, :3] @ point + matrix[:, 3]
    assert (there > moved.scene_box.aabb[0]).all()
    assert (there < moved.scene_box.aabb[1]).all()
    for outputs, at in ((plain, point), (moved, there)):
        c2w = outputs.cameras.camera_to_worlds[3]
        local = c2w[:, :3].T @ (at - c2w[:, 3])
        np.testing.assert_allclose(local, plain_local(plain, point), rtol=0, atol=1e-5)


def plain_local(outputs, point: torch.Tensor) -> np.ndarray:
    c2w = outputs.cameras.camera_to_worlds[3]
    return (c2w[:, :3].T @ (point - c2w[:, 3])).numpy()


def test_lenses_for_nerfstudios_own_methods(tmp_path: Path) -> None:
    cameras = ring(3)
    cameras["01"] = replace(cameras["01"], D=np.array([-0.2, 0.04, 0.001, -0.002, 0.003]))
    cameras["02"] = replace(cameras["02"], fisheye=np.array([0.03, -0.01, 0.002, 0.001]))
    root = make_sequence(tmp_path, cameras, frames=1)
    assert parser(root).get_dataparser_outputs("train").cameras.distortion_params is None
    outputs = parser(root, undistort="none").get_dataparser_outputs("train")
    kinds = outputs.cameras.camera_type[:, 0].tolist()
    assert kinds == [CameraType.PERSPECTIVE.value, CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value]
    assert outputs.cameras.distortion_params is not None
    expected = [[0, 0, 0, 0, 0, 0], [-0.2, 0.04, 0.003, 0, 0.001, -0.002], [0.03, -0.01, 0.002, 0.001, 0, 0]]
    torch.testing.assert_close(outputs.cameras.distortion_params, torch.tensor(expected, dtype=torch.float32))
    for row, name in enumerate(cameras):
        point = np.array([0.7, -0.5, 1.3])
        pixel = cameras[name].project(point[None])[0][0]
        coords = torch.tensor([[pixel[1], pixel[0]]], dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.compile in nerfstudio's undistortion
            ray = outputs.cameras.generate_rays(torch.tensor([[row]]), coords=coords)
        toward = torch.tensor(point, dtype=torch.float32) - ray.origins[0]
        torch.testing.assert_close(toward / toward.norm(), ray.directions[0], rtol=0, atol=2e-4)


def test_skew_that_cameras_cannot_hold_is_said(tmp_path: Path, capsys) -> None:
    cameras = {name: replace(c, K=c.K + np.eye(3, k=1) * [0, 2.0, 0]) for name, c in ring(3).items()}
    root = make_sequence(tmp_path, cameras, frames=1)
    parser(root, undistort="none").get_dataparser_outputs("train")
    assert "3 cameras have skew" in " ".join(capsys.readouterr().out.split())
    parser(root).get_dataparser_outputs("train")
    assert "have skew" not in capsys.readouterr().out


def test_nerfstudios_data_set_takes_it(scene: Path) -> None:
    outputs = parser(scene).get_dataparser_outputs("train")
    dataset = InputDataset(outputs)
    assert len(dataset) == 20
    data = dataset.get_data(6)
    assert data["image"].shape == (HEIGHT, WIDTH, 3)
    assert data["mask"].shape == (HEIGHT, WIDTH, 1)
    assert dataset.metadata["sequence"].views is outputs.metadata["sequence"].views


def test_nerfstudios_own_methods_can_use_it(scene: Path) -> None:
    built = parser(scene, frame_sample=(0, 1, 1), undistort="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports, and its number of workers
        from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig

        manager = VanillaDataManagerConfig(dataparser=built.config).setup(device="cpu", test_mode="val")
    assert manager.includes_time is True
    rays, batch = manager.next_train(0)
    assert len(rays) == len(batch["image"]) == 1024
    assert rays.metadata["view_idx"].shape == (1024, 1)
    assert len(manager.fixed_indices_eval_dataloader) == 1


def test_options_on_the_command_line() -> None:
    line = "--data seq --frame-sample 0 None 5 --view-sample 3 1 --ratio .5 .25 --bounds -1 -2 -3 1 2 3 --near .5"
    line += " --eval-views 05 15 --eval-frames 0 -1 --cameras plain --dataset-preset renbody --orientation up"
    config = tyro.cli(EasyMocapDataParserConfig, args=line.split())
    assert config.frame_sample == (0, None, 5)
    assert config.view_sample == (3, 1)
    assert config.ratio == (0.5, 0.25)
    assert config.bounds == ((-1, -2, -3), (1, 2, 3))
    assert (config.near, config.far) == (0.5, None)
    assert config.eval_views == ("05", "15")
    assert config.eval_frames == (0, -1)
    assert (config.cameras, config.orientation) == ("plain", "up")
    assert tyro.cli(EasyMocapDataParserConfig, args=[]) == EasyMocapDataParserConfig()


def test_every_option_explains_itself(capsys) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(EasyMocapDataParserConfig, args=["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for phrase in ("never trained on", "borders without data become invalid", "above 127 is foreground", "ccm_CAMERA"):
        assert phrase in text


def test_config_survives_nerfstudios_yaml() -> None:
    config = EasyMocapDataParserConfig(
        data=Path("seq"), frame_sample=(0, None, 2), bounds=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), eval_views=("05",)
    )
    back = yaml.load(yaml.dump(config), Loader=yaml.Loader)  # as nerfstudio's eval_setup does with its own files
    assert back == config


def test_registered_description() -> None:
    assert isinstance(easymocap_data.config, EasyMocapDataParserConfig)
    assert "EasyMocap" in easymocap_data.description


def test_real_sequences(shared_data: Path) -> None:
    counts = {"wd2_easymocap": (16, 1, 4), "temple_easymocap": (12, 1, 4), "balance_easymocap": (4, 20, 0)}
    for name, (train, frames, held_out) in counts.items():
        built = parser(shared_data / name)
        outputs = built.get_dataparser_outputs("train")
        assert len(outputs.cameras) == train * frames
        evaluated = built.get_dataparser_outputs("val")
        assert len(evaluated.cameras) == (held_out or train) * min(frames, 5)
        assert evaluated.metadata["eval_on_train"] is (held_out == 0)
        low, high = outputs.scene_box.aabb
        assert (low < high).all()
