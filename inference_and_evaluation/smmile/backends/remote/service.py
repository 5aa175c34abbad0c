"""A service, its address and its credentials, as the command line and the environment name them."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from smmile.backends.remote.redaction import redact_error
from smmile.errors import UsageError

_KEY_HEADER = re.compile(r"auth|key|token|secret|pass|cookie|credential", re.I)


@dataclass(frozen=True)
class Service:
    """A service and one of its models.

    `name` is used in messages, `kind` in `run.hardware`. The hints say how to fix refused credentials, an
    unknown model and a failed connection. `is_local`: on this machine or its network. `secrets` (keys,
    passwords) are never shown.
    """

    name: str
    kind: str
    model: str
    credentials_hint: str
    model_hint: str
    connection_hint: str = "check the network connection"
    is_local: bool = False
    secrets: tuple[str, ...] = ()

    def redact(self, text: str) -> str:
        """`text` of an error or a log without this service's secrets."""
        return redact_error(text, self.secrets)


def parse_address(url: str, flag: str) -> SplitResult:
    """The parts of a service's URL, which `flag` gave. Raises UsageError, without showing the URL."""
    try:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or address.query or address.fragment:
            raise ValueError
        if not (address.hostname or "").encode("idna") or address.port == 0 or re.search(r"\s", url):
            raise ValueError
    except ValueError:  # urlsplit and idna raise it too
        raise UsageError(f"{flag} is no URL such as http://127.0.0.1:8000") from None
    return address


def is_local_address(address: SplitResult) -> bool:
    """Whether the host is on the local network: a loopback or private address, or a name without dots."""
    host = (address.hostname or "").rstrip(".")
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local"))
    return ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_unspecified


def login_secrets(address: SplitResult) -> tuple[str, ...]:
    """A URL's password (or user, if it has none) in every form in which it is sent."""
    user, password = address.username or "", address.password or ""
    if not user and not password:
        return ()
    login = f"{unquote(user)}:{unquote(password)}"
    hidden = password or user
    return hidden, unquote(hidden), base64.b64encode(login.encode()).decode()


def without_login(address: SplitResult) -> str:
    """The URL without its user and password."""
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def read_key(variable: str) -> str | None:
    """The key in an environment variable; None if it is not set.

    Raises UsageError, without showing the key, if no HTTP header can hold it.
    """
    key = os.environ.get(variable)
    if key and not re.fullmatch(r"[!-~]+", key):
        raise UsageError(
            f"{variable} contains white space, a line break or a non-ASCII character; set it again"
        )
    return key or None


def header_secrets(variable: str) -> tuple[str, ...]:
    """The keys among the headers that a client reads from the environment, recognized by header name.

    Raises UsageError if a header has a character that HTTP does not allow.
    """
    value = os.environ.get(variable, "")
    if not value.isascii():
        raise UsageError(f"{variable} contains a non-ASCII character; set it again")
    headers = [line.partition(":") for line in value.split("\n")]
    return tuple(content.strip() for name, _, content in headers if _KEY_HEADER.search(name))
