"""Who speaks OpenAI's protocol: OpenAI itself, Azure, and servers of one's own."""

from __future__ import annotations

import asyncio
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from smmile.backends.remote.openai_chat import ListedModel, OpenAIChat, listed_models
from smmile.backends.remote.sent_images import ImageRules
from smmile.backends.remote.services import (
    Service,
    ask_not_in_vain,
    cause_of,
    header_secrets,
    key_from,
    login_secrets,
    service_address,
    without_login,
)
from smmile.errors import UsageError, one_line

if TYPE_CHECKING:
    import openai

# What a server of one's own is sent in place of a key.
_NO_KEY = "none"

# 50 MB a request: OpenAI, "Images and vision", 2025; 20 MB an image: Azure OpenAI, "Quotas and limits"
# and "Use vision-enabled chat models", 2025. Both take the formats that go out here, but no animations.
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
    """Which kind of service the command line and the environment speak of, as `run.hardware` says it.

    `--base-url` comes first, then Azure where all of its variables are set, then OPENAI_BASE_URL, then
    OpenAI, and Azure again where OpenAI has no key.
    """
    if base_url:
        return "OpenAI-compatible"
    azure = [bool(environment.get(name)) for name in _AZURE_VARIABLES]
    if all(azure):
        return "Azure OpenAI"
    if environment.get("OPENAI_BASE_URL"):
        return "OpenAI-compatible"
    return "Azure OpenAI" if any(azure) and not environment.get("OPENAI_API_KEY") else "OpenAI"


Connection = tuple[Service, "Callable[[], openai.AsyncOpenAI]"]


def connect(model: str, base_url: str | None, timeout: float, max_retries: int) -> Connection:
    """The service that `find_service` names, and how a client of it is made.

    Raises UsageError where a key or an address is missing, or a server of one's own does not answer.
    """
    kind = find_service(base_url)
    if kind == "Azure OpenAI":
        return _azure(model, timeout, max_retries)
    set_in_vain = [name for name in _AZURE_VARIABLES if os.environ.get(name)]
    if set_in_vain and not base_url and len(set_in_vain) < len(_AZURE_VARIABLES):
        missing = [name for name in _AZURE_VARIABLES if name not in set_in_vain]
        print(f"warning: {kind} is asked, not Azure, for want of {' and '.join(missing)}", file=sys.stderr)
    if kind == "OpenAI":
        return _openai(model, timeout, max_retries)
    if base_url:
        return _own_server(model, base_url, "--base-url", timeout, max_retries)
    return _own_server(model, os.environ["OPENAI_BASE_URL"], "OPENAI_BASE_URL", timeout, max_retries)


def _azure(model: str, timeout: float, max_retries: int) -> Connection:
    import openai

    missing = [name for name in _AZURE_VARIABLES if not os.environ.get(name)]
    if missing:
        raise UsageError(f"Azure OpenAI needs {' and '.join(missing)} in the environment")
    key, endpoint, version = (key_from(name) or "" for name in _AZURE_VARIABLES)
    address = service_address(endpoint, "AZURE_OPENAI_ENDPOINT")
    service = Service(
        name="Azure OpenAI",
        kind=f"Azure OpenAI, API version {version}",
        model=model,
        if_refused="check AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT",
        if_unknown="--model names the deployment, AZURE_OPENAI_API_VERSION the version of the API",
        secrets=(key, *login_secrets(address), *header_secrets("OPENAI_CUSTOM_HEADERS")),
    )

    def make_client() -> openai.AsyncOpenAI:
        return openai.AsyncAzureOpenAI(
            api_key=key,
            azure_endpoint=endpoint,
            azure_deployment=quote(model, safe=""),
            api_version=version,
            **_ways(timeout, max_retries),
        )

    return service, make_client


def _openai(model: str, timeout: float, max_retries: int) -> Connection:
    import openai

    key = key_from("OPENAI_API_KEY")
    if not key:
        raise UsageError(
            "OpenAI needs OPENAI_API_KEY in the environment, Azure the three AZURE_OPENAI_* variables; "
            "set them, or name a server of your own with --base-url"
        )
    service = Service(
        name="OpenAI",
        kind="OpenAI",
        model=model,
        if_refused="check OPENAI_API_KEY",
        if_unknown="--model asks for another model",
        secrets=(key, *header_secrets("OPENAI_CUSTOM_HEADERS")),
    )
    return service, lambda: openai.AsyncOpenAI(api_key=key, **_ways(timeout, max_retries))


def _own_server(model: str, url: str, flag: str, timeout: float, max_retries: int) -> Connection:
    """A compatible server, which is looked for at once; it gets the account's key if there is one."""
    import openai

    key = key_from("OPENAI_API_KEY")
    address = service_address(url, flag)
    service = Service(
        name=f"the server at {without_login(address)}",
        kind="OpenAI-compatible",
        model=model,
        if_refused="check OPENAI_API_KEY, or put user:password@ into its URL",
        if_unknown=f"--model asks for another model; look whether {flag} ends in /v1 where it should",
        secrets=(
            *filter(None, [key]),
            *login_secrets(address),
            *header_secrets("OPENAI_CUSTOM_HEADERS"),
        ),
    )

    def make_client(retries: int = max_retries) -> openai.AsyncOpenAI:
        ways = _ways(timeout, retries)
        return openai.AsyncOpenAI(base_url=address.geturl(), api_key=key or _NO_KEY, **ways)

    # The first look is not worth as much patience as a problem.
    asyncio.run(_look(partial(make_client, min(1, max_retries)), service, flag))
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
    """The model that a running OpenAI-compatible server at `url` has, whether that ends in /v1 or not.

    It is asked for by the name `served_model`; if None, by the one that `find_served_model` finds for
    the checkpoint `fallback`. Nothing of an OpenAI account in the environment (key, organisation,
    project, headers) is sent to a server; a user and a password may stand in the URL. Raises UsageError
    where no server answers.
    """
    address = service_address(url, "--server")
    path = address.path.rstrip("/")
    if not re.fullmatch(r"v\d+", path.rpartition("/")[2]):
        path += "/v1"
    address = address._replace(path=path)
    service = Service(
        name=f"the server at {without_login(address)}",
        kind="OpenAI-compatible",
        model=served_model or fallback,
        if_refused="--server sends no key: start it without one, or put user:password@ into its URL",
        if_unknown="--served-model asks for another model, --server for another server",
        secrets=login_secrets(address),
    )

    def make_client(retries: int = max_retries) -> openai.AsyncOpenAI:
        return _keyless_client(address.geturl(), timeout, retries)

    # The first look is not worth as much patience as a problem.
    look = partial(make_client, min(1, max_retries))
    model = find_served_model(look, service, served_model, fallback)
    return OpenAIChat(
        make_client=make_client,
        service=replace(service, model=model),
        fields=fields,
        concurrency=concurrency,
        rules=ImageRules(as_decoded=True),
    )


def find_served_model(
    make_client: Callable[[], openai.AsyncOpenAI], service: Service, asked: str | None, fallback: str
) -> str:
    """The name to ask a running server's model by.

    That is `asked` if given; else `fallback` (a checkpoint's id or path) or the name that the server
    lists for it; else the only model listed, and the user is told so; else `fallback` all the same,
    as some servers load what they are asked for. Raises UsageError where no server answers.
    """
    listed = asyncio.run(_look(make_client, service, "--server"))
    if asked is not None:
        return asked
    for model in listed:
        if fallback in (model.id, model.root):
            return model.id
    if len(listed) == 1:
        [only] = listed
        print(
            f"warning: {service.name} lists one model, {one_line(only.id)}; it is taken for "
            f"{one_line(fallback)} (--served-model asks for another)",
            file=sys.stderr,
        )
        return only.id
    return fallback


async def _look(
    make_client: Callable[[], openai.AsyncOpenAI], service: Service, flag: str
) -> list[ListedModel]:
    """The models that a server lists; none where it keeps no list. Raises UsageError where none answers."""
    import openai

    async with make_client() as client:
        try:
            return await listed_models(client)
        except openai.APIStatusError as error:
            if error.status_code == 401:
                raise UsageError(f"{service.name} asks for a key; {service.if_refused}") from None
            if error.status_code not in (502, 503, 504):  # a gateway with nothing behind it
                return []
            why = f"HTTP {error.status_code}"
        except openai.APIError as error:
            why = f"{error.message} {cause_of(error)}"
    why = one_line(service.redact(why))
    raise UsageError(f"{service.name} does not answer ({why}); start it, or check {flag}")


def _keyless_client(url: str, timeout: float, max_retries: int) -> openai.AsyncOpenAI:
    """A client that takes nothing from the environment's OpenAI account."""
    import openai

    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    ambient = [line.partition(":")[0].strip() for line in lines if ":" in line]
    left_out: dict[str, Any] = dict.fromkeys(
        [*ambient, "OpenAI-Organization", "OpenAI-Project"], openai.Omit()
    )
    return openai.AsyncOpenAI(
        base_url=url,
        api_key=_NO_KEY,
        default_headers=left_out | {"Authorization": f"Bearer {_NO_KEY}"},
        **_ways(timeout, max_retries),
    )


def _ways(timeout: float, max_retries: int) -> dict[str, Any]:
    """How long a client waits, how often it asks again, and when not."""
    import openai

    return {
        "timeout": openai.Timeout(timeout, connect=min(timeout, 10.0)),
        "max_retries": max_retries,
        "http_client": openai.DefaultAsyncHttpxClient(event_hooks={"response": [ask_not_in_vain]}),
    }
