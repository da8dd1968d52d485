/*
 * decode: what is in a picture or a sound, for whoever does not trust the file.
 *
 * A message is a file: PNG, JPEG, WebP or WAV. The reply is a line, `rgb WIDTH HEIGHT` or `pcm SAMPLES`, and
 * after it three bytes for each pixel, or a float of 32 bits for each sample.
 *
 * Option: rate=16000, samples of a second.
 */
#include "media/media.h"

static int32_t reply(const media_t *media)
{
    AGENT_TEXT_FREED agent_text_t text = {0};
    int32_t is_picture = media->kind == ISTHMUS_MEDIA_KIND_RGB;
    const picture_t *picture = &media->picture;
    size_t nbytes = is_picture ? picture_nbytes(picture) : media->sound.n * sizeof(float);
    agent_text_append_string(&text, is_picture ? "rgb " : "pcm ");
    agent_text_append_int(&text, is_picture ? picture->width : media->sound.n);
    if (is_picture) {
        agent_text_append_string(&text, " ");
        agent_text_append_int(&text, picture->height);
    }
    agent_text_append_string(&text, "\n");
    const void *bytes = is_picture ? (const void *)picture->rgb : media->sound.samples;
    AGENT_TRY(agent_text_append(&text, bytes, (uint32_t)nbytes));
    return isthmus_reply(text.bytes, text.nbytes);
}

__attribute__((export_name("on_message"))) int32_t on_message(int32_t nbytes)
{
    MEDIA_FREED media_t media = {0};
    AGENT_FREED char *message = NULL;
    int64_t rate = 16000;
    AGENT_TRY(agent_option_int("rate", 1000, 192000, &rate));
    AGENT_TRY(agent_message(nbytes, &message));
    AGENT_TRY(media_decode((const uint8_t *)message, (size_t)nbytes, (uint32_t)rate, &media));
    return reply(&media);
}
