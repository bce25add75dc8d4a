"""training/peak.py: a GPU's peak goes by its name, a CPU's is measured soon or not at all."""
import pytest
import torch

from training import peak


@pytest.mark.parametrize("name, best", [
    ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA L40S", 362e12), ("NVIDIA RTX A4000", None),
    ("NVIDIA GH200 480GB", 989e12), ("NVIDIA H20", 148e12), ("NVIDIA L20", 119.5e12)])
def test_the_peak_of_a_gpu_goes_by_its_name(monkeypatch, capsys, name, best):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    assert peak.peak_flops(torch.device("cuda")) == best
    assert peak.peak_flops(torch.device("cuda"), "float32") is None
    assert peak.peak_to_log(torch.device("mps"), "float32") is None
    assert "mfu is not logged" in capsys.readouterr().out


@pytest.mark.parametrize("small, large, best, products", [
    (0.01, [0.3, 0.25] + 4 * [0.1], 2 * 1536 ** 3 / 0.1, 8),
    (0.02, [0.5, 0.6], 2 * 1536 ** 3 / 0.5, 4),     # slower: as many as a second has room for
    (0.04, [], None, 2)])                           # not at all
def test_the_peak_of_a_cpu_is_measured_within_two_seconds(
        monkeypatch, small, large, best, products):
    times = iter([9, small, *large])
    asked = []

    def timeit(call, number):
        asked.append(number)
        return next(times)
    monkeypatch.setattr(peak.timeit, "timeit", timeit)
    assert peak.peak_flops(torch.device("cpu"), "float32") == best and len(asked) == products
