"""OpenAI, Azure OpenAI and OpenAI-compatible servers: how to find and connect to each."""

from __future__ import annotations

import asyncio
import math
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec

from smmile.backends.interface import Failure
from smmile.backends.remote.backend import sdk_errors
from smmile.backends.remote.openai_chat import ListedModel, OpenAIChat, listed_models
from smmile.backends.remote.retries import RetryPolicy, TransientError, UnreachableError
from smmile.backends.remote.sent_images import ImageRules
from smmile.backends.remote.service import (
    Service,
    custom_headers,
    find_proxy,
    header_secrets,
    is_local_address,
    login_secrets,
    parse_address,
    read_key,
    without_login,
)
from smmile.backends.remote.service_errors import connection_outcome, error_outcome, failure
from smmile.errors import UsageError, one_line

if TYPE_CHECKING:
    import openai

    from smmile.backends.remote.client import ClientOptions
    from smmile.backends.remote.transport import PlainClient

_Found = TypeVar("_Found")

# Sent in place of a key to a server that needs none.
_NO_KEY = "none"

# 50 MB a request: OpenAI, "Images and vision", 2025; 20 MB an image: Azure OpenAI, "Quotas and limits"
# and "Use vision-enabled chat models", 2025. Both accept the formats that are sent, but no animations.
IMAGE_RULES = ImageRules(
    source="OpenAI, Images and vision; Azure OpenAI, Use vision-enabled chat models (2025)",
    max_image_bytes=20_000_000,
    max_request_bytes=50_000_000,
    takes_animations=False,
)

_AZURE_VARIABLES = ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_VERSION")


def image_tokens(size: tuple[int, int]) -> int:
    """The tokens of an image of `size` pixels in high detail for GPT-4o.

    85, and 170 for every square of 512 pixels after it is scaled down to fit 2,048 x 2,048 and then
    to 768 on its shorter side (OpenAI, "Images and vision", 2025).
    """
    scale = min(1.0, 2048 / max(size))
    scale = min(scale, 768 / min(size))
    width, height = (math.ceil(side * scale / 512) for side in size)
    return 85 + 170 * width * height


def find_service(base_url: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The kind of service that the command line and the environment select, as in `run.hardware`.

    `--base-url` comes first, then Azure if all of its variables are set, then OPENAI_BASE_URL, then
    OpenAI, and Azure again if OpenAI has no key.
    """
    if base_url:
        return "OpenAI-compatible"
    azure = [bool(environment.get(name)) for name in _AZURE_VARIABLES]
    if all(azure):
        return "Azure OpenAI"
    if environment.get("OPENAI_BASE_URL"):
        return "OpenAI-compatible"
    return "Azure OpenAI" if any(azure) and not environment.get("OPENAI_API_KEY") else "OpenAI"


Client: TypeAlias = "openai.AsyncOpenAI | PlainClient"
Connection = tuple[Service, Callable[[], Client]]


def connect(model: str, options: ClientOptions, model_flag: str) -> Connection:
    """The service that `find_service` selects, and a function that makes a client for it.

    Raises UsageError if a key or an address is missing, or a compatible server does not answer.
    """
    kind = find_service(options.base_url)
    if kind == "Azure OpenAI":
        return _azure(model, options, model_flag)
    missing = [name for name in _AZURE_VARIABLES if not os.environ.get(name)]
    if not options.base_url and 0 < len(missing) < len(_AZURE_VARIABLES):
        print(f"warning: using {kind}, not Azure: {' and '.join(missing)} not set", file=sys.stderr)
    if kind == "OpenAI":
        return _openai(model, options, model_flag)
    if options.base_url:
        return _compatible_server(model, options.base_url, "--base-url", options, model_flag)
    return _compatible_server(model, os.environ["OPENAI_BASE_URL"], "OPENAI_BASE_URL", options, model_flag)


def _azure(model: str, options: ClientOptions, model_flag: str) -> Connection:
    import openai

    missing = [name for name in _AZURE_VARIABLES if not os.environ.get(name)]
    if missing:
        raise UsageError(f"Azure OpenAI needs {' and '.join(missing)} in the environment")
    key, endpoint, version = (read_key(name) or "" for name in _AZURE_VARIABLES)
    address = parse_address(endpoint, "AZURE_OPENAI_ENDPOINT")
    service = Service(
        name="Azure OpenAI",
        kind=f"Azure OpenAI, API version {version}",
        model=model,
        credentials_hint="check AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT",
        model_hint=f"{model_flag} names the deployment, AZURE_OPENAI_API_VERSION the version of the API",
        connection_hint="check AZURE_OPENAI_ENDPOINT",
        address_flag="AZURE_OPENAI_ENDPOINT",
        is_local=is_local_address(address),
        proxy=find_proxy(address),
        secrets=(
            key,
            read_key("AZURE_OPENAI_AD_TOKEN") or "",
            *login_secrets(address),
            *header_secrets("OPENAI_CUSTOM_HEADERS"),
        ),
    )

    def make_client() -> openai.AsyncOpenAI:
        return openai.AsyncAzureOpenAI(
            api_key=key,
            azure_endpoint=endpoint,
            azure_deployment=quote(model, safe=""),
            api_version=version,
            **_client_settings(service, options.timeout),
        )

    return service, make_client


def _openai(model: str, options: ClientOptions, model_flag: str) -> Connection:
    import openai

    key = read_key("OPENAI_API_KEY")
    if not key:
        raise UsageError(
            "OpenAI needs OPENAI_API_KEY in the environment, Azure the three AZURE_OPENAI_* variables; "
            "set them, or give your own server with --base-url"
        )
    service = Service(
        name="OpenAI",
        kind="OpenAI",
        model=model,
        credentials_hint="check OPENAI_API_KEY",
        model_hint=f"choose another with {model_flag}",
        proxy=find_proxy(parse_address("https://api.openai.com", "--base-url")),
        secrets=(key, *header_secrets("OPENAI_CUSTOM_HEADERS")),
    )
    return service, lambda: openai.AsyncOpenAI(api_key=key, **_client_settings(service, options.timeout))


def _compatible_server(
    model: str, url: str, flag: str, options: ClientOptions, model_flag: str
) -> Connection:
    """A compatible server, which is called at once; it gets the account's key if there is one."""
    key = read_key("OPENAI_API_KEY")
    address = parse_address(url, flag)
    service = Service(
        name=f"the server at {without_login(address)}",
        kind="OpenAI-compatible",
        model=model,
        credentials_hint="check OPENAI_API_KEY, or put user:password@ into its URL",
        model_hint=f"choose another with {model_flag}, or check whether {flag} should end in /v1",
        connection_hint=f"start it, or check {flag}",
        address_flag=flag,
        is_local=is_local_address(address),
        proxy=find_proxy(address),
        secrets=(key or "", *login_secrets(address), *header_secrets("OPENAI_CUSTOM_HEADERS")),
    )
    names = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
    account = {name: value for name, variable in names.items() if (value := os.environ.get(variable))}
    headers = account | custom_headers("OPENAI_CUSTOM_HEADERS")
    make_client = partial(_plain_client, address.geturl(), service, options.timeout, key, headers)
    asyncio.run(_query(make_client, service, options.timeout, options.max_retries, listed_models))
    return service, make_client


def connect_to_server(
    url: str,
    *,
    served_model: str | None,
    fallback: str,
    fields: Mapping[str, object],
    concurrency: int,
    timeout: float,
    max_retries: int,
) -> OpenAIChat:
    """The model of a running OpenAI-compatible server at `url`, which may end in /v1 or not.

    Requests name the model `served_model`; if None, what the server lists for the checkpoint
    `fallback`. Nothing of an OpenAI account in the environment (key, organization, project, headers) is
    sent to the server; the URL may hold a user and a password. Raises UsageError if no server answers.
    """
    address = parse_address(url, "--server")
    path = address.path.rstrip("/")
    if not re.fullmatch(r"v\d+", path.rpartition("/")[2]):
        path += "/v1"
    address = address._replace(path=path)
    service = Service(
        name=f"the server at {without_login(address)}",
        kind="OpenAI-compatible",
        model=served_model or fallback,
        credentials_hint="--server sends no key: start it without one, or put user:password@ into its URL",
        model_hint="choose another model with --served-model, or another server with --server",
        connection_hint="start it, or check --server",
        address_flag="--server",
        is_local=is_local_address(address),
        proxy=find_proxy(address),
        secrets=login_secrets(address),
    )

    make_client = partial(_plain_client, address.geturl(), service, timeout)
    query = partial(_query, make_client, service, timeout, max_retries)
    listed = asyncio.run(query(listed_models)) or []
    model = _find_served_model(listed, service, fallback) if served_model is None else served_model
    if any(entry.owned_by == "vllm" for entry in listed):
        root = address._replace(path=path.rpartition("/")[0]).geturl()
        lacks_first = asyncio.run(_lacks_first_token(query, root, model))
        fields = {**fields, **({"add_special_tokens": True} if lacks_first else {})}
    return OpenAIChat(
        make_client=make_client,
        service=replace(service, model=model),
        fields=fields,
        concurrency=concurrency,
        timeout=timeout,
        max_retries=max_retries,
        rules=ImageRules(as_decoded=True),
    )


def _find_served_model(listed: Sequence[ListedModel], service: Service, fallback: str) -> str:
    """The name under which a running server that lists `listed` has its model.

    That is `fallback` (a checkpoint's id or path) or the name that the server lists for it; else the only
    model listed, with a warning; else `fallback` nevertheless, as some servers load the model that a
    request names.
    """
    for model in listed:
        if fallback in (model.id, model.root):
            return model.id
    if len(listed) == 1:
        [only] = listed
        print(
            f"warning: {service.name} lists one model, {one_line(only.id)}; using it for "
            f"{one_line(fallback)} (--served-model chooses another)",
            file=sys.stderr,
        )
        return only.id
    return fallback


async def _lacks_first_token(query: Callable[[Any], Awaitable[Any]], root: str, model: str) -> bool:
    """Whether prompts of the vLLM server at `root` lack the first token that the tokenizer adds to texts.

    transformers adds it to prompts whose chat template does not write it (LLaVA's); vLLM adds it only if
    a request has `add_special_tokens`. `query` is `_query` of this server.
    """
    import httpx2

    async def tokens(added: bool, client: Client) -> list[int]:
        turns = [{"role": "user", "content": "?"}]
        body = {"model": model, "messages": turns, "add_special_tokens": added}
        found = await client.post(f"{root}/tokenize", body=body, cast_to=httpx2.Response)
        try:
            return msgspec.json.decode(found.content, type=_Tokens).tokens
        except (ValueError, RecursionError):  # something else than tokens
            return []

    plain = await query(partial(tokens, False)) or []
    added = await query(partial(tokens, True)) or []
    return bool(plain) and added[1:] == plain and added[0] != plain[0]


class _Tokens(msgspec.Struct):
    """The part of a response of `/tokenize` that is read."""

    tokens: list[int] = []


async def _query(
    make_client: Callable[[], Client],
    service: Service,
    timeout: float,
    max_retries: int,
    query: Callable[[Client], Awaitable[_Found]],
) -> _Found | None:
    """What `query` returns; None if the server refuses it. Raises UsageError if no server answers."""

    async def attempt() -> _Found | Failure | None:
        try:
            return await query(client)
        except asyncio.CancelledError:
            raise
        except sdk_errors("openai").APIStatusError as error:
            if error.status_code == 401:
                raise UsageError(f"{service.name} requires a key; {service.credentials_hint}") from None
            if error.status_code < 400 or error.status_code == 407:
                return error_outcome(service, error.status_code, error.body, error.response.headers)
            if error.status_code not in (502, 503, 504):  # a gateway without a server behind it
                return None
            raise TransientError(failure("server", f"HTTP {error.status_code}")) from error
        except sdk_errors("openai").APIError as error:
            return connection_outcome(service, error.__cause__ or error)

    async with make_client() as client:
        try:
            found = await RetryPolicy(service, max_retries, timeout).run(attempt)
        except UnreachableError as error:
            raise UsageError(one_line(service.redact(str(error)))) from None
    if isinstance(found, Failure):
        reason = one_line(service.redact(found.error.message))
        raise UsageError(f"{service.name} does not answer ({reason}); {service.connection_hint}")
    return found


def _plain_client(
    url: str,
    service: Service,
    timeout: float,
    key: str | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> PlainClient:
    """A client that takes nothing from the environment's OpenAI account but what is given."""
    from smmile.backends.remote.transport import PlainClient, http_client

    return PlainClient(url, key or _NO_KEY, http_client(service, timeout), headers)


def _client_settings(service: Service, timeout: float) -> dict[str, Any]:
    """The SDK's HTTP client; its own retries are off, as `RetryPolicy` retries."""
    from smmile.backends.remote.transport import http_client

    return {"http_client": http_client(service, timeout), "max_retries": 0}
