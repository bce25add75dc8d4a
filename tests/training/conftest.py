"""Fixtures of the tests that cut one training run into processes and pieces of time."""
import pytest
import torch

from tiny_runs import MAIN, gen, und

TWENTY = (
    "--threads 1 --batch-size 8 --micro-batch 8 --lr 2e-3 --steps 20 --save-every 5 "
    "--keep 9").split()


@pytest.fixture(autouse=True, scope="module")
def threads():
    """--threads speaks to the process of the tests too: the other modules get theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def line(uneven, stage1, vae_run):
    """line(stage, out, *more): the command line of twenty steps in fp32, on one thread.

    On reports of 5 to 162 tokens, in epochs that end in the middle of a batch.
    """
    def line(stage, out, *more):
        if stage == 1:
            words = und(uneven, out)
        else:
            words = gen(uneven, out, stage1, "--vae", vae_run)
        return [*words, *TWENTY, *map(str, more)]
    return line


@pytest.fixture(scope="session")
def alone(line, tmp_path_factory):
    """stage -> the directory of its twenty steps, by one process without accumulation."""
    runs = {}
    for stage, main in MAIN.items():
        runs[stage] = tmp_path_factory.mktemp("alone")
        main(line(stage, runs[stage]))
    return runs
