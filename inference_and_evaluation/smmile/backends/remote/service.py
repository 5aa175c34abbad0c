"""A service, its address and its credentials, as the command line and the environment name them."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from smmile.backends.remote.redaction import redact_error
from smmile.errors import UsageError, one_line

_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True)
class Proxy:
    """A proxy, the environment's variable that names it, and the parts of its URL."""

    variable: str
    url: str
    address: SplitResult

    def __str__(self) -> str:
        return f"the proxy at {without_login(self.address)} ({self.variable})"


@dataclass(frozen=True)
class Service:
    """A service and one of its models.

    `name` is used in messages, `kind` in `run.hardware`. The hints say how to fix refused credentials, an
    unknown model and a failed connection; `address_flag` gives another address. `is_local`: on this machine
    or its network. `secrets` (keys, passwords) are never shown.
    """

    name: str
    kind: str
    model: str
    credentials_hint: str
    model_hint: str
    connection_hint: str = "check the network connection"
    address_flag: str = "--base-url"
    is_local: bool = False
    proxy: Proxy | None = None
    secrets: tuple[str, ...] = ()

    @property
    def all_secrets(self) -> tuple[str, ...]:
        """`secrets` and those of the proxy."""
        return self.secrets + (login_secrets(self.proxy.address) if self.proxy else ())

    def redact(self, text: str) -> str:
        """`text` of an error or a log without this service's secrets."""
        return redact_error(text, self.all_secrets)


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
    host, ip = _host(address)
    if ip is None:
        return "." not in host or host.endswith((".localhost", ".local"))
    return ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_unspecified


def find_proxy(address: SplitResult) -> Proxy | None:
    """The proxy of the environment through which to call `address`; None for a direct connection.

    This machine is called directly, as are the hosts and networks in NO_PROXY. Raises UsageError if the
    proxy cannot be used.
    """
    proxies = getproxies()
    kind = address.scheme if proxies.get(address.scheme) else "all"
    url = proxies.get(kind)
    if not url or _is_direct(address, proxies.get("no", "")):
        return None
    names = (f"{kind}_proxy", f"{kind}_PROXY".upper())
    variable = next((name for name in names if os.environ.get(name) == url), "the system's settings")
    url = url if "://" in url else f"http://{url}"
    scheme, _, rest = url.partition("://")
    if scheme not in _PROXY_SCHEMES:
        raise UsageError(
            f"{variable} has scheme {one_line(scheme)}; use one of {', '.join(_PROXY_SCHEMES)}, or unset it"
        )
    if scheme.startswith("socks") and find_spec("socksio") is None:
        raise UsageError(
            f"{variable} names a SOCKS proxy, which needs socksio: pip install socksio, or unset {variable}"
        )
    return Proxy(variable, url, parse_address(f"http://{rest}", variable))


def _is_direct(address: SplitResult, no_proxy: str) -> bool:
    _, ip = _host(address)
    for entry in no_proxy.split(",") if ip else ():
        with suppress(ValueError):  # the name of a host
            if ip in ipaddress.ip_network(entry.strip(" []"), strict=False):
                return True
    return is_this_machine(address) or bool(proxy_bypass(address.netloc.rpartition("@")[2]))


def is_this_machine(address: SplitResult) -> bool:
    """Whether the host is a loopback address or name."""
    host, ip = _host(address)
    return ip.is_loopback or ip.is_unspecified if ip else f".{host}".endswith(".localhost")


def _host(address: SplitResult) -> tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address | None]:
    """The host of a URL, and as an IP address if it is one."""
    host = (address.hostname or "").rstrip(".")
    with suppress(ValueError, OSError):
        if re.fullmatch(r"[\d.]+", host):  # 127.1 is an address, too
            return host, ipaddress.ip_address(socket.inet_aton(host))
        ip = ipaddress.ip_address(host.partition("%")[0])
        return host, getattr(ip, "ipv4_mapped", None) or ip
    return host, None


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


def custom_headers(variable: str) -> dict[str, str]:
    """The headers that a client reads from the environment, a line each.

    Raises UsageError if a header has a character that HTTP does not allow.
    """
    headers = [line.partition(":") for line in os.environ.get(variable, "").split("\n") if ":" in line]
    for name, _, content in headers:
        if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+:[\t -~]*", f"{name.strip()}:{content.strip()}", re.A):
            raise UsageError(f"{variable} contains a character that HTTP does not allow; set it again")
    return {name.strip(): content.strip() for name, _, content in headers}


def header_secrets(variable: str) -> tuple[str, ...]:
    """The values of `custom_headers`, which may all be keys."""
    return tuple(custom_headers(variable).values())
