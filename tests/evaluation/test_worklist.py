"""evaluation/worklist.py: work is done once, in order, and goes on after an interruption."""
import pytest
import torch

from common.processes import InputError, Process
from evaluation import worklist

ONE = Process(0, 1, torch.device("cpu"))


def test_blocks_share_a_key():
    blocks = worklist.grouped(list("abAcBCd"), str.lower, 2)
    assert blocks == [["a", "A"], ["b", "B"], ["c", "C"], ["d"]]
    assert worklist.grouped(list("aaa"), str, 2) == [["a", "a"], ["a"]]


def test_work_is_done_once_and_in_order(tmp_path):
    done, blocks = [], [["c", "a"], ["b", "d"], ["e"]]

    def do(block):
        done.append(block)
        return [{"id": i, "error": "bad"} if i == "b" else {"id": i, "report": i * 2} for i in reversed(block)]

    # what a run of three processes left behind: a part of each, one with a torn line
    (tmp_path / "x.part2.jsonl").write_text('{"id": "c", "report": "cc"}\n{"id": "a", "report": "aa"}\n')
    (tmp_path / "x.part1.jsonl").write_text('{"id": "d", "report": "dd"}\n{"id": "b", "rep')
    rows = worklist.run(tmp_path / "x.jsonl", blocks, do, ONE)
    assert done == [["b", "d"], ["e"]] and list(rows) == list("cabde")
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]
    assert worklist.split(rows, "report") == ({"c": "cc", "a": "aa", "d": "dd", "e": "ee"}, {"b": "bad"})
    assert worklist.run(tmp_path / "x.jsonl", blocks, None, ONE) == rows
    # killed when all was done but not yet joined
    (tmp_path / "x.jsonl").rename(tmp_path / "x.part0.jsonl")
    assert worklist.run(tmp_path / "x.jsonl", blocks, None, ONE) == rows and [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_rows_may_hold_any_text_and_end_anywhere(tmp_path):
    """Line ends of Unicode within a report; a kill in the middle of a letter."""
    path, rows = tmp_path / "x.jsonl", {"a": {"id": "a", "report": "\u2028 \x85 é"}, "b": {"id": "b", "report": "é"}}
    worklist.write_rows(path, rows.values())
    assert worklist.read_rows(path) == rows
    path.write_bytes(path.read_bytes()[:-4])        # é is two bytes, and "} and the line end follow
    assert list(worklist.read_rows(path)) == ["a"]
    with pytest.raises(InputError, match="x.jsonl is damaged"):
        worklist.read_rows(path, ours=False)
