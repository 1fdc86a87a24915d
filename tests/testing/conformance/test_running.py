"""Tests of how checks are run: what is chosen, reported and removed, and what ends a run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from s3torch.compat.mock import MockS3Client
from s3torch.config import S3ClientConfig
from s3torch.errors import (
    ArgumentError,
    BucketNotFoundError,
    ConnectionFailedError,
    CredentialsError,
    DeadlineError,
    ServerError,
)
from s3torch.testing import FaultyServer, conformance
from s3torch.testing.conformance import Outcome, running, site
from s3torch.testing.conformance.__main__ import main
from s3torch.testing.conformance.check import Check
from s3torch.testing.conformance.findings import UnavailableError, UnsupportedError
from s3torch.testing.conformance.report import Report, Result

from .whole import ACCESS_KEY, SECRET_KEY, WholeS3, refusal, serve

NAMES = [each.name for each in conformance.checks()]
# What a server in memory that checks little, and lists no uploads, does not have.
_OF_DOUBLES = {
    "object.metadata",
    "multipart.wrong-etag",
    "condition.get-if-none-match",
}


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def s3() -> WholeS3:
    """A bucket that is right, with an object that is none of ours."""
    s3 = WholeS3("bucket")
    s3["foreign"] = b"of somebody else"
    return s3


@pytest.fixture
def endpoint(s3: WholeS3) -> Iterator[str]:
    """Where it is served."""
    with serve(s3) as endpoint:
        yield endpoint


def _is_clean(s3: WholeS3) -> bool:
    return (dict(s3), s3.uploads, s3.versions) == ({"foreign": b"of somebody else"}, [], 0)


# What a run comes to


def test_a_right_server_passes(endpoint: str, s3: WholeS3):
    """A server that is right passes each check; nothing is left, and nothing else was touched."""
    report = conformance.run("bucket", endpoint=endpoint)
    assert {each.name: each for each in report.results if each.outcome is not Outcome.PASSED} == {}
    assert [each.name for each in report.results] == NAMES
    assert report.ok
    assert (report.endpoint, report.bucket, report.left_over) == (endpoint, "bucket", ())
    assert _is_clean(s3)


def test_local_server(server):
    """What the local server does otherwise than S3 is what is recorded of it."""
    from tests.servers import record

    server.create_bucket("conformance")
    with server.activated():
        report = conformance.run("conformance", endpoint=server.endpoint)
    # Whether a bucket keeps versions is for whoever made it; the record is of one that does.
    assert [line for line in record.differences("seaweedfs", report) if "version.read" not in line] == []


def test_faulty_server():
    """FaultyServer has what s3torch's own tests need; the rest is known, and nothing is left behind."""
    with FaultyServer({"foreign": b"of somebody else"}) as server:
        config = S3ClientConfig(unsigned=True)  # with the usual patience: a busy machine takes its time
        report = conformance.run("bucket", endpoint=server.endpoint, s3client_config=config)
        assert set(report.named(Outcome.FAILED)) == _OF_DOUBLES
        assert report.left_over == ()
        assert dict(server.objects) == {"foreign": b"of somebody else"}
        assert server.objects.uploads == []


def test_mock_client(monkeypatch: pytest.MonkeyPatch):
    """So does the client with a bucket in memory."""
    client = MockS3Client("us-east-1", "bucket")
    monkeypatch.setattr(site, "S3Client", lambda *_, **__: client)
    names = {each.partition(".")[0] for each in NAMES} - {"dataset", "checkpoint", "multipart"}
    report = conformance.run("bucket", names=sorted(names), s3client_config=S3ClientConfig(unsigned=True))
    assert set(report.named(Outcome.FAILED)) <= {*_OF_DOUBLES, "copy.odd-keys"}
    assert report.left_over == ()


# What is chosen


@pytest.mark.parametrize("names", [["range"], ["range."], ["range.suffix", "range.bytes"]])
def test_names(endpoint: str, names: list[str]):
    """Checks are chosen by name or group, each with what it needs, in their order."""
    report = conformance.run("bucket", endpoint=endpoint, names=names)
    made = [each.name for each in report.results]
    assert {"object.put-get", "range.bytes", "range.suffix"} <= set(made)
    assert ("range.if-match" in made) == (len(names) == 1)
    assert "list.prefix" not in made
    assert made == [name for name in NAMES if name in made]


def test_unknown_names():
    """A name of no check is an ArgumentError that lists them, before anything is sent."""
    with pytest.raises(ArgumentError, match=r"no check 'rang'.*object\.put-get"):
        conformance.run("bucket", endpoint="http://127.0.0.1:1", names=["rang"])


def test_needs_stand_before():
    """Each check needs checks that are made before it, and says what it shows and what follows."""
    for index, each in enumerate(conformance.checks()):
        assert set(each.needs) <= set(NAMES[:index])
        assert each.shows.endswith(".")
        assert each.consequence.endswith((".", ")"))
        group, _, name = each.name.partition(".")
        assert group
        assert name


def test_progress(endpoint: str):
    """Progress is told after each check."""
    seen = []
    report = conformance.run("bucket", endpoint=endpoint, names=["delete"], progress=lambda *told: seen.append(told))
    assert seen == [(number, len(report.results), result) for number, result in enumerate(report.results, 1)]


def test_prefixes(endpoint: str, s3: WholeS3):
    """Each run has a prefix of its own, below the one that is given."""
    reports = [conformance.run("bucket", endpoint=endpoint, names=["delete"], prefix="mine") for _ in range(2)]
    first, second = (report.prefix for report in reports)
    assert first != second
    assert first.startswith("mine/")
    assert first.endswith("/")
    assert _is_clean(s3)


# What ends a run


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch):
    """Replaces the checks by one function."""

    def only(run, *more) -> None:
        made = [
            Check(name=f"test.{number}", shows="A sentence.", consequence="Another.", run=each)
            for number, each in enumerate((run, *more))
        ]
        monkeypatch.setattr(running, "_CHECKS", tuple(made))

    return only


def _raising(error: BaseException):
    def run(site) -> None:
        site.put(b"content")
        site.begin_upload(site.key("upload"))
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "outcome", "seen"),
    [
        (UnsupportedError("has none"), Outcome.NOT_SUPPORTED, "has none"),
        (UnavailableError("torch is not installed"), Outcome.SKIPPED, "torch is not installed"),
        (ServerError("no", status=501), Outcome.NOT_SUPPORTED, "ServerError: no (status 501)"),
        (ServerError("no", status=500), Outcome.FAILED, "ServerError: no (status 500)"),
        (ValueError("no"), Outcome.FAILED, "ValueError: no"),
        (ValueError("x" * 10_000), Outcome.FAILED, f"ValueError: {'x' * 488}..."),
    ],
    ids=str,
)
def test_errors_are_outcomes(endpoint: str, s3: WholeS3, only, error, outcome, seen):
    """What a check raises is its outcome, and the next one is made."""
    only(_raising(error), lambda site: None)
    report = conformance.run("bucket", endpoint=endpoint)
    first, second = report.results
    assert (first.outcome, first.seen) == (outcome, seen)
    assert first.consequence == ("" if outcome is Outcome.SKIPPED else "Another.")
    assert second.outcome is Outcome.PASSED
    assert _is_clean(s3)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_interrupts_clean_up(endpoint: str, s3: WholeS3, only, error):
    """An interrupt ends the run, and all that was stored is removed before."""
    only(_raising(error))
    with pytest.raises(type(error)):
        conformance.run("bucket", endpoint=endpoint)
    assert _is_clean(s3)


@pytest.mark.parametrize(
    ("is_refused", "left"),
    [
        (lambda request: request.method == "DELETE", ["object", "upload"]),
        (lambda request: request.method == "DELETE" and "versionId" in request.target, ["object"]),
        (lambda request: request.method == "DELETE" and "uploadId" in request.target, ["upload"]),
        (lambda request: request.method == "DELETE" or "list-type" in request.target, ["object", "upload"]),
        (lambda request: "list-type" in request.target, []),
        (lambda request: "uploads" in request.target and request.method == "GET", []),
    ],
    ids=["any", "versions", "uploads", "any, and it cannot list", "it cannot list", "it cannot list uploads"],
)
@pytest.mark.parametrize("keeps_versions", [False, True])
def test_what_is_left_is_told(only, is_refused, left: list[str], keeps_versions: bool):
    """What cannot be removed is named in the report, also where the server cannot list it."""
    only(_raising(UnsupportedError("has none")))
    s3 = WholeS3("bucket", keeps_versions=keeps_versions)

    def habit(request, s3):
        return refusal(403, "AccessDenied") if is_refused(request) else s3.answer(request)

    with serve(s3, habit) as endpoint:
        report = conformance.run("bucket", endpoint=endpoint)
    if not keeps_versions and len(left) == 1:
        left = [name for name in left if name != "object"]
    assert [key.rpartition("/")[2] for key in report.left_over] == left
    assert bool(left) == bool(len(s3) or s3.uploads or s3.versions)


def test_time_to_clean_is_bounded(endpoint: str, only, monkeypatch: pytest.MonkeyPatch):
    """Once the time to clean up is up nothing more is removed, and the report says what is left."""
    only(_raising(UnsupportedError("has none")))
    monkeypatch.setattr(site, "_CLEANING", 0.0)
    report = conformance.run("bucket", endpoint=endpoint)
    assert [key.rpartition("/")[2] for key in report.left_over] == ["object", "upload"]


def test_time_is_bounded(endpoint: str, only):
    """Once the time is up no check is begun."""
    only(lambda site: None)
    report = conformance.run("bucket", endpoint=endpoint, timeout=-1.0)
    assert [(each.outcome, each.seen) for each in report.results] == [(Outcome.SKIPPED, "the time was up")]


def test_without_torch(endpoint: str, monkeypatch: pytest.MonkeyPatch):
    """Without torch the checks that need it are skipped, and say so."""
    monkeypatch.setitem(sys.modules, "torch", None)
    report = conformance.run("bucket", endpoint=endpoint, names=["dataset", "checkpoint"])
    skipped = [each for each in report.results if each.name.startswith(("dataset.", "checkpoint."))]
    assert {each.outcome for each in skipped} == {Outcome.SKIPPED}
    assert {each.seen for each in skipped} == {
        "torch is not installed",
        "it needs dataset.map, dataset.iterable",
        "it needs dataset.map",
    }
    assert report.ok


# What makes a run impossible


def test_no_bucket(endpoint: str):
    """A bucket that is not there is an error, not a report."""
    with pytest.raises(BucketNotFoundError):
        conformance.run("other", endpoint=endpoint)


def test_no_server():
    """So is a server that is not there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionFailedError):
            conformance.run("bucket", endpoint=endpoint)


def test_silent_server():
    """So is one that takes connections and never answers; the configuration bounds how long that takes."""
    config = S3ClientConfig(first_byte_timeout=0.1, max_attempts=1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeadlineError):
            conformance.run("bucket", endpoint=endpoint, s3client_config=config)


def test_no_credentials(endpoint: str, monkeypatch: pytest.MonkeyPatch):
    """So are credentials that are missing, and such that the server does not accept."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(CredentialsError):
        conformance.run("bucket", endpoint=endpoint)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CredentialsError):
        conformance.run("bucket", endpoint=endpoint)


# The report


def _result(outcome: Outcome, number: int = 0) -> Result:
    texts = {} if outcome is Outcome.PASSED else {"seen": "seen text", "consequence": "what follows"}
    return Result(name=f"group.{outcome.name.lower()}-{number}", shows="A sentence.", outcome=outcome, **texts)


REPORT = Report(
    endpoint="http://server",
    bucket="bucket",
    prefix="p/",
    results=(*map(_result, Outcome), _result(Outcome.PASSED, 1)),
    left_over=("p/key",),
    server="Server/1",
    seconds=1.25,
)


def test_report_says_all():
    """The table has a line for each check, and below it what was seen and what follows."""
    lines = str(REPORT).splitlines()
    assert lines[0] == "http://server, bucket 'bucket', Server/1"
    assert "group.passed-0         passed           0.00 s" in lines
    index = lines.index("group.failed-0         failed           0.00 s")
    assert lines[index + 1 : index + 3] == ["    seen text", "    what follows"]
    assert "These could not be removed: p/key" in lines
    assert lines[-1] == "2 passed, 1 failed, 1 not supported, 1 skipped, in 1.2 s"
    assert repr(REPORT) == "<Report of http://server 'bucket': 2 passed, 1 failed, 1 not supported, 1 skipped>"


def test_report_is_looked_into():
    """Results are found by name and by outcome; only what failed makes a report that is not ok."""
    assert REPORT["group.failed-0"].outcome is Outcome.FAILED
    assert REPORT.named(Outcome.PASSED) == ["group.passed-0", "group.passed-1"]
    assert not REPORT.ok
    assert replace(REPORT, results=tuple(map(_result, [Outcome.NOT_SUPPORTED, Outcome.SKIPPED]))).ok
    with pytest.raises(KeyError):
        REPORT["group.nothing"]


def test_report_as_json():
    """JSON has the same."""
    found = json.loads(REPORT.to_json())
    assert found["results"][1] == {
        "name": "group.failed-0",
        "shows": "A sentence.",
        "outcome": "failed",
        "seen": "seen text",
        "consequence": "what follows",
        "seconds": 0.0,
    }
    assert (found["server"], found["left_over"]) == ("Server/1", ["p/key"])


# The command


def test_command(endpoint: str, s3: WholeS3, tmp_path, capsys: pytest.CaptureFixture[str]):
    """The command shows progress and the report, writes JSON, and its status is 0 if nothing failed."""
    path = tmp_path / "report.json"
    status = main(["--endpoint", endpoint, "--bucket", "bucket", "--check", "delete", "--json", str(path)])
    out = capsys.readouterr().out
    assert status == 0
    assert "[ 1/4] object.put-get                   passed\n" in out
    assert "4 passed, in" in out
    assert json.loads(path.read_text(encoding="utf-8"))["bucket"] == "bucket"
    assert _is_clean(s3)


def test_command_finds_failures(s3: WholeS3, capsys: pytest.CaptureFixture[str]):
    """Its status is 1 if a check failed, and the line says what was seen."""

    def habit(request, s3):
        return refusal(403, "AccessDenied") if request.method == "DELETE" else s3.answer(request)

    with serve(s3, habit) as endpoint:
        status = main(["--endpoint", endpoint, "--bucket", "bucket", "--check", "delete"])
    out = capsys.readouterr().out
    assert status == 1
    assert "delete.missing                   failed  the status of a DELETE of a missing key is 403" in out
    assert "These could not be removed: s3torch-conformance/" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bucket", "other"], "No check could be made: Bucket 'other'"),
        (["--bucket", "bucket", "--endpoint", "http://127.0.0.1:1"], "No check could be made: "),
        (["--bucket", "bucket", "--check", "nothing"], "No check could be made: There is no check 'nothing'"),
        (["--bucket", "bucket", "--endpoint", "nowhere"], "No check could be made: "),
    ],
)
def test_command_says_why_not(endpoint: str, arguments, message, capsys: pytest.CaptureFixture[str]):
    """Where no check can be made it says so in one line, and its status is 1."""
    if "--endpoint" not in arguments:
        arguments = [*arguments, "--endpoint", endpoint]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_command_lists_the_checks(capsys: pytest.CaptureFixture[str]):
    """It lists the checks without a bucket."""
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES


def test_command_needs_a_bucket(capsys: pytest.CaptureFixture[str]):
    """It asks for a bucket."""
    with pytest.raises(SystemExit):
        main([])
    assert "--bucket is missing" in capsys.readouterr().err


# A shell has its background jobs ignore SIGINT, and what they start ignores it, too.
_AS_IN_A_TERMINAL = """if True:
    import runpy, signal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runpy.run_module("s3torch.testing.conformance", run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(sys.platform == "win32", reason="has other signals")
def test_command_is_interrupted(s3: WholeS3, number: int):
    """Ctrl-C and SIGTERM end the command with status 130, and what was stored is removed."""
    reached, signalled = threading.Event(), threading.Event()

    def habit(request, s3):
        if request.method == "PUT" and not reached.is_set():
            answer = s3.answer(request)  # stored, and not answered before the signal
            reached.set()
            signalled.wait(30)
            return answer
        return s3.answer(request)

    with serve(s3, habit) as endpoint:
        command = [sys.executable, "-c", _AS_IN_A_TERMINAL, "--endpoint", endpoint, "--bucket", "bucket"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert reached.wait(30)
            assert not _is_clean(s3)
            process.send_signal(number)
            signalled.set()
            _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("\ninterrupted: what was stored is removed")
    assert _is_clean(s3)
