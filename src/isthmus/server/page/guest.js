// Which guest a new agent is made of, and what one other than `chat` is given.

import { get } from "./api.js";
import { field } from "./dialogs.js";
import { el } from "./dom.js";

const lines = text =>
  text
    .split("\n")
    .map(it => it.replace(/\r$/, ""))
    .filter(it => it !== "");

// Fields of a draft; `ofChat` is shown for the guest that has it alone.
export async function choice(draft, ofChat) {
  const guests = (await get("v1/guests")).data;
  const select = el("select", { name: "guest" });
  select.append(
    ...guests.map(it =>
      el(
        "option",
        { value: it.id, selected: it.id === draft.guest },
        it.kind === "brought" ? `${it.name || it.id.slice(0, 12)}, brought` : it.id,
      ),
    ),
  );
  const options = Object.entries(draft.args).map(it => it.join("="));
  const box = (name, value) =>
    el("textarea", { name, value: value.join("\n"), spellcheck: false, dir: "ltr" });
  const own = el(
    "div",
    {},
    field("Options, or a command's variables", box("options", options), "NAME=VALUE, one a line"),
    field("A command's arguments", box("argv", draft.argv), "One a line"),
  );
  select.onchange = () => {
    ofChat.hidden = select.value !== "chat";
    own.hidden = !ofChat.hidden;
  };
  select.onchange();
  return [field("Guest", select), ofChat, own];
}

export function readOwn(form) {
  const options = lines(form.get("options")).map(it => {
    const [name, ...rest] = it.split("=");
    if (!name || !rest.length) throw new Error(`${it}: give NAME=VALUE.`);
    return [name, rest.join("=")];
  });
  return { args: Object.fromEntries(options), argv: lines(form.get("argv")) };
}
