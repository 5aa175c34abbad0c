"""Connects to a model of a service: the entry point for the inference scripts and for the judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from smmile.backends.interface import Backend
from smmile.backends.remote import anthropic_messages, ollama_chat, openai_chat, openai_services
from smmile.backends.remote.backend import SdkBackend
from smmile.backends.remote.batch_protocols import AnthropicBatches, BatchProtocol, OpenAIBatches
from smmile.backends.remote.budget import Budget, ImageTokens
from smmile.backends.remote.prefixes import CachePrompts
from smmile.backends.remote.sent_images import ImageRules
from smmile.errors import UsageError

Provider = Literal["ollama", "openai", "anthropic"]


@dataclass(frozen=True)
class ClientOptions:
    """How to call a service. None of this makes a run a different one.

    Without `base_url` the environment names the service. Up to `concurrency` requests are in flight; each
    attempt, with its whole response, may take `timeout` seconds, and a transient error is retried up to
    `max_retries` times. `cache_prompts` is what to mark for Anthropic's cache. `batch`: requests go into
    batch jobs; with `submit_only`, without waiting for their results.
    """

    base_url: str | None
    concurrency: int
    timeout: float
    max_retries: int
    cache_prompts: CachePrompts = "shared"
    batch: bool = False
    submit_only: bool = False


@dataclass(frozen=True)
class ProviderInfo:
    """What is known of a service without calling it.

    `service` is its name in `run.generation`, `rules` are its image limits, `image_tokens` estimates an
    image's tokens from its size. `is_paid`: requests cost money.
    """

    service: str
    rules: ImageRules
    image_tokens: ImageTokens
    is_paid: bool


def provider_info(provider: Provider, base_url: str | None) -> ProviderInfo:
    """The service that `connect` would call. Needs no key and no SDK."""
    if provider == "anthropic":
        return ProviderInfo(
            "Anthropic", anthropic_messages.IMAGE_RULES, anthropic_messages.image_tokens, True
        )
    if provider == "ollama":
        return ProviderInfo("ollama", ImageRules(), lambda _size: 0, False)
    service = openai_services.find_service(base_url)
    if service == "OpenAI-compatible":
        return ProviderInfo(service, ImageRules(), openai_services.image_tokens, False)
    return ProviderInfo(service, openai_services.IMAGE_RULES, openai_services.image_tokens, True)


def check_batch(provider: Provider) -> None:
    """Raise UsageError if a service has no batch interface."""
    if provider == "ollama":
        raise UsageError("ollama has no batch interface; leave out --batch")


def connect(
    provider: Provider,
    model: str,
    options: ClientOptions,
    fields: Mapping[str, object],
    *,
    budget: Budget | None = None,
    model_flag: str = "--model",
    detail: openai_chat.Detail | None = None,
    follow_up: ollama_chat.FollowUp | None = None,
    response_schema: Mapping[str, object] | None = None,
) -> Backend:
    """The back end for `model` of `provider`.

    `fields` are the request's fields besides the model and the messages (for ollama its options). Messages
    name `model_flag` as the flag that chooses the model. `detail` is for openai; `follow_up` (a second
    question about a response) and `response_schema` (a JSON schema that constrains responses) are for
    ollama, which is sent text only. Raises UsageError if a key or an address is missing, or if an
    OpenAI-compatible server does not answer.
    """
    shared: dict[str, Any] = {
        "fields": fields,
        "concurrency": options.concurrency,
        "timeout": options.timeout,
        "max_retries": options.max_retries,
        "budget": budget,
    }
    if provider == "ollama":
        ollama, make_ollama = ollama_chat.connect(model, options, model_flag)
        return ollama_chat.OllamaChat(
            make_client=make_ollama,
            service=ollama,
            follow_up=follow_up,
            response_schema=response_schema,
            **shared,
        )
    shared |= {
        "rules": provider_info(provider, options.base_url).rules,
        "cache_prompts": options.cache_prompts,
    }
    single: SdkBackend
    protocol: BatchProtocol
    if provider == "anthropic":
        service, make_anthropic = anthropic_messages.connect(model, options, model_flag)
        single = anthropic_messages.AnthropicMessages(make_client=make_anthropic, service=service, **shared)
        protocol = AnthropicBatches()
    else:
        service, make_openai = openai_services.connect(model, options, model_flag)
        single = openai_chat.OpenAIChat(make_client=make_openai, service=service, detail=detail, **shared)
        # Azure's paths have no version.
        protocol = OpenAIBatches(single.path if service.name == "Azure OpenAI" else f"/v1{single.path}")
    if budget is None or not (options.batch or budget.ledger.jobs):
        return single
    from smmile.backends.remote.batches import BatchBackend

    return BatchBackend(single, protocol, budget, options)
