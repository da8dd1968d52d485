// Pictures and sounds that go with the next message: chosen, dropped on the page, or pasted.

import { $, announce, el, iconButton, size } from "./dom.js";
import { state } from "./state.js";

const TAKEN = /^(image\/(png|jpeg|webp)|audio\/(x-)?wav|audio\/vnd\.wave)$/,
  MAX = 64,
  MAX_NBYTES = 3e6;
let guarded,
  waiting = [],
  sent = [],
  reading = Promise.resolve();

export function begin(guard) {
  guarded = guard;
  for (const kind of ["dragover", "drop", "paste"])
    addEventListener(kind, event => {
      const data = event.dataTransfer ?? event.clipboardData;
      if (!data?.types.includes("Files")) return;
      event.preventDefault();
      if (kind !== "dragover") given(data.files);
    });
  const picked = $("picked");
  $("attach").onclick = () => picked.click();
  picked.onchange = () => {
    given(picked.files);
    picked.value = "";
  };
}

function given(files) {
  const all = [...files]; // the event's own list is emptied after it
  reading = reading.then(() => guarded(() => add(all)));
}
async function add(files) {
  for (let file of files) {
    if (!TAKEN.test(file.type)) throw new Error(`${file.name} is none of PNG, JPEG, WebP and WAV.`);
    const { name } = file;
    file = await smaller(file);
    const all = waiting.reduce((sum, it) => sum + it.size, file.size);
    if (all > MAX_NBYTES) throw new Error(`A message takes ${size(MAX_NBYTES)} of files.`);
    if (waiting.length >= MAX) throw new Error(`A message takes ${MAX} files.`);
    waiting.push({ name, size: file.size, uri: await read(file) });
    announce(`${name} goes with the message`);
  }
  draw();
  $("input").focus();
}
// Photos have more pixels than models see.
async function smaller(file) {
  const bitmap = file.size > MAX_NBYTES / 4 && (await createImageBitmap(file).catch(() => null));
  if (!bitmap) return file;
  const { width, height } = bitmap,
    scale = Math.min(1, 2048 / Math.max(width, height)),
    canvas = new OffscreenCanvas(Math.ceil(width * scale), Math.ceil(height * scale)),
    context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.scale(scale, scale);
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
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
  sent = waiting;
  waiting = [];
  draw();
  return sent.map(it => it.uri);
}
// They were not sent.
export function giveBack() {
  if (!waiting.length) waiting = sent;
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
