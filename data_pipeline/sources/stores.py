"""Where the files of a manifest's clips are, and the rows of the videos found there."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from magicdistill.data_pipeline.io import object_stores
from magicdistill.data_pipeline.io.arrow import pc
from magicdistill.data_pipeline.io.listings import MAX_REQUESTS
from magicdistill.data_pipeline.rows import VIDEO_SCHEMA, Video, digest
from magicdistill.data_pipeline.sources.columns import (
    digests,
    format_names,
    joined,
    mask,
    texts_of,
    tuples_of,
)
from magicdistill.data_pipeline.sources.entries import Entry
from magicdistill.models.config import Config
from magicdistill.models.paths import Location

MISSING_FILE = "missing file"
UNREADABLE = "\ufffd"
"""What a manifest's bytes become that are no UTF-8."""
MISSING = "missing"
"""State of a file that is not there."""
_NOT_UTF8 = "bad row: {!r} is not UTF-8; save the manifest as UTF-8"
_OUTSIDE = "bad row: {!r} leads out of the store"


@dataclass(frozen=True)
class Terms:
    """What the clips of a manifest have in common, or a column where each has its own."""

    dataset: str | pa.Array
    license: str | pa.Array
    mixture: str | pa.Array
    is_cut: bool = False
    """Whether the files are the clips, so that spans and crops do not apply any more."""
    split_shots: bool = False
    time_scale: float = 1.0
    """How many times longer than filmed a clip is played."""


class Store(Config):
    """Where the videos that a manifest names are kept."""

    path: Location
    """Folder or address of the videos."""
    holds: Literal["clips", "videos"] = "clips"
    """Clips that are cut and cropped already, or whole videos: spans and crops are then applied."""
    pattern: str = ""
    """File below `path`, from `{name}` (the clip's) and `{video}`; `{name}.mp4` or `{video}.mp4`
    by default. VFHQ's folders of PNG frames are `{name}`."""

    @property
    def file_pattern(self) -> str:
        """The pattern, or the default of what the store holds."""
        return self.pattern or ("{name}.mp4" if self.holds == "clips" else "{video}.mp4")

    def tables(
        self, entries: Iterable[pa.Table], folder: object_stores.Folder, terms: Terms
    ) -> Iterator[pa.Table]:
        """Yield the videos of tables of entries, `folder` being the store's."""
        for table in entries:
            names, videos = (table[column].combine_chunks() for column in ("name", "video"))
            yield listed_table(table, folder, format_names(self.file_pattern, names, videos), terms)

    @model_validator(mode="after")
    def _check_pattern(self) -> "Store":
        try:
            distinct = self.file_pattern.format(name="a", video="b") != self.file_pattern
        except (KeyError, IndexError, ValueError):
            distinct = False
        if not distinct:
            raise ValueError(f"pattern {self.pattern!r} has to hold {{name}} or {{video}}")
        return self


def listed(entry: Entry, folder: object_stores.Folder, name: str, terms: Terms) -> Video:
    """Return the row of a manifest's entry, whose file is called `name` below the folder."""
    from magicdistill.data_pipeline.media.video import VIDEO_SUFFIXES  # slow to import

    fault = entry.fault or ("" if terms.is_cut else entry.span_fault)
    part = Entry(entry.name, entry.video) if terms.is_cut or fault else entry
    span = (part.t0_s, part.t1_s, part.crop, part.crop_frame, terms.time_scale)
    marks = (*shots_mark(terms.split_shots), *((fault,) if fault else ()))
    is_inside = _is_inside(name)
    if not fault and UNREADABLE in name:
        fault = _NOT_UTF8.format(name)
    if not fault and not is_inside:
        fault = _OUTSIDE.format(name)
    state = None if fault else folder.state(name)
    fault = fault or ("" if state else MISSING_FILE)
    uri = folder.uri(name) if is_inside else ""
    if state and entry.fps and PurePosixPath(name).suffix.lower() not in VIDEO_SUFFIXES:
        pace = urlencode({"fps": entry.fps})
        uri, state = f"{uri}#{pace}", f"{state} {pace}"
    return Video(
        video_id=digest(terms.dataset, entry.name, *span, *marks),
        source_id=f"{terms.dataset}/{entry.video}",
        uri=uri,
        path=folder.path(name) if uri else "",
        fingerprint=state or f"fault {fault}",
        license=terms.license,
        mixture=terms.mixture,
        split_shots=terms.split_shots,
        entry=entry.name,
        t0_s=part.t0_s,
        t1_s=part.t1_s,
        crop=part.crop,
        crop_frame=part.crop_frame,
        time_scale=terms.time_scale,
        caption=entry.caption,
        imported_scores=entry.imported_scores,
        fault=fault,
    )


def listed_table(
    entries: pa.Table, folder: object_stores.Folder, names: pa.Array, terms: Terms
) -> pa.Table:
    """Return what `listed` does for each entry of a table, in the same order."""
    count = entries.num_rows
    column = {name: entries[name].combine_chunks() for name in entries.column_names}
    fault = column["fault"]
    if not terms.is_cut:
        fault = pc.if_else(pc.equal(fault, ""), column["span_fault"], fault)
    whole = pa.array(np.full(count, terms.is_cut) | mask(pc.not_equal(fault, "")))
    empty = pa.array([[]], pa.list_(pa.float64()))[0]
    t0, t1 = pc.if_else(whole, 0.0, column["t0_s"]), pc.if_else(whole, None, column["t1_s"])
    crop, frame = (pc.if_else(whole, empty, column[part]) for part in ("crop", "crop_frame"))
    identity = joined(
        *(terms.dataset, column["name"], texts_of(t0), texts_of(t1)),
        *(tuples_of(crop), tuples_of(frame), repr(terms.time_scale)),
        *shots_mark(terms.split_shots),
        by="\x1f",
    )
    identity = pc.if_else(pc.equal(fault, ""), identity, joined(identity, fault, by="\x1f"))
    files = names.dictionary_encode()  # many clips are of one film
    inside = _are_inside(files.dictionary)
    garbled = pc.match_substring(files.dictionary, UNREADABLE)
    for wrong, reason in ((garbled, _NOT_UTF8), (pc.invert(inside), _OUTSIDE)):
        if not pc.any(wrong).as_py():
            continue
        wrong = mask(pc.and_(wrong.take(files.indices), pc.equal(fault, "")))
        reasons = [reason.format(name) for name in names.filter(wrong).to_pylist()]
        fault = pc.replace_with_mask(fault, wrong, pa.array(reasons, pa.string()))
    sought = pc.equal(fault, "")
    state = _of_files(files, sought, folder.states)
    fault = pc.if_else(pc.and_(sought, state.is_null()), MISSING_FILE, fault)
    uri = pc.if_else(inside, folder.uris(files.dictionary), "").take(files.indices)
    uri, state = _with_pace(uri, state, names, column["fps"])
    return video_table(
        count,
        video_id=digests(identity),
        source_id=joined(terms.dataset, "/", column["video"]),
        uri=uri,
        path=pc.if_else(inside, folder.paths(files.dictionary), "").take(files.indices),
        fingerprint=pc.coalesce(state, joined("fault ", fault)),
        license=terms.license,
        mixture=terms.mixture,
        split_shots=terms.split_shots,
        entry=column["name"],
        t0_s=t0,
        t1_s=t1,
        crop=crop,
        crop_frame=frame,
        time_scale=terms.time_scale,
        caption=column["caption"],
        imported_scores=column["imported_scores"],
        fault=fault,
    )


def _of_files(
    files: pa.DictionaryArray, some: pa.Array, ask: Callable[[pa.Array], pa.Array]
) -> pa.Array:
    """Return what `ask` answers about the files of some rows, each asked once; else null."""
    wanted = np.zeros(len(files.dictionary), bool)
    wanted[files.indices.filter(some).to_numpy()] = True
    answers = ask(pc.if_else(pa.array(wanted), files.dictionary, None))
    return pc.if_else(some, answers.take(files.indices), None)


def video_table(count: int, **fields: Any) -> pa.Table:
    """Return a table of `VIDEO_SCHEMA` with as many rows from columns, and constants for all."""
    fields = vars(Video("", "", "", "", "", "", "")) | fields
    columns = {
        field.name: value
        if isinstance(value := fields[field.name], pa.Array)
        else pa.array([_stored(value)], field.type).take(pa.array(np.zeros(count, np.int64)))
        for field in VIDEO_SCHEMA
    }
    return pa.table(columns, schema=VIDEO_SCHEMA)


def _stored(value: Any) -> Any:
    return list(value.items()) if isinstance(value, dict) else value


def listed_at(
    entries: pa.Table,
    places: Sequence[tuple[str, str]],
    open_folder: Callable[[str], object_stores.Folder],
    terms: Terms,
) -> pa.Table:
    """Return what `listed_table` does for entries of which each has a folder and a name there."""
    found = pa.table(
        {"folder": [folder for folder, _ in places], "name": [name for _, name in places]},
        schema=pa.schema({"folder": pa.string(), "name": pa.string()}),
    )
    locations = found["folder"].unique().to_pylist()
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        list(pool.map(lambda location: open_folder(location).prepare(), locations))
    tables, order = [], []
    for location in locations:
        here = np.flatnonzero(mask(pc.equal(found["folder"], location)))
        own = {
            name: value.take(pa.array(here))
            for name in ("dataset", "license", "mixture")
            if isinstance(value := getattr(terms, name), pa.Array)
        }
        names = found["name"].take(pa.array(here)).combine_chunks()
        table = listed_table(
            entries.take(here), open_folder(location), names, replace(terms, **own)
        )
        tables.append(table)
        order.append(here)
    return pa.concat_tables(tables).take(np.argsort(np.concatenate(order)))


def _with_pace(
    uri: pa.Array, state: pa.Array, names: pa.Array, fps: pa.Array
) -> tuple[pa.Array, pa.Array]:
    """Return addresses and states with the frame rates of clips that are folders of pictures."""
    from magicdistill.data_pipeline.media.video import VIDEO_SUFFIXES  # slow to import

    places = np.flatnonzero(mask(pc.and_(pc.not_equal(fps, 0.0), state.is_valid())))
    if not len(places):
        return uri, state
    uris, states = uri.to_pylist(), state.to_pylist()
    for place in places:
        if PurePosixPath(names[place].as_py()).suffix.lower() not in VIDEO_SUFFIXES:
            pace = urlencode({"fps": fps[place].as_py()})
            uris[place] = f"{uris[place]}#{pace}"
            states[place] = f"{states[place]} {pace}"
    return pa.array(uris, pa.string()), pa.array(states, pa.string())


def shots_mark(split: bool) -> Sequence[str]:
    """Return what is added to the identity of a video whose shots are clips."""
    return ("split shots",) if split else ()


def _are_inside(names: pa.Array) -> pa.Array:
    return pc.invert(pc.match_substring_regex(names, r"^$|^/|(^|/)\.\.(/|$)|\x00"))


def _is_inside(name: str) -> bool:
    return bool(name) and name[0] != "/" and ".." not in name.split("/") and "\0" not in name
