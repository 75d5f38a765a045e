import { APIConnectionError, ParetaError } from "./errors.js";
import { readEvents } from "./sse.js";
import { Transport } from "./transport.js";
import { ChatCompletion, Endpoint, EvalRun, EvalSet, FrontierModel, Leaderboard, Model, Task, TaskMatch, } from "./values.js";
export * from "./errors.js";
export * from "./values.js";
const MATCHED_AT_MOST = 5;
const INLINE_BYTES = 5 * 1024 * 1024;
const MAX_POLL_S = 900;
/** The client. One for a process is enough; every call may be made at any time. */
export class Pareta {
    tasks;
    endpoints;
    chat;
    models;
    evals;
    constructor(options = {}) {
        const transport = new Transport(options);
        this.tasks = new Tasks(transport);
        this.endpoints = new Endpoints(transport);
        this.chat = { completions: new ChatCompletions(transport) };
        this.models = new Models(transport);
        this.evals = new Evals(transport);
    }
    /** With `PARETA_API_KEY` and, if it is set, `PARETA_BASE_URL`. */
    static fromEnv(options = {}) {
        const env = globalThis.process?.env ?? {};
        return new Pareta({ apiKey: env["PARETA_API_KEY"], baseURL: env["PARETA_BASE_URL"], ...options });
    }
}
export class Tasks {
    transport;
    constructor(transport) {
        this.transport = transport;
    }
    async list(options = {}) {
        const said = await this.transport.json({ method: "GET", path: "/v1/tasks", ...options });
        return said.tasks.map((one) => new Task(one));
    }
    async retrieve(id, { examplesN, ...options } = {}) {
        const query = { examples_n: examplesN };
        return new Task(await this.transport.json({ method: "GET", path: `/v1/tasks/${id}`, query, ...options }));
    }
    async match(query, { topK, ...options } = {}) {
        if (!query.trim())
            throw new TypeError("query must not be blank");
        const json = { query, top_k: topK ?? MATCHED_AT_MOST };
        return new TaskMatch(await this.transport.json({ method: "POST", path: "/v1/tasks/match", json, ...options }));
    }
    async leaderboard(id, options = {}) {
        const path = `/v1/tasks/${id}/leaderboard`;
        return new Leaderboard(await this.transport.json({ method: "GET", path, ...options }));
    }
    /** The name of the model that deploys as `recommended`. */
    async recommended(id, options = {}) {
        return (await this.leaderboard(id, options)).recommended;
    }
}
/** A deploy that is under way: iterate over its events, or wait for the endpoint. */
export class Deployment {
    transport;
    body;
    options;
    #waiting = null;
    constructor(transport, body, options) {
        this.transport = transport;
        this.body = body;
        this.options = options;
    }
    async *[Symbol.asyncIterator]() {
        const call = { method: "POST", path: "/v1/endpoints", json: this.body, ...this.options };
        for await (const { event, data } of readEvents(await this.transport.stream(call))) {
            yield { event, data: parsed(data) };
        }
    }
    /** The live endpoint. Raises `ParetaError` if it could not be brought up. */
    wait() {
        this.#waiting ??= this.#wait();
        return this.#waiting;
    }
    async #wait() {
        for await (const { event, data } of this) {
            if (event === "complete")
                return new Endpoint(data.endpoint);
            if (event === "error")
                throw new ParetaError(`deploy failed: ${data?.message ?? String(data)}`);
        }
        throw new ParetaError("The deploy ended without a word.");
    }
    then(good, bad) {
        return this.wait().then(good, bad);
    }
}
export class Endpoints {
    transport;
    constructor(transport) {
        this.transport = transport;
    }
    /**
     * Deploy a model of a task. `await` it (or pass `wait: true`) for the live endpoint, or loop over its events with
     * `for await`.
     */
    deploy({ wait: _wait, model, ...body }, options = {}) {
        return new Deployment(this.transport, { ...body, model: model ?? "recommended" }, options);
    }
    async list(options = {}) {
        const said = await this.transport.json({ method: "GET", path: "/v1/endpoints", ...options });
        return said.map((one) => new Endpoint(one));
    }
    async retrieve(id, options = {}) {
        return new Endpoint(await this.transport.json({ method: "GET", path: `/v1/endpoints/${id}`, ...options }));
    }
    start(id, options = {}) {
        return this.transport.json({ method: "POST", path: `/v1/endpoints/${id}/start`, ...options });
    }
    stop(id, options = {}) {
        return this.transport.json({ method: "POST", path: `/v1/endpoints/${id}/stop`, ...options });
    }
    async delete(id, options = {}) {
        await this.transport.json({ method: "DELETE", path: `/v1/endpoints/${id}`, ...options });
    }
    /** Five dimensions of an endpoint's metrics. */
    metrics(id) {
        return new EndpointMetrics(this.transport, id);
    }
}
export class EndpointMetrics {
    transport;
    id;
    constructor(transport, id) {
        this.transport = transport;
        this.id = id;
    }
    performance(query = {}) { return this.#get("performance", query); }
    uptime(query = {}) { return this.#get("uptime", query); }
    cost(query = {}) { return this.#get("cost", query); }
    quality(query = {}) { return this.#get("quality", query); }
    activity(query = {}) { return this.#get("activity", query); }
    #get(dimension, { groupBy, ...rest }) {
        const path = `/v1/endpoints/${this.id}/${dimension}`;
        return this.transport.json({ method: "GET", path, query: { ...rest, group_by: groupBy } });
    }
}
export class ChatCompletions {
    transport;
    constructor(transport) {
        this.transport = transport;
    }
    create(request, options = {}) {
        if (!request.model)
            throw new TypeError("model must not be empty");
        if (!request.messages?.length)
            throw new TypeError("messages must not be empty");
        const call = { method: "POST", path: "/v1/chat/completions", json: request, ...options };
        if (!request.stream)
            return this.transport.json(call).then((said) => new ChatCompletion(said));
        const transport = this.transport;
        const chunks = {
            async *[Symbol.asyncIterator]() {
                for await (const { data } of readEvents(await transport.stream(call))) {
                    if (data === "[DONE]")
                        return;
                    const chunk = parsed(data);
                    if (chunk.error)
                        throw new APIConnectionError(chunk.error.message);
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
    transport;
    constructor(transport) {
        this.transport = transport;
    }
    async list(options = {}) {
        const said = await this.transport.json({ method: "GET", path: "/v1/models", ...options });
        return said.data.map((one) => new Model(one));
    }
}
export class Evals {
    transport;
    sets;
    runs;
    constructor(transport) {
        this.transport = transport;
        this.sets = new EvalSets(transport);
        this.runs = new EvalRuns(transport, this);
    }
    /** Vendors' models; of a task, those that can take its input. */
    async frontierModels(task, options = {}) {
        const call = { method: "GET", path: "/v1/eval/frontier-models", query: { task }, ...options };
        return (await this.transport.json(call)).frontier_models.map((one) => new FrontierModel(one));
    }
}
export class EvalSets {
    transport;
    constructor(transport) {
        this.transport = transport;
    }
    async create({ task, items, name }, options = {}) {
        if (!items?.length)
            throw new TypeError("items must not be empty");
        const form = new FormData();
        const lines = items.map((one) => JSON.stringify(one)).join("\n");
        form.set("items", new Blob([lines], { type: "application/jsonl" }), `items.${task}.jsonl`);
        form.set("task_id", task);
        form.set("name", name ?? `sdk eval set (${items.length} items)`);
        const call = { method: "POST", path: "/v1/eval-sets", form, ...options };
        return new EvalSet((await this.transport.json(call)).eval_set);
    }
    async list(options = {}) {
        const call = { method: "GET", path: "/v1/eval-sets", ...options };
        return (await this.transport.json(call)).eval_sets.map((one) => new EvalSet(one));
    }
    async retrieve(id, options = {}) {
        const call = { method: "GET", path: `/v1/eval-sets/${id}`, ...options };
        return new EvalSet((await this.transport.json(call)).eval_set);
    }
    async delete(id, options = {}) {
        await this.transport.json({ method: "DELETE", path: `/v1/eval-sets/${id}`, ...options });
    }
    /** Attach a document to a row: small ones in one call, large ones through an upload URL. */
    async uploadDocument(id, file, { idx, fieldName, mime }, options = {}) {
        const blob = file instanceof Blob ? file : new Blob([file]);
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
        const given = await this.transport.json({
            method: "POST", path: `/v1/eval-sets/${id}/blob-upload-url`, json: { ...place, file_size: blob.size }, ...options,
        });
        const status = await this.transport.put(given.upload_url, blob, type);
        if (status !== 200 && status !== 201)
            throw new ParetaError(`The upload was answered with ${status}.`);
        const json = { ...place, storage_uri: given.storage_uri };
        return this.transport.json({ method: "POST", path: `/v1/eval-sets/${id}/blob-upload-complete`, json, ...options });
    }
}
export class EvalRuns {
    transport;
    evals;
    constructor(transport, evals) {
        this.transport = transport;
        this.evals = evals;
    }
    /** Measure models on a set, or on rows that become one. */
    async create(request, options = {}) {
        const { task, items, models, frontier, name, wait, pollInterval, timeout } = request;
        let evalSet = request.evalSet;
        if (!evalSet) {
            if (!task || !items?.length)
                throw new TypeError("pass evalSet, or task and items");
            evalSet = (await this.evals.sets.create({ task, items, ...(name === undefined ? {} : { name }) }, options)).id;
        }
        const candidates = [...(models ?? []), ...(await this.#frontier(frontier ?? null, task, evalSet, options))];
        if (!candidates.length)
            throw new TypeError("models must not be empty");
        const json = { eval_set_id: evalSet, candidate_model_ids: candidates };
        const call = { method: "POST", path: "/v1/eval-runs", json, ...options };
        const said = await this.transport.json(call);
        if (!wait)
            return new EvalRun({ run: { id: said.run_id, status: said.status } });
        return this.wait(said.run_id, {
            ...(pollInterval === undefined ? {} : { pollInterval }), ...(timeout === undefined ? {} : { timeout }),
        });
    }
    async retrieve(id, options = {}) {
        return new EvalRun(await this.transport.json({ method: "GET", path: `/v1/eval-runs/${id}`, ...options }));
    }
    async list(options = {}) {
        const said = await this.transport.json({ method: "GET", path: "/v1/eval-runs", ...options });
        return said.runs.map((run) => new EvalRun({ run }));
    }
    /** Until it has ended, well or not. Times in seconds. */
    async wait(id, { pollInterval = 3, timeout = MAX_POLL_S } = {}) {
        const until = Date.now() + timeout * 1000;
        for (;;) {
            const run = await this.retrieve(id);
            if (run.isTerminal)
                return run;
            if (Date.now() >= until)
                throw new ParetaError(`The run ${id} did not end within ${timeout} s.`);
            await new Promise((resolve) => setTimeout(resolve, pollInterval * 1000));
        }
    }
    async #frontier(wanted, task, evalSet, options) {
        if (wanted === null || wanted === "none")
            return [];
        if (Array.isArray(wanted))
            return wanted;
        if (wanted !== "all" && wanted !== "benchmarked")
            throw new TypeError(`frontier must not be ${String(wanted)}`);
        const of = task ?? (await this.evals.sets.retrieve(evalSet, options)).taskId;
        const roster = await this.evals.frontierModels(of, options);
        return roster.filter((one) => wanted === "all" || one.benchmarked).map((one) => one.id);
    }
}
function parsed(data) {
    try {
        return JSON.parse(data);
    }
    catch {
        return data;
    }
}
