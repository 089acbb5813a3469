"""Filling a gallery from an archive: pages, pauses, refusals, names, and going on after an end."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lcmem_onnx import ArchiveError, Gallery, ImageError, Reason, Screener, UsageError

httpx = pytest.importorskip("httpx2")
pytest.importorskip("python_multipart")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from lcmem_onnx.runtime.archive import connection as connection_module  # noqa: E402
from lcmem_onnx.runtime.archive.connection import Connection, Credentials, Pace, Server, read_credentials  # noqa: E402
from lcmem_onnx.runtime.archive.dicomweb import first_part  # noqa: E402
from lcmem_onnx.runtime.archive.journal import Journal  # noqa: E402
from lcmem_onnx.runtime.archive.listing import check_uid, parse_query  # noqa: E402
from lcmem_onnx.runtime.archive.pages import read_pages  # noqa: E402
from lcmem_onnx.runtime.archive.pull import Pull, open_source  # noqa: E402
from lcmem_onnx.runtime.privacy import SiteKey  # noqa: E402

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
CT = (EXAMPLES / "gallery" / "ct-slice.dcm").read_bytes()
CT_UID = "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"
MR = (EXAMPLES / "queries" / "other-mr-slice.dcm").read_bytes()
MR_UID = "1.3.6.1.4.1.5962.1.1.4.1.1.20040826185059.5457"
ROOT = "http://localhost:8042"
Handler = Callable[["httpx.Request"], "httpx.Response"]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PAUSES", (0.0,) * 6)


@pytest.fixture(scope="module")
def screener() -> Screener:
    return Screener(threads=1)


def connected(handler: Handler, **server: object) -> Connection:
    return Connection(Server(ROOT, **server), transport=httpx.MockTransport(handler))  # type: ignore[arg-type]


# -- connection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "refused us .401 Unauthorized.: give --credentials FILE"),
        (403, "refused us .403 Forbidden.: this user may not"),
        (404, "is that the archive's address, with its path"),
        (400, "it may not take such a query"),
        (302, "sends us on to https://other/login: redirects are not followed"),
    ],
)
def test_what_a_person_must_mend_is_said_at_once(status: int, says: str) -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, headers={"Location": "https://other/login?patient=1"})

    with connected(handler) as connection, pytest.raises(ArchiveError, match=says):
        connection.json("/studies")
    assert len(asked) == 1


def test_what_passes_by_itself_is_tried_again() -> None:
    answers: Iterator[httpx.Response | Exception] = iter(
        [
            httpx.ConnectError("refused"),
            httpx.Response(503),
            httpx.Response(429, headers={"Retry-After": "0"}),
            httpx.ReadTimeout("late"),
        ]
    )

    def handler(request: httpx.Request) -> httpx.Response:
        answer = next(answers, httpx.Response(200, json=[1]))
        if isinstance(answer, Exception):
            raise answer
        return answer

    with connected(handler) as connection:
        assert connection.json("/studies") == [1]


def test_a_server_that_stays_away_is_an_error_that_says_how_to_go_on() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        raise httpx.ConnectError("Connection refused")

    with (
        connected(handler) as connection,
        pytest.raises(ArchiveError, match=r"7 attempts.*Connection refused.*same command goes on"),
    ):
        connection.json("/studies")
    assert len(asked) == 7


def test_an_object_that_the_archive_fails_to_give_is_that_objects_error() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500 if "broken" in request.url.path else 404)

    with connected(handler) as connection:
        with pytest.raises(ImageError) as failed:
            connection.content("/broken", "*/*", 100)
        assert failed.value.reason is Reason.READ_FAILED
        with pytest.raises(ImageError) as gone:
            connection.content("/gone", "*/*", 100)
        assert gone.value.reason is Reason.NOT_FOUND


def test_an_object_is_read_no_further_than_the_bound() -> None:
    given = []

    def endless() -> Iterator[bytes]:
        while True:
            given.append(1)
            yield b"x" * 1000

    with connected(lambda request: httpx.Response(200, content=endless())) as connection, pytest.raises(ImageError) as error:
        connection.content("/object", "*/*", 5000)
    assert error.value.reason is Reason.TOO_LARGE
    assert len(given) <= 7


def test_an_answer_that_is_no_json_hints_at_the_address() -> None:
    with (
        connected(lambda request: httpx.Response(200, text="<html>Welcome")) as connection,
        pytest.raises(ArchiveError, match="not JSON .'<html>Welcome'"),
    ):
        connection.json("/studies")


def test_stopping_ends_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PAUSES", (3600.0,))
    with connected(lambda request: httpx.Response(503)) as connection:
        connection.stop()
        with pytest.raises(ArchiveError, match="stopped"):
            connection.json("/studies")


def test_the_pace_holds_for_all_threads_together() -> None:
    pace, waits = Pace(10.0), []
    for _ in range(4):
        pace.wait(waits.append)
    assert [round(wait, 1) for wait in waits] == [0.1, 0.2, 0.3]
    with pytest.raises(UsageError, match="rate of 0"):
        Pace(0)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://user:secret@pacs.example/dicom-web", "which every process list shows"),
        ("http://pacs.example/dicom-web", "can read the images and the password"),
        ("ftp://pacs.example", "is no address"),
        ("pacs.example/dicom-web", "is no address"),
        ("https://pacs.example/dicom-web?StudyDate=1", "goes into --query"),
        ("http://[::1", "is none|is no address"),
    ],
)
def test_addresses_that_are_refused(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        Connection(Server(url))
    assert "secret" not in str(refused.value)


def test_http_to_another_machine_needs_a_word(tmp_path: Path) -> None:
    Connection(Server("http://pacs.example", plain_http=True)).close()
    Connection(Server("http://127.0.0.1:8042")).close()
    with pytest.raises(UsageError, match="certificates in"):
        Connection(Server("https://pacs.example", ca=tmp_path / "none.pem"))


def test_credentials_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file, warned = tmp_path / "credentials", []
    file.write_text("ci:pass:word\n")
    file.chmod(0o644)
    assert read_credentials(file, {}, warned.append) == Credentials("ci", "pass:word")
    assert "chmod 600" in warned[0]
    file.write_text("Bearer abc\n")
    assert read_credentials(file, {}) == Credentials(None, "abc")
    assert read_credentials(None, {}) == Credentials()
    assert read_credentials(None, {"LCMEM_ONNX_ARCHIVE_USER": "a", "LCMEM_ONNX_ARCHIVE_PASSWORD": "b"}) == Credentials("a", "b")
    assert read_credentials(None, {"LCMEM_ONNX_ARCHIVE_TOKEN": "t"}) == Credentials(None, "t")
    assert "pass" not in repr(Credentials("ci", "pass"))
    for bad in ("", "nothing", "a:b\nc:d"):
        file.write_text(bad)
        with pytest.raises(UsageError, match="must hold one line"):
            read_credentials(file, {})
    with pytest.raises(UsageError, match="cannot be read"):
        read_credentials(tmp_path / "none", {})
    with pytest.raises(UsageError, match="go together"):
        read_credentials(None, {"LCMEM_ONNX_ARCHIVE_USER": "a"})


def test_credentials_are_sent_and_the_environments_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Authorization"))
        return httpx.Response(200, json=[])

    for credentials in (Credentials("u", "p"), Credentials(None, "token"), Credentials()):
        with connected(handler, credentials=credentials) as connection:
            connection.json("/")
    assert seen == ["Basic dTpw", "Bearer token", None]


# -- pages ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(2, 9), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_item_is_read_once_whatever_the_servers_own_limit(count: int, page: int, own: int) -> None:
    items = [str(number) for number in range(count)]
    if own == 1 and count > 1:
        own = 2  # a server that gives one item a page gives nothing beside the overlap
    assert list(read_pages(lambda offset, limit: items[offset : offset + min(limit, own)], str, page)) == items


@given(st.integers(3, 40), st.integers(2, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_nothing_that_stays_is_missed_when_something_is_deleted_meanwhile(count: int, page: int, data: st.DataObject) -> None:
    items = [str(number) for number in range(count)]
    staying = set(items)
    deletions = data.draw(st.lists(st.integers(0, count - 1), max_size=3))
    asked = 0

    def fetch(offset: int, limit: int) -> list[str]:
        nonlocal asked
        asked += 1
        if asked > 1 and deletions:
            gone = str(deletions.pop())
            if gone in items:
                items.remove(gone)
                staying.discard(gone)
        return items[offset : offset + limit]

    assert staying <= set(read_pages(fetch, str, page))


def test_a_server_without_offsets_is_complete_or_refused() -> None:
    items = [str(number) for number in range(10)]
    assert list(read_pages(lambda offset, limit: items, str, 4)) == items
    with pytest.raises(ArchiveError, match="same page for every offset"):
        list(read_pages(lambda offset, limit: items[:limit], str, 4))


def test_a_listing_that_never_rests_is_given_up() -> None:
    turn = iter(range(10**6))
    with pytest.raises(ArchiveError, match="changed 5 times"):
        list(read_pages(lambda offset, limit: [str(next(turn)) for _ in range(limit)], str, 4))


# -- names, queries, objects ------------------------------------------------------------------------------------------


def test_names_depend_on_the_site_key_and_are_an_hmac_as_others_compute_it() -> None:
    key = bytes(range(32))
    names = SiteKey(key)
    assert re.fullmatch("sop:[0-9a-f]{32}", names.object_name(CT_UID))
    assert names.object_name(CT_UID) != SiteKey(bytes(32)).object_name(CT_UID) != names.object_name(MR_UID)
    program = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key.hex()}"]
    try:
        printed = subprocess.run(program, input=b"uid\x001.2.3", capture_output=True, check=True).stdout.decode()
    except FileNotFoundError:
        pytest.skip("there is no openssl")
    assert names.object_name("1.2.3") == "sop:" + printed.split()[-1][:32]


def test_the_gateway_gives_an_object_the_same_digits() -> None:
    from lcmem_onnx.runtime.privacy import SiteKey

    key = bytes(range(32))
    assert SiteKey(key).object_name(CT_UID) == "sop:" + SiteKey(key).short("uid", CT_UID)


def test_queries_are_checked_before_they_are_sent() -> None:
    assert parse_query(["StudyDate=20260101-", "00080060=CT", "PatientName=A=B"]) == (
        ("Modality", "CT"),
        ("PatientName", "A=B"),
        ("StudyDate", "20260101-"),
    )
    for bad, says in (
        (["StudyDat=1"], "no such attribute"),
        (["StudyDate"], "is not of the form"),
        (["Modality=CT", "00080060=MR"], "given twice"),
        (["OtherPatientIDsSequence=1"], "no such attribute"),
    ):
        with pytest.raises(UsageError, match=says):
            parse_query(bad)


def test_an_object_is_the_one_that_was_asked_for() -> None:
    assert check_uid(CT, CT_UID) == CT
    for data, says in ((CT, "another object"), (b"<html>", "no DICOM file"), (CT[:160] + b"\xff" * 30, "damaged|another")):
        with pytest.raises(ImageError, match=says):
            check_uid(data, MR_UID)


def multipart(*bodies: bytes, end: bytes = b"--") -> bytes:
    parts = b"".join(b"\r\n--frontier\r\nContent-Type: application/dicom\r\n\r\n" + body for body in bodies)
    return b"a preamble" + parts + b"\r\n--frontier" + end + b"\r\n"


def test_the_first_part_of_a_message() -> None:
    kind = 'multipart/related; type="application/dicom"; boundary="frontier"'
    tricky = CT[:200] + b"\r\n--fron" + CT[200:]
    assert first_part(multipart(tricky, MR), kind) == tricky
    assert first_part(CT, "application/dicom") == CT
    for content, content_type in (
        (multipart(CT)[:500], kind),
        (b"", kind),
        (multipart(), kind),
        (b"<html>", "text/html"),
        (multipart(CT), "multipart/related"),
    ):
        with pytest.raises(ImageError):
            first_part(content, content_type)


# -- pulling ----------------------------------------------------------------------------------------------------------


class Archive:
    """A small archive that speaks DICOMweb: studies of one instance each."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.fetched: list[str] = []
        self.searched: list[str] = []
        self.failing: dict[str, int] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, params = request.url.path, request.url.params
        if path.endswith("/studies") or (path.endswith("/instances") and "/series/" not in path):
            self.searched.append(path)
            uids = list(self.objects) if path.endswith("/studies") else [path.split("/")[-2]]
            offset, limit = int(params["offset"]), int(params["limit"])
            return httpx.Response(200, json=[self.entry(uid) for uid in uids][offset : offset + limit])
        uid = path.split("/")[-1]
        self.fetched.append(uid)
        if uid in self.failing:
            return httpx.Response(self.failing[uid])
        content = multipart(self.objects[uid])
        return httpx.Response(200, content=content, headers={"Content-Type": 'multipart/related; boundary="frontier"'})

    def entry(self, uid: str) -> dict[str, object]:
        values = {"0020000D": uid, "0020000E": uid, "00080018": uid, "00080016": "1.2.840.10008.5.1.4.1.1.2", "00201208": 1}
        return {tag: {"Value": [value]} for tag, value in values.items()}


def renamed(uid: str, data: bytes = CT, old: str = CT_UID) -> bytes:
    """The same object under another UID of the same length."""
    assert len(uid) == len(old)
    return data.replace(old.encode(), uid.encode())


def pull(archive: Archive, screener: Screener, folder: Path, **options: bool) -> list[object]:
    with (
        Connection(Server(ROOT), transport=httpx.MockTransport(archive)) as connection,
        Gallery.open(folder, screener.bundle, read_only=False) as gallery,
    ):
        source = open_source("dicomweb", connection, (), 1 << 20)
        return list(Pull(source, connection, screener, gallery, **options))


@pytest.fixture
def folder(screener: Screener, tmp_path: Path) -> Path:
    Gallery.create(tmp_path / "idx", screener.bundle).close()
    return tmp_path / "idx"


def test_what_is_there_is_not_fetched_again(screener: Screener, folder: Path) -> None:
    archive = Archive({CT_UID: CT, MR_UID: MR})
    assert [done.added.value for done in pull(archive, screener, folder)] == ["new", "new"]
    assert pull(archive, screener, folder) == []
    assert archive.fetched == [CT_UID, MR_UID]
    assert len(archive.searched) == 8  # two listings of two pages, and the studies' instances once (two pages each)


def test_what_cannot_be_read_is_not_fetched_again_unless_asked(screener: Screener, folder: Path) -> None:
    uid = CT_UID[:-1] + "9"
    archive = Archive({uid: renamed(uid)[:20000], MR_UID: MR})
    first = pull(archive, screener, folder)
    assert [done.added and done.added.value for done in first] == [None, "new"]
    assert pull(archive, screener, folder) == []
    again = pull(archive, screener, folder, again=True)
    assert [done.added for done in again] == [None]
    assert archive.fetched == [uid, MR_UID, uid]


def test_what_failed_for_the_moment_is_tried_the_next_time(screener: Screener, folder: Path) -> None:
    archive = Archive({CT_UID: CT, MR_UID: MR})
    archive.failing = {CT_UID: 500}
    first = pull(archive, screener, folder)
    assert [done.errors[0][1] if done.errors else done.added.value for done in first] == [Reason.READ_FAILED, "new"]
    archive.failing = {}
    assert [done.added.value for done in pull(archive, screener, folder)] == ["new"]
    assert pull(archive, screener, folder) == []


def test_a_server_that_goes_midway_loses_nothing_that_was_yielded(screener: Screener, folder: Path) -> None:
    uids = [f"{CT_UID[:-2]}{number}" for number in range(10, 40)]
    archive = Archive({uid: renamed(uid) for uid in uids})
    seen = []

    def going(request: httpx.Request) -> httpx.Response:
        if len(archive.fetched) >= 20:
            raise httpx.ReadError("Connection reset by peer")
        return archive(request)

    with (
        Connection(Server(ROOT), transport=httpx.MockTransport(going)) as connection,
        Gallery.open(folder, screener.bundle, read_only=False) as gallery,
    ):
        outcomes = iter(Pull(open_source("dicomweb", connection, (), 1 << 20), connection, screener, gallery))
        with pytest.raises(ArchiveError, match="does not answer"):
            seen.extend(done.path for done in outcomes)
    assert seen
    rest = [done.path for done in pull(archive, screener, folder)]
    assert not set(seen) & set(rest)
    assert len(seen) + len(rest) == 30
    with Gallery.open(folder, screener.bundle) as gallery:
        assert len(gallery) == 30


def test_an_archive_that_fails_every_object_ends_the_pull(screener: Screener, folder: Path) -> None:
    uids = [f"{CT_UID[:-2]}{number}" for number in range(10, 50)]
    archive = Archive(dict.fromkeys(uids, CT))
    archive.failing = dict.fromkeys(uids, 406)
    with pytest.raises(ArchiveError, match=r"20 objects in a row .the archive answered 406"):
        pull(archive, screener, folder)


def test_nothing_that_names_a_patient_is_in_the_folder(screener: Screener, folder: Path) -> None:
    pull(Archive({CT_UID: CT}), screener, folder)
    for path in folder.iterdir():
        data = path.read_bytes()
        assert CT_UID.encode() not in data
        assert b"CompressedSamples" not in data
        assert b"1CT1" not in data


@pytest.mark.parametrize(
    "answer", [{"a": 1}, [1], [{}], [{"0020000D": {"Value": ["../../x"]}}], [{"0020000D": {"Value": ["1/2"]}}]]
)
def test_a_search_that_is_answered_with_nonsense_is_refused(answer: object, screener: Screener, folder: Path) -> None:
    with (
        connected(lambda request: httpx.Response(200, json=answer)) as connection,
        Gallery.open(folder, screener.bundle, read_only=False) as gallery,
        pytest.raises(ArchiveError),
    ):
        list(Pull(open_source("dicomweb", connection, (), 1 << 20), connection, screener, gallery))


def test_query_keys_go_to_their_level() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, {k: v for k, v in request.url.params.items() if k not in ("limit", "offset")}))
        return httpx.Response(
            200, json=[Archive({}).entry("1.2")] if int(request.url.params["offset"]) == 0 and len(asked) < 3 else []
        )

    query = parse_query(["StudyDate=20260101-", "Modality=CT", "InstanceNumber=1"])
    with connected(handler) as connection:
        source = open_source("dicomweb", connection, query, 100)
        list(source.listed(_Blank(), SiteKey(bytes(32))))  # type: ignore[arg-type]
    assert asked[0] == ("/studies", {"StudyDate": "20260101-"})
    assert asked[1] == ("/studies/1.2/series", {"Modality": "CT"})
    assert asked[2] == ("/studies/1.2/series/1.2/instances", {"InstanceNumber": "1"})


class _Blank:
    def is_walked(self, digest: bytes) -> bool:
        return False


# -- Orthanc's own interface ------------------------------------------------------------------------------------------


class OrthancLike:
    """As much of Orthanc's REST interface as is asked."""

    def __init__(self) -> None:
        self.instances: dict[str, tuple[str, bytes]] = {}
        self.changes: list[dict[str, object]] = []
        self.fetched: list[str] = []
        self.asked: list[str] = []

    def store(self, uid: str, data: bytes) -> None:
        number = f"{len(self.changes):08x}-" + "-".join(["00000000"] * 4)
        self.instances[number] = (uid, data)
        self.changes.append({"ChangeType": "NewInstance", "ID": number, "Seq": len(self.changes) + 1})

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, params = request.url.path, request.url.params
        self.asked.append(path)
        if path == "/system":
            return httpx.Response(200, json={"Version": "1.10.1", "DatabaseServerIdentifier": "a"})
        if path == "/changes":
            if "last" in params:
                return httpx.Response(200, json={"Changes": self.changes[-1:], "Done": True, "Last": len(self.changes)})
            since, limit = int(params["since"]), int(params["limit"])
            some = self.changes[since : since + limit]
            last = since + len(some) if some else len(self.changes)
            return httpx.Response(200, json={"Changes": some, "Done": last >= len(self.changes), "Last": last})
        if path == "/instances":
            since, limit = int(params["since"]), int(params["limit"])
            return httpx.Response(200, json=[self.entry(number) for number in self.instances][since : since + limit])
        number = path.split("/")[2]
        if number not in self.instances:
            return httpx.Response(404)
        if path.endswith("/file"):
            self.fetched.append(self.instances[number][0])
            return httpx.Response(200, content=self.instances[number][1])
        return httpx.Response(200, json=self.entry(number))

    def entry(self, number: str) -> dict[str, object]:
        return {"ID": number, "MainDicomTags": {"SOPInstanceUID": self.instances[number][0]}}


def test_orthancs_changes_are_followed_from_where_they_were_left(screener: Screener, folder: Path) -> None:
    orthanc = OrthancLike()

    def run() -> list[str]:
        with (
            connected(orthanc) as connection,
            Gallery.open(folder, screener.bundle, read_only=False) as gallery,
        ):
            pulled = list(Pull(open_source("orthanc", connection, (), 1 << 20), connection, screener, gallery))
            return [done.added.value if done.added else str(done.errors[0][1]) for done in pulled]

    orthanc.store(CT_UID, CT)
    assert run() == ["new"]
    assert run() == []
    orthanc.store(MR_UID, MR)
    gone = CT_UID[:-1] + "7"
    orthanc.store(gone, renamed(gone))
    del orthanc.instances[list(orthanc.instances)[-1]]
    orthanc.asked.clear()
    assert run() == ["new"]
    assert "/instances" not in orthanc.asked  # the changes alone
    assert orthanc.fetched == [CT_UID, MR_UID]
    # Another database behind the same address: its numbers begin again, so all is read again.
    orthanc.changes.clear()
    orthanc.instances.clear()
    orthanc.store(gone, renamed(gone))
    assert run() == ["new"]


@pytest.mark.parametrize("answer", [[], {"a": 1}])
def test_what_is_no_orthanc_is_said(answer: object, screener: Screener, folder: Path) -> None:
    with (
        connected(lambda request: httpx.Response(200, json=answer)) as connection,
        Gallery.open(folder, screener.bundle, read_only=False) as gallery,
        pytest.raises(ArchiveError, match="Orthanc"),
    ):
        list(Pull(open_source("orthanc", connection, (), 1 << 20), connection, screener, gallery))


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from-orthanc", "http://localhost:1", "x.png"], "use only one of PATH, --from-dicomweb and --from-orthanc"),
        ([], "no images given: use PATH, --from-dicomweb URL"),
        (["x.png", "--rate", "3"], "--rate requires --from-dicomweb"),
        (["--from-dicomweb", "http://pacs.example/x"], "can read the images and the password"),
        (["--from-dicomweb", "https://pacs.example/x", "--query", "Nonsense=1"], "no such attribute"),
    ],
)
def test_what_the_command_line_refuses(arguments: list[str], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from lcmem_onnx.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["index", "build", *arguments, "--index", str(tmp_path / "idx"), "-q"])
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert re.search(says, err)
    assert not (tmp_path / "idx").exists()


def test_nothing_of_the_client_is_imported_unless_an_archive_is_asked_for(tmp_path: Path) -> None:
    program = f"""
import sys
from lcmem_onnx.cli import main
try:
    main(["index", "build", {str(EXAMPLES / "gallery" / "ct-slice.dcm")!r}, "--index", {str(tmp_path / "idx")!r}, "-q"])
except SystemExit as stop:
    assert stop.code == 0, stop.code
print([name for name in sys.modules if name.startswith(("httpx", "lcmem_onnx.runtime.archive", "python_multipart"))])
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "[]"


def test_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "default")
    journal._connection.execute("PRAGMA user_version = 9")
    journal.close()
    with pytest.raises(Exception, match="is of version 9"):
        Journal(tmp_path, "default")


def test_nothing_in_the_runtime_knows_of_the_archive() -> None:
    """The one network client beside the gateway stays where it is: only the command line may ask for it, inside a function."""
    import lcmem_onnx

    root = Path(lcmem_onnx.__file__).parent
    outside = [path for path in (root / "runtime").rglob("*.py") if path.parent.name != "archive"]
    assert len(outside) > 30
    assert [path.name for path in outside if re.search(r"^\s*(from|import) .*\barchive\b", path.read_text(), re.M)] == []
    at_top = re.compile(r"^(from|import) .*(runtime\.archive|httpx)", re.M)
    assert [path.name for path in (root / "cli").glob("*.py") if at_top.search(path.read_text())] == []
