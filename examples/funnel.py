"""From a sentence to a served model: match, leaderboard, eval on your own rows, deploy the winner, chat, metrics.

    pip install pareta
    PARETA_API_KEY=pareta_sk_… PARETA_BASE_URL=http://127.0.0.1:8080 python examples/funnel.py

`make run` prints a key and an address. There the models are rule programs of the simulator, and one of them plays a
vendor, so what this prints says nothing of any language model.
"""

import sys
import time

import pareta

SENTENCE = "extract the parties, the term and the governing law from our contracts"
ROWS = [
    {
        "input": "This agreement is made on 3 March 2025 between Alder Works Ltd and Birch Supply GmbH."
        " It runs for 24 months. Governing law: Ireland. Notice: thirty (30) days.",
        "expected": {
            "party_a": "Alder Works Ltd",
            "party_b": "Birch Supply GmbH",
            "effective_date": "2025-03-03",
            "term_months": "24",
            "governing_law": "Ireland",
            "notice_days": "30",
        },
    },
    {
        "input": "Elm Logistics BV and Fir Storage SA agree as follows."
        " The agreement enters into force on 01.07.2025. Dutch law applies.",
        "expected": {
            "party_a": "Elm Logistics BV",
            "party_b": "Fir Storage SA",
            "effective_date": "2025-07-01",
            "term_months": None,
            "governing_law": "Netherlands",
            "notice_days": None,
        },
    },
    {
        "input": "Effective date: January 15, 2024. Client: Cedar Foods Inc. Supplier: Hazel Print Co."
        " It lasts two years.",
        "expected": {
            "party_a": "Cedar Foods Inc",
            "party_b": "Hazel Print Co",
            "effective_date": "2024-01-15",
            "term_months": "24",
            "governing_law": None,
            "notice_days": None,
        },
    },
]


def main() -> None:
    """Walk the funnel and print each step."""
    pa = pareta.Pareta.from_env()

    match = pa.tasks.match(SENTENCE)
    if match.chosen is None:
        sys.exit("No task fits this sentence; pa.tasks.list() shows them all.")
    task = match.chosen.task_id
    print(
        f"1. match       {SENTENCE!r}\n               -> {task} ({match.chosen.confidence}, {match.chosen.score:.2f})"
    )

    board = pa.tasks.leaderboard(task)
    print(f"2. leaderboard {board.metric}, recommended: {board.recommended}")
    for row in [*board.models, *([board.frontier] if board.frontier else [])]:
        print(
            f"               {row.name:14} {row.kind:8} {row.quality:.3f} {row.cost_per_request_micro_usd:6} micro-USD"
        )

    names = [row.name for row in board.models[:3]]
    run = pa.evals.runs.create(
        task=task, items=ROWS, models=names, frontier="benchmarked", wait=True, poll_interval=0.2
    )
    print(f"3. eval        {len(ROWS)} rows of yours: {run.status}; {run.cost} USD ({run.cost_micro_usd} micro-USD)")
    for result in run.results:
        quality = "–" if result.quality_mean is None else f"{result.quality_mean:.3f}"
        low, high = result.quality_ci_low, result.quality_ci_high
        interval = "" if low is None else f"({low:.3f} to {high:.3f})"
        print(f"               {result.model_id:14} {result.kind:8} {quality} {interval} {result.mean_cost_micro_usd}")

    winner = run.results[0].model_id
    endpoint = pa.endpoints.deploy(task=task, model=winner, wait=True)
    print(f"4. deploy      {winner} is {endpoint.status} as {endpoint.id} at {endpoint.url}")

    answer = pa.chat.completions.create(
        model=endpoint.id, messages=[{"role": "user", "content": ROWS[0]["input"]}], temperature=0
    )
    print(f"5. chat        {answer.choices[0].message.content}")

    metrics = pa.endpoints.metrics(endpoint.id)
    until = time.monotonic() + 10
    while metrics.cost()["requests"] == 0 and time.monotonic() < until:
        time.sleep(0.1)
    cost, performance = metrics.cost(), metrics.performance()
    print(
        f"6. metrics     {cost['requests']} request, {cost['total_micro_usd']} micro-USD instead of"
        f" {cost['frontier_baseline_micro_usd']}; p50 {performance['p50_ms']} ms"
    )


if __name__ == "__main__":
    main()
