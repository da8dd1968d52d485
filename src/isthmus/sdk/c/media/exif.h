/*
 * exif.h: how a picture is to be turned, as cameras note it (EXIF 2.3, tag 274), and turning it.
 *
 * Anything in it that is not as it should be counts as no note: the picture stays as it lies.
 */
#ifndef ISTHMUS_EXIF_H
#define ISTHMUS_EXIF_H

#include "picture.h"

#define EXIF_ORIENTATION 274u
#define EXIF_SHORT 3u

/* What a file notes, from its first byte; NULL if it notes nothing. */
typedef struct {
    const uint8_t *bytes;
    size_t nbytes;
} exif_t;

/* A number of `n` bytes, 2 or 4; of a file that begins with MM, the first byte counts most. */
AGENT_API uint32_t exif_number(const exif_t *exif, size_t at, uint32_t n)
{
    uint32_t number = 0, motorola = exif->bytes[0] == 'M';
    for (uint32_t i = 0; i < n; i++)
        number |= (uint32_t)exif->bytes[at + i] << 8 * (motorola ? n - 1 - i : i);
    return number;
}

/* Skips the name that JPEG, and some writers of other formats, set before the note. */
AGENT_API exif_t exif_skip_name(const uint8_t *bytes, size_t nbytes)
{
    uint32_t named = nbytes >= 6 && memcmp(bytes, "Exif\0\0", 6) == 0;
    return named ? (exif_t){bytes + 6, nbytes - 6} : (exif_t){bytes, nbytes};
}

/* From 1 (as it lies) to 8. */
AGENT_API uint32_t exif_orientation(const exif_t *exif)
{
    if (!exif->bytes || exif->nbytes < 10
        || (memcmp(exif->bytes, "II*\0", 4) != 0 && memcmp(exif->bytes, "MM\0*", 4) != 0))
        return 1;
    size_t at = exif_number(exif, 4, 4);
    if (at > exif->nbytes - 2)
        return 1;
    uint32_t n = exif_number(exif, at, 2);
    for (at += 2; n && exif->nbytes - at >= 12; n--, at += 12) {
        if (exif_number(exif, at, 2) != EXIF_ORIENTATION)
            continue;
        uint32_t found = exif_number(exif, at + 8, 2);
        uint32_t is_one = exif_number(exif, at + 2, 2) == EXIF_SHORT && exif_number(exif, at + 4, 4) == 1;
        return is_one && found >= 1 && found <= 8 ? found : 1;
    }
    return 1;
}

/* Turns a picture as an orientation says. On an error it stays as it was. */
AGENT_API int32_t picture_turn(picture_t *picture, uint32_t orientation)
{
    uint32_t width = picture->width, height = picture->height, sideways = orientation > 4;
    uint32_t from_right = orientation == 2 || orientation == 3 || orientation > 6;
    uint32_t from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    picture_t turned = {0};
    if (orientation == 1)
        return 0;
    AGENT_TRY(picture_take(&turned, sideways ? height : width, sideways ? width : height));
    const uint8_t *from = picture->rgb;
    for (uint32_t y = 0; y < height; y++)
        for (uint32_t x = 0; x < width; x++, from += 3) {
            size_t to_x = from_right ? width - 1 - x : x, to_y = from_below ? height - 1 - y : y;
            size_t place = sideways ? to_x * height + to_y : to_y * width + to_x;
            memcpy(turned.rgb + 3 * place, from, 3);
        }
    picture_free(picture);
    *picture = turned;
    return 0;
}

/* Turns what was decoded as its file notes it. */
static __attribute__((noinline, unused)) int32_t picture_turn_as_noted(picture_t *picture, const exif_t *exif)
{
    return picture_turn(picture, exif_orientation(exif));
}

#endif
