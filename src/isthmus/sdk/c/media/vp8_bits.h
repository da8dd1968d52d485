/*
 * vp8_bits.h: what is known of a VP8 picture while it is read, and its bits (RFC 6386, section 7).
 * Only for vp8.h.
 */
#ifndef ISTHMUS_VP8_BITS_H
#define ISTHMUS_VP8_BITS_H

#include "picture.h"
#include "vp8_tables.h"

#define VP8_EVEN 128
#define VP8_MOST_PADDED 8 /* zero bytes that are read behind the end before decoding stops */

typedef struct {
    const uint8_t *at, *end;
    uint64_t value;
    uint32_t range;
    int32_t n_bits;  /* of `value`, after the eight that are compared next */
    uint32_t padded; /* bytes behind the end */
} vp8_bits_t;

/* How a block is predicted. The first four are also those of 16 by 16 and 8 by 8 pixels. */
typedef enum { VP8_FLAT, VP8_TRUE_MOTION, VP8_UP, VP8_LEFT, VP8_N_MODES = 10 } vp8_mode_t;

/* Samples, with a row above them and a column to their left. */
typedef struct {
    uint8_t *all, *first; /* `first` is the sample in the corner */
    uint32_t row, n_rows; /* bytes of a row */
} vp8_plane_t;

/* What a macroblock is: 16 by 16 pixels. */
typedef struct {
    uint32_t segment, is_split, is_skipped, y_mode, uv_mode;
    uint8_t modes[16];
} vp8_macroblock_t;

/* How the edges of a macroblock are smoothed. */
typedef struct {
    uint8_t level, inside;
} vp8_smoothing_t;

typedef struct {
    int32_t y[2], y2[2], uv[2]; /* of DC, of AC */
} vp8_steps_t;

typedef struct {
    uint32_t width, height, n_x, n_y; /* in pixels, in macroblocks */
    vp8_bits_t head, parts[8];
    uint32_t n_parts;
    uint32_t has_segments, has_map, is_absolute;
    int32_t segment_steps[4], segment_levels[4];
    uint8_t segment_bits[3];
    uint32_t is_simple, level, sharpness, has_deltas;
    int32_t frame_deltas[4], mode_deltas[4];
    vp8_steps_t steps[4];
    uint8_t tokens[VP8_N_PROBABILITIES];
    uint32_t skips, skip_bits;
    vp8_plane_t planes[3];
    uint8_t *above;             /* of each column of macroblocks: four modes, nine flags of tokens */
    vp8_smoothing_t *smoothing; /* [n_y][n_x] */
    uint8_t left_modes[4], left_flags[9];
    int16_t values[25][16]; /* of the macroblock: Y, U, V, and the DCs of Y */
} vp8_t;

#define VP8_ABOVE_NBYTES 13u

AGENT_API void vp8_bits_begin(vp8_bits_t *it, const uint8_t *at, const uint8_t *end)
{
    *it = (vp8_bits_t){.at = at, .end = end, .range = 255, .n_bits = -8};
}

/* A bit that is 0 with `probability` of 256. */
AGENT_API __attribute__((noinline)) uint32_t vp8_bit(vp8_bits_t *it, uint32_t probability)
{
    while (it->n_bits < 0) {
        it->padded += it->at == it->end;
        it->value = it->value << 8 | (it->at < it->end ? *it->at++ : 0u);
        it->n_bits += 8;
    }
    uint32_t split = 1 + ((it->range - 1) * probability >> 8);
    uint32_t bit = (uint32_t)(it->value >> it->n_bits) >= split;
    if (bit)
        it->value -= (uint64_t)split << it->n_bits;
    it->range = bit ? it->range - split : split;
    int32_t shift = __builtin_clz(it->range) - 24;
    it->range <<= shift;
    it->n_bits -= shift;
    return bit;
}

AGENT_API uint32_t vp8_number(vp8_bits_t *it, uint32_t n_bits)
{
    uint32_t number = 0;
    while (n_bits--)
        number = number << 1 | vp8_bit(it, VP8_EVEN);
    return number;
}

AGENT_API int32_t vp8_signed(vp8_bits_t *it, uint32_t n_bits)
{
    int32_t number = (int32_t)vp8_number(it, n_bits);
    return vp8_bit(it, VP8_EVEN) ? -number : number;
}

/* A signed number if a bit before it says that there is one; otherwise 0. */
AGENT_API int32_t vp8_optional(vp8_bits_t *it, uint32_t n_bits)
{
    return vp8_bit(it, VP8_EVEN) ? vp8_signed(it, n_bits) : 0;
}

AGENT_API int32_t vp8_within(int32_t value, int32_t least, int32_t most)
{
    return value < least ? least : value > most ? most : value;
}

AGENT_API uint8_t vp8_u8(int32_t value)
{
    return (uint8_t)vp8_within(value, 0, 255);
}

#endif
