"""Rules and screening: the right verdict for the right reason, and nothing forwarded that was not looked at."""

from __future__ import annotations

import io
import json
import os
import shutil
import tracemalloc
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lcmem_onnx.runtime.calibration.threshold import decide_threshold
from lcmem_onnx.runtime.errors import Reason
from lcmem_onnx.runtime.gallery import Gallery, Hit
from lcmem_onnx.runtime.gateway.dicom_header import HeaderError, read_header
from lcmem_onnx.runtime.gateway.object_screener import ObjectScreener, worst_frame
from lcmem_onnx.runtime.gateway.outcome import Cause, Outcome
from lcmem_onnx.runtime.gateway.rules import Facts, choose_rule, decide
from lcmem_onnx.runtime.gateway.settings import Destination, GallerySettings, Rule, Settings, SpoolSettings
from lcmem_onnx.runtime.gateway.spool import Arrival, Source, Spool, State
from lcmem_onnx.runtime.privacy import create_site_key
from lcmem_onnx.runtime.results import Result, ThresholdSource
from lcmem_onnx.runtime.screening import Screener, Verdict
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
CT = EXAMPLES / "gallery" / "ct-slice.dcm"
MR = EXAMPLES / "queries" / "other-mr-slice.dcm"
RULE = Rule("all", "patients", forward_to=("archive",))


@pytest.fixture(scope="module")
def screener() -> Screener:
    return Screener()


@pytest.fixture(scope="module")
def index(screener: Screener, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery") / "index"
    with Gallery.create(folder, screener.bundle) as gallery:
        assert all(not done.errors for done in screener.index([EXAMPLES / "gallery"], gallery))
    return folder


@pytest.fixture
def settings(tmp_path: Path, index: Path) -> Settings:
    create_site_key(tmp_path / "site.key")
    return Settings(
        spool=SpoolSettings(tmp_path / "spool", min_free_mb=1),
        site_key=tmp_path / "site.key",
        gallery=(GallerySettings("patients", index),),
        destination=(Destination("archive", host="localhost", port=1, aet="ARCHIVE"),),
        rule=(RULE,),
    )


@pytest.fixture
def spool(settings: Settings) -> Iterator[Spool]:
    with Spool(settings) as spool:
        yield spool


def outcomes(spool: Spool, screener: Screener, *contents: bytes, settings: Settings | None = None) -> list[Outcome]:
    """Screen objects as the service does, and give their outcomes in the order of the contents."""
    ids = [spool.put_stream(io.BytesIO(content), Arrival(Source.FOLDER, "CT1"), 1 << 30).id for content in contents]
    screening = ObjectScreener(settings or spool.settings, spool, screener)
    found = {}
    for item, outcome in screening.screen(spool.claim("test", 100)):
        found[item.id] = outcome
        assert spool.settle(item, outcome) is not State.RECEIVED
    screening.close()
    return [found[object_id] for object_id in ids]


def saved(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_clear_goes_on_and_a_match_is_held(spool: Spool, screener: Screener, index: Path) -> None:
    match, clear = outcomes(spool, screener, CT.read_bytes(), MR.read_bytes())
    assert (match.verdict, match.action, match.reason) == ("match", "quarantine", "at-or-above-threshold")
    assert match.nearest[0].key.endswith("ct-slice.dcm")
    assert match.nearest[0].score > 0.99
    assert (clear.verdict, clear.action, clear.destinations) == ("clear", "forward", ("archive",))
    with Gallery.open(index, screener.bundle) as gallery:
        assert clear.threshold == decide_threshold(gallery).threshold
    assert clear.threshold_source is ThresholdSource.STRANGERS
    for kept in (clear.for_audit(spool.site_key), clear.for_spool(spool.site_key)):
        assert json.loads(json.dumps(kept))["threshold_source"] == "strangers"
    assert clear.model == screener.bundle.fingerprint
    assert clear.index
    assert clear.frames == 1


def test_the_source_of_the_threshold_is_kept_and_absent_where_nothing_was_compared(
    spool: Spool, screener: Screener, settings: Settings
) -> None:
    given = replace(settings, gallery=tuple(replace(each, threshold=0.9) for each in settings.gallery))
    match, unread = outcomes(spool, screener, CT.read_bytes(), b"not DICOM", settings=given)
    assert (match.threshold, match.threshold_source) == (0.9, ThresholdSource.GIVEN)
    assert (unread.verdict, unread.threshold, unread.threshold_source) == ("error", None, None)
    assert unread.for_audit(spool.site_key)["threshold_source"] is None


def test_the_worst_frame_decides_and_is_named(spool: Spool, screener: Screener) -> None:
    """A multi-frame object of harmless frames, and the protected slice at number 2."""
    ct, mr = dcmread(CT), dcmread(MR)
    slices = [np.resize(mr.pixel_array, ct.pixel_array.shape).astype(ct.pixel_array.dtype) for _ in range(4)]
    slices = [np.roll(one, 20 * at, axis=0) for at, one in enumerate(slices)]
    slices[2] = ct.pixel_array
    ct.NumberOfFrames = 4
    ct.PixelData = np.stack(slices).tobytes()
    ct.SOPInstanceUID = ct.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    (outcome,) = outcomes(spool, screener, saved(ct))
    assert (outcome.verdict, outcome.worst_frame, outcome.frames) == ("match", 2, 4)


def test_a_frame_that_cannot_be_judged_holds_the_object(spool: Spool, screener: Screener) -> None:
    mr = dcmread(MR)
    pixels = mr.pixel_array
    mr.NumberOfFrames = 3
    mr.PixelData = np.stack([pixels, np.zeros_like(pixels), pixels]).tobytes()
    (outcome,) = outcomes(spool, screener, saved(mr))
    assert (outcome.verdict, outcome.reason, outcome.worst_frame, outcome.action) == ("error", Reason.BLANK, 1, "quarantine")


def without_pixels() -> bytes:
    return Path(str(get_testdata_file("reportsi.dcm"))).read_bytes()


@pytest.mark.parametrize("action", ["forward", "keep", "quarantine"])
def test_objects_without_pixels_are_the_rules_decision(action: str, spool: Spool, screener: Screener) -> None:
    settings = replace(spool.settings, rule=(replace(RULE, on_no_pixels=action),))
    (outcome,) = outcomes(spool, screener, without_pixels(), settings=settings)
    assert (outcome.verdict, outcome.reason, outcome.action) == ("error", Reason.NO_PIXELS, action)
    assert outcome.destinations == (("archive",) if action == "forward" else ())


def test_no_rule_no_way_out(spool: Spool, screener: Screener) -> None:
    settings = replace(spool.settings, rule=(replace(RULE, modality=("US",)),))
    (outcome,) = outcomes(spool, screener, MR.read_bytes(), settings=settings)
    assert (outcome.verdict, outcome.reason, outcome.action) == ("error", Cause.NO_RULE, "quarantine")


def test_an_index_that_is_not_there_holds_everything(spool: Spool, screener: Screener, tmp_path: Path) -> None:
    settings = replace(spool.settings, gallery=(GallerySettings("patients", tmp_path / "none"),))
    for outcome in outcomes(spool, screener, MR.read_bytes(), CT.read_bytes(), settings=settings):
        assert (outcome.verdict, outcome.reason, outcome.action) == ("error", Cause.INDEX_UNAVAILABLE, "quarantine")


def test_an_index_that_is_removed_or_replaced_under_the_service(
    spool: Spool, screener: Screener, index: Path, tmp_path: Path
) -> None:
    """An open database goes on answering when its file is gone: nobody may be screened against what is no longer there."""
    there = tmp_path / "index"
    shutil.copytree(index, there)
    screening = ObjectScreener(replace(spool.settings, gallery=(GallerySettings("patients", there),)), spool, screener)

    def outcome(uid: str) -> Outcome:
        mr = dcmread(MR)
        mr.SOPInstanceUID = mr.file_meta.MediaStorageSOPInstanceUID = uid
        spool.put_stream(io.BytesIO(saved(mr)), Arrival(Source.FOLDER, "CT1"), 1 << 30)
        ((item, found),) = screening.screen(spool.claim("test", 100))
        spool.settle(item, found)
        return found

    assert outcome("1.2.1").verdict == "clear"
    there.rename(tmp_path / "away")
    assert (outcome("1.2.2").action, outcome("1.2.3").reason) == ("quarantine", Cause.INDEX_UNAVAILABLE)
    with Gallery.create(there, screener.bundle) as gallery:
        assert all(not done.errors for done in screener.index([MR], gallery))
    assert (outcome("1.2.4").verdict, outcome("1.2.5").action) == ("match", "quarantine")  # the new one counts
    screening.close()


def test_an_index_that_may_only_be_read_is_opened_anew_when_it_has_grown(
    spool: Spool, screener: Screener, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite is told that a file that cannot be written never changes: additions by somebody else must be seen all the same."""
    there = tmp_path / "index"
    shutil.copytree(index, there)
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and may(path, mode))
    screening = ObjectScreener(replace(spool.settings, gallery=(GallerySettings("patients", there),)), spool, screener)
    found = []
    for uid in ("1.2.1", "1.2.2"):
        mr = dcmread(MR)
        mr.SOPInstanceUID = mr.file_meta.MediaStorageSOPInstanceUID = uid
        spool.put_stream(io.BytesIO(saved(mr)), Arrival(Source.FOLDER, "CT1"), 1 << 30)
        ((item, outcome),) = screening.screen(spool.claim("test", 100))
        spool.settle(item, outcome)
        found.append(outcome.verdict)
        with Gallery.open(there, screener.bundle, read_only=False) as gallery:
            assert all(not done.errors for done in screener.index([MR], gallery))
    assert found == ["clear", "match"]
    screening.close()


def test_an_empty_index_holds_everything(spool: Spool, screener: Screener, tmp_path: Path) -> None:
    Gallery.create(tmp_path / "empty", screener.bundle).close()
    settings = replace(spool.settings, gallery=(GallerySettings("patients", tmp_path / "empty"),))
    (outcome,) = outcomes(spool, screener, MR.read_bytes(), settings=settings)
    assert (outcome.reason, outcome.action) == (Cause.INDEX_UNAVAILABLE, "quarantine")


def test_whatever_screening_raises_is_never_clear(spool: Spool, screener: Screener, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Screener, "screen", broken)
    for outcome in outcomes(spool, screener, MR.read_bytes(), CT.read_bytes()):
        assert (outcome.verdict, outcome.reason, outcome.action) == ("error", Cause.INTERNAL_ERROR, "quarantine")


def test_an_object_with_two_identities_is_held(spool: Spool, screener: Screener) -> None:
    """The file meta information, by which archives go, says something else than the data set."""
    mr = dcmread(MR)
    mr.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    (outcome,) = outcomes(spool, screener, saved(mr))
    assert (outcome.reason, outcome.action) == (Cause.IDENTITY_MISMATCH, "quarantine")


def test_images_that_were_not_looked_at_hold_the_object(spool: Spool, screener: Screener) -> None:
    mr = dcmread(MR)
    icon = Dataset()
    icon.Rows = icon.Columns = 8
    icon.BitsAllocated, icon.SamplesPerPixel, icon.PhotometricInterpretation = 8, 1, "MONOCHROME2"
    icon.PixelData = bytes(64)
    mr.IconImageSequence = [icon]
    (held,) = outcomes(spool, screener, saved(mr))
    assert (held.verdict, held.reason, held.action) == ("clear", Cause.UNSCREENED_CONTENT, "quarantine")
    assert "icon" in held.notes
    mr.SOPInstanceUID = mr.file_meta.MediaStorageSOPInstanceUID = "1.2.3.5"
    settings = replace(spool.settings, rule=(replace(RULE, hold_notes=()),))
    (let_go,) = outcomes(spool, screener, saved(mr), settings=settings)
    assert let_go.action == "forward"


def test_an_image_with_another_one_behind_its_end_is_not_clear(spool: Spool, screener: Screener) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((90, 90)).save(buffer, "JPEG")
    for content, action, notes in ((buffer.getvalue(), "forward", ()), (2 * buffer.getvalue(), "quarantine", ("appended-data",))):
        name = spool.put_stream(io.BytesIO(content), Arrival(Source.SCREEN, "caller"), 1 << 30).id
        screening = ObjectScreener(spool.settings, spool, screener)
        ((item, outcome),) = screening.screen(spool.claim("test", 100))
        screening.close()
        assert (item.id, outcome.verdict, outcome.notes) == (name, "clear", notes)
        assert outcome.action == action
        assert (outcome.reason == Cause.UNSCREENED_CONTENT) is bool(notes)


def test_a_search_that_was_cut_short_is_not_clear(spool: Spool, screener: Screener, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Screener.screen

    def cut_short(*args: Any, **kwargs: Any) -> Iterator[Result]:
        yield from (replace(result, complete=False) for result in original(*args, **kwargs))

    monkeypatch.setattr(Screener, "screen", cut_short)
    (outcome,) = outcomes(spool, screener, MR.read_bytes())
    assert (outcome.verdict, outcome.reason, outcome.action) == ("error", Cause.SEARCH_INCOMPLETE, "quarantine")


def deflated_bomb() -> bytes:
    mr = dcmread(MR)
    del mr.PixelData
    mr.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    plain = saved(mr)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    at = plain.index(b"DICM") + 4 + 12 + int.from_bytes(plain[140:144], "little")
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(48)) + packer.flush()
    return plain[:at] + body


HOSTILE = {
    "empty": b"",
    "preamble": bytes(132),
    "mark": bytes(128) + b"DICM",
    "random": np.random.default_rng(0).bytes(5000),
    "program": b"\x7fELF" + bytes(124) + CT.read_bytes()[128:],
    "program, harmless pixels": b"MZ" + bytes(126) + MR.read_bytes()[128:],
    "half a header": MR.read_bytes()[:700],
    "half its pixels": MR.read_bytes()[:-3000],
    "an image": (EXAMPLES / "queries" / "other-rocket.jpg").read_bytes(),
    "meta without end": bytes(128) + b"DICM" + b"\x02\x00\x10\x00OB\0\0\xf0\xff\xff\xff",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_objects_are_held_with_a_reason(content: bytes, spool: Spool, screener: Screener) -> None:
    (outcome,) = outcomes(spool, screener, content)
    assert outcome.action == "quarantine"
    assert outcome.verdict in ("error", "match")  # the program's preamble hides the protected slice
    assert outcome.reason


def test_a_deflate_bomb_is_held(spool: Spool, screener: Screener) -> None:
    (outcome,) = outcomes(spool, screener, deflated_bomb())
    assert (outcome.verdict, outcome.action) == ("error", "quarantine")


def test_the_header_is_read_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "bomb.dcm"
    path.write_bytes(deflated_bomb())
    tracemalloc.start()
    try:
        with pytest.raises(HeaderError):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
    path.write_bytes(b"no DICOM at all" * 100)
    with pytest.raises(HeaderError):
        read_header(path)
    header = read_header(CT)
    assert (header.modality, header.sop_class) == ("CT", "1.2.840.10008.5.1.4.1.1.2")


# -- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        (RULE, True),
        (replace(RULE, calling_aet=("CT*", "MR?")), True),
        (replace(RULE, calling_aet=("ct1",)), False),
        (replace(RULE, called_aet=("OTHER",)), False),
        (replace(RULE, modality=("MR", "CT")), True),
        (replace(RULE, modality=("MR",)), False),
        (replace(RULE, sop_class=("CTImageStorage",)), True),
        (replace(RULE, sop_class=("1.2.840.10008.5.1.4.1.1.2",)), True),
        (replace(RULE, sop_class=("MRImageStorage",)), False),
        (replace(RULE, source=("c-store",)), True),
        (replace(RULE, source=("stow", "folder")), False),
        (replace(RULE, calling_aet=("CT1",), modality=("MR",)), False),
    ],
)
def test_what_a_rule_fits(rule: Rule, fits: bool) -> None:
    facts = Facts("c-store", "CT1", "LCMEM", "CT", "1.2.840.10008.5.1.4.1.1.2")
    other = replace(RULE, name="other")
    assert choose_rule([rule, other], facts) is (rule if fits else other)


def test_a_missing_value_fits_no_pattern() -> None:
    assert choose_rule([replace(RULE, modality=("*",))], Facts("folder", "in", "", "", "")) is None


@given(
    st.builds(
        Rule,
        name=st.just("any"),
        gallery=st.just("patients"),
        on_clear=st.sampled_from(["forward", "keep", "quarantine"]),
        on_match=st.sampled_from(["forward", "keep", "quarantine"]),
        on_error=st.sampled_from(["keep", "quarantine"]),
        on_no_pixels=st.sampled_from(["forward", "keep", "quarantine"]),
        forward_to=st.sampled_from([(), ("archive",)]),
        forward_matches_to=st.sampled_from([(), ("review",)]),
    )
)
def test_nothing_reaches_a_destination_by_mistake(rule: Rule) -> None:
    """Errors go nowhere; matches only where matches go; whatever is forwarded has somewhere to go."""
    assert decide(rule, "error")[0] != "forward"
    assert set(decide(rule, "match")[1]) <= {"review"}
    for verdict in ("clear", "match", "error", "no-pixels"):
        action, destinations = decide(rule, verdict)  # type: ignore[arg-type]
        assert (action == "forward") == bool(destinations)


def result(verdict: str, score: float | None, frame: int) -> Result:
    nearest = Hit("key", 0, score) if score is not None else None
    return Result("path", frame, Verdict(verdict), Reason.BELOW_THRESHOLD, 0.5, nearest=nearest)


def test_which_frame_is_the_worst() -> None:
    frames = [result("clear", 0.1, 0), result("clear", 0.4, 1), result("clear", 0.2, 2)]
    assert worst_frame(frames).frame == 1
    frames += [result("error", None, 3), result("error", None, 4)]
    assert worst_frame(frames).frame == 3
    frames += [result("match", 0.6, 5), result("match", 0.9, 6)]
    assert worst_frame(frames).frame == 6
