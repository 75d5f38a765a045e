/** Every error that this client raises is a `ParetaError`; what the server refused is an `APIStatusError`. */
export class ParetaError extends Error {
  constructor(message?: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** The connection could not be made, or broke. */
export class APIConnectionError extends ParetaError {}

/** The server did not answer within the client's time. */
export class APITimeoutError extends APIConnectionError {}

/** What the server says of a refusal. */
export interface Refusal {
  status: number;
  detail: unknown;
  code: string | null;
  requestId: string | null;
}

/** The server answered with a status that is no success. */
export class APIStatusError extends ParetaError {
  readonly status: number;
  /** The server's sentence, or its body if that has none. */
  readonly detail: unknown;
  /** A stable word, such as `insufficient_credits`. */
  readonly code: string | null;
  /** Quote it to support. */
  readonly requestId: string | null;

  constructor(refusal: Refusal) {
    super(typeof refusal.detail === "string" && refusal.detail ? refusal.detail : `HTTP ${refusal.status}`);
    this.status = refusal.status;
    this.detail = refusal.detail;
    this.code = refusal.code;
    this.requestId = refusal.requestId;
  }
}

/** 400, 422: the request is malformed. */
export class BadRequestError extends APIStatusError {}
/** 401: no key, or a bad one. */
export class AuthenticationError extends APIStatusError {}
/** 402: the organization has no credit. */
export class InsufficientCreditsError extends APIStatusError {}
/** 403: the key may not do this. */
export class PermissionDeniedError extends APIStatusError {}
/** 404: no such thing in this organization. */
export class NotFoundError extends APIStatusError {}
/** 409: a seed endpoint, a name that is taken, or contention. */
export class ConflictError extends APIStatusError {}
/** 429: too many requests. */
export class RateLimitError extends APIStatusError {}
/** 503: stopped, starting, or the provider is down. */
export class EndpointNotReadyError extends APIStatusError {}

const CLASSES: Record<number, typeof APIStatusError> = {
  400: BadRequestError,
  401: AuthenticationError,
  402: InsufficientCreditsError,
  403: PermissionDeniedError,
  404: NotFoundError,
  409: ConflictError,
  422: BadRequestError,
  429: RateLimitError,
  503: EndpointNotReadyError,
};

/** The error of the class that fits a status. */
export function errorOf(refusal: Refusal): APIStatusError {
  return new (CLASSES[refusal.status] ?? APIStatusError)(refusal);
}
