"""flow.py on fields with a known solution: straight paths, a nonlinear ODE, and guidance by hand."""
import math

import pytest
import torch

import flow


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(*values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


@pytest.mark.parametrize("solver", flow.SOLVERS)
@pytest.mark.parametrize("steps, shift", [(1, 1.0), (7, 1.0), (7, 3.0)])
def test_straight_paths_are_exact(solver, steps, shift):
    """Towards one point x_0 the velocity is (x_t - x_0) / t: any number of steps ends in x_0. (Heun never asks at t = 0
    for more than the last step, where this field has no value, so it walks a constant field.)"""
    x_0, noise = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    field = (lambda x, t: noise - x_0) if solver == "heun" else (lambda x, t: (x - x_0) / t[:, None, None, None])
    x = flow.SOLVERS[solver][0](field, noise, flow.schedule(steps, shift))
    assert (x - x_0).abs().max() < 1e-5


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2), ("ab2", 2)])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_order(solver, order, shift):
    """dx/dt = x^2 cos(t): 1/x = 1/x(1) + sin(1) - sin(t). Halving the steps divides the error by 2^order."""
    field = lambda x, t: x ** 2 * t.double().cos()[:, None, None, None]
    exact = 1 / (1 / image(0.5, -0.8) + math.sin(1))
    error = [(flow.SOLVERS[solver][0](field, image(0.5, -0.8), flow.schedule(n, shift).double()) - exact).norm().log2()
             for n in (128, 256)]
    assert float(error[0] - error[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", flow.SOLVERS)
def test_velocities_a_step(solver):
    calls = []
    solve, evaluations = flow.SOLVERS[solver]
    solve(lambda x, t: calls.append(t) or x, draw(3, 1, 2, 2), flow.schedule(5))
    assert len(calls) == 5 * evaluations and all(t.shape == (3,) for t in calls)


def test_schedule_of_the_release():
    """linspace(1, 0, 50) shifted by 3: 49 evaluations, 41 of them with guidance in (0.4, 1]."""
    times = flow.schedule(49, 3.0)
    assert times.shape == (50,) and times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()
    for i in (0, 7, 30, 49):
        t = 1 - i / 49
        assert float(times[i]) == pytest.approx(3 * t / (1 + 2 * t), abs=1e-6)
    guided = (times[:-1] > 0.4) & (times[:-1] <= 1)
    assert guided.sum() == 41 and (~guided).sum() == 8
    assert torch.equal(flow.schedule(4), torch.tensor([1, 0.75, 0.5, 0.25, 0]))


def test_sample_t():
    n = draw(1000)
    assert torch.equal(flow.sample_t(n), torch.sigmoid(n))
    t = torch.sigmoid(n)
    assert torch.allclose(flow.sample_t(n, 3.0), 3 * t / (1 + 2 * t))
    assert (flow.sample_t(n, 3.0) > t).all()                    # towards noise


def test_path_and_loss():
    x_0, noise, t = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1), torch.tensor([0.0, 0.25, 1.0])
    x_t, target = flow.interpolate(x_0, noise, t)
    assert torch.equal(x_t[0], x_0[0]) and torch.equal(x_t[2], noise[2])
    assert torch.allclose(x_t[1], 0.75 * x_0[1] + 0.25 * noise[1]) and torch.equal(target, noise - x_0)
    loss = flow.flow_loss(target + torch.tensor([0.0, 1.0, 2.0])[:, None, None, None], target)
    assert torch.allclose(loss, torch.tensor([0.0, 1.0, 4.0]), atol=1e-5)
    assert flow.flow_loss(target.bfloat16(), target.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("renorm", ["global", "channel", "none"])
def test_guide_is_per_image(renorm):
    """A batch with images of very different size is its images one by one."""
    cond, uncond = draw(4, 3, 4, 4) * torch.tensor([1e-3, 1, 10, 1e3]).view(4, 1, 1, 1), draw(4, 3, 4, 4, seed=1)
    batch = flow.guide(cond, uncond, 3.0, renorm)
    for i in range(4):
        assert torch.allclose(batch[i:i + 1], flow.guide(cond[i:i + 1], uncond[i:i + 1], 3.0, renorm), rtol=1e-5, atol=0)


def test_guide_by_hand():
    image = lambda value: torch.full((1, 1, 1, 1), value)
    cond, uncond = image(3.0), image(1.0)
    assert flow.guide(cond, uncond, 2.0, "none").item() == 5        # 1 + 2 * (3 - 1)
    assert flow.guide(cond, uncond, 2.0).item() == pytest.approx(3, rel=1e-6)       # rescaled to |3|
    assert flow.guide(image(1.0), image(3.0), 1.5).item() == 0      # 3 + 1.5 * (1 - 3) = 0: shorter, left alone
    v = torch.tensor([[3.0, 0.0], [4.0, 2.0]]).view(1, 2, 1, 2)     # two pixels of two channels
    guided = flow.guide(v, torch.zeros_like(v), 2.0, "channel")
    assert torch.allclose(guided, v, rtol=1e-5)                     # each pixel back to its own length


@pytest.mark.parametrize("renorm, dims", [("global", (1, 2, 3)), ("channel", 1)])
def test_guide_never_amplifies(renorm, dims):
    cond, uncond = draw(16, 3, 4, 4), 2 * draw(16, 3, 4, 4, seed=1)
    for scale in (0.5, 1.0, 2.0, 7.0):
        guided, plain = flow.guide(cond, uncond, scale, renorm), flow.guide(cond, uncond, scale, "none")
        norm = lambda x: torch.linalg.vector_norm(x, dim=dims)
        assert (norm(guided) <= norm(cond) * (1 + 1e-5)).all() and (norm(guided) <= norm(plain) * (1 + 1e-5)).all()
        assert torch.allclose(torch.cosine_similarity(guided.flatten(1), plain.flatten(1)), torch.ones(16), atol=1e-5) \
            or renorm == "channel"


@pytest.mark.parametrize("renorm", ["global", "channel", "none"])
def test_scale_one_is_the_conditional_velocity(renorm):
    cond, uncond = draw(4, 3, 4, 4), draw(4, 3, 4, 4, seed=1)
    assert torch.allclose(flow.guide(cond, uncond, 1.0, renorm), cond, atol=1e-6)
    same = flow.guide(cond, cond, 5.0, renorm)
    assert torch.allclose(same, cond, atol=1e-6)


def test_guide_of_nothing_is_finite():
    zero = torch.zeros(1, 2, 2, 2)
    assert torch.equal(flow.guide(zero, zero, 2.0), zero)
