"""Folders of tables that later runs use again where what they were made of is the same."""

import fcntl
import json
import os
import shutil
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from magicdistill.data_pipeline.io.whole_files import write_text

TABLES = "tables"
"""Folder of all places, beside clips, ledger and latents."""
MAX_KEPT = 2
"""Folders of one place that are kept although nobody uses them: those that were used last."""
MAX_AGE_S = 30 * 86_400
"""Folders that nobody has used for so long are removed, wherever they are."""
FACTS = "facts.json"
"""The file that is written last: a folder counts from then on."""
LOCK = "lock"


class KeptFolder:
    """A folder that no other process removes as long as this object exists.

    A lock of the system says so, which ends with the process, however that ends.
    """

    def __init__(self, path: Path) -> None:
        """Take a folder; raises FileNotFoundError if it was removed meanwhile."""
        self.path = path
        file = os.open(path / LOCK, os.O_RDWR | os.O_CREAT)
        weakref.finalize(self, os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError:
            return  # a file system without locks: nothing is ever removed there
        os.stat(path / LOCK)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was noted when it was kept."""
        return json.loads((self.path / FACTS).read_text())["facts"]


class KeptTables:
    """Folders in one place, each by a key that says what it was made of.

    Several processes may use a place: a folder is written under a name of its own, and counts once
    its facts are there, with the sizes of its files.
    """

    def __init__(self, place: Path) -> None:
        """Take the place, a folder beside those of other places."""
        self._place = place

    def find(self, key: str) -> KeptFolder | None:
        """Return a folder that was kept by a key and is whole; None if there is none."""
        for path in sorted(self._place.glob(f"{key}-*")):
            try:
                folder = KeptFolder(path)
                sizes = json.loads((path / FACTS).read_text())["sizes"]
                if all((path / name).stat().st_size == size for name, size in sizes.items()):
                    os.utime(path)
                    return folder
            except (OSError, ValueError, KeyError):
                continue
        return None

    def newest_first(self) -> Iterator[KeptFolder]:
        """Yield the folders that were kept by any key and are whole, the one used last first."""
        for path in sorted(self._place.glob("*"), key=_used_s, reverse=True):
            if found := self.find(path.name.rpartition("-")[0]):
                yield found

    def begin(self, key: str) -> KeptFolder:
        """Return a new folder."""
        path = self._place / f"{key}-{uuid4().hex}"
        path.mkdir(parents=True)
        return KeptFolder(path)

    def keep(self, folder: KeptFolder, facts: Mapping[str, Any]) -> None:
        """Let a folder count, whose files are all written, and remove what is no longer needed."""
        sizes = {
            str(file.relative_to(folder.path)): file.stat().st_size
            for file in folder.path.rglob("*")
            if file.is_file() and file.name != LOCK
        }
        write_text(folder.path / FACTS, json.dumps({"sizes": sizes, "facts": facts}))
        self._remove_old()

    def _remove_old(self) -> None:
        for place in filter(Path.is_dir, self._place.parent.iterdir()):
            most = MAX_KEPT if place == self._place else None
            used = {path: _used_s(path) for path in place.iterdir() if path.is_dir()}
            whole = [path for path in used if (path / FACTS).exists()]
            whole.sort(key=used.__getitem__, reverse=True)
            wanted = {p for p in whole[:most] if used[p] > time.time() - MAX_AGE_S}
            for path in used.keys() - wanted:
                _remove_unused(path)


def link_files(folder: Path, target: Path) -> None:
    """Let a new folder have the files of another one, which may be removed later."""
    shutil.copytree(folder, target, copy_function=link)


def link(source: Path | str, target: Path | str) -> None:
    """Give a file, which is never written again, another name."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _used_s(path: Path) -> float:
    """Return when a folder was used last, in seconds since 1970; 0 if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove_unused(path: Path) -> None:
    """Remove a folder unless a process holds it."""
    try:
        file = os.open(path / LOCK, os.O_RDWR)
    except OSError:
        return  # begun this moment, or removed by another process
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(file)
