"""Solid things of the synthetic night drive as lists of flat polygons: cars, people, poles and signs.

A polygon is (outline (m, 3) in metres, albedo RGB, temperature in C, emission RGB); normals follow from the outlines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isfl_ros.io._night_raster import NEAR_M, Canvas


@dataclass
class Face:
    """One flat polygon of a solid."""

    points: np.ndarray
    albedo: tuple
    celsius: float
    emission: tuple = (0.0, 0.0, 0.0)
    normal: tuple | None = None
    lift: float = 0.0
    two_sided: bool = False


def draw_solid(canvas: Canvas, faces: list[Face], *, centre: np.ndarray | None = None):
    """Draws the faces that look at the camera, far to near; `centre` orients them outwards. See Canvas.faces."""
    if not faces:
        return None
    counts = [len(f.points) for f in faces]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    points = np.concatenate([f.points for f in faces])
    pixels, depth = canvas.camera.project(points)
    nearest = np.minimum.reduceat(depth, starts)
    means = np.add.reduceat(points, starts) / np.array(counts)[:, None]
    mean_depth = np.add.reduceat(depth, starts) / counts
    a = points[starts]
    normals = np.cross(points[starts + 1] - a, points[starts + 2] - a)
    given = np.array([f.normal if f.normal is not None else (np.nan,) * 3 for f in faces], np.float64)
    has = ~np.isnan(given[:, 0])
    normals[has] = given[has]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    if centre is not None:
        flip = (np.einsum("ij,ij->i", normals, means - centre) < 0) & ~has
        normals[flip] *= -1
    facing = np.einsum("ij,ij->i", normals, canvas.camera.position - means) > 0
    two_sided = np.array([f.two_sided for f in faces])
    keep = (nearest > NEAR_M) & (facing | two_sided)
    normals[~facing] *= -1
    order = np.argsort(-(mean_depth - np.array([f.lift for f in faces])), kind="stable")
    order = order[keep[order]]
    if not len(order):
        return None
    table = np.array([(*faces[i].albedo, faces[i].celsius, *faces[i].emission, *normals[i], 1 / mean_depth[i])
                      for i in order], np.float32)
    return canvas.faces([pixels[starts[i]:starts[i] + counts[i]] for i in order], table)


def _disc(centre, u, v, n: int = 14) -> np.ndarray:
    a = np.linspace(0, 2 * np.pi, n, endpoint=False)[:, None]
    return np.asarray(centre) + np.cos(a) * np.asarray(u) + np.sin(a) * np.asarray(v)


@dataclass(frozen=True)
class CarLook:
    """Shape and colour of a car; lengths in metres."""

    length: float
    half_width: float
    roof: float
    belt: float
    tail: float
    paint: tuple

    @classmethod
    def draw(cls, rng: np.random.Generator) -> CarLook:
        kind = rng.random()
        paint = [(0.34, 0.34, 0.35), (0.05, 0.05, 0.055), (0.55, 0.55, 0.54), (0.22, 0.025, 0.02), (0.03, 0.06, 0.16),
                 (0.16, 0.17, 0.18), (0.10, 0.13, 0.10)][int(rng.integers(7))]
        if kind < 0.45:  # saloon
            return cls(4.5, 0.88, 1.44, 0.90, 0.75, paint)
        if kind < 0.75:  # hatchback
            return cls(4.1, 0.87, 1.50, 0.93, 0.12, paint)
        return cls(4.6, 0.93, 1.74, 1.05, 0.08, paint)  # sport utility, van


def car(look: CarLook, x: float, z: float, *, away: bool, heat: float, head: float, tail: float) -> list[Face]:
    """A car whose middle stands at (x, z); `away` shows its rear.

    Args:
        heat: how warm the engine, the wheels and the exhaust are, 0 (parked for hours) to 1 (driven).
        head, tail: light emitted by the head lamps and the tail lamps.
    """
    L, W, roof, belt, tail_z = look.length, look.half_width, look.roof, look.belt, look.tail
    sign = 1.0 if away else -1.0

    def at(points) -> np.ndarray:
        p = np.asarray(points, np.float64).copy()
        p[:, 2] = z + sign * (p[:, 2] - L / 2)
        p[:, 0] = x + p[:, 0]
        return p

    faces: list[Face] = []
    paint = look.paint
    dark = (0.02, 0.02, 0.022)
    body_c = 7.6 + 1.0 * heat

    # Body: rings of half an outline, lofted along the length from the rear (0) to the front (L).
    stations = [(0.0, 0.90, 0.94), (0.10, 0.97, 1.0), (0.9, 1.0, 1.0), (2.0, 1.0, 1.0), (L - 1.45, 1.0, 0.985),
                (L - 0.75, 0.985, 0.90), (L - 0.2, 0.94, 0.80), (L, 0.86, 0.70)]
    rings = []
    for sz, wide, high in stations:
        w, b = W * wide, belt * high
        rings.append(np.array([(w * 0.93, 0.20, sz), (w, 0.36, sz), (w, 0.60, sz), (w * 0.985, b - 0.13, sz),
                               (w * 0.93, b - 0.03, sz), (w * 0.55, b + 0.015, sz), (0, b + 0.035, sz)]))
    for i, (r0, r1) in enumerate(zip(rings[:-1], rings[1:])):
        middle = (stations[i][0] + stations[i + 1][0]) / 2
        bonnet = middle > L - 1.5
        for j in range(len(r0) - 1):
            celsius = body_c - (1.6 if j >= 4 else 0.0)
            if bonnet and j >= 3:
                celsius += heat * (5.0, 11.0, 17.0)[j - 3]
            elif j == 0:
                celsius += 3.0 * heat
            shade = 0.35 if j == 0 else 1.0
            for s in (1, -1):
                quad = np.array([r0[j], r1[j], r1[j + 1], r0[j + 1]]) * (s, 1, 1)
                faces.append(Face(at(quad), tuple(c * shade for c in paint), celsius))
    for ring, at_front in ((rings[0], False), (rings[-1], True)):
        outline = np.concatenate([ring, ring[-2::-1] * (-1, 1, 1)])
        faces.append(Face(at(outline), tuple(0.9 * c for c in paint), body_c + (4.0 * heat if at_front else 0.5)))
    # Greenhouse.
    zr0, zr1, zf1, zf0 = tail_z, tail_z + 0.75, L - 2.35, L - 1.35
    if tail_z < 0.5:
        zr1 = tail_z + 0.35
    wb, wr, base = W * 0.93, W * 0.70, belt - 0.02
    corner = {"rb": (wb, base, zr0), "rt": (wr, roof - 0.04, zr1), "ft": (wr, roof - 0.05, zf1), "fb": (wb, base, zf0)}

    def mirror(names: str) -> np.ndarray:
        right = [np.array(corner[n]) for n in names.split()]
        return np.array(right + [p * (-1, 1, 1) for p in reversed(right)])

    def inset(quad: np.ndarray, amount: float) -> np.ndarray:
        return quad + (quad.mean(axis=0) - quad) * amount

    glass, glass_c = (0.018, 0.02, 0.024), 4.6 + 2.2 * heat
    rear, front = mirror("rb rt"), mirror("ft fb")
    top = np.array([(wr, roof - 0.04, zr1), (wr, roof - 0.05, zf1), (-wr, roof - 0.05, zf1), (-wr, roof - 0.04, zr1)])
    crown = top + (0, 0.05, 0)
    crown[:, 0] *= 0.72
    faces += [Face(at(rear), paint, body_c), Face(at(inset(rear, 0.13)), glass, glass_c, lift=0.05),
              Face(at(front), paint, body_c), Face(at(inset(front, 0.10)), glass, glass_c + 0.8, lift=0.05)]
    faces.append(Face(at(crown), paint, 3.4 + 1.5 * heat, lift=0.02))
    for s in (1, -1):
        side = np.array([corner["rb"], corner["rt"], corner["ft"], corner["fb"]]) * (s, 1, 1)
        faces.append(Face(at(side), paint, body_c - 0.5))
        edge = np.array([top[0], top[1], crown[1], crown[0]]) * (s, 1, 1)
        faces.append(Face(at(edge), paint, 4.5 + heat, lift=0.01))
        rear_edge = np.array([top[0], crown[0], crown[3], top[3]])
        front_edge = np.array([top[1], crown[1], crown[2], top[2]])
        middle_low = side[0] * 0.5 + side[3] * 0.5
        middle_top = side[1] * 0.5 + side[2] * 0.5
        for quad in (np.array([side[0], side[1], middle_top, middle_low]),
                     np.array([middle_low, middle_top, side[2], side[3]])):
            faces.append(Face(at(inset(quad, 0.14)), glass, glass_c + 0.5, lift=0.05))
        # Wheels: tyre, rim, brake.
        for wz in (0.80, L - 0.85):
            hub = at([(s * (W + 0.005), 0.33, wz)])[0]
            for radius, colour, celsius, lift in ((0.40, (0.012,) * 3, 8.0, 0.08), (0.33, (0.025,) * 3, 9 + 11 * heat, 0.10),
                                                  (0.21, (0.25, 0.25, 0.26), 8.5 + 15 * heat, 0.12),
                                                  (0.09, (0.06,) * 3, 9 + 25 * heat, 0.14)):
                faces.append(Face(_disc(hub, (0, radius, 0), (0, 0, radius)), colour, celsius, lift=lift,
                                  normal=(s, 0, 0)))
        # Tyres as seen from behind or ahead.
        for wz, nz in ((0.62, -1), (L - 0.55, 1)):
            tyre = [(s * (W - 0.24), 0.0, wz), (s * (W - 0.02), 0.0, wz), (s * (W - 0.02), 0.3, wz), (s * (W - 0.24), 0.3, wz)]
            faces.append(Face(at(tyre), (0.012,) * 3, 8 + 13 * heat, normal=(0, 0, nz * sign), lift=-0.3))
        mirror_quad = [(s * W, belt, zf0 - 0.25), (s * (W + 0.19), belt, zf0 - 0.25), (s * (W + 0.19), belt + 0.14, zf0 - 0.25),
                       (s * W, belt + 0.14, zf0 - 0.25)]
        faces.append(Face(at(mirror_quad), paint, 5.5, two_sided=True))
    faces += [Face(at(rear_edge), paint, 5.0, lift=0.01), Face(at(front_edge), paint, 5.0, lift=0.01)]

    def panel(x0, x1, y0, y1, at_front, albedo, celsius, emission=(0, 0, 0), lift=0.3, both=True):
        zz = L + 0.01 if at_front else -0.01
        for s in (1, -1) if both else (1,):
            quad = np.array([(s * x0, y0, zz), (s * x1, y0, zz), (s * x1, y1, zz), (s * x0, y1, zz)])
            faces.append(Face(at(quad), albedo, celsius, tuple(emission), lift=lift,
                              normal=(0, 0, sign if at_front else -sign)))

    red = np.array([1.0, 0.035, 0.02])
    b0, b1 = belt * 0.94, belt * 0.70
    panel(0.0, W * 0.86, 0.24, 0.46, False, dark, body_c + 2 * heat)
    panel(W * 0.50, W * 0.86, b0 - 0.30, b0 - 0.10, False, (0.35, 0.02, 0.015), body_c + 3.5 * (tail > 0.2),
          red * tail + 0.004, lift=0.32)
    panel(W * 0.62, W * 0.80, b0 - 0.24, b0 - 0.15, False, (0.5, 0.03, 0.02), body_c + 5 * (tail > 0.2),
          red * tail * 1.5 + (0, 0.05 * tail, 0.02 * tail), lift=0.34)
    panel(0, 0.27, 0.50, 0.63, False, (0.75, 0.74, 0.66), body_c, np.array([0.10, 0.09, 0.06]) * (tail > 0), lift=0.33)
    panel(0.36, 0.46, 0.20, 0.27, False, (0.1, 0.1, 0.1), 9 + 62 * heat, lift=0.36, both=False)
    panel(0, W * 0.55, b1 - 0.22, b1 - 0.06, True, dark, 9 + 24 * heat, lift=0.31)
    panel(0, W * 0.62, 0.24, 0.40, True, dark, 9 + 18 * heat, lift=0.31)
    panel(W * 0.56, W * 0.84, b1 - 0.20, b1 - 0.05, True, (0.55, 0.55, 0.55), body_c + 9 * heat,
          np.array([1.0, 0.95, 0.84]) * head, lift=0.33)
    panel(0, 0.26, 0.41, 0.51, True, (0.75, 0.75, 0.72), body_c + 8 * heat, lift=0.33)
    return faces


@dataclass(frozen=True)
class PersonLook:
    """Build and clothes of a pedestrian; height in metres, colours linear albedo, temperatures in C."""

    height: float
    stout: float
    jacket: tuple
    trousers: tuple
    skin: tuple
    jacket_c: float
    trousers_c: float
    hood: bool
    backpack: bool
    skirt: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> PersonLook:
        def cloth() -> tuple:
            return [(0.02, 0.02, 0.024), (0.035, 0.04, 0.06), (0.09, 0.085, 0.08), (0.16, 0.02, 0.02),
                    (0.05, 0.07, 0.04), (0.22, 0.2, 0.17), (0.03, 0.05, 0.12)][int(rng.integers(7))]

        skin = [(0.42, 0.27, 0.19), (0.30, 0.18, 0.12), (0.12, 0.07, 0.045)][int(rng.integers(3))]
        return cls(float(rng.uniform(1.55, 1.9)), float(rng.uniform(0.92, 1.15)), cloth(), cloth(), skin,
                   float(rng.uniform(20.0, 23.5)), float(rng.uniform(20.5, 24.0)), bool(rng.random() < 0.3),
                   bool(rng.random() < 0.3), bool(rng.random() < 0.2))


def draw_person(canvas: Canvas, look: PersonLook, position, heading, phase: float, walking: bool):
    """Draws a pedestrian standing at `position` (x, 0, z), facing `heading` (x, z); `phase` of the step in radians.

    Returns what Canvas.faces returns, and the depth in metres; None when out of the picture.
    """
    s = look.height / 1.78
    forward = np.array([heading[0], 0.0, heading[1]])
    side = np.array([heading[1], 0.0, -heading[0]])
    up = np.array([0.0, 1.0, 0.0])
    ground = np.array([position[0], 0.0, position[1]])
    swing = np.sin(phase) if walking else 0.12
    bob = 0.025 * np.cos(2 * phase) if walking else 0.0
    lean = 0.05 if walking else 0.0

    def joint(f: float, sd: float, y: float) -> np.ndarray:
        return ground + s * (forward * f + side * sd + up * y)

    limbs: list[tuple] = []  # (joint, joint, radius, radius, albedo, celsius at start, celsius at end)
    jacket, trousers, skin = look.jacket, look.trousers, look.skin
    shoe = (0.025, 0.022, 0.02)
    wide = look.stout
    head = joint(lean + 0.03, 0, 1.62 + bob)
    for sgn in (1.0, -1.0):
        reach = 0.52 * swing * sgn
        bend = max(0.0, np.cos(phase) * sgn) * 0.75 if walking else 0.05
        hip = joint(0, 0.09 * sgn, 0.92 + bob)
        knee = joint(0.46 * np.sin(reach), 0.10 * sgn, 0.92 + bob - 0.44 * np.cos(reach))
        shin = reach - bend
        ankle = knee + s * 0.42 * (forward * np.sin(shin) - up * np.cos(shin))
        ankle[1] = max(ankle[1], 0.07 * s)
        toe = ankle + s * (forward * 0.15 - up * 0.035)
        limbs += [(hip, knee, 0.092 * wide, 0.068, trousers, look.trousers_c + 0.8, look.trousers_c),
                  (knee, ankle, 0.064, 0.047, trousers, look.trousers_c, look.trousers_c - 2.0),
                  (ankle, toe, 0.050, 0.042, shoe, 15.5, 13.5)]
        arm = -0.62 * swing * sgn
        shoulder = joint(lean, 0.20 * sgn * wide, 1.40 + bob)
        elbow = shoulder + s * (forward * 0.29 * np.sin(arm) - up * 0.29 * np.cos(arm) + side * 0.05 * sgn)
        fore = arm + (0.55 if walking else 0.25)
        hand = elbow + s * 0.25 * (forward * np.sin(fore) - up * np.cos(fore))
        tip = hand + s * 0.07 * (forward * np.sin(fore) - up * np.cos(fore))
        limbs += [(shoulder, elbow, 0.062 * wide, 0.052, jacket, look.jacket_c - 0.6, look.jacket_c - 1.0),
                  (elbow, hand, 0.050, 0.040, jacket, look.jacket_c - 0.6, look.jacket_c),
                  (hand, tip, 0.038, 0.030, skin, 28.5, 27.0)]
    chest, waist = joint(lean, 0, 1.33 + bob), joint(0, 0, 0.96 + bob)
    limbs.append((chest, waist, 0.175 * wide, 0.150 * wide, jacket, look.jacket_c + 1.2, look.jacket_c - 0.8))
    if look.skirt:
        limbs.append((waist, joint(0, 0, 0.60 + bob), 0.15, 0.20, trousers, look.trousers_c, look.trousers_c - 1.5))
    limbs.append((joint(lean, 0.12 * wide, 1.40 + bob), joint(lean, -0.12 * wide, 1.40 + bob), 0.085, 0.085, jacket,
                  look.jacket_c + 0.6, look.jacket_c + 0.6))
    neck = joint(lean + 0.01, 0, 1.49 + bob)
    limbs.append((neck, head, 0.055, 0.06, skin, 32.0, 33.0))
    if look.backpack:
        limbs.append((joint(lean - 0.20, 0, 1.34 + bob), joint(-0.18, 0, 1.05 + bob), 0.13, 0.13, (0.05, 0.06, 0.09), 11.0, 10.5))

    ends = np.array([(a, b) for a, b, *_ in limbs])
    pixels, depth = canvas.camera.project(ends.reshape(-1, 3))
    hp, hd = canvas.camera.project(head[None])
    if min(depth.min(), hd[0]) < NEAR_M:
        return None
    pixels, depth = pixels.reshape(-1, 2, 2), depth.reshape(-1, 2)
    focal = canvas.camera.matrix[0, 0]
    view = canvas.camera.position - ground
    view[1] = 0
    view /= np.linalg.norm(view) + 1e-9
    across = np.array([view[2], 0, -view[0]])
    polygons, table = [], []
    fan = np.linspace(-np.pi / 2, np.pi / 2, 6)
    mean_depth = float(depth.mean())
    tall = focal * look.height / mean_depth
    # Nested strips make the limbs round: the rim looks sideways (and is a little colder), the middle at the camera.
    layers = ((1.0, -0.8, -1.3), (0.72, 0.55, -0.2), (0.42, 0.0, 0.5)) if tall > 26 else ((1.0, 0.0, 0.0),)

    def capsule(p, q, rp, rq) -> np.ndarray:
        d = q - p
        a = np.arctan2(d[1], d[0])
        end = q + rq * np.stack([np.cos(a + fan), np.sin(a + fan)], 1)
        start = p + rp * np.stack([np.cos(a + np.pi + fan), np.sin(a + np.pi + fan)], 1)
        return np.concatenate([end, start])

    for i in np.argsort(-depth.mean(axis=1), kind="stable"):
        (p, q), (dp, dq) = pixels[i], depth[i]
        _, _, r0, r1, albedo, c0, c1 = limbs[i]
        rp, rq = r0 * s * focal / dp, r1 * s * focal / dq
        parts = ((0, 0.5, c0), (0.5, 1, c1)) if tall > 45 and abs(c0 - c1) > 0.5 else ((0, 1, (c0 + c1) / 2),)
        for size, turn, warm in layers:
            normal = across * turn + view * np.sqrt(max(0.0, 1 - turn * turn))
            for t0, t1, celsius in parts:
                polygons.append(capsule(p + (q - p) * t0, p + (q - p) * t1, size * (rp + (rq - rp) * t0),
                                        size * (rp + (rq - rp) * t1)))
                table.append((*albedo, celsius + warm, 0, 0, 0, *normal, 1 / (dp + dq) * 2))
    # The head: hair (or hood) behind, face towards the heading in front of it.
    radius = 0.108 * s * focal / hd[0]
    toward = float(forward @ view)
    face_shift = float(forward @ across) * (-1.0)
    right = canvas.camera.rotation @ across
    shift = -face_shift * np.sign(right[0]) * radius * 0.42
    angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    circle = np.stack([np.cos(angle) * 0.86, np.sin(angle) * 1.12], 1)
    cover = (jacket, 23.0) if look.hood else ((0.03, 0.022, 0.016), 27.0)
    polygons.append(hp[0] + circle * radius * (1.12 if look.hood else 1.0))
    table.append((*cover[0], cover[1], 0, 0, 0, *view, 1 / hd[0]))
    if toward > -0.5:
        polygons.append(hp[0] + (shift, radius * 0.16) + circle * radius * (0.80 if toward > 0.3 else 0.72))
        table.append((*skin, 33.5, 0, 0, 0, *view, 1 / hd[0]))
        polygons.append(hp[0] + (shift, radius * 0.2) + circle * radius * 0.45)
        table.append((*(1.1 * c for c in skin), 34.6, 0, 0, 0, *view, 1 / hd[0]))
    else:  # seen from behind: the warm neck below the hair
        polygons.append(hp[0] + (0, radius * 0.75) + circle * radius * 0.45)
        table.append((*skin, 31.5, 0, 0, 0, *view, 1 / hd[0]))
    drawn = canvas.faces(polygons, np.array(table, np.float32))
    return None if drawn is None else (*drawn, mean_depth)


def box(x0, x1, y0, y1, z0, z1, albedo, celsius, emission=(0, 0, 0)) -> list[Face]:
    """The faces of an upright box that a driver can see: towards the camera, left and right, and the top."""
    return [
        Face(np.array([(x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)]), albedo, celsius, emission, (0, 0, -1)),
        Face(np.array([(x0, y0, z0), (x0, y0, z1), (x0, y1, z1), (x0, y1, z0)]), albedo, celsius, emission, (-1, 0, 0)),
        Face(np.array([(x1, y0, z0), (x1, y0, z1), (x1, y1, z1), (x1, y1, z0)]), albedo, celsius, emission, (1, 0, 0)),
        Face(np.array([(x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)]), albedo, celsius, emission, (0, 1, 0)),
    ]


def street_lamp(x: float, z: float, height: float, reach: float, colour, lit: bool) -> list[Face]:
    """A mast with an arm of `reach` metres (towards the road) and a head."""
    metal = (0.10, 0.105, 0.10)
    faces = box(x - 0.11, x + 0.11, 0, 1.1, z - 0.11, z + 0.11, metal, 7.4)
    faces += box(x - 0.065, x + 0.065, 1.1, height, z - 0.065, z + 0.065, metal, 6.6)
    lo, hi = sorted((x, x + reach))
    faces += box(lo, hi, height - 0.05, height + 0.05, z - 0.05, z + 0.05, metal, 6.0)
    hx = x + reach
    faces += box(hx - 0.42, hx + 0.42, height - 0.04, height + 0.10, z - 0.16, z + 0.16, metal, 22.0 if lit else 6.5)
    glow = tuple(7.0 * c for c in colour) if lit else (0, 0, 0)
    lens = np.array([(hx - 0.36, -0.05, z - 0.15), (hx + 0.36, -0.05, z - 0.15), (hx + 0.36, -0.05, z + 0.15),
                     (hx - 0.36, -0.05, z + 0.15)]) + (0, height, 0)
    faces.append(Face(lens, (0.5, 0.5, 0.5), 38.0 if lit else 6.5, glow, (0, -1, 0), lift=0.4))
    front = lens.copy()
    front[2:, 1] -= 0.09
    front[:, 2] = z - 0.17
    faces.append(Face(front, (0.4, 0.4, 0.4), 34.0 if lit else 6.5, glow, (0, 0, -1), lift=0.5))
    return faces


def traffic_light(x: float, z: float, state: int) -> list[Face]:
    """A signal on a mast; state 0 red, 1 amber, 2 green."""
    faces = box(x - 0.06, x + 0.06, 0, 2.5, z - 0.06, z + 0.06, (0.09, 0.09, 0.09), 6.8)
    faces += box(x - 0.17, x + 0.17, 2.35, 3.35, z - 0.15, z + 0.15, (0.025, 0.025, 0.025), 8.4)
    for i, colour in enumerate(((1.0, 0.05, 0.03), (1.0, 0.5, 0.05), (0.06, 1.0, 0.45))):
        on = i == state
        glow = tuple(5.0 * c for c in colour) if on else tuple(0.006 * c for c in colour)
        faces.append(Face(_disc((x, 3.17 - 0.31 * i, z - 0.17), (0.115, 0, 0), (0, 0.115, 0), 16), (0.05, 0.05, 0.05),
                          16.0 if on else 8.0, glow, (0, 0, -1), lift=0.3))
    return faces


def road_sign(x: float, z: float, kind: int) -> list[Face]:
    """A retroreflecting sign on a post: 0 speed limit, 1 crossing, 2 no parking, 3 warning triangle."""
    faces = box(x - 0.035, x + 0.035, 0, 2.7, z - 0.035, z + 0.035, (0.2, 0.2, 0.2), 6.4)
    c = np.array([x, 2.45, z - 0.06])

    def plate(points, albedo, lift):
        faces.append(Face(points, albedo, 5.2, tuple(0.008 * a for a in albedo), (0, 0, -1), lift=lift))

    def square(w, h, dy=0.0, dx=0.0):
        return c + np.array([(-w + dx, -h + dy, 0), (w + dx, -h + dy, 0), (w + dx, h + dy, 0), (-w + dx, h + dy, 0)])

    red, white, blue, ink = (1.3, 0.08, 0.06), (1.7, 1.7, 1.7), (0.08, 0.25, 1.3), (0.02, 0.02, 0.02)
    if kind == 0:
        for radius, colour, lift in ((0.33, red, 0.2), (0.255, white, 0.25)):
            plate(_disc(c, (radius, 0, 0), (0, radius, 0), 20), colour, lift)
        plate(square(0.03, 0.11, dx=0.10), ink, 0.3)
        plate(square(0.03, 0.11, dx=0.02), ink, 0.3)
        for dy in (0.09, 0.0, -0.09):
            plate(square(0.06, 0.02, dy=dy, dx=-0.11), ink, 0.3)
        plate(square(0.02, 0.11, dx=-0.05), ink, 0.3)
        plate(square(0.05, 0.02, dy=0.09, dx=0.06), ink, 0.3)
        plate(square(0.05, 0.02, dy=-0.09, dx=0.06), ink, 0.3)
    elif kind == 1:
        plate(square(0.34, 0.34), blue, 0.2)
        plate(c + np.array([(-0.27, -0.24, 0), (0.27, -0.24, 0), (0, 0.27, 0)]), white, 0.25)
        plate(square(0.03, 0.09, dy=-0.05), ink, 0.3)
        plate(_disc(c + (0, 0.08, 0), (0.035, 0, 0), (0, 0.035, 0), 8), ink, 0.3)
        for k in (-1, 1):
            plate(c + np.array([(0.02 * k, -0.12, 0), (0.11 * k, -0.22, 0), (0.07 * k, -0.22, 0), (-0.01 * k, -0.12, 0)]), ink, 0.3)
    elif kind == 2:
        for radius, colour, lift in ((0.31, red, 0.2), (0.245, blue, 0.25)):
            plate(_disc(c, (radius, 0, 0), (0, radius, 0), 20), colour, lift)
        plate(c + np.array([(-0.21, 0.15, 0), (-0.15, 0.21, 0), (0.21, -0.15, 0), (0.15, -0.21, 0)]), red, 0.3)
    else:
        plate(c + np.array([(-0.38, -0.28, 0), (0.38, -0.28, 0), (0, 0.38, 0)]), red, 0.2)
        plate(c + np.array([(-0.25, -0.205, 0), (0.25, -0.205, 0), (0, 0.235, 0)]), white, 0.25)
        plate(square(0.025, 0.11, dy=0.0), ink, 0.3)
    return faces
