// Pictures and sounds that go with the next message: dropped on the page, or pasted into the message.

import { $, announce, el, iconButton, size } from "./dom.js";
import { state } from "./state.js";

const TAKEN = /^(image\/(png|jpeg|webp)|audio\/(x-)?wav|audio\/vnd\.wave)$/,
  MAX = 64,
  MAX_NBYTES = 3e6;
let guarded,
  waiting = [],
  reading = Promise.resolve();

export function begin(guard) {
  guarded = guard;
  const hasFiles = event => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", event => {
    if (hasFiles(event)) event.preventDefault();
  });
  addEventListener("drop", event => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    given(event.dataTransfer.files);
  });
  $("input").addEventListener("paste", event => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    given(event.clipboardData.files);
  });
}

function given(files) {
  const all = [...files]; // the event's own list is emptied after it
  reading = reading.then(() => guarded(() => add(all)));
}
async function add(files) {
  for (const file of files) {
    if (!TAKEN.test(file.type)) throw new Error(`${file.name} is none of PNG, JPEG, WebP and WAV.`);
    const all = waiting.reduce((sum, it) => sum + it.size, file.size);
    if (all > MAX_NBYTES) throw new Error(`A message takes ${size(MAX_NBYTES)} of files.`);
    if (waiting.length >= MAX) throw new Error(`A message takes ${MAX} files.`);
    waiting.push({ name: file.name, size: file.size, uri: await read(file) });
    announce(`${file.name} goes with the message`);
  }
  draw();
  $("input").focus();
}
const read = file =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });

function draw() {
  $("files").replaceChildren(
    ...waiting.map(it =>
      el(
        "li",
        {},
        el("span", { dir: "auto" }, `${it.name}, ${size(it.size)}`),
        iconButton("close", `Take ${it.name} away`, () => {
          waiting = waiting.filter(other => other !== it);
          draw();
          $("input").focus();
        }),
      ),
    ),
  );
  $("files").hidden = !waiting.length;
}

// The files of the message that is sent now.
export async function take() {
  await reading;
  const files = waiting.map(it => it.uri);
  waiting = [];
  draw();
  return files;
}
// They were not sent.
export function giveBack(files) {
  if (!waiting.length)
    waiting = files.map((uri, n) => ({ name: `File ${n + 1}`, size: Math.ceil(uri.length * 0.75), uri }));
  draw();
}
// The files of a turn that is told again. Only the page has them, while it is open.
export function again(group) {
  const { n_files, position } = group.parts[0];
  const files = state.files.get(`${state.shown} ${position}`);
  if (n_files && !files)
    throw new Error("The page has the files of this turn no more: add them to a new message.");
  return files ?? [];
}
export const note = n =>
  el("p", { className: "dim files" }, n === 1 ? "1 picture or sound" : `${n} pictures or sounds`);
