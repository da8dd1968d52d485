// Models by name, tokens and texts, conversations.
import * as abi from "./abi";
import { failed, lastError, log, option } from "./index";

/** What was said so far. */
export class Chat {
  private roles: ArrayBuffer[] = [];
  private contents: ArrayBuffer[] = [];

  get length(): i32 {
    return this.roles.length;
  }

  /** Adds a turn. */
  say(role: string, content: string): void {
    this.roles.push(String.UTF8.encode(role));
    this.contents.push(String.UTF8.encode(content));
  }

  /** Forgets the last turn. */
  takeBack(): void {
    this.roles.pop();
    this.contents.pop();
  }

  content(at: i32): ArrayBuffer {
    return this.contents[at];
  }

  /** The turns as the ABI takes them: they refer to this conversation's bytes. */
  raw(): StaticArray<u32> {
    const turns = new StaticArray<u32>(4 * this.length);
    for (let i = 0; i < this.length; i++) {
      unchecked((turns[4 * i] = <u32>changetype<usize>(this.roles[i])));
      unchecked((turns[4 * i + 1] = this.roles[i].byteLength));
      unchecked((turns[4 * i + 2] = <u32>changetype<usize>(this.contents[i])));
      unchecked((turns[4 * i + 3] = this.contents[i].byteLength));
    }
    return turns;
  }
}

/** An open model; it stays open as long as the actor lives. */
export class Model {
  private constructor(
    public handle: i32,
    public info: abi.ModelInfo,
  ) {}

  /** Opens a model that was given to this actor under a name, or returns null. */
  static open(name: string): Model | null {
    const bytes = String.UTF8.encode(name);
    const handle = abi.model_open(changetype<usize>(bytes), bytes.byteLength);
    return failed(handle) ? null : Model.of(handle);
  }

  /** The model of a handle, as it is now, or null. */
  static of(handle: i32): Model | null {
    const info = changetype<abi.ModelInfo>(heap.alloc(offsetof<abi.ModelInfo>()));
    if (failed(abi.model_info(handle, changetype<usize>(info)))) return null;
    return new Model(handle, info);
  }

  /** Opens the model that the option `model` names, by default the one called "default". */
  static openByOption(): Model | null {
    const name = option("model");
    return Model.open(name ? name : "default");
  }

  get hasChatTemplate(): bool {
    return (this.info.flags & abi.MODEL_CHAT_TEMPLATE) != 0;
  }

  /** Token ids of UTF-8 text. `flags` are abi.TOKENIZE_…; PARSE_SPECIAL only for your own text. */
  tokenize(text: ArrayBuffer, flags: i32): StaticArray<i32> | null {
    let cap = text.byteLength / 2 + 16;
    while (true) {
      const room = new StaticArray<i32>(cap);
      const at = changetype<usize>(room);
      const bytes = changetype<usize>(text);
      const n = abi.tokenize(this.handle, bytes, text.byteLength, flags, at, cap);
      if (failed(n)) return null;
      if (n <= cap) return StaticArray.slice<i32>(room, 0, n);
      cap = n;
    }
  }

  /** The bytes that a token stands for; they may end inside a character. */
  detokenize(token: i32): ArrayBuffer | null {
    const tokens: StaticArray<i32> = [token];
    let cap = 32;
    while (true) {
      const room = new ArrayBuffer(cap);
      const at = changetype<usize>(room);
      const n = abi.detokenize(this.handle, changetype<usize>(tokens), 1, 0, at, cap);
      if (failed(n)) return null;
      if (n <= cap) return room.slice(0, n);
      cap = n;
    }
  }

  /** A conversation as the model was trained on it, to where the assistant's turn begins. */
  chatTemplate(chat: Chat): ArrayBuffer | null {
    const turns = chat.raw();
    let cap = 4096;
    while (true) {
      const room = new ArrayBuffer(cap);
      const at = changetype<usize>(room);
      const flags = abi.CHAT_ADD_GENERATION_PROMPT;
      const first = changetype<usize>(turns);
      const n = abi.chat_template(this.handle, first, chat.length, flags, at, cap);
      if (failed(n)) return null;
      if (n <= cap) return room.slice(0, n);
      cap = n;
    }
  }

  /**
   * A conversation as tokens, up to where the assistant's turn begins. Nobody can forge a turn: a
   * content that holds control tokens of the model is refused, and the log says so. Without a
   * chat template the contents are one document.
   */
  chatTokens(chat: Chat): StaticArray<i32> | null {
    const isChat = this.hasChatTemplate;
    if (isChat && !this.isPlain(chat)) return null;
    const text = isChat ? this.chatTemplate(chat) : joined(chat);
    if (!text) return null;
    const special = isChat ? abi.TOKENIZE_PARSE_SPECIAL : 0;
    const tokens = this.tokenize(text, special | abi.TOKENIZE_ADD_SPECIAL);
    if (!tokens) return null;
    // Some templates write the token that ADD_SPECIAL adds: one is enough.
    const twice = tokens.length > 1 && tokens[0] == this.info.token_bos && tokens[1] == tokens[0];
    return twice ? StaticArray.slice<i32>(tokens, 1) : tokens;
  }

  private isPlain(chat: Chat): bool {
    for (let i = 0; i < chat.length; i++) {
      const plain = this.tokenize(chat.content(i), 0);
      const parsed = this.tokenize(chat.content(i), abi.TOKENIZE_PARSE_SPECIAL);
      if (!plain || !parsed) return false;
      const nbytes = <usize>plain.length << 2;
      const same =
        plain.length == parsed.length &&
        memory.compare(changetype<usize>(plain), changetype<usize>(parsed), nbytes) == 0;
      if (same) continue;
      log(abi.LOG_ERROR, "a message holds control tokens of the model");
      failed(-abi.EINVAL);
      return false;
    }
    return true;
  }

  /** 1 if a token ends the generation, 0 if not, or a negative errno. */
  isEnd(token: i32): i32 {
    const flags = abi.token_flags(this.handle, token);
    return flags < 0 ? flags : flags & abi.TOKEN_EOG;
  }
}

/** The contents, one after the other. */
function joined(chat: Chat): ArrayBuffer {
  let text = "";
  for (let i = 0; i < chat.length; i++) text += String.UTF8.decode(chat.content(i));
  return String.UTF8.encode(text);
}
