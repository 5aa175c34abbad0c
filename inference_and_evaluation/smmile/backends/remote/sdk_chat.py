"""What the clients of OpenAI and Anthropic, made by one generator, have in common."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

import msgspec

from smmile.backends.interface import Failure, ImageChange, Request, Response
from smmile.backends.remote.base import RemoteBackend
from smmile.backends.remote.concurrent import Session, UnreachableError
from smmile.backends.remote.sent_images import ImageFitter, ImageRules, SentImage, TooLargeError
from smmile.backends.remote.services import (
    GarbledError,
    asking_again,
    cause_of,
    failure,
    is_connect_error,
    is_garbled,
    retry_after,
    without_refused,
)
from smmile.data.images import UnreadableImageError
from smmile.prompting.conversation import Conversation, TextPart, Turn


def bytes_beside_images(conversation: Conversation) -> int:
    """How long a request's body is at most without the base64 texts of its images."""
    texts = len(msgspec.json.encode(conversation.texts))
    parts = sum(len(turn.content) for turn in conversation.turns)
    return texts + 200 * parts + 100 * len(conversation.turns) + 2_000


class SdkChat(RemoteBackend):
    """A model behind an API whose client was made by that generator.

    The client's `timeout` and `max_retries` decide about waiting and asking again. Fields that the model
    turns out not to take are left out. `rules` is what the service takes in the way of images.
    """

    # The client's module, and where a conversation is posted.
    sdk: ClassVar[str]
    path: ClassVar[str]

    def __init__(self, *, rules: ImageRules, **how: Any) -> None:
        super().__init__(**how)
        self._fitter = ImageFitter(rules)

    @abstractmethod
    def _image_part(self, media_type: str, base64_text: str) -> dict[str, object]:
        """An image as the protocol has it."""

    @abstractmethod
    def _conversation(self, turns: Sequence[tuple[Turn, list[dict[str, object]]]]) -> dict[str, object]:
        """The fields of a request that hold the conversation, from its turns and their parts."""

    @abstractmethod
    def _read(self, body: object) -> Response | Failure:
        """The outcome that a successful response's body, plain data, tells of. Raises ValueError."""

    async def _offers(self, _client: Any, _status: int, _body: object) -> str:
        """Which models there are, where an error is that there is none of this name."""
        return ""

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        with self._retries.listening_to(self.sdk):
            async with super()._session() as session:
                yield session

    async def _ask(self, client: Any, request: Request) -> Response | Failure:
        started = time.perf_counter()
        changes: tuple[ImageChange, ...] = ()
        outcome: Response | Failure | None = None
        while outcome is None:
            fields = self._fields
            try:
                # In a thread: images that have to be encoded anew must not hold up other calls.
                body, changes = await asyncio.to_thread(self._body, request.conversation, fields)
            except UnreadableImageError as error:
                return failure("image", str(error))
            except TooLargeError as error:
                return failure("request", str(error))
            started = time.perf_counter()
            try:
                outcome = await asking_again(client.max_retries, self._retries, is_garbled)(
                    self._post, client, body, fields
                )
            except GarbledError as error:
                outcome = failure("server", str(error))
        seconds = round(time.perf_counter() - started, 3)
        return replace(outcome, seconds=seconds, images_changed=changes)

    async def _post(
        self, client: Any, body: bytes, fields: Mapping[str, object]
    ) -> Response | Failure | None:
        """The outcome of one request; None where it is to be put together again with fewer fields."""
        import httpx2

        sdk = importlib.import_module(self.sdk)
        try:
            response = await client.post(self.path, cast_to=httpx2.Response, content=body)
            return self._checked(response.content)
        except sdk.APIStatusError as error:
            status, said = error.status_code, error.body
            fewer = without_refused(fields, status, said)
            if fewer is None:
                offers = await self._offers(client, status, said)
                wait = retry_after(error.response.headers)
                return self._service.failure(status, said, offers=offers, retry_after=wait)
            self._fields = fewer
            return None
        except sdk.APITimeoutError as error:
            return failure("timeout", f"no reply in the time that --timeout gives {cause_of(error)}")
        except sdk.APIError as error:
            if is_connect_error(error):
                message = f"{self._service.name} cannot be reached {cause_of(error)}"
                raise UnreachableError(message) from error
            return failure("server", f"{error.message} {cause_of(error)}")

    def _checked(self, content: bytes) -> Response | Failure:
        try:
            body = json.loads(content)
            outcome = self._read(body)
            self._note_answering(body.get("model") if isinstance(body, dict) else None)
            return outcome
        except (ValueError, RecursionError) as error:
            shown = self._service.redact(content.decode(errors="replace"))[:200]
            raise GarbledError(f"the reply is not as it should be ({error}): {shown}") from error

    def _body(
        self, conversation: Conversation, fields: Mapping[str, object]
    ) -> tuple[bytes, tuple[ImageChange, ...]]:
        sent = self._fitter.fit(conversation.images, bytes_beside_images(conversation))
        waiting = iter(sent)
        turns = [(turn, self._parts(turn, waiting)) for turn in conversation.turns]
        body = {"model": self._service.model, **fields, **self._conversation(turns)}
        return msgspec.json.encode(body), tuple(image.change for image in sent if image.change)

    def _parts(self, turn: Turn, waiting: Iterator[SentImage]) -> list[dict[str, object]]:
        parts: list[dict[str, object]] = []
        for part in turn.content:
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
            else:
                image = next(waiting)
                parts.append(
                    self._image_part(image.media_type, base64.b64encode(image.content).decode("ascii"))
                )
        return parts
