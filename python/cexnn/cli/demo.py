"""``cexnn demo``: search the docstrings of the installed libraries with a small cross-encoder."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cexnn.cli.comparison import MethodComparison
from cexnn.cli.support import click, refuse, threads_option
from cexnn.demo.corpus import Item, load_items
from cexnn.demo.questions import QUESTIONS
from cexnn.demo.run import cache_folder, exact_scores, open_index, table_scorer, user_cache
from cexnn.index_folder import IndexFolder
from cexnn.retriever import Hit, Retriever

__all__ = ["demo", "run_demo"]

SHOWN = [QUESTIONS[number] for number in (3, 5, 4)]  # answered when no question is given
N_EXACT = 16  # questions of the table, at most
KS, BUDGETS = (1, 10, 100), (50, 100, 200)
WIDTH = 100  # characters of a line


@click.command(short_help="Search the docstrings installed here, without a network.")
@click.argument("questions", nargs=-1)
@click.option(
    "-k",
    "--k",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Hits for each question.",
)
@click.option(
    "--budget",
    type=click.IntRange(min=5),
    default=100,
    show_default=True,
    help="Calls of the cross-encoder for each question.",
)
@click.option("--rebuild", is_flag=True, help="Pass over what an earlier run kept.")
@threads_option
def demo(
    questions: tuple[str, ...], k: int, budget: int, rebuild: bool, num_threads: int | None
) -> None:
    """Answer QUESTIONS about programming from the docstrings installed here.

    Finds the docstrings of Python's standard library, NumPy and SciPy that a small cross-encoder,
    which comes with cexnn, scores highest. Without QUESTIONS it answers some of its own and shows
    how much of an exact search is found for how many calls. Nothing is fetched. The first run
    takes a minute or two; what it learned is kept in the user's cache folder.
    """
    if not all(question.strip() for question in questions):
        raise refuse("QUESTIONS: expected texts, got an empty one")
    logging.getLogger("cexnn").setLevel(logging.ERROR)  # that items are cut is known here
    click.echo("reading the docstrings of the standard library, NumPy and SciPy", err=True)
    run_demo(
        load_items(), questions, k=k, budget=budget, cache=user_cache(), rebuild=rebuild,
        num_threads=num_threads,
    )  # fmt: skip


def run_demo(
    items: Sequence[Item],
    questions: Sequence[str],
    *,
    k: int = 3,
    budget: int = 100,
    cache: Path | None,
    rebuild: bool = False,
    num_threads: int | None = None,
    n_queries: int = 200,
    per_query: int = 50,
) -> None:
    """Do what ``cexnn demo`` does, on any items.

    Parameters
    ----------
    items : sequence of Item
        The items.
    questions : sequence of str
        What to answer; if empty, some of the demo's own, with a table of recall.
    k, budget : int
        Hits and cross-encoder calls a question.
    cache : Path or None
        Folder in which the index is kept, if it can be; None keeps nothing.
    rebuild : bool
        Whether to pass over what is there.
    num_threads : int, optional
        By default the CPUs this process may use.
    n_queries, per_query : int
        Training queries, and pairs scored for each.
    """
    folder = cache_folder(cache, items, n_queries, per_query)
    stored = open_index(
        items, n_queries=n_queries, per_query=per_query, folder=folder, rebuild=rebuild,
        num_threads=num_threads, say=_say,
    )  # fmt: skip
    retriever = Retriever.from_content(stored, device="cpu", num_threads=num_threads)
    for question in questions or SHOWN:
        _answer(retriever, question, k, budget, num_threads)
    if not questions:
        _compare(stored, retriever, folder, rebuild, num_threads)
        click.echo('\nAsk your own: cexnn demo "how do I ..."')


def _say(line: str) -> None:
    click.echo(line, err=True)


def _answer(
    retriever: Retriever, question: str, k: int, budget: int, num_threads: int | None
) -> None:
    start = time.perf_counter()
    result = retriever.search_rows([question], k, budget, num_threads=num_threads)
    milliseconds = 1000 * (time.perf_counter() - start)
    n_calls, n_items = int(result.n_calls[0]), retriever.index.n_items
    click.echo(f"\n{question}")
    click.echo(f"  {n_calls} calls for {n_items:,} docstrings, {milliseconds:.0f} ms")
    for hit in retriever.hits(result)[0]:
        click.echo(_line(hit))


def _line(hit: Hit) -> str:
    text = (hit.text or "").partition(": ")[2]
    line = f"  {hit.score:6.2f}  {hit.id}  {text}"
    return line if len(line) <= WIDTH else line[: WIDTH - 3].rstrip() + "..."


def _compare(
    stored: IndexFolder,
    retriever: Retriever,
    folder: Path | None,
    rebuild: bool,
    num_threads: int | None,
) -> None:
    n_items = stored.index.n_items
    table = exact_scores(
        retriever.scorer, QUESTIONS[:N_EXACT], n_items, folder=folder, rebuild=rebuild, say=_say
    )
    assert stored.encoder is not None
    comparison = MethodComparison(
        stored.index,
        table_scorer(table),
        range(len(table)),
        stored.encoder(QUESTIONS[: len(table)]),
        stored.encoder([item.text for item in stored.items]),
        num_threads=num_threads,
    )
    ks = [k for k in KS if k <= n_items]
    exact_ids = np.argsort(-table, axis=1, kind="stable")[:, : max(ks)].astype(np.int32)
    found = comparison.report(("retrieve-and-rerank", "cexnn"), exact_ids, ks=ks, budgets=BUDGETS)
    click.echo(
        f"\nShare of the {', '.join(map(str, ks))} docstrings that the cross-encoder scores "
        f"highest that are found,\nmean over {len(table)} questions whose every docstring "
        f"was scored ({n_items:,} calls a question)\n"
    )
    columns = "".join(f"{f'recall@{k}':>12}" for k in ks)
    click.echo(f"{'calls':>7}  {'method':<20}{columns}")
    for budget in BUDGETS:
        for method in ("retrieve-and-rerank", "cexnn"):
            rows = [r for r in found.rows if (r.budget, r.method) == (budget, method)]
            figures = "".join(f"{row.recall:12.2f}" for row in rows)
            click.echo(f"{budget:>7}  {method:<20}{figures}")
