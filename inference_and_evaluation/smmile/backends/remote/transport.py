"""The HTTP client of all SDKs: responses within limits, no redirects, the environment's certificates."""

from __future__ import annotations

import json
import os
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping
from functools import cache, partial
from types import ModuleType
from typing import Any

import httpx2

from smmile.backends.remote.service import Service
from smmile.backends.remote.service_errors import LONGEST_ERROR
from smmile.errors import UsageError, one_line

# Of a response's body after decompression, in bytes.
LARGEST_RESPONSE = 64_000_000

# An idle connection is probed, as routers drop those that seem dead while a model thinks.
_KEEP_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
if hasattr(socket, "TCP_KEEPIDLE"):  # not on every platform
    _KEEP_ALIVE.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60))

_JSON = {"Accept": "application/json", "Content-Type": "application/json"}


def http_client(service: Service, timeout: float, largest: int | None = None) -> httpx2.AsyncClient:
    """The client for the SDKs of OpenAI and Anthropic. Raises UsageError as `client_settings` does."""
    return httpx2.AsyncClient(**client_settings(httpx2, service, timeout, largest))


class PlainClient:
    """OpenAI's client for compatible servers, which take a key at most, without its SDK.

    The SDK is imported for its errors and for what is not here: that takes longer than the first responses.
    """

    def __init__(self, url: str, key: str, client: httpx2.AsyncClient, headers: Mapping[str, str]) -> None:
        self._url, self._key, self._client = url.rstrip("/"), key, client
        self._client.headers.update({"Authorization": f"Bearer {key}", **headers})

    def __getattr__(self, name: str) -> Any:
        import openai

        sdk = openai.AsyncOpenAI(
            base_url=self._url, api_key=self._key, http_client=self._client, max_retries=0
        )
        return getattr(sdk, name)

    async def __aenter__(self) -> PlainClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, path: str, **_: object) -> httpx2.Response:
        """The response of `path` under the server's address. Raises openai.APIError."""
        return await self._send("GET", path)

    async def post(
        self, path: str, *, content: bytes | None = None, body: object = None, **_: object
    ) -> httpx2.Response:
        """The response to JSON: `content`, or `body` encoded. Raises openai.APIError."""
        return await self._send(
            "POST", path, content=json.dumps(body).encode() if content is None else content
        )

    async def _send(self, method: str, path: str, **what: Any) -> httpx2.Response:
        url = path if "://" in path else self._url + path
        request = self._client.build_request(method, url, headers=_JSON, **what)
        try:
            response = await self._client.send(request)
        except (httpx2.HTTPError, OSError) as error:
            import openai

            raise openai.APIConnectionError(request=request) from error
        if response.is_success:
            return response
        import openai

        try:
            found = response.json()
        except (ValueError, RecursionError):
            found = response.text
        found = found.get("error", found) if isinstance(found, dict) else found
        raise openai.APIStatusError("not successful", response=response, body=found)


def client_settings(
    library: ModuleType, service: Service, timeout: float, largest: int | None = None
) -> dict[str, Any]:
    """The arguments for an AsyncClient of `library`: httpx, which ollama uses, or its successor httpx2.

    Redirects are not followed: they would take prompts, images and headers to another host. Only connecting
    has a time limit here; `RetryPolicy` limits an attempt. The `largest` response has so many bytes (None:
    LARGEST_RESPONSE). Raises UsageError for unusable certificates.
    """
    return {
        "transport": library.AsyncHTTPTransport(
            verify=_certificates(),
            proxy=service.proxy.url if service.proxy else None,
            limits=library.Limits(),
            socket_options=_KEEP_ALIVE,
        ),
        "timeout": (min(timeout / 2, 10.0), None, None, None),
        "follow_redirects": False,
        "headers": {"Accept-Encoding": "gzip"},
        "event_hooks": {"response": [partial(_limit_body, library, largest or LARGEST_RESPONSE)]},
    }


def _certificates() -> ssl.SSLContext:
    """The trusted certificates: the system's, or those that the environment names."""
    variable = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
    path = os.environ.get(variable, "")
    try:
        if variable == "SSL_CERT_DIR" and path and not any(map(os.path.isdir, path.split(os.pathsep))):
            raise NotADirectoryError("no such folder")
        return httpx2.create_ssl_context()
    except OSError as error:  # ssl.SSLError is one
        reason = one_line(error.strerror or error)
        raise UsageError(
            f"{variable} names no readable certificates: {one_line(path)} ({reason}); correct or unset it"
        ) from None


async def _limit_body(library: ModuleType, largest: int, response: Any) -> None:
    response.stream = _body_class(library)(response, largest)
    response.headers.pop("Content-Encoding", None)  # the stream is decompressed
    response.encoding = "utf-8"  # a service may name any of Python's codecs, some of which decompress


# The libraries check and catch classes that have to be derived from their own.


@cache
def _body_class(library: ModuleType) -> type[Any]:
    return type("LimitedBody", (_LimitedBody, library.AsyncByteStream), {"library": library})


@cache
def _too_large(library: ModuleType) -> type[Exception]:
    return type("ResponseTooLargeError", (library.DecodingError,), {})


class _LimitedBody:
    """A response's body, decompressed, up to a limit: an error is cut there, any other is refused."""

    library: ModuleType

    def __init__(self, response: Any, largest: int) -> None:
        self._stream, self._largest = response.stream, largest
        self._is_error = response.status_code >= 300
        encoding = response.headers.get("Content-Encoding", "").strip().lower() or "identity"
        if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise self.library.DecodingError(
                f"the response has the encoding {encoding}, which was not requested"
            )
        self._decompressor = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = LONGEST_ERROR if self._is_error else self._largest
        async for chunk in self._stream:
            try:
                part = self._decompressor.decompress(chunk, left + 1) if self._decompressor else chunk
            except zlib.error as error:
                raise self.library.DecodingError(str(error)) from error
            if len(part) > left and not self._is_error:
                raise _too_large(self.library)(f"the response is larger than {self._largest // 10**6} MB")
            yield part[:left]
            left -= len(part)
            if left < 0:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()
