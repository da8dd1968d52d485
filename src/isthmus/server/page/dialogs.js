// Dialogs and menus: one of each at a time.

import { $, button, el } from "./dom.js";

// A form with these parts. What `done` gives is awaited: if it throws, the dialog stays and says why.
export function ask({ title, text, parts = [], go = "Done", also, bad = false, done, cancel = true }) {
  const dialog = $("dialog"),
    wrong = el("p", { className: "wrong", role: "alert" });
  const form = el(
    "form",
    { method: "dialog" },
    el("h2", { id: "dialog-title" }, title),
    text && el("p", {}, text),
    ...parts,
    wrong,
    el(
      "div",
      { className: "buttons" },
      cancel && button("Cancel", () => dialog.close()),
      el("button", { className: bad ? "bad" : "main" }, go),
      also && el("button", { name: "also" }, also),
    ),
  );
  form.addEventListener("submit", async event => {
    event.preventDefault();
    const { submitter } = event,
      given = new FormData(form, submitter); // a disabled button is no part of it
    wrong.textContent = "";
    submitter.disabled = true;
    try {
      await done?.(given);
      dialog.close();
    } catch (error) {
      wrong.textContent = error.message;
    } finally {
      submitter.disabled = false;
    }
  });
  dialog.replaceChildren(form);
  if (!dialog.open) dialog.showModal();
  form.querySelector("input, textarea, .main, .bad").focus();
}

export const field = (label, control, note) =>
  el("label", {}, label, control, note && el("span", { className: "dim" }, note));

// Items are [label, what it does]; the menu hangs below its button.
export function menu(above, items) {
  const node = $("menu");
  node.replaceChildren(
    ...items.map(([label, act, bad]) => {
      const done = () => {
        node.hidePopover();
        act();
      };
      return button(label, done, { role: "menuitem", className: bad ? "bad" : "" });
    }),
  );
  above.closest("nav, main").append(node); // a landmark, and one that is not inert
  const place = above.getBoundingClientRect();
  node.style.top = place.bottom + 4 + "px";
  node.style.left = Math.max(8, Math.min(place.left, innerWidth - 232)) + "px";
  node.showPopover();
  node.firstChild.focus();
  node.onkeydown = event => {
    const all = [...node.children],
      at = all.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1 + all.length, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    all[to % all.length].focus();
  };
}
