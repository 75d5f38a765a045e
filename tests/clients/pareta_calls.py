"""Makes calls with whichever `pareta` SDK is first on the path: a JSON list of calls in, a list of outcomes out.

Runs in a process of its own, because two versions of one package do not fit into one.
"""

import asyncio
import json
import sys

import pareta


def outcome(work):
    try:
        return work()
    except pareta.ParetaError as error:
        return {
            "error": type(error).__name__,
            "message": str(error),
            **{name: getattr(error, name, None) for name in ("status_code", "detail", "request_id")},
        }


def call(base_url, wanted):
    arguments, options = wanted.get("arguments", {}), {"max_retries": wanted.get("max_retries", 0)}
    if wanted["do"].startswith("async"):
        return asyncio.run(call_async(base_url, wanted, arguments, options))
    with pareta.Pareta(api_key=wanted["key"], base_url=base_url, **options) as client:
        if wanted["do"] == "models":
            return {"models": [[model.id, model.created, model.owned_by] for model in client.models.list()]}
        if wanted["do"] == "stream":
            text = ""
            chunks = 0
            # The loop of the documentation: no guard around choices[0].
            for chunk in client.chat.completions.create(stream=True, **arguments):
                text += chunk.choices[0].delta.content or ""
                chunks += 1
            return {"text": text, "chunks": chunks}
        return whole(client.chat.completions.create(**arguments))


async def call_async(base_url, wanted, arguments, options):
    async with pareta.AsyncPareta(api_key=wanted["key"], base_url=base_url, **options) as client:
        if wanted["do"] == "async stream":
            text = ""
            async for chunk in await client.chat.completions.create(stream=True, **arguments):
                text += chunk.choices[0].delta.content or ""
            return {"text": text}
        return whole(await client.chat.completions.create(**arguments))


def whole(answer):
    choice = answer.choices[0]
    return {
        "text": choice.message.content,
        "model": answer.model,
        "total_tokens": answer.usage.total_tokens,
        "finish_reason": choice.finish_reason,
    }


def main():
    wanted = json.load(sys.stdin)
    done = [outcome(lambda item=item: call(wanted["base_url"], item)) for item in wanted["calls"]]
    json.dump({"version": pareta.__version__, "outcomes": done}, sys.stdout)


main()
