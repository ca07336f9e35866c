"""A video as a local file: in place, rendered, packed from pictures, or copied from a store."""

import os
import shutil
import socket
import tempfile
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import av
import psutil

from magicdistill.data_pipeline.io.object_stores import filesystem, is_remote
from magicdistill.data_pipeline.media.video import VideoError, pack_pictures
from magicdistill.data_pipeline.rows import UNREACHABLE
from magicdistill.data_pipeline.sources.base import SourceConfig
from magicdistill.data_pipeline.sources.registry import SOURCES

SCRATCH = f"magicdistill-scratch-{os.getuid()}"
"""Folder of one user's copies below the temporary folder, which users may share."""
SPARE_BYTES = 1 << 30
"""Disk space in bytes that a copy has to leave free."""


def is_rendered(uri: str) -> bool:
    """Tell by a clip's address whether one of the sources renders it."""
    return _renderer(uri) is not None


def _renderer(uri: str) -> type[SourceConfig] | None:
    scheme = uri.partition(":")[0]
    return next((cls for cls in SOURCES if cls.SCHEME and scheme == cls.SCHEME), None)


class Scratch:
    """Gives videos as local files; of the copies that it makes, it keeps the last one only.

    Clips of one film that follow each other share that copy. Copies lie under the temporary folder
    (`TMPDIR`), in one folder per process, named by host and process id because machines may share
    the disk. Folders of processes that were killed are removed by the next one on the same host.
    """

    def __init__(self) -> None:
        self._host = f"{socket.gethostname()}-"
        name = f"{self._host}{os.getpid()}"
        self._directory = Path(tempfile.gettempdir()) / SCRATCH / name
        self._uri = ""
        self._copy = Path()
        self._refusal = ""

    def fetch(self, uri: str, path: str) -> Path:
        """Return a video's local file; a copy of it lives until the next call or `clear`.

        Args:
            uri: address of the content.
            path: the local file or folder of pictures; empty where the content is remote.

        Raises:
            VideoError: if the file cannot be had. A message that begins with `UNREACHABLE` marks a
                failure that may pass. Only the listing decides that a file is missing for good:
                one that went away since then may come back, as with its disk.
        """
        try:
            return self._fetch(uri, path)
        except (OSError, UnicodeError, ArithmeticError, av.FFmpegError) as error:
            raise VideoError(f"{UNREACHABLE}: {type(error).__name__}: {error}") from error

    def clear(self) -> None:
        """Remove the copy, if there is one, and forget why the last one could not be made."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._uri = self._refusal = ""

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def _fetch(self, uri: str, path: str) -> Path:
        if is_remote(uri):
            return self._kept(uri) or self._download(uri)
        if (source := _renderer(uri)) and not Path(path).exists():
            source.render(uri, Path(path))
        if not Path(path).exists():
            raise VideoError(f"{UNREACHABLE}: missing file")
        if Path(path).is_dir():
            return self._kept(uri) or self._pack(uri, Path(path))
        return Path(path)

    def _kept(self, uri: str) -> Path | None:
        # The other clips of a film that cannot be fetched fail at once, without the same retries.
        if uri == self._uri and self._refusal:
            raise VideoError(self._refusal)
        return self._copy if uri == self._uri and self._copy.exists() else None

    def _download(self, uri: str) -> Path:
        target = self._emptied() / uri.rpartition("/")[2]
        try:
            files = filesystem()
            num_bytes = files.info(uri, refresh=True)["size"]
            self._make_sure_of_room(num_bytes)
            files.get_file(uri, str(target))
        except VideoError:
            raise
        except Exception as error:  # stores raise errors of many libraries; the next run retries
            self._uri = uri
            self._refusal = f"{UNREACHABLE}: {type(error).__name__}: {error}"
            raise VideoError(self._refusal) from error
        if target.stat().st_size != num_bytes:
            raise VideoError(f"{UNREACHABLE}: {target.stat().st_size} of {num_bytes} bytes came")
        return self._keep(uri, target)

    def _pack(self, uri: str, folder: Path) -> Path:
        target = self._emptied() / f"{folder.name}.mov"
        self._make_sure_of_room(sum(file.stat().st_size for file in folder.iterdir()))
        fps = dict(parse_qsl(urlsplit(uri).fragment)).get("fps", "")
        if not fps:
            raise VideoError("a folder of pictures without a frame rate")
        pack_pictures(folder, float(fps), target)
        return self._keep(uri, target)

    def _keep(self, uri: str, copy: Path) -> Path:
        self._uri, self._copy = uri, copy
        return copy

    def _emptied(self) -> Path:
        """Return this process's folder, empty; remove those of processes that have ended."""
        self.clear()
        self._directory.mkdir(parents=True)
        for other in self._directory.parent.iterdir():
            owner = other.name.removeprefix(self._host)
            if owner.isdigit() and not psutil.pid_exists(int(owner)):
                shutil.rmtree(other, ignore_errors=True)
        return self._directory

    def _make_sure_of_room(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self._directory).free
        if num_bytes + SPARE_BYTES > free:
            reason = f"{num_bytes} bytes do not fit into the {free} free of {self._directory}"
            raise VideoError(f"{UNREACHABLE}: {reason}")
