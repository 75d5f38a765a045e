"""Runs blocks of the documentation in a process of their own, with the `pareta` SDK of one version.

``python client.py`` reads ``{"base_url", "api_key", "code", "given"}`` from standard input, runs the code with ``pa``
(a client), ``pareta`` and the given names, and prints what it left in ``out`` as JSON; of an SDK's error its class,
text and attributes.
"""

import json
import sys

import pareta


def main():
    wanted = json.load(sys.stdin)
    options = {"api_key": wanted["api_key"], "base_url": wanted["base_url"], **wanted.get("options", {})}
    names = {"pareta": pareta, "pa": pareta.Pareta(**options), "out": {}, **wanted["given"]}
    said = {"version": pareta.__version__, "out": None, "error": None}
    try:
        exec(compile(wanted["code"], "block", "exec"), names)
        said["out"] = names["out"]
    except Exception as error:
        said["error"] = {
            "class": type(error).__name__,
            "is_pareta": isinstance(error, pareta.ParetaError),
            "text": str(error),
            "status_code": getattr(error, "status_code", None),
            "detail": getattr(error, "detail", None),
            "request_id": getattr(error, "request_id", None),
        }
    print("\n" + json.dumps(said))


main()
