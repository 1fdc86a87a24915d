"""The tables of a run, in Markdown, and the values that its charts are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.fleet.division import WAYS, Bytes, bytes_of_ranks, divide, uneven_resumes
from benchmarks.fleet.dollars import bills, listing_dollars
from benchmarks.fleet.job import GETS_PER_SECOND, Job
from benchmarks.fleet.opening import estimate, measure_opening, measure_order, measure_resuming
from benchmarks.fleet.rates import Hot, hottest, put_seconds, samples_of_seconds
from benchmarks.fleet.service import Behaviour
from benchmarks.fleet.storm import Storm, credentials, first_pages, listing_seconds, names
from benchmarks.fleet.throttling import BEHAVIOURS, CLIENTS, Outage, at_the_limit, outage, share_of_the_limit
from s3torch import S3ClientConfig

__all__ = ["Findings", "Size", "find"]

_SAMPLES_PER_SECOND = (1, 5, 10, 50, 100, 250, 1000)  # of a rank
_PREFIXES = (1, 2, 4, 8, 16, 32, 48, 64, 100, 128, 256, 512, 1000, 2000)
_RANK_BYTES = 2**30  # of a checkpoint
_OUTAGE = (
    "clients",
    "answers a second",
    "refused",
    "requests a second in the outage",
    "seconds to recover",
    "seconds lost",
    "given up",
)
_BURSTS = (0.1, 1.0, 5.0)  # for so many seconds a service saves up what nobody asks for
_LIMITED = ("used", "refused", "given up")
_SPREAD = 30.0  # seconds within which processes start that do not start together


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of the work a run does.

    Attributes:
        tables: Objects of the two tables that are measured.
        turns: Of what is timed.
        samples: Of the epoch whose bytes are added up.
        rate: Samples a second of a rank, for the look at prefixes.
        seconds: Of an epoch, for that look.
        clients: That meet an outage.
        outage: Seconds before it, of it, and after it.
        limited: Clients in step that meet the limit of a prefix, and the latency of an answer in seconds.
    """

    tables: tuple[int, int] = (1_000_000, 10_000_000)
    turns: int = 20_000
    samples: int = 100_000_000
    rate: int = 250
    seconds: int = 20
    clients: int = CLIENTS
    outage: tuple[int, int, int] = (60, 60, 60)
    limited: tuple[tuple[int, float], ...] = (
        (5, 0.005),
        (16, 0.005),
        (16, 0.03),
        (64, 0.005),
        (64, 0.03),
        (64, 0.1),
        (256, 0.005),
        (256, 0.03),
        (256, 0.1),
    )


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the charts show.

    Attributes:
        job: That was looked at.
        rate: GETs a second of the fleet, for ``hot``.
        hot: The busiest prefix, by number of prefixes, shuffled and in order.
        bytes: That ranks read.
        storms: Starts, by what is asked and how.
        outages: By whether clients are in step, and what they do.
        outage: Seconds before the outage, and of it.
    """

    job: Job
    rate: int
    hot: dict[str, dict[int, Hot]]
    bytes: Bytes
    storms: dict[str, Storm]
    outages: dict[bool, dict[str, Outage]]
    outage: tuple[int, int]


def find(job: Job, size: Size) -> Findings:
    """Measure and simulate all, printing a table of each part."""
    _print_opening(job, size)
    read = _print_division(job, size)
    hot = _print_rates(job, size)
    storms = _print_storms(job)
    outages = _print_outages(job, size)
    _print_dollars(job)
    return Findings(
        job=job,
        rate=job.world_size * size.rate,
        hot=hot,
        bytes=read,
        storms=storms,
        outages=outages,
        outage=size.outage[:2],
    )


def _print_opening(job: Job, size: Size) -> None:
    few, many = (measure_opening(count) for count in size.tables)
    last = estimate(few, many, job.objects)
    rows: list[tuple[str, ...]] = [
        (
            f"{each.objects:,}{note}",
            f"{each.file_mib:,.0f}",
            f"{each.open_ms:,.2f}",
            f"{each.first_us:.1f}",
            f"{each.own_mib:,.1f}",
        )
        for each, note in ((few, ""), (many, ""), (last, ", estimated"))
    ]
    _table("Open a table", ("objects", "file, MiB", "open, ms", "each first look-up, us", "own memory, MiB"), rows)
    alone, many_at_once = measure_order(job.objects, size.turns)
    resumed = measure_resuming(job, max(1, size.turns // 100))
    rows = [
        ("k-th index alone", f"{alone:.1f} us"),
        ("k-th index, of 4,096 at once", f"{many_at_once:.2f} us"),
        ("state", f"{resumed.state_bytes} bytes"),
        ("from the state to the first batch's indices", f"{resumed.ms:.2f} ms"),
        ("memory for that", f"{resumed.peak_kib:.0f} KiB"),
    ]
    _table(f"Order and resume, of {job.objects:,} samples (CPU time)", ("what", "costs"), rows)


def _print_division(job: Job, size: Size) -> Bytes:
    rows: list[tuple[str, ...]] = []
    for way in WAYS:
        found = divide(job, way)
        uneven = f"{uneven_resumes(job, way, 1000):,}"
        counts = (_span(found.samples), _span(found.batches), f"{found.left_out:,}", f"{found.twice:,}")
        rows.append((f"`{way}`", *counts, uneven))
    fields = ("", "samples of a rank", "batches", "left out", "twice", "resumes with unequal batches, of 1,000")
    _table(f"An epoch on {job.world_size:,} ranks, batches of {job.batch_size}", fields, rows)
    read = bytes_of_ranks(job, min(size.samples, job.objects))
    rows = [
        ("a rank, whole epoch", f"{min(read.ranks):.4f}", f"{max(read.ranks):.4f}"),
        ("the heaviest rank of a step", f"{min(read.steps):.2f}", f"{max(read.steps):.2f}"),
        ("the heaviest rank of 100 steps", f"{min(read.hundreds):.3f}", f"{max(read.hundreds):.3f}"),
    ]
    _table("Bytes, as shares of the mean; sizes log-normal", ("of", "least", "most"), rows)
    return read


def _print_rates(job: Job, size: Size) -> dict[str, dict[int, Hot]]:
    rows: list[tuple[str, ...]] = []
    for each in _SAMPLES_PER_SECOND:
        rate = each * job.world_size
        hours = job.objects / rate / 3600
        gigabits = rate * job.object_size * 8 / 1e9 / job.nodes
        needed = -(-rate // GETS_PER_SECOND)
        rows.append((f"{each:,}", f"{rate:,}", f"{needed:,}", f"{gigabits:.2f}", f"{hours:.2f}"))
    fields = ("samples a second of a rank", "GETs a second", "prefixes at least", "Gbit/s of a node", "hours an epoch")
    _table("GETs of the fleet", fields, rows)
    hot: dict[str, dict[int, Hot]] = {}
    for name, shuffle in (("shuffled", True), ("in order", False)):
        seconds = samples_of_seconds(job, size.rate * job.world_size, size.seconds, shuffle=shuffle)
        hot[name] = {prefixes: hottest(job, seconds, prefixes) for prefixes in _PREFIXES}
    rows = []
    for prefixes in _PREFIXES:
        found = [each[prefixes] for each in hot.values()]
        rows.append((f"{prefixes:,}", *(text for each in found for text in (f"{each.most:,}", f"{each.beyond:.1%}"))))
    fields = ("prefixes", "shuffled: busiest", "refused", "in order: busiest", "refused")
    _table(f"GETs a second of the busiest prefix, {size.rate * job.world_size:,} of the fleet", fields, rows)
    part_sizes = (S3ClientConfig().part_size, 64 * 2**20)
    puts = [(part_size, *put_seconds(job, _RANK_BYTES, part_size)) for part_size in part_sizes]
    rows = [(f"{part_size // 2**20} MiB", f"{count:,}", f"{seconds:.1f}") for part_size, count, seconds in puts]
    _table("A checkpoint of 1 GiB a rank", ("parts of", "PUTs", "seconds at least, in one prefix"), rows)
    return hot


def _print_storms(job: Job) -> dict[str, Storm]:
    askers = {
        "each worker": job.all_workers,
        "each rank": job.world_size,
        "each node": job.nodes,
        "one a job": 1,
    }
    storms: dict[str, Storm] = {}
    for name, count in askers.items():
        storms[f"credentials, {name}, jitter"] = credentials(count, has_jitter=True)
        storms[f"credentials, {name}, no jitter"] = credentials(count, has_jitter=False)
    spread = f"within {_SPREAD:.0f} s"
    storms[f"credentials, each worker, {spread}"] = credentials(job.all_workers, has_jitter=True, spread=_SPREAD)
    for name in ("each rank", "each node", "one a job"):  # workers of a rank have one listing anyway
        count = askers[name]
        storms[f"listing, {name}, jitter"] = first_pages(count, has_jitter=True)
        storms[f"listing, {name}, no jitter"] = first_pages(count, has_jitter=False)
    for tries, note in ((1, "one name"), (5, "five names")):
        storms[f"DNS of a node, {note}, at once"] = names(job, tries)
        storms[f"DNS of a node, {note}, {spread}"] = names(job, tries, spread=_SPREAD)
    rows: list[tuple[str, ...]] = [
        (name, f"{storm.asked:,}", f"{storm.sent:,}", f"{storm.most:,}", f"{storm.failed:,}", f"{storm.seconds:.1f}")
        for name, storm in storms.items()
    ]
    fields = ("start", "requests", "sent", "in the worst second", "given up", "seconds")
    _table("Start-up", fields, rows)
    rows = []
    for name, count in askers.items():
        pages, seconds = listing_seconds(job, count)
        dollars = f"{listing_dollars(job, count):,.2f}"
        rows.append((name, f"{pages:,}", f"{seconds / 60:,.1f}", dollars))
    _table("List all objects", ("who lists", "LIST requests", "minutes at least", "dollars"), rows)
    return storms


def _print_outages(job: Job, size: Size) -> dict[bool, dict[str, Outage]]:
    before, lasts, after = size.outage
    per_client = share_of_the_limit()
    limit = f"{size.clients * per_client:,.0f}"
    outages: dict[bool, dict[str, Outage]] = {}
    for in_step, how in ((False, "each for itself"), (True, "in step")):
        outages[in_step] = {
            name: outage(
                behaviour,
                clients=size.clients,
                connections=job.connections,
                in_step=in_step,
                per_client=per_client,
                before=before,
                lasts=lasts,
                after=after,
            )
            for name, behaviour in BEHAVIOURS.items()
        }
        title = f"{size.clients} clients, {how}, at a limit of {limit} GETs a second, then {lasts} s of 503"
        _table(title, _OUTAGE, [_outage_row(name, found) for name, found in outages[in_step].items()])
    rows = []
    for clients, latency in size.limited:
        found = [
            at_the_limit(
                Behaviour(),
                clients=clients,
                connections=job.connections,
                rate=GETS_PER_SECOND,
                latency=latency,
                burst=burst,
            )
            for burst in _BURSTS
        ]
        cells = (text for each in found for text in (f"{each.used:.0%}", f"{each.wasted:.0%}", f"{each.failed:,}"))
        rows.append((f"{clients}", f"{latency * 1000:.0f} ms", *cells))
    fields = ("clients", "latency", *(f"{what}, {burst:g} s" for burst in _BURSTS for what in _LIMITED))
    _table(f"Clients in step at a limit of {GETS_PER_SECOND:,} GETs a second, by what it saves up", fields, rows)
    return outages


def _outage_row(name: str, found: Outage) -> tuple[str, ...]:
    return (
        name,
        f"{found.limited:,.0f}",
        f"{found.wasted:.1%}",
        f"{found.in_outage:,.0f}",
        "never" if found.recovered is None else f"{found.recovered}",
        f"{found.lost:.0f}",
        f"{found.failed:,}",
    )


def _print_dollars(job: Job) -> None:
    found = bills(job, S3ClientConfig().part_size)
    rows = [(name, f"{bill.gets:,}", f"{bill.dollars:,.2f}") for name, bill in found.items()]
    _table(f"An epoch of {job.objects:,} samples of {job.object_size // 1000} kB", ("kept as", "GETs", "dollars"), rows)


def _span(values: tuple[int, int]) -> str:
    low, high = values
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _table(title: str, fields: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n")
    print(f"| {' | '.join(fields)} |")
    print("|---" * len(fields) + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)
