"""Models behind an API: from the command line to a run, with its estimated cost."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from smmile.backends.interface import Backend, ImageChange, Request
from smmile.backends.prices import cost_estimate, find_price, require_price
from smmile.backends.remote.backend import bytes_without_images
from smmile.backends.remote.budget import Budget, Estimator
from smmile.backends.remote.client import ClientOptions, Provider, check_batch, connect, provider_info
from smmile.backends.remote.openai_chat import Detail
from smmile.backends.remote.prefixes import CachePrompts, SharedPrefixes
from smmile.backends.remote.sent_images import ImageFitter, ImageRules, TooLargeError
from smmile.backends.remote.service import is_this_machine, parse_address
from smmile.data.images import UnreadableImageError
from smmile.errors import one_line, pluralize
from smmile.inference.plan import Plan, PlannedProblem
from smmile.inference.runner import ChoiceReader
from smmile.inference.script import RunContext, RunSpecification
from smmile.prompting.choice import read_choice
from smmile.prompting.conversation import Conversation, Recipe
from smmile.prompting.options import Options

# The length of a response in estimates if it has no limit, in tokens.
_LONG_RESPONSE = 4_096

# Given a problem's options (None in the open format) and the response, the follow-up question or None.
FollowUp = Callable[[Options | None, str], str | None]


@dataclass(frozen=True)
class ApiModel:
    """A model behind an API, and all that is special about it.

    `name` is the run's default name. `decoding` is recorded as how responses are generated, `fields` are
    the request's fields besides model and messages. `detail` is OpenAI's, `follow_up` ollama's,
    `cache_prompts` Anthropic's.
    """

    provider: Provider
    name: str
    recipe: Recipe
    decoding: Mapping[str, object]
    fields: Mapping[str, object]
    detail: Detail | None = None
    follow_up: FollowUp | None = None
    read_choice: ChoiceReader = read_choice
    cache_prompts: CachePrompts = "shared"


def api_specification(args: argparse.Namespace, model: ApiModel) -> RunSpecification:
    """What to run for `model` as the command line says. Raises UsageError."""
    if args.batch:
        check_batch(model.provider)
    info = provider_info(model.provider, args.base_url)
    is_own = args.prices is None and _is_on_this_machine(model.provider, args.base_url)
    is_paid = info.is_paid and not is_own
    price = None if is_own else find_price(args.model, args.prices)
    require_price(args.model, price, args.max_cost)
    expected = price.batched() if price and args.batch else price
    estimator = Estimator(info.image_tokens)
    longest = args.max_new_tokens or _LONG_RESPONSE

    overrides = dict(args.set)
    fields = {name: value for name, value in (dict(model.fields) | overrides).items() if value is not None}

    def make_backend(context: RunContext) -> Backend:
        return connect(
            model.provider,
            args.model,
            ClientOptions(
                args.base_url,
                args.concurrency,
                args.timeout,
                args.max_retries,
                model.cache_prompts,
                args.batch,
                context.submit_only,
            ),
            fields,
            budget=Budget(context.ledger, estimator, longest, price, args.max_cost, is_free=is_own),
            detail=model.detail,
            follow_up=model.follow_up and partial(_follow_up, model.follow_up, context.plan),
        )

    def preview(plan: Plan, left: Sequence[Request]) -> Iterator[str]:
        answered = len(plan.groups) - len(left)
        known = f" ({answered} more are answered)" if answered else ""
        number = pluralize(len(left), "request")
        jobs = " in batch jobs" if args.batch else ""
        yield f"would send {number}{jobs} to {one_line(args.model)} of {info.service}{known}"
        yield from _image_changes([plan.groups[request.key][0] for request in left], info.rules)
        tokens = prompt_tokens(request.conversation for request in left)
        if price is not None or is_paid:
            cached = written = 0
            if expected is not None and expected.cached_input is not None:
                cached, written = SharedPrefixes(left, model.cache_prompts).estimated_tokens(
                    estimator.turn_tokens
                )
            if model.provider != "anthropic":  # others write to their caches at no cost
                written = 0
            yield cost_estimate(args.model, expected, tokens, len(left) * longest, cached, written)

    def prompt_tokens(conversations: Iterable[Conversation]) -> int:
        return sum(map(estimator.prompt_tokens, conversations))

    def highest_cost(conversations: Sequence[Conversation]) -> float | None:
        if expected is None:
            return None
        return expected.dollars(prompt_tokens(conversations), len(conversations) * longest)

    generation = {"service": info.service, **model.decoding, "max_new_tokens": args.max_new_tokens}
    if overrides:
        generation["set"] = overrides
    if model.recipe.shows_images:
        limits = asdict(info.rules).items()
        generation["image_limits"] = {name: value for name, value in limits if value and name != "source"}
    return RunSpecification(
        name=args.name or model.name,
        recipe=model.recipe,
        connect=make_backend,
        read_choice=model.read_choice,
        checkpoint=args.model,
        generation=generation,
        packages=(model.provider,),
        price=price,
        preview=preview,
        highest_cost=highest_cost if price is not None or is_paid else None,
        shared=False,
    )


def _is_on_this_machine(provider: Provider, base_url: str | None) -> bool:
    """Whether --base-url is a server of one's own here, which bills nothing (a gateway needs --prices)."""
    if base_url is None or provider == "ollama":
        return False
    return is_this_machine(parse_address(base_url, "--base-url"))


def _follow_up(follow_up: FollowUp, plan: Plan, key: str, response: str) -> str | None:
    return follow_up(plan.groups[key][0].options, response)


def _image_changes(requests: list[PlannedProblem], rules: ImageRules) -> Iterator[str]:
    """The images that would not be sent as stored, each listed once for all its requests."""
    fitter = ImageFitter(rules)
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    changes: dict[tuple[str, str], tuple[ImageChange, int, int]] = {}
    for request in requests:
        problem = one_line(request.problem_id)
        conversation = request.make_conversation()
        images = conversation.images
        try:
            sent = fitter.fit(images, bytes_without_images(conversation))
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
    if requests and requests[0].make_conversation().images:
        number = pluralize(len({sha256 for sha256, _ in changes}), "image")
        yield f"{number} would be changed to fit the limits of the service, all others sent as stored"


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
