/*
 * plugin: a stranger's code that a program runs within bounds: it counts the words of a text.
 *
 * It opens no model. Run it with --fuel, a number of instructions: a text that makes it run for
 * longer ends with an error, and nobody else waits. The message `loop` never ends by itself.
 */
#include "agent.h"

AGENT_EXPORT("on_message") int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    AGENT_TEXT_FREED agent_text_t text = AGENT_EMPTY;
    AGENT_TRY(agent_message(nbytes, &message));
    volatile int32_t loops = agent_equals(message, (uint32_t)nbytes, "loop");
    while (loops)
        continue;
    const char *at = message, *word;
    int64_t n_words = 0;
    while (agent_word(&at, &word))
        n_words++;
    AGENT_TRY(agent_text_append_int(&text, n_words));
    return agent_reply_text(&text);
}
