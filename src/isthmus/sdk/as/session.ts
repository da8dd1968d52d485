// Sequences of tokens whose KV cache and logits lie in this guest's memory, samplers and grammars.
import * as abi from "./abi";
import { failed, lastError, optionFloat, optionInt } from "./index";
import { Model } from "./model";

const WASM_PAGE: i64 = 65536;

/** The host's sampler: its settings and random state, which lie in this guest's memory. */
export class Sampler {
  raw: abi.Sampler = changetype<abi.Sampler>(heap.alloc(offsetof<abi.Sampler>()));

  /**
   * Reads the options temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n and seed.
   * Without a seed the actor's own chance decides.
   */
  static byOption(): Sampler {
    const made = new Sampler();
    const raw = made.raw;
    raw.temperature = <f32>optionFloat("temperature", 0.7);
    raw.top_k = <u32>optionInt("top_k", 40);
    raw.top_p = <f32>optionFloat("top_p", 0.95);
    raw.min_p = <f32>optionFloat("min_p", 0.05);
    raw.repeat_penalty = <f32>optionFloat("repeat_penalty", 1.1);
    raw.repeat_last_n = <u32>optionInt("repeat_last_n", 64);
    const random = new StaticArray<i64>(1);
    abi.random(changetype<usize>(random), 8);
    raw.rng_state = <u64>optionInt("seed", random[0]);
    return made;
  }
}

/** Whole pages of linear memory, or 0. */
function takePages(nbytes: i64): usize {
  const page = memory.grow(<i32>((nbytes + WASM_PAGE - 1) / WASM_PAGE));
  if (page < 0) {
    failed(-abi.ENOMEM);
    return 0;
  }
  return <usize>page << 16;
}

/** One sequence of tokens. Its KV cache and logits lie in pages that it keeps for good. */
export class Session {
  tokens: i32[] = [];

  private constructor(
    public model: Model,
    public handle: i32,
    public nCtx: i32,
    private at: usize,
    private nbytes: i64,
  ) {}

  /** Opens a session of nCtx tokens, in memory of its own, or returns null. */
  static open(model: Model, nCtx: i32): Session | null {
    const nbytes = abi.session_nbytes(model.handle, nCtx);
    if (failed(nbytes)) return null;
    const at = takePages(nbytes);
    if (!at) return null;
    const handle = abi.session_open(model.handle, nCtx, at, <usize>nbytes);
    return failed(handle) ? null : new Session(model, handle, nCtx, at, nbytes);
  }

  /**
   * For on_replay: opens the session anew, empty, which the host closed because its model is
   * another one now. 0 or a negative errno.
   */
  reopen(): i32 {
    const model = Model.of(this.model.handle);
    if (!model) return -lastError;
    this.model = model;
    this.nCtx = min(this.nCtx, <i32>model.info.n_ctx_train);
    const nbytes = abi.session_nbytes(model.handle, this.nCtx);
    if (failed(nbytes)) return -lastError;
    if (nbytes > this.nbytes) {
      this.at = takePages(nbytes);
      if (!this.at) return -lastError;
      this.nbytes = nbytes;
    }
    const handle = abi.session_open(model.handle, this.nCtx, this.at, <usize>nbytes);
    if (failed(handle)) return -lastError;
    this.handle = handle;
    this.tokens.length = 0;
    return 0;
  }

  /** Opens a session of the option n_ctx; by default what the model knows, up to 2,048. */
  static openByOption(model: Model): Session | null {
    const usual = min(model.info.n_ctx_train, 2048);
    return Session.open(model, <i32>optionInt("n_ctx", usual));
  }

  /** Appends tokens, many at a time. On an error the session is as it was. */
  prefill(tokens: StaticArray<i32>): i32 {
    const done = abi.prefill(this.handle, changetype<usize>(tokens), tokens.length);
    if (done < 0) return done;
    for (let i = 0; i < tokens.length; i++) this.tokens.push(tokens[i]);
    return 0;
  }

  /** Appends one token. On an error the session is as it was. */
  decode(token: i32): i32 {
    const done = abi.decode(this.handle, token);
    if (done == 0) this.tokens.push(token);
    return done;
  }

  /** Forgets all tokens after the first n; all if the model takes none back. How many are left. */
  keep(n: i32): i32 {
    let done = abi.truncate(this.handle, n);
    if (done == -abi.ENOTSUP) {
      n = 0;
      done = abi.truncate(this.handle, 0);
    }
    if (done < 0) return done;
    this.tokens.length = n;
    return n;
  }

  /**
   * Makes the session hold exactly these tokens, with logits after them. It computes only what
   * follows the tokens that both have in common.
   */
  become(tokens: StaticArray<i32>): i32 {
    if (tokens.length > this.nCtx) return -abi.ECONTEXT; // before anything is lost
    let n = 0;
    while (n < this.tokens.length && n + 1 < tokens.length && this.tokens[n] == tokens[n]) n++;
    const kept = this.keep(n);
    return kept < 0 ? kept : this.prefill(StaticArray.slice<i32>(tokens, kept));
  }

  /** Where the logits lie: f32[n_vocab], in place. 0 if there are none. */
  logits(): usize {
    const address = abi.logits(this.handle);
    return failed(address) ? 0 : <usize>address;
  }

  /** Draws the next token, or returns a negative errno. Does not append it. */
  sample(sampler: Sampler): i32 {
    return abi.sample(this.handle, changetype<usize>(sampler.raw));
  }

  /**
   * Streams a token's text to the caller, and appends it to bytes and the token to the session.
   * Returns 1, or 0 if the token ends the generation: then nothing happened.
   */
  emitToken(token: i32, bytes: u8[]): i32 {
    const before = bytes.length;
    let room = 32;
    while (true) {
      bytes.length = before + room;
      const need = abi.emit_token(this.handle, token, bytes.dataStart + before, room);
      const done = need >= 0 && need <= room;
      if (done) this.tokens.push(token);
      if (done || need < 0 || need == abi.EMIT_END) {
        bytes.length = before + (done ? need : 0);
        return done ? 1 : need < 0 ? need : 0;
      }
      room = need;
    }
  }

  /**
   * Draws, emits and appends up to maxTokens tokens, until the model ends its turn or the caller
   * wants no more. Returns their text, or null.
   */
  generate(sampler: Sampler, maxTokens: i32): string | null {
    const bytes: u8[] = [];
    for (let i = 0; i < maxTokens; i++) {
      const token = this.sample(sampler);
      if (failed(token)) return null;
      const more = this.emitToken(token, bytes);
      if (more == 0 || more == -abi.ECANCELED) break;
      if (failed(more)) return null;
    }
    return String.UTF8.decodeUnsafe(bytes.dataStart, bytes.length);
  }
}

/** A text that follows a grammar, as far as it is. */
export class Grammar {
  private constructor(public handle: i32) {}

  /** Begins a text. `kind` is one of abi.GRAMMAR_KIND_… */
  static open(model: Model, kind: i32, source: string): Grammar | null {
    const bytes = String.UTF8.encode(source);
    const at = changetype<usize>(bytes);
    const handle = abi.grammar_open(model.handle, kind, at, bytes.byteLength);
    return failed(handle) ? null : new Grammar(handle);
  }

  /** Masks the logits of what may not come next. 0 if the text may only end. */
  mask(session: Session): i32 {
    return abi.grammar_mask(this.handle, session.handle);
  }

  /** Goes on after a token, which becomes part of the text. */
  accept(token: i32): i32 {
    return abi.grammar_accept(this.handle, token);
  }

  close(): void {
    abi.grammar_close(this.handle);
  }
}
