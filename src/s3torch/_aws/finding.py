"""Credentials as botocore finds them: once for a process and all that it forks, and every failure as an error of ours.

What botocore calls on the way may fail in any way: files that are not there, processes that print no JSON, agents that
are overloaded. None of that may look like an object that is not there, so whatever comes out of it becomes an S3Error
here, in one place.

A forked child goes on with the credentials of its parent for as long as they last: 128 workers that all ask the agent
of their machine at the same time are refused by it. A parent that has a dataset looks for some before it forks. The
child never uses the object that refreshes them, whose connections are its parent's; it only asks it, without any of
these, how long they last. It looks for its own at a moment of its own.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from typing import Any

from s3torch._aws.quoting import hide_users
from s3torch._aws.sigv4 import Credentials
from s3torch._log import LOG
from s3torch.errors import CredentialsError, S3Error, ServerError, ThrottledError

__all__ = ["Inherited", "Overload", "cause_of", "environment", "error_of", "error_text"]

# How long before their end inherited credentials are given up, in seconds: botocore's own window for long-lived ones,
# and less for those that do not last so long. Each child takes a random moment in it, so that not all ask at once.
_MARGINS = ((600.0, 900.0), (60.0, 120.0), (10.0, 20.0))
# While an agent is overloaded it is asked once in so many seconds, however many requests wait for it. Not tuned.
_OVERLOAD_PAUSE = 1.0
# How much of a message is shown, in characters.
_SHOWN = 500

# What decides where credentials come from; a child that changes it looks for its own.
_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
_AGENT_STATUS = re.compile(r"non 200 response \(?([0-9]{3})")
_THROTTLING = re.compile(r"\b(?:SlowDown|Throttl\w*|TooManyRequests\w*|RequestLimitExceeded|PriorRequestNotComplete)\b")


class Inherited:
    """What a forked child has from its parent.

    Args:
        credentials: That the parent signs with.
        source: botocore's object that refreshes them, which is only asked how long they last.
        environment: What ``environment`` returned when they were found.
    """

    def __init__(self, credentials: Credentials, source: object, environment: tuple[str | None, ...]) -> None:
        self._credentials = credentials
        self._refresh_needed: Callable[[float], bool] | None = getattr(source, "refresh_needed", None)
        self._environment: tuple[str | None, ...] | None = environment
        self._margin: float | None = None

    def current(self) -> Credentials | None:
        """Return them; None if they end soon, or the environment names others."""
        if self._environment is not None:  # looked at once: no process looks at it again for what it has found
            if self._environment != environment():
                return None
            self._environment = None
        needed = self._refresh_needed
        if needed is None:
            return self._credentials  # they have no end
        if self._margin is None:
            margins = [random.uniform(least, most) for least, most in _MARGINS]  # nothing secret
            self._margin = next((margin for margin in margins if not needed(margin)), 0.0)
        return self._credentials if self._margin and not needed(self._margin) else None


def environment() -> tuple[str | None, ...]:
    """Return what decides where credentials come from."""
    return tuple(map(os.environ.get, _VARIABLES))


class Overload:
    """Remembers for a moment that an agent of credentials asks for fewer requests.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0
        self._sentence = ""

    def check(self) -> None:
        """Raise what the agent answered, while it is too early to ask again.

        Raises:
            ThrottledError: It was asked just now.
        """
        if self._sentence and self._clock() < self._until:
            raise ThrottledError(self._sentence)

    def note(self, error: S3Error) -> None:
        """Note what the search for credentials has ended with."""
        if isinstance(error, ThrottledError):
            if not self._sentence:
                LOG.info("%s", error.args[0])
            self._sentence = str(error.args[0])
            self._until = self._clock() + _OVERLOAD_PAUSE


def error_of(error: Exception, secrets: tuple[str | None, ...]) -> S3Error:
    """Return the error of a search for credentials that has failed.

    Args:
        error: Whatever it was.
        secrets: What no message may show.
    """
    if isinstance(error, S3Error):
        return error
    reason = error_text(error, secrets)
    failure = _failure_of(error, reason)
    return failure or CredentialsError(
        f"The credentials could not be loaded or refreshed: {reason}. Check AWS_PROFILE, the AWS configuration files "
        "and the AWS_* variables that name where they come from."
    )


def _failure_of(error: Exception, reason: str) -> S3Error | None:
    """Return what may pass if it is tried again; None if it will not."""
    told = _AGENT_STATUS.search(reason)
    response: Any = getattr(error, "response", None)  # of a ClientError of botocore's
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    status = int(told[1]) if told is not None else metadata.get("HTTPStatusCode", 0)
    if status in (429, 503) or (told is None and _THROTTLING.search(reason)):
        return ThrottledError(f"What gives out credentials asks for fewer requests: {reason}.")
    if isinstance(status, int) and status >= 500:
        return ServerError(f"What gives out credentials has failed: {reason}.")
    return None


def error_text(error: Exception, secrets: tuple[str | None, ...]) -> str:
    """Return what an error says, on one line.

    Args:
        error: Any.
        secrets: What is left out of it.
    """
    text = _discreet(str(error), secrets)
    text = " ".join("".join(each if each.isprintable() else " " for each in text).split())[:_SHOWN].rstrip(".")
    return text if _is_botocores(error) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def cause_of(error: Exception, secrets: tuple[str | None, ...]) -> Exception | None:
    """Return an error as the cause of ours; None if it, or what has led to it, shows what no traceback may show."""
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            if _discreet(str(each), secrets) != str(each):
                return None
            left += [each.__cause__, each.__context__]
    return error


def _discreet(text: str, secrets: tuple[str | None, ...]) -> str:
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "...")
    return hide_users(text) if "://" in text else text


def _is_botocores(error: Exception) -> bool:
    return type(error).__module__.startswith("botocore.")
