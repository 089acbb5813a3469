"""Files that a released version wrote, opened by the current code: see golden/README.md."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.calibration.threshold import stored_calibration
from lcmem_onnx.runtime.gallery import Gallery
from lcmem_onnx.runtime.privacy import ReportPseudonyms, SiteKey
from lcmem_onnx.runtime.screening import Screener

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = ["0.1.0"]


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a version's files, whose bundle and site key the command line uses."""
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN / request.param, folder)
    for key in folder.rglob("*.key"):
        key.chmod(0o600)  # git keeps no such mode
    monkeypatch.setenv("LCMEM_ONNX_SITE_KEY", str(folder / "site.key"))
    monkeypatch.setenv("LCMEM_ONNX_BUNDLE", str(folder / "bundle"))
    monkeypatch.setenv("LCMEM_ONNX_VARIANT", "fp32")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def expected(golden: Path) -> Any:
    """What the version itself said."""
    return json.loads((golden / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def screener(golden: Path) -> Iterator[Screener]:
    screener = Screener(golden / "bundle", variant="fp32")
    yield screener
    screener.close()


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, done.output
    return done.stdout


def lines(*arguments: str, code: int = 0) -> list[Any]:
    """What a command says of each image or object, without the summary that newer versions end with."""
    return [line for line in map(json.loads, run(*arguments, code=code).splitlines()) if "summary" not in line]


def holds(found: Any, wanted: Any, where: str = "") -> None:
    """Fail unless all that is wanted was found: the same values, numbers within 1e-6. A later version may say more."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict), where
        for name, value in wanted.items():
            assert name in found, f"{where}.{name} is missing"
            holds(found[name], value, f"{where}.{name}")
    elif isinstance(wanted, list):
        assert isinstance(found, list), where
        assert len(found) == len(wanted), where
        for at, (one, other) in enumerate(zip(found, wanted, strict=True)):
            holds(one, other, f"{where}[{at}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-6), where
    else:
        assert found == wanted, where


def test_the_files_are_small_and_name_no_place_but_golden() -> None:
    """Keys of an index are absolute paths: those of the machine that made it must not be published."""
    files = [path for path in GOLDEN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    for path in files:
        content = path.read_bytes()
        for place in (b"/home/", b"/Users/", b"/root/", b"/tmp/", b"/var/"):
            assert place not in content, f"{path} names {place!r}"


def test_index_info_says_what_it_said(golden: Path, expected: Any) -> None:
    (found,) = lines("index", "info", "--index", "index", "--json")
    wanted = expected["info"]
    holds(found, {name: value for name, value in wanted.items() if name != "format_version"})  # which a migration raises


@pytest.mark.parametrize("search", ["exact", "hnsw"])
def test_scans_give_the_same_verdicts_scores_and_pseudonyms(golden: Path, expected: Any, search: str) -> None:
    for name, group in (("scan", ()), ("scan_ward_b", ("--gallery", "ward-b"))):
        found = lines("scan", "images/queries", "--index", "index", *group, "--search", search, "--json", "-q", code=1)
        wanted = [{**line, "complete": search == "exact"} for line in expected[name]]  # 0.1.0 took its graph for a proof
        holds([line for line in found if "path" in line], wanted)


def test_the_index_is_whole_and_its_calibration_is_found(golden: Path, expected: Any, screener: Screener) -> None:
    with Gallery.open("index", screener.bundle) as gallery:
        assert gallery.verify().problems == ()
        calibration = stored_calibration(gallery)
    assert calibration is not None
    counts = ("left_out", "repeated", "unreadable", "kept", "forecasts", "schema_version")  # of the command, not of what it kept
    wanted = {name: value for name, value in expected["calibrate"].items() if name not in counts}
    holds(calibration.as_json(), wanted)
    (shown,) = lines("calibrate", "--index", "index", "--json")
    holds(shown["calibration"], wanted)


def test_the_index_can_be_written(golden: Path, expected: Any) -> None:
    """Additions meet what is there: equal content is a copy; and a patient of 0.1.0 is erased by number."""
    (line,) = lines("index", "add", "images/ward-a/0.dcm", "--index", "index", "--gallery", "ward-c", "--json", "-q")
    assert line["added"] == "copy"
    (line,) = lines("index", "remove", "--index", "index", "--patient", "GOLDEN-1", "--issuer", "GOLDEN", "--json")
    assert line["removed"] == 3
    assert line["frames_left"] == expected["info"]["frames"] - 2
    assert all(line["nearest"]["key"] != "/golden/images/ward-a/0.dcm" for line in lines(
        "scan", "images/queries", "--index", "index", "--json", "-q", code=1) if "nearest" in line)  # fmt: skip


def test_pseudonyms_of_a_site_key_never_change(golden: Path, expected: Any) -> None:
    wanted = expected["pseudonyms"]
    key = SiteKey.open(golden / "site.key")
    assert key.name == wanted["site_key"]
    for patient, issuer, pseudonym in wanted["patients"]:
        assert key.patient(patient, issuer) == pseudonym
    for uid, pseudonym in wanted["studies"]:
        assert key.study(uid) == pseudonym
    for kind, uid, pseudonym in wanted["gateway"]:
        assert key.short(kind, uid) == pseudonym
    for uid, name in wanted["archive"]:
        assert key.object_name(uid) == name


def test_the_bundle_gives_the_embeddings_that_were_stored(golden: Path, screener: Screener) -> None:
    run("index", "import", "export.npz", "--index", "restored", "-q")
    compared = 0
    with Gallery.open("restored", screener.bundle) as restored, Gallery.open("index", screener.bundle) as index:
        stored = {(row.key, row.frame, row.rendering): row for row in index.entries()}
        again = {(row.key, row.frame, row.rendering): row for row in restored.entries()}
        assert again.keys() == stored.keys()
        for place, row in stored.items():
            assert np.array_equal(again[place].embedding, row.embedding)
            assert (again[place].content, again[place].patient, again[place].study) == (row.content, row.patient, row.study)
        for embedded in screener.embeddings(sorted((golden / "images").glob("ward-*/*"))):
            key = "/golden/images/" + "/".join(Path(embedded.path).parts[-2:])
            rows = [row for (name, _, _), row in sorted(stored.items()) if name == key]
            assert embedded.content == rows[0].content
            np.testing.assert_allclose(embedded.embeddings, [row.embedding for row in rows], atol=1e-5)
            compared += len(rows)
    assert compared == len(stored) == 11


def test_the_report_can_be_read_and_made_again(golden: Path) -> None:
    """The same audit again takes up what the private part holds: embeddings and the pseudonyms of reference images."""
    pytest.importorskip("jinja2")
    before = json.loads((golden / "report" / "report.json").read_text(encoding="utf-8"))
    assert before["schema_version"] == 1
    assert [finding["path"] for finding in before["found"]] == ["copy-of-0.dcm", "copy-of-4.jpg"]
    names = dict(line.split(",") for line in (golden / "report/private/pseudonyms.csv").read_text().splitlines()[1:])
    pseudonyms = ReportPseudonyms(golden / "report" / "private" / "pseudonyms.key")
    assert {pseudonyms.name(key): key for key in names.values()} == names
    folders = ("--released", "images/queries", "--reference", "images/ward-a", "--holdout", "images/holdout", "--out", "report")
    run("audit", *folders, "--images", "4", "-q", code=1)
    after = json.loads((golden / "report" / "report.json").read_text(encoding="utf-8"))
    told = ("path", "grade", "score", "reference", "sha256")
    for kind in ("found", "near"):
        wanted = [{name: one[name] for name in told} for one in before[kind]]
        holds(after[kind], wanted)


# -- the gateway -----------------------------------------------------------------------------------------------------------

CONFIG = Path("gateway/gateway.toml")


def gateway(*arguments: str) -> list[Any]:
    return lines("gateway", *arguments, "--json", "--config", str(CONFIG))


def test_the_trail_is_whole(golden: Path, expected: Any) -> None:
    (found,) = gateway("audit", "verify")
    holds(found, expected["trail"])


def test_the_spool_shows_its_objects_in_their_states(golden: Path, expected: Any) -> None:
    (status,) = gateway("status")
    assert {name: status[name] for name in expected["states"]} == expected["states"]
    assert status["waiting_for_away"] == 1
    found = gateway("quarantine", "list", "--kept")
    holds(found, expected["quarantine"])
    (shown,) = gateway("quarantine", "show", found[0]["id"])
    assert (golden / "gateway" / "spool" / "objects" / Path(shown["file"]).name).read_bytes()[128:132] == b"DICM"


def test_the_spool_is_taken_up_and_drained(golden: Path, expected: Any) -> None:
    """What waited is screened and forwarded, what was held can be released, what was dead is tried again."""
    from lcmem_onnx.runtime.gateway.audit_trail import verify_trail
    from lcmem_onnx.runtime.gateway.config import read_config
    from lcmem_onnx.runtime.gateway.delivery_queue import Deliveries, Delivery
    from lcmem_onnx.runtime.gateway.forwarder import Answer, Forwarder
    from lcmem_onnx.runtime.gateway.object_screener import ObjectScreener
    from lcmem_onnx.runtime.gateway.quarantine import Quarantine
    from lcmem_onnx.runtime.gateway.spool import Spool, State

    class Archive:
        """Takes everything."""

        def __init__(self) -> None:
            self.taken: list[str] = []

        def send(self, objects: Any) -> Iterator[tuple[Delivery, Answer]]:
            for delivery, path in objects:
                assert path.read_bytes()[128:132] == b"DICM"
                self.taken.append(delivery.item.id)
                yield delivery, Answer(True, "0x0000")

    (golden / "gateway" / "inbox").mkdir()
    settings = read_config(golden / CONFIG)
    with Spool(settings, create=False) as spool:
        recovered = spool.recover()
        assert {name: count for name, count in recovered.items() if count} == {}
        screening = ObjectScreener(settings, spool)
        states = [spool.settle(item, outcome) for item, outcome in screening.screen(spool.claim("test", 100))]
        screening.close()
        assert sorted(states) == [State.QUARANTINED, State.SCREENED]
        archive = Archive()
        for destination in settings.destination:
            Forwarder(destination, spool, archive).send_due()
        assert len(archive.taken) == 2  # what waited for a destination, and what was received and is clear
        for item in spool.list([State.QUARANTINED]):
            Quarantine(spool).release(item.id, "test", ())
        for item in spool.list([State.DEAD]):
            Deliveries(spool).requeue(item.id, "test")
        for destination in settings.destination:
            Forwarder(destination, spool, archive).send_due()
        counts = spool.counts()
        spool.audit.flush()
        whole = verify_trail(spool.database, settings.audit_folder)
    gone = 2 + 2 + 2 + 1  # forwarded before; what waited; the quarantined; the dead one
    assert {state.value: count for state, count in counts.items() if count} == {"forwarded": gone, "kept": 1, "discarded": 1}
    assert whole.whole
    assert whole.lines > expected["trail"]["lines"]
