"""`lcmem-onnx calibrate` with images: what is measured, what is kept, and negatives that are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner, Result
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.calibration.open_set import Suspicion, best_scores, copy_score, judge_negatives
from lcmem_onnx.runtime.calibration.threshold import stored_calibration
from lcmem_onnx.runtime.gallery import Entry, Gallery
from lcmem_onnx.runtime.images.dicom.identifiers import Identifiers
from lcmem_onnx.runtime.model.bundle import Bundle, Threshold, open_bundle
from lcmem_onnx.runtime.model.head import Head
from lcmem_onnx.runtime.screening import Embedded
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
GALLERY, QUERIES = EXAMPLES / "gallery", EXAMPLES / "queries"
COPIES = sorted(QUERIES.glob("copy-*"))


def lcmem(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("built") / "idx"
    assert lcmem("index", "build", GALLERY, "--index", index, "-q").exit_code == 0
    return index


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    """An index of the example gallery, to be changed."""
    return Path(shutil.copytree(built, tmp_path / "idx"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strangers")
    for seed in range(12):
        smooth = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(smooth).resize((90, 80), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    return folder


def write_pairs(path: Path, rows: Sequence[tuple[str | Path, str | Path]], header: str = "query,mate") -> Path:
    path.write_text("\n".join([header, *(f"{query},{mate}" for query, mate in rows)]) + "\n", encoding="utf-8")
    return path


def test_what_calibrate_sets_a_scan_uses(index: Path, strangers: Path) -> None:
    done = lcmem("calibrate", "--index", index, "--negatives", strangers, "--fpir", "0.3", "-q")
    assert done.exit_code == 0, done.output
    assert "FPIR" in done.stdout
    with Gallery.open(index, open_bundle()) as gallery:
        found = stored_calibration(gallery)
        scores = best_scores(gallery, [each.embeddings for each in embedded(strangers)]).scores[:, 0]
        assert f"{gallery.vectors()} (now)" in done.stdout
    assert found is not None
    # 3 of 12 may reach it, not 4: the fourth best lies just below.
    assert found.negatives == 12
    assert (scores >= found.threshold).sum() == 3
    assert sorted(scores)[-4] == pytest.approx(found.threshold, rel=1e-3)
    *lines, summary = map(json.loads, lcmem("scan", strangers, "--index", index, "--json", "-q").stdout.splitlines())
    assert summary["summary"]["match"] == 3
    assert {line["threshold"] for line in lines} == {found.threshold}
    assert {line["threshold_source"] for line in lines} == {"index"}
    assert sum(line["verdict"] == "match" for line in lines) == 3
    table = lcmem("scan", QUERIES, "--index", index, "-q").stdout
    assert f"threshold {found.threshold:.4g}: set for this index on {found.date[:10]}" in " ".join(table.split())
    given = json.loads(lcmem("scan", COPIES[0], "--index", index, "--json", "-q", "--threshold", "0.5").stdout.splitlines()[0])
    assert (given["threshold"], given["threshold_source"]) == (0.5, "given")


def embedded(folder: Path) -> list[Embedded]:
    from lcmem_onnx import Screener

    return list(Screener().embeddings([folder]))


def test_scores_are_the_heads_own_whatever_the_chunks(index: Path, strangers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcmem_onnx.runtime.calibration.open_set.CHUNK", 4)
    images = embedded(strangers)[:3]
    with Gallery.open(index, open_bundle()) as gallery:
        records = list(gallery.entries())
        tops = best_scores(gallery, [each.embeddings for each in images], kept=4)
        for at, image in enumerate(images):
            scores = [gallery.bundle.head.score(image.embeddings[0], record.embedding) for record in records]
            np.testing.assert_allclose(tops.scores[at], sorted(scores, reverse=True)[:4], rtol=1e-4)
            assert tops.keys[at] == records[int(np.argmax(scores))].key
        assert tops.size == gallery.vectors() == len({record.embedding.tobytes() for record in records})


def test_misses_are_measured_and_json_is_all_there_is_on_stdout(index: Path, strangers: Path, tmp_path: Path) -> None:
    mates = {"astronaut": ".jpg", "camera": ".jpg", "chelsea": ".jpg", "ct-slice": ".dcm", "retina": ".jpg"}
    rows: list[tuple[str | Path, str | Path]] = [
        (path, GALLERY / f"{name}{suffix}") for path in COPIES for name, suffix in mates.items() if name in path.name
    ]
    rows.append((QUERIES / "other-rocket.jpg", GALLERY / "camera.jpg"))
    listing = write_pairs(tmp_path / "mates.csv", rows)
    done = lcmem("calibrate", "--index", index, "--negatives", strangers, "--pairs", listing, "--json", "-q", "--dry-run")
    assert done.exit_code == 0, done.output
    (line,) = [json.loads(text) for text in done.stdout.splitlines()]
    assert line["schema_version"] == 1
    assert (line["misses"]["mates"], line["misses"]["missed"]) == (6, 1)
    assert (line["kept"], line["unreadable"], line["left_out"]) == (False, 0, 0)
    assert [each["size"] / line["growth"]["size"] for each in line["forecasts"]] == [1, 2, 5, 10]
    shown = json.loads(lcmem("calibrate", "--index", index, "--json").stdout)
    assert shown == {"schema_version": 1, "calibration": None}


def test_negatives_from_the_gallery_are_refused(index: Path, strangers: Path, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(strangers, tmp_path / "mixed"))
    shutil.copy(GALLERY / "camera.jpg", mixed / "renamed.jpg")
    Image.open(GALLERY / "astronaut.jpg").save(mixed / "recompressed.jpg", quality=50)
    shutil.copy(strangers / "0.png", mixed / "again.png")
    (mixed / "bad.png").write_bytes(b"no image")
    done = lcmem("calibrate", "--index", index, "--negatives", mixed, "-q")
    assert done.exit_code == 2
    assert "same-file" in done.stdout
    assert "like-a-copy" in done.stdout
    assert "2 of the negatives" in done.stderr
    refused = [
        json.loads(line) for line in lcmem("calibrate", "--index", index, "--negatives", mixed, "--json").stdout.splitlines()
    ]
    assert {line["suspicion"] for line in refused} == {"same-file", "like-a-copy"}
    for how, many in (("leave-out", 12), ("keep", 13)):
        done = lcmem("calibrate", "--index", index, "--negatives", mixed, "--suspects", how, "--json")
        assert done.exit_code == 0, done.output
        line = json.loads(done.stdout)
        assert (line["negatives"], line["repeated"], line["unreadable"]) == (many, 1, 1)
    assert lcmem("calibrate", "--index", index, "--negatives", GALLERY, "--suspects", "keep").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fpir", "0"], "must be between 0 and 1"),
        (["--fpir", "nan"], "must be between 0 and 1"),
        (["--fpir", "250"], "must be between 0 and 1"),
        (["--negatives", "nowhere"], "nowhere"),
        (["--pairs", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_bad_requests_are_a_line(arguments: list[str], said: str, index: Path, strangers: Path) -> None:
    done = lcmem("calibrate", "--index", index, "--negatives", strangers, "-q", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    with Gallery.open(index, open_bundle()) as gallery:
        assert stored_calibration(gallery) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("query,key\na,b\n", "has no column 'mate'"),
        ("query,mate\n", "expected at least one pair"),
        ("", "has no column"),
        ("query,mate\nmissing.png,camera.jpg\n", "1 missing query files: 'missing.png'"),
        ("query,mate\n{stranger},nobody.jpg\n", "1 mates missing from"),
        ("query,mate\n{stranger},\n", "line 2 has no value for 'mate'"),
        ("query,mate\n{stranger}\n", "line 2 has no value for 'mate'"),
        ("query,mate\n{camera},{camera}\n", "would match themselves"),
        ("query,mate\n\udcff,b\n", "is not UTF-8 text"),
    ],
)
def test_lists_of_pairs_that_are_none(content: str, said: str, index: Path, strangers: Path, tmp_path: Path) -> None:
    text = content.replace("{stranger}", str(strangers / "1.png")).replace("{camera}", str(GALLERY / "camera.jpg"))
    (tmp_path / "pairs.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    done = lcmem("calibrate", "--index", index, "--negatives", strangers, "-q", "--pairs", tmp_path / "pairs.csv")
    assert done.exit_code == 2
    assert said in done.stderr


def test_an_empty_index_or_folder_gives_nothing(tmp_path: Path, index: Path, strangers: Path) -> None:
    bundle = open_bundle()
    Gallery.create(tmp_path / "empty", bundle).close()
    done = lcmem("calibrate", "--index", tmp_path / "empty", "--negatives", strangers, "-q")
    assert (done.exit_code, "is empty: add images" in done.stderr) == (2, True)
    (tmp_path / "nothing").mkdir()
    done = lcmem("calibrate", "--index", index, "--negatives", tmp_path / "nothing", "-q")
    assert (done.exit_code, "contains no usable negatives" in done.stderr) == (2, True)
    done = lcmem("calibrate", "--index", index, "--negatives", strangers / "1.png", "-q")
    assert (done.exit_code, "1 support 95 %" in done.stdout) == (0, True)


def test_options_that_contradict_are_refused(index: Path, strangers: Path) -> None:
    assert lcmem("calibrate", "--index", index, "--dry-run").exit_code == 2
    assert lcmem("calibrate", "--index", index, "--forget", "--negatives", strangers).exit_code == 2
    assert lcmem("calibrate", "--index", index).exit_code == 0
    assert lcmem("calibrate", "--index", index, "--forget").exit_code == 0


def test_patients_of_the_gallery_are_no_strangers(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second image of the patient whose CT slice is in the gallery, known by the number in the header."""
    patient = pydicom.dcmread(GALLERY / "ct-slice.dcm")
    patient.PatientID = "0815"
    (tmp_path / "more").mkdir()
    patient.save_as(tmp_path / "more" / "in.dcm")
    assert lcmem("index", "add", tmp_path / "more", "--index", index, "-q").exit_code == 0
    other = pydicom.dcmread(QUERIES / "other-mr-slice.dcm")
    other.PatientID = "0815 "
    (tmp_path / "negatives").mkdir()
    other.save_as(tmp_path / "negatives" / "other.dcm")
    done = lcmem("calibrate", "--index", index, "--negatives", tmp_path / "negatives", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["suspicion"] == "same-patient"
    done = lcmem("calibrate", "--index", index, "--negatives", tmp_path / "negatives", "--ignore-patients", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["negatives"] == 1
    other_key = tmp_path / "other.key"
    other_key.write_text("00" * 32)
    other_key.chmod(0o600)
    monkeypatch.setenv("LCMEM_ONNX_SITE_KEY", str(other_key))
    done = lcmem("calibrate", "--index", index, "--negatives", tmp_path / "negatives", "-q")
    assert (done.exit_code, "--ignore-patients" in done.stderr) == (2, True)


# -- without images ----------------------------------------------------------------------------------------------


def head_bundle() -> Bundle:
    head = Head(np.full(8, -6.0, np.float32), 10.0)
    return Bundle(Path(), "test", 64, 8, head, Threshold(0.7, "test"), {}, "f" * 64, demonstration=True, manifest={})


def image(number: int, vector: np.ndarray, patient: str | None = None) -> Embedded:
    return Embedded(f"{number}.png", number.to_bytes(32, "big"), vector[None], (), Identifiers(patient))


def test_one_far_out_among_strangers_is_suspected_and_strangers_are_not(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    held = random.random((400, 8), dtype=np.float32)
    with Gallery.create(tmp_path / "idx", head_bundle()) as gallery:
        gallery.add_all(Entry(str(n), (10_000 + n).to_bytes(32, "big"), 1, {0: each}) for n, each in enumerate(held))
        strangers = [image(n, random.random(8, dtype=np.float32), f"p{n // 4}") for n in range(200)]
        judged = judge_negatives(gallery, strangers)
        assert not judged.suspects
        assert judged.patients == 50
        altered = np.clip(held[7] + np.float32(0.03), 0, 1)
        judged = judge_negatives(gallery, [*strangers, image(900, altered)])
        (suspect,) = judged.suspects
        assert (suspect.path, suspect.suspicion, suspect.key) == ("900.png", Suspicion.LIKE_A_COPY, "7")
        assert len(judged.tops.scores) == 200
        assert len(judge_negatives(gallery, [*strangers, image(900, altered)], keep_alike=True).tops.scores) == 201
        # Of one patient all, but anonymous: then nothing is known of whose they are.
        anonymous = [image(n, random.random(8, dtype=np.float32), "ANON") for n in range(30)]
        assert judge_negatives(gallery, anonymous).patients == 1
        assert judge_negatives(gallery, anonymous, ignore_patients=True).patients is None
        assert copy_score(gallery, np.ones(40)) < 1


def test_images_of_several_frames_count_by_their_best(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    held = random.random((20, 8), dtype=np.float32)
    with Gallery.create(tmp_path / "idx", head_bundle()) as gallery:
        gallery.add_all(Entry(str(n), n.to_bytes(32, "big"), 1, {0: each}) for n, each in enumerate(held))
        frames = random.random((3, 8), dtype=np.float32)
        tops = best_scores(gallery, [frames])
        alone = [best_scores(gallery, [frame[None]]).scores[0, 0] for frame in frames]
        assert tops.scores[0, 0] == pytest.approx(max(alone))
        assert (tops.scores[0, 20:] == 0).all()


def test_copies_in_the_gallery_are_one_vector(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "idx", head_bundle()) as gallery:
        vector = np.full(8, 0.5, np.float32)
        gallery.add_all(Entry(str(n), n.to_bytes(32, "big"), 1, {0: vector}) for n in range(5))
        tops = best_scores(gallery, [vector[None]])
        assert tops.size == gallery.vectors() == 1
        assert (tops.scores[0] > 0).sum() == 1
