"""Freed memory is used again instead of being asked for anew."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
from ingot.training.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def use():
    block = bytearray(64 * 2**20)  # every page of it is written
    del block
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another allocator")
def test_a_block_that_was_freed_costs_no_new_pages() -> None:
    assert page_faults("keep") < 1000
    assert page_faults("leave") > 10000  # so the first number means something
