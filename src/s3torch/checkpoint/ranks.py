"""The ranks of a process group that load or save one thing together: they meet, agree, and fail together.

What a rank does alone may fail: a read is denied, a tensor is missing, the process is killed. The others wait for it in
a collective then, for as long as the group's timeout (30 minutes). So all of a call follows these rules:

1. *A meeting begins it.* Each rank leaves its arguments in the store of the group, the first rank compares them, and
   leaves the verdict there. Whoever has not come by the deadline is named. The store is asked, not a collective, as no
   collective can say who is missing.
2. *What may fail is settled* before the next collective: each rank gathers from all others whether it went well. If it
   did not, the error of the first rank that failed is raised by all; the group can be used again.
3. *Nobody waits blindly.* A collective is begun asynchronously, and whoever waits for it looks into the store from time
   to time. A rank that leaves in any other way (an interrupt, a bug, a peer that is gone) leaves a note there. What the
   others had begun is abandoned then, so the group cannot be used again.
4. *Work is no silence.* A rank that sends its gigabytes lets the others wait for longer than a step takes. So it counts
   in the store what it has done, and looks for notes; the timeout is that of the last thing that anybody has done.
5. *Who is killed is seen* by the ranks of its machine: in the meeting each says which process it is, and whoever waits
   looks whether the others still live. Who has come to the end of the call says so: it may end as it likes.
6. *What is begun ends soon.* A collective cannot be taken back, and whoever leaves the group waits for it, with gloo
   until its timeout. So each has the timeout of the call, and is begun when all are there: they wait in the store. What
   has not ended when a call fails is ended by closing the group's connections (``hanging_up``).

Only calls that all backends have are used; the store is the one by which the group was made.

It is one file of over 450 lines: the six rules are one class, as each leans on the others.
"""

from __future__ import annotations

import contextlib
import pickle
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllgatherOptions, AllToAllOptions, BroadcastOptions
from torch.distributed import distributed_c10d

from s3torch.checkpoint.hanging_up import hang_up
from s3torch.checkpoint.processes import Process, has_ended, this_process
from s3torch.errors import ArgumentError, ArgumentTypeError, DeadlineError, S3Error

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Ranks"]

_GRACE = 5.0  # seconds in which a rank that lives is sure to look into the store
_LOOK = 0.25  # seconds between two looks into the store, and at the other processes
_TELL = 10.0  # seconds between two times that a rank says that it gets on, at most
# Seconds between two looks at a collective: more and more. While transfers are under way the longest is one in which
# what arrives fits the kernel's buffers.
_SHORTEST_PAUSE = 0.0001
_BUSY_PAUSE = 0.005
_LONGEST_PAUSE = 0.01
_SHARE_PAUSED = 0.05  # of the time that was waited, until the next look
_PREFIX = "s3torch.ranks"
_STEPS_KEPT = 2
# Verdicts of a meeting, in the place of the rank that has failed.
_SOMEBODY_IS_LATE = -1
_THEY_DISAGREE = -2

T = TypeVar("T")
Options = TypeVar("Options", AllgatherOptions, AllToAllOptions, BroadcastOptions)
# How often the ranks of a group have met: the keys of one meeting are not those of the next.
_meetings: dict[str, int] = {}


class _Coming(NamedTuple):
    """What a rank brings to the meeting.

    Attributes:
        arguments: Of the call, as text by name.
        error: Why it cannot take part, if it cannot.
        process: That it is, if that can be told.
    """

    arguments: dict[str, str]
    error: bytes | None
    process: Process | None


class _Note(NamedTuple):
    """What a rank leaves that does not go on.

    Attributes:
        rank: That has failed; None if others have found that one is gone.
        error: Of it, or theirs; None if whoever left this did not know more than that a collective does not end.
    """

    rank: int | None
    error: bytes | None


class Ranks:
    """This rank and the others of its group, for one call; a context manager.

    Args:
        group: Of torch.distributed; None for this process alone, which waits for nobody.
        timeout: Seconds to wait for others at each step, while none of them gets on with its work.
        task: What the call does, for messages, such as ``load of s3://bucket/key``.

    Attributes:
        rank: This one's number in the group.
        size: How many there are.
        device: Where the group's collectives find their tensors.
        idle: Moves transfers while this rank waits for others, and returns whether there are any; None for none.
        is_usable: Whether all that was begun on the group will end by itself.
        is_whole: Whether no rank is known to be missing, and the group's connections stay open: else there can be no
            collective any more.

    Raises:
        ArgumentTypeError: ``group`` is no process group.
        ArgumentError: This process is not in the group.
    """

    def __init__(self, group: dist.ProcessGroup | None, timeout: float, task: str) -> None:
        given: object = group
        if given is dist.GroupMember.NON_GROUP_MEMBER:
            raise ArgumentError(f"This process is not in the group that was given for the {task}.")
        if given is not None and not isinstance(given, dist.ProcessGroup):
            raise ArgumentTypeError(f"group must be a process group of torch.distributed, got {given!r}.")
        self.timeout = timeout
        self.rank, self.size, self.device = 0, 1, torch.device("cpu")
        self.idle: Callable[[], bool] | None = None
        self._group = group
        self._task = task
        self.is_usable = self.is_whole = True
        self._is_settled = False  # whether the others know of the error that is about to leave
        self._looked_at = self._told_at = 0.0
        self._steps = 0
        self._begun: dict[int, dist.Work] = {}  # collectives that nobody has waited for
        self._process = this_process() if group is not None else None
        self._neighbours: dict[int, Process] | None = None  # others of this machine; None if they were not looked up
        self._gone: list[int] = []
        if group is None:
            return
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.device = _device_of(group)
        self._store = distributed_c10d._get_process_group_store(group)
        number = _meetings[group.group_name] = _meetings.get(group.group_name, 0) + 1
        self._keys = f"{_PREFIX}/{number}"
        self._last = f"{_PREFIX}/{number - 1}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._group is None:
            return
        if error is not None and not self._is_settled:
            self.is_usable = False
            self._leave_note(error)
        with contextlib.suppress(RuntimeError):  # the store may have ended with the first rank, which needs nobody
            self._store.set(f"{self._keys}/left/{self.rank}", "1")
        if not self.is_usable:
            living = sorted(set(range(self.size)) - {self.rank}, key=lambda rank: rank in self._gone)
            hang_up(self._members, self.device, living, self._begun.values())
        self._begun.clear()  # whoever keeps an error keeps this

    def meet(self, prepare: Callable[[], tuple[Mapping[str, str], T]]) -> T:
        """Wait until all ranks are there, and compare their arguments.

        Args:
            prepare: Returns what must be the same on all, as text by name, and what is to be returned. What it raises
                is raised by all ranks.

        Raises:
            DeadlineError: A rank did not come; its number is in the message.
            ArgumentError: The arguments differ.
            S3Error: A rank has failed; of the class of its error.
        """
        if self._group is None:
            return prepare()[1]
        value: Any = None
        try:
            arguments, value = prepare()
            mine = _Coming(dict(arguments), None, self._process)
        except Exception as error:  # noqa: BLE001  # it is raised by all ranks
            mine = _Coming({}, _packed(error), self._process)
        self._put(f"{self._keys}/{self.rank}", pickle.dumps(mine))
        if self.rank == 0:
            verdict = self._verdict()
            self._put(f"{self._keys}/verdict", pickle.dumps(verdict))
            for rank in range(self.size):
                self._drop(f"{self._keys}/{rank}")
                self._drop(f"{self._last}/left/{rank}")
            for name in ("verdict", "done"):  # all have read them: they are here
                self._drop(f"{self._last}/{name}")
        else:
            names = [f"{self._keys}/{rank}" for rank in range(self.size)]
            if not self._await_keys([f"{self._keys}/verdict"], self.timeout + _GRACE, self.look):
                late = [rank for rank, name in enumerate(names) if not self._has(name)]
                self._is_settled, self.is_usable, self.is_whole = True, False, False
                raise self._late(late or [0])
            verdict = self._loaded(f"{self._keys}/verdict")
        self._neighbours = None  # those that the meeting before has told
        if verdict is not None:
            self.is_whole = verdict[0] != _SOMEBODY_IS_LATE
            self._raise(*verdict)
        return value  # type: ignore[no-any-return]  # what prepare has returned

    def settle(self, error: Exception | None = None, *, is_round: bool = False) -> None:
        """Fail if any rank has failed.

        Args:
            error: Of this rank; None if all is well here.
            is_round: Whether all ranks come at about the same time, as they do to each of many rounds.

        Raises:
            S3Error: A rank has failed: the error of the first one, with its number in front.
        """
        if self._group is None:
            if error is not None:
                raise error
            return
        if not is_round:
            self.until(self.arrive())
        payload = b"" if error is None else _packed(error)
        mine = torch.tensor([len(payload)], dtype=torch.int64, device=self.device)
        sizes = torch.empty(self.size, dtype=torch.int64, device=self.device)
        self.wait(self.gather(sizes, mine))
        found = sizes.tolist()
        failed = next((rank for rank, size in enumerate(found) if size), None)
        if failed is None:
            return
        spread = self._spread(payload, found[failed], failed)
        if failed == self.rank and error is not None and not isinstance(error, S3Error):
            self._is_settled = True
            raise _unpacked(spread, failed) from error  # a bug is found by its traceback
        self._raise(failed, spread)

    def attempt(self, act: Callable[[], T]) -> T:
        """Do something that may fail here, and fail together."""
        try:
            result = act()
        except Exception as error:  # it is raised by all ranks
            self.settle(error)
            raise AssertionError("an error was settled and not raised") from error
        self.settle()
        return result

    def from_first(self, act: Callable[[], T]) -> T:
        """Do something on the first rank, and return what it returned on all; it must be picklable."""
        if self._group is None:
            return act()
        value: Any = self.attempt(act) if self.rank == 0 else self.attempt(lambda: None)
        payload = pickle.dumps(value) if self.rank == 0 else b""
        size = torch.tensor([len(payload)], dtype=torch.int64, device=self.device)
        self.wait(self.broadcast(size, 0))
        content = self._spread(payload, int(size.item()), 0)
        return value if self.rank == 0 else _unpickled(content)  # type: ignore[no-any-return]  # what act returned

    def all_of(self, value: T) -> list[T]:
        """Return what each rank has given, by rank; it must be picklable."""
        if self._group is None:
            return [value]
        payload = pickle.dumps(value)
        sizes = torch.empty(self.size, dtype=torch.int64, device=self.device)
        self.wait(self.gather(sizes, torch.tensor([len(payload)], dtype=torch.int64, device=self.device)))
        found = sizes.tolist()
        room = max(found)
        mine = torch.zeros(room, dtype=torch.uint8)
        mine[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        everything = torch.empty(room * self.size, dtype=torch.uint8, device=self.device)
        self.wait(self.gather(everything, mine.to(self.device)))
        content = everything.cpu().numpy()
        return [_unpickled(content[rank * room : rank * room + size].tobytes()) for rank, size in enumerate(found)]

    def gather(self, whole: torch.Tensor, mine: torch.Tensor) -> dist.Work:
        """Begin to gather a little of each rank, as much of each, into one tensor."""
        return self._begin(self._members._allgather_base(whole, mine, self._bounded(AllgatherOptions())))

    def exchange(
        self, theirs: torch.Tensor, ours: torch.Tensor, taken: Sequence[int], sent: Sequence[int]
    ) -> dist.Work:
        """Begin to exchange bytes between all ranks.

        Args:
            theirs: Gets what others send to this rank, by rank.
            ours: What this rank sends, by rank.
            taken: How many bytes come from each rank.
            sent: How many go to each rank.
        """
        # Not isend and irecv: whether theirs are done gloo tells only who waits for them.
        options = self._bounded(AllToAllOptions())
        return self._begin(self._members.alltoall_base(theirs, ours, list(taken), list(sent), options))

    def broadcast(self, content: torch.Tensor, source: int) -> dist.Work:
        """Begin to send a tensor from one rank into that of all others."""
        options = BroadcastOptions()
        options.rootRank, options.rootTensor = source, 0
        return self._begin(self._members.broadcast([content], self._bounded(options)))

    def wait(self, work: dist.Work) -> None:
        """Wait for a collective, and look at the others meanwhile.

        Raises:
            DeadlineError: For longer than the timeout nothing was done by anybody; the ranks that do not answer are
                named.
            S3Error: A rank has left, or cannot be reached.
        """
        self.until(work.is_completed)
        try:
            work.wait(timedelta(seconds=self.timeout))
        except RuntimeError as error:  # torch has no class of its own for a peer that is gone
            raise self._lost(error) from error
        self._begun.pop(id(work), None)

    def arrive(self) -> Callable[[], bool]:
        """Come to the next step that takes ranks differently long; returns what tells whether all have come.

        A collective that waits for a rank ends with its timeout, and cannot be taken back if the rank is gone. The
        store can be asked for as long as the rank takes.
        """
        if self._group is None:
            return lambda: True
        self._steps += 1
        key = f"{self._keys}/step/{self._steps}"
        if self.rank == 0 and self._steps > _STEPS_KEPT:  # all have left it, as they came to the one before this
            self._drop(f"{self._keys}/step/{self._steps - _STEPS_KEPT}")
        self._asked(lambda: self._store.add(key, 1))
        return lambda: self._asked(lambda: self._store.add(key, 0)) >= self.size

    def until(self, is_done: Callable[[], bool]) -> None:
        """Wait for something that takes all ranks, and look at the others meanwhile.

        Raises:
            DeadlineError: As ``wait``.
            S3Error: As ``wait``.
        """
        begun = time.monotonic()
        deadline = begun + self.timeout
        done: int | None = None
        pause = _SHORTEST_PAUSE
        while not is_done():
            is_busy = self.idle is not None and self.idle()
            self.look()
            now = time.monotonic()
            if done is None and now > begun + _LOOK:  # most waits end before
                done = self._work_done(0)
            if now > deadline:
                before, done = done, self._work_done(0)
                if done == before:
                    raise self._lost(None)
                deadline = now + self.timeout
            time.sleep(pause)
            longest = min(max(_LONGEST_PAUSE, _SHARE_PAUSED * (now - begun)), _LOOK)
            pause = min(2 * pause, _BUSY_PAUSE if is_busy else longest)

    def look(self) -> None:
        """Look whether another rank has left; now and then, however often it is called.

        Raises:
            S3Error: It has.
        """
        now = time.monotonic()
        if now - self._looked_at < _LOOK:
            return
        self._looked_at = now
        if self._has(f"{self._keys}/note") or self._find_gone():
            raise self._lost(None)

    def tell(self) -> None:
        """Tell the others, who may wait, that this rank gets on, and look as ``look``; now and then, as that.

        Raises:
            S3Error: Another rank has left.
        """
        if self._group is None:
            return
        self.look()
        now = time.monotonic()
        if now - self._told_at >= min(_TELL, self.timeout / 4):
            self._told_at = now
            self._work_done(1)

    def _find_gone(self) -> list[int]:
        """Return the ranks of this machine that have ended before they came to the end of the call, and note them."""
        if self._gone or self._process is None:
            return self._gone
        name = f"{_PREFIX}/machine/{self._process.machine}"
        if self._neighbours is None and self._has(name):
            self._neighbours = self._loaded(name)
        for rank, process in (self._neighbours or {}).items():
            # In this order: who comes to the end says so, and ends then.
            if rank != self.rank and has_ended(process) and not self._has(f"{self._keys}/left/{rank}"):
                self._gone.append(rank)
        return self._gone

    def _work_done(self, more: int) -> int:
        """Count what this rank has done, and return how much all have done."""
        return self._asked(lambda: self._store.add(f"{self._keys}/done", more))

    def _verdict(self) -> tuple[int, bytes] | None:
        """Return which rank has failed, or what has, and how; None if all are there and agree."""
        names = [f"{self._keys}/{rank}" for rank in range(self.size)]
        if not self._await_keys(names, self.timeout, self.look):
            late = [rank for rank, name in enumerate(names) if not self._has(name)]
            return _SOMEBODY_IS_LATE, _packed(self._late(late))
        found: list[_Coming] = [self._loaded(name) for name in names]
        self._introduce([each.process for each in found])
        for rank, (_, failure, _) in enumerate(found):
            if failure is not None:
                return rank, failure
        first = found[0].arguments
        for rank, (arguments, _, _) in enumerate(found):
            for name in {**first, **arguments}:
                if first.get(name) != arguments.get(name):
                    return _THEY_DISAGREE, _packed(
                        ArgumentError(
                            f"The ranks disagree on the {self._task}: {name} is {first.get(name)} on rank 0 and "
                            f"{arguments.get(name)} on rank {rank}."
                        )
                    )
        return None

    def _introduce(self, processes: Sequence[Process | None]) -> None:
        """Tell the ranks of each machine which processes they are, in an entry that they find by its name."""
        machines: dict[str, dict[int, Process]] = {}
        for rank, process in enumerate(processes):
            if process is not None:
                machines.setdefault(process.machine, {})[rank] = process
        for machine, of_machine in machines.items():
            self._put(f"{_PREFIX}/machine/{machine}", pickle.dumps(of_machine))

    def _await_keys(self, names: Sequence[str], seconds: float, look: Callable[[], object]) -> bool:
        """Wait until keys are in the store, or ``look`` has found something; returns whether they are there."""
        deadline = time.monotonic() + seconds
        pause = _SHORTEST_PAUSE
        while not all(self._has(name) for name in names):
            if look() or time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def _spread(self, payload: bytes, size: int, source: int) -> bytes:
        """Return the bytes that one rank has, on all."""
        content = torch.empty(size, dtype=torch.uint8)
        if self.rank == source:
            content = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        content = content.to(self.device)
        self.wait(self.broadcast(content, source))
        return content.cpu().numpy().tobytes()

    @property
    def _members(self) -> dist.ProcessGroup:
        if self._group is None:
            raise AssertionError("a process alone has no other ranks")
        return self._group

    def _bounded(self, options: Options) -> Options:
        """Let a collective end with the timeout of this call, not with that of the group, whoever is gone.

        Of three ranks two may wait for each other when the third is killed: one fails to send to that, and so does not
        send to the other. Whoever then leaves the group waits for all that was begun in it.
        """
        options.timeout = timedelta(seconds=self.timeout)
        return options

    def _begin(self, work: dist.Work) -> dist.Work:
        self._begun[id(work)] = work
        return work

    def _raise(self, rank: int, payload: bytes) -> None:
        self._is_settled = True
        raise _unpacked(payload, rank if rank >= 0 else None)

    def _leave_note(self, error: BaseException) -> None:
        """Tell the others that this rank takes no part any more, unless they know."""
        if not self._has(f"{self._keys}/note"):
            self._put(f"{self._keys}/note", pickle.dumps(_Note(self.rank, _packed(error))))

    def _lost(self, error: Exception | None) -> BaseException:
        """Return the error of a collective that does not end, with the ranks that do not live."""
        self._is_settled, self.is_usable = True, False
        self._put(f"{self._keys}/alive/{self.rank}", b"1")
        note = self._note()
        names = [f"{self._keys}/alive/{rank}" for rank in range(self.size)]
        if note is None or note.error is None:
            if note is None:
                self._put(f"{self._keys}/note", pickle.dumps(_Note(self.rank, None)))
            # The connections of a process that is killed end a moment before it does.
            self._await_keys(names, _GRACE, self._find_gone)
            note = self._note()
        if note is not None and note.error is not None:  # it says why
            self.is_whole = note.rank is not None and all(work.is_completed() for work in self._begun.values())
            return _unpacked(note.error, note.rank)
        self.is_whole = False
        if self._gone:
            found = self._cannot_go_on(_ended({rank: (self._neighbours or {})[rank] for rank in self._gone}), error)
            self._put(f"{self._keys}/note", pickle.dumps(_Note(None, _packed(found))))
            return found
        missing = [rank for rank, name in enumerate(names) if not self._has(name)]
        if not missing:
            return self._cannot_go_on("a connection between ranks was lost", error)
        return self._cannot_go_on(f"{_named(missing)} did not answer. It was killed, or hangs", error)

    def _note(self) -> _Note | None:
        name = f"{self._keys}/note"
        return self._loaded(name) if self._has(name) else None

    def _cannot_go_on(self, why: str, error: Exception | None) -> DeadlineError:
        reason = f" ({error})" if error is not None else ""
        return DeadlineError(
            f"The {self._task} on {self.size} ranks cannot go on: {why}{reason}. The process group cannot be used any "
            "more."
        )

    def _late(self, ranks: Sequence[int]) -> DeadlineError:
        return DeadlineError(
            f"{_named(ranks)} of {self.size} did not come to the {self._task} within {self.timeout:g} s "
            "(group_timeout=...): all ranks of the group must call it."
        )

    def _put(self, key: str, content: bytes) -> None:
        self._asked(lambda: self._store.set(key, content))  # type: ignore[arg-type]  # bytes are fine

    def _has(self, key: str) -> bool:
        return bool(self._asked(lambda: self._store.check([key])))

    def _drop(self, key: str) -> None:
        self._asked(lambda: self._store.delete_key(key))

    def _loaded(self, key: str) -> Any:  # noqa: ANN401  # whatever a rank has put there
        return _unpickled(self._asked(lambda: self._store.get(key)))

    def _asked(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except RuntimeError as error:  # its subclasses differ between versions of torch
            self._is_settled, self.is_usable, self.is_whole = True, False, False
            raise DeadlineError(
                f"The {self._task} on {self.size} ranks cannot go on: the store of the process group does not answer "
                f"({error}). The rank that holds it, mostly rank 0, has ended."
            ) from error


def _device_of(group: dist.ProcessGroup) -> torch.device:
    """Return where collectives of a group find their tensors: on the CPU if it can, else on the current device."""
    kinds = [pair.partition(":")[0] for pair in dist.get_backend_config(group).split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    return torch.device(kinds[0], torch.get_device_module(kinds[0]).current_device())


def _ended(gone: Mapping[int, Process]) -> str:
    """Say which ranks of this machine have ended."""
    each = [f"{rank} (process {process.number} on {platform.node()})" for rank, process in gone.items()]
    return f"Rank{'s' if len(gone) > 1 else ''} {', '.join(each)} {'were' if len(gone) > 1 else 'was'} killed or ended"


def _named(ranks: Sequence[int]) -> str:
    return f"Rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _packed(error: BaseException) -> bytes:
    text = str(error.args[0]) if isinstance(error, S3Error) and error.args else str(error)
    try:
        kind = pickle.dumps(error)
        _unpickled(kind)
    except Exception:  # noqa: BLE001  # whatever a foreign class does when it is pickled
        kind = b""
    return pickle.dumps((kind, type(error).__name__, text))


def _unpacked(payload: bytes, rank: int | None) -> BaseException:
    """Return another rank's error, with its number in front."""
    kind, name, text = _unpickled(payload)
    error: Any = None
    try:
        error = _unpickled(kind) if kind else None
    except Exception:  # noqa: BLE001  # see above; the class may not be known here
        error = None
    said = text if rank is None else f"Rank {rank}: {text or name}"
    if isinstance(error, Exception) and len(error.args) <= 1:
        error.args = (said,)
        return error
    return S3Error(said if error is None else f"{said} ({name})")


def _unpickled(content: bytes) -> Any:  # noqa: ANN401  # whatever was pickled
    """Return what a rank has pickled: ranks run one program, and trust each other as torch.distributed does."""
    return pickle.loads(content)  # noqa: S301
