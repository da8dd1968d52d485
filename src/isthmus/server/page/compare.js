// Two agents side by side: the turns that both have once, the others beside each other, and how their
// memories differ.

import { get } from "./api.js";
import { $, el, iconButton, plural, said, size } from "./dom.js";
import { common } from "./family.js";
import { Growing } from "./markdown.js";
import { changes, state } from "./state.js";
import { groups } from "./talk.js";

export function begin() { changes.addEventListener("shown", close); }

export async function compare(id) {
  const one = state.agents.get(state.shown), two = state.agents.get(id);
  const query = new URLSearchParams({ other: id });
  const [left, right, found] = await Promise.all([get("v1/agents/" + one.id), get("v1/agents/" + id), get(`v1/agents/${one.id}/diff?${query}`)]);
  const n = common(state.agents, one, two), node = $("compare");
  const memory = found.same ? "Their memories are the same." :
    `${plural(found.n_chunks_changed, "chunk")} of memory (${size(found.nbytes_changed)}) differ: ` +
    Object.entries(found.places).map(([name, count]) => `${count} in ${name}`).join(", ") + ".";
  node.replaceChildren(
    el("div", { className: "top" }, el("p", { className: "dim" }, n ? `The first ${plural(n, "turn")} are the same. ${memory}` : memory),
      iconButton("close", "Close the comparison", close)),
    el("div", { className: "two" }, column(left, n), column(right, n)));
  for (const it of ["turns", "empty"]) $(it).hidden = true;
  node.hidden = false;
  $("scroll").scrollTop = 0;
  node.querySelector("button").focus();
}
function column(agent, from) {
  const turns = groups(agent.turns.filter(it => it.position > from));
  return el("div", {}, el("h3", {}, said(agent.name || agent.id)), ...turns.map(it => {
    const answer = el("div", { className: "answer", dir: "auto" });
    new Growing(answer).draw(it.parts.map(part => part.output).join(""));
    return el("div", { className: "turn" }, it.input && el("div", { className: "said", dir: "auto" }, it.input), answer);
  }), !turns.length && el("p", { className: "dim" }, "It has no further turns."));
}
function close() {
  if ($("compare").hidden) return;
  $("compare").hidden = true;
  $("compare").replaceChildren();
  $("turns").hidden = !$("turns").children.length;
}
