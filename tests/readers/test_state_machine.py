"""Whatever is done to a reader in whatever order, it answers as ``io.BytesIO`` would."""

from __future__ import annotations

import functools
import io

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from s3torch import S3Client, S3Reader
from tests.readers.conformance import lines
from tests.readers.test_readers import KINDS

KiB = 1024
MiB = 1024 * KiB

_SIZES = [0, 1, 64 * KiB - 1, 64 * KiB, 64 * KiB + 1, 300_000]
_LARGE = 11 * MiB + 1
_PART = 5 * MiB

# Around what matters inside: one byte, the buffers of KINDS, the window for lines, the sizes of the objects.
_EDGES = sorted({edge + near for edge in (0, 1, 1000, 64 * KiB, 300_000, _PART, _LARGE) for near in (-1, 0, 1)})
_counts = st.one_of(st.integers(0, 2000), st.sampled_from([edge for edge in _EDGES if edge >= 0]))
_offsets = st.one_of(st.integers(-2000, 2000), st.sampled_from(_EDGES), st.sampled_from([-edge for edge in _EDGES]))
_limits = st.one_of(st.none(), st.just(-1), _counts)


class ReaderMachine(RuleBasedStateMachine):
    """A reader beside a BytesIO of the same content.

    Args:
        open_reader: Returns a reader of a key; with ``knows_size`` one that was told what a HEAD tells.
        contents: Of the objects, by their keys.
    """

    def __init__(self, open_reader, contents: dict[str, bytes]) -> None:
        super().__init__()
        self._open = open_reader
        self._contents = contents
        self.reader: S3Reader | None = None
        self.model = io.BytesIO()

    @initialize(data=st.data(), knows_size=st.booleans())
    def begin(self, data, knows_size):
        key = data.draw(st.sampled_from(sorted(self._contents)), "key")
        self.reader = self._open(key, knows_size=knows_size)
        self.model = io.BytesIO(self._contents[key])

    @rule(limit=_limits)
    def read(self, limit):
        assert self.reader.read(limit) == self.model.read(limit)

    @rule(limit=_limits)
    def read1(self, limit):
        found = self.reader.read1(limit)
        assert found == self.model.read(len(found))
        is_end = self.model.tell() == len(self.model.getbuffer())
        assert found or limit == 0 or is_end
        assert limit in (None, -1) or len(found) <= limit

    @rule(count=_counts)
    def readinto(self, count):
        mine, its = bytearray(count), bytearray(count)
        assert self.reader.readinto(mine) == self.model.readinto(its)
        assert mine == its

    @rule(offset=_offsets, whence=st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END]))
    def seek(self, offset, whence):
        end = len(self.model.getbuffer())
        target = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.model.tell(), io.SEEK_END: end}[whence]
        if target < 0:
            with pytest.raises(ValueError, match="negative seek value"):
                self.reader.seek(offset, whence)
        else:
            assert self.reader.seek(offset, whence) == self.model.seek(min(target, end))

    @rule(limit=_limits)
    def readline(self, limit):
        assert self.reader.readline(limit) == self.model.readline(limit)

    @rule(hint=st.integers(1, 3000))
    def readlines(self, hint):
        expected = []  # BytesIO.readlines stops a line earlier than documented where the lines are hint bytes exactly
        while sum(map(len, expected)) <= hint and (line := self.model.readline()):
            expected.append(line)
        assert self.reader.readlines(hint) == expected

    @rule()
    def iterate(self):
        assert next(self.reader, None) == next(self.model, None)

    @rule()
    def size(self):
        assert self.reader.size == len(self.model.getbuffer())

    @invariant()
    def same_position(self):
        if self.reader is not None:
            assert self.reader.tell() == self.model.tell()


def _open(client: S3Client, bucket: str, config, key: str, *, knows_size: bool) -> S3Reader:
    known = client.head_object(bucket, key) if knows_size else None
    return client.get_object(bucket, key, object_info=known, reader_config=config)


@pytest.fixture(scope="module")
def contents(client, bucket) -> dict[str, bytes]:
    """Objects of several sizes, whose lines are short and, in one of them, 100 kB long."""
    contents = {f"machine/{size:06}": lines(size) for size in _SIZES}
    contents["machine/long-lines"] = (b"x" * 100_000 + b"\n") * 3
    for key, content in contents.items():
        with client.put_object(bucket, key) as writer:
            writer.write(content)
    return contents


def _settings(share: int, steps: int) -> settings:
    """Return the profile's settings, with a share of its examples: one here is dozens of requests."""
    chosen = settings.get_current_profile_name()
    profile = settings.get_profile(chosen)
    return settings(profile, max_examples=max(2, profile.max_examples // share), stateful_step_count=steps)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_like_bytesio(client, bucket, contents, config):
    """Any sequence of calls gives what BytesIO gives, except that seeking beyond the end stays at the end."""
    open_reader = functools.partial(_open, client, bucket, config)
    run_state_machine_as_test(lambda: ReaderMachine(open_reader, contents), settings=_settings(2, steps=40))


@pytest.mark.parametrize("name", ["sequential", "ranged", "ranged, buffer 1000"])
def test_like_bytesio_in_parts(small_parts, bucket, name):
    """So it does where a read takes several parallel requests."""
    content = lines(1000) * (_LARGE // 1000) + lines(_LARGE % 1000)
    with small_parts.put_object(bucket, "machine/parts") as writer:
        writer.write(content)
    open_reader = functools.partial(_open, small_parts, bucket, KINDS[name])
    machine = functools.partial(ReaderMachine, open_reader, {"machine/parts": content})
    run_state_machine_as_test(machine, settings=_settings(5, steps=15))
