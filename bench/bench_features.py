"""What pieces of words add to a dual encoder's embeddings: recall on medquad_faq with LSA beside.

Run: CEXNN_DATA=... python bench/bench_features.py

One index is built from the embeddings of the data set, another from the same with those of an
`LsaEncoder`, fitted to the items' texts, beside them (its default dimensions and weight); both from
the same training scores, searched in 10 rounds. Prints a table and writes
results/features_medquad_faq.json.
"""

from __future__ import annotations

import json

from bench_quality import KS, arguments, load, machine
from cexnn import Index, LsaEncoder
from cexnn.evaluate import exact
from cexnn.recall_report import report


def texts(path):
    return [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]


def main():
    options = arguments(
        __doc__, budgets={"type": int, "nargs": "+", "default": [50, 100, 200, 500]}
    )
    table, scores, queries, items = load(options.data)
    item_texts, query_texts = (texts(options.data / f"{n}.jsonl") for n in ("items", "queries"))
    words = LsaEncoder.fit(item_texts)
    numbers, test = range(len(table)), slice(len(table))

    def scorer(queries, rows, items):
        return table[rows, items]

    def method(items, queries):
        index = Index.build(scores, item_embeddings=items, query_embeddings=queries)
        given = {"k": max(KS), "rounds": 10, "query_embeddings": queries[test]}
        return lambda budget: index.search(scorer, numbers, budget=budget, **given)

    exact_ids, _ = exact(scorer, numbers, len(items), max(KS))
    found = report(
        {
            "embeddings": method(items, queries),
            "embeddings, LSA beside": method(
                words.beside(items, item_texts), words.beside(queries, query_texts)
            ),
        },
        exact_ids,
        ks=KS,
        budgets=options.budgets,
    )
    print(found.table())
    record = {"data": "medquad_faq", "machine": machine(), **json.loads(found.to_json())}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "features_medquad_faq.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
