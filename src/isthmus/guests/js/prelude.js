// What a script sees, over `natives`: see isthmus.d.ts. Compiled into the guest as prelude.h.
(() => {
  const native = globalThis.natives;
  delete globalThis.natives;
  const ROLES = ["system", "user", "assistant"];
  const SPECIAL = { add: 1, parse: 2 };

  class Session {
    #at;
    constructor(model, at) {
      this.model = model;
      this.#at = at;
    }
    get length() { return native.call(this.#at, 0, 0); }
    become(tokens) { native.become(this.#at, tokens); }
    decode(token) { native.call(this.#at, 1, token); }
    keep(n) { return native.call(this.#at, 2, n); }
    sample() { return native.call(this.#at, 3, 0); }
    logits() { return new Float32Array(native.logits(this.#at)); }
    copyFrom(other) { native.copy(this.#at, other.#at); }
    generate(maxTokens = 256) { return native.generate(this.#at, maxTokens); }
    close() { native.call(this.#at, 4, 0); }
  }

  class Model {
    #handle;
    constructor(handle) { this.#handle = handle; }
    chatTokens(turns) {
      const flat = turns.flatMap(({ role, content }) => {
        if (!ROLES.includes(role)) throw new RangeError(`a role is one of ${ROLES}, not ${role}`);
        return [ROLES.indexOf(role), content];
      });
      return native.chatTokens(this.#handle, flat);
    }
    tokenize(text, { addSpecial = false, parseSpecial = false } = {}) {
      const flags = (addSpecial ? SPECIAL.add : 0) | (parseSpecial ? SPECIAL.parse : 0);
      return native.tokenize(this.#handle, text, flags);
    }
    detokenize(tokens) { return native.detokenize(this.#handle, tokens); }
    isEnd(token) { return native.isEnd(this.#handle, token); }
    openSession(nCtx = 0) { return new Session(this, native.openSession(this.#handle, nCtx)); }
  }

  globalThis.isthmus = Object.freeze({
    emit: (text) => native.emit(String(text)),
    log: (text, level = "info") =>
      native.log(["debug", "info", "warning", "error"].indexOf(level), String(text)),
    option: (name, standard) => native.option(name) ?? standard,
    tool: (name, args = "") => native.tool(name, args),
    openModel: (name) => new Model(native.openModel(name ?? native.option("model") ?? "default")),
  });
  globalThis.replay = () => {
    if (typeof globalThis.onReplay === "function") globalThis.onReplay();
  };
  globalThis.handle = (text) => {
    if (typeof globalThis.onMessage !== "function")
      throw new TypeError("the script defines no function onMessage(text)");
    const answer = globalThis.onMessage(text);
    if (typeof answer === "string") native.emit(answer);
  };
})();
