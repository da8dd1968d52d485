/* Generated from abi/host.toml by tools/generate_abi.py; do not edit. */
/*
 * The Isthmus guest ABI, version 1. docs/abi.md is the reference.
 *
 * Every function returns a value >= 0, or the negative of an errno such as -ISTHMUS_EINVAL.
 * Where a call fills a buffer of `cap` elements it returns how many it needs; when that is more
 * than `cap`, nothing was written and the guest may call again with more room.
 *
 * The same source compiles for wasm32 and for wasm64, where pointers and lengths have 64 bits.
 */
#ifndef ISTHMUS_H
#define ISTHMUS_H

#include <stddef.h>
#include <stdint.h>

#define ISTHMUS_ABI_VERSION 1

/* How a struct holds a pointer: as an offset in linear memory. */
#define ISTHMUS_PTR(pointer) ((uintptr_t)(pointer))

#ifdef __cplusplus
#define ISTHMUS_EXTERN extern "C"
#else
#define ISTHMUS_EXTERN extern
#endif
#define ISTHMUS_IMPORT(name) \
    ISTHMUS_EXTERN __attribute__((import_module("isthmus"), import_name(name)))

/* Errno: a call that fails returns one, negated. */
enum {
    /* an argument has a value that the call does not take */
    ISTHMUS_EINVAL = 1,
    /* a pointer and length do not lie inside linear memory */
    ISTHMUS_EFAULT = 2,
    /* a pointer is not aligned as the call requires */
    ISTHMUS_EALIGN = 3,
    /* the handle was never opened, is closed, or is of another kind */
    ISTHMUS_EBADF = 4,
    /* nothing of that name was given to this actor */
    ISTHMUS_ENOENT = 5,
    /* a limit on memory, or the host's memory, is exhausted */
    ISTHMUS_ENOMEM = 6,
    /* the bytes belong to a session that is open */
    ISTHMUS_EBUSY = 7,
    /* the session's context has no room for these tokens */
    ISTHMUS_ECONTEXT = 8,
    /* a token id is not in the model's vocabulary */
    ISTHMUS_ETOKEN = 9,
    /* a limit of this actor is reached */
    ISTHMUS_ELIMIT = 10,
    /* the model or device cannot do this */
    ISTHMUS_ENOTSUP = 11,
    /* the device or a tool failed */
    ISTHMUS_EIO = 12,
    /* the caller wants no more of this answer: finish soon, or be cut off */
    ISTHMUS_ECANCELED = 13,
};

/* Flags of tokenize. */
enum {
    /* add the tokens that the model wants at the beginning and the end */
    ISTHMUS_TOKENIZE_ADD_SPECIAL = 1,
    /* read control tokens such as <|im_start|> in the text as tokens; never set it for text from a
     * stranger */
    ISTHMUS_TOKENIZE_PARSE_SPECIAL = 2,
};

/* Flags of detokenize. */
enum {
    /* write control tokens as text instead of leaving them out */
    ISTHMUS_DETOKENIZE_RENDER_SPECIAL = 1,
};

/* Flags of chat_template. */
enum {
    /* end with the words that open the assistant's turn */
    ISTHMUS_CHAT_ADD_GENERATION_PROMPT = 1,
};

/* Flags of chat_tokens. */
enum {
    /* tell the model of the tools that the actor was given, and read calls of them */
    ISTHMUS_ANSWER_TOOLS = 1,
    /* with TOOLS: the answer follows answer_grammar, so it is read as a call */
    ISTHMUS_ANSWER_CALL = 2,
};

/* Parts of an answer, for answer_read. */
enum {
    /* what the model says to the user, as far as it was not read yet */
    ISTHMUS_ANSWER_PART_TEXT = 0,
    /* the whole answer as a JSON object: a message for chat_tokens, calls included */
    ISTHMUS_ANSWER_PART_MESSAGE = 1,
    /* a call's id, which the message with its result names as tool_call_id */
    ISTHMUS_ANSWER_PART_CALL_ID = 2,
    /* the name of the tool that is called */
    ISTHMUS_ANSWER_PART_CALL_NAME = 3,
    /* its arguments: a JSON object */
    ISTHMUS_ANSWER_PART_CALL_ARGUMENTS = 4,
};

/* Bits of model_info.flags. */
enum {
    /* the model wants its BOS token at the beginning */
    ISTHMUS_MODEL_ADD_BOS = 1,
    /* the model has a chat template */
    ISTHMUS_MODEL_CHAT_TEMPLATE = 2,
    /* the model makes text: session_open opens sessions of it */
    ISTHMUS_MODEL_SESSIONS = 4,
    /* embed makes an embedding of a text, n_embd numbers */
    ISTHMUS_MODEL_EMBED = 8,
    /* embed makes an embedding of each token, n_embd numbers each */
    ISTHMUS_MODEL_EMBED_TOKENS = 16,
    /* embed makes scores of a query and a document: the model is a reranker */
    ISTHMUS_MODEL_RANK = 128,
    /* media_open takes pictures: the model has a projector for them */
    ISTHMUS_MODEL_PICTURES = 32,
    /* media_open takes sounds */
    ISTHMUS_MODEL_SOUNDS = 64,
    /* a session keeps a state that each token rewrites: truncate goes back to checkpoints only, see
     * session_checkpoint */
    ISTHMUS_MODEL_STATE = 256,
};

/* Flags of embed. */
enum {
    /* divide each embedding by its length, so that a product of two is their cosine */
    ISTHMUS_EMBED_NORMALISE = 1,
};

/* Flags of prefill_embeddings, and bits of media_part.flags. */
enum {
    /* each row sees the whole span, and not only the rows before it */
    ISTHMUS_SPAN_WHOLE = 1,
    /* rows have positions of their own, in time, height and width */
    ISTHMUS_SPAN_PLACED = 2,
};

/* What media_open takes. */
enum {
    /* a picture: rows of width pixels from the top on, each of three bytes: red, green, blue */
    ISTHMUS_MEDIA_KIND_RGB = 1,
    /* a sound: f32 samples of one channel, 4-byte aligned, as many in a second as media_rate says;
     * width is their number and height 1 */
    ISTHMUS_MEDIA_KIND_PCM = 2,
};

/* What a part of a medium consists of. */
enum {
    /* token ids, such as those that open and close a picture */
    ISTHMUS_PART_KIND_TOKENS = 0,
    /* rows of embeddings, for prefill_embeddings */
    ISTHMUS_PART_KIND_EMBEDDINGS = 1,
};

/* Bits of the result of token_flags. */
enum {
    /* the token ends the generation */
    ISTHMUS_TOKEN_EOG = 1,
    /* the token is a control token, not text */
    ISTHMUS_TOKEN_CONTROL = 2,
};

/* Bit of the result of emit_token. */
enum {
    /* the token ends the generation: it was neither emitted nor appended */
    ISTHMUS_EMIT_END = 1073741824,
};

/* Languages in which a grammar is written. */
enum {
    /* a JSON schema; the text is JSON with a space after each comma and colon */
    ISTHMUS_GRAMMAR_KIND_JSON_SCHEMA = 1,
    /* llama.cpp's grammars, which begin at root */
    ISTHMUS_GRAMMAR_KIND_GBNF = 2,
    /* a regular expression for the whole text, without look-around */
    ISTHMUS_GRAMMAR_KIND_REGEX = 3,
    /* llguidance's dialect of Lark, which begins at start */
    ISTHMUS_GRAMMAR_KIND_LARK = 4,
};

/* Element types of a tensor in linear memory. */
enum {
    /* IEEE 754 binary32 */
    ISTHMUS_DTYPE_F32 = 0,
    /* IEEE 754 binary16 */
    ISTHMUS_DTYPE_F16 = 1,
    /* signed 32-bit integer: row indices, and the result of argmax */
    ISTHMUS_DTYPE_I32 = 26,
};

/* Operations of compute. Shapes are [ne0, ne1, ne2, ne3], ne0 being the contiguous dimension. */
enum {
    /* dst[n, m] = src1[k, m] x transpose of src0[k, n]; src0 may be a weight; dims 2 and 3 of src1
     * are multiples of src0's */
    ISTHMUS_OP_MATMUL = 1,
    /* dst = src0 + src1; src1 is repeated to fill src0's shape */
    ISTHMUS_OP_ADD = 2,
    /* dst = src0 * src1, element by element; src1 is repeated to fill src0's shape */
    ISTHMUS_OP_MUL = 3,
    /* dst = src0 * param */
    ISTHMUS_OP_SCALE = 4,
    /* dst = src0 / (1 + exp(-src0)) */
    ISTHMUS_OP_SILU = 5,
    /* dst = softmax of each row of src0 */
    ISTHMUS_OP_SOFTMAX = 6,
    /* dst = src0 / sqrt(mean of each row's squares + param) */
    ISTHMUS_OP_RMS_NORM = 7,
    /* dst[ne0, n] = the rows of src0 that src1 (I32 [n]) names; src0 may be a weight */
    ISTHMUS_OP_GET_ROWS = 8,
    /* dst (I32 [ne1]) = where each row of src0 has its maximum */
    ISTHMUS_OP_ARGMAX = 9,
};

/* Levels of log. */
enum {
    /* of use to the guest's author */
    ISTHMUS_LOG_DEBUG = 0,
    /* of use to whoever runs the guest */
    ISTHMUS_LOG_INFO = 1,
    /* something is not as it should be */
    ISTHMUS_LOG_WARNING = 2,
    /* something failed */
    ISTHMUS_LOG_ERROR = 3,
};

/* What a guest may know about a model. */
typedef struct {
    /* token ids are 0 to n_vocab - 1 */
    uint32_t n_vocab;
    /* tokens of context that the model was trained for */
    uint32_t n_ctx_train;
    /* width of the embedding */
    uint32_t n_embd;
    /* transformer blocks */
    uint32_t n_layer;
    /* beginning of text, or -1 */
    int32_t token_bos;
    /* end of text, or -1 */
    int32_t token_eos;
    /* end of turn, or -1 */
    int32_t token_eot;
    /* model_flag bits */
    uint32_t flags;
} isthmus_model_info_t;
_Static_assert(sizeof(isthmus_model_info_t) == 32, "isthmus_model_info_t");

/* One turn of a conversation, for chat_template. Both texts are UTF-8. */
typedef struct {
    /* 'system', 'user', 'assistant' or what the template knows */
    uintptr_t role_ptr;
    /* length of the role */
    size_t role_nbytes;
    /* what was said */
    uintptr_t content_ptr;
    /* length of the content */
    size_t content_nbytes;
} isthmus_chat_message_t;
_Static_assert(sizeof(isthmus_chat_message_t) == (sizeof(void *) == 8 ? 32 : 16), "isthmus_chat_message_t");

/* Settings and random state of the host's sampler. It lies in guest memory, so a snapshot holds it.
 * */
typedef struct {
    /* 0 takes the most probable token; otherwise logits are divided by it */
    float temperature;
    /* keep the k most probable tokens; 0 keeps all */
    uint32_t top_k;
    /* keep the most probable tokens that together reach p; 1 keeps all */
    float top_p;
    /* drop tokens less probable than min_p times the most probable; 0 drops none */
    float min_p;
    /* divide positive (multiply negative) logits of recent tokens by it; 1 is off */
    float repeat_penalty;
    /* how many of the session's last tokens count as recent */
    uint32_t repeat_last_n;
    /* SplitMix64 state: set it to the seed; each draw advances it */
    uint64_t rng_state;
} isthmus_sampler_t;
_Static_assert(sizeof(isthmus_sampler_t) == 32, "isthmus_sampler_t");

/* A contiguous tensor, in linear memory or among a model's weights. */
typedef struct {
    /* a dtype; a weight's own type where weight is not 0 */
    uint32_t dtype;
    /* 0: the elements lie at data; otherwise a handle that weight_find gave */
    uint32_t weight;
    /* first element, 32-byte aligned; 0 for a weight */
    uintptr_t data;
    /* 0 */
    uint32_t reserved;
    /* elements in each dimension, contiguous dimension first, each at least 1 */
    uint32_t ne[4];
} isthmus_tensor_t;
_Static_assert(sizeof(isthmus_tensor_t) == (sizeof(void *) == 8 ? 40 : 32), "isthmus_tensor_t");

/* One of the most probable tokens of a step, as session_top_k leaves them. */
typedef struct {
    /* what the model says of it */
    float logit;
    /* its id; -1 in the first candidate: there are none, so read the logits */
    int32_t token;
} isthmus_candidate_t;
_Static_assert(sizeof(isthmus_candidate_t) == 8, "isthmus_candidate_t");

/* A token that decode_batch appends to a session. */
typedef struct {
    /* handle of an open session */
    uint32_t session;
    /* a token id */
    int32_t token;
} isthmus_step_t;
_Static_assert(sizeof(isthmus_step_t) == 8, "isthmus_step_t");

/* A part of a medium; a session takes the parts in order. */
typedef struct {
    /* a part_kind */
    uint32_t kind;
    /* tokens or rows, each of which takes a token of context */
    uint32_t n_rows;
    /* numbers of a row; 1 for tokens */
    uint32_t width;
    /* span_flag bits */
    uint32_t flags;
} isthmus_media_part_t;
_Static_assert(sizeof(isthmus_media_part_t) == 16, "isthmus_media_part_t");

/* One step of compute. Tensors are given by offsets of isthmus_tensor_t. */
typedef struct {
    /* an op */
    uint32_t op;
    /* the tensor to fill; it overlaps no source */
    uintptr_t dst;
    /* first source */
    uintptr_t src0;
    /* second source, or 0 where the op has one */
    uintptr_t src1;
    /* factor of SCALE, epsilon of RMS_NORM, otherwise 0 */
    float param;
    /* 0 */
    uint32_t reserved[3];
} isthmus_operation_t;
_Static_assert(sizeof(isthmus_operation_t) == (sizeof(void *) == 8 ? 48 : 32), "isthmus_operation_t");

/* --------------------------------------------------------------------------- model */

/*
 * Opens a model that was given to this actor under a name. One with adapters has a name of its own,
 * and its sessions have those adapters.
 *   name_ptr: UTF-8 name, such as 'default'
 *   name_nbytes: its length
 * Returns a model handle.
 *   -ISTHMUS_EFAULT: the name does not lie in memory
 *   -ISTHMUS_EINVAL: the name is not UTF-8 or longer than 256 bytes
 *   -ISTHMUS_ENOENT: no model of that name was given to this actor
 *   -ISTHMUS_ELIMIT: too many handles are open
 */
ISTHMUS_IMPORT("model_open")
int32_t isthmus_model_open(const char *name_ptr, size_t name_nbytes);

/*
 * Tells the shape of a model.
 *   model: an open model
 *   info_ptr: an isthmus_model_info_t to fill
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_EFAULT: the struct does not lie in memory
 */
ISTHMUS_IMPORT("model_info")
int32_t isthmus_model_info(int32_t model, isthmus_model_info_t *info_ptr);

/*
 * Gives a model handle back. Its sessions must be closed first.
 *   model: an open model
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_EBUSY: a session of it is open
 */
ISTHMUS_IMPORT("model_close")
int32_t isthmus_model_close(int32_t model);

/*
 * Tells what kind of token an id is.
 *   model: an open model
 *   token: a token id
 * Returns token_flag bits.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_ETOKEN: no such token
 */
ISTHMUS_IMPORT("token_flags")
int32_t isthmus_token_flags(int32_t model, int32_t token);

/*
 * Turns UTF-8 text into token ids.
 *   model: an open model
 *   text_ptr: UTF-8 text
 *   text_nbytes: its length, at most 1 MiB
 *   flags: tokenize_flag bits
 *   tokens_ptr: room for i32 ids, 4-byte aligned
 *   tokens_cap: how many ids fit there
 * Returns number of tokens in the text.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_EFAULT: the text or the room does not lie in memory
 *   -ISTHMUS_EALIGN: tokens_ptr is not 4-byte aligned
 *   -ISTHMUS_EINVAL: unknown flags, text too long or not UTF-8
 *   -ISTHMUS_ETOKEN: a word in it is too long for the model's pre-tokenizer
 *   -ISTHMUS_ENOTSUP: the model has no tokenizer
 */
ISTHMUS_IMPORT("tokenize")
int32_t isthmus_tokenize(int32_t model, const char *text_ptr, size_t text_nbytes, uint32_t flags,
                         int32_t *tokens_ptr, uint32_t tokens_cap);

/*
 * Turns token ids into text. The bytes of one token may end inside a UTF-8 character; emit puts
 * such pieces together again.
 *   model: an open model
 *   tokens_ptr: i32 ids, 4-byte aligned
 *   n_tokens: how many, at most 1 Mi
 *   flags: detokenize_flag bits
 *   text_ptr: room for the text
 *   text_cap: how many bytes fit there
 * Returns length of the text in bytes.
 *   -ISTHMUS_EBADF: not an open model or medium
 *   -ISTHMUS_EFAULT: the ids or the room do not lie in memory
 *   -ISTHMUS_EALIGN: tokens_ptr is not 4-byte aligned
 *   -ISTHMUS_EINVAL: unknown flags, or too many tokens
 *   -ISTHMUS_ETOKEN: a token id is not in the vocabulary
 *   -ISTHMUS_ENOTSUP: the model has no tokenizer
 */
ISTHMUS_IMPORT("detokenize")
int32_t isthmus_detokenize(int32_t model, const int32_t *tokens_ptr, uint32_t n_tokens,
                           uint32_t flags, char *text_ptr, size_t text_cap);

/*
 * Writes a conversation as the text that the model was trained on, by its own chat template.
 *   model: an open model
 *   messages_ptr: an array of isthmus_chat_message_t, 4-byte aligned
 *   n_messages: how many, at most 65,536
 *   flags: chat_flag bits
 *   text_ptr: room for the text
 *   text_cap: how many bytes fit there
 * Returns length of the text in bytes.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_EFAULT: a message or the room does not lie in memory
 *   -ISTHMUS_EALIGN: messages_ptr is not 4-byte aligned
 *   -ISTHMUS_EINVAL: unknown flags, too many messages or bytes, text that is not UTF-8, or a
 *       conversation that the template refuses
 *   -ISTHMUS_ENOTSUP: the model has no chat template
 */
ISTHMUS_IMPORT("chat_template")
int32_t isthmus_chat_template(int32_t model, const isthmus_chat_message_t *messages_ptr,
                              uint32_t n_messages, uint32_t flags, char *text_ptr, size_t text_cap);

/*
 * Tells how many bytes of linear memory a session needs: its KV cache and logits, once.
 *   model: an open model
 *   n_ctx: tokens of context; rounded up to a multiple of 256
 * Returns bytes to allocate, a multiple of 4,096.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_EINVAL: n_ctx is 0 or more than the model's n_ctx_train
 *   -ISTHMUS_ENOTSUP: the model makes embeddings and no text
 */
ISTHMUS_IMPORT("session_nbytes")
int64_t isthmus_session_nbytes(int32_t model, uint32_t n_ctx);

/*
 * Opens a session in memory that the guest has allocated. The bytes are the session's until it is
 * closed: the guest reads the logits there, and leaves the rest alone. Some devices have the KV
 * cache in memory of their own: its bytes are reserved then, they read as zero, and what is written
 * there is lost.
 *   model: an open model
 *   n_ctx: tokens of context, as for session_nbytes
 *   ptr: 4,096-byte aligned
 *   nbytes: at least session_nbytes(model, n_ctx)
 * Returns a session handle.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_ENOTSUP: the model makes embeddings and no text
 *   -ISTHMUS_EINVAL: n_ctx is 0 or too large, or nbytes too small
 *   -ISTHMUS_EALIGN: ptr is not 4,096-byte aligned
 *   -ISTHMUS_EFAULT: the bytes do not lie in memory
 *   -ISTHMUS_EBUSY: they overlap an open session, or the room that session_top_k gave one
 *   -ISTHMUS_ELIMIT: too many sessions, or more KV bytes than this actor may have
 *   -ISTHMUS_ENOMEM: the device has no memory of its own left for the KV cache
 */
ISTHMUS_IMPORT("session_open")
int32_t isthmus_session_open(int32_t model, uint32_t n_ctx, void *ptr, size_t nbytes);

/*
 * Closes a session; its bytes are the guest's again.
 *   session: an open session
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open session
 */
ISTHMUS_IMPORT("session_close")
int32_t isthmus_session_close(int32_t session);

/*
 * Tells how many tokens a session holds.
 *   session: an open session
 * Returns number of tokens.
 *   -ISTHMUS_EBADF: not an open session
 */
ISTHMUS_IMPORT("session_length")
int32_t isthmus_session_length(int32_t session);

/*
 * Appends tokens to a session, many at a time; afterwards its logits are those after the last one.
 * On an error the session is as it was.
 *   session: an open session
 *   tokens_ptr: i32 ids, 4-byte aligned
 *   n_tokens: at least 1
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open session
 *   -ISTHMUS_EFAULT: the ids do not lie in memory
 *   -ISTHMUS_EALIGN: tokens_ptr is not 4-byte aligned
 *   -ISTHMUS_EINVAL: n_tokens is 0
 *   -ISTHMUS_ETOKEN: a token id is not in the vocabulary
 *   -ISTHMUS_ECONTEXT: the context has no room for them
 *   -ISTHMUS_ELIMIT: more tokens than this actor may use
 *   -ISTHMUS_EIO: the device failed
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("prefill")
int32_t isthmus_prefill(int32_t session, const int32_t *tokens_ptr, uint32_t n_tokens);

/*
 * Appends one token to a session; afterwards its logits are those of the next one.
 *   session: an open session
 *   token: a token id
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open session
 *   -ISTHMUS_ETOKEN: no such token
 *   -ISTHMUS_ECONTEXT: the context is full
 *   -ISTHMUS_ELIMIT: more tokens than this actor may use
 *   -ISTHMUS_EIO: the device failed
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("decode")
int32_t isthmus_decode(int32_t session, int32_t token);

/*
 * Appends up to 32 tokens to a session as if each were decoded, one after the other: the same bits,
 * in one pass where the model's weights allow that. The logits after each token but the last are
 * written to logits_ptr; those after the last one are the session's, as after decode. Whoever
 * guesses tokens checks them with it, and truncates. On an error the session holds what it held,
 * and may have lost its logits.
 *   session: an open session
 *   tokens_ptr: i32 ids, 4-byte aligned
 *   n_tokens: 1 to 32
 *   logits_ptr: room for f32[n_tokens - 1][n_vocab], 4-byte aligned, in no open session
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open session
 *   -ISTHMUS_EFAULT: the ids or the room do not lie in memory
 *   -ISTHMUS_EALIGN: tokens_ptr or logits_ptr is not 4-byte aligned
 *   -ISTHMUS_EINVAL: n_tokens is 0 or more than 32
 *   -ISTHMUS_EBUSY: the room overlaps an open session
 *   -ISTHMUS_ETOKEN: a token id is not in the vocabulary
 *   -ISTHMUS_ECONTEXT: the context has no room for them
 *   -ISTHMUS_ELIMIT: more tokens than this actor may use
 *   -ISTHMUS_EIO: the device failed
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("decode_many")
int32_t isthmus_decode_many(int32_t session, const int32_t *tokens_ptr, uint32_t n_tokens,
                            float *logits_ptr);

/*
 * Appends one token to each of several sessions of one model, as if each were decoded: the same
 * bits, in one pass where the model's weights allow that. For branches of one thought: beams,
 * votes, trees. On an error each session holds what it held, and may have lost its logits.
 *   steps_ptr: an array of isthmus_step_t, 4-byte aligned
 *   n_steps: 1 to 32
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open session
 *   -ISTHMUS_EFAULT: the steps do not lie in memory
 *   -ISTHMUS_EALIGN: steps_ptr is not 4-byte aligned
 *   -ISTHMUS_EINVAL: n_steps is 0 or more than 32, a session is there twice, or sessions are of
 *       several models
 *   -ISTHMUS_ETOKEN: a token id is not in the vocabulary
 *   -ISTHMUS_ECONTEXT: the context of a session is full
 *   -ISTHMUS_ELIMIT: more tokens than this actor may use
 *   -ISTHMUS_EIO: the device failed
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("decode_batch")
int32_t isthmus_decode_batch(const isthmus_step_t *steps_ptr, uint32_t n_steps);

/*
 * From now on each prefill, decode, decode_many and decode_batch also leaves the k most probable
 * tokens at candidates_ptr, best first, until the session is closed or another call ends it. The
 * device finds them in the same pass. No token exceeds one that is there; equal ones are in no
 * order, and some of those that equal the last one may be missing: whoever needs the order of a
 * scan asks for one more than it uses. They are the model's: what the guest or a grammar does to
 * the logits afterwards does not change them, and where a logit is not a number they mean nothing.
 * Until the next such call, after session_copy, and on a device that does not find them sooner than
 * a guest does, the first token is -1: then the guest reads the logits. A fork and a snapshot keep
 * asking.
 *   session: an open session
 *   k: how many: 1 to 256 and at most n_vocab; 0 for none, whatever the pointer is
 *   candidates_ptr: room for isthmus_candidate_t[k], 32-byte aligned, in no open session
 * Returns 1 if the device finds them; 0 if it does not, or k is 0.
 *   -ISTHMUS_EBADF: not an open session
 *   -ISTHMUS_EINVAL: k is more than 256 or more than n_vocab
 *   -ISTHMUS_EFAULT: the room does not lie in memory
 *   -ISTHMUS_EALIGN: candidates_ptr is not 32-byte aligned
 *   -ISTHMUS_EBUSY: the room overlaps an open session
 */
ISTHMUS_IMPORT("session_top_k")
int32_t isthmus_session_top_k(int32_t session, uint32_t k, isthmus_candidate_t *candidates_ptr);

/*
 * Tells where the logits of a session lie: n_vocab values of type f32, which the guest reads in
 * place and may change. The place stays the same while the session is open.
 *   session: an open session
 * Returns offset of f32[n_vocab].
 *   -ISTHMUS_EBADF: not an open session
 *   -ISTHMUS_EINVAL: the session has no logits: nothing was decoded since it was opened or
 *       truncated
 */
ISTHMUS_IMPORT("logits")
int64_t isthmus_logits(int32_t session);

/*
 * Draws the next token from the logits, in this order: repetition penalty, top-k, temperature,
 * top-p, min-p. Does not append it.
 *   session: an open session
 *   sampler_ptr: an isthmus_sampler_t, 8-byte aligned; its rng_state advances
 * Returns a token id.
 *   -ISTHMUS_EBADF: not an open session
 *   -ISTHMUS_EFAULT: the struct does not lie in memory
 *   -ISTHMUS_EALIGN: sampler_ptr is not 8-byte aligned
 *   -ISTHMUS_EINVAL: a setting is out of range or not a number, the session has no logits, or they
 *       are not numbers
 */
ISTHMUS_IMPORT("sample")
int32_t isthmus_sample(int32_t session, isthmus_sampler_t *sampler_ptr);

/*
 * Has truncate be able to come back to the tokens that the session holds now. Most models can go
 * back to any token, and need no checkpoint. One with STATE among its flags keeps a copy of its
 * state in the session's memory; if that has no room left, the checkpoint of the fewest tokens is
 * overwritten. How many it has room for is a setting of the model. A fork and a snapshot have the
 * checkpoints, and truncate forgets those of more tokens than it keeps.
 *   session: an open session
 * Returns 1 if truncate can come back here; 0 if the session has no room for checkpoints, or a pass
 * over it failed.
 *   -ISTHMUS_EBADF: not an open session
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("session_checkpoint")
int32_t isthmus_session_checkpoint(int32_t session);

/*
 * Tells where truncate can go: the most tokens, at most n_tokens, that it can keep. For most models
 * that is n_tokens, or session_length if that is less; for one with STATE among its flags it is the
 * number of tokens of a checkpoint, session_length, or 0.
 *   session: an open session
 *   n_tokens: any number
 * Returns number of tokens.
 *   -ISTHMUS_EBADF: not an open session
 */
ISTHMUS_IMPORT("session_reach")
int32_t isthmus_session_reach(int32_t session, uint32_t n_tokens);

/*
 * Forgets all tokens of a session after the first n_tokens. Logits are gone until the next prefill
 * or decode.
 *   session: an open session
 *   n_tokens: at most session_length
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open session
 *   -ISTHMUS_EINVAL: the session holds fewer tokens
 *   -ISTHMUS_ENOTSUP: the model keeps a state that each token rewrites, and there is no checkpoint
 *       of so many tokens: see session_reach
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("truncate")
int32_t isthmus_truncate(int32_t session, uint32_t n_tokens);

/*
 * Makes one session of a model begin with the first tokens of another; what it held is forgotten.
 *   destination: an open session
 *   source: another open session of the same model
 *   n_tokens: at most the source's session_length
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open session
 *   -ISTHMUS_EINVAL: the same session twice, sessions of two models, more tokens than the source
 *       holds, or another n_ctx where a library writes the model's graph down
 *   -ISTHMUS_ECONTEXT: the destination has no room for them
 *   -ISTHMUS_ENOTSUP: the model keeps a state that each token rewrites, and the source has no
 *       checkpoint of so many tokens
 */
ISTHMUS_IMPORT("session_copy")
int32_t isthmus_session_copy(int32_t destination, int32_t source, uint32_t n_tokens);

/*
 * Computes the embedding of a text, as the model's file says how. The device writes it in place. It
 * is n_embd values, or with EMBED_TOKENS among the model's flags n_embd values for each token. With
 * RANK it is the scores of a query and a document that the tokens hold, of which the first tells
 * how well they go together. The same tokens give the same bits, whatever else is computed. The id
 * -2 - h stands for the open medium with the handle h: a picture or a sound, which libllama's graph
 * of a decoder that pools its last token takes among tokens. On an error behind the checks the
 * room's contents are undefined.
 *   model: an open model
 *   tokens_ptr: i32 ids, 4-byte aligned
 *   n_tokens: at least 1, at most the model's n_ctx_train
 *   flags: embed_flag bits
 *   embedding_ptr: room for f32 values, 32-byte aligned
 *   embedding_cap: how many values fit there
 * Returns number of values.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_EFAULT: the ids or the room do not lie in memory
 *   -ISTHMUS_EALIGN: tokens_ptr is not 4-byte or embedding_ptr not 32-byte aligned
 *   -ISTHMUS_EINVAL: unknown flags, n_tokens is 0, NORMALISE for scores, or a medium of another
 *       model
 *   -ISTHMUS_ETOKEN: a token id is not in the vocabulary
 *   -ISTHMUS_ECONTEXT: more tokens than the model takes at once
 *   -ISTHMUS_EBUSY: the room overlaps an open session
 *   -ISTHMUS_ENOTSUP: the model makes no embeddings, or none of pictures and sounds, or the device
 *       cannot
 *   -ISTHMUS_ELIMIT: more tokens than this actor may use
 *   -ISTHMUS_EIO: the device failed
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("embed")
int32_t isthmus_embed(int32_t model, const int32_t *tokens_ptr, uint32_t n_tokens, uint32_t flags,
                      float *embedding_ptr, uint32_t embedding_cap);

/* --------------------------------------------------------------------------- grammar */

/*
 * Begins a text that follows a grammar. A fork and a snapshot hold how far it is. The host tries a
 * source that it does not know before, for 2 seconds at most; the actor's log tells why it refuses
 * one.
 *   model: an open model, whose tokens the text consists of
 *   kind: a grammar_kind
 *   source_ptr: the grammar, UTF-8 text
 *   source_nbytes: its length, at most 256 KiB
 * Returns a grammar handle.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_EFAULT: the source does not lie in memory
 *   -ISTHMUS_EINVAL: no such kind, a source that is empty, too long or not UTF-8, or a grammar that
 *       is malformed or too complex
 *   -ISTHMUS_ELIMIT: too many grammars or handles are open
 *   -ISTHMUS_ENOTSUP: the model has no tokenizer, or no token that ends a text
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("grammar_open")
int32_t isthmus_grammar_open(int32_t model, uint32_t kind, const char *source_ptr,
                             size_t source_nbytes);

/*
 * Sets the logits of all tokens that may not come next to -infinity, where they lie. Tokens that
 * end the text stay where it may end. Call it before each token, after prefill or decode.
 *   grammar: an open grammar
 *   session: an open session of the same model
 * Returns how many tokens may come next that do not end the text; with 0 it is complete.
 *   -ISTHMUS_EBADF: not an open grammar or session
 *   -ISTHMUS_EINVAL: the session is of another model or has no logits, or the grammar is too
 *       complex to go on; then nothing is changed
 */
ISTHMUS_IMPORT("grammar_mask")
int32_t isthmus_grammar_mask(int32_t grammar, int32_t session);

/*
 * Goes on behind a token, which becomes part of the text.
 *   grammar: an open grammar
 *   token: a token id that grammar_mask left, also one that ends the text
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open grammar
 *   -ISTHMUS_ETOKEN: no such token
 *   -ISTHMUS_EINVAL: the token may not come next, or the grammar is too complex to go on; then
 *       nothing is changed
 *   -ISTHMUS_ELIMIT: the text has 131,072 tokens
 */
ISTHMUS_IMPORT("grammar_accept")
int32_t isthmus_grammar_accept(int32_t grammar, int32_t token);

/*
 * Gives a grammar handle back.
 *   grammar: an open grammar
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open grammar
 */
ISTHMUS_IMPORT("grammar_close")
int32_t isthmus_grammar_close(int32_t grammar);

/* --------------------------------------------------------------------------- media */

/*
 * Appends rows of embeddings to a session in place of tokens; afterwards its logits are those after
 * the last row. The device reads the rows where they lie. Each takes a token of context and has no
 * token id: a session that holds one cannot be prefilled again by its tokens. Rows that were given
 * together are kept whole or forgotten whole. On an error the session is as it was.
 *   session: an open session
 *   rows_ptr: f32[n_rows][width], 32-byte aligned, in no open session
 *   n_rows: at least 1; with WHOLE at most a chunk of the host's
 *   width: what the model takes, as media_part.width tells; n_embd for most models
 *   positions_ptr: with PLACED i32[3][n_rows], 4-byte aligned: each row's place in time, height and
 *       width, counted from the session's next position; time does not go back. Otherwise rows
 *       follow each other, and it is not looked at
 *   flags: span_flag bits
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open session
 *   -ISTHMUS_EFAULT: the rows or positions do not lie in memory
 *   -ISTHMUS_EALIGN: rows_ptr is not 32-byte or positions_ptr not 4-byte aligned
 *   -ISTHMUS_EINVAL: unknown flags, n_rows is 0, another width than the model's, or positions that
 *       cannot be
 *   -ISTHMUS_EBUSY: the rows lie in an open session
 *   -ISTHMUS_ECONTEXT: the context has no room for them, or a position is behind it
 *   -ISTHMUS_ENOTSUP: the model takes tokens alone, has no places in height and width, or cannot
 *       see so many rows at once
 *   -ISTHMUS_ELIMIT: more tokens than this actor may use
 *   -ISTHMUS_EIO: the device failed
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("prefill_embeddings")
int32_t isthmus_prefill_embeddings(int32_t session, const float *rows_ptr, uint32_t n_rows,
                                   uint32_t width, const int32_t *positions_ptr, uint32_t flags);

/*
 * Tells how many samples a second of sound has, as the model's projector wants it.
 *   model: an open model
 * Returns samples per second.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_ENOTSUP: the model has no projector for sounds
 */
ISTHMUS_IMPORT("media_rate")
int32_t isthmus_media_rate(int32_t model);

/*
 * Takes a picture or a sound, which the guest has decoded, and cuts it into parts as the model
 * wants it. The medium is a copy. It lasts until media_close, or until the message ends.
 *   model: an open model
 *   kind: a media_kind
 *   data_ptr: pixels or samples
 *   width: pixels of a row, or samples; at least 1
 *   height: rows; 1 for a sound
 * Returns a medium's handle.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_EINVAL: no such kind, nothing in it, or something that the projector refuses
 *   -ISTHMUS_EFAULT: the data does not lie in memory
 *   -ISTHMUS_EALIGN: samples are not 4-byte aligned
 *   -ISTHMUS_ENOTSUP: the model has no projector for that kind
 *   -ISTHMUS_ELIMIT: more pixels, seconds or media than this actor may have, or too many handles
 *       are open
 *   -ISTHMUS_ENOMEM: all actors together have no memory left for it
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("media_open")
int32_t isthmus_media_open(int32_t model, uint32_t kind, const void *data_ptr, uint32_t width,
                           uint32_t height);

/*
 * Tells how many parts a medium has, and what one of them is.
 *   medium: an open medium
 *   part: which part, from 0 on
 *   part_ptr: an isthmus_media_part_t to fill, 4-byte aligned
 * Returns number of parts.
 *   -ISTHMUS_EBADF: not an open medium
 *   -ISTHMUS_EINVAL: there is no such part
 *   -ISTHMUS_EFAULT: the struct does not lie in memory
 *   -ISTHMUS_EALIGN: part_ptr is not 4-byte aligned
 */
ISTHMUS_IMPORT("media_info")
int32_t isthmus_media_info(int32_t medium, uint32_t part, isthmus_media_part_t *part_ptr);

/*
 * Gives a part of a medium: its token ids, or the rows of embeddings that the model's projector
 * computes, on the processor. If cap is too small, nothing is computed or written.
 *   medium: an open medium
 *   part: which part, from 0 on
 *   values_ptr: room for i32[n_rows] or f32[n_rows][width], 32-byte aligned, in no open session
 *   cap: how many values fit there
 *   positions_ptr: room for i32[3][n_rows], 4-byte aligned, if the part is PLACED: the positions
 *       that prefill_embeddings takes; otherwise it is not looked at
 * Returns number of values.
 *   -ISTHMUS_EBADF: not an open medium
 *   -ISTHMUS_EINVAL: there is no such part
 *   -ISTHMUS_EFAULT: the room does not lie in memory
 *   -ISTHMUS_EALIGN: values_ptr is not 32-byte or positions_ptr not 4-byte aligned
 *   -ISTHMUS_EBUSY: the room overlaps an open session
 *   -ISTHMUS_EIO: the projector failed
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("media_embed")
int32_t isthmus_media_embed(int32_t medium, uint32_t part, void *values_ptr, uint32_t cap,
                            int32_t *positions_ptr);

/*
 * Gives a medium back.
 *   medium: an open medium
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open medium
 */
ISTHMUS_IMPORT("media_close")
int32_t isthmus_media_close(int32_t medium);

/* --------------------------------------------------------------------------- tensor */

/*
 * Finds a weight of a model by its name in the GGUF file, for use as a source of compute.
 *   model: an open model
 *   name_ptr: such as 'blk.0.attn_q.weight'
 *   name_nbytes: its length
 *   tensor_ptr: an isthmus_tensor_t to fill, 4-byte aligned
 * Returns 0.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_EFAULT: the name or the struct does not lie in memory
 *   -ISTHMUS_EALIGN: tensor_ptr is not 4-byte aligned
 *   -ISTHMUS_EINVAL: the name is not UTF-8 or longer than 256 bytes
 *   -ISTHMUS_ENOENT: the model has no such weight
 *   -ISTHMUS_ELIMIT: too many handles are open
 */
ISTHMUS_IMPORT("weight_find")
int32_t isthmus_weight_find(int32_t model, const char *name_ptr, size_t name_nbytes,
                            isthmus_tensor_t *tensor_ptr);

/*
 * Runs operations on the device, in order, in place: each reads and writes the guest's own bytes.
 * All are checked before the first one runs. Large calls run in parts, between which others use the
 * device; on ECANCELED, and where a message is cut off, some operations have run. Work is counted
 * in multiplications of a matrix product, of which the processor does 2^33 in about half a second.
 * Elements and rows cost as much as the time they take: an element of SCALE 14, of SILU 18, of
 * SOFTMAX 40, a row of most operations 320, an element of a product 90 beside its multiplications.
 * A product cannot be cut into parts, so one may have 2^31.
 *   operations_ptr: an array of isthmus_operation_t, 4-byte aligned
 *   n_operations: 1 to 256
 * Returns 0.
 *   -ISTHMUS_EFAULT: a struct or a tensor does not lie in memory
 *   -ISTHMUS_EALIGN: a struct is not 4-byte or a tensor not 32-byte aligned
 *   -ISTHMUS_EBADF: not an open weight
 *   -ISTHMUS_EINVAL: an unknown op or dtype, shapes that do not fit, a row index out of range,
 *       reserved fields that are not 0, or dst overlapping a source
 *   -ISTHMUS_EBUSY: dst overlaps an open session
 *   -ISTHMUS_ELIMIT: the call is more work than 2^33 multiplications, an operation that cannot be
 *       cut into parts is more than 2^31, or more than 2^20 rows of get_rows are named
 *   -ISTHMUS_ENOTSUP: the device cannot do this op on these types
 *   -ISTHMUS_EIO: the device failed
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("compute")
int32_t isthmus_compute(const isthmus_operation_t *operations_ptr, uint32_t n_operations);

/* --------------------------------------------------------------------------- actor */

/*
 * Reads the message that on_message was called for. It can be read again.
 *   ptr: room for it
 *   cap: how many bytes fit there
 * Returns length of the message in bytes.
 *   -ISTHMUS_EFAULT: the room does not lie in memory
 */
ISTHMUS_IMPORT("message_read")
int32_t isthmus_message_read(void *ptr, size_t cap);

/*
 * Streams a piece of the answer to the caller. Pieces may be cut anywhere: the caller sees whole
 * UTF-8 characters.
 *   ptr: UTF-8 text
 *   nbytes: its length
 * Returns 0.
 *   -ISTHMUS_EFAULT: the text does not lie in memory
 *   -ISTHMUS_ELIMIT: more output than this actor may write
 *   -ISTHMUS_ENOMEM: all actors together have no memory left for it
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("emit")
int32_t isthmus_emit(const void *ptr, size_t nbytes);

/*
 * Streams the text of a token to the caller, then appends the token to a session: token_flags,
 * detokenize, emit and decode in one call, which takes a third of the time. If the room is too
 * small, nothing happens. On an error the session is as it was; the caller has the text already if
 * decode would give that error.
 *   session: an open session
 *   token: a token id
 *   text_ptr: room for the token's text
 *   text_cap: how many bytes fit there
 * Returns length of the text in bytes, or END.
 *   -ISTHMUS_EBADF: not an open session
 *   -ISTHMUS_EFAULT: the room does not lie in memory
 *   -ISTHMUS_ETOKEN: no such token
 *   -ISTHMUS_ECONTEXT: the context is full
 *   -ISTHMUS_ELIMIT: more tokens or output than this actor may use
 *   -ISTHMUS_ENOMEM: all actors together have no memory left for the text
 *   -ISTHMUS_ENOTSUP: the model has no tokenizer
 *   -ISTHMUS_EIO: the device failed
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("emit_token")
int32_t isthmus_emit_token(int32_t session, int32_t token, char *text_ptr, size_t text_cap);

/*
 * Sets the answer to the message, in place of all that was emitted. The last call counts.
 *   ptr: the answer, any bytes
 *   nbytes: its length
 * Returns 0.
 *   -ISTHMUS_EFAULT: the answer does not lie in memory
 *   -ISTHMUS_ELIMIT: more output than this actor may write
 *   -ISTHMUS_ENOMEM: all actors together have no memory left for it
 *   -ISTHMUS_ECANCELED: the caller wants no more
 */
ISTHMUS_IMPORT("reply")
int32_t isthmus_reply(const void *ptr, size_t nbytes);

/*
 * Writes a line to the actor's log.
 *   level: a log_level
 *   ptr: UTF-8 text
 *   nbytes: its length
 * Returns 0.
 *   -ISTHMUS_EFAULT: the text does not lie in memory
 *   -ISTHMUS_EINVAL: no such level
 *   -ISTHMUS_ELIMIT: more output than this actor may write
 *   -ISTHMUS_ENOMEM: all actors together have no memory left for it
 */
ISTHMUS_IMPORT("log")
int32_t isthmus_log(uint32_t level, const void *ptr, size_t nbytes);

/*
 * Reads the actor's virtual clock: it starts at the time that the actor was spawned with and moves
 * 1,000 ns with each reading, so a run can be repeated exactly.
 * Returns nanoseconds since 1970-01-01 00:00 UTC.
 */
ISTHMUS_IMPORT("clock_ns")
int64_t isthmus_clock_ns(void);

/*
 * Fills memory with random bytes from the actor's seed.
 *   ptr: where to
 *   nbytes: how many, at most 1 MiB
 * Returns 0.
 *   -ISTHMUS_EFAULT: the bytes do not lie in memory
 *   -ISTHMUS_EINVAL: more than 1 MiB
 */
ISTHMUS_IMPORT("random")
int32_t isthmus_random(void *ptr, size_t nbytes);

/* --------------------------------------------------------------------------- tool */

/*
 * Calls a tool that was given to this actor by name, and keeps its result for tool_result: what it
 * gave, or the text of its failure.
 *   name_ptr: the tool's name, UTF-8
 *   name_nbytes: its length
 *   args_ptr: what the tool is given, any bytes; JSON by custom
 *   args_nbytes: their length, at most 16 MiB
 * Returns length of the result in bytes.
 *   -ISTHMUS_EFAULT: the name or the arguments do not lie in memory
 *   -ISTHMUS_EINVAL: the name is not UTF-8 or longer than 256 bytes, or the arguments are too long
 *   -ISTHMUS_ENOENT: no tool of that name was given to this actor; tool_result has a text that
 *       names those that were
 *   -ISTHMUS_EIO: the tool failed, took too long or said too much; tool_result has its text
 *   -ISTHMUS_ECANCELED: the caller wants no more of this answer; what the tool did may have
 *       happened
 */
ISTHMUS_IMPORT("tool_call")
int32_t isthmus_tool_call(const char *name_ptr, size_t name_nbytes, const void *args_ptr,
                          size_t args_nbytes);

/*
 * Reads the result of the last tool_call of this message, or the text of its failure.
 *   ptr: room for it
 *   cap: how many bytes fit there
 * Returns length of the result in bytes.
 *   -ISTHMUS_EFAULT: the room does not lie in memory
 *   -ISTHMUS_EINVAL: no tool was called yet
 */
ISTHMUS_IMPORT("tool_result")
int32_t isthmus_tool_result(void *ptr, size_t cap);

/*
 * Reads which tools this actor was given: a JSON array of them as OpenAI writes tools, each with a
 * name, a description and a JSON schema of its arguments; [] for none.
 *   ptr: room for it
 *   cap: how many bytes fit there
 * Returns length of the array in bytes.
 *   -ISTHMUS_EFAULT: the room does not lie in memory
 */
ISTHMUS_IMPORT("tool_list")
int32_t isthmus_tool_list(char *ptr, size_t cap);

/* --------------------------------------------------------------------------- answer */

/*
 * Writes a conversation as token ids, by the model's chat template, and begins to read the answer
 * to it. Only the template gives control tokens: whatever messages say is text.
 *   model: an open model
 *   messages_ptr: UTF-8: a JSON array of messages as OpenAI's chat completions have them, calls and
 *       results of tools among them; a part {"type": "media", "number": N} gives the id -2 - N, for
 *       the guest to put a picture or a sound there
 *   messages_nbytes: its length, at most 4 MiB
 *   flags: answer_flag bits
 *   tokens_ptr: room for i32 ids, 4-byte aligned
 *   tokens_cap: how many ids fit there
 * Returns number of tokens of the prompt.
 *   -ISTHMUS_EBADF: not an open model
 *   -ISTHMUS_EFAULT: the messages or the room do not lie in memory
 *   -ISTHMUS_EALIGN: tokens_ptr is not 4-byte aligned
 *   -ISTHMUS_EINVAL: unknown flags, CALL without a tool, messages that are too long, not UTF-8 or
 *       not JSON, or a conversation that the template refuses
 *   -ISTHMUS_ETOKEN: a word is too long for the model's pre-tokenizer
 *   -ISTHMUS_ENOTSUP: the model has no tokenizer or no chat template
 */
ISTHMUS_IMPORT("chat_tokens")
int32_t isthmus_chat_tokens(int32_t model, const char *messages_ptr, size_t messages_nbytes,
                            uint32_t flags, int32_t *tokens_ptr, uint32_t tokens_cap);

/*
 * Reads a grammar of the answer that was begun: of one call of a tool that the actor was given, in
 * the model's own form, with arguments by its schema. Open it as LARK.
 *   ptr: room for its source
 *   cap: how many bytes fit there
 * Returns length of the source in bytes.
 *   -ISTHMUS_EFAULT: the room does not lie in memory
 *   -ISTHMUS_EINVAL: no answer was begun, or the model was told of no tool
 *   -ISTHMUS_ENOTSUP: a tool's schema cannot be followed
 */
ISTHMUS_IMPORT("answer_grammar")
int32_t isthmus_answer_grammar(char *ptr, size_t cap);

/*
 * Takes the next token of the answer. Calls and thoughts are kept apart from the text that the
 * model says to the user.
 *   token: a token id
 * Returns bytes of text that became known and were not read yet, as the part TEXT.
 *   -ISTHMUS_EINVAL: no answer was begun, or it has ended
 *   -ISTHMUS_ETOKEN: no such token
 *   -ISTHMUS_ELIMIT: the answer is longer than 4 MiB, each token counting as 16 bytes at least
 */
ISTHMUS_IMPORT("answer_feed")
int32_t isthmus_answer_feed(int32_t token);

/*
 * Ends the answer: what was held back, since it might have become a call, is text now.
 * Returns number of whole calls in the answer; those that were cut off are none.
 *   -ISTHMUS_EINVAL: no answer was begun
 */
ISTHMUS_IMPORT("answer_end")
int32_t isthmus_answer_end(void);

/*
 * Reads a part of the answer. The part TEXT is read once: it is what came since the last time.
 *   part: an answer_part
 *   index: which call, from 0; 0 for parts that are of no call
 *   ptr: room for it
 *   cap: how many bytes fit there
 * Returns length of the part in bytes.
 *   -ISTHMUS_EFAULT: the room does not lie in memory
 *   -ISTHMUS_EINVAL: no answer was begun, no such part or call, or a part other than TEXT of an
 *       answer that has not ended
 */
ISTHMUS_IMPORT("answer_read")
int32_t isthmus_answer_read(uint32_t part, uint32_t index, char *ptr, size_t cap);

#endif
