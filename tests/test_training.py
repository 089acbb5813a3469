"""Generated pictures, alterations, losses, held-out figures, and the demonstration recipe end to end, made tiny."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from lcmem_onnx.evaluation.alterations import BEYOND_THE_PAPER, PAPER_GRID, alter  # noqa: E402
from lcmem_onnx.models.augment import augment  # noqa: E402
from lcmem_onnx.models.demo import Recipe, train  # noqa: E402
from lcmem_onnx.models.holdout import quantile_threshold  # noqa: E402
from lcmem_onnx.models.losses import nt_xent, pair_bce, pair_loss  # noqa: E402
from lcmem_onnx.models.pairs import Pool, draw_batch, prefetched  # noqa: E402
from lcmem_onnx.models.phantoms import KINDS, kind_of, phantom  # noqa: E402
from lcmem_onnx.models.scenes import scene  # noqa: E402
from lcmem_onnx.runtime.bundle import open_bundle  # noqa: E402
from PIL import Image, ImageEnhance  # noqa: E402

GRID = [(name, strength) for table in (PAPER_GRID, BEYOND_THE_PAPER) for name, strengths in table.items() for strength in strengths]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return scene(7, 96)


@pytest.fixture(scope="module")
def pool() -> Pool:
    scenes = np.stack([scene(seed, 64) for seed in range(6)])
    phantoms = np.stack([np.stack([phantom(person, visit, 64)[..., 0] for visit in range(2)]) for person in range(6)])
    return Pool(scenes, phantoms)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


def test_a_seed_is_a_picture() -> None:
    assert (scene(3, 64) == scene(3, 64)).all()
    assert difference(scene(3, 64), scene(4, 64)) > 10
    assert (phantom(3, 0, 64) == phantom(3, 0, 64)).all()
    assert scene(3, 64).shape == phantom(3, 0, 64).shape == (64, 64, 3)
    assert scene(3, 64).dtype == phantom(3, 0, 64).dtype == np.uint8


def test_every_kind_of_phantom_is_drawn_and_visits_of_one_person_keep_the_kind() -> None:
    kinds = {kind_of(person) for person in range(60)}
    assert kinds == set(KINDS)
    assert difference(phantom(1, 0, 64), phantom(1, 1, 64)) > 1
    grey = phantom(1, 0, 64)
    assert (grey[..., 0] == grey[..., 2]).all()


@pytest.mark.parametrize(("transform", "strength"), GRID)
def test_each_alteration_keeps_size_and_type_and_changes_something(transform: str, strength: float, picture: np.ndarray) -> None:
    altered = alter(picture, transform, strength, np.random.default_rng(0))
    assert altered.shape == picture.shape
    assert altered.dtype == np.uint8
    if (transform, strength) != ("blur", 0.1):
        assert (altered != picture).any()


@pytest.mark.parametrize("transform", PAPER_GRID)
def test_a_stronger_alteration_changes_more(transform: str, picture: np.ndarray) -> None:
    changes = [
        difference(alter(picture, transform, strength, np.random.default_rng(0)), picture) for strength in PAPER_GRID[transform]
    ]
    assert changes == sorted(changes)


@pytest.mark.parametrize(("transform", "enhancer"), [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast)])
def test_brightness_and_contrast_are_pillows(transform: str, enhancer: type, picture: np.ndarray) -> None:
    """torchvision's `adjust_*` on a PIL image calls these."""
    expected = np.asarray(enhancer(Image.fromarray(picture)).enhance(1.6))
    assert np.abs(alter(picture, transform, 1.6, np.random.default_rng(0)).astype(int) - expected).max() <= 2


def test_augmentation_is_repeatable_and_varied(picture: np.ndarray) -> None:
    assert (augment(picture, np.random.default_rng(5)) == augment(picture, np.random.default_rng(5))).all()
    rng = np.random.default_rng(0)
    several = [augment(picture, rng) for _ in range(20)]
    assert all(one.shape == picture.shape and one.dtype == np.uint8 for one in several)
    assert np.std([difference(one, picture) for one in several]) > 1


def test_nt_xent_is_what_its_definition_says() -> None:
    torch.manual_seed(0)
    first, second = torch.rand(5, 8), torch.rand(5, 8)
    rows = [(row / np.linalg.norm(row)) for row in torch.cat([first, second]).numpy() - 0.5]
    losses = []
    for i, row in enumerate(rows):
        others = [math.exp(float(row @ other) / 0.07) for j, other in enumerate(rows) if j != i]
        losses.append(-math.log(math.exp(float(row @ rows[(i + 5) % 10]) / 0.07) / sum(others)))
    assert nt_xent(first, second).item() == pytest.approx(sum(losses) / 10, rel=1e-4)


def test_bce_takes_the_hardest_negatives() -> None:
    head = torch.nn.Linear(4, 1)
    with torch.no_grad():
        head.weight.fill_(-3.0)
        head.bias.fill_(2.0)

    def logit(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return head((first - second).abs())[:, 0]

    first, second = torch.rand(6, 4), torch.rand(6, 4)
    with torch.no_grad():
        every = np.array([[float(logit(a[None], b[None])[0]) for b in second] for a in first])
    positives = np.log1p(np.exp(-np.diag(every))).mean()
    hardest = np.array([max(row[j] for j in range(6) if j != i) for i, row in enumerate(every)])
    assert pair_bce(first, second, logit, hardest=1).item() == pytest.approx(
        0.5 * (positives + np.log1p(np.exp(hardest)).mean()), rel=1e-4
    )
    total = 0.8 * pair_bce(first, second, logit) + 0.2 * nt_xent(first, second)
    assert pair_loss(first, second, logit).item() == pytest.approx(total.item(), rel=1e-5)


def test_batches_are_of_different_identities_and_repeatable(pool: Pool) -> None:
    first, second = draw_batch(pool, 8, np.random.default_rng(0), altered=True)
    assert first.shape == second.shape == (8, 64, 64, 3)
    assert len({one.tobytes() for one in first}) == 8
    again = list(prefetched(pool, 8, 3, np.random.default_rng(0), altered=True))
    assert len(again) == 3
    assert (again[0][0] == first).all()
    assert (again[0][1] == second).all()


def test_an_error_in_the_drawing_thread_reaches_the_trainer(pool: Pool) -> None:
    with pytest.raises(ValueError, match="larger sample"):
        list(prefetched(pool, 40, 1, np.random.default_rng(0), altered=True))


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.01, 0.5])
def test_the_threshold_lets_through_at_most_the_rate(rate: float) -> None:
    negatives = np.round(np.random.default_rng(0).random(5000), 2)  # many ties
    threshold = quantile_threshold(negatives, rate)
    assert (negatives >= threshold).mean() <= rate
    assert (negatives >= np.nextafter(threshold, 0) - 0.01).mean() > rate  # and not much stricter than that


def test_the_recipe_runs_from_nothing_to_a_bundle(tmp_path: Path) -> None:
    from lcmem_onnx.export.package import Request, export_bundle

    recipe = Recipe(scenes=8, identities=8, visits=2, held_out=8, autoencoder_steps=2, stage1_steps=2, stage2_steps=3, pairs=4)
    said: list[str] = []
    checkpoint = train(recipe, tmp_path / "out", said.append)
    export_bundle(Request(checkpoint, tmp_path / "bundle"))
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.demonstration
    assert (bundle.head.weight <= 0).all()
    assert "validation set" in bundle.threshold.source
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())["figures"]
    assert len(figures["copy_detection_scenes"]["cells"]) == 24
    assert 0 <= figures["re_identification_phantoms"]["all kinds"]["auc"] <= 1
