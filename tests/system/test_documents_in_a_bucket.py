"""A gateway whose documents lie in a bucket: uploads, a run that reads them, and a store that goes away."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.control.catalog.importing import import_catalog
from gateway.control.catalog.reading import read_catalog
from gateway.control.database import session
from tests.integration.s3_server import KEY_ID, SECRET, S3Server
from tests.seed import demo
from tests.seed.personas import VENDOR_KEY, Personas
from tests.seed.test_evals import ended, multipart, upload, wait_for_control
from tests.services import PostgresService, run_apart
from tests.system.harness import Gateway, running_gateway
from tests.system.wire import ask

TASK, MODEL = "invoice-extraction", "claude-test-4"


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3Server]:
    """A store in a thread of its own, because the gateway's processes outlive each test's loop."""
    server, loop, ready = S3Server(), asyncio.new_event_loop(), threading.Event()
    end = asyncio.Event()

    async def serve() -> None:
        async with server.running():
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield server
    loop.call_soon_threadsafe(end.set)
    thread.join(10)
    loop.close()


@pytest.fixture(scope="module")
def personas() -> Iterator[Personas]:
    """The vendor."""
    server = Personas({MODEL: "always"})
    yield server
    server.close()


@pytest.fixture(scope="module")
def gateway(postgres_service: PostgresService, personas: Personas, bucket: S3Server) -> Iterator[Gateway]:
    """Told where documents go by its settings alone."""
    with running_gateway(
        postgres_service,
        simulators=1,
        anthropic_api_key=VENDOR_KEY,
        anthropic_base_url=personas.url,
        blob_store_url=bucket.url("/evals"),
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
    ) as gateway:

        async def prepare() -> None:
            files = demo.files()
            files["frontier.json"] = json.dumps(
                [
                    {
                        "id": MODEL,
                        "vendor": "anthropic",
                        "vision": True,
                        "context_tokens": 200_000,
                        "prompt_nanos_per_million": 1,
                        "completion_nanos_per_million": 1,
                    }
                ]
            ).encode()
            for task_id in demo.REAL:
                board = demo.board(task_id)
                board["frontier"] = [demo.measured(MODEL, 0.93, 4100)]
                files[f"boards/{task_id}.json"] = json.dumps(board).encode()
            async with session(gateway.settings.database_url) as conn:
                await import_catalog(conn, read_catalog(files))

        run_apart(prepare())
        wait_for_control(gateway)
        yield gateway
        assert not (gateway.settings.data_path / "documents").exists()


def attached(idx: int, data: bytes) -> dict[str, Any]:
    """A document with its bytes."""
    parts = [
        f'--b0undary\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in {"idx": idx, "field_name": "document", "mime": "application/pdf"}.items()
    ]
    head = b'--b0undary\r\nContent-Disposition: form-data; name="file"; filename="a.pdf"\r\n\r\n'
    return upload((b"".join([*parts, head, data, b"\r\n--b0undary--\r\n"]), "multipart/form-data; boundary=b0undary"))


async def test_documents_of_a_run_lie_in_a_bucket(gateway: Gateway, bucket: S3Server, personas: Personas) -> None:
    """Inline and uploaded, they are there once; a store that is away is a 503 to who uploads and a pause to a run."""
    owner = await gateway.tenant()
    items = [{"input": {"hint": f"row {idx} [[{{}}]]"}, "document": None, "expected": {"total": "1"}} for idx in (0, 1)]
    made = await gateway.post("/v1/eval-sets", owner.key, **upload(multipart(items, task=TASK)))
    assert made.status == 201, made.json
    base = f"/v1/eval-sets/{made.json['eval_set']['id']}"
    small, large = b"%PDF-1.4 small", b"%PDF-1.4 " + b"l" * (6 * 1024 * 1024)

    bucket.failures = [(403, "AccessDenied")]
    refused = await gateway.post(f"{base}/attach-blob", owner.key, **attached(0, small))
    assert (refused.status, bucket.objects) == (503, {})
    assert "words of the store" not in refused.raw.decode("utf-8", "replace")
    first = await gateway.post(f"{base}/attach-blob", owner.key, **attached(0, small))
    assert first.status == 200, first.json

    place = {"idx": 1, "field_name": "document", "mime": "application/pdf"}
    given = (await gateway.post(f"{base}/blob-upload-url", owner.key, place | {"file_size": len(large)})).json
    root, path = given["upload_url"].rsplit("/uploads/", 1)
    port = int(root.rpartition(":")[2])
    # A right to upload that came to nothing because of us can be used again.
    bucket.failures = [(403, "AccessDenied")]
    assert (await ask(port, "PUT", f"/uploads/{path}", body=large)).status == 503
    assert (await ask(port, "PUT", f"/uploads/{path}", body=large)).status == 201
    done = await gateway.post(f"{base}/blob-upload-complete", owner.key, place | {"storage_uri": given["storage_uri"]})
    assert done.status == 200, done.json
    names = {answer.json["uri"].removeprefix("blob:"): data for answer, data in ((first, small), (done, large))}
    assert bucket.objects == {f"evals/{name}": data for name, data in names.items()}

    # Two reads fail for good; the run asks again later, and no row is lost.
    bucket.failures = [(403, "AccessDenied"), (403, "AccessDenied")]
    body = {"eval_set_id": made.json["eval_set"]["id"], "candidate_model_ids": [MODEL]}
    started = await gateway.post("/v1/eval-runs", owner.key, body)
    assert started.status == 202, started.json
    said = await ended(gateway, owner.key, started.json["run_id"])
    assert [(row["model_id"], row["n_succeeded"], row["error_count"]) for row in said["results"]] == [(MODEL, 2, 0)]
    assert bucket.failures == []
    # An answer that was on its way while another row had to wait is asked for again.
    assert personas.asked[MODEL] >= 2
