/*
 * vp8_block.h: samples of VP8 blocks: predicted from their neighbours (RFC 6386, section 12), and
 * what is added to that (section 14). Only for vp8.h.
 */
#ifndef ISTHMUS_VP8_BLOCK_H
#define ISTHMUS_VP8_BLOCK_H

#include "vp8_bits.h"

/*
 * The eight modes that mean neighbours of a block of 4 by 4, after VP8_FLAT and VP8_TRUE_MOTION. With
 * the neighbours in a line, from the lowest on the left by the corner to the last above, and the first
 * and the last of them twice, 0 to 12 are means of three from there on, and 16 to 29 of two.
 */
static const uint8_t VP8_MEANS[8][16] = {
    {5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8},
    {3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0},
    {4, 5, 6, 7, 3, 4, 5, 6, 2, 3, 4, 5, 1, 2, 3, 4},
    {21, 22, 23, 24, 4, 5, 6, 7, 3, 21, 22, 23, 2, 4, 5, 6},
    {6, 7, 8, 9, 7, 8, 9, 10, 8, 9, 10, 11, 9, 10, 11, 12},
    {22, 23, 24, 25, 6, 7, 8, 9, 23, 24, 25, 10, 7, 8, 9, 11},
    {20, 4, 5, 6, 19, 3, 20, 4, 18, 2, 19, 3, 17, 1, 18, 2},
    {19, 2, 18, 1, 18, 1, 17, 0, 17, 0, 16, 16, 16, 16, 16, 16},
};

AGENT_API void vp8_fill(uint8_t *at, uint32_t row, uint32_t size, uint32_t value)
{
    for (uint32_t y = 0; y < size; y++)
        memset(at + y * row, (int)value, size);
}

AGENT_API void vp8_predict_true_motion(uint8_t *at, uint32_t row, uint32_t size)
{
    const uint8_t *above = at - row;
    for (uint32_t y = 0; y < size; y++)
        for (uint32_t x = 0; x < size; x++)
            at[y * row + x] = vp8_u8(at[y * row - 1] + above[x] - above[-1]);
}

/* The mean of the neighbours that are in the picture. */
AGENT_API uint32_t vp8_mean(const uint8_t *at, uint32_t row, uint32_t size, uint32_t has_left,
                            uint32_t has_above)
{
    uint32_t sum = 0, n = (has_left + has_above) * size;
    for (uint32_t i = 0; i < size; i++)
        sum += (has_left ? at[i * row - 1] : 0u) + (has_above ? (at - row)[i] : 0u);
    return n ? (sum + n / 2) / n : 128;
}

/* Predicts a square of 16 by 16, or of 8 by 8. */
AGENT_API void vp8_predict(uint8_t *at, uint32_t row, uint32_t size, uint32_t mode, uint32_t edges)
{
    if (mode == VP8_FLAT)
        vp8_fill(at, row, size, vp8_mean(at, row, size, edges & 1, edges >> 1));
    else if (mode == VP8_TRUE_MOTION)
        vp8_predict_true_motion(at, row, size);
    for (uint32_t y = 0; mode == VP8_UP && y < size; y++)
        memcpy(at + y * row, at - row, size);
    for (uint32_t y = 0; mode == VP8_LEFT && y < size; y++)
        memset(at + y * row, at[y * row - 1], size);
}

/* Predicts a block of 4 by 4; `right` are the four samples to the right of those above it. */
AGENT_API void vp8_predict_small(uint8_t *at, uint32_t row, uint32_t mode, const uint8_t *right)
{
    uint32_t line[15], means[30];
    if (mode == VP8_FLAT) {
        vp8_fill(at, row, 4, vp8_mean(at, row, 4, 1, 1));
        return;
    }
    if (mode == VP8_TRUE_MOTION) {
        vp8_predict_true_motion(at, row, 4);
        return;
    }
    for (uint32_t i = 0; i < 4; i++) {
        line[4 - i] = at[i * row - 1];
        line[6 + i] = (at - row)[i];
        line[10 + i] = right[i];
    }
    line[0] = line[1], line[5] = (at - row)[-1], line[14] = line[13];
    for (uint32_t i = 0; i < 13; i++)
        means[i] = (line[i] + 2 * line[i + 1] + line[i + 2] + 2) >> 2;
    for (uint32_t i = 0; i < 14; i++)
        means[16 + i] = (line[i] + line[i + 1] + 1) >> 1;
    for (uint32_t i = 0; i < 16; i++)
        at[i / 4 * row + i % 4] = (uint8_t)means[VP8_MEANS[mode - VP8_UP][i]];
}

AGENT_API int32_t vp8_cosine(int32_t value)
{
    return value + (int32_t)((int64_t)value * 20091 >> 16); /* √2 · cos(π / 8) */
}

AGENT_API int32_t vp8_sine(int32_t value)
{
    return (int32_t)((int64_t)value * 35468 >> 16); /* √2 · sin(π / 8) */
}

/* Four values of one line of a transform, `step` apart. */
AGENT_API void vp8_transform_line(const int32_t *in, uint32_t step, int32_t *out)
{
    int32_t sum = in[0] + in[2 * step], difference = in[0] - in[2 * step];
    int32_t low = vp8_sine(in[step]) - vp8_cosine(in[3 * step]);
    int32_t high = vp8_cosine(in[step]) + vp8_sine(in[3 * step]);
    out[0] = sum + high, out[1] = difference + low;
    out[2] = difference - low, out[3] = sum - high;
}

/* Adds what the values of a block stand for to its samples. */
AGENT_API void vp8_add(const int16_t *values, uint8_t *at, uint32_t row)
{
    int32_t in[16], columns[16], line[4];
    for (uint32_t i = 0; i < 16; i++)
        in[i] = values[i];
    for (uint32_t x = 0; x < 4; x++)
        vp8_transform_line(in + x, 4, columns + 4 * x);
    for (uint32_t y = 0; y < 4; y++) {
        columns[y] += 4;
        vp8_transform_line(columns + y, 4, line);
        for (uint32_t x = 0; x < 4; x++)
            at[y * row + x] = vp8_u8(at[y * row + x] + (line[x] >> 3));
    }
}

/* Spreads the DCs of Y, which have a transform of their own, to their blocks. */
AGENT_API void vp8_spread(int16_t (*values)[16])
{
    int32_t lines[16];
    const int16_t *in = values[24];
    for (uint32_t i = 0; i < 4; i++) {
        int32_t a = in[i] + in[12 + i], b = in[4 + i] + in[8 + i];
        int32_t c = in[4 + i] - in[8 + i], d = in[i] - in[12 + i];
        lines[i] = a + b, lines[4 + i] = d + c, lines[8 + i] = a - b, lines[12 + i] = d - c;
    }
    for (uint32_t i = 0; i < 4; i++) {
        const int32_t *line = lines + 4 * i;
        int32_t a = line[0] + 3 + line[3], b = line[1] + line[2];
        int32_t c = line[1] - line[2], d = line[0] + 3 - line[3];
        values[4 * i][0] = (int16_t)((a + b) >> 3), values[4 * i + 1][0] = (int16_t)((d + c) >> 3);
        values[4 * i + 2][0] = (int16_t)((a - b) >> 3);
        values[4 * i + 3][0] = (int16_t)((d - c) >> 3);
    }
}

#endif
