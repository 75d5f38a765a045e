// The client against a small server that behaves as badly as networks do.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, test } from "node:test";

import {
  APIConnectionError, APIStatusError, APITimeoutError, AuthenticationError, BadRequestError, ConflictError,
  EndpointNotReadyError, EvalRun, InsufficientCreditsError, NotFoundError, Pareta, ParetaError, PermissionDeniedError,
  RateLimitError,
} from "../dist/index.js";

let answer = (request, response) => response.end("{}");
const seen = [];
const server = createServer((request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    seen.push({ method: request.method, url: request.url, headers: request.headers, body: Buffer.concat(pieces).toString() });
    answer(request, response);
  });
});
let base;
before(async () => {
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  base = `http://127.0.0.1:${server.address().port}`;
});
after(() => server.close());

const client = (options = {}) => new Pareta({ apiKey: "pareta_sk_x.y", baseURL: `${base}/`, maxRetries: 0, ...options });
const reply = (status, body, headers = {}) => (_, response) => {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(typeof body === "string" ? body : JSON.stringify(body));
};
const events = (...pieces) => async (_, response) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  for (const piece of pieces) {
    response.write(piece);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  response.end();
};
const chat = { model: "ep_1", messages: [{ role: "user", content: "hello" }] };
const chunk = (content) => `data: ${JSON.stringify({ id: "a", model: "ep_1", created: 1, choices: [{ index: 0, delta: { content }, finish_reason: null }] })}\n\n`;
async function collect(stream) {
  let text = "";
  for await (const one of stream) text += one.choices[0].delta.content || "";
  return text;
}

test("each status has its class, with the server's sentence, its code and the request's id", async () => {
  const classes = { 400: BadRequestError, 401: AuthenticationError, 402: InsufficientCreditsError, 403: PermissionDeniedError,
    404: NotFoundError, 409: ConflictError, 422: BadRequestError, 429: RateLimitError, 503: EndpointNotReadyError, 500: APIStatusError };
  for (const [status, kind] of Object.entries(classes)) {
    answer = reply(Number(status), { detail: "What it says.", error: { code: "a_code" } }, { "x-request-id": "req_1" });
    await assert.rejects(client().tasks.list(), (error) => {
      assert.ok(error instanceof kind && error instanceof ParetaError);
      assert.deepEqual([error.message, error.code, error.requestId, error.status, error.name],
        ["What it says.", "a_code", "req_1", Number(status), kind.name]);
      return true;
    });
  }
  answer = reply(502, "<html>", { "content-type": "text/html" });
  await assert.rejects(client().tasks.list(), (error) => error.detail === "<html>");
});

test("what may pass is asked again, as often as was said, after as long as the server says", async () => {
  for (const status of [408, 409, 429, 500, 502, 503, 504, 404, 402, 422]) {
    seen.length = 0;
    answer = reply(status, { detail: "no" }, { "retry-after": "0" });
    await assert.rejects(client({ maxRetries: 2 }).models.list(), APIStatusError);
    assert.equal(seen.length, [404, 402, 422].includes(status) ? 1 : 3, `status ${status}`);
  }
  let count = 0;
  answer = (request, response) => (++count < 3 ? reply(503, {}, { "retry-after": "0" }) : reply(200, { data: [] }))(request, response);
  assert.deepEqual(await client({ maxRetries: 2 }).models.list(), []);
});

test("a connection that breaks, a silence and a caller who gives up are different things", async () => {
  answer = (_, response) => response.destroy();
  await assert.rejects(client().tasks.list(), (e) => e instanceof APIConnectionError && !(e instanceof APITimeoutError));
  answer = () => undefined;
  await assert.rejects(client({ timeout: 50 }).tasks.list(), APITimeoutError);
  const given = new AbortController();
  setTimeout(() => given.abort(), 20);
  await assert.rejects(client().chat.completions.create(chat, { signal: given.signal }), APIConnectionError);
});

test("a stream is the same wherever its bytes are cut", async () => {
  const whole = Buffer.from(`: comment\n\n${chunk("Grüße ")}${chunk("\u2028🙂").replaceAll("\n\n", "\r\n\r\n")}data: [DONE]\n\n`);
  for (let cut = 1; cut < whole.length; cut += 7) {
    answer = events(whole.subarray(0, cut), whole.subarray(cut));
    assert.equal(await collect(client().chat.completions.create({ ...chat, stream: true })), "Grüße \u2028🙂");
  }
  answer = events(whole);
  assert.equal(await collect(await client().chat.completions.create({ ...chat, stream: true })), "Grüße \u2028🙂");
});

test("a stream that breaks or fails in its middle says so", async () => {
  answer = events(chunk("a"));
  await assert.rejects(collect(client().chat.completions.create({ ...chat, stream: true })), APIConnectionError);
  answer = events(chunk("a"), `data: ${JSON.stringify({ choices: [{ index: 0, delta: {} }], error: { message: "It broke." } })}\n\n`);
  await assert.rejects(collect(client().chat.completions.create({ ...chat, stream: true })), /It broke/);
});

test("leaving a loop early ends the request", async () => {
  let closed = new Promise((resolve) => (answer = (request, response) => {
    response.on("close", resolve);
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(chunk("a"));
  }));
  for await (const _ of client().chat.completions.create({ ...chat, stream: true })) break;
  await closed;
});

test("deploys: events as pairs, the endpoint when waited for, an error when it fails", async () => {
  const record = { id: "ep_9", name: "ep_9", model: "alder-1", status: "live", taskName: "t", url: "u" };
  const good = ['event: progress\ndata: {"stage": "starting"}\n\n: still at it\n\n', `event: complete\ndata: ${JSON.stringify({ endpoint: record })}\n\n`];
  answer = events(...good);
  const pairs = [];
  for await (const one of client().endpoints.deploy({ task: "t" })) pairs.push(one);
  assert.deepEqual(pairs.map((one) => one.event), ["progress", "complete"]);
  assert.equal(pairs[1].data.endpoint.id, "ep_9");
  assert.deepEqual(JSON.parse(seen.at(-1).body), { task: "t", model: "recommended" });
  answer = events(...good);
  const endpoint = await client().endpoints.deploy({ task: "t", model: "alder-1", wait: true });
  assert.deepEqual([endpoint.id, endpoint.isLive, endpoint.task], ["ep_9", true, "t"]);
  answer = events('event: error\ndata: {"message": "No room."}\n\n');
  await assert.rejects(Promise.resolve(client().endpoints.deploy({ task: "t" })), /deploy failed: No room\./);
  answer = events("event: progress\ndata: {}\n\n");
  await assert.rejects(Promise.resolve(client().endpoints.deploy({ task: "t" })), ParetaError);
});

test("money is rounded down to the cent, as text, and exact beside it", () => {
  const cost = (micros) => new EvalRun({ run: { id: "r", status: "completed", total_cost_micro_usd: micros } });
  assert.deepEqual([420_715, 5, 0, 10_000, 123_456_789].map((one) => cost(one).cost), ["0.42", "0.00", "0.00", "0.01", "123.45"]);
  assert.equal(cost(420_715).costMicroUsd, 420_715);
});

test("what is sent: key, names, empty bodies, idempotency keys", async () => {
  answer = reply(200, { data: [] });
  await client().models.list({ idempotencyKey: "once" });
  assert.equal(seen.at(-1).headers.authorization, "Bearer pareta_sk_x.y");
  assert.equal(seen.at(-1).headers["idempotency-key"], "once");
  answer = reply(202, { ok: true });
  await client().endpoints.start("ep_1");
  assert.deepEqual([seen.at(-1).method, seen.at(-1).url, seen.at(-1).body], ["POST", "/v1/endpoints/ep_1/start", ""]);
  answer = (_, response) => response.writeHead(204).end();
  assert.equal(await client().endpoints.delete("ep_1"), undefined);
  answer = reply(200, {});
  await client().endpoints.metrics("ep_1").cost({ window: "24h", groupBy: "day" });
  assert.equal(seen.at(-1).url, "/v1/endpoints/ep_1/cost?window=24h&group_by=day");
});

test("what makes no sense is refused before it is sent", async () => {
  seen.length = 0;
  assert.throws(() => new Pareta({}), ParetaError);
  await assert.rejects(client().tasks.match("  "), TypeError);
  assert.throws(() => client().chat.completions.create({ ...chat, messages: [] }), TypeError);
  await assert.rejects(client().evals.runs.create({ models: ["a"] }), TypeError);
  await assert.rejects(client().evals.runs.create({ evalSet: "es_1", models: [] }), TypeError);
  assert.equal(seen.length, 0);
});
