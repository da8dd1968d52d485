// AI SDK (`ai`), with `@ai-sdk/openai` for chat and responses, and `@ai-sdk/anthropic` for messages.
import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import * as its from "./features.mjs";

const settings = { baseURL: `${its.url}/v1`, apiKey: "x" };
const openai = createOpenAI(settings);
const models = {
  chat: openai.chat,
  responses: openai.responses,
  messages: createAnthropic(settings),
};
const model = models[its.route];
const asked = {
  model: model(its.talks),
  prompt: its.question,
  temperature: 0,
  maxOutputTokens: 40,
  maxRetries: 0,
};

async function hello() {
  const done = await generateText(asked);
  assert(done.text);
  assert(done.usage.outputTokens > 0);
}

async function stream() {
  const whole = await generateText(asked);
  let text = "";
  for await (const it of streamText(asked).textStream) text += it;
  assert.equal(text, whole.text);
}

async function structured() {
  const schema = z.object({ name: z.string(), age: z.number().int() });
  const output = Output.object({ schema });
  const done = await generateText({ ...asked, prompt: "Bob is 30.", output });
  assert(schema.parse(done.output));
}

async function tools() {
  const cities = [];
  const weather = tool({
    description: "The weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: ({ city }) => (cities.push(city), its.weather[city]),
  });
  const done = await generateText({
    model: model(its.scripted),
    prompt: its.task,
    tools: { weather },
    stopWhen: stepCountIs(5),
    maxRetries: 0,
  });
  assert.deepEqual([cities, done.text], [["Paris", "Rome"], its.answer]);
}

async function cancel() {
  const aborting = new AbortController();
  const streamed = streamText({
    model: model(its.scripted),
    prompt: its.endless,
    maxOutputTokens: its.most,
    abortSignal: aborting.signal,
  });
  for await (const it of streamed.fullStream) if (it.type === "text-delta") aborting.abort();
}

await its.run({ hello, stream, structured, tools, cancel });
