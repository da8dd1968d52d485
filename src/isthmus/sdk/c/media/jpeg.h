/*
 * jpeg.h: JPEG (ITU-T T.81) with Huffman codes, 8 bits, in one pass over the picture or in many
 * (baseline, extended, progressive); grey, YCbCr and RGB. Not: arithmetic codes, CMYK, lossless.
 *
 * Coefficients of the whole picture are kept until all scans are read. A file that ends early gives
 * what was there. Nothing that a file says is used as an index before it was looked at.
 */
#ifndef ISTHMUS_JPEG_H
#define ISTHMUS_JPEG_H

#include "jpeg_bits.h"

/* ---------------------------------------------------------------------------------- headers */

AGENT_API int32_t jpeg_read_codes(jpeg_t *it, const uint8_t *bytes, uint32_t nbytes)
{
    while (nbytes >= 17) {
        uint32_t kind = bytes[0] >> 4, number = bytes[0] & 15, n = 0, place = 0;
        int32_t code = 0;
        for (uint32_t i = 1; i <= 16; i++)
            n += bytes[i];
        if (kind > 1 || number > 3 || n > 256 || n > nbytes - 17)
            return -ISTHMUS_EINVAL;
        jpeg_codes_t *codes = &it->codes[kind][number];
        *codes = (jpeg_codes_t){.is_there = 1};
        memcpy(codes->values, bytes + 17, n);
        for (uint32_t length = 1; length <= 16; length++, code <<= 1) {
            codes->first_value[length] = (int32_t)place - code;
            for (uint32_t i = 0; i < bytes[length]; i++, code++, place++) {
                if (code >= 1 << length)
                    return -ISTHMUS_EINVAL;
                uint32_t entry = (uint32_t)codes->values[place] << 4 | length;
                uint32_t many = length <= JPEG_FAST ? 1u << (JPEG_FAST - length) : 0;
                for (uint32_t j = 0; j < many; j++)
                    codes->fast[((uint32_t)code << (JPEG_FAST - length)) + j] = (uint16_t)entry;
            }
            codes->last[length] = bytes[length] ? code - 1 : -1;
        }
        bytes += 17 + n, nbytes -= 17 + n;
    }
    return 0;
}

AGENT_API int32_t jpeg_read_quantisation(jpeg_t *it, const uint8_t *bytes, uint32_t nbytes)
{
    while (nbytes) {
        uint32_t wide = bytes[0] >> 4, number = bytes[0] & 15, size = wide ? 129 : 65;
        if (wide > 1 || number > 3 || nbytes < size)
            return -ISTHMUS_EINVAL;
        for (uint32_t i = 0; i < 64; i++)
            it->quantisation[number][JPEG_ZIGZAG[i]] =
                wide ? (uint16_t)(bytes[1 + 2 * i] << 8 | bytes[2 + 2 * i]) : bytes[1 + i];
        bytes += size, nbytes -= size;
    }
    return 0;
}

AGENT_API size_t jpeg_n_samples(const jpeg_plane_t *plane)
{
    return (size_t)plane->row * plane->n_rows * 64;
}

AGENT_API int32_t jpeg_take_plane(jpeg_t *it, jpeg_plane_t *plane)
{
    uint32_t width = (it->width * plane->h + it->most_h - 1) / it->most_h;
    uint32_t height = (it->height * plane->v + it->most_v - 1) / it->most_v;
    plane->n_x = (width + 7) / 8, plane->n_y = (height + 7) / 8;
    plane->row = it->mcu_x * plane->h, plane->n_rows = it->mcu_y * plane->v;
    size_t n = jpeg_n_samples(plane);
    plane->coefficients = pages_take(2 * n);
    plane->samples = pages_take(n);
    if (!plane->coefficients || !plane->samples)
        return -ISTHMUS_ENOMEM;
    memset(plane->coefficients, 0, 2 * n);
    return 0;
}

AGENT_API int32_t jpeg_read_frame(jpeg_t *it, const uint8_t *bytes, uint32_t nbytes,
                                  uint32_t progressive)
{
    if (it->n_planes || nbytes < 6 || bytes[0] != 8)
        return -ISTHMUS_EINVAL;
    it->progressive = progressive;
    it->height = (uint32_t)bytes[1] << 8 | bytes[2], it->width = (uint32_t)bytes[3] << 8 | bytes[4];
    uint32_t n = bytes[5];
    if (n == 4)
        return -ISTHMUS_ENOTSUP;
    if ((n != 1 && n != 3) || nbytes < 6 + 3 * n || !it->width || !it->height)
        return -ISTHMUS_EINVAL;
    if (it->width > PICTURE_MOST_SIDE || it->height > PICTURE_MOST_SIDE
        || it->width * it->height > PICTURE_MOST_PIXELS)
        return -ISTHMUS_ELIMIT;
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *said = bytes + 6 + 3 * i;
        jpeg_plane_t *plane = &it->planes[i];
        plane->id = said[0], plane->h = said[1] >> 4, plane->v = said[1] & 15;
        plane->quantisation = said[2];
        if (!plane->h || !plane->v || plane->h > 4 || plane->v > 4 || plane->quantisation > 3)
            return -ISTHMUS_EINVAL;
        if (n == 1)
            plane->h = plane->v = 1;
        it->most_h = plane->h > it->most_h ? plane->h : it->most_h;
        it->most_v = plane->v > it->most_v ? plane->v : it->most_v;
    }
    it->mcu_x = (it->width + 8 * it->most_h - 1) / (8 * it->most_h);
    it->mcu_y = (it->height + 8 * it->most_v - 1) / (8 * it->most_v);
    it->is_rgb = n == 3 && bytes[6] == 'R' && bytes[9] == 'G' && bytes[12] == 'B';
    it->n_planes = n;
    for (uint32_t i = 0; i < n; i++)
        AGENT_TRY(jpeg_take_plane(it, &it->planes[i]));
    return 0;
}

/* ------------------------------------------------------------------------------------ scans */

AGENT_API int32_t jpeg_first_dc(jpeg_t *it, jpeg_plane_t *plane, int16_t *block)
{
    int32_t n = jpeg_value(it, &it->codes[0][plane->dc]);
    if (n < 0 || n > 15)
        return -ISTHMUS_EINVAL;
    plane->predicted = (int16_t)(plane->predicted + jpeg_number(it, (uint32_t)n));
    block[0] = (int16_t)(plane->predicted * (1 << it->low));
    return 0;
}

/* Coefficients of a block that was not begun before. */
AGENT_API int32_t jpeg_first_ac(jpeg_t *it, const jpeg_plane_t *plane, int16_t *block)
{
    uint32_t from = it->spectral_from ? it->spectral_from : 1;
    if (it->run) {
        it->run--;
        return 0;
    }
    for (uint32_t k = from; k <= it->spectral_to; k++) {
        int32_t value = jpeg_value(it, &it->codes[1][plane->ac]);
        if (value < 0)
            return -ISTHMUS_EINVAL;
        uint32_t zeros = (uint32_t)value >> 4, n = value & 15;
        if (n == 0 && zeros < 15) { /* the rest of this block, and of others, is zero */
            it->run = it->progressive ? (1u << zeros) - 1 + jpeg_bits(it, zeros) : 0;
            return 0;
        }
        k += zeros;
        if (n && k <= it->spectral_to)
            block[JPEG_ZIGZAG[k]] = (int16_t)(jpeg_number(it, n) * (1 << it->low));
    }
    return 0;
}

/* One more bit of a coefficient that is not zero. */
AGENT_API void jpeg_refine(jpeg_t *it, int16_t *coefficient)
{
    int32_t bit = 1 << it->low;
    if (jpeg_bits(it, 1) && !(*coefficient & bit))
        *coefficient = (int16_t)(*coefficient + (*coefficient > 0 ? bit : -bit));
}

/* One more bit of a block's coefficients. */
AGENT_API int32_t jpeg_next_ac(jpeg_t *it, const jpeg_plane_t *plane, int16_t *block)
{
    uint32_t k = it->spectral_from;
    while (!it->run && k <= it->spectral_to) {
        int32_t value = jpeg_value(it, &it->codes[1][plane->ac]), fresh = 0;
        if (value < 0)
            return -ISTHMUS_EINVAL;
        uint32_t zeros = (uint32_t)value >> 4, n = value & 15;
        if (n == 0 && zeros < 15) {
            it->run = (1u << zeros) + jpeg_bits(it, zeros);
            break;
        }
        if (n)
            fresh = jpeg_bits(it, 1) ? 1 << it->low : -(1 << it->low);
        for (; k <= it->spectral_to; k++) {
            int16_t *coefficient = &block[JPEG_ZIGZAG[k]];
            if (*coefficient) {
                jpeg_refine(it, coefficient);
            } else if (zeros-- == 0) {
                *coefficient = (int16_t)fresh;
                k++;
                break;
            }
        }
    }
    if (!it->run)
        return 0;
    for (it->run--; k <= it->spectral_to; k++)
        if (block[JPEG_ZIGZAG[k]])
            jpeg_refine(it, &block[JPEG_ZIGZAG[k]]);
    return 0;
}

AGENT_API int32_t jpeg_block(jpeg_t *it, jpeg_plane_t *plane, uint32_t x, uint32_t y)
{
    int16_t *block = plane->coefficients + 64 * ((size_t)y * plane->row + x);
    if (it->spectral_from == 0 && it->high == 0)
        AGENT_TRY(jpeg_first_dc(it, plane, block));
    if (it->spectral_from == 0 && it->high != 0 && jpeg_bits(it, 1))
        block[0] = (int16_t)(block[0] | 1 << it->low);
    if (it->spectral_to == 0)
        return 0;
    return it->high ? jpeg_next_ac(it, plane, block) : jpeg_first_ac(it, plane, block);
}

/* Begins anew after a restart marker, if one comes. */
AGENT_API void jpeg_restart(jpeg_t *it)
{
    it->bits = it->n_bits = it->run = it->ended = it->padded = 0;
    for (uint32_t i = 0; i < it->n_planes; i++)
        it->planes[i].predicted = 0;
    if (it->end - it->at >= 2 && it->at[0] == 0xff && (it->at[1] & 0xf8) == 0xd0)
        it->at += 2;
}

/* All blocks of a scan, of one plane or of several in turns. */
AGENT_API int32_t jpeg_scan(jpeg_t *it, jpeg_plane_t *const *planes, uint32_t n)
{
    uint32_t n_x = n == 1 ? planes[0]->n_x : it->mcu_x, n_y = n == 1 ? planes[0]->n_y : it->mcu_y;
    jpeg_restart(it);
    for (uint32_t i = 0; i < n_x * n_y; i++) {
        uint32_t x = i % n_x, y = i / n_x;
        if (it->restart && i && i % it->restart == 0)
            jpeg_restart(it);
        if (it->n_bits < it->padded)
            return 0; /* the file is cut off: the rest stays as it is */
        if (n == 1) {
            AGENT_TRY(jpeg_block(it, planes[0], x, y));
            continue;
        }
        for (uint32_t p = 0; p < n; p++)
            for (uint32_t j = 0; j < planes[p]->h * planes[p]->v; j++)
                AGENT_TRY(jpeg_block(it, planes[p], x * planes[p]->h + j % planes[p]->h,
                                     y * planes[p]->v + j / planes[p]->h));
    }
    return 0;
}

AGENT_API int32_t jpeg_read_scan(jpeg_t *it, const uint8_t *bytes, uint32_t nbytes)
{
    jpeg_plane_t *planes[JPEG_MOST_PLANES];
    uint32_t n = nbytes ? bytes[0] : 0;
    if (!it->n_planes || n < 1 || n > it->n_planes || nbytes < 4 + 2 * n)
        return -ISTHMUS_EINVAL;
    if (++it->n_scans > JPEG_MOST_SCANS)
        return -ISTHMUS_ELIMIT;
    const uint8_t *rest = bytes + 1 + 2 * n;
    it->spectral_from = rest[0], it->spectral_to = rest[1];
    it->high = rest[2] >> 4, it->low = rest[2] & 15;
    if (!it->progressive)
        it->spectral_from = it->high = it->low = 0, it->spectral_to = 63;
    if (it->spectral_from > it->spectral_to || it->spectral_to > 63 || it->low > 13
        || (it->spectral_from && n > 1) || (it->progressive && !it->spectral_from && it->spectral_to))
        return -ISTHMUS_EINVAL;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t p = 0, dc = bytes[2 + 2 * i] >> 4, ac = bytes[2 + 2 * i] & 15;
        while (p < it->n_planes && it->planes[p].id != bytes[1 + 2 * i])
            p++;
        if (p == it->n_planes || dc > 3 || ac > 3)
            return -ISTHMUS_EINVAL;
        planes[i] = &it->planes[p];
        planes[i]->dc = dc, planes[i]->ac = ac;
        int32_t wants_dc = !it->spectral_from && !it->high, wants_ac = it->spectral_to > 0;
        if ((wants_dc && !it->codes[0][dc].is_there) || (wants_ac && !it->codes[1][ac].is_there))
            return -ISTHMUS_EINVAL;
    }
    return jpeg_scan(it, planes, n);
}

#include "jpeg_picture.h"

/* Goes from marker to marker until the picture ends. */
AGENT_API int32_t jpeg_segments(jpeg_t *it)
{
    while (it->end - it->at >= 4) {
        if (it->at[0] != 0xff || it->at[1] == 0xff || it->at[1] == 0 || it->at[1] == 1) {
            it->at++;
            continue;
        }
        uint32_t marker = it->at[1], nbytes = (uint32_t)it->at[2] << 8 | it->at[3];
        const uint8_t *bytes = it->at + 4;
        if ((marker & 0xf8) == 0xd0 || marker == 0xd8) {
            it->at += 2;
            continue;
        }
        if (marker == 0xd9)
            return 0;
        if (nbytes < 2 || nbytes - 2 > (size_t)(it->end - bytes))
            return -ISTHMUS_EINVAL;
        it->at = bytes + nbytes - 2, nbytes -= 2;
        if (marker == 0xc4)
            AGENT_TRY(jpeg_read_codes(it, bytes, nbytes));
        else if (marker == 0xdb)
            AGENT_TRY(jpeg_read_quantisation(it, bytes, nbytes));
        else if (marker == 0xdd && nbytes >= 2)
            it->restart = (uint32_t)bytes[0] << 8 | bytes[1];
        else if (marker == 0xee && nbytes >= 12 && memcmp(bytes, "Adobe", 5) == 0)
            it->adobe = 1 + bytes[11];
        else if (marker == 0xe1 && !it->exif.bytes && nbytes >= 6 && memcmp(bytes, "Exif\0\0", 6) == 0)
            it->exif = exif_skip_name(bytes, nbytes);
        else if (marker == 0xda)
            AGENT_TRY(jpeg_read_scan(it, bytes, nbytes));
        else if (marker >= 0xc0 && marker <= 0xc2)
            AGENT_TRY(jpeg_read_frame(it, bytes, nbytes, marker == 0xc2));
        else if (marker >= 0xc3 && marker <= 0xcf && marker != 0xc8 && marker != 0xcc)
            return -ISTHMUS_ENOTSUP;
    }
    return 0;
}

AGENT_API int32_t jpeg_is(const uint8_t *bytes, size_t nbytes)
{
    return nbytes > 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff;
}

/* Decodes a file into a picture, which must be empty; free it. */
AGENT_API int32_t jpeg_decode(const uint8_t *bytes, size_t nbytes, picture_t *picture)
{
    static jpeg_t jpeg;
    jpeg = (jpeg_t){.at = bytes, .end = bytes + nbytes};
    int32_t status = jpeg_segments(&jpeg);
    if (status == 0 && !jpeg.n_planes)
        status = -ISTHMUS_EINVAL;
    if (status == 0)
        status = picture_take(picture, jpeg.width, jpeg.height);
    if (status == 0)
        jpeg_paint(&jpeg, picture);
    for (uint32_t i = 0; i < JPEG_MOST_PLANES; i++) {
        pages_give(jpeg.planes[i].coefficients, 2 * jpeg_n_samples(&jpeg.planes[i]));
        pages_give(jpeg.planes[i].samples, jpeg_n_samples(&jpeg.planes[i]));
    }
    return status < 0 ? status : picture_turn_as_noted(picture, &jpeg.exif);
}

#endif
