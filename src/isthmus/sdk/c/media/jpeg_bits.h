/*
 * jpeg_bits.h: what is known of a JPEG while it is read, and its bits. Only for jpeg.h.
 */
#ifndef ISTHMUS_JPEG_BITS_H
#define ISTHMUS_JPEG_BITS_H

#include "exif.h"

#define JPEG_MOST_PLANES 3
#define JPEG_MOST_SCANS 64 /* usual programs write 10; each goes through the whole picture */
#define JPEG_FAST 9

typedef struct {
    uint16_t fast[1 << JPEG_FAST]; /* value << 4 | length of its code; 0: a longer one */
    int32_t last[17];              /* the last code of each length, or -1 */
    int32_t first_value[17];       /* what is added to a code of that length: its value's place */
    uint8_t values[256];
    uint8_t is_there;
} jpeg_codes_t;

typedef struct {
    uint32_t id, h, v, quantisation;
    uint32_t dc, ac;                 /* the codes of this scan */
    uint32_t n_x, n_y;               /* blocks that have samples of the picture */
    uint32_t row, n_rows;            /* blocks that there is room for */
    int16_t *coefficients;           /* [n_rows][row][64] */
    uint8_t *samples;                /* [n_rows * 8][row * 8] */
    int32_t predicted;
} jpeg_plane_t;

typedef struct {
    const uint8_t *at, *end;
    uint32_t width, height, n_planes, n_scans, most_h, most_v, mcu_x, mcu_y;
    uint32_t progressive, restart, adobe, is_rgb;
    exif_t exif;
    uint16_t quantisation[4][64];
    jpeg_codes_t codes[2][4]; /* of DC, of AC */
    jpeg_plane_t planes[JPEG_MOST_PLANES];
    /* the scan */
    uint32_t bits, n_bits, ended;
    uint32_t padded; /* bits behind the file's end */
    uint32_t spectral_from, spectral_to, high, low, run;
} jpeg_t;

static const uint8_t JPEG_ZIGZAG[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

/* ------------------------------------------------------------------------------------- bits */

/* Has at least `n` bits, up to 16; behind the end there are zeros. */
AGENT_API void jpeg_fill(jpeg_t *it, uint32_t n)
{
    while (it->n_bits < n) {
        uint32_t byte = 0;
        if (!it->ended && it->at < it->end) {
            byte = *it->at;
            if (byte != 0xff) {
                it->at++;
            } else if (it->at + 1 < it->end && it->at[1] == 0) {
                it->at += 2;
            } else {
                it->ended = 1, byte = 0; /* a marker */
            }
        } else if (it->at >= it->end) {
            it->padded += 8;
        }
        it->bits = it->bits << 8 | byte;
        it->n_bits += 8;
    }
}

AGENT_API uint32_t jpeg_bits(jpeg_t *it, uint32_t n)
{
    jpeg_fill(it, n);
    it->n_bits -= n;
    return it->bits >> it->n_bits & ((1u << n) - 1);
}

/* A number of `n` bits whose first one says the sign. */
AGENT_API int32_t jpeg_number(jpeg_t *it, uint32_t n)
{
    int32_t value = n ? (int32_t)jpeg_bits(it, n) : 0;
    return n && value < 1 << (n - 1) ? value - (1 << n) + 1 : value;
}

/* The next value of a code, or -1. */
AGENT_API int32_t jpeg_value(jpeg_t *it, const jpeg_codes_t *codes)
{
    jpeg_fill(it, 16);
    uint32_t next = it->bits >> (it->n_bits - 16) & 0xffff;
    uint32_t found = codes->fast[next >> (16 - JPEG_FAST)];
    if (found) {
        it->n_bits -= found & 15;
        return (int32_t)(found >> 4);
    }
    for (uint32_t length = JPEG_FAST + 1; length <= 16; length++) {
        int32_t code = (int32_t)(next >> (16 - length));
        if (code > codes->last[length])
            continue;
        it->n_bits -= length;
        int32_t place = codes->first_value[length] + code;
        return place >= 0 && place < 256 ? codes->values[place] : -1;
    }
    return -1;
}

#endif
