"""``cexnn build``: texts and a cross-encoder to an index folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cexnn.beir import CORPUS
from cexnn.cli.support import (
    FILE,
    TEXTS,
    click,
    device_option,
    max_length_option,
    read_embeddings,
    read_queries,
    read_text_file,
    refuse,
    scores_file,
    split_option,
    threads_option,
)
from cexnn.compact import DTYPES
from cexnn.cross_encoder.hub import find_model_files
from cexnn.index_folder import IndexFolder, Settings, may_write, write_folder
from cexnn.texts import Text
from cexnn.training import fit_encoder, train_index

__all__ = ["build"]


@click.command(short_help="Build an index of texts for a cross-encoder.")
@click.argument("items", type=TEXTS)
@click.option(
    "--model",
    required=True,
    help="The cross-encoder: a folder with model.onnx and tokenizer.json, or the id of a "
    "repository of the Hugging Face Hub that has them.",
)
@click.option(
    "--queries",
    required=True,
    type=TEXTS,
    help="Training queries: texts like those that will be searched for, but none that the index "
    "is to be judged by.",
)
@split_option("all")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to write; an index folder that is there already is replaced.",
)
@click.option(
    "--embeddings",
    type=FILE,
    help="A dual encoder's embeddings of the items, (n, d) in a .npy file. Without them, latent "
    "semantic analysis of the items takes its place.",
)
@click.option(
    "--query-embeddings", type=FILE, help="Embeddings of the training queries; with --embeddings."
)
@click.option(
    "--per-query",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Pairs to score for each training query.",
)
@click.option(
    "--random-fraction",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of random items among them; the others are those nearest by the embeddings.",
)
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False),
    help="File that keeps the scores, so that an interrupted build goes on where it stopped. One "
    "that you name is kept: use another for another model or other items.  "
    "[default: beside the output, and removed at the end]",
)
@max_length_option
@click.option(
    "--max-query-length",
    type=click.IntRange(min=1),
    help="Tokens of a query at most.  [default: half of --max-length]",
)
@click.option(
    "--dtype",
    type=click.Choice(("float32", *DTYPES)),
    default="float32",
    show_default=True,
    help="What searches scan of the items: the fewer bytes, the less time. What they find stays "
    "the same.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Equal seeds give equal indexes.",
)
@device_option
@threads_option
def build(
    items: str,
    model: str,
    queries: str,
    split: str | None,
    output: Path,
    embeddings: str | None,
    query_embeddings: str | None,
    checkpoint: str | None,
    max_length: int,
    max_query_length: int | None,
    **options: Any,
) -> None:
    """Build an index of ITEMS for a cross-encoder.

    Scores a sample of pairs of training queries and items, and learns from the scores where to
    look. Interrupted, the same command goes on where it stopped.
    """
    if (embeddings is None) != (query_embeddings is None):
        raise refuse("--embeddings and --query-embeddings: expected both or neither")
    if items == queries == "-":
        raise refuse("--queries: expected a file, the standard input holds the items")
    if not may_write(output):
        raise refuse(f"--output: {output} is there already and is no index folder of cexnn")
    if not output.absolute().parent.is_dir():
        raise refuse(f"--output: expected a path in a folder that exists, got {output}")
    try:
        find_model_files(model)
    except ValueError as error:
        raise refuse(str(error).replace("name_or_folder:", "--model:", 1)) from error
    item_texts, query_texts = read_text_file(items, CORPUS), read_queries(queries, split)
    settings = Settings(_absolute(model), max_length, max_query_length)
    given = None
    if embeddings is not None and query_embeddings is not None:
        given = (
            read_embeddings("--embeddings", embeddings, len(item_texts)),
            read_embeddings("--query-embeddings", query_embeddings, len(query_texts)),
        )
    path = Path(checkpoint) if checkpoint else scores_file(output, settings, item_texts)
    n_pairs = len(query_texts) * min(options["per_query"], len(item_texts))
    click.echo(f"{n_pairs:,} pairs to score; {path} keeps the scores", err=True)
    try:
        folder = _build(item_texts, query_texts, settings, given, checkpoint=path, **options)
    except KeyboardInterrupt:
        if path.exists():
            click.echo(f"{path} keeps the scores so far: the same command goes on there", err=True)
        raise
    write_folder(output, folder)
    if checkpoint is None:
        path.unlink(missing_ok=True)
    click.echo(f"{output}: {folder.index.n_items} items", err=True)


def _build(
    items: list[Text],
    queries: list[Text],
    settings: Settings,
    embeddings: Any,
    *,
    dtype: str,
    device: str,
    num_threads: int | None,
    **options: Any,
) -> IndexFolder:
    item_texts, query_texts = [item.text for item in items], [query.text for query in queries]
    cross_encoder = settings.cross_encoder(device=device, num_threads=num_threads)
    encoder = None
    if embeddings is None:
        encoder = fit_encoder(item_texts)
        embeddings = encoder(item_texts), encoder(query_texts)
    index = train_index(
        cross_encoder.bind(item_texts),
        query_texts,
        item_embeddings=embeddings[0],
        query_embeddings=embeddings[1],
        device=device,
        num_threads=num_threads,
        progress=True,
        **options,
    )
    return IndexFolder(index.astype(dtype), items, encoder, settings)


def _absolute(model: str) -> str:
    return str(Path(model).absolute()) if Path(model).is_dir() else model
