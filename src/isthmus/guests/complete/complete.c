/*
 * complete: continues a list of tokens, one request after another; for servers.
 *
 * A message is a line of `word=value`, the prompt's token ids, and the source of a grammar if there
 * is one. abi/complete.toml describes the words; words.h is generated from it.
 *
 * Each token is emitted as a line: `ID`, or with logprobs=N `ID LOGPROB` and the N most probable
 * ones as `ID:LOGPROB`. These are the model's own: biases, penalties, grammars and the sampler
 * change what is drawn, and not what is told. Before them comes `began CACHED PROMPT`: how many
 * tokens of the prompt were not computed again, and how many it takes, those of files included. The
 * last line is `end REASON`: stop (the model or the grammar ended it) or length (max_tokens, the
 * context or a limit). Biases are added to the logits of their tokens; presence and frequency
 * penalties are for the tokens of the answer; with ignore_eos=1 a token that ends the text is one
 * like all others.
 *
 * With count_prompt=1 these two lines are all: the prompt is counted, and nothing is computed.
 *
 * Where a token ended the answer, it is told with logprobs as `eog ID LOGPROB` and so on.
 *
 * With score_prompt=1 the prompt's tokens come first, as `prompt ID LOGPROB` and so on; the first
 * one has the logprob `null`. They are decoded for it, in a session that is emptied before and
 * after, so the answer has the bits that it has without.
 *
 * A prompt may have pictures and sounds, whose files are decoded here. One that cannot be taken is told
 * as `refused NUMBER ERRNO`, and the message fails.
 *
 * With grammar=KIND, a grammar_kind of the ABI, the answer follows the grammar. With thinking=N a
 * thought of N tokens is closed: the answer gets the tokens `close`, and goes on from there.
 *
 * Options: model, n_ctx, fine=0, a multiple of BLOCK. session.h says what is kept of a prompt.
 */
#include "agent.h"
#include "choice.h"
#include "line.h"
#include "prompt.h"
#include "request.h"
#include "session.h"

/* Emits tokens until there is a reason to end, which it returns in `*reason`. */
static int32_t generate(request_t *request, int32_t grammar, const char **reason)
{
    int32_t token, more, status;
    int64_t most = request->words.max_tokens;
    size_t nbytes = request->words.logprobs < 0 ? 0 : session.n_vocab * sizeof(float);
    AGENT_FREED float *own = nbytes ? malloc(nbytes) : NULL; /* logits as the model has them */
    if (nbytes && !own)
        return -ISTHMUS_ENOMEM;
    for (int64_t i = 0; i < most && session.n_tokens < session.n_ctx; i++) {
        AGENT_TEXT_FREED agent_text_t line = {0};
        float *logits;
        token = -1;
        AGENT_TRY(agent_logits(&session, &logits));
        if (own)
            memcpy(own, logits, nbytes);
        *reason = "stop";
        AGENT_SET(more, choose(request, grammar, logits, &token));
        if (!more)
            return own && token >= 0 ? emit_line(request, "eog ", own, token) : 0;
        if (penalises(&request->words))
            AGENT_TRY(count(&request->tally, token));
        AGENT_TRY(write_line(request, own, token, &line));
        *reason = "length";
        status = agent_emit(line.bytes);
        if (status == 0 && i + 1 < most)
            status = agent_decode(&session, token);
        if (status == -ISTHMUS_ECANCELED || status == -ISTHMUS_ELIMIT)
            return 0;
        AGENT_TRY(status);
    }
    *reason = "length";
    return 0;
}

/* Emits the line before the answer's tokens. Returns 1, or 0 if its caller wants no more. */
static int32_t emit_began(uint32_t n_cached, uint32_t n_prompt)
{
    AGENT_TEXT_FREED agent_text_t line = {0};
    agent_text_append_string(&line, "began ");
    agent_text_append_int(&line, n_cached);
    agent_text_append_string(&line, " ");
    agent_text_append_int(&line, n_prompt);
    AGENT_TRY(agent_text_append_string(&line, "\n"));
    int32_t status = agent_emit(line.bytes);
    return status == -ISTHMUS_ECANCELED ? 0 : status < 0 ? status : 1;
}

static int32_t emit_end(const char *reason)
{
    AGENT_TEXT_FREED agent_text_t line = {0};
    agent_text_append_string(&line, "end ");
    agent_text_append_string(&line, reason);
    AGENT_TRY(agent_text_append_string(&line, "\n"));
    int32_t status = agent_emit(line.bytes);
    return status == -ISTHMUS_ECANCELED ? 0 : status;
}

static int32_t answer(request_t *request)
{
    const char *reason = "length";
    uint32_t n_cached = 0, n_prompt = request->n_ids;
    int32_t more;
    if (request->words.count_prompt) {
        AGENT_TRY(count_prompt(request, &n_prompt));
        AGENT_SET(more, emit_began(0, n_prompt));
        return more ? emit_end(reason) : 0;
    }
    AGENT_GRAMMAR_CLOSED int32_t grammar = 0;
    if (request->words.grammar)
        AGENT_SET(grammar, isthmus_grammar_open(session.model, (uint32_t)request->words.grammar,
                                                request->source,
                                                (uint32_t)request->words.grammar_nbytes));
    uint32_t k = agent_sampler_top_k(&request->sampler, session.n_vocab);
    int32_t edits = grammar || request->words.bias || penalises(&request->words);
    AGENT_TRY(agent_session_top_k(&session, edits ? 0 : k));
    if (request->words.score_prompt)
        AGENT_TRY(score_prompt(request));
    if (request->words.max_tokens > 0 || !request->words.score_prompt) {
        AGENT_SET(n_cached, prefill_prompt(request));
        n_prompt = session.n_tokens;
    }
    AGENT_SET(more, emit_began(n_cached, n_prompt));
    AGENT_TRY(more ? generate(request, grammar, &reason) : 0);
    return more ? emit_end(reason) : 0;
}

__attribute__((export_name("on_message"))) int32_t on_message(int32_t nbytes)
{
    AGENT_FREED char *message = NULL;
    request_t request;
    AGENT_TRY(agent_message(nbytes, &message));
    if (!session.handle) {
        int32_t model;
        int64_t fine = 0;
        AGENT_SET(model, agent_model_open());
        AGENT_TRY(agent_option_int("fine", 0, INT32_MAX / BLOCK * BLOCK, &fine));
        n_fine = (uint32_t)fine - (uint32_t)fine % BLOCK;
        AGENT_TRY(agent_session_open_by_option(&session, model));
    }
    AGENT_TRY(read_request(message, (uint32_t)nbytes, &request));
    int32_t status = answer(&request);
    free(request.tally.each);
    if (status < 0)
        n_prefilled = min_u32(n_prefilled, session.n_tokens);
    return status;
}
