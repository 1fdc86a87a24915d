"""Tests of the configuration: defaults, limits, and errors that name what is wrong."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3torch import config
from s3torch.config import ReaderType, S3ClientConfig, S3ReaderConfig
from s3torch.errors import ArgumentTypeError, ConfigError

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

# A float holds no number beyond about 1.8e308; an int does.
BEYOND_FLOATS = 10**400


def test_defaults():
    """Every field of the client's configuration has this default."""
    assert dataclasses.asdict(S3ClientConfig()) == {
        "throughput_target_gbps": None,
        "part_size": 8 * MiB,
        "unsigned": False,
        "force_path_style": False,
        "max_attempts": 10,
        "profile": None,
        "requester_pays": False,
        "max_connections": None,
        "max_bytes_in_flight": None,
        "max_objects_ahead": 128,
        "max_threads": 4,
        "connect_timeout": 10.0,
        "first_byte_timeout": 30.0,
        "stall_timeout": 20.0,
        "call_timeout": None,
        "hedging": True,
        "checksums": "on",
        "sse_customer_key_file": None,
        "verify": True,
        "client_cert": None,
        "proxies": None,
    }


def test_reader_defaults():
    """Unless told otherwise an object is read forwards, and there is neither a buffer size nor a window."""
    assert dataclasses.asdict(S3ReaderConfig()) == {
        "reader_type": ReaderType.SEQUENTIAL,
        "buffer_size": None,
        "max_window": None,
    }
    assert S3ReaderConfig() == S3ReaderConfig.sequential()


def test_positions():
    """The first seven fields keep the positions that users of s3torchconnector know; the rest are keywords."""
    parameters = inspect.signature(S3ClientConfig).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        "throughput_target_gbps",
        "part_size",
        "unsigned",
        "force_path_style",
        "max_attempts",
        "profile",
        "requester_pays",
    ]
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)


@pytest.mark.parametrize("kind", [S3ClientConfig, S3ReaderConfig])
def test_every_field_is_documented(kind: type):
    """Each field stands in the docstring."""
    documented = inspect.getdoc(kind).partition("Args:")[2]
    assert [field.name for field in dataclasses.fields(kind) if f"\n    {field.name}: " not in documented] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("throughput_target_gbps", 0.001),
        ("throughput_target_gbps", 400),
        ("part_size", 5 * MiB),
        ("part_size", 5 * GiB),
        ("unsigned", True),
        ("force_path_style", True),
        ("max_attempts", 1),
        ("max_attempts", 1000),
        ("profile", "training"),
        ("requester_pays", True),
        ("max_connections", 1),
        ("max_connections", 10_000),
        ("max_bytes_in_flight", MiB),
        ("max_bytes_in_flight", 1 << 50),
        ("connect_timeout", 1),
        ("first_byte_timeout", 1e-3),
        ("stall_timeout", 1e9),
        ("checksums", "off"),
        ("checksums", "strict"),
        ("verify", False),
        ("verify", "ca.pem"),
        ("verify", Path("ca.pem")),
    ],
)
def test_good_values(name: str, value: object):
    """The limits themselves are allowed."""
    assert getattr(S3ClientConfig(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "bounds"),
    [
        ("part_size", 5 * MiB - 1, "between 5242880 and 5368709120"),
        ("part_size", 5 * GiB + 1, "between 5242880 and 5368709120"),
        ("part_size", 0, "between 5242880 and 5368709120"),
        ("part_size", -8 * MiB, "between 5242880 and 5368709120"),
        ("max_attempts", 0, "between 1 and 1000"),
        ("max_attempts", 1001, "between 1 and 1000"),
        ("max_connections", 0, "between 1 and 10000"),
        ("max_connections", 10_001, "between 1 and 10000"),
        ("max_bytes_in_flight", MiB - 1, "at least 1048576"),
    ],
)
def test_numbers_out_of_range(name: str, value: int, bounds: str):
    """A number beyond its limits is refused by name, value and limits."""
    with pytest.raises(ConfigError) as caught:
        S3ClientConfig(**{name: value})
    assert str(caught.value) == f"S3ClientConfig({name}={value}) is out of range: it must be {bounds}."


@pytest.mark.parametrize("name", ["throughput_target_gbps", "connect_timeout", "first_byte_timeout", "stall_timeout"])
@pytest.mark.parametrize("value", [0, 0.0, -1, -0.5, math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_positive(name: str, value: float):
    """Times and rates are finite and above 0; anything else is refused by name and value."""
    with pytest.raises(ConfigError) as caught:
        S3ClientConfig(**{name: value})
    assert str(caught.value) == f"S3ClientConfig({name}={value}) must be a finite number above 0."


@pytest.mark.parametrize("name", ["throughput_target_gbps", "connect_timeout", "first_byte_timeout", "stall_timeout"])
def test_numbers_beyond_floats(name: str):
    """A time or rate that no float can hold is refused by name, like infinity."""
    with pytest.raises(ConfigError, match=rf"S3ClientConfig\({name}="):
        S3ClientConfig(**{name: BEYOND_FLOATS})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("part_size", "max_attempts", "max_connections", "max_bytes_in_flight")
        for value in (None, True, 8e6, "8", Decimal(8), [8])
        if value is not None or name not in ("max_connections", "max_bytes_in_flight")
    ],
)
def test_no_integer(name: str, value: object):
    """What is no int is an error of type, by name and value; a bool is no int."""
    with pytest.raises(ArgumentTypeError) as caught:
        S3ClientConfig(**{name: value})
    assert str(caught.value) == f"S3ClientConfig({name}=...) must be an int, got {value!r}."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("throughput_target_gbps", "connect_timeout", "first_byte_timeout", "stall_timeout")
        for value in (None, True, "10", Decimal(10), [10], 1j)
        if (name, value) != ("throughput_target_gbps", None)
    ],
)
def test_no_number(name: str, value: object):
    """What is no number is an error of type, by name and value; a bool is no number."""
    with pytest.raises(ArgumentTypeError) as caught:
        S3ClientConfig(**{name: value})
    assert str(caught.value) == f"S3ClientConfig({name}=...) must be a number, got {value!r}."


@pytest.mark.parametrize("name", ["unsigned", "force_path_style", "requester_pays"])
@pytest.mark.parametrize("value", [None, 0, 1, "false", "", []])
def test_no_bool(name: str, value: object):
    """What is no bool is an error of type, by name and value: the string 'false' would be true."""
    with pytest.raises(ArgumentTypeError) as caught:
        S3ClientConfig(**{name: value})
    assert str(caught.value) == f"S3ClientConfig({name}=...) must be a bool, got {value!r}."


@pytest.mark.parametrize("value", [True, 7, b"default", Path("default")])
def test_profile_is_no_string(value: object):
    """A profile that is no str is an error of type, by name and value."""
    with pytest.raises(ArgumentTypeError) as caught:
        S3ClientConfig(profile=value)
    assert str(caught.value) == f"S3ClientConfig(profile=...) must be a str, got {value!r}."


@pytest.mark.parametrize("value", [None, 0, 1, b"ca.pem", ["ca.pem"]])
def test_verify_is_neither_bool_nor_path(value: object):
    """``verify`` is a bool or a path, and anything else is an error of type that shows it."""
    with pytest.raises(ArgumentTypeError) as caught:
        S3ClientConfig(verify=value)
    assert str(caught.value) == f"S3ClientConfig(verify=...) must be a bool or the path of a PEM file, got {value!r}."


@pytest.mark.parametrize("value", [None, True, False, 1, b"on"])
def test_checksums_is_no_string(value: object):
    """What is done about checksums is named by a str."""
    with pytest.raises(ArgumentTypeError) as caught:
        S3ClientConfig(checksums=value)
    assert str(caught.value) == f"S3ClientConfig(checksums=...) must be a str, got {value!r}."


@pytest.mark.parametrize("value", ["", "ON", "crc32"])
def test_unknown_checksums(value: str):
    """A name that means nothing is refused with those that do."""
    with pytest.raises(ConfigError) as caught:
        S3ClientConfig(checksums=value)
    assert str(caught.value) == f"S3ClientConfig(checksums={value!r}) must be one of on, off, strict."


def test_unsigned_and_requester_pays():
    """Nobody can pay without signing, so the two contradict each other."""
    with pytest.raises(ConfigError) as caught:
        S3ClientConfig(unsigned=True, requester_pays=True)
    assert str(caught.value) == (
        "S3ClientConfig(unsigned=True, requester_pays=True) cannot work: "
        "whoever pays for a request must sign it. Drop one of the two."
    )


def test_unknown_field():
    """A misspelt field is refused."""
    with pytest.raises(TypeError, match="part_sise"):
        S3ClientConfig(part_sise=8 * MiB)


@pytest.mark.parametrize(
    "made",
    [
        S3ClientConfig(part_size=16 * MiB, verify=Path("ca.pem")),
        S3ReaderConfig.range_based(4096),
        S3ReaderConfig.adaptive(MiB),
    ],
)
def test_values(made: object):
    """A configuration is a value: frozen, equal to its like, hashable, and whole after pickling and copying."""
    for field in dataclasses.fields(made):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, field.name, None)
    for twin in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made), dataclasses.replace(made)):
        assert twin == made
        assert hash(twin) == hash(made)
        assert repr(twin) == repr(made)
    assert made != type(made)()


def test_replacing_checks_again():
    """A changed copy is checked like a new one."""
    with pytest.raises(ConfigError, match="max_attempts=0"):
        dataclasses.replace(S3ClientConfig(), max_attempts=0)


@pytest.mark.parametrize(
    ("target", "most", "connections"),
    [
        (None, 64, 64),
        (None, 7, 7),
        (0.001, 64, 1),
        (0.64, 64, 1),  # exactly the 80 MB/s of one connection
        (0.641, 64, 2),
        (10, 64, 16),  # 15.6
        (25.0, 64, 40),  # 39.06
        (100, 64, 64),  # 156.25, more than allowed
        (100, 200, 157),
        (100, 1, 1),
    ],
)
def test_connections(target: float | None, most: int, connections: int):
    """No more connections are opened than the throughput takes at 80 MB/s each, nor more than the limit."""
    assert S3ClientConfig(throughput_target_gbps=target, max_connections=most).connections == connections


@pytest.mark.parametrize(("target", "connections"), [(None, 128), (10, 16), (100, 128), (0.001, 1)])
def test_connections_of_one_process(target: float | None, connections: int):
    """A process that has its node for itself opens 128 connections, unless it aims at less, and waits for 256 MiB."""
    made = S3ClientConfig(throughput_target_gbps=target)
    assert (made.connections, made.bytes_in_flight) == (connections, 256 * MiB)
    assert made.connections_of(16) == min(connections, 16)
    assert S3ClientConfig(max_bytes_in_flight=512 * MiB).bytes_in_flight == 512 * MiB


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False), st.integers(1, 10_000))
@example(5e-324, 64)
@example(1e308, 64)
def test_connections_are_at_least_one(target: float, most: int):
    """Whatever throughput is aimed at, there is a connection to carry it and there are no more than the limit."""
    assert 1 <= S3ClientConfig(throughput_target_gbps=target, max_connections=most).connections <= most


def test_range_based():
    """The range-based reader takes a buffer size of 0 or more, or none."""
    assert S3ReaderConfig.range_based() == S3ReaderConfig(ReaderType.RANGE_BASED, None)
    assert S3ReaderConfig.range_based(0).buffer_size == 0
    assert S3ReaderConfig.range_based(buffer_size=MiB).buffer_size == MiB


def test_reader_type_strings():
    """The names of the kinds are those that stand in the user agent."""
    assert S3ReaderConfig.sequential().get_reader_type_string() == "sequential"
    assert S3ReaderConfig.range_based().get_reader_type_string() == "range_based"
    assert S3ReaderConfig.adaptive().get_reader_type_string() == "adaptive"


@pytest.mark.parametrize("value", ["sequential", None, 1, ReaderType])
def test_no_reader_type(value: object):
    """What is no ReaderType is an error of type that shows it and tells how to choose."""
    with pytest.raises(ArgumentTypeError) as caught:
        S3ReaderConfig(value)
    assert str(caught.value) == (
        f"S3ReaderConfig(reader_type=...) must be a ReaderType, got {value!r}. "
        "Use S3ReaderConfig.sequential(), .range_based() or .adaptive()."
    )


@pytest.mark.parametrize("value", [True, 1.5, "4096"])
def test_buffer_size_of_another_type(value: object):
    """A buffer size that is no int is an error of type, by name and value."""
    with pytest.raises(ArgumentTypeError) as caught:
        S3ReaderConfig.range_based(value)
    assert str(caught.value) == f"S3ReaderConfig(buffer_size=...) must be an int, got {value!r}."


def test_negative_buffer_size():
    """A negative buffer size is refused by name and value."""
    with pytest.raises(ConfigError) as caught:
        S3ReaderConfig.range_based(-1)
    assert str(caught.value) == "S3ReaderConfig(buffer_size=-1) is out of range: it must be at least 0."


def test_buffer_size_of_a_sequential_reader():
    """A buffer size for a reader that has none is refused, even 0."""
    with pytest.raises(ConfigError) as caught:
        S3ReaderConfig(ReaderType.SEQUENTIAL, 0)
    assert str(caught.value) == "A sequential reader has no buffer_size; drop buffer_size=0."


def test_adaptive():
    """The adaptive reader reads ahead 64 MiB at most, or as much as it is told."""
    assert S3ReaderConfig.adaptive().window_limit == S3ReaderConfig(ReaderType.ADAPTIVE).window_limit == 64 * MiB
    assert S3ReaderConfig.adaptive(max_window=MiB) == S3ReaderConfig(ReaderType.ADAPTIVE, None, MiB)
    assert S3ReaderConfig.adaptive(max_window=MiB).window_limit == MiB


@pytest.mark.parametrize("value", [True, 1e6, "64M"])
def test_max_window_of_another_type(value: object):
    """A window that is no int is an error of type, by name and value."""
    with pytest.raises(ArgumentTypeError) as caught:
        S3ReaderConfig.adaptive(value)
    assert str(caught.value) == f"S3ReaderConfig(max_window=...) must be an int, got {value!r}."


@pytest.mark.parametrize("value", [-1, 0, 16383])
def test_small_max_window(value: int):
    """A window smaller than the smallest fetch is refused by name and value."""
    with pytest.raises(ConfigError) as caught:
        S3ReaderConfig.adaptive(value)
    assert str(caught.value) == f"S3ReaderConfig(max_window={value}) is out of range: it must be at least 16384."


def test_options_of_another_reader():
    """An option of another reader is refused, whatever its value."""
    with pytest.raises(ConfigError) as caught:
        S3ReaderConfig(ReaderType.RANGE_BASED, max_window=MiB)
    assert str(caught.value) == "A range_based reader has no max_window; drop max_window=1048576."
    with pytest.raises(ConfigError) as caught:
        S3ReaderConfig(ReaderType.ADAPTIVE, 4096)
    assert str(caught.value) == "An adaptive reader has no buffer_size; drop buffer_size=4096."


def test_the_smallest_window_is_the_smallest_fetch():
    """The smallest window that can be configured holds what the adaptive reader fetches at least."""
    from s3torch.readers import window

    assert config._MIN_WINDOW == window.BLOCK


def test_limits_of_parts_agree_with_the_upload_plan():
    """The largest part that can be configured is the largest that an upload may have."""
    from s3torch._transfer import plan

    assert plan.MAX_PART_SIZE == config._MAX_PART_SIZE
