"""Triton kernel of the gated blend; imported only by ``fused.py``, and only when it is used.

Shapes: B batch, C channels, H height, W width, G channels of the gate's 3x3 convolution, P pixels of a tile.
Names: i_ program or loop index, o_ offsets, m_ mask, p_ pointer, b_ block of values.
"""

import triton
import triton.language as tl


@triton.jit
def _load(p_tile, o_pixel, o_channel, m_pixel, channels: tl.constexpr, padded: tl.constexpr, last: tl.constexpr, plane):
    """Block (P, K) of a feature map; 0 outside the picture and beyond the last channel."""
    if last:
        p_block = p_tile + o_pixel[:, None] * channels + o_channel[None, :]
    else:
        p_block = p_tile + o_channel[None, :].to(tl.int64) * plane + o_pixel[:, None]
    m_block = m_pixel[:, None]
    if padded != channels:
        m_block = m_block & (o_channel < channels)[None, :]
    return tl.load(p_block, mask=m_block, other=0.0)


@triton.jit
def _load_tap(
    p_tile,
    o_pixel,
    o_y,
    o_x,
    o_channel,
    down,
    right,
    height,
    width,
    plane,
    channels: tl.constexpr,
    padded: tl.constexpr,
    last: tl.constexpr,
):
    """Block (P, K) of the pixels ``down`` and ``right`` (-1, 0 or 1) of the tile's own; 0 outside the picture."""
    m_tap = (o_y + down >= 0) & (o_y + down < height) & (o_x + right >= 0) & (o_x + right < width)  # P
    stride: tl.constexpr = channels if last else 1
    p_tap = p_tile + (down * width + right) * stride
    return _load(p_tap, o_pixel, o_channel, m_tap, channels, padded, last, plane)


@triton.jit
def _load_taps(p_taps, o_row, o_g, gate: tl.constexpr):
    """Block (K, G) of the weights (9 C_padded, G)."""
    return tl.load(p_taps + o_row[:, None] * gate + o_g[None, :])


# The picture's size is not specialised on: one binary serves every size, which is the one that was proved.
@triton.jit(do_not_specialize=["height", "width", "tiles_x", "strips", "tiles_per_strip"])
def gated_blend_kernel(
    p_complementary,  # B C H W
    p_visible,  # B C H W
    p_infrared,  # B C H W
    p_taps,  # 9 C_padded G, dtype of the features
    p_head,  # 3 G, fp32: bias of the 3x3, weight of the 1x1, bias of the 1x1 (first entry)
    p_blended,  # B C H W
    p_gate,  # B 1 H W
    height,
    width,
    tiles_x,
    strips,
    tiles_per_strip,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,  # channels, padded to a power of two
    GATE: tl.constexpr,  # channels of the gate, padded to a power of two
    TILE_HEIGHT: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    K_BLOCK: tl.constexpr,  # channels that one dot takes
    UNROLL: tl.constexpr,  # all taps in a row, each with one dot over all channels (K_BLOCK == PADDED)
    KEEP_TAPS: tl.constexpr,  # only with UNROLL: weights loaded once per program, not once per tile
    CHANNELS_LAST: tl.constexpr,
    PRECISION: tl.constexpr,  # "ieee" or "tf32"
    SLOPE: tl.constexpr,
):
    """One program walks down a strip of tiles, so that the rows two tiles share are still in its L1."""
    i_program = tl.program_id(0)
    i_x = i_program % tiles_x
    i_strip = (i_program // tiles_x) % strips
    i_batch = (i_program // (tiles_x * strips)).to(tl.int64)

    PIXELS: tl.constexpr = TILE_HEIGHT * TILE_WIDTH
    PIXEL_STRIDE: tl.constexpr = CHANNELS if CHANNELS_LAST else 1
    plane = height.to(tl.int64) * width
    o_p = tl.arange(0, PIXELS)
    o_row = o_p // TILE_WIDTH
    o_pixel = o_row * width + o_p % TILE_WIDTH  # P
    o_x = i_x * TILE_WIDTH + o_p % TILE_WIDTH  # P
    o_k = tl.arange(0, K_BLOCK)
    o_g = tl.arange(0, GATE)
    b_bias = tl.load(p_head + o_g)  # G
    b_point = tl.load(p_head + GATE + o_g)  # G
    b_point_bias = tl.load(p_head + 2 * GATE)

    BLOCKS: tl.constexpr = PADDED // K_BLOCK
    b_taps = ()  # of (K, G), tap-major
    if KEEP_TAPS:
        for i_tap in tl.static_range(9):
            b_taps = b_taps + (_load_taps(p_taps, i_tap * PADDED + o_k, o_g, GATE),)

    first = i_strip * tiles_per_strip
    last = tl.minimum(first + tiles_per_strip, (height + TILE_HEIGHT - 1) // TILE_HEIGHT)
    for i_y in range(first, last):
        o_y = i_y * TILE_HEIGHT + o_row  # P
        m_here = (o_y < height) & (o_x < width)
        # 64-bit once per tile; inside the tile 32 bits are enough.
        o_first = (i_batch * height + i_y * TILE_HEIGHT) * width + i_x * TILE_WIDTH
        o_tile = i_batch * plane * (CHANNELS - PIXEL_STRIDE) + o_first * PIXEL_STRIDE
        p_c = p_complementary + o_tile
        p_v = p_visible + o_tile
        p_i = p_infrared + o_tile

        if UNROLL:  # all loads of the blend are on their way while the convolution runs
            b_c = _load(p_c, o_pixel, o_k, m_here, CHANNELS, PADDED, CHANNELS_LAST, plane)  # P C
            b_v = _load(p_v, o_pixel, o_k, m_here, CHANNELS, PADDED, CHANNELS_LAST, plane)
            b_i = _load(p_i, o_pixel, o_k, m_here, CHANNELS, PADDED, CHANNELS_LAST, plane)

        b_hidden = tl.zeros((PIXELS, GATE), dtype=tl.float32)  # P G
        if UNROLL:
            for i_row in tl.static_range(3):
                for i_col in tl.static_range(3):
                    if i_row == 1 and i_col == 1:
                        b_x = b_c
                    else:
                        b_x = _load_tap(  # P K
                            p_c,
                            o_pixel,
                            o_y,
                            o_x,
                            o_k,
                            i_row - 1,
                            i_col - 1,
                            height,
                            width,
                            plane,
                            CHANNELS,
                            PADDED,
                            CHANNELS_LAST,
                        )
                    if KEEP_TAPS:
                        b_w = b_taps[i_row * 3 + i_col]  # K G
                    else:
                        b_w = _load_taps(p_taps, (i_row * 3 + i_col) * PADDED + o_k, o_g, GATE)
                    b_hidden = tl.dot(b_x, b_w, b_hidden, input_precision=PRECISION)
        else:
            for i_dot in range(9 * BLOCKS):
                down = i_dot // BLOCKS // 3 - 1
                right = i_dot // BLOCKS % 3 - 1
                o_c = i_dot % BLOCKS * K_BLOCK + o_k
                b_x = _load_tap(  # P K
                    p_c, o_pixel, o_y, o_x, o_c, down, right, height, width, plane, CHANNELS, PADDED, CHANNELS_LAST
                )
                b_w = _load_taps(p_taps, i_dot * K_BLOCK + o_k, o_g, GATE)  # K G
                b_hidden = tl.dot(b_x, b_w, b_hidden, input_precision=PRECISION)

        b_hidden += b_bias[None, :]
        b_hidden = tl.where(b_hidden > 0, b_hidden, b_hidden * SLOPE)
        b_logit = tl.sum(b_hidden * b_point[None, :], axis=1) + b_point_bias  # P
        b_gate = tl.sigmoid(b_logit)
        tl.store(p_gate + o_first + o_pixel, b_gate.to(p_gate.dtype.element_ty), mask=m_here)

        for i_k in tl.static_range(BLOCKS):
            o_c = i_k * K_BLOCK + o_k
            if not UNROLL:
                b_c = _load(p_c, o_pixel, o_c, m_here, CHANNELS, PADDED, CHANNELS_LAST, plane)
                b_v = _load(p_v, o_pixel, o_c, m_here, CHANNELS, PADDED, CHANNELS_LAST, plane)
                b_i = _load(p_i, o_pixel, o_c, m_here, CHANNELS, PADDED, CHANNELS_LAST, plane)
            b_local = b_v.to(tl.float32) + b_i.to(tl.float32)
            b_out = b_local + b_gate[:, None] * (b_c.to(tl.float32) - b_local)  # P K
            if CHANNELS_LAST:
                p_out = p_blended + o_tile + o_pixel[:, None] * CHANNELS + o_c[None, :]
            else:
                p_out = p_blended + o_tile + o_c[None, :].to(tl.int64) * plane + o_pixel[:, None]
            m_out = m_here[:, None]
            if CHANNELS != PADDED:
                m_out = m_out & (o_c < CHANNELS)[None, :]
            tl.store(p_out, b_out.to(p_blended.dtype.element_ty), mask=m_out)
