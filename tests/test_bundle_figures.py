"""`bundle info`: the threshold and the figures first, in a terminal of 100 columns, and nothing lost in --json."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.model.bundle import MANIFEST, seal

from .test_terminal import on_terminal, seen

NIH = "nih_chestxray14 (NIH ChestX-ray14, chest X-rays)"
HANNOVER = "hannover_cxr (COVID-19 Image Repository, Hannover Medical School, chest X-rays with follow-ups)"
COPIES = {
    "pictures": 300,
    "different pairs": 105726,
    "mean recall": 0.9494,
    "worst": 0.5714,
    "worst cell": "brightness 2",
    "beyond the paper": "0.9345, worst 0.7500 (crop 0.7)",
    "realistic, trained": "0.6385, worst 0.0000 (crop to 0.25)",
    "realistic, held out": "0.0536, worst 0.0125 (heat map 0.6)",
}
IDENTITY = {
    "identities": 170,
    "pairs": 617,
    "AUC": 0.8847,
    "95 % interval": "0.8551 to 0.9144",
    "recall at 1 % false positives": 0.387,
    "recall at 0.1 % false positives": None,
    "recall at the bundle's threshold": 0.204,
}
FIGURES = {
    "copies by cell, at 0.1 % false positives": {"blur 0.1": {"all": 1.0, NIH: 0.123}, "heat map 0.6": {"all": 0.5, NIH: 0.456}},
    "copies, at 0.1 % false positives": {"all": COPIES, NIH: COPIES, HANNOVER: COPIES},
    "copies, at the bundle's threshold": {
        "all": {"false positives": 0.001059, **COPIES},
        NIH: {"false positives": 0.0, **COPIES},
        HANNOVER: {"false positives": 7.1e-05, **COPIES},
    },
    "beside other methods; paper / realistic": {"all": {"lcmem-small": "0.949 / 0.639", "sscd": "0.810 / 0.487"}},
    "re-identification": {"all": IDENTITY, NIH: {**IDENTITY, "AUC": 0.9}, HANNOVER: {**IDENTITY, "identities": 37}},
}


def lcmem(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done


def carded(tiny_bundle: Path, folder: Path, **card: Any) -> Path:
    """The bundle with further entries in its card."""
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["card"] |= card
    (folder / MANIFEST).write_text(json.dumps(seal(manifest)), encoding="utf-8")
    return folder


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return carded(tiny_bundle, tmp_path / "bundle", figures=FIGURES, training="for an hour")


def at(text: str, *parts: str) -> list[int]:
    places = [text.find(part) for part in parts]
    assert -1 not in places, list(zip(parts, places, strict=True))
    return places


def test_what_matters_most_comes_first(bundle: Path) -> None:
    said = lcmem("bundle", "info", "--bundle", bundle).stdout
    order = at(
        said,
        "name ",
        "threshold ",
        "re-identification\n",
        "copies, at the bundle's threshold (mean/worst alteration)\n",
        "copies, at 0.1 % false positives (mean/worst alteration)\n",
        "beside other methods",
        "proof of fp32",
        "for an hour",
    )
    assert order == sorted(order)


def test_rows_hold_the_cards_figures_and_names_their_sources(bundle: Path) -> None:
    said = " ".join(lcmem("bundle", "info", "--bundle", bundle).stdout.split())
    assert "all 170 617 0.885 (0.855-0.914) 0.387 - 0.204" in said
    assert "nih_chestxray14 170 617 0.900 (0.855-0.914)" in said
    assert "hannover_cxr 0.0071 % 300 0.949/0.571 0.934/0.750 0.638/0.000 0.054/0.013" in said
    assert "all 0.949 / 0.639 0.810 / 0.487" in said
    assert said.count("hannover_cxr: COVID-19 Image Repository, Hannover Medical School, chest X-rays with follow-ups") == 1
    assert "nih_chestxray14: NIH ChestX-ray14, chest X-rays" in said


def test_single_alterations_are_shown_when_asked_for_and_never_lost(bundle: Path) -> None:
    short = lcmem("bundle", "info", "--bundle", bundle).stdout
    assert "0.456" not in short
    assert "hidden tables of single alterations: 1 (--cells shows them, --json prints everything)" in short
    long = lcmem("bundle", "info", "--bundle", bundle, "--cells").stdout
    assert "heat map 0.6" in long
    assert "0.456" in long
    assert "--cells" not in long
    assert json.loads(lcmem("bundle", "info", "--bundle", bundle, "--json").stdout)["card"]["figures"] == FIGURES


def test_it_fits_a_terminal_of_100_columns(bundle: Path) -> None:
    code, sent = on_terminal(100, "bundle", "info", "--bundle", bundle)
    lines = seen(sent)
    assert code == 0
    assert max(map(len, lines)) <= 100
    assert not [line for line in lines if "…" in line]
    assert any(re.match(r" hannover_cxr +37 +617 +0.885 \(0.855-0.914\) +0.387 +- +0.204 *$", line) for line in lines)


@pytest.mark.parametrize(
    "figures",
    [
        {"AUC": 0.98, "note": "measured twice"},
        {"re-identification": {"all": {"AUC": None, "95 % interval": "unknown"}}},
        {"copies, at 0.1 % false positives": {"all": {"mean recall": "good", "worst": None, "worst cell": "x"}}},
        {"copies": {"all": {"worst": 0.25, "95 % interval": "0.98 to 1", "false positives": "none"}}},
        {"table": {"a": {}, "b": {"c": True}}},
        {},
        "0.98",
    ],
)
def test_cards_of_other_makers_are_shown_as_they_are(figures: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = carded(tiny_bundle, tmp_path / "bundle", figures=copy.deepcopy(figures))
    done = lcmem("bundle", "info", "--bundle", folder)
    assert done.exit_code == 0
    said = done.stdout
    for shown in ("0.98", "measured twice", "unknown", "good", "0.25", "none"):
        assert (shown in said) or shown not in json.dumps(figures), shown


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        (
            FIGURES,
            "finds 95 % of altered copies, 64 % of copies altered as users do, 5.4 % of those altered in ways that it never "
            "learned, 20 % of further images of a patient at its own threshold",
        ),
        ({"copies, at the bundle's threshold": {"all": {"mean recall": 0.5}}}, "finds 50 % of altered copies at its own threshold"),
        ({"copies, at the bundle's threshold": {"all": {"mean recall": "?", "realistic, trained": "unknown"}}}, None),
        ({"copies, at the bundle's threshold": 1, "re-identification": {"all": []}}, None),
    ],
)
def test_an_audit_says_what_the_model_finds_by_its_card(
    figures: Any, says: str | None, tiny_bundle: Path, images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("jinja2")
    folder = carded(tiny_bundle, tmp_path / "bundle", figures=figures)
    out = tmp_path / "report"
    released, reference = images / "0.png", images / "1.png"
    done = lcmem(
        "audit", "--released", released, "--reference", reference, "--out", out, "--bundle", folder, "--threshold", "0.5", "-q"
    )
    assert done.exit_code in (0, 1), done.output
    said = " ".join(done.stdout.split())
    assert ("own tests say" in said) == (says is not None)
    assert says is None or says in said


def test_two_rows_of_one_short_name_are_both_shown(tiny_bundle: Path, tmp_path: Path) -> None:
    rows = {"chest (children)": {"AUC": 0.111}, "chest (adults)": {"AUC": 0.222}, "chest": {"AUC": 0.333}}
    folder = carded(tiny_bundle, tmp_path / "bundle", figures={"re-identification": rows})
    said = " ".join(lcmem("bundle", "info", "--bundle", folder).stdout.split())
    assert "chest 0.111 chest (adults) 0.222 chest 0.333" in said
    assert "chest: children" in said


def test_a_card_without_figures_says_none(tiny_bundle: Path) -> None:
    said = lcmem("bundle", "info", "--bundle", tiny_bundle).stdout
    assert "re-identification" not in said
    assert "--cells" not in said
