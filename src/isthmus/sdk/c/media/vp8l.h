/*
 * vp8l.h: the pictures of lossless WebP, after its specification
 * (https://developers.google.com/speed/webp/docs/webp_lossless_bitstream_specification).
 *
 * A picture is made of pixels of 32 bits, alpha first. So are those that say how it was changed before
 * it was written. Nothing that a file says is used as an index before it was looked at.
 */
#ifndef ISTHMUS_VP8L_H
#define ISTHMUS_VP8L_H

#include "vp8l_codes.h"

#define VP8L_OPAQUE 0xff000000u

enum { VP8L_GREEN, VP8L_RED, VP8L_BLUE, VP8L_ALPHA, VP8L_FAR, VP8L_N_CODES };
enum { VP8L_PREDICTED, VP8L_CROSSED, VP8L_WITHOUT_GREEN, VP8L_INDEXED, VP8L_N_CHANGES };

/* Pixels of a picture, or of one that is about another: a pixel for each square of 2^bits. */
typedef struct {
    uint32_t *pixels; /* from pages_take */
    uint32_t width, height, bits;
} vp8l_image_t;

typedef struct {
    uint32_t kind, width; /* of the rows before the picture was changed */
    vp8l_image_t image;
} vp8l_change_t;

/* What an image is written in: groups of codes, one for each part of it. */
typedef struct {
    vp8l_code_t (*groups)[VP8L_N_CODES]; /* from malloc */
    uint32_t n_groups;
    vp8l_image_t parts;
    uint32_t *cache; /* from malloc: colours that were seen last */
    uint32_t cache_bits;
} vp8l_coding_t;

#include "vp8l_changes.h"

AGENT_API size_t vp8l_image_nbytes(const vp8l_image_t *image)
{
    return 4 * (size_t)image->width * image->height;
}

AGENT_API void vp8l_image_free(vp8l_image_t *image)
{
    pages_give(image->pixels, vp8l_image_nbytes(image));
    *image = (vp8l_image_t){0};
}

AGENT_API int32_t vp8l_image_take(vp8l_image_t *image, uint32_t width, uint32_t height)
{
    *image = (vp8l_image_t){.width = width, .height = height};
    image->pixels = pages_take(vp8l_image_nbytes(image));
    return image->pixels ? 0 : -ISTHMUS_ENOMEM;
}

AGENT_API uint32_t vp8l_squares(uint32_t size, uint32_t bits)
{
    return (size + (1u << bits) - 1) >> bits;
}

AGENT_API void vp8l_coding_free(vp8l_coding_t *coding)
{
    for (uint32_t i = 0; i < coding->n_groups; i++)
        for (uint32_t j = 0; j < VP8L_N_CODES; j++)
            free(coding->groups[i][j].symbols);
    free(coding->groups);
    free(coding->cache);
    vp8l_image_free(&coding->parts);
}

/* A length or a distance, of which a symbol says the first bits. */
AGENT_API uint32_t vp8l_long(vp8l_bits_t *it, uint32_t symbol)
{
    if (symbol < 4)
        return symbol + 1;
    uint32_t more = (symbol - 2) >> 1;
    return ((2 + (symbol & 1)) << more) + vp8l_number(it, more) + 1;
}

/* How many pixels before this one others are to be copied from: near ones lie above or beside it. */
AGENT_API uint32_t vp8l_distance(uint32_t code, uint32_t width)
{
    static const uint8_t near[120] = {
        24, 7,  23, 25, 40, 6,   39, 41,  22,  26,  38, 42,  56,  5,   55, 57,  21,  27, 54,  58,
        37, 43, 72, 4,  71, 73,  20, 28,  53,  59,  70, 74,  36,  44,  88, 69,  75,  52, 60,  3,
        87, 89, 19, 29, 86, 90,  35, 45,  68,  76,  85, 91,  51,  61,  104, 2,  103, 105, 18, 30,
        102, 106, 34, 46, 84, 92, 67, 77, 101, 107, 50, 62,  120, 1,   119, 121, 83, 93, 17,  31,
        100, 108, 66, 78, 118, 122, 33, 47, 117, 123, 49, 63, 99, 109, 82, 94,  0,   116, 124, 65,
        79, 16, 32, 98, 110, 48, 115, 125, 81, 95, 64, 114, 126, 97, 111, 80,  113, 127, 96,  112};
    if (code > 120)
        return code - 120;
    int32_t rows = near[code - 1] >> 4, columns = 8 - (near[code - 1] & 15);
    int64_t distance = (int64_t)rows * width + columns;
    return distance < 1 ? 1 : (uint32_t)distance;
}

AGENT_API void vp8l_remember(const vp8l_coding_t *coding, uint32_t pixel)
{
    if (coding->cache)
        coding->cache[0x1e35a7bdu * pixel >> (32 - coding->cache_bits)] = pixel;
}

AGENT_API const vp8l_code_t *vp8l_codes_at(const vp8l_coding_t *coding, uint32_t x, uint32_t y)
{
    const vp8l_image_t *parts = &coding->parts;
    if (!parts->pixels)
        return coding->groups[0];
    uint32_t pixel = parts->pixels[(y >> parts->bits) * parts->width + (x >> parts->bits)];
    return coding->groups[pixel >> 8 & 0xffff];
}

AGENT_API uint32_t vp8l_literal(vp8l_bits_t *it, const vp8l_code_t *codes, uint32_t green)
{
    uint32_t red = vp8l_symbol(it, &codes[VP8L_RED]), blue = vp8l_symbol(it, &codes[VP8L_BLUE]);
    return vp8l_symbol(it, &codes[VP8L_ALPHA]) << 24 | red << 16 | green << 8 | blue;
}

AGENT_API int32_t vp8l_read_pixels(vp8l_bits_t *it, const vp8l_coding_t *coding,
                                   vp8l_image_t *image)
{
    uint32_t n = image->width * image->height, *pixels = image->pixels;
    for (uint32_t i = 0; i < n;) {
        const vp8l_code_t *codes = vp8l_codes_at(coding, i % image->width, i / image->width);
        uint32_t symbol = vp8l_symbol(it, &codes[VP8L_GREEN]), times = 1, distance = 0;
        if (symbol < 256) {
            pixels[i] = vp8l_literal(it, codes, symbol);
        } else if (symbol < 256 + 24) {
            times = vp8l_long(it, symbol - 256);
            distance = vp8l_distance(vp8l_long(it, vp8l_symbol(it, &codes[VP8L_FAR])),
                                     image->width);
            if (distance > i || times > n - i)
                return -ISTHMUS_EINVAL;
        } else {
            pixels[i] = coding->cache[symbol - 256 - 24];
        }
        if (vp8l_is_over(it))
            return -ISTHMUS_EINVAL;
        for (; times; times--, i++) {
            pixels[i] = distance ? pixels[i - distance] : pixels[i];
            vp8l_remember(coding, pixels[i]);
        }
    }
    return 0;
}

AGENT_API int32_t vp8l_read_image(vp8l_bits_t *it, uint32_t is_main, vp8l_image_t *image);

/* Reads which part of an image has which group of codes. */
AGENT_API int32_t vp8l_read_parts(vp8l_bits_t *it, vp8l_coding_t *coding, const vp8l_image_t *image)
{
    uint32_t bits = 2 + vp8l_number(it, 3);
    vp8l_image_t *parts = &coding->parts;
    AGENT_TRY(vp8l_image_take(parts, vp8l_squares(image->width, bits),
                              vp8l_squares(image->height, bits)));
    parts->bits = bits;
    return vp8l_read_image(it, 0, parts);
}

AGENT_API int32_t vp8l_read_groups(vp8l_bits_t *it, vp8l_coding_t *coding)
{
    static const uint16_t sizes[VP8L_N_CODES] = {256 + 24, 256, 256, 256, 40};
    uint32_t n = 1, n_parts = coding->parts.width * coding->parts.height;
    for (uint32_t i = 0; i < n_parts; i++) {
        uint32_t number = coding->parts.pixels[i] >> 8 & 0xffff;
        n = number + 1 > n ? number + 1 : n;
    }
    coding->groups = calloc(n, sizeof *coding->groups);
    if (!coding->groups)
        return -ISTHMUS_ENOMEM;
    coding->n_groups = n;
    for (uint32_t i = 0; i < n * VP8L_N_CODES; i++) {
        uint32_t kind = i % VP8L_N_CODES;
        uint32_t size = sizes[kind];
        if (kind == VP8L_GREEN && coding->cache)
            size += 1u << coding->cache_bits;
        AGENT_TRY(vp8l_read_code(it, &coding->groups[i / VP8L_N_CODES][kind], size));
        if (vp8l_is_over(it))
            return -ISTHMUS_EINVAL;
    }
    return 0;
}

AGENT_API int32_t vp8l_read_coded(vp8l_bits_t *it, vp8l_coding_t *coding, uint32_t is_main,
                                  vp8l_image_t *image)
{
    if (vp8l_number(it, 1)) {
        coding->cache_bits = vp8l_number(it, 4);
        if (coding->cache_bits < 1 || coding->cache_bits > 11)
            return -ISTHMUS_EINVAL;
        coding->cache = calloc((size_t)1 << coding->cache_bits, sizeof *coding->cache);
        if (!coding->cache)
            return -ISTHMUS_ENOMEM;
    }
    if (is_main && vp8l_number(it, 1))
        AGENT_TRY(vp8l_read_parts(it, coding, image));
    AGENT_TRY(vp8l_read_groups(it, coding));
    return vp8l_read_pixels(it, coding, image);
}

/* Reads the pixels of an image that has room for them. */
AGENT_API int32_t vp8l_read_image(vp8l_bits_t *it, uint32_t is_main, vp8l_image_t *image)
{
    vp8l_coding_t coding = {0};
    int32_t status = vp8l_read_coded(it, &coding, is_main, image);
    vp8l_coding_free(&coding);
    return status;
}

/* Reads one change, and how wide the picture is after it. */
AGENT_API int32_t vp8l_read_change(vp8l_bits_t *it, vp8l_change_t *change, uint32_t *width,
                                   uint32_t height)
{
    change->width = *width;
    if (change->kind == VP8L_WITHOUT_GREEN)
        return 0;
    if (change->kind == VP8L_INDEXED) {
        uint32_t n = 1 + vp8l_number(it, 8), bits = n <= 2 ? 3 : n <= 4 ? 2 : n <= 16;
        AGENT_TRY(vp8l_image_take(&change->image, n, 1));
        AGENT_TRY(vp8l_read_image(it, 0, &change->image));
        change->image.bits = bits;
        *width = vp8l_squares(*width, bits);
        return 0;
    }
    uint32_t bits = 2 + vp8l_number(it, 3);
    AGENT_TRY(vp8l_image_take(&change->image, vp8l_squares(*width, bits),
                              vp8l_squares(height, bits)));
    change->image.bits = bits;
    return vp8l_read_image(it, 0, &change->image);
}

AGENT_API int32_t vp8l_read_changed(vp8l_bits_t *it, vp8l_change_t *changes, vp8l_image_t *image)
{
    uint32_t n = 0, seen = 0, width = image->width;
    while (vp8l_number(it, 1)) {
        uint32_t kind = vp8l_number(it, 2);
        if (seen >> kind & 1)
            return -ISTHMUS_EINVAL;
        seen |= 1u << kind;
        changes[n].kind = kind;
        AGENT_TRY(vp8l_read_change(it, &changes[n++], &width, image->height));
    }
    uint32_t whole = image->width; /* there is room for that */
    image->width = width;
    int32_t status = vp8l_read_image(it, 1, image);
    image->width = whole;
    while (status == 0 && n--)
        vp8l_undo(&changes[n], image->pixels, image->height);
    return status;
}

/* Decodes a picture without its header into an image that must be empty; free it. */
AGENT_API int32_t vp8l_decode_body(vp8l_bits_t *it, uint32_t width, uint32_t height,
                                   vp8l_image_t *image)
{
    vp8l_change_t changes[VP8L_N_CHANGES] = {0};
    AGENT_TRY(vp8l_image_take(image, width, height));
    int32_t status = vp8l_read_changed(it, changes, image);
    for (uint32_t i = 0; i < VP8L_N_CHANGES; i++)
        vp8l_image_free(&changes[i].image);
    return status;
}

/* Decodes a picture into an image that must be empty; free it. */
AGENT_API int32_t vp8l_decode(const uint8_t *bytes, size_t nbytes, vp8l_image_t *image)
{
    vp8l_bits_t bits = {.at = bytes, .end = bytes + nbytes};
    if (vp8l_number(&bits, 8) != 0x2f)
        return -ISTHMUS_EINVAL;
    uint32_t width = 1 + vp8l_number(&bits, 14), height = 1 + vp8l_number(&bits, 14);
    uint32_t has_alpha = vp8l_number(&bits, 1);
    if (vp8l_number(&bits, 3))
        return -ISTHMUS_EINVAL;
    if (width * height > PICTURE_MOST_PIXELS)
        return -ISTHMUS_ELIMIT;
    AGENT_TRY(vp8l_decode_body(&bits, width, height, image));
    for (uint32_t i = 0; !has_alpha && i < width * height; i++)
        image->pixels[i] |= VP8L_OPAQUE;
    return 0;
}

#endif
