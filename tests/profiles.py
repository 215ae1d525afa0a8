"""Runs a command in a restricted environment: ``python tests/profiles.py PROFILE COMMAND...``.

| profile | restriction |
|---|---|
| docker | refuses the system calls that the default seccomp profiles of containers refuse |
| no-clone3, no-close_range, no-noexec | refuses one system call, or flag, that older systems and profiles lack |
| few-files | `ulimit -n 256` |
| other-user | as an ordinary user, after `setuid` in the program (root only) |
| closed-streams | without standard input and error |
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys

MACHINE = ["x86_64", "aarch64"].index(platform.machine())
# System call numbers on these two machines.
NUMBERS = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "get_robust_list": (274, 100),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "mount": (165, 40),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "request_key": (249, 218),
    "setns": (308, 268),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
SECOND_ARGUMENT = 24  # in `struct seccomp_data`


def refuse(calls, flags=0):
    """Makes system calls fail, by name, each with its error: always, or only if the second argument has one of the flags."""
    code = [(LOAD, 0, 0, 0)]
    for name, error in calls.items():
        fails = [(LOAD, 0, 0, SECOND_ARGUMENT), (ANY_BIT, 0, 1, flags)] if flags else []
        fails += [(RETURN, 0, 0, REFUSE | error)]
        code += [(EQUAL, 0, len(fails), NUMBERS[name][MACHINE]), *fails]
    code += [(RETURN, 0, 0, ALLOW)]
    program = b"".join(struct.pack("HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(program)
    filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(38, 1, 0, 0, 0) != 0 or prctl(22, 2, filter) != 0:  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
        raise OSError(ctypes.get_errno(), "no seccomp filter")


def docker():
    others = set(NUMBERS) - {"clone3", "close_range", "get_robust_list", "memfd_create"}
    refuse({"clone3": errno.ENOSYS, **dict.fromkeys(others, errno.EPERM)})


def other_user():
    os.environ["HOME"] = "/tmp"
    os.setgroups([])
    os.setgid(12345)
    os.setuid(12345)


def closed_streams():
    os.close(0)
    os.close(2)


PROFILES = {
    "docker": docker,
    "no-clone3": lambda: refuse({"clone3": errno.ENOSYS}),
    "no-close_range": lambda: refuse({"close_range": errno.EPERM}),
    "no-noexec": lambda: refuse({"memfd_create": errno.EINVAL}, flags=8),  # MFD_NOEXEC_SEAL
    "few-files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
    "other-user": other_user,
    "closed-streams": closed_streams,
}


def main(args):
    if len(args) < 2 or args[0] not in PROFILES:
        sys.exit(f"usage: profiles.py {'|'.join(PROFILES)} COMMAND...")
    # Test runners first ask for the list of tests, which needs no restriction.
    if "--list" not in args:
        PROFILES[args[0]]()
    os.execvp(args[1], args[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
