/*
 * vp8l_codes.h: the bits of lossless WebP, and the prefix codes of them. Only for vp8l.h.
 */
#ifndef ISTHMUS_VP8L_CODES_H
#define ISTHMUS_VP8L_CODES_H

#include "picture.h"

#define VP8L_MOST_LENGTH 15
#define VP8L_MOST_SYMBOLS (256 + 24 + (1 << 11))

typedef struct {
    const uint8_t *at, *end;
    uint64_t bits;
    uint32_t n_bits, padded; /* `padded`: bits behind the end */
} vp8l_bits_t;

/* A code; the code of a single symbol takes no bits. */
typedef struct {
    uint16_t counts[VP8L_MOST_LENGTH + 1]; /* of symbols, by the length of their codes */
    uint16_t *symbols;                     /* from malloc, in the order of their codes */
    uint16_t single, is_single;
} vp8l_code_t;

/* Has at least `n` bits, up to 32; behind the end there are zeros. */
AGENT_API void vp8l_fill(vp8l_bits_t *it, uint32_t n)
{
    while (it->n_bits < n) {
        it->padded += it->at < it->end ? 0 : 8;
        it->bits |= (uint64_t)(it->at < it->end ? *it->at++ : 0u) << it->n_bits;
        it->n_bits += 8;
    }
}

AGENT_API __attribute__((noinline)) uint32_t vp8l_number(vp8l_bits_t *it, uint32_t n)
{
    vp8l_fill(it, n);
    uint32_t number = (uint32_t)(it->bits & ((1ull << n) - 1));
    it->bits >>= n;
    it->n_bits -= n;
    return number;
}

/* Whether bits were taken that are not in the file. */
AGENT_API int32_t vp8l_is_over(const vp8l_bits_t *it)
{
    return it->padded > it->n_bits;
}

AGENT_API uint32_t vp8l_symbol(vp8l_bits_t *it, const vp8l_code_t *code)
{
    if (code->is_single)
        return code->single;
    int32_t bits = 0, first = 0, place = 0;
    vp8l_fill(it, VP8L_MOST_LENGTH);
    for (uint32_t length = 1; length <= VP8L_MOST_LENGTH; length++) {
        int32_t count = code->counts[length];
        bits |= (int32_t)(it->bits & 1);
        it->bits >>= 1;
        it->n_bits--;
        if (bits - first < count)
            return code->symbols[place + bits - first];
        place += count;
        first = (first + count) << 1;
        bits <<= 1;
    }
    return 0; /* a code is complete, so this is not reached */
}

/* Makes a code of the lengths of its symbols' codes; -ISTHMUS_EINVAL unless it is complete. */
AGENT_API int32_t vp8l_make_code(vp8l_code_t *code, const uint8_t *lengths, uint32_t n)
{
    uint32_t places[VP8L_MOST_LENGTH + 2] = {0}, n_used = 0;
    int32_t left = 1;
    *code = (vp8l_code_t){0};
    for (uint32_t i = 0; i < n; i++) {
        code->counts[lengths[i]]++;
        if (lengths[i]) {
            code->single = (uint16_t)i;
            n_used++;
        }
    }
    code->counts[0] = 0;
    code->is_single = n_used == 1;
    if (code->is_single)
        return 0;
    for (uint32_t i = 1; i <= VP8L_MOST_LENGTH; i++) {
        left = 2 * left - code->counts[i];
        places[i + 1] = places[i] + code->counts[i];
        if (left < 0)
            return -ISTHMUS_EINVAL;
    }
    if (left)
        return -ISTHMUS_EINVAL;
    code->symbols = malloc(n_used * sizeof *code->symbols);
    if (!code->symbols)
        return -ISTHMUS_ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        if (lengths[i])
            code->symbols[places[lengths[i]]++] = (uint16_t)i;
    return 0;
}

/* A code of one symbol or two, which are written down. */
AGENT_API int32_t vp8l_read_simple_code(vp8l_bits_t *it, uint8_t *lengths, uint32_t n)
{
    uint32_t is_two = vp8l_number(it, 1), is_wide = vp8l_number(it, 1);
    uint32_t first = vp8l_number(it, is_wide ? 8 : 1);
    uint32_t second = is_two ? vp8l_number(it, 8) : first;
    if (first >= n || second >= n)
        return -ISTHMUS_EINVAL;
    lengths[first] = lengths[second] = 1;
    return 0;
}

/* Lengths of codes, which have a code of their own. */
AGENT_API int32_t vp8l_read_lengths(vp8l_bits_t *it, const vp8l_code_t *code, uint8_t *lengths,
                                    uint32_t n)
{
    uint32_t most = n, before = 8;
    if (vp8l_number(it, 1)) {
        most = 2 + vp8l_number(it, 2 + 2 * vp8l_number(it, 3));
        if (most > n)
            return -ISTHMUS_EINVAL;
    }
    for (uint32_t i = 0; i < n && most; most--) {
        uint32_t symbol = vp8l_symbol(it, code), times = 1, length = symbol;
        if (symbol == 16)
            times = 3 + vp8l_number(it, 2), length = before;
        else if (symbol > 16)
            times = symbol == 17 ? 3 + vp8l_number(it, 3) : 11 + vp8l_number(it, 7), length = 0;
        else
            before = length ? length : before;
        if (times > n - i || vp8l_is_over(it))
            return -ISTHMUS_EINVAL;
        memset(lengths + i, (int)length, times);
        i += times;
    }
    return 0;
}

/* Reads a code of `n` symbols. Free its symbols. */
AGENT_API int32_t vp8l_read_code(vp8l_bits_t *it, vp8l_code_t *code, uint32_t n)
{
    static const uint8_t order[19] = {17, 18, 0,  1,  2,  3,  4,  5,  16, 6,
                                      7,  8,  9,  10, 11, 12, 13, 14, 15};
    uint8_t lengths[VP8L_MOST_SYMBOLS] = {0}, of_lengths[19] = {0};
    if (vp8l_number(it, 1)) {
        AGENT_TRY(vp8l_read_simple_code(it, lengths, n));
        return vp8l_make_code(code, lengths, n);
    }
    uint32_t n_lengths = 4 + vp8l_number(it, 4);
    for (uint32_t i = 0; i < n_lengths; i++)
        of_lengths[order[i]] = (uint8_t)vp8l_number(it, 3);
    vp8l_code_t lengths_code;
    int32_t status = vp8l_make_code(&lengths_code, of_lengths, 19);
    if (status == 0)
        status = vp8l_read_lengths(it, &lengths_code, lengths, n);
    free(lengths_code.symbols);
    return status < 0 ? status : vp8l_make_code(code, lengths, n);
}

#endif
