"""Slices of volumes: the planes, their distance, square pixels, and that empty ones are left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nibabel")
pytest.importorskip("nrrd")

import nibabel
import nrrd
from lcmem_onnx import TrainingError
from lcmem_onnx.models.synthetic.volumes import axial_slices, planes_apart


def body(shape: tuple[int, int, int]) -> np.ndarray:
    """A ball of noise in the middle of nothing."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    noise = np.random.default_rng(0).normal(600, 200, shape)
    return np.where((grid**2).sum(axis=0) < 0.8, noise, -1000).astype(np.int16)


def test_planes_of_a_nifti_volume_are_apart_and_have_square_pixels(tmp_path: Path) -> None:
    path = tmp_path / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(body((120, 100, 40)), np.diag([1.0, 1.0, 4.0, 1.0])), path)
    planes = list(planes_apart(path))
    shapes = [plane.shape for plane in planes]
    assert sorted(set(shapes)) == [(100, 120), (160, 100), (160, 120)], "4 mm apart became 4 pixels of 1 mm"
    axial, coronal, sagittal = (shapes.count(shape) for shape in ((100, 120), (160, 120), (160, 100)))
    assert 8 <= axial <= 40 * 4 / 8
    assert 8 <= coronal <= 100 / 8 + 1
    assert 8 <= sagittal <= 120 / 8 + 1
    assert all(plane.dtype == np.uint8 and plane.std() > 25 for plane in planes)


def test_the_orientation_in_the_file_does_not_matter(tmp_path: Path) -> None:
    volume = body((110, 104, 100))
    for name, array, signs in (("as", volume, (1, 1, 1)), ("flipped", volume[::-1, :, ::-1], (-1, 1, -1))):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([*(float(each) for each in signs), 1.0])), tmp_path / f"{name}.nii")
    ours, same = (list(planes_apart(tmp_path / f"{name}.nii")) for name in ("as", "flipped"))
    assert len(ours) == len(same) > 20
    assert all((one == other).all() for one, other in zip(ours, same, strict=True))


def test_axial_slices_of_an_nrrd_volume_leave_out_the_empty_ones(tmp_path: Path) -> None:
    volume = body((100, 96, 20))
    volume[:, :, :5] = -1000
    nrrd.write(str(tmp_path / "volume.nrrd"), volume)
    planes = list(axial_slices(tmp_path / "volume.nrrd"))
    assert 10 <= len(planes) <= 15
    assert {plane.shape for plane in planes} == {(96, 100)}


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_a_volume_that_was_cut_off_is_said(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"volume{suffix}"
    if suffix == ".nrrd":
        nrrd.write(str(path), body((100, 96, 20)))
    else:
        nibabel.save(nibabel.Nifti1Image(body((100, 96, 20)), np.eye(4)), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    slices = axial_slices if suffix == ".nrrd" else planes_apart
    with pytest.raises(TrainingError, match=rf"volume{suffix} cannot be read as a volume: .+Fetch its package again"):
        list(slices(path))


@pytest.mark.parametrize(("suffix", "slices", "header"), [(".nii", planes_apart, 348), (".nrrd", axial_slices, 200)])
def test_damage_anywhere_in_a_volume_is_said_or_does_no_harm(
    tmp_path: Path, suffix: str, slices: Callable[[Path], Iterator[np.ndarray]], header: int
) -> None:
    path, volume = tmp_path / f"volume{suffix}", body((100, 96, 6))
    if suffix == ".nrrd":
        nrrd.write(str(path), volume, {"encoding": "raw"})
    else:
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    read = refused = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        damaged = whole.copy()
        damaged[rng.integers(0, header if seed % 4 else len(whole), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        try:
            read += all(plane.dtype == np.uint8 for plane in slices(path))
        except TrainingError:
            refused += 1
    assert read >= 5
    assert refused >= 5


@pytest.mark.parametrize(
    ("at", "kind", "value"),
    [
        (80, "<f4", np.nan),  # pixdim: a voxel's sides
        (80, "<f4", np.inf),
        (84, "<f4", 1e-40),
        (88, "<f4", 1e30),
        (84, "<f4", 1000.0),
        (42, "<i2", -5),  # dim: voxels a side
        (108, "<f4", 1e30),  # vox_offset: where they begin
        (108, "<f4", np.inf),
    ],
)
def test_a_header_that_says_what_cannot_be_is_said(tmp_path: Path, at: int, kind: str, value: float) -> None:
    path = tmp_path / "volume.nii"
    nibabel.save(nibabel.Nifti1Image(body((100, 96, 6)), None), path)
    content = bytearray(path.read_bytes())
    content[at : at + np.dtype(kind).itemsize] = np.array(value, kind).tobytes()
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"volume\.nii "):
        list(planes_apart(path))


def test_what_is_no_volume_of_grey_values_is_said(tmp_path: Path) -> None:
    flat, moving = tmp_path / "flat.nrrd", tmp_path / "moving.nii"
    nrrd.write(str(flat), body((100, 96, 20))[:, :, 0])
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), np.eye(4)), moving)
    with pytest.raises(TrainingError, match=r"flat\.nrrd is no volume of grey values, but int16 \(100, 96\)"):
        list(axial_slices(flat))
    with pytest.raises(TrainingError, match=r"moving\.nii is no volume"):
        list(planes_apart(moving))
