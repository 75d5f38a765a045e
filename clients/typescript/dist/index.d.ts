import { type ClientOptions, type RequestOptions, Transport } from "./transport.js";
import { ChatCompletion, Endpoint, EvalRun, EvalSet, FrontierModel, Leaderboard, Model, Task, TaskMatch } from "./values.js";
export * from "./errors.js";
export * from "./values.js";
export type { ClientOptions, RequestOptions } from "./transport.js";
export interface ChatMessage {
    role: string;
    content: unknown;
    [more: string]: unknown;
}
/** Fields of OpenAI's API, under its own names. */
export interface ChatRequest {
    model: string;
    messages: ChatMessage[];
    stream?: boolean;
    [more: string]: unknown;
}
export interface DeployEvent {
    event: string;
    data: any;
}
export interface DeployRequest {
    task: string;
    model?: string;
    name?: string;
    wait?: boolean;
    [more: string]: unknown;
}
export interface MetricsQuery {
    window?: string;
    since?: string;
    groupBy?: string;
}
export type Metrics = Record<string, any>;
export type Row = Record<string, unknown>;
export type Frontier = "all" | "benchmarked" | "none" | string[] | null;
export interface RunRequest {
    evalSet?: string;
    task?: string;
    items?: Row[];
    models?: string[];
    frontier?: Frontier;
    name?: string;
    wait?: boolean;
    /** Seconds. */
    pollInterval?: number;
    timeout?: number;
}
export interface DocumentPlace {
    idx: number;
    fieldName: string;
    mime?: string;
}
/** The client. One for a process is enough; every call may be made at any time. */
export declare class Pareta {
    readonly tasks: Tasks;
    readonly endpoints: Endpoints;
    readonly chat: {
        completions: ChatCompletions;
    };
    readonly models: Models;
    readonly evals: Evals;
    constructor(options?: ClientOptions);
    /** With `PARETA_API_KEY` and, if it is set, `PARETA_BASE_URL`. */
    static fromEnv(options?: ClientOptions): Pareta;
}
export declare class Tasks {
    private readonly transport;
    constructor(transport: Transport);
    list(options?: RequestOptions): Promise<Task[]>;
    retrieve(id: string, { examplesN, ...options }?: RequestOptions & {
        examplesN?: number;
    }): Promise<Task>;
    match(query: string, { topK, ...options }?: RequestOptions & {
        topK?: number;
    }): Promise<TaskMatch>;
    leaderboard(id: string, options?: RequestOptions): Promise<Leaderboard>;
    /** The name of the model that deploys as `recommended`. */
    recommended(id: string, options?: RequestOptions): Promise<string | null>;
}
/** A deploy that is under way: iterate over its events, or wait for the endpoint. */
export declare class Deployment implements AsyncIterable<DeployEvent>, PromiseLike<Endpoint> {
    #private;
    private readonly transport;
    private readonly body;
    private readonly options;
    constructor(transport: Transport, body: Row, options: RequestOptions);
    [Symbol.asyncIterator](): AsyncGenerator<DeployEvent, void, undefined>;
    /** The live endpoint. Raises `ParetaError` if it could not be brought up. */
    wait(): Promise<Endpoint>;
    then<A = Endpoint, B = never>(good?: ((endpoint: Endpoint) => A | PromiseLike<A>) | null, bad?: ((reason: any) => B | PromiseLike<B>) | null): Promise<A | B>;
}
export declare class Endpoints {
    private readonly transport;
    constructor(transport: Transport);
    /**
     * Deploy a model of a task. `await` it (or pass `wait: true`) for the live endpoint, or loop over its events with
     * `for await`.
     */
    deploy({ wait: _wait, model, ...body }: DeployRequest, options?: RequestOptions): Deployment;
    list(options?: RequestOptions): Promise<Endpoint[]>;
    retrieve(id: string, options?: RequestOptions): Promise<Endpoint>;
    start(id: string, options?: RequestOptions): Promise<Record<string, unknown>>;
    stop(id: string, options?: RequestOptions): Promise<Record<string, unknown>>;
    delete(id: string, options?: RequestOptions): Promise<void>;
    /** Five dimensions of an endpoint's metrics. */
    metrics(id: string): EndpointMetrics;
}
export declare class EndpointMetrics {
    #private;
    private readonly transport;
    private readonly id;
    constructor(transport: Transport, id: string);
    performance(query?: MetricsQuery): Promise<Metrics>;
    uptime(query?: MetricsQuery): Promise<Metrics>;
    cost(query?: MetricsQuery): Promise<Metrics>;
    quality(query?: MetricsQuery): Promise<Metrics>;
    activity(query?: MetricsQuery): Promise<Metrics>;
}
/** Chunks of an answer as they come. */
export interface ChatStream extends AsyncIterable<ChatCompletion> {
}
export declare class ChatCompletions {
    private readonly transport;
    constructor(transport: Transport);
    create(request: ChatRequest & {
        stream: true;
    }, options?: RequestOptions): Promise<ChatStream> & ChatStream;
    create(request: ChatRequest & {
        stream?: false;
    }, options?: RequestOptions): Promise<ChatCompletion>;
}
export declare class Models {
    private readonly transport;
    constructor(transport: Transport);
    list(options?: RequestOptions): Promise<Model[]>;
}
export declare class Evals {
    private readonly transport;
    readonly sets: EvalSets;
    readonly runs: EvalRuns;
    constructor(transport: Transport);
    /** Vendors' models; of a task, those that can take its input. */
    frontierModels(task?: string, options?: RequestOptions): Promise<FrontierModel[]>;
}
export declare class EvalSets {
    private readonly transport;
    constructor(transport: Transport);
    create({ task, items, name }: {
        task: string;
        items: Row[];
        name?: string;
    }, options?: RequestOptions): Promise<EvalSet>;
    list(options?: RequestOptions): Promise<EvalSet[]>;
    retrieve(id: string, options?: RequestOptions): Promise<EvalSet>;
    delete(id: string, options?: RequestOptions): Promise<void>;
    /** Attach a document to a row: small ones in one call, large ones through an upload URL. */
    uploadDocument(id: string, file: Blob | Uint8Array, { idx, fieldName, mime }: DocumentPlace, options?: RequestOptions): Promise<Record<string, unknown>>;
}
export declare class EvalRuns {
    #private;
    private readonly transport;
    private readonly evals;
    constructor(transport: Transport, evals: Evals);
    /** Measure models on a set, or on rows that become one. */
    create(request: RunRequest, options?: RequestOptions): Promise<EvalRun>;
    retrieve(id: string, options?: RequestOptions): Promise<EvalRun>;
    list(options?: RequestOptions): Promise<EvalRun[]>;
    /** Until it has ended, well or not. Times in seconds. */
    wait(id: string, { pollInterval, timeout }?: {
        pollInterval?: number | undefined;
        timeout?: number | undefined;
    }): Promise<EvalRun>;
}
