"""What a client asks botocore for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from s3torch._aws.session import AwsSession
from s3torch._aws.sigv4 import Credentials
from s3torch.config import S3ClientConfig
from s3torch.errors import CredentialsError


@pytest.mark.parametrize(
    ("access_key", "secret_key", "token", "is_fine"),
    [
        ("key", "secret", None, True),
        ("key", "s\ud7ffcret\ue000 with \u00fc", "token", True),
        ("key", "hidden\ud800", None, False),
        ("hidden\n", "secret", None, False),
        ("hidden\u00fc", "secret", None, False),
        ("key", "secret", "hidden\n", False),
    ],
)
def test_credentials_that_can_be_sent(access_key: str, secret_key: str, token: str | None, is_fine: bool):
    """Credentials that would tear a head, or cannot be signed with, are refused; what they are is not shown."""
    session = AwsSession(S3ClientConfig(), "us-east-1", None)
    found = SimpleNamespace(access_key=access_key, secret_key=secret_key, token=token)
    session._source = SimpleNamespace(get_frozen_credentials=lambda: found)
    if is_fine:
        assert session.credentials() == Credentials(access_key, secret_key, token)
    else:
        with pytest.raises(CredentialsError) as caught:
            session.credentials()
        assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("verify", "bundle", "expected"),
    [
        (True, "", True),
        (True, "all.pem", "all.pem"),
        (False, "all.pem", False),
        (Path("own.pem"), "all.pem", "own.pem"),
    ],
)
def test_which_authorities_botocore_trusts(
    monkeypatch: pytest.MonkeyPatch, verify: bool | Path, bundle: str, expected: bool | str
):
    """The configuration decides; without it AWS_CA_BUNDLE."""
    monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
    assert AwsSession(S3ClientConfig(verify=verify), "us-east-1", None)._verify() == expected
