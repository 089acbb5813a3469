"""A watched folder: what has settled is taken once, whatever happens in between."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lcmem_onnx.runtime.errors import GatewayError
from lcmem_onnx.runtime.gateway import folder_watcher
from lcmem_onnx.runtime.gateway.settings import FolderSettings, Settings, SpoolSettings
from lcmem_onnx.runtime.gateway.spool import Source, Spool, State
from lcmem_onnx.runtime.privacy import create_site_key

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
CT = (EXAMPLES / "gallery" / "ct-slice.dcm").read_bytes()
MR = (EXAMPLES / "queries" / "other-mr-slice.dcm").read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> FolderSettings:
    (tmp_path / "in").mkdir()
    return FolderSettings(tmp_path / "in", settle_seconds=1e-9, poll_seconds=0.01, name="outgoing")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    create_site_key(tmp_path / "site.key")
    with Spool(Settings(spool=SpoolSettings(tmp_path / "spool", min_free_mb=1), site_key=tmp_path / "site.key")) as spool:
        yield spool


def test_a_file_is_taken_when_it_has_settled(folder: FolderSettings, spool: Spool) -> None:
    watcher = folder_watcher.FolderWatcher(folder, spool)
    path = folder.path / "deep" / "er" / "image.dcm"
    path.parent.mkdir(parents=True)
    path.write_bytes(CT[:1000])
    assert watcher.look() == 0
    path.write_bytes(CT)
    assert watcher.look() == 0
    assert watcher.look() == 1
    assert not path.exists()
    (item,) = spool.list([State.RECEIVED])
    assert (item.source, item.calling_aet) == (Source.FOLDER, "outgoing")
    assert spool.files.path(item.id).read_bytes()[128:] == CT[128:]
    assert watcher.look() == 0


def test_a_file_that_does_not_settle_is_left(folder: FolderSettings, spool: Spool) -> None:
    watcher = folder_watcher.FolderWatcher(replace(folder, settle_seconds=3600), spool)
    (folder.path / "image.dcm").write_bytes(CT)
    assert [watcher.look() for _ in range(3)] == [0, 0, 0]
    assert (folder.path / "image.dcm").exists()


def test_what_was_claimed_before_a_crash_is_taken_up(folder: FolderSettings, spool: Spool) -> None:
    folder_watcher.FolderWatcher(folder, spool)
    (folder.path / folder_watcher.CLAIMED / ("0" * 32)).write_bytes(CT)
    assert folder_watcher.FolderWatcher(folder, spool).look() == 1
    (folder.path / folder_watcher.CLAIMED / ("1" * 32)).write_bytes(CT)  # in the spool already
    assert folder_watcher.FolderWatcher(folder, spool).look() == 1
    assert len(spool.list([State.RECEIVED])) == 1
    assert not list((folder.path / folder_watcher.CLAIMED).iterdir())


def test_links_pipes_and_hidden_files_are_left(folder: FolderSettings, spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CT)
    (folder.path / "link.dcm").symlink_to(tmp_path / "secret")
    (folder.path / "folder").symlink_to(tmp_path)
    os.mkfifo(folder.path / "pipe.dcm")
    (folder.path / ".unfinished").write_bytes(CT)
    watcher = folder_watcher.FolderWatcher(folder, spool)
    assert [watcher.look() for _ in range(3)] == [0, 0, 0]
    assert not spool.list(State)
    os.symlink(tmp_path / "secret", folder.path / folder_watcher.CLAIMED / "planted")
    assert watcher.look() == 0


def test_a_full_disk_leaves_files_claimed_until_there_is_room(
    folder: FolderSettings, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = folder_watcher.FolderWatcher(folder, spool)
    (folder.path / "image.dcm").write_bytes(CT)
    monkeypatch.setattr(spool, "has_room", lambda: False)
    assert [watcher.look() for _ in range(3)] == [0, 0, 0]
    monkeypatch.undo()
    assert watcher.look() == 1


def test_too_large_is_put_aside(folder: FolderSettings, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_watcher, "MAX_BYTES", 100)
    watcher = folder_watcher.FolderWatcher(folder, spool)
    (folder.path / "image.dcm").write_bytes(CT)
    assert [watcher.look() for _ in range(3)] == [0, 0, 0]
    assert [path.read_bytes() for path in (folder.path / folder_watcher.REFUSED).iterdir()] == [CT]


def test_a_writer_that_keeps_the_file_open_changes_nothing(folder: FolderSettings, spool: Spool) -> None:
    """What is screened is a copy: whoever still has the file open writes to bytes that nobody reads."""
    watcher = folder_watcher.FolderWatcher(folder, spool)
    with open(folder.path / "image.dcm", "wb", buffering=0) as writer:
        writer.write(CT)
        watcher.look()
        assert watcher.look() == 1
        writer.seek(0)
        writer.write(MR)
    (item,) = spool.list([State.RECEIVED])
    assert spool.files.path(item.id).read_bytes()[128:] == CT[128:]


def test_it_runs_until_it_is_stopped(folder: FolderSettings, spool: Spool) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=folder_watcher.FolderWatcher(folder, spool).run, args=(stop,))
    thread.start()
    (folder.path / "image.dcm").write_bytes(CT)
    for _ in range(1000):
        if spool.list([State.RECEIVED]):
            break
        stop.wait(0.01)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert len(spool.list([State.RECEIVED])) == 1


def test_what_is_no_folder(folder: FolderSettings, spool: Spool, tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="no folder"):
        folder_watcher.FolderWatcher(replace(folder, path=tmp_path / "none"), spool)
