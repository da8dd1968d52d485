// What an agent is made with: its system prompt, sampler and form. An agent that is there already goes
// on with other settings as a fork, so nothing that was said is lost.

import { ask, field } from "./dialogs.js";
import { announce, el } from "./dom.js";
import { choice, readOwn } from "./guest.js";
import { FORMS, changed, fork, state, tell } from "./state.js";
import { groups } from "./talk.js";

const NUMBERS = [
  ["temperature", "Temperature", "0.7", { min: 0, max: 100, step: "any" }],
  ["top_p", "Top p", "0.95", { min: 0, max: 1, step: "any" }],
  ["min_p", "Min p", "0.05", { min: 0, max: 1, step: "any" }],
  ["top_k", "Top k", "40", { min: 0, step: 1 }],
  ["repeat_penalty", "Repeat penalty", "1.1", { min: 0.01, max: 100, step: "any" }],
  ["max_tokens", "Longest answer", "1024", { min: 1, step: 1 }],
  ["seed", "Seed", "by chance", { step: 1 }],
];
const NAMES = {
  json_schema: "A JSON schema",
  grammar: "A grammar (GBNF)",
  regex: "A regular expression",
};

export async function settings() {
  const agent = state.agents.get(state.shown),
    args = agent?.args ?? state.draft.args;
  if (agent && agent.guest !== "chat") {
    ask({
      title: "Settings",
      cancel: false,
      text:
        `The guest ${agent.guest.slice(0, 12)} has options of its own: ` +
        ([...Object.entries(args).map(it => it.join("=")), ...agent.argv].join(", ") || "none were given") +
        ".",
    });
    return;
  }
  const formed = FORMS.find(it => it in args);
  const options = Object.entries(NAMES).map(([value, name]) =>
    el("option", { value, selected: value === formed }, name),
  );
  const ofChat = el(
    "div",
    {},
    field(
      "System prompt",
      el("textarea", {
        name: "system",
        value: args.system ?? "",
        placeholder: "The model's own",
        dir: "auto",
      }),
    ),
    field("Answers have to follow", el("select", { name: "kind" }, ...options)),
    el("textarea", {
      name: "form",
      value: args[formed] ?? "",
      placeholder: "Nothing: answers are free",
      "aria-label": "What answers have to follow",
      spellcheck: false,
      dir: "ltr",
    }),
    el(
      "div",
      { className: "fields" },
      ...NUMBERS.map(([name, label, usual, bounds]) =>
        field(label, el("input", { type: "number", name, value: args[name] ?? "", placeholder: usual, ...bounds })),
      ),
    ),
  );
  const parts = agent ? [ofChat] : await choice(state.draft, ofChat);
  const last = groups(state.agent?.turns ?? []).at(-1);
  ask({
    title: "Settings",
    go: agent ? "Go on in a fork" : "Use these",
    also: last && "Answer again with these",
    text: agent
      ? "A fork goes on from here with these settings; this agent stays as it is."
      : "For the agent that your first message makes.",
    parts,
    done: async form => {
      const guest = agent?.guest ?? form.get("guest"),
        wanted = guest === "chat" ? read(form) : readOwn(form);
      if (!agent) {
        Object.assign(state.draft, guest === "chat" ? { args: wanted, argv: [] } : wanted, { guest });
        changed("draft");
        return;
      }
      const names = ["system", ...NUMBERS.map(it => it[0]), ...FORMS];
      const differing = names.filter(it => (wanted[it] ?? null) !== (args[it] ?? null));
      const changes = Object.fromEntries(differing.map(it => [it, wanted[it] ?? null]));
      const again = form.has("also");
      if (!again && !differing.length) return;
      await fork(again ? last.parts[0].position - 1 : agent.position, { args: changes });
      announce("This is a fork with the new settings");
      if (again) tell(last.input).catch(() => {}); // its turn says what went wrong
    },
  });
}

function read(form) {
  const found = {};
  for (const name of ["system", ...NUMBERS.map(it => it[0])])
    if (form.get(name).trim()) found[name] = form.get(name);
  const kind = form.get("kind"),
    text = form.get("form");
  if (!text.trim()) return found;
  if (kind === "json_schema") {
    try {
      JSON.parse(text);
    } catch (error) {
      throw new Error("The schema is no JSON: " + error.message);
    }
  }
  found[kind] = text;
  return found;
}
