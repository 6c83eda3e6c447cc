"""Random numbers that are a function of their keys: the same on every machine and in any order of calls."""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_UNIT = np.float64(2.0**-53)
_ALL = 2**64 - 1
_ROUNDS = 6


@unique
class Stream(IntEnum):
    """The second key, after the seed, of all random numbers that belong to a position of the order.

    No two may be equal, or they would draw the same numbers. All are negative, because the order itself
    uses the number of a lane or of an epoch as its second key.
    """

    SUBSTITUTE = -1  # which sample takes the place of an unreadable one
    AUGMENT = -2  # crop and mirroring
    RANDAUGMENT = -3
    ERASE = -4
    MIX = -5  # mixup and cutmix
    MASK = -6  # patches that the model must predict


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The last step of splitmix64 (Steele et al.: Fast splittable pseudorandom number generators, 2014)."""
    x = (x ^ (x >> _S30)) * _MIX_1
    x = (x ^ (x >> _S27)) * _MIX_2
    return x ^ (x >> _S31)


def hash64(*keys: ArrayLike) -> NDArray[np.uint64]:
    """A 64-bit hash of integers, the same on every machine and version. Arrays are broadcast together."""
    state, rest = 0, list(keys)
    while rest and isinstance(first := rest[0], int):  # as in the loop below, but faster for single numbers
        state = _mix_int(state + int(_GOLDEN) + first & _ALL)
        del rest[0]
    hashed: Any = np.uint64(state)  # what numpy calculates with it is an array or again a scalar
    with np.errstate(over="ignore"):
        for key in rest:
            hashed = _mix(hashed + _GOLDEN + np.asarray(key).astype(np.uint64))
    return hashed


def _mix_int(x: int) -> int:
    x = (x ^ x >> 30) * int(_MIX_1) & _ALL
    x = (x ^ x >> 27) * int(_MIX_2) & _ALL
    return x ^ x >> 31


def uniform(*keys: ArrayLike) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each tuple of keys: the upper 53 bits of hash64(*keys)."""
    return (hash64(*keys) >> _S11) * _UNIT


def permute(i: ArrayLike, n: int, key: ArrayLike) -> NDArray[np.int64]:
    """The elements i of a random permutation of range(n), int64 in the shape of i. No state and no table.

    key: chooses the permutation; one for all, or one for each element of i.
    A balanced Feistel network permutes the numbers below a power of 4 that is at least n. It is applied
    again until the result is below n (Black and Rogaway: Ciphers with arbitrary finite domains, 2002).
    """
    i = np.asarray(i)
    if n == 1:
        return np.zeros(i.shape, np.int64)
    x = i.astype(np.uint64).reshape(-1)
    keys = np.asarray(key).astype(np.uint64).reshape(-1)
    if keys.size > 1:
        keys = np.broadcast_to(key, i.shape).astype(np.uint64).reshape(-1)
    half = np.uint64(max(2, ((n - 1).bit_length() + 1) // 2))
    x = _feistel(x, half, keys)
    outside = np.flatnonzero(x >= n)
    while outside.size:
        x[outside] = again = _feistel(x[outside], half, keys[outside] if keys.size > 1 else keys)
        outside = outside[again >= n]
    return x.astype(np.int64).reshape(i.shape)


def _feistel(x: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for _ in range(_ROUNDS):
        keys = keys + _GOLDEN
        left, right = right, left ^ (_mix(right ^ keys) & mask)
    return (left << half) | right
