"""Nights: `jobs/curate.py` itself over a million rows, of which a few clips are new.

The films of the manifest are links to two rendered ones, so that their listing is real. The scores
of all clips but the new ones are made by a query and too dark for the policy; the new ones are
decoded, scored, decided and encoded.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from data_shared import Row, cpu_counted
from data_tables import (
    FILMS,
    ROWS_PER_FILE,
    config,
    film_of,
    know_rows,
    write_manifest,
)

from magicdistill.data_pipeline.io.query import Database
from magicdistill.data_pipeline.sources.portrait_world.world import write_clips

NUM_NEW = 24
NUM_FILMS, FILM_S, FPS, SIZE = 2, 50, 24, 96
CURATE = Path(__file__).parents[1] / "jobs" / "curate.py"


def nights_over_millions(folder: Path, count: int) -> Iterator[Row]:
    """Run the job on known rows, again with nothing new, and with new rows; yield its cost."""
    place = folder / f"{count}-nights"
    (place / FILMS).mkdir(parents=True)
    films = write_clips(folder / "films", range(NUM_FILMS), FILM_S * FPS, SIZE, FPS)
    database = Database()
    for first in range(0, count, ROWS_PER_FILE):
        write_manifest(database, place, first, min(ROWS_PER_FILE, count - first))
    _link_films(database, place, films, 0, count)
    know_rows(place, luma="5 + r2")
    for night in ("the first night of jobs/curate.py", "a night with nothing new", "a third night"):
        if night != "a night with nothing new":
            write_manifest(database, place, count, NUM_NEW)
            _link_films(database, place, films, count, NUM_NEW)
            count += NUM_NEW
        yield {"name": f"{count:,} rows, {night}"} | _night(place)


def _link_films(database: Database, place: Path, films: list[Path], first: int, count: int) -> None:
    names = database.rows(
        f"SELECT DISTINCT {film_of('i')} FROM range({first}, {first + count}) AS r(i)"
    )
    for number, (name,) in enumerate(names):
        film = place / FILMS / f"{name}.mp4"
        if not film.exists():  # the last one of the rows before may go on
            os.link(films[number % len(films)], film)


def _night(place: Path) -> Row:
    source = {
        "kind": "koala-36m",
        "manifests": [str(path) for path in sorted((place / "manifests").iterdir())],
        "store": {"path": str(place / FILMS), "holds": "videos"},
    }
    data = {
        "sources": [source],
        "measures": config(place).measures.model_dump(mode="json"),
        "policy": {
            "min_short_side": 64,
            "min_long_side": 64,
            "max_clips_per_source": 8,
            "limits": {"all": {"text.area": {"max": 1}}},  # portraits so small look like letters
        },
    }
    values = {"extends": "portrait-tiny-data", "runs": str(place), "data": data}
    recipe = place / "nightly.yaml"
    recipe.write_text(yaml.safe_dump(values))
    start_s = time.perf_counter()
    with cpu_counted() as cpu_s:
        done = subprocess.run(
            [sys.executable, str(CURATE), "--recipe", str(recipe)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    print(done.stdout)
    return {"s": time.perf_counter() - start_s, "CPU s": cpu_s()}
