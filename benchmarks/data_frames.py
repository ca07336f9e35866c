r"""Which frames are seen of real files, beside FFmpeg's.

`python benchmarks/data_frames.py DIR... --ffmpeg PROGRAM` compares for every video of the folders
the size as shown, the frame rate, the number of frames, the seconds, and the pixels of frames, in
sequence and by number. It prints a table in Markdown; a cell with two values has ours first. Odd
files to try it on are written by `python -m tests.odd_videos DIR`. FFmpeg may be any build of it,
for instance that of the package imageio-ffmpeg.
"""

import argparse
import re
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from magicdistill.data_pipeline.media.display import NEARLY_SQUARE
from magicdistill.data_pipeline.media.frame_index import open_video
from magicdistill.data_pipeline.media.frame_reader import CHECKSUM_ROWS, row_bytes
from magicdistill.data_pipeline.media.video import VIDEO_SUFFIXES, VideoError, frames_at, probe
from magicdistill.data_pipeline.rows import Array

OUTPUT = ("-an", "-sn", "-dn", "-fps_mode", "passthrough")
"""FFmpeg's options for the frames of a film as they are."""
BY_NUMBER = 24
"""Frames of each file that are also read by number, every one anew."""


class Seen(NamedTuple):
    """What is seen of a file."""

    size: str
    """Width and height as shown."""
    fps: str
    """Frames per second, on average."""
    num_frames: str
    """Number of frames that can be read."""
    seconds: str
    """Time from the first frame to the last."""


def main() -> None:
    """Compare every file and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="Folders of videos.")
    parser.add_argument("--ffmpeg", default="ffmpeg", help="FFmpeg's program.")
    args = parser.parse_args()
    print("| file | size | frames a second | frames | seconds | pixels in sequence | by number |")
    print("|---|---|---|---|---|---|---|")
    for folder in args.folders:
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                print(compared(path, args.ffmpeg), flush=True)


def compared(path: Path, ffmpeg: str) -> str:
    """Return a file's row of the table."""
    try:
        seen, ours = our_view(path)
    except VideoError as error:
        return f"| {path.name} | {error} | | | | | |"
    expected, theirs = ffmpegs_view(path, ffmpeg)
    cells = [
        mine if mine == other else f"{mine}; FFmpeg {other}"
        for mine, other in zip(seen, expected, strict=True)
    ]
    same = sum(a == b for a, b in zip(ours, theirs, strict=False))
    chosen = np.unique(np.linspace(0, len(ours) - 1, BY_NUMBER).astype(int)).tolist()
    found = sum(by_number(path, number) == ours[number] for number in chosen)
    cells += [share(same, max(len(ours), len(theirs))), share(found, len(chosen))]
    return f"| {path.name} | {' | '.join(cells)} |"


def share(same: int, total: int) -> str:
    """Return how many are the same, in short where all are."""
    return "all" if same == total else f"{same} of {total}"


def our_view(path: Path) -> tuple[Seen, list[str]]:
    """Return what is seen of a file here, and the checksum of each frame that can be read."""
    index = probe(path)
    checksums: list[str] = []
    with suppress(VideoError):
        for frame in frames_at(path, range(index.num_frames)):
            checksums.append(frame.checksum)
    times = (np.arange(index.num_frames) / index.fps if index.times_s is None else index.times_s)[
        : len(checksums)
    ]
    return spelt((index.width, index.height), times, len(checksums)), checksums


def by_number(path: Path, number: int) -> str:
    """Return the checksum of one frame."""
    (frame,) = frames_at(path, [number])
    return frame.checksum


def ffmpegs_view(path: Path, ffmpeg: str) -> tuple[Seen, list[str]]:
    """Return what FFmpeg sees of a file, and the checksums of its frames."""
    shown = Report.of(run_ffmpeg(ffmpeg, path, "-frames:v", "1", "-f", "framemd5", "-"))
    with tempfile.TemporaryDirectory() as folder:
        listed, pixels = Path(folder, "listed"), Path(folder, "pixels")
        outputs = "-f", "framemd5", str(listed), *OUTPUT, "-f", "rawvideo", str(pixels)
        run_ffmpeg(ffmpeg, path, *outputs, before=("-noautorotate",))  # pixels as they are stored
        stored = Report.of(listed.read_bytes())
        checksums = list(stored_checksums(path, pixels, stored))
    seconds = stored.seconds - stored.seconds[0]
    return spelt(shown.square_size, seconds, len(checksums)), checksums


class Report(NamedTuple):
    """FFmpeg's list of frames."""

    width: int
    height: int
    aspect: float
    """Width of a pixel divided by its height."""
    num_bytes: int
    """Size of a frame."""
    seconds: Array
    """Time of each frame, float64 (n,)."""

    @classmethod
    def of(cls, text: bytes) -> "Report":
        """Read what FFmpeg's `framemd5` writes."""
        lines = text.decode().splitlines()
        head = dict(re.findall(r"#(\w+) 0: (\S+)", "\n".join(lines)))
        frames = [line.split(",") for line in lines if line and line[0] != "#"]
        width, height = map(int, head["dimensions"].split("x"))
        tick_s, aspect = (Fraction(head.get(key, "0/1").replace(":", "/")) for key in ("tb", "sar"))
        seconds = np.array([int(frame[2]) * float(tick_s) for frame in frames])
        return cls(width, height, float(aspect) or 1.0, int(frames[0][4]), seconds)

    @property
    def square_size(self) -> tuple[int, int]:
        """Width and height in square pixels; nearly square ones are taken as they are."""
        if self.aspect > 1 + NEARLY_SQUARE:
            return round(self.width * self.aspect), self.height
        if self.aspect < 1 - NEARLY_SQUARE:
            return self.width, round(self.height / self.aspect)
        return self.width, self.height


def run_ffmpeg(ffmpeg: str, path: Path, *output: str, before: Sequence[str] = ()) -> bytes:
    """Decode a file's video and return what FFmpeg writes to its standard output."""
    command = [ffmpeg, "-v", "quiet", *before, "-i", str(path), *OUTPUT, *output]
    return subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout


def stored_checksums(path: Path, pixels: Path, report: Report) -> Iterator[str]:
    """Yield the checksum that `DecodedFrame` takes for each frame in a file of raw pixels."""
    with open_video(str(path)) as (_, stream):
        stored = stream.codec_context.format
    assert stored
    row = row_bytes(stored, report.width)
    with pixels.open("rb") as file:
        while len(frame := file.read(report.num_bytes)) == report.num_bytes:
            rows = np.frombuffer(frame, np.uint8)[: row * report.height].reshape(-1, row)
            yield f"{zlib.crc32(rows[::CHECKSUM_ROWS].tobytes()) & 0xFFFF:04x}"


def spelt(size: tuple[int, int], seconds: Array, num_frames: int) -> Seen:
    """Return what is seen as it stands in the table."""
    length_s = float(seconds[-1]) if num_frames else 0.0
    rate = (num_frames - 1) / length_s if length_s else 0.0
    return Seen("x".join(map(str, size)), f"{rate:.2f}", str(num_frames), f"{length_s:.2f}")


if __name__ == "__main__":
    main()
