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
/** Sends calls: with the key, in time, and again where that helps. */
export declare class Transport {
    #private;
    readonly baseURL: string;
    constructor(options: ClientOptions);
    /** The JSON of an answer; `null` if it has no body. */
    json<T>(call: Call): Promise<T>;
    /** The body of an answer as it comes. */
    stream(call: Call): Promise<ReadableStream<Uint8Array>>;
    /** Puts bytes to a URL that bears its own right; without the key, once. */
    put(url: string, bytes: Blob, mime: string): Promise<number>;
}
