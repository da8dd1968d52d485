// Features of a client, run one at a time: `node CLIENT.mjs URL ROUTE FEATURE` prints `good`.

export const [url, route, feature] = process.argv.slice(2);
// A small model that talks, and one that calls `weather` for Paris, then for Rome.
export const talks = "smollm2";
export const scripted = "scripted";
export const question = "What is an isthmus?";
export const task = "How is the weather in Paris and in Rome?";
export const weather = { Paris: "sunny", Rome: "rainy" };
// What the scripted model says after both results, if it was told both.
export const answer = "Paris is sunny, and Rome is rainy.";
// Tasks for clients that edit a file: by shell commands, and by tools for reading and editing.
export const greeting = "Greet me.";
export const greeted = "Hello, isthmus.";
export const shellTask = "Change world to isthmus in hello.txt by a shell command.";
export const editTask = "Change world to isthmus in hello.txt by an edit.";
export const edited = "It says isthmus now.";
// What the scripted model does until its caller leaves, or for so many tokens.
export const endless = "Count forever.";
export const most = 100_000;
export const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};

// Runs the feature that the command line names: the function `ROUTE_FEATURE` or `FEATURE`.
export async function run(features) {
  const chosen = features[`${route}_${feature}`] ?? features[feature];
  if (!chosen) throw new Error(`this client has no feature ${feature} for ${route}`);
  await chosen();
  console.log("good");
}
