"""Chat completions: the protocol of OpenAI, Azure, and of vLLM, SGLang and `transformers serve`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from smmile.backends.interface import Failure, Response
from smmile.backends.remote.backend import SdkBackend, sdk_errors
from smmile.backends.remote.service_errors import (
    error_message,
    error_type,
    failure,
    is_unknown_model,
    token_count,
)
from smmile.errors import one_line
from smmile.prompting.conversation import Turn

Detail = Literal["low", "high", "auto"]


class OpenAIChat(SdkBackend):
    """A model behind an OpenAI-compatible API; `detail` is the resolution at which it sees images."""

    sdk = "openai"
    path = "/chat/completions"

    def __init__(self, *, detail: Detail | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._detail = detail

    def _image_part(self, media_type: str, base64_text: str) -> dict[str, object]:
        shown = {"url": f"data:{media_type};base64,{base64_text}"}
        return {
            "type": "image_url",
            "image_url": shown | ({"detail": self._detail} if self._detail else {}),
        }

    def _conversation(self, turns: Sequence[tuple[Turn, list[dict[str, object]]]]) -> dict[str, object]:
        """System and assistant turns, of one text each, as plain strings, which all servers accept."""
        return {
            "messages": [
                {"role": turn.role, "content": parts if turn.role == "user" else parts[0]["text"]}
                for turn, parts in turns
            ]
        }

    def _read(self, body: object) -> Response | Failure:
        completion = msgspec.convert(body, _Completion)
        if not completion.choices:
            message = error_message(completion.error or "the response has no choices")
            if error_type(200, message) == "server":
                raise ValueError(message)
            return failure(error_type(200, message), message)
        choice, refusal = completion.choices[0], completion.choices[0].message.refusal
        text = choice.message.content
        if isinstance(text, list):
            text = "".join(part.text or "" for part in text)
        prompt, usage = token_count(completion.usage, "prompt_tokens"), completion.usage
        details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
        response = Response(
            text or "",
            choice.finish_reason,
            prompt,
            token_count(usage, "completion_tokens"),
            cached_tokens=min(prompt or 0, token_count(details, "cached_tokens") or 0),
        )
        if choice.finish_reason == "content_filter":
            message = "the service's content filter stopped the response"
            return response.as_failure("content_filter", message)
        if refusal and not text:
            return response.as_failure("refusal", refusal)
        return response

    async def _available_models(self, client: Any, status: int, body: object) -> str:
        if not is_unknown_model(status, body):
            return ""
        try:
            listed = await listed_models(client)
        except asyncio.CancelledError:
            raise
        except sdk_errors(self.sdk).APIError:
            return ""
        names = self.service.redact(", ".join(model.id for model in listed))
        return f"; it has {one_line(names)}" if listed else ""


class ListedModel(msgspec.Struct):
    """A model in a server's list."""

    id: str
    root: object = None  # on vLLM the checkpoint behind the name
    owned_by: object = None  # the server's kind: vllm, sglang


async def listed_models(client: Any) -> list[ListedModel]:
    """The models that a server lists; empty if it has no list. Raises openai.APIError."""
    import httpx2

    raw = await client.get("/models", cast_to=httpx2.Response)
    try:
        return msgspec.convert(json.loads(raw.content), _Models).data
    except (ValueError, RecursionError):  # something else than a list of models
        return []


# The parts of a response that are read; the rest is ignored.


class _Models(msgspec.Struct):
    data: list[ListedModel]


class _Part(msgspec.Struct):
    text: str | None = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: object = None
    error: object = None
