// Codex CLI (`@openai/codex`): responses. It answers, and edits a file by two shell commands.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import * as its from "./features.mjs";

const program = join(dirname(fileURLToPath(import.meta.url)), "node_modules/.bin/codex");
const home = resolve("home");
const config = `
model = "${its.scripted}"
model_provider = "isthmus"
approval_policy = "never"
sandbox_mode = "danger-full-access"
[model_providers.isthmus]
name = "Isthmus"
base_url = "${its.url}/v1"
wire_api = "responses"
env_key = "ISTHMUS_KEY"
`;

function codex(...options) {
  mkdirSync(home, { recursive: true });
  writeFileSync(join(home, "config.toml"), config);
  const env = { PATH: process.env.PATH, HOME: home, CODEX_HOME: home, ISTHMUS_KEY: "x" };
  const command = ["exec", "--json", "--skip-git-repo-check", ...options];
  const done = spawnSync(program, command, { env, encoding: "utf8", input: "", timeout: 120_000 });
  const events = done.stdout.split("\n").filter(Boolean).map((line) => JSON.parse(line));
  assert.equal(done.status, 0, done.stdout + done.stderr);
  return events.map(({ item }) => item).filter((it) => it?.type === "agent_message").at(-1)?.text;
}

function hello() {
  assert.equal(codex(its.greeting), its.greeted);
}

function tools() {
  writeFileSync("hello.txt", "hello world\n");
  assert.equal(codex(its.shellTask), its.edited);
  assert.equal(readFileSync("hello.txt", "utf8"), "hello isthmus\n");
}

await its.run({ hello, tools });
