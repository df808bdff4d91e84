"""`ns-xscale import`: an original checkpoint becomes a run that renders exactly what the original's shader gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from xscale_models import CPU, NOISE, ring_of_cameras, sphere_mesh, write_mvsnet_scene

from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv, camera_directions
from dataparsers.mvsnet import read_cam
from xscale_ns.checkpoint_import import load_upstream_checkpoint
from xscale_ns.hash_grid import HashGrid
from xscale_ns.import_run import import_run
from xscale_ns.surface import Surface

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

VIEWS, WIDTH, HEIGHT = 9, 40, 30
K = np.array([[34.0, 0, 22], [0, 33.0, 14], [0, 0, 1]])
TRAIN = [view for view in range(VIEWS) if view % 7]


def mesh() -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid off the origin: three different extents, so that the per-axis grid matters."""
    vertices, faces = sphere_mesh(1.0, 4)
    return vertices * [2.0, 1.2, 0.8] + [5.0, -3.0, 1.0], faces


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    poses = ring_of_cameras(VIEWS, 5.0)
    poses[:, :3, 3] -= poses[:, :3, :3] @ np.array([5.0, -3.0, 1.0])
    pictures = [np.full((HEIGHT, WIDTH, 3), 20 * view, dtype=np.uint8) for view in range(VIEWS)]
    return write_mvsnet_scene(tmp_path_factory.mktemp("data") / "egg", poses, K, pictures, mesh())


Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def make_checkpoint(shared_fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The original's checkpoint with as many exposure codes as the scene has training views, and visible features."""
    original = torch.load(shared_fixtures / "xscale" / "shader" / "epoch:00200.pth.tar", weights_only=True)

    def make(edit: Edit | None = None) -> Path:
        content = {key: dict(value) if isinstance(value, dict) else value for key, value in original.items()}
        rng = torch.Generator().manual_seed(5)
        content["x_embeddings_list"] = {"0.weight": torch.randn(len(TRAIN), 4, generator=rng) * 0.6}
        content["spatial_encoding_dict"] = {"spatial_enc.params": torch.randn(2048, generator=rng)}  # 16 x 16 x 8
        if edit is not None:
            edit(content)
        path = tmp_path_factory.mktemp("upstream") / "epoch:00200.pth.tar"
        torch.save(content, path)
        return path

    return make


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path, scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The imported run, opened as ns-eval and ns-render do."""
    from nerfstudio.utils.eval_utils import eval_setup

    config = import_run(checkpoint, scene, tmp_path_factory.mktemp("outputs"))
    assert config.name == "config.yml"
    _, opened, path, step = eval_setup(config, test_mode="test")
    assert step == 3800, "the original's iteration"
    assert path == config.parent / "nerfstudio_models" / "step-000003800.ckpt"
    return opened


def test_the_run_holds_the_originals_weights_and_view_order(pipeline: Any, checkpoint: Path, scene: Path) -> None:
    shader, model = load_upstream_checkpoint(checkpoint), pipeline.model
    for name, value in shader.head_state.items():
        assert torch.equal(model.field.head.state_dict()[name], value), name
    assert torch.equal(model.field.grid.to_tcnn_params(), shader.hash_params)
    assert torch.equal(model.field.exposure.weight, shader.exposure_codes)
    assert torch.equal(model.field.lighting.weight, shader.lighting_codes)
    assert model.train_names == [f"{view:05d}" for view in TRAIN]
    assert [path.stem for path in pipeline.datamanager.eval_dataset.image_filenames] == ["00000", "00007"]
    transform = pipeline.datamanager.train_dataparser_outputs.dataparser_transform
    assert torch.equal(transform[:, :3], torch.eye(3)), "the grid and the shader live in the scene's own axes"


def shader_picture(checkpoint: Path, scene: Path, name: str, exposure: int | None = None):
    """What the original computes, in world space with its own normalisation (spec xscale 3.1 to 3.5): rgb, hit."""
    shader = load_upstream_checkpoint(checkpoint)
    vertices, faces = mesh()
    cam = read_cam(scene / "cams" / f"{name}_cam.txt")
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    pixels = np.stack([columns.ravel(), rows.ravel()], axis=-1)
    c2w = c2w_opengl_from_w2c_opencv(cam.w2c)
    directions = camera_directions(pixels, cam.intrinsics) @ c2w[:3, :3].T
    directions = torch.from_numpy(directions / np.linalg.norm(directions, axis=-1, keepdims=True))
    origin = torch.from_numpy(c2w[:3, 3])
    surface = Surface(torch.from_numpy(vertices), torch.from_numpy(faces), CPU)
    hits = surface.first_hits(origin.float().expand(len(pixels), 3).contiguous(), directions.float())
    index = hits.hit.nonzero()[:, 0]
    # The hit point again in float64 on the named triangle: this twin must be no less exact than the model.
    corners = torch.from_numpy(vertices)[torch.from_numpy(faces)[hits.face[index]]]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    t = ((corners[:, 0] - origin) * normal).sum(-1) / (directions[index] * normal).sum(-1)
    points = origin + t[:, None] * directions[index]
    lower, upper = torch.from_numpy(vertices).amin(dim=0), torch.from_numpy(vertices).amax(dim=0)
    p = 2 * (points - (lower + upper) / 2) / (upper - lower + 1e-6)
    grid = HashGrid(16, 8, 4, 16, per_level_scale=1.4768261459394993)
    grid.load_tcnn_params(shader.hash_params)
    code = shader.exposure_codes.mean(dim=0) if exposure is None else shader.exposure_codes[exposure]
    rgb = torch.ones(len(pixels), 3)  # the original paints misses white
    with torch.no_grad():
        rgb[index] = shader.build_head()(
            grid.double()(p / 2 + 0.5).float(), directions[index].float(), code, shader.lighting_codes[0]
        )
    return rgb.reshape(HEIGHT, WIDTH, 3), hits.hit.reshape(HEIGHT, WIDTH)


@pytest.mark.parametrize(("split", "view"), [("eval", 0), ("eval", 1), ("train", 3)])
def test_renders_equal_the_shader_itself(pipeline: Any, checkpoint: Path, scene: Path, split: str, view: int) -> None:
    dataset = getattr(pipeline.datamanager, f"{split}_dataset")
    outputs = pipeline.model.eval().get_outputs_for_camera(dataset.cameras[view : view + 1])
    expected, hit = shader_picture(checkpoint, scene, dataset.image_filenames[view].stem)
    assert torch.equal(outputs["accumulation"][..., 0] > 0.5, hit)
    assert 100 < hit.sum() < WIDTH * HEIGHT
    error = (outputs["rgb"] - expected).abs().amax(dim=-1)
    # float32 positions on a grid of 5548 cells: 1e-7 of the extent is 5e-4 of a finest cell.
    assert error[hit].median() < 2e-4
    assert error[hit].max() < 5e-3
    assert error[~hit].max() == 0
    assert outputs["rgb"][hit].std() > 0.02, "and there is something to see"


def test_training_views_use_their_own_exposure(pipeline: Any, checkpoint: Path, scene: Path) -> None:
    view = 3
    dataset = pipeline.datamanager.train_dataset
    expected, hit = shader_picture(checkpoint, scene, dataset.image_filenames[view].stem, exposure=view)
    pipeline.model.train()
    rays = dataset.cameras.generate_rays(view, keep_shape=True)
    rays.camera_indices = torch.full((HEIGHT, WIDTH, 1), view)
    outputs = pipeline.model(rays.flatten())
    pipeline.model.eval()
    error = (outputs["rgb"].detach().reshape(HEIGHT, WIDTH, 3) - expected).abs().amax(dim=-1)
    assert error[hit].median() < 2e-4
    assert error[hit].max() < 5e-3
    mean, _ = shader_picture(checkpoint, scene, dataset.image_filenames[view].stem)
    assert (mean - expected).abs()[hit].max() > 2e-2


@pytest.mark.parametrize("count", [5, 8])
def test_exposure_codes_of_another_scene_are_refused(make_checkpoint, scene: Path, tmp_path: Path, count: int) -> None:
    wrong = make_checkpoint(lambda content: content["x_embeddings_list"].update({"0.weight": torch.randn(count, 4)}))
    with pytest.raises(DataError, match=f"codes of {count} training views; the scene has 7"):
        import_run(wrong, scene, tmp_path / "outputs")
    assert not (tmp_path / "outputs").exists(), "nothing is written before the check"


def test_a_hash_vector_of_no_grid_is_refused(make_checkpoint, scene: Path, tmp_path: Path) -> None:
    wrong = make_checkpoint(
        lambda content: content["spatial_encoding_dict"].update({"spatial_enc.params": torch.randn(2040)})
    )
    with pytest.raises(DataError, match="2040 parameters are no hash grid of 16 levels"):
        import_run(wrong, scene, tmp_path / "outputs")
    with pytest.raises(DataError, match="epoch:00001"):
        import_run(tmp_path / "epoch:00001.pth.tar", scene, tmp_path / "outputs")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_the_command_makes_a_run_that_ns_eval_reads(checkpoint: Path, scene: Path, tmp_path: Path) -> None:
    output = run("ns-xscale", "import", checkpoint, scene,
                 "--output-dir", tmp_path / "outputs", cwd=tmp_path)  # fmt: skip
    config = next((tmp_path / "outputs").rglob("config.yml"))
    assert str(config) in output
    run("ns-eval", "--load-config", config, "--output-path", tmp_path / "eval.json", cwd=tmp_path)
    rows = {row["file"]: row for row in json.loads((tmp_path / "eval.json").read_text())["results"]["per_image"]}
    for name in ("00000", "00007"):
        expected, hit = shader_picture(checkpoint, scene, name)
        truth = 20 * int(name) / 255
        mse = (expected[hit] - truth).square().mean()
        assert rows[f"{name}.png"]["psnr_masked"] == pytest.approx(float(-10 * mse.log10()), abs=1e-2)
        assert rows[f"{name}.png"]["coverage"] == pytest.approx(float(hit.float().mean()), abs=1e-6)
