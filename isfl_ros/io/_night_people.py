"""Pedestrians of the synthetic night drive: walking figures of rounded limbs, warm through their clothes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from isfl_ros.io._night_raster import ALBEDO, NEAR_M, TEMPERATURE, Canvas


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
    cloth: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> PersonLook:
        def cloth() -> tuple:
            return [(0.02, 0.02, 0.024), (0.035, 0.04, 0.06), (0.09, 0.085, 0.08), (0.16, 0.02, 0.02),
                    (0.05, 0.07, 0.04), (0.22, 0.2, 0.17), (0.03, 0.05, 0.12)][int(rng.integers(7))]

        skin = [(0.42, 0.27, 0.19), (0.30, 0.18, 0.12), (0.12, 0.07, 0.045)][int(rng.integers(3))]
        return cls(float(rng.uniform(1.55, 1.9)), float(rng.uniform(0.92, 1.15)), cloth(), cloth(), skin,
                   float(rng.uniform(14.5, 17.5)), float(rng.uniform(15.5, 18.5)), bool(rng.random() < 0.3),
                   bool(rng.random() < 0.3), bool(rng.random() < 0.2), int(rng.integers(2 ** 31)))


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

    limbs: list[tuple] = []  # (joint, joint, radius, radius, albedo, celsius at start and end, group)
    jacket, trousers, skin = look.jacket, look.trousers, look.skin
    shoe = (0.025, 0.022, 0.02)
    wide = look.stout
    head = joint(lean + 0.03, 0, 1.62 + bob)
    for sgn in (1.0, -1.0):
        leg, sleeve = (1, 2) if sgn > 0 else (3, 4)
        reach = 0.52 * swing * sgn
        bend = max(0.0, np.cos(phase) * sgn) * 0.75 if walking else 0.05
        hip = joint(0, 0.09 * sgn, 0.92 + bob)
        knee = joint(0.46 * np.sin(reach), 0.10 * sgn, 0.92 + bob - 0.44 * np.cos(reach))
        shin = reach - bend
        ankle = knee + s * 0.42 * (forward * np.sin(shin) - up * np.cos(shin))
        ankle[1] = max(ankle[1], 0.07 * s)
        toe = ankle + s * (forward * 0.15 - up * 0.035)
        limbs += [(hip, knee, 0.092 * wide, 0.068, trousers, look.trousers_c + 0.8, look.trousers_c, leg),
                  (knee, ankle, 0.064, 0.047, trousers, look.trousers_c, look.trousers_c - 2.0, leg),
                  (ankle, toe, 0.050, 0.042, shoe, 13.5, 12.0, leg)]
        arm = -0.62 * swing * sgn
        shoulder = joint(lean, 0.20 * sgn * wide, 1.40 + bob)
        elbow = shoulder + s * (forward * 0.29 * np.sin(arm) - up * 0.29 * np.cos(arm) + side * 0.05 * sgn)
        fore = arm + (0.55 if walking else 0.25)
        hand = elbow + s * 0.25 * (forward * np.sin(fore) - up * np.cos(fore))
        tip = hand + s * 0.07 * (forward * np.sin(fore) - up * np.cos(fore))
        limbs += [(shoulder, elbow, 0.062 * wide, 0.052, jacket, look.jacket_c - 0.6, look.jacket_c - 1.0, sleeve),
                  (elbow, hand, 0.050, 0.040, jacket, look.jacket_c - 0.6, look.jacket_c, sleeve),
                  (hand, tip, 0.038, 0.030, skin, 26.0, 24.0, sleeve)]
    chest, waist = joint(lean, 0, 1.33 + bob), joint(0, 0, 0.96 + bob)
    limbs.append((chest, waist, 0.175 * wide, 0.150 * wide, jacket, look.jacket_c + 1.2, look.jacket_c - 0.8, 0))
    if look.skirt:
        limbs.append((waist, joint(0, 0, 0.60 + bob), 0.15, 0.20, trousers, look.trousers_c, look.trousers_c - 1.5, 5))
    limbs.append((joint(lean, 0.12 * wide, 1.40 + bob), joint(lean, -0.12 * wide, 1.40 + bob), 0.085, 0.085, jacket,
                  look.jacket_c + 0.6, look.jacket_c + 0.6, 0))
    neck = joint(lean + 0.01, 0, 1.49 + bob)
    limbs.append((neck, head, 0.055, 0.06, skin, 28.0, 30.0, 6))
    if look.backpack:
        pack = joint(lean - 0.20, 0, 1.34 + bob), joint(-0.18, 0, 1.05 + bob)
        limbs.append((*pack, 0.13, 0.13, (0.05, 0.06, 0.09), 10.5, 10.0, 7))

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
    fan = np.linspace(-np.pi / 2, np.pi / 2, 6)
    mean_depth = float(depth.mean())
    tall = focal * look.height / mean_depth
    # Nested strips make the limbs round: the rim looks sideways (and is a little colder), the middle at the camera.
    layers = ((1.0, -0.8, -1.3), (0.72, 0.55, -0.2), (0.42, 0.0, 0.5)) if tall > 26 else ((1.0, 0.0, 0.0),)

    # Legs and arms are drawn as a whole, layer after layer, so that no joint shows as a knob.
    groups: dict[int, list[int]] = {}
    for i, limb in enumerate(limbs):
        groups.setdefault(limb[7], []).append(i)
    rows = []  # limb, position along it from and to, layer, temperature
    for group in sorted(groups.values(), key=lambda g: -depth[g].mean()):
        for layer in layers:
            for i in group:
                c0, c1 = limbs[i][5:7]
                rows += [(i, 0.0, 0.5, layer, c0), (i, 0.5, 1.0, layer, c1)] if tall > 45 and abs(c0 - c1) > 0.5 else [
                    (i, 0.0, 1.0, layer, (c0 + c1) / 2)]
    which = np.array([r[0] for r in rows])
    along = np.array([r[1:3] for r in rows])
    size = np.array([r[3][0] for r in rows])
    radii = np.array([limb[2:4] for limb in limbs]) * s * focal / depth
    p0, d = pixels[which, 0], pixels[which, 1] - pixels[which, 0]
    ends = p0[:, None, :] + d[:, None, :] * along[..., None]
    radius = (radii[which, :1] + (radii[which, 1:] - radii[which, :1]) * along) * size[:, None]
    angle = np.arctan2(d[:, 1], d[:, 0])[:, None] + np.concatenate([fan, np.pi + fan])
    reach = np.repeat(radius[:, ::-1], len(fan), axis=1)[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    polygons = list(np.repeat(ends[:, ::-1], len(fan), axis=1) + reach)
    normal_of = {turn: across * turn + view * np.sqrt(max(0.0, 1 - turn * turn)) for _, turn, _ in layers}
    table = [(*limbs[i][4], celsius + layer[2], 0, 0, 0, *normal_of[layer[1]], 2 / depth[i].sum())
             for i, _, _, layer, celsius in rows]
    # The head: hair (or hood) behind, face towards the heading in front of it.
    radius = 0.108 * s * focal / hd[0]
    toward = float(forward @ view)
    face_shift = float(forward @ across) * (-1.0)
    right = canvas.camera.rotation @ across
    shift = -face_shift * np.sign(right[0]) * radius * 0.42
    angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    circle = np.stack([np.cos(angle) * 0.86, np.sin(angle) * 1.12], 1)
    cover = (jacket, 18.0) if look.hood else ((0.03, 0.022, 0.016), 22.0)
    polygons.append(hp[0] + circle * radius * (1.12 if look.hood else 1.0))
    table.append((*cover[0], cover[1], 0, 0, 0, *view, 1 / hd[0]))
    if toward > -0.5:
        polygons.append(hp[0] + (shift, radius * 0.16) + circle * radius * (0.80 if toward > 0.3 else 0.72))
        table.append((*skin, 30.0, 0, 0, 0, *view, 1 / hd[0]))
        polygons.append(hp[0] + (shift, radius * 0.2) + circle * radius * 0.45)
        table.append((*(1.1 * c for c in skin), 32.5, 0, 0, 0, *view, 1 / hd[0]))
    else:  # seen from behind: the warm neck below the hair
        polygons.append(hp[0] + (0, radius * 0.75) + circle * radius * 0.45)
        table.append((*skin, 28.5, 0, 0, 0, *view, 1 / hd[0]))
    drawn = canvas.faces(polygons, np.array(table, np.float32))
    if drawn is None:
        return None
    if tall > 40:
        _folds(canvas, *drawn, look)
    return (*drawn, mean_depth)


def _folds(canvas: Canvas, window, alpha: np.ndarray, look: PersonLook) -> None:
    """Folds of the clothes: they throw little shadows, and where the cloth lies on the body it is warmer."""
    x0, y0, x1, y1 = window
    grid = np.random.default_rng(look.cloth).standard_normal((22, 11)).astype(np.float32)
    noise = cv2.resize(grid, (x1 - x0, y1 - y0), interpolation=cv2.INTER_CUBIC) * alpha
    canvas.planes[ALBEDO, y0:y1, x0:x1] *= 1 + 0.17 * np.clip(noise, -2, 2)
    canvas.planes[TEMPERATURE, y0:y1, x0:x1] += 0.55 * noise
