"""Facts -> pixels: findings drawn into the anatomy of one person, an exposure and its grain.

A toy, not a radiograph. A picture is built from shapes with soft edges, from the back to the front.
Bone, fluid and tissue stop X-rays and are bright; air lets them pass and is dark. Units, and where
left and right lie, stand at the top of phantom/anatomy.py.

To add a finding:
1. phantom/facts.py: an entry at the end of `TABLE`, whose key is a Python name. At the end, since
   the dice of a fact depend on its number.
2. There too, its name in `OUTSIDE_THE_LUNGS` if the lungs stay clear beside it, in `ONE_AT_MOST` if
   a picture shows one at most, and a rule in `conflict` if it hides another.
3. Here, a function of that name that draws it, as `nodule` does, from the fact and from dice of its
   own; name it in `draw`, at the depth where it lies.
4. tests/phantom/test_draw.py: the brightness of all findings together, which tells a change.
Then make the data anew (`python -m phantom.prepare --overwrite`) and train anew: the tokenizer and
demo/ know the old findings only.
"""
import numpy as np

from phantom import anatomy
from phantom.anatomy import from_hilum, inside
from phantom.facts import FACTS, Fact


def draw(facts, rng, size=128):
    """Draw a phantom -> (size, size) uint8. facts: triples; rng: a numpy Generator.

    The same state of `rng` gives the same picture at every size, apart from the grain.
    """
    body = anatomy.Anatomy(rng)

    # every fact has dice of its own, so that adding one leaves the rest of the picture as it is
    seed = int(rng.integers(2 ** 62))
    facts = [Fact(*fact) for fact in sorted(facts)]
    dice = {fact: np.random.default_rng([seed, FACTS.index(fact)]) for fact in facts}

    # a large heart is anatomy: all outlines know of it
    for fact in facts:
        if fact.finding == "cardiomegaly":
            body.heart_ratio = cardiomegaly(fact, dice[fact])
    canvas = anatomy.Canvas(body, size)

    def show(finding):          # a function with the name of the finding that it draws
        for fact in facts:
            if fact.finding == finding.__name__:
                finding(canvas, body, fact, dice[fact])

    # from the back of the picture to its front; `show` draws what is there of a finding
    anatomy.soft_tissue(canvas, body)
    anatomy.air_and_vessels(canvas, body)
    show(edema)
    show(pneumothorax)
    anatomy.lungs(canvas, body)
    show(nodule)
    show(opacity)
    anatomy.mediastinum(canvas, body)
    anatomy.spine_trachea_stomach(canvas, body)
    show(effusion)
    anatomy.ribs(canvas, body)
    anatomy.clavicles_and_shoulders(canvas, body)
    show(catheter)
    return expose(canvas.picture, body, rng)


def expose(picture, body, rng):
    """The film: a curve between its black and its white, grain, 8 bits."""
    film = body.black + (body.white - body.black) * np.clip(picture, 0, 1) ** body.gamma
    film += body.grain * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.round(255 * np.clip(film, 0, 1)).astype(np.uint8)


# ---- findings: what a radiologist sees, and how it is imitated ----

def cardiomegaly(fact, dice):
    """The heart is wider than half of the chest -> the ratio of the two, as it is measured."""
    ratios = {"mild": (0.54, 0.58), "severe": (0.66, 0.72)}
    return dice.uniform(*ratios[fact.degree])


def edema(canvas, body, fact, dice):
    """Fluid in both lungs: a haze around the hila, like the wings of a bat, and brighter vessels.

    Each wing is a bell in two dimensions, with a flatter top than a Gaussian; sines mottle it.
    """
    du, dy = from_hilum(canvas, body)
    wings = np.exp(-(((du - 0.08) / 0.12) ** 2 + ((dy - 0.03) / 0.17) ** 2) ** 1.5)
    haze = dice.uniform(0.26, 0.31) + 0.04 * np.sin(61 * canvas.x) * np.sin(53 * canvas.y)
    canvas.marks = 1.2 * canvas.marks + haze * wings


def pneumothorax(canvas, body, fact, dice):
    """Air around a lung: it has shrunk behind a fine white line, and beyond the line all is black.

    The line is the lung's border moved inwards; vessels end at it, and the air beyond it is darker.
    """
    gap = dice.uniform(0.075, 0.10)
    height = np.clip((canvas.y - body.top) / 0.6, 0, 1)     # air rises: the gap is wider above
    outer = canvas.u - canvas.outer + gap * (1.3 - 0.8 * height)
    line = np.maximum(outer, canvas.apex + gap - canvas.y)
    side = canvas.on[fact.side]
    lung = inside(line, 0.010)
    marks = canvas.marks * lung + 0.24 * inside(np.abs(line) - 0.005, canvas.pixel)
    canvas.marks = np.where(side, marks, canvas.marks)
    air = canvas.air * (0.4 + 0.6 * lung) + 0.05 * lung     # what has shrunk is denser
    canvas.air = np.where(side, air, canvas.air)


def spot(body, fact, dice):
    """Where in its zone a nodule or opacity may lie -> (y, nearest and farthest u, three phases).

    It keeps clear of the heart. The phases, in radians, are for a texture.
    """
    zone = {"upper": 0.23, "mid": 0.50, "lower": 0.77}[fact.zone]
    y = body.top + zone * (body.dome[fact.side] - body.top) + dice.uniform(0, 0.045)
    width, centre, height = body.heart(fact.side)
    heart = width * max(0, 1 - ((y - centre) / height) ** 2) ** 0.5
    inner = max(body.mediastinum + 0.03, heart)
    return y, inner, body.outer(y), dice.uniform(0, 6.28, 3)


def nodule(canvas, body, fact, dice):
    """A small round shadow with a sharp border: a disc of even brightness."""
    y, inner, outer, _ = spot(body, fact, dice)
    radius = dice.uniform(0.037, 0.046)
    nearest = inner + radius + 0.02
    u = dice.uniform(nearest, max(nearest, outer - radius - 0.02))
    distance = np.hypot(canvas.u - u, canvas.y - y).astype(np.float64)      # as in an opacity
    disc = 0.38 * inside(distance - radius, 0.011)
    canvas.picture += canvas.on[fact.side] * canvas.lung * disc


def opacity(canvas, body, fact, dice):
    """A large patch without a clear border, as of pneumonia: a blurred, lobed and mottled disc."""
    y, inner, outer, phase = spot(body, fact, dice)
    radius = dice.uniform(0.075, 0.095)
    u = inner + dice.uniform(0.4, 0.6) * (outer - inner)
    du = canvas.u - u
    dy = canvas.y - y
    lobes = 1 + 0.10 * np.sin(3 * np.arctan2(dy, du) + phase[0])
    mottle = (np.sin(70 * canvas.u + 31 * canvas.y + phase[1])
              + np.sin(77 * canvas.y - 43 * canvas.u + phase[2]))
    patch = (0.33 + 0.035 * mottle) * inside(np.hypot(du, dy) * lobes - radius, 0.070)
    canvas.picture += canvas.on[fact.side] * canvas.lung * patch


def effusion(canvas, body, fact, dice):
    """Fluid at the bottom of the chest: white, with a border that climbs along the chest wall.

    The degree is the height of the fluid over the diaphragm; the border climbs with the cube of the
    distance from the midline.
    """
    heights = {"small": (0.065, 0.085), "moderate": (0.17, 0.20), "large": (0.38, 0.43)}
    height = dice.uniform(*heights[fact.degree])
    climb = 0.45 * min(height, 0.25) * np.clip(canvas.u / body.width, 0, 1.05) ** 3
    level = body.dome[fact.side] - height - climb
    fluid = canvas.on[fact.side] * inside(level - canvas.y, 0.02)
    fluid = fluid * inside(canvas.u - canvas.outer - 0.01, 0.014)
    fluid = fluid * inside(canvas.y - canvas.diaphragm - 0.06, 0.05)
    canvas.brighten(0.92 * fluid, body.tissue + 0.06)
    canvas.aerated = canvas.aerated * (1 - fluid)


def catheter(canvas, body, fact, dice):
    """A central venous catheter: a white tube from the arm, below the clavicle, to the heart.

    Half an ellipse from the arm to the great vein, right of the midline; then straight down in it.
    """
    x, y = canvas.x, canvas.y
    arm = {"left": 0.43, "right": -0.43}[fact.side]
    vein = -0.04                                # x of the superior vena cava
    bend = 0.32                                 # y at which the arch ends
    top = dice.uniform(0.19, 0.22)              # y of the top of the arch
    tip = dice.uniform(0.44, 0.50)              # y of the catheter's end

    # distance to an ellipse: its equation's value over the slope of that value
    rx = abs(arm - vein) / 2
    ry = bend - top
    dx = x - (arm + vein) / 2
    dy = y - bend
    q = np.hypot(dx / rx, dy / ry) + 1e-6
    arch = np.maximum(np.abs(q - 1) * q / np.hypot(dx / rx ** 2, dy / ry ** 2), dy)
    down = np.maximum(np.abs(x - vein), np.maximum(bend - y, y - tip))
    tube = inside(np.minimum(arch, down) - 0.0085, canvas.pixel)
    canvas.picture += tube * np.maximum(0.98 - canvas.picture, 0.15)
