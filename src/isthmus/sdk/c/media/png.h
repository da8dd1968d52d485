/*
 * png.h: PNG (ISO 15948) in every colour type, depth and order of rows. What is transparent is
 * shown on white. Checksums are not looked at, and neither are colour spaces.
 */
#ifndef ISTHMUS_PNG_H
#define ISTHMUS_PNG_H

#include "inflate.h"
#include "exif.h"

enum { PNG_PALETTE = 1, PNG_COLOUR = 2, PNG_ALPHA = 4 };

typedef struct {
    uint32_t width, height, depth, colours, interlaced;
    uint32_t channels;
    const uint8_t *palette, *alphas; /* three bytes and one for each colour */
    uint32_t n_palette, n_alphas;
    exif_t exif;
    uint8_t *data; /* all IDAT chunks, one behind the other */
    size_t data_nbytes;
} png_t;

/* Columns and rows of one of the seven passes: where they begin, and how far apart they are. */
typedef struct {
    uint32_t x, y, dx, dy;
} png_pass_t;

static const png_pass_t PNG_WHOLE = {0, 0, 1, 1};
static const png_pass_t PNG_PASSES[] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                                        {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};

AGENT_API uint32_t png_steps(uint32_t size, uint32_t first, uint32_t step)
{
    return size > first ? (size - first + step - 1) / step : 0;
}

AGENT_API size_t png_row_nbytes(const png_t *png, uint32_t n_pixels)
{
    return ((size_t)n_pixels * png->channels * png->depth + 7) / 8;
}

AGENT_API int32_t png_header(png_t *png, const uint8_t *bytes, uint32_t nbytes)
{
    static const uint8_t channels[] = {1, 0, 3, 1, 2, 0, 4};
    if (nbytes != 13 || bytes[9] > 6 || bytes[10] || bytes[11] || bytes[12] > 1)
        return -ISTHMUS_EINVAL;
    png->width = picture_u32(bytes), png->height = picture_u32(bytes + 4);
    png->depth = bytes[8], png->colours = bytes[9], png->interlaced = bytes[12];
    png->channels = channels[png->colours];
    uint32_t depth = png->depth, most = png->colours == 3 ? 8 : 16;
    int32_t small = depth == 1 || depth == 2 || depth == 4;
    if (!png->channels || depth > most || !(small || depth == 8 || depth == 16))
        return -ISTHMUS_EINVAL;
    return small && png->colours != 0 && png->colours != 3 ? -ISTHMUS_EINVAL : 0;
}

/* Goes through the chunks; `png->data` has room for all of them. */
AGENT_API int32_t png_chunks(png_t *png, const uint8_t *at, const uint8_t *end)
{
    for (int32_t first = 1; end - at >= 12; first = 0) {
        uint32_t nbytes = picture_u32(at);
        const uint8_t *name = at + 4, *bytes = at + 8;
        if (nbytes > (size_t)(end - bytes) - 4)
            return -ISTHMUS_EINVAL;
        if (first != (memcmp(name, "IHDR", 4) == 0))
            return -ISTHMUS_EINVAL;
        if (first) {
            AGENT_TRY(png_header(png, bytes, nbytes));
        } else if (memcmp(name, "PLTE", 4) == 0) {
            png->palette = bytes, png->n_palette = nbytes / 3;
        } else if (memcmp(name, "tRNS", 4) == 0) {
            png->alphas = bytes, png->n_alphas = nbytes;
        } else if (memcmp(name, "eXIf", 4) == 0) {
            png->exif = exif_skip_name(bytes, nbytes);
        } else if (memcmp(name, "IDAT", 4) == 0) {
            memcpy(png->data + png->data_nbytes, bytes, nbytes);
            png->data_nbytes += nbytes;
        } else if (memcmp(name, "IEND", 4) == 0) {
            return 0;
        }
        at = bytes + nbytes + 4;
    }
    return png->data_nbytes ? 0 : -ISTHMUS_EINVAL; /* some files lack their end */
}

/* Takes a row's filter away; `above` is the row before, or NULL. */
AGENT_API int32_t png_unfilter(uint8_t *row, const uint8_t *above, size_t nbytes, size_t pixel,
                               uint32_t filter)
{
    if (filter > 4)
        return -ISTHMUS_EINVAL;
    for (size_t i = 0; filter && i < nbytes; i++) {
        int32_t left = i < pixel ? 0 : row[i - pixel], up = above ? above[i] : 0;
        int32_t corner = above && i >= pixel ? above[i - pixel] : 0, guess = left;
        if (filter == 2)
            guess = up;
        if (filter == 3)
            guess = (left + up) / 2;
        if (filter == 4) {
            int32_t p = left + up - corner;
            int32_t a = p > left ? p - left : left - p, b = p > up ? p - up : up - p;
            int32_t c = p > corner ? p - corner : corner - p;
            guess = a <= b && a <= c ? left : b <= c ? up : corner;
        }
        row[i] = (uint8_t)(row[i] + guess);
    }
    return 0;
}

/* A sample of a row, as it lies there. */
AGENT_API uint32_t png_sample(const png_t *png, const uint8_t *row, size_t number)
{
    size_t bit = number * png->depth;
    if (png->depth == 16)
        return (uint32_t)row[2 * number] << 8 | row[2 * number + 1];
    return row[bit / 8] >> (8 - png->depth - bit % 8) & ((1u << png->depth) - 1);
}

AGENT_API uint8_t png_on_white(uint32_t value, uint32_t alpha)
{
    return (uint8_t)((value * alpha + 255 * (255 - alpha) + 127) / 255);
}

AGENT_API int32_t png_pixel(const png_t *png, const uint8_t *row, uint32_t x, uint8_t *to)
{
    uint32_t samples[4], n = png->channels, most = (1u << png->depth) - 1, alpha = 255, same = 1;
    for (uint32_t i = 0; i < n; i++)
        samples[i] = png_sample(png, row, (size_t)x * n + i);
    if (png->colours & PNG_PALETTE) {
        if (samples[0] >= png->n_palette)
            return -ISTHMUS_EINVAL;
        alpha = samples[0] < png->n_alphas ? png->alphas[samples[0]] : 255;
        for (uint32_t i = 0; i < 3; i++)
            to[i] = png_on_white(png->palette[3 * samples[0] + i], alpha);
        return 0;
    }
    uint32_t n_colours = png->colours & PNG_COLOUR ? 3 : 1;
    if (png->colours & PNG_ALPHA) {
        alpha = samples[n_colours] * 255 / most;
    } else if (png->n_alphas >= 2 * n_colours) { /* one colour is transparent */
        for (uint32_t i = 0; i < n_colours; i++)
            same &= samples[i] == (uint32_t)(png->alphas[2 * i] << 8 | png->alphas[2 * i + 1]);
        alpha = same ? 0 : 255;
    }
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t sample = samples[n_colours == 3 ? i : 0];
        to[i] = png_on_white(png->depth == 16 ? sample >> 8 : sample * 255 / most, alpha);
    }
    return 0;
}

/* Reads the rows of a pass, which are changed, and returns where they end in `*rows`. */
AGENT_API int32_t png_read_pass(const png_t *png, const png_pass_t *pass, uint8_t **rows,
                                picture_t *picture)
{
    uint32_t width = png_steps(png->width, pass->x, pass->dx);
    uint32_t height = png_steps(png->height, pass->y, pass->dy);
    size_t nbytes = png_row_nbytes(png, width), pixel = (png->channels * png->depth + 7) / 8;
    const uint8_t *above = NULL;
    for (uint32_t i = 0; width && i < height; i++) {
        uint8_t *row = *rows + 1;
        AGENT_TRY(png_unfilter(row, above, nbytes, pixel, **rows));
        size_t y = pass->y + (size_t)i * pass->dy;
        for (uint32_t j = 0; j < width; j++)
            AGENT_TRY(png_pixel(png, row, j,
                                picture->rgb + 3 * (y * png->width + pass->x + j * pass->dx)));
        above = row;
        *rows = row + nbytes;
    }
    return 0;
}

AGENT_API int32_t png_read(const png_t *png, picture_t *picture)
{
    const png_pass_t *passes = png->interlaced ? PNG_PASSES : &PNG_WHOLE;
    uint32_t n_passes = png->interlaced ? 7 : 1;
    size_t nbytes = 0;
    for (uint32_t i = 0; i < n_passes; i++) {
        uint32_t width = png_steps(png->width, passes[i].x, passes[i].dx);
        if (width)
            nbytes += (size_t)png_steps(png->height, passes[i].y, passes[i].dy)
                      * (png_row_nbytes(png, width) + 1);
    }
    uint8_t *rows = pages_take(nbytes), *at = rows;
    if (!rows)
        return -ISTHMUS_ENOMEM;
    int32_t status = inflate(png->data, png->data_nbytes, rows, nbytes);
    for (uint32_t i = 0; status == 0 && i < n_passes; i++)
        status = png_read_pass(png, &passes[i], &at, picture);
    pages_give(rows, nbytes);
    return status;
}

AGENT_API int32_t png_is(const uint8_t *bytes, size_t nbytes)
{
    return nbytes > 8 && memcmp(bytes, "\x89PNG\r\n\x1a\n", 8) == 0;
}

/* Decodes a file into a picture, which must be empty; free it. */
AGENT_API int32_t png_decode(const uint8_t *bytes, size_t nbytes, picture_t *picture)
{
    png_t png = {0};
    png.data = pages_take(nbytes);
    if (!png.data)
        return -ISTHMUS_ENOMEM;
    int32_t status = png_chunks(&png, bytes + 8, bytes + nbytes);
    if (status == 0)
        status = picture_take(picture, png.width, png.height);
    if (status == 0)
        status = png_read(&png, picture);
    pages_give(png.data, nbytes);
    return status < 0 ? status : picture_turn_as_noted(picture, &png.exif);
}

#endif
