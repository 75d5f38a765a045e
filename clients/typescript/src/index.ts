import { APIConnectionError, ParetaError } from "./errors.js";
import { readEvents } from "./sse.js";
import { type ClientOptions, type RequestOptions, Transport } from "./transport.js";
import {
  ChatCompletion, Endpoint, EvalRun, EvalSet, FrontierModel, Leaderboard, Model, Task, TaskMatch,
  type RawCompletion, type RawEndpoint, type RawEvalSet, type RawFrontierModel, type RawLeaderboard, type RawMatch,
  type RawModel, type RawRun, type RawTask,
} from "./values.js";

export * from "./errors.js";
export * from "./values.js";
export type { ClientOptions, RequestOptions } from "./transport.js";

const MATCHED_AT_MOST = 5;
const INLINE_BYTES = 5 * 1024 * 1024;
const MAX_POLL_S = 900;

export interface ChatMessage { role: string; content: unknown; [more: string]: unknown }
/** Fields of OpenAI's API, under its own names. */
export interface ChatRequest { model: string; messages: ChatMessage[]; stream?: boolean; [more: string]: unknown }
export interface DeployEvent { event: string; data: any }
export interface DeployRequest { task: string; model?: string; name?: string; wait?: boolean; [more: string]: unknown }
export interface MetricsQuery { window?: string; since?: string; groupBy?: string }
export type Metrics = Record<string, any>;
export type Row = Record<string, unknown>;
export type Frontier = "all" | "benchmarked" | "none" | string[] | null;
export interface RunRequest {
  evalSet?: string; task?: string; items?: Row[]; models?: string[]; frontier?: Frontier; name?: string; wait?: boolean;
  /** Seconds. */
  pollInterval?: number; timeout?: number;
}
export interface DocumentPlace { idx: number; fieldName: string; mime?: string }

/** The client. One for a process is enough; every call may be made at any time. */
export class Pareta {
  readonly tasks: Tasks;
  readonly endpoints: Endpoints;
  readonly chat: { completions: ChatCompletions };
  readonly models: Models;
  readonly evals: Evals;

  constructor(options: ClientOptions = {}) {
    const transport = new Transport(options);
    this.tasks = new Tasks(transport);
    this.endpoints = new Endpoints(transport);
    this.chat = { completions: new ChatCompletions(transport) };
    this.models = new Models(transport);
    this.evals = new Evals(transport);
  }

  /** With `PARETA_API_KEY` and, if it is set, `PARETA_BASE_URL`. */
  static fromEnv(options: ClientOptions = {}): Pareta {
    const env: Record<string, string | undefined> = (globalThis as any).process?.env ?? {};
    return new Pareta({ apiKey: env["PARETA_API_KEY"], baseURL: env["PARETA_BASE_URL"], ...options });
  }
}

export class Tasks {
  constructor(private readonly transport: Transport) {}

  async list(options: RequestOptions = {}): Promise<Task[]> {
    const said = await this.transport.json<{ tasks: RawTask[] }>({ method: "GET", path: "/v1/tasks", ...options });
    return said.tasks.map((one) => new Task(one));
  }

  async retrieve(id: string, { examplesN, ...options }: RequestOptions & { examplesN?: number } = {}): Promise<Task> {
    const query = { examples_n: examplesN };
    return new Task(await this.transport.json<RawTask>({ method: "GET", path: `/v1/tasks/${id}`, query, ...options }));
  }

  async match(query: string, { topK, ...options }: RequestOptions & { topK?: number } = {}): Promise<TaskMatch> {
    if (!query.trim()) throw new TypeError("query must not be blank");
    const json = { query, top_k: topK ?? MATCHED_AT_MOST };
    return new TaskMatch(await this.transport.json<RawMatch>({ method: "POST", path: "/v1/tasks/match", json, ...options }));
  }

  async leaderboard(id: string, options: RequestOptions = {}): Promise<Leaderboard> {
    const path = `/v1/tasks/${id}/leaderboard`;
    return new Leaderboard(await this.transport.json<RawLeaderboard>({ method: "GET", path, ...options }));
  }

  /** The name of the model that deploys as `recommended`. */
  async recommended(id: string, options: RequestOptions = {}): Promise<string | null> {
    return (await this.leaderboard(id, options)).recommended;
  }
}

/** A deploy that is under way: iterate over its events, or wait for the endpoint. */
export class Deployment implements AsyncIterable<DeployEvent>, PromiseLike<Endpoint> {
  #waiting: Promise<Endpoint> | null = null;

  constructor(private readonly transport: Transport, private readonly body: Row, private readonly options: RequestOptions) {}

  async *[Symbol.asyncIterator](): AsyncGenerator<DeployEvent, void, undefined> {
    const call = { method: "POST", path: "/v1/endpoints", json: this.body, ...this.options };
    for await (const { event, data } of readEvents(await this.transport.stream(call))) {
      yield { event, data: parsed(data) };
    }
  }

  /** The live endpoint. Raises `ParetaError` if it could not be brought up. */
  wait(): Promise<Endpoint> {
    this.#waiting ??= this.#wait();
    return this.#waiting;
  }

  async #wait(): Promise<Endpoint> {
    for await (const { event, data } of this) {
      if (event === "complete") return new Endpoint(data.endpoint as RawEndpoint);
      if (event === "error") throw new ParetaError(`deploy failed: ${data?.message ?? String(data)}`);
    }
    throw new ParetaError("The deploy ended without a word.");
  }

  then<A = Endpoint, B = never>(
    good?: ((endpoint: Endpoint) => A | PromiseLike<A>) | null, bad?: ((reason: any) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.wait().then(good, bad);
  }
}

export class Endpoints {
  constructor(private readonly transport: Transport) {}

  /**
   * Deploy a model of a task. `await` it (or pass `wait: true`) for the live endpoint, or loop over its events with
   * `for await`.
   */
  deploy({ wait: _wait, model, ...body }: DeployRequest, options: RequestOptions = {}): Deployment {
    return new Deployment(this.transport, { ...body, model: model ?? "recommended" }, options);
  }

  async list(options: RequestOptions = {}): Promise<Endpoint[]> {
    const said = await this.transport.json<RawEndpoint[]>({ method: "GET", path: "/v1/endpoints", ...options });
    return said.map((one) => new Endpoint(one));
  }

  async retrieve(id: string, options: RequestOptions = {}): Promise<Endpoint> {
    return new Endpoint(await this.transport.json<RawEndpoint>({ method: "GET", path: `/v1/endpoints/${id}`, ...options }));
  }

  start(id: string, options: RequestOptions = {}): Promise<Record<string, unknown>> {
    return this.transport.json({ method: "POST", path: `/v1/endpoints/${id}/start`, ...options });
  }

  stop(id: string, options: RequestOptions = {}): Promise<Record<string, unknown>> {
    return this.transport.json({ method: "POST", path: `/v1/endpoints/${id}/stop`, ...options });
  }

  async delete(id: string, options: RequestOptions = {}): Promise<void> {
    await this.transport.json({ method: "DELETE", path: `/v1/endpoints/${id}`, ...options });
  }

  /** Five dimensions of an endpoint's metrics. */
  metrics(id: string): EndpointMetrics {
    return new EndpointMetrics(this.transport, id);
  }
}

export class EndpointMetrics {
  constructor(private readonly transport: Transport, private readonly id: string) {}

  performance(query: MetricsQuery = {}) { return this.#get("performance", query); }
  uptime(query: MetricsQuery = {}) { return this.#get("uptime", query); }
  cost(query: MetricsQuery = {}) { return this.#get("cost", query); }
  quality(query: MetricsQuery = {}) { return this.#get("quality", query); }
  activity(query: MetricsQuery = {}) { return this.#get("activity", query); }

  #get(dimension: string, { groupBy, ...rest }: MetricsQuery): Promise<Metrics> {
    const path = `/v1/endpoints/${this.id}/${dimension}`;
    return this.transport.json<Metrics>({ method: "GET", path, query: { ...rest, group_by: groupBy } });
  }
}

/** Chunks of an answer as they come. */
export interface ChatStream extends AsyncIterable<ChatCompletion> {}

export class ChatCompletions {
  constructor(private readonly transport: Transport) {}

  create(request: ChatRequest & { stream: true }, options?: RequestOptions): Promise<ChatStream> & ChatStream;
  create(request: ChatRequest & { stream?: false }, options?: RequestOptions): Promise<ChatCompletion>;
  create(request: ChatRequest, options: RequestOptions = {}): any {
    if (!request.model) throw new TypeError("model must not be empty");
    if (!request.messages?.length) throw new TypeError("messages must not be empty");
    const call = { method: "POST", path: "/v1/chat/completions", json: request, ...options };
    if (!request.stream) return this.transport.json<RawCompletion>(call).then((said) => new ChatCompletion(said));
    const transport = this.transport;
    const chunks: ChatStream = {
      async *[Symbol.asyncIterator]() {
        for await (const { data } of readEvents(await transport.stream(call))) {
          if (data === "[DONE]") return;
          const chunk = parsed(data) as RawCompletion & { error?: { message: string } };
          if (chunk.error) throw new APIConnectionError(chunk.error.message);
          yield new ChatCompletion(chunk);
        }
        throw new APIConnectionError("The stream broke off before its end.");
      },
    };
    // Both `for await (… of create(…))` and `for await (… of await create(…))` work. It is no promise of itself: that
    // would never settle.
    return Object.assign(Promise.resolve(chunks), chunks, { [Symbol.asyncIterator]: () => chunks[Symbol.asyncIterator]() });
  }
}

export class Models {
  constructor(private readonly transport: Transport) {}

  async list(options: RequestOptions = {}): Promise<Model[]> {
    const said = await this.transport.json<{ data: RawModel[] }>({ method: "GET", path: "/v1/models", ...options });
    return said.data.map((one) => new Model(one));
  }
}

export class Evals {
  readonly sets: EvalSets;
  readonly runs: EvalRuns;

  constructor(private readonly transport: Transport) {
    this.sets = new EvalSets(transport);
    this.runs = new EvalRuns(transport, this);
  }

  /** Vendors' models; of a task, those that can take its input. */
  async frontierModels(task?: string, options: RequestOptions = {}): Promise<FrontierModel[]> {
    const call = { method: "GET", path: "/v1/eval/frontier-models", query: { task }, ...options };
    return (await this.transport.json<{ frontier_models: RawFrontierModel[] }>(call)).frontier_models.map(
      (one) => new FrontierModel(one),
    );
  }
}

export class EvalSets {
  constructor(private readonly transport: Transport) {}

  async create(
    { task, items, name }: { task: string; items: Row[]; name?: string }, options: RequestOptions = {},
  ): Promise<EvalSet> {
    if (!items?.length) throw new TypeError("items must not be empty");
    const form = new FormData();
    const lines = items.map((one) => JSON.stringify(one)).join("\n");
    form.set("items", new Blob([lines], { type: "application/jsonl" }), `items.${task}.jsonl`);
    form.set("task_id", task);
    form.set("name", name ?? `sdk eval set (${items.length} items)`);
    const call = { method: "POST", path: "/v1/eval-sets", form, ...options };
    return new EvalSet((await this.transport.json<{ eval_set: RawEvalSet }>(call)).eval_set);
  }

  async list(options: RequestOptions = {}): Promise<EvalSet[]> {
    const call = { method: "GET", path: "/v1/eval-sets", ...options };
    return (await this.transport.json<{ eval_sets: RawEvalSet[] }>(call)).eval_sets.map((one) => new EvalSet(one));
  }

  async retrieve(id: string, options: RequestOptions = {}): Promise<EvalSet> {
    const call = { method: "GET", path: `/v1/eval-sets/${id}`, ...options };
    return new EvalSet((await this.transport.json<{ eval_set: RawEvalSet }>(call)).eval_set);
  }

  async delete(id: string, options: RequestOptions = {}): Promise<void> {
    await this.transport.json({ method: "DELETE", path: `/v1/eval-sets/${id}`, ...options });
  }

  /** Attach a document to a row: small ones in one call, large ones through an upload URL. */
  async uploadDocument(
    id: string, file: Blob | Uint8Array, { idx, fieldName, mime }: DocumentPlace, options: RequestOptions = {},
  ): Promise<Record<string, unknown>> {
    const blob = file instanceof Blob ? file : new Blob([file as BlobPart]);
    const type = mime ?? (blob.type || "application/octet-stream");
    if (blob.size < INLINE_BYTES) {
      const form = new FormData();
      form.set("file", new Blob([blob], { type }), "upload");
      form.set("idx", String(idx));
      form.set("field_name", fieldName);
      form.set("mime", type);
      return this.transport.json({ method: "POST", path: `/v1/eval-sets/${id}/attach-blob`, form, ...options });
    }
    const place = { idx, field_name: fieldName, mime: type };
    const given = await this.transport.json<{ upload_url: string; storage_uri: string }>({
      method: "POST", path: `/v1/eval-sets/${id}/blob-upload-url`, json: { ...place, file_size: blob.size }, ...options,
    });
    const status = await this.transport.put(given.upload_url, blob, type);
    if (status !== 200 && status !== 201) throw new ParetaError(`The upload was answered with ${status}.`);
    const json = { ...place, storage_uri: given.storage_uri };
    return this.transport.json({ method: "POST", path: `/v1/eval-sets/${id}/blob-upload-complete`, json, ...options });
  }
}

export class EvalRuns {
  constructor(private readonly transport: Transport, private readonly evals: Evals) {}

  /** Measure models on a set, or on rows that become one. */
  async create(request: RunRequest, options: RequestOptions = {}): Promise<EvalRun> {
    const { task, items, models, frontier, name, wait, pollInterval, timeout } = request;
    let evalSet = request.evalSet;
    if (!evalSet) {
      if (!task || !items?.length) throw new TypeError("pass evalSet, or task and items");
      evalSet = (await this.evals.sets.create({ task, items, ...(name === undefined ? {} : { name }) }, options)).id;
    }
    const candidates = [...(models ?? []), ...(await this.#frontier(frontier ?? null, task, evalSet, options))];
    if (!candidates.length) throw new TypeError("models must not be empty");
    const json = { eval_set_id: evalSet, candidate_model_ids: candidates };
    const call = { method: "POST", path: "/v1/eval-runs", json, ...options };
    const said = await this.transport.json<{ run_id: string; status: string }>(call);
    if (!wait) return new EvalRun({ run: { id: said.run_id, status: said.status } });
    return this.wait(said.run_id, {
      ...(pollInterval === undefined ? {} : { pollInterval }), ...(timeout === undefined ? {} : { timeout }),
    });
  }

  async retrieve(id: string, options: RequestOptions = {}): Promise<EvalRun> {
    return new EvalRun(await this.transport.json<RawRun>({ method: "GET", path: `/v1/eval-runs/${id}`, ...options }));
  }

  async list(options: RequestOptions = {}): Promise<EvalRun[]> {
    const said = await this.transport.json<{ runs: RawRun["run"][] }>({ method: "GET", path: "/v1/eval-runs", ...options });
    return said.runs.map((run) => new EvalRun({ run }));
  }

  /** Until it has ended, well or not. Times in seconds. */
  async wait(id: string, { pollInterval = 3, timeout = MAX_POLL_S } = {}): Promise<EvalRun> {
    const until = Date.now() + timeout * 1000;
    for (;;) {
      const run = await this.retrieve(id);
      if (run.isTerminal) return run;
      if (Date.now() >= until) throw new ParetaError(`The run ${id} did not end within ${timeout} s.`);
      await new Promise((resolve) => setTimeout(resolve, pollInterval * 1000));
    }
  }

  async #frontier(wanted: Frontier, task: string | undefined, evalSet: string, options: RequestOptions): Promise<string[]> {
    if (wanted === null || wanted === "none") return [];
    if (Array.isArray(wanted)) return wanted;
    if (wanted !== "all" && wanted !== "benchmarked") throw new TypeError(`frontier must not be ${String(wanted)}`);
    const of = task ?? (await this.evals.sets.retrieve(evalSet, options)).taskId;
    const roster = await this.evals.frontierModels(of, options);
    return roster.filter((one) => wanted === "all" || one.benchmarked).map((one) => one.id);
  }
}

function parsed(data: string): any {
  try {
    return JSON.parse(data);
  } catch {
    return data;
  }
}
