// The conversation: what was said, what was answered, and what can be done at each turn.

import { $, announce, button, copy, count, el, icon, iconButton, plural, refill, size } from "./dom.js";
import { alternatives, children } from "./family.js";
import { Growing } from "./markdown.js";
import { again as filesAgain, note } from "./pictures.js";
import { FORMS, changes, fork, retell, show, state, tell } from "./state.js";

const AT_ONCE = 30,
  NEAR = 48,
  MAX_SHOWN = 8000,
  CUT_OFF = ["gone", "stopping"]; // ways to fail after which an answer may go on
let guarded,
  atOnce = AT_ONCE,
  follows = true,
  growing = null,
  pending = 0,
  notBefore = 0,
  nLive = 0;

export function begin(guard) {
  guarded = guard;
  changes.addEventListener("shown", () => {
    atOnce = AT_ONCE;
    follows = true;
    draw();
  });
  changes.addEventListener("agent", draw);
  changes.addEventListener("live", draw);
  changes.addEventListener("agents", () => state.agent && walks());
  changes.addEventListener("piece", () => {
    pending ||= requestAnimationFrame(grow);
  });
  const scroll = $("scroll");
  scroll.addEventListener(
    "scroll",
    () => {
      follows = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR;
      $("latest").hidden = follows;
    },
    { passive: true },
  );
  new ResizeObserver(toEnd).observe(scroll); // a phone that is turned, or its keyboard
  $("latest").addEventListener("click", () => {
    follows = true;
    toEnd();
    $("input").focus();
  });
}
export function follow() {
  follows = true;
}

function toEnd() {
  if (follows) $("scroll").scrollTop = $("scroll").scrollHeight;
  $("latest").hidden = follows;
}

// Turns, with those that only go on with an answer as a part of it.
export function groups(turns) {
  const found = [];
  for (const turn of turns) {
    const before = found.at(-1);
    if (turn.input === "" && before) before.parts.push(turn);
    else found.push({ input: turn.input, parts: [turn] });
  }
  return found;
}
const textOf = group => group.parts.map(it => it.output).join("");

function draw() {
  const live = state.live.get(state.shown),
    all = groups(state.agent?.turns ?? []);
  const isNew = state.shown === null,
    list = $("turns");
  const had = new Map([...list.children].map(it => [it.dataset.id, it])); // a turn that is the same stays
  $("empty").hidden = !(isNew || (state.agent && !all.length && !live));
  const was = growing;
  growing = null;
  const goesOn = live && live.input === "" && all.length;
  const shown = all.slice(-atOnce);
  const nodes = shown.map((it, n) => {
    const isLast = n === shown.length - 1;
    if (isLast && goesOn) return turn(it, { live, was });
    const id = [state.shown, it.parts[0].position, it.parts.length, isLast && !live].join();
    return had.get(id) ?? turn(it, { id, isLast: isLast && !live, was: isLast && was });
  });
  if (live && !goesOn) nodes.push(turn({ input: live.input, parts: [] }, { live, was }));
  if (all.length > shown.length) nodes.unshift(earlier(all.length - shown.length));
  refill(list, nodes);
  list.hidden = !nodes.length;
  list.setAttribute("aria-busy", String(!isNew && !state.agent && !live));
  walks();
  toEnd();
}

function earlier(n) {
  const more = () => {
    atOnce += AT_ONCE;
    draw();
  };
  const text = `Show ${Math.min(AT_ONCE, n)} earlier turns`;
  return el("li", { "data-id": "earlier" }, button(text, more, { className: "wide" }));
}
// `was` is the answer that grew until now: it is not drawn twice.
function turn(group, { id = `live ${nLive++}`, live = null, isLast = false, was = null }) {
  const node = el("li", { className: "turn", "data-id": id });
  const last = group.parts.at(-1),
    first = group.parts[0];
  const n_files = first?.n_files ?? live?.files.length ?? 0;
  if (n_files) node.append(note(n_files));
  if (group.input !== "") node.append(el("div", { className: "said", dir: "auto" }, shortened(group.input)));
  const before = textOf(group),
    text = before + (live?.text ?? "");
  const grown =
    was && text.startsWith(was.grown.text) ? was.grown : new Growing(el("div", { className: "answer", dir: "auto" }));
  grown.draw(text);
  node.append(grown.root);
  if (live && !live.failed) {
    growing = { grown, before, live };
    node.append(
      el("p", {
        className: "thinking",
        "aria-label": live.text ? "Answering" : "Waiting for the first word",
      }),
    );
  } else if (live) node.append(failure(live));
  else {
    node.dataset.position = first.position;
    if (last.n_left_out)
      node.append(
        el(
          "p",
          { className: "ended" },
          `${plural(last.n_left_out, "character")} more were said, and are not kept.`,
        ),
      );
    if (isLast && last.ended && last.ended !== "end") node.append(ended(last));
    node.append(foot(group, node));
  }
  return node;
}
export const shortened = text =>
  text.length <= MAX_SHOWN
    ? text
    : `${text.slice(0, MAX_SHOWN)}… and ${plural(text.length - MAX_SHOWN, "character")} more`;
function failure(live) {
  const leave = () => {
    state.live.delete(state.shown);
    draw();
  };
  const again = () => {
    leave();
    const message = CUT_OFF.includes(live.failed.code) ? live.message : undefined;
    guarded(() => tell(live.input, live.files, message));
  };
  return el(
    "div",
    { className: "ended", role: "alert" },
    el("span", { className: "failed" }, live.failed.message),
    button("Try again", again),
    button("Leave it", leave),
  );
}
function ended(turn) {
  const why = { stopped: "You stopped it here.", max_tokens: `Cut at ${plural(turn.n_decoded, "token")}.` };
  why.exit = `It exited with the status ${turn.exit_status}.`;
  why.n_ctx = `The context of ${count(Number(state.agent.args.n_ctx ?? 0))} tokens is full. Fork an earlier turn, or begin a new agent.`;
  const agent = state.agent,
    can = agent.guest === "chat" && turn.ended !== "n_ctx" && !FORMS.some(it => it in agent.args);
  return el(
    "p",
    { className: "ended" },
    why[turn.ended] ?? `Ended by the limit ${turn.ended}.`,
    can && button("Go on", () => guarded(() => tell("")), { id: "go-on" }),
  );
}

function foot(group, node) {
  const total = name => group.parts.reduce((sum, it) => sum + it[name], 0),
    position = group.parts[0].position;
  const tools = group.parts.flatMap(it => it.tool_calls.map(call => call.name + (call.error && " (failed)")));
  const said = `${tools.length ? tools.join(", ") + " · " : ""}${plural(total("n_tokens"), "token")} · ${total("seconds").toFixed(1)} s · ${size(total("nbytes_written"))} saved`;
  const forks = () =>
    guarded(async () => {
      await fork(group.parts.at(-1).position);
      announce("This is a fork now");
      $("input").focus();
    });
  const copied = iconButton("copy", "Copy the answer", () => guarded(() => copy(textOf(group))));
  return el(
    "footer",
    {},
    el("span", { className: "facts" }, said),
    el("span", { className: "walk" }),
    copied,
    iconButton("again", "Answer again", () => guarded(() => retell(position, group.input, filesAgain(group)))),
    iconButton("edit", "Say something else here", () => edit(group, node)),
    button(icon("fork"), forks, { "aria-label": "Fork after this turn" }, "Fork"),
  );
}

// Where a turn has other answers in other branches: a way to walk to them.
function walks() {
  const agent = state.agents.get(state.shown),
    below = children(state.agents);
  if (!agent) return;
  for (const node of $("turns").querySelectorAll("[data-position]")) {
    const all = alternatives(state.agents, agent, Number(node.dataset.position), below),
      at = all.indexOf(agent);
    const step = (n, name, label) => {
      const made = iconButton(name, label, () => guarded(() => show(all[at + n].id)));
      made.disabled = !all[at + n];
      made.dataset.id = name + all[at + n]?.id;
      return made;
    };
    const walk = node.querySelector(".walk");
    if (walk)
      refill(
        walk,
        all.length < 2
          ? []
          : [
              step(-1, "left", "The branch before"),
              el("span", {}, `${at + 1} of ${count(all.length)}`),
              step(1, "right", "The next branch"),
            ],
      );
  }
}

function edit(group, node) {
  const said = node.querySelector(".said"),
    input = el("textarea", { "aria-label": "What to say instead", value: group.input, rows: 3 });
  const cancel = () => {
    form.replaceWith(said);
    node.querySelector("[aria-label^=Say]").focus();
  };
  const form = el(
    "form",
    { className: "editing" },
    input,
    el(
      "div",
      {},
      button("Cancel", cancel),
      el("button", { className: "main" }, "Send in a fork"),
    ),
  );
  form.addEventListener("submit", event => {
    event.preventDefault();
    if (input.value.trim()) guarded(() => retell(group.parts[0].position, input.value, filesAgain(group)));
  });
  form.addEventListener("keydown", event => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  said.replaceWith(form);
  input.focus();
}

// Draws what has come since the last frame, less often if that takes long.
function grow(now) {
  pending = 0;
  if (!growing) return;
  if (now < notBefore) {
    pending = requestAnimationFrame(grow);
    return;
  }
  const began = performance.now(),
    { grown, before, live } = growing;
  grown.draw(before + live.text);
  toEnd();
  const took = performance.now() - began;
  notBefore = took > 6 ? performance.now() + 4 * took : 0;
}
