/** One event of a stream. Events without a name are called `message`. */
export interface ServerEvent {
    event: string;
    data: string;
}
/**
 * Reads server-sent events from bytes, wherever they are cut. Lines end with LF, CRLF or CR; comments are skipped.
 * Leaving the loop early ends the request.
 */
export declare function readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerEvent, void, undefined>;
