"""Does a released set without copies stay within the interval that its report announces?

For each seed three sets are drawn from one population of synthetic embeddings, and the audit's own search, threshold and
statistics are applied: with a threshold that the hold-out sets, and with a fixed one that the hold-out only measures.

    python benchmarks/audit_clean.py --seeds 200
"""

from __future__ import annotations

import json

import click
import numpy as np
from lcmem_onnx.runtime.audit.neighbours import InMemory
from lcmem_onnx.runtime.audit.statistics import Nearest, nearer, shift
from lcmem_onnx.runtime.audit.thresholds import Limit, by_chance, choose_limit
from lcmem_onnx.runtime.model.bundle import open_bundle

LATENT, SPREAD = 10, 1.1
FIXED = 0.9


@click.command()
@click.option("--seeds", default=200, show_default=True, help="Deals.")
@click.option("--reference", default=1500, show_default=True, help="Reference images.")
@click.option("--released", default=1000, show_default=True, help="Released images.")
@click.option("--holdout", default=500, show_default=True, help="Hold-out images.")
def main(seeds: int, reference: int, released: int, holdout: int) -> None:
    bundle = open_bundle()
    weights = np.random.default_rng(1).normal(0, SPREAD / np.sqrt(LATENT), (LATENT, bundle.features))
    inside = {"threshold set by the hold-out": 0, "fixed threshold": 0}
    small = {"matches": 0, "nearer": 0, "shift": 0}
    counts: list[int] = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)

        def deal(count: int, rng: np.random.Generator = rng) -> np.ndarray:
            return (1 / (1 + np.exp(-rng.normal(size=(count, LATENT)) @ weights))).astype(np.float32)

        known, new, held = deal(reference), deal(released), deal(holdout)
        search = InMemory(bundle.head, [str(number) for number in range(reference)], [0] * reference, known)
        other = InMemory(bundle.head, [str(number) for number in range(holdout)], [0] * holdout, held)
        to_reference, of_holdout = search.search(new, None, 1), search.search(held, None, 1)
        to_holdout = other.search(new, None, 1)
        scores, held_scores = (np.array([found.nearest.score for found in each]) for each in (to_reference, of_holdout))
        chosen = choose_limit(bundle, 0.01, given=None, stored=None, holdout=held_scores)
        given = choose_limit(bundle, 0.01, given=FIXED, stored=None, holdout=held_scores)

        def law(limit: Limit, scores: np.ndarray = scores, held: np.ndarray = held_scores) -> tuple[int, bool, float | None]:
            found = int((scores >= limit.value).sum())
            chance = by_chance(bundle, limit, images=len(scores), found=found, gallery=reference, holdout=held, looks=1)
            assert chance.count is not None
            return found, chance.count.low <= found <= chance.count.high, chance.p

        for name, limit in zip(inside, (chosen, given), strict=True):
            found, within, p = law(limit)
            inside[name] += within
            if limit is chosen:
                counts.append(found)
                small["matches"] += p is not None and p < 0.05
        both = nearer(
            Nearest(scores, np.array([int(found.nearest.key) for found in to_reference])),
            Nearest(
                np.array([found.nearest.score for found in to_holdout]), np.array([int(found.nearest.key) for found in to_holdout])
            ),
            reference,
            holdout,
            seed=seed,
        )
        small["nearer"] += both.p < 0.05
        small["shift"] += shift(scores, held_scores).p < 0.05
    click.echo(
        json.dumps(
            {
                "seeds": seeds,
                "within the announced 95 % interval": {name: f"{count} ({count / seeds:.3f})" for name, count in inside.items()},
                "matches a set": [min(counts), float(np.mean(counts)), max(counts)],
                "p below 0.05, of a set without copies": {name: f"{count} ({count / seeds:.3f})" for name, count in small.items()},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
