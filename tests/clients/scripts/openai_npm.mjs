// `openai`, the npm package: chat completions and responses.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import * as its from "./features.mjs";

const client = new OpenAI({ baseURL: `${its.url}/v1`, apiKey: "x", maxRetries: 0 });
const Person = z.object({ name: z.string(), age: z.number().int() });
const messages = [{ role: "user", content: its.question }];
const chat = { model: its.talks, messages, temperature: 0, max_completion_tokens: 40 };
const response = { model: its.talks, input: its.question, temperature: 0, max_output_tokens: 40 };
const tool = { name: "weather", description: "A city's weather.", parameters: its.parameters };

function isPerson(it) {
  assert.deepEqual([typeof it.name, typeof it.age], ["string", "number"]);
}

async function chat_hello() {
  const done = await client.chat.completions.create(chat);
  assert(done.choices[0].message.content);
  assert(done.usage.completion_tokens > 0);
}

async function chat_stream() {
  const whole = await client.chat.completions.create(chat);
  let text = "";
  for await (const it of await client.chat.completions.create({ ...chat, stream: true }))
    text += it.choices[0]?.delta.content ?? "";
  assert.equal(text, whole.choices[0].message.content);
}

async function chat_structured() {
  const done = await client.chat.completions.parse({
    ...chat,
    messages: [{ role: "user", content: "Bob is 30." }],
    response_format: zodResponseFormat(Person, "person"),
  });
  isPerson(done.choices[0].message.parsed);
}

async function chat_tools() {
  const cities = [];
  const call = ({ city }) => (cities.push(city), its.weather[city]);
  const running = client.chat.completions.runTools({
    model: its.scripted,
    messages: [{ role: "user", content: its.task }],
    tools: [{ type: "function", function: { ...tool, function: call, parse: JSON.parse } }],
  });
  assert.equal(await running.finalContent(), its.answer);
  assert.deepEqual(cities, ["Paris", "Rome"]);
}

async function chat_cancel() {
  const asked = { model: its.scripted, max_completion_tokens: its.most, stream: true };
  asked.messages = [{ role: "user", content: its.endless }];
  const stream = await client.chat.completions.create(asked);
  for await (const it of stream) {
    assert(it.id);
    stream.controller.abort();
  }
}

async function responses_hello() {
  const done = await client.responses.create(response);
  assert(done.output_text);
  assert(done.usage.output_tokens > 0);
}

async function responses_stream() {
  const whole = await client.responses.create(response);
  const stream = client.responses.stream(response);
  let text = "";
  stream.on("response.output_text.delta", (it) => (text += it.delta));
  assert.equal((await stream.finalResponse()).output_text, whole.output_text);
  assert.equal(text, whole.output_text);
}

async function responses_structured() {
  const format = zodTextFormat(Person, "person");
  const done = await client.responses.parse({ ...response, input: "Bob is 30.", text: { format } });
  isPerson(done.output_parsed);
}

async function responses_tools() {
  const items = [{ role: "user", content: its.task }];
  const cities = [];
  let done;
  do {
    done = await client.responses.create({
      model: its.scripted,
      input: items,
      tools: [{ type: "function", strict: true, ...tool }],
    });
    items.push(...done.output);
    for (const { type, call_id, arguments: given } of done.output) {
      if (type !== "function_call") continue;
      cities.push(JSON.parse(given).city);
      items.push({ type: "function_call_output", call_id, output: its.weather[cities.at(-1)] });
    }
  } while (items.at(-1).type === "function_call_output");
  assert.deepEqual([cities, done.output_text], [["Paris", "Rome"], its.answer]);
}

async function responses_cancel() {
  const asked = { model: its.scripted, input: its.endless, max_output_tokens: its.most };
  const stream = await client.responses.create({ ...asked, stream: true });
  for await (const it of stream)
    if (it.type === "response.output_text.delta") stream.controller.abort();
}

await its.run({
  chat_hello,
  chat_stream,
  chat_structured,
  chat_tools,
  chat_cancel,
  responses_hello,
  responses_stream,
  responses_structured,
  responses_tools,
  responses_cancel,
});
