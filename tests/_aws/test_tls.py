from __future__ import annotations

import ssl
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from multiprocessing import get_context
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from s3torch import S3Client, S3ClientConfig
from s3torch._aws import tls
from s3torch._aws.tls import tls_context
from s3torch.errors import CertificateError, ConfigError
from s3torch.testing.faulty.authority import Authority
from tests.support.server import Request, ScriptedServer, Wire, serve_object


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of earlier tests."""
    monkeypatch.setattr(tls, "_contexts", type(tls._contexts)())


def test_clients_share_a_context(monkeypatch: pytest.MonkeyPatch):
    """Two clients that trust the same authorities share a context; one that trusts nobody has another."""
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    first, second = (S3Client("us-east-1")._access._sessions().tls() for _ in range(2))
    careless = S3Client("us-east-1", s3client_config=S3ClientConfig(verify=False))._access._sessions().tls()
    assert first is second
    assert first.verify_mode is ssl.CERT_REQUIRED
    assert first.check_hostname
    assert careless.verify_mode is ssl.CERT_NONE
    assert tls_context(True) is first


def test_replaced_files_are_read_anew(tmp_path: Path):
    """A file of authorities that was replaced is read by the next client."""
    path = Authority(tmp_path).path
    before = tls_context(str(path))
    assert tls_context(str(path)) is before
    path.write_bytes(path.read_bytes() + b"\n")
    assert tls_context(str(path)) is not before
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        tls_context(str(path))


def test_other_authorities_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """SSL_CERT_FILE names other authorities."""
    before = tls_context(True)
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path).path))
    assert tls_context(True).cert_store_stats() != before.cert_store_stats()


class PlainAuthority:
    """An authority as companies make them by hand: without the extensions that RFC 5280 wants.

    Args:
        directory: Where its files are written.

    Attributes:
        path: The PEM file that a client has to trust.
    """

    def __init__(self, directory: Path) -> None:
        key, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "In-house CA")])
        server = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        own_certificate = self._certificate(authority, own.public_key(), authority, own)
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
        certificate = self._certificate(server, key.public_key(), authority, own, names)
        self.path = directory / "own.pem"
        self.path.write_bytes(own_certificate.public_bytes(serialization.Encoding.PEM))
        self._chain = directory / "server.pem"
        self._chain.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )

    @staticmethod
    def _certificate(
        subject: x509.Name,
        public: ec.EllipticCurvePublicKey,
        issuer: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: x509.SubjectAlternativeName | None = None,
    ) -> x509.Certificate:
        now = datetime.now(timezone.utc)
        serial = 1 if names is None else 2
        builder = x509.CertificateBuilder(issuer, subject, public, serial, now, now + timedelta(days=1))
        if names is None:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=False)
        else:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(key, hashes.SHA256())

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of a server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._chain)
        return context


def test_in_house_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """An authority of one's own is trusted although it lacks extensions that Python 3.13 asks for; nobody else's is."""
    create = ssl.create_default_context

    def strict(**options: str | None) -> ssl.SSLContext:
        context = create(**options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    authority = PlainAuthority(tmp_path)
    with ScriptedServer(serve_object(b"content"), authority.context()) as server:
        for verify in (authority.path, Authority(tmp_path).path):
            config = S3ClientConfig(unsigned=True, verify=verify, max_attempts=1)
            client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
            if verify is authority.path:
                assert client.read_range("bucket", "key", 0) == b"content"
            else:
                with pytest.raises(CertificateError):
                    client.read_range("bucket", "key", 0)
            client.close()


def test_authorities_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """SSL_CERT_FILE alone serves reads and copies alike."""

    def handle(request: Request, wire: Wire) -> None:
        if request.method == "PUT":
            wire.respond(200, {}, b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>")
        else:
            serve_object(b"content")(request, wire)

    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    with ScriptedServer(handle, authority.context()) as server:
        config = S3ClientConfig(unsigned=True, max_attempts=1)
        client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)
        assert client.read_range("bucket", "key", 0) == b"content"
        client.copy_object("bucket", "key", "bucket", "copy")
        client.close()


def test_contexts_belong_to_a_process():
    """A forked child uses no context of its parent's."""
    inherited = tls_context(True)
    here, there = get_context("fork").Pipe()

    def compare() -> None:
        there.send(tls_context(True) is inherited)

    child = get_context("fork").Process(target=compare)
    child.start()
    assert here.recv() is False
    child.join()


def test_what_is_kept_is_bounded(tmp_path: Path):
    """Files that come and go are not kept for ever."""
    content = Authority(tmp_path).path.read_bytes()
    for number in range(12):
        path = tmp_path / f"{number}.pem"
        path.write_bytes(content)
        latest = tls_context(str(path))
        assert tls_context(str(path)) is latest
    assert len(tls._contexts) == tls._MOST_CONTEXTS


# Certificates of the client


def test_a_client_certificate(tmp_path: Path):
    """A certificate of the client is loaded from one file or two, once for all clients, and anew when it changes."""
    issued = trustme.CA().issue_cert("client@example.com")
    both, chain, key = (tmp_path / name for name in ("both.pem", "chain.pem", "key.pem"))
    issued.private_key_and_cert_chain_pem.write_to_path(both)
    issued.cert_chain_pems[0].write_to_path(chain)
    issued.private_key_pem.write_to_path(key)
    first = tls_context(False, (str(both), None))
    assert tls_context(False, (str(both), None)) is first
    assert tls_context(False, (str(chain), str(key))) is not first
    assert tls_context(False) is not first
    trustme.CA().issue_cert("other@example.com").private_key_and_cert_chain_pem.write_to_path(both)
    assert tls_context(False, (str(both), None)) is not first


def test_client_certificates_that_cannot_be_used(tmp_path: Path):
    """A file that is missing, no certificate, or has an encrypted key is a ConfigError, and nobody is asked."""
    issued = trustme.CA().issue_cert("client@example.com")
    chain, key, encrypted, junk = (tmp_path / name for name in ("chain.pem", "key.pem", "encrypted.pem", "junk.pem"))
    issued.cert_chain_pems[0].write_to_path(chain)
    issued.private_key_pem.write_to_path(key)
    private = load_pem_private_key(key.read_bytes(), None)
    encrypted.write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    )
    junk.write_text("junk")
    for certificate, its_key, text in [
        (tmp_path / "missing.pem", None, "No such file"),
        (junk, None, "cannot be used"),
        (chain, None, "cannot be used"),
        (chain, junk, "cannot be used"),
        (chain, encrypted, "the key is encrypted"),
    ]:
        with pytest.raises(ConfigError, match=text) as caught:
            tls_context(False, (str(certificate), None if its_key is None else str(its_key)))
        assert str(certificate) in str(caught.value)
        assert "client_cert" in str(caught.value)
