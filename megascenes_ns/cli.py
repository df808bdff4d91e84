"""``ns-megascenes``: what nerfstudio's commands have no place for."""

from __future__ import annotations

from typing import Annotated, Union

import tyro

from core_ns.console import run_command
from megascenes_ns.convert_command import ConvertSplits, Inspect, Pairs, Subset
from megascenes_ns.demo_command import DemoPairs
from megascenes_ns.depth_command import Precompute
from megascenes_ns.generate_command import GenerateCommand
from megascenes_ns.import_command import Import
from megascenes_ns.path_command import PathCommand
from megascenes_ns.render_command import RenderCommand
from megascenes_ns.view_command import ViewCommand
from megascenes_ns.warp_command import WarpCommand

Command = Union[
    Annotated[Inspect, tyro.conf.subcommand("inspect")],
    Annotated[ConvertSplits, tyro.conf.subcommand("convert-splits")],
    Annotated[Pairs, tyro.conf.subcommand("pairs")],
    Annotated[Subset, tyro.conf.subcommand("subset")],
    Annotated[DemoPairs, tyro.conf.subcommand("demo-pairs")],
    Annotated[Precompute, tyro.conf.subcommand("precompute")],
    Annotated[WarpCommand, tyro.conf.subcommand("warp")],
    Annotated[Import, tyro.conf.subcommand("import")],
    Annotated[PathCommand, tyro.conf.subcommand("path")],
    Annotated[RenderCommand, tyro.conf.subcommand("render")],
    Annotated[ViewCommand, tyro.conf.subcommand("view")],
    Annotated[GenerateCommand, tyro.conf.subcommand("generate")],
]


def entrypoint(arguments: list[str] | None = None) -> None:
    """Run ``ns-megascenes``; bad input ends with one line on stderr and exit status 2."""
    run_command(Command, "ns-megascenes", "Tools of megascenes-nvs.", arguments)
