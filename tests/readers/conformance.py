"""What every kind of reader promises: one suite, which each kind passes.

Where a promise is about speed, requests are counted: time
depends on the machine.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import functools
import io
import mmap
import pickle
import random
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from s3torch import S3Client, S3Reader, S3ReaderConfig
from s3torch._aws.listing import ObjectInfo
from s3torch.errors import (
    ArgumentError,
    ArgumentTypeError,
    BucketNotFoundError,
    ClosedError,
    NotFoundError,
    ObjectChangedError,
    ObjectNotFoundError,
)

__all__ = ["ReaderConformance", "lines", "store_samples"]

KiB = 1024
# The unit in which lines are fetched at least.
_LINE_WINDOW = 64 * KiB


# Each asks for something that only the service knows.
READS = {
    "read": lambda reader: reader.read(),
    "read(10)": lambda reader: reader.read(10),
    "readall": lambda reader: reader.readall(),
    "read1": lambda reader: reader.read1(),
    "readinto": lambda reader: reader.readinto(bytearray(10)),
    "readinto1": lambda reader: reader.readinto1(bytearray(10)),
    "readline": lambda reader: reader.readline(),
    "readlines": lambda reader: reader.readlines(),
    "list": list,
    "size": lambda reader: reader.size,
    "seek(9)": lambda reader: reader.seek(9),
    "seek to the end": lambda reader: reader.seek(0, io.SEEK_END),
}
OTHERS = {
    "next": next,
    "read(0)": lambda reader: reader.read(0),
    "read1(0)": lambda reader: reader.read1(0),
    "readline(0)": lambda reader: reader.readline(0),
    "readinto nothing": lambda reader: reader.readinto(bytearray()),
    "seek(0)": lambda reader: reader.seek(0),
    "tell": lambda reader: reader.tell(),
    "readable": lambda reader: reader.readable(),
    "seekable": lambda reader: reader.seekable(),
    "writable": lambda reader: reader.writable(),
    "isatty": lambda reader: reader.isatty(),
    "flush": lambda reader: reader.flush(),
    "with": lambda reader: reader.__enter__(),
}


def lines(size: int) -> bytes:
    """Return ``size`` bytes of lines of 0 to 200 bytes; the last one has no newline."""
    source = random.Random(size)
    pieces = b"\n".join(source.randbytes(source.randrange(200)) for _ in range(size // 50 + 1))
    return pieces[: size - 1] + b"." * bool(size)


CONTENT = lines(5000)
LONG = lines(300_000)


def store_samples(client: S3Client, bucket: str) -> dict[str, str]:
    """Store CONTENT, a LONG object and an empty one; returns their keys."""
    keys = {}
    for name, content in (("content", CONTENT), ("long", LONG), ("empty", b"")):
        keys[name] = f"conformance/{name}"
        with client.put_object(bucket, keys[name]) as writer:
            writer.write(content)
    return keys


class ReaderConformance:
    """The promises; a subclass has fixtures ``config`` and ``stored``."""

    @pytest.fixture
    def config(self) -> S3ReaderConfig:
        """Which reader."""
        raise NotImplementedError

    @pytest.fixture
    def open_key(self, client, bucket, config):
        """Opens a reader of a key."""

        def open_key(key: str, **facts: object) -> S3Reader:
            return client.get_object(bucket, key, reader_config=config, **facts)

        return open_key

    @pytest.fixture
    def stored(self) -> dict[str, str]:
        """The keys that ``store_samples`` returned."""
        raise NotImplementedError

    @pytest.fixture
    def reader(self, open_key, stored) -> S3Reader:
        """A reader of CONTENT."""
        return open_key(stored["content"])

    @pytest.fixture
    def long(self, open_key, stored) -> S3Reader:
        """A reader of LONG."""
        return open_key(stored["long"])

    @pytest.fixture
    def empty(self, open_key, stored) -> S3Reader:
        """A reader of an object of 0 bytes."""
        return open_key(stored["empty"])

    # --- read --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("everything", [(), (None,), (-1,), (-7,)])
    def test_read_to_the_end(self, reader, everything):
        """``read()``, ``read(None)`` and ``read(negative)`` return what is left from here, not the whole object."""
        assert reader.read(*everything) == CONTENT
        reader.seek(1234)
        assert reader.read(*everything) == CONTENT[1234:]
        assert reader.tell() == len(CONTENT)

    def test_readall(self, reader):
        """``readall`` returns what is left."""
        reader.seek(10)
        assert reader.readall() == CONTENT[10:]

    def test_read_returns_as_much_as_asked(self, reader):
        """``read(n)`` returns n bytes unless the object ends before."""
        assert [reader.read(n) for n in (1, 999, 2000, 1990, 20)] == [
            CONTENT[0:1],
            CONTENT[1:1000],
            CONTENT[1000:3000],
            CONTENT[3000:4990],
            CONTENT[4990:],
        ]

    def test_read_at_the_end(self, reader):
        """At the end there is nothing to read, however often it is asked for."""
        reader.seek(0, io.SEEK_END)
        for size in (1, 10**12, -1, None, 0):
            assert reader.read(size) == b""
            assert reader.tell() == len(CONTENT)

    def test_read_nothing(self, reader, traffic):
        """Reading 0 bytes costs no request and moves nothing."""
        assert reader.read(0) == b""
        assert reader.read1(0) == b""
        assert reader.readline(0) == b""
        assert reader.readinto(bytearray()) == 0
        assert reader.tell() == traffic.requests == 0

    def test_read_more_than_there_is(self, reader):
        """A size far beyond the object, and beyond 64 bits, reads to the end."""
        assert reader.read(2**70) == CONTENT

    def test_read_is_bytes(self, reader):
        """What is read is ``bytes``, not other memory."""
        assert [type(reader.read(n)) for n in (10, 10, None, 10)] == [bytes] * 4

    @pytest.mark.parametrize("integer", [np.int64(100), np.uint8(100), np.array(100)])
    def test_sizes_of_other_integer_types(self, reader, integer):
        """Whatever is an integer is a size and an offset, as numpy's are."""
        assert reader.seek(integer) == 100
        assert reader.read(integer) == CONTENT[100:200]
        assert reader.read1(integer) == CONTENT[200:300]
        assert reader.seek(integer, np.int32(io.SEEK_CUR)) == 400

    @pytest.mark.parametrize("size", ["10", 1.5, b"1", [1], np.float64(3)])
    def test_sizes_of_wrong_types(self, reader, traffic, size):
        """A size that is no integer is refused by name, before any request."""
        for call in (reader.read, reader.read1, reader.readline):
            with pytest.raises(ArgumentTypeError, match="size must be an integer"):
                call(size)
        assert reader.tell() == traffic.requests == 0

    def test_read1(self, reader):
        """``read1`` returns some bytes, at most as many as asked, and none only at the end."""
        found = bytearray()
        while piece := reader.read1(700):
            assert len(piece) <= 700
            found += piece
        assert found == CONTENT
        reader.seek(0)
        assert CONTENT.startswith(reader.read1())

    # --- readinto ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "make",
        [
            functools.partial(bytearray, 1200),
            lambda: memoryview(bytearray(2000))[300:1500],
            lambda: array.array("d", bytes(1200)),
            lambda: mmap.mmap(-1, 1200),
            ctypes.c_uint32 * 300,
            lambda: np.zeros(300, np.float32),
            lambda: np.zeros((3, 25, 2), np.complex64),
            lambda: np.zeros(150, [("a", ">i4"), ("b", "f4")]),
            lambda: np.zeros((1, 1200), np.uint8, order="F"),
            lambda: torch.zeros(600, dtype=torch.float16).numpy(),
        ],
        ids=["bytearray", "slice", "array", "mmap", "ctypes", "float32", "complex", "struct", "one row", "tensor"],
    )
    def test_readinto_any_memory(self, reader, make):
        """Writable C-contiguous memory is filled, of whatever type its items are."""
        buffer = make()
        reader.seek(1000)
        for call, start in ((reader.readinto, 1000), (reader.readinto1, 2200)):
            assert call(buffer) == 1200
            assert bytes(memoryview(buffer).cast("B")) == CONTENT[start : start + 1200]
        assert reader.tell() == 3400

    def test_readinto_a_number(self, reader):
        """An array without dimensions is memory too."""
        number = np.zeros((), np.float64)
        assert reader.readinto(number) == 8
        assert number.tobytes() == CONTENT[:8]

    def test_readinto_at_the_end(self, reader):
        """Memory beyond the object's end stays as it was, and the count says how much was filled."""
        reader.seek(4900)
        buffer = bytearray(b"x" * 300)
        assert reader.readinto(buffer) == 100
        assert buffer == CONTENT[4900:] + b"x" * 200
        assert reader.readinto(buffer) == 0
        assert buffer == CONTENT[4900:] + b"x" * 200

    @pytest.mark.parametrize(
        "buffer", [b"12345", memoryview(bytearray(5)).toreadonly(), np.frombuffer(b"12345", np.uint8), b""]
    )
    def test_readinto_read_only(self, reader, traffic, buffer):
        """Memory that cannot be written is refused, also where there is none of it, and costs no request."""
        with pytest.raises(ArgumentTypeError, match="is read-only"):
            reader.readinto(buffer)
        assert reader.tell() == traffic.requests == 0

    @pytest.mark.parametrize("buffer", ["12345", 5, None, torch.zeros(5, device="meta"), [0] * 5, np.zeros(5, "M8[s]")])
    def test_readinto_no_memory(self, reader, traffic, buffer):
        """What is no memory is refused with a remedy, and costs no request."""
        with pytest.raises(ArgumentTypeError, match=r"bytes-like object .* is needed"):
            reader.readinto(buffer)
        assert reader.tell() == traffic.requests == 0

    @pytest.mark.parametrize(
        "buffer", [np.zeros(10)[::2], np.zeros((3, 4)).T, np.zeros((3, 4), order="F"), memoryview(bytearray(9))[::-1]]
    )
    def test_readinto_with_gaps(self, reader, traffic, buffer):
        """Memory with gaps or in another order is refused rather than filled wrongly."""
        with pytest.raises(ArgumentError, match="C-contiguous"):
            reader.readinto(buffer)
        assert reader.tell() == traffic.requests == 0

    # --- seek --------------------------------------------------------------------------------------------------------

    def test_seek_from_each_origin(self, reader):
        """``seek`` returns the new position, which ``tell`` returns as well and where reading goes on."""
        for arguments, target in (
            ((70,), 70),
            ((70, io.SEEK_SET), 70),
            ((30, io.SEEK_CUR), 100),
            ((-100, io.SEEK_CUR), 0),
            ((-1, io.SEEK_END), 4999),
            ((0, io.SEEK_END), 5000),
            ((-5000, io.SEEK_END), 0),
            ((4998,), 4998),
        ):
            assert reader.seek(*arguments) == reader.tell() == target
        assert reader.read() == CONTENT[4998:]

    @pytest.mark.parametrize("is_read_before", [False, True])
    def test_seek_beyond_the_end(self, reader, is_read_before):
        """Beyond the end is the end: unlike other files, as in s3torchconnector."""
        if is_read_before:
            reader.read(1)
        for arguments in ((5001,), (2**70,), (9999, io.SEEK_CUR), (1, io.SEEK_END), (2**70, io.SEEK_END)):
            assert reader.seek(*arguments) == reader.tell() == 5000
            assert reader.read(1) == b""
            reader.seek(10)

    @pytest.mark.parametrize("arguments", [(-1,), (-101, io.SEEK_CUR), (-5001, io.SEEK_END)])
    def test_seek_before_the_begin(self, reader, arguments):
        """A negative position is refused with its number, and the position stays where it was."""
        reader.seek(100)
        with pytest.raises(ArgumentError, match="negative seek value -1") as caught:
            reader.seek(*arguments)
        assert isinstance(caught.value, ValueError)
        assert reader.tell() == 100
        assert reader.read(10) == CONTENT[100:110]

    @pytest.mark.parametrize("whence", [3, -1, 99])
    def test_seek_from_an_unknown_origin(self, reader, whence):
        """A whence that does not exist is refused with its number; the position stays where it was."""
        reader.seek(100)
        with pytest.raises(ArgumentError, match=f"Seek must be passed SEEK_CUR, .* got {whence}"):
            reader.seek(0, whence)
        assert reader.tell() == 100

    @pytest.mark.parametrize("wrong", ["1", 1.0, None, b"1"])
    def test_seek_by_wrong_types(self, reader, wrong):
        """An offset or a whence that is no integer is a TypeError that names it."""
        reader.seek(100)
        with pytest.raises(ArgumentTypeError, match="offset must be an integer"):
            reader.seek(wrong)
        with pytest.raises(ArgumentTypeError, match="whence must be an integer"):
            reader.seek(0, wrong)
        assert reader.tell() == 100

    # --- lines -------------------------------------------------------------------------------------------------------

    def test_readline(self, reader):
        """``readline`` returns a line with its newline, at most so many bytes of it, and nothing at the end."""
        model = io.BytesIO(CONTENT)
        for size in (None, -1, 1, 50, 10**6, 3, 300):
            assert reader.readline(size) == model.readline(size)
            assert reader.tell() == model.tell()
        reader.seek(-3, io.SEEK_END)
        assert [reader.readline(), reader.readline()] == [CONTENT[-3:], b""]

    def test_iteration(self, long, traffic):
        """A reader is an iterator of its lines, which are fetched 64 KiB at a time at least, not byte by byte."""
        assert list(long) == list(io.BytesIO(LONG)) != [LONG]
        assert traffic.requests <= len(LONG) / _LINE_WINDOW + 1

    def test_readlines(self, reader):
        """``readlines`` returns the lines that are left, or only as many as reach a number of bytes."""
        model = io.BytesIO(CONTENT)
        assert reader.readlines(600) == model.readlines(600)
        assert reader.readlines() == model.readlines()
        assert reader.readlines() == []

    def test_a_line_without_end(self, open_key, put, key, traffic):
        """An object without a newline is one line."""
        put(key, b"x" * 200_000)
        reader = open_key(key)
        traffic.restart()
        assert reader.readline(10) == b"x" * 10
        assert reader.readline() == b"x" * 199_990
        assert traffic.requests <= 200_000 / _LINE_WINDOW + 1

    def test_lines_and_reads_mixed(self, reader):
        """Lines and bytes can be read in turn: both go by one position."""
        model = io.BytesIO(CONTENT)
        for seed in range(40):
            target = random.Random(seed).randrange(4900)
            assert reader.seek(target) == model.seek(target)
            assert reader.readline() == model.readline()
            assert reader.read(seed) == model.read(seed)
            assert reader.readline() == model.readline()

    def test_buffered_reader(self, long, traffic):
        """``io.BufferedReader`` takes it as a raw file, and asks it for whole buffers."""
        with io.BufferedReader(long, _LINE_WINDOW) as file:
            assert file.peek(1)[:10] == LONG[:10]
            assert file.read(1000) == LONG[:1000]
            assert file.readlines() == io.BytesIO(LONG[1000:]).readlines()
            assert traffic.requests <= len(LONG) / _LINE_WINDOW + 2
            assert file.seek(-7, io.SEEK_END) == len(LONG) - 7
            assert file.read() == LONG[-7:]
        assert long.closed

    def test_text(self, open_key, put, key, traffic):
        """``io.TextIOWrapper`` makes text of it, at a request for 64 KiB at most."""
        text = "héllo, wörld: 日本 🦜\n" * 10_000
        put(key, text.encode())
        reader = open_key(key)
        traffic.restart()
        with io.TextIOWrapper(reader, "utf-8") as file:
            assert list(file) == text.splitlines(keepends=True)
        assert traffic.requests <= len(text.encode()) / _LINE_WINDOW + 2
        assert reader.closed

    # --- an empty object ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("call", READS.values(), ids=READS)
    def test_an_empty_object(self, empty, call):
        """An object of 0 bytes reads as nothing, whatever comes first: there is no range in it to ask for."""
        assert not call(empty)
        assert empty.read() == b""
        assert empty.size == empty.tell() == 0

    def test_an_object_that_was_listed_as_empty(self, client, bucket, open_key, stored, traffic):
        """An object that was empty when it was listed is looked at once, and is empty from then on."""
        known = client.head_object(bucket, stored["empty"])
        reader = open_key(stored["empty"], object_info=known)
        traffic.restart()
        assert reader.read() + reader.read(10) + reader.readline() == b""
        assert reader.size == reader.seek(0, io.SEEK_END) == 0
        assert traffic.requests == 1

    # --- what it asks for, and when ----------------------------------------------------------------------------------

    def test_lazy(self, open_key, stored, traffic):
        """Nothing is sent before something has to be known."""
        reader = open_key(stored["content"])
        assert reader.tell() == reader.seek(0) == reader.seek(0, io.SEEK_CUR) == 0
        assert repr(reader)
        assert reader.readable()
        pickle.dumps(reader)
        reader.close()
        assert traffic.requests == 0

    def test_size(self, reader, traffic):
        """The size is asked for once, if it is needed before a read."""
        assert reader.size == reader.size == 5000
        assert traffic.requests == 1

    def test_size_comes_with_a_read(self, reader, traffic):
        """Any answer tells the size: after a read nothing is asked for it."""
        reader.read(100)
        traffic.restart()
        assert reader.size == reader.seek(0, io.SEEK_END) == 5000
        assert reader.read() == b""
        assert traffic.requests == 0

    def test_size_comes_with_a_listing(self, client, bucket, open_key, stored, traffic):
        """What a listing or a HEAD told is not asked for again."""
        (listed,) = next(client.list_objects(bucket, stored["content"])).object_info
        headed = client.head_object(bucket, stored["content"])
        for known in (listed, headed):
            reader = open_key(stored["content"], object_info=known)
            traffic.restart()
            assert reader.size == reader.seek(0, io.SEEK_END) == 5000
            assert traffic.requests == 0
            reader.seek(-10, io.SEEK_CUR)
            assert reader.read() == CONTENT[-10:]
            assert traffic.requests == 1

    def test_reading_once_is_one_request(self, reader, traffic):
        """A small object that is read whole costs one request, whatever the reader."""
        reader.read()
        assert traffic.requests == 1

    # --- versions ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("after", [b"", b"n" * 100, b"n" * 5000, b"n" * 9000], ids=len)
    @pytest.mark.parametrize("source", ["listing", "head", "size"])
    def test_replaced_since_it_was_listed(self, client, bucket, open_key, put, key, source, after):
        """An object that was replaced since its listing raises: never zeros, never a part of it, never a mixture."""
        put(key, CONTENT)
        known = {
            "listing": next(client.list_objects(bucket, key)).object_info[0],
            "head": client.head_object(bucket, key),
            "size": ObjectInfo(key, "", len(CONTENT), 0),
        }[source]
        put(key, after)
        if source == "size" and len(after) == len(CONTENT):
            assert open_key(key, object_info=known).read() == after  # nothing tells the two apart
            return
        for start in (0, 50, 4000):
            for call in (READS[name] for name in ("read", "read(10)", "readinto", "readline", "list")):
                reader = open_key(key, object_info=known)
                reader.seek(start)
                for _ in range(2):
                    with pytest.raises(ObjectChangedError, match="was replaced") as caught:
                        call(reader)
                    assert (caught.value.bucket, caught.value.key) == (bucket, key)
                    assert reader.tell() == start

    def test_grown_since_it_was_listed_as_empty(self, open_key, put, key):
        """An object that was empty when it was listed and is not now raises: it is not taken for empty."""
        put(key, CONTENT)
        reader = open_key(key, object_info=ObjectInfo(key, "", 0, 0))
        with pytest.raises(ObjectChangedError):
            reader.read()

    @pytest.mark.parametrize("size", [5000, 300_000])
    def test_replaced_between_two_reads(self, open_key, put, key, size):
        """All that one reader returns is of one version: what follows is of the old one too, or raises."""
        old = lines(size)
        put(key, old)
        reader = open_key(key)
        found = reader.read(1)
        put(key, b"n" * size)
        with contextlib.suppress(ObjectChangedError):
            found += reader.read()
        assert old.startswith(found)

    def test_a_reader_is_of_one_version_for_good(self, open_key, put, key):
        """A reader that met another version goes on refusing, and a new one reads the new version."""
        put(key, CONTENT)
        reader = open_key(key, object_info=ObjectInfo(key, '"another"', len(CONTENT), 0))
        for _ in range(2):
            with pytest.raises(ObjectChangedError):
                reader.read(10)
        assert open_key(key).read() == CONTENT

    # --- what is not there -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("call", READS.values(), ids=READS)
    def test_missing_key(self, open_key, bucket, key, call):
        """A key that does not exist is named by whatever asks first, with the remedy."""
        reader = open_key(key)
        with pytest.raises(
            ObjectNotFoundError, match=f"s3://{bucket}/{key} does not exist .*list the prefix"
        ) as caught:
            call(reader)
        assert (caught.value.bucket, caught.value.key, caught.value.status) == (bucket, key, 404)
        assert isinstance(caught.value, FileNotFoundError)
        assert reader.tell() == 0

    def test_missing_bucket(self, client, config):
        """A bucket that does not exist is named as such by the first read."""
        reader = client.get_object("no-such-bucket", "key", reader_config=config)
        with pytest.raises(BucketNotFoundError, match="Bucket 'no-such-bucket' of s3://no-such-bucket/key does not"):
            reader.read()
        with pytest.raises(NotFoundError, match="s3://no-such-bucket/key"):
            _ = client.get_object("no-such-bucket", "key", reader_config=config).size

    def test_a_failed_read_can_be_repeated(self, open_key, put, key):
        """After an error the reader stands where it stood, and reads on once the cause is gone."""
        reader = open_key(key)
        for call in (reader.read, reader.readline, lambda: reader.seek(5)):
            with pytest.raises(ObjectNotFoundError):
                call()
        put(key, CONTENT)
        assert reader.read(10) + reader.read() == CONTENT

    # --- life --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("call", (READS | OTHERS).values(), ids=READS | OTHERS)
    def test_closed(self, reader, bucket, stored, call):
        """Closed is closed: every call is refused, also of what it holds, naming the object and the remedy."""
        reader.read()
        reader.close()
        with pytest.raises(
            ClosedError, match=r"^I/O operation on closed file: .* was closed\. Open another\.$"
        ) as caught:
            call(reader)
        assert f"s3://{bucket}/{stored['content']}" in str(caught.value)
        assert (caught.value.bucket, caught.value.key) == (bucket, stored["content"])

    def test_close(self, open_key, stored):
        """A reader can be closed twice, before anything was read, and by a with block."""
        with open_key(stored["content"]) as reader:
            assert not reader.closed
        assert reader.closed
        reader.close()
        assert reader.closed
        assert (reader.bucket, reader.key) == ("tests", stored["content"])

    @pytest.mark.parametrize("call", ["fileno", "truncate", "detach", "write"])
    def test_not_supported(self, reader, call):
        """What an object in S3 cannot do is refused as io has it."""
        with pytest.raises(io.UnsupportedOperation):
            getattr(reader, call)(*[b"x"] * (call == "write"))

    def test_abilities(self, reader):
        """It says what it can do: read and seek."""
        assert (reader.readable(), reader.seekable(), reader.writable(), reader.isatty()) == (True, True, False, False)
        assert isinstance(reader, io.BufferedIOBase)

    def test_repr(self, reader, bucket, stored):
        """The repr shows kind, object, position, size once it is known, and the end."""
        kind, where = type(reader).__name__, f"s3://{bucket}/{stored['content']}"
        assert repr(reader) == f"<{kind} {where} position=0 size=unknown>"
        reader.read(10)
        assert repr(reader) == f"<{kind} {where} position=10 size=5000>"
        reader.close()
        assert repr(reader) == f"<{kind} {where} position=10 size=5000 closed>"

    def test_pickle(self, long, s3):
        """A pickled reader reads on where it was; what it holds is not in the pickle, nor is a secret."""
        long.read(100)
        long.readline()
        start = long.seek(1000)
        pickled = pickle.dumps(long)
        assert len(pickled) < 4 * KiB
        assert s3.secret_key.encode() not in pickled
        restored = pickle.loads(pickled)
        assert type(restored) is type(long)
        assert (restored.bucket, restored.key, restored.tell()) == (long.bucket, long.key, start)
        assert restored.readline() == LONG[1000:].partition(b"\n")[0] + b"\n"
        assert restored.read() == LONG[restored.seek(0, io.SEEK_CUR) :] or restored.tell() == len(LONG)
        assert long.read(5) == LONG[1000:1005]

    def test_pickle_keeps_the_version(self, open_key, put, key, s3):
        """A pickled reader is of the version that it was of."""
        put(key, CONTENT)
        reader = open_key(key)
        reader.read(1)
        pickled = pickle.dumps(reader)
        put(key, b"n" * 5000)
        with pytest.raises(ObjectChangedError):
            pickle.loads(pickled).read(1)

    def test_threads(self, reader):
        """A reader can be handed from thread to thread."""
        found = reader.read(1000)
        for _ in range(2):
            with ThreadPoolExecutor(1) as pool:
                found += pool.submit(reader.read, 1500).result()
        assert found + reader.read() == CONTENT

    def test_two_readers_of_one_client(self, open_key, stored):
        """Readers of one object do not disturb each other."""
        first, second = open_key(stored["content"]), open_key(stored["content"])
        assert first.read(100) == second.read(100)
        second.close()
        assert first.read() == CONTENT[100:]

    # --- what reads files --------------------------------------------------------------------------------------------

    def test_zip(self, open_key, put, key):
        """The members of a zip archive can be read, in any order."""
        members = {f"{number}.bin": lines(1000 * number) for number in range(5)}
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        put(key, file.getvalue())
        with zipfile.ZipFile(open_key(key)) as archive:
            assert archive.testzip() is None
            assert {name: archive.read(name) for name in reversed(archive.namelist())} == members

    @pytest.mark.parametrize("mode", ["r:", "r:gz", "r|", "r:*"])
    def test_tar(self, open_key, put, key, mode):
        """The members of a tar archive can be read, with seeking and as a stream."""
        members = {f"{number}.bin": lines(1000 * number) for number in range(5)}
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz" if mode == "r:gz" else "w") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        put(key, file.getvalue())
        with tarfile.open(fileobj=open_key(key), mode=mode) as archive:
            assert {member.name: archive.extractfile(member).read() for member in archive} == members

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
    def test_image(self, open_key, put, key, kind):
        """PIL decodes an image straight from it."""
        pixels = np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        put(key, file.getvalue())
        expected = np.asarray(Image.open(file))
        with open_key(key) as reader, Image.open(reader) as image:
            assert (np.asarray(image) == expected).all()

    def test_numpy(self, open_key, put, key):
        """Numpy loads an array, and the arrays of an archive."""
        values = np.arange(5000, dtype=np.float32).reshape(50, 100)
        for save, load in (
            (lambda file: np.save(file, values), np.load),
            (lambda file: np.savez_compressed(file, a=values), lambda file: np.load(file)["a"]),
        ):
            file = io.BytesIO()
            save(file)
            put(key, file.getvalue())
            assert (load(open_key(key)) == values).all()

    @pytest.mark.parametrize("is_zip", [True, False])
    def test_torch(self, open_key, put, key, is_zip):
        """Torch loads tensors, of its current and its old file format."""
        tensors = {"weight": torch.arange(5000.0).reshape(50, 100), "bias": torch.ones(7, dtype=torch.bfloat16)}
        file = io.BytesIO()
        torch.save(tensors, file, _use_new_zipfile_serialization=is_zip)
        put(key, file.getvalue())
        loaded = torch.load(open_key(key), weights_only=True)
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
