// Puts the page together: drawers, the composer, menus, the key, and a server that comes and goes.

import { call, events, isLocked, setKey } from "./api.js";
import * as comparing from "./compare.js";
import { ask, field, menu } from "./dialogs.js";
import { $, announce, button, el, refill, said, save } from "./dom.js";
import * as list from "./list.js";
import * as memory from "./memory.js";
import * as panel from "./panel.js";
import * as pictures from "./pictures.js";
import { settings } from "./settings.js";
import {
  changed,
  changes,
  fork,
  loadAgents,
  loadModels,
  reload,
  remove,
  rename,
  restoreFile,
  show,
  state,
  stop,
  tell,
} from "./state.js";
import * as talk from "./talk.js";

const PROMPTS = [
  "What is an isthmus? Explain it in three sentences.",
  "Write a short poem about memory.",
  "Compare coffee and tea in a table.",
];
const input = $("input"),
  narrow = matchMedia("(max-width: 45rem)");

// Says what went wrong; nobody waits for it. What was said before goes, unless the page does this by itself.
async function guarded(work, byItself = false) {
  if (!byItself) notice("");
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError" || error.status === 401 || error.code === "gone") return;
    if (error.code === "position")
      notice("This agent has gone on elsewhere.", "Show it as it is", () =>
        guarded(() => reload(state.shown)),
      );
    else if (!state.live.get(state.shown)?.failed) notice(error.message);
  }
}
function notice(text, label, act) {
  refill($("notice"), [el("span", {}, text), label && button(label, act, { "data-id": label })]);
  $("notice").hidden = !text;
}

// ---------------------------------------------------------------- drawers

let opener = null;
function open(id) {
  opener = document.activeElement;
  $(id).classList.add("open");
  $("backdrop").hidden = false;
  document.querySelector("main").inert = true;
  $(id).querySelector("[data-close]").focus();
  panel.refresh();
}
function close() {
  if ($("backdrop").hidden) return;
  for (const id of ["side", "panel"]) $(id).classList.remove("open");
  $("backdrop").hidden = true;
  document.querySelector("main").inert = false;
  opener?.focus();
}

function see(tab) {
  panel.choose(tab);
  if (panel.isSeen()) $("tab-" + tab).focus();
  else open("panel");
}

// ---------------------------------------------------------------- composer

function compose() {
  const live = state.live.get(state.shown),
    busy = Boolean(live && !live.failed);
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("stop").disabled = Boolean(live?.stopping);
  const agent = state.agents.get(state.shown);
  $("title").replaceChildren(agent ? said(agent.name || agent.id) : "New agent");
  $("more").disabled = !agent;
  document.title = (agent?.name ? agent.name + " – " : "") + "Isthmus";
  $("model").disabled = busy;
  if (agent) $("model").value = agent.models.default ?? "";
  else $("model").value = state.draft.model ?? state.models[0]?.id ?? "";
  $("attach").hidden = !state.models.some(it => it.id === $("model").value && it.media.length);
}
function models() {
  $("model").replaceChildren(...state.models.map(it => el("option", { value: it.id }, it.id)));
  $("model").hidden = !state.models.length;
  compose();
}
async function chooseModel() {
  const model = $("model").value,
    agent = state.agents.get(state.shown);
  state.draft.model = model;
  if (!agent || agent.models.default === model) return compose();
  announce("The conversation is read by the other model");
  try {
    await fork(agent.position, { model });
  } finally {
    compose();
  }
}
function submit() {
  const text = input.value;
  if (!text.trim() || $("send").hidden) return;
  const id = state.shown;
  if (state.live.get(id)?.failed) state.live.delete(id);
  input.value = "";
  talk.follow();
  guarded(async () => {
    const files = await pictures.take();
    try {
      await tell(text, files);
      announce("The answer is complete");
    } catch (error) {
      if (!state.live.has(state.shown)) {
        input.value ||= text;
        pictures.giveBack();
      }
      throw error;
    }
  });
}

// ---------------------------------------------------------------- menus

function agentMenu() {
  const agent = state.agents.get(state.shown);
  menu($("more"), [
    [
      "Rename",
      () =>
        ask({
          title: "Rename",
          parts: [
            field(
              "Name",
              el("input", { name: "name", value: agent.name, maxLength: 200, dir: "auto", required: true }),
            ),
          ],
          done: form => rename(agent.id, form.get("name")),
        }),
    ],
    ["Fork here", () => guarded(() => fork(agent.position))],
    ["Compare with…", () => see("branches")],
    ["Export as Markdown", () => guarded(exportText)],
    [
      "Export the whole agent",
      () =>
        guarded(async () =>
          save(
            `${agent.id}.${agent.position}.safetensors`,
            await (await call(`v1/agents/${agent.id}/snapshot`)).blob(),
          ),
        ),
    ],
    [
      "Delete",
      () =>
        ask({
          title: "Delete this agent?",
          text: `“${agent.name || agent.id}” and its snapshots are removed. Its forks stay.`,
          go: "Delete",
          bad: true,
          done: () => remove(agent.id),
        }),
      true,
    ],
  ]);
}
function exportText() {
  const agent = state.agent;
  const parts = talk
    .groups(agent.turns)
    .map(
      it =>
        `## You\n\n${it.input}\n\n## ${agent.models.default ?? agent.guest}\n\n${it.parts.map(part => part.output).join("")}\n`,
    );
  save(
    `${agent.name || agent.id}.md`.replace(/[\\/:*?"<>|]/g, "-"),
    new Blob([`# ${agent.name}\n\n`, parts.join("\n")], { type: "text/markdown" }),
  );
}
function pageMenu() {
  menu($("side-more"), [
    [
      "Restore from a file…",
      () =>
        el("input", {
          type: "file",
          accept: ".safetensors",
          onchange: event => guarded(() => restoreFile(event.target.files[0])),
        }).click(),
    ],
    ["Give another key…", () => askKey("Requests are made with this key from now on.")],
    ["Keyboard", () => ask({ title: "Keyboard", cancel: false, go: "Close", parts: [keyboard()] })],
  ]);
}
function keyboard() {
  const rows = [
    ["Enter", "send"],
    ["Shift + Enter", "break the line"],
    ["Escape", "stop the answer, or close what is open"],
    ["Alt + N", "new agent"],
    ["Alt + F", "fork here"],
    ["/", "find an agent"],
    ["↑ ↓ ← →", "agents, tabs, cells of the map"],
  ];
  const node = el("dl", { className: "facts-list" });
  for (const [key, text] of rows) node.append(el("dt", {}, text), el("dd", {}, el("kbd", {}, key)));
  return node;
}

// ---------------------------------------------------------------- the key, and a server that is gone

function askKey(text) {
  ask({
    title: "API key",
    text,
    go: "Use it",
    cancel: false,
    parts: [
      field(
        "Key of this server",
        el("input", { type: "password", name: "key", required: true, autocomplete: "off" }),
      ),
    ],
    done: async form => {
      setKey(form.get("key"));
      await start();
    },
  });
}
events.addEventListener("locked", event => {
  if ($("dialog").open && $("dialog").querySelector("[name=key]")) return;
  askKey(
    event.detail.refused
      ? "The key that you gave is not accepted any more."
      : "This server asks who you are. The key stays in this tab.",
  );
});
let gone = 0;
events.addEventListener("gone", () => {
  if (!gone++) retry(1);
});
events.addEventListener("there", () => {
  if (!gone) return;
  gone = 0;
  guarded(start);
});
function retry(seconds) {
  if (!gone) return;
  notice("The server does not answer. Trying again…", "Try now", () => call("healthz").catch(() => {}));
  setTimeout(async () => {
    await call("healthz").catch(() => {});
    retry(Math.min(30, 2 * seconds));
  }, 1e3 * seconds);
}
async function start() {
  await Promise.all([loadAgents(), loadModels()]);
  const live = state.live.get(state.shown);
  if (state.shown === null || (live && !live.failed)) return changed("agent");
  await reload(state.shown).catch(error => {
    // another key's agents are not shown
    if (error.status !== 404) throw error;
  });
}
async function poll() {
  let busy = 0;
  try {
    if (!document.hidden && !gone && !isLocked()) busy = await panel.poll();
  } catch {
    /* whoever asks for something is told */
  }
  setTimeout(poll, busy || state.live.size ? 1500 : 5000);
}

// ---------------------------------------------------------------- wiring

for (const it of [list, memory, pictures, talk]) it.begin(guarded, close);
comparing.begin();
panel.begin(guarded, close);
for (const name of ["shown", "agent", "live", "agents"]) changes.addEventListener(name, compose);
changes.addEventListener("models", models);
$("prompts").append(
  ...PROMPTS.map(it =>
    button(it, () => {
      input.value = it;
      submit();
    }),
  ),
);
$("form").addEventListener("submit", event => {
  event.preventDefault();
  submit();
});
input.addEventListener("input", () => input.classList.toggle("long", input.value.length > 2e4));
input.addEventListener("keydown", event => {
  if (
    event.key !== "Enter" ||
    event.shiftKey ||
    event.isComposing ||
    (narrow.matches && matchMedia("(pointer: coarse)").matches)
  )
    return;
  event.preventDefault();
  submit();
});
const fresh = () => {
  close();
  guarded(() => show(null));
  input.focus();
};
$("new").addEventListener("click", fresh);
$("stop").addEventListener("click", () => guarded(() => stop(state.shown)));
$("model").addEventListener("change", () => guarded(chooseModel));
$("settings").addEventListener("click", () => guarded(settings));
$("more").addEventListener("click", agentMenu);
$("side-more").addEventListener("click", pageMenu);
$("open-side").addEventListener("click", () => open("side"));
$("open-panel").addEventListener("click", () => open("panel"));
$("backdrop").addEventListener("click", close);
for (const it of document.querySelectorAll("[data-close]")) it.addEventListener("click", close);
document.addEventListener("keydown", event => {
  if ($("dialog").open || $("menu").matches(":popover-open")) return;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName);
  if (event.altKey && event.key === "n") fresh();
  else if (event.altKey && event.key === "f" && state.shown)
    guarded(() => fork(state.agents.get(state.shown).position));
  else if (event.key === "/" && !typing) $("find").focus();
  else if (event.key === "Escape" && !$("backdrop").hidden) close();
  else if (event.key === "Escape" && !$("stop").hidden) guarded(() => stop(state.shown));
  else return;
  event.preventDefault();
});
addEventListener("beforeunload", event => {
  if ([...state.live.values()].some(it => !it.failed)) event.preventDefault();
});
addEventListener("resize", panel.refresh);
document.addEventListener("visibilitychange", () => document.hidden || gone || guarded(loadAgents, true));

let chosen = false; // whether somebody was quicker than the list
changes.addEventListener("shown", () => (chosen = true), { once: true });
guarded(async () => {
  await start();
  if (!chosen) await show([...state.agents.values()].find(it => !it.origin)?.id ?? null);
}, true);
poll();
