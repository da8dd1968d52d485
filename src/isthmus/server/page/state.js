// What the page knows: the agents, the one that is shown, and the answers that are under way.

import { call, converse, get, post, send } from "./api.js";

export const state = {
  agents: new Map(),
  models: [],
  shown: null, // the id of the agent that is shown; null for one that is not made yet
  agent: null, // that agent with its turns, once they are there
  draft: { guest: "chat", args: {}, argv: [], model: null }, // of an agent that is not made yet
  live: new Map(), // by agent: { input, files, text, failed, stopping, message }
  files: new Map(), // by agent and position: what was sent from this page, as data URIs
};
export const changes = new EventTarget();
export const changed = name => changes.dispatchEvent(new Event(name));
const LONGEST = "1024";
export const FORMS = ["json_schema", "grammar", "regex"];

export async function loadAgents() {
  const listed = (await get("v1/agents")).data;
  state.agents = new Map(listed.map(it => [it.id, it]));
  changed("agents");
}
export async function loadModels() {
  state.models = (await get("v1/models")).data.filter(it => it.makes_text);
  changed("models");
}

function keep(agent) {
  const { turns, ...summary } = agent;
  state.agents.set(agent.id, summary);
  changed("agents");
  if (state.shown !== agent.id) return;
  state.agent = agent;
  changed("agent");
}

let leaving = new AbortController();
// Shows an agent at once, and its turns when they are there. Whoever asks for another does not wait.
export async function show(id) {
  leaving.abort();
  leaving = new AbortController();
  state.shown = id;
  state.agent = null;
  if (id === null) state.draft = { ...state.draft, args: {}, argv: [], guest: "chat" };
  changed("shown");
  if (id !== null) await reload(id, leaving.signal);
}
export async function reload(id, signal) {
  try {
    keep(await get("v1/agents/" + id, signal));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 404) forget(id);
    throw error;
  }
}

// The first words of what somebody says: a name for what is not named yet.
function nameOf(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length <= 48 ? line : line.slice(0, 48).replace(/\s+\S*$/, "") + "…";
}
async function make(text) {
  const { guest, args, argv, model } = state.draft;
  const all = guest === "chat" ? { max_tokens: LONGEST, ...args } : args;
  const asked = { name: nameOf(text), guest, args: all, argv, ...(model ? { model } : {}) };
  const made = await post("v1/agents", asked);
  state.shown = made.id;
  keep(made);
  changed("shown");
  return made;
}

// Tells the agent that is shown something; an empty text has its last answer go on. `message` names one that was cut off.
export async function tell(text, files = [], message) {
  await answer(state.shown === null ? await make(text) : state.agents.get(state.shown), text, files, message);
}
async function answer(agent, text, files, message) {
  const live = { input: text, files, message, text: "", failed: null, stopping: false, began: performance.now(), n: 0 };
  state.live.set(agent.id, live);
  changed("live");
  try {
    const said = piece => {
      live.text += piece;
      live.n++;
      changed("piece");
    };
    const asked = { input: text, previous: agent.position, ...(files.length ? { files } : {}) };
    await converse(agent.id, asked, said, live);
    state.live.delete(agent.id);
    if (files.length) state.files.set(`${agent.id} ${agent.position + 1}`, files);
    await reload(agent.id);
  } catch (error) {
    if (state.live.has(agent.id)) live.failed = error;
    throw error;
  } finally {
    changed("live");
  }
}

// Ends the answer of an agent; what was said is kept.
export async function stop(id) {
  const live = state.live.get(id);
  if (!live || live.failed || live.stopping) return;
  live.stopping = true;
  changed("live");
  try {
    await post(`v1/agents/${id}/stop`);
  } finally {
    live.stopping = false;
  }
}

// A fork that is shown next, with other options or another model if `how` has them.
export async function fork(position, how = {}) {
  const agent = state.agents.get(state.shown);
  const made = await post(`v1/agents/${agent.id}/fork`, { name: agent.name, position, ...how });
  leaving.abort();
  state.shown = made.id;
  state.agent = null;
  keep(made);
  changed("shown");
  return made;
}
// Says something else at a turn, or the same again with other chance.
export async function retell(position, text, files = []) {
  const seed = String(crypto.getRandomValues(new Uint32Array(1))[0]);
  const isChat = state.agents.get(state.shown).guest === "chat";
  await fork(position - 1, isChat ? { args: { seed } } : {});
  await tell(text, files);
}

export async function rename(id, name) {
  keep(await send("PATCH", "v1/agents/" + id, { name }));
}
export async function remove(id) {
  await send("DELETE", "v1/agents/" + id);
  forget(id);
}
function forget(id) {
  state.agents.delete(id);
  state.live.delete(id);
  changed("agents");
  if (state.shown === id) show(null);
}
export async function restoreFile(file) {
  const name = file.name.replace(/(\.\d+)?\.safetensors$/, "");
  const made = await call("v1/agents/restore?" + new URLSearchParams({ name }), {
    method: "POST",
    body: file,
  });
  const agent = await made.json();
  state.agents.set(agent.id, agent);
  changed("agents");
  await show(agent.id);
}
