/*
 * The one session of the guest, and how much of it the next prompt may have.
 *
 * The session keeps the tokens that a prompt has in common with the one before, as far as every bit
 * of the answer stays the same whatever was there before. How a prompt is cut into chunks changes
 * bits; so it is prefilled in blocks of BLOCK, counted from its beginning, and only whole blocks
 * that were prefilled are kept. Where the host knows that the cut changes nothing in chunks of up
 * to SMALL tokens, it says with fine=N that the first N tokens are to be prefilled in those: they
 * are kept token by token. Beyond that small chunks would be slower.
 *
 * A prompt with files is kept up to the end of the last file that both prompts have at the same
 * place, however the tokens before it were cut: they were cut in the same way. The tokens after it
 * are prefilled in blocks that are counted from there.
 */
#ifndef COMPLETE_SESSION_H
#define COMPLETE_SESSION_H

#include "media/files.h"

#define BLOCK 128
#define SMALL 63

static agent_session_t session;
static agent_files_t files; /* those of the prompt */
static uint32_t n_prefilled; /* rows at the beginning of the session that may be kept */
static uint32_t n_fine;      /* tokens at the beginning of a prompt, prefilled in small chunks */

#endif
