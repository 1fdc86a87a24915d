"""Access to a service: all that readers, writers and listings need to send anything, and nothing that they have begun.

It holds the configuration, and for each process the session with botocore, for each thread the engines. It is shared
by threads, so nothing here is in flight: what a call begins belongs to that call (see ``_transfer/scope.py``).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from s3torch._access import leftovers
from s3torch._access.ledger import Ledger
from s3torch._access.node import Share, here, share_of
from s3torch._aws.bucket import Bucket
from s3torch._aws.customer_key import customer_key_fields
from s3torch._aws.endpoint import Scheme
from s3torch._aws.express import DirectoryBucket
from s3torch._aws.session import AwsSession
from s3torch._aws.user_agent import user_agent
from s3torch._log import LOG
from s3torch._transfer.connection import PROCESS_ADDRESSES, Network
from s3torch._transfer.engine import Engine
from s3torch._transfer.facts import PROCESS_FACTS
from s3torch._transfer.flight import Limits
from s3torch._transfer.retry import RetryPolicy

if TYPE_CHECKING:
    from s3torch._transfer.exchange import Exchange
    from s3torch._transfer.stats import TransferStats
    from s3torch.config import S3ClientConfig

__all__ = ["Access"]

# A name that a bucket may have.
_SOME_BUCKET = "bucket"


class _ThreadEngines(threading.local):
    """The engines of the calling thread: one, and another for each signal handler that came in the middle of a turn.

    Attributes:
        is_lent: Whether the thread, and what it has, lives no longer than a call.
    """

    is_lent = False

    @property
    def engines(self) -> list[Engine]:
        """They are made by one call: a handler that comes in the middle of a constructor would find none."""
        engines: list[Engine] = self.__dict__.setdefault("made", [])
        return engines


class _Sessions:
    """The session with botocore, one for each process.

    Buckets refer to it, not to the access that they belong to: that would be a cycle, and leave the connections of a
    client that is dropped to the garbage collector.
    """

    def __init__(self, config: S3ClientConfig, region: str | None, endpoint: str | None) -> None:
        self._arguments = config, region, endpoint
        self._made: dict[int, AwsSession] = {}

    def __call__(self) -> AwsSession:
        pid = os.getpid()
        made = self._made.get(pid)
        if made is None:
            parents = list(self._made.items())  # a copy: other threads may be here, too
            inherited = parents[-1][1].heritage() if parents else None
            made = self._made.setdefault(pid, AwsSession(*self._arguments, inherited))
            for parent, _ in parents:
                if parent != pid:
                    self._made.pop(parent, None)
        return made


class _Sender:
    """Sends what a bucket asks for itself, without referring to the access that the bucket belongs to (see above).

    Attributes:
        settings: Of the client: whoever has the same gets the same failure.
    """

    def __init__(self, access: Access) -> None:
        self._access = weakref.ref(access)
        self.settings: object = access.config

    def send(self, exchange: Exchange) -> None:
        """Send a request in the middle of a turn, and wait for it as long as that turn may go on."""
        self._living.run([exchange], self.time_left())

    def begin(self, exchange: Exchange) -> bool:
        """Send a request beside those of the turn that this is the middle of. Nobody waits for it, or cancels it.

        Returns:
            Whether it is under way: not on an engine that nobody may turn again.
        """
        engine = self._living.turning_engine()
        if engine is None or not self._living.lasts(engine):
            return False
        engine.submit(exchange, is_first=True)
        return True

    def time_left(self) -> float | None:
        """Return for how many seconds the turn that this is the middle of may go on; None for as long as it takes."""
        engine = self._living.turning_engine()
        return None if engine is None else engine.time_left()

    @property
    def _living(self) -> Access:
        access = self._access()
        if access is None:
            raise AssertionError("a request is signed for a client that does not exist any more")
        return access


class _ProcessState:
    """What belongs to one process, and must not be used in another: connections and locks."""

    def __init__(self, session: AwsSession) -> None:
        self.session = session
        self.threads = _ThreadEngines()
        self.engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self.ledger = Ledger()
        self.spare: deque[Engine] = deque()  # of threads that have ended, with their connections


class Access:
    """Sends requests, with one configuration, from any thread of any process.

    Args:
        config: The client's.
        region: Given by the user, or None to look it up.
        endpoint: URL given by the user, or None to look it up.
        user_agent_comments: Appended to the User-Agent field in parentheses.

    Attributes:
        config: The client's.
        given_region: The region that the user gave, or None.
        endpoint: The URL that the user gave, or None.
        user_agent: The User-Agent field of all requests.
    """

    def __init__(
        self,
        config: S3ClientConfig,
        region: str | None = None,
        endpoint: str | None = None,
        user_agent_comments: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.given_region = region
        self.endpoint = endpoint
        self.user_agent = user_agent(tuple(user_agent_comments))
        _accesses.add(self)
        self._sessions = _Sessions(config, region, endpoint)
        self._buckets: dict[str, Bucket] = {}
        self._states: dict[int, _ProcessState] = {}
        self._share: tuple[int, Share] | None = None
        self._for_children: tuple[int, Sequence[str]] | None = None

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if self._for_children is not None:
            self.expect_children(self._for_children[1])
        _accesses.add(self)

    def __getstate__(self) -> dict[str, object]:
        sessions = _Sessions(self.config, self.given_region, self.endpoint)
        return {**self.__dict__, "_sessions": sessions, "_states": {}, "_buckets": {}, "_share": None}

    @property
    def region(self) -> str:
        """The region that requests begin with."""
        return self.given_region or self._process().session.region()

    @property
    def share(self) -> Share:
        """What a thread of this process may take; decided once a process, when it is first asked for."""
        pid, known = os.getpid(), self._share
        if known is None or known[0] != pid:
            known = self._share = pid, share_of(self.config, here())
        return known[1]

    @property
    def stats(self) -> TransferStats:
        """What this process has sent and received, over all threads."""
        return self._process().ledger.total()

    @property
    def engines(self) -> list[Engine]:
        """All engines of this process, of all threads."""
        return list(self._process().engines)

    def engine(self) -> Engine:
        """Return an engine of the calling thread that is not in the middle of a turn.

        A signal handler that comes in the middle of a turn gets another one: what it does is none of the turn's
        business, and the turn goes on as if nothing had been.
        """
        if leftovers.LEFT:
            leftovers.send()
        state = self._states.get(os.getpid()) or self._process()
        engines = state.threads.engines
        for engine in engines:
            if not engine.is_entered:
                break
        else:
            return self._new_engine(state)
        if len(engines) > 1 and engine is engines[0]:  # the handler has returned: what it used is closed
            engines[1:] = [other for other in engines[1:] if other.pending]
        return engine

    @contextlib.contextmanager
    def lent_engine(self) -> Iterator[Engine]:
        """Lend an engine to a thread that lives no longer than a call: one by which such a thread has sent before."""
        state = self._process()
        state.threads.is_lent = True
        try:
            engine = state.spare.pop()
        except IndexError:
            engine = self._new_engine(state)
        else:
            engine.take_over()
            state.threads.engines.append(engine)
        try:
            yield engine
        finally:
            state.threads.engines.clear()
            if not engine.pending:
                state.spare.append(engine)

    def turning_engine(self) -> Engine | None:
        """Return the engine of the calling thread that is in a turn, the innermost one; None if there is none."""
        return next((engine for engine in reversed(self._process().threads.engines) if engine.is_entered), None)

    def lasts(self, engine: Engine) -> bool:
        """Whether an engine is the calling thread's own, and not lent for a call, or for a signal handler."""
        threads = self._process().threads
        return not threads.is_lent and engine is threads.engines[0]

    def run(self, exchanges: Sequence[Exchange], within: float | None = None) -> None:
        """Send exchanges and wait for all of them.

        Args:
            exchanges: Not sent yet.
            within: Seconds that it may take at most; None: as long as the configuration allows.

        Raises:
            S3Error: The first error among them; nothing is in flight any more.
        """
        engine = self.engine()
        engine.run(exchanges, engine.deadline(within))

    def bucket(self, name: str) -> Bucket:
        """Return where a bucket is and how requests for it are signed."""
        bucket = self._buckets.get(name)
        if bucket is None:
            key_file = self.config.sse_customer_key_file
            made = Bucket(
                name,
                self._sessions,
                self.user_agent,
                requester_pays=self.config.requester_pays,
                has_checksums=self._sessions().asks_checksums(),
                sends_checksums=self._sessions().sends_checksums(),
                customer_key=customer_key_fields(key_file) if key_file is not None else {},
            )
            if made.endpoint.scheme is Scheme.SESSION:
                made = DirectoryBucket(made, _Sender(self))
            bucket = self._buckets.setdefault(name, made)  # one for all threads, which learn from each other's answers
        return bucket

    def expect_children(self, buckets: Sequence[str]) -> None:
        """Have this process find what its children need, before it forks them.

        Args:
            buckets: That they will use, as far as that is known.
        """
        self._for_children = os.getpid(), buckets

    def prepare(self) -> None:
        """Find what a child that is forked now would look for: botocore, endpoints, and credentials.

        Nothing is raised: a child that needs what could not be found says so where it needs it.
        """
        if self._for_children is None or self._for_children[0] != os.getpid():  # a child's forks are not expected
            return
        try:
            session = self._process().session
            for name in self._for_children[1]:
                self.bucket(name)
            if not self._buckets:  # to know any address takes what botocore reads for all of them
                session.endpoint(_SOME_BUCKET, session.region())
            session.look_ahead_of_children()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is not the business of who forks
            LOG.info("Before a fork nothing could be prepared for the child: %s", type(error).__name__)

    def close(self) -> None:
        """Close the calling thread's connections. What is not done goes on over new ones."""
        state = self._process()
        for engine in state.threads.engines:
            engine.reset()
        _close_spare(state)

    def leave_process(self) -> None:
        """Close the calling thread's connections, as the interpreter ends: it would complain of open sockets."""
        state = self._states.get(os.getpid())
        for engine in state.threads.engines if state is not None else ():
            if engine.is_free:
                engine.reset()
        if state is not None:
            _close_spare(state)

    def _process(self) -> _ProcessState:
        """Return this process's state; what a fork inherited is dropped without being touched."""
        pid = os.getpid()
        state = self._states.get(pid)
        if state is None:
            state = self._states.setdefault(pid, _ProcessState(self._sessions()))  # atomic: threads may race here
            for inherited in set(self._states) - {pid}:  # a copy: others may be dropping, too
                dropped = self._states.pop(inherited, None)
                for engine in dropped.engines if dropped is not None else ():
                    engine.abandon()
        return state

    def _new_network(self, state: _ProcessState) -> Network:
        """Return what opens the connections of a new engine."""
        return Network(state.session.tls, addresses=PROCESS_ADDRESSES, proxy=state.session.proxy)

    def _new_engine(self, state: _ProcessState) -> Engine:
        config = self.config
        engine = Engine(
            self._new_network(state),
            RetryPolicy(max_attempts=config.max_attempts),
            Limits(
                connections=self.share.connections,
                bytes_in_flight=self.share.bytes_in_flight,
                connect_timeout=config.connect_timeout,
                first_byte_timeout=config.first_byte_timeout,
                stall_timeout=config.stall_timeout,
                call_timeout=config.call_timeout,
                hedging=config.hedging,
            ),
            facts=PROCESS_FACTS,
        )
        state.engines.add(engine)
        state.ledger.add(engine)
        state.threads.engines.append(engine)
        return engine


def _close_spare(state: _ProcessState) -> None:
    """Close the connections that nobody uses at this moment."""
    while state.spare:
        with contextlib.suppress(IndexError):  # another thread was faster
            engine = state.spare.pop()
            engine.take_over()
            engine.reset()


_accesses: weakref.WeakSet[Access] = weakref.WeakSet()


def _prepare() -> None:
    for access in list(_accesses):
        access.prepare()


# Before ``NO_FORK`` is taken, which was registered earlier: what it finds takes that by itself, and a search for
# credentials that is under way in another thread is waited for, not repeated.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_prepare)


@atexit.register
def _leave_process() -> None:
    """Send what finalisers have left, and close what is open. Writers were registered later: their turn came before."""
    leftovers.send()
    for access in list(_accesses):
        access.leave_process()
