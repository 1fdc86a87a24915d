"""The cases: which task against which server, the columns of its table, and what s3torch promises in it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.promises import (
    CPU_MS_PER_PAGE,
    CPU_S_PER_GIB,
    CPU_US,
    FIRST_BATCH_MS,
    GB_PER_S,
    OVERFETCH,
    PEAK_MIB,
    REQUESTS,
    Column,
    Promise,
    best,
    extra,
    of,
    over,
    per_second,
)
from benchmarks.ranks import RANKS
from benchmarks.site import Effort

__all__ = ["CASES", "GROUPS", "OWN_CASES", "Case", "named"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One table.

    Attributes:
        name: On the command line.
        title: Above the table.
        task: What each contender does.
        server: Which one is read from or saved to: a name of ``Servers.place``, or own (the user's).
        effort: How much a process does.
        quick: The same for ``--quick``.
        columns: Of the table.
        charts: The columns that are drawn.
        promises: Below the table.
        without: Contenders of the task that would tell nothing here.
        ranks: Processes that do it together.
        is_quick: Whether this is only to see that it works.
    """

    name: str
    title: str
    task: str
    server: str
    effort: Effort
    quick: Effort
    columns: tuple[Column, ...]
    charts: tuple[Column, ...]
    promises: tuple[Promise, ...] = ()
    without: frozenset[str] = frozenset()
    ranks: int = 1
    is_quick: bool = False

    def as_quick(self) -> Case:
        """Return the case as ``--quick`` runs it, which measures nothing."""
        title = f"{self.title} (a quick run: smaller, and no measure)"
        return replace(self, title=title, effort=self.quick, promises=(), is_quick=True)


_ONE, _MANY = "s3torch, 1 connection", "s3torch"
_CONNECTOR = "s3torchconnector"
_SINGLE = frozenset({"floor", _ONE, "obstore, get().bytes()"})

_SAMPLES = per_second("samples")
_GETS = per_second("GETs")
_RANGES = per_second("ranges")
_KEYS = per_second("keys")
_MILLISECONDS = Column("ms", lambda sample: sample.wall_s / sample.items * 1e3)
_OVER_THE_LONGER = extra("epoch / the longer of both alone", "over_the_longer", 2)
_LOOKUP = extra("look-up, us", "lookup_us", 2)
_BESIDE = extra("bytes beside a key", "bytes_beside_key", 1)

_LARGE_COLUMNS = (GB_PER_S, CPU_S_PER_GIB, PEAK_MIB, REQUESTS)
_LOADER_COLUMNS = (_SAMPLES, FIRST_BATCH_MS, CPU_US, REQUESTS, OVERFETCH, PEAK_MIB)
_RANGE_COLUMNS = (_RANGES, CPU_US, REQUESTS, OVERFETCH, PEAK_MIB)

_SAVE_COLUMNS = (GB_PER_S, CPU_S_PER_GIB, PEAK_MIB, REQUESTS)
_LOAD_COLUMNS = (*_SAVE_COLUMNS, OVERFETCH)
_STATE_MIB = 1024
_RUNAI = tuple(f"runai, concurrency {number}" for number in (1, 4, 16))

_QUICK = Effort(warm_up=0, seconds=0.2, items=128)
_BOUND_MIB = 64


def _large_promises(*, times_connector: float) -> tuple[Promise, ...]:
    rows = [(name, of(name, CPU_S_PER_GIB)) for name in (_ONE, _MANY)]
    floor, connector = of("floor", CPU_S_PER_GIB), best(_CONNECTOR, CPU_S_PER_GIB)
    return (
        *(Promise(f"{name}: CPU over the floor's", over(cpu, floor), 1.10) for name, cpu in rows),
        *(
            Promise(
                f"s3torchconnector at its best: CPU over that of {name}",
                over(connector, cpu),
                times_connector,
                is_minimum=True,
            )
            for name, cpu in rows
        ),
    )


def _loader_promises(*, samples: float | None, times_connector: float) -> tuple[Promise, ...]:
    rows = [("map", "s3torch map"), ("iterable", "s3torch iterable")]
    floor = (
        ()
        if samples is None
        else tuple(
            Promise(f"s3torch {kind}: samples/s", best(row, _SAMPLES), samples, is_minimum=True, digits=0)
            for kind, row in rows
        )
    )
    return (
        *floor,
        *(
            Promise(
                f"s3torch {kind}: samples/s over those of s3torchconnector {kind}",
                over(best(row, _SAMPLES), of(f"{_CONNECTOR} {kind}", _SAMPLES)),
                times_connector,
                is_minimum=True,
                digits=1,
            )
            for kind, row in rows
        ),
    )


_OWN_LOADER = Promise(
    "s3torch S3DataLoader, shuffled: samples/s over those of the stream",
    over(of("s3torch S3DataLoader, shuffled", _SAMPLES), of("s3torch iterable", _SAMPLES)),
    0.95,
    is_minimum=True,
)


def _load_promises(*, times_connector: float) -> tuple[Promise, ...]:
    return (
        _faster(_CONNECTOR, times_connector),
        Promise("s3torch: CPU over the floor's", over(of(_MANY, CPU_S_PER_GIB), of("floor", CPU_S_PER_GIB)), 1.5),
        Promise("s3torch: peak RSS growth, MiB: the state and 64 more", of(_MANY, PEAK_MIB), _STATE_MIB + 64, digits=0),
    )


def _faster(other: str, times: float) -> Promise:
    text = f"s3torch: GB/s over those of {other}"
    return Promise(text, over(of(_MANY, GB_PER_S), best(other, GB_PER_S)), times, is_minimum=True)


CASES = (
    Case(
        name="large",
        title="One object of 256 MiB into memory that is used again, HTTP",
        task="large",
        server="fast",
        effort=Effort(rounds=3),
        quick=_QUICK,
        columns=_LARGE_COLUMNS,
        charts=(CPU_S_PER_GIB, GB_PER_S),
        promises=_large_promises(times_connector=3),
    ),
    Case(
        name="large-tls",
        title="One object of 256 MiB into memory that is used again, HTTPS",
        task="large",
        server="tls",
        effort=Effort(rounds=2),
        quick=_QUICK,
        columns=_LARGE_COLUMNS,
        charts=(CPU_S_PER_GIB, GB_PER_S),
        # Most of the time goes to the cipher, which is the same for everybody.
        promises=_large_promises(times_connector=1),
    ),
    Case(
        name="large-latency",
        title="One object of 256 MiB, 20 ms to the first byte, 90 MB/s a connection",
        task="large",
        server="latency",
        effort=Effort(rounds=1),
        quick=_QUICK,
        columns=_LARGE_COLUMNS,
        charts=(GB_PER_S, CPU_S_PER_GIB),
        promises=(Promise("s3torch: GB/s", of(_MANY, GB_PER_S), 1.5, is_minimum=True),),
        without=_SINGLE,
    ),
    Case(
        name="small",
        title="Objects of 100 kB, 32 in flight, HTTP",
        task="small",
        server="fast",
        effort=Effort(rounds=2, items=1024),
        quick=_QUICK,
        columns=(_GETS, CPU_US, PEAK_MIB, REQUESTS),
        charts=(CPU_US, _GETS),
        promises=(
            Promise(
                "s3torch, the better dataset: CPU us/GET",
                lambda contenders: min(best(row, CPU_US)(contenders) for row in ("s3torch map", "s3torch iterable")),
                45,
                digits=1,
            ),
            Promise(
                "s3torchconnector: CPU over that of the better dataset of s3torch",
                lambda contenders: (
                    best(_CONNECTOR, CPU_US)(contenders)
                    / min(best(row, CPU_US)(contenders) for row in ("s3torch map", "s3torch iterable"))
                ),
                5,
                is_minimum=True,
            ),
        ),
    ),
    Case(
        name="memory",
        title="One object of 256 MiB as `bytes`, HTTP, first large read of a process",
        task="memory",
        server="fast",
        effort=Effort(warm_up=0),
        quick=_QUICK,
        columns=(PEAK_MIB, CPU_S_PER_GIB, GB_PER_S),
        charts=(PEAK_MIB, CPU_S_PER_GIB),
        promises=(
            Promise(
                "s3torch: peak RSS growth, MiB: the object and 32 more",
                of("s3torch, get_object().read()", PEAK_MIB),
                256 + 32,
                digits=0,
            ),
        ),
    ),
    Case(
        name="import",
        title="Start of a program that imports it",
        task="import",
        server="none",
        effort=Effort(rounds=2),
        quick=_QUICK,
        columns=(_MILLISECONDS, Column("CPU ms", lambda sample: sample.cpu_s / sample.items * 1e3)),
        charts=(_MILLISECONDS,),
        promises=(
            Promise(
                "import s3torch: ms more than an empty program",
                lambda contenders: (
                    of("import s3torch", _MILLISECONDS)(contenders) - of("empty program", _MILLISECONDS)(contenders)
                ),
                150,
                digits=0,
            ),
        ),
    ),
    Case(
        name="loader",
        title="DataLoader, batches of 64 samples of 100 kB, no workers, 20 ms to the first byte",
        task="loader",
        server="latency",
        effort=Effort(warm_up=0, seconds=1.5, items=20_000),
        quick=_QUICK,
        columns=_LOADER_COLUMNS,
        charts=(_SAMPLES, CPU_US),
        promises=(*_loader_promises(samples=2500, times_connector=50), _OWN_LOADER),
    ),
    Case(
        name="ranges",
        title="1,000 random ranges of 64 KiB of an object of 1 GiB, 20 ms to the first byte",
        task="ranges",
        server="latency",
        effort=Effort(warm_up=0, seconds=1.5, items=1000),
        quick=_QUICK,
        columns=_RANGE_COLUMNS,
        charts=(_RANGES, CPU_US),
        promises=(
            Promise(
                "s3torch: ranges/s over those of s3torchconnector's range-based reader",
                over(of("s3torch read_ranges", _RANGES), of("s3torchconnector, range-based reader", _RANGES)),
                20,
                is_minimum=True,
                digits=1,
            ),
        ),
    ),
    Case(
        name="epoch",
        title="Epoch over samples of 100 kB that take 2 ms to decode, 20 ms to the first byte",
        task="epoch",
        server="latency",
        effort=Effort(warm_up=0, items=500),
        quick=Effort(warm_up=0, items=64),
        columns=(
            _OVER_THE_LONGER,
            _SAMPLES,
            extra("transfer alone, ms", "transfer_s", 0, 1e3),
            extra("decoding alone, ms", "compute_s", 0, 1e3),
        ),
        charts=(_OVER_THE_LONGER, _SAMPLES),
        promises=tuple(
            Promise(f"{row}: epoch over the longer of both alone", of(row, _OVER_THE_LONGER), 1.15)
            for row in (
                "s3torch iterable, decode releases the GIL",
                "s3torch map + LookAheadBatchSampler, decode releases the GIL",
            )
        ),
    ),
    Case(
        name="in-flight",
        title="Objects of 100 kB to 32 MiB, each read and dropped; s3torch with max_bytes_in_flight=64 MiB; 20 ms",
        task="in-flight",
        server="latency",
        effort=Effort(warm_up=0),
        quick=_QUICK,
        columns=(PEAK_MIB, GB_PER_S, CPU_S_PER_GIB, OVERFETCH),
        charts=(PEAK_MIB, GB_PER_S),
        promises=tuple(
            Promise(f"{row}: peak RSS growth, MiB", of(row, PEAK_MIB), _BOUND_MIB * 1.10, digits=1)
            for row in ("s3torch map, batches of 16", "s3torch iterable", "s3torch read_ranges")
        ),
    ),
    Case(
        name="listing",
        title="Listing of a large prefix, 50 ms a page of 1,000 keys",
        task="listing",
        server="listing",
        effort=Effort(warm_up=0),
        quick=_QUICK,
        columns=(_KEYS, Column("keys", lambda sample: sample.items), CPU_MS_PER_PAGE, PEAK_MIB, _BESIDE, _LOOKUP),
        charts=(_KEYS, CPU_MS_PER_PAGE),
        promises=(
            Promise(
                "s3torch: keys/s over those of s3torchconnector",
                over(of("s3torch", _KEYS), of(_CONNECTOR, _KEYS)),
                5,
                is_minimum=True,
                digits=1,
            ),
            Promise(
                "boto3: CPU per page over that of s3torch",
                over(of("boto3", CPU_MS_PER_PAGE), of("s3torch", CPU_MS_PER_PAGE)),
                5,
                is_minimum=True,
            ),
            Promise("s3torch's table: bytes beside a key", of("s3torch's table", _BESIDE), 24, digits=1),
            Promise("s3torch's table: us to look an object up", of("s3torch's table", _LOOKUP), 2),
        ),
    ),
    Case(
        name="real-loader",
        title="DataLoader, batches of 64 samples of 100 kB, no workers, a real local S3 server",
        task="loader",
        server="real",
        effort=Effort(warm_up=0, seconds=1.0, items=20_000),
        quick=_QUICK,
        columns=_LOADER_COLUMNS,
        charts=(_SAMPLES, CPU_US),
        promises=_loader_promises(samples=None, times_connector=1),
    ),
    Case(
        name="real-large",
        title="One object of 256 MiB into memory that is used again, a real local S3 server",
        task="large",
        server="real",
        effort=Effort(rounds=2),
        quick=_QUICK,
        columns=_LARGE_COLUMNS,
        charts=(GB_PER_S, CPU_S_PER_GIB),
        promises=(
            Promise(
                "s3torch: GB/s over those of s3torchconnector at its best",
                over(of(_MANY, GB_PER_S), best(_CONNECTOR, GB_PER_S)),
                1,
                is_minimum=True,
            ),
        ),
        without=_SINGLE,
    ),
    Case(
        name="save",
        title="torch.save of 200 tensors, 1 GiB in all, to a server that drops what it gets, HTTP",
        task="save",
        server="sink",
        effort=Effort(warm_up=0),
        quick=_QUICK,
        columns=_SAVE_COLUMNS,
        charts=(GB_PER_S, CPU_S_PER_GIB),
        promises=(
            _faster(_CONNECTOR, 2),
            Promise(
                "s3torchconnector: CPU over that of s3torch",
                over(of(_CONNECTOR, CPU_S_PER_GIB), of(_MANY, CPU_S_PER_GIB)),
                2,
                is_minimum=True,
            ),
        ),
    ),
    Case(
        name="save-real",
        title="torch.save of 200 tensors, 1 GiB in all, to a real local S3 server",
        task="save",
        server="real-checkpoints",
        effort=Effort(warm_up=0),
        quick=_QUICK,
        columns=_SAVE_COLUMNS,
        charts=(GB_PER_S, CPU_S_PER_GIB),
        promises=(_faster("floor, parallel upload", 0.9), _faster(_CONNECTOR, 1)),
        without=frozenset({"floor"}),
    ),
    Case(
        name="async-save",
        title="The stall of a training step that saves 200 tensors, 1 GiB in all, in the background",
        task="async-save",
        server="sink",
        effort=Effort(rounds=3),
        quick=_QUICK,
        columns=(_MILLISECONDS, CPU_S_PER_GIB, PEAK_MIB),
        charts=(_MILLISECONDS,),
        promises=(
            Promise(
                "s3torch: stall over the copy alone", over(of(_MANY, _MILLISECONDS), of("floor", _MILLISECONDS)), 1.10
            ),
        ),
    ),
    Case(
        name="load",
        title="torch.load of 200 tensors, 1 GiB in all, HTTP",
        task="load",
        server="checkpoints",
        effort=Effort(warm_up=0),
        quick=_QUICK,
        columns=_LOAD_COLUMNS,
        charts=(GB_PER_S, CPU_S_PER_GIB),
        promises=_load_promises(times_connector=3),
    ),
    Case(
        name="load-real",
        title="torch.load of 200 tensors, 1 GiB in all, from a real local S3 server",
        task="load",
        server="real-checkpoints",
        effort=Effort(warm_up=0),
        quick=_QUICK,
        columns=_LOAD_COLUMNS,
        charts=(GB_PER_S, CPU_S_PER_GIB),
        promises=_load_promises(times_connector=2),
    ),
    Case(
        name="dcp-save",
        title="dcp.save of 200 sharded tensors, 1 GiB in all, by 2 ranks, to a real local S3 server",
        task="dcp-save",
        server="real-checkpoints",
        effort=Effort(warm_up=0),
        quick=_QUICK,
        columns=_SAVE_COLUMNS,
        charts=(GB_PER_S, CPU_S_PER_GIB),
        ranks=RANKS,
    ),
    Case(
        name="dcp-load",
        title="dcp.load of 64 sharded tensors, 1 GiB in all, by 2 ranks, 20 ms to the first byte",
        task="dcp-load",
        server="sharded",
        effort=Effort(warm_up=0),
        quick=_QUICK,
        columns=_LOAD_COLUMNS,
        charts=(GB_PER_S, CPU_S_PER_GIB),
        promises=(_faster(_CONNECTOR, 3),),
        ranks=RANKS,
    ),
    Case(
        name="dcp-load-layer",
        title="dcp.load of one of 64 sharded tensors, 16 MiB, by 2 ranks, 20 ms to the first byte",
        task="dcp-load-layer",
        server="sharded",
        effort=Effort(warm_up=0),
        quick=_QUICK,
        columns=(_MILLISECONDS, *_LOAD_COLUMNS[1:]),
        charts=(_MILLISECONDS,),
        promises=(_faster(_CONNECTOR, 5),),
        ranks=RANKS,
    ),
    Case(
        name="safetensors",
        title="A safetensors file of 200 tensors, 1 GiB in all, HTTP",
        task="safetensors",
        server="checkpoints",
        effort=Effort(warm_up=0),
        quick=_QUICK,
        columns=_LOAD_COLUMNS,
        charts=(GB_PER_S, CPU_S_PER_GIB),
        promises=(
            _faster("floor, parallel GET", 0.9),
            _faster("floor, parallel GET into new memory", 0.9),
            *(_faster(row, 1) for row in _RUNAI),
        ),
    ),
    Case(
        name="torch-checkpointing",
        title="torch_checkpointing loads a file of 200 tensors, 1 GiB in all, HTTP",
        task="torch-checkpointing",
        server="checkpoints",
        effort=Effort(),
        quick=_QUICK,
        columns=_LOAD_COLUMNS,
        charts=(GB_PER_S, CPU_S_PER_GIB),
        promises=(
            Promise(
                "s3torch native_fill: GB/s over read_ranges into reused memory",
                over(of("s3torch native_fill", GB_PER_S), of("s3torch read_ranges, reused memory", GB_PER_S)),
                0.9,
                is_minimum=True,
            ),
        ),
    ),
    Case(
        name="integrity",
        title="What checksums cost: objects of 100 kB, 256 MiB and parts of 8 MiB, a real local S3 server, HTTP",
        task="integrity",
        server="real",
        effort=Effort(items=512),
        quick=_QUICK,
        columns=(CPU_US, CPU_S_PER_GIB, REQUESTS),
        charts=(CPU_S_PER_GIB,),
    ),
)

OWN_CASES = (
    Case(
        name="own-loader",
        title="DataLoader over your objects, batches of 64, no workers",
        task="loader",
        server="own",
        effort=Effort(warm_up=0, seconds=5.0, items=20_000),
        quick=_QUICK,
        columns=_LOADER_COLUMNS,
        charts=(_SAMPLES, CPU_US),
    ),
    Case(
        name="own-large",
        title="Your largest object within --max-bytes into memory that is used again",
        task="large",
        server="own",
        effort=Effort(),
        quick=_QUICK,
        columns=_LARGE_COLUMNS,
        charts=(GB_PER_S, CPU_S_PER_GIB),
        without=_SINGLE,
    ),
    Case(
        name="own-ranges",
        title="Random ranges of 64 KiB of your largest object",
        task="ranges",
        server="own",
        effort=Effort(warm_up=0, seconds=5.0, items=1000),
        quick=_QUICK,
        columns=_RANGE_COLUMNS,
        charts=(_RANGES, CPU_US),
    ),
)
"""What is measured with ``--uri``: on the command line by the names without ``own-``."""

GROUPS = {
    "real": ("real-loader", "real-large"),
    "checkpoints": (
        "save",
        "save-real",
        "async-save",
        "load",
        "load-real",
        "dcp-save",
        "dcp-load",
        "dcp-load-layer",
        "safetensors",
        "torch-checkpointing",
    ),
}
"""Names that stand for several cases."""


def named(name: str, *, is_own: bool) -> tuple[Case, ...]:
    """Return the cases of a name on the command line.

    Args:
        name: Of a case or a group.
        is_own: Whether the cases for the user's own bucket are meant.

    Raises:
        ValueError: There is none; the message names those that there are.
    """
    cases = {case.name.removeprefix("own-"): case for case in OWN_CASES} if is_own else {c.name: c for c in CASES}
    names = (name,) if is_own else GROUPS.get(name, (name,))
    try:
        return tuple(cases[each] for each in names)
    except KeyError:
        where = " with --uri" if is_own else ""
        raise ValueError(f"there is no case {name!r}{where}; the cases are {', '.join(cases)}") from None
