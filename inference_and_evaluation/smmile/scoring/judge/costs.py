"""What judging costs: estimates before it starts, and a budget for all judges together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smmile.backends.prices import Ledger, Price, cost_estimate, find_price, require_price
from smmile.backends.remote.budget import Budget
from smmile.errors import one_line, pluralize
from smmile.scoring.judge.judging import ESTIMATOR, Job, Judge, Verdicts, longest_response


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
        for name, price in prices.items():
            require_price(name, price, max_cost)
        return cls(prices, max_cost)

    def price(self, judge: Judge) -> Price | None:
        """The price of a judge's tokens, if it is known."""
        return self.prices[judge.name]

    def make(self, judge: Judge, ledger: Ledger, others: Sequence[Job | Verdicts]) -> Budget:
        """The budget of one judge: what is left after all that its file and those of `others` cost."""
        elsewhere = sum((self.price(other.judge) or _FREE).cost(other.spent) for other in others)
        longest = longest_response(judge)
        return Budget(ledger, ESTIMATOR, longest, self.price(judge), self.max_cost, elsewhere)


_FREE = Price(0.0, 0.0, "")


def _price(judge: Judge, price_file: Path | None) -> Price | None:
    price = find_price(judge.model, price_file)
    return _FREE if price is None and judge.provider == "ollama" else price


def describe_job(job: Job, price: Price | None, *, batch: bool = False) -> Iterator[str]:
    """The lines of `--dry-run` about one judge, whose requests may go into batch jobs."""
    name = one_line(job.judge.name)
    left_out = f", {job.not_sent} more beyond --limit" if job.not_sent else ""
    decided = len(job.cases) - len(job.pending) - job.not_sent
    yield f"{name}: {pluralize(len(job.pending), 'request')} to send, {decided} known from before{left_out}"
    prompt = sum(ESTIMATOR.prompt_tokens(request.conversation) for request in job.requests)
    if price is not _FREE:
        longest = len(job.pending) * longest_response(job.judge)
        price = price.batched() if price and batch else price
        yield f"{name}: {cost_estimate(job.judge.model, price, prompt, longest)}"
