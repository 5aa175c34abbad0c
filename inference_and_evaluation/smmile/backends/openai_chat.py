"""Chat completions: the protocol of OpenAI, Azure, and of vLLM, SGLang and `transformers serve`."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from smmile.backends.concurrent import Session, answer_concurrently, redacted
from smmile.backends.sent_images import as_sent
from smmile.conversation import Conversation, Role, TextPart, Turn
from smmile.errors import UsageError, one_line
from smmile.images import StoredImage, UnreadableImageError
from smmile.requests import Answered, Failure, Reply, Request
from smmile.results import ErrorType, ImageChange, RecordError

if TYPE_CHECKING:
    import openai

Detail = Literal["low", "high", "auto"]

# What a server of one's own is sent in place of a key.
_NO_KEY = "none"

# Servers word one and the same mistake in many ways; code and message are searched together.
_FILTERED = re.compile(
    r"content.?(filter|management|policy)|responsible.?ai|usage polic(y|ies)|moderation_blocked", re.I
)
_TOO_LONG = re.compile(
    r"context.?(length|size|window)|maximum model length|prompt is too long|max_req_input_len"
    r"|\blength\b.{0,60}\bexceeds|\btokens\b.{0,60}\bexceed|\bexceed.{0,60}\btokens\b",
    re.I,
)
_NO_MODEL = re.compile(
    r"model_not_found|\bthe model\b.{0,200}\bdoes not exist|invalid model name|server is pinned to", re.I
)
_NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


@dataclass(frozen=True)
class Service:
    """Who is asked, in the words of messages.

    `name` is short, `kind` what `run.hardware` says of it. `if_refused` tells what to mend where the
    credentials are not accepted, `if_unknown` where the model is not known. `secrets` are never shown;
    nor is the client's key.
    """

    name: str
    kind: str
    if_refused: str
    if_unknown: str
    secrets: tuple[str, ...] = ()


class OpenAIChat:
    """A model behind an OpenAI-compatible API, asked through the official client.

    `make_client` is called in the event loop that uses the client (an AsyncAzureOpenAI will do); its
    `timeout` and `max_retries` decide about waiting and asking again. `temperature` and `seed` are not
    sent where they are None: the service's own defaults hold then, which on vLLM are those of the
    checkpoint. `extra` holds more fields of the request's body, `detail` how closely pictures are
    looked at, `roles` the roles that turns go out under instead of their own, and `limit_field` is
    what the service calls the limit of new tokens.
    """

    def __init__(
        self,
        *,
        make_client: Callable[[], openai.AsyncOpenAI],
        service: Service,
        model: str,
        max_new_tokens: int,
        temperature: float | None,
        seed: int | None,
        concurrency: int,
        extra: Mapping[str, object] | None = None,
        detail: Detail | None = None,
        roles: Mapping[Role, str] | None = None,
        limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    ) -> None:
        self._make_client, self._service, self._model = make_client, service, model
        self._concurrency, self._detail, self._roles = concurrency, detail, roles or {}
        decoding = {limit_field: max_new_tokens, "temperature": temperature, "seed": seed}
        self._fields: dict[str, object] = {
            name: value for name, value in decoding.items() if value is not None
        } | dict(extra or {})

    def describe(self) -> Mapping[str, object]:
        """The kind of service, the model's name there, and all that a request says besides its messages."""
        return {"server": self._service.kind, "model": self._model, "generation": dict(self._fields)}

    def answer(self, requests: Sequence[Request]) -> Iterator[Sequence[Answered]]:
        """Answer in the order in which replies come.

        A UsageError stops the run: credentials that are refused, a spent quota, a model that is not there.
        """
        return answer_concurrently(requests, self._session, self._concurrency)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        async with self._make_client() as client:
            yield Session(
                partial(self._ask, client), lambda text: _redacted(text, client.api_key, self._service)
            )

    async def _ask(self, client: openai.AsyncOpenAI, request: Request) -> Reply | Failure:
        import openai

        try:
            messages, changes = await self._messages(request.conversation)
        except UnreadableImageError as error:
            return Failure(RecordError("image", str(error)))
        started = time.perf_counter()
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model=self._model, messages=messages, extra_body=self._fields
            )
            outcome = _read(raw.content)
        except openai.APIError as error:
            outcome = await self._failure(client, error)
        seconds = round(time.perf_counter() - started, 3)
        if isinstance(outcome, Reply):
            outcome = replace(outcome, images_changed=changes)
        return replace(outcome, seconds=seconds)

    async def _messages(self, conversation: Conversation) -> tuple[list[Any], tuple[ImageChange, ...]]:
        messages: list[Any] = []
        changes: list[ImageChange] = []
        index = 0
        for turn in conversation.turns:
            parts: list[dict[str, object]] = []
            for part in turn.content:
                if isinstance(part, TextPart):
                    parts.append({"type": "text", "text": part.text})
                else:
                    # In a thread: a picture that has to be encoded anew must not hold up other calls.
                    sent, change = await asyncio.to_thread(_image_part, part.image, index, self._detail)
                    parts.append(sent)
                    changes += [change] if change else []
                    index += 1
            role = self._roles.get(turn.role, turn.role)
            text = _only_text(turn)
            messages.append({"role": role, "content": parts if text is None else text})
        return messages, tuple(changes)

    async def _failure(self, client: openai.AsyncOpenAI, error: openai.APIError) -> Failure:
        """What an error means for the request. Raises UsageError where all requests would meet with it."""
        import openai

        service = self._service
        if isinstance(error, openai.APITimeoutError):
            return _failure("timeout", f"no reply in the time that --timeout gives {_cause(error)}")
        if not isinstance(error, openai.APIStatusError):
            return _failure("server", f"{error.message} {_cause(error)}")
        status, words = error.status_code, _redacted(_words(error.body), client.api_key, service)
        said = f"{error.code or ''} {words}"
        if status == 401:
            raise UsageError(f"{service.name} does not accept the credentials; {service.if_refused}")
        if status == 403:
            raise UsageError(f"{service.name} refuses access ({one_line(words)}); {service.if_refused}")
        if status in (404, 405) or (status == 400 and _NO_MODEL.search(said)):
            raise UsageError(
                f"{service.name} has no model {one_line(self._model)} ({status}: {one_line(words)})"
                f"{await _served_there(client)}; {service.if_unknown}"
            )
        if status == 429 and (error.code in _NO_QUOTA or error.type in _NO_QUOTA):
            raise UsageError(f"{service.name} has no quota left for this account ({one_line(words)})")
        return _failure(_error_type(status, said), f"HTTP {status}: {words}")


def connect_to_server(
    url: str,
    *,
    served_model: str | None,
    fallback: str,
    max_new_tokens: int,
    temperature: float | None,
    seed: int | None,
    concurrency: int,
    timeout: float,
    max_retries: int,
    extra: Mapping[str, object] | None = None,
) -> OpenAIChat:
    """The model that a running OpenAI-compatible server at `url` has, whether that ends in /v1 or not.

    It is asked for by the name `served_model`; if None, by the one that `find_served_model` finds for
    the checkpoint `fallback`. Nothing of an OpenAI account in the environment (key, organisation,
    project, headers) is sent to a server; a user and a password may stand in the URL. Raises UsageError
    where no server answers.
    """
    address = _api_address(url)
    service = Service(
        name=f"the server at {_without_login(address)}",
        kind="OpenAI-compatible",
        if_refused="--server sends no key: start it without one, or put user:password@ into its URL",
        if_unknown="--served-model asks for another model, --server for another server",
        secrets=_login_secrets(address),
    )

    def make_client(retries: int = max_retries) -> openai.AsyncOpenAI:
        return _keyless_client(address.geturl(), timeout, retries)

    # The first look is not worth as much patience as a problem.
    look = partial(make_client, min(1, max_retries))
    return OpenAIChat(
        make_client=make_client,
        service=service,
        model=find_served_model(look, service, served_model, fallback),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        concurrency=concurrency,
        extra=extra,
    )


def find_served_model(
    make_client: Callable[[], openai.AsyncOpenAI], service: Service, asked: str | None, fallback: str
) -> str:
    """The name to ask a running server's model by.

    That is `asked` if given; else `fallback` (a checkpoint's id or path) or the name that the server
    lists for it; else the only model listed, and the user is told so; else `fallback` all the same,
    as some servers load what they are asked for. Raises UsageError where no server answers.
    """
    listed = asyncio.run(_look(make_client, service))
    if asked is not None:
        return asked
    for model in listed:
        if fallback in (model.id, model.root):
            return model.id
    if len(listed) == 1:
        [only] = listed
        print(
            f"take care: {service.name} lists one model, {one_line(only.id)}; it is taken for "
            f"{one_line(fallback)} (--served-model asks for another)",
            file=sys.stderr,
        )
        return only.id
    return fallback


async def _look(make_client: Callable[[], openai.AsyncOpenAI], service: Service) -> list[_Model]:
    """The models that a server lists; none where it keeps no list. Raises UsageError where none answers."""
    import openai

    async with make_client() as client:
        try:
            return await _models(client)
        except openai.APIStatusError as error:
            if error.status_code == 401:
                raise UsageError(f"{service.name} asks for a key; {service.if_refused}") from None
            if error.status_code not in (502, 503, 504):  # a gateway with nothing behind it
                return []
            why = f"HTTP {error.status_code}"
        except openai.APIError as error:
            why = f"{error.message} {_cause(error)}"
        why = one_line(_redacted(why, client.api_key, service))
        raise UsageError(f"{service.name} does not answer ({why}); start it, or check --server")


async def _models(client: openai.AsyncOpenAI) -> list[_Model]:
    raw = await client.models.with_raw_response.list()
    try:
        return msgspec.convert(json.loads(raw.content), _Models).data
    except ValueError:  # it answers, but not with a list of models
        return []


async def _served_there(client: openai.AsyncOpenAI) -> str:
    """The models that a service lists, as the middle of a sentence; empty where it lists none."""
    import openai

    try:
        listed = await _models(client)
    except openai.APIError:
        return ""
    return f"; it has {one_line(', '.join(model.id for model in listed))}" if listed else ""


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
        timeout=openai.Timeout(timeout, connect=min(timeout, 10.0)),
        max_retries=max_retries,
        default_headers=left_out | {"Authorization": f"Bearer {_NO_KEY}"},
    )


def _api_address(url: str) -> SplitResult:
    """The API's address at `url`, with /v1 if no version is in it. Raises UsageError."""
    try:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or address.query or address.fragment:
            raise ValueError
        if not (address.hostname or "").encode("idna") or address.port == 0 or re.search(r"\s", url):
            raise ValueError
    except ValueError:  # urlsplit and idna raise it too
        raise UsageError("--server is no URL such as http://127.0.0.1:8000") from None
    path = address.path.rstrip("/")
    if not re.fullmatch(r"v\d+", path.rpartition("/")[2]):
        path += "/v1"
    return address._replace(path=path)


def _login_secrets(address: SplitResult) -> tuple[str, ...]:
    """What must not be shown of a URL's user and password, in any form in which they are sent."""
    user, password = address.username or "", address.password or ""
    if not user and not password:
        return ()
    login = f"{unquote(user)}:{unquote(password)}"
    hidden = password or user
    return hidden, unquote(hidden), base64.b64encode(login.encode()).decode()


def _without_login(address: SplitResult) -> str:
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def _only_text(turn: Turn) -> str | None:
    """The text of a system or assistant turn that is nothing else."""
    if turn.role != "user" and len(turn.content) == 1 and isinstance(turn.content[0], TextPart):
        return turn.content[0].text
    return None


def _image_part(
    image: StoredImage, index: int, detail: Detail | None
) -> tuple[dict[str, object], ImageChange | None]:
    sent = as_sent(image, index)
    url = f"data:{sent.media_type};base64,{base64.b64encode(sent.content).decode('ascii')}"
    shown = {"url": url} | ({"detail": detail} if detail else {})
    return {"type": "image_url", "image_url": shown}, sent.change


# What is read of a reply; everything else in it may be as it likes.


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: object = None


class _Model(msgspec.Struct):
    id: str
    root: object = None  # on vLLM the checkpoint behind the name


class _Models(msgspec.Struct):
    data: list[_Model]


def _read(content: bytes) -> Reply | Failure:
    """The outcome that a successful response's body tells of."""
    try:
        completion = msgspec.convert(json.loads(content), _Completion)
    except ValueError as error:
        return _failure("server", f"the reply is no chat completion ({error}): {content[:200]!r}")
    if not completion.choices:
        words = _words(completion.error or "the reply has no choices")
        return _failure(_error_type(200, words), words)
    choice, usage = completion.choices[0], completion.usage or _Usage()
    text, refusal = choice.message.content, choice.message.refusal
    if choice.finish_reason == "content_filter":
        return _failure("content_filter", "the service's content filter stopped the reply")
    if refusal and not text:
        return _failure("refusal", refusal)
    return Reply(text or "", choice.finish_reason, usage.prompt_tokens, usage.completion_tokens)


def _error_type(status: int, said: str) -> ErrorType:
    """What kind of error a status (200: an error in a reply) and the words with it are."""
    if status == 429:
        return "rate_limit"
    if _FILTERED.search(said):
        return "content_filter"
    if _TOO_LONG.search(said):
        return "context_overflow"
    if status == 408:
        return "timeout"
    return "request" if 400 <= status < 500 else "server"


def _failure(kind: ErrorType, message: str) -> Failure:
    return Failure(RecordError(kind, message))


def _words(body: object) -> str:
    """What an error's body says: OpenAI and vLLM have a message, FastAPI a detail, others plain text."""
    if isinstance(body, Mapping):
        for name in ("message", "detail", "error"):
            if body.get(name):
                return _words(body[name])
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)


def _cause(error: Exception) -> str:
    """What lies behind one of the client's errors, in brackets."""
    cause = error.__cause__
    return f"({type(cause).__name__}: {cause})".replace(": )", ")") if cause else ""


def _redacted(text: str, key: str, service: Service) -> str:
    return redacted(text, None if key == _NO_KEY else key, *service.secrets)
