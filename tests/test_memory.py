"""Memory of freed arrays serves the next ones."""

import platform
import subprocess
import sys

import pytest

from carvana_tf import memory

# What a thread that loads photos does: several arrays of megabytes at a time, all freed.
LOADER = """
import resource, sys, threading
import numpy as np
from carvana_tf import memory

def load(times):
    for _ in range(times):
        arrays = [np.ones(3 * 2**20, np.uint8) for _ in range(4)]

def measure():
    load(3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    load(10)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

sys.argv[1] == "keep" and memory.keep_freed_memory()
thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


def page_faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", LOADER, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the C library glibc")
def test_the_pages_of_freed_arrays_are_used_again():
    assert page_faults("keep") < page_faults("as it is") / 10


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert not memory.keep_freed_memory()
