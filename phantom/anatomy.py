"""One healthy person: measures, outlines, and all that a picture without findings shows.

Lengths are fractions of the picture's side (x to the right, y down, both from 0 to 1), so the same
phantom can be drawn at any size; brightness runs from 0 (black) to 1 (white). As in any chest X-ray
the patient faces us: the patient's left is on the right of the picture.
"""
import numpy as np

from phantom.facts import SIDES

# ---- shapes ----

def inside(distance, edge):
    """1 inside a shape (distance < 0), 0 outside, a ramp of width `edge` between: a soft edge."""
    return np.clip(0.5 - distance / edge, 0, 1)


def off_the_line(q):
    """How far q is from the nearest whole number: a pattern that repeats with period 1."""
    return np.abs(q - np.round(q))


# ---- a person ----

class Anatomy:
    """Everything in which two healthy people, or two exposures, differ.

    Ranges are lengths as fractions of the picture's side, unless the comment says something else.
    """

    def __init__(self, rng):
        u = rng.uniform

        # chest
        self.midline = u(0.485, 0.515)              # x of the spine
        self.tilt = u(-0.04, 0.04)                  # how far the person leans, in radians
        self.width = u(0.37, 0.41)                  # half of the chest's inner width
        self.top = u(0.095, 0.125)                  # y of the upper end of the lungs
        self.dome = {                               # y of the two domes of the diaphragm:
            "left": u(0.73, 0.77),
            "right": u(0.71, 0.745),                # the liver pushes this one up
        }
        self.angle = u(0.07, 0.10)                  # how deep the diaphragm falls to the chest wall
        self.heart_ratio = u(0.40, 0.47)            # width of the heart to that of the chest
        self.heart_height = u(0.20, 0.23)           # half of it
        self.mediastinum = u(0.058, 0.07)           # half the width of the great vessels
        self.neck = u(0.12, 0.15)                   # half its width
        self.trunk = u(0.445, 0.49)                 # half its width below the shoulders
        self.shoulder = u(0.15, 0.20)               # height over which the neck widens to the trunk

        # bones
        self.clavicle_y = u(0.155, 0.18)            # y of its inner end
        self.clavicle_rise = u(0.04, 0.07)          # how far it rises towards the shoulder
        self.rib_phase = u(0, 1)                    # where the first rib lies, in rib gaps
        self.rib_gap = u(0.073, 0.082)              # from one rib to the next
        self.rib_drop = u(0.10, 0.15)               # how steeply the ribs sink
        self.rib_half = u(0.012, 0.015)             # half the width of a rib

        # brightness
        self.rib_tone = u(0.13, 0.17)               # what a rib adds
        self.vessel_tone = u(0.07, 0.11)            # what a vessel of the lung adds
        self.lung_tone = u(0.20, 0.27)              # of air
        self.tissue = u(0.62, 0.70)                 # of soft tissue

        # vessels of the lungs
        self.vessels = int(rng.integers(8, 11))     # how many would leave a hilum all around
        self.vessel_phase = u(0, 6.28, 4)           # radians: trunks and branches left, then right
        self.hilum = u(0.39, 0.42)                  # y of the root of the lungs

        # gas in the stomach
        self.gas_x = u(0.14, 0.22)                  # how far left of the midline
        self.gas_height = u(0.025, 0.045)           # half of it
        self.gas_tone = u(0.0, 0.20)                # brightness that it takes away

        # exposure
        self.gamma = u(0.85, 1.2)                   # exponent of the film's curve
        self.black = u(0.0, 0.05)                   # brightness where nothing stops the X-rays
        self.white = u(0.93, 1.02)                  # brightness where all are stopped
        self.grain = u(0.003, 0.007)                # standard deviation of the noise

    def outer(self, y):
        """The lung's outer border at height y, as a distance from the midline."""
        depth = np.clip((y - self.top) / 0.52, 0, 1)        # 0 at the top, 1 where it is widest
        return self.width * (0.42 + 0.58 * np.sqrt(1 - (1 - depth) ** 2.3))

    def heart(self, side):
        """The heart beside the midline is half an ellipse -> (its width, y of centre, half height).

        Two thirds of it lie on the left. An enlarged heart is also taller.
        """
        share = {"left": 0.64, "right": 0.36}[side]
        above_dome = {"left": 0.02, "right": 0.07}[side]
        width = 2 * self.width * self.heart_ratio * share
        height = self.heart_height + 0.5 * (self.heart_ratio - 0.44)
        return width, self.dome[side] - above_dome, height


# ---- a picture ----

class Canvas:
    """What all parts of a picture share, as arrays (size, size): coordinates, outlines, brightness.

    An outline is 1 inside a shape and 0 outside, with a soft edge between.
    """

    def __init__(self, body, size):
        self.pixel = 1.2 / size                             # the narrowest edge without stairs

        # coordinates along the axes of the person, who may lean
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        x, y = np.meshgrid(axis, axis)
        self.x = x - body.midline + body.tilt * (y - 0.5)   # from the midline to the right
        self.y = y - body.tilt * (x - 0.5)
        self.u = np.abs(self.x)                             # distance from the midline
        self.on = {"left": self.x > 0, "right": self.x <= 0}        # the patient's left and right

        # borders of the lungs: y of the lower and upper one, distance from the midline of the outer
        dome = np.where(self.on["left"], body.dome["left"], body.dome["right"])
        fall = ((self.u - 0.48 * body.width) / (0.52 * body.width)) ** 2
        self.diaphragm = dome + body.angle * fall
        self.apex = body.top + 2.4 * (self.u - 0.42 * body.width) ** 2
        self.outer = body.outer(self.y)

        # outlines of the lungs, and of neck, shoulders and trunk together
        self.lung = inside(self.u - self.outer, 0.014)
        self.lung = self.lung * inside(0.8 * body.mediastinum - self.u, 0.03)
        self.lung = self.lung * inside(self.apex - self.y, 0.014)
        self.lung *= inside(self.y - self.diaphragm, 0.012)         # stays float32
        widening = np.clip((self.y - 0.02) / body.shoulder, 0, 1) ** 0.6
        flank = body.neck + (body.trunk - body.neck) * widening
        self.body = inside(self.u - flank - 0.03 * np.clip(self.y - 0.5, 0, 1), 0.03)
        self.aerated = self.lung            # lung with air in it: neither heart nor fluid in front

        # brightness: the picture so far, and what will fill the lungs
        self.picture = np.zeros_like(self.x)
        self.air = np.zeros_like(self.x)
        self.marks = np.zeros_like(self.x)  # vessels, and whatever makes a whole lung whiter

    def brighten(self, outline, tone):
        """Bring what lies within the outline up to a tone; what is brighter stays as it is."""
        self.picture += outline * np.maximum(tone - self.picture, 0)


# ---- anatomy, from the back to the front ----

def soft_tissue(canvas, body):
    """Neck, shoulders, trunk: brighter in the middle, where they are thick, and in the abdomen."""
    y, u = canvas.y, canvas.u
    tissue = body.tissue + 0.10 * np.clip((y - 0.62) / 0.2, 0, 1)
    tissue = tissue + 0.10 * np.exp(-(u / 0.14) ** 2) - 0.10 * (u / 0.45) ** 2
    canvas.picture = 0.03 + canvas.body * (tissue - 0.03)       # almost black beside the body


def from_hilum(canvas, body):
    """Where a point lies as seen from the root of its lung: (outwards, downwards)."""
    return canvas.u - body.mediastinum - 0.02, canvas.y - body.hilum


def air_and_vessels(canvas, body):
    """What fills a healthy lung: air, a bright root, vessels that fan out and branch once."""
    du, dy = from_hilum(canvas, body)
    towards_the_middle = np.exp(-((canvas.u - 0.05) / 0.12) ** 2)
    canvas.air = body.lung_tone + 0.12 * towards_the_middle + 0.06 * (canvas.y - 0.3)

    phase = body.vessel_phase
    left = canvas.on["left"]
    trunks = fan(canvas, du, dy, np.where(left, phase[0], phase[2]),
                 count=body.vessels, near=0.0, far=0.19, half=0.0065)
    branches = fan(canvas, du, dy, np.where(left, phase[1], phase[3]),
                   count=2 * body.vessels + 1, near=0.08, far=0.27, half=0.0045)
    root = np.exp(-(du / 0.035) ** 2 - (dy / 0.065) ** 2)
    canvas.marks = body.vessel_tone * np.maximum(trunks, branches) + 0.18 * root


def fan(canvas, du, dy, phase, count, near, far, half):
    """Vessels around the hilum: `count` bands in a full circle, from radius `near` to `far`.

    `half` is half the width of a band. The bands are evenly spaced in an angle that two sines warp,
    so that they curve and differ.
    """
    r = np.hypot(du, dy) + 1e-3
    angle = np.arctan2(dy, du)
    q = (count * angle / 6.2832 + 0.4 * np.sin(2 * angle + phase)
         + 0.3 * np.sin(17 * r + 2 * angle + phase) + phase)        # whole numbers lie on vessels
    distance = off_the_line(q) * r * 6.2832 / count
    band = inside(distance - half * (1 - 0.6 * r / far), max(0.008, canvas.pixel))      # tapering
    band *= 0.6 + 0.4 * np.sin(2.4 * np.round(q) + phase)           # some are brighter than others
    return band * np.clip((far - r) / 0.15, 0, 1) * np.clip((r - near) / 0.03, 0, 1)


def lungs(canvas, body):
    """Fill the lungs with air and marks, never brighter than soft tissue."""
    filling = np.minimum(canvas.air + canvas.marks, body.tissue)
    canvas.picture += canvas.lung * (filling - canvas.picture)


def mediastinum(canvas, body):
    """The great vessels along the midline, the knob of the aorta on their left, and the heart."""
    x, y, u = canvas.x, canvas.y, canvas.u
    knob = np.hypot(x - body.mediastinum + 0.008, y - 0.275) - 0.036
    mask = inside(np.minimum(u - body.mediastinum, knob), 0.016)
    mask = mask * np.clip((y - 0.05) / 0.1, 0, 1)                   # fades out in the neck
    for side in SIDES:
        width, centre, height = body.heart(side)
        distance = (np.hypot(u / width, (y - centre) / height) - 1) * min(width, height)
        above_diaphragm = inside(y - canvas.diaphragm - 0.03, 0.03)
        mask = np.maximum(mask, canvas.on[side] * inside(distance, 0.014) * above_diaphragm)
    canvas.brighten(canvas.body * mask, body.tissue + 0.08)
    canvas.aerated = canvas.lung * (1 - mask)


def spine_trachea_stomach(canvas, body):
    """Vertebrae with darker discs between them, the air of the windpipe, gas in the stomach."""
    x, y, u = canvas.x, canvas.y, canvas.u
    disc = inside(off_the_line(y / 0.052 + body.rib_phase) - 0.10, 0.1)
    canvas.picture += canvas.body * inside(u - 0.036, 0.008) * (0.035 - 0.03 * disc)
    windpipe = inside(np.abs(x + 0.004) - 0.018, 0.014)
    canvas.picture -= 0.14 * canvas.body * windpipe * inside(y - 0.33, 0.06)
    dx, dy = x - body.gas_x, y - body.dome["left"] - 0.09           # under the left dome
    bubble = np.hypot(dx / 0.07, dy / body.gas_height) - 1
    canvas.picture -= body.gas_tone * inside(bubble, 0.4)


def ribs(canvas, body):
    """Ribs behind rise a little from the spine, then sink to the side; those in front rise to it.

    Bone shows best on air, and what lies in front is fainter.
    """
    y, u = canvas.y, canvas.u
    cage = inside(u - canvas.outer - 0.012, 0.015) * inside(0.6 * body.mediastinum - u, 0.03)
    cage = cage * inside(canvas.apex - 0.02 - y, 0.02)
    cage *= np.clip((0.86 - y) / 0.15, 0, 1) * (0.35 + 0.65 * canvas.aerated)       # stays float32
    s = u / body.width
    behind = 1.6 * s ** 2 - 0.5 * s
    before = 1.3 - 1.5 * s + 0.4 * s ** 2
    fading_in = 0.4 * np.clip(2.2 * s - 0.6, 0, 1)      # cartilage, not bone, near the breastbone
    for drop, tone, phase in ((behind, 1.0, 0.0), (before, fading_in, 0.3)):
        q = (y - body.rib_drop * drop) / body.rib_gap + body.rib_phase + phase
        distance = off_the_line(q) * body.rib_gap - body.rib_half
        bone = hollow(distance, 0.5, max(0.008, canvas.pixel), 0.6, max(0.006, canvas.pixel))
        canvas.picture += body.rib_tone * tone * cage * bone


def clavicles_and_shoulders(canvas, body):
    """A bent bar from the breastbone to each shoulder, and there the round head of the arm."""
    y, u = canvas.y, canvas.u
    axis = body.clavicle_y - body.clavicle_rise * np.sin(np.clip((u - 0.05) / 0.33, 0, 1.2) * 2.0)
    distance = np.maximum(np.abs(y - axis) - 0.013, np.maximum(0.045 - u, u - 0.38))
    bar = hollow(distance, 0.10, 0.010, 0.05, canvas.pixel)
    head = np.hypot(u - body.trunk + 0.03, y - body.clavicle_y - 0.02) - 0.055
    canvas.picture += canvas.body * (bar + 0.09 * inside(head, 0.02))


def hollow(distance, tone, edge, rim_tone, rim_edge):
    """A bone: its marrow, and a rim of denser bone around."""
    rim = np.abs(distance + 0.003) - 0.003
    return tone * inside(distance, edge) + rim_tone * inside(rim, rim_edge)
