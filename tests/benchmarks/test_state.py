"""The state dict that is saved and loaded."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.state import CHECKPOINT, SAFETENSORS, WARM_UP, check_state, make_state, memory, write_files


def test_files(tmp_path):
    """Both files hold the state dict, as torch and the safetensors package read it, and so do those to warm up."""
    write_files(tmp_path / "new", 3, 400)
    check_state(torch.load(tmp_path / "new" / CHECKPOINT), 3, 400)
    check_state(load_file(tmp_path / "new" / SAFETENSORS), 3, 400)
    assert len(torch.load(tmp_path / "new" / f"{WARM_UP}{CHECKPOINT}")) == 2
    assert len(load_file(tmp_path / "new" / f"{WARM_UP}{SAFETENSORS}")) == 2


def _cut(state):
    del state["layer2.weight"]


def _swap(state):
    state["layer0.weight"], state["layer1.weight"] = state["layer1.weight"], state["layer0.weight"]


def _end(state):
    state["layer1.weight"][-1] = 0


def _shorten(state):
    state["layer1.weight"] = state["layer1.weight"][:-1]


@pytest.mark.parametrize("damage", [_cut, _swap, _end, _shorten])
def test_damage(damage):
    """A tensor that is missing, misplaced, not filled to its end or too short is seen."""
    state = make_state(3, 400)
    check_state(state, 3, 400)
    damage(state)
    with pytest.raises(AssertionError, match=r"of 3|is not what was saved"):
        check_state(state, 3, 400)


def test_memory():
    """The memory of a tensor is its own, as bytes."""
    tensor = torch.zeros(2)
    memory(tensor)[:] = torch.tensor([1.0, 2.0]).numpy().tobytes()
    assert tensor.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("number", [0, 199])
def test_largest_values(number):
    """The values of the full size are counted by float32 exactly, so that no two places look alike."""
    count = 1_342_177
    assert float(torch.tensor(number + count - 1, dtype=torch.float32)) == number + count - 1
