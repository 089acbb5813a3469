"""LCMem's losses against their definitions, written out with numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lcmem_onnx.models.train.losses import hardest_bce, nt_xent, pair_loss, rolled_bce, tail_bce  # noqa: E402


@pytest.fixture
def head() -> torch.nn.Linear:
    head = torch.nn.Linear(4, 1)
    with torch.no_grad():
        head.weight.fill_(-3.0)
        head.bias.fill_(2.0)
    return head


def logit_of(head: torch.nn.Linear):
    return lambda first, second: head((first - second).abs())[:, 0]


@pytest.mark.parametrize("centred", [False, True])
def test_nt_xent_is_what_its_definition_says(centred: bool) -> None:
    torch.manual_seed(0)
    first, second = torch.rand(5, 8), torch.rand(5, 8)
    rows = [(row / np.linalg.norm(row)) for row in torch.cat([first, second]).numpy() - (0.5 if centred else 0.0)]
    losses = []
    for i, row in enumerate(rows):
        others = [math.exp(float(row @ other) / 0.07) for j, other in enumerate(rows) if j != i]
        losses.append(-math.log(math.exp(float(row @ rows[(i + 5) % 10]) / 0.07) / sum(others)))
    assert nt_xent(first, second, centred=centred).item() == pytest.approx(sum(losses) / 10, rel=1e-4)


def test_the_papers_bce_rolls_the_second_half(head: torch.nn.Linear) -> None:
    first, second = torch.rand(6, 4), torch.rand(6, 4)

    def logit(a: int, b: int) -> float:
        return float(2.0 - 3.0 * (first[a] - second[b]).abs().sum())

    positives = [math.log1p(math.exp(-logit(at, at))) for at in range(3)]
    negatives = [math.log1p(math.exp(logit(a, b))) for a, b in ((5, 3), (3, 4), (4, 5))]
    assert rolled_bce(first, second, logit_of(head)).item() == pytest.approx(np.mean(positives + negatives), rel=1e-5)


def test_the_other_bce_takes_the_hardest_negatives(head: torch.nn.Linear) -> None:
    first, second = torch.rand(6, 4), torch.rand(6, 4)
    every = 2.0 - 3.0 * (first[:, None] - second[None]).abs().sum(2).numpy()
    positives = np.log1p(np.exp(-np.diag(every))).mean()
    hardest = np.array([max(row[j] for j in range(6) if j != i) for i, row in enumerate(every)])
    expected = 0.5 * (positives + np.log1p(np.exp(hardest)).mean())
    assert hardest_bce(first, second, logit_of(head), hardest=1).item() == pytest.approx(expected, rel=1e-4)


def every_of(head: torch.nn.Linear):
    return lambda first, second: head((first[:, None] - second[None]).abs())[..., 0]


def test_the_tails_bce_takes_the_highest_negatives_of_all(head: torch.nn.Linear) -> None:
    first, second = torch.rand(6, 4), torch.rand(6, 4)
    across = 2.0 - 3.0 * (first[:, None] - second[None]).abs().sum(2).numpy()
    within = 2.0 - 3.0 * (first[:, None] - first[None]).abs().sum(2).numpy()
    positives = np.log1p(np.exp(-np.diag(across))).mean()
    firsts = sorted((within[a, b] for a in range(6) for b in range(a + 1, 6)), reverse=True)[:3]  # a fifth of 15
    others = sorted((across[a, b] for a in range(6) for b in range(6) if a != b), reverse=True)[:6]  # a fifth of 30
    expected = 0.5 * positives + 0.25 * (np.log1p(np.exp(firsts)).mean() + np.log1p(np.exp(others)).mean())
    assert tail_bce(first, second, logit_of(head), every_of(head), 0.2).item() == pytest.approx(expected, rel=1e-4)


def test_a_tail_of_less_than_a_pair_is_the_hardest_pair(head: torch.nn.Linear) -> None:
    first, second = torch.rand(3, 4), torch.rand(3, 4)
    losses = [tail_bce(first, second, logit_of(head), every_of(head), tail).item() for tail in (1e-9, 1 / 6)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("negatives", "bce"), [("rolled", rolled_bce), ("hardest", hardest_bce)])
def test_the_two_losses_are_mixed(negatives: str, bce, head: torch.nn.Linear) -> None:
    first, second = torch.rand(6, 4), torch.rand(6, 4)
    expected = 0.3 * bce(first, second, logit_of(head)) + 0.7 * nt_xent(first, second, 0.5)
    found = pair_loss(first, second, logit_of(head), every=logit_of(head), alpha=0.3, temperature=0.5, negatives=negatives)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
