"""The credentials of the environment, for clients that do not look for them as the AWS tools do."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Found", "found_credentials"]


class Found(NamedTuple):
    """What signs requests; kept in memory only."""

    access_key: str
    secret_key: str
    token: str | None


def found_credentials() -> Found:
    """Return what botocore finds: environment, profiles, roles.

    Raises:
        RuntimeError: There are none.
    """
    from botocore.session import get_session

    credentials = get_session().get_credentials()
    if credentials is None:
        raise RuntimeError("no credentials were found")
    frozen = credentials.get_frozen_credentials()
    return Found(frozen.access_key or "", frozen.secret_key or "", frozen.token)
