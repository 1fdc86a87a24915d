"""Tests of the parsers on anything: only documented errors escape, and what must hold does."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.__main__ import fuzz, main
from tests.fuzz.targets import TARGETS, Target, mutate

each_target = pytest.mark.parametrize("name", TARGETS)


@each_target
def test_valid_inputs(name: str):
    """What is damaged elsewhere holds undamaged, too, however it is cut."""
    target = TARGETS[name]
    for data in target.seeds:
        for seed in range(20):
            target.run(data, Random(seed))


@each_target
def test_damaged_inputs(name: str):
    """A few thousand damages of valid inputs are taken, or refused in the documented way."""
    assert fuzz([name], executions=2000, seconds=5, seed=0)[1] == []


@given(st.sampled_from(sorted(TARGETS)), st.binary(max_size=200), st.integers(0, 100))
def test_anything(name: str, data: bytes, seed: int):
    """Any bytes are taken, or refused in the documented way."""
    TARGETS[name].run(data, Random(seed))


@given(st.data(), st.sampled_from(sorted(TARGETS)))
def test_inputs_of_tokens(data: st.DataObject, name: str):
    """Pieces that mean something, in any order, are taken or refused in the documented way."""
    target = TARGETS[name]
    pieces = data.draw(st.lists(st.sampled_from(target.seeds + target.tokens), max_size=12))
    target.run(b"".join(pieces), Random(0))


def test_findings_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What breaks a promise is told with the input that shows it, and the exit status says so."""

    def run(data: bytes, chance: Random) -> None:
        assert data != b"bad"

    monkeypatch.setitem(TARGETS, "uri", Target(run, (b"bad",), (b"bad",)))
    monkeypatch.setattr("tests.fuzz.__main__.mutate", lambda data, target, chance: data)
    assert main(["--target", "uri", "--executions", "1"]) == 1
    assert "uri, seed 0, execution 1: b'bad'" in capsys.readouterr().out
    assert main(["--target", "date", "--executions", "1"]) == 0


def test_the_same_seed_gives_the_same_inputs():
    """A finding can be shown again from its seed."""
    target = TARGETS["answer"]
    first, second = ([mutate(target.seeds[0], target, chance) for _ in range(100)] for chance in (Random(3), Random(3)))
    assert first == second
