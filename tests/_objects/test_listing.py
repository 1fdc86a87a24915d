"""Pages of a listing that are asked for ahead."""

from __future__ import annotations

import threading

from s3torch._objects.listing import ListObjectStream


def test_each_page_is_asked_for_once(client, bucket, prefix, put, traffic):
    """A page that was asked for ahead is the next one, and is not asked for again."""
    for number in range(3):
        put(f"{prefix}{number}", b"")
    stream = ListObjectStream(client._access, bucket, prefix, "", 1)
    stream.look_ahead = True
    traffic.restart()
    keys = [[info.key for info in page.object_info] for page in stream]
    assert keys == [[f"{prefix}{number}"] for number in range(3)]
    assert traffic.requests == 3


def test_a_page_that_another_thread_has_asked_for(client, bucket, prefix, put):
    """A thread that goes on with the listing of another asks for its page itself."""
    for number in range(2):
        put(f"{prefix}{number}", b"")
    stream = ListObjectStream(client._access, bucket, prefix, "", 1)
    stream.look_ahead = True
    pages = [next(stream)]
    thread = threading.Thread(target=lambda: pages.append(next(stream)))
    thread.start()
    thread.join()
    assert [info.key for page in pages for info in page.object_info] == [f"{prefix}0", f"{prefix}1"]
    assert stream.complete
