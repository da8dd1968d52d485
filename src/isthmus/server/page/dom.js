// Elements made of text alone: nothing in this page ever reads HTML.

export const $ = id => document.getElementById(id);

// An element. Properties that the element has are set, all others become attributes.
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && !name.includes("-")) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter(it => it !== null && it !== undefined && it !== false));
  return node;
}

// Has an element show these children. One that was there already, by its id or its `data-id`, or by its place and
// tag, stays the same element, so that a press, a focus or a scroll of that moment is not lost. What it does when
// it is pressed stays too, so that may depend on nothing but the id.
export function refill(parent, children) {
  const keyOf = it => it.id || it.dataset?.id;
  const named = new Map([...parent.children].map(it => [keyOf(it), it]));
  let at = parent.firstChild;
  for (const made of children.filter(Boolean)) {
    const key = keyOf(made);
    const had = key ? named.get(key) : at && !keyOf(at) && at.nodeName === made.nodeName ? at : null;
    if (had) become(had, made);
    const node = had ?? made;
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
  }
  for (let next; at; at = next) {
    next = at.nextSibling;
    at.remove();
  }
}
function become(old, made) {
  if (old === made) return;
  if (made.data !== undefined) return void (old.data = made.data); // a text
  for (const { name } of [...old.attributes]) if (!made.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of made.attributes)
    if (name === "style")
      old.style.cssText = value; // the policy refuses the attribute
    else if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  refill(old, [...made.childNodes]);
  if (old.value !== made.value) old.value = made.value;
}

const SVG = "http://www.w3.org/2000/svg";
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg"),
    use = document.createElementNS(SVG, "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", "#i-" + name);
  svg.append(use);
  return svg;
}

export const button = (text, onclick, more = {}, ...rest) =>
  el("button", { type: "button", onclick, ...more }, text, ...rest);
export const iconButton = (name, label, onclick) =>
  button(icon(name), onclick, { className: "icon", "aria-label": label, title: label });

// What somebody wrote, in its own direction of reading.
export const said = (text, className = "") => el("bdi", { className, dir: "auto" }, text);

export function size(n) {
  if (n < 1024) return n + " B";
  const unit = ["KiB", "MiB", "GiB", "TiB"][Math.min(3, Math.floor(Math.log2(n) / 10) - 1)];
  return (n / 1024 ** (["KiB", "MiB", "GiB", "TiB"].indexOf(unit) + 1)).toFixed(1) + " " + unit;
}
// By hand: a browser takes 10 ms to set up its own way, and would do so at the end of the first answer.
export const count = n => String(n).replace(/\B(?=(\d{3})+$)/g, ",");
export const plural = (n, one) => `${count(n)} ${one}${n === 1 ? "" : "s"}`;

export function facts(values) {
  const list = el("dl", { className: "facts-list" });
  for (const [name, value] of values) list.append(el("dt", {}, name), el("dd", {}, value));
  return list;
}

// Tells a screen reader, and nobody else.
export function announce(text) {
  $("status").textContent = text;
}

export async function copy(text, button) {
  await navigator.clipboard.writeText(text);
  announce("Copied");
  if (!button) return;
  const before = [...button.childNodes];
  button.replaceChildren("Copied");
  setTimeout(() => button.replaceChildren(...before), 1500);
}

export function save(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60e3);
}
