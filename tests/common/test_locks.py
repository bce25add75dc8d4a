"""common/locks.py: one process at a time writes to a place, and a dead one stops nobody."""
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

import train_gen
from bench import table5
from common.cli import InputError, cli
from common.locks import take
from evaluation import compare, privacy
from evaluation import phantom as evaluate_phantom
from helpers import lock_of_another
from phantom import train_vae
from training import latents
from weights import export

forking = multiprocessing.get_context("fork")           # torch is imported already
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def hold(directory, name, taken):
    take(directory, name)
    taken.set()
    time.sleep(60)


@pytest.fixture
def holder():
    """holder(directory, name="") -> another process that holds the lock there."""
    started = []

    def holder(directory, name=""):
        taken = forking.Event()
        process = forking.Process(target=hold, args=(directory, name, taken), daemon=True)
        process.start()
        started.append(process)
        assert taken.wait(20)
        return process
    yield holder
    for process in started:
        process.kill()
        process.join()


def files(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_second_is_refused_at_once_and_a_killed_one_stops_nobody(tmp_path, holder):
    process = holder(tmp_path)
    before = files(tmp_path)
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"process {process.pid} on {socket.gethostname()}"):
        take(tmp_path)
    assert time.monotonic() - began < 1 and files(tmp_path) == before
    os.kill(process.pid, signal.SIGKILL)                # it is not waited for: a zombie is dead
    time.sleep(0.2)
    with take(tmp_path) as lock:
        assert files(tmp_path) == [lock.path.name]
    assert files(tmp_path) == []


def test_a_lock_is_of_a_directory_or_of_the_files_of_one_name(tmp_path, holder):
    holder(tmp_path, "compare")
    with take(tmp_path), take(tmp_path, "privacy"), take(tmp_path / "deeper"):
        with pytest.raises(InputError, match="compare is being written to"):
            take(tmp_path, "compare")


def test_a_process_has_what_it_has_and_gives_it_back_once(tmp_path):
    first = take(tmp_path)
    assert take(tmp_path) is first
    first.release()
    second = take(tmp_path)
    first.release()
    assert files(tmp_path) == [second.path.name]
    second.release()


def test_what_was_made_for_a_lock_goes_with_it_if_it_stayed_empty(tmp_path):
    take(tmp_path / "a" / "b").release()
    assert files(tmp_path) == []
    with take(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").touch()
    assert files(tmp_path) == ["a"] and files(tmp_path / "a") == ["mine"]


def test_the_end_of_a_script_gives_it_back(tmp_path, capsys):
    def main(argv):
        take(tmp_path)
        raise InputError("the picture is missing.")
    with pytest.raises(SystemExit):
        cli(main)
    assert files(tmp_path) == []


def until_terminated(directory, taken):
    def main(argv):
        take(directory)
        taken.set()
        time.sleep(60)
    cli(main)


def test_a_script_that_a_cluster_ends_gives_it_back(tmp_path):
    taken = forking.Event()
    process = forking.Process(target=until_terminated, args=(tmp_path, taken), daemon=True)
    process.start()
    assert taken.wait(20) and len(files(tmp_path)) == 1
    process.terminate()
    process.join(20)
    assert process.exitcode == 143 and files(tmp_path) == []


# ---- locks that were left ----

def left(directory, **changes):
    """A lock of this process, but for some changes, that it knows nothing of."""
    lock = take(directory)
    about = {**json.loads(lock.path.read_text()), **changes}
    lock.release()
    path = directory / ".lock-00000000"
    path.write_text(json.dumps(about))
    return path


def test_a_process_that_has_the_number_of_a_dead_one_is_not_it(tmp_path):
    left(tmp_path, start="of another boot 1")
    take(tmp_path).release()
    assert files(tmp_path) == []


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"container": "pid:[1]"}])
def test_what_cannot_be_judged_from_here_is_for_people_to_remove(tmp_path, changes):
    path = left(tmp_path, process=1, **changes)
    host = changes.get("host", socket.gethostname())
    with pytest.raises(InputError, match=rf"process 1 on {host} .*remove {path} and start again"):
        take(tmp_path)
    path.unlink()
    take(tmp_path).release()


def test_a_damaged_lock_is_named(tmp_path):
    left(tmp_path).write_text("{")
    with pytest.raises(InputError, match=".lock-00000000 .* damaged"):
        take(tmp_path)


def test_processes_are_known_without_proc(tmp_path, monkeypatch, holder):
    """As on macOS, whose `ps` says when a process began."""
    if not shutil.which("ps"):
        pytest.skip("no ps")
    monkeypatch.setattr(sys, "platform", "darwin")
    process = holder(tmp_path)
    with pytest.raises(InputError, match=f"process {process.pid} "):
        take(tmp_path)
    process.kill()
    process.join()
    take(tmp_path).release()


# ---- many at one moment ----

def compete(directory, begin, rounds, failed):
    """Take, be alone for a moment, give back; who is refused tries again, as a person would."""
    begin.wait()
    while rounds:
        try:
            lock = take(directory)
        except InputError:
            continue
        try:
            (directory / "inside").touch(exist_ok=False)
        except FileExistsError:
            failed.set()
        time.sleep(0.002)
        (directory / "inside").unlink()
        rounds -= 1
        # sometimes as a process that is killed does it: the file stays, and is nobody's
        if rounds % 3 == 0:
            about = json.loads(lock.path.read_text())
            dead = directory / f".lock-{os.getpid():08x}"
            dead.write_text(json.dumps({**about, "start": "of a dead one"}))
        lock.release()


def test_of_many_at_one_moment_never_two_are_in(tmp_path):
    begin, failed = forking.Event(), forking.Event()
    processes = [forking.Process(target=compete, args=(tmp_path, begin, 12, failed), daemon=True)
                 for _ in range(4)]
    for process in processes:
        process.start()
    begin.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert not failed.is_set()
    take(tmp_path).release()
    assert not list(Path(tmp_path).iterdir())


# ---- every command that writes for longer than a moment ----

COMMANDS = {
    "evaluate.py phantom": (evaluate_phantom.main, "--out {}/there", "there"),
    "evaluate.py features": (compare.extract_features, "--images nowhere --out {}/there", "there"),
    "evaluate.py compare": (compare.main, "a.jsonl b.jsonl --out {}/there", "there"),
    "evaluate.py privacy": (privacy.main, "--out {}/there", "there"),
    "weights.export": (export.main, "nowhere {}/there", "there"),
    "training.latents": (latents.main, "--vae {vae} --data {}", ""),
    "phantom.train_vae": (train_vae.main, "--data nowhere --out {}", ""),
    "train_gen.py": (train_gen.main, "--data nowhere --init nowhere --out {}", ""),
    "bench.table5": (table5.main, "--preset table5-1:2 --data nowhere --out {}", ""),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stops_where_another_one_writes(command, vae_run, tmp_path):
    """Before anything else that is wrong with it."""
    main, line, name = COMMANDS[command]
    lock_of_another(tmp_path, name)
    words = [word.format(tmp_path, vae=vae_run) for word in line.split()]
    if main in (train_vae.main, train_gen.main, table5.main, latents.main):
        words += ["--device", "cpu"]
    with pytest.raises(InputError, match="process .* on elsewhere"):
        main(words)
