"""What is checked and measured on a GPU: here on the CPU, so that its code is known to run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

MiB = 1024 * 1024
HOME = Path(gpu.__file__).parent.parent


@pytest.fixture
def place(s3, bucket, prefix) -> gpu.Place:
    """The CPU, with little to load and save."""
    return gpu.Place(torch.device("cpu"), f"s3://{bucket}/{prefix}", 8 * MiB, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_without_a_gpu():
    """It says in a sentence that it skips, and that is no failure."""
    command = [sys.executable, "-m", "benchmarks.gpu"]
    ended = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "Skipped: torch finds no GPU here.\n"), ended.stderr


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.filterwarnings("ignore:Detected an existing checkpoint:UserWarning")
@pytest.mark.filterwarnings("ignore:You are using torch.load:FutureWarning")
@pytest.mark.parametrize("case", gpu.CASES, ids=lambda case: case.__name__)
def test_each_case(place, case):
    """Each case does what it says, on the CPU, and finds nothing wrong."""
    found = list(case(place))
    assert found
    assert all(size > 0 and seconds > 0 for _, size, seconds in found)


def test_what_is_wrong_is_seen(place):
    """Other values, other names and another device are no success."""
    state = place.state()
    place.check(place.state(), state)
    for wrong in ({**state, "layer0.weight": state["layer1.weight"]}, {"layer0.weight": state["layer0.weight"]}):
        with pytest.raises(AssertionError):
            place.check(wrong, state)
    with pytest.raises(AssertionError, match="is on"):
        place.check({name: tensor.to("meta") for name, tensor in state.items()}, state)


def test_the_table(capsys):
    """A case that fails is a line, and the others go on; so is what is left out as it is late."""

    def fails(place: gpu.Place) -> Iterator[tuple[str, int, float]]:
        yield "begun", 10**9, 2.0
        raise ValueError("no luck")

    def fine(place: gpu.Place) -> Iterator[tuple[str, int, float]]:
        yield "fine", 10**9, 1.0

    place = gpu.Place(torch.device("cpu"), "s3://bucket/", 8 * MiB, 1)
    late = iter([False, False, True])
    assert gpu.run_cases(place, [fails, fine, fine], lambda: next(late)) == 2
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| begun | 2.000 | 0.50 |",
        "| fails | **failed**: ValueError: no luck | |",
        "| fine | 1.000 | 1.00 |",
        "| fine | left out: no time | |",
    ]
