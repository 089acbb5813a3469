"""Slices deformed: another body and not a copy, the same each time."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")  # the models' package

from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.evaluation.filelist import Listed, read_file_list
from lcmem_onnx.models.synthetic.bodies import another_body, bodies
from lcmem_onnx.models.synthetic.phantoms import phantom
from lcmem_onnx.runtime.errors import TrainingError
from numpy.typing import NDArray

SLICE = phantom(3, 0, 128)[..., 0]


def aligned(image: NDArray[np.uint8], to: NDArray[np.uint8]) -> float:
    """How an image correlates with another after the best affine map onto it."""
    found = np.eye(2, 3, dtype=np.float32)
    ended = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-5)
    return float(cv2.findTransformECC(to, image, found, cv2.MOTION_AFFINE, ended)[0])


@pytest.mark.parametrize("seed", range(4))
def test_another_body_is_alike_and_not_the_same_image_turned_or_stretched(seed: int) -> None:
    turned = cv2.warpAffine(SLICE, cv2.getRotationMatrix2D((64, 64), 8, 0.95), (128, 128), borderMode=cv2.BORDER_REPLICATE)
    assert aligned(turned, SLICE) > 0.985
    assert 0.5 < aligned(another_body(SLICE, np.random.default_rng(seed)), SLICE) < 0.985


@given(st.integers(2, 90), st.integers(2, 90), st.booleans(), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_body_has_its_slices_shape_and_follows_from_the_seed(height: int, width: int, colour: bool, seed: int) -> None:
    slice_ = np.random.default_rng(0).integers(0, 256, (height, width, 3) if colour else (height, width)).astype(np.uint8)
    one, again = (another_body(slice_, np.random.default_rng(seed)) for _ in range(2))
    assert one.shape == slice_.shape
    assert one.dtype == np.uint8
    assert np.array_equal(one, again)


def test_bodies_are_files_and_each_an_identity_of_its_own(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "one.png"), SLICE)
    cv2.imwrite(str(tmp_path / "two.png"), SLICE[:, ::-1])
    slices = [Listed("TRAIN", name, f"{name}.png", tmp_path / f"{name}.png", "slices") for name in ("one", "two")]
    rows = bodies(slices, tmp_path / "out", 3)
    read = read_file_list(tmp_path / "out" / "list.csv")
    assert [row.path for row in read] == [row.path for row in rows]
    assert len({row.identity for row in read}) == 6
    assert {(row.split, row.ds_name) for row in read} == {("TRAIN", "bodies")}
    images = [cv2.imread(str(row.path), cv2.IMREAD_GRAYSCALE) for row in read]
    assert all(not np.array_equal(one, other) for at, one in enumerate(images) for other in images[:at])
    assert [row.path.read_bytes() for row in bodies(slices, tmp_path / "again", 3)] == [row.path.read_bytes() for row in rows]
    more = bodies(slices, tmp_path / "more", 2, first=2)
    assert [row.path.read_bytes() for row in more[::2]] == [row.path.read_bytes() for row in rows[2::3]]
    assert {row.identity for row in more} & {row.identity for row in rows} == {row.identity for row in rows[2::3]}


def test_a_slice_that_is_not_there_no_slices_and_a_folder_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    missing = [Listed("TRAIN", "gone", "gone.png", tmp_path / "gone.png", "slices")]
    with pytest.raises(TrainingError, match=r"gone\.png cannot be read"):
        bodies(missing, tmp_path / "out", 1)
    assert not (tmp_path / "out" / "list.csv").exists()
    with pytest.raises(TrainingError, match="no slice to deform"):
        bodies([], tmp_path / "out", 1)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrainingError, match="cannot be written"):
        bodies(missing, tmp_path / "file" / "out", 1)
