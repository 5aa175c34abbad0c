"""Breaks files: flipped bytes, cut ends, deep nesting, swapped types, other encodings, odd tables."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
from collections.abc import Callable
from typing import Any

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 10**30, 1.5e308, -0.0, float("nan"), float("inf"), "", " ", "x" * 100_000),
    *(
        "\u0000",
        "\ud800",
        "\x1b[31m",
        "../../etc/passwd",
        "=1+1",
        "nan",
        "1e999",
        "é" * 99,
        "ok",
        "error",
        "2",
    ),
    *([], {}, [[]], [None], {"": None}, [1, "a", {}], {"error": {"message": []}}, [{}] * 50),
)
_CELLS = (
    "",
    "x" * 200_000,
    '"',
    "\x00",
    "nan",
    "-1",
    "True",
    "=1+1",
    "a\nb",
    "\ufeff",
    "1e999",
    "Ä",
    "None",
)


def swap_a_value(value: Any, rng: random.Random) -> Any:
    """A copy of `value` in which one part, at any depth, is of another kind, missing or there twice."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return rng.choice(_VALUES)
    parent, name = rng.choice(places)
    how = rng.random()
    if how < 0.15:
        del parent[name]
    elif how < 0.3 and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), parent[name])
    elif how < 0.4 and isinstance(parent, dict):
        parent[rng.choice(["", "new", "id", f"{name} "])] = parent.pop(name)
    else:
        parent[name] = rng.choice(_VALUES)
    return value


def _places(value: Any) -> Any:
    names = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for name in names:
        yield value, name
        yield from _places(value[name])


def _swapped(content: bytes, rng: random.Random) -> bytes:
    """One value of a JSON file, or of one of its lines."""
    lines = content.splitlines(keepends=True)
    try:
        return json.dumps(swap_a_value(json.loads(content), rng)).encode()
    except ValueError:
        place = rng.randrange(len(lines))
    try:
        lines[place] = json.dumps(swap_a_value(json.loads(lines[place]), rng)).encode() + b"\n"
    except ValueError:  # a table or TOML
        return _flipped(content, rng)
    return b"".join(lines)


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 20])):
        changed[rng.randrange(len(changed))] = (
            rng.choice(b'\x00\xff\n"{}[],:\\0-') if rng.random() < 0.5 else 65
        )
    return bytes(changed)


def _truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _deep(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    nested = rng.choice([b"[", b'{"a":', b"[[],"]) * rng.choice([300, 1_200, 100_000])
    return content[:place] + nested + content[place:]


def _repeated(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    return b"".join(
        [*lines[:place], *lines[place : place + 1] * rng.choice([0, 2, 3]), *lines[place + 1 :]]
    )


def _encoded(content: bytes, rng: random.Random) -> bytes:
    text = content.decode(errors="replace")
    forms = (
        *(b"", b"\n", b"\x00" * 4096, b"\xef\xbb\xbf" + content, content + b"\x00", b"\x1f\x8b" + content),
        *(
            text.encode("utf-16"),
            text.encode("latin-1", "replace"),
            content.replace(b"\n", b"\r"),
            b"PK\x03\x04",
        ),
    )
    return rng.choice(forms)


def _celled(content: bytes, rng: random.Random) -> bytes:
    """Another cell, column or length of row in a table."""
    rows = list(csv.reader(io.StringIO(content.decode(errors="replace"))))
    if len(rows) < 2:
        return _flipped(content, rng)
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    how = rng.randrange(4)
    if how == 0:
        rows = [[cell for place, cell in enumerate(cells) if place != column] for cells in rows]
    elif how == 1:
        rows[row] = rows[row][:column] + rng.choice([[], ["a"] * 50])
    else:
        rows[row][column : column + 1] = [rng.choice(_CELLS)]
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def foreign(journal: bytes) -> bytes:
    """The journal of another run, by another version of the suite."""
    changed = journal.replace(b'"schema_version":2', b'"schema_version":9').replace(
        b'"model":"m"', b'"model":"x"'
    )
    return changed.replace(b'"problem_id"', b'"problem"')


Mutation = Callable[[bytes, random.Random], bytes]
MUTATIONS: tuple[Mutation, ...] = (_swapped, _swapped, _flipped, _truncated, _deep, _repeated, _encoded)


def broken(content: bytes, name: str, rng: random.Random) -> bytes:
    """`content` of the file `name`, broken in one way."""
    kinds = (*MUTATIONS, _celled, _celled, _celled) if name.endswith(".csv") else MUTATIONS
    return rng.choice(kinds)(content, rng)
