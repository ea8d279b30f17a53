"""What `stop="confident"` saves and loses on medquad_faq, for each k and budget.

Run: CEXNN_DATA=... python bench/bench_stopping.py

150 test queries, 4,000 items, a cross-encoder's score of every pair as the scorer's table; ten
rounds. Each line holds three searches: the budget always spent, confident queries stopped, and,
for the same number of calls, a smaller budget always spent. Stopping pays where it loses next to
nothing against the first, and finds more than the last. The loss is that of recall, with the
standard error of its mean over queries. Prints a table and writes it to
results/stopping_medquad_faq.json.

How often scores stray, which the rule goes by, each build learns from its held-out queries. How far
they do (`cexnn.stray`) and the bound in `cexnn.confidence` were chosen over this data, WordNet's
glosses, docstrings and Debian's package descriptions, and over four seeds of the build: for k = 10
and budgets of 500 and 1,000 the mean over the seeds loses 0.005 or less, to within 0.0002; one
build up to 0.008. For k = 1 and 100 the bound follows the root of k.
"""

from __future__ import annotations

import json
import time

import numpy as np

from bench_quality import KS, arguments, load, machine
from cexnn import Index
from cexnn.evaluate import exact


def measure(search, exact_ids, k, budget, rounds):
    """Return one line of the table: always spent, stopped, and a smaller budget always spent."""

    def timed(budget, stop):
        start = time.perf_counter()
        result = search(k=k, budget=budget, rounds=min(rounds, budget), stop=stop)
        seconds = time.perf_counter() - start
        found = [
            len(set(ids.tolist()) & set(best[:k].tolist())) / k
            for ids, best in zip(result.ids, exact_ids, strict=True)
        ]
        return np.array(found), result.n_calls, seconds

    always, _, always_seconds = timed(budget, None)
    stopped, calls, seconds = timed(budget, "confident")
    fewer, _, _ = timed(max(1, round(calls.mean())), None)
    assert calls.max() <= budget
    lost = always - stopped
    return {
        "k": k,
        "budget": budget,
        "always": always.mean(),
        "stopped": stopped.mean(),
        "mean_calls": calls.mean(),
        "saved": 1 - calls.mean() / budget,
        "share_stopped": (calls < budget).mean(),
        "loss": lost.mean(),
        "loss_error": lost.std() / np.sqrt(len(lost)),
        "smaller_budget": fewer.mean(),
        "always_seconds": always_seconds,
        "stopped_seconds": seconds,
    }


def show(line):
    return (
        f"{line['k']:4d} {line['budget']:7d} {line['always']:8.3f} {line['stopped']:9.3f} "
        f"{line['mean_calls']:8.1f} {line['saved']:6.0%} {line['share_stopped']:9.0%} "
        f"{line['loss']:7.4f} ±{line['loss_error']:.4f} {line['smaller_budget']:12.3f}"
    )


def main():
    options = arguments(
        __doc__,
        budgets={"type": int, "nargs": "+", "default": [100, 200, 500, 1000]},
        rounds={"type": int, "default": 10},
    )
    table, scores, queries, items = load(options.data)
    index = Index.build(scores, item_embeddings=items, query_embeddings=queries)

    def scorer(queries, rows, items):
        return table[rows, items]

    def search(**changes):
        test = queries[: len(table)]
        return index.search(scorer, range(len(table)), query_embeddings=test, **changes)

    exact_ids, _ = exact(scorer, range(len(table)), len(items), max(KS))
    print("   k  budget   always   stopped    calls  saved   stopped    loss          same calls")
    print("             recall    recall                  queries                     recall")
    lines = []
    for k in KS:
        for budget in options.budgets:
            lines.append(measure(search, exact_ids, k, budget, options.rounds))
            print(show(lines[-1]), flush=True)
    record = {
        "data": "medquad_faq",
        "machine": machine(),
        "rounds": options.rounds,
        "index": index.info(),
        "lines": lines,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "stopping_medquad_faq.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
