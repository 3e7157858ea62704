"""Triton kernels of the pooled cross-attention. Only ``fused.py`` launches them; it also decides every block size.

Shapes: B batch, C channels, N = H*W pixels, R side of the pooled grid, T = R*R tokens, S splits of a bin. CP is C
and TP is T padded to what the tensor cores take. Direction 0: visible pixels ask pooled infrared tokens; direction 1:
infrared pixels ask pooled visible tokens. Maps: 0 visible, 1 infrared.

Names: ``i_`` program id, ``o_`` offsets, ``m_`` mask, ``p_`` pointer, ``b_`` block; comments are shapes.

Features are dense, either channels-last (N, C) or contiguous (C, N) per picture. The pointer to a tile's first element
is a 64-bit scalar, so a batch may hold more than 2^31 elements; offsets within a tile are 32-bit where that is enough.
"""

import triton
import triton.language as tl

# softmax(s) = exp2(s * log2(e)) / sum: the factor lies in keys and offsets, so the inner loop has none.
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _known(n_pixels, ALIGNED: tl.constexpr):
    """The number of pixels; if ``ALIGNED``, the compiler learns that 16 divides it and loads 16 bytes at a time."""
    if ALIGNED:
        return n_pixels // 16 * 16
    else:
        return n_pixels


@triton.jit
def _map_offsets(o_n, o_c, n_pixels, C: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Offsets (n, c) of pixels and channels within one picture, relative to a pixel's first channel."""
    if CHANNELS_LAST:
        return o_n[:, None] * C + o_c[None, :]
    else:
        return o_n[:, None] + (o_c.to(tl.int64) * n_pixels)[None, :]


@triton.jit
def _pixel_base(i_b, i_n, n_pixels, C: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """64-bit offset of pixel ``i_n`` of picture ``i_b``, channel 0."""
    first = i_b.to(tl.int64) * n_pixels
    if CHANNELS_LAST:
        return (first + i_n) * C
    else:
        return first * C + i_n


@triton.jit
def _tile_mask(o_n, o_c, n_left, C: tl.constexpr, CP: tl.constexpr):
    if C == CP:
        return (o_n < n_left)[:, None]
    else:
        return (o_n < n_left)[:, None] & (o_c < C)[None, :]


# --- Pooling ---------------------------------------------------------------------------------------------------------


@triton.jit
def _bin(i_y, i_x, height, width, R: tl.constexpr):
    """Rows and columns [start, stop) of a bin, as in adaptive average pooling: bins overlap where R does not divide."""
    y_start, y_stop = i_y * height // R, ((i_y + 1) * height + R - 1) // R
    x_start, x_stop = i_x * width // R, ((i_x + 1) * width + R - 1) // R
    return y_start, y_stop, x_start, x_stop


@triton.jit(do_not_specialize=["height", "width", "splits"])
def partial_pool_kernel(
    p_visible,  # B N C
    p_infrared,  # B N C
    p_partial,  # B 2 T S C fp32: sums over the rows of one split of one bin
    height,
    width,
    splits,
    C: tl.constexpr,
    CP: tl.constexpr,
    R: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    STAGES: tl.constexpr,
):
    i_bin, i_split, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    y_start, y_stop, x_start, x_stop = _bin(i_bin // R, i_bin % R, height, width, R)
    rows_per_split = tl.cdiv(tl.cdiv(y_stop - y_start, ROWS), splits) * ROWS
    y_start += i_split * rows_per_split
    y_stop = tl.minimum(y_stop, y_start + rows_per_split)

    n_pixels = height * width
    o_p, o_c = tl.arange(0, ROWS * COLS), tl.arange(0, CP)
    o_y, o_x = o_p // COLS, o_p % COLS
    o_tile = _map_offsets(o_y * width + o_x, o_c, n_pixels, C, CHANNELS_LAST)
    b_visible = tl.zeros((ROWS * COLS, CP), tl.float32)
    b_infrared = tl.zeros((ROWS * COLS, CP), tl.float32)
    tiles_x = tl.cdiv(x_stop - x_start, COLS)
    tiles_y = tl.cdiv(tl.maximum(y_stop - y_start, 0), ROWS)
    for i_tile in tl.range(0, tiles_x * tiles_y, num_stages=STAGES):
        y = y_start + i_tile // tiles_x * ROWS
        x = x_start + i_tile % tiles_x * COLS
        m_p = (y + o_y < y_stop) & (x + o_x < x_stop)
        m_tile = m_p[:, None] & (o_c < C)[None, :]
        base = _pixel_base(i_b, y * width + x, n_pixels, C, CHANNELS_LAST)
        b_x = tl.load(p_visible + base + o_tile, mask=m_tile, other=0.0)
        b_y = tl.load(p_infrared + base + o_tile, mask=m_tile, other=0.0)
        b_visible += b_x.to(tl.float32)
        b_infrared += b_y.to(tl.float32)

    o_partial = ((i_b * 2 * R * R + i_bin) * splits + i_split) * C + o_c
    tl.store(p_partial + o_partial, tl.sum(b_visible, axis=0), mask=o_c < C)
    tl.store(p_partial + R * R * splits * C + o_partial, tl.sum(b_infrared, axis=0), mask=o_c < C)


@triton.jit
def _pooled_token(
    p_partial,
    i_b,
    i_map,
    i_t,
    height,
    width,
    splits,
    C: tl.constexpr,
    CP: tl.constexpr,
    R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Mean (CP,) of one bin of one map from its partial sums; 0 where there is no such channel or token."""
    o_c, o_s = tl.arange(0, CP), tl.arange(0, BLOCK_S)
    b_sum = tl.zeros((BLOCK_S, CP), tl.float32)
    first = ((i_b * 2 + i_map) * R * R + i_t) * splits
    present = tl.where(i_t < R * R, splits, 0)
    for i_s in range(0, present, BLOCK_S):
        o = (first + i_s + o_s[:, None]) * C + o_c[None, :]
        b_sum += tl.load(p_partial + o, mask=(i_s + o_s < present)[:, None] & (o_c < C)[None, :], other=0.0)
    y_start, y_stop, x_start, x_stop = _bin(i_t // R, i_t % R, height, width, R)
    return tl.sum(b_sum, axis=0) / ((y_stop - y_start) * (x_stop - x_start)).to(tl.float32)


@triton.jit(do_not_specialize=["height", "width", "splits"])
def finish_pool_kernel(
    p_partial,  # B 2 T S C fp32
    p_pooled,  # B 2 T C fp32
    height,
    width,
    splits,
    C: tl.constexpr,
    CP: tl.constexpr,
    R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    i_t, i_map, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_c = tl.arange(0, CP)
    b_token = _pooled_token(p_partial, i_b, i_map, i_t, height, width, splits, C, CP, R, BLOCK_S)
    tl.store(p_pooled + ((i_b * 2 + i_map) * R * R + i_t) * C + o_c, b_token, mask=o_c < C)


@triton.jit(do_not_specialize=["height", "width", "splits"])
def finish_tokens_kernel(
    p_partial,  # B 2 T S C fp32
    p_matrix_visible,  # 2C+1 C: applied to infrared tokens, for visible pixels
    p_bias_visible,  # 2C+1
    p_matrix_infrared,  # 2C+1 C
    p_bias_infrared,  # 2C+1
    p_keys,  # B 2 TP CP, times log2(e); padded channels 0
    p_offsets,  # B 2 TP fp32, times log2(e); padded tokens -inf
    p_values,  # B 2 TP CP; padded channels 0
    height,
    width,
    splits,
    C: tl.constexpr,
    CP: tl.constexpr,
    R: tl.constexpr,
    TP: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    i_t, i_d, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b_token = _pooled_token(p_partial, i_b, 1 - i_d, i_t, height, width, splits, C, CP, R, BLOCK_S)  # CP
    if i_d == 0:
        p_matrix, p_bias = p_matrix_visible, p_bias_visible
    else:
        p_matrix, p_bias = p_matrix_infrared, p_bias_infrared

    o_in, o_out = tl.arange(0, CP), tl.arange(0, CP)
    m_in, m_out = o_in < C, o_out < C
    m_matrix = m_out[:, None] & m_in[None, :]
    o_matrix = o_out[:, None] * C + o_in[None, :]
    b_matrix = tl.load(p_matrix + o_matrix, mask=m_matrix, other=0.0).to(tl.float32)  # CP CP
    b_key = tl.sum(b_matrix * b_token[None, :], axis=1)
    b_key += tl.load(p_bias + o_out, mask=m_out, other=0.0).to(tl.float32)
    b_row = tl.load(p_matrix + C * C + o_in, mask=m_in, other=0.0).to(tl.float32)  # CP
    offset = tl.sum(b_row * b_token, axis=0) + tl.load(p_bias + C).to(tl.float32)
    b_matrix = tl.load(p_matrix + (C + 1) * C + o_matrix, mask=m_matrix, other=0.0).to(tl.float32)
    b_value = tl.sum(b_matrix * b_token[None, :], axis=1)
    b_value += tl.load(p_bias + C + 1 + o_out, mask=m_out, other=0.0).to(tl.float32)

    i_row = (i_b * 2 + i_d) * TP + i_t
    tl.store(p_keys + i_row * CP + o_out, (b_key * LOG2_E).to(p_keys.dtype.element_ty))
    tl.store(p_offsets + i_row, tl.where(i_t < R * R, offset * LOG2_E, float("-inf")))
    tl.store(p_values + i_row * CP + o_out, b_value.to(p_values.dtype.element_ty))


# --- Attention -------------------------------------------------------------------------------------------------------


@triton.jit
def _load_keys(p_keys, i_row, CP: tl.constexpr, BLOCK_T: tl.constexpr):
    """Keys (CP, BLOCK_T) of the tokens from row ``i_row`` on."""
    o_t, o_c = tl.arange(0, BLOCK_T), tl.arange(0, CP)
    return tl.load(p_keys + (i_row + o_t[None, :]) * CP + o_c[:, None])


@triton.jit
def _load_offsets(p_offsets, i_row, BLOCK_T: tl.constexpr):
    return tl.load(p_offsets + i_row + tl.arange(0, BLOCK_T))[None, :]  # 1 BLOCK_T


@triton.jit
def _load_values(p_values, i_row, CP: tl.constexpr, BLOCK_T: tl.constexpr):
    o_t, o_c = tl.arange(0, BLOCK_T), tl.arange(0, CP)
    return tl.load(p_values + (i_row + o_t[:, None]) * CP + o_c[None, :])  # BLOCK_T CP


@triton.jit
def _attend_once(b_x, b_keys, b_offsets, b_values, PRECISION: tl.constexpr):
    """All tokens in one block: softmax(x keys + offsets) values, (BLOCK_N, CP) fp32."""
    b_s = tl.dot(b_x, b_keys, input_precision=PRECISION) + b_offsets  # BLOCK_N TP
    b_p = tl.exp2(b_s - tl.max(b_s, axis=1)[:, None])
    b_o = tl.dot(b_p.to(b_x.dtype), b_values, input_precision=PRECISION)
    return b_o * (1.0 / tl.sum(b_p, axis=1))[:, None]


@triton.jit
def _attend_online(
    b_x,
    p_keys,
    p_offsets,
    p_values,
    i_row,
    CP: tl.constexpr,
    TP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tokens block by block with a running maximum and sum; no block is padding only."""
    b_max = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_N,), tl.float32)
    b_o = tl.zeros((BLOCK_N, CP), tl.float32)
    for i_t in range(0, TP, BLOCK_T):
        b_keys = _load_keys(p_keys, i_row + i_t, CP, BLOCK_T)
        b_offsets = _load_offsets(p_offsets, i_row + i_t, BLOCK_T)
        b_s = tl.dot(b_x, b_keys, input_precision=PRECISION) + b_offsets
        b_new_max = tl.maximum(b_max, tl.max(b_s, axis=1))
        b_shrink = tl.exp2(b_max - b_new_max)
        b_p = tl.exp2(b_s - b_new_max[:, None])
        b_sum = b_sum * b_shrink + tl.sum(b_p, axis=1)
        b_values = _load_values(p_values, i_row + i_t, CP, BLOCK_T)
        b_o = b_o * b_shrink[:, None] + tl.dot(b_p.to(b_x.dtype), b_values, input_precision=PRECISION)
        b_max = b_new_max
    return b_o * (1.0 / b_sum)[:, None]


@triton.jit(do_not_specialize=["n_pixels"])
def attend_kernel(
    p_visible,  # B N C
    p_infrared,  # B N C
    p_keys,  # B 2 TP CP
    p_offsets,  # B 2 TP fp32
    p_values,  # B 2 TP CP
    p_out,  # B N C
    n_pixels,
    C: tl.constexpr,
    CP: tl.constexpr,
    TP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    n_pixels = _known(n_pixels, ALIGNED)
    i_program, i_b = tl.program_id(0), tl.program_id(1)
    i_row_0, i_row_1 = (i_b * 2) * TP, (i_b * 2 + 1) * TP
    if TP == BLOCK_T:  # loaded once per program, used for all its tiles
        b_keys_0 = _load_keys(p_keys, i_row_0, CP, BLOCK_T)
        b_keys_1 = _load_keys(p_keys, i_row_1, CP, BLOCK_T)
        b_values_0 = _load_values(p_values, i_row_0, CP, BLOCK_T)
        b_values_1 = _load_values(p_values, i_row_1, CP, BLOCK_T)
    o_n, o_c = tl.arange(0, BLOCK_N), tl.arange(0, CP)
    o_tile = _map_offsets(o_n, o_c, n_pixels, C, CHANNELS_LAST)
    for i_tile in tl.range(i_program, tl.cdiv(n_pixels, BLOCK_N), tl.num_programs(0), num_stages=STAGES):
        i_n = i_tile * BLOCK_N
        m_tile = _tile_mask(o_n, o_c, n_pixels - i_n, C, CP)
        base = _pixel_base(i_b, i_n, n_pixels, C, CHANNELS_LAST)
        b_visible = tl.load(p_visible + base + o_tile, mask=m_tile, other=0.0)  # BLOCK_N CP
        b_infrared = tl.load(p_infrared + base + o_tile, mask=m_tile, other=0.0)
        if TP == BLOCK_T:
            # Offsets are read again for every tile: held, they would take a quarter of the registers.
            b_offsets = _load_offsets(p_offsets, i_row_0, BLOCK_T)
            b_o = _attend_once(b_visible, b_keys_0, b_offsets, b_values_0, PRECISION)
            b_offsets = _load_offsets(p_offsets, i_row_1, BLOCK_T)
            b_o += _attend_once(b_infrared, b_keys_1, b_offsets, b_values_1, PRECISION)
        else:
            b_o = _attend_online(
                b_visible, p_keys, p_offsets, p_values, i_row_0, CP, TP, BLOCK_N, BLOCK_T, PRECISION
            )
            b_o += _attend_online(
                b_infrared, p_keys, p_offsets, p_values, i_row_1, CP, TP, BLOCK_N, BLOCK_T, PRECISION
            )
        tl.store(p_out + base + o_tile, b_o.to(p_out.dtype.element_ty), mask=m_tile)


# --- Backward --------------------------------------------------------------------------------------------------------
# With p = softmax(s), s = x.k + o, out = p v and g the gradient of out:
#   dp = g v^T,  delta = sum_t p dp,  ds = p (dp - delta),  dx = ds k,  dk = ds^T x,  do = sum_n ds,  dv = p^T g.
# Scores are recomputed; nothing of size N T is stored. No atomics: the same input gives the same gradient.


@triton.jit
def _pixel_gradient(
    b_x,
    b_g,
    p_keys,
    p_offsets,
    p_values,
    i_row,
    CP: tl.constexpr,
    TP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx (BLOCK_N, CP), base-2 log-sum-exp (BLOCK_N,) and delta (BLOCK_N,) of one direction."""
    b_max = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_N,), tl.float32)
    b_delta = tl.zeros((BLOCK_N,), tl.float32)
    for i_t in range(0, TP, BLOCK_T):
        b_keys = _load_keys(p_keys, i_row + i_t, CP, BLOCK_T)
        b_offsets = _load_offsets(p_offsets, i_row + i_t, BLOCK_T)
        b_s = tl.dot(b_x, b_keys, input_precision=PRECISION) + b_offsets  # BLOCK_N BLOCK_T
        b_values = _load_values(p_values, i_row + i_t, CP, BLOCK_T)
        b_dp = tl.dot(b_g, tl.trans(b_values), input_precision=PRECISION)
        b_new_max = tl.maximum(b_max, tl.max(b_s, axis=1))
        b_shrink = tl.exp2(b_max - b_new_max)
        b_p = tl.exp2(b_s - b_new_max[:, None])
        b_sum = b_sum * b_shrink + tl.sum(b_p, axis=1)
        b_delta = b_delta * b_shrink + tl.sum(b_p * b_dp, axis=1)
        b_max = b_new_max
    b_lse = b_max + tl.log2(b_sum)
    b_delta = b_delta / b_sum

    b_dx = tl.zeros((BLOCK_N, CP), tl.float32)
    for i_t in range(0, TP, BLOCK_T):
        b_keys = _load_keys(p_keys, i_row + i_t, CP, BLOCK_T)
        b_offsets = _load_offsets(p_offsets, i_row + i_t, BLOCK_T)
        b_s = tl.dot(b_x, b_keys, input_precision=PRECISION) + b_offsets
        b_values = _load_values(p_values, i_row + i_t, CP, BLOCK_T)
        b_dp = tl.dot(b_g, tl.trans(b_values), input_precision=PRECISION)
        b_ds = tl.exp2(b_s - b_lse[:, None]) * (b_dp - b_delta[:, None])
        b_dx += tl.dot(b_ds.to(b_x.dtype), tl.trans(b_keys), input_precision=PRECISION)
    return b_dx * LN_2, b_lse, b_delta  # the keys carry log2(e)


@triton.jit(do_not_specialize=["n_pixels"])
def attend_backward_pixels_kernel(
    p_visible,  # B N C
    p_infrared,  # B N C
    p_keys,  # B 2 TP CP
    p_offsets,  # B 2 TP fp32
    p_values,  # B 2 TP CP
    p_grad_out,  # B N C
    p_grad_visible,  # B N C
    p_grad_infrared,  # B N C
    p_lse,  # B 2 N fp32
    p_delta,  # B 2 N fp32
    n_pixels,
    C: tl.constexpr,
    CP: tl.constexpr,
    TP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    n_pixels = _known(n_pixels, ALIGNED)
    i_n, i_b = tl.program_id(0) * BLOCK_N, tl.program_id(1)
    i_row = (i_b * 2) * TP
    o_n, o_c = tl.arange(0, BLOCK_N), tl.arange(0, CP)
    o_tile = _map_offsets(o_n, o_c, n_pixels, C, CHANNELS_LAST)
    m_tile = _tile_mask(o_n, o_c, n_pixels - i_n, C, CP)
    m_n = o_n < n_pixels - i_n
    base = _pixel_base(i_b, i_n, n_pixels, C, CHANNELS_LAST)
    o_row = i_b.to(tl.int64) * 2 * n_pixels + i_n
    b_g = tl.load(p_grad_out + base + o_tile, mask=m_tile, other=0.0)

    b_x = tl.load(p_visible + base + o_tile, mask=m_tile, other=0.0)
    b_dx, b_lse, b_delta = _pixel_gradient(
        b_x, b_g, p_keys, p_offsets, p_values, i_row, CP, TP, BLOCK_N, BLOCK_T, PRECISION
    )
    tl.store(p_grad_visible + base + o_tile, b_dx.to(p_grad_visible.dtype.element_ty), mask=m_tile)
    tl.store(p_lse + o_row + o_n, b_lse, mask=m_n)
    tl.store(p_delta + o_row + o_n, b_delta, mask=m_n)

    b_x = tl.load(p_infrared + base + o_tile, mask=m_tile, other=0.0)
    b_dx, b_lse, b_delta = _pixel_gradient(
        b_x, b_g, p_keys, p_offsets, p_values, i_row + TP, CP, TP, BLOCK_N, BLOCK_T, PRECISION
    )
    tl.store(p_grad_infrared + base + o_tile, b_dx.to(p_grad_infrared.dtype.element_ty), mask=m_tile)
    tl.store(p_lse + o_row + n_pixels + o_n, b_lse, mask=m_n)
    tl.store(p_delta + o_row + n_pixels + o_n, b_delta, mask=m_n)


@triton.jit(do_not_specialize=["n_pixels"])
def attend_backward_tokens_kernel(
    p_visible,  # B N C
    p_infrared,  # B N C
    p_keys,  # B 2 TP CP
    p_offsets,  # B 2 TP fp32
    p_values,  # B 2 TP CP
    p_grad_out,  # B N C
    p_lse,  # B 2 N fp32
    p_delta,  # B 2 N fp32
    p_partial,  # chunks B 2 T 2C+1 fp32: gradients of key, offset, value
    n_pixels,
    C: tl.constexpr,
    CP: tl.constexpr,
    R: tl.constexpr,
    TP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    n_pixels = _known(n_pixels, ALIGNED)
    i_chunk, i_b = tl.program_id(0), tl.program_id(2)
    i_d, i_t = tl.program_id(1) // (TP // BLOCK_T), tl.program_id(1) % (TP // BLOCK_T) * BLOCK_T
    if i_d == 0:
        p_x = p_visible
    else:
        p_x = p_infrared
    i_row = (i_b * 2 + i_d) * TP + i_t
    o_n, o_c, o_t = tl.arange(0, BLOCK_N), tl.arange(0, CP), tl.arange(0, BLOCK_T)
    o_tile = _map_offsets(o_n, o_c, n_pixels, C, CHANNELS_LAST)
    b_keys = _load_values(p_keys, i_row, CP, BLOCK_T)  # BLOCK_T CP
    b_values = _load_values(p_values, i_row, CP, BLOCK_T)  # BLOCK_T CP
    b_offsets = tl.load(p_offsets + i_row + o_t)[:, None]
    b_dk = tl.zeros((BLOCK_T, CP), tl.float32)
    b_dv = tl.zeros((BLOCK_T, CP), tl.float32)
    b_do = tl.zeros((BLOCK_T,), tl.float32)
    for i_tile in range(i_chunk, tl.cdiv(n_pixels, BLOCK_N), tl.num_programs(0)):
        i_n = i_tile * BLOCK_N
        m_tile = _tile_mask(o_n, o_c, n_pixels - i_n, C, CP)
        m_n = o_n < n_pixels - i_n
        base = _pixel_base(i_b, i_n, n_pixels, C, CHANNELS_LAST)
        o_row = (i_b.to(tl.int64) * 2 + i_d) * n_pixels + i_n
        b_x = tl.load(p_x + base + o_tile, mask=m_tile, other=0.0)  # BLOCK_N CP
        b_g = tl.load(p_grad_out + base + o_tile, mask=m_tile, other=0.0)
        # Beyond the last pixel p is exp2(-inf) = 0, whatever the offsets are.
        b_lse = tl.load(p_lse + o_row + o_n, mask=m_n, other=float("inf"))
        b_delta = tl.load(p_delta + o_row + o_n, mask=m_n, other=0.0)
        b_s = tl.dot(b_keys, tl.trans(b_x), input_precision=PRECISION) + b_offsets  # BLOCK_T BLOCK_N
        b_p = tl.exp2(b_s - b_lse[None, :])
        b_dv += tl.dot(b_p.to(b_g.dtype), b_g, input_precision=PRECISION)
        b_dp = tl.dot(b_values, tl.trans(b_g), input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[None, :])
        b_dk += tl.dot(b_ds.to(b_x.dtype), b_x, input_precision=PRECISION)
        b_do += tl.sum(b_ds, axis=1)

    WIDTH: tl.constexpr = 2 * C + 1
    i_first = ((i_chunk * tl.num_programs(2) + i_b) * 2 + i_d).to(tl.int64) * (R * R)
    m_t = i_t + o_t < R * R
    m_token = m_t[:, None] & (o_c < C)[None, :]
    o_token = (i_first + i_t + o_t) * WIDTH  # BLOCK_T
    o_partial = o_token[:, None] + o_c[None, :]
    tl.store(p_partial + o_partial, b_dk, mask=m_token)
    tl.store(p_partial + o_token + C, b_do, mask=m_t)
    tl.store(p_partial + o_partial + (C + 1), b_dv, mask=m_token)


@triton.jit(do_not_specialize=["height", "width", "bins_y", "bins_x"])
def pool_backward_kernel(
    p_grad_pooled,  # B 2 T C fp32
    p_grad_visible,  # B N C
    p_grad_infrared,  # B N C
    height,
    width,
    bins_y,  # most bins that one row lies in
    bins_x,  # most bins that one column lies in
    C: tl.constexpr,
    CP: tl.constexpr,
    R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Every pixel gathers from the bins it lies in: rows floor(y R / H) to ceil((y + 1) R / H) - 1, columns alike."""
    i_n, i_b = tl.program_id(0) * BLOCK_N, tl.program_id(1)
    n_pixels = _known(height * width, ALIGNED)
    o_n, o_c = tl.arange(0, BLOCK_N), tl.arange(0, CP)
    y, x = (i_n + o_n) // width, (i_n + o_n) % width
    first_y, last_y = y * R // height, ((y + 1) * R + height - 1) // height - 1
    first_x, last_x = x * R // width, ((x + 1) * R + width - 1) // width - 1
    m_n = o_n < n_pixels - i_n
    b_visible = tl.zeros((BLOCK_N, CP), tl.float32)
    b_infrared = tl.zeros((BLOCK_N, CP), tl.float32)
    p_batch = p_grad_pooled + i_b * 2 * R * R * C
    for i_y in range(bins_y):
        for i_x in range(bins_x):
            o_y, o_x = first_y + i_y, first_x + i_x
            m_bin = m_n & (o_y <= last_y) & (o_x <= last_x)
            y_start, y_stop, x_start, x_stop = _bin(o_y, o_x, height, width, R)
            b_share = (1.0 / ((y_stop - y_start) * (x_stop - x_start)).to(tl.float32))[:, None]
            o_bin = ((o_y * R + o_x) * C)[:, None] + o_c[None, :]
            m_load = m_bin[:, None] & (o_c < C)[None, :]
            b_visible += b_share * tl.load(p_batch + o_bin, mask=m_load, other=0.0)
            b_infrared += b_share * tl.load(p_batch + R * R * C + o_bin, mask=m_load, other=0.0)
    base = _pixel_base(i_b, i_n, n_pixels, C, CHANNELS_LAST)
    o_tile = _map_offsets(o_n, o_c, n_pixels, C, CHANNELS_LAST)
    m_tile = _tile_mask(o_n, o_c, n_pixels - i_n, C, CP)
    tl.store(p_grad_visible + base + o_tile, b_visible.to(p_grad_visible.dtype.element_ty), mask=m_tile)
    tl.store(p_grad_infrared + base + o_tile, b_infrared.to(p_grad_infrared.dtype.element_ty), mask=m_tile)
