/** A value of the platform under TypeScript's names; `toDict()` is what the server said, whole. */
export class Value<Raw extends object> {
  readonly #raw: Raw;

  constructor(raw: Raw) {
    this.#raw = raw;
  }

  toDict(): Raw {
    return this.#raw;
  }

  toJSON(): Raw {
    return this.#raw;
  }
}

type Kind = "open" | "frontier";

export interface RawTask { id: string; default_scorer: string; has_blob_input: boolean; [more: string]: unknown }
/** A job that models were measured on. */
export class Task extends Value<RawTask> {
  get id() { return this.toDict().id; }
  get defaultScorer() { return this.toDict().default_scorer; }
  get hasBlobInput() { return this.toDict().has_blob_input; }
  /** Rows to try it on, where they were asked for. */
  get examples() { return (this.toDict()["examples"] ?? []) as Record<string, unknown>[]; }
}

export interface RawCandidate { task_id: string; score: number; confidence: string }
export class TaskMatchCandidate extends Value<RawCandidate> {
  get taskId() { return this.toDict().task_id; }
  get score() { return this.toDict().score; }
  get confidence() { return this.toDict().confidence; }
}

export interface RawMatch {
  query: string; matched: boolean; chosen: RawCandidate | null; candidates: RawCandidate[];
  ambiguous: boolean; matcher: string; [more: string]: unknown;
}
/** What a sentence may mean. */
export class TaskMatch extends Value<RawMatch> {
  get query() { return this.toDict().query; }
  get matched() { return this.toDict().matched; }
  get chosen() { const one = this.toDict().chosen; return one ? new TaskMatchCandidate(one) : null; }
  get candidates() { return this.toDict().candidates.map((one) => new TaskMatchCandidate(one)); }
  get ambiguous() { return this.toDict().ambiguous; }
  get matcher() { return this.toDict().matcher; }
}

export interface RawEntry {
  name: string; kind: Kind; quality: number; cost_per_request_micro_usd: number; context_k: number; [more: string]: unknown;
}
/** A line of a board. */
export class LeaderboardEntry extends Value<RawEntry> {
  get name() { return this.toDict().name; }
  get kind() { return this.toDict().kind; }
  get quality() { return this.toDict().quality; }
  get costPerRequestMicroUsd() { return this.toDict().cost_per_request_micro_usd; }
  get contextK() { return this.toDict().context_k; }
}

export interface RawLeaderboard {
  task_id: string; metric: string; cost_unit: string; recommended: string | null; models: RawEntry[]; frontier: RawEntry | null;
}
/** What was measured on a task: open models, the best first, and one vendor's model beside them. */
export class Leaderboard extends Value<RawLeaderboard> {
  get taskId() { return this.toDict().task_id; }
  get metric() { return this.toDict().metric; }
  get costUnit() { return this.toDict().cost_unit; }
  get recommended() { return this.toDict().recommended; }
  get models() { return this.toDict().models.map((one) => new LeaderboardEntry(one)); }
  get frontier() { const one = this.toDict().frontier; return one ? new LeaderboardEntry(one) : null; }
}

export interface RawFrontierModel { id: string; vendor: string; vision: boolean; benchmarked: boolean }
/** A model that its vendor hosts. */
export class FrontierModel extends Value<RawFrontierModel> {
  get id() { return this.toDict().id; }
  get vendor() { return this.toDict().vendor; }
  get vision() { return this.toDict().vision; }
  get benchmarked() { return this.toDict().benchmarked; }
}

export interface RawEndpoint {
  id: string; name: string; model: string | null; status: string; taskName: string | null; task: string | null;
  url: string | null; recommendedSystemPrompt: string | null; promptScaffold: string | null; [more: string]: unknown;
}
/** A deployed model; its `id` is what chat takes as `model`. */
export class Endpoint extends Value<RawEndpoint> {
  get id() { return this.toDict().id ?? this.toDict().name; }
  get name() { return this.toDict().name; }
  get model() { return this.toDict().model; }
  get status() { return this.toDict().status; }
  get task() { return this.toDict().taskName ?? this.toDict().task; }
  get url() { return this.toDict().url; }
  get isLive() { return this.toDict().status === "live"; }
  get recommendedSystemPrompt() { return this.toDict().recommendedSystemPrompt; }
  get promptScaffold() { return this.toDict().promptScaffold; }
}

export interface RawUsage { prompt_tokens: number; completion_tokens: number; total_tokens: number }
export class Usage extends Value<RawUsage> {
  get promptTokens() { return this.toDict().prompt_tokens; }
  get completionTokens() { return this.toDict().completion_tokens; }
  get totalTokens() { return this.toDict().total_tokens; }
}

export interface RawMessage { role?: string; content?: string | null; [more: string]: unknown }
export interface RawChoice { index: number; finish_reason: string | null; message?: RawMessage; delta?: RawMessage; [more: string]: unknown }
export interface RawCompletion { id: string; model: string; created: number; choices: RawChoice[]; usage?: RawUsage | null; [more: string]: unknown }

export class ChatChoice extends Value<RawChoice> {
  get index() { return this.toDict().index; }
  get finishReason() { return this.toDict().finish_reason; }
  get message(): RawMessage { return this.toDict().message ?? {}; }
  get delta(): RawMessage { return this.toDict().delta ?? {}; }
}

/** A whole answer, or one chunk of a stream. */
export class ChatCompletion extends Value<RawCompletion> {
  get id() { return this.toDict().id; }
  get model() { return this.toDict().model; }
  get created() { return this.toDict().created; }
  get choices() { return this.toDict().choices.map((one) => new ChatChoice(one)); }
  get usage() { const one = this.toDict().usage; return one ? new Usage(one) : null; }
}

export interface RawModel { id: string; owned_by: string; created: number }
export class Model extends Value<RawModel> {
  get id() { return this.toDict().id; }
  get ownedBy() { return this.toDict().owned_by; }
  get created() { return this.toDict().created; }
}

export interface RawEvalSet { id: string; task_id: string; name: string; item_count: number; scoring_strategy: string; [more: string]: unknown }
/** Rows of your own. */
export class EvalSet extends Value<RawEvalSet> {
  get id() { return this.toDict().id; }
  get taskId() { return this.toDict().task_id; }
  get name() { return this.toDict().name; }
  get itemCount() { return this.toDict().item_count; }
  get scoringStrategy() { return this.toDict().scoring_strategy; }
}

export interface RawItem { idx: number; score: number | null; prediction: string | null; error: string | null }
export interface RawResult {
  model_id: string; kind: Kind; quality_mean: number | null; quality_ci_low: number | null; quality_ci_high: number | null;
  mean_cost_micro_usd: number | null; n_succeeded: number; error_count: number; per_item?: RawItem[];
}
/** What a run says of one model. */
export class EvalResult extends Value<RawResult> {
  get modelId() { return this.toDict().model_id; }
  get kind() { return this.toDict().kind; }
  get qualityMean() { return this.toDict().quality_mean; }
  get qualityCiLow() { return this.toDict().quality_ci_low; }
  get qualityCiHigh() { return this.toDict().quality_ci_high; }
  get meanCostMicroUsd() { return this.toDict().mean_cost_micro_usd; }
  get nSucceeded() { return this.toDict().n_succeeded; }
  get errorCount() { return this.toDict().error_count; }
  get perItem() { return this.toDict().per_item ?? []; }
}

export interface RawRun {
  run: { id: string; status: string; eval_set_id?: string; candidate_model_ids?: string[]; total_cost_micro_usd?: number;
         error_detail?: string | null; [more: string]: unknown };
  results?: RawResult[];
}
/** An eval run. */
export class EvalRun extends Value<RawRun> {
  get id() { return this.toDict().run.id; }
  get status() { return this.toDict().run.status; }
  get evalSetId() { return this.toDict().run.eval_set_id ?? null; }
  get candidateModelIds() { return this.toDict().run.candidate_model_ids ?? []; }
  get errorDetail() { return this.toDict().run.error_detail ?? null; }
  get isTerminal() { return this.status === "completed" || this.status === "failed"; }
  get results() { return (this.toDict().results ?? []).map((one) => new EvalResult(one)); }
  /** What it cost, in whole micro-dollars. */
  get costMicroUsd() { return this.toDict().run.total_cost_micro_usd ?? 0; }
  /** What it cost, in dollars with two places, rounded down: never more than was charged. */
  get cost() {
    const cents = Math.floor(this.costMicroUsd / 10_000);
    return `${Math.floor(cents / 100)}.${String(cents % 100).padStart(2, "0")}`;
  }
}
