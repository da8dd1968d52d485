// What an agent written in AssemblyScript is built on: a thin layer over the guest ABI, abi.ts.
//
//   messages   message, emit, reply, log
//   options    option, optionInt, optionFloat
//   tools      callTool
//   models     Model: by name, tokens and texts, conversations
//   sessions   Session: tokens whose KV cache and logits lie in this guest's memory
//   grammars   Grammar: what a text must follow
//
// Functions return a value of 0 or more, or a negative errno such as -abi.ECONTEXT: AssemblyScript
// has no exceptions to catch. What returns an object sets `lastError` and returns null instead.
import * as abi from "./abi";
export { abi };
export { Chat, Model } from "./model";
export { Grammar, Sampler, Session } from "./session";

/** The errno of the last call that returned null; 0 if none did. */
export let lastError: i32 = 0;

/** Remembers a result that is an errno; whether it is one. */
export function failed(result: i64): bool {
  lastError = result < 0 ? <i32>-result : 0;
  return result < 0;
}

/** What asc calls for a failed assertion or an index out of bounds: the line goes to the log. */
export function abort(text: string | null, file: string | null, line: u32, column: u32): void {
  const where = (file ? file : "?") + ":" + line.toString() + ":" + column.toString();
  log(abi.LOG_ERROR, (text ? text : "abort") + " at " + where);
  unreachable();
}

/** The message, of the length that on_message was given. */
export function message(nbytes: i32): string {
  const bytes = new ArrayBuffer(nbytes);
  abi.message_read(changetype<usize>(bytes), nbytes);
  return String.UTF8.decode(bytes);
}

/** Streams a piece of the answer. */
export function emit(text: string): i32 {
  return emitBytes(String.UTF8.encode(text));
}

/** Streams bytes, which may be cut anywhere, also inside a character. */
export function emitBytes(bytes: ArrayBuffer): i32 {
  return abi.emit(changetype<usize>(bytes), bytes.byteLength);
}

/** Sets the answer, in place of all that was emitted. */
export function reply(text: string): i32 {
  const bytes = String.UTF8.encode(text);
  return abi.reply(changetype<usize>(bytes), bytes.byteLength);
}

/** Writes a line to the actor's log; `level` is one of abi.LOG_… */
export function log(level: i32, line: string): i32 {
  const bytes = String.UTF8.encode(line);
  return abi.log(level, changetype<usize>(bytes), bytes.byteLength);
}

/** Calls a function of the host by name. null, with lastError ENOENT, if this actor has none. */
export function callTool(name: string, args: string): string | null {
  const nameBytes = String.UTF8.encode(name);
  const argBytes = String.UTF8.encode(args);
  const nbytes = abi.tool_call(
    changetype<usize>(nameBytes),
    nameBytes.byteLength,
    changetype<usize>(argBytes),
    argBytes.byteLength,
  );
  if (failed(nbytes)) return null;
  const result = new ArrayBuffer(nbytes);
  if (failed(abi.tool_result(changetype<usize>(result), nbytes))) return null;
  return String.UTF8.decode(result);
}

@external("wasi_snapshot_preview1", "args_sizes_get")
declare function args_sizes_get(nArgs: usize, nbytes: usize): i32;
@external("wasi_snapshot_preview1", "args_get")
declare function args_get(args: usize, bytes: usize): i32;

let known: string[] | null = null;

/** All options, as key=value; they are read once and kept. */
function options(): string[] {
  const read = known;
  if (read) return read;
  const sizes = new StaticArray<u32>(2);
  const at = changetype<usize>(sizes);
  args_sizes_get(at, at + 4);
  const places = new StaticArray<u32>(sizes[0]);
  const bytes = new ArrayBuffer(sizes[1]);
  args_get(changetype<usize>(places), changetype<usize>(bytes));
  const all = String.UTF8.decode(bytes).split("\0");
  known = all;
  return all;
}

/** The value of the option `key=value` that the actor was spawned with; the last one counts. */
export function option(key: string): string | null {
  const given = options();
  let found: string | null = null;
  for (let i = 0; i < given.length; i++) {
    if (given[i].startsWith(key + "=")) found = given[i].slice(key.length + 1);
  }
  return found;
}

/** An option that is a number, or its default. A value that is none leaves the default. */
export function optionFloat(key: string, standard: f64): f64 {
  const text = option(key);
  if (!text) return standard;
  const value = parseFloat(text);
  if (!isNaN(value)) return value;
  log(abi.LOG_WARNING, "option " + key + " is '" + text + "': give a number");
  return standard;
}

/** An option that is a whole number, or its default. */
export function optionInt(key: string, standard: i64): i64 {
  const text = option(key);
  if (!text) return standard;
  if (!isNaN(parseInt(text))) return I64.parseInt(text);
  log(abi.LOG_WARNING, "option " + key + " is '" + text + "': give a whole number");
  return standard;
}
