/** What a script that is run as an agent sees; `isthmus run agent.js` runs one. */

/** Defined by the script: handles a message. A string that it returns is emitted. */
declare function onMessage(text: string): string | void;

/**
 * May be defined by the script: the model is another one from now on. Sessions are open and empty,
 * and token ids that were kept mean nothing; texts are what they were.
 */
declare function onReplay(): void;

declare namespace isthmus {
  /** Streams a piece of the answer. */
  function emit(text: string): void;
  /** Writes a line to the agent's log. */
  function log(text: string, level?: "debug" | "info" | "warning" | "error"): void;
  /** An option that the agent was spawned with, `key=value`, or the second argument. */
  function option(name: string): string | undefined;
  function option(name: string, standard: string): string;
  /** Calls a tool of the host; undefined if this agent was not given it. */
  function tool(name: string, args?: string): string | undefined;
  /** Opens a model by name; by default the one that the option `model` names, or "default". */
  function openModel(name?: string): Model;

  interface Turn {
    role: "system" | "user" | "assistant";
    content: string;
  }

  interface Model {
    /** A conversation as tokens, up to the assistant's turn; refuses control tokens in a content. */
    chatTokens(turns: Turn[]): number[];
    /** parseSpecial is only for text of your own. */
    tokenize(text: string, flags?: { addSpecial?: boolean; parseSpecial?: boolean }): number[];
    detokenize(tokens: number[]): string;
    /** Whether a token ends the generation. */
    isEnd(token: number): boolean;
    /** A session of nCtx tokens; by default of the option n_ctx, or what the model knows. */
    openSession(nCtx?: number): Session;
  }

  /** One sequence of tokens, whose KV cache and logits lie in the agent's memory. */
  interface Session {
    readonly model: Model;
    readonly length: number;
    /** Makes it hold exactly these tokens; computes only what is new. */
    become(tokens: number[]): void;
    /** Appends a token. */
    decode(token: number): void;
    /** Forgets all tokens after the first n. Returns how many are left. */
    keep(n: number): number;
    /** Draws the next token, by the options temperature, top_k, …, seed. Does not append it. */
    sample(): number;
    /** The logits in place, one for each token of the vocabulary. */
    logits(): Float32Array;
    /** Makes it hold what another session of its model holds. */
    copyFrom(other: Session): void;
    /** Draws, streams and appends up to maxTokens tokens. Returns their text. */
    generate(maxTokens?: number): string;
    close(): void;
  }
}
