"""How sure a difference is: the paired bootstrap (Efron 1979)."""

import random
from collections.abc import Sequence

__all__ = ["lead"]


def lead(
    ours: Sequence[float], theirs: Sequence[float], resamples: int = 10_000, seed: int = 7
) -> tuple[float, float, float]:
    """The mean difference on the same questions, and its 95 % interval (percentiles)."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    count = len(differences)
    draw = random.Random(seed)
    means = sorted(sum(draw.choices(differences, k=count)) / count for _ in range(resamples))
    return sum(differences) / count, means[int(0.025 * resamples)], means[int(0.975 * resamples)]
