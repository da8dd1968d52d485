// The list of agents: families, folded unless one of them is shown; a tree for the keyboard.

import { $, el, icon, refill, said } from "./dom.js";
import { children, descent, rootOf } from "./family.js";
import { changes, show, state } from "./state.js";

const open = new Set(); // ids of the families that are unfolded
let focused = null;

export function begin(guarded, close) {
  const tree = $("agents");
  for (const name of ["agents", "shown", "live"]) changes.addEventListener(name, draw);
  $("find").addEventListener("input", draw);
  tree.addEventListener("click", event => {
    const id = event.target.closest("li")?.dataset.id;
    if (!id) return;
    if (event.target.closest(".twist")) return fold(id, !open.has(id));
    close();
    guarded(() => show(id));
  });
  tree.addEventListener("keydown", event => {
    const id = document.activeElement.dataset?.id;
    if (!id) return;
    const all = [...tree.children],
      at = all.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to !== undefined) focus(all[to]);
    else if (event.key === "ArrowRight") fold(id, true);
    else if (event.key === "ArrowLeft") fold(id, false);
    else if (event.key === "Enter" || event.key === " ") {
      close();
      guarded(() => show(id));
    } else return;
    event.preventDefault();
  });
}
function focus(row) {
  if (!row) return;
  focused = row.dataset.id;
  for (const it of $("agents").children) it.tabIndex = it === row ? 0 : -1;
  row.focus();
}
function fold(id, opens) {
  if (opens) open.add(id);
  else open.delete(id);
  draw();
}

let drawing = 0;
function draw() {
  // once for all that changed together
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(now);
}
function now() {
  const words = $("find").value.trim().toLowerCase(),
    below = children(state.agents);
  const shown = state.agents.get(state.shown);
  if (shown?.origin) open.add(rootOf(state.agents, shown).id);
  const rows = words ? matches(words) : families(below);
  const tree = $("agents"),
    had = tree.contains(document.activeElement);
  const last = rows.some(it => it.dataset.id === focused) ? focused : state.shown;
  (rows.find(it => it.dataset.id === last) ?? rows[0])?.setAttribute("tabindex", "0");
  refill(tree, rows);
  if (had && !tree.contains(document.activeElement)) tree.querySelector("[tabindex='0']")?.focus();
  $("none").hidden = rows.length > 0;
  $("none").textContent = words ? `No agent is called “${words}”.` : "No agents yet.";
}
function* unfolded(below) {
  for (const root of below.get(null) ?? []) {
    const family = below.has(root.id) ? [...descent(below, root)] : [{ agent: root, level: 0 }];
    const isOpen = open.has(root.id);
    yield { ...family[0], forks: family.length - 1, isOpen };
    if (isOpen) yield* family.slice(1);
  }
}
const families = below => [...unfolded(below)].map(row);
function matches(words) {
  const all = [...state.agents.values()];
  return all
    .filter(it => (it.name || it.id).toLowerCase().includes(words))
    .map(agent => row({ agent, level: 0 }));
}
function row({ agent, level, forks = 0, isOpen = false }) {
  const live = state.live.get(agent.id),
    busy = live && !live.failed;
  const where = agent.origin ? `from turn ${agent.origin.position}` : "";
  const node = el(
    "li",
    {
      role: "treeitem",
      className: busy ? "busy" : "",
      "data-id": agent.id,
      tabindex: -1,
      "aria-level": level + 1,
      "aria-selected": String(agent.id === state.shown),
      "aria-expanded": forks ? String(isOpen) : undefined,
      title: agent.name || agent.id,
    },
    forks > 0 && el("span", { className: "twist" }, icon("right")),
    said(agent.name || agent.id, "name"),
    el(
      "span",
      { className: "n" },
      busy ? "answers" : level ? where : forks ? `${forks + 1} branches` : String(agent.position || ""),
    ),
  );
  node.style.setProperty("--level", Math.min(level, 5));
  return node;
}
