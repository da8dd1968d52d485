/*
 * wav.h: RIFF WAVE with whole numbers of 8 to 32 bits or floats, any rate and number of channels.
 */
#ifndef ISTHMUS_WAV_H
#define ISTHMUS_WAV_H

#include "../agent.h"

#define WAV_MOST_SAMPLES (1u << 28)

typedef struct {
    float *samples; /* of one channel, from pages_take; NULL if there are none */
    uint32_t n;
} sound_t;

#define SOUND_FREED __attribute__((cleanup(sound_free)))

AGENT_API void sound_free(sound_t *sound)
{
    if (sound->samples)
        pages_give(sound->samples, sound->n * sizeof *sound->samples);
    *sound = (sound_t){0};
}

typedef struct {
    const uint8_t *data;
    uint32_t n_frames, frame_nbytes, channels, bits, rate, is_float;
} wav_t;

AGENT_API uint32_t wav_u32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16
           | (uint32_t)bytes[3] << 24;
}

AGENT_API uint32_t wav_u16(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8;
}

AGENT_API int32_t wav_format(wav_t *wav, const uint8_t *bytes, uint32_t nbytes)
{
    if (nbytes < 16)
        return -ISTHMUS_EINVAL;
    uint32_t kind = wav_u16(bytes);
    if (kind == 0xfffe && nbytes >= 26)
        kind = wav_u16(bytes + 24);
    wav->channels = wav_u16(bytes + 2), wav->rate = wav_u32(bytes + 4);
    wav->frame_nbytes = wav_u16(bytes + 12), wav->bits = wav_u16(bytes + 14);
    wav->is_float = kind == 3;
    if (kind != 1 && kind != 3)
        return -ISTHMUS_ENOTSUP;
    int32_t known = kind == 3 ? wav->bits == 32 : wav->bits && wav->bits <= 32 && wav->bits % 8 == 0;
    if (!known || !wav->channels || wav->channels > 64 || wav->rate < 1000 || wav->rate > 768000
        || wav->frame_nbytes != wav->channels * (wav->bits / 8))
        return -ISTHMUS_EINVAL;
    return 0;
}

AGENT_API int32_t wav_chunks(wav_t *wav, const uint8_t *at, const uint8_t *end)
{
    while (end - at >= 8) {
        uint32_t nbytes = wav_u32(at + 4), left = (uint32_t)(end - at) - 8;
        const uint8_t *bytes = at + 8;
        if (memcmp(at, "data", 4) == 0 && wav->channels) {
            wav->data = bytes; /* those who stream write no length */
            wav->n_frames = (nbytes < left ? nbytes : left) / wav->frame_nbytes;
            return wav->n_frames ? 0 : -ISTHMUS_EINVAL;
        }
        if (nbytes > left)
            return -ISTHMUS_EINVAL;
        if (memcmp(at, "fmt ", 4) == 0)
            AGENT_TRY(wav_format(wav, bytes, nbytes));
        at = bytes + nbytes + (nbytes % 2 && nbytes < left);
    }
    return -ISTHMUS_EINVAL;
}

/* The mean of a frame's channels, from -1 to 1. */
AGENT_API float wav_frame(const wav_t *wav, uint32_t number)
{
    const uint8_t *at = wav->data + (size_t)number * wav->frame_nbytes;
    float sum = 0.0f;
    for (uint32_t i = 0; i < wav->channels; i++, at += wav->bits / 8) {
        uint32_t word = 0;
        for (uint32_t j = 0; j < wav->bits / 8; j++)
            word |= (uint32_t)at[j] << (32 - wav->bits + 8 * j);
        float value;
        if (wav->is_float)
            memcpy(&value, &word, sizeof value);
        else
            value = (float)(int32_t)(wav->bits == 8 ? word ^ 0x80000000u : word) / 2147483648.0f;
        sum += value >= -1.0f && value <= 1.0f ? value : value > 1.0f ? 1.0f : value < -1.0f ? -1.0f : 0.0f;
    }
    return sum / (float)wav->channels;
}

AGENT_API int32_t wav_is(const uint8_t *bytes, size_t nbytes)
{
    return nbytes > 12 && memcmp(bytes, "RIFF", 4) == 0 && memcmp(bytes + 8, "WAVE", 4) == 0;
}

/*
 * Decodes a file into samples at `rate`, which must be empty; free them. Where there are more samples
 * in the file, each is the mean of those that it stands for; otherwise it lies between two.
 */
AGENT_API int32_t wav_decode(const uint8_t *bytes, size_t nbytes, uint32_t rate, sound_t *sound)
{
    wav_t wav = {0};
    AGENT_TRY(wav_chunks(&wav, bytes + 12, bytes + nbytes));
    uint64_t n = (uint64_t)wav.n_frames * rate / wav.rate;
    if (n == 0)
        return -ISTHMUS_EINVAL;
    if (n > WAV_MOST_SAMPLES)
        return -ISTHMUS_ELIMIT;
    sound->samples = pages_take((size_t)n * sizeof *sound->samples);
    if (!sound->samples)
        return -ISTHMUS_ENOMEM;
    sound->n = (uint32_t)n;
    for (uint32_t i = 0; i < sound->n; i++) {
        uint64_t from = (uint64_t)i * wav.rate, to = from + wav.rate;
        uint32_t first = (uint32_t)(from / rate), last = (uint32_t)((to - 1) / rate);
        float sum = wav_frame(&wav, first);
        if (wav.rate > rate) {
            for (uint32_t j = first + 1; j < last; j++)
                sum += wav_frame(&wav, j);
            sum /= (float)(last > first ? last - first : 1);
        } else if (first + 1 < wav.n_frames) {
            float part = (float)(from % rate) / (float)rate;
            sum += part * (wav_frame(&wav, first + 1) - sum);
        }
        sound->samples[i] = sum;
    }
    return 0;
}

#endif
