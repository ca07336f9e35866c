"""Checkpoints are intact, or passed over."""

import json
import shutil
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from magicdistill.platform.checkpoints.checkpoint_folder import COMMITTED, DiskFullError
from magicdistill.platform.checkpoints.checkpoints import (
    Checkpoints,
    DamagedError,
    NoCheckpointError,
)
from magicdistill.platform.checkpoints.checksummed_files import write_tensors
from magicdistill.platform.config.sections import OptimizerConfig, TorchEngineConfig
from magicdistill.platform.engines.ema import Ema
from magicdistill.platform.engines.engine import TorchEngine
from tests.engines import FullDiskEngine, SlowDiskEngine, make_engine

STATE = "net/rank-00000.safetensors"


def train(engine: TorchEngine) -> None:
    engine.backward(engine(torch.ones(2, 4)).square().mean(), last=True)
    engine.step()


def weight_of(engine: TorchEngine) -> torch.Tensor:
    return engine.module.state_dict()["weight"]


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def saved(tmp_path: Path, warnings: list[str]) -> tuple[Checkpoints, dict[int, torch.Tensor]]:
    """Three saves of which two are kept, and the weights at each."""
    engine = make_engine()
    weights: dict[int, torch.Tensor] = {}
    ema = Ema("net", engine, 0.5)
    checkpoints = Checkpoints(tmp_path, keep=2, warn=warnings.append)
    for cycle in (1, 2, 3):
        train(engine)
        ema.update()
        checkpoints.save(cycle, {"net": engine}, ema)
        weights[cycle] = weight_of(engine).clone()
    return checkpoints, weights


def restore(checkpoints: Checkpoints) -> tuple[int, torch.Tensor]:
    engine = make_engine()
    cycle = checkpoints.load_latest({"net": engine}, None)
    return cycle, weight_of(engine)


def test_the_newest_is_restored_and_the_oldest_is_gone(saved):
    checkpoints, weights = saved
    cycle, weight = restore(checkpoints)
    assert cycle == 3
    assert torch.equal(weight, weights[3])
    assert [path.name for path in checkpoints.committed()] == ["cycle-0000002", "cycle-0000003"]


def test_what_a_kill_left_half_written_goes_with_the_next_save(saved):
    checkpoints, _ = saved
    (checkpoints.folder / "cycle-0000002" / "COMMITTED").unlink()
    checkpoints.save(4, {"net": make_engine()}, None)
    found = sorted(path.name for path in checkpoints.folder.iterdir())
    assert found == ["cycle-0000003", "cycle-0000004"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_one_bit, Path.unlink])
@pytest.mark.parametrize("file", [STATE, "ema/rank-00000.safetensors"])
def test_a_damaged_one_is_passed_over_for_the_one_before(saved, warnings, damage, file):
    checkpoints, weights = saved
    damage(checkpoints.committed()[-1] / file)
    cycle, weight = restore(checkpoints)
    assert cycle == 2
    assert torch.equal(weight, weights[2])
    assert "cycle-0000003" in warnings[0]
    assert file in warnings[0]


def test_one_without_a_marker_does_not_count(saved):
    checkpoints, _ = saved
    (checkpoints.committed()[-1] / COMMITTED).unlink()
    assert restore(checkpoints)[0] == 2


@pytest.mark.parametrize("content", ["", "3\n", '{"cycle": 3}'])
def test_one_with_a_damaged_marker_is_passed_over(saved, content):
    checkpoints, _ = saved
    (checkpoints.committed()[-1] / COMMITTED).write_text(content)
    assert restore(checkpoints)[0] == 2


def test_pruning_after_damage_keeps_what_is_intact(saved):
    checkpoints, _ = saved
    truncate(checkpoints.committed()[-1] / STATE)
    engine = make_engine()
    checkpoints.keep = 1
    assert checkpoints.load_latest({"net": engine}, None) == 2
    checkpoints.save(3, {"net": engine}, None)
    assert restore(checkpoints)[0] == 3


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(saved):
    checkpoints, _ = saved
    for path in checkpoints.committed():
        truncate(path / STATE)
    with pytest.raises(DamagedError, match="new run"):
        restore(checkpoints)


def test_a_run_without_checkpoints_starts_at_zero(tmp_path):
    assert restore(Checkpoints(tmp_path / "none", keep=1))[0] == 0


def test_a_full_disk_is_said_and_leaves_the_previous_intact(saved):
    checkpoints, weights = saved
    with pytest.raises(DiskFullError, match="no space left"):
        checkpoints.save(4, {"net": make_engine(FullDiskEngine)}, None)
    assert not list(checkpoints.folder.glob("cycle-0000004"))
    cycle, weight = restore(checkpoints)
    assert cycle == 3
    assert torch.equal(weight, weights[3])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_fills_up_leaves_the_previous_intact(small_disk):
    engine = TorchEngine(TorchEngineConfig(), nn.Linear(80, 80), OptimizerConfig(lr=0.1), 1)
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=2)
    for cycle in (1, 2):
        engine.backward(engine(torch.ones(2, 80)).square().mean(), last=True)
        engine.step()
        if cycle == 1:
            checkpoints.save(cycle, {"net": engine}, None)
            expected = weight_of(engine).clone()
    with pytest.raises(DiskFullError, match="no space left"):
        checkpoints.save(2, {"net": engine}, None)
    assert checkpoints.load_latest({"net": engine}, None) == 1
    assert torch.equal(weight_of(engine), expected)


def test_the_best_one_is_never_pruned(tmp_path):
    engine = make_engine()
    checkpoints = Checkpoints(tmp_path, keep=1)
    newest = []

    def spared() -> set[int]:
        newest.append(checkpoints.names()[-1])
        return {1}

    for cycle in (1, 2, 3):
        checkpoints.save(cycle, {"net": engine}, None, spared)
    assert newest == ["cycle-0000001", "cycle-0000002", "cycle-0000003"]  # asked when it is written
    assert checkpoints.names() == ["cycle-0000001", "cycle-0000003"]


def test_training_goes_on_where_the_mirror_cannot_be_reached(tmp_path):
    (tmp_path / "file").touch()
    warnings: list[str] = []
    checkpoints = Checkpoints(tmp_path / "here", 2, warnings.append, f"{tmp_path}/file/mirror")
    checkpoints.save(1, {"net": make_engine()}, None)
    assert f"cycle-0000001 is not mirrored: the mirror {tmp_path}/file/mirror" in warnings[0]
    assert "NotADirectoryError" in warnings[0]
    assert [path.name for path in checkpoints.committed()] == ["cycle-0000001"]


def copy_of(path: Path, name: str) -> Path:
    return Path(shutil.copytree(path, path.with_name(name)))


COPIES = ["cycle-0000003-backup", "cycle-0000003 (copy)", "cycle-3", "cycle-", "cycle-0000009"]


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("is_complete", [True, False])
def test_a_copy_is_never_counted_chosen_or_pruned(saved, name, is_complete):
    checkpoints, weights = saved
    copy = copy_of(checkpoints.committed()[-1], name)
    (copy / STATE).write_bytes(b"")
    if not is_complete and name != "cycle-0000009":  # which a kill could have left so
        (copy / COMMITTED).unlink()
    before = sorted(copy.rglob("*"))
    assert checkpoints.names() == ["cycle-0000002", "cycle-0000003"]
    cycle, weight = restore(checkpoints)
    assert cycle == 3
    assert torch.equal(weight, weights[3])
    for number in (4, 5, 6):
        checkpoints.save(number, {"net": make_engine()}, None)
    assert checkpoints.names() == ["cycle-0000005", "cycle-0000006"]
    assert sorted(copy.rglob("*")) == before


def test_checkpoints_are_in_the_order_of_their_cycles(saved):
    checkpoints, _ = saved
    for cycle in (9_999_999, 10_000_000):
        checkpoints.save(cycle, {"net": make_engine()}, None)
    assert checkpoints.names() == ["cycle-9999999", "cycle-10000000"]
    assert restore(checkpoints)[0] == 10_000_000


@pytest.mark.parametrize(
    "name",
    ["net/rank-00001.safetensors", "net/rank-00000 (copy).safetensors", ".DS_Store", "notes"],
)
def test_foreign_files_in_a_checkpoint_do_not_matter(saved, warnings, name):
    checkpoints, weights = saved
    path = checkpoints.committed()[-1] / name
    path.write_bytes(b"foreign")
    (path.parent / "dangling").symlink_to("nowhere")
    (path.parent / "folder").mkdir()
    cycle, weight = restore(checkpoints)
    assert (cycle, warnings) == (3, [])
    assert torch.equal(weight, weights[3])


def test_a_checkpoint_is_written_beside_the_training_and_holds_what_was_saved(
    tmp_path: Path, warnings: list[str]
) -> None:
    engine, may_end = make_engine(SlowDiskEngine), SlowDiskEngine.may_end
    may_end.clear()
    checkpoints = Checkpoints(tmp_path, keep=2, warn=warnings.append)
    train(engine)
    before = weight_of(engine).clone()
    checkpoints.save(1, {"net": engine}, None, beside=True)
    train(engine)
    assert checkpoints.names() == [], "it counts once all is written"
    assert not torch.equal(weight_of(engine), before)
    threading.Timer(0.2, may_end.set).start()
    checkpoints.save(2, {"net": engine}, None, beside=True)  # waits for the first
    (said,) = warnings
    assert "cycle 2 waits for the one before" in said and "schedule.checkpoint_every" in said
    checkpoints.wait()
    assert checkpoints.names() == ["cycle-0000001", "cycle-0000002"]
    first = make_engine()
    first.load(tmp_path / "cycle-0000001" / "net")
    assert torch.equal(weight_of(first), before)
    assert torch.equal(restore(checkpoints)[1], weight_of(engine))


def test_what_goes_wrong_beside_the_training_is_raised_once_by_whoever_waits(saved) -> None:
    checkpoints, _ = saved
    checkpoints.save(4, {"net": make_engine(FullDiskEngine)}, None, beside=True)
    while not checkpoints.has_failed():
        time.sleep(0.01)
    with pytest.raises(DiskFullError, match="no space left"):
        checkpoints.save(5, {"net": make_engine()}, None)
    assert not checkpoints.has_failed()
    assert checkpoints.names() == ["cycle-0000002", "cycle-0000003"]


def test_the_marker_holds_the_sizes_and_checksums_of_what_is_on_the_disk(saved) -> None:
    path = saved[0].committed()[-1]
    files = json.loads((path / COMMITTED).read_text())["files"]
    assert sorted(files) == [
        "ema/rank-00000.safetensors",
        "ema/state.json",
        "net/rank-00000.safetensors",
        "net/state.json",
    ]
    for name, facts in files.items():
        content = (path / name).read_bytes()
        assert facts == [len(content), zlib.crc32(content)]


def test_tensors_are_written_as_the_librarys_own_reader_takes_them(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.bfloat16),
        "wide": torch.arange(5, dtype=torch.float64),
        "many": torch.randn(7, 3),
        "strided": torch.randn(4, 6).t(),
        "one": torch.tensor(3.0),
        "whole": torch.arange(4),
    }
    size, _ = write_tensors(tmp_path / "file", tensors)
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys() and size == (tmp_path / "file").stat().st_size
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_a_run_goes_back_to_an_older_checkpoint_and_keeps_the_later_ones_aside(saved, tmp_path):
    checkpoints, weights = saved
    checkpoints.save(4, {"net": make_engine()}, None, spared=lambda: {2})
    aside = tmp_path / "set-aside"
    assert checkpoints.go_back(2, aside) == ["cycle-0000003", "cycle-0000004"]
    cycle, weight = restore(checkpoints)
    assert cycle == 2
    assert torch.equal(weight, weights[2])
    checkpoints.save(3, {"net": make_engine()}, None)
    assert checkpoints.names() == ["cycle-0000002", "cycle-0000003"]
    assert restore(Checkpoints(aside, keep=1))[0] == 4  # as good as it was


def test_going_back_to_a_checkpoint_that_is_not_there_or_damaged_changes_nothing(saved, tmp_path):
    checkpoints, _ = saved
    with pytest.raises(NoCheckpointError, match=r"no checkpoint of cycle 1 in .* those of 2, 3"):
        checkpoints.go_back(1, tmp_path / "aside")
    truncate(checkpoints.committed()[0] / STATE)
    with pytest.raises(DamagedError, match=f"cycle 2 is damaged .{STATE}"):
        checkpoints.go_back(2, tmp_path / "aside")
    assert checkpoints.names() == ["cycle-0000002", "cycle-0000003"]
