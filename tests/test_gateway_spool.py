"""The gateway's spool: what it has taken in is never lost, never doubled, and has one line of the audit trail a change."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from lcmem_onnx.runtime.errors import GatewayError
from lcmem_onnx.runtime.gateway.audit_trail import trail_files, verify_trail
from lcmem_onnx.runtime.gateway.delivery_queue import Deliveries, wait_before
from lcmem_onnx.runtime.gateway.outcome import Cause, Near, Outcome
from lcmem_onnx.runtime.gateway.quarantine import Quarantine
from lcmem_onnx.runtime.gateway.settings import Destination, GallerySettings, Retry, Rule, Settings, SpoolSettings
from lcmem_onnx.runtime.gateway.spool import Arrival, Item, Source, Spool, SpoolFullError, State, TooLargeError
from lcmem_onnx.runtime.privacy import SiteKey, create_site_key, read_site_key

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
CT = EXAMPLES / "gallery" / "ct-slice.dcm"
MR = EXAMPLES / "queries" / "other-mr-slice.dcm"
FORWARD = Outcome(
    "clear", "below-threshold", "forward", ("archive",), "all", "patients", 1, 0, 0.7, (Near("/a/Doe^Jane.dcm", 0, 0.1),)
)
HOLD = Outcome(
    "match", "at-or-above-threshold", "quarantine", (), "all", "patients", 1, 0, 0.7, (Near("/a/Doe^Jane.dcm", 0, 0.99),)
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    create_site_key(tmp_path / "site.key")
    return Settings(
        spool=SpoolSettings(tmp_path / "spool", min_free_mb=1),
        site_key=tmp_path / "site.key",
        gallery=(GallerySettings("patients", tmp_path / "index"),),
        destination=(Destination("archive", host="localhost", port=1, aet="ARCHIVE"),),
        rule=(Rule("all", "patients", forward_to=("archive",)),),
    )


def put(spool: Spool, content: bytes = CT.read_bytes(), source: Source = Source.FOLDER) -> str:
    return spool.put_stream(io.BytesIO(content), Arrival(source, "CT1"), 1 << 30).id


def events(spool: Spool) -> list[str]:
    spool.audit.flush()
    return [
        json.loads(line)["event"] for path in trail_files(spool.settings.audit_folder) for line in path.read_text().splitlines()
    ]


def claimed(spool: Spool) -> Item:
    (item,) = spool.claim("worker", 1)
    return item


def test_an_object_goes_all_the_way(settings: Settings) -> None:
    with Spool(settings) as spool:
        object_id = put(spool)
        item = claimed(spool)
        assert item.id == object_id
        assert item.sop_class == "1.2.840.10008.5.1.4.1.1.2"
        assert spool.files.path(object_id).read_bytes() == CT.read_bytes()
        assert spool.settle(item, FORWARD) is State.SCREENED
        (delivery,) = Deliveries(spool).due("archive", 10)
        Deliveries(spool).delivered(delivery, "0x0000")
        assert spool.get(object_id).state is State.FORWARDED
        assert not spool.files.path(object_id).exists()
        assert events(spool) == ["received", "screened", "forwarded"]
        assert verify_trail(spool.database, settings.audit_folder).whole
        assert spool.counters() == {"received.folder": 1, "verdict.clear": 1, "forwarded": 1}


def test_no_patient_is_in_the_audit_trail(settings: Settings) -> None:
    with Spool(settings) as spool:
        item_id = put(spool)
        spool.settle(claimed(spool), HOLD)
        spool.audit.flush()
        text = "".join(path.read_text() for path in trail_files(settings.audit_folder))
        assert spool.get(item_id).sop_instance not in text
        assert "Doe" not in text
        assert spool.site_key.short("gallery", "/a/Doe^Jane.dcm") in text
        assert spool.get(item_id).result["nearest"][0]["key"] == "/a/Doe^Jane.dcm"


def test_the_same_object_twice_is_one(settings: Settings) -> None:
    with Spool(settings) as spool:
        first = spool.put_stream(io.BytesIO(CT.read_bytes()), Arrival(Source.FOLDER), 1 << 30)
        again = spool.put_stream(io.BytesIO(CT.read_bytes()), Arrival(Source.STOW), 1 << 30)
        other_preamble = b"MZ" * 64 + CT.read_bytes()[128:]
        once_more = spool.put_stream(io.BytesIO(other_preamble), Arrival(Source.STOW), 1 << 30)
        changed = spool.put_stream(io.BytesIO(CT.read_bytes()[:-1] + b"\7"), Arrival(Source.STOW), 1 << 30)
        assert not first.known
        assert again.known
        assert again.id == once_more.id == first.id
        assert not changed.known
        assert len(spool.files.ids()) == 2
        assert not list(spool.files.incoming.iterdir())


def test_questions_are_objects_of_their_own(settings: Settings) -> None:
    """Who asked about an object before it is sent for good must not find it taken for known then."""
    with Spool(settings) as spool:
        asked = put(spool, source=Source.SCREEN)
        assert put(spool, source=Source.SCREEN) != asked
        assert spool.settle(claimed(spool), FORWARD) is State.ANSWERED
        assert not spool.files.path(asked).exists()
        assert not Deliveries(spool).pending()
        sent = spool.put_stream(io.BytesIO(CT.read_bytes()), Arrival(Source.STOW), 1 << 30)
        assert not sent.known


def test_a_preamble_is_zeroed_and_nothing_else(settings: Settings) -> None:
    with Spool(settings) as spool:
        program, text = put(spool, b"MZ" * 64 + CT.read_bytes()[128:]), put(spool, b"no DICOM file at all" * 20)
        for object_id in (program, text):
            spool.files.clear_preamble(spool.files.path(object_id))
        assert spool.files.path(program).read_bytes() == bytes(128) + CT.read_bytes()[128:]
        assert spool.files.path(text).read_bytes() == b"no DICOM file at all" * 20


def test_nothing_is_taken_in_above_the_watermark(settings: Settings, tmp_path: Path) -> None:
    full = Settings(spool=SpoolSettings(tmp_path / "spool", min_free_mb=10**8), site_key=settings.site_key)
    with Spool(full) as spool:
        with pytest.raises(SpoolFullError, match="free"):
            put(spool)
        assert not spool.files.ids()
        assert not spool.has_room()


def test_too_much_is_refused_and_leaves_nothing(settings: Settings) -> None:
    with Spool(settings) as spool:
        with pytest.raises(TooLargeError, match="1000"):
            spool.put_stream(io.BytesIO(bytes(1001)), Arrival(Source.STOW), 1000)
        assert not list(spool.files.incoming.iterdir())


def test_a_row_that_cannot_be_written_leaves_no_bytes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with Spool(settings) as spool:

        def full(*args: object, **kwargs: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(spool.audit, "record", full)
        with pytest.raises(GatewayError, match="disk is full"):
            put(spool)
        assert not spool.files.ids()
        assert not spool.list(State)


def test_what_was_claimed_is_claimed_again_after_a_crash(settings: Settings) -> None:
    with Spool(settings) as spool:
        object_id = put(spool)
        claimed(spool)
        assert spool.claim("other", 10) == []
    with Spool(settings) as spool:
        assert spool.recover()["interrupted"] == 1
        assert claimed(spool).id == object_id


def test_a_start_cleans_up(settings: Settings) -> None:
    with Spool(settings) as spool:
        kept, forwarded, lost = put(spool), put(spool, MR.read_bytes()), put(spool, CT.read_bytes()[:-1] + b"\7")
        spool.settle(spool.get(forwarded), FORWARD)
        (delivery,) = Deliveries(spool).due("archive", 1)
        Deliveries(spool).delivered(delivery, "0x0000")
        spool.files.path(forwarded).write_bytes(b"the crash came before these were removed")
        spool.files.path("0" * 32).write_bytes(b"linked, and the crash came before the row")
        (spool.files.incoming / "half.dcm").write_bytes(b"half")
        spool.files.path(lost).unlink()
        assert spool.recover() == {"unfinished": 1, "interrupted": 0, "orphans": 2, "missing": 1, "without_destination": 0}
        assert spool.files.ids() == {kept}
        assert spool.get(lost).state is State.QUARANTINED
        assert spool.get(lost).reason == Cause.BYTES_MISSING


def test_an_object_that_ends_its_worker_is_tried_alone_and_then_quarantined(settings: Settings) -> None:
    with Spool(settings) as spool:
        bad, good = put(spool), put(spool, MR.read_bytes())
        assert [item.id for item in spool.claim("first", 10)] == [bad, good]
        spool.mark_crashed("first", Cause.CRASHED)
        assert [item.id for item in spool.claim("second", 10)] == [bad]
        spool.mark_crashed("second", Cause.CRASHED)
        assert spool.get(bad).state is State.QUARANTINED
        assert spool.get(bad).reason == Cause.CRASHED
        assert [item.id for item in spool.claim("third", 10)] == [good]
        spool.settle(spool.get(good), FORWARD)
        assert spool.get(good).state is State.SCREENED


def test_an_object_that_takes_the_service_down_again_and_again_comes_under_suspicion(settings: Settings) -> None:
    with Spool(settings) as spool:
        put(spool)
        put(spool, MR.read_bytes())
        for _ in range(6):
            assert len(spool.claim("worker", 10)) == 2
            spool.recover()
        assert len(spool.claim("worker", 10)) == 1
        spool.mark_crashed("worker", Cause.CRASHED)
        assert spool.counts()[State.QUARANTINED] == 1


def test_overdue_claims_are_seen(settings: Settings) -> None:
    with Spool(settings) as spool:
        put(spool)
        spool.claim("slow", 1)
        assert spool.overdue(60) == set()
        assert spool.overdue(-1) == {"slow"}


def test_a_batchs_time_counts_from_its_last_verdict(settings: Settings) -> None:
    with Spool(settings) as spool:
        put(spool)
        put(spool, MR.read_bytes())
        first, _ = spool.claim("slow", 2)
        with spool.database.write() as connection:
            connection.execute("UPDATE objects SET claimed = 0")
        assert spool.overdue(60) == {"slow"}
        spool.settle(first, HOLD)
        assert spool.overdue(60) == set()
        assert spool.overdue(-1) == {"slow"}


def test_an_object_is_settled_once(settings: Settings) -> None:
    with Spool(settings) as spool:
        put(spool)
        item = claimed(spool)
        spool.settle(item, HOLD)
        assert spool.settle(item, FORWARD) is State.QUARANTINED
        assert not Deliveries(spool).pending()
        assert events(spool) == ["received", "screened"]


def test_forwarding_is_tried_again_and_dies_at_last(settings: Settings) -> None:
    with Spool(settings) as spool:
        object_id = put(spool)
        spool.settle(claimed(spool), FORWARD)
        deliveries = Deliveries(spool)
        (delivery,) = deliveries.due("archive", 10)
        assert deliveries.failed(delivery, "refused", Retry(first_seconds=60, attempts=2)) is State.SCREENED
        assert not deliveries.due("archive", 10)
        assert deliveries.failures(object_id) == [("archive", "pending", 1, "refused")]
        with spool.database.write() as connection:
            connection.execute("UPDATE deliveries SET due = 0")
        (delivery,) = deliveries.due("archive", 10)
        assert delivery.attempts == 1
        assert deliveries.failed(delivery, "refused", Retry(first_seconds=60, attempts=2)) is State.DEAD
        assert spool.get(object_id).state is State.DEAD
        assert not deliveries.due("archive", 10)
        deliveries.requeue(object_id, "anna")
        (delivery,) = deliveries.due("archive", 10)
        assert delivery.attempts == 0
        with pytest.raises(GatewayError, match="not dead"):
            deliveries.requeue(object_id, "anna")
        assert events(spool) == ["received", "screened", "dead", "requeued"]


def test_a_failure_that_comes_late_changes_nothing(settings: Settings) -> None:
    """Of two destinations one has given up, and somebody has discarded the object, while it was being sent to the other."""
    with Spool(settings) as spool:
        discarded, changed = put(spool), put(spool, MR.read_bytes())
        for item in spool.claim("worker", 10):
            spool.settle(item, replace(FORWARD, destinations=("archive", "research")))
        deliveries = Deliveries(spool)
        sending = {delivery.item.id: delivery for delivery in deliveries.due("research", 10)}
        for delivery in deliveries.due("archive", 10):
            if delivery.item.id == discarded:
                assert deliveries.failed(delivery, "refused", Retry(), final=True) is State.DEAD
                Quarantine(spool).discard(discarded, "anna")
            else:
                deliveries.changed_on_disk(delivery.item)
        assert deliveries.failed(sending[discarded], "refused", Retry(), final=True) is State.DISCARDED
        assert deliveries.failed(sending[changed], "refused", Retry(), final=True) is State.QUARANTINED
        assert (spool.get(discarded).state, spool.get(changed).state) == (State.DISCARDED, State.QUARANTINED)


def test_what_waits_for_a_destination_that_is_gone_is_held_at_the_next_start(settings: Settings) -> None:
    with Spool(settings) as spool:
        object_id, sent = put(spool), put(spool, MR.read_bytes())
        for item in spool.claim("worker", 10):
            spool.settle(item, FORWARD)
        (_, other) = Deliveries(spool).due("archive", 10)
        Deliveries(spool).delivered(other, "0x0000")
        assert spool.recover()["without_destination"] == 0
    renamed = replace(settings, destination=(replace(settings.destination[0], name="research"),))
    with Spool(renamed) as spool:
        assert spool.recover()["without_destination"] == 1
        assert (spool.get(object_id).state, spool.get(object_id).reason) == (State.QUARANTINED, Cause.NO_DESTINATION)
        assert spool.get(sent).state is State.FORWARDED
        Quarantine(spool).release(object_id, "anna", ("research",))
        assert [delivery.item.id for delivery in Deliveries(spool).due("research", 10)] == [object_id]
        assert not Deliveries(spool).due("archive", 10)
        assert verify_trail(spool.database, settings.audit_folder).whole


def test_waits_grow_up_to_a_bound_and_differ() -> None:
    retry = Retry(first_seconds=2, longest_seconds=100)
    for attempt in range(1, 200):
        longest = min(100, 2 * 2 ** min(attempt - 1, 60))
        assert longest / 2 <= wait_before(attempt, retry) <= longest
    assert len({wait_before(5, retry) for _ in range(10)}) > 1


def test_quarantine_is_released_and_discarded_by_somebody(settings: Settings) -> None:
    with Spool(settings) as spool:
        quarantine = Quarantine(spool)
        released, discarded = put(spool), put(spool, MR.read_bytes())
        for item in spool.claim("worker", 10):
            spool.settle(item, HOLD)
        assert {item.id for item in quarantine.list()} == {released, discarded}
        assert quarantine.release(released[:12], "anna").state is State.SCREENED
        assert [delivery.item.id for delivery in Deliveries(spool).due("archive", 10)] == [released]
        assert quarantine.discard(discarded, "berta").state is State.DISCARDED
        assert not spool.files.path(discarded).exists()
        assert spool.get(discarded).result == {}
        for again in (released, discarded):
            with pytest.raises(GatewayError, match="not in quarantine"):
                quarantine.release(again, "carla", ["archive"]) if again == released else quarantine.screen_again(again, "carla")
        spool.audit.flush()
        lines = [json.loads(line) for path in trail_files(settings.audit_folder) for line in path.read_text().splitlines()]
        assert [(line["event"], line["who"]) for line in lines if "who" in line] == [("released", "anna"), ("discarded", "berta")]


def test_quarantine_asks_where_to_if_no_rule_says_so(settings: Settings) -> None:
    with Spool(settings) as spool:
        object_id = put(spool)
        spool.settle(claimed(spool), Outcome("error", Cause.NO_RULE, "quarantine"))
        quarantine = Quarantine(spool)
        with pytest.raises(GatewayError, match="give a destination"):
            quarantine.release(object_id, "anna")
        with pytest.raises(GatewayError, match="no destination 'elsewhere'"):
            quarantine.release(object_id, "anna", ["elsewhere"])
        for wrong in ("", "../../etc/passwd", "0" * 32, "G"):
            with pytest.raises(GatewayError, match="id"):
                quarantine.release(wrong, "anna")
        quarantine.screen_again(object_id, "anna")
        assert claimed(spool).id == object_id


def test_an_object_that_was_discarded_while_it_was_sent_stays_discarded(settings: Settings) -> None:
    with Spool(settings) as spool:
        object_id = put(spool)
        spool.settle(claimed(spool), FORWARD)
        (delivery,) = Deliveries(spool).due("archive", 1)
        Deliveries(spool).failed(delivery, "refused", Retry(attempts=1))
        Quarantine(spool).discard(object_id, "anna")
        Deliveries(spool).delivered(delivery, "0x0000")
        assert spool.get(object_id).state is State.DISCARDED


def test_the_spool_is_its_owners_alone(settings: Settings) -> None:
    with Spool(settings) as spool:
        object_id = put(spool)
        spool.audit.flush()
        for path in (settings.spool.folder, settings.audit_folder, spool.files.incoming):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for path in (spool.files.path(object_id), settings.spool.folder / "spool.sqlite", *trail_files(settings.audit_folder)):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_old_rows_are_forgotten_and_what_waits_is_not(settings: Settings) -> None:
    with Spool(settings) as spool:
        held, discarded = put(spool), put(spool, MR.read_bytes())
        for item in spool.claim("worker", 10):
            spool.settle(item, HOLD)
        Quarantine(spool).discard(discarded, "anna")
        assert spool.forget() == 0
        with spool.database.write() as connection:
            connection.execute("UPDATE objects SET changed = 0")
        assert spool.forget() == 1
        assert [item.id for item in spool.list(State)] == [held]


def test_a_spool_that_is_not_there_is_not_made_by_looking(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(GatewayError, match="no spool"):
        Spool(settings, create=False)
    assert not (tmp_path / "spool").exists()


def test_pseudonyms_depend_on_the_key_and_the_kind(tmp_path: Path) -> None:
    one, other = SiteKey(bytes(32)), SiteKey(bytes([1]) * 32)
    assert one.short("uid", "1.2.3") == one.short("uid", "1.2.3")
    assert len({one.short("uid", "1.2.3"), one.short("gallery", "1.2.3"), other.short("uid", "1.2.3")}) == 3
    assert one.short("uid", "") == ""
    assert one.short("uid", "\udcff")
    path = tmp_path / "key"
    create_site_key(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert len(read_site_key(path).secret) == 32
    with pytest.raises(GatewayError, match="exists already"):
        create_site_key(path)
    path.write_text("00ff")
    with pytest.raises(GatewayError, match="64 hexadecimal digits"):
        read_site_key(path)
    with pytest.raises(GatewayError, match="gateway init"):
        read_site_key(tmp_path / "none")
