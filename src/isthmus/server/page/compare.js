// Two agents side by side: the turns that both have once, the others beside each other, and how their
// memories differ.

import { get } from "./api.js";
import { $, el, iconButton, plural, said, size } from "./dom.js";
import { common } from "./family.js";
import { Growing } from "./markdown.js";
import { changes, state } from "./state.js";
import { groups, shortened } from "./talk.js";

export function begin() {
  changes.addEventListener("shown", close);
}

export async function compare(id) {
  const one = state.agents.get(state.shown),
    two = state.agents.get(id);
  const query = new URLSearchParams({ other: id });
  const [left, right, found] = await Promise.all([
    get("v1/agents/" + one.id),
    get("v1/agents/" + id),
    get(`v1/agents/${one.id}/diff?${query}`),
  ]);
  const n = common(state.agents, one, two),
    node = $("compare");
  const memory = found.same
    ? "Their memories are the same."
    : `${size(found.nbytes_changed)} of their memories differ, most of it in ${most(found.places)}.`;
  node.replaceChildren(
    el(
      "div",
      { className: "top" },
      el(
        "p",
        { className: "dim" },
        (n > 1 ? `Turns 1 to ${n} are the same. ` : n ? "Turn 1 is the same. " : "") + memory,
      ),
      iconButton("close", "Close the comparison", close),
    ),
    el("div", { className: "two" }, column(left, n), column(right, n)),
  );
  for (const it of ["turns", "empty"]) $(it).hidden = true;
  node.hidden = false;
  $("scroll").scrollTop = 0;
  node.querySelector("button").focus();
}
const PLACES = [
  ["the KV cache", /\.[kv] of all layers$/],
  ["logits", /\.logits$/],
  ["the heap", /^memory\./],
];
function most(places) {
  const sums = PLACES.map(([name, test]) => [
    name,
    Object.entries(places).reduce((sum, [place, n]) => sum + (test.test(place) ? n : 0), 0),
  ]);
  return sums.sort((a, b) => b[1] - a[1])[0][0];
}
function column(agent, from) {
  const turns = groups(agent.turns.filter(it => it.position > from));
  return el(
    "div",
    {},
    el(
      "h2",
      { className: "whose" },
      said(agent.name || agent.id),
      el("span", { className: "dim small" }, ` ${plural(agent.position, "turn")}`),
    ),
    ...turns.map(it => {
      const answer = el("div", { className: "answer", dir: "auto" });
      new Growing(answer).draw(it.parts.map(part => part.output).join(""));
      return el(
        "div",
        { className: "turn" },
        it.input && el("div", { className: "said", dir: "auto" }, shortened(it.input)),
        answer,
      );
    }),
    !turns.length && el("p", { className: "dim" }, "It has no further turns."),
  );
}
function close() {
  if ($("compare").hidden) return;
  $("compare").hidden = true;
  $("compare").replaceChildren();
  $("turns").hidden = !$("turns").children.length;
}
