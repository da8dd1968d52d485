// `@anthropic-ai/sdk`, the npm package: messages.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import * as its from "./features.mjs";

const client = new Anthropic({ baseURL: its.url, apiKey: "x", maxRetries: 0 });
const messages = [{ role: "user", content: its.question }];
const asked = { model: its.talks, messages, max_tokens: 40, temperature: 0 };
const schema = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};

// Tokens of a prompt: input_tokens has those alone that no cache had.
function prompted({ input_tokens, cache_creation_input_tokens, cache_read_input_tokens }) {
  return input_tokens + (cache_creation_input_tokens ?? 0) + (cache_read_input_tokens ?? 0);
}

async function hello() {
  const done = await client.messages.create(asked);
  assert(done.content[0].text);
  const counted = await client.messages.countTokens({ model: its.talks, messages });
  assert.equal(counted.input_tokens, prompted(done.usage));
}

async function stream() {
  const whole = await client.messages.create(asked);
  let text = "";
  const streamed = client.messages.stream(asked).on("text", (it) => (text += it));
  const last = await streamed.finalMessage();
  assert.equal(text, whole.content[0].text);
  assert.equal(last.usage.output_tokens, whole.usage.output_tokens);
  assert.equal(prompted(last.usage), prompted(whole.usage));
}

async function structured() {
  const done = await client.messages.create({
    ...asked,
    messages: [{ role: "user", content: "Bob is 30." }],
    output_config: { format: { type: "json_schema", schema } },
  });
  const { name, age } = JSON.parse(done.content[0].text);
  assert.deepEqual([typeof name, typeof age], ["string", "number"]);
}

async function tools() {
  const turns = [{ role: "user", content: its.task }];
  const tool = { name: "weather", description: "A city's weather.", input_schema: its.parameters };
  const cities = [];
  let done;
  do {
    const stream = client.messages.stream({
      model: its.scripted,
      max_tokens: 100,
      messages: turns,
      tools: [tool],
    });
    done = await stream.finalMessage();
    const calls = done.content.filter((it) => it.type === "tool_use");
    cities.push(...calls.map((it) => it.input.city));
    turns.push({ role: "assistant", content: done.content });
    const content = calls.map(({ id, input }) => ({
      type: "tool_result",
      tool_use_id: id,
      content: [{ type: "text", text: its.weather[input.city] }],
    }));
    turns.push({ role: "user", content });
  } while (done.stop_reason === "tool_use");
  assert.deepEqual([cities, done.content[0].text], [["Paris", "Rome"], its.answer]);
}

async function cancel() {
  const turns = [{ role: "user", content: its.endless }];
  const long = { model: its.scripted, messages: turns, max_tokens: its.most, stream: true };
  const events = await client.messages.create(long);
  for await (const it of events) if (it.type === "content_block_delta") events.controller.abort();
}

await its.run({ hello, stream, structured, tools, cancel });
