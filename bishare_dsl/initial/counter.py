"""Random numbers from a seed and a name, reproducible in any language: `docs/format.md` defines every bit.

Philox-4x64-10 generates words from a key (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2,
3"). The rest is addition, multiplication, division and square root of doubles, which IEEE 754 rounds in
one way, and one rounding to float32 at the end.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bishare_dsl.plan import Tensor

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Philox

_CHUNK = 2**16
"""Words generated at once, to limit memory use."""


def distribution(tensor: Tensor) -> dict[str, Any]:
    """Return the distribution of a tensor's initial values, as stored in a folder.

    ``constant``: its value; ``uniform``: its bounds; ``normal``: its standard deviation; ``choice``: the
    exclusive upper bound.
    """
    a = tensor.amount
    n = tensor.fan_in
    bound = 1.0 / math.sqrt(n)
    known: dict[str, dict[str, Any]] = {
        "zeros": {"constant": 0.0},
        "ones": {"constant": 1.0},
        "constant": {"constant": a},
        "uniform": {"uniform": [-a, a]},
        "positive": {"uniform": [0.0, a]},
        "kaiming_uniform": {"uniform": [-bound, bound]},
        "normal": {"normal": a},
        "kaiming_normal": {"normal": math.sqrt(2.0 / n)},
        "choice": {"choice": n},
    }
    if tensor.init not in known:
        raise ValueError(f"`{tensor.name}` starts as the base says")
    return known[tensor.init]


def fill(values: ndarray, drawn_from: Mapping[str, Any], seed: int | str, name: str) -> None:
    """Fill a float32 array with random values from a `distribution`, determined by a seed and a name."""
    import numpy as np

    [(kind, amount)] = drawn_from.items()
    if kind == "constant":
        values.fill(amount)
        return
    philox = philox_of(seed, name)
    if kind == "choice":
        chosen = np.argsort(philox.random_raw(amount), kind="stable")[: len(values)]
        digits = values.shape[1]
        for place in range(digits):
            values[:, place] = chosen // 256 ** (digits - 1 - place) % 256
        return
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        even = uniform(philox, part.size)
        if kind == "normal":
            part[:] = amount * normal_quantiles(even)
        else:
            low, high = amount
            part[:] = low + (high - low) * even


def philox_of(seed: int | str, name: str) -> Philox:
    """Return the generator of a tensor's words."""
    import numpy as np

    key = np.frombuffer(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "<u8")
    return np.random.Philox(key=key.astype(np.uint64))


def uniform(philox: Philox, count: int) -> ndarray:
    """Return the next ``count`` numbers between 0 and 1, both excluded: float64, of 32 random bits each."""
    import numpy as np

    pairs = philox.random_raw((count + 1) // 2).astype("<u8")
    numbers: ndarray = (pairs.view("<u4")[:count].astype(np.float64) + 0.5) * 2.0**-32
    return numbers


def normal_quantiles(even: ndarray) -> ndarray:
    """Return the normal quantiles at numbers between 0 and 1: Wichura 1988, AS 241, PPND7."""
    import numpy as np

    q = even - 0.5
    r = 0.180625 - q * q
    top = ((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179
    bottom = ((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1.0
    quantiles: ndarray = q * top / bottom
    [tails] = np.nonzero(np.abs(q) > 0.425)
    mantissa, exponent = np.frexp(np.minimum(even[tails], 1.0 - even[tails]))
    s = (mantissa - 1.0) / (mantissa + 1.0)
    squares = s * s
    series = np.full_like(s, 1.0 / 21.0)
    for odd in range(19, 0, -2):
        series = series * squares + 1.0 / odd
    logs = -exponent * 0.6931471805599453 - 2.0 * s * series  # of the reciprocal tail probability
    r = np.sqrt(logs) - 1.6
    top = ((0.17023821103 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777
    bottom = (0.12021132975 * r + 0.73700164250) * r + 1.0
    quantiles[tails] = np.copysign(top / bottom, q[tails])
    return quantiles
