"""What tokens cost, by the suite's dated table or the user's own, and what was spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from smmile.errors import UsageError, one_line

_INCLUDED = Path(__file__).with_name("prices.json")


# What Anthropic charges for writing to the cache, times the price of input (for five minutes; 2025).
_CACHE_WRITE = 1.25

# What OpenAI, Azure and Anthropic charge in batch jobs, times the price of single requests (2025).
_BATCH = 0.5


class Price(msgspec.Struct, frozen=True, omit_defaults=True):
    """Dollars per million tokens of a prompt and of a response, on the day `as_of`.

    `cached_input` is for prompt tokens that the service reads from its cache (None: as any others), and
    `cache_write` for those that it writes there (None: 1.25 times `input`). Tokens of batch jobs cost
    `batch` times as much.
    """

    input: float
    output: float
    as_of: str
    cached_input: float | None = None
    cache_write: float | None = None
    batch: float = _BATCH

    def dollars(self, prompt: float, completion: float, cached: float = 0, written: float = 0) -> float:
        """The cost of so many tokens; `cached` and `written` ones are among those of the prompt."""
        read = self.input if self.cached_input is None else self.cached_input
        write = self.input * _CACHE_WRITE if self.cache_write is None else self.cache_write
        plain = max(0, prompt - cached - written)
        return (plain * self.input + cached * read + written * write + completion * self.output) / 1e6

    def cost(self, spent: Spending) -> float:
        """The dollars that `spent` tokens cost."""
        tokens = (spent.prompt_tokens, spent.completion_tokens, spent.cached_tokens)
        batched = self.dollars(spent.batch_prompt_tokens, spent.batch_completion_tokens)
        return self.dollars(*tokens, spent.cache_write_tokens) - (1 - self.batch) * batched

    def batched(self) -> Price:
        """The price of tokens in batch jobs, where none are counted as cached."""
        return Price(self.input * self.batch, self.output * self.batch, self.as_of)


@dataclass(frozen=True)
class Spending:
    """Attempts at requests that may have been billed, and the tokens that they are charged for.

    `estimated` attempts count the highest number of tokens expected, because the service did not report
    them. Of the others, `prompt_ratio` is the highest ratio of reported to estimated prompt tokens (at
    least 1), and `longest_response` the most completion tokens. Of the prompt tokens, `cached_tokens` were
    read from the service's cache, and `cache_write_tokens` written to it. `batch_prompt_tokens` and
    `batch_completion_tokens` of all were in batch jobs.
    """

    attempts: int = 0
    estimated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_ratio: float = 1.0
    longest_response: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    batch_prompt_tokens: int = 0
    batch_completion_tokens: int = 0

    def __add__(self, other: Spending) -> Spending:
        return Spending(
            self.attempts + other.attempts,
            self.estimated + other.estimated,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            max(self.prompt_ratio, other.prompt_ratio),
            max(self.longest_response, other.longest_response),
            self.cached_tokens + other.cached_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.batch_prompt_tokens + other.batch_prompt_tokens,
            self.batch_completion_tokens + other.batch_completion_tokens,
        )


@dataclass(frozen=True)
class BatchJob:
    """A batch job of a service, with the numbers of its attempts in the ledger by request key.

    `sent_at` is in seconds since 1970. Its `id` is empty until the service has named it; until then it is
    found by its random `token`. `fields` are those of its requests besides model and messages. A job
    without requests is finished.
    """

    token: str
    requests: Mapping[str, int]
    fields: Mapping[str, object]
    sent_at: float
    id: str = ""


class Ledger(Protocol):
    """A list of attempts, on disk after the next write. Its methods may be called from any thread."""

    @property
    def attempts(self) -> Mapping[int, Spending]:
        """What each attempt may cost or did cost, by its number."""
        ...

    @property
    def jobs(self) -> Mapping[str, BatchJob]:
        """The unfinished batch jobs by their tokens."""
        ...

    @property
    def spent(self) -> Spending | None:
        """The sum of all attempts; None if there is none."""
        ...

    def begin(self, most: Spending) -> int:
        """Add an attempt with the `most` that it may cost; returns its number."""
        ...

    def end(self, attempt: int, cost: Spending) -> None:
        """Replace what an attempt may cost by what it did cost."""
        ...

    def save_job(self, job: BatchJob) -> None:
        """Add or replace a batch job; all is on disk when this returns. Raises UsageError as `flush`."""
        ...

    def flush(self) -> None:
        """Return when everything is on disk. Raises UsageError if it cannot be written."""
        ...


def cost_estimate(
    model: str,
    price: Price | None,
    prompt_tokens: int,
    completion_tokens: int,
    cached: int = 0,
    written: int = 0,
) -> str:
    """The sentence of a dry run on what requests to `model` may cost; `completion_tokens` at most.

    The service may read `cached` tokens of the prompts from its cache, and write `written` there.
    """
    if price is None:
        return (
            f"cost unknown: the price table has no {one_line(model)}; give --prices FILE "
            f"(about {prompt_tokens} prompt tokens)"
        )
    caching = ""
    if cached or written:
        dollars = price.dollars(prompt_tokens, 0, cached, written)
        caching = f" (about {dollars:.2f} with prompt caching: {cached} read, {written} written)"
    return (
        f"estimated cost: about {price.dollars(prompt_tokens, 0):.2f} dollars for {prompt_tokens} prompt "
        f"tokens{caching}, and at most {price.dollars(0, completion_tokens):.2f} for the responses, at the "
        f"prices of {one_line(price.as_of)}"
    )


def require_price(model: str, price: Price | None, max_cost: float | None) -> None:
    """Raises UsageError if there is a limit `max_cost` but no price."""
    if price is None and max_cost is not None:
        raise UsageError(
            f"--max-cost needs the price of {one_line(model)}, which the price table does not have (nor "
            "for a server on this machine); give a table that does with --prices FILE"
        )


class _ModelPrice(msgspec.Struct, forbid_unknown_fields=True):
    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    batch: float = _BATCH

    def __post_init__(self) -> None:
        if not all(price is None or 0 <= price < 1e6 for price in msgspec.structs.astuple(self)):
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
    return None if found is None else Price(as_of=table.as_of, **msgspec.structs.asdict(found))
