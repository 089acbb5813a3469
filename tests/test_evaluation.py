"""Evaluation: the protocols' pairs, and the whole command on a small list."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx import FileListError, Screener, UsageError
from lcmem_onnx.cli import main
from lcmem_onnx.commands import evaluate as evaluate_command
from lcmem_onnx.console.exit_codes import Terminated
from lcmem_onnx.evaluation import scoring, tables
from lcmem_onnx.evaluation.evaluate import Evaluation, evaluate
from lcmem_onnx.evaluation.filelist import Listed, write_file_list
from lcmem_onnx.evaluation.hashes import PHash
from lcmem_onnx.evaluation.networks import BundleScorer, OnnxScorer
from lcmem_onnx.evaluation.pixelwise import Mse
from lcmem_onnx.evaluation.protocols import (
    CELLS,
    GRIDS,
    REALISTIC_CELLS,
    altered,
    cell_rng,
    different_pairs,
    realistically_altered,
    reidentification_pairs,
)
from lcmem_onnx.evaluation.reading import _Partners, _read
from lcmem_onnx.runtime.model.head import sigmoid
from PIL import Image

IDENTITIES = 5
NAMES = st.lists(st.sampled_from("abcdefg"), max_size=30)


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets, one of which has VAL too; five identities of two visits in TEST each; one file that is no image."""
    folder = tmp_path_factory.mktemp("evaluation")
    rows = []
    for ds_name, splits in (("grids", ("TEST", "VAL")), ("others", ("TEST",))):
        for split in splits:
            for identity in range(IDENTITIES):
                rng = np.random.default_rng([len(ds_name), len(split), identity])
                smooth = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
                for visit in range(2):
                    name = f"{ds_name}-{split}-{identity}-{visit}.png"
                    seen = np.clip(smooth.astype(int) + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
                    Image.fromarray(seen).resize((70, 60), Image.Resampling.BICUBIC).save(folder / name)
                    rows.append(Listed(split, f"{split}{identity}", name, folder / name, ds_name))
    (folder / "broken.png").write_bytes(b"no image")
    rows.append(Listed("TEST", "lost", "broken.png", folder / "broken.png", "grids"))
    write_file_list(folder / "list.csv", rows)
    return folder / "list.csv"


@pytest.fixture(scope="module")
def evaluation(listing: Path, tiny_bundle: Path) -> Evaluation:
    return evaluate(
        listing, [BundleScorer(Screener(tiny_bundle)), PHash(), Mse()], size=64, pair_negatives=20, false_positives=(0.1, 1e-5)
    )


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


# -- pairs ------------------------------------------------------------------------------------------------------------


def reference_pairs(identities: list[str], rng: random.Random) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The protocol, written down once more as its description reads."""
    same, different = [], []
    people = sorted(set(identities), key=(int if all(name.isdecimal() for name in identities) else str))
    for identity in people:
        own = [number for number, other in enumerate(identities) if other == identity]
        if len(own) >= 2 and len(people) >= 2:
            for place, number in enumerate(own):
                same.append((number, own[(place + 1) % len(own)]))
                draws = iter(lambda: people[rng.randint(0, len(people) - 1)], None)
                different.append((number, identities.index(next(name for name in draws if name != identity))))
    return same, different


@given(NAMES | st.lists(st.sampled_from(["1", "2", "10", "11"]), max_size=12), st.integers(0, 5))
def test_re_identification_pairs_are_those_of_the_description(identities: list[str], seed: int) -> None:
    same, different = reidentification_pairs(identities, random.Random(seed))
    expected = reference_pairs(identities, random.Random(seed))
    assert (list(zip(same.first, same.second, strict=True)), list(zip(different.first, different.second, strict=True))) == expected
    assert all(identities[a] == identities[b] and a != b for a, b in zip(same.first, same.second, strict=True))
    assert all(identities[a] != identities[b] for a, b in zip(different.first, different.second, strict=True))


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("123")), max_size=20))
def test_pairs_of_one_identity_are_within_its_groups(images: list[tuple[str, str]]) -> None:
    identities, groups = [name for name, _ in images], [name + group for name, group in images]
    same, different = reidentification_pairs(identities, random.Random(1), groups)
    assert same.first.tolist() == different.first.tolist()
    assert all(groups[a] == groups[b] and a != b for a, b in zip(same.first, same.second, strict=True))
    counts = Counter(groups)
    paired = [number for number, group in enumerate(groups) if counts[group] > 1 and len(set(identities)) > 1]
    # Each image of a group of several once as first and once as second.
    assert sorted(same.first.tolist()) == sorted(same.second.tolist()) == paired
    everyone = ["" for _ in images]
    alone = reidentification_pairs(identities, random.Random(1))
    together = reidentification_pairs(identities, random.Random(1), everyone)
    assert [part.tolist() for pairs in alone for part in (pairs.first, pairs.second)] == [
        part.tolist() for pairs in together for part in (pairs.first, pairs.second)
    ]


@given(NAMES, st.integers(1, 60), st.booleans())
@settings(max_examples=60)
def test_pairs_of_different_images_are_all_of_them_or_a_sample(identities: list[str], most: int, large: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr("lcmem_onnx.evaluation.protocols.ENUMERATE_UP_TO", 0)
        pairs = different_pairs(identities, most)
        again = different_pairs(identities, most)
    drawn = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    count = len(identities)
    every = {(a, b) for a in range(count) for b in range(a + 1, count) if identities[a] != identities[b]}
    assert len(drawn) == len(pairs)
    assert drawn <= every
    # Drawing one by one is for many images, of which no identity has nearly all.
    assert len(pairs) == min(most, len(every)) or (large and 4 * most < count * (count - 1) // 2)
    assert (pairs.first.tolist(), pairs.second.tolist()) == (again.first.tolist(), again.second.tolist())
    assert (np.diff(pairs.first) >= 0).all()


def test_a_sample_of_very_many_pairs_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcmem_onnx.evaluation.protocols.ENUMERATE_UP_TO", 0)
    identities = [str(number // 2) for number in range(400)]
    pairs = different_pairs(identities, 5000)
    assert len(pairs) == len(set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))) == 5000
    # Every image takes part about as often as any other: 25 times.
    assert np.bincount(np.concatenate([pairs.first, pairs.second]), minlength=400).min() >= 8


def test_the_grid_is_the_papers_and_six_more() -> None:
    assert sum(cell.paper for cell in CELLS) == 24
    assert [cell.name for cell in CELLS if not cell.paper] == [
        "mirror", "crop 0.7", "half size 0.5", "caption", "border 0.08", "invert",
    ]  # fmt: skip
    assert len({cell.name for cell in CELLS}) == 30


def test_an_alteration_depends_on_seed_and_name_and_cell_only() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    everything = altered(image, "a.png", 1)
    for number in (5, 9, 27):
        assert (altered(image, "a.png", 1, CELLS[number : number + 1])[0] == everything[number]).all()
    noise = [cell for cell in CELLS if cell.transform == "noise"]
    assert (altered(image, "b.png", 1, noise) != altered(image, "a.png", 1, noise)).any()
    assert (altered(image, "a.png", 2, noise) != altered(image, "a.png", 1, noise)).any()
    assert cell_rng(1, "a", noise[0]).random() != cell_rng(1, "a", noise[1]).random()


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_runtime(evaluation: Evaluation, listing: Path, tiny_bundle: Path) -> None:
    """One negative, one pair of an identity and one altered copy, computed by hand from the files."""
    screener = Screener(tiny_bundle)
    folder = listing.parent
    vectors = [screener.embed(folder / f"others-TEST-{i}-{v}.png")[0] for i in range(IDENTITIES) for v in range(2)]
    head = screener.bundle.head

    def score(first: int, second: int) -> float:
        logit = float(np.abs(vectors[first] - vectors[second]) @ head.weight) + head.bias
        return float(sigmoid(np.asarray([logit]))[0])

    scored = evaluation.scoring.scores[screener.bundle.name]["others"]
    negatives = sorted(score(a, b) for a in range(10) for b in range(a + 1, 10) if a // 2 != b // 2)
    assert scored.negatives == pytest.approx(negatives, rel=1e-3, abs=1e-6)
    assert scored.same == pytest.approx([score(a, a ^ 1) for a in range(10)], rel=1e-3)
    resized = np.asarray(Image.open(folder / "others-TEST-3-1.png").resize((64, 64), Image.Resampling.BILINEAR))
    copy = altered(resized, "others-TEST-3-1.png", 42, CELLS[7:8])[0]
    assert scored.copies[7, 7] == pytest.approx(head.score(vectors[7], screener.embed(copy)[0]), rel=1e-3)
    assert scored.val_negatives is None


def test_figures_carry_their_counts(evaluation: Evaluation) -> None:
    ours = [part for part in evaluation.copy_detection if part.scorer == evaluation.scorers[0].name]
    assert [(part.ds_name, part.images, part.negatives) for part in ours] == [
        (None, 20, 80),
        ("grids", 10, 40),
        ("others", 10, 40),
    ]
    mse = [part for part in evaluation.copy_detection if part.scorer == "mse"]
    assert [part.negatives for part in mse] == [40, 20, 20]
    reid = [part for part in evaluation.reidentification if part.scorer == "phash"]
    assert [(part.ds_name, part.pairs.same, part.pairs.different, part.identities) for part in reid] == [
        (None, 20, 20, 10), ("grids", 10, 10, 5), ("others", 10, 10, 5),
    ]  # fmt: skip


def test_thresholds_say_where_they_come_from(evaluation: Evaluation) -> None:
    ours = {part.ds_name: part for part in evaluation.copy_detection if part.scorer == evaluation.scorers[0].name}
    assert [at.limit.source for at in ours["grids"].at] == ["VAL", "TEST", "bundle", "VAL"]
    # "others" has no VAL, so neither has the whole.
    assert [at.limit.source for at in ours["others"].at] == [at.limit.source for at in ours[None].at] == ["TEST", "TEST", "bundle"]
    fitted, unreachable, shipped = ours[None].at
    assert fitted.limit.false_positive_rate == pytest.approx(0.1, abs=0.0126)
    assert (fitted.limit.fitted_on, fitted.limit.negatives) == (80, 80)
    assert (unreachable.limit.threshold, unreachable.cells, unreachable.paper) == (None, None, None)
    assert "needs 100000 pairs" in str(unreachable.limit.problem)
    assert shipped.limit.threshold == evaluation.scorers[0].threshold == 0.5
    assert shipped.cells
    assert shipped.paper
    assert shipped.paper.mean == pytest.approx(np.mean([shipped.cells[cell.name] for cell in CELLS if cell.paper]))
    assert shipped.paper.worst == min(shipped.cells[cell.name] for cell in CELLS if cell.paper)
    assert shipped.paper.mean_interval.low <= shipped.paper.mean <= shipped.paper.mean_interval.high
    # mse sees as many pairs of VAL as it needs, but the choice does not go by that.
    mse = next(part for part in evaluation.copy_detection if part.scorer == "mse" and part.ds_name == "grids")
    assert [at.limit.source for at in mse.at] == ["VAL", "TEST", "VAL"]


def test_what_cannot_be_read_is_listed(evaluation: Evaluation) -> None:
    (lost,) = evaluation.unreadable
    assert (lost.name, lost.ds_name, lost.split, lost.reason) == ("broken.png", "grids", "TEST", "not-a-picture")
    assert any("1 listed images could not be read" in note for note in evaluation.notes)
    assert any("100000" in note and "mse" in note for note in evaluation.notes)


def test_the_same_seed_gives_the_same_figures_and_another_does_not(listing: Path) -> None:
    def figures(seed: int, scorers: list[PHash | Mse]) -> list[object]:
        document = evaluate(listing, scorers, size=48, seed=seed, pair_negatives=15, workers=3).as_json()
        return [part for kind in ("reidentification", "copy_detection") for part in document[kind] if part["scorer"] == "mse"]

    # Whoever is measured beside it changes nothing.
    assert figures(3, [Mse()]) == figures(3, [PHash(), Mse()])
    assert figures(3, [Mse()]) != figures(4, [Mse()])


def test_thresholds_can_be_fitted_on_test_alone(listing: Path) -> None:
    measured = evaluate(listing, [PHash()], size=48, protocol="copy", false_positives=(0.1,), fit_on="test")
    assert {at.limit.source for part in measured.copy_detection for at in part.at} == {"TEST"}
    assert [seen.val_images for seen in measured.data_sets] == [0, 0]


def test_some_images_can_be_altered_and_all_others_still_count(listing: Path, tmp_path: Path) -> None:
    whole = evaluate(listing, [PHash()], size=48, protocol="copy", false_positives=(0.1,))
    some = evaluate(listing, [PHash()], size=48, protocol="copy", false_positives=(0.1,), most_altered=3)
    assert [part.images for part in some.copy_detection] == [6, 3, 3]
    assert [part.negatives for part in some.copy_detection] == [part.negatives for part in whole.copy_detection]
    for one, other in zip(some.copy_detection, whole.copy_detection, strict=True):
        assert [at.limit for at in one.at[:1]] == [at.limit for at in other.at[:1]]
    # The same images whatever the order of the list, each with the copies that it has among all.
    for ds_name, its in some.scoring.scores["phash"].items():
        every = whole.scoring.scores["phash"][ds_name].copies.tolist()
        assert all(row in every for row in its.copies.tolist())
    lines = listing.read_text().splitlines()
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    again = evaluate(turned, [PHash()], base=listing.parent, size=48, protocol="copy", false_positives=(0.1,), most_altered=3)
    recall = {part.ds_name: part.at[0].cells for part in some.copy_detection}
    assert {part.ds_name: part.at[0].cells for part in again.copy_detection} == recall


def test_more_images_than_can_be_paired_are_sampled(listing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MOST_NEGATIVES", 7)
    measured = evaluate(listing, [PHash()], size=48, protocol="copy")
    assert [part.negatives for part in measured.copy_detection] == [14, 7, 7]


def test_every_recall_and_rate_carries_its_interval(evaluation: Evaluation) -> None:
    for part in evaluation.copy_detection:
        for at in part.at:
            if at.cells is None:
                assert at.cell_intervals is None
                continue
            assert at.cell_intervals is not None
            assert all(at.cell_intervals[name].low <= recall <= at.cell_intervals[name].high for name, recall in at.cells.items())
            spread, rate = at.limit.false_positive_interval, at.limit.false_positive_rate
            assert rate is not None
            assert (spread is None) == (rate == 0)
            assert spread is None or spread.low <= rate <= spread.high
    for reid in evaluation.reidentification:
        for at in reid.at:
            assert (at.recall is None) == (at.recall_interval is None)
            assert at.recall is None or at.recall_interval is None or at.recall_interval.low <= at.recall <= at.recall_interval.high


# -- the realistic grid -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything(listing: Path) -> Evaluation:
    return evaluate(listing, [PHash()], size=64, false_positives=(0.1,), grid="all")


def test_realistic_copies_are_made_of_the_file_and_scored_as_the_others(listing: Path, tiny_bundle: Path) -> None:
    ours = BundleScorer(Screener(tiny_bundle))
    found = evaluate(listing, [ours], size=64, protocol="copy", false_positives=(0.1,), grid="realistic")
    scored = found.scoring.scores[ours.name]["others"]
    image = np.asarray(Image.open(listing.parent / "others-TEST-3-1.png").convert("RGB"))
    cells = [cell for cell in REALISTIC_CELLS if cell.transform != "collage"]
    copies = realistically_altered(image, "others-TEST-3-1.png", 42, 64, cells)
    original = ours.embed(np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR))[None])[0]
    expected = ours.compare(original, ours.embed(copies))
    columns = [column for column, cell in enumerate(REALISTIC_CELLS) if cell in cells]
    assert scored.copies[7, columns] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    (whole, *_) = found.copy_detection
    assert whole.auc_of == "realistic"
    for at in whole.at:
        assert (at.paper, at.beyond) == (None, None)
        assert at.realistic
        assert at.held_out
        held_out = [at.cells[cell.name] for cell in REALISTIC_CELLS if cell.held_out] if at.cells else []
        assert at.held_out.mean == pytest.approx(np.mean(held_out))
        assert at.held_out.mean_interval.low <= at.held_out.mean <= at.held_out.mean_interval.high
    # Nothing of VAL is altered, so there is no best F1 of its copies.
    assert {at.limit.name for part in found.copy_detection for at in part.at} == {"10 % false positives", "the bundle's threshold"}


def test_all_cells_are_the_papers_and_the_realistic_ones(everything: Evaluation, listing: Path) -> None:
    paper = evaluate(listing, [PHash()], size=64, false_positives=(0.1,))
    ours, both = paper.copy_detection[0], everything.copy_detection[0]
    assert (both.auc, both.auc_of) == (ours.auc, "paper")
    for one, other in zip(ours.at, both.at, strict=True):
        assert (other.paper, other.beyond) == (one.paper, one.beyond)
        assert one.realistic is None
        assert other.cells is not None
        assert one.cells is not None
        assert {name: other.cells[name] for name in one.cells} == one.cells
        assert list(other.cells) == [cell.name for cell in GRIDS["all"]]


def test_documents_tables_and_plots_name_what_is_held_out(
    everything: Evaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lcmem_onnx.evaluation.plots import write_plots

    document = json.loads(json.dumps(everything.as_json(), allow_nan=False))
    assert document["grid"] == "all"
    told = {cell["name"]: (cell["grid"], cell["paper"], cell["held_out"]) for cell in document["cells"]}
    assert told["blur 0.1"] == ("paper", True, False)
    assert told["mirror"] == ("beyond", False, False)
    assert told["clahe 2"] == ("realistic", False, False)
    assert told["heat map 0.4"] == told["page figure"] == ("realistic", False, True)
    assert document["copy_detection"][0]["at"][0]["held_out"]["worst_cell"] in told
    tables.print_evaluation(everything)
    printed = capsys.readouterr().out
    assert "page figure (held out)" in printed
    assert "clahe 2 (held out)" not in printed
    assert "held out: mean" in printed
    assert "grids, realistic: mean" in printed
    written = {path.name for path in write_plots(everything, tmp_path)}
    assert {"copy-detection-recall-0.1.png", "copy-detection-realistic-0.1.png"} <= written


def test_a_collages_partner_is_another_identity_whatever_the_order(listing: Path) -> None:
    folder = listing.parent
    rows = [
        Listed("TEST", str(i), f"grids-TEST-{i}-{v}.png", folder / f"grids-TEST-{i}-{v}.png", "d") for i in range(5) for v in (0, 1)
    ]
    frames = {row.name: _read(row, 32)[0] for row in rows}
    found = {row.name: _Partners(rows, 3).read(row, 32) for row in rows}
    for row in rows:
        own = {name for name, frame in frames.items() if np.array_equal(frame, found[row.name])}
        assert own
        assert not own & {other.name for other in rows if other.identity == row.identity}
        assert np.array_equal(found[row.name], _Partners(rows[::-1], 3).read(row, 32))
    # What cannot be read is passed over, and at last it is said that nothing is left.
    broken = [Listed("TEST", f"x{number}", "broken.png", folder / "broken.png", "d") for number in range(3)]
    assert _Partners([rows[0], rows[2], *broken], 3).read(rows[0], 32).shape == frames[rows[2].name].shape
    with pytest.raises(FileListError, match="TEST of 'd' has 1 identities that can be read"):
        _Partners([rows[0], rows[1], *broken], 3).read(rows[0], 32)


# -- data sets whose pairs do not count -------------------------------------------------------------------------------


def test_pairs_of_a_named_data_set_do_not_count(listing: Path) -> None:
    """Its own figures are then taken at the others' threshold, and it moves none."""
    everyone = evaluate(listing, [PHash()], size=48, false_positives=(0.1,))
    without = evaluate(listing, [PHash()], size=48, false_positives=(0.1,), no_negatives=["others"])
    counted = {part.ds_name: part for part in without.copy_detection}
    assert [counted[name].negatives for name in (None, "grids", "others")] == [40, 40, 40]
    own = {part.ds_name: part for part in everyone.copy_detection}["grids"]
    for name in (None, "grids", "others"):
        # "grids" has VAL, and nothing else is needed any more.
        assert [at.limit for at in counted[name].at] == [at.limit for at in own.at]
    assert counted["others"].at[0].cells != counted["grids"].at[0].cells
    assert without.as_json()["no_negatives"] == ["others"]
    assert any("'others' do not count" in note for note in without.notes)
    # Re-identification pairs are the protocol's own, as before.
    assert [part.pairs for part in without.reidentification] == [part.pairs for part in everyone.reidentification]


@pytest.mark.parametrize(
    ("named", "message"),
    [(["other"], "no data set of TEST is called 'other'; .* 'grids', 'others'"), (["grids", "others"], "left")],
)
def test_data_sets_that_are_unknown_or_all_of_them_are_refused(listing: Path, named: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(listing, [PHash()], no_negatives=named)


def test_groups_of_a_list_limit_the_pairs_of_an_identity(listing: Path) -> None:
    folder = listing.parent
    rows = [
        Listed("TEST", str(i), f"grids-TEST-{i}-{v}.png", folder / f"grids-TEST-{i}-{v}.png", "d", f"{i}{v if i else ''}")
        for i in range(4)
        for v in (0, 1)
    ]
    write_file_list(folder / "grouped.csv", rows)
    found = evaluate(folder / "grouped.csv", [PHash()], size=48, protocol="reid")
    assert [(part.pairs.same, part.identities) for part in found.reidentification] == [(2, 1)] * 2


# -- bad input --------------------------------------------------------------------------------------------------------


def relisted(listing: Path, *rows: tuple[str, str, str]) -> Path:
    path = listing.parent / "other.csv"
    write_file_list(path, [Listed(split, identity, name, listing.parent / name) for split, identity, name in rows])
    return path


@pytest.mark.parametrize(
    ("rows", "protocol", "message"),
    [
        ([("VAL", "a", "grids-VAL-0-0.png")], "all", "no TEST images"),
        ([("TEST", "a", "grids-TEST-0-0.png"), ("TEST", "a", "grids-TEST-0-1.png")], "all", "1 identities that can be read"),
        ([("TEST", "a", "grids-TEST-0-0.png"), ("TEST", "b", "broken.png")], "all", "1 listed images could not be read"),
        ([("TEST", "a", "grids-TEST-0-0.png"), ("TEST", "b", "grids-TEST-1-0.png")], "reid", "nothing to re-identify"),
    ],
)
def test_a_list_that_holds_too_little_is_refused(
    listing: Path, rows: list[tuple[str, str, str]], protocol: str, message: str
) -> None:
    with pytest.raises(FileListError, match=message):
        evaluate(relisted(listing, *rows), [PHash()], size=48, protocol=protocol)


def test_single_images_are_enough_for_copy_detection(listing: Path) -> None:
    rows = [("TEST", str(number), f"grids-TEST-{number}-0.png") for number in range(3)]
    measured = evaluate(relisted(listing, *rows), [PHash()], size=48)
    assert not measured.reidentification
    assert len(measured.copy_detection) == 2
    assert any("nothing to re-identify" in note for note in measured.notes)


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "both"},
        {"grid": "real"},
        {"size": 8},
        {"pair_negatives": 0},
        {"limit": 1},
        {"false_positives": (1.0,)},
        {"fit_on": "train"},
        {"most_altered": 0},
    ],
)
def test_settings_out_of_range_are_refused(listing: Path, settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        evaluate(listing, [PHash()], **settings)  # type: ignore[arg-type]


def test_two_scorers_of_one_name_are_refused(listing: Path) -> None:
    with pytest.raises(UsageError, match="phash, phash"):
        evaluate(listing, [PHash(), PHash()])


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_one_document_and_draws_curves(listing: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    curves = tmp_path / "new" / "curves"
    done = run(
        "--list", listing, "--bundle", tiny_bundle, "--baseline", "pdq", "--baseline", tiny_bundle, "--json", "--plots", curves,
        "--plot-format", "svg", "--false-positives", "0.05", "--limit", "8", "-q",
    )  # fmt: skip
    assert (done.exit_code, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert [facts["name"] for facts in document["scorers"]] == ["tiny", "pdq", "tiny (2)"]
    ours, again = (part for part in document["copy_detection"] if part["ds_name"] is None and part["scorer"] != "pdq")
    assert {**ours, "scorer": ""} == {**again, "scorer": ""}
    assert ours["pictures"] == 16
    assert len(ours["at"][0]["cells"]) == 30
    assert {path.name for path in curves.iterdir()} == {
        "reidentification-roc.svg", "reidentification-scores.svg", "copy-detection-roc.svg", "copy-detection-scores.svg",
        "copy-detection-recall-0.05.svg", "copy-detection-recall-bundle-threshold.svg",
    }  # fmt: skip
    assert all(path.read_text(encoding="utf-8").rstrip().endswith("</svg>") for path in curves.iterdir())


def test_the_command_measures_the_realistic_grid(listing: Path, tiny_bundle: Path) -> None:
    given = ("--list", listing, "--bundle", tiny_bundle, "--grid", "realistic", "--protocol", "copy", "--limit", "4", "-q")
    done = run(*given, "--json", "--no-negatives", "others", "--false-positives", "0.5")
    assert (done.exit_code, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert len(document["cells"]) == len(document["copy_detection"][0]["at"][0]["cells"]) == len(REALISTIC_CELLS)
    assert document["no_negatives"] == ["others"]
    done = run(*given, "--no-negatives", "grids,nothing")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "'nothing'" in done.stderr


def test_the_tables_fit_in_a_hundred_columns(listing: Path, tiny_bundle: Path) -> None:
    baselines = [word for name in ("mse", "ncc", "ssim", "phash", "pdq", "random") for word in ("--baseline", name)]
    done = run("--list", listing, "--bundle", tiny_bundle, "--false-positives", "0.05", "--negatives", "10", *baselines)
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 100
    for words in ("Re-identification: 20 pairs", "Copy detection at a wanted 5 % false positives (fitted on TEST)",
                  "rotation 30", "the paper's 24: mean",
                  "not read: broken.png", "95 % from", "fitted on TEST's own pairs"):  # fmt: skip
        assert words in " ".join(done.stdout.split())


def test_png_is_the_default_and_copy_detection_alone_draws_its_own(listing: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    done = run("--list", listing, "--bundle", tiny_bundle, "--protocol", "copy", "--plots", tmp_path, "--json")
    assert done.exit_code == 0
    assert not json.loads(done.stdout)["reidentification"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "copy-detection-roc.png", "copy-detection-scores.png", "copy-detection-recall-bundle-threshold.png",
    }  # fmt: skip
    assert "3 plots" in done.stderr


def test_bad_options_are_one_line(listing: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    given = ("--list", listing, "--bundle", tiny_bundle, "-q")
    (tmp_path / "text.onnx").write_text("no model")
    for arguments, message in (
        ((*given, "--baseline", "clip"), "'clip' is no baseline"),
        ((*given, "--baseline", tmp_path / "text.onnx"), "cannot open"),
        (("--list", tmp_path / "none.csv"), "cannot be read"),
        ((*given, "--base", tmp_path), "not there"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert message in done.stderr
        assert done.stdout == ""


def test_plots_that_cannot_be_written_are_an_error(listing: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = run("--list", listing, "--bundle", tiny_bundle, "--protocol", "reid", "--plots", tmp_path / "taken", "-q")
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr
    # It was found out before anything was measured.
    assert not done.stdout


def test_plots_that_fail_in_the_end_take_no_figures_with_them(
    listing: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lcmem_onnx.evaluation.plots._written", full)
    done = run("--list", listing, "--bundle", tiny_bundle, "--protocol", "reid", "--plots", tmp_path, "-q", "--json")
    assert done.exit_code == 2
    assert "No space left on device" in done.stderr
    assert json.loads(done.stdout)["reidentification"]


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (Terminated(15), 143)])
def test_an_interrupted_measurement_reports_nothing_and_says_so(
    listing: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise raised

    monkeypatch.setattr("lcmem_onnx.evaluation.evaluate.score_all", interrupted)
    done = run("--list", listing, "--bundle", tiny_bundle, "-q")
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.strip().endswith("ted: nothing was reported")


def test_a_limit_that_leaves_too_little_is_named(listing: Path) -> None:
    with pytest.raises(FileListError, match="TEST of 'grids' has 1 identities.*--limit 2 took 4 of 21 TEST images: raise it"):
        evaluate(listing, [PHash()], size=48, limit=2)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_split_rather_than_fold_numbers(
    evaluation: Evaluation, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"scorer {number} of a long name" for number in range(9)]
    (ours,) = (part for part in evaluation.copy_detection if part.ds_name is None and part.scorer == "phash")
    many = replace(evaluation, copy_detection=tuple(replace(ours, scorer=name) for name in names), reidentification=())
    monkeypatch.setattr(tables, "PIPE_WIDTH", width)
    monkeypatch.setattr(tables, "_data_sets", lambda evaluation: [])
    tables.print_evaluation(many)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    recalls = [line.split()[2:] for line in lines if line.startswith(" rotation 30 ")]
    (expected,) = {f"{at.cells['rotation 30']:.3f}" for at in ours.at if at.limit.wanted == 0.1 and at.cells}
    shown = recalls[: len(recalls) // len({at.limit.name for at in ours.at if at.cells})]
    assert len(shown) > 1 or width == 120
    assert [value for row in shown for value in row] == [expected] * 9


def test_tables_say_which_threshold_a_data_set_has(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_evaluation(evaluation)
    printed = capsys.readouterr().out
    reidentified, copied = printed.split("Copy detection at", 2)[:2]
    assert "best F1 (chosen on these pairs)" in reidentified
    lines = [" ".join(line.split()[:6]) for line in reidentified.splitlines()]
    assert [line for line in lines if line.startswith("recall at wanted 10")] == [
        f"recall at wanted 10 % ({source})" for source in ("TEST", "VAL", "TEST")
    ]
    sources = [line.split() for line in copied.splitlines() if line.split()[:1] == ["from"]]
    assert sources == [["from", *[source] * 3] for source in ("VAL", "TEST", "TEST")]
    assert sum(line.strip().startswith("false positives") for line in copied.splitlines()) == 3


def test_plots_say_what_was_measured(evaluation: Evaluation) -> None:
    from lcmem_onnx.evaluation import plots

    figure = plots._recalls(evaluation)["copy-detection-recall-0.1"]
    assert "a wanted 10 % false positives (fitted on TEST)" in figure.get_suptitle()
    (ours, *_) = (part for part in evaluation.copy_detection if part.ds_name is None)
    rate = ours.at[0].limit.false_positive_rate
    assert rate is not None
    assert figure.legends[0].get_texts()[0].get_text() == f"{ours.scorer} ({100 * rate:.3g} %)"
    lines = figure.axes[0].lines
    assert lines[0].get_zorder() > max(line.get_zorder() for line in lines[1:])
    assert figure.axes[2].get_xlabel() == "degrees"
    scores = {"tiny": (np.array([0.8, 0.9]), np.array([0.1, 0.2]))}
    figure = plots._histograms(scores, "Copies", ("altered", "different"), {"tiny": 0.5})
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"altered", "different", "the bundle's threshold"}
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_yscale(), axes.lines[0].get_xdata()[0]) == ("score", "log", 0.5)


def test_val_is_altered_in_the_papers_cells_alone(evaluation: Evaluation) -> None:
    scored = evaluation.scoring.scores["phash"]["grids"]
    assert scored.copies.shape == (10, 30)
    assert scored.val_copies is not None
    assert scored.val_copies.shape == (10, 24)
    assert scored.identities.tolist() == [number // 2 for number in range(10)]


def test_few_identities_are_noted(evaluation: Evaluation) -> None:
    assert any("mean little: all together has 10, 'grids' has 5, 'others' has 5" in note for note in evaluation.notes)
    assert any("thresholds are held" in note for note in evaluation.notes)


@pytest.mark.parametrize(
    ("declared", "reduced", "message"),
    [
        (None, [3], "gives 'y' \\['n', 3, 'h'\\], which is no vector"),
        (None, [1, 2, 3], "gives 'y' \\['n', 1, 1, 1\\]"),
        # Sides that are not declared are seen when the first images come out.
        (None, [], "gives 'y' \\[2, 3, 32, 32\\]"),
        (None, [2, 3], None),
        (["n", 3, 1, 1], [2, 3], None),
    ],
)
def test_an_onnx_baseline_gives_a_vector_an_image(
    declared: list[Any] | None, reduced: list[int], message: str | None, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    if reduced:
        nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=int(len(reduced) > 1))]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", kind, declared)],
        [helper.make_tensor("axes", onnx.TensorProto.INT64, [len(reduced)], reduced)] if reduced else [],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    if message is None:
        assert OnnxScorer(path, free_size=32).embed(images).shape == (2, 3)
    else:
        with pytest.raises(UsageError, match=message):
            OnnxScorer(path, free_size=32).embed(images)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evaluate_command, "NEEDED", ("sklearn", "no_such_package"))
    done = run("--list", tmp_path / "list.csv")
    assert done.exit_code == 2
    assert "no_such_package" in done.stderr
    assert "pip install 'lcmem-onnx[evaluate]'" in done.stderr


# -- documentation ----------------------------------------------------------------------------------------------------


def test_the_documented_script_makes_lists(tmp_path: Path) -> None:
    """On made-up metadata in the form that each data set has."""
    text = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.S)
    made: dict[str, Any] = {}
    exec(compile(program, "evaluation.md", "exec"), made)
    for name, content in {
        "mimic-cxr-2.0.0-metadata.csv.gz": "dicom_id,ViewPosition\nd1,PA\nd2,LATERAL\n",
        "mimic-cxr-2.0.0-split.csv.gz": "dicom_id,study_id,subject_id,split\nd1,50,10000032,validate\nd2,51,10000032,validate\n",
        "labels.csv": "dicom_id,Edema\nd2,1\n",
        "identity_CelebA.txt": "000001.jpg 7\n000002.jpg 8\n",
        "list_eval_partition.txt": "000001.jpg 0\n000002.jpg 2\n",
        "isic.csv": "isic_id,patient_id,lesion_id\nISIC_1,IP_1,IL_1\nISIC_2,IP_1,\n",
        "ImageNet_LT_train.txt": "train/n01440764/a.JPEG 0\n",
        "ImageNet_LT_val.txt": "",
        "ImageNet_LT_test.txt": "val/ILSVRC2012_val_00000001.JPEG 65\n",
    }.items():
        (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    for name in ("valid_1_a_1/1.png", "valid_1_a_2/1.png", "train_2_a_1/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    def rows(name: str, *arguments: Path) -> list[tuple[str, str, str]]:
        return [(row.split, row.identity, row.name) for row in made[name](tmp_path, *arguments)]

    image = "files/p10/p10000032/s{}/{}.jpg"
    assert rows("mimic_cxr") == [("VAL", "10000032", image.format(50, "d1"))]
    split = made["split_of"]
    # The patients are those of mimic_cxr, and so is the split.
    assert rows("cxr_lt", tmp_path / "labels.csv") == [("VAL", "10000032", image.format(51, "d2"))]
    assert rows("celeba") == [("TRAIN", "7", "img_align_celeba/000001.jpg"), ("TEST", "8", "img_align_celeba/000002.jpg")]
    assert rows("isic", tmp_path / "isic.csv") == [(split("IP_1"), "IL_1", "ISIC_1.jpg")]
    assert [row[:2] for row in rows("ct_rate")][1:] == [("TEST", "valid_1_a")] * 2
    assert [row[0] for row in rows("imagenet_lt")] == ["TRAIN", "TEST"]
    parts = Counter(split(str(number)) for number in range(1000))
    assert parts == pytest.approx({"TRAIN": 800, "VAL": 100, "TEST": 100}, abs=40)
