"""Decisions over what a ledger holds of several configs and several nights; no video is opened."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from magicdistill.data_pipeline.config import DataConfig, Measures, Policy
from magicdistill.data_pipeline.ledger.ledger import Ledger
from magicdistill.data_pipeline.pipeline import Curator
from magicdistill.data_pipeline.rows import ClipRow, Video, clips_to_table, failed
from magicdistill.data_pipeline.scorers.phash import PHash
from magicdistill.data_pipeline.selection.curation_result import Selection
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.sources.listing import iter_videos

MEASURES = Measures(scorers=(PHash(),))
BITS = np.random.default_rng(0).integers(0, 2, (4, 512))
BITS[1] = BITS[0]
BITS[1][:40] ^= 1  # a near copy


def make_folder(path: Path, *names: str) -> Folder:
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_text("never opened")
    return Folder(path=str(path), license="CC0", mixture="portrait")


def make_config(*folders: Folder) -> DataConfig:
    policy = Policy(min_short_side=64, min_long_side=64)
    return DataConfig(sources=folders, measures=MEASURES, policy=policy)


def score(root: Path, folder: Folder, *bits: np.ndarray, width: int = 96) -> None:
    """Commit a clip of every video of a folder, with its hash."""
    videos = list(iter_videos([folder], root))
    clips = [clip_of(video, found, width) for video, found in zip(videos, bits, strict=True)]
    Ledger(root / "ledger").append(clips)


def clip_of(video: Video, bits: np.ndarray, width: int) -> ClipRow:
    return ClipRow(
        clip_id=f"clip {video.video_id}",
        video=video,
        measures=MEASURES.version,
        stop=48,
        content_hash=video.uri,
        width=width,
        height=64,
        fps=24.0,
        num_frames_header=48,
        num_frames_decoded=48,
        motion_px=2.0,
        scorers={"phash": PHash().version},
        blobs={"phash": np.packbits(bits).tobytes()},
    )


def decide(root: Path, *configs: DataConfig) -> list[Selection]:
    """Do what `--stage decide` does."""
    return Curator(configs, root).decide()


def reasons_of(selection: Selection) -> dict[str, tuple[str, ...]]:
    return {Path(d.clip.video.uri).name: d.reasons for d in selection.decisions}


def decisions_in(root: Path) -> dict[str, list[dict[str, object]]]:
    files = Ledger(root / "ledger").decision_files()
    return {path.name: pq.read_table(str(path)).to_pylist() for path in files}


def test_a_training_clip_that_repeats_a_held_out_one_is_rejected_whenever_it_is_decided(
    tmp_path: Path,
):
    root = tmp_path / "root"
    train = make_folder(tmp_path / "train", "copy.mp4", "other.mp4")
    test = make_folder(tmp_path / "test", "test.mp4")
    score(root, train, BITS[0], BITS[2], width=800)
    score(root, test, BITS[1])
    configs = make_config(train), make_config(test)
    training, held_out = decide(root, *configs)
    assert reasons_of(held_out) == {"test.mp4": ()}
    assert reasons_of(training) == {
        "copy.mp4": ("duplicate: of folder/test/test.mp4 in the held-out clips by pHash",),
        "other.mp4": (),
    }
    stored = decisions_in(root)
    assert len(stored) == 2
    decide(root, *configs)
    assert decisions_in(root) == stored
    (alone,) = decide(root, configs[0])
    assert reasons_of(alone) == {"copy.mp4": (), "other.mp4": ()}


def test_a_held_out_clip_that_is_rejected_reserves_nothing(tmp_path: Path):
    root = tmp_path / "root"
    train, test = (make_folder(tmp_path / name, "a.mp4") for name in ("train", "test"))
    score(root, train, BITS[0])
    score(root, test, BITS[1], width=32)
    training, held_out = decide(root, make_config(train), make_config(test))
    assert reasons_of(training) == {"a.mp4": ()}
    assert held_out.counts["rejected"] == 1


def test_a_later_night_rejects_the_copy_that_a_new_source_brings(tmp_path: Path):
    root = tmp_path / "root"
    first = make_folder(tmp_path / "first", "a.mp4", "b.mp4")
    score(root, first, BITS[0], BITS[2])
    (before,) = decide(root, make_config(first))
    assert [clip.video.uri for clip in before.clips] == [v.uri for v in iter_videos([first], root)]

    second = make_folder(tmp_path / "second", "copy.mp4", "new.mp4")
    score(root, second, BITS[1], BITS[3])
    for folders in ((first, second), (second, first)):
        (after,) = decide(root, make_config(*folders))
        assert reasons_of(after) == {
            "a.mp4": (),
            "b.mp4": (),
            "copy.mp4": ("duplicate: of folder/first/a.mp4 by pHash",),
            "new.mp4": (),
        }
    (alone,) = decide(root, make_config(second))  # its version would have neither of them
    assert reasons_of(alone) == {"copy.mp4": (), "new.mp4": ()}


def test_small_parts_are_merged_while_scoring_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("magicdistill.data_pipeline.ledger.ledger.MAX_SMALL_PARTS", 3)
    monkeypatch.setattr("magicdistill.data_pipeline.pipeline.MERGE_EVERY", 4)
    folder = make_folder(tmp_path / "clips", *(f"{number:02d}.mp4" for number in range(18)))
    curator = Curator([make_config(folder)], tmp_path / "root")
    most = 0
    for number, video in enumerate(iter_videos([folder], tmp_path)):
        bits = np.random.default_rng(number).integers(0, 2, 512)
        curator._commit(clips_to_table([clip_of(video, bits, 96)]))
        unreachable = failed(video, MEASURES.version, "unreachable: missing file")
        curator._commit(clips_to_table([unreachable] if number == 7 else []))
        most = max(most, len(Ledger(tmp_path / "root" / "ledger").parts()))
    assert most <= 5
    (selection,) = curator.decide()
    assert len(Ledger(tmp_path / "root" / "ledger").parts()) <= 3
    assert selection.counts == {"accepted": 18, "rejected": 0, "failed": 1}
    (again,) = decide(tmp_path / "root", make_config(folder))
    assert again.counts == {"accepted": 18, "rejected": 0, "failed": 0}  # temporary failures pass
