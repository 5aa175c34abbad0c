"""Chat: the protocol of ollama, for models that see text alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smmile.backends.interface import Failure, Request, Response
from smmile.backends.remote.base import RemoteBackend
from smmile.backends.remote.concurrent import UnreachableError
from smmile.backends.remote.services import (
    LONGEST_WAIT,
    Service,
    asking_again,
    failure,
    key_from,
    login_secrets,
    retry_after,
    service_address,
)
from smmile.errors import UsageError, one_line, replace_surrogates
from smmile.prompting.conversation import Conversation

if TYPE_CHECKING:
    import ollama

# What the client breaks on where a reply is not as it should be.
_GARBLED = (ValueError, TypeError, AttributeError)

# Given a request's key and the model's response, the follow-up question; None: there is none.
FollowUp = Callable[[str, str], str | None]


class OllamaChat(RemoteBackend):
    """A model that ollama serves; `fields` are ollama's options, its defaults where there are none.

    Its client does not ask again by itself, which is done here up to `max_retries` times. Where
    `follow_up` has something to ask about a reply, it goes out once, after the conversation and that reply.
    `reply_schema`, a JSON schema, is what ollama holds replies to.
    """

    def __init__(
        self,
        *,
        max_retries: int,
        follow_up: FollowUp | None = None,
        reply_schema: dict[str, object] | None = None,
        **how: Any,
    ) -> None:
        super().__init__(**how)
        self._max_retries, self._follow_up, self._reply_schema = max_retries, follow_up, reply_schema

    async def _ask(self, client: ollama.AsyncClient, request: Request) -> Response | Failure:
        started = time.perf_counter()
        messages = _messages(request.conversation)
        outcome = await self._chat(client, messages)
        if self._follow_up and isinstance(outcome, Response) and outcome.text.strip():
            question = self._follow_up(request.key, outcome.text)
            if question is not None:
                said = {"role": "assistant", "content": replace_surrogates(outcome.text)}
                second = await self._chat(client, [*messages, said, {"role": "user", "content": question}])
                outcome = _joined(outcome, second)
        return replace(outcome, seconds=round(time.perf_counter() - started, 3))

    async def _chat(self, client: ollama.AsyncClient, messages: list[dict[str, str]]) -> Response | Failure:
        import httpx
        import ollama

        try:
            response: ollama.ChatResponse = await asking_again(
                self._max_retries, self._retries, _may_pass, _asked_to_wait
            )(
                client.chat,
                self._service.model,
                messages,
                options=self._fields or None,
                format=self._reply_schema,
            )
        except ollama.ResponseError as error:
            return self._service.failure(error.status_code, error.error, retry_after=_asked_to_wait(error))
        except (ConnectionError, httpx.ConnectTimeout) as error:
            raise UnreachableError(
                f"{self._service.name} cannot be reached; start it with `ollama serve`, or set OLLAMA_HOST"
            ) from error
        except httpx.TimeoutException as error:
            return failure("timeout", f"no reply in the time that --timeout gives ({type(error).__name__})")
        except httpx.HTTPError as error:
            return failure("server", f"{type(error).__name__}: {error}")
        except _GARBLED as error:
            return failure("server", f"the reply is no chat response ({type(error).__name__}: {error})")
        self._note_answering(response.model)
        return Response(
            response.message.content or "",
            response.done_reason,
            response.prompt_eval_count,
            response.eval_count,
        )


def connect(
    model: str, base_url: str | None, timeout: float
) -> tuple[Service, Callable[[], ollama.AsyncClient]]:
    """ollama, and how a client of it is made. Raises UsageError where the address is none."""
    host = base_url or os.environ.get("OLLAMA_HOST") or ""
    secrets: tuple[str, ...] = tuple(filter(None, [key_from("OLLAMA_API_KEY")]))
    if host:  # looked at before ollama is imported, which breaks on what is none
        whole = host if "://" in host else f"http://{'127.0.0.1' if host.startswith(':') else ''}{host}"
        secrets += login_secrets(service_address(whole, "--base-url" if base_url else "OLLAMA_HOST"))
    import httpx
    import ollama

    service = Service(
        name="ollama",
        kind="ollama",
        model=model,
        if_refused="check OLLAMA_HOST and OLLAMA_API_KEY",
        if_unknown=f"get it with `ollama pull {one_line(model)}`, or choose another with --model",
        secrets=secrets,
    )

    def make_client() -> ollama.AsyncClient:
        patience = httpx.Timeout(timeout, connect=min(timeout, 10.0))
        try:
            return ollama.AsyncClient(host or None, timeout=patience)
        except (ValueError, httpx.InvalidURL):
            raise UsageError("OLLAMA_HOST is no address such as 127.0.0.1:11434") from None

    return service, make_client


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    if conversation.images:
        raise ValueError("images are not sent to ollama")
    return [
        {"role": turn.role, "content": "".join(part.text for part in turn.content)}  # type: ignore[union-attr]
        for turn in conversation.turns
    ]


def _joined(first: Response, second: Response | Failure) -> Response | Failure:
    """What a conversation of two replies came to."""

    def total(counts: tuple[int | None, int | None]) -> int | None:
        return None if None in counts else sum(filter(None, counts))

    prompt = total((first.prompt_tokens, second.prompt_tokens))
    completion = total((first.completion_tokens, second.completion_tokens))
    if isinstance(second, Failure):
        return replace(second, prompt_tokens=first.prompt_tokens, completion_tokens=first.completion_tokens)
    text = f"{first.text}\n\n{second.text}"
    return Response(text, second.finish_reason, prompt, completion, follow_up=second.text)


def _may_pass(error: BaseException) -> bool:
    """Whether it is worth asking again."""
    import httpx
    import ollama

    if isinstance(error, ollama.ResponseError):
        wait = _asked_to_wait(error)
        passing = error.status_code in (408, 429) or error.status_code >= 500
        return passing and (wait is None or wait <= LONGEST_WAIT)
    return isinstance(error, (ConnectionError, httpx.TransportError, *_GARBLED))


def _asked_to_wait(error: BaseException) -> float | None:
    """A response's Retry-After: the client hides the response behind its own error."""
    import httpx

    hidden = error.__context__
    return retry_after(hidden.response.headers) if isinstance(hidden, httpx.HTTPStatusError) else None
