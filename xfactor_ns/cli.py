"""``ns-xfactor``: what nerfstudio's commands have no place for."""

from __future__ import annotations

from typing import Annotated, Union

import tyro

from core_ns.console import run_command
from xfactor_ns.import_command import Export, Import
from xfactor_ns.index_command import DemoClips, Index
from xfactor_ns.probe_command import ProbeCommand
from xfactor_ns.similarity_command import SimilarityCommand
from xfactor_ns.transfer_command import TransferCommand

Command = Union[
    Annotated[Index, tyro.conf.subcommand("index")],
    Annotated[DemoClips, tyro.conf.subcommand("demo-clips")],
    Annotated[Import, tyro.conf.subcommand("import")],
    Annotated[Export, tyro.conf.subcommand("export")],
    Annotated[TransferCommand, tyro.conf.subcommand("transfer")],
    Annotated[SimilarityCommand, tyro.conf.subcommand("similarity")],
    Annotated[ProbeCommand, tyro.conf.subcommand("probe")],
]


def entrypoint(arguments: list[str] | None = None) -> None:
    """Run ``ns-xfactor``; bad input ends with one line on stderr and exit status 2."""
    run_command(Command, "ns-xfactor", "Tools of xfactor.", arguments)
