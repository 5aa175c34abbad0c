"""Chat: the protocol of ollama, for text-only conversations."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from smmile.backends.interface import Failure, Request, Response
from smmile.backends.remote.backend import RemoteBackend
from smmile.backends.remote.retries import TransientError
from smmile.backends.remote.service import (
    Service,
    find_proxy,
    is_local_address,
    login_secrets,
    parse_address,
    read_key,
)
from smmile.backends.remote.service_errors import connection_outcome, error_outcome, failure
from smmile.errors import UsageError, one_line, replace_surrogates
from smmile.prompting.conversation import Conversation, TextPart, Turn

if TYPE_CHECKING:
    import ollama

    from smmile.backends.remote.client import ClientOptions

# What the client raises for a malformed response.
_MALFORMED = (ValueError, TypeError, AttributeError, RecursionError)

# What ollama reads when it is imported, and fails on if it is unusable.
_READ_AT_IMPORT = re.compile(r"OLLAMA_HOST|SSL_CERT_(FILE|DIR)|\w+_proxy", re.I)

# Given a request's key and the model's response, returns the follow-up question or None.
FollowUp = Callable[[str, str], str | None]


class OllamaChat(RemoteBackend):
    """A model that ollama serves; `fields` are ollama's options, which override the model's defaults.

    If `follow_up` returns a question about a response, it is sent once, after the conversation and that
    response. `response_schema`, a JSON schema, constrains responses.
    """

    def __init__(
        self,
        *,
        follow_up: FollowUp | None = None,
        response_schema: Mapping[str, object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._follow_up, self._response_schema = follow_up, response_schema

    async def _answer(self, client: ollama.AsyncClient, request: Request) -> Response | Failure:
        started = time.perf_counter()
        conversation = request.conversation
        outcome = await self._retries.run(partial(self._chat, client, conversation), conversation)
        if self._follow_up and isinstance(outcome, Response) and outcome.text.strip():
            question = self._follow_up(request.key, outcome.text)
            if question is not None:
                said = Turn("assistant", (TextPart(replace_surrogates(outcome.text)),))
                asked = Turn("user", (TextPart(question),))
                longer = Conversation((*conversation.turns, said, asked))
                second = await self._retries.run(partial(self._chat, client, longer), longer)
                outcome = _joined(outcome, second)
        return replace(outcome, seconds=round(time.perf_counter() - started, 3))

    async def _chat(self, client: ollama.AsyncClient, conversation: Conversation) -> Response | Failure:
        import httpx
        import ollama

        try:
            response: ollama.ChatResponse = await client.chat(
                self.service.model,
                _messages(conversation),
                options=self.fields or None,
                format=dict(self._response_schema) if self._response_schema else None,
            )
        except ollama.ResponseError as error:
            return error_outcome(self.service, error.status_code, error.error, _headers(error))
        except (ConnectionError, httpx.HTTPError) as error:
            cause = error.__context__ if isinstance(error, ConnectionError) else error
            return connection_outcome(self.service, cause or error)
        except _MALFORMED as error:
            message = f"malformed response ({type(error).__name__}: {error})"
            raise TransientError(failure("server", message)) from error
        self._note_answering_model(response.model)
        return Response(
            response.message.content or "",
            response.done_reason,
            response.prompt_eval_count,
            response.eval_count,
        )


def connect(
    model: str, options: ClientOptions, model_flag: str
) -> tuple[Service, Callable[[], ollama.AsyncClient]]:
    """ollama, and a function that makes a client for it. Raises UsageError if its address is malformed."""
    flag = "--base-url" if options.base_url else "OLLAMA_HOST"
    host = options.base_url or os.environ.get("OLLAMA_HOST") or ""
    url = host if "://" in host else f"http://{'127.0.0.1' if host[:1] in ('', ':') else ''}{host}"
    address = parse_address(url, flag)
    import httpx

    hidden = {name: os.environ.pop(name) for name in list(os.environ) if _READ_AT_IMPORT.fullmatch(name)}
    try:
        import ollama
    finally:
        os.environ |= hidden
    service = Service(
        name="ollama",
        kind="ollama",
        model=model,
        credentials_hint=f"check {flag} and OLLAMA_API_KEY",
        model_hint=f"get it with `ollama pull {one_line(model)}`, or choose another with {model_flag}",
        connection_hint=f"start it with `ollama serve`, or check {flag}",
        address_flag=flag,
        is_local=is_local_address(address),
        proxy=find_proxy(address),
        secrets=(read_key("OLLAMA_API_KEY") or "", *login_secrets(address)),
    )

    def make_client() -> ollama.AsyncClient:
        from smmile.backends.remote.transport import client_settings

        settings = client_settings(httpx, service, options.timeout)
        try:
            return ollama.AsyncClient(host or None, **settings)
        except (ValueError, httpx.InvalidURL):
            raise UsageError(f"{flag} is no address such as 127.0.0.1:11434") from None

    return service, make_client


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    return [
        {"role": turn.role, "content": "".join(part.text for part in turn.content)}  # type: ignore[union-attr]
        for turn in conversation.turns
    ]


def _joined(first: Response, second: Response | Failure) -> Response | Failure:
    """The outcome of a conversation with a follow-up question."""

    def total(counts: tuple[int | None, int | None]) -> int | None:
        return None if None in counts else sum(filter(None, counts))

    prompt = total((first.prompt_tokens, second.prompt_tokens))
    completion = total((first.completion_tokens, second.completion_tokens))
    if isinstance(second, Failure):
        return replace(second, prompt_tokens=first.prompt_tokens, completion_tokens=first.completion_tokens)
    text = f"{first.text}\n\n{second.text}"
    return Response(text, second.finish_reason, prompt, completion, follow_up=second.text)


def _headers(error: ollama.ResponseError) -> Mapping[str, str]:
    """The headers of an error response, which the client hides behind its own error."""
    import httpx

    hidden = error.__context__
    return hidden.response.headers if isinstance(hidden, httpx.HTTPStatusError) else {}
