"""What processes share with the system: locks, the end of the parent, TLS contexts, multipart messages."""

from __future__ import annotations

import email
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from lcmem_onnx.runtime.errors import ArchiveError, UsageError
from lcmem_onnx.runtime.system.file_lock import try_lock, wait_for_lock
from lcmem_onnx.runtime.system.tls import client_context, server_context

# -- locks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="shared locks are flock's")
def test_shared_locks_go_together_and_an_exclusive_one_goes_alone(tmp_path: Path) -> None:
    first, second, third = (os.open(tmp_path, os.O_RDONLY) for _ in range(3))  # a folder can be locked as well as a file
    try:
        assert try_lock(first, shared=True)
        assert try_lock(second, shared=True)
        assert not try_lock(third)
        os.close(second)
        assert not try_lock(third)
        os.close(first)
        assert try_lock(third)
        first = os.open(tmp_path, os.O_RDONLY)
        assert not try_lock(first, shared=True)
    finally:
        os.close(first)
        os.close(third)


@pytest.mark.skipif(os.name != "posix", reason="flock")
def test_a_lock_is_waited_for_until_its_holder_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.touch()
    holder = (
        "import os, sys, time; from lcmem_onnx.runtime.system.file_lock import wait_for_lock\n"
        "wait_for_lock(os.open(sys.argv[1], os.O_RDWR)); print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", holder, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with open(file, "rb") as mine:
            assert not try_lock(mine.fileno(), shared=True)
            process.kill()
            wait_for_lock(mine.fileno())
            with open(file, "rb") as other:
                assert not try_lock(other.fileno())


# -- the parent's end ------------------------------------------------------------------------------------------------------


def test_a_process_is_told_of_its_parents_end_and_may_finish() -> None:
    """Of its own accord with 0, or else, when its time is over, with 1."""
    program = (
        "import sys, threading; from lcmem_onnx.runtime.system.parent_process import end_with_parent\n"
        "told = threading.Event(); end_with_parent(told.set, float(sys.argv[1])); print('up', flush=True)\n"
        "told.wait(); print('told', flush=True)\n"
        "if sys.argv[2] == 'hang': threading.Event().wait()\n"
    )
    for grace, then, status in (("60", "finish", 0), ("0.1", "hang", 1)):
        command = [sys.executable, "-P", "-c", program, grace, then]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            process.stdin.write(b"what the parent says is read and dropped")
            process.stdin.close()
            assert process.stdout.read() == b"told\n"
            assert process.wait(30) == status


# -- TLS -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate, its key, and the same key encrypted."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed: no certificate for a test of TLS")
    folder = tmp_path_factory.mktemp("identity")
    for command in (
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-keyout", "key.pem", "-out", "certificate.pem"],
        ["ec", "-in", "key.pem", "-aes256", "-passout", "pass:secret", "-out", "encrypted.pem"],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return folder


def test_contexts_verify_and_take_no_old_version(identity: Path) -> None:
    certificate, key = identity / "certificate.pem", identity / "key.pem"
    client = client_context(certificate, certificate, key, error=UsageError)
    assert (client.verify_mode, client.check_hostname) == (ssl.CERT_REQUIRED, True)
    anyone = server_context(certificate, key, error=UsageError)
    known = server_context(certificate, key, certificate, error=UsageError)
    assert (anyone.verify_mode, known.verify_mode) == (ssl.CERT_NONE, ssl.CERT_REQUIRED)
    assert {context.minimum_version for context in (client, anyone, known)} == {ssl.TLSVersion.TLSv1_2}
    assert client_context(error=UsageError).verify_mode == ssl.CERT_REQUIRED


def test_a_bad_file_is_named_and_the_error_is_the_callers(identity: Path, tmp_path: Path) -> None:
    certificate, key, none, text = identity / "certificate.pem", identity / "key.pem", tmp_path / "none.pem", tmp_path / "text.pem"
    text.write_text("no certificate")
    for bad in (none, text):
        with pytest.raises(UsageError, match=f"certificates in {bad} cannot be used"):
            client_context(bad, error=UsageError)
        with pytest.raises(ArchiveError, match=f"certificate {bad} with key {key} cannot be used"):
            client_context(certificate, bad, key, error=ArchiveError)
        with pytest.raises(UsageError, match=f"certificates in {bad} cannot be used"):
            server_context(certificate, key, bad, error=UsageError)
        with pytest.raises(UsageError, match=f"certificate {certificate} with key {bad} cannot be used"):
            server_context(certificate, bad, error=UsageError)


def test_an_encrypted_key_is_refused_and_no_password_is_asked_for(identity: Path) -> None:
    """OpenSSL would ask on the terminal, where a service has none."""
    for make in (
        lambda: server_context(identity / "certificate.pem", identity / "encrypted.pem", error=UsageError),
        lambda: client_context(None, identity / "certificate.pem", identity / "encrypted.pem", error=UsageError),
    ):
        with pytest.raises(UsageError, match="not encrypted"):
            make()


# -- multipart messages ----------------------------------------------------------------------------------------------------


def test_content_types_of_multipart_messages() -> None:
    pytest.importorskip("python_multipart")
    from lcmem_onnx.runtime.system.multipart import Related, parse_related

    assert parse_related('multipart/related; type="application/dicom"; boundary="a b"') == Related(b"a b", "application/dicom")
    assert parse_related("Multipart/Related; boundary=x; TYPE=Application/DICOM") == Related(b"x", "application/dicom")
    assert parse_related("multipart/related; boundary=x") == Related(b"x", None)
    for other in ("", "multipart/related", "multipart/form-data; boundary=x", "application/dicom; boundary=x"):
        assert parse_related(other) is None


def test_a_message_is_read_as_the_standard_library_reads_it() -> None:
    pytest.importorskip("python_multipart")
    from lcmem_onnx.runtime.system.multipart import MultipartReader

    parts = (
        b"Content-Type: Application/DICOM; x=1\r\n\r\nfirst\r\n--fr",
        b"Content-Location: a\r\n\r\n",
        b"content-type:text/plain\r\n\r\nz",
    )
    content = b"preamble\r\n" + b"".join(b"--frontier\r\n" + part + b"\r\n" for part in parts) + b"--frontier--\r\nepilogue"
    message = email.message_from_bytes(b"Content-Type: multipart/related; boundary=frontier\r\n\r\n" + content)
    expected = [part.get_payload(decode=True) for part in message.get_payload()]  # type: ignore[union-attr]
    for size in (1, 7, len(content)):
        reader, bodies, types, kinds = MultipartReader(b"frontier"), [], [], ""
        for start in range(0, len(content), size):
            for event in reader.feed(content[start : start + size]):
                kinds += event.kind[0] if event.kind != "data" else ""
                if event.kind == "begin":
                    types.append(event.content_type)
                    bodies.append(b"")
                bodies[-1] += event.data
        assert bodies == expected == [b"first\r\n--fr", b"", b"z"]
        assert types == ["application/dicom", "", "text/plain"]
        assert kinds == "bebebec"


def test_a_damaged_message_is_an_error() -> None:
    pytest.importorskip("python_multipart")
    from lcmem_onnx.runtime.system.multipart import MultipartError, MultipartReader

    assert MultipartReader(b"frontier").feed(b"no boundary in here") == []
    for content in (b"--frontierX", b"--frontier\r\nbad header\x00: 1\r\n\r\n"):
        with pytest.raises(MultipartError):
            MultipartReader(b"frontier").feed(content)
    with pytest.raises(MultipartError):
        MultipartReader(b"x" * 1000)
