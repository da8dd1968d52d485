// Markdown as models write it, made into elements: headings, lists, quotes, tables, code, emphasis and
// links. No HTML is read, and nothing is loaded: a picture becomes a link. Blocks that are complete are
// never touched again, so a long answer costs as much as its last block while it streams.

import { button, copy, el } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)/,
  HEAD = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/,
  RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +(.*)|$)/,
  CELLS = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const OPEN = /^\s*<(think|tool_call)>/,
  LONG = 16384,
  DEEP = 6,
  MAX_ROWS = 1000;
const KIND = { think: "Thought", tool_call: "Tool call" };

// The blocks of some lines: { kind, lines, begin, end, closed }, by lines.
export function* blocks(lines) {
  for (let at = 0; at < lines.length;) {
    const begin = at,
      line = lines[at];
    let found;
    if (!line.trim()) {
      at++;
      continue;
    }
    if ((found = OPEN.exec(line)))
      yield take("fold", closing(lines, begin, `</${found[1]}>`), { name: found[1] });
    else if ((found = FENCE.exec(line)))
      yield take("code", fenced(lines, begin, found[1]), { name: found[2] });
    else if ((found = HEAD.exec(line)))
      yield take("head", begin + 1, { level: found[1].length, text: found[2] });
    else if (RULE.test(line)) yield take("rule", begin + 1);
    else if (/^ {0,3}>/.test(line))
      yield take(
        "quote",
        while_(lines, begin, it => /^ {0,3}>/.test(it)),
      );
    else if (ITEM.test(line)) yield take("list", listed(lines, begin));
    else if (line.includes("|") && CELLS.test(lines[begin + 1] ?? "") && lines[begin + 1].includes("-"))
      yield take(
        "table",
        while_(lines, begin, it => it.includes("|")),
      );
    else yield take("text", paragraph(lines, begin));

    function take(kind, end, more) {
      at = Math.min(end, lines.length);
      return { kind, begin, end: at, lines: lines.slice(begin, at), closed: end <= lines.length, ...more };
    }
  }
}
function while_(lines, at, test) {
  while (at < lines.length && test(lines[at])) at++;
  return at;
}
function closing(lines, begin, mark) {
  const at = lines.findIndex((it, n) => n >= begin && it.includes(mark));
  return at < 0 ? lines.length + 1 : at + 1;
}
function fenced(lines, begin, mark) {
  const end = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`);
  const at = while_(lines, begin + 1, it => !end.test(it));
  return at + 1;
}
function paragraph(lines, begin) {
  let nbytes = 0,
    at = begin;
  for (; at < lines.length; at++) {
    const it = lines[at];
    const ends =
      !it.trim() ||
      FENCE.test(it) ||
      HEAD.test(it) ||
      OPEN.test(it) ||
      /^ {0,3}>/.test(it) ||
      (ITEM.test(it) && it.trim().length > 2);
    if (at > begin && (ends || nbytes > LONG)) break;
    nbytes += it.length;
  }
  return at;
}
function listed(lines, begin) {
  let nbytes = 0,
    at = begin;
  const first = ITEM.exec(lines[begin]),
    base = first[1].length,
    counted = /\d/.test(first[2]);
  for (; at < lines.length; at++) {
    const it = lines[at],
      found = ITEM.exec(it),
      isItem = found !== null;
    if (
      at > begin &&
      isItem &&
      found[1].length <= base + 1 &&
      (nbytes > LONG || /\d/.test(found[2]) !== counted)
    )
      break;
    if (!it.trim()) {
      const next = lines.slice(at + 1, at + 3).find(line => line.trim());
      if (next !== undefined && !ITEM.test(next) && !next.startsWith("  ")) break;
    } else if (!isItem && !it.startsWith("  ") && (HEAD.test(it) || FENCE.test(it) || RULE.test(it))) break;
    nbytes += it.length;
  }
  return at;
}

function drawn(block, depth) {
  if (depth > DEEP) return el("p", {}, block.lines.join("\n"));
  switch (block.kind) {
    case "fold":
      return fold(block);
    case "code":
      return code(block);
    case "head":
      return el("h" + Math.min(6, block.level + 1), { dir: "auto" }, ...inline(block.text));
    case "rule":
      return el("hr");
    case "quote":
      return el(
        "blockquote",
        { dir: "auto" },
        ...all(
          block.lines.map(it => it.replace(/^ {0,3}> ?/, "")),
          depth + 1,
        ),
      );
    case "list":
      return list(block.lines, depth);
    case "table":
      return table(block.lines);
    default:
      return el("p", { dir: "auto" }, ...inline(block.lines.join("\n")));
  }
}
const all = (lines, depth = 0) => [...blocks(lines)].map(it => drawn(it, depth));

function fold(block) {
  const text = block.lines.join("\n").replace(OPEN, "").replace(`</${block.name}>`, "").trim();
  const body =
    block.name === "think" ? el("div", { dir: "auto" }, text) : el("pre", { tabIndex: 0 }, pretty(text));
  const title = KIND[block.name] + (block.name === "tool_call" ? named(text) : "");
  return el("details", { className: "fold" }, el("summary", {}, title), body);
}
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
function named(text) {
  try {
    return ": " + String(JSON.parse(text).name ?? "");
  } catch {
    return "";
  }
}
function code(block) {
  const ended = block.closed && block.lines.length > 1 && FENCE.test(block.lines.at(-1));
  const text = block.lines.slice(1, ended ? -1 : undefined).join("\n");
  const inner = el("code", { dir: "ltr" }, text);
  const copied = button("Copy", () => copy(inner.textContent, copied));
  return el(
    "figure",
    { className: "code" },
    el("figcaption", {}, el("span", {}, block.name || "code"), copied),
    el("pre", { tabIndex: 0 }, inner),
  );
}
function list(lines, depth) {
  const [, , mark] = ITEM.exec(lines[0]),
    ordered = /\d/.test(mark),
    base = ITEM.exec(lines[0])[1].length;
  const items = [];
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length <= base + 1) items.push([found[3] ?? ""]);
    else items.at(-1).push(line.replace(new RegExp(`^ {0,${base + mark.length + 1}}`), ""));
  }
  return el(
    ordered ? "ol" : "ul",
    ordered ? { start: parseInt(mark) } : {},
    ...items.map(it => item(it, depth)),
  );
}
function item(lines, depth) {
  const parts = all(lines, depth + 1);
  const tight = !lines.slice(0, -1).some(it => !it.trim());
  if (tight && parts[0]?.tagName === "P") parts.splice(0, 1, ...parts[0].childNodes);
  const task = typeof parts[0]?.data === "string" && /^\[[ xX]\] /.exec(parts[0].data);
  if (task) parts[0].data = (task[0][1] === " " ? "\u2610 " : "\u2611 ") + parts[0].data.slice(4);
  return el("li", { dir: "auto" }, ...parts);
}
function table(lines) {
  const cells = line =>
    line
      .trim()
      .replace(/^\||\|$/g, "")
      .split(/(?<!\\)\|/)
      .map(it => it.trim().replaceAll("\\|", "|"));
  const sides = cells(lines[1]).map(it => (it.endsWith(":") ? (it.startsWith(":") ? "center" : "end") : ""));
  const row = (line, tag) =>
    el(
      "tr",
      {},
      ...cells(line).map((it, n) => {
        const cell = el(tag, { dir: "auto" }, ...inline(it));
        if (sides[n]) cell.style.textAlign = sides[n];
        return cell;
      }),
    );
  const body = el(
    "table",
    {},
    el("thead", {}, row(lines[0], "th")),
    el("tbody", {}, ...lines.slice(2, MAX_ROWS).map(it => row(it, "td"))),
  );
  const more = lines.length - MAX_ROWS;
  if (more > 0) body.createCaption().textContent = `${more} further rows are not shown.`;
  return el("div", { className: "scrolls", tabIndex: 0, role: "group", "aria-label": "Table" }, body);
}

// Text with emphasis, code and links. A paragraph that is very long stays plain.
export function inline(text, depth = 0) {
  if (text.length > LONG || depth > DEEP) return [text];
  const nodes = [],
    never = {};
  let plain = "",
    at = 0;
  const closes = (mark, from) => {
    if (never[mark] !== undefined && from >= never[mark]) return -1;
    const found = text.indexOf(mark, from);
    if (found < 0) never[mark] = from;
    return found;
  };
  const flush = () => {
    if (plain) nodes.push(plain);
    plain = "";
  };
  const put = (node, end) => {
    flush();
    nodes.push(node);
    at = end;
  };
  while (at < text.length) {
    const rest = text.slice(at, at + 3),
      letter = text[at];
    let end, found;
    if (letter === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else if (
      letter === "`" &&
      (end = closes((found = /^`+/.exec(text.slice(at, at + 40))[0]), at + found.length)) > 0
    )
      put(el("code", {}, text.slice(at + found.length, end).trim() || " "), end + found.length);
    else if (
      (letter === "*" || letter === "_" || rest.startsWith("~~")) &&
      (found = emphasis(text, at, closes))
    )
      put(el(found.tag, {}, ...inline(text.slice(found.begin, found.end), depth + 1)), found.next);
    else if ((letter === "[" || rest.startsWith("![")) && (found = link(text, at, closes)))
      put(found.node, found.next);
    else if (
      letter === "h" &&
      (found = /^https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]*_]/.exec(text.slice(at, at + 2000))) &&
      !/\w/.test(text[at - 1] ?? "")
    )
      put(anchor(found[0], [found[0]]), at + found[0].length);
    else {
      plain += letter;
      at++;
    }
  }
  flush();
  return nodes;
}
function emphasis(text, at, closes) {
  const letter = text[at],
    twice = text[at + 1] === letter,
    mark = twice ? letter + letter : letter;
  const begin = at + mark.length,
    word = /[\p{L}\p{N}]/u;
  if (/\s/.test(text[begin] ?? " ") || (letter === "_" && word.test(text[at - 1] ?? ""))) return null;
  for (
    let end = closes(mark, begin + 1), tries = 0;
    end > 0 && tries < 9;
    end = closes(mark, end + 1), tries++
  ) {
    if (/\s/.test(text[end - 1]) || (letter === "_" && word.test(text[end + mark.length] ?? ""))) continue;
    if (!twice && (text[end + 1] === letter || text[end - 1] === letter)) {
      end++;
      continue;
    }
    return { tag: letter === "~" ? "s" : twice ? "strong" : "em", begin, end, next: end + mark.length };
  }
  return null;
}
function link(text, at, closes) {
  const begin = at + (text[at] === "!" ? 2 : 1),
    middle = closes("](", begin);
  if (middle < 0 || middle - begin > 1000) return null;
  const found = /^\(\s*<?([^\s<>]*?)>?(?:\s+"[^"]*")?\s*\)/.exec(text.slice(middle + 1, middle + 2049));
  if (!found || /\n\n|\]\(/.test(text.slice(begin, middle))) return null;
  const label = text.slice(begin, middle) || found[1];
  return {
    node: anchor(found[1], text[at] === "!" ? ["Picture: " + label] : inline(label, DEEP)),
    next: middle + 1 + found[0].length,
  };
}
function anchor(address, children) {
  if (!/^(https?:\/\/|mailto:)/i.test(address)) return el("span", {}, ...children);
  return el("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

// An answer that grows. `draw` has the element show the whole text; what is complete stays as it is.
export class Growing {
  constructor(root) {
    this.root = root;
    this.text = "";
    this.begin = 0; // of the first block that may still change
    this.open = [];
  }

  draw(text) {
    if (!text.startsWith(this.text.slice(0, 64)) || text.length < this.text.length) this.restart();
    this.text = text;
    if (this.append()) return;
    const wasOpen = this.open[0]?.open === true; // a thought that is being read
    for (const node of this.open) node.remove();
    const lines = text.slice(this.begin).split("\n"),
      found = [...blocks(lines)];
    let line = 0;
    for (const [n, block] of found.entries()) {
      const node = drawn(block, 0);
      this.root.append(node);
      if (n < found.length - 1) continue;
      for (; line < block.begin; line++) this.begin += lines[line].length + 1;
      this.open = [node];
      if (wasOpen && n === 0 && block.kind === "fold") node.open = true;
      const inside = block.kind === "code" && !block.closed && block.lines.length > 1;
      this.code = inside ? node.querySelector("code").firstChild : null;
      this.shown = text.length;
    }
    if (!found.length) this.open = [];
  }

  // Code that goes on is only added to: it may be very long.
  append() {
    const more = this.text.slice(this.shown);
    if (!this.code?.isConnected || /[`~]/.test(more)) return false; // the fence may end
    this.code.appendData(more);
    this.shown = this.text.length;
    return true;
  }

  restart() {
    this.root.replaceChildren();
    this.begin = 0;
    this.open = [];
    this.code = null;
  }
}
