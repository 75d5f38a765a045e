/** A value of the platform under TypeScript's names; `toDict()` is what the server said, whole. */
export declare class Value<Raw extends object> {
    #private;
    constructor(raw: Raw);
    toDict(): Raw;
    toJSON(): Raw;
}
type Kind = "open" | "frontier";
export interface RawTask {
    id: string;
    default_scorer: string;
    has_blob_input: boolean;
    [more: string]: unknown;
}
/** A job that models were measured on. */
export declare class Task extends Value<RawTask> {
    get id(): string;
    get defaultScorer(): string;
    get hasBlobInput(): boolean;
    /** Rows to try it on, where they were asked for. */
    get examples(): Record<string, unknown>[];
}
export interface RawCandidate {
    task_id: string;
    score: number;
    confidence: string;
}
export declare class TaskMatchCandidate extends Value<RawCandidate> {
    get taskId(): string;
    get score(): number;
    get confidence(): string;
}
export interface RawMatch {
    query: string;
    matched: boolean;
    chosen: RawCandidate | null;
    candidates: RawCandidate[];
    ambiguous: boolean;
    matcher: string;
    [more: string]: unknown;
}
/** What a sentence may mean. */
export declare class TaskMatch extends Value<RawMatch> {
    get query(): string;
    get matched(): boolean;
    get chosen(): TaskMatchCandidate | null;
    get candidates(): TaskMatchCandidate[];
    get ambiguous(): boolean;
    get matcher(): string;
}
export interface RawEntry {
    name: string;
    kind: Kind;
    quality: number;
    cost_per_request_micro_usd: number;
    context_k: number;
    [more: string]: unknown;
}
/** A line of a board. */
export declare class LeaderboardEntry extends Value<RawEntry> {
    get name(): string;
    get kind(): Kind;
    get quality(): number;
    get costPerRequestMicroUsd(): number;
    get contextK(): number;
}
export interface RawLeaderboard {
    task_id: string;
    metric: string;
    cost_unit: string;
    recommended: string | null;
    models: RawEntry[];
    frontier: RawEntry | null;
}
/** What was measured on a task: open models, the best first, and one vendor's model beside them. */
export declare class Leaderboard extends Value<RawLeaderboard> {
    get taskId(): string;
    get metric(): string;
    get costUnit(): string;
    get recommended(): string | null;
    get models(): LeaderboardEntry[];
    get frontier(): LeaderboardEntry | null;
}
export interface RawFrontierModel {
    id: string;
    vendor: string;
    vision: boolean;
    benchmarked: boolean;
}
/** A model that its vendor hosts. */
export declare class FrontierModel extends Value<RawFrontierModel> {
    get id(): string;
    get vendor(): string;
    get vision(): boolean;
    get benchmarked(): boolean;
}
export interface RawEndpoint {
    id: string;
    name: string;
    model: string | null;
    status: string;
    taskName: string | null;
    task: string | null;
    url: string | null;
    recommendedSystemPrompt: string | null;
    promptScaffold: string | null;
    [more: string]: unknown;
}
/** A deployed model; its `id` is what chat takes as `model`. */
export declare class Endpoint extends Value<RawEndpoint> {
    get id(): string;
    get name(): string;
    get model(): string | null;
    get status(): string;
    get task(): string | null;
    get url(): string | null;
    get isLive(): boolean;
    get recommendedSystemPrompt(): string | null;
    get promptScaffold(): string | null;
}
export interface RawUsage {
    prompt_tokens: number;
    completion_tokens: number;
    total_tokens: number;
}
export declare class Usage extends Value<RawUsage> {
    get promptTokens(): number;
    get completionTokens(): number;
    get totalTokens(): number;
}
export interface RawMessage {
    role?: string;
    content?: string | null;
    [more: string]: unknown;
}
export interface RawChoice {
    index: number;
    finish_reason: string | null;
    message?: RawMessage;
    delta?: RawMessage;
    [more: string]: unknown;
}
export interface RawCompletion {
    id: string;
    model: string;
    created: number;
    choices: RawChoice[];
    usage?: RawUsage | null;
    [more: string]: unknown;
}
export declare class ChatChoice extends Value<RawChoice> {
    get index(): number;
    get finishReason(): string | null;
    get message(): RawMessage;
    get delta(): RawMessage;
}
/** A whole answer, or one chunk of a stream. */
export declare class ChatCompletion extends Value<RawCompletion> {
    get id(): string;
    get model(): string;
    get created(): number;
    get choices(): ChatChoice[];
    get usage(): Usage | null;
}
export interface RawModel {
    id: string;
    owned_by: string;
    created: number;
}
export declare class Model extends Value<RawModel> {
    get id(): string;
    get ownedBy(): string;
    get created(): number;
}
export interface RawEvalSet {
    id: string;
    task_id: string;
    name: string;
    item_count: number;
    scoring_strategy: string;
    [more: string]: unknown;
}
/** Rows of your own. */
export declare class EvalSet extends Value<RawEvalSet> {
    get id(): string;
    get taskId(): string;
    get name(): string;
    get itemCount(): number;
    get scoringStrategy(): string;
}
export interface RawItem {
    idx: number;
    score: number | null;
    prediction: string | null;
    error: string | null;
}
export interface RawResult {
    model_id: string;
    kind: Kind;
    quality_mean: number | null;
    quality_ci_low: number | null;
    quality_ci_high: number | null;
    mean_cost_micro_usd: number | null;
    n_succeeded: number;
    error_count: number;
    per_item?: RawItem[];
}
/** What a run says of one model. */
export declare class EvalResult extends Value<RawResult> {
    get modelId(): string;
    get kind(): Kind;
    get qualityMean(): number | null;
    get qualityCiLow(): number | null;
    get qualityCiHigh(): number | null;
    get meanCostMicroUsd(): number | null;
    get nSucceeded(): number;
    get errorCount(): number;
    get perItem(): RawItem[];
}
export interface RawRun {
    run: {
        id: string;
        status: string;
        eval_set_id?: string;
        candidate_model_ids?: string[];
        total_cost_micro_usd?: number;
        error_detail?: string | null;
        [more: string]: unknown;
    };
    results?: RawResult[];
}
/** An eval run. */
export declare class EvalRun extends Value<RawRun> {
    get id(): string;
    get status(): string;
    get evalSetId(): string | null;
    get candidateModelIds(): string[];
    get errorDetail(): string | null;
    get isTerminal(): boolean;
    get results(): EvalResult[];
    /** What it cost, in whole micro-dollars. */
    get costMicroUsd(): number;
    /** What it cost, in dollars with two places, rounded down: never more than was charged. */
    get cost(): string;
}
export {};
