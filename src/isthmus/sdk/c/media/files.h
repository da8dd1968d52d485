/*
 * files.h: the files of a prompt, and where a session holds them.
 *
 * A prompt is a list of ids: token ids, and -2 - i for file number i. A file takes one id of a prompt
 * and rows of a session. Two prompts have a file in common if it is held where the second has it.
 */
#ifndef ISTHMUS_FILES_H
#define ISTHMUS_FILES_H

#include "media.h"

typedef struct {
    uint8_t *bytes; /* from malloc */
    uint32_t nbytes;
    uint32_t row, n_rows; /* where the session holds it; no rows if it does not */
} agent_file_t;

typedef struct {
    agent_file_t *each; /* from malloc */
    uint32_t n;
} agent_files_t;

/* How much of a prompt a session holds: ids of the prompt, and the rows that they take. */
typedef struct {
    uint32_t n_ids, n_rows;
    uint32_t run_ids, run_rows; /* those up to the end of the last file among them */
} agent_common_t;

/* Copies a file to the end of the list. */
AGENT_API int32_t agent_files_add(agent_files_t *files, const void *bytes, uint32_t nbytes)
{
    agent_file_t *room = realloc(files->each, (files->n + 1) * sizeof *room);
    if (!room)
        return -ISTHMUS_ENOMEM;
    files->each = room;
    room[files->n] = (agent_file_t){.bytes = malloc(nbytes + 1), .nbytes = nbytes};
    if (!room[files->n].bytes)
        return -ISTHMUS_ENOMEM;
    memcpy(room[files->n++].bytes, bytes, nbytes);
    return 0;
}

/* Frees all files after the first `n`. */
AGENT_API void agent_files_drop(agent_files_t *files, uint32_t n)
{
    while (files->n > n)
        free(files->each[--files->n].bytes);
}

AGENT_API void agent_files_free(agent_files_t *files)
{
    agent_files_drop(files, 0);
    free(files->each);
}

#define AGENT_FILES_FREED __attribute__((cleanup(agent_files_free)))

/* Forgets where files lie that end after the first `n_rows` rows. */
AGENT_API void agent_files_forget(agent_files_t *files, uint32_t n_rows)
{
    for (uint32_t i = 0; i < files->n; i++)
        if (files->each[i].row + files->each[i].n_rows > n_rows)
            files->each[i].n_rows = 0;
}

/* As agent_keep. */
AGENT_API int32_t agent_files_keep(agent_files_t *files, agent_session_t *session, uint32_t n_rows)
{
    int32_t n_left;
    AGENT_SET(n_left, agent_keep(session, n_rows));
    agent_files_forget(files, (uint32_t)n_left);
    return n_left;
}

/* Takes the next file off what a message has of files: each with its length before it, 32 bits, and
 * a length of zero at their end. Returns 1, or 0 at the end; -ISTHMUS_EINVAL if it is cut off. */
AGENT_API int32_t agent_next_file(const char **bytes, uint32_t *nbytes, const char **file,
                                  uint32_t *file_nbytes)
{
    if (*nbytes < 4)
        return -ISTHMUS_EINVAL;
    memcpy(file_nbytes, *bytes, 4);
    if (*file_nbytes > *nbytes - 4)
        return -ISTHMUS_EINVAL;
    *file = *bytes + 4;
    *bytes += 4 + *file_nbytes;
    *nbytes -= 4 + *file_nbytes;
    return *file_nbytes > 0;
}

/* The file that an id stands for; NULL for a token, and for a file that there is not. */
AGENT_API agent_file_t *agent_files_find(const agent_files_t *files, int32_t id)
{
    return id <= -2 && (uint32_t)(-2 - id) < files->n ? files->each + (-2 - id) : NULL;
}

/* Rows from `row` on that the session holds of an id; 0 if it holds something else there. */
AGENT_API uint32_t agent_rows_held(const agent_session_t *session, const agent_files_t *files,
                                   int32_t id, uint32_t row)
{
    const agent_file_t *file = agent_files_find(files, id);
    if (file)
        return file->row == row ? file->n_rows : 0;
    return id >= 0 && row < session->n_tokens && session->tokens[row] == id;
}

/* What of a prompt lies in the session's first `most` rows; never the last of its ids. */
AGENT_API agent_common_t agent_common(const agent_session_t *session, const agent_files_t *files,
                                      const int32_t *ids, uint32_t n_ids, uint32_t most)
{
    agent_common_t found = {0};
    uint32_t held;
    while (found.n_ids + 1 < n_ids
           && (held = agent_rows_held(session, files, ids[found.n_ids], found.n_rows)) > 0
           && found.n_rows + held <= most) {
        found.n_rows += held;
        if (ids[found.n_ids++] < 0) {
            found.run_ids = found.n_ids;
            found.run_rows = found.n_rows;
        }
    }
    return found;
}

/* How many ids are tokens, from `at` on, before a file's id or the end. */
AGENT_API uint32_t agent_run(const int32_t *ids, uint32_t n_ids, uint32_t at)
{
    uint32_t n = 0;
    while (at + n < n_ids && ids[at + n] >= 0)
        n++;
    return n;
}

/* Decodes a file of a prompt and appends it. On an error the session may hold some parts of it, and
 * the file counts as not held. */
AGENT_API int32_t agent_append_held(agent_session_t *session, agent_file_t *file)
{
    uint32_t row = session->n_tokens;
    AGENT_TRY(agent_append_file(session, file->bytes, file->nbytes));
    file->row = row;
    file->n_rows = session->n_tokens - row;
    return 0;
}

#endif
