"""The command line: ``cexnn demo``, ``build``, ``search``, ``serve``, ``evaluate``, ..."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cexnn.cli.build import build
from cexnn.cli.demo import demo
from cexnn.cli.evaluate import evaluate
from cexnn.cli.quantize import quantize
from cexnn.cli.serve import serve
from cexnn.cli.support import (
    FILE,
    FOLDER,
    STREAM,
    TEXTS,
    Commands,
    click,
    device_option,
    opened,
    parse_rounds,
    read_embeddings,
    read_queries,
    refuse,
    rounds_option,
    split_option,
    threads_option,
)
from cexnn.cli.update import update
from cexnn.export import export_onnx
from cexnn.index_folder import read_folder
from cexnn.retriever import Hit, Retriever
from cexnn.texts import Text, check_run_ids, json_line, read_run, run_lines

__all__ = ["main"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("cexnn"), prog_name="cexnn")
def main() -> None:
    """Find a cross-encoder's best items for a small fixed number of calls.

    Texts come as JSON Lines with "id" and "text", as TSV (id, tab, text), as plain lines, whose
    ids are the line numbers, or in a folder in BEIR's format (corpus.jsonl, queries.jsonl and
    qrels); "-" stands for the standard input.
    """


main.add_command(build)
main.add_command(evaluate)
main.add_command(demo)
main.add_command(quantize)
main.add_command(serve)
main.add_command(update)


@main.command(short_help="Search an index for texts.")
@click.argument("index", type=FOLDER)
@click.argument("queries", type=TEXTS, default="-")
@click.option(
    "-k",
    "--k",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Hits for each query.",
)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Calls of the cross-encoder for each query.",
)
@split_option("all")
@rounds_option
@click.option(
    "--first",
    type=STREAM,
    help="A TREC run of any retriever: each query's search opens with its items.",
)
@click.option(
    "--query-embeddings",
    type=FILE,
    help="Embeddings of the queries, (n, d) in a .npy file, for an index built with embeddings.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "trec"]),
    default="jsonl",
    show_default=True,
    help="JSON Lines or a TREC run.",
)
@click.option(
    "--texts/--no-texts",
    default=True,
    show_default=True,
    help="Whether JSON Lines hold the texts of queries and items.",
)
@device_option
@threads_option
def search(
    index: Path,
    queries: str,
    k: int,
    budget: int,
    split: str | None,
    rounds: str | None,
    first: str | None,
    query_embeddings: str | None,
    form: str,
    texts: bool,
    device: str,
    num_threads: int | None,
) -> None:
    """Search the folder INDEX, which "cexnn build" wrote, for QUERIES.

    Writes a line of JSON for each query (or a TREC run) to the standard output: its id, its text,
    the calls it cost, and the hits, best first, with their cross-encoder scores.
    """
    if queries == first == "-":
        raise refuse("--first: expected a file, the standard input holds the queries")
    folder = read_folder(index, device=device)
    retriever = Retriever.from_content(folder, device=device, num_threads=num_threads)
    asked = read_queries(queries, split)
    if form == "trec":
        check_run_ids(text.id for text in [*asked, *folder.items])
    given = None
    if query_embeddings is not None:
        given = read_embeddings("--query-embeddings", query_embeddings, len(asked))
    result = retriever.search_rows(
        [query.text for query in asked],
        k,
        budget,
        rounds=parse_rounds(rounds, budget),
        first=None if first is None else _opening(first, asked),
        query_embeddings=given,
        num_threads=num_threads,
        progress=True,
    )
    hits = retriever.hits(result)
    for query, n_calls, found in zip(asked, result.n_calls.tolist(), hits, strict=True):
        if form == "trec":
            for line in run_lines(query.id, found, "cexnn"):
                click.echo(line)
        else:
            click.echo(json_line(_entry(query, n_calls, found, texts)))


def _opening(path: str, queries: Sequence[Text]) -> list[list[str]]:
    with opened(path) as (file, name):
        run = read_run(file, name)
    if not any(query.id in run for query in queries):
        raise refuse(f"--first: expected the queries' ids in {name}, got none of them")
    return [run.get(query.id, []) for query in queries]


def _entry(query: Text, n_calls: int, hits: Sequence[Hit], texts: bool) -> dict[str, Any]:
    found = [hit._replace(score=float(f"{hit.score:.9g}"))._asdict() for hit in hits]
    entry = {**query._asdict(), "n_calls": n_calls, "hits": found}
    if not texts:
        for part in (entry, *found):
            del part["text"]
    return entry


@main.command(short_help="Export a PyTorch cross-encoder to ONNX.")
@click.argument("model", type=FOLDER)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def export(model: Path, folder: Path) -> None:
    """Export the PyTorch cross-encoder in the folder MODEL to ONNX, into FOLDER.

    Writes model.onnx and tokenizer.json, having held their scores against PyTorch's. Needs
    pip install 'cexnn[torch]'.
    """
    result = export_onnx(model, folder)
    click.echo(
        f"{result.model}: logits within {result.max_difference:.1e} of PyTorch's on "
        f"{result.n_pairs} pairs"
    )


@main.command(short_help="Tell what an index holds.")
@click.argument("index", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def info(index: Path, as_json: bool) -> None:
    """Tell what the folder INDEX holds and what its build learned."""
    folder = read_folder(index)
    facts = {
        "model": folder.settings.model,
        "max_length": folder.settings.max_length,
        "max_query_length": folder.settings.max_query_length,
        "encoder": "LSA of the items" if folder.encoder else "the caller's embeddings",
        **folder.index.info(),
    }
    if as_json:
        click.echo(json_line(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict | list | tuple):
            value = json.dumps(value)
        elif isinstance(value, float):
            value = f"{value:.5g}"
        click.echo(f"{name.replace('_', ' '):<18} {value}")
