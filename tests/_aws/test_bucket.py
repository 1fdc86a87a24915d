"""Tests of what the requests of a bucket share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from s3torch._aws.bucket import Bucket
from s3torch._aws.endpoint import Endpoint, endpoint_of_bucket_url
from s3torch._aws.session import AwsSession
from s3torch._aws.sigv4 import Credentials
from s3torch._transfer.connection import Origin
from s3torch.config import S3ClientConfig
from s3torch.errors import ClockSkewError, CredentialsError, RegionError, S3Error


class FakeSession(AwsSession):
    """A session that asks nobody.

    Attributes:
        current: Credentials to sign with.
        on_credentials: Called once they were looked at, as by another thread.
    """

    def __init__(self) -> None:
        super().__init__(S3ClientConfig(), "us-east-1", None)
        self.current = Credentials("old", "secret")
        self.on_credentials: Callable[[], object] = lambda: None

    def credentials(self) -> Credentials:
        current = self.current
        self.on_credentials()
        return current

    def proxy(self, origin: Origin) -> None:
        return None

    def forget_credentials(self) -> None:
        self.current = Credentials("new", "secret", "token")

    def endpoint(self, bucket: str, region: str) -> Endpoint:
        return endpoint_of_bucket_url(f"https://{bucket}.{region}.test/")


REGION = RegionError("wrong", region="eu-west-1")
EXPIRED = CredentialsError("expired", code="ExpiredToken")


def head_of(bucket: Bucket) -> str:
    return bucket.request_head("GET", "key", {}, {}).decode()


@pytest.mark.parametrize("error", [REGION, EXPIRED])
def test_correction_while_lines_are_made(error: RegionError | CredentialsError):
    """What one thread corrects while another signs is in all that is signed from then on, within the same second."""
    session = FakeSession()
    bucket = Bucket("b", lambda: session, "agent", clock=lambda: 1e9)

    def correct() -> None:
        session.on_credentials = lambda: None
        assert bucket.correct(error, {}, 0)

    session.on_credentials = correct
    head_of(bucket)
    head = head_of(bucket)
    if error is REGION:
        assert "host: b.eu-west-1.test\r\n" in head
        assert "/eu-west-1/s3/aws4_request" in head
    else:
        assert "Credential=new/" in head
        assert "x-amz-security-token: token\r\n" in head


@pytest.mark.parametrize("token", ["hidden\n", "\thidden", "hiddené"])
def test_token_that_cannot_be_sent(token: str):
    """A session token with a line break, as one that was read from a file, is an error that does not show it."""
    session = FakeSession()
    session.current = Credentials("key", "secret", token)
    with pytest.raises(CredentialsError, match="session token") as caught:
        head_of(Bucket("b", lambda: session, "agent"))
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "is_corrected"),
    [
        (EXPIRED, True),
        (CredentialsError("unknown", code="InvalidAccessKeyId"), True),
        (CredentialsError("wrong", code="SignatureDoesNotMatch"), False),
        (CredentialsError("no code"), False),
        (REGION, True),
        (RegionError("the same", region="us-east-1"), False),
        (RegionError("no region"), False),
        (ClockSkewError("no date"), False),
        (S3Error("broken"), False),
    ],
)
def test_what_can_be_corrected(error: S3Error, is_corrected: bool):
    """Only what makes another request counts as a correction; the others are errors at once."""
    session = FakeSession()
    bucket = Bucket("b", lambda: session, "agent", clock=lambda: 1e9)
    assert bucket.correct(error, {}, 0) is is_corrected
    assert bucket.corrections == int(is_corrected)


def test_a_region_that_the_name_tells():
    """An ARN tells the region that signs: another one is not tried, as the request would be the same."""

    class OfAnAccessPoint(FakeSession):
        def endpoint(self, bucket: str, region: str) -> Endpoint:
            return endpoint_of_bucket_url("https://point.test/", region="eu-west-3")

    session = OfAnAccessPoint()
    bucket = Bucket("arn:aws:s3:eu-west-3:1:accesspoint/p", lambda: session, "agent", clock=lambda: 1e9)
    assert "/eu-west-3/s3/aws4_request" in head_of(bucket)
    assert (bucket.place.region, bucket.place.signing_region) == ("us-east-1", "eu-west-3")
    assert not bucket.correct(REGION, {}, 0)
    assert bucket.corrections == 0
