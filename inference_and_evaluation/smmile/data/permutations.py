"""SMMILE++: the problems of a data set with their examples in other orders."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from smmile.data.dataset import DatasetSource, load_table
from smmile.data.problems import Defect, Skipped, is_permuted
from smmile.data.rows import Row, outlines, problem_set
from smmile.errors import UsageError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

# The protocol leaves out problems whose query has this `flag_cognitive_process`.
REASONING = "reasoning classification"

# Strings on the hub, as are all columns whose names start with flag_.
_TEXT_COLUMNS = {"question", "answer", "image_url", "parquet_path", "speciality"}
_ADDED = ("original_problem_id", "permutation_number", "original_order")
# The metadata of a parquet file that says how `write_parquet` made it.
_MADE_BY = b"smmile_plusplus"


@dataclass(frozen=True)
class Permuted:
    """A problem to permute: the numbers of its rows, the query's last, and the orders of its examples."""

    problem_id: str
    rows: tuple[int, ...]
    orders: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PlusPlus:
    """SMMILE++ of a data set, ready to write.

    `rows` and `columns` are as `load_table` returns them. `skipped` are problems that no run could use,
    `reasoning` counts those that the protocol leaves out, and `lacking` those kept without all images.
    `settings` says how the set is made.
    """

    rows: Sequence[Row]
    columns: pa.Table
    problems: tuple[Permuted, ...]
    skipped: tuple[Skipped, ...]
    reasoning: int
    lacking: int
    settings: Mapping[str, object]


def example_orders(examples: int, cap: int, seed: int, problem_id: str) -> tuple[tuple[int, ...], ...]:
    """Orders of so many examples, the original first.

    Up to `cap` orders these are all, as `itertools.permutations` gives them; beyond that, `cap` different
    ones. The draw depends on `seed` and `problem_id` alone, and a larger `cap` continues it.
    """
    if math.factorial(examples) <= cap:
        return tuple(itertools.permutations(range(examples)))
    generator = random.Random(f"{seed} {problem_id}")
    drawn = {tuple(range(examples)): None}
    while len(drawn) < cap:
        drawn[tuple(generator.sample(range(examples), examples))] = None
    return tuple(drawn)


def plan_plusplus(source: DatasetSource, *, cap: int, seed: int, include_reasoning: bool) -> PlusPlus:
    """SMMILE++ of `source` by the protocol's rule; problems of REASONING only if they are included.

    Raises UsageError if the data set cannot be read, is permuted already or has no problem to permute.
    """
    rows, columns, revision = load_table(source)
    checked = problem_set(rows, source.label, revision, source.image_dir, source.max_pixels)
    label = f"data set {one_line(checked.source)}"
    if is_permuted(entry.problem_id for entry in checked.entries):
        raise UsageError(f"{label} is permuted already; use the data set that it was built from")
    flags = {outline.problem_id: outline.flags for outline in outlines(rows, source=checked.source)}
    members: dict[str | None, list[int]] = {}
    for number, row in enumerate(rows):
        members.setdefault(row.problem_id, []).append(number)

    lacking = {image.problem_id for image in checked.missing_images}
    problems: list[Permuted] = []
    skipped: list[Skipped] = []
    reasoning = 0
    for entry in checked.entries:
        name = entry.problem_id
        if isinstance(entry, Defect) and not (name in flags and name in lacking):
            skipped.append(Skipped(name, entry.reason))
        elif flags[name].get("flag_cognitive_process") == REASONING and not include_reasoning:
            reasoning += 1
        else:
            in_order = tuple(sorted(members[name], key=lambda number: _order(rows[number])))
            problems.append(Permuted(name, in_order, example_orders(len(in_order) - 1, cap, seed, name)))
    if not problems:
        raise UsageError(
            f"{label}: no problem is left to permute ({reasoning} of {REASONING}, which "
            f"--include-reasoning keeps, {len(skipped)} with defects)"
        )
    origin = {"source": checked.source, "revision": revision, "fingerprint": checked.fingerprint}
    settings = {**origin, "cap": cap, "seed": seed, "include_reasoning": include_reasoning}
    kept = sum(problem.problem_id in lacking for problem in problems)
    return PlusPlus(rows, columns, tuple(problems), tuple(skipped), reasoning, kept, settings)


def _order(row: Row) -> int:
    """The order of a row that has been checked: a whole number, perhaps stored as text or float."""
    return int(float(str(row.order)))


def write_parquet(plusplus: PlusPlus, stream: IO[bytes]) -> None:
    """Write the rows in the hub's layout, each image once per problem, one problem in memory at a time.

    A problem is a row group. Its images are a dictionary that the rows of all orders refer to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, Value

    features = Features.from_arrow_schema(plusplus.columns.schema)
    for name, feature in features.items():
        if (name in _TEXT_COLUMNS or name.startswith("flag_")) and type(feature) is Value:
            features[name] = Value("string")
    features |= {"problem_id": Value("string"), "order": Value("int64"), "image": Image()}
    features |= dict.fromkeys(_ADDED, Value("string"))
    plain = Features(features).arrow_schema
    once = pa.struct({"bytes": pa.dictionary(pa.int32(), pa.binary()), "path": pa.string()})
    schema = plain.set(plain.get_field_index("image"), pa.field("image", once))
    # Without the Arrow schema a reader sees plain images; by default a dictionary ends at 1 MB.
    how = {"store_schema": False, "dictionary_pagesize_limit": 2**31 - 1}
    with pq.ParquetWriter(stream, schema, **how) as writer:
        for problem in plusplus.problems:
            writer.write_table(_permuted(plusplus, problem, schema))
        writer.add_key_value_metadata({**plain.metadata, _MADE_BY: json.dumps(plusplus.settings)})


def is_plusplus(file: Path) -> bool:
    """Whether `write_parquet` made this file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return _MADE_BY in (pq.read_metadata(file).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def _permuted(plusplus: PlusPlus, problem: Permuted, schema: pa.Schema) -> pa.Table:
    """All orders of one problem, as rows of `schema`."""
    import pyarrow as pa

    rows = [plusplus.rows[number] for number in problem.rows]
    places = [place for order in problem.orders for place in (*order, len(rows) - 1)]
    numbers = [str(index // len(rows) + 1) for index in range(len(places))]
    written = {
        "problem_id": [f"{problem.problem_id}_perm_{number}" for number in numbers],
        "order": [index % len(rows) + 1 for index in range(len(places))],
        "image": _images(rows).take(pa.array(places)),
        "original_problem_id": [problem.problem_id] * len(places),
        "permutation_number": numbers,
        "original_order": [str(_order(rows[place])) for place in places],
    }
    columns = plusplus.columns.take([problem.rows[place] for place in places])
    made = {name: written[name] if name in written else columns.column(name) for name in schema.names}
    return pa.table(made).cast(schema)


def _images(rows: Sequence[Row]) -> pa.StructArray:
    """The rows' stored images, equal ones once; a missing image is null."""
    import pyarrow as pa

    contents = [None if row.image is None else bytes(row.image) for row in rows]
    paths = [row.image_path for row in rows]
    absent = [row.image is None and not row.image_path for row in rows]
    return pa.StructArray.from_arrays(
        [pa.array(contents, pa.binary()).dictionary_encode(), pa.array(paths, pa.string())],
        names=["bytes", "path"],
        mask=pa.array(absent),
    )
