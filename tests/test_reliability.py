"""Each fault in each operation: the right bytes or a documented error, as the tables of docs/reliability.md say.

``WRITE_RELIABILITY=1 pytest tests/test_reliability.py`` adds to those tables what happens here.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import pickle
import random
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from s3torch import S3Checkpoint, S3Client, S3ClientConfig, S3IterableDataset, S3MapDataset, S3Reader
from s3torch._access import access as access_module
from s3torch._aws.session import AwsSession
from s3torch._transfer import pacing
from s3torch._transfer.retry import RetryPolicy
from s3torch.dcp import S3StorageReader, S3StorageWriter
from s3torch.errors import S3Error
from s3torch.testing import FaultyServer, faults
from s3torch.testing.faulty.faults import ConnectionFault, Fault
from tests.soak.faults import soak

DOCUMENT = Path(__file__).parent.parent / "docs" / "reliability.md"
MiB = 1024 * 1024
CONTENT = random.Random(1).randbytes(2048)
NEWER = random.Random(2).randbytes(1500)
LARGE = random.Random(3).randbytes(5 * MiB + 1000)  # two parts
MANY = {f"many/{number}": random.Random(10 + number).randbytes(500 + number) for number in range(4)}
WATCHDOG = 120.0  # seconds; the slowest case takes two, but for a long silence
SILENT = {"stall", "stall_before_head", "wrong_length"}  # are noticed by their silence
SILENCE = 0.15  # seconds
LONG_SILENCE = 5.0  # longer than what is right takes on a busy machine
RIGHT, UNNOTICED, NONE, UNMET = "right", "not noticed", "-", "the fault was not met"
IS_WRITING = bool(os.environ.get("WRITE_RELIABILITY"))


def saved() -> bytes:
    """Return a checkpoint."""
    file = io.BytesIO()
    torch.save({"weights": torch.arange(100)}, file)
    return file.getvalue()


CHECKPOINT = saved()
STATE: dict[str, Any] = {"weights": torch.arange(600.0), "step": 5}


def saved_by_dcp() -> dict[str, bytes]:
    """Return the files of a distributed checkpoint."""
    with FaultyServer() as server:
        options = {"endpoint": server.endpoint, "s3client_config": server.config}
        dcp.save(dict(STATE), storage_writer=S3StorageWriter(None, "s3://bucket/dcp", **options), no_dist=True)
        return dict(server.objects)


DCP = saved_by_dcp()
OBJECTS = {
    "key": CONTENT,
    "checkpoint": CHECKPOINT,
    **MANY,
    **{key.replace("dcp/", "saved/"): content for key, content in DCP.items()},
}


def status_rows() -> dict[str, Fault]:
    """Return refusals, with and without S3's XML."""
    codes = {
        301: "PermanentRedirect",
        304: None,
        307: "TemporaryRedirect",
        400: "InvalidRequest",
        403: "AccessDenied",
        404: "NoSuchKey",
        409: "OperationAborted",
        412: "PreconditionFailed",
        416: "InvalidRange",
        429: "TooManyRequests",
        500: "InternalError",
        503: "SlowDown",
    }
    rows: dict[str, Fault] = {}
    for number, code in codes.items():
        rows[f"status({number})"] = faults.status(number)
        if code is not None:
            rows[f'status({number}, "{code}")'] = faults.status(number, code)
    return rows


FAULTS: dict[str, Fault | ConnectionFault | None] = {
    "unresolvable_endpoint": None,  # no fault of a server: no request reaches one
    "refuse(0.05)": faults.refuse(0.05),
    "close_before_head": faults.close_before_head(),
    "reset_before_head": faults.reset_before_head(),
    "reset_after_head": faults.reset_after_head(),
    "reset_after(100)": faults.reset_after(100),
    "reset_mid_body": faults.reset_mid_body(),
    "truncate": faults.truncate(),
    "answer_lost": faults.answer_lost(),
    "close_idle": faults.close_idle(),
    "late(0.05)": faults.late(0.05),
    "stall_before_head": faults.stall_before_head(),
    "stall(0.05)": replace(faults.stall(0.05), name="pause"),
    "stall": faults.stall(),
    "trickle(0)": faults.trickle(0),
    "wrong_length(1)": faults.wrong_length(1),
    "wrong_length(-1)": faults.wrong_length(-1),
    "wrong_content_range": faults.wrong_content_range(),
    "other_range": faults.other_range(),
    "ignore_range": faults.ignore_range(),
    "other_version": faults.other_version(),
    "corrupt(300)": faults.corrupt(300),
    "corrupt_upload(300)": faults.corrupt_upload(300),
    "garbage_head": faults.garbage_head(),
    "endless_head": faults.endless_head(),
    "many_fields(10000)": faults.many_fields(10_000),
    "chunked": faults.chunked(),
    "until_close": faults.until_close(),
    "connection_close": faults.connection_close(),
    **status_rows(),
    "expired_token": faults.expired_token(),
    "wrong_region": faults.wrong_region(),
    "clock_skew": faults.clock_skew(),
    "replaced": faults.replaced(NEWER),
    "deleted": faults.deleted(),
    "emptied": faults.emptied(),
    "handshake_failure": faults.handshake_failure(),
    "wrong_host": faults.wrong_host(),
    "expired_certificate": faults.expired_certificate(),
}


class Case:
    """What an operation works with."""

    def __init__(self, server: FaultyServer, endpoint: str, config: S3ClientConfig, fault: str) -> None:
        self.server = server
        self._fault = fault
        self.options = {"endpoint": endpoint, "s3client_config": config}
        self.client = S3Client(**self.options)

    def is_of_one(self, found: list[bytes], key: str, ranges: Iterable[tuple[int, int]]) -> bool:
        """Return whether these are ranges of one of the versions that the object had."""
        versions = [OBJECTS[key], self.server.objects.get(key, OBJECTS[key])]
        if self._fault == "other_version":
            versions.append(bytes(octet ^ 0xFF for octet in OBJECTS[key]))
        return any(found == [version[start:stop] for start, stop in ranges] for version in versions)

    def are_samples(self, samples: list[tuple[str, bytes]]) -> bool:
        """Return whether these are all samples, each of one version."""
        return [key for key, _ in samples] == list(MANY) and all(
            self.is_of_one([content], key, [(0, 2048)]) for key, content in samples
        )


def read(case: Case) -> bool:
    """Read an object of unknown size."""
    return case.is_of_one([case.client.read_range("bucket", "key", 0)], "key", [(0, len(CONTENT))])


def read_ranges(case: Case) -> bool:
    """Read three ranges by three requests."""
    ranges = [(0, 100), (500, 1000), (1200, 1400)]
    return case.is_of_one(case.client.read_ranges("bucket", "key", ranges, max_gap=0), "key", ranges)


def sample(reader: S3Reader) -> tuple[str, bytes]:
    """Return key and content."""
    return reader.key, reader.read()


def batch(case: Case) -> bool:
    """Read a batch of a map dataset."""
    uris = [f"s3://bucket/{key}" for key in MANY]
    dataset = S3MapDataset.from_objects(uris, transform=sample, **case.options)
    try:
        return case.are_samples(dataset.__getitems__(list(range(len(MANY)))))
    finally:
        dataset._client.close()


def iterate(case: Case) -> bool:
    """Read an iterable dataset."""
    uris = [f"s3://bucket/{key}" for key in MANY]
    dataset = S3IterableDataset.from_objects(uris, transform=sample, **case.options)
    try:
        return case.are_samples(list(dataset))
    finally:
        dataset._client.close()


def listing(case: Case) -> bool:
    """List a prefix."""
    pages = case.client.list_objects("bucket", "many/")
    found = [(info.key, info.size) for page in pages for info in page.object_info]
    return found == [(key, len(content)) for key, content in MANY.items()]


def put(case: Case) -> bool:
    """Write an object by one request."""
    return writes(case, CONTENT)


def multipart(case: Case) -> bool:
    """Write an object in two parts."""
    return writes(case, LARGE)


def writes(case: Case, content: bytes) -> bool:
    """Write an object; whatever happens, it is there whole or not at all."""
    try:
        with case.client.put_object("bucket", "new") as writer:
            writer.write(content)
    finally:
        assert case.server.objects.get("new") in (None, content)
    return case.server.objects["new"] == content


def load(case: Case) -> bool:
    """Load a checkpoint."""
    checkpoint = S3Checkpoint(**case.options)
    try:
        with checkpoint.reader("s3://bucket/checkpoint") as reader:
            content = reader.read()
            if content == CHECKPOINT:
                reader.seek(0)
                assert torch.equal(torch.load(reader)["weights"], torch.arange(100))
    finally:
        checkpoint._client.close()
    return case.is_of_one([content], "checkpoint", [(0, len(CHECKPOINT))])


@contextmanager
def of_rank() -> Iterator[None]:
    """Raise the error of a rank, which torch wraps."""
    try:
        yield
    except CheckpointException as error:
        raise error.failures[0][0] from None


class OfKnownMetadata(S3StorageReader):
    """Reads the data only: if torch cannot read the metadata it raises an AssertionError of its own."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs
        return pickle.loads(DCP["dcp/.metadata"])


def dcp_save(case: Case) -> bool:
    """Save a distributed checkpoint: its data, then its metadata; without those it is none."""
    writer = S3StorageWriter(None, "s3://bucket/dcp", **case.options)
    try:
        with of_rank():
            dcp.save(dict(STATE), storage_writer=writer, no_dist=True)
    finally:
        is_complete = "dcp/.metadata" in case.server.objects
        assert not is_complete or case.server.objects["dcp/__0_0.distcp"] == DCP["dcp/__0_0.distcp"]
    return is_complete


def dcp_load(case: Case) -> bool:
    """Load a distributed checkpoint whose metadata is known."""
    state = {"weights": torch.zeros(600), "step": 0}
    reader = OfKnownMetadata(None, "s3://bucket/saved", **case.options)
    with of_rank():
        dcp.load(state, storage_reader=reader, no_dist=True)
    return torch.equal(state["weights"], STATE["weights"]) and state["step"] == STATE["step"]


# The operation, and the requests of it that meet the fault.
OPERATIONS: dict[str, tuple[Callable[[Case], bool], str]] = {
    "read": (read, "GetObject"),
    "read_ranges": (read_ranges, "GetObject"),
    "batch": (batch, "GetObject"),
    "iterate": (iterate, "GetObject"),
    "checkpoint": (load, "GetObject"),
    "list": (listing, "ListObjectsV2"),
    "put": (put, "PutObject"),
    "create": (multipart, "CreateMultipartUpload"),
    "part": (multipart, "UploadPart"),
    "complete": (multipart, "CompleteMultipartUpload"),
    "dcp save": (dcp_save, "PutObject"),
    "dcp load": (dcp_load, "GetObject"),
}
OF_TORCH = ("checkpoint", "dcp save", "dcp load")
_METHODS = {"GetObject": "GET", "ListObjectsV2": "GET", "PutObject": "PUT", "UploadPart": "PUT"}


@pytest.fixture(autouse=True, scope="module")
def no_pauses() -> Iterator[None]:
    """Attempts follow each other at once, and clients share what botocore is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AWS_") or name.lower().endswith("_proxy"):
                patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setattr(access_module, "RetryPolicy", functools.partial(RetryPolicy, base=0.0, cap=0.0))
        patch.setattr(pacing, "_REST", 0.0)
        patch.setattr(access_module, "AwsSession", functools.cache(AwsSession))
        patch.setattr(socket, "getaddrinfo", functools.partial(getaddrinfo, socket.getaddrinfo))
        yield


def getaddrinfo(real: Callable[..., list[object]], host: str, *arguments: object, **options: object) -> list[object]:
    """Say what a resolver says of a name that does not exist, without asking the network."""
    if str(host).endswith(".invalid"):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return real(host, *arguments, **options)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[bool, FaultyServer]]:
    """A server without and one with TLS."""
    with FaultyServer() as plain, FaultyServer(tls=True) as secure:
        yield {False: plain, True: secure}


def kind_of(error: S3Error) -> str:
    """Return how an error stands in a table."""
    return type(error).__name__


def watched(run: Callable[[Case], bool], case: Case, name: str, told: Callable[[S3Error], str] = kind_of) -> str:
    """Return what a case comes to, in a thread: one that hangs is a failure, and not the end of all tests.

    Args:
        run: The operation.
        case: Whose client is closed then.
        name: Of the operation.
        told: Returns what an error is in the table.
    """
    found: list[str] = []
    strange: list[BaseException] = []

    def work() -> None:
        try:
            found.append(RIGHT if run(case) else UNNOTICED)
        except S3Error as error:
            found.append(told(error))
        except Exception as error:  # noqa: BLE001 - raised in the test's thread
            strange.append(error)
        finally:
            case.client.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(WATCHDOG)
    assert not thread.is_alive(), f"{name} hangs"
    if strange:
        raise strange[0]
    return found[0]


def outcome(
    server: FaultyServer, fault: Fault | ConnectionFault | None, name: str, *, is_once: bool, silence: float = SILENCE
) -> str:
    """Return what an operation comes to under a fault, met once or always; None is a name without an address.

    What is noticed by its silence is waited for so many seconds.
    """
    run, target = OPERATIONS[name]
    if fault is None and is_once:
        return NONE
    if isinstance(fault, Fault):
        if fault.operations and not fault.operations & {target, _METHODS.get(target, "POST")}:
            return NONE
        fault = replace(fault, operations=frozenset({target}))
    elif name in {"part", "complete"}:
        return NONE  # the connections are those of "create"
    server.script()
    server.rates({})
    server.close_connections()
    server.objects.clear()
    server.objects.update(OBJECTS)
    server.injected.clear()
    given = [] if fault is None else [fault]
    server.script(*given * is_once)
    server.rates({} if is_once else dict.fromkeys(given, 1.0))
    endpoint = server.endpoint if given else server.unresolvable_endpoint
    label = fault.name if fault is not None else ""
    config = replace(server.config, max_attempts=2, part_size=5 * MiB, hedging=False)
    if label in SILENT:
        config = replace(config, first_byte_timeout=silence, stall_timeout=silence)
    found = watched(run, Case(server, endpoint, config, label), name)
    return found if fault is None or server.injected[label] else UNMET


def tables() -> dict[str, dict[tuple[str, str], str]]:
    """Return the cells of the document's tables, by title, and by fault and operation."""
    found: dict[str, dict[tuple[str, str], str]] = {"Once": {}, "Always": {}}
    text = DOCUMENT.read_text(encoding="utf-8")
    for title, cells in found.items():
        rows = re.search(rf"^### {title}\n(?:(?!\||#).*\n)*((?:\|.*\n)*)", text, re.MULTILINE)
        for row in rows[1].splitlines()[2:] if rows else ():
            name, *values = [cell.strip() for cell in row.strip("|").split("|")]
            cells |= {
                (name.strip("`"), operation): cell for operation, cell in zip(OPERATIONS, values, strict=not IS_WRITING)
            }
    return found


def table(cells: dict[tuple[str, str], str]) -> str:
    """Return a table of the document."""
    lines = [["fault", *OPERATIONS], ["---"] * (1 + len(OPERATIONS))]
    lines += [[f"`{name}`", *(cells.get((name, each), "") for each in OPERATIONS)] for name in FAULTS]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@pytest.fixture(scope="module")
def documented() -> Iterator[dict[str, dict[tuple[str, str], str]]]:
    """The document's cells; written back in the end if that is asked for."""
    cells = tables()
    yield cells
    if IS_WRITING:
        text = DOCUMENT.read_text(encoding="utf-8")
        for title, rows in cells.items():
            pattern = rf"(^### {title}\n(?:(?!\||#).*\n)*)(?:\|.*\n)*"
            text = re.sub(pattern, lambda match, rows=rows: match[1] + table(rows), text, flags=re.MULTILINE)
        DOCUMENT.write_text(text, encoding="utf-8")


def settled(server: FaultyServer, fault: Fault | ConnectionFault | None, title: str, operation: str, known: str) -> str:
    """Return what an operation comes to; what is not known is tried again with patience, if silence may explain it."""
    found = outcome(server, fault, operation, is_once=title == "Once")
    if not IS_WRITING and found not in known.split(" or ") and fault is not None and fault.name in SILENT:
        return outcome(server, fault, operation, is_once=title == "Once", silence=LONG_SILENCE)
    return found


def all_settled(
    fault: Fault | ConnectionFault | None,
    servers: dict[bool, FaultyServer],
    documented: dict[str, dict[tuple[str, str], str]],
    name: str,
) -> dict[tuple[str, str], str]:
    """Return what each operation comes to, by title and operation.

    Those that wait for a silence wait at the same time, each at a server of its own; but those in which torch turns
    warnings off and on wait for each other, as that is a matter of the whole process.
    """

    def run(server: FaultyServer, operation: str) -> dict[tuple[str, str], str]:
        return {
            (title, operation): settled(server, fault, title, operation, cells.get((name, operation), ""))
            for title, cells in documented.items()
        }

    def run_alone(operations: list[str]) -> dict[tuple[str, str], str]:
        with FaultyServer() as server:
            return dict(itertools.chain.from_iterable(run(server, each).items() for each in operations))

    if fault is None or fault.name not in SILENT:
        server = servers[isinstance(fault, ConnectionFault)]
        return dict(itertools.chain.from_iterable(run(server, each).items() for each in OPERATIONS))
    chains = [list(OF_TORCH), *([each] for each in OPERATIONS if each not in OF_TORCH)]
    with ThreadPoolExecutor(len(chains)) as pool:
        return dict(itertools.chain.from_iterable(each.items() for each in pool.map(run_alone, chains)))


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str, servers: dict[bool, FaultyServer], documented: dict[str, dict[tuple[str, str], str]]):
    """Under each fault each operation gives the right bytes or the error that is documented, and never hangs."""
    for (title, operation), found in all_settled(FAULTS[name], servers, documented, name).items():
        cells = documented[title]
        known = cells.get((name, operation), "")
        assert found != UNMET, f"{title}, {operation}"
        if IS_WRITING:
            seen = {*filter(None, known.split(" or ")), found}
            if title == "Once" and operation in {"batch", "iterate"} and found != NONE:
                # Which of the objects meets the fault is chance; one that is read ahead is read once more.
                seen |= {RIGHT, *cells[name, "read"].split(" or ")}
            if title == "Once" and name.startswith("refuse"):  # the pause before the retry is chance
                seen |= {RIGHT, "ConnectionFailedError"}
            known = cells[name, operation] = " or ".join(sorted(seen))
        assert found in known.split(" or "), f"{title}, {operation}: {found} instead of {known}"


def test_only_these_are_not_noticed():
    """Wrong bytes are documented for the faults that nothing shows, and for no other."""
    unnoticed = {each for cells in tables().values() for each, cell in cells.items() if UNNOTICED in cell}
    # The checksum is that of the whole object: it says nothing of a range.
    assert unnoticed == {("corrupt(300)", "read_ranges")}


def test_all_faults_are_documented():
    """Each fault has a row in both tables, and no row is of none."""
    if IS_WRITING:
        pytest.skip("the tables are written behind this test")
    for cells in tables().values():
        assert {name for name, _ in cells} == set(FAULTS)


def test_soak():
    """Random faults leave no wrong byte in what is read, and no error that is not ours."""
    counts = soak(2000, seed=2)
    assert (counts["right"], counts["wrong"], counts["unexplained errors"]) == (2000, 0, 0)
    assert counts["faults"] > 50
