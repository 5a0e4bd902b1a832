"""Free memory goes back to the system, where the C library can do that (glibc).

Adding and forgetting many memories leaves holes in the heap, which count as this process's for as
long as it lives. Knows nothing of banks.
"""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Hand whole free pages of the heap back. Elsewhere than on glibc nothing happens."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
