"""What tokens cost: the dated table of the suite, or the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from smmile.errors import UsageError, one_line

_INCLUDED = Path(__file__).with_name("prices.json")


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens of a prompt and of a response, on the day `as_of`."""

    input: float
    output: float
    as_of: str

    def dollars(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The cost of this many tokens, in dollars."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


class _ModelPrice(msgspec.Struct, forbid_unknown_fields=True):
    input: float
    output: float

    def __post_init__(self) -> None:
        if not (0 <= self.input < 1e6 and 0 <= self.output < 1e6):
            raise ValueError("a price is a number of dollars, 0 or more")


class _Table(msgspec.Struct):
    as_of: str
    dollars_per_million_tokens: Mapping[str, _ModelPrice]


def find_price(model: str, file: Path | None = None) -> Price | None:
    """The price of `model` in the table `file` (None: the suite's); None if the table does not have it.

    Raises UsageError if the table cannot be read.
    """
    try:
        table = msgspec.json.decode((file or _INCLUDED).read_bytes(), type=_Table)
    except OSError as error:
        raise UsageError(f"--prices {one_line(file)} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--prices {one_line(file)} is no price table ({one_line(error)}); it looks like this: "
            '{"as_of": "2026-01-31", "dollars_per_million_tokens": {"NAME": {"input": 3, "output": 15}}}'
        ) from error
    found = table.dollars_per_million_tokens.get(model)
    return None if found is None else Price(found.input, found.output, table.as_of)
