"""Procedural surfaces of the synthetic night drive: each one albedo, temperature and emitted light, drawn together.

Temperatures are apparent degrees Celsius on a night with the air at AIR_C; colours are linear RGB, albedo in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np

from isfl_ros.io._night_raster import Texture

AIR_C = 7.0
PIXELS_PER_M = 32
GROUND_PIXELS_PER_M = 40
GROUND_TILE = 1024
LANE_M = 3.5
RIGHT_KERB_M, LEFT_KERB_M, LEFT_WALK_M = 5.8, -3.8, -5.6
_WARM = np.array([[1.0, 0.66, 0.30], [1.0, 0.74, 0.42], [0.95, 0.84, 0.62], [0.70, 0.82, 1.0], [1.0, 0.56, 0.24]])


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float, *, wrap: bool = False) -> np.ndarray:
    """Zero-mean noise (H, W) float32 of unit variance with features of `cell` pixels; `wrap` makes it periodic."""
    gh, gw = max(2, round(height / cell)), max(2, round(width / cell))
    grid = rng.standard_normal((gh, gw)).astype(np.float32)
    if wrap:
        grid = np.pad(grid, 2, mode="wrap")
        big = cv2.resize(grid, (round(width * (gw + 4) / gw), round(height * (gh + 4) / gh)),
                         interpolation=cv2.INTER_CUBIC)
        oy, ox = round(2 * height / gh), round(2 * width / gw)
        out = big[oy:oy + height, ox:ox + width]
    else:
        out = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return (out - out.mean()) / (out.std() + 1e-6)


def ground(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One period of the street: (n, n, 4) albedo RGB and temperature, and (n, n) wetness in [0, 1]; both float32.

    Rows run along Z, columns along X (centred on the line between the lanes); periodic along the rows.
    """
    n, ppm = GROUND_TILE, GROUND_PIXELS_PER_M
    x = ((np.arange(n) + 0.5 - n / 2) / ppm).astype(np.float32)[None, :]
    z = ((np.arange(n) + 0.5) / ppm).astype(np.float32)[:, None]
    fine = smooth_noise(rng, n, n, 1.6, wrap=True)
    medium = smooth_noise(rng, n, n, 9, wrap=True)
    coarse = smooth_noise(rng, n, n, 70, wrap=True)
    large = smooth_noise(rng, n, n, 240, wrap=True)

    tracks = sum(np.exp(-(((x - c) / 0.28) ** 2)) for c in (-2.5, -1.0, 1.0, 2.5)).astype(np.float32)
    grey = 0.105 * (1 + 0.09 * fine + 0.035 * medium + 0.06 * coarse) * (1 - 0.14 * tracks)
    albedo = np.stack([grey * 1.03, grey, grey * 0.95], -1)
    temperature = 9.1 + 0.15 * fine + 0.2 * coarse + 0.3 * large + 0.7 * tracks
    wet = np.clip(0.42 + 0.22 * large + 0.14 * coarse + 0.05 * medium - 0.08 * tracks, 0.05, 1)

    # Repairs: rectangles of newer asphalt, and sealed cracks.
    for _ in range(7):
        i, j = int(rng.integers(0, n - 130)), int(n / 2 + rng.uniform(-3.2, 4.2) * ppm)
        h, w = int(rng.uniform(0.7, 3.0) * ppm), int(rng.uniform(0.5, 1.3) * ppm)
        albedo[i:i + h, j:j + w] *= rng.uniform(0.55, 0.8)
        temperature[i:i + h, j:j + w] += rng.uniform(0.2, 0.7)
    cracks = np.zeros((n, n), np.uint8)
    for _ in range(16):
        p = np.array([n / 2 + rng.uniform(-3.4, 5.4) * ppm, rng.uniform(0, n)])
        steps = rng.normal(0, 5, (int(rng.integers(12, 50)), 2)) + rng.normal(0, 5, 2)
        cv2.polylines(cracks, [np.int32(p + np.cumsum(steps, 0))], False, 255, 1, cv2.LINE_AA)
    crack = cracks.astype(np.float32) / 255
    albedo *= 1 - 0.6 * crack[..., None]
    temperature += 0.5 * crack

    def band(lo: float, hi: float) -> np.ndarray:
        return (np.clip((x - lo) * ppm + 0.5, 0, 1) * np.clip((hi - x) * ppm + 0.5, 0, 1)).astype(np.float32)

    def lay(mask: np.ndarray, rgb, celsius, wetness=None) -> None:
        mask = np.broadcast_to(mask, (n, n))
        used = np.flatnonzero(mask.any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        mask = mask[:, columns]

        def part(value):
            return value[:, columns] if isinstance(value, np.ndarray) and value.shape[:2] == (n, n) else value

        albedo[:, columns] += mask[..., None] * (part(rgb) - albedo[:, columns])
        temperature[:, columns] += mask * (part(celsius) - temperature[:, columns])
        if wetness is not None:
            wet[:, columns] += mask * (wetness - wet[:, columns])

    # Pavement slabs on the right and, behind the verge, on the left.
    slab = np.minimum(np.abs((x % 0.6) - 0.3), np.abs((z % 0.8) - 0.4))
    joint = np.exp(-(((np.minimum(0.3 - np.abs((x % 0.6) - 0.3), 0.4 - np.abs((z % 0.8) - 0.4))) / 0.025) ** 2))
    tone = rng.normal(0, 1, (int(n / ppm / 0.8) + 1, 64)).astype(np.float32)
    tone = tone[(z / 0.8).astype(int) % len(tone), (np.floor(x / 0.6).astype(int)) % 64]
    paving = 0.17 * (1 + 0.12 * tone + 0.12 * fine + 0.05 * slab) * (1 - 0.55 * joint)
    paving_t = 8.3 + 0.25 * tone + 0.6 * joint + 0.15 * fine + 0.2 * coarse
    rgb = np.stack([paving, paving * 0.96, paving * 0.9], -1)
    for lo, hi in ((RIGHT_KERB_M + 0.16, 40), (-40, LEFT_WALK_M)):
        lay(band(lo, hi), rgb, paving_t, 0.22)
    # Grass verge on the left.
    blades = smooth_noise(rng, n, n, 2.2, wrap=True)
    grass = np.stack([0.050 + 0.016 * blades, 0.085 + 0.028 * blades, 0.028 + 0.008 * blades], -1).clip(0.008, 1)
    lay(band(LEFT_WALK_M, LEFT_KERB_M - 0.16), grass * (1 + 0.25 * coarse[..., None]).clip(0.4, 2),
        5.6 + 0.5 * blades + 0.5 * coarse, 0.0)
    # Kerb stones with a gutter beside them.
    stone = 1 - 0.5 * np.exp(-((((z % 1.0) - 0.5) / 0.03) ** 2))
    for lo, gutter in ((RIGHT_KERB_M, (RIGHT_KERB_M - 0.32, RIGHT_KERB_M)),
                       (LEFT_KERB_M - 0.16, (LEFT_KERB_M, LEFT_KERB_M + 0.32))):
        lay(np.float32(0.6) * band(*gutter), np.float32([0.05, 0.05, 0.05]), 9.6, 0.9)
        kerb = (0.30 * stone * (1 + 0.1 * fine))[..., None] * np.float32([1, 0.98, 0.93])
        lay(band(lo, lo + 0.16), kerb, 8.2 + 0.5 * (1 - stone), 0.15)
    # Paint: broken centre line, edge of the parking lane, solid left edge. Worn by the texture under it.
    worn = np.clip(0.85 + 0.22 * medium + 0.2 * coarse, 0.25, 1)
    dash = (np.clip((z % 8.533) * ppm, 0, 1) * np.clip((4.0 - (z % 8.533)) * ppm, 0, 1)).astype(np.float32)
    paint = (0.62 * (1 + 0.1 * fine))[..., None] * np.float32([1, 0.99, 0.94])
    lay(worn * dash * band(-0.07, 0.07), paint, 9.3)
    lay(worn * band(-3.46, -3.34), paint, 9.4)
    dots = (np.clip((z % 2.1333) * ppm, 0, 1) * np.clip((1.0 - (z % 2.1333)) * ppm, 0, 1)).astype(np.float32)
    lay(worn * dots * band(LANE_M + 0.02, LANE_M + 0.14), paint, 9.4)
    surface = np.dstack([np.clip(albedo, 0.004, 0.9), temperature]).astype(np.float32)
    return surface, np.clip(wet, 0, 1).astype(np.float32)


def grain(rng: np.random.Generator) -> np.ndarray:
    """Stones of the asphalt near the car: a periodic (512, 512) float32 factor around 0, to add to 1."""
    tile = 0.6 * rng.standard_normal((512, 512)).astype(np.float32) + 0.5 * smooth_noise(rng, 512, 512, 2.5, wrap=True)
    return np.clip(0.20 * tile + 0.4 * (rng.random((512, 512)) > 0.985), -0.6, 0.9).astype(np.float32)


def facade(rng: np.random.Generator, width_m: float, floors: int, *, blind: bool = False) -> Texture:
    """A house front with window grid and shops; `blind` is a gable end: the wall with very few windows."""
    ppm = PIXELS_PER_M
    storey = 3.1
    ground_floor = 3.9
    height_m = ground_floor + storey * (floors - 1) + 0.7
    w, h = round(width_m * ppm), round(height_m * ppm)
    base_rgb = np.float32([[0.20, 0.105, 0.075], [0.26, 0.20, 0.14], [0.24, 0.22, 0.20], [0.29, 0.25, 0.18],
                           [0.17, 0.12, 0.10], [0.20, 0.22, 0.23]][int(rng.integers(6))])
    fine, coarse = smooth_noise(rng, h, w, 2), smooth_noise(rng, h, w, 60)
    tone = 1 + 0.08 * fine + 0.12 * coarse
    temperature = 9.6 + float(rng.normal(0, 0.7)) + 0.12 * fine + 0.35 * coarse
    if rng.random() < 0.6:  # brick: courses and offset joints
        ys, xs = np.mgrid[0:h, 0:w].astype(np.float32) / ppm
        course = np.floor(ys / 0.14).astype(int)
        brick = np.floor(xs / 0.40 + 0.5 * (course % 2)).astype(int)
        shade = rng.normal(0, 1, (97, 89)).astype(np.float32)[course % 97, brick % 89]
        mortar = ((ys % 0.14) < 0.03) | (((xs + 0.2 * (course % 2)) % 0.40) < 0.03)
        tone = tone * (1 + 0.17 * shade) * np.where(mortar, 1.35, 1.0)
        temperature = temperature + 0.15 * shade + 0.25 * mortar
    albedo = np.clip(base_rgb * tone[..., None], 0.01, 0.8).astype(np.float32)
    emission = np.zeros((h, w, 3), np.float32)
    streak = cv2.resize(rng.random((1, w)).astype(np.float32), (w, h)) * np.linspace(0, 1, h, dtype=np.float32)[:, None]
    albedo *= 1 - 0.18 * streak[..., None]

    def box(x0, y0, x1, y1):
        """Slices of a rectangle given in metres from the left and from the ground."""
        return (slice(max(0, round(h - y1 * ppm)), max(0, round(h - y0 * ppm))),
                slice(max(0, round(x0 * ppm)), max(0, round(x1 * ppm))))

    # Floor slabs leak warmth, the cornice and the plinth do not.
    for f in range(floors):
        level = ground_floor + storey * f
        temperature[box(0, level - 0.2, width_m, level + 0.1)] += 0.9
        albedo[box(0, level - 0.06, width_m, level + 0.1)] *= 1.35
        albedo[box(0, level - 0.12, width_m, level - 0.06)] *= 0.5
    albedo[box(0, height_m - 0.45, width_m, height_m)] *= 1.3
    albedo[box(0, height_m - 0.55, width_m, height_m - 0.45)] *= 0.4
    temperature[box(0, height_m - 0.45, width_m, height_m)] -= 1.6
    albedo[box(0, 0, width_m, 0.5)] *= 0.6
    temperature[box(0, 0, width_m, 0.5)] += 0.5

    def window(x0, y0, ww, wh, lit: bool):
        albedo[box(x0 - 0.14, y0 - 0.16, x0 + ww + 0.14, y0 + wh + 0.2)] *= 1.3
        albedo[box(x0 - 0.2, y0 - 0.2, x0 + ww + 0.2, y0 - 0.08)] = base_rgb * 1.6
        albedo[box(x0 - 0.2, y0 - 0.27, x0 + ww + 0.2, y0 - 0.2)] *= 0.4
        temperature[box(x0 - 0.1, y0 - 0.85, x0 + ww + 0.1, y0 - 0.15)] += rng.uniform(0.1, 1.6)
        glass = box(x0, y0, x0 + ww, y0 + wh)
        gh, gw = albedo[glass].shape[:2]
        if gh < 3 or gw < 3:
            return
        albedo[glass] = (0.020, 0.023, 0.028)
        slope = np.linspace(-1.0, 1.2, gh, dtype=np.float32)[:, None]
        temperature[glass] = 6.6 + slope + rng.normal(0, 0.4)
        if lit:
            colour = _WARM[int(rng.integers(len(_WARM)))] * rng.uniform(0.10, 0.42)
            yy, xx = np.mgrid[0:1:gh * 1j, 0:1:gw * 1j].astype(np.float32)
            lamp = 0.45 + 0.9 * np.exp(-(((xx - rng.uniform(0.2, 0.8)) / 0.45) ** 2 + ((yy - 0.25) / 0.5) ** 2))
            curtain = rng.uniform(0.05, 0.34)
            folds = 0.62 + 0.2 * np.sin(xx * rng.uniform(40, 70))
            lamp = np.where((xx < curtain) | (xx > 1 - curtain), 0.55 * folds * lamp, lamp)
            if rng.random() < 0.3:
                lamp = np.where(yy < rng.uniform(0.2, 0.6), 0.55 * lamp * (0.85 + 0.15 * np.sin(yy * 60)), lamp)
            if rng.random() < 0.6:
                lamp = np.where(yy > 1 - rng.uniform(0.12, 0.3) * (0.6 + 0.4 * np.sin(xx * rng.uniform(6, 14))),
                                0.25 * lamp, lamp)
            emission[glass] = lamp[..., None] * colour
            temperature[glass] += 4.0 + 2.0 * lamp
        elif rng.random() < 0.35:
            blind_rows = int(gh * rng.uniform(0.3, 1.0))
            albedo[glass][:blind_rows] = 0.16 + 0.03 * np.sin(np.arange(blind_rows) * 1.6)[:, None, None]
        frame = np.zeros((gh, gw), bool)
        frame[[0, 1, -1, -2]] = frame[:, [0, 1, -1, -2]] = True
        frame[:, gw // 2 - 1:gw // 2 + 1] = True
        frame[int(gh * 0.33)] = True
        albedo[glass][frame] = (0.34, 0.33, 0.31)
        emission[glass][frame] *= 0.05
        temperature[glass][frame] = 8.4

    bay = rng.uniform(1.9, 2.6)
    count = max(1, int((width_m - 0.6) / bay))
    margin = (width_m - count * bay) / 2
    ww, wh = rng.uniform(0.95, 1.3), rng.uniform(1.4, 1.8)
    lit_share = rng.uniform(0.15, 0.42)
    balconies = rng.random() < 0.3
    for f in range(1, floors):
        for b in range(count):
            if blind and rng.random() < 0.75:
                continue
            x0, y0 = margin + b * bay + (bay - ww) / 2, ground_floor + storey * (f - 1) + 0.95
            window(x0, y0, ww, wh, bool(rng.random() < lit_share))
            if balconies and not blind and b % 2 == 1:
                rail = box(x0 - 0.4, y0 - 0.75, x0 + ww + 0.4, y0 + 0.25)
                bars = (np.arange(albedo[rail].shape[1]) % 5) < 2
                albedo[rail][:, bars] = (0.05, 0.05, 0.055)
                temperature[rail][:, bars] = 6.2
                albedo[box(x0 - 0.45, y0 - 0.9, x0 + ww + 0.45, y0 - 0.72)] = (0.2, 0.19, 0.18)
                temperature[box(x0 - 0.45, y0 - 0.9, x0 + ww + 0.45, y0 - 0.72)] = 7.6
    if blind:
        return Texture.build(albedo, temperature, emission)

    # Ground floor: shop panes, signboard, a door.
    shop = rng.random() < 0.62
    if shop:
        glow = _WARM[int(rng.integers(len(_WARM)))] * (rng.uniform(0.35, 0.8) if rng.random() < 0.65 else 0.02)
        pane = rng.uniform(2.2, 3.4)
        x0 = 0.5
        while x0 + pane < width_m - 1.7:
            glass = box(x0, 0.55, x0 + pane - 0.18, 2.75)
            gh, gw = albedo[glass].shape[:2]
            yy, xx = np.mgrid[0:1:gh * 1j, 0:1:gw * 1j].astype(np.float32)
            lamp = 0.35 + 0.65 * np.exp(-((yy / 0.6) ** 2)) + 0.25 * np.sin(xx * 9 + rng.uniform(0, 6)) ** 2
            goods = cv2.resize(rng.random((5, 11)).astype(np.float32), (gw, gh), interpolation=cv2.INTER_NEAREST)
            shelf = (yy > 0.42) & ((yy * 4) % 1 > 0.22) & (goods > 0.35)
            tint = cv2.resize(rng.random((5, 11, 3)).astype(np.float32), (gw, gh), interpolation=cv2.INTER_NEAREST)
            emission[glass] = lamp[..., None] * glow * np.where(shelf[..., None], 0.15 + 0.7 * tint, 1.0)
            albedo[glass] = (0.03, 0.03, 0.035)
            temperature[glass] = 9.0 + 5.0 * (glow.max() > 0.1) * (1 - 0.5 * yy) + 1.2 * shelf + 0.8 * yy
            edge = albedo[glass]
            edge[:3] = edge[-3:] = edge[:, :3] = edge[:, -3:] = (0.09, 0.09, 0.09)
            x0 += pane
        board = box(0.4, 2.9, width_m - 0.4, 3.5)
        hue = np.float32([[0.9, 0.12, 0.10], [0.12, 0.55, 0.95], [0.15, 0.8, 0.35], [1.0, 0.75, 0.2],
                          [0.9, 0.9, 0.95]][int(rng.integers(5))])
        albedo[board] = 0.05 + 0.15 * hue
        if glow.max() > 0.1:
            emission[board] = 0.05 * hue
            letters = np.zeros(albedo[board].shape[:2], np.uint8)
            pen = int(0.5 * ppm)
            while pen < letters.shape[1] * rng.uniform(0.6, 0.95) and letters.shape[0] > 10:
                size = int(rng.integers(6, 13))
                top, bottom = 4, letters.shape[0] - 4
                stroke = rng.integers(0, 2, 5)
                cv2.line(letters, (pen, top), (pen, bottom), 255, 2)
                for s, row in enumerate((top, (top + bottom) // 2, bottom)):
                    if stroke[s]:
                        cv2.line(letters, (pen, row), (pen + size, row), 255, 2)
                if stroke[3]:
                    cv2.line(letters, (pen + size, top), (pen + size, bottom), 255, 2)
                pen += size + 6
            emission[board][letters > 0] = hue * 0.9
            temperature[board] += 1.5
            temperature[board][letters > 0] += 2.0
        door_x = width_m - 1.5
    else:
        for b in range(count):
            window(margin + b * bay + (bay - ww) / 2, 1.15, ww, 1.5, bool(rng.random() < lit_share * 0.8))
        door_x = margin + bay * int(rng.integers(count)) + (bay - 1.1) / 2
    door = box(door_x, 0.05, door_x + 1.1, 2.3)
    albedo[box(door_x - 0.15, 0, door_x + 1.25, 2.95)] = base_rgb * 1.5
    albedo[door] = np.float32([[0.09, 0.05, 0.03], [0.03, 0.06, 0.05], [0.10, 0.10, 0.10]][int(rng.integers(3))])
    emission[box(door_x - 0.15, 0, door_x + 1.25, 2.95)] = 0
    temperature[door] = 9.9
    emission[box(door_x + 0.1, 2.4, door_x + 1.0, 2.8)] = np.float32([1.0, 0.7, 0.35]) * rng.uniform(0.0, 0.6)
    return Texture.build(albedo, temperature, emission)


def tree(rng: np.random.Generator) -> tuple[Texture, float, float]:
    """A street tree as a cut-out and its width and height in metres."""
    width_m, height_m = 4.6, 6.6
    ppm = 48
    w, h = int(width_m * ppm), int(height_m * ppm)
    albedo = np.zeros((h, w, 3), np.uint8)
    alpha = np.zeros((h, w), np.uint8)
    celsius = np.full((h, w), 6.4, np.float32)

    def branch(p, direction, length, thick, depth):
        q = p + direction * length
        colour = tuple(int(c) for c in np.array([64, 50, 38]) * rng.uniform(0.7, 1.2))
        for image, value in ((albedo, colour), (alpha, 255), (celsius, 8.2 - 0.3 * depth)):
            cv2.line(image, tuple(np.int32(p)), tuple(np.int32(q)), value, max(1, int(thick)),
                     cv2.LINE_AA if image.dtype == np.uint8 else cv2.LINE_8)
        if depth < 5:
            for _ in range(3 if depth else 4):
                a = rng.normal(0, 0.55)
                c, s = np.cos(a), np.sin(a)
                branch(q, np.array([c * direction[0] - s * direction[1], s * direction[0] + c * direction[1]]),
                       length * rng.uniform(0.55, 0.8), thick * 0.6, depth + 1)

    branch(np.array([w / 2, h - 1.0]), np.array([rng.normal(0, 0.03), -1.0]), h * 0.33, 0.26 * ppm, 0)
    trunk = alpha.copy()
    centre = np.array([w / 2, h * 0.36])
    lobes = centre + rng.normal(0, 1, (15, 2)) * (w * 0.19, h * 0.13)
    for layer in range(3):  # dark leaves behind, light ones in front
        for _ in range(750):
            lobe = lobes[int(rng.integers(len(lobes)))]
            p = lobe + rng.normal(0, 1, 2) * (w * 0.078, h * 0.052)
            light = (0.45 + 0.28 * layer) * rng.uniform(0.55, 1.25) * (1.12 - 0.5 * p[1] / h)
            leaf = np.array([46, 66, 22]) * light * np.array([rng.uniform(0.7, 1.6), 1, 1])
            axes = (int(rng.integers(1, 3)), int(rng.integers(2, 5)))
            angle = float(rng.uniform(0, 180))
            position = tuple(np.int32(p))
            cv2.ellipse(albedo, position, axes, angle, 0, 360, tuple(int(c) for c in leaf), -1, cv2.LINE_AA)
            cv2.ellipse(alpha, position, axes, angle, 0, 360, 255, -1, cv2.LINE_AA)
            cv2.ellipse(celsius, position, axes, angle, 0, 360,
                        5.7 + 0.5 * layer + float(rng.normal(0, 0.35)) + 1.2 * (p[1] / h - 0.4), -1)
    alpha[:2] = 0
    alpha[:, :2] = alpha[:, -2:] = 0
    keep_trunk = trunk[int(h * 0.62):] > 0
    celsius[int(h * 0.62):][keep_trunk] = 8.4
    leaves = (albedo / 255.0).astype(np.float32) ** 1.25 * 2.0
    return Texture.build(leaves, celsius, None, alpha / 255.0), width_m, height_m


def soft_ellipse(size: int = 96, power: float = 2.0) -> Texture:
    """A soft dark spot: coverage falls from 1 in the middle to 0 at the rim."""
    y, x = np.mgrid[-1:1:size * 1j, -1:1:size * 1j].astype(np.float32)
    alpha = np.clip(1 - (x * x + y * y), 0, 1) ** power
    return Texture.build(np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.float32), None, alpha)


def soft_box(size: int = 96) -> Texture:
    """A dark rectangle with blurred edges, the shadow under a car."""
    alpha = np.zeros((size, size), np.float32)
    alpha[size // 6:-size // 6, size // 6:-size // 6] = 1
    alpha = cv2.GaussianBlur(alpha, (0, 0), size / 14)
    return Texture.build(np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.float32), None, alpha)


def zebra(rng: np.random.Generator, width_m: float, length_m: float) -> Texture:
    """Zebra stripes with worn paint; columns across the road."""
    ppm = 32
    h, w = int(length_m * ppm), int(width_m * ppm)
    x = np.arange(w, dtype=np.float32)[None, :] / ppm
    stripe = np.clip(((x % 1.0) - 0.05) * ppm, 0, 1) * np.clip((0.55 - (x % 1.0)) * ppm, 0, 1)
    worn = np.clip(0.78 + 0.16 * smooth_noise(rng, h, w, 3) + 0.08 * smooth_noise(rng, h, w, 40), 0.1, 1)
    alpha = stripe * worn
    alpha[[0, -1]] = 0
    tone = 0.62 * (1 + 0.08 * smooth_noise(rng, h, w, 1.5))
    return Texture.build(tone[..., None] * np.float32([1, 0.99, 0.94]), np.full((h, w), 9.2, np.float32), None, alpha)


def manhole(rng: np.random.Generator) -> Texture:
    """A cast-iron cover: dark with a pattern, warm from the sewer below."""
    n = 48
    y, x = np.mgrid[-1:1:n * 1j, -1:1:n * 1j].astype(np.float32)
    r = np.sqrt(x * x + y * y)
    pattern = 0.5 + 0.5 * np.sign(np.sin(x * 16) * np.sin(y * 16))
    tone = np.where(r > 0.86, 0.16, 0.05 + 0.06 * pattern)
    celsius = 10.8 + 1.6 * np.exp(-(r * r) * 1.5) + float(rng.uniform(-1, 2))
    return Texture.build(tone[..., None] * np.ones(3, np.float32), celsius, None, np.clip((0.97 - r) * n / 2, 0, 1))


SKY_SIZE = (640, 1280)
SKY_AZIMUTH = 1.15
SKY_ELEVATION = (-0.06, 1.0)


def sky(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sky and skyline over azimuth +-SKY_AZIMUTH and SKY_ELEVATION (slopes): emission (h, w, 3), temperature (h, w)."""
    h, w = SKY_SIZE
    top = SKY_ELEVATION[1]
    elevation = np.linspace(top, SKY_ELEVATION[0], h, dtype=np.float32)[:, None].repeat(w, 1)
    up = np.clip(elevation, 0, 1)
    cloud = 0.6 * smooth_noise(rng, h, w, 150) + 0.3 * smooth_noise(rng, h, w, 60) + 0.12 * smooth_noise(rng, h, w, 20)
    cover = 1 / (1 + np.exp(-2.4 * (cloud - 0.1)))
    glow = np.exp(-up / 0.22)[..., None]
    emission = np.float32([0.0016, 0.0022, 0.0048]) + glow * np.float32([0.013, 0.0095, 0.0075])
    emission = emission * (1 + (0.9 * cover * (0.5 + 1.2 * np.exp(-up / 0.5)))[..., None])
    stars = rng.random((h, w)) > 0.9994
    emission[stars] += (rng.random((int(stars.sum()), 1)) ** 3 * 0.10 * (1 - cover[stars][:, None])).astype(np.float32)
    celsius = 4.2 - 7.0 * (1 - np.exp(-up / 0.35)) + 4.0 * (cover - 0.5) * np.clip(up * 6, 0.1, 1)
    for depth, (lo, hi) in enumerate(((0.03, 0.10), (0.02, 0.07))):
        x = 0.0
        while x < w:
            bw = rng.uniform(14, 48)
            rise = rng.uniform(lo, hi) * (1.6 if rng.random() < 0.12 else 1.0)
            roof = int((top - rise) * h / (top - SKY_ELEVATION[0]))
            cols = slice(int(x), min(w, int(x + bw)))
            emission[roof:, cols] = np.float32([0.010, 0.008, 0.0065]) * (1.0 - 0.45 * depth)
            celsius[roof:, cols] = 5.6 + 1.2 * depth + rng.normal(0, 0.25)
            for yy in range(roof + 4, h, 6):
                for xx in range(cols.start + 3, cols.stop - 3, 5):
                    if rng.random() < 0.13:
                        emission[yy:yy + 2, xx:xx + 2] = _WARM[int(rng.integers(5))] * rng.uniform(0.03, 0.14)
            x += bw * rng.uniform(0.8, 1.25)
    return emission.astype(np.float32), celsius.astype(np.float32)
