"""One process at a time writes to a place: two that do would mix their results, or delete them.

    lock = take("out/und")              # InputError if another process writes there
    ...
    lock.release()                      # the end of a script does it, too

A lock is a small file `.lock-3f9c12ab` in the directory that is written to. It says who holds it:
host, process number, and when that process began. Its name is drawn by lot, so that no two
processes ever write or remove the same file. A process that wants the place leaves its own file
first and looks for those of others afterwards. Of two that come at one moment at least one sees the
other; it takes its file away and tries again a little later.

A process that was killed leaves its file behind. On the same host it is seen that the process is
gone, and the file is removed. What another host does cannot be seen from here: then a sentence says
which file to remove.
"""
import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from common.cli import InputError, until_the_end
from common.files import write_json
from common.platforms import HIDDEN, start_of


# ---- who holds a lock ----

@dataclass(frozen=True)
class Holder:
    """A process, told from all others, also from one that has its number later."""
    host: str                   # name of the machine
    process: int                # its number there
    start: str                  # when it began, see platforms.start_of
    container: str              # numbers mean something else in another container; "" if unknown

    def alive(self):
        """Whether the process still runs; None where that cannot be seen from here."""
        here = me()
        if (self.host, self.container) != (here.host, here.container):
            return None
        start = start_of(self.process)
        return None if start == HIDDEN else start == self.start


def me():
    """This process as a Holder."""
    namespace = Path("/proc/self/ns/pid")
    container = os.readlink(namespace) if namespace.is_symlink() else ""
    return Holder(socket.gethostname(), os.getpid(), start_of(os.getpid()), container)


# ---- taking and giving back ----

class Lock:
    """The right to write to a place, until `release`."""

    def __init__(self, directory, name, made):
        self.name = name
        self.made = made                        # folders that were made for the lock, inner first
        self.holder = me()
        file = f".lock-{secrets.token_hex(4)}"
        self.path = directory / (f"{file}-{name}" if name else file)

    def announce(self):
        """Leave our file, whole from its first moment on."""
        write_json(self.path, {**asdict(self.holder), "since": time.strftime("%Y-%m-%d %H:%M")})

    def withdraw(self):
        self.path.unlink(missing_ok=True)

    def release(self):
        """Let others write here. What was made for the lock goes, if nothing else came into it."""
        # a process that was forked from the holder has a copy of this object, and no lock
        if HELD.get(self.path.parent / self.name) is not self or os.getpid() != self.holder.process:
            return
        del HELD[self.path.parent / self.name]
        self.withdraw()
        for folder in self.made:
            try:
                folder.rmdir()
            except OSError:                     # something is in it
                break

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()


# locks of this process by place: asked twice, it has the lock already
HELD = {}


def take(directory, name=""):
    """The right to write to a directory, or only to files in it that are called like `name`, such
    as compare.json and compare.md -> Lock.

    InputError at once if a process that runs has it. It is given back by `release`, or at the end
    of the script.
    """
    directory = Path(directory).resolve()
    if directory / name in HELD:
        return HELD[directory / name]
    refuse_taken(directory, name)
    made = missing_folders(directory)
    directory.mkdir(parents=True, exist_ok=True)
    lock = Lock(directory, name, made)
    for _ in range(20):
        lock.announce()
        if not others(directory, name):
            HELD[directory / name] = lock
            until_the_end.callback(lock.release)
            return lock
        # two came at one moment: each withdraws, and the first that comes back gets it
        lock.withdraw()
        time.sleep(0.01 + secrets.randbelow(100) / 1000)
        refuse_taken(directory, name)
    raise InputError(f"too many processes want to write to {directory / name} at once; start one.")


def take_files(path):
    """The right to write files whose names begin with this path, as compare for compare.json and
    compare.md -> Lock.
    """
    path = Path(path)
    return take(path.parent, path.name)


def refuse_taken(directory, name=""):
    """InputError that names the process which writes to this place. Nothing is written."""
    directory = Path(directory).resolve()
    place = directory / name
    if place in HELD:
        return
    for path, holder, since in others(directory, name):
        who = f"process {holder.process} on {holder.host}"
        if holder.alive():
            raise InputError(f"{place} is being written to by {who}, since {since}: wait for it, "
                             "or choose another --out.")
        raise InputError(
            f"{place} was being written to by {who} from {since} on, and from here it cannot be "
            f"seen whether it still is: if it has ended, remove {path} and start again.")


def others(directory, name):
    """The locks of other processes on a place -> [(file, Holder, since)]. Those of dead ones go."""
    found = []
    for path in sorted(directory.glob(".lock-*")):
        # .lock-3f9c12ab is of the directory, .lock-3f9c12ab-compare of the files of that name
        _, _, of = path.name.removeprefix(".lock-").partition("-")
        if of != name:
            continue
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            since = about.pop("since")
            holder = Holder(**about)
        except (FileNotFoundError, PermissionError):    # it was given back just now
            continue
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(f"{path} should say who writes to {directory / name}, and is damaged: "
                             "if nobody does, remove it.") from None
        if holder.alive() is False:
            path.unlink(missing_ok=True)
        elif holder != me():                            # ours, in a copy of the directory
            found.append((path, holder, since))
    return found


def missing_folders(directory):
    """The folders that `mkdir(parents=True)` will make, inner first."""
    missing = []
    for folder in (directory, *directory.parents):
        if folder.exists():
            break
        missing.append(folder)
    return missing
