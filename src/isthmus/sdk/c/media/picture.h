/*
 * picture.h: what decoders of pictures give: three bytes for each pixel, row by row.
 */
#ifndef ISTHMUS_PICTURE_H
#define ISTHMUS_PICTURE_H

#include "../agent.h"

#define PICTURE_MOST_SIDE 16384u
#define PICTURE_MOST_PIXELS (1u << 26)

typedef struct {
    uint8_t *rgb; /* from pages_take; NULL if there is none */
    uint32_t width, height;
} picture_t;

#define PICTURE_FREED __attribute__((cleanup(picture_free)))

AGENT_API size_t picture_nbytes(const picture_t *picture)
{
    return (size_t)3 * picture->width * picture->height;
}

AGENT_API void picture_free(picture_t *picture)
{
    if (picture->rgb)
        pages_give(picture->rgb, picture_nbytes(picture));
    *picture = (picture_t){0};
}

/* Takes room for so many pixels; -ISTHMUS_EINVAL for none, -ISTHMUS_ELIMIT for too many. */
AGENT_API int32_t picture_take(picture_t *picture, uint32_t width, uint32_t height)
{
    if (!width || !height)
        return -ISTHMUS_EINVAL;
    if (width > PICTURE_MOST_SIDE || height > PICTURE_MOST_SIDE
        || width * height > PICTURE_MOST_PIXELS)
        return -ISTHMUS_ELIMIT;
    *picture = (picture_t){NULL, width, height};
    picture->rgb = pages_take(picture_nbytes(picture));
    return picture->rgb ? 0 : -ISTHMUS_ENOMEM;
}

AGENT_API uint32_t picture_u32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

#endif
