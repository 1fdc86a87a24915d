"""A certificate of this host, and the authority that signed it."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["write_certificate"]


def write_certificate(home: Path) -> Path:
    """Make ``server.pem`` and ``server-key.pem``, good for two days; returns the authority's file.

    Raises:
        RuntimeError: There is no ``openssl`` command, or it failed.
    """
    _openssl(home, "authority", "-addext", "keyUsage=critical,keyCertSign")
    _openssl(
        home,
        "server",
        *("-CA", home / "authority.pem", "-CAkey", home / "authority-key.pem"),
        *("-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1"),
    )
    return home / "authority.pem"


def _openssl(home: Path, name: str, *extensions: str | Path) -> None:
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", home / f"{name}-key.pem")
    subject = ("-days", "2", "-subj", f"/CN=s3torch benchmark {name}", "-out", home / f"{name}.pem")
    try:
        subprocess.run(["openssl", "req", "-x509", *key, *subject, *extensions], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"openssl made no certificate for the TLS cases: {error}") from error
