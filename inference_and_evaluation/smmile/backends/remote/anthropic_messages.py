"""Messages: the protocol of Anthropic's Claude."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from smmile.backends.interface import Failure, Response
from smmile.backends.remote.backend import SdkBackend
from smmile.backends.remote.sent_images import ImageRules
from smmile.backends.remote.service import (
    Service,
    find_proxy,
    header_secrets,
    is_local_address,
    login_secrets,
    parse_address,
    read_key,
)
from smmile.backends.remote.service_errors import error_message, failure, token_count
from smmile.errors import UsageError
from smmile.prompting.conversation import Turn

if TYPE_CHECKING:
    import anthropic

    from smmile.backends.remote.client import ClientOptions

# "32 MB" is read as 32,000,000 bytes, the smaller of the two readings.
IMAGE_RULES = ImageRules(
    source="Anthropic, Vision and Errors: request size limits (2025); the published runs' errors",
    max_image_bytes=5_242_880,
    max_side=8_000,
    many=20,
    max_side_of_many=2_000,
    max_request_bytes=32_000_000,
)

# All tokens of a prompt, from a cache or not.
_PROMPT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")

# How a response ended, in the words of result files.
_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}


def image_tokens(size: tuple[int, int]) -> int:
    """The tokens of an image of `size` pixels.

    A token for 750 pixels after it is scaled down to fit 1,568 x 1,568, at most some 1,600
    (Anthropic, "Vision", 2025).
    """
    scale = min(1.0, 1568 / max(size))
    return min(1600, math.ceil(size[0] * scale * size[1] * scale / 750))


class AnthropicMessages(SdkBackend):
    """A Claude model."""

    sdk = "anthropic"
    path = "/v1/messages"

    def _image_part(self, media_type: str, base64_text: str) -> dict[str, object]:
        source = {"type": "base64", "media_type": media_type, "data": base64_text}
        return {"type": "image", "source": source}

    def _conversation(self, turns: Sequence[tuple[Turn, list[dict[str, object]]]]) -> dict[str, object]:
        system = [part for turn, parts in turns if turn.role == "system" for part in parts]
        messages = [{"role": turn.role, "content": parts} for turn, parts in turns if turn.role != "system"]
        return ({"system": system} if system else {}) | {"messages": messages}

    def _read(self, body: object) -> Response | Failure:
        message = msgspec.convert(body, _Message)
        if message.content is None:
            raise ValueError(error_message(message.error or "the response has no content"))
        text = "".join(block.text or "" for block in message.content if block.type == "text")
        stopped = message.stop_reason
        prompt, completion = (
            token_count(message.usage, *_PROMPT),
            token_count(message.usage, "output_tokens"),
        )
        if stopped == "refusal":
            refused = failure("refusal", text or "the model refused to answer")
            return replace(refused, prompt_tokens=prompt, completion_tokens=completion)
        reason = None if stopped is None else _FINISH_REASONS.get(stopped, stopped)
        return Response(text, reason, prompt, completion)


def connect(
    model: str, options: ClientOptions, model_flag: str
) -> tuple[Service, Callable[[], anthropic.AsyncAnthropic]]:
    """Anthropic, and a function that makes a client for it. Raises UsageError if the key is missing."""
    import anthropic

    keys = [key for key in map(read_key, ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")) if key]
    if not keys:
        raise UsageError("Anthropic needs ANTHROPIC_API_KEY in the environment; set it")
    flag = "--base-url" if options.base_url else "ANTHROPIC_BASE_URL"
    url = options.base_url or os.environ.get("ANTHROPIC_BASE_URL")
    address = parse_address(url or "https://api.anthropic.com", flag)
    service = Service(
        name="Anthropic",
        kind="Anthropic",
        model=model,
        credentials_hint="check ANTHROPIC_API_KEY",
        model_hint=f"choose another with {model_flag}; Anthropic retires old ones",
        connection_hint=f"check {flag}" if url else "check the network connection",
        address_flag=flag if url else "--base-url",
        is_local=is_local_address(address),
        proxy=find_proxy(address),
        secrets=(*keys, *login_secrets(address), *header_secrets("ANTHROPIC_CUSTOM_HEADERS")),
    )

    def make_client() -> anthropic.AsyncAnthropic:
        from smmile.backends.remote.transport import http_client

        client = http_client(service, options.timeout)
        return anthropic.AsyncAnthropic(base_url=url, http_client=client, max_retries=0)

    return service, make_client


# The parts of a response that are read; the rest is ignored.


class _Block(msgspec.Struct):
    type: str
    text: str | None = None


class _Message(msgspec.Struct):
    content: list[_Block] | None = None
    stop_reason: str | None = None
    usage: object = None
    error: object = None
