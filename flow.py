"""Flow matching (paper Eq. 2): the path, the loss, guidance and the solvers. Knows no model.

    x_t = (1 - t) x_0 + t noise,   v = dx_t/dt = noise - x_0,   t in [0, 1]: 0 is data, 1 is noise.

    training    x_t, target = interpolate(x_0, noise, t)      with t = sample_t(n), n ~ N(0, 1)
                loss = flow_loss(velocity(x_t, t), target)
    sampling    x_0 = euler(velocity, noise, schedule(steps))      walks t from 1 down to 0

A model enters as a callable `velocity(x_t, t) -> v` with x_t (B, C, h, w) and t (B,). Mind the
direction when comparing papers: SiT has the data at t = 1, UniX and flux have them at 0.
"""
import torch


# ---- training ----

def shift_time(t, shift):
    """Move times towards noise, t <- s t / (1 + (s - 1) t). Larger pictures want a larger s."""
    return shift * t / (1 + (shift - 1) * t)


def sample_t(n, shift=1.0):
    """Standard normal draws (B,) -> training times (B,): t = sigmoid(n), shifted."""
    return shift_time(torch.sigmoid(n), shift)


def interpolate(x_0, noise, t):
    """x_0, noise (B, C, h, w), t (B,) -> the point x_t on the straight path, its velocity."""
    t = t[:, None, None, None]
    x_t = (1 - t) * x_0 + t * noise
    return x_t, noise - x_0


def flow_loss(v, target):
    """Mean squared error per image (B,), over channels and latent pixels (Eq. 2), in fp32."""
    return (v.float() - target.float()).square().mean(dim=(1, 2, 3))


# ---- sampling ----

# how `guide` may rescale -> the dimensions of its norm
RENORMS = {"global": (1, 2, 3), "channel": (1,), "none": None}


def guide(v_cond, v_uncond, scale, renorm="global"):
    """Classifier-free guidance, its norm at most the conditional velocity's. (B, C, h, w) each.

    v = v_uncond + scale (v_cond - v_uncond), then times min(1, |v_cond| / |v|). The norm is over
    each image ("global") or over the channels of each latent pixel ("channel"); "none" does not
    rescale.
    """
    v = v_uncond + scale * (v_cond - v_uncond)
    dims = RENORMS[renorm]
    if dims is None:
        return v

    def norm(x):
        return torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)

    ratio = norm(v_cond) / (norm(v) + 1e-8)
    return v * ratio.clamp(max=1).to(v.dtype)


def schedule(steps, shift=1.0):
    """Times (steps + 1,) from 1 down to 0. The release's "50 timesteps, shift 3" is (49, 3.0)."""
    return shift_time(torch.linspace(1, 0, steps + 1), shift)


def intervals(times):
    """[(t, t_next), …], the steps of a schedule."""
    return list(zip(times[:-1], times[1:]))


def euler(velocity, noise, times, progress=iter):
    """x <- x - v (t - t_next): first order, one velocity a step. progress wraps the steps, as tqdm.
    """
    x = noise
    for t, t_next in progress(intervals(times)):
        v = velocity(x, t.expand(len(x)))
        x = x - v * (t - t_next)
    return x


def heun(velocity, noise, times, progress=iter):
    """Euler's guess, then the mean of the slopes at both ends: second order, two velocities."""
    x = noise
    for t, t_next in progress(intervals(times)):
        v = velocity(x, t.expand(len(x)))
        guess = x - v * (t - t_next)
        v_next = velocity(guess, t_next.expand(len(x)))
        x = x - (v + v_next) * (t - t_next) / 2
    return x


def ab2(velocity, noise, times, progress=iter):
    """Adams-Bashforth: extrapolates with the previous slope. Second order, yet one velocity a step.

    For steps h = t - t_next of unequal length, h_old the one before:
    x <- x - h ((1 + h / (2 h_old)) v - h / (2 h_old) v_old). The first step is Euler's.
    """
    x, v_old, h_old = noise, None, None
    for t, t_next in progress(intervals(times)):
        v = velocity(x, t.expand(len(x)))
        h = t - t_next
        slope = v
        if v_old is not None:
            r = h / (2 * h_old)
            slope = (1 + r) * v - r * v_old
        x = x - h * slope
        v_old, h_old = v, h
    return x


# name -> the solver, and how many velocities it asks for in a step. To add one, name it here, and
# its order in ORDER of tests/test_flow.py
SOLVERS = {"euler": (euler, 1), "heun": (heun, 2), "ab2": (ab2, 1)}
