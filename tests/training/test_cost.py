"""training/cost.py: operations as torch counts them; a table of what fits where."""
import re
from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from common.cli import InputError
from helpers import tiny_config
from tiny_steps import SMALL, STEPS, build, to_draw, to_read
from training import cost

# ---- operations ----

@pytest.mark.parametrize("name", STEPS)
def test_operations_are_those_that_torch_counts(name):
    """Within 1 % of its count of the real step. It, too, counts products and attention alone."""
    step = STEPS[name]
    cfg = tiny_config(**SMALL, generation=step.gen > 0)
    _, loss = build(step, cfg)
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    ours = cost.flops(cfg, step)
    assert sum(ours.values()) == pytest.approx(counter.get_total_flops(), rel=0.01)

    # MFU leaves out what is computed again
    plain = replace(step, recompute=False)
    assert (ours["recomputed"] > 0) == step.recompute
    assert cost.model_flops(cfg, step) == sum(cost.flops(cfg, plain).values())


def test_a_batch_counts_with_its_own_texts():
    """Images, tokens that u and g saw, operations of the lengths that the batches have."""
    cfg = tiny_config(**SMALL)
    step = STEPS["Table 5, 1:1"]
    shorter = replace(step, text=32, answer=10, report=16)
    counts = cost.counted(cfg, step, to_draw(shorter), to_read(shorter, cfg.vision))
    assert counts["img"] == 2 and counts["g_tok"] == 2 * 256
    assert counts["u_tok"] == 2 * (36 + 2 + 32) + 2 * (16 + 2)
    assert counts["flops"] == cost.model_flops(cfg, shorter)


# ---- the table ----

@pytest.mark.slow
def test_the_table_is_printed_and_fits(capsys):
    """A tenth of every GPU stays free with texts of usual length; the longest fit too."""
    cost.main([])
    printed = capsys.readouterr().out
    assert "stage 1, GPU 48: memory" in printed
    rows = printed.splitlines()[-len(cost.STAGES):]
    for (stage, gpu), row in zip(cost.STAGES, rows, strict=True):
        assert row.split()[:2] == [stage, str(gpu)]
        usual, longest = map(float, re.findall(r"\d+\.\d", row)[:2])
        assert usual <= 0.9 * gpu and longest <= gpu


def test_the_cost_of_any_other_run(capsys, monkeypatch):
    """The command's own sizes would take seconds."""
    monkeypatch.setattr(cost, "sizes", lambda step: tiny_config(**SMALL, generation=True))
    cost.main("--stage 3 --micro-batch 2 --gpus 4 --recompute".split())
    *parts, _, row = capsys.readouterr().out.splitlines()
    assert "stage 3" in parts[0] and "total" in parts[-1]
    assert row.split()[:5] == ["3", "any", "--micro-batch", "2", "--recompute"]
    with pytest.raises(InputError, match="--micro-batch and --gpus: 1 or more"):
        cost.main(["--gpus", "0"])
    with pytest.raises(InputError, match="--lora is for stages 1, 2 and 3"):
        cost.main("--stage 1:1 --lora 8".split())
    step = cost.CostConfig(lora=8, ema=False, micro_batch=2).step()
    assert (step.lora, step.ema, step.und, step.world) == (8, False, 2, 1)
    step = cost.CostConfig(stage="1:1", micro_batch=3, gpus=4, shard=True).step()
    assert (step.und, step.gen, step.world, step.shard, step.recompute) == (3, 3, 4, True, False)
    assert cost.CostConfig(micro_batch=3).step().gen == 0, "stage 1 draws nothing"
