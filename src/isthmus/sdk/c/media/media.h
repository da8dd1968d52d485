/*
 * media.h: pictures and sounds out of files, and into sessions.
 *
 * A file is decoded here, in the sandbox: PNG, JPEG, WebP and WAV. The host's projector makes
 * embeddings of it in this guest's memory, and the session takes those. docs/abi.md, group media.
 */
#ifndef ISTHMUS_MEDIA_H
#define ISTHMUS_MEDIA_H

#include "../agent.h"
#include "jpeg.h"
#include "png.h"
#include "wav.h"
#include "webp.h"

#define MEDIA_NO_TOKEN (-1) /* stands in a session's tokens for a row of embeddings */

typedef struct {
    uint32_t kind; /* an isthmus_media_kind, or 0 for none */
    picture_t picture;
    sound_t sound;
} media_t;

#define MEDIA_FREED __attribute__((cleanup(media_free)))

AGENT_API void media_free(media_t *media)
{
    picture_free(&media->picture);
    sound_free(&media->sound);
    media->kind = 0;
}

/* Logs why a file was not decoded, so that whoever sent it reads more than an errno. */
AGENT_API int32_t media_refused_(const char *format, int32_t status)
{
    AGENT_TEXT_FREED agent_text_t said = {0};
    if (status >= 0)
        return status;
    agent_text_append_string(&said, "the ");
    agent_text_append_string(&said, format);
    AGENT_TRY(agent_text_append_string(
        &said, status == -ISTHMUS_ELIMIT    ? " file has more pixels or samples than are decoded here"
               : status == -ISTHMUS_ENOMEM  ? " file needs more memory than the guest may have"
               : status == -ISTHMUS_ENOTSUP ? " file is of a kind that is not decoded here"
                                            : " file is damaged or cut off"));
    AGENT_TRY(agent_log(ISTHMUS_LOG_ERROR, said.bytes));
    return status;
}

/*
 * Decodes a file into `media`, which must be empty. `rate` is that of sounds. -ISTHMUS_ENOTSUP for a
 * format that is not known, -ISTHMUS_EINVAL for a file that is damaged, -ISTHMUS_ELIMIT for one that
 * is too large.
 */
AGENT_API int32_t media_decode(const uint8_t *bytes, size_t nbytes, uint32_t rate, media_t *media)
{
    if (png_is(bytes, nbytes)) {
        media->kind = ISTHMUS_MEDIA_KIND_RGB;
        return media_refused_("PNG", png_decode(bytes, nbytes, &media->picture));
    }
    if (jpeg_is(bytes, nbytes)) {
        media->kind = ISTHMUS_MEDIA_KIND_RGB;
        return media_refused_("JPEG", jpeg_decode(bytes, nbytes, &media->picture));
    }
    if (webp_is(bytes, nbytes)) {
        media->kind = ISTHMUS_MEDIA_KIND_RGB;
        return media_refused_("WebP", webp_decode(bytes, nbytes, &media->picture));
    }
    if (wav_is(bytes, nbytes)) {
        media->kind = ISTHMUS_MEDIA_KIND_PCM;
        return media_refused_("WAV", wav_decode(bytes, nbytes, rate, &media->sound));
    }
    AGENT_TRY(agent_log(ISTHMUS_LOG_ERROR, "the file is none of PNG, JPEG, WebP and WAV"));
    return -ISTHMUS_ENOTSUP;
}

/* Appends rows of embeddings. On an error the session is as it was. */
AGENT_API int32_t agent_prefill_embeddings(agent_session_t *session, const float *rows,
                                           const isthmus_media_part_t *part,
                                           const int32_t *positions)
{
    if (part->n_rows > session->n_ctx - session->n_tokens)
        return -ISTHMUS_ECONTEXT;
    float *logits = agent_begin_pass_(session);
    AGENT_TRY(isthmus_prefill_embeddings(session->handle, rows, part->n_rows, part->width,
                                         positions, part->flags));
    session->logits = logits;
    for (uint32_t i = 0; i < part->n_rows; i++)
        session->tokens[session->n_tokens++] = MEDIA_NO_TOKEN;
    return 0;
}

/* Has the host give a part of an open medium, and appends it. */
AGENT_API int32_t media_append_part_(agent_session_t *session, int32_t medium, uint32_t number,
                                     const isthmus_media_part_t *part)
{
    size_t n_values = (size_t)part->n_rows * part->width, nbytes = n_values * sizeof(float);
    size_t n_positions = part->flags & ISTHMUS_SPAN_PLACED ? (size_t)3 * part->n_rows : 0;
    if (part->n_rows > session->n_ctx - session->n_tokens)
        return -ISTHMUS_ECONTEXT; /* before it is computed */
    AGENT_FREED int32_t *positions = malloc((n_positions + 1) * sizeof *positions);
    void *values = pages_take(nbytes);
    int32_t status = positions && values ? 0 : -ISTHMUS_ENOMEM;
    if (status == 0)
        status = isthmus_media_embed(medium, number, values, (uint32_t)n_values, positions);
    if (status > 0)
        status = part->kind == ISTHMUS_PART_KIND_TOKENS
                     ? agent_prefill(session, values, part->n_rows)
                     : agent_prefill_embeddings(session, values, part, positions);
    pages_give(values, nbytes);
    return status;
}

/* Has the host open what was decoded. Returns a medium, to be closed with isthmus_media_close. */
AGENT_API int32_t media_open_(int32_t model, const media_t *media)
{
    const picture_t *picture = &media->picture;
    if (media->kind == ISTHMUS_MEDIA_KIND_RGB)
        return isthmus_media_open(model, media->kind, picture->rgb, picture->width,
                                  picture->height);
    return isthmus_media_open(model, media->kind, media->sound.samples, media->sound.n, 1);
}

/* Appends what was decoded to a session whose model takes it. On an error the session may hold some
 * parts of it: truncate it. */
AGENT_API int32_t agent_append_media(agent_session_t *session, const media_t *media)
{
    int32_t medium, status = 0, n_parts = 1;
    AGENT_SET(medium, media_open_(session->model, media));
    for (uint32_t i = 0; status >= 0 && (int32_t)i < n_parts; i++) {
        isthmus_media_part_t part;
        status = n_parts = isthmus_media_info(medium, i, &part);
        if (status >= 0)
            status = media_append_part_(session, medium, i, &part);
    }
    isthmus_media_close(medium);
    return status < 0 ? status : 0;
}

/* Rows that agent_append_media would append; nothing is computed of them. */
AGENT_API int32_t agent_count_media(int32_t model, const media_t *media)
{
    int32_t medium, status = 0, n_parts = 1, n_rows = 0;
    AGENT_SET(medium, media_open_(model, media));
    for (uint32_t i = 0; status >= 0 && (int32_t)i < n_parts; i++) {
        isthmus_media_part_t part;
        status = n_parts = isthmus_media_info(medium, i, &part);
        if (status >= 0)
            n_rows += (int32_t)part.n_rows;
    }
    isthmus_media_close(medium);
    return status < 0 ? status : n_rows;
}

/* Decodes a file for a model. */
AGENT_API int32_t media_decode_for_(int32_t model, const void *bytes, size_t nbytes,
                                    media_t *media)
{
    int32_t rate = wav_is(bytes, nbytes) ? isthmus_media_rate(model) : 0;
    AGENT_TRY(rate);
    return media_decode(bytes, nbytes, (uint32_t)rate, media);
}

/* Decodes a file and has the host open it. Returns a medium, to be closed with isthmus_media_close;
 * embed takes it among tokens, as the id -2 - medium. */
AGENT_API int32_t agent_open_file(int32_t model, const void *bytes, size_t nbytes)
{
    MEDIA_FREED media_t media = {0};
    AGENT_TRY(media_decode_for_(model, bytes, nbytes, &media));
    return media_open_(model, &media);
}

/* Decodes a file and appends it. */
AGENT_API int32_t agent_append_file(agent_session_t *session, const void *bytes, size_t nbytes)
{
    MEDIA_FREED media_t media = {0};
    AGENT_TRY(media_decode_for_(session->model, bytes, nbytes, &media));
    return agent_append_media(session, &media);
}

/* Rows that agent_append_file would append. */
AGENT_API int32_t agent_count_file(int32_t model, const void *bytes, size_t nbytes)
{
    MEDIA_FREED media_t media = {0};
    AGENT_TRY(media_decode_for_(model, bytes, nbytes, &media));
    return agent_count_media(model, &media);
}

#endif
