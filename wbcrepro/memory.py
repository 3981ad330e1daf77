"""Keep freed memory in the process, so that training on a CPU does not fault its activations in anew at every step."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of ``mallopt``, from glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from the heap and to keep what is freed; True where that worked.

    By default glibc maps every block above a threshold and unmaps it when freed: a training step of a small network at
    96 px then costs tens of thousands of page faults, a fifth to a half of its time on a virtual machine. Results do
    not change. Elsewhere (macOS, Windows, musl) nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20))
    return all([mallopt(name, value) == 1 for name, value in settings])
