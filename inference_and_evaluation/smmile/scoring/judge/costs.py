"""What judging costs: estimates before it starts, and a budget for all judges together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smmile.backends.prices import Price, find_price
from smmile.backends.remote.budget import Budget, Estimator
from smmile.errors import UsageError, one_line, pluralize
from smmile.scoring.judge.judging import Job, Judge, JudgeRecord, Verdicts, longest_response


@dataclass(frozen=True)
class JudgeBudgets:
    """The budgets of several judges that share `max_cost` dollars (None: no limit)."""

    prices: Mapping[str, Price | None]
    max_cost: float | None

    @classmethod
    def of(cls, judges: Sequence[Judge], price_file: Path | None, max_cost: float | None) -> JudgeBudgets:
        """The budgets of `judges`, whose prices are in `price_file` (None: in the included table).

        Raises UsageError where --max-cost is given and a price is missing.
        """
        prices = {judge.name: _price(judge, price_file) for judge in judges}
        unknown = [name for name, price in prices.items() if price is None]
        if max_cost is not None and unknown:
            raise UsageError(
                f"--max-cost needs the price of {one_line(unknown[0])}, which the price table lacks; "
                "give a table that has it with --prices FILE"
            )
        return cls(prices, max_cost)

    def price(self, judge: Judge) -> Price | None:
        """The price of a judge's tokens, if it is known."""
        return self.prices[judge.name]

    def make(self, job: Job, earlier: Sequence[Verdicts]) -> Budget | None:
        """The budget of one judge: what is left after its known responses and those of `earlier` judges."""
        price = self.price(job.judge)
        if self.max_cost is None or price is None:
            return None
        spent = self._cost(job.judge, job.known.values())
        spent += sum(self._cost(verdicts.judge, verdicts.records.values()) for verdicts in earlier)
        return Budget(self.max_cost, spent, price, _ESTIMATOR, longest_response(job.judge))

    def _cost(self, judge: Judge, records: Iterable[JudgeRecord]) -> float:
        price = self.price(judge) or _FREE
        return sum(
            price.dollars(record.prompt_tokens or 0, record.completion_tokens or 0) for record in records
        )


_FREE = Price(0.0, 0.0, "")
_ESTIMATOR = Estimator(lambda _size: 0)


def _price(judge: Judge, price_file: Path | None) -> Price | None:
    price = find_price(judge.model, price_file)
    return _FREE if price is None and judge.provider == "ollama" else price


def describe_job(job: Job, price: Price | None) -> Iterator[str]:
    """The lines of `--dry-run` about one judge."""
    name = one_line(job.judge.name)
    left_out = f", {job.unasked} more beyond --limit" if job.unasked else ""
    decided = len(job.cases) - len(job.pending) - job.unasked
    yield f"{name}: {pluralize(len(job.pending), 'request')} to send, {decided} known from before{left_out}"
    prompt = sum(_ESTIMATOR.prompt_tokens(request.conversation) for request in job.requests)
    if price is None:
        yield f"{name}: no cost estimate: no price known (about {prompt} prompt tokens; see --prices)"
    elif price is not _FREE:
        longest = price.dollars(0, len(job.pending) * longest_response(job.judge))
        yield (
            f"{name}: about {price.dollars(prompt, 0):.2f} dollars for {prompt} prompt tokens, and at most "
            f"{longest:.2f} for the responses, at the prices of {one_line(price.as_of)}"
        )
