r"""What the data pipeline costs, as ratios in one run; every pair works on the same clips.

`python benchmarks/data.py` renders clips, then measures: curation through Ray Data against a bare
loop over the same callables, random reads of the latent cache against FastVideo's shape of
Parquet, a manifest of a million rows, memory as the number of clips grows tenfold, copies among up
to a million clips, and listing of and decisions on as many (36 million take 45 GB below `TMPDIR`:
`--only decisions --rows 36000000`), and the nightly job itself over as many rows.
`--data_juicer DIR`, the environment that Data-Juicer is installed in, adds its Ray executor; with
a later PyAV than the one it pins, it drops every clip:
    python -m venv DIR
    DIR/bin/pip install py-data-juicer==1.6.1 'ray[default,data]==2.60.0' av==13.1.0 \
        opencv-python-headless torch==2.13.0
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import ray
from data_curation import against_a_bare_loop, memory_as_clips_grow
from data_duplicates import near_duplicates
from data_nightly import nights_over_millions
from data_peer import against_data_juicer
from data_rows import a_long_manifest, against_one_row_group
from data_shared import Row
from data_tables import decisions_on_millions
from timing import write_result

MEASURES = ("ray", "juicer", "reads", "rows", "memory", "copies", "decisions", "nights")


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=200, help="Rendered clips.")
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="Rows of the manifest and clips to compare."
    )
    parser.add_argument("--data_juicer", type=Path, help="Environment of Data-Juicer.")
    parser.add_argument("--only", nargs="+", choices=MEASURES)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data.json"))
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measures: dict[str, Callable[[], Iterable[Row]]] = {
            "ray": lambda: [against_a_bare_loop(folder, args.clips)],
            "juicer": lambda: against_data_juicer(folder, args.clips, args.data_juicer),
            "reads": lambda: [against_one_row_group(folder)],
            "rows": lambda: a_long_manifest(folder, args.rows),
            "decisions": lambda: decisions_on_millions(folder, args.rows),
            "nights": lambda: nights_over_millions(folder, args.rows),
            "memory": lambda: memory_as_clips_grow(folder, args.clips // 2),
            "copies": lambda: near_duplicates(
                folder, [args.rows // 100, args.rows // 10, args.rows]
            ),
        }
        for key in args.only or measures:
            for row in measures[key]():
                rows.append(row)
                print(spell(row), flush=True)
    write_result(args.out, {"rows": rows, "ray": ray.__version__})
    print(f"written to {args.out}")


def spell(row: Row) -> str:
    """Return a result as a line."""
    numbers = [f"{key} {row[key]:,.4g}" for key in row if key not in ("name", "wanted")]
    wanted = f" (wanted {row['wanted']})" if "wanted" in row else ""
    return f"{row['name']}: {', '.join(numbers)}{wanted}"


if __name__ == "__main__":
    main()
