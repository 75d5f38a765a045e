import { APIConnectionError, APITimeoutError, errorOf, ParetaError } from "./errors.js";

/** How a client is made. */
export interface ClientOptions {
  /** A key such as `pareta_sk_…`. */
  apiKey?: string | undefined;
  /** Root of the platform, without `/v1`. */
  baseURL?: string | undefined;
  /** Milliseconds that a call may take, 60,000 by default; of a stream, until its head. */
  timeout?: number | undefined;
  /** How often a call is repeated, 2 by default. */
  maxRetries?: number | undefined;
  /** In place of the global one. */
  fetch?: typeof fetch | undefined;
}

/** What one call may be given besides its arguments. */
export interface RequestOptions {
  signal?: AbortSignal | undefined;
  /** The same key with the same body gets the same outcome, and is charged once. */
  idempotencyKey?: string | undefined;
}

export interface Call extends RequestOptions {
  method: string;
  path: string;
  query?: Record<string, string | number | undefined>;
  json?: unknown;
  form?: FormData;
  stream?: boolean;
}

const DEFAULT_BASE = "https://api.pareta.ai";
const RETRIED = new Set([408, 409, 429, 500, 502, 503, 504]);
const LONGEST_WAIT_S = 30;

/** Sends calls: with the key, in time, and again where that helps. */
export class Transport {
  readonly baseURL: string;
  readonly #apiKey: string;
  readonly #timeout: number;
  readonly #maxRetries: number;
  readonly #fetch: typeof fetch;

  constructor(options: ClientOptions) {
    if (!options.apiKey) throw new ParetaError("There is no API key: pass apiKey, or set PARETA_API_KEY.");
    this.#apiKey = options.apiKey;
    this.baseURL = (options.baseURL || DEFAULT_BASE).replace(/\/+$/, "");
    this.#timeout = options.timeout ?? 60_000;
    this.#maxRetries = Math.max(0, Math.trunc(options.maxRetries ?? 2));
    this.#fetch = options.fetch ?? ((...args) => globalThis.fetch(...args));
  }

  /** The JSON of an answer; `null` if it has no body. */
  async json<T>(call: Call): Promise<T> {
    const { response, done } = await this.#send(call);
    try {
      const text = await response.text();
      return (text ? JSON.parse(text) : null) as T;
    } catch (error) {
      throw this.#broken(error, call);
    } finally {
      done();
    }
  }

  /** The body of an answer as it comes. */
  async stream(call: Call): Promise<ReadableStream<Uint8Array>> {
    const { response, done } = await this.#send({ ...call, stream: true });
    done(); // the time counts until the head; a stream may take as long as it does
    if (!response.body) throw new APIConnectionError("The answer has no body.");
    return response.body;
  }

  /** Puts bytes to a URL that bears its own right; without the key, once. */
  async put(url: string, bytes: Blob, mime: string): Promise<number> {
    const response = await this.#fetch(url, { method: "PUT", body: bytes, headers: { "Content-Type": mime } });
    await response.text();
    return response.status;
  }

  async #send(call: Call): Promise<{ response: Response; done: () => void }> {
    for (let attempt = 0; ; attempt += 1) {
      const isLast = attempt >= this.#maxRetries;
      const timer = new AbortController();
      const timeout = setTimeout(() => timer.abort(), this.#timeout);
      const stop = () => timer.abort();
      const done = () => clearTimeout(timeout);
      if (call.signal?.aborted) timer.abort();
      call.signal?.addEventListener("abort", stop, { once: true });
      let wait = backoff(attempt);
      try {
        const response = await this.#fetch(this.#url(call), this.#init(call, timer.signal));
        if (response.ok) return { response, done };
        const error = await refusalOf(response);
        done();
        if (isLast || !RETRIED.has(response.status)) throw error;
        wait = retryAfter(response) ?? wait;
      } catch (error) {
        done();
        if (error instanceof ParetaError) throw error;
        if (isLast || call.signal?.aborted) throw this.#broken(error, call);
      }
      await new Promise((resolve) => setTimeout(resolve, wait * 1000));
    }
  }

  #url(call: Call): string {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(call.query ?? {})) if (value !== undefined) query.set(name, String(value));
    const text = query.toString();
    return this.baseURL + call.path + (text ? `?${text}` : "");
  }

  #init(call: Call, signal: AbortSignal): RequestInit {
    const headers: Record<string, string> = {
      Authorization: `Bearer ${this.#apiKey}`,
      Accept: call.stream ? "text/event-stream" : "application/json",
    };
    if (call.idempotencyKey !== undefined) headers["Idempotency-Key"] = call.idempotencyKey;
    if (call.form) return { method: call.method, headers, signal, body: call.form };
    if (call.json === undefined) return { method: call.method, headers, signal };
    headers["Content-Type"] = "application/json";
    return { method: call.method, headers, signal, body: JSON.stringify(call.json) };
  }

  #broken(error: unknown, call: Call): ParetaError {
    if (call.signal?.aborted) return new APIConnectionError("The call was aborted.", { cause: error });
    const name = error instanceof Error ? error.name : "";
    if (name === "AbortError" || name === "TimeoutError") {
      return new APITimeoutError(`No answer within ${this.#timeout} ms.`, { cause: error });
    }
    return new APIConnectionError("The connection could not be made, or broke.", { cause: error });
  }
}

async function refusalOf(response: Response) {
  const text = await response.text().catch(() => "");
  let detail: unknown = text || null;
  let code: string | null = null;
  try {
    const body = JSON.parse(text);
    if (body && typeof body === "object") {
      detail = body.detail ?? detail;
      code = typeof body.error?.code === "string" ? body.error.code : null;
    }
  } catch {
    // Not JSON: its text is all there is.
  }
  return errorOf({ status: response.status, detail, code, requestId: response.headers.get("x-request-id") });
}

function backoff(attempt: number): number {
  return Math.min(0.5 * 2 ** attempt, 8) + Math.random() * 0.25;
}

function retryAfter(response: Response): number | null {
  const text = response.headers.get("retry-after");
  const seconds = text === null || text.trim() === "" ? Number.NaN : Number(text);
  return Number.isFinite(seconds) && seconds >= 0 ? Math.min(seconds, LONGEST_WAIT_S) : null;
}
