/*
 * inflate.h: zlib streams (RFC 1950, 1951), for PNG.
 *
 * Input may be anything: what is malformed gives -ISTHMUS_EINVAL, and nothing is read or written
 * outside the two buffers. Checksums are not looked at.
 */
#ifndef ISTHMUS_INFLATE_H
#define ISTHMUS_INFLATE_H

#include "../agent.h"

#define INFLATE_FAST 9 /* bits of codes that are found at once */
#define INFLATE_LONGEST 15
#define INFLATE_MOST 288

typedef struct {
    uint16_t fast[1 << INFLATE_FAST]; /* symbol << 4 | length of its code; 0: a longer one */
    uint16_t count[INFLATE_LONGEST + 1];
    uint16_t symbol[INFLATE_MOST]; /* in the order of their codes */
} inflate_codes_t;

typedef struct {
    const uint8_t *next, *end;
    uint32_t bits, n_bits;
    uint8_t *out;
    size_t n_out, out_nbytes;
    inflate_codes_t literals, distances;
} inflate_t;

/* The next `n` bits, up to 16, the first one lowest; -1 at the end. */
AGENT_API int32_t inflate_bits(inflate_t *it, uint32_t n)
{
    while (it->n_bits < n) {
        if (it->next == it->end)
            return -1;
        it->bits |= (uint32_t)*it->next++ << it->n_bits;
        it->n_bits += 8;
    }
    int32_t value = (int32_t)(it->bits & ((1u << n) - 1));
    it->bits >>= n;
    it->n_bits -= n;
    return value;
}

/* The code of a symbol as its bits come: the other way round. */
AGENT_API uint32_t inflate_reversed(uint32_t code, uint32_t length)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < length; i++)
        found |= (code >> i & 1) << (length - 1 - i);
    return found;
}

/* Makes the codes of `n` symbols of these lengths; -ISTHMUS_EINVAL if there are too many. */
AGENT_API int32_t inflate_make(inflate_codes_t *codes, const uint8_t *lengths, uint32_t n)
{
    uint32_t offset[INFLATE_LONGEST + 2] = {0}, next[INFLATE_LONGEST + 2] = {0};
    int32_t left = 1;
    memset(codes, 0, sizeof *codes);
    for (uint32_t i = 0; i < n; i++)
        codes->count[lengths[i]]++;
    codes->count[0] = 0;
    for (uint32_t length = 1; length <= INFLATE_LONGEST; length++) {
        left = 2 * left - codes->count[length];
        if (left < 0)
            return -ISTHMUS_EINVAL;
        offset[length + 1] = offset[length] + codes->count[length];
        next[length + 1] = (next[length] + codes->count[length]) << 1;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t length = lengths[i];
        if (!length)
            continue;
        codes->symbol[offset[length]++] = (uint16_t)i;
        uint32_t code = inflate_reversed(next[length]++, length);
        for (; length <= INFLATE_FAST && code < 1u << INFLATE_FAST; code += 1u << length)
            codes->fast[code] = (uint16_t)(i << 4 | length);
    }
    return 0;
}

/* The next symbol, or -1. */
AGENT_API int32_t inflate_symbol(inflate_t *it, const inflate_codes_t *codes)
{
    while (it->n_bits < INFLATE_FAST && it->next < it->end) {
        it->bits |= (uint32_t)*it->next++ << it->n_bits;
        it->n_bits += 8;
    }
    uint32_t found = codes->fast[it->bits & ((1 << INFLATE_FAST) - 1)];
    if (found && (found & 15) <= it->n_bits) {
        it->bits >>= found & 15;
        it->n_bits -= found & 15;
        return (int32_t)(found >> 4);
    }
    int32_t code = 0, first = 0, index = 0;
    for (uint32_t length = 1; length <= INFLATE_LONGEST; length++) {
        int32_t bit = inflate_bits(it, 1), count = codes->count[length];
        if (bit < 0)
            return -1;
        code = code << 1 | bit;
        if (code - first < count)
            return codes->symbol[index + code - first];
        index += count;
        first = (first + count) << 1;
    }
    return -1;
}

/* Copies `length` bytes from `distance` bytes back. */
AGENT_API int32_t inflate_copy(inflate_t *it, uint32_t distance, uint32_t length)
{
    if (distance > it->n_out || length > it->out_nbytes - it->n_out)
        return -ISTHMUS_EINVAL;
    uint8_t *to = it->out + it->n_out;
    for (uint32_t i = 0; i < length; i++)
        to[i] = to[(int64_t)i - distance];
    it->n_out += length;
    return 0;
}

AGENT_API int32_t inflate_compressed(inflate_t *it)
{
    static const uint16_t lengths[] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                       31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const uint16_t distances[] = {1,   2,   3,   4,   5,    7,    9,    13,   17,   25,
                                         33,  49,  65,  97,  129,  193,  257,  385,  513,  769,
                                         1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    for (;;) {
        int32_t symbol = inflate_symbol(it, &it->literals);
        if (symbol == 256)
            return 0;
        if (symbol < 0 || symbol > 285)
            return -ISTHMUS_EINVAL;
        if (symbol < 256) {
            if (it->n_out == it->out_nbytes)
                return -ISTHMUS_EINVAL;
            it->out[it->n_out++] = (uint8_t)symbol;
            continue;
        }
        uint32_t which = (uint32_t)symbol - 257;
        uint32_t extra = which < 8 || which == 28 ? 0 : (which - 4) / 4;
        int32_t more = inflate_bits(it, extra), far = inflate_symbol(it, &it->distances);
        if (more < 0 || far < 0 || far > 29)
            return -ISTHMUS_EINVAL;
        int32_t further = inflate_bits(it, far < 4 ? 0 : (uint32_t)(far - 2) / 2);
        if (further < 0)
            return -ISTHMUS_EINVAL;
        AGENT_TRY(inflate_copy(it, distances[far] + (uint32_t)further,
                               lengths[which] + (uint32_t)more));
    }
}

AGENT_API int32_t inflate_stored(inflate_t *it)
{
    it->next -= it->n_bits / 8; /* whole bytes that were taken too early */
    it->bits = it->n_bits = 0;
    if (it->end - it->next < 4)
        return -ISTHMUS_EINVAL;
    size_t nbytes = (size_t)(it->next[0] | it->next[1] << 8);
    it->next += 4;
    if (nbytes > (size_t)(it->end - it->next) || nbytes > it->out_nbytes - it->n_out)
        return -ISTHMUS_EINVAL;
    memcpy(it->out + it->n_out, it->next, nbytes);
    it->next += nbytes;
    it->n_out += nbytes;
    return 0;
}

AGENT_API int32_t inflate_fixed(inflate_t *it)
{
    uint8_t lengths[INFLATE_MOST];
    for (uint32_t i = 0; i < INFLATE_MOST; i++)
        lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    AGENT_TRY(inflate_make(&it->literals, lengths, INFLATE_MOST));
    memset(lengths, 5, 30);
    return inflate_make(&it->distances, lengths, 30);
}

/* Reads the lengths of both codes, which are a code themselves. */
AGENT_API int32_t inflate_dynamic(inflate_t *it)
{
    static const uint8_t order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[INFLATE_MOST + 32] = {0};
    int32_t n_literals = inflate_bits(it, 5), n_distances = inflate_bits(it, 5);
    int32_t n_lengths = inflate_bits(it, 4);
    if (n_literals < 0 || n_distances < 0 || n_lengths < 0 || n_literals > 29 || n_distances > 29)
        return -ISTHMUS_EINVAL;
    n_literals += 257;
    n_distances += 1;
    for (int32_t i = 0; i < n_lengths + 4; i++) {
        int32_t length = inflate_bits(it, 3);
        if (length < 0)
            return -ISTHMUS_EINVAL;
        lengths[order[i]] = (uint8_t)length;
    }
    AGENT_TRY(inflate_make(&it->literals, lengths, 19));
    memset(lengths, 0, sizeof lengths);
    for (int32_t at = 0; at < n_literals + n_distances;) {
        int32_t symbol = inflate_symbol(it, &it->literals), times = 1;
        uint8_t length = (uint8_t)symbol;
        if (symbol >= 16) {
            length = symbol == 16 && at ? lengths[at - 1] : 0;
            times = inflate_bits(it, symbol == 16 ? 2 : symbol == 17 ? 3 : 7);
            times = times < 0 ? -1 : times + (symbol == 18 ? 11 : 3);
        }
        if (symbol < 0 || times < 0 || (symbol == 16 && !at)
            || times > n_literals + n_distances - at)
            return -ISTHMUS_EINVAL;
        while (times--)
            lengths[at++] = length;
    }
    AGENT_TRY(inflate_make(&it->literals, lengths, (uint32_t)n_literals));
    return inflate_make(&it->distances, lengths + n_literals, (uint32_t)n_distances);
}

/* Fills `out` with what a zlib stream holds; it must be at least as much. */
AGENT_API int32_t inflate(const uint8_t *data, size_t nbytes, uint8_t *out, size_t out_nbytes)
{
    static inflate_t state;
    inflate_t *it = &state;
    int32_t last = 0;
    if (nbytes < 2 || (data[0] & 15) != 8 || (data[1] & 32) || (data[0] << 8 | data[1]) % 31)
        return -ISTHMUS_EINVAL;
    it->next = data + 2, it->end = data + nbytes;
    it->bits = it->n_bits = 0;
    it->out = out, it->out_nbytes = out_nbytes, it->n_out = 0;
    while (!last && it->n_out < out_nbytes) {
        last = inflate_bits(it, 1);
        int32_t kind = inflate_bits(it, 2);
        if (last < 0 || kind < 0 || kind == 3)
            return -ISTHMUS_EINVAL;
        if (kind == 0) {
            AGENT_TRY(inflate_stored(it));
            continue;
        }
        AGENT_TRY(kind == 1 ? inflate_fixed(it) : inflate_dynamic(it));
        AGENT_TRY(inflate_compressed(it));
    }
    return it->n_out == out_nbytes ? 0 : -ISTHMUS_EINVAL;
}

#endif
