// The panel beside the conversation: memory, branches, the agent's limits and log, and who computes now.

import { get } from "./api.js";
import { compare } from "./compare.js";
import { $, button, count, copy, el, facts, iconButton, plural, refill, said, size } from "./dom.js";
import { children, descent, rootOf } from "./family.js";
import * as memory from "./memory.js";
import { changes, show, state } from "./state.js";

const TABS = ["memory", "branches", "about", "work"],
  SPEEDS = 60;
let guarded,
  tab = "memory",
  close,
  speeds = [],
  last = null,
  activity = null;

export function begin(guard, closeDrawers) {
  guarded = guard;
  close = closeDrawers;
  for (const name of TABS) $("tab-" + name).addEventListener("click", () => choose(name));
  $("panel")
    .querySelector("[role=tablist]")
    .addEventListener("keydown", event => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      choose(TABS[(TABS.indexOf(tab) + step + TABS.length) % TABS.length]);
      $("tab-" + tab).focus();
    });
  for (const name of ["shown", "agent"]) changes.addEventListener(name, refresh);
  changes.addEventListener("agents", () => tab === "branches" && refresh());
  choose(tab);
}
export function choose(name) {
  tab = name;
  for (const it of TABS) {
    $("tab-" + it).setAttribute("aria-selected", String(it === name));
    $("tab-" + it).tabIndex = it === name ? 0 : -1;
    $(it).hidden = it !== name;
  }
  refresh();
}
export const isSeen = () => getComputedStyle($("panel")).visibility === "visible";
export function refresh() {
  if (!isSeen()) return;
  if (tab === "memory") memory.refresh();
  else if (tab === "branches") branches();
  else if (tab === "about") guarded(about, true);
  else work();
}

// What a button of the panel does: the drawer is closed before.
const leaving = work => () => {
  close();
  guarded(work);
};

function branches() {
  const agent = state.agents.get(state.shown);
  if (!agent) return $("branches").replaceChildren(dim("The forks of an agent appear here, as a tree."));
  const family = [...descent(children(state.agents), rootOf(state.agents, agent))];
  const rows = family.map(({ agent: it, level }) => {
    const where = level ? `from turn ${it.origin.position}` : plural(it.position, "turn");
    const row = el(
      "div",
      { className: "branch", "data-id": it.id, "aria-current": String(it.id === state.shown) },
      button(
        said(it.name || it.id, "name"),
        leaving(() => show(it.id)),
        {},
        el(
          "span",
          { className: "dim small" },
          level ? `${where}, ${it.position - it.origin.position} own` : where,
        ),
      ),
      it.id !== state.shown &&
        button(
          "Compare",
          leaving(() => compare(it.id)),
          { "aria-label": `Compare with ${it.name || it.id}, ${where}` },
        ),
    );
    row.style.setProperty("--level", Math.min(level, 6));
    return row;
  });
  refill($("branches"), [
    ...rows,
    family.length < 2 && dim("No forks yet. Every turn has a button that makes one, and so has another answer."),
    others(family),
  ]);
}
function others(family) {
  const inside = new Set(family.map(it => it.agent.id));
  const rest = [...state.agents.values()].filter(it => !inside.has(it.id)).slice(0, 500);
  if (!rest.length) return "";
  const choice = el(
    "select",
    { onchange: event => leaving(() => compare(event.target.value))() },
    el("option", { value: "" }, "an agent of another family"),
    ...rest.map(it => el("option", { value: it.id }, it.name || it.id)),
  );
  return el("label", {}, "Compare with", choice);
}
const dim = text => el("p", { className: "dim" }, text);

async function about() {
  const agent = state.agents.get(state.shown),
    turns = state.agent?.turns ?? [];
  if (!agent) return $("about").replaceChildren(dim("What an agent is, may use and has used appears here."));
  const [found, log] = await Promise.all([
    get(`v1/agents/${agent.id}/inspect`),
    get(`v1/agents/${agent.id}/log`),
  ]);
  if (agent.id !== state.shown) return;
  const sum = name => turns.reduce((total, it) => total + it[name], 0),
    session = found.sessions[0];
  const most = name =>
    agent.limits[name] === undefined || agent.limits[name] === null
      ? "no limit"
      : name.endsWith("nbytes")
        ? size(agent.limits[name])
        : String(agent.limits[name]);
  const parent = agent.origin && state.agents.get(agent.origin.id);
  refill($("about"), [
    facts([
      ["Model", Object.values(agent.models).join(", ") || "none"],
      ["Guest", agent.guest.slice(0, 12)],
      ["Made", new Date(agent.created * 1e3).toLocaleString()],
      ...(agent.origin
        ? [["Forked", `${parent?.name || agent.origin.id}, turn ${agent.origin.position}`]]
        : []),
      ["Id", agent.id],
    ]),
    el("h2", {}, "Used, and may use"),
    facts([
      ["Tokens", count(sum("n_tokens"))],
      ["Seconds", sum("seconds").toFixed(1)],
      ["Memory in use", size(found.memory_nbytes_used)],
      ["Tokens of one message", most("tokens")],
      ["Tokens of one answer", most("tokens_out")],
      ["Output of one message", most("output_nbytes")],
      ["Memory", most("memory_nbytes")],
      ["Seconds of one message", most("deadline_s")],
      ...(session ? [["Context", `${count(session.n_tokens)} of ${count(session.n_ctx)}`]] : []),
    ]),
    session ? gauge(session.n_tokens / session.n_ctx) : "",
    el("h2", {}, "Tools"),
    dim(found.tools.join(", ") || "It was given none."),
    el("h2", {}, "Options"),
    Object.keys(agent.args).length ? facts(Object.entries(agent.args)) : dim("None were given."),
    el("h2", {}, "Log"),
    log.lines.length
      ? el(
          "div",
          { className: "log", tabIndex: 0, role: "log" },
          log.lines.map(it => `${it.level} ${it.text}`).join("\n"),
        )
      : dim("It has logged nothing since the server began."),
    session
      ? el(
          "details",
          {},
          el("summary", {}, "What its session holds"),
          el("div", { className: "log", tabIndex: 0 }, session.text),
        )
      : "",
  ]);
}
function gauge(part) {
  const bar = el("i");
  bar.style.width = Math.min(100, 100 * part) + "%";
  return el("div", { className: "bar", "aria-hidden": "true" }, bar);
}

// Once every few seconds: who computes now.
export async function poll() {
  activity = await get("v1/activity");
  const totals = activity.totals,
    now = performance.now();
  if (totals && last) {
    const s = (now - last.now) / 1e3,
      steps = totals.steps - last.totals.steps;
    speeds = [...speeds, (totals.tokens_decoded - last.totals.tokens_decoded) / s].slice(-SPEEDS);
    activity.prefill = (totals.tokens_prefilled - last.totals.tokens_prefilled) / s;
    activity.batch = steps > 0 ? (totals.tokens_in_steps - last.totals.tokens_in_steps) / steps : 0;
  }
  last = totals && { now, totals };
  if (tab === "work" && isSeen()) work();
  return activity.answering.length;
}
function work() {
  if (!activity) return $("work").replaceChildren(dim("Looking…"));
  const { answering, totals } = activity;
  const rows = answering.map(it =>
    button(
      said(it.name || it.id),
      leaving(() => show(it.id)),
      { "data-id": it.id },
      el(
        "span",
        { className: "dim small number" },
        `${count(it.n_pieces)} pieces, ${(it.n_pieces / Math.max(0.1, it.seconds)).toFixed(0)}/s`,
      ),
    ),
  );
  const parts = [
    el(
      "h2",
      {},
      rows.length
        ? `${plural(rows.length, "agent")} ${rows.length === 1 ? "answers" : "answer"} now`
        : "Nobody computes now",
    ),
    el("div", { className: "busy-list" }, ...rows),
  ];
  if (totals)
    parts.push(
      el("h2", {}, "Tokens a second"),
      el("canvas", {
        id: "speed",
        role: "img",
        "aria-label": `Tokens decoded a second, by all: ${(speeds.at(-1) ?? 0).toFixed(0)} now`,
      }),
      facts([
        ["Decoded now", (speeds.at(-1) ?? 0).toFixed(0) + " /s"],
        ["Prompts read now", (activity.prefill ?? 0).toFixed(0) + " /s"],
        ["Sequences in a step, mean", activity.batch ? activity.batch.toFixed(1) : "–"],
      ]),
      el("h2", {}, "Since the server began"),
      facts([
        ["Tokens decoded", count(totals.tokens_decoded)],
        ["Tokens of prompts", count(totals.tokens_prefilled)],
        ["Tensor bytes copied", size(totals.bytes_copied)],
        ["Guests in memory, idle ones too", String(totals.in_memory)],
        ...(totals.resident_nbytes ? [["Resident memory, weights too", size(totals.resident_nbytes)]] : []),
      ]),
    );
  else parts.push(dim("This key may not read what is counted of all."));
  refill($("work"), parts);
  plot();
}
function plot() {
  const canvas = $("speed"),
    context = canvas?.getContext("2d");
  if (!context) return;
  const width = (canvas.width = canvas.clientWidth * devicePixelRatio),
    height = (canvas.height = canvas.clientHeight * devicePixelRatio);
  const most = Math.max(1, ...speeds),
    step = width / SPEEDS;
  context.fillStyle = getComputedStyle($("send")).backgroundColor;
  speeds.forEach((speed, i) =>
    context.fillRect(
      i * step,
      height - (height * speed) / most,
      step - 2 * devicePixelRatio,
      (height * speed) / most + 1,
    ),
  );
}
