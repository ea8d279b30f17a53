"""``cexnn evaluate``: recall of an index against exact search, beside the alternatives."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cexnn.cli.comparison import METHODS, MethodComparison
from cexnn.cli.labels import read_labelled, row_labels, run_text
from cexnn.cli.support import (
    FILE,
    FOLDER,
    TEXTS,
    click,
    device_option,
    numbers,
    parse_rounds,
    read_embeddings,
    refuse,
    rounds_option,
    scores_file,
    split_option,
    threads_option,
)
from cexnn.evaluate import exact
from cexnn.index_folder import IndexFolder, read_folder
from cexnn.judging import DEFAULT_MEASURES, Judge
from cexnn.texts import check_run_ids

__all__ = ["evaluate"]

FloatArray = NDArray[np.float32]
OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Measure an index against exact search.")
@click.argument("index", type=FOLDER)
@click.argument("queries", type=TEXTS)
@click.option(
    "--ks",
    default="1,10,100",
    show_default=True,
    callback=numbers,
    help="Numbers of nearest items to find.",
)
@click.option(
    "--budgets",
    default="50,100,200,500",
    show_default=True,
    callback=numbers,
    help="Numbers of calls allowed for each query.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(METHODS),
    help="What to measure; may be given several times.  [default: all]",
)
@click.option(
    "--qrels",
    type=FILE,
    help="Relevance labels in TREC's or BEIR's format: the task's own measures stand beside "
    "recall, and for the exact search, too.",
)
@click.option(
    "--measures",
    help="What to judge by where there are labels: names of ir-measures between blanks.  "
    f'[default: "{" ".join(DEFAULT_MEASURES)}"]',
)
@split_option("test, or those of --qrels")
@rounds_option
@click.option(
    "--embeddings",
    type=FILE,
    help="The dual encoder's embeddings of the items, for an index built with embeddings: what "
    "retrieve-and-rerank and axn need.",
)
@click.option(
    "--query-embeddings",
    type=FILE,
    help="Its embeddings of the queries, (n, d) in a .npy file.",
)
@click.option("--json", "json_path", type=OUTPUT, help="Write the figures to this file.")
@click.option("--plot", type=OUTPUT, help="Draw recall: a .png, .svg or .pdf file.")
@click.option(
    "--runs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write what was found to this folder: a TREC run of each method and budget, and "
    "exact.run.",
)
@click.option(
    "--checkpoint",
    type=OUTPUT,
    help="File that keeps the exact search's scores, so that the same command goes on where it "
    "was interrupted. One that you name is kept.  [default: beside the index, and removed at the "
    "end]",
)
@device_option
@threads_option
def evaluate(
    index: Path,
    queries: str,
    ks: tuple[int, ...],
    budgets: tuple[int, ...],
    methods: tuple[str, ...],
    qrels: str | None,
    measures: str | None,
    split: str | None,
    rounds: str | None,
    embeddings: str | None,
    query_embeddings: str | None,
    json_path: Path | None,
    plot: Path | None,
    runs: Path | None,
    checkpoint: Path | None,
    device: str,
    num_threads: int | None,
) -> None:
    """Measure how much of an exact search the folder INDEX finds for QUERIES.

    The exact search scores every item for every query: choose a few dozen queries, other than
    those of the build. The table shows recall@k against calls of the cross-encoder for
    retrieve-and-rerank (the nearest items by the embeddings), for the search of the AXN paper on
    the embeddings as they are, and for cexnn; seconds are for all queries together. Interrupted,
    the same command goes on with the exact search where it stopped.

    Of a folder in BEIR's format the queries are those that its labels (--split or --qrels) name,
    and the labels give measures such as nDCG@10. For recall alone, name its queries.jsonl.
    """
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise refuse(f"--plot: expected a file name ending in .png, .svg or .pdf, got {plot}")
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise refuse("--plot: a plot needs Matplotlib: pip install 'cexnn[cpu]'")
    for option, path in (("--json", json_path), ("--plot", plot), ("--runs", runs)):
        if path is not None and not path.absolute().parent.is_dir():
            raise refuse(f"{option}: expected a path in a folder that exists, got {path}")
    folder = read_folder(index, device=device)
    texts, labels = read_labelled(queries, split, qrels)
    asked = [query.text for query in texts]
    n_items = folder.index.n_items
    if max(ks) > n_items:
        raise refuse(f"--ks: expected at most the {n_items} items, got {max(ks)}")
    judgments, depth = None, 0
    judged_by = DEFAULT_MEASURES if measures is None else tuple(measures.split())
    if labels is not None:
        judgments = row_labels(labels, texts, folder.items)
        depth = Judge(judgments, judged_by, len(texts)).depth  # refused before it costs anything
    elif measures is not None:
        raise refuse("--measures: expected labels to judge by, with --qrels or in a BEIR folder")
    if runs is not None:
        check_run_ids(text.id for text in [*texts, *folder.items])
        runs.mkdir(exist_ok=True)
    of_items = _item_embeddings(folder, embeddings)
    of_queries = _query_embeddings(folder, query_embeddings, asked)
    names = methods or (METHODS if of_items is not None else ("cexnn",))
    if of_items is None and set(names) != {"cexnn"}:
        raise refuse("--embeddings: expected those of the items, for retrieve-and-rerank and axn")
    cross_encoder = folder.cross_encoder(device=device, num_threads=num_threads)
    scorer = cross_encoder.bind([item.text for item in folder.items])
    given = None if rounds is None else parse_rounds(rounds, min(budgets))
    comparison = MethodComparison(
        folder.index, scorer, asked, of_queries, of_items, given, num_threads
    )
    kept_scores = checkpoint or scores_file(index, folder.settings, folder.items, texts)
    if not os.access(kept_scores.absolute().parent, os.W_OK):
        raise refuse(f"--checkpoint: expected a file in a folder to write to, got {kept_scores}")
    click.echo(f"exact search: {len(asked) * n_items:,} pairs", err=True)
    try:
        exact_ids, scores = exact(
            scorer,
            asked,
            n_items,
            max(*ks, depth),
            checkpoint=kept_scores,
            progress=True,
        )
    except KeyboardInterrupt:
        click.echo(f"{kept_scores} keeps the scores so far: the same command goes on", err=True)
        raise
    kept = {"exact": (exact_ids, scores)}
    found = comparison.report(
        names,
        exact_ids,
        ks=ks,
        budgets=budgets,
        judgments=judgments,
        measures=judged_by,
        keep=lambda name, result: kept.update({name: (result.ids, result.scores)}),
        progress=True,
    )
    click.echo(found.table())
    if json_path is not None:
        found.save_json(json_path)
    if runs is not None:
        for name, answers in kept.items():
            text = run_text(name, texts, folder.items, *answers)
            (runs / f"{name}.run").write_text(text, encoding="utf-8")
    if plot is not None:
        found.plot(plot)
    if checkpoint is None:
        kept_scores.unlink(missing_ok=True)


def _item_embeddings(folder: IndexFolder, path: str | None) -> FloatArray | None:
    if folder.encoder is None:
        n_items = folder.index.n_items
        return None if path is None else read_embeddings("--embeddings", path, n_items)
    if path is not None:
        raise refuse("--embeddings: expected none, the index has an encoder of its own")
    return folder.encoder([item.text for item in folder.items])


def _query_embeddings(folder: IndexFolder, path: str | None, queries: list[str]) -> FloatArray:
    if folder.encoder is not None:
        if path is not None:
            raise refuse("--query-embeddings: expected none, the index has an encoder of its own")
        return folder.encoder(queries)
    if path is None:
        raise refuse("--query-embeddings: expected them, the index was built with embeddings")
    return read_embeddings("--query-embeddings", path, len(queries))
