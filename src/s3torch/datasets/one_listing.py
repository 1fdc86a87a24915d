"""One listing for all processes of a machine that share a dataset.

Theory of operation. DataLoader workers take their samples by positions in the table of objects. If each of them lists,
and a key is added in between, the tables differ: samples are lost, and others come twice, without an error. So the
processes that have the same dataset agree on one table. They meet in a directory for temporary files: who comes first
takes a lock, lists, and saves the table; the others wait for the lock and load it.

- The directory has a random name of 128 bits, which the dataset carries by fork, and by pickle to a process that is
  being started. No other user can guess it, and only its owner may enter. It is made when a process needs it.
- Any other pickle, such as a file that a later job loads, leaves the name out: an old listing must not be found there.
- A table that is there is never replaced: who has listed takes that of the one who was first to save it. So all agree
  without the lock, too, which only saves listings.
- A signal handler may come in the middle of a listing, and start processes that need the table, and wait for them. They
  must not wait for the lock, which is not free before the handler returns: they take another one, of their own.
- The lock (``flock``) ends with the process that holds it. If that is killed, or its listing fails, the next one lists:
  so an error of the server reaches every process.
- A process whose dataset was never copied into another lists by itself, and touches no disk.
- The process that made the dataset removes the directory when the dataset is collected, or when the process ends. A
  table that a known number of workers takes, once each, is removed before that by the last of them.

Where there is no ``fcntl`` (Windows) each process lists by itself.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import get_spawning_popen
from pathlib import Path

from torch.utils.data import get_worker_info

from s3torch._forks import NO_FORK, count_forks
from s3torch.datasets.objects import ObjectTable
from s3torch.errors import ObjectTableError

try:
    import fcntl
except ImportError:  # Windows
    _HAS_LOCKS = False
else:
    _HAS_LOCKS = True

__all__ = ["OneListing"]


class OneListing:
    """Where the processes that share a dataset agree on its table of objects.

    Args:
        directory: Of a dataset in another process; None chooses a new name.
        number: Of this copy, among those that were pickled.
        depth: Which of the directory's locks is free for this process; see ``_depth``.
    """

    def __init__(self, directory: str | None = None, number: int = 0, depth: int = 0) -> None:
        self._name = f"s3torch-{secrets.token_hex(16)}"
        self._directory = None if directory is None else Path(directory)
        self._handed_on = [directory] if directory else []
        self._forks = count_forks()
        self._number = number
        self._copies = 0
        if directory is None:
            weakref.finalize(self, _remove, self._name, os.getpid(), self._forks, self._handed_on)
        elif depth:
            _depths[Path(directory)] = depth

    def __repr__(self) -> str:
        return f"<OneListing {'shared' if self.is_shared else 'of one process'}>"

    def __reduce__(self) -> tuple[type[OneListing], tuple[()] | tuple[str, int, int]]:
        if not self.hand_on():
            return OneListing, ()
        self._copies += 1
        return OneListing, (str(self._place()), self._copies, _depth(self._place()))

    @property
    def is_shared(self) -> bool:
        """Whether another process may have the same dataset."""
        return _HAS_LOCKS and (bool(self._handed_on) or self._forks != count_forks())

    def hand_on(self) -> bool:
        """Note that the dataset is being pickled; returns whether that is for a process that shares its listing.

        Those are processes that are being started, by ``spawn`` or ``forkserver``. A copy that a DataLoader worker
        makes stays with the other workers.
        """
        shares = get_spawning_popen() is not None or get_worker_info() is not None
        if shares and not self._handed_on:
            self._handed_on.append(str(self._place()))
        return shares

    def agree(self, name: str, list_objects: Callable[[], ObjectTable], taker: int = 0, takers: int = 0) -> ObjectTable:
        """Return the table on which all processes agree that ask for this name.

        Args:
            name: Of the table; letters, digits and ``-``.
            list_objects: Returns the table, if no other process has made it yet.
            taker: Which of the processes this is, from 0.
            takers: How many ask for this name, once each; 0 if that is not known.

        Raises:
            ObjectTableError: The table cannot be kept in the directory for temporary files.
            S3Error: The listing failed.
        """
        if not self.is_shared:
            return list_objects()
        path = self._place() / f"{name}.table"
        with _locked(path.parent) as is_first:
            table = _load(path)
            if table is None:
                table = _publish(path, list_objects())
            if takers and is_first:  # else this is a signal handler, or what list_objects calls
                # Workers start one after the other: what they have in common tells two DataLoaders apart.
                group = count_forks() - self._forks + self._number - taker
                with _explained():
                    _note_taker(path, group, taker, takers)
            return table

    def _place(self) -> Path:
        if self._directory is None:
            self._directory = _place_of(self._name)
        return self._directory


def _place_of(name: str) -> Path:
    try:
        return Path(tempfile.gettempdir(), name)
    except FileNotFoundError:  # there is none that can be written to: who needs one will say so
        return Path(os.curdir, name)


def _remove(name: str, owner: int, forks: int, handed_on: list[str]) -> None:
    """Remove the directory, if this is the process that made the dataset, and another one may have used it."""
    if os.getpid() == owner and (handed_on or forks != count_forks()):
        for place in {str(_place_of(name)), *handed_on}:
            shutil.rmtree(place, ignore_errors=True)


def _load(path: Path) -> ObjectTable | None:
    with _explained():
        return ObjectTable.load(path) if path.exists() else None


def _publish(path: Path, table: ObjectTable) -> ObjectTable:
    """Save a table, unless another one is there by now; returns the one that is there then."""
    mine = path.with_name(f".s3torch-{secrets.token_hex(16)}")
    with _explained():
        try:
            table.save(mine)
            try:
                os.link(mine, path)
            except FileExistsError:
                return ObjectTable.load(path)
            except OSError:  # there are no hard links, as on some network file systems: the lock has to do
                if path.exists():
                    return ObjectTable.load(path)
                mine.replace(path)
        finally:
            mine.unlink(missing_ok=True)
    return table


def _note_taker(path: Path, group: int, taker: int, takers: int) -> None:
    """Note that a worker has its table; the last worker removes the table.

    Each worker leaves its process id. DataLoaders that are seeded alike ask for the same name: two at the same time, or
    the next one after one that ended before all of its workers had come. So the table stays unless each of those that
    noted anything has all of its workers there, and they are alive: then nobody is still to come.
    """
    path.with_suffix(f".{group}~{taker}").write_text(str(os.getpid()))
    notes = [note for note in path.parent.glob(f"{path.stem}.*") if note != path]
    groups = Counter(note.suffix.partition("~")[0] for note in notes)
    if all(count == takers for count in groups.values()) and all(_is_alive(int(note.read_text())) for note in notes):
        for each in (path, *notes):
            each.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


# Which thread holds or awaits the lock of which directory, by its descriptor of the lock's file.
_open: dict[int, tuple[int, Path]] = {}


# How many locks of a directory are held by threads that may wait for the end of this process, or of one that waits for
# it: they were in the middle of a listing when they started it.
_depths: dict[Path, int] = {}


def _depth(directory: Path) -> int:
    """Return how many locks of a directory a process must not wait for that the calling thread starts."""
    is_in_the_middle = (threading.get_ident(), directory) in list(_open.values())
    return _depths.get(directory, 0) + is_in_the_middle


def _drop_inherited() -> None:
    """Close what a fork has copied: the lock would last until the child ends as well."""
    for directory in {directory for _, directory in _open.values()}:
        _depths[directory] = _depth(directory)
    while _open:
        os.close(_open.popitem()[0])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_inherited)


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Hold the lock of a directory.

    Yields:
        Whether it does: not if this thread has the lock already, and would wait for itself.
    """
    holder = (threading.get_ident(), directory)
    if holder in list(_open.values()):
        yield False
        return
    descriptor = -1
    try:
        with _explained(), NO_FORK:  # so that a child knows of each descriptor that it has inherited
            directory.mkdir(mode=0o700, exist_ok=True)
            name = "lock" + "~" * _depths.get(directory, 0)
            descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _open[descriptor] = holder
        with _explained():
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield True
    finally:
        with NO_FORK:
            if _open.pop(descriptor, None) is not None:  # else this is a child, which has closed it
                os.close(descriptor)


@contextmanager
def _explained() -> Iterator[None]:
    """Say of errors of the system what they prevent, and what to do."""
    try:
        yield
    except OSError as error:
        raise ObjectTableError(
            f"The processes of a dataset cannot share its listing: {error}. Point TMPDIR to a directory that can be "
            "written to, or list once: save dataset.objects, and make the dataset by from_table."
        ) from error
