"""Checkpoints of a run: each is complete and intact, or does not count."""

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from magicdistill.platform.checkpoints.background import Background
from magicdistill.platform.checkpoints.checkpoint_folder import (
    COMMITTED,
    PREFIX,
    checkpoint_name,
    cycle_of,
    find_damage,
    is_checkpoint,
    is_copy,
    write_folder,
)
from magicdistill.platform.checkpoints.checksummed_files import Checksums
from magicdistill.platform.checkpoints.flat_shards import Snapshot
from magicdistill.platform.checkpoints.s3_mirror import Mirror, MirrorError
from magicdistill.platform.cluster import ranks
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.runs.logs import ExplainedError
from magicdistill.platform.runs.run_directory import RunDirectory

GENERATOR = "generator"
"""The role whose network is exported, scored and sampled."""
EMA = "ema"
"""The folder of the averaged weights beside those of the roles."""


class Saved(Protocol):
    """Training state that every rank writes to a folder and reads back: an engine, an average."""

    def snapshot(self) -> Snapshot:
        """Copy this rank's share to host memory; every rank calls it."""
        ...

    def load(self, directory: Path) -> None:
        """Restore what any number of ranks wrote; every rank calls it."""
        ...


class DamagedError(ExplainedError):
    """Says that no checkpoint of the run, or not the one that is wanted, can be read."""


class NoCheckpointError(FileNotFoundError):
    """Says that the run has no complete checkpoint of a cycle, and which it has."""


class Checkpoints:
    """Saves and restores all roles.

    The commit marker is written last and names every file with its size and checksum. A folder
    without it does not count; one whose files differ from it is passed over for an older one. What
    people put beside the checkpoints or into them, a copy above all, is left alone. The newest
    `keep` stay. `mirror` is an address to which all are copied, and from which those are fetched
    that are damaged or missing in `folder`; while it is away, training goes on without it. `warn`
    receives a line for people about each checkpoint passed over and each failure of the mirror.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        warn: Callable[[str], None] = print,
        mirror: str | None = None,
    ) -> None:
        self.folder, self.keep, self.warn = folder, keep, warn
        self.mirror = Mirror(mirror) if mirror else None
        self._background = Background()

    @classmethod
    def of(
        cls,
        run: RunDirectory,
        recipe: Recipe | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> "Checkpoints":
        """Return the checkpoints of a run, kept and mirrored as its recipe says, by default the
        stored one."""
        recipe = recipe or run.recipe()
        name = f"{run.path.name}-{run.provenance().run_id}"
        mirror = recipe.mirror and f"{recipe.mirror.rstrip('/')}/{name}"
        return cls(run.checkpoints, recipe.schedule.keep_checkpoints, warn or run.say, mirror)

    def committed(self) -> list[Path]:
        """Return the complete checkpoints, oldest first; a copy under another name is none."""
        found = [path for path in self._folders() if (path / COMMITTED).is_file()]
        return sorted((path for path in found if not is_copy(path)), key=cycle_of)

    def names(self) -> list[str]:
        """Return the complete checkpoints here and in the mirror, oldest first.

        Every rank of a job calls it, and the first alone looks. A mirror that is away has none.
        """
        return ranks.of_first(self._list()[0] if ranks.rank() == 0 else [])

    def save(
        self,
        cycle: int,
        engines: Mapping[str, Saved],
        ema: Saved | None,
        spared: Callable[[], Collection[int]] = tuple,
        *,
        beside: bool = False,
    ) -> None:
        """Write the state after `cycle` cycles; every rank calls it.

        The state is copied to host memory, and a thread writes it. With `beside` the call returns
        then, and `wait` or the next save raises what went wrong; one at most is being written.

        `spared` is called on the first rank, once the checkpoint counts, and returns the cycles
        whose checkpoints stay beside the newest. Raises DiskFullError where there is no room, after
        removing what it wrote; where only another rank has none, that is an OtherRankError.
        """
        if self._background.is_busy():
            self._warn_from_first(
                f"the checkpoint of cycle {cycle} waits for the one before, which is still being "
                "written: give a faster file system or more than schedule.checkpoint_every"
            )
        self.wait()
        snapshots = {role: engine.snapshot() for role, engine in engines.items()}
        if ema is not None:
            snapshots[EMA] = ema.snapshot()
        self._background.start(lambda: self._write(cycle, snapshots, spared))
        if not beside:
            self.wait()

    def wait(self) -> None:
        """Wait for what `save` left to the thread, and raise its error; every rank calls it."""
        self._background.wait()

    def has_failed(self) -> bool:
        """Tell whether what `save` left to this rank's thread went wrong: `wait` raises it."""
        return self._background.has_failed()

    def _write(
        self,
        cycle: int,
        snapshots: Mapping[str, Snapshot],
        spared: Callable[[], Collection[int]],
    ) -> None:
        """Write, commit, mirror and prune; runs in the thread of each rank."""
        path = self.folder / checkpoint_name(cycle)
        try:
            write_folder(path, lambda: _write_all(path, snapshots))
        except Exception:
            if ranks.rank() == 0 and not (path / COMMITTED).exists():
                shutil.rmtree(path, ignore_errors=True)
            raise
        cycles = ranks.all_succeed(spared if ranks.rank() == 0 else tuple)
        names = {checkpoint_name(number) for number in cycles}
        if self.mirror:
            self._copy(path, self.mirror, names)
        ranks.first_succeeds(lambda: self._prune(names))

    def _copy(self, path: Path, mirror: Mirror, spared: set[str]) -> None:
        """Copy to the mirror; training goes on where that fails, as the next copy may succeed."""
        try:
            mirror.put(path)
            mirror.prune(self.keep, spared)
        except MirrorError as error:
            self._warn_from_first(f"checkpoint {path.name} is not mirrored: {error}")

    def load_latest(
        self, engines: Mapping[str, Saved], ema: Saved | None, *, has_saved: bool = False
    ) -> int:
        """Restore the newest intact checkpoint; return its cycle, 0 where none was ever saved.

        A damaged one loses its marker here: it would count among the newest when older ones are
        pruned, which are intact. Raises DamagedError where all are damaged, or where a run that
        `has_saved` some has none here and its mirror is away: a fresh start would overwrite the
        run. Every rank calls it.
        """
        names, absence = ranks.of_first(self._list() if ranks.rank() == 0 else ([], ""))
        for name in reversed(names):
            path = self.folder / name
            damaged = self.bring(path)
            if not damaged:
                self._load(path, engines, ema)
                return cycle_of(path)
            ranks.barrier()
            if ranks.rank() == 0:
                (path / COMMITTED).unlink(missing_ok=True)
            self._warn_from_first(
                f"checkpoint {name} is damaged ({', '.join(damaged)}): passed over"
            )
        if absence and (names or has_saved):
            raise DamagedError(
                f"no intact checkpoint is in {self.folder}, and {absence}: make it reachable and "
                "resume, or begin a new run"
            )
        if names:
            raise DamagedError(f"no checkpoint in {self.folder} is intact: start a new run")
        return 0

    def bring(self, path: Path) -> list[str]:
        """Fetch a checkpoint from the mirror if it is damaged; name what is damaged all the same.

        Every rank calls it.
        """
        damaged = find_damage(path)
        if damaged and self.mirror and self._is_mirrored(path.name):
            try:
                self.mirror.fetch(path)
            except MirrorError as error:
                self._warn_from_first(f"checkpoint {path.name} is not fetched: {error}")
            damaged = find_damage(path)
        return damaged

    def demand(self, cycle: int) -> None:
        """Raise NoCheckpointError where there is no complete checkpoint of a cycle."""
        names = self.names()
        if checkpoint_name(cycle) not in names:
            there = ", ".join(str(cycle_of(name)) for name in names)
            raise NoCheckpointError(
                f"no checkpoint of cycle {cycle} in {self.folder}: "
                f"{f'it has those of {there}' if there else 'it has none'}"
            )

    def go_back(self, cycle: int, aside: Path) -> list[str]:
        """Make the checkpoint of a cycle the newest; return the names of the later ones.

        These go to the folder `aside`; in the mirror they lose their marker. Raises
        NoCheckpointError, and DamagedError where the checkpoint is damaged or the mirror is away,
        from which the later ones would come back.
        """
        self.demand(cycle)
        mirrored, absence = self._mirrored()
        if absence:
            raise DamagedError(
                f"{absence}; later checkpoints would come back from it: make it reachable, or go "
                "on without it (--mirror null)"
            )
        if damaged := self.bring(self.folder / checkpoint_name(cycle)):
            raise DamagedError(
                f"the checkpoint of cycle {cycle} is damaged ({', '.join(damaged)}): choose another"
            )
        here = {path.name for path in self.committed()}
        later = sorted((n for n in here | mirrored if cycle_of(n) > cycle), key=cycle_of)
        for name in reversed(later):  # the newest first: a kill leaves a row without gaps
            if self.mirror and name in mirrored:
                self.mirror.set_aside(name)
            if name in here:
                aside.mkdir(parents=True, exist_ok=True)
                (self.folder / name).replace(aside / name)
        return later

    def _load(self, path: Path, engines: Mapping[str, Saved], ema: Saved | None) -> None:
        for role, engine in engines.items():
            engine.load(path / role)
        if ema is not None:
            ema.load(path / EMA)

    def _list(self) -> tuple[list[str], str]:
        """Return the complete checkpoints, and why the mirror could not be asked for its own."""
        mirrored, absence = self._mirrored()
        names = mirrored | {path.name for path in self.committed()}
        return sorted(names, key=cycle_of), absence

    def _is_mirrored(self, name: str) -> bool:
        """Tell whether the mirror has a checkpoint; every rank of a job calls it."""
        return ranks.of_first(ranks.rank() == 0 and name in self._mirrored()[0])

    def _mirrored(self) -> tuple[set[str], str]:
        """Return the complete checkpoints in the mirror, or why it could not be asked."""
        try:
            return (self.mirror.names() if self.mirror else set()), ""
        except MirrorError as error:
            self.warn(f"{error}: what it holds does not count now")
            return set(), str(error)

    def _warn_from_first(self, message: str) -> None:
        """Warn from the first rank; every rank may call it."""
        if ranks.rank() == 0:
            self.warn(message)

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.glob(f"{PREFIX}*") if is_checkpoint(path.name)]

    def _prune(self, spared: set[str]) -> None:
        """Remove all but the newest and the spared; what a kill left half written goes too."""
        complete = self.committed()
        kept = {path.name for path in complete[-self.keep :]} | spared
        for path in self._folders():
            if not (path / COMMITTED).exists():
                shutil.rmtree(path, ignore_errors=True)
        for path in complete:
            if path.name not in kept:
                # The marker goes first: a folder that a kill leaves half removed does not count.
                (path / COMMITTED).unlink()
                shutil.rmtree(path, ignore_errors=True)


def _write_all(path: Path, snapshots: Mapping[str, Snapshot]) -> Checksums:
    """Write this rank's files of a checkpoint; return their checksums by their paths in it."""
    return {
        f"{role}/{name}": facts
        for role, snapshot in snapshots.items()
        for name, facts in snapshot.write(path / role).items()
    }
