"""What the C library does with the memory of arrays that are no longer needed."""

import ctypes

# Parameters of mallopt, from malloc.h; the largest values glibc takes for each.
_TRIM_THRESHOLD, _MOST_TRIM = -1, 2**31 - 1
_MMAP_THRESHOLD, _MOST_MMAP = -3, 32 * 2**20


def keep_freed_memory() -> bool:
    """Keeps the memory of freed arrays of up to 32 MB for the next ones.

    A decoded photo of 1918x1280 is 7 MB. By itself glibc returns a block of that size to
    the kernel whenever it happens to lie at the end of a thread's heap, and the next array
    then takes a page fault every 4 KB; in threads that load photos this took as long as
    the decoding. The peak of the memory used is about the same, but it is held to the end.

    Returns:
        Whether this was possible; C libraries other than glibc are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # Either call alone would end glibc's own adaptation of both thresholds.
    return bool(mallopt(_MMAP_THRESHOLD, _MOST_MMAP) and mallopt(_TRIM_THRESHOLD, _MOST_TRIM))
