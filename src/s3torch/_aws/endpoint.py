"""Where a bucket answers, and how requests there are signed: origin, Host field, path prefix, scheme."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from s3torch._aws.quoting import hide_users
from s3torch._transfer.connection import Origin
from s3torch.errors import ConfigError

__all__ = ["Endpoint", "Scheme", "check_endpoint_url", "endpoint_of_bucket_url"]

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Domains of Amazon's services (https://docs.aws.amazon.com/general/latest/gr/rande.html), VPC endpoints included.
_AMAZONS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu")


# What directory buckets (S3 Express One Zone) sign for.
_EXPRESS = "s3express"


class Scheme(Enum):
    """How a request is signed; the values are botocore's names.

    Source: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html.
    """

    SIGV4 = "v4"
    SIGV4A = "v4a"  # for several regions, by an elliptic curve: multi-region access points
    SESSION = "v4-s3express"  # SigV4 with the keys of a session: directory buckets


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of one bucket.

    Attributes:
        origin: Where to connect to.
        host: The Host field.
        base_path: What stands before ``/key``: ``/bucket`` in path style, empty in virtual-hosted style.
        scheme: How requests are signed.
        service: That they are signed for: ``s3``, ``s3express``, ``s3-outposts`` or ``s3-object-lambda``.
        region: That they are signed for, if the bucket's name tells it (an ARN does); empty: the region in use.
    """

    origin: Origin
    host: str
    base_path: str
    scheme: Scheme = Scheme.SIGV4
    service: str = "s3"
    region: str = ""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory bucket: its listings are not sorted, its prefixes are folders."""
        return self.service == _EXPRESS

    @property
    def is_amazons(self) -> bool:
        """Whether Amazon S3 answers there, and no other server that speaks its protocol."""
        return self.origin.host.endswith(_AMAZONS_DOMAINS)


def check_endpoint_url(url: str) -> str:
    """Return the URL of an endpoint if it can be used.

    Raises:
        ConfigError: It has no http or https scheme, no host, a bad port, a query, a password, or what is no
            printable ASCII.
    """
    shown = hide_users(url)
    try:
        parts = urlsplit(url)
        port = parts.port
        if "[" in parts.netloc:
            ipaddress.IPv6Address(
                (parts.hostname or "").partition("%")[0]
            )  # Python 3.10 does not look into the brackets
    except ValueError as error:
        if shown != url:  # the error may show a part of a password
            raise ConfigError(f"The endpoint {shown!r} is not a URL.") from None
        raise ConfigError(f"The endpoint {url!r} is not a URL: {error}.") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"The endpoint {shown!r} cannot be used: its URL holds a user name or a password. S3 signs "
            "with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise ConfigError(f"The endpoint {shown!r} cannot be used: only printable ASCII without spaces can be sent.")
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise ConfigError(f"The endpoint {shown!r} cannot be used: write it like 'https://s3.example.com:9000'.")
    return url


def endpoint_of_bucket_url(url: str, scheme: Scheme = Scheme.SIGV4, service: str = "s3", region: str = "") -> Endpoint:
    """Return the endpoint of a bucket from the URL of its empty key, such as ``https://bucket.host/``.

    The other arguments are the attributes of an ``Endpoint``.

    Raises:
        ConfigError: The bucket stands in front of an IPv6 address, which would be taken for the host.
    """
    if re.match(r"[a-z]+://[^/\[]+\[", url):
        raise ConfigError(
            f"The bucket cannot be addressed by {url!r}, with its name in front of an IPv6 address: use "
            "S3ClientConfig(force_path_style=True)."
        )
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    authority = f"[{host}]" if ":" in host else host
    if port != _DEFAULT_PORTS[parts.scheme]:
        authority = f"{authority}:{port}"
    return Endpoint(Origin(parts.scheme, host, port), authority, parts.path.rstrip("/"), scheme, service, region)
