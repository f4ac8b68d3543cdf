"""Memory that subgraphs free stays in the process."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from soda_compile.runtime.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(6 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
keep_freed_memory(torch.device("cpu"))
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep what they want")
def test_freed_memory_is_used_again_without_page_faults():
    printed = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout
    before, after = map(int, printed.split())
    assert after <= before / 2
    assert after < 100
