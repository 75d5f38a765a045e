/** A value of the platform under TypeScript's names; `toDict()` is what the server said, whole. */
export class Value {
    #raw;
    constructor(raw) {
        this.#raw = raw;
    }
    toDict() {
        return this.#raw;
    }
    toJSON() {
        return this.#raw;
    }
}
/** A job that models were measured on. */
export class Task extends Value {
    get id() { return this.toDict().id; }
    get defaultScorer() { return this.toDict().default_scorer; }
    get hasBlobInput() { return this.toDict().has_blob_input; }
    /** Rows to try it on, where they were asked for. */
    get examples() { return (this.toDict()["examples"] ?? []); }
}
export class TaskMatchCandidate extends Value {
    get taskId() { return this.toDict().task_id; }
    get score() { return this.toDict().score; }
    get confidence() { return this.toDict().confidence; }
}
/** What a sentence may mean. */
export class TaskMatch extends Value {
    get query() { return this.toDict().query; }
    get matched() { return this.toDict().matched; }
    get chosen() { const one = this.toDict().chosen; return one ? new TaskMatchCandidate(one) : null; }
    get candidates() { return this.toDict().candidates.map((one) => new TaskMatchCandidate(one)); }
    get ambiguous() { return this.toDict().ambiguous; }
    get matcher() { return this.toDict().matcher; }
}
/** A line of a board. */
export class LeaderboardEntry extends Value {
    get name() { return this.toDict().name; }
    get kind() { return this.toDict().kind; }
    get quality() { return this.toDict().quality; }
    get costPerRequestMicroUsd() { return this.toDict().cost_per_request_micro_usd; }
    get contextK() { return this.toDict().context_k; }
}
/** What was measured on a task: open models, the best first, and one vendor's model beside them. */
export class Leaderboard extends Value {
    get taskId() { return this.toDict().task_id; }
    get metric() { return this.toDict().metric; }
    get costUnit() { return this.toDict().cost_unit; }
    get recommended() { return this.toDict().recommended; }
    get models() { return this.toDict().models.map((one) => new LeaderboardEntry(one)); }
    get frontier() { const one = this.toDict().frontier; return one ? new LeaderboardEntry(one) : null; }
}
/** A model that its vendor hosts. */
export class FrontierModel extends Value {
    get id() { return this.toDict().id; }
    get vendor() { return this.toDict().vendor; }
    get vision() { return this.toDict().vision; }
    get benchmarked() { return this.toDict().benchmarked; }
}
/** A deployed model; its `id` is what chat takes as `model`. */
export class Endpoint extends Value {
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
export class Usage extends Value {
    get promptTokens() { return this.toDict().prompt_tokens; }
    get completionTokens() { return this.toDict().completion_tokens; }
    get totalTokens() { return this.toDict().total_tokens; }
}
export class ChatChoice extends Value {
    get index() { return this.toDict().index; }
    get finishReason() { return this.toDict().finish_reason; }
    get message() { return this.toDict().message ?? {}; }
    get delta() { return this.toDict().delta ?? {}; }
}
/** A whole answer, or one chunk of a stream. */
export class ChatCompletion extends Value {
    get id() { return this.toDict().id; }
    get model() { return this.toDict().model; }
    get created() { return this.toDict().created; }
    get choices() { return this.toDict().choices.map((one) => new ChatChoice(one)); }
    get usage() { const one = this.toDict().usage; return one ? new Usage(one) : null; }
}
export class Model extends Value {
    get id() { return this.toDict().id; }
    get ownedBy() { return this.toDict().owned_by; }
    get created() { return this.toDict().created; }
}
/** Rows of your own. */
export class EvalSet extends Value {
    get id() { return this.toDict().id; }
    get taskId() { return this.toDict().task_id; }
    get name() { return this.toDict().name; }
    get itemCount() { return this.toDict().item_count; }
    get scoringStrategy() { return this.toDict().scoring_strategy; }
}
/** What a run says of one model. */
export class EvalResult extends Value {
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
/** An eval run. */
export class EvalRun extends Value {
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
