"""Tests of the errors: the tree is as documented, every sentence is pinned, and errors travel between processes."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import re
import sys
from dataclasses import replace

import pytest
from torch._utils import ExceptionWrapper

from s3torch import errors
from s3torch._aws.answers import ErrorDocument, Subject, error_from_answer
from s3torch.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    ClockSkewError,
    CredentialsError,
    IntegrityError,
    NotFoundError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    ProtocolError,
    RegionError,
    RequestError,
    S3Error,
    ServerError,
    ThrottledError,
    TransientError,
)

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, S3Error)]
FIELDS = {
    "bucket": "b",
    "key": "k/ü",
    "status": 418,
    "code": "Teapot",
    "request_id": "R1",
    "region": "eu-west-1",
    "attempts": 3,
    "retry_after": 2.0,
}

each_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def _documented_tree() -> dict[str, tuple[str, ...]]:
    """Return the names of each class's bases, as the docstring of errors.py draws them."""
    drawing = (errors.__doc__ or "").partition("::\n")[2].partition("\n\nAn error is")[0]
    tree: dict[str, tuple[str, ...]] = {}
    path: list[str] = []
    for line in filter(str.strip, drawing.splitlines()):
        match = re.fullmatch(r"    ((?:│   |    )*(?:[├└]── )?)(\w+)(?: \((\w+)\))?(?: {2,}\S.*)?", line)
        assert match is not None, f"the tree has the odd line {line!r}"
        branch, name, builtin = match.groups()
        del path[len(branch) // 4 :]
        tree[name] = tuple(filter(None, (path[-1] if path else "Exception", builtin)))
        path.append(name)
    return tree


def test_the_tree_in_the_docstring_is_the_tree():
    """The docstring of errors.py names exactly the classes that exist, each with its bases."""
    actual = {kind.__name__: tuple(base.__name__ for base in kind.__bases__) for kind in CLASSES}
    assert _documented_tree() == actual


def test_all_lists_every_class():
    """``errors.__all__`` is every class of the tree and nothing else."""
    assert errors.__all__ == sorted(kind.__name__ for kind in CLASSES)


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ArgumentError", ValueError),
        ("ArgumentTypeError", TypeError),
        ("ArgumentTypeError", ValueError),
        ("ConfigError", ValueError),
        ("InvalidURIError", ValueError),
        ("ClosedError", ValueError),
        ("NotFoundError", FileNotFoundError),
        ("ObjectNotFoundError", FileNotFoundError),
        ("BucketNotFoundError", FileNotFoundError),
        ("AccessDeniedError", PermissionError),
        ("ConnectionFailedError", ConnectionError),
        ("DeadlineError", TimeoutError),
    ],
)
def test_builtin_bases(name: str, builtin: type[Exception]):
    """Where a builtin means the same, ``except`` of the builtin catches our error."""
    assert issubclass(getattr(errors, name), builtin)


@each_class
def test_no_class_hides_a_builtin(kind: type[S3Error]):
    """No class has the name of a builtin, which a star import would replace."""
    assert not hasattr(builtins, kind.__name__)


@each_class
def test_fields(kind: type[S3Error]):
    """Every class takes every field by keyword, and has None for those it was not given."""
    full = kind("It broke.", **FIELDS)
    assert {name: getattr(full, name) for name in FIELDS} == FIELDS
    assert full.args == ("It broke.",)
    bare = kind("It broke.")
    assert all(getattr(bare, name) is None for name in FIELDS)


@each_class
@pytest.mark.parametrize(
    "given", [(), ("It broke.",), ("It broke.", 1), (2, "It broke.", "b"), ("a", "b", "c", "d", "e")]
)
def test_fields_are_not_positional(kind: type[S3Error], given: tuple[object, ...]):
    """What is given by position is no field but in ``args``, as of any exception, and is said and pickled like that."""
    error = kind(*given)
    assert error.args == given
    assert set(vars(error).values()) == {None}
    assert str(error) == str(Exception(*given))
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.args, vars(back)) == (kind, given, vars(error))


class DerivedError(S3Error):
    """An error of a program's own, without a constructor."""


class MissingError(ObjectNotFoundError):
    """The same, of a class that is an OSError, too."""


@pytest.mark.parametrize("kind", [DerivedError, MissingError])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_of_programs(kind: type[S3Error], protocol: int):
    """A class that derives from ours takes arguments and fields as ours do, and pickles with what was added to it."""
    error = kind("It broke.", 1, bucket="b", status=404)
    error.added = "later"  # type: ignore[attr-defined]
    back = pickle.loads(pickle.dumps(error, protocol))
    assert (type(back), back.args, vars(back)) == (kind, ("It broke.", 1), vars(error))
    assert str(back) == "('It broke.', 1) (status 404)"


@each_class
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_the_fields(kind: type[S3Error], protocol: int):
    """A pickled error comes back as its class, with sentence and fields."""
    error = kind("It broke.", **FIELDS)
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is kind
    assert back.args == ("It broke.",)
    assert vars(back) == vars(error) == FIELDS
    assert str(back) == str(error)


@each_class
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copy_keeps_the_fields(kind: type[S3Error], duplicate):
    """A copied error is of its class, with sentence and fields."""
    back = duplicate(kind("It broke.", **FIELDS))
    assert type(back) is kind
    assert back.args == ("It broke.",)
    assert vars(back) == FIELDS


@each_class
def test_torch_can_rebuild_it(kind: type[S3Error]):
    """An error that torch carries out of a DataLoader worker comes out as its class, with the sentence in its text."""
    try:
        raise kind("It broke.", **FIELDS)
    except S3Error:
        carried = pickle.loads(pickle.dumps(ExceptionWrapper(sys.exc_info(), where="in worker 0")))
    with pytest.raises(S3Error) as caught:
        carried.reraise()
    assert type(caught.value) is kind
    assert f"{kind.__name__}: It broke. (status 418, " in str(caught.value)
    assert "in worker 0" in str(caught.value)


@each_class
def test_a_message_alone_makes_an_error(kind: type[S3Error]):
    """``type(error)(message)``, as torch calls it, gives an error whose text is the message."""
    assert str(kind("a\nb")) == "a\nb"


@each_class
def test_no_attribute_message(kind: type[S3Error]):
    """No class has an attribute ``message``: torch would pass the text by that keyword."""
    assert not hasattr(kind, "message")
    assert not hasattr(kind("It broke.", **FIELDS), "message")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "It broke."),
        ({"bucket": "b", "key": "k", "region": "r"}, "It broke."),
        ({"status": 404}, "It broke. (status 404)"),
        ({"attempts": 10}, "It broke. (attempts 10)"),
        ({"code": "SlowDown", "status": 503}, "It broke. (status 503, code SlowDown)"),
        (FIELDS, "It broke. (status 418, code Teapot, request id R1, attempts 3)"),
        ({"status": 0, "attempts": 0, "code": ""}, "It broke. (status 0, code , attempts 0)"),
    ],
)
def test_str_adds_the_facts(fields: dict, text: str):
    """``str`` is the sentence and, in brackets, those facts that are known; every class says it alike."""
    assert {str(kind("It broke.", **fields)) for kind in CLASSES} == {text}


def test_repr_shows_the_sentence():
    """``repr`` names the class and the sentence."""
    assert repr(NotFoundError("It broke.", key="k")) == "NotFoundError('It broke.')"


def test_an_operating_systems_fields_are_empty():
    """A FileNotFoundError of ours has no errno and no file name: nothing of the kind happened here."""
    error = ObjectNotFoundError("It broke.", key="k")
    assert (error.errno, error.strerror, error.filename) == (None, None, None)


def test_the_sentence_can_be_replaced():
    """An error whose sentence is replaced says the new one."""
    error = ObjectNotFoundError("It broke.", status=404)
    error.args = ("GetObject failed: It broke.",)
    assert str(error) == "GetObject failed: It broke. (status 404)"


_OBJECT = Subject("GetObject", "photos", "cat/1.jpg", "https://photos.s3.example:443")
_UPLOAD = Subject("UploadPart", "photos", "cat/1.jpg", "https://photos.s3.example:443")
_BUCKET = Subject("ListObjectsV2", "photos", None, "https://photos.s3.example:443")

# Subject, status, fields, code, message of the document; class and sentence.
ANSWERS = [
    *(
        (
            (_UPLOAD, 400, {}, code, "did not match"),
            IntegrityError,
            (
                "What UploadPart on s3://photos/cat/1.jpg brought to https://photos.s3.example:443 has another "
                "checksum than was sent. It was not stored."
            ),
        )
        for code in ("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch")
    ),
    *(
        (
            (replace(_UPLOAD, operation=operation), 412, {}, "PreconditionFailed", "It is there."),
            ObjectExistsError,
            "s3://photos/cat/1.jpg is there already, and was not to be replaced.",
        )
        for operation in ("PutObject", "CompleteMultipartUpload")
    ),
    (
        (_OBJECT, 404, {}, "NoSuchKey", "The specified key does not exist."),
        ObjectNotFoundError,
        (
            "s3://photos/cat/1.jpg does not exist at https://photos.s3.example:443. "
            "Keys are case-sensitive; list the prefix to see what is there."
        ),
    ),
    (
        (_BUCKET, 404, {}, "NoSuchBucket", "The specified bucket does not exist"),
        BucketNotFoundError,
        (
            "Bucket 'photos' of s3://photos does not exist at https://photos.s3.example:443. "
            "Check its name, the endpoint and the account."
        ),
    ),
    (
        (_OBJECT, 404, {}, "NoSuchBucket", "The specified bucket does not exist"),
        BucketNotFoundError,
        (
            "Bucket 'photos' of s3://photos/cat/1.jpg does not exist at https://photos.s3.example:443. "
            "Check its name, the endpoint and the account."
        ),
    ),
    (
        (_OBJECT, 403, {}, "AccessDenied", "Access Denied"),
        AccessDeniedError,
        (
            "GetObject on s3://photos/cat/1.jpg is forbidden (Access Denied). "
            "Allow s3:GetObject to these credentials, or check which credentials are used."
        ),
    ),
    (
        (_BUCKET, 403, {}, "", ""),
        AccessDeniedError,
        (
            "ListObjectsV2 on s3://photos is forbidden. "
            "Allow s3:ListBucket to these credentials, or check which credentials are used."
        ),
    ),
    (
        (_OBJECT, 403, {}, "InvalidAccessKeyId", "unknown"),
        CredentialsError,
        (
            "https://photos.s3.example:443 does not accept the credentials for s3://photos/cat/1.jpg: "
            "the access key is unknown there. "
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_PROFILE."
        ),
    ),
    (
        (_OBJECT, 403, {}, "SignatureDoesNotMatch", "no"),
        CredentialsError,
        (
            "https://photos.s3.example:443 does not accept the credentials for s3://photos/cat/1.jpg: "
            "the secret key does not fit the access key, or a proxy changes requests on their way. "
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_PROFILE."
        ),
    ),
    (
        (_OBJECT, 400, {}, "ExpiredToken", "no"),
        CredentialsError,
        (
            "https://photos.s3.example:443 does not accept the credentials for s3://photos/cat/1.jpg: "
            "they have expired. "
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_PROFILE."
        ),
    ),
    (
        (_OBJECT, 400, {}, "TokenRefreshRequired", "no"),
        CredentialsError,
        (
            "https://photos.s3.example:443 does not accept the credentials for s3://photos/cat/1.jpg: "
            "they have expired. "
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_PROFILE."
        ),
    ),
    (
        (_OBJECT, 400, {}, "InvalidToken", "no"),
        CredentialsError,
        (
            "https://photos.s3.example:443 does not accept the credentials for s3://photos/cat/1.jpg: "
            "the session token is not valid for them. "
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_PROFILE."
        ),
    ),
    (
        (_OBJECT, 403, {}, "InvalidSecurity", "no"),
        CredentialsError,
        (
            "https://photos.s3.example:443 does not accept the credentials for s3://photos/cat/1.jpg: "
            "they are not valid. "
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_PROFILE."
        ),
    ),
    (
        (_OBJECT, 403, {}, "RequestTimeTooSkewed", "no"),
        ClockSkewError,
        (
            "This machine's clock is too far from that of https://photos.s3.example:443 to sign a request for "
            "s3://photos/cat/1.jpg. Set it (NTP)."
        ),
    ),
    (
        (_OBJECT, 301, {"x-amz-bucket-region": "eu-west-1"}, "PermanentRedirect", "no"),
        RegionError,
        (
            "Bucket 'photos' of s3://photos/cat/1.jpg lies in region 'eu-west-1'; the request went to "
            "https://photos.s3.example:443. Pass region='eu-west-1' or set AWS_REGION."
        ),
    ),
    (
        (_OBJECT, 301, {}, "", ""),
        RegionError,
        (
            "Bucket 'photos' of s3://photos/cat/1.jpg lies in another region; the request went to "
            "https://photos.s3.example:443. Pass the bucket's region=... or set AWS_REGION."
        ),
    ),
    (
        (_OBJECT, 412, {}, "PreconditionFailed", "no"),
        ObjectChangedError,
        (
            "s3://photos/cat/1.jpg was replaced while it was read: "
            "its ETag is no longer the one that reading began with. "
            "Open it again to read the new version."
        ),
    ),
    (
        (_UPLOAD, 412, {}, "PreconditionFailed", "At least one of the preconditions did not hold"),
        RequestError,
        (
            "https://photos.s3.example:443 refused UploadPart on s3://photos/cat/1.jpg: "
            "At least one of the preconditions did not hold."
        ),
    ),
    (
        (_OBJECT, 409, {}, "ConditionalRequestConflict", "no"),
        TransientError,
        (
            "Another request about s3://photos/cat/1.jpg was under way, and https://photos.s3.example:443 did not "
            "carry GetObject out."
        ),
    ),
    (
        (_OBJECT, 307, {"x-amz-bucket-region": "eu-west-1"}, "TemporaryRedirect", "no"),
        RegionError,
        (
            "Bucket 'photos' of s3://photos/cat/1.jpg lies in region 'eu-west-1'; the request went to "
            "https://photos.s3.example:443. Pass region='eu-west-1' or set AWS_REGION."
        ),
    ),
    (
        (_OBJECT, 403, {}, "SecondLevelDomainForbidden", "no"),
        RequestError,
        (
            "https://photos.s3.example:443 takes requests for s3://photos/cat/1.jpg only with the bucket in front of "
            "its host name. Set addressing_style = virtual in the section s3 of the profile, and not "
            "force_path_style=True."
        ),
    ),
    (
        (_OBJECT, 403, {}, "InvalidObjectState", "no"),
        RequestError,
        "s3://photos/cat/1.jpg is archived and must be restored before it can be read (RestoreObject).",
    ),
    (
        (_UPLOAD, 400, {}, "EntityTooSmall", "Your proposed upload is too small"),
        RequestError,
        "https://photos.s3.example:443 refused UploadPart on s3://photos/cat/1.jpg: Your proposed upload is too small.",
    ),
    (
        (_OBJECT, 400, {}, "", ""),
        RequestError,
        "https://photos.s3.example:443 refused GetObject on s3://photos/cat/1.jpg: no reason given.",
    ),
    (
        (_OBJECT, 503, {}, "SlowDown", "Please reduce your request rate."),
        ThrottledError,
        "https://photos.s3.example:443 asks for fewer requests (GetObject on s3://photos/cat/1.jpg).",
    ),
    (
        (_OBJECT, 500, {}, "InternalError", "We encountered an internal error"),
        ServerError,
        "https://photos.s3.example:443 failed at GetObject on s3://photos/cat/1.jpg: We encountered an internal error.",
    ),
    (
        (_OBJECT, 502, {}, "", ""),
        ServerError,
        "https://photos.s3.example:443 failed at GetObject on s3://photos/cat/1.jpg.",
    ),
    (
        (_OBJECT, 404, {}, "", "", "page not found"),
        ProtocolError,
        (
            "GetObject on s3://photos/cat/1.jpg was answered with status 404 and a body that is not S3's: that is no "
            "answer of S3 to it. Check the endpoint (https://photos.s3.example:443). If that server does not know "
            "buckets by host name, pass S3ClientConfig(force_path_style=True). A proxy or a captive portal on the way "
            "may answer like this, too. It says 'page not found'."
        ),
    ),
]


@pytest.mark.parametrize(("answer", "kind", "sentence"), ANSWERS)
def test_sentences_of_answers(answer: tuple, kind: type[S3Error], sentence: str):
    """Each answer of the service becomes this class with this sentence, word for word."""
    subject, status, fields, code, message, *text = answer
    document = ErrorDocument(code, message, text="".join(text))
    error = error_from_answer(subject, status, fields, document)
    assert type(error) is kind
    assert error.args == (sentence,)


def test_every_class_of_answers_is_in_the_table():
    """The table above has every class that answers.py can make."""
    from s3torch._aws import answers

    made = {value for value in vars(answers).values() if inspect.isclass(value) and issubclass(value, S3Error)}
    assert {kind for _, kind, _ in ANSWERS} == made - {S3Error}
