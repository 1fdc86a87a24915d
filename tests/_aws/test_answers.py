"""Tests of what an answer stands for; the sentences themselves are pinned in tests/test_errors.py."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch._aws import answers
from s3torch._aws.answers import (
    ErrorDocument,
    Subject,
    error_from_answer,
    parse_error_document,
    parse_http_date,
)
from s3torch.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    ClockSkewError,
    CredentialsError,
    ObjectChangedError,
    ObjectNotFoundError,
    RegionError,
    RequestError,
    S3Error,
    ServerError,
    ThrottledError,
)

OBJECT = Subject("GetObject", "photos", "cat/1.jpg", "https://s3.example:443")
BUCKET = Subject("ListObjectsV2", "photos", None, "https://s3.example:443")

NO_SUCH_KEY = b"""\
<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message><Key>cat/1.jpg</Key>\
<RequestId>4442587FB7D0A2F9</RequestId><HostId>x/y+z=</HostId></Error>"""


@pytest.mark.parametrize(
    ("body", "document"),
    [
        (NO_SUCH_KEY, ErrorDocument("NoSuchKey", "The specified key does not exist.", "4442587FB7D0A2F9", "")),
        (
            b'<Error xmlns="http://s3.amazonaws.com/doc/2006-03-01/">\n<Code> SlowDown\n</Code>\n<Message/>\n</Error>',
            ErrorDocument("SlowDown"),
        ),
        (
            (
                b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>expecting 'eu-west-1'</Message>"
                b"<Region>eu-west-1</Region><RequestId>R</RequestId></Error>"
            ),
            ErrorDocument(
                "AuthorizationHeaderMalformed",
                "expecting 'eu-west-1'",
                "R",
                "eu-west-1",
            ),
        ),
        (
            b"<Error><Message>a &lt;b&gt; &amp;amp; &quot;c&quot; &#233;</Message></Error>",
            ErrorDocument(message='a <b> &amp; "c" é'),
        ),
        ("<Error><Message>é 日本</Message></Error>".encode(), ErrorDocument(message="é 日本")),
        (b"<Error><Code>A</Code><Message>\xff</Message></Error>", ErrorDocument("A", "\ufffd")),
        (b"<Error><Code>First</Code><Code>Second</Code></Error>", ErrorDocument("First")),
        (b"<Error><Code>Cut", ErrorDocument()),
        (b"<Error><Code></Code></Error>", ErrorDocument()),
        (b"<html><body><h1>502 Bad Gateway</h1></body></html>", ErrorDocument()),
        (b'{"Code": "NoSuchKey"}', ErrorDocument()),
        (b"", ErrorDocument()),
        (b"\0\xff\xfe", ErrorDocument()),
        (b"<Error><Code>A</Code><Message>" + b"x" * 2000 + b"</Message></Error>", ErrorDocument("A", "x" * 2000)),
        (b"<Error><Code>A</Code><Message>" + b"x" * 2001 + b"</Message></Error>", ErrorDocument("A")),
        (b"<Code>" * 100_000, ErrorDocument()),
    ],
)
def test_parse_error_document(body: bytes, document: ErrorDocument):
    """Of an error's body what can be found is found; anything else gives empty fields, and words to quote."""
    parsed = parse_error_document(body)
    assert replace(parsed, text="", is_page=False) == document
    assert not (parsed.text and (parsed.code or parsed.message))


@given(st.binary(max_size=200) | st.lists(st.sampled_from([b"<Code>", b"</Code>", b"&#x;", b"a"])).map(b"".join))
def test_any_body_of_an_error(body: bytes):
    """Whatever the body of an error is, it is no error of its own."""
    assert isinstance(parse_error_document(body), ErrorDocument)


@pytest.mark.parametrize(("subject", "text"), [(OBJECT, "s3://photos/cat/1.jpg"), (BUCKET, "s3://photos")])
def test_a_subject_is_a_uri(subject: Subject, text: str):
    """What a request is about is shown as an S3 URI."""
    assert str(subject) == text


def test_an_empty_key_is_a_key():
    """A request about the empty key is not taken for one about the bucket."""
    assert str(Subject("GetObject", "photos", "", "http://h:80")) == "s3://photos/"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (301, "", RegionError),
        (301, "PermanentRedirect", RegionError),
        (400, "AuthorizationHeaderMalformed", RegionError),
        (400, "IllegalLocationConstraintException", RegionError),
        (307, "TemporaryRedirect", ServerError),
        (400, "", RequestError),
        (400, "InvalidRequest", RequestError),
        (400, "RequestTimeout", ServerError),
        (400, "ExpiredToken", CredentialsError),
        (400, "InvalidToken", CredentialsError),
        (400, "TokenRefreshRequired", CredentialsError),
        (401, "", AccessDeniedError),
        (403, "", AccessDeniedError),
        (403, "AccessDenied", AccessDeniedError),
        (403, "AllAccessDisabled", AccessDeniedError),
        (403, "InvalidAccessKeyId", CredentialsError),
        (403, "SignatureDoesNotMatch", CredentialsError),
        (403, "InvalidSecurity", CredentialsError),
        (403, "RequestTimeTooSkewed", ClockSkewError),
        (403, "InvalidObjectState", RequestError),
        (404, "", ObjectNotFoundError),
        (404, "NoSuchKey", ObjectNotFoundError),
        (404, "NoSuchVersion", ObjectNotFoundError),
        (404, "NoSuchBucket", BucketNotFoundError),
        (405, "MethodNotAllowed", RequestError),
        (409, "BucketAlreadyExists", RequestError),
        (411, "MissingContentLength", RequestError),
        (412, "PreconditionFailed", ObjectChangedError),
        (412, "", ObjectChangedError),
        (416, "InvalidRange", RequestError),
        (429, "", ThrottledError),
        (429, "TooManyRequests", ThrottledError),
        (400, "RequestLimitExceeded", ThrottledError),
        (400, "Throttling", ThrottledError),
        (400, "ThrottlingException", ThrottledError),
        (500, "", ServerError),
        (500, "InternalError", ServerError),
        (502, "", ServerError),
        (503, "", ThrottledError),
        (503, "SlowDown", ThrottledError),
        (503, "ServiceUnavailable", ThrottledError),
        (504, "", ServerError),
        (599, "", ServerError),
    ],
)
def test_classes(status: int, code: str, kind: type[S3Error]):
    """Status and code decide which class an answer becomes, and so whether the request is sent again."""
    assert type(error_from_answer(OBJECT, status, {}, ErrorDocument(code))) is kind


@pytest.mark.parametrize("code", ["", "NoSuchBucket"])
def test_a_bucket_that_is_not_there(code: str):
    """A 404 to a request about a bucket means the bucket, even if no body says so."""
    assert type(error_from_answer(BUCKET, 404, {}, ErrorDocument(code))) is BucketNotFoundError


def test_the_facts_are_kept():
    """An error carries bucket, key, status, code, request id and region."""
    document = ErrorDocument("NoSuchKey", "The key does not exist.", "R1", "eu-west-1")
    assert vars(error_from_answer(OBJECT, 404, {}, document)) == {
        "bucket": "photos",
        "key": "cat/1.jpg",
        "status": 404,
        "code": "NoSuchKey",
        "request_id": "R1",
        "region": "eu-west-1",
        "attempts": None,
        "retry_after": None,
    }


def test_facts_that_are_missing_are_none():
    """What an answer does not tell is None, not empty."""
    assert vars(error_from_answer(BUCKET, 500, {}, ErrorDocument())) == {
        "bucket": "photos",
        "key": None,
        "status": 500,
        "code": None,
        "request_id": None,
        "region": None,
        "attempts": None,
        "retry_after": None,
    }


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ("3", 3.0),
        ("0", 0.0),
        ("-1", None),
        ("9" * 10, None),
        ("", None),
        ("soon", None),
        ("Wed, 21 Oct 2026 07:28:03 GMT", 3.0),
        ("Wednesday, 21-Oct-26 07:28:03 GMT", 3.0),
        ("Wed Oct 21 07:28:03 2026", 3.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", 0.0),
        ("Wed, 32 Oct 2026 07:27:00 GMT", None),
    ],
)
def test_retry_after(field: str, seconds: float | None):
    """How long the service asked to be left alone is kept: a number of seconds, or a date beside that of the answer."""
    fields = {"retry-after": field, "date": "Wed, 21 Oct 2026 07:28:00 GMT"}
    error = error_from_answer(OBJECT, 503, fields, ErrorDocument("SlowDown"))
    assert error.retry_after == seconds


def test_retry_after_without_a_date(monkeypatch: pytest.MonkeyPatch):
    """If the answer does not tell its time, a date of Retry-After is compared with this machine's."""
    monkeypatch.setattr(answers.time, "time", lambda: 1_792_567_680.0)  # 21 October 2026, 07:28
    fields = {"retry-after": "Wed, 21 Oct 2026 07:28:05 GMT"}
    assert error_from_answer(OBJECT, 503, fields, ErrorDocument("SlowDown")).retry_after == 5.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784111777.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777.0),
        ("Sun Nov  6 08:49:37 1994", 784111777.0),
        ("Sun, 06 Nov 1994 08:49:37 -0000", 784111777.0),
        ("yesterday", None),
        ("", None),
    ],
)
def test_http_date(text: str, seconds: float | None):
    """A date is read in the three forms of RFC 9110, as UTC wherever the machine is."""
    assert parse_http_date(text) == seconds


_DATES = st.from_regex(r"(Mon, )?[0-9]{1,5}[ -](Jan|Feb|X)[ -][0-9]{1,6} [0-9:]{0,9} ?(GMT|[+-][0-9]{1,7})?")


@given(st.text() | _DATES)
def test_any_date(text: str):
    """Whatever stands for a date is one or is none."""
    assert isinstance(parse_http_date(text), float | None)


def test_facts_of_the_head():
    """Region and request id are found in the head of an answer without a body, such as that to a HEAD."""
    fields = {"x-amz-bucket-region": "eu-west-1", "x-amz-request-id": "R2"}
    error = error_from_answer(OBJECT, 301, fields, ErrorDocument())
    assert (error.region, error.request_id) == ("eu-west-1", "R2")
    assert "lies in region 'eu-west-1'" in str(error)


def test_the_heads_region_goes_before_the_bodys():
    """If head and body tell different regions, the head's counts; of request ids the body's does."""
    fields = {"x-amz-bucket-region": "eu-west-1", "x-amz-request-id": "R2"}
    error = error_from_answer(OBJECT, 301, fields, ErrorDocument("PermanentRedirect", "", "R1", "eu-west-2"))
    assert (error.region, error.request_id) == ("eu-west-1", "R1")


@pytest.mark.parametrize(
    ("operation", "permission"),
    [
        ("GetObject", "s3:GetObject"),
        ("HeadObject", "s3:GetObject"),
        ("PutObject", "s3:PutObject"),
        ("DeleteObject", "s3:DeleteObject"),
        ("ListObjectsV2", "s3:ListBucket"),
        ("UploadPart", "s3:PutObject"),
        ("CreateMultipartUpload", "s3:PutObject"),
        ("CompleteMultipartUpload", "s3:PutObject"),
        ("AbortMultipartUpload", "s3:AbortMultipartUpload"),
        ("CopyObject", "s3:GetObject and s3:PutObject"),
    ],
)
def test_the_missing_permission_is_named(operation: str, permission: str):
    """A refusal names the permission of IAM that the operation needs, which may have another name."""
    error = error_from_answer(Subject(operation, "b", "k", "https://h:443"), 403, {}, ErrorDocument("AccessDenied"))
    assert f"Allow {permission} to these credentials" in str(error)


@given(
    subject=st.sampled_from([OBJECT, BUCKET]),
    status=st.integers(300, 599),
    fields=st.dictionaries(
        st.sampled_from(["x-amz-bucket-region", "x-amz-request-id", "date", "retry-after"]), st.text()
    ),
    document=st.builds(ErrorDocument, st.text(), st.text(), st.text(), st.text()),
)
def test_any_answer_is_an_error(subject: Subject, status: int, fields: dict[str, str], document: ErrorDocument):
    """Whatever is answered becomes an S3Error that names the subject, carries the status and pickles."""
    error = error_from_answer(subject, status, fields, document)
    assert str(subject) in str(error)
    assert error.status == status
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


def test_an_upload_that_is_gone():
    """An upload that does not exist any more is no missing object, and trying again does not help."""
    error = error_from_answer(OBJECT, 404, {}, ErrorDocument(code="NoSuchUpload"))
    assert type(error) is RequestError
    assert "does not exist any more: it was aborted" in str(error)
