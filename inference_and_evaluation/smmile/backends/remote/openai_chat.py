"""Chat completions: the protocol of OpenAI, Azure, and of vLLM, SGLang and `transformers serve`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from smmile.backends.interface import Failure, Response
from smmile.backends.remote.sdk_chat import SdkChat
from smmile.backends.remote.services import count_in, error_type, failure, is_unknown_model, words_of
from smmile.errors import one_line
from smmile.prompting.conversation import Turn

if TYPE_CHECKING:
    import openai

Detail = Literal["low", "high", "auto"]


class OpenAIChat(SdkChat):
    """A model behind an OpenAI-compatible API; `detail` is how closely images are looked at."""

    sdk = "openai"
    path = "/chat/completions"

    def __init__(self, *, detail: Detail | None = None, **how: Any) -> None:
        super().__init__(**how)
        self._detail = detail

    def _image_part(self, media_type: str, base64_text: str) -> dict[str, object]:
        shown = {"url": f"data:{media_type};base64,{base64_text}"}
        return {
            "type": "image_url",
            "image_url": shown | ({"detail": self._detail} if self._detail else {}),
        }

    def _conversation(self, turns: Sequence[tuple[Turn, list[dict[str, object]]]]) -> dict[str, object]:
        """System turns and answers, which are one text each, as plain strings: all servers take those."""
        return {
            "messages": [
                {"role": turn.role, "content": parts if turn.role == "user" else parts[0]["text"]}
                for turn, parts in turns
            ]
        }

    def _read(self, body: object) -> Response | Failure:
        completion = msgspec.convert(body, _Completion)
        if not completion.choices:
            words = words_of(completion.error or "the reply has no choices")
            if error_type(200, words) == "server":
                raise ValueError(words)
            return failure(error_type(200, words), words)
        choice, refusal = completion.choices[0], completion.choices[0].message.refusal
        text = choice.message.content
        if isinstance(text, list):
            text = "".join(part.text or "" for part in text)
        prompt = count_in(completion.usage, "prompt_tokens")
        reply = Response(
            text or "", choice.finish_reason, prompt, count_in(completion.usage, "completion_tokens")
        )
        if choice.finish_reason == "content_filter":
            return _paid(failure("content_filter", "the service's content filter stopped the reply"), reply)
        if refusal and not text:
            return _paid(failure("refusal", refusal), reply)
        return reply

    async def _offers(self, client: Any, status: int, body: object) -> str:
        import openai

        if not is_unknown_model(status, body):
            return ""
        try:
            listed = await listed_models(client)
        except openai.APIError:
            return ""
        names = self._service.redact(", ".join(model.id for model in listed))
        return f"; it has {one_line(names)}" if listed else ""


class ListedModel(msgspec.Struct):
    """A model in a server's list."""

    id: str
    root: object = None  # on vLLM the checkpoint behind the name


async def listed_models(client: openai.AsyncOpenAI) -> list[ListedModel]:
    """The models that a server lists; none where it keeps no list. Raises openai.APIError."""
    raw = await client.models.with_raw_response.list()
    try:
        return msgspec.convert(json.loads(raw.content), _Models).data
    except ValueError:  # it answers, but not with a list of models
        return []


def _paid(failed: Failure, reply: Response) -> Failure:
    return replace(failed, prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens)


# What is read of a reply; everything else in it may be as it likes.


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
