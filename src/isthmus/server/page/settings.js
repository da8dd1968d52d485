// What an agent is made with: its system prompt, sampler and form. An agent that is there already goes
// on with other settings as a fork, so nothing that was said is lost.

import { ask, field } from "./dialogs.js";
import { announce, el } from "./dom.js";
import { choice, readOwn } from "./guest.js";
import { FORMS, changed, fork, state } from "./state.js";

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
  "": "Anything",
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
  const formed = FORMS.find(it => it in args) ?? "";
  const text = el("textarea", {
    name: "form",
    value: formed ? args[formed] : "",
    spellcheck: false,
    dir: "ltr",
  });
  const source = field("What it has to follow", text),
    kind = el("select", { name: "kind" });
  kind.append(
    ...Object.entries(NAMES).map(([value, name]) =>
      el("option", { value, selected: value === formed }, name),
    ),
  );
  kind.onchange = () => {
    source.hidden = !kind.value;
  };
  source.hidden = !formed;
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
    el(
      "div",
      { className: "fields" },
      ...NUMBERS.map(([name, label, usual, bounds]) =>
        field(label, el("input", { type: "number", name, value: args[name] ?? "", placeholder: usual, ...bounds })),
      ),
    ),
    field("Answers follow", kind),
    source,
  );
  const parts = agent ? [ofChat] : await choice(state.draft, ofChat);
  ask({
    title: "Settings",
    go: agent ? "Go on in a fork" : "Use these",
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
      if (!differing.length) return;
      await fork(agent.position, { args: Object.fromEntries(differing.map(it => [it, wanted[it] ?? null])) });
      announce("This is a fork with the new settings");
    },
  });
}

function read(form) {
  const found = {};
  for (const name of ["system", ...NUMBERS.map(it => it[0])])
    if (form.get(name).trim()) found[name] = form.get(name);
  const kind = form.get("kind"),
    text = form.get("form");
  if (!kind) return found;
  if (!text.trim()) throw new Error("Say what answers have to follow, or choose Anything.");
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
