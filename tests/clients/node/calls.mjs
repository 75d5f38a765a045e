// Calls a gateway with openai's JavaScript client and prints what a user of it would see, as one JSON object.
import { pathToFileURL } from "node:url";
import { readFileSync } from "node:fs";

const { baseURL, apiKey, model, stopped, folder } = JSON.parse(readFileSync(0, "utf8"));
const { default: OpenAI } = await import(pathToFileURL(`${folder}/node_modules/openai/index.mjs`).href);

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Hello from JavaScript" }];
const seen = {};

const whole = await client.chat.completions.create({ model, messages, seed: 6 });
seen.whole = {
  text: whole.choices[0].message.content,
  model: whole.model,
  usage: whole.usage,
  requestId: whole._request_id,
};

seen.stream = { text: "", chunks: 0 };
for await (const chunk of await client.chat.completions.create({ model, messages, seed: 6, stream: true })) {
  seen.stream.text += chunk.choices[0].delta.content ?? "";
  seen.stream.chunks += 1;
}

const failing = { model, messages, stream: true, sim: { tokens: 9, fail: "close_mid_stream", after_tokens: 3 } };
seen.broken = { text: "" };
try {
  for await (const chunk of await client.chat.completions.create(failing)) {
    seen.broken.text += chunk.choices[0].delta.content ?? "";
  }
} catch (error) {
  seen.broken.error = { name: error.constructor.name, code: error.code, type: error.type };
}

async function refusal(options, body) {
  try {
    await new OpenAI({ baseURL, apiKey, maxRetries: 0, ...options }).chat.completions.create(body);
  } catch (error) {
    const { status, code, type, param, requestID, message } = error;
    return { name: error.constructor.name, status, code, type, param, requestID, message };
  }
  return null;
}

seen.badKey = await refusal({ apiKey: "pareta_sk_wrong" }, { model, messages });
seen.unknown = await refusal({}, { model: "nobody", messages });
seen.invalid = await refusal({}, { model, messages, temperature: 9 });
seen.stopped = await refusal({ maxRetries: 2 }, { model: stopped, messages });

seen.models = [];
for await (const item of client.models.list()) seen.models.push(item);

const controller = new AbortController();
seen.aborted = { deltas: 0 };
try {
  const stream = await client.chat.completions.create(
    { model, messages, stream: true, tag: "javascript abort", sim: { tokens: 2000, itl_ms: 20 } },
    { signal: controller.signal },
  );
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) seen.aborted.deltas += 1;
    if (seen.aborted.deltas === 3) controller.abort();
  }
} catch (error) {
  seen.aborted.error = error.constructor.name;
}

const vectors = await client.embeddings.create({ model, input: ["one", "two"] });
seen.vectors = vectors.data.map((row) => row.embedding.length);

process.stdout.write(JSON.stringify(seen));
