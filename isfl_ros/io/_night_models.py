"""Solid things of the synthetic night drive as lists of flat polygons: cars, lamps, signals and signs.

A polygon is (outline (m, 3) in metres, albedo RGB, temperature in C, emission RGB); normals follow from the outlines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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


class Solid:
    """Faces packed into arrays, to be drawn at any place.

    Args:
        faces: the polygons around the origin.
        centre: a point inside, away from which the faces look; None where each face has its normal.
    """

    def __init__(self, faces: list[Face], centre=None):
        self.counts = np.array([len(f.points) for f in faces])
        self.starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        self.points = np.concatenate([f.points for f in faces]).astype(np.float64)
        self.means = np.add.reduceat(self.points, self.starts) / self.counts[:, None]
        a = self.points[self.starts]
        normals = np.cross(self.points[self.starts + 1] - a, self.points[self.starts + 2] - a)
        given = np.array([f.normal if f.normal is not None else (np.nan,) * 3 for f in faces], np.float64)
        has = ~np.isnan(given[:, 0])
        normals[has] = given[has]
        self.normals = normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9)
        if centre is not None:
            inward = np.einsum("ij,ij->i", self.normals, self.means - np.asarray(centre)) < 0
            self.normals[inward & ~has] *= -1
        self.two_sided = np.array([f.two_sided for f in faces])
        self.lift = np.array([f.lift for f in faces])
        self.look = np.array([(*f.albedo, f.celsius, *f.emission) for f in faces], np.float32)

    def draw(self, canvas: Canvas, position) -> None:
        """Draws the faces that look at the camera, far to near."""
        position = np.asarray(position, np.float64)
        pixels, depth = canvas.camera.project(self.points + position)
        x0, y0 = pixels.min(axis=0)
        x1, y1 = pixels.max(axis=0)
        if depth.max() < NEAR_M or x1 < 0 or y1 < 0 or x0 > canvas.width or y0 > canvas.height:
            return
        nearest = np.minimum.reduceat(depth, self.starts)
        mean_depth = np.add.reduceat(depth, self.starts) / self.counts
        facing = np.einsum("ij,ij->i", self.normals, canvas.camera.position - self.means - position) > 0
        order = np.argsort(self.lift - mean_depth, kind="stable")
        order = order[((nearest > NEAR_M) & (facing | self.two_sided))[order]]
        if not len(order):
            return
        normals = np.where(facing[:, None], self.normals, -self.normals)
        table = np.concatenate([self.look, normals, 1 / np.maximum(mean_depth, NEAR_M)[:, None]], axis=1)[order]
        canvas.faces([pixels[self.starts[i]:self.starts[i] + self.counts[i]] for i in order], table.astype(np.float32))


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


@lru_cache(maxsize=64)
def car(look: CarLook, *, away: bool, heat: float, head: float, tail: float) -> Solid:
    """A car around the origin; `away` shows its rear.

    Args:
        heat: how warm the engine, the wheels and the exhaust are, 0 (parked for hours) to 1 (driven).
        head, tail: light emitted by the head lamps and the tail lamps.
    """
    L, W, roof, belt, tail_z = look.length, look.half_width, look.roof, look.belt, look.tail
    sign = 1.0 if away else -1.0

    def at(points) -> np.ndarray:
        p = np.asarray(points, np.float64).copy()
        p[:, 2] = sign * (p[:, 2] - L / 2)
        return p

    faces: list[Face] = []
    paint = look.paint
    dark = (0.02, 0.02, 0.022)
    body_c = 7.6 + 1.0 * heat

    # Body: rings of half an outline, lofted along the length from the rear (0) to the front (L).
    stations = [(0.0, 0.90, 0.94), (0.10, 0.97, 1.0), (0.9, 1.0, 1.0), (2.0, 1.0, 1.0), (L - 1.45, 1.0, 0.985),
                (L - 0.75, 0.985, 0.90), (L - 0.2, 0.94, 0.80), (L, 0.86, 0.70)]
    outlines = []
    for sz, wide, high in stations:
        w, b = W * wide, belt * high
        outlines.append(np.array([(w * 0.93, 0.20, sz), (w, 0.36, sz), (w, 0.60, sz), (w * 0.985, b - 0.13, sz),
                               (w * 0.93, b - 0.03, sz), (w * 0.55, b + 0.015, sz), (0, b + 0.035, sz)]))
    for i, (r0, r1) in enumerate(zip(outlines[:-1], outlines[1:])):
        middle = (stations[i][0] + stations[i + 1][0]) / 2
        bonnet = middle > L - 1.5
        for j in range(len(r0) - 1):
            celsius = body_c - (1.6 if j >= 4 else 0.0)
            if bonnet and j >= 3:
                celsius += heat * (5.0, 11.0, 17.0)[j - 3]
            elif j == 0:
                celsius += 3.0 * heat
            colour = (0.03, 0.03, 0.032) if j == 0 else paint
            for s in (1, -1):
                quad = np.array([r0[j], r1[j], r1[j + 1], r0[j + 1]]) * (s, 1, 1)
                # Flat faces in grazing light would look like cut glass: turn the flanks less than their outline does.
                widening = (stations[i + 1][1] - stations[i][1]) * W / (stations[i + 1][0] - stations[i][0])
                normal = None if j >= 4 else (s, (-0.6, -0.1, 0.08, 0.5)[j], -0.35 * widening * sign)
                faces.append(Face(at(quad), colour, celsius, normal=normal))
    for ring, at_front in ((outlines[0], False), (outlines[-1], True)):
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
            rings = ((0.40, (0.010,) * 3, 7.5, 1.20), (0.33, (0.022,) * 3, 8 + 9 * heat, 1.22),
                     (0.22, (0.25, 0.25, 0.26), 7.5 + 13 * heat, 1.24), (0.16, (0.10, 0.10, 0.11), 8 + 16 * heat, 1.26),
                     (0.07, (0.2,) * 3, 8 + 24 * heat, 1.28))
            for radius, colour, celsius, lift in rings:
                faces.append(Face(_disc(hub, (0, radius, 0), (0, 0, radius)), colour, celsius, lift=lift,
                                  normal=(s, 0, 0)))
        # Door gaps and handles.
        for gap in (1.32, 2.30, L - 1.22):
            line = [(s * (W + 0.004), 0.34, gap), (s * (W + 0.004), 0.34, gap + 0.025),
                    (s * (W * 0.985 + 0.004), belt - 0.12, gap + 0.025), (s * (W * 0.985 + 0.004), belt - 0.12, gap)]
            faces.append(Face(at(line), (0.008,) * 3, body_c + 0.8, lift=0.7, normal=(s, 0, 0)))
        for handle in (1.42, 2.40):
            bar = [(s * (W + 0.006), belt - 0.23, handle), (s * (W + 0.006), belt - 0.23, handle + 0.17),
                   (s * (W + 0.006), belt - 0.19, handle + 0.17), (s * (W + 0.006), belt - 0.19, handle)]
            faces.append(Face(at(bar), (0.3, 0.3, 0.3), body_c - 1, lift=0.72, normal=(s, 0, 0)))
        # Tyres as seen from behind or ahead.
        for wz, nz in ((0.78, -1), (L - 0.83, 1)):
            tyre = [(s * (W - dx), y, wz) for dx, y in ((0.24, 0.0), (0.02, 0.0), (0.02, 0.2), (0.24, 0.2))]
            faces.append(Face(at(tyre), (0.012,) * 3, 8 + 7 * heat, normal=(0, 0, nz * sign), lift=-0.3))
        mirror_quad = [(s * (W + dx), belt + dy, zf0 - 0.25)
                       for dx, dy in ((0, 0), (0.19, 0), (0.19, 0.14), (0, 0.14))]
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
    panel(0.36, 0.46, 0.20, 0.27, False, (0.1, 0.1, 0.1), 9 + 55 * heat ** 3, lift=0.36, both=False)
    panel(0, W * 0.55, b1 - 0.22, b1 - 0.06, True, dark, 9 + 24 * heat, lift=0.31)
    panel(0, W * 0.62, 0.24, 0.40, True, dark, 9 + 18 * heat, lift=0.31)
    panel(W * 0.56, W * 0.84, b1 - 0.20, b1 - 0.05, True, (0.55, 0.55, 0.55), body_c + 9 * heat,
          np.array([1.0, 0.95, 0.84]) * head, lift=0.33)
    panel(0, 0.26, 0.41, 0.51, True, (0.75, 0.75, 0.72), body_c + 8 * heat, lift=0.33)
    return Solid(faces, (0.0, 0.62, 0.0))


def box(x0, x1, y0, y1, z0, z1, albedo, celsius, emission=(0, 0, 0)) -> list[Face]:
    """The faces of an upright box that a driver can see: towards the camera, left and right, and the top."""
    return [
        Face(np.array([(x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)]), albedo, celsius, emission, (0, 0, -1)),
        Face(np.array([(x0, y0, z0), (x0, y0, z1), (x0, y1, z1), (x0, y1, z0)]), albedo, celsius, emission, (-1, 0, 0)),
        Face(np.array([(x1, y0, z0), (x1, y0, z1), (x1, y1, z1), (x1, y1, z0)]), albedo, celsius, emission, (1, 0, 0)),
        Face(np.array([(x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)]), albedo, celsius, emission, (0, 1, 0)),
    ]


@lru_cache(maxsize=16)
def street_lamp(height: float, reach: float, colour: tuple, lit: bool) -> Solid:
    """A mast with an arm of `reach` metres (towards the road) and a head."""
    x = z = 0.0
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
    return Solid(faces)


@lru_cache(maxsize=4)
def traffic_light(state: int) -> Solid:
    """A signal on a mast; state 0 red, 1 amber, 2 green."""
    x = z = 0.0
    faces = box(x - 0.06, x + 0.06, 0, 2.5, z - 0.06, z + 0.06, (0.09, 0.09, 0.09), 6.8)
    faces += box(x - 0.17, x + 0.17, 2.35, 3.35, z - 0.15, z + 0.15, (0.025, 0.025, 0.025), 8.4)
    for i, colour in enumerate(((1.0, 0.05, 0.03), (1.0, 0.5, 0.05), (0.06, 1.0, 0.45))):
        on = i == state
        glow = tuple(5.0 * c for c in colour) if on else tuple(0.006 * c for c in colour)
        faces.append(Face(_disc((x, 3.17 - 0.31 * i, z - 0.17), (0.115, 0, 0), (0, 0.115, 0), 16), (0.05, 0.05, 0.05),
                          16.0 if on else 8.0, glow, (0, 0, -1), lift=0.3))
    return Solid(faces)


@lru_cache(maxsize=8)
def road_sign(kind: int) -> Solid:
    """A retroreflecting sign on a post: 0 speed limit, 1 crossing, 2 no parking, 3 warning triangle."""
    x = z = 0.0
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
            leg = [(0.02 * k, -0.12, 0), (0.11 * k, -0.22, 0), (0.07 * k, -0.22, 0), (-0.01 * k, -0.12, 0)]
            plate(c + np.array(leg), ink, 0.3)
    elif kind == 2:
        for radius, colour, lift in ((0.31, red, 0.2), (0.245, blue, 0.25)):
            plate(_disc(c, (radius, 0, 0), (0, radius, 0), 20), colour, lift)
        plate(c + np.array([(-0.21, 0.15, 0), (-0.15, 0.21, 0), (0.21, -0.15, 0), (0.15, -0.21, 0)]), red, 0.3)
    else:
        plate(c + np.array([(-0.38, -0.28, 0), (0.38, -0.28, 0), (0, 0.38, 0)]), red, 0.2)
        plate(c + np.array([(-0.25, -0.205, 0), (0.25, -0.205, 0), (0, 0.235, 0)]), white, 0.25)
        plate(square(0.025, 0.11, dy=0.0), ink, 0.3)
    return Solid(faces)
