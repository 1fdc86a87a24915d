"""The contexts of TLS connections: one for all clients of a process that trust the same authorities.

To read the authorities of a system takes some ten milliseconds. A context that is in use never changes; it belongs to
one process, since locks inside OpenSSL do not survive a fork.
"""

from __future__ import annotations

import os
import ssl
from collections import OrderedDict
from pathlib import Path

from s3torch._aws.configuration import bundled_authorities
from s3torch._forks import NO_FORK
from s3torch.errors import ConfigError

__all__ = ["named_authorities", "tls_context"]

# Files of authorities that are in use in turn. Not tuned.
_MOST_CONTEXTS = 8

# The PEM files of a certificate and of its key; None for the key means that the first holds both.
ClientCert = tuple[str, "str | None"] | None

_contexts: OrderedDict[tuple[object, ...], ssl.SSLContext] = OrderedDict()


def tls_context(verify: bool | str, client_cert: ClientCert = None) -> ssl.SSLContext:  # noqa: FBT001  # it is a bool or the name of a file
    """Return the context of connections: TLS 1.2 or newer, and verifying.

    Args:
        verify: Whether to verify, by the authorities of the system; or the PEM file of the authorities.
        client_cert: The PEM files of the client's own certificate and of its key, which the first may hold, too.

    Raises:
        ConfigError: The file of authorities, or of the certificate, cannot be read.
    """
    with NO_FORK:
        own = [path for path in client_cert or () if path is not None]
        key = (os.getpid(), verify, client_cert, *map(_mark_of, _files(verify) + own))
        context = _contexts.pop(key, None) or _new_context(verify, client_cert)
        _contexts[key] = context
        if len(_contexts) > _MOST_CONTEXTS:
            _contexts.popitem(last=False)
        return context


def named_authorities() -> str | None:
    """Return the file of authorities that SSL_CERT_FILE names for all that uses OpenSSL; None if it names none."""
    path = os.environ.get(ssl.get_default_verify_paths().openssl_cafile_env, "")
    return path if Path(path).is_file() else None


def _new_context(verify: bool | str, client_cert: ClientCert) -> ssl.SSLContext:  # noqa: FBT001  # as above
    try:
        context = ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"The certificate authorities in {verify!r} cannot be read: {error}. "
            "Check S3ClientConfig(verify=...) and AWS_CA_BUNDLE."
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Set by Python 3.13: it refuses authorities of companies that lack an extension of RFC 5280. botocore takes them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif verify is True and not context.cert_store_stats()["x509_ca"]:
        context.load_verify_locations(bundled_authorities())
    if client_cert is not None:
        _load_client_cert(context, *client_cert)
    return context


def _load_client_cert(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    asked: list[str] = []

    def password() -> str:  # without it OpenSSL would ask at the terminal
        asked.append("")
        return ""

    try:
        context.load_cert_chain(certificate, key, password)
    except (OSError, ssl.SSLError) as error:
        where = repr(certificate) if key is None else f"{certificate!r} and {key!r}"
        reason = "the key is encrypted, and there is nobody to ask for its password" if asked else str(error)
        raise ConfigError(
            f"The client's certificate in {where} cannot be used: {reason}. Check S3ClientConfig(client_cert=...)."
        ) from error


def _files(verify: bool | str) -> list[str]:  # noqa: FBT001  # as above
    """Return where the authorities are read from."""
    if isinstance(verify, str):
        return [verify]
    places = ssl.get_default_verify_paths()
    names = (places.openssl_cafile_env, places.openssl_capath_env)
    named = [os.environ.get(name, "") for name in names]
    return [*named, places.openssl_cafile, places.openssl_capath] if verify else []


def _mark_of(path: str) -> tuple[object, ...]:
    """Return what changes when a file or folder is changed or replaced."""
    try:
        state = Path(path).stat()
    except (OSError, ValueError):
        return (path,)
    return path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
