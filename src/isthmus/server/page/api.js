// Requests to the page's own server, and what it says of itself: there, gone, or asking for a key.

export const events = new EventTarget();
const tell = (name, detail) => events.dispatchEvent(new CustomEvent(name, { detail }));

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}
let locked = false; // whether a key is asked for, so that nothing is polled

export const isLocked = () => locked;
export function setKey(key) {
  if (key) sessionStorage.setItem("key", key);
  else sessionStorage.removeItem("key");
  locked = false;
}

export async function call(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = key ? { Authorization: "Bearer " + key } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    tell("gone");
    throw new ApiError(0, "gone", "The server does not answer.");
  }
  tell("there");
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const error = new ApiError(response.status, body?.error?.code, body?.error?.message ?? response.statusText);
  if (response.status === 401) {
    const first = !locked;
    locked = true;
    if (first) tell("locked", { refused: key !== null });
  }
  throw error;
}
export const get = async (path, signal) => (await call(path, { signal })).json();
export const send = async (method, path, body) =>
  (await call(path, { method, body: body === undefined ? undefined : JSON.stringify(body) })).json();
export const post = (path, body) => send("POST", path, body);

// The pieces of an answer by `said`; what the server told at its end. `live.message` is the server's name of the message.
export async function converse(id, body, said, live) {
  const response = await begun(id, body, live.message);
  let rest = "",
    done = null;
  try {
    for await (const piece of pieces(response.body)) {
      const parts = (rest + piece).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const at = part.indexOf("data: ");
        if (at < 0) continue; // a comment: it still works
        live.message = /^id: (\w+)/m.exec(part)?.[1] ?? live.message;
        const data = JSON.parse(part.slice(at + 6));
        if (data.error) throw new ApiError(0, data.error.code, data.error.message);
        if (data.text !== undefined) said(data.text);
        else done = data;
      }
    }
  } catch (error) {
    if (error instanceof ApiError) throw error;
    tell("gone");
  }
  if (!done) throw new ApiError(0, "gone", "The server went away before this answer was saved.");
  return done;
}
// A message is heard from its beginning if it is under way or done, and sent if it has not happened.
function begun(id, body, message) {
  const asked = { method: "POST", body: JSON.stringify({ ...body, stream: true }) };
  const ask = headers => call(`v1/agents/${id}/messages`, { ...asked, headers });
  if (!message) return ask();
  return ask({ "Last-Event-ID": message + ".0" }).catch(error => {
    if (error.status !== 404) throw error;
    return ask();
  });
}
async function* pieces(body) {
  // Safari's streams cannot be iterated
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let it; !(it = await reader.read()).done;) yield it.value;
}
