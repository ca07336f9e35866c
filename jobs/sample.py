"""Generate video from a first frame: one from --image, or many from --inputs over Ray actors.

A --prompt without an --image gets its first frame from a text-to-image pipeline, from a folder of
images, or from both (--text_to_image, --index); --index alone makes the folder's index. --inputs is
a JSONL list; each line has an image or a prompt and may have name, seed and seconds. Then --out is
a folder, and what is in it already is not made again. A contact sheet lies beside every video, as
NAME.sheet.png. The same seed gives the same video.
"""

import sys
from dataclasses import replace
from typing import Annotated

import tyro

from magicdistill.models.config import Config
from magicdistill.models.paths import LocalFile, LocalPath, PathError
from magicdistill.platform.config.first_frame_sections import PriorConfig
from magicdistill.platform.export.pretrained_model import (
    Pretrained,
    find_pretrained,
    lone_expert,
    shipped_for,
)
from magicdistill.platform.inference import output_files
from magicdistill.platform.inference.orders import NO_IMAGE, Fit, Order, check, read_orders
from magicdistill.platform.launch.cli import Switch, parse_arguments, refuse
from magicdistill.platform.runs import logs

NO_PRIOR = PriorConfig()


class Arguments(Config):
    """Flags of this job."""

    out: Annotated[LocalFile | None, tyro.conf.arg(metavar="MP4|DIR")] = None
    """Video to write, an .mp4; with --inputs, folder of the videos."""
    force: Switch = False
    """Also write over files that are there and that no such job made; never over an input."""
    image: Annotated[LocalFile | None, tyro.conf.arg(metavar="FILE")] = None
    """First frame. White shows where it is transparent."""
    fit: Fit = "face"
    """How an image of another aspect is brought to the model's: face crops it so that the faces
    stay in it, crop about its centre, pad keeps all of it and repeats its border around it."""
    inputs: Annotated[LocalFile | None, tyro.conf.arg(metavar="JSONL")] = None
    """List of inputs, for many videos."""
    model: Annotated[LocalPath | None, tyro.conf.arg(metavar="RUN|DIR|NAME")] = None
    """A run, a folder of diffusers, or a model that comes with the project; by default that of the
    project that was trained for as many steps, without --steps the 4-step student."""
    prompt: str | None = None
    """Text of the video, and of its first frame without --image; by default the null prompt, which
    image-to-video is trained on."""
    prior: Annotated[PriorConfig, tyro.conf.arg(name="")] = NO_PRIOR
    """Where the first frame of a prompt without an image comes from."""
    seconds: float | None = None
    """Length of the video in seconds; beyond the model's own, windows follow one another. By
    default one window."""
    seed: int = 0
    """Seed of the noise. Line i of a list has this seed plus i."""
    steps: int | None = None
    """Steps of the sampler; by default, like the next two, what the model was trained for."""
    shift: float | None = None
    """Flow shift of the sampler's grid."""
    guidance: float | None = None
    """Guidance scale in the Ho form; 1 is none."""
    size: Annotated[tuple[int, int, int] | None, tyro.conf.arg(metavar="FRAMES HEIGHT WIDTH")] = (
        None
    )
    """Shape of a window; by default the one that the model was trained on, and for others it says
    so."""
    overlap: int = 5
    """Frames that two windows share: 1, 5, 9, ..."""
    pull: float = 0.2
    """How far every window starts nearer to the coarse picture of the first frame, against drift;
    0 for a camera or a subject that moves far."""
    int8: Switch = False
    """Hold the linears' weights as eight-bit integers, in half the memory; the encoders' too."""
    offload: Switch = False
    """Keep the transformer in host memory, its layers on the GPU only while they compute."""
    psnr: Switch = False
    """Also make one window in bf16, and print the PSNR of --int8 against it."""
    vae: LocalPath | None = None
    """Folder of the VAE; by default that of the model's recipe, or `vae` beside the model."""
    encoders: LocalPath | None = None
    """Folder of diffusers with the text encoders, for prompts."""
    actors: int | None = None
    """Actors for --inputs; by default one a GPU, without GPUs one a core."""
    address: str | None = None
    """Ray cluster for --inputs; by default one on this machine."""
    serve: Switch = False
    """Answer a web page on this machine, where a portrait becomes a video."""
    port: int = 7860
    """Port of that page; 0 takes a free one."""
    runs: LocalPath = "runs"
    """Folder of the runs."""
    verbose: Annotated[Switch, tyro.conf.arg(aliases=["-v"])] = False
    """Also show the messages of the frameworks."""

    @property
    def only_indexes(self) -> bool:
        """Tell whether there is nothing to sample, but images to index."""
        return bool(self.prior.index) and not (self.image or self.prompt or self.inputs)

    def problem(self) -> str | None:
        """Return what is wrong with the flags together."""
        if self.serve or self.only_indexes:
            return None
        if bool(self.image) == bool(self.inputs) and (self.inputs or not self.prompt):
            return "give either --image or --prompt, for one video, or --inputs, for many"
        return None if self.out else "give --out, where to write"


def main() -> None:
    """Parse the command line and run the job."""
    args = parse_arguments("sample", Arguments, __doc__)
    if problem := args.problem():
        refuse("sample", ValueError(problem))
    logs.configure(verbose=args.verbose)
    try:
        failures = sample(args)
    except (logs.ExplainedError, PathError) as error:
        refuse("sample", error)
    sys.exit("\n".join(failures) or None)


def sample(args: Arguments) -> list[str]:
    """Do what the flags say; return a line about each video that could not be made.

    What can be wrong is looked at first: the networks' packages take seconds to import.
    """
    name = args.model or shipped_for(args.steps)
    found = find_pretrained(name, runs=args.runs, vae=args.vae, encoders=args.encoders)
    model = found.changed(args.size, num_steps=args.steps, shift=args.shift, guidance=args.guidance)
    model = replace(model, dtype="int8" if args.int8 else model.dtype, offload=args.offload)
    if args.size is not None and (warning := found.never_made(args.size)):
        logs.say(warning)
    if (warning := lone_expert(model)) is not None:
        logs.say(warning)
    orders = [] if args.serve or args.only_indexes else _orders(args, model)
    if not args.only_indexes:
        logs.say(f"loading {model.transformer}, which takes some seconds")
    if args.serve:
        from magicdistill.platform.inference.web_page import serve

        serve(model, args.port)
        return []
    if args.only_indexes or any(order.image == NO_IMAGE for order in orders):
        from magicdistill.platform.inference.first_frames import ImagePriors

        with ImagePriors(args.prior, model) as priors:
            if args.only_indexes:
                priors.open_index()
                return []
            orders = [priors.complete(o) if o.image == NO_IMAGE else o for o in orders]
    if args.inputs:
        from magicdistill.platform.inference.sample_many import sample_all

        return sample_all(model, orders, num_actors=args.actors, address=args.address)
    from magicdistill.platform.inference.sample_video import report_difference, sample_one

    sample_one(model, orders[0])
    if args.psnr:
        report_difference(model, orders[0])
    return []


def _orders(args: Arguments, model: Pretrained) -> list[Order]:
    """Return the videos to make, which may be written where they are to be."""
    assert args.out
    order = Order(
        image=args.image or NO_IMAGE,
        out=args.out,
        seed=args.seed,
        prompt=args.prompt,
        seconds=args.seconds,
        overlap=args.overlap,
        pull=args.pull,
        fit=args.fit,
    )
    if args.inputs:
        output_files.demand_folder_path(args.out)
        orders = read_orders(args.inputs, args.out, order)
        output_files.demand_free(orders, [args.inputs], force=args.force)
        return orders
    output_files.demand_video_path(args.out)
    output_files.demand_free([order], force=args.force)
    check(model, order)
    return [order]


if __name__ == "__main__":
    main()
