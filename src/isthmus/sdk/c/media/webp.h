/*
 * webp.h: WebP (RFC 9649), lossy and lossless. What is transparent is shown on white. Of an animation,
 * the first picture.
 */
#ifndef ISTHMUS_WEBP_H
#define ISTHMUS_WEBP_H

#include "exif.h"
#include "vp8.h"
#include "vp8l.h"

enum { WEBP_ALPHA_PLAIN, WEBP_ALPHA_LOSSLESS };

/* Parts of a file; NULL for one that is not there. */
typedef struct {
    const uint8_t *lossy, *lossless, *alpha;
    size_t lossy_nbytes, lossless_nbytes, alpha_nbytes;
    exif_t exif;
} webp_t;

AGENT_API uint32_t webp_u32(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* Finds the first picture, and what is noted of it. The last chunk may be cut off. */
AGENT_API void webp_find(webp_t *webp, const uint8_t *at, const uint8_t *end)
{
    while (end - at >= 8) {
        uint32_t found = webp->lossy || webp->lossless;
        const uint8_t *bytes = at + 8;
        size_t left = (size_t)(end - bytes), nbytes = webp_u32(at + 4);
        nbytes = nbytes < left ? nbytes : left;
        if (memcmp(at, "EXIF", 4) == 0)
            webp->exif = exif_skip_name(bytes, nbytes);
        else if (!found && memcmp(at, "VP8 ", 4) == 0)
            webp->lossy = bytes, webp->lossy_nbytes = nbytes;
        else if (!found && memcmp(at, "VP8L", 4) == 0)
            webp->lossless = bytes, webp->lossless_nbytes = nbytes;
        else if (!found && memcmp(at, "ALPH", 4) == 0 && !webp->alpha)
            webp->alpha = bytes, webp->alpha_nbytes = nbytes;
        else if (!found && memcmp(at, "ANMF", 4) == 0 && nbytes >= 16) {
            at = bytes + 16; /* a picture with chunks of its own */
            continue;
        }
        at = bytes + nbytes + (nbytes < left ? nbytes & 1 : 0);
    }
}

/* ---------------------------------------------------------------------------- transparency */

/* What a sample is likely to be, by those before it; `filter` 0 is none of them. */
AGENT_API int32_t webp_guess(const uint8_t *at, uint32_t x, uint32_t y, uint32_t width,
                             uint32_t filter)
{
    if (!filter || (!x && !y))
        return 0;
    if (!y || (x && filter == 1))
        return at[-1];
    const uint8_t *above = at - width;
    if (!x || filter == 2)
        return above[0];
    return vp8_u8(at[-1] + above[0] - above[-1]);
}

/* The green samples of a lossless picture without a header. */
AGENT_API int32_t webp_read_greens(const uint8_t *bytes, size_t nbytes, uint32_t width,
                                   uint32_t height, uint8_t *to)
{
    vp8l_bits_t bits = {.at = bytes, .end = bytes + nbytes};
    vp8l_image_t image = {0};
    int32_t status = vp8l_decode_body(&bits, width, height, &image);
    for (size_t i = 0; status == 0 && i < (size_t)width * height; i++)
        to[i] = (uint8_t)(image.pixels[i] >> 8);
    vp8l_image_free(&image);
    return status;
}

/* Fills `to` with a byte for each pixel: how opaque it is. */
AGENT_API int32_t webp_read_alpha(const webp_t *webp, uint32_t width, uint32_t height, uint8_t *to)
{
    size_t n = (size_t)width * height;
    if (webp->alpha_nbytes < 1)
        return -ISTHMUS_EINVAL;
    uint32_t how = webp->alpha[0] & 3, filter = webp->alpha[0] >> 2 & 3;
    const uint8_t *bytes = webp->alpha + 1;
    size_t nbytes = webp->alpha_nbytes - 1;
    if (how > WEBP_ALPHA_LOSSLESS || (how == WEBP_ALPHA_PLAIN && nbytes < n))
        return -ISTHMUS_EINVAL;
    if (how == WEBP_ALPHA_PLAIN)
        memcpy(to, bytes, n);
    else
        AGENT_TRY(webp_read_greens(bytes, nbytes, width, height, to));
    for (uint32_t y = 0; y < height; y++)
        for (uint32_t x = 0; x < width; x++, to++)
            *to = (uint8_t)(*to + webp_guess(to, x, y, width, filter));
    return 0;
}

AGENT_API void webp_put(uint8_t *rgb, const uint8_t *colours, uint32_t alpha)
{
    for (uint32_t i = 0; i < 3; i++)
        rgb[i] = (uint8_t)((colours[i] * alpha + 255 * (255 - alpha) + 127) / 255);
}

/* ---------------------------------------------------------------------------------- colours */

/* A sample of colour between four, the nearest of which counts most. */
AGENT_API int32_t webp_chroma(const vp8_plane_t *plane, uint32_t x, uint32_t y, uint32_t width,
                              uint32_t height)
{
    uint32_t last_x = (width + 1) / 2 - 1, last_y = (height + 1) / 2 - 1;
    uint32_t x0 = x / 2, y0 = y / 2;
    uint32_t x1 = x & 1 ? x0 + (x0 < last_x) : x0 - (x0 > 0);
    uint32_t y1 = y & 1 ? y0 + (y0 < last_y) : y0 - (y0 > 0);
    const uint8_t *near = plane->first + (size_t)y0 * plane->row;
    const uint8_t *far = plane->first + (size_t)y1 * plane->row;
    return (9 * near[x0] + 3 * near[x1] + 3 * far[x0] + far[x1] + 8) >> 4;
}

/* BT.601 with samples of Y from 16 to 235, in 64ths. */
AGENT_API void webp_rgb(int32_t y, int32_t u, int32_t v, uint8_t *rgb)
{
    int32_t grey = y * 19077 >> 8;
    rgb[0] = vp8_u8((grey + (v * 26149 >> 8) - 14234) >> 6);
    rgb[1] = vp8_u8((grey - (u * 6419 >> 8) - (v * 13320 >> 8) + 8708) >> 6);
    rgb[2] = vp8_u8((grey + (u * 33050 >> 8) - 17685) >> 6);
}

AGENT_API void webp_paint_lossy(const vp8_t *vp8, const uint8_t *alpha, picture_t *picture)
{
    uint32_t width = vp8->width, height = vp8->height;
    uint8_t *rgb = picture->rgb, colours[3];
    for (uint32_t y = 0; y < height; y++)
        for (uint32_t x = 0; x < width; x++, rgb += 3) {
            webp_rgb(vp8->planes[0].first[(size_t)y * vp8->planes[0].row + x],
                     webp_chroma(&vp8->planes[1], x, y, width, height),
                     webp_chroma(&vp8->planes[2], x, y, width, height), colours);
            webp_put(rgb, colours, alpha ? alpha[(size_t)y * width + x] : 255);
        }
}

AGENT_API int32_t webp_paint(const webp_t *webp, const vp8_t *vp8, picture_t *picture)
{
    size_t nbytes = (size_t)vp8->width * vp8->height;
    uint8_t *alpha = webp->alpha ? pages_take(nbytes) : NULL;
    if (webp->alpha && !alpha)
        return -ISTHMUS_ENOMEM;
    int32_t status = alpha ? webp_read_alpha(webp, vp8->width, vp8->height, alpha) : 0;
    if (status == 0)
        status = picture_take(picture, vp8->width, vp8->height);
    if (status == 0)
        webp_paint_lossy(vp8, alpha, picture);
    pages_give(alpha, nbytes);
    return status;
}

/* ------------------------------------------------------------------------------------ files */

AGENT_API int32_t webp_decode_lossy(const webp_t *webp, picture_t *picture)
{
    static vp8_t vp8;
    int32_t status = vp8_decode(&vp8, webp->lossy, webp->lossy_nbytes);
    if (status == 0)
        status = webp_paint(webp, &vp8, picture);
    vp8_free(&vp8);
    return status;
}

AGENT_API int32_t webp_decode_lossless(const webp_t *webp, picture_t *picture)
{
    vp8l_image_t image = {0};
    int32_t status = vp8l_decode(webp->lossless, webp->lossless_nbytes, &image);
    if (status == 0)
        status = picture_take(picture, image.width, image.height);
    for (size_t i = 0; status == 0 && i < (size_t)image.width * image.height; i++) {
        uint32_t pixel = image.pixels[i];
        uint8_t colours[3] = {(uint8_t)(pixel >> 16), (uint8_t)(pixel >> 8), (uint8_t)pixel};
        webp_put(picture->rgb + 3 * i, colours, pixel >> 24);
    }
    vp8l_image_free(&image);
    return status;
}

AGENT_API int32_t webp_is(const uint8_t *bytes, size_t nbytes)
{
    return nbytes >= 12 && memcmp(bytes, "RIFF", 4) == 0 && memcmp(bytes + 8, "WEBP", 4) == 0;
}

/* Decodes a file into a picture, which must be empty; free it. */
AGENT_API int32_t webp_decode(const uint8_t *bytes, size_t nbytes, picture_t *picture)
{
    webp_t webp = {0};
    webp_find(&webp, bytes + 12, bytes + nbytes);
    if (!webp.lossy && !webp.lossless)
        return -ISTHMUS_EINVAL;
    AGENT_TRY(webp.lossy ? webp_decode_lossy(&webp, picture) : webp_decode_lossless(&webp, picture));
    return picture_turn_as_noted(picture, &webp.exif);
}

#endif
