/*
 * vp8.h: the pictures of lossy WebP: key frames of VP8 (RFC 6386).
 *
 * A file that ends early gives what was there. Nothing that a file says is used as an index before it
 * was looked at.
 */
#ifndef ISTHMUS_VP8_H
#define ISTHMUS_VP8_H

#include "vp8_bits.h"
#include "vp8_block.h"
#include "vp8_smooth.h"

/* ---------------------------------------------------------------------------------- headers */

/* Section 9.3. */
AGENT_API void vp8_read_segments(vp8_t *it)
{
    vp8_bits_t *bits = &it->head;
    memset(it->segment_bits, 255, sizeof it->segment_bits);
    it->has_segments = vp8_number(bits, 1);
    if (!it->has_segments)
        return;
    it->has_map = vp8_number(bits, 1);
    if (vp8_number(bits, 1)) {
        it->is_absolute = vp8_number(bits, 1);
        for (uint32_t i = 0; i < 4; i++)
            it->segment_steps[i] = vp8_optional(bits, 7);
        for (uint32_t i = 0; i < 4; i++)
            it->segment_levels[i] = vp8_optional(bits, 6);
    }
    for (uint32_t i = 0; it->has_map && i < 3; i++)
        if (vp8_number(bits, 1))
            it->segment_bits[i] = (uint8_t)vp8_number(bits, 8);
}

/* Section 9.6. */
AGENT_API void vp8_read_smoothing(vp8_t *it)
{
    vp8_bits_t *bits = &it->head;
    it->is_simple = vp8_number(bits, 1);
    it->level = vp8_number(bits, 6);
    it->sharpness = vp8_number(bits, 3);
    it->has_deltas = vp8_number(bits, 1);
    if (!it->has_deltas || !vp8_number(bits, 1))
        return;
    for (uint32_t i = 0; i < 4; i++)
        it->frame_deltas[i] = vp8_optional(bits, 6);
    for (uint32_t i = 0; i < 4; i++)
        it->mode_deltas[i] = vp8_optional(bits, 6);
}

AGENT_API int32_t vp8_dc_step(int32_t index, int32_t most)
{
    return VP8_DC[vp8_within(index, 0, most)];
}

AGENT_API int32_t vp8_ac_step(int32_t index)
{
    return VP8_AC[vp8_within(index, 0, 127)];
}

/* Section 9.6 and 14.1. */
AGENT_API void vp8_read_steps(vp8_t *it)
{
    vp8_bits_t *bits = &it->head;
    int32_t base = (int32_t)vp8_number(bits, 7), deltas[5];
    for (uint32_t i = 0; i < 5; i++)
        deltas[i] = vp8_optional(bits, 4);
    for (uint32_t i = 0; i < 4; i++) {
        int32_t index = it->segment_steps[i] + (it->is_absolute ? 0 : base);
        if (!it->has_segments)
            index = base;
        int32_t y2 = vp8_ac_step(index + deltas[2]) * 155 / 100;
        it->steps[i] = (vp8_steps_t){
            .y = {vp8_dc_step(index + deltas[0], 127), vp8_ac_step(index)},
            .y2 = {2 * vp8_dc_step(index + deltas[1], 127), y2 < 8 ? 8 : y2},
            .uv = {vp8_dc_step(index + deltas[3], 117), vp8_ac_step(index + deltas[4])},
        };
    }
}

/* Section 9.5: where the partitions of tokens lie. The last one may be cut off. */
AGENT_API int32_t vp8_find_parts(vp8_t *it, const uint8_t *sizes, const uint8_t *end)
{
    it->n_parts = 1u << vp8_number(&it->head, 2);
    size_t n_sizes = 3 * (size_t)(it->n_parts - 1);
    if ((size_t)(end - sizes) < n_sizes)
        return -ISTHMUS_EINVAL;
    const uint8_t *at = sizes + n_sizes;
    for (uint32_t i = 0; i < it->n_parts; i++, sizes += 3) {
        size_t left = (size_t)(end - at), nbytes = left;
        if (i + 1 < it->n_parts)
            nbytes = sizes[0] | (size_t)sizes[1] << 8 | (size_t)sizes[2] << 16;
        nbytes = nbytes < left ? nbytes : left;
        vp8_bits_begin(&it->parts[i], at, at + nbytes);
        at += nbytes;
    }
    return 0;
}

/* Reads what comes before the macroblocks. */
AGENT_API int32_t vp8_read_head(vp8_t *it, const uint8_t *bytes, size_t nbytes)
{
    static const uint8_t start[] = {0x9d, 0x01, 0x2a};
    if (nbytes < 10 || bytes[0] & 1 || memcmp(bytes + 3, start, 3) != 0)
        return -ISTHMUS_EINVAL;
    size_t head = (bytes[0] | (size_t)bytes[1] << 8 | (size_t)bytes[2] << 16) >> 5;
    it->width = (bytes[6] | (uint32_t)bytes[7] << 8) & 0x3fff;
    it->height = (bytes[8] | (uint32_t)bytes[9] << 8) & 0x3fff;
    it->n_x = (it->width + 15) / 16, it->n_y = (it->height + 15) / 16;
    if (!it->width || !it->height || head > nbytes - 10)
        return -ISTHMUS_EINVAL;
    if (it->width * it->height > PICTURE_MOST_PIXELS)
        return -ISTHMUS_ELIMIT;
    bytes += 10, nbytes -= 10;
    vp8_bits_begin(&it->head, bytes, bytes + head);
    vp8_number(&it->head, 2); /* the space of colours, and whether samples need be clipped */
    vp8_read_segments(it);
    vp8_read_smoothing(it);
    AGENT_TRY(vp8_find_parts(it, bytes + head, bytes + nbytes));
    vp8_read_steps(it);
    vp8_number(&it->head, 1); /* whether a next picture begins with these tokens' bits */
    for (uint32_t i = 0; i < VP8_N_PROBABILITIES; i++)
        it->tokens[i] = vp8_bit(&it->head, VP8_TOKEN_UPDATES[i]) ? (uint8_t)vp8_number(&it->head, 8)
                                                                 : VP8_TOKENS[i];
    it->skips = vp8_number(&it->head, 1);
    it->skip_bits = it->skips ? vp8_number(&it->head, 8) : 0;
    return 0;
}

/* ------------------------------------------------------------------------------ macroblocks */

/* Section 11.2, of a block of 4 by 4; `bits` are those of its neighbours. */
AGENT_API uint32_t vp8_read_small_mode(vp8_bits_t *from, const uint8_t *bits)
{
    /* Steps of the tree: from each, where 0 and 1 lead; what is negative is a mode. */
    static const int8_t tree[18] = {0, 1, -1, 2, -2, 3, 4, 6, -3, 5, -4, -5, -6, 7, -7, 8, -8, -9};
    int32_t at = tree[vp8_bit(from, bits[0])];
    while (at > 0)
        at = tree[2 * at + (int32_t)vp8_bit(from, bits[at])];
    return (uint32_t)-at;
}

AGENT_API uint32_t vp8_read_mode(vp8_bits_t *from, uint32_t is_uv)
{
    if (is_uv) {
        if (!vp8_bit(from, 142))
            return VP8_FLAT;
        return !vp8_bit(from, 114) ? VP8_UP : vp8_bit(from, 183) ? VP8_TRUE_MOTION : VP8_LEFT;
    }
    if (vp8_bit(from, 156))
        return vp8_bit(from, 128) ? VP8_TRUE_MOTION : VP8_LEFT;
    return vp8_bit(from, 163) ? VP8_UP : VP8_FLAT;
}

/* Section 19.3. `above` are the modes of the blocks above it, and then its own lowest. */
AGENT_API void vp8_read_macroblock(vp8_t *it, vp8_macroblock_t *block, uint8_t *above)
{
    vp8_bits_t *from = &it->head;
    *block = (vp8_macroblock_t){0};
    if (it->has_map) {
        uint32_t high = vp8_bit(from, it->segment_bits[0]);
        block->segment = 2 * high + vp8_bit(from, it->segment_bits[1 + high]);
    }
    block->is_skipped = it->skips && vp8_bit(from, it->skip_bits);
    block->is_split = !vp8_bit(from, 145);
    block->y_mode = block->is_split ? 0 : vp8_read_mode(from, 0);
    for (uint32_t i = 0; i < 16; i++) {
        uint8_t *up = &above[i % 4], *left = &it->left_modes[i / 4];
        uint32_t mode = block->y_mode;
        if (block->is_split)
            mode = vp8_read_small_mode(from, VP8_MODES + (*up * VP8_N_MODES + *left) * 9);
        block->modes[i] = *up = *left = (uint8_t)mode;
    }
    block->uv_mode = vp8_read_mode(from, 1);
}

/* The rest of a value that is 2 or more. */
AGENT_API int32_t vp8_read_large(vp8_bits_t *from, const uint8_t *bits)
{
    static const uint8_t more[4][12] = {{173, 148, 140},
                                        {176, 155, 140, 135},
                                        {180, 157, 141, 134, 130},
                                        {254, 254, 243, 230, 196, 177, 153, 140, 133, 130, 129}};
    if (!vp8_bit(from, bits[3]))
        return vp8_bit(from, bits[4]) ? 3 + (int32_t)vp8_bit(from, bits[5]) : 2;
    if (!vp8_bit(from, bits[6])) {
        if (!vp8_bit(from, bits[7]))
            return 5 + (int32_t)vp8_bit(from, 159);
        int32_t high = (int32_t)vp8_bit(from, 165);
        return 7 + 2 * high + (int32_t)vp8_bit(from, 145);
    }
    uint32_t high = vp8_bit(from, bits[8]), kind = 2 * high + vp8_bit(from, bits[9 + high]);
    int32_t value = 0;
    for (const uint8_t *each = more[kind]; *each; each++)
        value = 2 * value + (int32_t)vp8_bit(from, *each);
    return value + 3 + (8 << kind);
}

/* Section 13: the values of a block from number `first` on. Returns where they end. */
AGENT_API uint32_t vp8_read_values(vp8_bits_t *from, const uint8_t *tokens, uint32_t neighbours,
                                   uint32_t first, const int32_t *steps, int16_t *values)
{
    static const uint8_t bands[] = {0, 1, 2, 3, 6, 4, 5, 6, 6, 6, 6, 6, 6, 6, 6, 7};
    static const uint8_t places[] = {0, 1, 4, 8, 5, 2, 3, 6, 9, 12, 13, 10, 7, 11, 14, 15};
    uint32_t context = neighbours;
    for (uint32_t n = first; n < 16; n++) {
        const uint8_t *bits = tokens + (bands[n] * 3 + context) * 11;
        if (!vp8_bit(from, bits[0]))
            return n;
        while (!vp8_bit(from, bits[1])) {
            if (++n == 16)
                return 16;
            bits = tokens + bands[n] * 3 * 11;
        }
        int32_t value = vp8_bit(from, bits[2]) ? vp8_read_large(from, bits) : 1;
        context = value > 1 ? 2 : 1;
        value *= steps[n > 0];
        values[places[n]] = (int16_t)(vp8_bit(from, VP8_EVEN) ? -value : value);
    }
    return 16;
}

/* Blocks of a plane: `size` by `size`, from number `at` on. Returns whether any has values. */
AGENT_API uint32_t vp8_read_plane(vp8_t *it, vp8_bits_t *from, uint32_t kind, const int32_t *steps,
                                  uint32_t at, uint8_t *above)
{
    uint32_t size = kind == 2 ? 2 : 4, first = kind == 0, found = 0;
    uint32_t flags = at < 16 ? 0 : at < 20 ? 4 : 6;
    const uint8_t *tokens = it->tokens + kind * 8 * 3 * 11;
    for (uint32_t i = 0; i < size * size; i++) {
        uint8_t *up = above + flags + i % size, *left = it->left_flags + flags + i / size;
        int16_t *values = it->values[at + i];
        uint32_t n = vp8_read_values(from, tokens, (uint32_t)*up + *left, first, steps, values);
        *up = *left = n > first;
        found |= n > 1 || values[0];
    }
    return found;
}

/* All values of a macroblock. Returns whether there are any. */
AGENT_API uint32_t vp8_read_block(vp8_t *it, vp8_bits_t *from, const vp8_macroblock_t *block,
                                  uint8_t *above)
{
    const vp8_steps_t *steps = &it->steps[block->segment];
    uint32_t found = 0, kind = 3;
    memset(it->values, 0, sizeof it->values);
    if (!block->is_split) {
        uint32_t neighbours = (uint32_t)above[8] + it->left_flags[8];
        uint32_t n = vp8_read_values(from, it->tokens + 8 * 3 * 11, neighbours, 0, steps->y2,
                                     it->values[24]);
        above[8] = it->left_flags[8] = n > 0;
        vp8_spread(it->values);
        kind = 0;
    }
    found |= vp8_read_plane(it, from, kind, steps->y, 0, above);
    found |= vp8_read_plane(it, from, 2, steps->uv, 16, above);
    return vp8_read_plane(it, from, 2, steps->uv, 20, above) | found;
}

/* ---------------------------------------------------------------------------------- samples */

/* The four samples to the right of those above each block of the right column: of the row above the
 * macroblock, even for its lower blocks. */
AGENT_API void vp8_find_right(const vp8_t *it, uint32_t x, uint32_t y, uint8_t *right)
{
    const vp8_plane_t *plane = &it->planes[0];
    const uint8_t *above = plane->first + (size_t)16 * y * plane->row + 16 * x - plane->row;
    if (y && x + 1 == it->n_x)
        memset(right, above[15], 4);
    else if (y)
        memcpy(right, above + 16, 4);
    else
        memset(right, 127, 4);
}

AGENT_API void vp8_paint_y(vp8_t *it, const vp8_macroblock_t *block, uint32_t x, uint32_t y)
{
    const vp8_plane_t *plane = &it->planes[0];
    uint8_t *at = plane->first + (size_t)16 * y * plane->row + 16 * x, right[4];
    vp8_find_right(it, x, y, right);
    if (!block->is_split)
        vp8_predict(at, plane->row, 16, block->y_mode, (x > 0) | (y > 0) << 1);
    for (uint32_t i = 0; i < 16; i++) {
        uint8_t *small = at + i / 4 * 4 * plane->row + i % 4 * 4;
        const uint8_t *next = i % 4 == 3 ? right : small - plane->row + 4;
        if (block->is_split)
            vp8_predict_small(small, plane->row, block->modes[i], next);
        vp8_add(it->values[i], small, plane->row);
    }
}

AGENT_API void vp8_paint_uv(vp8_t *it, const vp8_macroblock_t *block, uint32_t x, uint32_t y)
{
    for (uint32_t p = 1; p < 3; p++) {
        const vp8_plane_t *plane = &it->planes[p];
        uint8_t *at = plane->first + (size_t)8 * y * plane->row + 8 * x;
        vp8_predict(at, plane->row, 8, block->uv_mode, (x > 0) | (y > 0) << 1);
        for (uint32_t i = 0; i < 4; i++)
            vp8_add(it->values[12 + 4 * p + i], at + i / 2 * 4 * plane->row + i % 2 * 4,
                    plane->row);
    }
}

AGENT_API uint8_t vp8_level(const vp8_t *it, const vp8_macroblock_t *block)
{
    int32_t level = (int32_t)it->level;
    if (it->has_segments)
        level = it->segment_levels[block->segment] + (it->is_absolute ? 0 : level);
    if (it->has_deltas)
        level += it->frame_deltas[0] + (block->is_split ? it->mode_deltas[0] : 0);
    return (uint8_t)vp8_within(level, 0, 63);
}

AGENT_API void vp8_decode_macroblock(vp8_t *it, uint32_t x, uint32_t y)
{
    vp8_macroblock_t block;
    uint8_t *above = it->above + x * VP8_ABOVE_NBYTES;
    uint32_t has_values = 0;
    vp8_read_macroblock(it, &block, above);
    if (!block.is_skipped) {
        has_values = vp8_read_block(it, &it->parts[y % it->n_parts], &block, above + 4);
    } else {
        uint32_t n = block.is_split ? 8 : 9; /* the flag of Y's DCs stays if it has none */
        memset(it->values, 0, sizeof it->values);
        memset(above + 4, 0, n);
        memset(it->left_flags, 0, n);
    }
    vp8_paint_y(it, &block, x, y);
    vp8_paint_uv(it, &block, x, y);
    it->smoothing[y * it->n_x + x] = (vp8_smoothing_t){vp8_level(it, &block),
                                                       block.is_split || has_values};
}

/* ----------------------------------------------------------------------------------- memory */

AGENT_API size_t vp8_smoothing_nbytes(const vp8_t *it)
{
    return sizeof *it->smoothing * it->n_x * it->n_y;
}

AGENT_API void vp8_free(vp8_t *it)
{
    for (uint32_t i = 0; i < 3; i++)
        pages_give(it->planes[i].all, (size_t)it->planes[i].row * it->planes[i].n_rows);
    pages_give(it->smoothing, vp8_smoothing_nbytes(it));
    free(it->above);
}

/* A plane whose neighbours outside the picture are what section 12.2 says. */
AGENT_API int32_t vp8_take_plane(vp8_plane_t *plane, uint32_t width, uint32_t height)
{
    *plane = (vp8_plane_t){.row = width + 1, .n_rows = height + 1};
    size_t nbytes = (size_t)plane->row * plane->n_rows;
    plane->all = pages_take(nbytes);
    if (!plane->all)
        return -ISTHMUS_ENOMEM;
    memset(plane->all, 128, nbytes);
    memset(plane->all, 127, plane->row);
    plane->first = plane->all + plane->row + 1;
    for (uint32_t y = 0; y < height; y++)
        plane->first[(size_t)y * plane->row - 1] = 129;
    return 0;
}

/* Decodes a picture's planes. Free `it` in any case. */
AGENT_API int32_t vp8_decode(vp8_t *it, const uint8_t *bytes, size_t nbytes)
{
    *it = (vp8_t){0};
    AGENT_TRY(vp8_read_head(it, bytes, nbytes));
    for (uint32_t i = 0; i < 3; i++)
        AGENT_TRY(vp8_take_plane(&it->planes[i], it->n_x * (i ? 8 : 16), it->n_y * (i ? 8 : 16)));
    it->smoothing = pages_take(vp8_smoothing_nbytes(it));
    it->above = calloc(it->n_x, VP8_ABOVE_NBYTES);
    if (!it->smoothing || !it->above)
        return -ISTHMUS_ENOMEM;
    memset(it->smoothing, 0, vp8_smoothing_nbytes(it));
    for (uint32_t y = 0; y < it->n_y; y++) {
        memset(it->left_modes, 0, sizeof it->left_modes);
        memset(it->left_flags, 0, sizeof it->left_flags);
        for (uint32_t x = 0; x < it->n_x; x++) {
            vp8_decode_macroblock(it, x, y);
            if (it->head.padded > VP8_MOST_PADDED
                || it->parts[y % it->n_parts].padded > VP8_MOST_PADDED) {
                vp8_smooth(it);
                return x + y ? 0 : -ISTHMUS_EINVAL;
            }
        }
    }
    vp8_smooth(it);
    return 0;
}

#endif
