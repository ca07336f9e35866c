import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.data_pipeline.io.kept_tables import KeptFolder, KeptTables
from magicdistill.data_pipeline.io.query import Database
from magicdistill.data_pipeline.ledger.takedowns import Takedowns
from magicdistill.data_pipeline.rows import Video, videos_from_table, videos_to_table
from magicdistill.data_pipeline.selection.listed_videos import (
    MAX_SMALL,
    ListedVideos,
    write_listing,
)
from magicdistill.data_pipeline.sources import package_clips
from magicdistill.data_pipeline.sources.data_sets.koala import Koala
from magicdistill.data_pipeline.sources.fetching import Scratch
from magicdistill.data_pipeline.sources.folder import Folder
from magicdistill.data_pipeline.sources.json_lines import JsonLines
from magicdistill.data_pipeline.sources.listing import SourceLister, iter_videos
from magicdistill.data_pipeline.sources.package_clips import PackageClips
from magicdistill.data_pipeline.sources.portrait_clips import PortraitWorld
from magicdistill.data_pipeline.sources.stores import Store
from tests.curation_tables import GivenVideos


def test_a_world_is_listed_without_rendering_and_rendered_on_demand(tmp_path: Path):
    world = PortraitWorld(num_clips=3, first_seed=7, num_frames=5)
    videos = list(iter_videos([world], tmp_path))
    assert [video.source_id for video in videos] == [f"portrait-world/00000{i}" for i in (7, 8, 9)]
    assert not list(tmp_path.rglob("*.mp4"))
    path = Scratch().fetch(videos[1].uri, videos[1].path)
    assert path.name == "portrait-000008.mp4"
    assert [p.name for p in tmp_path.rglob("*.mp4")] == [path.name]


def test_ids_do_not_depend_on_the_place_of_a_world(tmp_path: Path):
    world = PortraitWorld(num_clips=2)
    here, there = (list(iter_videos([world], tmp_path / name)) for name in ("here", "there"))
    assert [v.video_id for v in here] == [v.video_id for v in there]
    longer = list(iter_videos([PortraitWorld(num_clips=2, num_frames=60)], tmp_path))
    assert {v.video_id for v in here}.isdisjoint(v.video_id for v in longer)


def test_overlapping_sources_list_a_video_once(tmp_path: Path):
    worlds = [PortraitWorld(num_clips=5), PortraitWorld(num_clips=5, first_seed=3)]
    assert len(list(iter_videos(worlds, tmp_path))) == 8


def test_a_folder_lists_every_file_and_notices_a_change(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    for name in ("b.mp4", "deep/-a.mp4", "notes.txt", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    with open(os.fsencode(tmp_path / "deep") + b"/\xff.mp4", "w"):
        pass  # no UTF-8
    folder = Folder(path=str(tmp_path), license="CC-BY", mixture="anime")
    before = list(iter_videos([folder], tmp_path))
    names = [video.source_id.removeprefix(f"folder/{tmp_path.name}/") for video in before]
    assert names == ["b.mp4", "dangling.mp4", "deep/-a.mp4", "deep/\ufffd.mp4", "notes.txt"]
    assert [v.fault for v in before] == ["", "missing file", "", "missing file", ""]
    assert videos_from_table(videos_to_table(before)) == before
    assert {(v.license, v.mixture) for v in before} == {("CC-BY", "anime")}
    (tmp_path / "b.mp4").write_text("other")
    after = list(iter_videos([folder], tmp_path))
    assert [a.fingerprint != b.fingerprint for a, b in zip(after, before, strict=True)] == [
        True, False, False, False, False
    ]  # fmt: skip


def test_folders_of_one_name_are_refused_until_one_gets_another(tmp_path: Path):
    paths = [tmp_path / parent / "clips" for parent in ("here", "there")]
    for path in paths:
        path.mkdir(parents=True)
        (path / "1.mp4").write_text("x")
    here, there = (Folder(path=str(path), license="", mixture="general") for path in paths)
    with pytest.raises(ValidationError, match=r"here/clips and .*there/clips are both.*a `name`"):
        DataConfig(sources=(here, there))
    with pytest.raises(ValidationError, match="s3://bucket/clips are"):
        DataConfig(sources=(here, here.model_copy(update={"path": "s3://bucket/clips/"})))
    with pytest.raises(ValidationError, match="name"):
        Folder(path="clips", license="", mixture="general", name="a/b")
    shots = here.model_copy(update={"split_shots": True, "path": f"{paths[0]}/"})
    named = there.model_copy(update={"name": "others"})
    config = DataConfig(sources=(here, shots, named))
    names = {video.source_id for video in iter_videos(config.sources, tmp_path)}
    assert names == {"folder/clips/1.mp4", "folder/others/1.mp4"}


def test_films_that_are_split_are_other_rows_than_whole_ones(tmp_path: Path):
    (tmp_path / "a.mp4").write_text("x")
    line = '{"source_id": "s", "dataset": "d", "uri": "a.mp4", "license": "l"}'
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(line)
    for source in (
        Folder(path=str(tmp_path), license="", mixture="general"),
        JsonLines(manifests=(str(manifest),), mixture="general"),
    ):
        split = source.model_copy(update={"split_shots": True})
        ids = [{v.video_id for v in iter_videos([s], tmp_path)} for s in (source, split)]
        assert ids[0].isdisjoint(ids[1])


def test_a_missing_folder_is_named(tmp_path: Path):
    folder = Folder(path=str(tmp_path / "nowhere"), license="", mixture="general")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(iter_videos([folder], tmp_path))


def test_the_packages_videos_are_found():
    videos = list(iter_videos([PackageClips()], Path("unused")))
    assert len(videos) == 4 and all(Path(video.path).is_file() for video in videos)
    assert all(video.split_shots for video in videos)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(package_clips, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"magicdistill\[real-clips\]"):
        package_clips.find_clips()


def test_a_source_is_chosen_by_its_kind_and_unknown_keys_are_refused():
    config = DataConfig.model_validate({"sources": [{"kind": "portrait-world", "num_clips": 3}]})
    assert config.sources == (PortraitWorld(num_clips=3),)
    with pytest.raises(ValidationError, match="num_clip"):
        DataConfig.model_validate({"sources": [{"kind": "portrait-world", "num_clip": 3}]})


def test_what_may_be_listed_otherwise_has_another_key(tmp_path: Path):
    store, manifest = tmp_path / "store", tmp_path / "koala.csv"
    (store / "deep").mkdir(parents=True)
    (store / "deep" / "circle").symlink_to(store)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (store / "linked").symlink_to(elsewhere)
    (store / "a.mp4").write_text("x")
    manifest.write_text("videoID,timestamp")
    source = Koala(manifests=(str(manifest),), store=Store(path=str(store)))
    changes = {
        "a new film": lambda: (store / "deep" / "b.mp4").write_text("x"),
        "a film behind a link": lambda: (elsewhere / "c.mp4").write_text("x"),
        "another film of that name": lambda: (store / "a.mp4").write_text("longer"),
        "a film that is gone": lambda: (store / "a.mp4").unlink(),
        "the manifest": lambda: manifest.write_text("videoID,timestamp,caption"),
    }
    seen = {SourceLister([source], tmp_path).key, SourceLister([source, source], tmp_path).key}
    assert len(seen) == 2 and SourceLister([source], tmp_path).key in seen
    for what, change in changes.items():
        change()
        key = SourceLister([source], tmp_path).key
        assert key not in seen, what
        seen.add(key)
    other = source.model_copy(update={"license": "another"})
    assert SourceLister([other], tmp_path).key not in seen


def test_a_listing_without_known_inputs_or_of_a_store_that_is_always_asked_has_no_key(
    tmp_path: Path,
):
    bucket = Koala(manifests=("x.csv",), store=Store(path="s3://b/p"), listing_max_age_h=0)
    for source in (PortraitWorld(num_clips=2), bucket):
        assert SourceLister([source], tmp_path).key is None


def test_of_many_manifests_those_are_listed_again_whose_rows_or_films_changed(tmp_path: Path):
    store, clips = tmp_path / "store", tmp_path / "clips"
    store.mkdir()
    header = "videoID,timestamp,caption,clarity_score,aesthetic_score,motion_score,"
    header += "video_training_suitability_score\n"
    span = "\"['0:00:00.000', '0:00:05.000']\""

    def write(name: str, *films: str) -> str:
        rows = "".join(f"{film}_0,{span},A caption,1,1,1,1\n" for film in films)
        (tmp_path / name).write_text(header + rows)
        return str(tmp_path / name)

    for film in ("a", "b", "d"):
        (store / f"{film}.mp4").write_text(film)
    manifests = [write("first.csv", "a"), write("second.csv", "b", "c"), write("third.csv", "d")]

    def listing(before: KeptFolder | None) -> KeptFolder:
        source = Koala(manifests=tuple(manifests), store=Store(path=str(store), holds="videos"))
        lister, folder = SourceLister([source], clips), tables.begin("any")
        assert lister.key
        facts = write_listing(database, folder.path, lister, Takedowns({}, {}), before)
        tables.keep(folder, facts)
        return folder

    def numbers(folder: KeptFolder) -> list[int]:
        return [file.stat().st_ino for file in sorted(folder.path.glob("*/0*.table"))]

    database, tables = Database(), KeptTables(tmp_path / "tables" / "listing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("magicdistill.data_pipeline.selection.listed_videos.FILE_ROWS", 1)
        folder = listing(None)
        changes = {
            "nothing": (lambda: None, 4),
            "a manifest more": (lambda: manifests.append(write("fourth.csv", "a", "e")), 4),
            "a film that nobody names": (lambda: (store / "z.mp4").write_text("z"), 5),
            "a film that was missing": (lambda: (store / "e.mp4").write_text("e"), 4),
            "another film of that name": (lambda: (store / "b.mp4").write_text("longer"), 1),
            "another first manifest": (lambda: write("first.csv", "a", "f"), 0),
        }
        for what, (change, num_kept) in changes.items():
            before = numbers(folder)
            change()
            folder = listing(folder)
            same = [one == other for one, other in zip(before, numbers(folder), strict=False)]
            assert same == [True] * num_kept + [False] * (len(same) - num_kept), what
            anew = listing(None)
            own, other = (
                database.rows(f"FROM {ListedVideos(database, f).whole} ORDER BY ordinal")
                for f in (folder, anew)
            )
            assert own == other, what


def test_small_parts_of_a_listing_become_one_where_there_are_many(tmp_path: Path):
    database, tables = Database(), KeptTables(tmp_path / "tables" / "listing")
    parts = {f"night {n}": [Video(f"v{n}", "s", "u", "", "1", "l", "portrait")] for n in range(40)}
    folder, counts = None, []
    for n in range(1, 40):
        own, lister = tables.begin("any"), GivenVideos(dict(list(parts.items())[:n]))
        tables.keep(own, write_listing(database, own.path, lister, Takedowns({}, {}), folder))
        folder = own
        counts.append(len(own.facts["groups"]))
    assert max(counts) == MAX_SMALL + 1 and counts[-1] < MAX_SMALL
    assert ListedVideos(database, own).num_videos == 39
