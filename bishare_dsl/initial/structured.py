"""Structured initial values: orthogonal, cosine, Hadamard and sparse matrices.

Each is a matrix with rows of length 1, or of expected length 1 if sparse. As all initial values they come
from a seed and a name, and have the same bits on every machine: sums are taken in order, and cosines come
from a series, because libraries round them differently.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bishare_dsl.initial.counter import normal_quantiles, philox_of, uniform
from bishare_dsl.plan.structures import power_of_two
from bishare_dsl.spec import STRUCTURED

if TYPE_CHECKING:
    from numpy import ndarray


def orthogonal(rows: int, columns: int, seed: int | str, name: str) -> ndarray:
    """Return a random matrix with orthonormal rows, or columns if it has fewer of them."""
    import numpy as np

    count = min(rows, columns)
    length = max(rows, columns)
    random = normal_quantiles(uniform(philox_of(seed, name), count * length))
    vectors = random.reshape(count, length)
    for i in range(count):
        for _ in range(2):  # Once is not orthogonal to the last bits.
            if i:
                shares = _in_order(vectors[:i] * vectors[i])
                weighted = vectors[:i] * shares[:, None]
                vectors[i] -= np.cumsum(weighted, axis=0)[-1]
        vectors[i] /= math.sqrt(_in_order(vectors[i] * vectors[i]))
    return vectors if rows <= columns else vectors.T


def cosine(rows: int, columns: int) -> ndarray:
    """Return the first rows of the orthonormal discrete cosine transform, DCT-II.

    ``C[k, j] = sqrt(2 / columns) cos(pi (2 j + 1) k / (2 columns))``, and ``sqrt(1 / columns)`` for k = 0.
    """
    import numpy as np

    turns = np.outer(np.arange(rows), 2 * np.arange(columns) + 1)
    values = math.sqrt(2.0 / columns) * _cosine_of(turns % (4 * columns), columns)
    values[0] = math.sqrt(1.0 / columns)
    return values


def hadamard(rows: int, columns: int, seed: int | str, name: str) -> ndarray:
    """Return random rows of a Hadamard matrix, whose leading columns are as many as ``columns``.

    Sylvester's matrix of a power of two: ``H[i, j] = (-1) ** (number of ones in the bits of i and j)``, over
    the square root of the columns. The rows are orthogonal if the columns are a power of two.
    """
    import numpy as np

    size = power_of_two(columns)
    order = np.argsort(philox_of(seed, name).random_raw(size), kind="stable")
    both = order[:rows, None] & np.arange(columns)
    ones = np.zeros_like(both)
    while both.any():
        ones += both & 1
        both >>= 1
    values: ndarray = (1 - 2 * (ones % 2)) / math.sqrt(columns)
    return values


def sparse(rows: int, columns: int, fraction: float, seed: int | str, name: str) -> ndarray:
    """Return a matrix in which each entry is nonzero with a probability, and then of either sign.

    Li et al. 2006, "Very Sparse Random Projections": the entries are ``+-1 / sqrt(fraction * columns)``.

    Args:
        rows: of the matrix.
        columns: of the matrix.
        fraction: the probability, above 0 and at most 1.
        seed: of the run.
        name: of the tensor.
    """
    import numpy as np

    numbers = uniform(philox_of(seed, name), rows * columns).reshape(rows, columns)
    value = 1.0 / math.sqrt(fraction * columns)
    positive = numbers < fraction / 2
    negative = numbers >= 1 - fraction / 2
    values: ndarray = value * (positive.astype(np.float64) - negative)
    return values


def fill_structured(values: ndarray, word: str, amount: float, seed: int | str, name: str) -> None:
    """Fill a float32 matrix with values of a structure; ``amount`` is the fraction of ``sparse``."""
    rows, columns = values.shape
    match word:
        case "orthogonal":
            values[:] = orthogonal(rows, columns, seed, name)
        case "cosine":
            values[:] = cosine(rows, columns)
        case "hadamard":
            values[:] = hadamard(rows, columns, seed, name)
        case "sparse":
            values[:] = sparse(rows, columns, amount, seed, name)
        case _:
            raise ValueError(f"{word!r} is none of {STRUCTURED}")


def _in_order(terms: ndarray) -> ndarray:
    """Sum over the last axis from its beginning to its end."""
    import numpy as np

    total: ndarray = np.cumsum(terms, axis=-1)[..., -1]
    return total


def _cosine_of(turns: ndarray, quarter: int) -> ndarray:
    """Return ``cos(pi turns / (2 quarter))`` for whole numbers below ``4 * quarter``."""
    import numpy as np

    turns = np.minimum(turns, 4 * quarter - turns)
    sign = np.where(turns > quarter, -1.0, 1.0)
    turns = np.minimum(turns, 2 * quarter - turns)
    squares = (turns * (math.pi / 2) / quarter) ** 2
    series = np.ones_like(squares)
    for even in range(24, 0, -2):
        series = 1.0 - squares / (even * (even - 1)) * series
    # The series leaves a rounding error where the cosine is zero.
    value: ndarray = sign * np.where(turns == quarter, 0.0, series)
    return value
