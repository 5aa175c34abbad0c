"""The HTTP client of all SDKs: responses within limits, no redirects, the environment's certificates."""

from __future__ import annotations

import os
import socket
import ssl
import zlib
from collections.abc import AsyncIterator
from functools import partial
from types import ModuleType
from typing import Any

import httpx
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


class ResponseTooLargeError(httpx.DecodingError):  # every SDK knows httpx's errors
    """A response that is refused for its size."""


def http_client(service: Service, timeout: float, largest: int | None = None) -> httpx2.AsyncClient:
    """The client for the SDKs of OpenAI and Anthropic. Raises UsageError as `client_settings` does."""
    return httpx2.AsyncClient(**client_settings(httpx2, service, timeout, largest))


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
        "event_hooks": {"response": [partial(_limit_body, largest or LARGEST_RESPONSE)]},
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


async def _limit_body(largest: int, response: Any) -> None:
    response.stream = _LimitedBody(response, largest)
    response.headers.pop("Content-Encoding", None)  # the stream is decompressed
    response.encoding = "utf-8"  # a service may name any of Python's codecs, some of which decompress


class _LimitedBody(httpx.AsyncByteStream, httpx2.AsyncByteStream):
    """A response's body, decompressed, up to a limit: an error is cut there, any other is refused."""

    def __init__(self, response: Any, largest: int) -> None:
        self._stream, self._largest = response.stream, largest
        self._is_error = response.status_code >= 300
        encoding = response.headers.get("Content-Encoding", "").strip().lower() or "identity"
        if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise httpx.DecodingError(f"the response has the encoding {encoding}, which was not requested")
        self._decompressor = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = LONGEST_ERROR if self._is_error else self._largest
        async for chunk in self._stream:
            try:
                part = self._decompressor.decompress(chunk, left + 1) if self._decompressor else chunk
            except zlib.error as error:
                raise httpx.DecodingError(str(error)) from error
            if len(part) > left and not self._is_error:
                raise ResponseTooLargeError(f"the response is larger than {self._largest // 10**6} MB")
            yield part[:left]
            left -= len(part)
            if left < 0:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()
