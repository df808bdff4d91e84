"""A small made-up scene in MVSNet layout, and the parser's answer to it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from core_ns.images import write_image
from dataparsers.mvsnet import MvsCamera, write_cam

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    import nerfstudio.data.dataparsers.base_dataparser
    import nerfstudio.plugins.registry_dataparser  # noqa: F401

from dataparsers.mvsnet_parser import MvsnetDataParserConfig

WIDTH, HEIGHT = 24, 16
K = np.array([[20.0, 0, 12.5], [0, 21.0, 7.5], [0, 0, 1]])
OBJ = "v 0 0 0\nv 4 0 0\nv 0 2 0\nv 0 0 1\nf 1 2 3\nf 1 3 4\n"


def make_scene(folder: Path, count: int = 8, factor: str = "_2", mesh: bool = True) -> Path:
    (folder / f"images{factor}").mkdir(parents=True)
    (folder / f"cams{factor}").mkdir()
    for index in range(count):
        image = np.full((HEIGHT, WIDTH, 3), index, dtype=np.uint8)
        write_image(folder / f"images{factor}" / f"v{index:02d}.png", image)
        w2c = np.array([[1.0, 0, 0, index], [0, 0, -1, 0], [0, 1, 0, 5], [0, 0, 0, 1]])  # level, looking along +y
        write_cam(folder / f"cams{factor}" / f"v{index:02d}_cam.txt", MvsCamera(w2c, K))
    if mesh:
        (folder / "mesh.obj").write_text(OBJ)
    return folder


def outputs(folder: Path, split: str = "train", **options):
    return MvsnetDataParserConfig(data=folder, **options).setup().get_dataparser_outputs(split)


def split_names(folder: Path, **options) -> tuple[list[str], list[str]]:
    parser = MvsnetDataParserConfig(data=folder, **options).setup()
    return tuple(parser.get_dataparser_outputs(split).metadata["split_names"] for split in ("train", "test"))
