/*
 * jpeg_picture.h: from the coefficients of a JPEG to its pixels. Only for jpeg.h.
 */
#ifndef ISTHMUS_JPEG_PICTURE_H
#define ISTHMUS_JPEG_PICTURE_H

#include "jpeg.h"

/* cos(i * pi / 16) / 2 for i from 0 to 8, the first one divided by the root of 2 in use. */
static const float JPEG_COSINES[9] = {0.5f,        0.49039264f, 0.46193977f, 0.41573481f, 0.35355339f,
                                      0.27778512f, 0.19134172f, 0.09754516f, 0.0f};

/* What coefficient k adds to sample x, of each unit. */
AGENT_API float jpeg_wave(uint32_t k, uint32_t x)
{
    if (k == 0)
        return JPEG_COSINES[4];
    uint32_t angle = (2 * x + 1) * k % 32;
    angle = angle > 16 ? 32 - angle : angle;
    return angle > 8 ? -JPEG_COSINES[16 - angle] : JPEG_COSINES[angle];
}

AGENT_API uint8_t jpeg_byte(float value)
{
    return value <= 0.0f ? 0 : value >= 255.0f ? 255 : (uint8_t)(value + 0.5f);
}

/* Makes samples of a block's coefficients; `row` is the length of a row of samples. */
AGENT_API void jpeg_transform(const int16_t *block, const uint16_t *factors,
                              const float waves[8][8], uint8_t *to, size_t row)
{
    float columns[8][8];
    for (uint32_t x = 0; x < 8; x++)
        for (uint32_t y = 0; y < 8; y++)
            columns[y][x] = 0.0f;
    for (uint32_t i = 0; i < 64; i++) { /* most of them are zero */
        if (!block[i])
            continue;
        float value = (float)block[i] * (float)factors[i];
        for (uint32_t y = 0; y < 8; y++)
            columns[y][i % 8] += value * waves[i / 8][y];
    }
    for (uint32_t y = 0; y < 8; y++)
        for (uint32_t x = 0; x < 8; x++) {
            float sum = 128.0f;
            for (uint32_t k = 0; k < 8; k++)
                sum += columns[y][k] * waves[k][x];
            to[y * row + x] = jpeg_byte(sum);
        }
}

AGENT_API void jpeg_transform_plane(const jpeg_t *it, jpeg_plane_t *plane)
{
    float waves[8][8];
    for (uint32_t k = 0; k < 8; k++)
        for (uint32_t x = 0; x < 8; x++)
            waves[k][x] = jpeg_wave(k, x);
    size_t row = (size_t)plane->row * 8;
    for (uint32_t y = 0; y < plane->n_y; y++)
        for (uint32_t x = 0; x < plane->n_x; x++)
            jpeg_transform(plane->coefficients + 64 * ((size_t)y * plane->row + x),
                           it->quantisation[plane->quantisation], waves,
                           plane->samples + 8 * y * row + 8 * x, row);
}

/* A plane's sample where a pixel is, between those around it if there are fewer than pixels. */
AGENT_API float jpeg_sample(const jpeg_t *it, const jpeg_plane_t *plane, uint32_t x, uint32_t y)
{
    size_t row = (size_t)plane->row * 8;
    if (plane->h == it->most_h && plane->v == it->most_v)
        return plane->samples[y * row + x];
    float fx = ((float)x + 0.5f) * (float)plane->h / (float)it->most_h - 0.5f;
    float fy = ((float)y + 0.5f) * (float)plane->v / (float)it->most_v - 0.5f;
    uint32_t right = (it->width * plane->h + it->most_h - 1) / it->most_h - 1;
    uint32_t bottom = (it->height * plane->v + it->most_v - 1) / it->most_v - 1;
    fx = fx < 0.0f ? 0.0f : fx > (float)right ? (float)right : fx;
    fy = fy < 0.0f ? 0.0f : fy > (float)bottom ? (float)bottom : fy;
    uint32_t x0 = (uint32_t)fx, y0 = (uint32_t)fy;
    uint32_t x1 = x0 < right ? x0 + 1 : x0, y1 = y0 < bottom ? y0 + 1 : y0;
    float ax = fx - (float)x0, ay = fy - (float)y0;
    const uint8_t *above = plane->samples + y0 * row, *below = plane->samples + y1 * row;
    float top = (float)above[x0] + ax * ((float)above[x1] - (float)above[x0]);
    float low = (float)below[x0] + ax * ((float)below[x1] - (float)below[x0]);
    return top + ay * (low - top);
}

AGENT_API void jpeg_paint(jpeg_t *it, picture_t *picture)
{
    int32_t is_rgb = it->is_rgb || it->adobe == 1;
    for (uint32_t i = 0; i < it->n_planes; i++)
        jpeg_transform_plane(it, &it->planes[i]);
    uint8_t *to = picture->rgb;
    for (uint32_t y = 0; y < it->height; y++)
        for (uint32_t x = 0; x < it->width; x++, to += 3) {
            float first = jpeg_sample(it, &it->planes[0], x, y);
            if (it->n_planes == 1) {
                to[0] = to[1] = to[2] = jpeg_byte(first);
                continue;
            }
            float second = jpeg_sample(it, &it->planes[1], x, y);
            float third = jpeg_sample(it, &it->planes[2], x, y);
            float blue = second - 128.0f, red = third - 128.0f;
            to[0] = jpeg_byte(is_rgb ? first : first + 1.402f * red);
            to[1] = jpeg_byte(is_rgb ? second : first - 0.344136f * blue - 0.714136f * red);
            to[2] = jpeg_byte(is_rgb ? third : first + 1.772f * blue);
        }
}

#endif
