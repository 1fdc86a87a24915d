"""How programs written for s3torchconnector find the server."""

from __future__ import annotations

import pytest


@pytest.fixture
def found(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is the one that unchanged programs find: s3torchconnector reads no AWS_ENDPOINT_URL_S3."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
