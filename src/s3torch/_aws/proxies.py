"""Which proxy leads to a server: as botocore reads it from the configuration and the environment.

``HTTP_PROXY`` and ``HTTPS_PROXY`` name the proxy by the scheme of the endpoint, in capitals or not (small letters come
first), and ``NO_PROXY`` the hosts that are reached directly: suffixes, with a port or without, ``*`` for all. Where the
environment names none, the system's settings count on macOS and Windows. Beyond botocore, an entry of ``NO_PROXY`` may
be a network (``10.0.0.0/8``), in which an endpoint that is an IP address may lie.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, getproxies_environment, proxy_bypass

from s3torch._transfer.proxy import Proxy
from s3torch.errors import ConfigError

if TYPE_CHECKING:
    from s3torch._transfer.addresses import Origin

__all__ = ["has_unusable_proxy", "parse_proxy", "proxy_of"]

_DEFAULT_PORT = 80  # botocore's, of a proxy without one
# Of proxies that others reach. No other scheme is shown: it may be the user of a URL without one.
_OTHER_SCHEMES = ("https", "socks", "socks4", "socks4a", "socks5", "socks5h")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")


def proxy_of(origin: Origin, given: Mapping[str, str] | None) -> Proxy | None:
    """Return the proxy that leads to an origin; None if it is reached directly.

    Args:
        origin: Where to.
        given: URLs of proxies by the scheme of the endpoint; None reads the environment.

    Raises:
        ConfigError: The proxy's URL cannot be used.
    """
    if given is not None:
        url = given.get(origin.scheme)
        return parse_proxy(url, f"S3ClientConfig(proxies={{{origin.scheme!r}: ...}})") if url else None
    url = getproxies().get(origin.scheme)
    if not url or _is_bypassed(origin):
        return None
    return parse_proxy(url, f"{origin.scheme.upper()}_PROXY")


def _is_bypassed(origin: Origin) -> bool:
    """Whether NO_PROXY names an origin, or a network that it lies in."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    try:
        if proxy_bypass(f"{host}:{origin.port}"):
            return True
    except OSError:  # on Windows it looks the name up
        pass
    try:
        address = ipaddress.ip_address(origin.host)
    except ValueError:
        return False
    entries = [entry.strip() for entry in getproxies_environment().get("no", "").split(",")]
    return any(_holds(entry, address) for entry in entries)


def _holds(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False


def parse_proxy(url: str, source: str) -> Proxy:
    """Return the proxy of a URL; one without a scheme is an ``http`` one, as for botocore.

    Args:
        url: Such as ``http://user:password@proxy.example.com:3128``. Errors show nothing of it but a known scheme:
            where it is malformed, nobody knows which part is the password.
        source: Where it stands, for errors.

    Raises:
        ConfigError: It cannot be used.
    """
    whole = url if "://" in url else f"http://{url.removeprefix('//')}"
    scheme, _, rest = whole.partition("://")
    if scheme.lower() in _OTHER_SCHEMES:
        raise ConfigError(
            f"The proxy of {source} cannot be used: s3torch reaches proxies over plain HTTP, not {scheme.lower()!r}. "
            "TLS to the server goes through it unread. Write 'http://host:port', or name the host in NO_PROXY."
        )
    proxy = _proxy_of_url(whole) if scheme.lower() == "http" and not {"?", "#"} & set(rest) else None
    if proxy is None:
        raise ConfigError(
            f"The proxy of {source} cannot be used: write it like 'http://proxy.example.com:3128'. Special characters "
            "of user and password must be percent-encoded, such as '%23' for '#'."
        )
    return proxy


def has_unusable_proxy(given: Mapping[str, str] | None) -> bool:
    """Whether one of the proxies that may be used is not to be used, so that messages of others may show any of it.

    Args:
        given: As for ``proxy_of``.
    """
    urls = getproxies() if given is None else given
    for scheme in ("http", "https"):
        try:
            if urls.get(scheme):
                parse_proxy(urls[scheme], "")
        except ConfigError:
            return True
    return False


def _proxy_of_url(url: str) -> Proxy | None:
    """Return the proxy of a URL with a scheme; None if it cannot be used."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if not _is_host(host) or port == 0 or parts.path not in ("", "/"):  # it may be a password with a slash in it
            return None
        authorization = None
        if parts.username is not None and parts.password is not None:
            authorization = Proxy.basic(unquote(parts.username), unquote(parts.password))
    except ValueError:  # of which UnicodeEncodeError is one
        return None
    return Proxy(host, port or _DEFAULT_PORT, authorization)


def _is_host(host: str) -> bool:
    """Whether something is a host name or an IP address, and no part of a user or password."""
    if ":" not in host:
        return _NAME.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
