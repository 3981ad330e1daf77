"""Logarithm, exponential and size of one float32 for loops that numba compiles (extra ``fast``): nothing but arithmetic
and bits, so that LLVM vectorises the loop that they are inlined into, which it cannot with those of the C library.

The polynomials are those of Cephes (Moshier). numba does not notice here that callers it has compiled and cached are
out of date: after a change in this file touch theirs.
"""

import math

import numpy as np

from wbcrepro.errors import UsageError

try:
    from numba import njit
except ImportError as error:
    raise UsageError(
        'method="compiled" needs numba, which is not installed; run: pip install "wbcrepro[fast]", or use '
        'method="fast", which needs torch only'
    ) from error

FAST = {"reassoc", "contract", "arcp", "nsz", "nnan"}  # sums may be reordered; what a NaN comes to is never used
ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
LOG2, LOG2E = np.float32(math.log(2)), np.float32(1 / math.log(2))
MAGNITUDE, INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)  # of the bits of a float32
ROOT_HALF, MANTISSA, BIAS = np.int32(0x3F3504F3), np.int32(23), np.int32(127)
L2, L3, L4, L5, L6, L7, L8, L9, L10 = (  # Cephes: log(1 + m) - m + m^2/2 over m^3, 0.7 < 1 + m < 1.42
    np.float32(c)
    for c in (
        0.33333331174, -0.24999993993, 0.20000714765, -0.16668057665, 0.14249322787, -0.12420140846, 0.11676998740,
        -0.11514610310, 0.070376836292,
    )
)  # fmt: skip
E1, E2, E3, E4, E5, E6 = (  # Cephes: 2^f - 1 over f, -0.5 <= f <= 0.5
    np.float32(c)
    for c in (0.6931472028550421, 0.2402264791363012, 0.05550332471162809, 0.009618437357674640, 0.001339887440266574,
              0.0001535336188319500)
)  # fmt: skip


@njit(cache=True, nogil=True, fastmath=FAST)
def natural_log(x):
    """Of a normal positive float32, within 1e-6 of it between 1e-6 and 1: x = 2^e (1 + m) with 1 + m around 1."""
    bits = np.float32(x).view(np.int32)
    e = np.int32(np.int32(bits - ROOT_HALF) >> MANTISSA)
    m = np.int32(bits - (e << MANTISSA)).view(np.float32) - ONE
    p = L6 + m * (L7 + m * (L8 + m * (L9 + m * L10)))
    p = L2 + m * (L3 + m * (L4 + m * (L5 + m * p)))
    return m - m * m * (HALF - m * p) + np.float32(e) * LOG2


@njit(cache=True, nogil=True, fastmath=FAST)
def exp(x):
    """Of a float32 that is not above 0, within 1e-6; e^-87 for what is below -87."""
    x = max(x * LOG2E, np.float32(-126))
    whole = np.floor(x + HALF)
    f = x - whole
    p = ONE + f * (E1 + f * (E2 + f * (E3 + f * (E4 + f * (E5 + f * E6)))))
    return p * np.int32((np.int32(whole) + BIAS) << MANTISSA).view(np.float32)


@njit(cache=True, nogil=True)
def magnitude(x):
    """Bits that order float32 by size, NaN above all; no comparison of floats, which may assume that there is none."""
    return np.int32(np.float32(x).view(np.int32) & MAGNITUDE)
