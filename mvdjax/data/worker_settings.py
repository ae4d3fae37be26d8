"""Settings of a worker: a process that does nothing but read data."""

import ctypes

import cv2

# glibc's mallopt; other C libraries have none, or other numbers for it.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_TRIM_BYTES = 2**28


def tune() -> None:
    """One thread for OpenCV, and freed memory stays with the process.

    Decoded clips are so large that glibc would ask the kernel for new pages for each one, and every first touch of a
    page is a fault: a sixth of the CPU time of reading packed videos. Threads inside a resize of 224 pixels cost more
    than they bring, and the workers are there to use the cores.
    """
    cv2.setNumThreads(1)
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)  # no threshold would do: the largest that glibc takes is less than a batch or a large clip
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
