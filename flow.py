"""Flow matching (paper Eq. 2): the path, the loss, guidance and the solvers. Knows no model.

    x_t = (1 - t) x_0 + t noise,   v = dx_t/dt = noise - x_0,   t in [0, 1]: 0 is data, 1 is noise.

A model enters as a callable `velocity(x_t, t) -> v` with x_t (B, C, h, w) and t (B,). Training draws t from a
logit-normal; sampling walks t from 1 down to 0. (SiT has data at t = 1 in its paper; we follow UniX and flux.)
"""
import torch


def shift_time(t, shift):
    """Move times towards noise: t <- s t / (1 + (s - 1) t). Larger pictures want a larger shift; 1 changes nothing."""
    return shift * t / (1 + (shift - 1) * t)


def sample_t(n, shift=1.0):
    """Standard normal draws (B,) -> training times (B,): t = sigmoid(n), shifted."""
    return shift_time(torch.sigmoid(n), shift)


def interpolate(x_0, noise, t):
    """The point x_t on the straight path and its velocity: two (B, C, h, w) from x_0, noise and t (B,)."""
    t = t[:, None, None, None]
    return (1 - t) * x_0 + t * noise, noise - x_0


def flow_loss(v, target):
    """Squared error per image (B,): mean over channels, then over latent pixels (Eq. 2). In fp32."""
    return (v.float() - target.float()).square().mean(dim=(1, 2, 3))


def guide(v_cond, v_uncond, scale, renorm="global"):
    """Classifier-free guidance, rescaled so that it never outgrows the conditional velocity. (B, C, h, w) each.

    v = v_uncond + scale (v_cond - v_uncond), then times min(1, |v_cond| / |v|); the norm is over each image
    ("global"), or over the channels of each latent pixel ("channel"), or there is no rescaling ("none").
    """
    v = v_uncond + scale * (v_cond - v_uncond)
    if renorm == "none":
        return v
    dims = {"global": (1, 2, 3), "channel": (1,)}[renorm]
    norm = lambda x: torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    return v * (norm(v_cond) / (norm(v) + 1e-8)).clamp(max=1).to(v.dtype)


def schedule(steps, shift=1.0):
    """Times (steps + 1,) from 1 to 0 for `steps` solver steps. The release's "50 timesteps, shift 3" is (49, 3)."""
    return shift_time(torch.linspace(1, 0, steps + 1), shift)


def euler(velocity, noise, times, progress=iter):
    """x <- x - v (t - t_next), first order, one velocity a step. `progress` may wrap the loop (tqdm)."""
    x = noise
    for t, t_next in progress(list(zip(times[:-1], times[1:]))):
        x = x - velocity(x, t.expand(len(x))) * (t - t_next)
    return x


def heun(velocity, noise, times, progress=iter):
    """Euler's guess, then the mean of the slopes at both ends: second order, two velocities a step."""
    x = noise
    for t, t_next in progress(list(zip(times[:-1], times[1:]))):
        v = velocity(x, t.expand(len(x)))
        guess = x - v * (t - t_next)
        x = x - (v + velocity(guess, t_next.expand(len(x)))) * (t - t_next) / 2
    return x


def ab2(velocity, noise, times, progress=iter):
    """Second-order Adams-Bashforth: extrapolates with the last slope, one velocity a step (the first is Euler's).

    For steps h = t - t_next of unequal length (h_old before): x <- x - h ((1 + h/(2 h_old)) v - h/(2 h_old) v_old).
    """
    x, v_old, h_old = noise, None, None
    for t, t_next in progress(list(zip(times[:-1], times[1:]))):
        v, h = velocity(x, t.expand(len(x))), t - t_next
        r = 0.0 if v_old is None else h / (2 * h_old)
        x = x - h * (v if v_old is None else (1 + r) * v - r * v_old)
        v_old, h_old = v, h
    return x


SOLVERS = {"euler": (euler, 1), "heun": (heun, 2), "ab2": (ab2, 1)}    # name -> solver, velocities a step
