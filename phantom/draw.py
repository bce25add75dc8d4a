"""
Facts -> pixels: anatomy, findings, exposure, grain. A toy, not a radiograph.

Lengths are in units of the picture (x to the right, y down, 0 to 1): the same phantom at any size. As in any chest
X-ray the patient faces us: the patient's left is on the right of the picture.
"""
from types import SimpleNamespace

import numpy as np

from phantom.facts import FACTS, SIDES, ZONES


def step(distance, width):
    """1 inside (distance < 0), 0 outside, a linear ramp of the given width between: an anti-aliased edge."""
    return np.clip(0.5 - distance / width, 0, 1)


def anatomy(rng):
    """Everything that differs between two healthy people and two exposures."""
    a, u = SimpleNamespace(), rng.uniform
    a.cx, a.tilt, a.width = u(0.485, 0.515), u(-0.04, 0.04), u(0.37, 0.41)  # midline, radians, half of the thorax
    a.top, a.dome = u(0.095, 0.125), (u(0.73, 0.77), u(0.71, 0.745))        # apex; left and right dome of the diaphragm
    a.angle, a.ratio, a.heart_height = u(0.07, 0.10), u(0.40, 0.47), u(0.20, 0.23)  # costophrenic angle; heart to thorax
    a.mediastinum, a.neck, a.body, a.shoulder = u(0.058, 0.07), u(0.12, 0.15), u(0.445, 0.49), u(0.15, 0.20)
    a.clavicle_y, a.clavicle_rise = u(0.155, 0.18), u(0.04, 0.07)
    a.rib_phase, a.rib_gap, a.rib_drop, a.rib_half = u(0, 1), u(0.073, 0.082), u(0.10, 0.15), u(0.012, 0.015)
    a.rib_tone, a.vessel_tone, a.lung_tone, a.tissue = u(0.13, 0.17), u(0.07, 0.11), u(0.20, 0.27), u(0.62, 0.70)
    a.vessels, a.phase, a.hilum = int(rng.integers(8, 11)), rng.uniform(0, 6.28, 4), u(0.39, 0.42)
    a.gas = u(0.14, 0.22), u(0.025, 0.045), u(0.0, 0.20)                    # stomach: where, height, how dark
    a.gamma, a.black, a.white, a.grain = u(0.85, 1.2), u(0.0, 0.05), u(0.93, 1.02), u(0.003, 0.007)
    return a


def outer(a, y):
    """The lung's lateral border at height y, as a distance from the midline."""
    return a.width * (0.42 + 0.58 * np.sqrt(1 - (1 - np.clip((y - a.top) / 0.52, 0, 1)) ** 2.3))


def heart(a, side):
    """(radius, centre, height) of the half ellipse on one side of the midline; side 0 is the patient's left."""
    return 2 * a.width * a.ratio * (0.64, 0.36)[side], a.dome[side] - (0.02, 0.07)[side], a.heart_height + 0.5 * (a.ratio - 0.44)


def draw(facts, rng, size=128):
    """(size, size) uint8. The same rng state at another size gives the same picture apart from the grain."""
    a, seed = anatomy(rng), int(rng.integers(2 ** 62))
    # every finding has its own dice, so that adding one leaves the rest of the picture as it is
    findings = [(*fact, np.random.default_rng([seed, FACTS.index(fact)])) for fact in sorted(facts)]
    for finding, _, degree, dice in findings:
        if finding == "cardiomegaly":
            a.ratio = dice.uniform(*{"mild": (0.54, 0.58), "severe": (0.66, 0.72)}[degree])

    # p holds the picture, its coordinates and the outlines that several parts need
    p = SimpleNamespace(pixel=1.2 / size)
    x, y = np.meshgrid(*2 * [(np.arange(size, dtype=np.float32) + 0.5) / size])
    p.x, p.y = x - a.cx + a.tilt * (y - 0.5), y - a.tilt * (x - 0.5)
    p.u, p.sides = np.abs(p.x), (p.x > 0, p.x <= 0)                      # distance from the midline; patient's left, right
    p.diaphragm = np.where(p.sides[0], *a.dome) + a.angle * ((p.u - 0.48 * a.width) / (0.52 * a.width)) ** 2
    p.apex, p.outer = a.top + 2.4 * (p.u - 0.42 * a.width) ** 2, outer(a, p.y)
    p.lung = step(p.u - p.outer, 0.014) * step(0.8 * a.mediastinum - p.u, 0.03) * step(p.apex - p.y, 0.014)
    p.lung *= step(p.y - p.diaphragm, 0.012)
    # soft tissue: neck, shoulders and trunk, brighter towards the middle and the abdomen
    neck = a.neck + (a.body - a.neck) * np.clip((p.y - 0.02) / a.shoulder, 0, 1) ** 0.6
    p.body = step(p.u - neck - 0.03 * np.clip(p.y - 0.5, 0, 1), 0.03)
    tissue = a.tissue + 0.10 * np.clip((p.y - 0.62) / 0.2, 0, 1) + 0.10 * np.exp(-(p.u / 0.14) ** 2) - 0.10 * (p.u / 0.45) ** 2
    p.picture = 0.03 + p.body * (tissue - 0.03)
    for part in (lungs, patches, middle, effusions, bones, catheters):   # from the back to the front
        part(p, a, findings)

    picture = a.black + (a.white - a.black) * np.clip(p.picture, 0, 1) ** a.gamma
    picture += a.grain * rng.standard_normal((size, size), dtype=np.float32)
    return np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def lungs(p, a, findings):
    """Air, vessels, and what changes a whole lung: pneumothorax and edema."""
    du, dy = p.u - a.mediastinum - 0.02, p.y - a.hilum
    air = a.lung_tone + 0.12 * np.exp(-((p.u - 0.05) / 0.12) ** 2) + 0.06 * (p.y - 0.3)
    # vessels fan out from each hilum and branch once: two sets of bands, evenly spaced in a warped angle
    r, angle, vessels = np.hypot(du, dy) + 1e-3, np.arctan2(dy, du), 0
    for k, (count, near, far, half) in enumerate([(a.vessels, 0.0, 0.19, 0.0065), (2 * a.vessels + 1, 0.08, 0.27, 0.0045)]):
        phase = np.where(p.sides[0], a.phase[k], a.phase[k + 2])
        q = count * angle / 6.2832 + 0.4 * np.sin(2 * angle + phase) + 0.3 * np.sin(17 * r + 2 * angle + phase) + phase
        nearest = np.round(q)
        band = step(np.abs(q - nearest) * r * 6.2832 / count - half * (1 - 0.6 * r / far), max(0.008, p.pixel))
        band *= 0.6 + 0.4 * np.sin(2.4 * nearest + phase)
        vessels = np.maximum(vessels, band * np.clip((far - r) / 0.15, 0, 1) * np.clip((r - near) / 0.03, 0, 1))
    marks = a.vessel_tone * vessels + 0.18 * np.exp(-(du / 0.035) ** 2 - (dy / 0.065) ** 2)

    for finding, place, _, dice in findings:
        if finding == "pneumothorax":      # the lung shrinks; a fine pleural line, and nothing but air outside it
            gap = dice.uniform(0.075, 0.10)
            rim = np.maximum(p.u - p.outer + gap * (1.3 - 0.8 * np.clip((p.y - a.top) / 0.6, 0, 1)), p.apex + gap - p.y)
            here, inside = p.sides[SIDES.index(place)], step(rim, 0.010)
            marks = np.where(here, marks * inside + 0.24 * step(np.abs(rim) - 0.005, p.pixel), marks)
            air = np.where(here, air * (0.4 + 0.6 * inside) + 0.05 * inside, air)
        if finding == "edema":             # haze in the shape of wings, thicker vessels
            wings = np.exp(-(((du - 0.08) / 0.12) ** 2 + ((dy - 0.03) / 0.17) ** 2) ** 1.5)
            marks = 1.2 * marks + (dice.uniform(0.26, 0.31) + 0.04 * np.sin(61 * p.x) * np.sin(53 * p.y)) * wings
    p.picture += p.lung * (np.minimum(air + marks, a.tissue) - p.picture)


def patches(p, a, findings):
    """Opacities (large, soft, mottled) and nodules (small, round, sharp), clear of the heart and the mediastinum."""
    for finding, place, _, dice in findings:
        if finding in ("opacity", "nodule"):
            side, zone = SIDES.index(place.split()[0]), ZONES.index(place.split()[1])
            y0 = a.top + (0.23, 0.50, 0.77)[zone] * (a.dome[side] - a.top) + dice.uniform(0, 0.045)
            radius, centre, height = heart(a, side)
            inner = max(a.mediastinum + 0.03, radius * max(0, 1 - ((y0 - centre) / height) ** 2) ** 0.5)
            far, phase = outer(a, y0), dice.uniform(0, 6.28, 3)
            if finding == "nodule":
                size, tone, edge, rough = dice.uniform(0.037, 0.046), 0.38, 0.011, 0
                u0 = dice.uniform(inner + size + 0.02, max(inner + size + 0.02, far - size - 0.02))
            else:
                size, tone, edge, rough = dice.uniform(0.075, 0.095), 0.33, 0.070, 1
                u0 = inner + dice.uniform(0.4, 0.6) * (far - inner)
            d = np.hypot(p.u - u0, p.y - y0) * (1 + 0.10 * rough * np.sin(3 * np.arctan2(p.y - y0, p.u - u0) + phase[0]))
            mottle = rough * (np.sin(70 * p.u + 31 * p.y + phase[1]) + np.sin(77 * p.y - 43 * p.u + phase[2]))
            spot = (tone + 0.035 * mottle) * step(d - size, edge)
            p.picture += p.sides[side] * p.lung * spot


def middle(p, a, findings):
    """Heart, great vessels, spine, trachea, and the gas in the stomach."""
    band = np.minimum(p.u - a.mediastinum, np.hypot(p.x - a.mediastinum + 0.008, p.y - 0.275) - 0.036)  # and the aortic knob
    mask = step(band, 0.016) * np.clip((p.y - 0.05) / 0.1, 0, 1)
    for side, here in enumerate(p.sides):
        radius, centre, height = heart(a, side)
        d = (np.hypot(p.u / radius, (p.y - centre) / height) - 1) * min(radius, height)
        mask = np.maximum(mask, here * step(d, 0.014) * step(p.y - p.diaphragm - 0.03, 0.03))
    p.picture += p.body * mask * np.maximum(a.tissue + 0.08 - p.picture, 0)
    p.aerated = p.lung * (1 - mask)
    q = p.y / 0.052 + a.rib_phase                                        # vertebrae, a dark disc between two of them
    p.picture += p.body * step(p.u - 0.036, 0.008) * (0.035 - 0.03 * step(np.abs(q - np.round(q)) - 0.10, 0.1))
    p.picture -= 0.14 * p.body * step(np.abs(p.x + 0.004) - 0.018, 0.014) * step(p.y - 0.33, 0.06)
    p.picture -= a.gas[2] * step(np.hypot((p.x - a.gas[0]) / 0.07, (p.y - a.dome[0] - 0.09) / a.gas[1]) - 1, 0.4)


def effusions(p, a, findings):
    """A white base whose upper edge climbs along the chest wall; the degree is its height."""
    for finding, place, degree, dice in findings:
        if finding == "effusion":
            side = SIDES.index(place)
            height = dice.uniform(*{"small": (0.065, 0.085), "moderate": (0.17, 0.20), "large": (0.38, 0.43)}[degree])
            level = a.dome[side] - height - 0.45 * min(height, 0.25) * np.clip(p.u / a.width, 0, 1.05) ** 3
            wet = p.sides[side] * step(level - p.y, 0.02) * step(p.u - p.outer - .01, .014) * step(p.y - p.diaphragm - .06, .05)
            p.picture += 0.92 * wet * np.maximum(a.tissue + 0.06 - p.picture, 0)
            p.aerated *= 1 - wet


def bones(p, a, findings):
    """Ribs behind and before, clavicles, shoulders, in front of all."""
    cage = step(p.u - p.outer - 0.012, 0.015) * step(0.6 * a.mediastinum - p.u, 0.03) * step(p.apex - 0.02 - p.y, 0.02)
    cage *= np.clip((0.86 - p.y) / 0.15, 0, 1) * (0.35 + 0.65 * p.aerated)     # bone shows best on air
    s = p.u / a.width
    behind, before = 1.6 * s ** 2 - 0.5 * s, 1.3 - 1.5 * s + 0.4 * s ** 2    # ribs rise from the spine and sink to the side
    for slope, tone, phase in ((behind, 1.0, 0.0), (before, 0.4 * np.clip(2.2 * s - 0.6, 0, 1), 0.3)):
        q = (p.y - a.rib_drop * slope) / a.rib_gap + a.rib_phase + phase
        d = np.abs(q - np.round(q)) * a.rib_gap - a.rib_half
        bone = 0.5 * step(d, max(0.008, p.pixel)) + 0.6 * step(np.abs(d + 0.003) - 0.003, max(0.006, p.pixel))
        p.picture += a.rib_tone * tone * cage * bone
    line = a.clavicle_y - a.clavicle_rise * np.sin(np.clip((p.u - 0.05) / 0.33, 0, 1.2) * 2.0)
    d = np.maximum(np.abs(p.y - line) - 0.013, np.maximum(0.045 - p.u, p.u - 0.38))
    bone = 0.10 * step(d, 0.010) + 0.05 * step(np.abs(d + 0.003) - 0.003, p.pixel)
    head = np.hypot(p.u - a.body + 0.03, p.y - a.clavicle_y - 0.02) - 0.055
    p.picture += p.body * (bone + 0.09 * step(head, 0.02))


def catheters(p, a, findings):
    """A central venous catheter: half an ellipse from the arm under the clavicle to the middle, then straight down."""
    for finding, place, _, dice in findings:
        if finding == "catheter":
            arm, end, top, tip = (0.43 if place == "left" else -0.43), -0.04, dice.uniform(0.19, 0.22), dice.uniform(0.44, 0.50)
            rx, ry, dx, dy = abs(arm - end) / 2, 0.32 - top, p.x - (arm + end) / 2, p.y - 0.32
            q = np.hypot(dx / rx, dy / ry) + 1e-6
            arch = np.maximum(np.abs(q - 1) * q / np.hypot(dx / rx ** 2, dy / ry ** 2), dy)    # distance ~ value / slope
            down = np.maximum(np.abs(p.x - end), np.maximum(0.32 - p.y, p.y - tip))
            p.picture += step(np.minimum(arch, down) - 0.0085, p.pixel) * np.maximum(0.98 - p.picture, 0.15)
