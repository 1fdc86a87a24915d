"""Whether what was read of an object is what was stored, with ``checksums="strict"``; what is damaged is fetched again.

Bytes are compared when all of them are there: the whole object with its checksum, or part by part where the checksum is
one of parts (COMPOSITE). Of a range, those parts are compared that lie in it whole. What each check costs in requests:

- The whole object: one HEAD, unless an answer has told its checksum. Where the parts lie is guessed from the size of
  the object and their number; the checksum proves a guess that is right, as it is for clients with parts of one size.
- The guess was wrong, or a byte is: the list of parts, by GetObjectAttributes, 1,000 in a page. Where that is forbidden
  or not known, a HEAD of the first part tells the size of all but the last; if not, a HEAD of each part.
- A range of 5 MiB or more, of an object that may have been uploaded in parts: the list of parts, once for each reader.
  A list that cannot be had leaves a range unverified: to prove one part, HEADs of all of them would be needed.
- Who needs a proof of each byte of a range asks for the list, too, and reads the rest of its parts: ``proving.py``.

Nothing is concluded from a list that the object's checksum does not prove: see ``_aws/part_checksums.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from s3torch._aws import checksums
from s3torch._aws.attributes import GetObjectAttributes, HeadPart
from s3torch._aws.listing import PageChain
from s3torch._aws.operations import HeadObject, damaged
from s3torch._aws.part_checksums import (
    AllParts,
    Composite,
    ListedPart,
    Part,
    ReadBytes,
    is_maybe_of_parts,
    parts_at,
    parts_of_list,
    places_of,
    probable_places,
    stored_of_object,
    within,
)
from s3torch._objects.uploads import follow
from s3torch._objects.version import ObjectVersion
from s3torch._transfer import plan
from s3torch.errors import (
    AccessDeniedError,
    IntegrityError,
    NotFoundError,
    ProtocolError,
    RequestError,
    UnverifiedError,
)

if TYPE_CHECKING:
    from s3torch._aws.checksums import Checksum
    from s3torch._aws.operations import GetObject
    from s3torch._transfer.exchange import Exchange

__all__ = ["VerifiedVersion", "Verifier"]

_log = logging.getLogger(__name__)

# S3's smallest part, but for the last (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html).
_SMALLEST_PART = 5 * 1024 * 1024
# How often bytes are fetched that do not have their checksum; as for a single request.
_ATTEMPTS = 3
# What a server answers that has no list of parts, or not for this client.
_WITHOUT_LIST = (AccessDeniedError, NotFoundError, ProtocolError, RequestError)


class Verifier:
    """Compares what was read of one version with the checksums that it is stored with.

    Args:
        version: What was read; its first answer has told size and ETag.

    Attributes:
        stored: The object's checksum; None while unknown.
    """

    def __init__(self, version: ObjectVersion) -> None:
        self.stored: Checksum | Composite | None = None
        self._version = version
        self._parts: list[Part] | None = None
        self._has_asked = False

    def note(self, told: Checksum | Composite | None) -> None:
        """Note the object's checksum, where an answer has told it: then it is not asked for."""
        if self.stored is None:
            self.stored = told

    def prove(self, start: int, views: Sequence[memoryview], deadline: float | None = None) -> None:
        """Compare bytes with their checksums; what is damaged is fetched again, into the same memory.

        Args:
            start: The place of the first byte in the object.
            views: All bytes, in one or several pieces.
            deadline: Of the call that they are for; None begins one of its own.

        Raises:
            IntegrityError: Bytes are damaged, however often they are fetched.
            UnverifiedError: They are all of the object, and nothing proves them.
        """
        read = ReadBytes(start, views)
        views = ()
        try:
            deadline = self._version.access.engine().deadline() if deadline is None else deadline
            suspects = self._suspects(read, deadline)
            for attempt in range(1, _ATTEMPTS + 1):
                error = self._find_damage(read, suspects)
                if error is None:
                    return
                if attempt == _ATTEMPTS:
                    error.attempts = _ATTEMPTS
                    raise error
                _log.debug("Fetched again: %s", error)
                self._fetch_again(read, suspects, deadline)
        except BaseException:
            read.release()
            raise

    def units(self) -> Sequence[tuple[int, int]]:
        """Return what checksums prove, each as a whole: the parts of the upload that the server lists, or the object.

        Raises:
            UnverifiedError: There is no checksum, or none that can be computed here.
        """
        size = self._version.size or 0
        deadline = self._version.access.engine().deadline()
        if self._parts is None:
            self._learn_parts(size, deadline)
        if self._parts is not None:
            return [(part.start, part.stop) for part in self._parts]
        self._learn_stored(deadline)
        return [(0, size)]

    def lacks_too_much(self, size: int, lacking: int) -> UnverifiedError:
        """Return the error of a part, or of the object, of which too much was not read.

        Args:
            size: Of what one checksum proves, in bytes.
            lacking: How many of them were not read.
        """
        what = "the whole object" if size == self._version.size else "one of its parts"
        return self._unverified(
            f"only a part of it was read, and the checksum that proves it is of {what}, {size} bytes. The other "
            f"{lacking} bytes are more than max_bytes_in_flight, up to which they are read, too. Load all of it, raise "
            "that, or"
        )

    def _find_damage(self, read: ReadBytes, suspects: list[Part | AllParts]) -> IntegrityError | None:
        """Compare parts, and forget those that are well; returns the error of the first that is not."""
        first = None
        for part in list(suspects):
            arrived = part.arrived(read)
            if arrived == part.checksum:
                suspects.remove(part)
            elif first is None:
                first = damaged(part.checksum, arrived, self._version.bucket, self._version.key, part)
        return first

    def _fetch_again(self, read: ReadBytes, parts: Sequence[Part | AllParts], deadline: float | None) -> None:
        gets: list[GetObject] = []
        for part in parts:
            size = part.stop - part.start
            part_size = self._version.part_size(size, len(gets))
            for start in range(part.start, part.stop, part_size):
                stop = min(start + part_size, part.stop)
                gets.append(self._version.get(start, stop, list(read.pieces(start, stop))))
        try:
            self._run(gets, deadline)
            self._version.conclude(gets)
        except BaseException:
            gets.clear()  # whoever keeps the error keeps this frame
            raise

    def _suspects(self, read: ReadBytes, deadline: float | None) -> list[Part | AllParts]:
        """Return the parts to compare; none of what the search for their places has proved already."""
        size = self._version.size
        if size is None or read.start >= read.stop:
            return []
        if not read.start and read.stop == size:
            return self._suspects_of_whole(read, deadline)
        if self._parts is None and read.stop - read.start >= _SMALLEST_PART:
            self._learn_parts(size, deadline)
        return list(within(self._parts or (), read.start, read.stop))

    def _suspects_of_whole(self, read: ReadBytes, deadline: float | None) -> list[Part | AllParts]:
        stored = self._learn_stored(deadline)
        if not isinstance(stored, Composite):
            return [Part(1, 1, 0, read.stop, stored)]
        if self._parts is not None:
            return list(self._parts)
        return self._search(read, stored, deadline)

    def _learn_stored(self, deadline: float | None) -> Checksum | Composite:
        """Return the object's checksum, which is asked for if no answer has told it."""
        stored = self.stored = self.stored or self._ask_for_checksum(deadline)
        if not checksums.is_available(stored.algorithm):
            raise self._unverified(f"its {stored.algorithm.name} cannot be computed here. {checksums.EXTRA} or")
        return stored

    def _search(self, read: ReadBytes, stored: Composite, deadline: float | None) -> list[Part | AllParts]:
        """Find the parts; returns what is to be compared yet: none of them if the bytes have proved where they lie.

        Raises:
            UnverifiedError: The server does not tell where they lie.
        """
        size = read.stop
        if not stored.is_told and read.compute(stored.algorithm, 0, size) == stored.checksum:
            return []
        tried: list[Sequence[tuple[int, int]]] = []
        told: Sequence[tuple[int, int]] = ()
        for listed, is_guess in self._lists(stored, size, deadline):
            self._parts = parts_of_list(listed, size, stored)
            if self._parts is not None:
                return list(self._parts)
            places = places_of(listed, size, stored)
            told = told if is_guess else places or told
            if places not in tried:
                tried.append(places)
                self._parts = parts_at(places, read, stored)
                if self._parts is not None:
                    return []
        if stored.is_told and read.compute(stored.algorithm, 0, size) == stored.checksum:
            return []  # some servers call the checksum of the bytes one of the parts
        if told:
            return [AllParts(told, stored.checksum)]
        raise self._unverified(
            f"its {stored.algorithm.name} {stored} is one of its parts (COMPOSITE), and the server does not tell where "
            "these begin. Store it again, by S3Client.put_object for one, or"
        )

    def _lists(
        self, stored: Composite, size: int, deadline: float | None
    ) -> Iterator[tuple[Sequence[ListedPart], bool]]:
        """Return lists of parts that may be those of the object, and whether they are guessed: the cheapest first."""
        yield _of_sizes(probable_places(size, stored.parts or 0)), stored.parts != 1  # which lies in one place only
        listed, _ = self._list(deadline)
        yield listed, False
        try:
            first = self._head_part(1)
            self._run([first], deadline)
            count = stored.parts or first.count or 0
            is_known = bool(places_of(listed, size, stored)) and not first.part.values
            if is_known or not 1 <= count <= plan.MAX_PARTS or not 0 < first.part.size < size:
                return  # nothing more would be learnt, or the server knows nothing of parts
            yield _of_sizes(plan.split(0, size, first.part.size)), True
            others = [self._head_part(number) for number in range(2, count + 1)]
            self._run(others, deadline)
        except _WITHOUT_LIST as error:
            _log.debug("No HEAD of a part of s3://%s/%s: %s", self._version.bucket, self._version.key, error)
        else:
            yield [head.part for head in (first, *others)], False

    def _learn_parts(self, size: int, deadline: float | None) -> None:
        """Ask for the parts of an object of which a range was read, once, if it may have any."""
        if self._has_asked or not is_maybe_of_parts(self._version.etag):
            return
        self._has_asked = True
        listed, told = self._list(deadline)
        stored = self.stored or told
        if stored is not None and checksums.is_available(stored.algorithm):
            self._parts = parts_of_list(listed, size, stored)

    def _list(self, deadline: float | None) -> tuple[list[ListedPart], Checksum | Composite | None]:
        """Return the parts that GetObjectAttributes lists, and the checksum that it tells; none where it does not.

        Raises:
            ObjectChangedError: They are of another version.
        """
        version = self._version
        bucket = version.access.bucket(version.bucket)
        listed: list[ListedPart] = []
        chain, after = PageChain(), 0
        while bucket.lists_parts:
            request = GetObjectAttributes(bucket, version.key, version.version_id, after)
            try:
                self._run([request], deadline)
                page = request.page
                modified = request.head.fields.get("last-modified") if request.head is not None else None
                version.observe(page.size, page.etag, modified)
                listed += page.parts
                if page.following is None or len(listed) > plan.MAX_PARTS:
                    return listed, page.stored
                following = {} if page.following <= after else {"part-number-marker": page.following}
                follow(chain, following, is_empty=not page.parts, bucket=version.bucket, key=version.key)
                after = page.following
            except _WITHOUT_LIST as error:
                _log.debug("No list of the parts of s3://%s/%s: %s", version.bucket, version.key, error)
                if isinstance(error, (AccessDeniedError, RequestError)):
                    bucket.lists_parts = False  # nor will it be for the next object
                break
        return [], None

    def _head_part(self, number: int) -> HeadPart:
        version = self._version
        bucket = version.access.bucket(version.bucket)
        return HeadPart(bucket, version.key, version.version_id, number, etag=version.etag)

    def _ask_for_checksum(self, deadline: float | None) -> Checksum | Composite:
        version = self._version
        bucket = version.access.bucket(version.bucket)
        request = HeadObject(bucket, version.key, version.version_id, etag=version.etag, asks_checksum=True)
        self._run([request], deadline)
        version.observe_head(request)
        stored = stored_of_object(request.head.fields if request.head is not None else {})
        if stored is None:
            raise self._unverified(
                "the server tells no checksum of its bytes, or none that is known here. "
                "Store it again, by S3Client.put_object for one, or"
            )
        return stored

    def _run(self, exchanges: Sequence[Exchange], deadline: float | None) -> None:
        self._version.access.engine().run(exchanges, deadline)

    def _unverified(self, why: str) -> UnverifiedError:
        bucket, key = self._version.bucket, self._version.key
        return UnverifiedError(
            f"s3://{bucket}/{key} was read but cannot be verified: {why} use S3ClientConfig(checksums='on').",
            bucket=bucket,
            key=key,
        )


class VerifiedVersion(ObjectVersion):
    """A version whose bytes can be verified; see ``ObjectVersion`` for the arguments."""

    _verifier: Verifier | None = None  # most have no use for it

    @property
    def verifier(self) -> Verifier:
        """What compares what was read with checksums."""
        if self._verifier is None:
            self._verifier = Verifier(self)
        return self._verifier


def _of_sizes(places: Sequence[tuple[int, int]]) -> list[ListedPart]:
    return [ListedPart(stop - start, {}) for start, stop in places]
