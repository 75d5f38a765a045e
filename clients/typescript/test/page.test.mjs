// Every TypeScript block of the documentation's "core concepts", by its id, against a running platform:
//   PARETA_BASE_URL=… PARETA_API_KEY=… [PARETA_POOR_KEY=…] node --test test/page.test.mjs
import assert from "node:assert/strict";
import { test } from "node:test";

import { EndpointNotReadyError, InsufficientCreditsError, NotFoundError, Pareta, ParetaError } from "../dist/index.js";

const skip = process.env.PARETA_BASE_URL ? false : "PARETA_BASE_URL is not set";
const pa = skip ? null : Pareta.fromEnv();
const TASK = "contract-key-fields";
const TEXT = "This agreement is made on 3 March 2025 between Alder Works Ltd and Birch Supply GmbH. It runs for 24 months.";
const EXPECTED = { party_a: "Alder Works Ltd", party_b: "Birch Supply GmbH", effective_date: "2025-03-03", term_months: "24",
  governing_law: null, notice_days: null };
const rows = [{ input: TEXT, expected: EXPECTED }, { input: "Dutch law applies.", expected: { ...EXPECTED, party_a: null } }];
let endpoint;

test("T01 T02 one client of promises, from the environment", { skip }, async () => {
  assert.ok(pa instanceof Pareta);
  assert.ok(pa.tasks.list() instanceof Promise);
});

test("T03 T04 T05 tasks", { skip }, async () => {
  for (const task of await pa.tasks.list()) {
    assert.equal(typeof task.id, "string");
    assert.equal(typeof task.defaultScorer, "string");
    assert.equal(typeof task.hasBlobInput, "boolean");
  }
  const one = await pa.tasks.retrieve(TASK, { examplesN: 3 });
  assert.ok(one.examples.length >= 1 && one.examples.length <= 3);
  assert.equal(one.toDict().id, TASK);
});

test("T06 T07 T08 T31 match", { skip }, async () => {
  const m = await pa.tasks.match("extract the parties, term, and governing law from our contracts", { topK: 5 });
  assert.ok(m.matched && m.candidates.length <= 5);
  assert.equal(m.chosen.taskId, TASK);
  assert.ok(m.chosen.score > 0 && ["high", "medium", "low"].includes(m.chosen.confidence));
  assert.equal(m.matcher, "keyword");
  assert.equal(m.ambiguous, false);
  const none = await pa.tasks.match("qwxz vrrp");
  assert.deepEqual([none.matched, none.chosen], [false, null]);
});

test("T09 T10 T11 T12 T32 leaderboard", { skip }, async () => {
  const lb = await pa.tasks.leaderboard(TASK);
  assert.ok(lb.metric && lb.costUnit);
  for (const e of lb.models) {
    assert.equal(e.kind, "open");
    assert.ok(Number.isInteger(e.costPerRequestMicroUsd) && Number.isInteger(e.contextK) && e.quality <= 1);
  }
  if (lb.frontier) assert.ok(lb.frontier.name && lb.frontier.costPerRequestMicroUsd > 0);
  assert.equal(await pa.tasks.recommended(TASK), lb.recommended);
  assert.ok(lb.models.slice(0, 3).map((e) => e.name).includes(lb.recommended));
});

test("T13 T14 frontier models", { skip }, async () => {
  const roster = await pa.evals.frontierModels(TASK);
  assert.ok(roster.some((fm) => fm.benchmarked === true));
  for (const fm of roster) assert.deepEqual([typeof fm.vision, typeof fm.benchmarked], ["boolean", "boolean"]);
  await assert.rejects(pa.evals.frontierModels("no-such-task"), NotFoundError);
});

test("T15 T20 T21 T40 deploy and wait, within the budget of a call", { skip }, async () => {
  endpoint = await pa.endpoints.deploy({ task: TASK, model: "recommended", wait: true });
  assert.ok(endpoint.isLive && endpoint.id && endpoint.url.startsWith("http"));
  assert.deepEqual([endpoint.status, endpoint.task], ["live", TASK]);
  assert.equal(endpoint.model, await pa.tasks.recommended(TASK));
  assert.ok((await pa.endpoints.list()).some((ep) => ep.id === endpoint.id));
});

test("T16 T17 T18 deploy as events", { skip }, async () => {
  let id = null;
  const names = [];
  for await (const evt of pa.endpoints.deploy({ task: TASK, model: endpoint.model })) {
    names.push(evt.event);
    if (evt.event === "progress") assert.ok(evt.data.stage);
    if (evt.event === "complete") id = evt.data.endpoint.id;
  }
  assert.equal(names.at(-1), "complete");
  assert.ok(names.includes("progress"));
  await pa.endpoints.delete(id);
  await assert.rejects(pa.endpoints.retrieve(id), NotFoundError);
});

test("T19 a deploy that cannot be", { skip }, async () => {
  await assert.rejects(Promise.resolve(pa.endpoints.deploy({ task: TASK, model: "no-such-1", wait: true })), ParetaError);
});

test("T23 T24 T27 chat", { skip }, async () => {
  const resp = await pa.chat.completions.create({
    model: endpoint.id, messages: [{ role: "user", content: TEXT }], temperature: 0, max_tokens: 200,
  });
  assert.equal(JSON.parse(resp.choices[0].message.content).party_a, "Alder Works Ltd");
  assert.equal(resp.usage.totalTokens, resp.usage.promptTokens + resp.usage.completionTokens);
});

test("T25 T26 streamed chat", { skip }, async () => {
  let text = "";
  let chunks = 0;
  const stream = pa.chat.completions.create({ model: endpoint.id, messages: [{ role: "user", content: TEXT }], stream: true });
  for await (const chunk of stream) {
    chunks += 1;
    text += chunk.choices[0].delta.content || "";
  }
  assert.ok(chunks > 2);
  assert.equal(JSON.parse(text).party_b, "Birch Supply GmbH");
});

test("T22 metrics", { skip }, async () => {
  const metrics = pa.endpoints.metrics(endpoint.id);
  const until = Date.now() + 10_000;
  while ((await metrics.cost()).requests < 2 && Date.now() < until) await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal((await metrics.cost({ window: "24h" })).requests, 2);
  assert.ok((await metrics.performance()).p50_ms > 0);
  assert.ok((await metrics.uptime()).uptime > 0);
  assert.equal((await metrics.quality()).quality_mean, null);
  assert.equal((await metrics.activity({ groupBy: "day" })).series.length, 1);
});

test("T28 no credit", { skip: skip || (process.env.PARETA_POOR_KEY ? false : "PARETA_POOR_KEY is not set") }, async () => {
  const poor = Pareta.fromEnv({ apiKey: process.env.PARETA_POOR_KEY });
  const own = await poor.endpoints.deploy({ task: TASK, wait: true });
  const request = { model: own.id, messages: [{ role: "user", content: "hello" }] };
  await assert.rejects(poor.chat.completions.create(request), InsufficientCreditsError);
  await assert.rejects(poor.evals.runs.create({ task: TASK, items: rows, models: [own.model] }), InsufficientCreditsError);
  await poor.endpoints.delete(own.id);
});

test("T29 T30 T33 T34 T35 T36 an eval on own rows, and its winner deployed", { skip }, async () => {
  const lb = await pa.tasks.leaderboard(TASK);
  const run = await pa.evals.runs.create({
    task: TASK, items: rows, models: lb.models.slice(0, 3).map((e) => e.name), frontier: "benchmarked", wait: true,
    pollInterval: 0.2,
  });
  assert.equal(run.status, "completed");
  assert.match(run.cost, /^\d+\.\d\d$/);
  assert.ok(Number.isInteger(run.costMicroUsd) && run.costMicroUsd > 0);
  const sorted = [...run.results].sort((a, b) => (b.qualityMean ?? 0) - (a.qualityMean ?? 0));
  for (const r of sorted) assert.ok(r.modelId && r.kind && r.nSucceeded === 2 && r.meanCostMicroUsd > 0);
  const winner = run.results[0];
  assert.equal(winner.kind, "open");
  const ep = await pa.endpoints.deploy({ task: TASK, model: winner.modelId, wait: true });
  assert.ok(ep.isLive);
  await pa.endpoints.delete(ep.id);
  const listed = await pa.evals.runs.list();
  assert.equal(listed[0].id, run.id);
});

test("T37 T38 a stopped endpoint is started and answers again", { skip }, async () => {
  await pa.endpoints.stop(endpoint.id);
  const request = { model: endpoint.id, messages: [{ role: "user", content: TEXT }] };
  const until = Date.now() + 15_000;
  let stopped = null;
  while (!stopped && Date.now() < until) await pa.chat.completions.create(request).catch((error) => (stopped = error));
  assert.ok(stopped instanceof EndpointNotReadyError && stopped instanceof ParetaError);
  await pa.endpoints.start(endpoint.id);
  while (!(await pa.endpoints.retrieve(endpoint.id)).isLive && Date.now() < until) await new Promise((r) => setTimeout(r, 100));
  let answered = null;
  while (!answered && Date.now() < until) answered = await pa.chat.completions.create(request).catch(() => null);
  assert.ok(answered.choices[0].message.content);
  await pa.endpoints.delete(endpoint.id);
});

test("T39 options, documents, sets", { skip }, async () => {
  const mine = new Pareta({ apiKey: process.env.PARETA_API_KEY, baseURL: process.env.PARETA_BASE_URL, maxRetries: 1,
    timeout: 20_000, fetch: globalThis.fetch });
  const set = await mine.evals.sets.create({ task: "invoice-extraction", items: [{ document: null, expected: { total: "1" } }] });
  const small = await mine.evals.sets.uploadDocument(set.id, new Blob(["%PDF-1.4 small"]), { idx: 0, fieldName: "document", mime: "application/pdf" });
  assert.equal(small.kind, "blob");
  const large = new Uint8Array(6 * 1024 * 1024);
  const put = await mine.evals.sets.uploadDocument(set.id, large, { idx: 0, fieldName: "document", mime: "image/png" });
  assert.equal(put.mime, "image/png");
  assert.equal((await mine.evals.sets.retrieve(set.id)).itemCount, 1);
  await mine.evals.sets.delete(set.id);
  const run = await mine.evals.runs.create({ task: TASK, items: rows, models: [await mine.tasks.recommended(TASK)] });
  assert.ok((await mine.evals.runs.wait(run.id, { pollInterval: 0.2, timeout: 60 })).isTerminal);
});
