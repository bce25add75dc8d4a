"""flow.py: solvers on an equation with a known solution; path, loss and guidance by hand."""
import math

import pytest
import torch

import flow
from helpers import normal

SOLVERS = [(name, solver, calls) for name, (solver, calls) in flow.SOLVERS.items()]
ORDER = {"euler": 1, "heun": 2, "ab2": 2}


@pytest.mark.parametrize("name, solver, calls", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 2.0], ids=["equal steps", "unequal steps"])
def test_halving_the_steps_divides_the_error_by_2_to_the_order(name, solver, calls, shift):
    """dx/dt = x^2 cos(t) has the solution 1/x = 1/x(1) + sin(1) - sin(t)."""
    times = []

    def field(x, t):
        assert t.shape == (2,)
        times.append(t)
        return x ** 2 * t.double().cos()[:, None, None, None]

    start = torch.tensor([0.5, -0.8], dtype=torch.float64).view(-1, 1, 1, 1)
    exact = 1 / (1 / start + math.sin(1))
    coarse, fine = (solver(field, start, flow.schedule(n, shift).double()) for n in (128, 256))
    ratio = (coarse - exact).norm() / (fine - exact).norm()
    assert math.log2(ratio) == pytest.approx(ORDER[name], abs=0.15)
    assert len(times) == (128 + 256) * calls


def test_ab2_minds_the_length_of_its_steps():
    """Where the velocity is t itself, only the first step, which is Euler's, has an error."""
    times = flow.schedule(5, 3.0)
    x = flow.ab2(lambda x, t: t.view(-1, 1, 1, 1), torch.zeros(1, 1, 1, 1), times)
    assert torch.allclose(x, -0.5 - (times[0] - times[1]) ** 2 / 2)


def test_times_of_sampling_and_training_are_shifted_alike():
    """The release: linspace(1, 0, 50) shifted by 3, of which 41 steps have guidance in (0.4, 1]."""
    assert torch.equal(flow.schedule(4), torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    times, t = flow.schedule(49, 3.0), 1 - torch.arange(50) / 49
    assert torch.allclose(times, 3 * t / (1 + 2 * t), atol=1e-6)
    assert ((times[:-1] > 0.4) & (times[:-1] <= 1)).sum() == 41

    n = normal(1000)
    t = torch.sigmoid(n)
    assert torch.equal(flow.sample_t(n), t)
    assert torch.allclose(flow.sample_t(n, 3.0), 3 * t / (1 + 2 * t))


def test_path_and_loss():
    x_0, noise = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    x_t, target = flow.interpolate(x_0, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(x_t[0], x_0[0])
    assert torch.allclose(x_t[1], 0.75 * x_0[1] + 0.25 * noise[1])
    assert torch.equal(x_t[2], noise[2])
    assert torch.equal(target, noise - x_0)
    v = target + torch.tensor([0.0, 1.0, 2.0])[:, None, None, None]
    assert torch.allclose(flow.flow_loss(v, target), torch.tensor([0.0, 1.0, 4.0]), atol=1e-5)
    assert flow.flow_loss(v.bfloat16(), target.bfloat16()).dtype == torch.float32


# ---- guidance ----

def test_guide_by_hand():
    def image(value):
        return torch.full((1, 1, 1, 1), value)

    assert flow.guide(image(3.0), image(1.0), 2.0, "none").item() == 5, "1 + 2 * (3 - 1)"
    assert flow.guide(image(3.0), image(1.0), 2.0).item() == pytest.approx(3), "shortened to |3|"
    assert flow.guide(image(1.0), image(3.0), 1.5).item() == 0, "3 + 1.5 * (1 - 3): left alone"
    v = torch.tensor([[3.0, 0.0], [4.0, 2.0]]).view(1, 2, 1, 2)         # two pixels of two channels
    guided = flow.guide(v, torch.zeros_like(v), 2.0, "channel")
    assert torch.allclose(guided, v, rtol=1e-5), "each pixel back to its own length"
    assert torch.equal(flow.guide(v, -v, 1.0, "none"), v), "scale 1 is no guidance"
    zero = torch.zeros(1, 2, 2, 2)
    assert torch.equal(flow.guide(zero, zero, 2.0), zero), "no division by nothing"


@pytest.mark.parametrize("renorm, dims", [("global", (1, 2, 3)), ("channel", 1)])
@pytest.mark.parametrize("scale", [0.5, 7.0])
def test_guide_only_shortens_each_image_alone(renorm, dims, scale):
    """Never longer than v_cond or the plain guided velocity, never turned; sizes differ widely."""
    sizes = torch.logspace(-3, 3, 16).view(16, 1, 1, 1)
    cond, uncond = normal(16, 3, 4, 4) * sizes, 2 * normal(16, 3, 4, 4, seed=1)
    guided = flow.guide(cond, uncond, scale, renorm)
    unscaled = flow.guide(cond, uncond, scale, "none")
    for other in (cond, unscaled):
        longest = torch.linalg.vector_norm(other, dim=dims) * (1 + 1e-5)
        assert (torch.linalg.vector_norm(guided, dim=dims) <= longest).all()
    cosine = torch.cosine_similarity(guided, unscaled, dim=1, eps=1e-20)
    assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-4)
    for i in range(16):
        alone = flow.guide(cond[i:i + 1], uncond[i:i + 1], scale, renorm)
        assert torch.allclose(guided[i:i + 1], alone, rtol=1e-5, atol=0)
