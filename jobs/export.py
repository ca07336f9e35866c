"""Write a run's generator as a pipeline of diffusers with a model card, or its LoRA for peft.

SOURCE is a run (a folder, a name in --runs, or `latest`), whose newest intact checkpoint is taken,
or the folder of one checkpoint.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from magicdistill.platform.config.overrides import parse
from magicdistill.platform.launch.cli import refuse
from magicdistill.platform.runs import logs


@dataclass(frozen=True)
class Arguments:
    """The flags of the job."""

    source: Annotated[str, tyro.conf.arg(metavar="RUN|CHECKPOINT"), tyro.conf.Positional]
    """Run or checkpoint to export."""
    to: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder to write, which must be new or empty."""
    role: str = "generator"
    """Role whose network is exported."""
    ema: bool = True
    """Take the average of the weights, where the run keeps one, instead of the last ones."""
    dtype: Literal["fp16", "bf16", "fp32", "int8"] = "fp16"
    """Numbers of the files; int8 is of the linears' weights, beside bf16."""
    encoders: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of diffusers whose text encoders are written too, in the same numbers."""
    lora_only: bool = False
    """Write the weak-to-strong LoRA alone, which goes on the teacher."""
    runs: str = "runs"
    """Folder of the runs."""
    verbose: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(aliases=["-v"])] = False
    """Show what the frameworks have to say."""


def main() -> None:
    """Parse the command line and run the job."""
    with logs.ending_with_its_reader():
        args = parse(Arguments, sys.argv[1:], prog="python jobs/export.py", description=__doc__)
    logs.configure(verbose=args.verbose)

    from magicdistill.platform.export.export import ExportError, export, export_lora

    try:
        if args.lora_only:
            export_lora(args.source, args.to, runs=args.runs, say=logs.say)
            return
        export(
            args.source,
            args.to,
            runs=args.runs,
            role=args.role,
            ema=args.ema,
            dtype=args.dtype,
            encoders=args.encoders,
            say=logs.say,
        )
    except (ExportError, FileNotFoundError) as error:
        refuse("export", error)


if __name__ == "__main__":
    main()
