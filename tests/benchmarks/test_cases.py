"""The cases, and who takes part in them."""

from __future__ import annotations

import pytest

from benchmarks.cases import CASES, GROUPS, OWN_CASES, named
from benchmarks.roster import CLIENTS, contenders_of
from benchmarks.runner import contestants

each_case = pytest.mark.parametrize("case", [*CASES, *OWN_CASES], ids=lambda case: case.name)


@each_case
def test_contestants(case):
    """s3torch and s3torchconnector take part in each case; whoever is left out would have taken part."""
    names = [contender.name for contender in contestants(case, CLIENTS)]
    assert any(name.startswith(("s3torch", "import s3torch")) for name in names)
    assert any("s3torchconnector" in name for name in names)
    assert case.without <= contenders_of(case.task).keys()
    assert {contender.client for contender in contenders_of(case.task).values()} <= set(CLIENTS)


@each_case
def test_contestants_say_what_they_do(case):
    """``--list`` has something to say of each."""
    assert [contender.name for contender in contestants(case, CLIENTS) if not contender.prepare.__doc__] == []


@each_case
def test_charts_are_columns(case):
    """What is drawn stands in the table, too."""
    assert set(case.charts) <= set(case.columns)


def test_names():
    """Cases are found by their names, groups stand for several, and own cases have short names."""
    assert len({case.name for case in (*CASES, *OWN_CASES)}) == len(CASES) + len(OWN_CASES)
    assert [case.name for case in named("loader", is_own=False)] == ["loader"]
    assert [case.name for case in named("real", is_own=False)] == list(GROUPS["real"])
    assert [case.name for case in named("loader", is_own=True)] == ["own-loader"]
    with pytest.raises(ValueError, match="there is no case 'lodaer'; the cases are large, "):
        named("lodaer", is_own=False)
    with pytest.raises(ValueError, match="there is no case 'small' with --uri; the cases are loader, large, ranges"):
        named("small", is_own=True)
