/** Every error that this client raises is a `ParetaError`; what the server refused is an `APIStatusError`. */
export declare class ParetaError extends Error {
    constructor(message?: string, options?: ErrorOptions);
}
/** The connection could not be made, or broke. */
export declare class APIConnectionError extends ParetaError {
}
/** The server did not answer within the client's time. */
export declare class APITimeoutError extends APIConnectionError {
}
/** What the server says of a refusal. */
export interface Refusal {
    status: number;
    detail: unknown;
    code: string | null;
    requestId: string | null;
}
/** The server answered with a status that is no success. */
export declare class APIStatusError extends ParetaError {
    readonly status: number;
    /** The server's sentence, or its body if that has none. */
    readonly detail: unknown;
    /** A stable word, such as `insufficient_credits`. */
    readonly code: string | null;
    /** Quote it to support. */
    readonly requestId: string | null;
    constructor(refusal: Refusal);
}
/** 400, 422: the request is malformed. */
export declare class BadRequestError extends APIStatusError {
}
/** 401: no key, or a bad one. */
export declare class AuthenticationError extends APIStatusError {
}
/** 402: the organization has no credit. */
export declare class InsufficientCreditsError extends APIStatusError {
}
/** 403: the key may not do this. */
export declare class PermissionDeniedError extends APIStatusError {
}
/** 404: no such thing in this organization. */
export declare class NotFoundError extends APIStatusError {
}
/** 409: a seed endpoint, a name that is taken, or contention. */
export declare class ConflictError extends APIStatusError {
}
/** 429: too many requests. */
export declare class RateLimitError extends APIStatusError {
}
/** 503: stopped, starting, or the provider is down. */
export declare class EndpointNotReadyError extends APIStatusError {
}
/** The error of the class that fits a status. */
export declare function errorOf(refusal: Refusal): APIStatusError;
