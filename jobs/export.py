"""Write a run's generator as a pipeline of diffusers with a model card, as one file, or a LoRA.

SOURCE is a run (a folder, a name in --runs, or `latest`), whose newest intact checkpoint is taken,
or the folder of one checkpoint.
"""

from typing import Annotated, Literal

import tyro

from magicdistill.models.config import Config
from magicdistill.models.paths import LocalFile, LocalPath, PathError
from magicdistill.platform.launch.cli import Switch, parse_arguments, refuse
from magicdistill.platform.runs import logs


class Arguments(Config):
    """Flags of this job."""

    source: Annotated[LocalPath, tyro.conf.arg(metavar="RUN|CHECKPOINT"), tyro.conf.Positional]
    """Run or checkpoint to export."""
    to: Annotated[LocalFile, tyro.conf.arg(metavar="DIR")]
    """Folder to write, which must be new or empty."""
    format: Literal["diffusers", "original", "lora"] = "diffusers"
    """What is written: a pipeline of `diffusers`, into which a LoRA student is merged; one file
    with the names of the `original` code, which ComfyUI reads; or a student that is a LoRA alone,
    as peft, diffusers, ComfyUI and kohya's scripts (musubi-tuner) read it."""
    role: str = "generator"
    """Role whose network is exported."""
    no_ema: Switch = False
    """Take the last weights, also where the run keeps their average."""
    dtype: Literal["fp16", "bf16", "fp32", "int8"] = "fp16"
    """Numbers of the files; int8 holds the linears' weights as integers and the rest in bf16."""
    encoders: Annotated[LocalFile | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of diffusers whose text encoders are written too, in the same numbers."""
    low_noise: Annotated[LocalPath | None, tyro.conf.arg(metavar="RUN|CHECKPOINT")] = None
    """Run of the expert for low noise levels, such as Wan 2.2's second, which is written too."""
    lora_only: Switch = False
    """Write the weak-to-strong LoRA alone, which goes on the teacher."""
    runs: LocalPath = "runs"
    """Folder of the runs."""
    verbose: Annotated[Switch, tyro.conf.arg(aliases=["-v"])] = False
    """Also show the messages of the frameworks."""


def main() -> None:
    """Parse the command line and run the job."""
    args = parse_arguments("export", Arguments, __doc__)
    logs.configure(verbose=args.verbose)

    from magicdistill.platform.export.export import (
        ExportError,
        export,
        export_lora,
        export_original,
    )

    where = {"source": args.source, "directory": args.to, "runs": args.runs, "say": logs.say}
    network = {"role": args.role, "ema": not args.no_ema, "dtype": args.dtype}
    try:
        if args.lora_only:
            export_lora(**where)
        elif args.format == "lora":
            export_lora(**where, of_student=True, ema=not args.no_ema)
        elif args.format == "original":
            export_original(**where, **network)
        else:
            export(**where, **network, encoders=args.encoders, low_noise=args.low_noise)
    except (ExportError, FileNotFoundError, PathError) as error:
        refuse("export", error)


if __name__ == "__main__":
    main()
