"""What becomes of the errors of botocore, which makes the rarer calls."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from s3torch._aws.answers import Subject
from s3torch._aws.session import AwsSession, _refuse_certificate
from s3torch._aws.sigv4 import Credentials
from s3torch.config import S3ClientConfig
from s3torch.errors import CredentialsError, ObjectNotFoundError, S3Error

SUBJECT = Subject("CopyObject", "bucket", "key", "https://s3.test:443")


def failing(monkeypatch: pytest.MonkeyPatch, response: dict[str, Any]) -> S3Error:
    """Return the error of a call whose answer was this."""

    def copy_object(**_: object) -> None:
        raise ClientError(response, "CopyObject")  # type: ignore[arg-type]

    session = AwsSession(S3ClientConfig(unsigned=True), "us-east-1", None)
    monkeypatch.setattr(session, "_cold_client", lambda _region: SimpleNamespace(copy_object=copy_object))
    with pytest.raises(S3Error) as caught:
        session.call(SUBJECT, "us-east-1", "copy_object", Bucket="bucket")
    return caught.value


@pytest.mark.parametrize(("retries", "attempts"), [({}, 1), ({"RetryAttempts": 0}, 1), ({"RetryAttempts": 4}, 5)])
def test_attempts_are_counted(monkeypatch: pytest.MonkeyPatch, retries: dict[str, int], attempts: int):
    """The first attempt counts beside those that followed it."""
    metadata = {"HTTPStatusCode": 500, "HTTPHeaders": {}, **retries}
    assert failing(monkeypatch, {"Error": {}, "ResponseMetadata": metadata}).attempts == attempts


def test_what_was_answered(monkeypatch: pytest.MonkeyPatch):
    """The error is the one that the same answer to a request of ours would be."""
    error = failing(
        monkeypatch,
        {
            "Error": {"Code": "NoSuchKey", "Message": "It is not there."},
            "ResponseMetadata": {"HTTPStatusCode": 404, "HTTPHeaders": {}, "RequestId": "R1"},
        },
    )
    assert type(error) is ObjectNotFoundError
    assert (error.bucket, error.key, error.status, error.code) == ("bucket", "key", 404, "NoSuchKey")
    assert error.request_id == "R1"


def test_certificates_are_refused_at_once():
    """What is wrong with a certificate is raised where botocore asks whether to try again; nothing else is."""
    wrong = OSError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    with pytest.raises(OSError, match="CERTIFICATE") as caught:
        _refuse_certificate(caught_exception=wrong)
    assert caught.value is wrong
    _refuse_certificate(caught_exception=OSError("Connection reset by peer"))
    _refuse_certificate()


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
