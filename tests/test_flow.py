"""flow.py on fields with a known solution: straight paths, a nonlinear ODE; guidance by hand."""
import math

import pytest
import torch

import flow
from helpers import normal

SOLVERS = [(name, solver, calls) for name, (solver, calls) in flow.SOLVERS.items()]
ORDER = {"euler": 1, "heun": 2, "ab2": 2}


@pytest.mark.parametrize("name, solver, calls", SOLVERS)
@pytest.mark.parametrize("steps, shift", [(1, 1.0), (7, 1.0), (7, 3.0)])
def test_straight_paths_are_exact(name, solver, calls, steps, shift):
    """Towards one point x_0 the velocity is (x_t - x_0) / t: any number of steps ends in x_0.

    Heun asks at t = 0 too, where this field has no value, so it walks the same field as a constant.
    """
    x_0, noise, times = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1), []

    def field(x, t):
        assert t.shape == (2,)
        times.append(t)
        return noise - x_0 if name == "heun" else (x - x_0) / t[:, None, None, None]

    x = solver(field, noise, flow.schedule(steps, shift))
    assert (x - x_0).abs().max() < 1e-5
    assert len(times) == steps * calls


@pytest.mark.parametrize("name, solver, calls", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_halving_the_steps_divides_the_error_by_2_to_the_order(name, solver, calls, shift):
    """dx/dt = x^2 cos(t) has the solution 1/x = 1/x(1) + sin(1) - sin(t)."""
    def field(x, t):
        return x ** 2 * t.double().cos()[:, None, None, None]

    start = torch.tensor([0.5, -0.8], dtype=torch.float64).view(-1, 1, 1, 1)
    exact = 1 / (1 / start + math.sin(1))
    coarse, fine = (solver(field, start, flow.schedule(n, shift).double()) for n in (128, 256))
    ratio = (coarse - exact).norm() / (fine - exact).norm()
    assert math.log2(ratio) == pytest.approx(ORDER[name], abs=0.15)


def test_ab2_minds_the_length_of_its_steps():
    """Where the velocity is t itself, only the first step, which is Euler's, has an error."""
    times = flow.schedule(5, 3.0)
    x = flow.ab2(lambda x, t: t.view(-1, 1, 1, 1), torch.zeros(1, 1, 1, 1), times)
    first = times[0] - times[1]
    assert torch.allclose(x, -0.5 - first ** 2 / 2)


def test_schedule_of_the_release():
    """linspace(1, 0, 50) shifted by 3: 49 evaluations, 41 of them with guidance in (0.4, 1]."""
    assert torch.equal(flow.schedule(4), torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    times = flow.schedule(49, 3.0)
    t = 1 - torch.arange(50) / 49
    assert torch.allclose(times, 3 * t / (1 + 2 * t), atol=1e-6)
    assert (times[0], times[-1]) == (1, 0)
    assert ((times[:-1] > 0.4) & (times[:-1] <= 1)).sum() == 41


def test_training_times():
    n = normal(1000)
    t = torch.sigmoid(n)
    assert torch.equal(flow.sample_t(n), t)
    assert torch.allclose(flow.sample_t(n, 3.0), 3 * t / (1 + 2 * t))
    assert (flow.sample_t(n, 3.0) > t).all(), "a shift above 1 moves towards noise"


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


@pytest.mark.parametrize("renorm", ["global", "channel", "none"])
def test_guide_treats_every_image_alone(renorm):
    """A batch of very different images is its images one by one."""
    sizes = torch.tensor([1e-3, 1, 10, 1e3]).view(4, 1, 1, 1)
    cond, uncond = normal(4, 3, 4, 4) * sizes, normal(4, 3, 4, 4, seed=1)
    batch = flow.guide(cond, uncond, 3.0, renorm)
    for i in range(4):
        alone = flow.guide(cond[i:i + 1], uncond[i:i + 1], 3.0, renorm)
        assert torch.allclose(batch[i:i + 1], alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("renorm, dims", [("global", (1, 2, 3)), ("channel", 1)])
@pytest.mark.parametrize("scale", [0.5, 2.0, 7.0])
def test_guide_never_outgrows_the_conditional_velocity(renorm, dims, scale):
    """It only shortens: never longer than v_cond or the plain guided velocity, never turned."""
    cond, uncond = normal(16, 3, 4, 4), 2 * normal(16, 3, 4, 4, seed=1)
    guided = flow.guide(cond, uncond, scale, renorm)
    unscaled = flow.guide(cond, uncond, scale, "none")

    def length(x):
        return torch.linalg.vector_norm(x, dim=dims)

    assert (length(guided) <= length(cond) * (1 + 1e-5)).all()
    assert (length(guided) <= length(unscaled) * (1 + 1e-5)).all()
    cosine = torch.cosine_similarity(guided, unscaled, dim=1)
    assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-4)
