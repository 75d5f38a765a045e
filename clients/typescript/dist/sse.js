import { APIConnectionError } from "./errors.js";
/**
 * Reads server-sent events from bytes, wherever they are cut. Lines end with LF, CRLF or CR; comments are skipped.
 * Leaving the loop early ends the request.
 */
export async function* readEvents(body) {
    const reader = body.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    let event = "message";
    let data = [];
    try {
        for (;;) {
            const { done, value } = await read(reader);
            rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
            // A CR at the end may be the first half of a CRLF.
            const upTo = done || !rest.endsWith("\r") ? rest.length : rest.length - 1;
            const lines = rest.slice(0, upTo).split(/\r\n|\n|\r/);
            rest = (lines.pop() ?? "") + rest.slice(upTo);
            for (const line of lines) {
                if (line === "") {
                    if (data.length > 0)
                        yield { event, data: data.join("\n") };
                    event = "message";
                    data = [];
                    continue;
                }
                if (line.startsWith(":"))
                    continue;
                const colon = line.indexOf(":");
                const field = colon < 0 ? line : line.slice(0, colon);
                const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
                if (field === "event")
                    event = text;
                else if (field === "data")
                    data.push(text);
            }
            if (done)
                return;
        }
    }
    finally {
        await reader.cancel().catch(() => undefined);
    }
}
async function read(reader) {
    try {
        return await reader.read();
    }
    catch (error) {
        throw new APIConnectionError("The stream broke off.", { cause: error });
    }
}
