"""Memory that was freed between memory still in use goes back to the system."""

from __future__ import annotations

import os
import platform

import pytest

from memlong_agent.storage.heap import give_back


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can hand pages back")
def test_pages_between_what_is_kept_go_back() -> None:
    blocks = [bytes(2000) for _ in range(60_000)]  # 120 MB, from the heap: too small for mmap
    kept = blocks[::100]
    full = resident_bytes()
    del blocks
    give_back()
    assert full - resident_bytes() > 50e6
    assert len(kept) == 600
