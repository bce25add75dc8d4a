"""What Linux, macOS and Windows do differently, asked for here and nowhere else.

A function that one of them lacks is looked for when it is called, so that every file can be
imported everywhere.
"""
import ctypes
import errno
import math
import mmap
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path

# macOS and Linux; Windows has neither how much memory a process has had, nor limits
try:
    import resource
except ImportError:
    resource = None


# ---- processors and memory ----

def usable_cores():
    """How many cores this process may use: a scheduler or a container may allow fewer than there
    are.
    """
    if hasattr(os, "sched_getaffinity"):
        return max(1, min(len(os.sched_getaffinity(0)), container_cores()))
    # macOS has no such mask; Windows cannot wait for more than 61 worker processes
    cores = os.cpu_count()
    if cores is None:
        return 1
    return min(cores, 61) if sys.platform == "win32" else cores


QUOTAS = (              # of all processes of a container together, and the period that it is for
    ("/sys/fs/cgroup/cpu.max",),                                                # cgroup v2, in one
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),    # v1
)


def container_cores():
    """How many cores' time a container may take, as with `docker run --cpus 2`; else infinity.

    The mask of a process and os.cpu_count know nothing of it: they say what the machine has, and
    so many threads would wait for each other. (kernel.org, "Control Group v2", 5-1-1.)
    """
    for files in QUOTAS:
        if Path(files[0]).is_file():
            quota, period = " ".join(Path(file).read_text() for file in files).split()
            unlimited = quota in ("max", "-1")
            return math.inf if unlimited else math.ceil(int(quota) / int(period))
    return math.inf


def processor_name():
    """What the maker calls the processor, as far as the system tells."""
    # Linux writes it for every core; elsewhere Python knows a coarser name
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peak_memory(children=False):
    """The most bytes that this process, or the largest of its children that have ended, has had.

    NaN on Windows, which has no such call.
    """
    if resource is None:
        return math.nan
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    # macOS counts bytes, all others kilobytes (getrusage(2) of both)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(who).ru_maxrss * unit


def keep_memory():
    """Have glibc keep the memory of freed tensors for the next ones.

    By default it gives much of it back to the system and fetches it again page by page, which takes
    a sixth of the time of a velocity (docs/results.md). Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3         # from malloc.h
    libc.mallopt(M_MMAP_THRESHOLD, 2**25)               # its maximum
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)           # never


def leave_to_file(tensor):
    """Have Linux take the memory of a tensor that is mapped from a file out of this process.

    Nothing is lost: whoever looks at it again has it read from the file again. What is no file's
    stays where it is, and so does all memory on other systems and before Linux 5.4.
    """
    if sys.platform != "linux":
        return
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE      # whole pages of its own
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    MADV_PAGEOUT = 21                                   # from linux/mman.h
    if first < end:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), MADV_PAGEOUT)


# ---- processes ----

def end_with_parent():
    """End this worker process when the one that started it is killed; else it would wait for ever.

    The parent is asked for by way of multiprocessing: os.getppid names a server where workers are
    forked from one, and on Windows a process that may be gone.
    """
    parent = multiprocessing.parent_process()

    def watch():
        parent.join()
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


# the start of a process of another user, where Linux hides these
HIDDEN = "hidden"


def start_of(process):
    """A text that tells when a process of this host began; "" if there is none of this number.

    A number is given again after a while, but a process that has it later began later.
    """
    if sys.platform == "win32":
        return start_on_windows(process)
    if sys.platform == "linux":
        # Linux counts from the start of the machine, so that this start belongs to it
        boot = Path("/proc/sys/kernel/random/boot_id")
        machine = boot.read_text().strip() if boot.exists() else ""
        try:
            line = Path(f"/proc/{process}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return HIDDEN if is_hidden(process) else ""
        # the name of the program stands in brackets and may hold anything; then the state follows
        state, *numbers = line.rpartition(")")[2].split()
        return "" if state in "ZX" else f"{machine} {numbers[18]}"
    # macOS: state and start, of which only the start stays as it is
    line = ["ps", "-o", "stat=,lstart=", "-p", str(process)]
    answer = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    state, _, start = answer.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else start.strip()


def is_hidden(process):
    """Whether a process runs that cannot be looked at (Linux mounts /proc with hidepid on some
    clusters).
    """
    try:
        os.kill(process, 0)                     # sends nothing
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return False


def start_on_windows(process):
    """The same on Windows, in units of 100 ns. (os.kill(process, 0) would end the process there.)
    """
    kernel = ctypes.windll.kernel32
    kernel.OpenProcess.restype = ctypes.c_void_p
    may_be_asked, still_active = 0x1000, 259            # from winnt.h and minwinbase.h
    handle = ctypes.c_void_p(kernel.OpenProcess(may_be_asked, False, process))
    if not handle:
        return ""
    code = ctypes.c_uint32()
    began, ended, in_kernel, in_program = (ctypes.c_uint64() for _ in range(4))
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.GetProcessTimes(handle, *map(ctypes.byref, (began, ended, in_kernel, in_program)))
    kernel.CloseHandle(handle)
    return str(began.value) if code.value == still_active else ""


# ---- files ----

def safe_name(name):
    """A name that a file or folder can have on Windows too: "table5-1:2" -> "table5-1-2"."""
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "-", name)


def flush(path):
    """Wait until a file, or the names in a directory, are on the disk (fsync)."""
    # Windows opens no directory this way, and flushes a file only if it is open for writing
    if sys.platform == "win32":
        if os.path.isdir(path):
            return
        access = os.O_RDWR
    else:
        access = os.O_RDONLY            # a directory can be opened for nothing else
    descriptor = os.open(path, access)
    os.fsync(descriptor)
    os.close(descriptor)


def open_to_read(path):
    """A descriptor for `read_at`."""
    # without this flag Windows would turn \r\n into \n
    return os.open(path, os.O_RDONLY | (os.O_BINARY if hasattr(os, "O_BINARY") else 0))


def read_at(descriptor, length, offset):
    """`length` bytes from `offset` on. Threads may read at once."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    # Windows: moving to the place and reading are two calls, so one thread at a time
    with ONE_AT_A_TIME:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


ONE_AT_A_TIME = threading.Lock()

# numbers of the error that writing into a pipe without a reader gives; Windows has one of its own
NO_READER = {errno.EPIPE} | ({errno.EINVAL} if sys.platform == "win32" else set())
