"""Tests of the User-Agent field."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError

import pytest

from s3torch._aws import user_agent as module
from s3torch._aws.user_agent import user_agent
from s3torch._transfer.http1 import build_head
from s3torch._version import __version__


@pytest.fixture
def machine(monkeypatch):
    """A machine that says what the test tells it to; returns the means to tell it."""
    # A process asks once; what this one has been told is set aside.
    monkeypatch.setattr(module, "_torch_version", functools.cache(module._torch_version.__wrapped__))

    def tell(*, torch: str | None = "2.3.1+cu121", **facts: str) -> None:
        defaults = {"system": "Linux", "release": "6.1.0-18-amd64", "machine": "x86_64", "python_version": "3.11.7"}
        for name, value in {**defaults, **facts}.items():
            monkeypatch.setattr(platform, name, lambda value=value: value)

        def version(package: str) -> str:
            assert package == "torch"
            if torch is None:
                raise PackageNotFoundError(package)
            return torch

        monkeypatch.setattr("importlib.metadata.version", version)

    return tell


def test_everything(machine):
    """The field names s3torch, the system, Python, the machine, torch, and what uses the client."""
    machine()
    assert user_agent(["md/dataset#map md/reader_type#sequential", "my-trainer/2"]) == (
        f"s3torch/{__version__} ua/2.1 os/linux#6.1.0-18-amd64 lang/python#3.11.7 md/arch#x86_64 "
        "md/pytorch#2.3.1+cu121 (md/dataset#map md/reader_type#sequential; my-trainer/2)"
    )


@pytest.mark.parametrize("comments", [(), [], [""], ["", ""]])
def test_no_comments(machine, comments):
    """Without comments, or with empty ones, there are no brackets."""
    machine()
    assert user_agent(comments).endswith(" md/pytorch#2.3.1+cu121")


def test_empty_comments_are_left_out(machine):
    """An empty comment leaves no trace between others."""
    machine()
    assert user_agent(["a", "", "b"]).endswith(" (a; b)")


def test_without_torch(machine):
    """Where torch is not installed the field says so."""
    machine(torch=None)
    assert " md/pytorch#none" in user_agent()


def test_torch_is_asked_once(machine):
    """The version of torch is read once by a process, not for each client."""
    machine()
    first = user_agent()
    machine(torch="9.9")
    assert user_agent() == first


def test_odd_facts(machine):
    """What a token cannot hold is replaced, and what is not known is called so: a space would make two fields."""
    machine(system="Windows NT", release="10 (build/1)\r\nX: y", machine="", torch="2.3 ü")
    assert user_agent() == (
        f"s3torch/{__version__} ua/2.1 os/windows-nt#10--build-1---X--y lang/python#3.11.7 md/arch#unknown "
        "md/pytorch#2.3--"
    )


def test_it_can_be_sent():
    """The field of this very machine is one that a request can carry."""
    build_head("GET", "/", {"user-agent": user_agent(["md/dataset#map"])})
