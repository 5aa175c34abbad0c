"""Models behind an API: from a script's data to its run, with what it may cost."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

from smmile.backends.interface import Backend, ImageChange
from smmile.backends.prices import Price, find_price
from smmile.backends.remote.budget import Budget, Estimator, ImageTokens
from smmile.backends.remote.sdk_chat import bytes_beside_images
from smmile.backends.remote.sent_images import ImageFitter, ImageRules, TooLargeError
from smmile.data.images import UnreadableImageError
from smmile.errors import UsageError, one_line, pluralize
from smmile.inference.plan import Plan, PlannedProblem
from smmile.inference.runner import ChoiceReader
from smmile.inference.script import RunContext, RunSpecification, run_inference
from smmile.prompting.choice import read_choice
from smmile.prompting.conversation import Recipe
from smmile.results.schema import Usage

# What a reply may come to in estimates where its length has no limit, in tokens.
_LONG_REPLY = 4_096


@dataclass(frozen=True)
class ApiModel:
    """A model behind an API, and all that is special about it.

    `name` is the run's, `model` what the service calls it. `generation` is how answers are made, and
    `fields` what a request says of it. `connect` gives the back end for a plan, fields and any budget;
    is one; `rules` says which images the service takes, `image_tokens` what it counts for one.
    `is_paid`: somebody will send a bill.
    """

    name: str
    model: str
    recipe: Recipe
    generation: Mapping[str, object]
    fields: Mapping[str, object]
    connect: Callable[[Plan, Mapping[str, object], Budget | None], Backend]
    packages: tuple[str, ...]
    rules: ImageRules = field(default_factory=ImageRules)
    image_tokens: ImageTokens = lambda _size: 0
    is_paid: bool = True
    read_choice: ChoiceReader = read_choice


def run_api_model(args: argparse.Namespace, model: ApiModel) -> int:
    """Do what the command line asks for `model`; gives the exit code. Raises UsageError."""
    price = find_price(model.model, args.prices)
    if price is None and args.max_cost is not None:
        raise UsageError(
            f"--max-cost needs the price of {one_line(model.model)}, and the price table does not have it; "
            "give a table that does with --prices FILE"
        )
    estimator = Estimator(model.image_tokens)
    longest = args.max_new_tokens or _LONG_REPLY

    set_by_hand = dict(args.set)
    fields = {
        name: value for name, value in (dict(model.fields) | set_by_hand).items() if value is not None
    }

    def connect(context: RunContext) -> Backend:
        if price is None or args.max_cost is None:
            return model.connect(context.plan, fields, None)
        return model.connect(
            context.plan,
            fields,
            _budget(args.max_cost, price, estimator, longest, context.plan, context.spent),
        )

    def preview(plan: Plan) -> Iterator[str]:
        groups = plan.groups.values()
        requests = [group[0] for group in groups]
        yield f"would ask {one_line(model.model)} of {one_line(model.generation['service'])}"
        yield from _image_changes(requests, model.rules)
        tokens = sum(estimator.prompt_tokens(request.conversation) for request in requests)
        yield from _cost_estimate(model, price, tokens, len(requests) * longest)

    limits = {name: value for name, value in asdict(model.rules).items() if value and name != "source"}
    generation = dict(model.generation) | {"max_new_tokens": args.max_new_tokens}
    if set_by_hand:
        generation["set"] = set_by_hand
    if model.recipe.shows_images:
        generation["image_limits"] = limits
    specification = RunSpecification(
        name=args.name or model.name,
        recipe=model.recipe,
        connect=connect,
        read_choice=model.read_choice,
        checkpoint=model.model,
        generation=generation,
        packages=model.packages,
        price=price,
        preview=preview,
    )
    return run_inference(args, specification)


def _budget(
    limit: float, price: Price, estimator: Estimator, longest: int, plan: Plan, spent: Usage
) -> Budget:
    """A budget that knows what the answers so far have taken, and how far that is from the estimates."""
    estimates = [estimator.prompt_tokens(request.conversation) for request in plan.requests]
    expected = spent.unique_requests * sum(estimates) / len(estimates)
    longest = max(longest, (spent.completion_tokens or 0) // max(1, spent.unique_requests))
    if spent.prompt_tokens is None:  # nobody says what it was
        dollars, too_low = price.dollars(expected, longest * spent.unique_requests), 1.0
    else:
        dollars, too_low = spent.dollars or 0.0, spent.prompt_tokens / max(1.0, expected)
    return Budget(limit, dollars, price, estimator, longest, too_low)


def _image_changes(requests: list[PlannedProblem], rules: ImageRules) -> Iterator[str]:
    """Which images would not be sent as they are stored, each told once for all its requests."""
    fitter = ImageFitter(rules)
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    changes: dict[tuple[str, str], tuple[ImageChange, int, int]] = {}
    for request in requests:
        problem = one_line(request.problem_id)
        images = request.conversation.images
        try:
            sent = fitter.fit(images, bytes_beside_images(request.conversation))
        except (UnreadableImageError, TooLargeError) as error:
            yield f"warning: problem {problem} cannot be sent: {one_line(error)}"
            continue
        for image, shown in zip(images, sent, strict=True):
            if shown.change:
                key = shown.change.sha256, shown.change.sent_sha256
                places[key].append(f"image {shown.change.index + 1} of problem {problem}")
                changes[key] = shown.change, image.size, len(shown.content)
    for key, (change, size, sent_size) in changes.items():
        first, *others = places[key]
        more = f" and {pluralize(len(others), 'more place')}" if others else ""
        yield (
            f"to be changed: {first}{more}: {one_line(change.format)} of {_pixels(change.size)}, "
            f"{size} bytes, to {change.sent_format} of {_pixels(change.sent_size)}, {sent_size} bytes"
        )
    if requests and requests[0].conversation.images:
        number = pluralize(len({sha256 for sha256, _ in changes}), "image")
        yield f"{number} would be changed to what the service takes, all others sent as stored"


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _cost_estimate(model: ApiModel, price: Price | None, prompt: int, reply: int) -> Iterator[str]:
    if price is not None:
        yield (
            f"estimated cost: about {price.dollars(prompt, 0):.2f} dollars for {prompt} prompt tokens, "
            f"and at most {price.dollars(0, reply):.2f} for the replies, at the prices of "
            f"{one_line(price.as_of)}"
        )
    elif model.is_paid:
        yield (
            f"no cost estimate: the price table does not have {one_line(model.model)} "
            f"(about {prompt} prompt tokens; --prices FILE gives a table of your own)"
        )
