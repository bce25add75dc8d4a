"""Standard input, output and error: closed, full, read by nobody, or of a small encoding."""
import io
import os
import sys


def keep_standard_streams():
    """Put /dev/null where standard input, output or error is closed (`>&-`).

    The next file that is opened would get its number, and what is printed would go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)              # takes the lowest number that is free
    # Python has None for a stream that was closed when it began
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")


def print_anything():
    """Let every character be printed, whatever the encoding of the terminal or file.

    What it lacks, as an é in ASCII, is written as \\xe9, and a byte of a file name that is no UTF-8
    as \\udcff. Python would stop instead, and the results that come after would be lost. The
    encoding stays what it was: whoever chose Latin-1 reads Latin-1. JSON is printed in ASCII.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def abandon_output():
    """Forget what cannot be written to standard output or error: the reader has gone, the disk is
    full.

    Python would try again at its end, and complain
    (docs.python.org/3/library/signal.html#note-on-sigpipe).
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
