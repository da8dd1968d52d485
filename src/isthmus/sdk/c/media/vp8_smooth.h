/*
 * vp8_smooth.h: the loop filter of VP8 (RFC 6386, section 15). Only for vp8.h.
 */
#ifndef ISTHMUS_VP8_SMOOTH_H
#define ISTHMUS_VP8_SMOOTH_H

#include "vp8_bits.h"

/* How far samples may differ across an edge that is smoothed, and beside it. */
typedef struct {
    int32_t across, beside, high; /* `high`: what varies more beside it is changed less */
} vp8_limits_t;

AGENT_API int32_t vp8_far(const uint8_t *at, int32_t a, int32_t b)
{
    int32_t difference = at[a] - at[b];
    return difference < 0 ? -difference : difference;
}

AGENT_API int32_t vp8_i8(int32_t value)
{
    return vp8_within(value, -128, 127);
}

/* Adds to the sample before an edge and takes away from the one after it; returns what was taken. */
AGENT_API int32_t vp8_meet(uint8_t *at, int32_t step, int32_t value)
{
    int32_t taken = vp8_i8(value + 4) >> 3;
    at[-step] = vp8_u8(at[-step] + (vp8_i8(value + 3) >> 3));
    at[0] = vp8_u8(at[0] - taken);
    return taken;
}

AGENT_API int32_t vp8_slope(const uint8_t *at, int32_t step, int32_t with_outer)
{
    int32_t outer = with_outer ? vp8_i8(at[-2 * step] - at[step]) : 0;
    return vp8_i8(3 * (at[0] - at[-step]) + outer);
}

AGENT_API int32_t vp8_is_edge(const uint8_t *at, int32_t step, const vp8_limits_t *limits)
{
    return 4 * vp8_far(at, -step, 0) + vp8_far(at, -2 * step, step) <= 2 * limits->across + 1;
}

AGENT_API int32_t vp8_is_even(const uint8_t *at, int32_t step, int32_t most)
{
    for (int32_t i = -4; i < 3; i++)
        if (i != -1 && vp8_far(at, i * step, (i + 1) * step) > most)
            return 0;
    return 1;
}

/* Smooths one line across an edge between macroblocks, or within one. */
AGENT_API void vp8_smooth_line(uint8_t *at, int32_t step, const vp8_limits_t *limits,
                               int32_t is_inside)
{
    if (!vp8_is_edge(at, step, limits) || !vp8_is_even(at, step, limits->beside))
        return;
    if (vp8_far(at, -2 * step, -step) > limits->high || vp8_far(at, step, 0) > limits->high) {
        vp8_meet(at, step, vp8_slope(at, step, 1));
        return;
    }
    if (is_inside) {
        int32_t half = (vp8_meet(at, step, vp8_slope(at, step, 0)) + 1) >> 1;
        at[-2 * step] = vp8_u8(at[-2 * step] + half);
        at[step] = vp8_u8(at[step] - half);
        return;
    }
    int32_t slope = vp8_slope(at, step, 1);
    for (int32_t i = 0; i < 3; i++) {
        int32_t value = (9 * (3 - i) * slope + 63) >> 7;
        at[-(i + 1) * step] = vp8_u8(at[-(i + 1) * step] + value);
        at[i * step] = vp8_u8(at[i * step] - value);
    }
}

/* Smooths an edge of `n` lines, each `along` behind the one before. */
AGENT_API void vp8_smooth_edge(const vp8_t *it, uint8_t *at, int32_t step, int32_t along, uint32_t n,
                               const vp8_limits_t *limits, int32_t is_inside)
{
    for (uint32_t i = 0; i < n; i++, at += along) {
        if (!it->is_simple)
            vp8_smooth_line(at, step, limits, is_inside);
        else if (vp8_is_edge(at, step, limits))
            vp8_meet(at, step, vp8_slope(at, step, 1));
    }
}

AGENT_API void vp8_smooth_macroblock(const vp8_t *it, uint32_t x, uint32_t y)
{
    const vp8_smoothing_t *how = &it->smoothing[y * it->n_x + x];
    int32_t level = how->level, beside = level >> (it->sharpness > 4 ? 2 : it->sharpness > 0);
    if (it->sharpness && beside > 9 - (int32_t)it->sharpness)
        beside = 9 - (int32_t)it->sharpness;
    beside = beside < 1 ? 1 : beside;
    vp8_limits_t inner = {2 * level + beside, beside, level >= 40 ? 2 : level >= 15};
    vp8_limits_t outer = {inner.across + 4, beside, inner.high};
    for (uint32_t p = 0; level && p < (it->is_simple ? 1u : 3u); p++) {
        const vp8_plane_t *plane = &it->planes[p];
        uint32_t size = p ? 8 : 16;
        int32_t row = (int32_t)plane->row;
        uint8_t *at = plane->first + (size_t)y * size * plane->row + x * size;
        if (x)
            vp8_smooth_edge(it, at, 1, row, size, &outer, 0);
        for (uint32_t i = 4; how->inside && i < size; i += 4)
            vp8_smooth_edge(it, at + i, 1, row, size, &inner, 1);
        if (y)
            vp8_smooth_edge(it, at, row, 1, size, &outer, 0);
        for (uint32_t i = 4; how->inside && i < size; i += 4)
            vp8_smooth_edge(it, at + i * plane->row, row, 1, size, &inner, 1);
    }
}

AGENT_API void vp8_smooth(const vp8_t *it)
{
    for (uint32_t i = 0; it->level && i < it->n_x * it->n_y; i++)
        vp8_smooth_macroblock(it, i % it->n_x, i / it->n_x);
}

#endif
