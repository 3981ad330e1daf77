"""The allocator setting: it is taken on Linux with glibc, and freed memory then stays in the process."""

import platform
import subprocess
import sys

CODE = """
import resource, sys
import numpy as np
from wbcrepro.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def churn():
    for _ in range(20):
        np.ones(8_000_000, np.uint8)
churn()
before = faults()
churn()
print(faults() - before)
"""


if platform.libc_ver()[0] == "glibc":  # not a skip: mallopt is glibc's, other systems have nothing to test here

    def test_freed_memory_is_reused_without_page_faults():
        def faults(mode):
            command = [sys.executable, "-c", CODE, mode]
            return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

        assert faults("keep") < 200


def test_other_systems_are_left_alone(monkeypatch):
    from wbcrepro import memory

    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
