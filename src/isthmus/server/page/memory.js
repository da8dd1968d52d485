// The map of an agent's linear memory, at any of its positions: what lies where, what changed, and what
// it has in common with its forks.

import { get } from "./api.js";
import { $, announce, button, el, facts, refill, size } from "./dom.js";
import { rootOf, children, descent } from "./family.js";
import { fork, state } from "./state.js";

const NAMES = { heap: "heap", stack: "stack", data: "static data", logits: "logits", kv: "KV cache" };
let guarded,
  map = null,
  position = null,
  other = "",
  cursor = -1,
  pointed = -1, // the number of the cell that is pointed at, on whichever map

  leaving = new AbortController();

export function begin(guard) {
  guarded = guard;
  new ResizeObserver(() => map && paint()).observe($("memory"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => map && paint());
}

// The agent that is shown, as it is now.
export function refresh() {
  position = null;
  if (!state.agents.get(state.shown)) other = "";
  guarded(load, true);
}
async function load() {
  leaving.abort();
  leaving = new AbortController();
  const agent = state.agents.get(state.shown);
  if (!agent) {
    map = null;
    $("memory").replaceChildren(
      el(
        "p",
        { className: "dim" },
        "An agent's linear memory appears here: its heap, logits and KV cache, " +
          "with what each turn changed.",
      ),
    );
    return;
  }
  const at = position ?? agent.position,
    relatives = kin(agent);
  if (!relatives.some(it => it.id === other)) other = "";
  const query = new URLSearchParams({ at, ...(other ? { other } : {}) });
  try {
    map = read(await get(`v1/agents/${agent.id}/memory?${query}`, leaving.signal));
  } catch (error) {
    if (error.name === "AbortError") return;
    map = null;
    $("memory").replaceChildren(el("p", { className: "bad" }, error.message));
    return;
  }
  draw(agent, at, relatives);
}
const kin = agent =>
  [...descent(children(state.agents), rootOf(state.agents, agent))]
    .map(it => it.agent)
    .filter(it => it.id !== agent.id);

// The chunks in use, each with what it is.
function read(told) {
  const numbers = runs => {
    const found = new Set();
    for (const [begin, n] of runs) for (let i = 0; i < n; i++) found.add(begin + i);
    return found;
  };
  const places = [
    ["stack", told.stack],
    ["data", told.data],
  ];
  told.sessions.forEach((it, n) => places.push(["logits", it.logits, n], ["kv", it.kv, n]));
  const step = told.chunk_nbytes,
    changed = numbers(told.changed),
    shared = numbers(told.shared);
  const cells = [...numbers(told.used)]
    .sort((a, b) => a - b)
    .map(n => {
      const found = places
        .filter(it => it[1] && (n + 1) * step > it[1][0] && n * step < it[1][0] + it[1][1])
        .at(-1);
      return { n, kind: found?.[0] ?? "heap", place: found, changed: changed.has(n), shared: shared.has(n) };
    });
  return { ...told, cells };
}

function draw(agent, at, relatives) {
  const first = agent.origin?.position ?? 0,
    step = map.chunk_nbytes;
  const sum = test => size(step * map.cells.filter(test).length);
  const slider = el("input", {
    type: "range",
    min: first,
    max: agent.position,
    value: at,
    "aria-label": "Turn",
    onchange: event => {
      position = Number(event.target.value);
      guarded(load);
    },
  });
  const against = el(
    "select",
    {
      onchange: event => {
        other = event.target.value;
        guarded(load);
      },
    },
    el("option", { value: "" }, "what the turn changed"),
    ...relatives.map(it =>
      el(
        "option",
        { value: it.id, selected: it.id === other },
        `what differs from ${it.name || it.id} (turn ${it.position})`,
      ),
    ),
  );
  const restore = () =>
    guarded(async () => {
      await fork(at);
      announce("This is a fork of that turn now");
    });
  const canvas = el("canvas", {
    id: "map",
    tabIndex: 0,
    role: "application",
    "aria-label": "Map of the memory. Arrow keys go from cell to cell.",
    "aria-describedby": "where",
  });
  canvas.addEventListener("pointermove", event => point(cellAt(event)));
  canvas.addEventListener("pointerleave", () => point(-1));
  canvas.addEventListener("keydown", keys);
  const parts = [
    canvas,
    el("output", { id: "where", className: "dim" }),
    legend(),
    first < agent.position && el("label", {}, `After turn ${at} of ${agent.position}`, slider),
    at < agent.position &&
      button(`Restore turn ${at} as a fork`, restore, { className: "wide", "data-id": at }),
    relatives.length > 0 && el("label", {}, "Outlined", against),
    facts([
      ["In use", size(step * map.cells.length)],
      [other ? "Differs" : "Changed by the turn", sum(it => it.changed)],
      ["The same in a fork", sum(it => it.shared)],
      ["Reserved by the guest", size(map.nbytes)],
      [
        "Tokens in the context",
        map.sessions.map(it => `${it.n_tokens} of ${it.n_ctx}`).join(", ") || "none yet",
      ],
    ]),
  ];
  refill($("memory"), parts);
  point(map.cells.findIndex(it => it.n === pointed));
}
function legend() {
  const there = new Set(map.cells.map(it => it.kind));
  const entry = (name, text) => el("span", {}, swatch(name), text);
  return el(
    "div",
    { className: "legend" },
    ...Object.keys(NAMES)
      .filter(it => there.has(it))
      .map(it => entry(it, NAMES[it])),
    entry("changed", other ? "differs" : "changed"),
    entry("shared", "paler: the same in a fork"),
  );
}
function swatch(name) {
  const node = el("i", { className: name in NAMES ? "" : name });
  if (name in NAMES) node.style.background = `var(--${name})`;
  return node;
}

let grid = { side: 1, cell: 1 };
function paint() {
  const canvas = $("map"),
    width = canvas?.clientWidth;
  if (!width) return;
  const colour = {},
    probe = canvas.getContext("2d"),
    scale = devicePixelRatio;
  const side = Math.max(16, Math.ceil(Math.sqrt(map.cells.length)));
  const cell = width / side,
    rows = Math.max(1, Math.ceil(map.cells.length / side));
  grid = { side, cell };
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round((rows * cell + 2) * scale);
  for (const name of [...Object.keys(NAMES), "text", "mark"]) colour[name] = resolved(name);
  probe.scale(scale, scale);
  const gap = cell > 6 ? 1 : 0;
  map.cells.forEach((it, i) => {
    const x = (i % side) * cell,
      y = Math.floor(i / side) * cell,
      w = cell - gap;
    probe.globalAlpha = it.shared ? 0.4 : 1;
    probe.fillStyle = colour[it.kind];
    probe.fillRect(x, y, w, w);
    probe.globalAlpha = 1;
  });
  outline(probe, colour);
}
// A line around what changed, and around the cell that is pointed at.
function outline(context, colour) {
  const { side, cell } = grid,
    line = Math.max(1, Math.min(1.5, cell / 8)),
    gap = cell > 6 ? 0.5 : 0;
  const changed = at => map.cells[at]?.changed === true;
  context.fillStyle = colour.text;
  map.cells.forEach((it, i) => {
    if (!it.changed) return;
    const column = i % side,
      x = column * cell - gap,
      y = Math.floor(i / side) * cell - gap;
    if (!column || !changed(i - 1)) context.fillRect(x, y, line, cell + line);
    if (column === side - 1 || !changed(i + 1))
      context.fillRect(x + cell - (column === side - 1 ? line : 0), y, line, cell + line);
    if (!changed(i - side)) context.fillRect(x, y, cell + line, line);
    if (!changed(i + side)) context.fillRect(x, y + cell, cell + line, line);
  });
  if (cursor < 0) return;
  context.strokeStyle = colour.mark;
  context.lineWidth = 3;
  context.strokeRect((cursor % side) * cell, Math.floor(cursor / side) * cell, cell, cell);
}
function resolved(name) {
  const probe = el("i", { hidden: true });
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function cellAt(event) {
  const x = Math.floor(event.offsetX / grid.cell),
    y = Math.floor(event.offsetY / grid.cell),
    at = y * grid.side + x;
  return at < map.cells.length ? at : -1;
}
function keys(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.side, ArrowDown: grid.side }[event.key];
  if (!step) return;
  event.preventDefault();
  point(Math.max(0, Math.min(map.cells.length - 1, cursor < 0 ? 0 : cursor + step)));
}
const hex = n => "0x" + n.toString(16).padStart(8, "0");
function point(at) {
  cursor = at;
  paint();
  const it = map.cells[at],
    step = map.chunk_nbytes;
  pointed = it?.n ?? -1;
  $("where").textContent = it
    ? `${hex(it.n * step)} – ${hex((it.n + 1) * step)}: ${described(it)}`
    : `One cell is ${size(step)} of the agent's memory. Point at one.`;
}
function described(it) {
  const [kind, place, session] = it.place ?? ["heap"],
    words = [NAMES[kind]];
  if (session !== undefined && map.sessions.length > 1) words[0] += ` of session ${session + 1}`;
  if (kind === "kv")
    words[0] += `, ${size(Math.max(0, it.n * map.chunk_nbytes - place[0]))} into ${size(place[1])}`;
  if (it.changed) words.push(other ? "differs" : "changed by this turn");
  if (it.shared) words.push("the same bytes in a fork");
  return words.join("; ");
}
