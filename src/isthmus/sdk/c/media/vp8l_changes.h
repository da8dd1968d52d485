/*
 * vp8l_changes.h: what was done to the pixels of lossless WebP before they were written, and is undone.
 * Only for vp8l.h.
 */
#ifndef ISTHMUS_VP8L_CHANGES_H
#define ISTHMUS_VP8L_CHANGES_H

/* Sums, bytes by themselves. */
AGENT_API uint32_t vp8l_add(uint32_t a, uint32_t b)
{
    uint32_t even = (a & 0xff00ff00) + (b & 0xff00ff00), odd = (a & 0x00ff00ff) + (b & 0x00ff00ff);
    return (even & 0xff00ff00) | (odd & 0x00ff00ff);
}

AGENT_API uint32_t vp8l_mean(uint32_t a, uint32_t b)
{
    return (((a ^ b) & 0xfefefefe) >> 1) + (a & b);
}

AGENT_API int32_t vp8l_byte(uint32_t pixel, uint32_t shift)
{
    return (int32_t)(pixel >> shift & 0xff);
}

AGENT_API int32_t vp8l_difference(uint32_t a, uint32_t b)
{
    int32_t sum = 0;
    for (uint32_t shift = 0; shift < 32; shift += 8) {
        int32_t difference = vp8l_byte(a, shift) - vp8l_byte(b, shift);
        sum += difference < 0 ? -difference : difference;
    }
    return sum;
}

/* a + (b - c), or half of the difference, each byte within its bounds. */
AGENT_API uint32_t vp8l_go_on(uint32_t a, uint32_t b, uint32_t c, int32_t divisor)
{
    uint32_t pixel = 0;
    for (uint32_t shift = 0; shift < 32; shift += 8) {
        int32_t difference = vp8l_byte(b, shift) - vp8l_byte(c, shift);
        int32_t value = vp8l_byte(a, shift) + difference / divisor;
        pixel |= (uint32_t)(value < 0 ? 0 : value > 255 ? 255 : value) << shift;
    }
    return pixel;
}

/* What a pixel is likely to be, by the ones before it. */
AGENT_API uint32_t vp8l_predicted(uint32_t mode, const uint32_t *at, uint32_t width)
{
    const uint32_t *up = at - width;
    uint32_t left = at[-1], above = up[0], corner = up[-1], right = up[1];
    switch (mode) {
    case 1: return left;
    case 2: return above;
    case 3: return right;
    case 4: return corner;
    case 5: return vp8l_mean(vp8l_mean(left, right), above);
    case 6: return vp8l_mean(left, corner);
    case 7: return vp8l_mean(left, above);
    case 8: return vp8l_mean(corner, above);
    case 9: return vp8l_mean(above, right);
    case 10: return vp8l_mean(vp8l_mean(left, corner), vp8l_mean(above, right));
    case 11: return vp8l_difference(above, corner) < vp8l_difference(left, corner) ? left : above;
    case 12: return vp8l_go_on(left, above, corner, 1);
    case 13: return vp8l_go_on(vp8l_mean(left, above), vp8l_mean(left, above), corner, 2);
    default: return VP8L_OPAQUE;
    }
}

AGENT_API uint32_t vp8l_said(const vp8l_image_t *image, uint32_t x, uint32_t y)
{
    return image->pixels[(size_t)(y >> image->bits) * image->width + (x >> image->bits)];
}

AGENT_API void vp8l_undo_predicted(const vp8l_change_t *change, uint32_t *pixels, uint32_t height)
{
    for (uint32_t y = 0; y < height; y++)
        for (uint32_t x = 0; x < change->width; x++) {
            uint32_t *at = pixels + (size_t)y * change->width + x, guess = VP8L_OPAQUE;
            if (x && y)
                guess = vp8l_predicted(vp8l_said(&change->image, x, y) >> 8 & 15, at, change->width);
            else if (x || y)
                guess = x ? at[-1] : *(at - change->width);
            *at = vp8l_add(*at, guess);
        }
}

/* What one colour adds to another: both are signed, and 32 stands for all of it. */
AGENT_API int32_t vp8l_crossing(uint32_t factor, uint32_t colour)
{
    return (int8_t)factor * (int8_t)colour >> 5;
}

AGENT_API void vp8l_undo_crossed(const vp8l_change_t *change, uint32_t *pixels, uint32_t height)
{
    for (uint32_t y = 0; y < height; y++)
        for (uint32_t x = 0; x < change->width; x++) {
            uint32_t *at = pixels + (size_t)y * change->width + x, pixel = *at, green = pixel >> 8;
            uint32_t factors = vp8l_said(&change->image, x, y);
            uint32_t red = (pixel >> 16) + (uint32_t)vp8l_crossing(factors, green);
            uint32_t blue = pixel + (uint32_t)vp8l_crossing(factors >> 8, green)
                + (uint32_t)vp8l_crossing(factors >> 16, red);
            *at = (pixel & 0xff00ff00) | (red & 0xff) << 16 | (blue & 0xff);
        }
}

AGENT_API void vp8l_undo_without_green(const vp8l_change_t *change, uint32_t *pixels,
                                       uint32_t height)
{
    for (size_t i = 0; i < (size_t)change->width * height; i++) {
        uint32_t green = pixels[i] >> 8 & 0xff;
        pixels[i] = (pixels[i] & 0xff00ff00) | (vp8l_add(pixels[i], green << 16 | green) & 0xff00ff);
    }
}

/* Puts colours where their numbers were, from the end on: rows become longer. */
AGENT_API void vp8l_undo_indexed(const vp8l_change_t *change, uint32_t *pixels, uint32_t height)
{
    uint32_t colours[256] = {0}, colour = 0, bits = change->image.bits, each = 8 >> bits;
    size_t row = ((size_t)change->width + (1u << bits) - 1) >> bits;
    for (uint32_t i = 0; i < change->image.width; i++)
        colours[i] = colour = vp8l_add(colour, change->image.pixels[i]);
    for (uint32_t y = height; y--;)
        for (uint32_t x = change->width; x--;) {
            uint32_t packed = pixels[y * row + (x >> bits)] >> 8 & 0xff;
            uint32_t number = packed >> (x & ((1u << bits) - 1)) * each & ((1u << each) - 1);
            pixels[(size_t)y * change->width + x] = colours[number];
        }
}

AGENT_API void vp8l_undo(const vp8l_change_t *change, uint32_t *pixels, uint32_t height)
{
    if (change->kind == VP8L_PREDICTED)
        vp8l_undo_predicted(change, pixels, height);
    else if (change->kind == VP8L_CROSSED)
        vp8l_undo_crossed(change, pixels, height);
    else if (change->kind == VP8L_WITHOUT_GREEN)
        vp8l_undo_without_green(change, pixels, height);
    else
        vp8l_undo_indexed(change, pixels, height);
}

#endif
