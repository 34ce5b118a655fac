"""Randomness keyed by what is drawn, not by who draws it.

A number depends on (seed, epoch, sample id, view, position) alone, so a sample gets the same views
from any worker, thread and batch, on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a Weyl sequence through a 64-bit mixer.
_STEP = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def uniforms(seed: int, epoch: int, ids: np.ndarray, view: int, count: int) -> np.ndarray:
    """Uniform numbers of each sample.

    Args:
        ids: (N,) sample ids, int64.
        count: numbers per sample; the first ones are the same whatever the count.

    Returns:
        (N, count) float64 in [0, 1), multiples of 2**-53.
    """
    numbers = np.asarray(ids, np.int64).view(np.uint64)
    start = mix(numbers * np.uint64(_STEP) + mix_key((seed, epoch, view)))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)
    return (mix(start[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def mix_key(parts: Sequence[int]) -> np.ndarray:
    """One (1,) uint64 key of several integers."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mix(key + np.uint64((part + 1) * _STEP & _MASK))
    return key


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every bit of the input moves every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
