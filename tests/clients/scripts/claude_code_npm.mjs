// Claude Code (`@anthropic-ai/claude-code`): messages. It answers, and reads and edits a file.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import * as its from "./features.mjs";

const program = join(dirname(fileURLToPath(import.meta.url)), "node_modules/.bin/claude");
const home = resolve("home");
const env = {
  PATH: process.env.PATH,
  HOME: home,
  ANTHROPIC_BASE_URL: its.url,
  ANTHROPIC_API_KEY: "x",
  ANTHROPIC_MODEL: its.scripted,
  ANTHROPIC_SMALL_FAST_MODEL: its.scripted,
  CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1",
  DISABLE_AUTOUPDATER: "1",
};

function claude(...options) {
  mkdirSync(home, { recursive: true });
  const command = ["-p", "--output-format", "json", "--permission-mode", "acceptEdits", ...options];
  const done = spawnSync(program, command, { env, encoding: "utf8", input: "", timeout: 120_000 });
  assert.equal(done.status, 0, done.stdout + done.stderr);
  return JSON.parse(done.stdout);
}

function hello() {
  assert.equal(claude(its.greeting).result, its.greeted);
}

function bare() {
  assert.equal(claude("--bare", its.greeting).result, its.greeted);
}

function tools() {
  writeFileSync("hello.txt", "hello world\n");
  const done = claude(its.editTask);
  assert.equal(done.result, its.edited, JSON.stringify(done));
  assert.equal(readFileSync("hello.txt", "utf8"), "hello isthmus\n");
}

await its.run({ hello, bare, tools });
