// Generated from abi/host.toml by tools/generate_abi.py; do not edit.
//
// The Isthmus guest ABI, version 1, as the host has it. docs/abi.md is the reference.

export const ABI_VERSION: u32 = 1;

// Errno: a call that fails returns one, negated.
// an argument has a value that the call does not take
export const EINVAL: i32 = 1;
// a pointer and length do not lie inside linear memory
export const EFAULT: i32 = 2;
// a pointer is not aligned as the call requires
export const EALIGN: i32 = 3;
// the handle was never opened, is closed, or is of another kind
export const EBADF: i32 = 4;
// nothing of that name was given to this actor
export const ENOENT: i32 = 5;
// a limit on memory, or the host's memory, is exhausted
export const ENOMEM: i32 = 6;
// the bytes belong to a session that is open
export const EBUSY: i32 = 7;
// the session's context has no room for these tokens
export const ECONTEXT: i32 = 8;
// a token id is not in the model's vocabulary
export const ETOKEN: i32 = 9;
// a limit of this actor is reached
export const ELIMIT: i32 = 10;
// the model or device cannot do this
export const ENOTSUP: i32 = 11;
// the device or a tool failed
export const EIO: i32 = 12;
// the caller wants no more of this answer: finish soon, or be cut off
export const ECANCELED: i32 = 13;

// add the tokens that the model wants at the beginning and the end
export const TOKENIZE_ADD_SPECIAL: i32 = 1;
// read control tokens such as <|im_start|> in the text as tokens; never set it for text from a
// stranger
export const TOKENIZE_PARSE_SPECIAL: i32 = 2;

// write control tokens as text instead of leaving them out
export const DETOKENIZE_RENDER_SPECIAL: i32 = 1;

// end with the words that open the assistant's turn
export const CHAT_ADD_GENERATION_PROMPT: i32 = 1;

// tell the model of the tools that the actor was given, and read calls of them
export const ANSWER_TOOLS: i32 = 1;
// with TOOLS: the answer follows answer_grammar, so it is read as a call
export const ANSWER_CALL: i32 = 2;

// what the model says to the user, as far as it was not read yet
export const ANSWER_PART_TEXT: i32 = 0;
// the whole answer as a JSON object: a message for chat_tokens, calls included
export const ANSWER_PART_MESSAGE: i32 = 1;
// a call's id, which the message with its result names as tool_call_id
export const ANSWER_PART_CALL_ID: i32 = 2;
// the name of the tool that is called
export const ANSWER_PART_CALL_NAME: i32 = 3;
// its arguments: a JSON object
export const ANSWER_PART_CALL_ARGUMENTS: i32 = 4;

// the model wants its BOS token at the beginning
export const MODEL_ADD_BOS: i32 = 1;
// the model has a chat template
export const MODEL_CHAT_TEMPLATE: i32 = 2;
// the model makes text: session_open opens sessions of it
export const MODEL_SESSIONS: i32 = 4;
// embed makes an embedding of a text, n_embd numbers
export const MODEL_EMBED: i32 = 8;
// embed makes an embedding of each token, n_embd numbers each
export const MODEL_EMBED_TOKENS: i32 = 16;
// embed makes scores of a query and a document: the model is a reranker
export const MODEL_RANK: i32 = 128;
// media_open takes pictures: the model has a projector for them
export const MODEL_PICTURES: i32 = 32;
// media_open takes sounds
export const MODEL_SOUNDS: i32 = 64;
// a session keeps a state that each token rewrites: truncate goes back to checkpoints only, see
// session_checkpoint
export const MODEL_STATE: i32 = 256;

// divide each embedding by its length, so that a product of two is their cosine
export const EMBED_NORMALISE: i32 = 1;

// each row sees the whole span, and not only the rows before it
export const SPAN_WHOLE: i32 = 1;
// rows have positions of their own, in time, height and width
export const SPAN_PLACED: i32 = 2;

// a picture: rows of width pixels from the top on, each of three bytes: red, green, blue
export const MEDIA_KIND_RGB: i32 = 1;
// a sound: f32 samples of one channel, 4-byte aligned, as many in a second as media_rate says;
// width is their number and height 1
export const MEDIA_KIND_PCM: i32 = 2;

// token ids, such as those that open and close a picture
export const PART_KIND_TOKENS: i32 = 0;
// rows of embeddings, for prefill_embeddings
export const PART_KIND_EMBEDDINGS: i32 = 1;

// the token ends the generation
export const TOKEN_EOG: i32 = 1;
// the token is a control token, not text
export const TOKEN_CONTROL: i32 = 2;

// the token ends the generation: it was neither emitted nor appended
export const EMIT_END: i32 = 1073741824;

// a JSON schema; the text is JSON with a space after each comma and colon
export const GRAMMAR_KIND_JSON_SCHEMA: i32 = 1;
// llama.cpp's grammars, which begin at root
export const GRAMMAR_KIND_GBNF: i32 = 2;
// a regular expression for the whole text, without look-around
export const GRAMMAR_KIND_REGEX: i32 = 3;
// llguidance's dialect of Lark, which begins at start
export const GRAMMAR_KIND_LARK: i32 = 4;

// IEEE 754 binary32
export const DTYPE_F32: i32 = 0;
// IEEE 754 binary16
export const DTYPE_F16: i32 = 1;
// signed 32-bit integer: row indices, and the result of argmax
export const DTYPE_I32: i32 = 26;

// dst[n, m] = src1[k, m] x transpose of src0[k, n]; src0 may be a weight; dims 2 and 3 of src1 are
// multiples of src0's
export const OP_MATMUL: i32 = 1;
// dst = src0 + src1; src1 is repeated to fill src0's shape
export const OP_ADD: i32 = 2;
// dst = src0 * src1, element by element; src1 is repeated to fill src0's shape
export const OP_MUL: i32 = 3;
// dst = src0 * param
export const OP_SCALE: i32 = 4;
// dst = src0 / (1 + exp(-src0))
export const OP_SILU: i32 = 5;
// dst = softmax of each row of src0
export const OP_SOFTMAX: i32 = 6;
// dst = src0 / sqrt(mean of each row's squares + param)
export const OP_RMS_NORM: i32 = 7;
// dst[ne0, n] = the rows of src0 that src1 (I32 [n]) names; src0 may be a weight
export const OP_GET_ROWS: i32 = 8;
// dst (I32 [ne1]) = where each row of src0 has its maximum
export const OP_ARGMAX: i32 = 9;

// of use to the guest's author
export const LOG_DEBUG: i32 = 0;
// of use to whoever runs the guest
export const LOG_INFO: i32 = 1;
// something is not as it should be
export const LOG_WARNING: i32 = 2;
// something failed
export const LOG_ERROR: i32 = 3;

// What a guest may know about a model.
@unmanaged
export class ModelInfo {
  n_vocab: u32 = 0;
  n_ctx_train: u32 = 0;
  n_embd: u32 = 0;
  n_layer: u32 = 0;
  token_bos: i32 = 0;
  token_eos: i32 = 0;
  token_eot: i32 = 0;
  flags: u32 = 0;
}

// One turn of a conversation, for chat_template. Both texts are UTF-8.
@unmanaged
export class ChatMessage {
  role_ptr: usize = 0;
  role_nbytes: usize = 0;
  content_ptr: usize = 0;
  content_nbytes: usize = 0;
}

// Settings and random state of the host's sampler. It lies in guest memory, so a snapshot holds it.
@unmanaged
export class Sampler {
  temperature: f32 = 0;
  top_k: u32 = 0;
  top_p: f32 = 0;
  min_p: f32 = 0;
  repeat_penalty: f32 = 0;
  repeat_last_n: u32 = 0;
  rng_state: u64 = 0;
}

// A contiguous tensor, in linear memory or among a model's weights.
@unmanaged
export class Tensor {
  dtype: u32 = 0;
  weight: u32 = 0;
  data: usize = 0;
  reserved: u32 = 0;
  ne0: u32 = 0;
  ne1: u32 = 0;
  ne2: u32 = 0;
  ne3: u32 = 0;
}

// One of the most probable tokens of a step, as session_top_k leaves them.
@unmanaged
export class Candidate {
  logit: f32 = 0;
  token: i32 = 0;
}

// A token that decode_batch appends to a session.
@unmanaged
export class Step {
  session: u32 = 0;
  token: i32 = 0;
}

// A part of a medium; a session takes the parts in order.
@unmanaged
export class MediaPart {
  kind: u32 = 0;
  n_rows: u32 = 0;
  width: u32 = 0;
  flags: u32 = 0;
}

// One step of compute. Tensors are given by offsets of isthmus_tensor_t.
@unmanaged
export class Operation {
  op: u32 = 0;
  dst: usize = 0;
  src0: usize = 0;
  src1: usize = 0;
  param: f32 = 0;
  reserved0: u32 = 0;
  reserved1: u32 = 0;
  reserved2: u32 = 0;
}


// Opens a model that was given to this actor under a name. One with adapters has a name of its own,
// and its sessions have those adapters.
// * name_ptr: UTF-8 name, such as 'default'
// * name_nbytes: its length
// Returns a model handle.
// * -EFAULT: the name does not lie in memory
// * -EINVAL: the name is not UTF-8 or longer than 256 bytes
// * -ENOENT: no model of that name was given to this actor
// * -ELIMIT: too many handles are open
@external("isthmus", "model_open")
export declare function model_open(name_ptr: usize, name_nbytes: usize): i32;

// Tells the shape of a model.
// * model: an open model
// * info_ptr: an isthmus_model_info_t to fill
// Returns 0.
// * -EBADF: not an open model
// * -EFAULT: the struct does not lie in memory
@external("isthmus", "model_info")
export declare function model_info(model: i32, info_ptr: usize): i32;

// Gives a model handle back. Its sessions must be closed first.
// * model: an open model
// Returns 0.
// * -EBADF: not an open model
// * -EBUSY: a session of it is open
@external("isthmus", "model_close")
export declare function model_close(model: i32): i32;

// Tells what kind of token an id is.
// * model: an open model
// * token: a token id
// Returns token_flag bits.
// * -EBADF: not an open model
// * -ETOKEN: no such token
@external("isthmus", "token_flags")
export declare function token_flags(model: i32, token: i32): i32;

// Turns UTF-8 text into token ids.
// * model: an open model
// * text_ptr: UTF-8 text
// * text_nbytes: its length, at most 1 MiB
// * flags: tokenize_flag bits
// * tokens_ptr: room for i32 ids, 4-byte aligned
// * tokens_cap: how many ids fit there
// Returns number of tokens in the text.
// * -EBADF: not an open model
// * -EFAULT: the text or the room does not lie in memory
// * -EALIGN: tokens_ptr is not 4-byte aligned
// * -EINVAL: unknown flags, text too long or not UTF-8
// * -ETOKEN: a word in it is too long for the model's pre-tokenizer
// * -ENOTSUP: the model has no tokenizer
@external("isthmus", "tokenize")
export declare function tokenize(model: i32, text_ptr: usize, text_nbytes: usize, flags: u32, tokens_ptr: usize, tokens_cap: u32): i32;

// Turns token ids into text. The bytes of one token may end inside a UTF-8 character; emit puts
// such pieces together again.
// * model: an open model
// * tokens_ptr: i32 ids, 4-byte aligned
// * n_tokens: how many, at most 1 Mi
// * flags: detokenize_flag bits
// * text_ptr: room for the text
// * text_cap: how many bytes fit there
// Returns length of the text in bytes.
// * -EBADF: not an open model or medium
// * -EFAULT: the ids or the room do not lie in memory
// * -EALIGN: tokens_ptr is not 4-byte aligned
// * -EINVAL: unknown flags, or too many tokens
// * -ETOKEN: a token id is not in the vocabulary
// * -ENOTSUP: the model has no tokenizer
@external("isthmus", "detokenize")
export declare function detokenize(model: i32, tokens_ptr: usize, n_tokens: u32, flags: u32, text_ptr: usize, text_cap: usize): i32;

// Writes a conversation as the text that the model was trained on, by its own chat template.
// * model: an open model
// * messages_ptr: an array of isthmus_chat_message_t, 4-byte aligned
// * n_messages: how many, at most 65,536
// * flags: chat_flag bits
// * text_ptr: room for the text
// * text_cap: how many bytes fit there
// Returns length of the text in bytes.
// * -EBADF: not an open model
// * -EFAULT: a message or the room does not lie in memory
// * -EALIGN: messages_ptr is not 4-byte aligned
// * -EINVAL: unknown flags, too many messages or bytes, text that is not UTF-8, or a conversation
// that the template refuses
// * -ENOTSUP: the model has no chat template
@external("isthmus", "chat_template")
export declare function chat_template(model: i32, messages_ptr: usize, n_messages: u32, flags: u32, text_ptr: usize, text_cap: usize): i32;

// Tells how many bytes of linear memory a session needs: its KV cache and logits, once.
// * model: an open model
// * n_ctx: tokens of context; rounded up to a multiple of 256
// Returns bytes to allocate, a multiple of 4,096.
// * -EBADF: not an open model
// * -EINVAL: n_ctx is 0 or more than the model's n_ctx_train
// * -ENOTSUP: the model makes embeddings and no text
@external("isthmus", "session_nbytes")
export declare function session_nbytes(model: i32, n_ctx: u32): i64;

// Opens a session in memory that the guest has allocated. The bytes are the session's until it is
// closed: the guest reads the logits there, and leaves the rest alone. Some devices have the KV
// cache in memory of their own: its bytes are reserved then, they read as zero, and what is written
// there is lost.
// * model: an open model
// * n_ctx: tokens of context, as for session_nbytes
// * ptr: 4,096-byte aligned
// * nbytes: at least session_nbytes(model, n_ctx)
// Returns a session handle.
// * -EBADF: not an open model
// * -ENOTSUP: the model makes embeddings and no text
// * -EINVAL: n_ctx is 0 or too large, or nbytes too small
// * -EALIGN: ptr is not 4,096-byte aligned
// * -EFAULT: the bytes do not lie in memory
// * -EBUSY: they overlap an open session, or the room that session_top_k gave one
// * -ELIMIT: too many sessions, or more KV bytes than this actor may have
// * -ENOMEM: the device has no memory of its own left for the KV cache
@external("isthmus", "session_open")
export declare function session_open(model: i32, n_ctx: u32, ptr: usize, nbytes: usize): i32;

// Closes a session; its bytes are the guest's again.
// * session: an open session
// Returns 0.
// * -EBADF: not an open session
@external("isthmus", "session_close")
export declare function session_close(session: i32): i32;

// Tells how many tokens a session holds.
// * session: an open session
// Returns number of tokens.
// * -EBADF: not an open session
@external("isthmus", "session_length")
export declare function session_length(session: i32): i32;

// Appends tokens to a session, many at a time; afterwards its logits are those after the last one.
// On an error the session is as it was.
// * session: an open session
// * tokens_ptr: i32 ids, 4-byte aligned
// * n_tokens: at least 1
// Returns 0.
// * -EBADF: not an open session
// * -EFAULT: the ids do not lie in memory
// * -EALIGN: tokens_ptr is not 4-byte aligned
// * -EINVAL: n_tokens is 0
// * -ETOKEN: a token id is not in the vocabulary
// * -ECONTEXT: the context has no room for them
// * -ELIMIT: more tokens than this actor may use
// * -EIO: the device failed
// * -ECANCELED: the caller wants no more
@external("isthmus", "prefill")
export declare function prefill(session: i32, tokens_ptr: usize, n_tokens: u32): i32;

// Appends one token to a session; afterwards its logits are those of the next one.
// * session: an open session
// * token: a token id
// Returns 0.
// * -EBADF: not an open session
// * -ETOKEN: no such token
// * -ECONTEXT: the context is full
// * -ELIMIT: more tokens than this actor may use
// * -EIO: the device failed
// * -ECANCELED: the caller wants no more
@external("isthmus", "decode")
export declare function decode(session: i32, token: i32): i32;

// Appends up to 32 tokens to a session as if each were decoded, one after the other: the same bits,
// in one pass where the model's weights allow that. The logits after each token but the last are
// written to logits_ptr; those after the last one are the session's, as after decode. Whoever
// guesses tokens checks them with it, and truncates. On an error the session holds what it held,
// and may have lost its logits.
// * session: an open session
// * tokens_ptr: i32 ids, 4-byte aligned
// * n_tokens: 1 to 32
// * logits_ptr: room for f32[n_tokens - 1][n_vocab], 4-byte aligned, in no open session
// Returns 0.
// * -EBADF: not an open session
// * -EFAULT: the ids or the room do not lie in memory
// * -EALIGN: tokens_ptr or logits_ptr is not 4-byte aligned
// * -EINVAL: n_tokens is 0 or more than 32
// * -EBUSY: the room overlaps an open session
// * -ETOKEN: a token id is not in the vocabulary
// * -ECONTEXT: the context has no room for them
// * -ELIMIT: more tokens than this actor may use
// * -EIO: the device failed
// * -ECANCELED: the caller wants no more
@external("isthmus", "decode_many")
export declare function decode_many(session: i32, tokens_ptr: usize, n_tokens: u32, logits_ptr: usize): i32;

// Appends one token to each of several sessions of one model, as if each were decoded: the same
// bits, in one pass where the model's weights allow that. For branches of one thought: beams,
// votes, trees. On an error each session holds what it held, and may have lost its logits.
// * steps_ptr: an array of isthmus_step_t, 4-byte aligned
// * n_steps: 1 to 32
// Returns 0.
// * -EBADF: not an open session
// * -EFAULT: the steps do not lie in memory
// * -EALIGN: steps_ptr is not 4-byte aligned
// * -EINVAL: n_steps is 0 or more than 32, a session is there twice, or sessions are of several
// models
// * -ETOKEN: a token id is not in the vocabulary
// * -ECONTEXT: the context of a session is full
// * -ELIMIT: more tokens than this actor may use
// * -EIO: the device failed
// * -ECANCELED: the caller wants no more
@external("isthmus", "decode_batch")
export declare function decode_batch(steps_ptr: usize, n_steps: u32): i32;

// From now on each prefill, decode, decode_many and decode_batch also leaves the k most probable
// tokens at candidates_ptr, best first, until the session is closed or another call ends it. The
// device finds them in the same pass. No token exceeds one that is there; equal ones are in no
// order, and some of those that equal the last one may be missing: whoever needs the order of a
// scan asks for one more than it uses. They are the model's: what the guest or a grammar does to
// the logits afterwards does not change them, and where a logit is not a number they mean nothing.
// Until the next such call, after session_copy, and on a device that does not find them sooner than
// a guest does, the first token is -1: then the guest reads the logits. A fork and a snapshot keep
// asking.
// * session: an open session
// * k: how many: 1 to 256 and at most n_vocab; 0 for none, whatever the pointer is
// * candidates_ptr: room for isthmus_candidate_t[k], 32-byte aligned, in no open session
// Returns 1 if the device finds them; 0 if it does not, or k is 0.
// * -EBADF: not an open session
// * -EINVAL: k is more than 256 or more than n_vocab
// * -EFAULT: the room does not lie in memory
// * -EALIGN: candidates_ptr is not 32-byte aligned
// * -EBUSY: the room overlaps an open session
@external("isthmus", "session_top_k")
export declare function session_top_k(session: i32, k: u32, candidates_ptr: usize): i32;

// Tells where the logits of a session lie: n_vocab values of type f32, which the guest reads in
// place and may change. The place stays the same while the session is open.
// * session: an open session
// Returns offset of f32[n_vocab].
// * -EBADF: not an open session
// * -EINVAL: the session has no logits: nothing was decoded since it was opened or truncated
@external("isthmus", "logits")
export declare function logits(session: i32): i64;

// Draws the next token from the logits, in this order: repetition penalty, top-k, temperature,
// top-p, min-p. Does not append it.
// * session: an open session
// * sampler_ptr: an isthmus_sampler_t, 8-byte aligned; its rng_state advances
// Returns a token id.
// * -EBADF: not an open session
// * -EFAULT: the struct does not lie in memory
// * -EALIGN: sampler_ptr is not 8-byte aligned
// * -EINVAL: a setting is out of range or not a number, the session has no logits, or they are not
// numbers
@external("isthmus", "sample")
export declare function sample(session: i32, sampler_ptr: usize): i32;

// Has truncate be able to come back to the tokens that the session holds now. Most models can go
// back to any token, and need no checkpoint. One with STATE among its flags keeps a copy of its
// state in the session's memory; if that has no room left, the checkpoint of the fewest tokens is
// overwritten. How many it has room for is a setting of the model. A fork and a snapshot have the
// checkpoints, and truncate forgets those of more tokens than it keeps.
// * session: an open session
// Returns 1 if truncate can come back here; 0 if the session has no room for checkpoints, or a pass
// over it failed.
// * -EBADF: not an open session
// * -ECANCELED: the caller wants no more
@external("isthmus", "session_checkpoint")
export declare function session_checkpoint(session: i32): i32;

// Tells where truncate can go: the most tokens, at most n_tokens, that it can keep. For most models
// that is n_tokens, or session_length if that is less; for one with STATE among its flags it is the
// number of tokens of a checkpoint, session_length, or 0.
// * session: an open session
// * n_tokens: any number
// Returns number of tokens.
// * -EBADF: not an open session
@external("isthmus", "session_reach")
export declare function session_reach(session: i32, n_tokens: u32): i32;

// Forgets all tokens of a session after the first n_tokens. Logits are gone until the next prefill
// or decode.
// * session: an open session
// * n_tokens: at most session_length
// Returns 0.
// * -EBADF: not an open session
// * -EINVAL: the session holds fewer tokens
// * -ENOTSUP: the model keeps a state that each token rewrites, and there is no checkpoint of so
// many tokens: see session_reach
// * -ECANCELED: the caller wants no more
@external("isthmus", "truncate")
export declare function truncate(session: i32, n_tokens: u32): i32;

// Makes one session of a model begin with the first tokens of another; what it held is forgotten.
// * destination: an open session
// * source: another open session of the same model
// * n_tokens: at most the source's session_length
// Returns 0.
// * -EBADF: not an open session
// * -EINVAL: the same session twice, sessions of two models, more tokens than the source holds, or
// another n_ctx where a library writes the model's graph down
// * -ECONTEXT: the destination has no room for them
// * -ENOTSUP: the model keeps a state that each token rewrites, and the source has no checkpoint of
// so many tokens
@external("isthmus", "session_copy")
export declare function session_copy(destination: i32, source: i32, n_tokens: u32): i32;

// Computes the embedding of a text, as the model's file says how. The device writes it in place. It
// is n_embd values, or with EMBED_TOKENS among the model's flags n_embd values for each token. With
// RANK it is the scores of a query and a document that the tokens hold, of which the first tells
// how well they go together. The same tokens give the same bits, whatever else is computed. The id
// -2 - h stands for the open medium with the handle h: a picture or a sound, which libllama's graph
// of a decoder that pools its last token takes among tokens. On an error behind the checks the
// room's contents are undefined.
// * model: an open model
// * tokens_ptr: i32 ids, 4-byte aligned
// * n_tokens: at least 1, at most the model's n_ctx_train
// * flags: embed_flag bits
// * embedding_ptr: room for f32 values, 32-byte aligned
// * embedding_cap: how many values fit there
// Returns number of values.
// * -EBADF: not an open model
// * -EFAULT: the ids or the room do not lie in memory
// * -EALIGN: tokens_ptr is not 4-byte or embedding_ptr not 32-byte aligned
// * -EINVAL: unknown flags, n_tokens is 0, NORMALISE for scores, or a medium of another model
// * -ETOKEN: a token id is not in the vocabulary
// * -ECONTEXT: more tokens than the model takes at once
// * -EBUSY: the room overlaps an open session
// * -ENOTSUP: the model makes no embeddings, or none of pictures and sounds, or the device cannot
// * -ELIMIT: more tokens than this actor may use
// * -EIO: the device failed
// * -ECANCELED: the caller wants no more
@external("isthmus", "embed")
export declare function embed(model: i32, tokens_ptr: usize, n_tokens: u32, flags: u32, embedding_ptr: usize, embedding_cap: u32): i32;

// Begins a text that follows a grammar. A fork and a snapshot hold how far it is. The host tries a
// source that it does not know before, for 2 seconds at most; the actor's log tells why it refuses
// one.
// * model: an open model, whose tokens the text consists of
// * kind: a grammar_kind
// * source_ptr: the grammar, UTF-8 text
// * source_nbytes: its length, at most 256 KiB
// Returns a grammar handle.
// * -EBADF: not an open model
// * -EFAULT: the source does not lie in memory
// * -EINVAL: no such kind, a source that is empty, too long or not UTF-8, or a grammar that is
// malformed or too complex
// * -ELIMIT: too many grammars or handles are open
// * -ENOTSUP: the model has no tokenizer, or no token that ends a text
// * -ECANCELED: the caller wants no more
@external("isthmus", "grammar_open")
export declare function grammar_open(model: i32, kind: u32, source_ptr: usize, source_nbytes: usize): i32;

// Sets the logits of all tokens that may not come next to -infinity, where they lie. Tokens that
// end the text stay where it may end. Call it before each token, after prefill or decode.
// * grammar: an open grammar
// * session: an open session of the same model
// Returns how many tokens may come next that do not end the text; with 0 it is complete.
// * -EBADF: not an open grammar or session
// * -EINVAL: the session is of another model or has no logits, or the grammar is too complex to go
// on; then nothing is changed
@external("isthmus", "grammar_mask")
export declare function grammar_mask(grammar: i32, session: i32): i32;

// Goes on behind a token, which becomes part of the text.
// * grammar: an open grammar
// * token: a token id that grammar_mask left, also one that ends the text
// Returns 0.
// * -EBADF: not an open grammar
// * -ETOKEN: no such token
// * -EINVAL: the token may not come next, or the grammar is too complex to go on; then nothing is
// changed
// * -ELIMIT: the text has 131,072 tokens
@external("isthmus", "grammar_accept")
export declare function grammar_accept(grammar: i32, token: i32): i32;

// Gives a grammar handle back.
// * grammar: an open grammar
// Returns 0.
// * -EBADF: not an open grammar
@external("isthmus", "grammar_close")
export declare function grammar_close(grammar: i32): i32;

// Appends rows of embeddings to a session in place of tokens; afterwards its logits are those after
// the last row. The device reads the rows where they lie. Each takes a token of context and has no
// token id: a session that holds one cannot be prefilled again by its tokens. Rows that were given
// together are kept whole or forgotten whole. On an error the session is as it was.
// * session: an open session
// * rows_ptr: f32[n_rows][width], 32-byte aligned, in no open session
// * n_rows: at least 1; with WHOLE at most a chunk of the host's
// * width: what the model takes, as media_part.width tells; n_embd for most models
// * positions_ptr: with PLACED i32[3][n_rows], 4-byte aligned: each row's place in time, height and
// width, counted from the session's next position; time does not go back. Otherwise rows follow
// each other, and it is not looked at
// * flags: span_flag bits
// Returns 0.
// * -EBADF: not an open session
// * -EFAULT: the rows or positions do not lie in memory
// * -EALIGN: rows_ptr is not 32-byte or positions_ptr not 4-byte aligned
// * -EINVAL: unknown flags, n_rows is 0, another width than the model's, or positions that cannot
// be
// * -EBUSY: the rows lie in an open session
// * -ECONTEXT: the context has no room for them, or a position is behind it
// * -ENOTSUP: the model takes tokens alone, has no places in height and width, or cannot see so
// many rows at once
// * -ELIMIT: more tokens than this actor may use
// * -EIO: the device failed
// * -ECANCELED: the caller wants no more
@external("isthmus", "prefill_embeddings")
export declare function prefill_embeddings(session: i32, rows_ptr: usize, n_rows: u32, width: u32, positions_ptr: usize, flags: u32): i32;

// Tells how many samples a second of sound has, as the model's projector wants it.
// * model: an open model
// Returns samples per second.
// * -EBADF: not an open model
// * -ENOTSUP: the model has no projector for sounds
@external("isthmus", "media_rate")
export declare function media_rate(model: i32): i32;

// Takes a picture or a sound, which the guest has decoded, and cuts it into parts as the model
// wants it. The medium is a copy. It lasts until media_close, or until the message ends.
// * model: an open model
// * kind: a media_kind
// * data_ptr: pixels or samples
// * width: pixels of a row, or samples; at least 1
// * height: rows; 1 for a sound
// Returns a medium's handle.
// * -EBADF: not an open model
// * -EINVAL: no such kind, nothing in it, or something that the projector refuses
// * -EFAULT: the data does not lie in memory
// * -EALIGN: samples are not 4-byte aligned
// * -ENOTSUP: the model has no projector for that kind
// * -ELIMIT: more pixels, seconds or media than this actor may have, or too many handles are open
// * -ENOMEM: all actors together have no memory left for it
// * -ECANCELED: the caller wants no more
@external("isthmus", "media_open")
export declare function media_open(model: i32, kind: u32, data_ptr: usize, width: u32, height: u32): i32;

// Tells how many parts a medium has, and what one of them is.
// * medium: an open medium
// * part: which part, from 0 on
// * part_ptr: an isthmus_media_part_t to fill, 4-byte aligned
// Returns number of parts.
// * -EBADF: not an open medium
// * -EINVAL: there is no such part
// * -EFAULT: the struct does not lie in memory
// * -EALIGN: part_ptr is not 4-byte aligned
@external("isthmus", "media_info")
export declare function media_info(medium: i32, part: u32, part_ptr: usize): i32;

// Gives a part of a medium: its token ids, or the rows of embeddings that the model's projector
// computes, on the processor. If cap is too small, nothing is computed or written.
// * medium: an open medium
// * part: which part, from 0 on
// * values_ptr: room for i32[n_rows] or f32[n_rows][width], 32-byte aligned, in no open session
// * cap: how many values fit there
// * positions_ptr: room for i32[3][n_rows], 4-byte aligned, if the part is PLACED: the positions
// that prefill_embeddings takes; otherwise it is not looked at
// Returns number of values.
// * -EBADF: not an open medium
// * -EINVAL: there is no such part
// * -EFAULT: the room does not lie in memory
// * -EALIGN: values_ptr is not 32-byte or positions_ptr not 4-byte aligned
// * -EBUSY: the room overlaps an open session
// * -EIO: the projector failed
// * -ECANCELED: the caller wants no more
@external("isthmus", "media_embed")
export declare function media_embed(medium: i32, part: u32, values_ptr: usize, cap: u32, positions_ptr: usize): i32;

// Gives a medium back.
// * medium: an open medium
// Returns 0.
// * -EBADF: not an open medium
@external("isthmus", "media_close")
export declare function media_close(medium: i32): i32;

// Finds a weight of a model by its name in the GGUF file, for use as a source of compute.
// * model: an open model
// * name_ptr: such as 'blk.0.attn_q.weight'
// * name_nbytes: its length
// * tensor_ptr: an isthmus_tensor_t to fill, 4-byte aligned
// Returns 0.
// * -EBADF: not an open model
// * -EFAULT: the name or the struct does not lie in memory
// * -EALIGN: tensor_ptr is not 4-byte aligned
// * -EINVAL: the name is not UTF-8 or longer than 256 bytes
// * -ENOENT: the model has no such weight
// * -ELIMIT: too many handles are open
@external("isthmus", "weight_find")
export declare function weight_find(model: i32, name_ptr: usize, name_nbytes: usize, tensor_ptr: usize): i32;

// Runs operations on the device, in order, in place: each reads and writes the guest's own bytes.
// All are checked before the first one runs. Large calls run in parts, between which others use the
// device; on ECANCELED, and where a message is cut off, some operations have run. Work is counted
// in multiplications of a matrix product, of which the processor does 2^33 in about half a second.
// Elements and rows cost as much as the time they take: an element of SCALE 14, of SILU 18, of
// SOFTMAX 40, a row of most operations 320, an element of a product 90 beside its multiplications.
// A product cannot be cut into parts, so one may have 2^31.
// * operations_ptr: an array of isthmus_operation_t, 4-byte aligned
// * n_operations: 1 to 256
// Returns 0.
// * -EFAULT: a struct or a tensor does not lie in memory
// * -EALIGN: a struct is not 4-byte or a tensor not 32-byte aligned
// * -EBADF: not an open weight
// * -EINVAL: an unknown op or dtype, shapes that do not fit, a row index out of range, reserved
// fields that are not 0, or dst overlapping a source
// * -EBUSY: dst overlaps an open session
// * -ELIMIT: the call is more work than 2^33 multiplications, an operation that cannot be cut into
// parts is more than 2^31, or more than 2^20 rows of get_rows are named
// * -ENOTSUP: the device cannot do this op on these types
// * -EIO: the device failed
// * -ECANCELED: the caller wants no more
@external("isthmus", "compute")
export declare function compute(operations_ptr: usize, n_operations: u32): i32;

// Reads the message that on_message was called for. It can be read again.
// * ptr: room for it
// * cap: how many bytes fit there
// Returns length of the message in bytes.
// * -EFAULT: the room does not lie in memory
@external("isthmus", "message_read")
export declare function message_read(ptr: usize, cap: usize): i32;

// Streams a piece of the answer to the caller. Pieces may be cut anywhere: the caller sees whole
// UTF-8 characters.
// * ptr: UTF-8 text
// * nbytes: its length
// Returns 0.
// * -EFAULT: the text does not lie in memory
// * -ELIMIT: more output than this actor may write
// * -ENOMEM: all actors together have no memory left for it
// * -ECANCELED: the caller wants no more
@external("isthmus", "emit")
export declare function emit(ptr: usize, nbytes: usize): i32;

// Streams the text of a token to the caller, then appends the token to a session: token_flags,
// detokenize, emit and decode in one call, which takes a third of the time. If the room is too
// small, nothing happens. On an error the session is as it was; the caller has the text already if
// decode would give that error.
// * session: an open session
// * token: a token id
// * text_ptr: room for the token's text
// * text_cap: how many bytes fit there
// Returns length of the text in bytes, or END.
// * -EBADF: not an open session
// * -EFAULT: the room does not lie in memory
// * -ETOKEN: no such token
// * -ECONTEXT: the context is full
// * -ELIMIT: more tokens or output than this actor may use
// * -ENOMEM: all actors together have no memory left for the text
// * -ENOTSUP: the model has no tokenizer
// * -EIO: the device failed
// * -ECANCELED: the caller wants no more
@external("isthmus", "emit_token")
export declare function emit_token(session: i32, token: i32, text_ptr: usize, text_cap: usize): i32;

// Sets the answer to the message, in place of all that was emitted. The last call counts.
// * ptr: the answer, any bytes
// * nbytes: its length
// Returns 0.
// * -EFAULT: the answer does not lie in memory
// * -ELIMIT: more output than this actor may write
// * -ENOMEM: all actors together have no memory left for it
// * -ECANCELED: the caller wants no more
@external("isthmus", "reply")
export declare function reply(ptr: usize, nbytes: usize): i32;

// Writes a line to the actor's log.
// * level: a log_level
// * ptr: UTF-8 text
// * nbytes: its length
// Returns 0.
// * -EFAULT: the text does not lie in memory
// * -EINVAL: no such level
// * -ELIMIT: more output than this actor may write
// * -ENOMEM: all actors together have no memory left for it
@external("isthmus", "log")
export declare function log(level: u32, ptr: usize, nbytes: usize): i32;

// Reads the actor's virtual clock: it starts at the time that the actor was spawned with and moves
// 1,000 ns with each reading, so a run can be repeated exactly.
// Returns nanoseconds since 1970-01-01 00:00 UTC.
@external("isthmus", "clock_ns")
export declare function clock_ns(): i64;

// Fills memory with random bytes from the actor's seed.
// * ptr: where to
// * nbytes: how many, at most 1 MiB
// Returns 0.
// * -EFAULT: the bytes do not lie in memory
// * -EINVAL: more than 1 MiB
@external("isthmus", "random")
export declare function random(ptr: usize, nbytes: usize): i32;

// Calls a tool that was given to this actor by name, and keeps its result for tool_result: what it
// gave, or the text of its failure.
// * name_ptr: the tool's name, UTF-8
// * name_nbytes: its length
// * args_ptr: what the tool is given, any bytes; JSON by custom
// * args_nbytes: their length, at most 16 MiB
// Returns length of the result in bytes.
// * -EFAULT: the name or the arguments do not lie in memory
// * -EINVAL: the name is not UTF-8 or longer than 256 bytes, or the arguments are too long
// * -ENOENT: no tool of that name was given to this actor; tool_result has a text that names those
// that were
// * -EIO: the tool failed, took too long or said too much; tool_result has its text
// * -ECANCELED: the caller wants no more of this answer; what the tool did may have happened
@external("isthmus", "tool_call")
export declare function tool_call(name_ptr: usize, name_nbytes: usize, args_ptr: usize, args_nbytes: usize): i32;

// Reads the result of the last tool_call of this message, or the text of its failure.
// * ptr: room for it
// * cap: how many bytes fit there
// Returns length of the result in bytes.
// * -EFAULT: the room does not lie in memory
// * -EINVAL: no tool was called yet
@external("isthmus", "tool_result")
export declare function tool_result(ptr: usize, cap: usize): i32;

// Reads which tools this actor was given: a JSON array of them as OpenAI writes tools, each with a
// name, a description and a JSON schema of its arguments; [] for none.
// * ptr: room for it
// * cap: how many bytes fit there
// Returns length of the array in bytes.
// * -EFAULT: the room does not lie in memory
@external("isthmus", "tool_list")
export declare function tool_list(ptr: usize, cap: usize): i32;

// Writes a conversation as token ids, by the model's chat template, and begins to read the answer
// to it. Only the template gives control tokens: whatever messages say is text.
// * model: an open model
// * messages_ptr: UTF-8: a JSON array of messages as OpenAI's chat completions have them, calls and
// results of tools among them; a part {"type": "media", "number": N} gives the id -2 - N, for the
// guest to put a picture or a sound there
// * messages_nbytes: its length, at most 4 MiB
// * flags: answer_flag bits
// * tokens_ptr: room for i32 ids, 4-byte aligned
// * tokens_cap: how many ids fit there
// Returns number of tokens of the prompt.
// * -EBADF: not an open model
// * -EFAULT: the messages or the room do not lie in memory
// * -EALIGN: tokens_ptr is not 4-byte aligned
// * -EINVAL: unknown flags, CALL without a tool, messages that are too long, not UTF-8 or not JSON,
// or a conversation that the template refuses
// * -ETOKEN: a word is too long for the model's pre-tokenizer
// * -ENOTSUP: the model has no tokenizer or no chat template
@external("isthmus", "chat_tokens")
export declare function chat_tokens(model: i32, messages_ptr: usize, messages_nbytes: usize, flags: u32, tokens_ptr: usize, tokens_cap: u32): i32;

// Reads a grammar of the answer that was begun: of one call of a tool that the actor was given, in
// the model's own form, with arguments by its schema. Open it as LARK.
// * ptr: room for its source
// * cap: how many bytes fit there
// Returns length of the source in bytes.
// * -EFAULT: the room does not lie in memory
// * -EINVAL: no answer was begun, or the model was told of no tool
// * -ENOTSUP: a tool's schema cannot be followed
@external("isthmus", "answer_grammar")
export declare function answer_grammar(ptr: usize, cap: usize): i32;

// Takes the next token of the answer. Calls and thoughts are kept apart from the text that the
// model says to the user.
// * token: a token id
// Returns bytes of text that became known and were not read yet, as the part TEXT.
// * -EINVAL: no answer was begun, or it has ended
// * -ETOKEN: no such token
// * -ELIMIT: the answer is longer than 4 MiB, each token counting as 16 bytes at least
@external("isthmus", "answer_feed")
export declare function answer_feed(token: i32): i32;

// Ends the answer: what was held back, since it might have become a call, is text now.
// Returns number of whole calls in the answer; those that were cut off are none.
// * -EINVAL: no answer was begun
@external("isthmus", "answer_end")
export declare function answer_end(): i32;

// Reads a part of the answer. The part TEXT is read once: it is what came since the last time.
// * part: an answer_part
// * index: which call, from 0; 0 for parts that are of no call
// * ptr: room for it
// * cap: how many bytes fit there
// Returns length of the part in bytes.
// * -EFAULT: the room does not lie in memory
// * -EINVAL: no answer was begun, no such part or call, or a part other than TEXT of an answer that
// has not ended
@external("isthmus", "answer_read")
export declare function answer_read(part: u32, index: u32, ptr: usize, cap: usize): i32;
