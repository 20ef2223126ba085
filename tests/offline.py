"""Runs a command that the kernel ends with SIGSYS when it makes a socket for the internet.

    python tests/offline.py COMMAND ARGUMENTS…

A filter of system calls (seccomp), which all children inherit: no library can go around it, nor
can code in C++. Sockets between processes of this machine (AF_UNIX) stay allowed, and so do
streams of IPv6: TensorFlow makes one to see whether there is IPv6, and closes it. A host's name
cannot be looked up without one of the others. Linux only.
"""

import ctypes
import os
import platform
import struct
import sys

# Architecture in the kernel's audit numbers, and the number of socket(2).
_SOCKET = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
_INET, _INET6, _DATAGRAM = 2, 10, 2  # AF_INET, AF_INET6, SOCK_DGRAM
# BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_JMP|JEQ|K, BPF_RET|K
_LOAD, _AND, _IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2


def is_possible() -> bool:
    """Whether this machine has such filters."""
    return sys.platform == "linux" and platform.machine() in _SOCKET


def forbid() -> None:
    """Installs the filter for this process and its children, for good."""
    architecture, number = _SOCKET[platform.machine()]
    program = [
        (_LOAD, 0, 0, 4),  # architecture
        (_IF_EQUAL, 0, 8, architecture),
        (_LOAD, 0, 0, 0),  # number of the system call
        (_IF_EQUAL, 0, 6, number),
        (_LOAD, 0, 0, 16),  # family
        (_IF_EQUAL, 5, 0, _INET),
        (_IF_EQUAL, 0, 3, _INET6),
        (_LOAD, 0, 0, 24),  # type, and flags
        (_AND, 0, 0, 0xF),
        (_IF_EQUAL, 1, 0, _DATAGRAM),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _KILL),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    header = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if libc.prctl(_SET_SECCOMP, _FILTER, header):
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    forbid()
    os.execvp(sys.argv[1], sys.argv[1:])
