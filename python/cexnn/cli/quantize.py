"""``cexnn quantize``: a smaller model, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cexnn.beir import CORPUS, QUERIES
from cexnn.cli.support import TEXTS, click, device_option, max_length_option, read_text_file, refuse
from cexnn.cross_encoder import Comparison, CrossEncoder, compare_models

__all__ = ["quantize"]


@click.command(short_help="Write an int8 or fp16 model, and say what it costs.")
@click.argument("model")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--queries", type=TEXTS, required=True, help="Queries to compare on.")
@click.option("--items", type=TEXTS, required=True, help="Items to compare on.")
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp16"]),
    default="int8",
    show_default=True,
    help="What the smaller model computes in: int8 for CPUs, fp16 for GPUs.",
)
@device_option
@max_length_option
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    nargs=2,
    default=(20, 200),
    show_default=True,
    help="Queries and items to draw for the comparison.",
)
@click.option(
    "--k", type=click.IntRange(min=1), default=10, show_default=True, help="For recall@k."
)
@click.option("--overwrite", is_flag=True, help="Write to FOLDER even if something is in it.")
def quantize(
    model: str,
    folder: Path,
    queries: str,
    items: str,
    precision: str,
    device: str,
    max_length: int,
    sample: tuple[int, int],
    k: int,
    overwrite: bool,
) -> None:
    """Write a smaller model of the ONNX cross-encoder MODEL into FOLDER.

    MODEL is a folder or a name on the Hugging Face Hub. Both then score the same pairs: pairs a
    second, and the share of the given model's best k items that are among the smaller one's, stand
    side by side.
    """
    options: dict[str, Any] = {"device": device, "max_length": max_length}
    given = CrossEncoder.from_pretrained(model, **options)
    generator = np.random.default_rng(0)
    texts = []
    for path, part, n in zip((queries, items), (QUERIES, CORPUS), sample, strict=True):
        found = [text.text for text in read_text_file(path, part)]
        texts.append([found[j] for j in generator.permutation(len(found))[:n]])
    if not texts[0] or len(texts[1]) < k:  # before anything is written
        counts = f"{len(texts[0])} and {len(texts[1])}"
        raise refuse(f"--sample: expected a query and {k} items (--k) at least, got {counts}")
    written = given.quantize(folder, precision=precision, overwrite=overwrite)
    small = CrossEncoder.from_pretrained(written, **options)
    rows = compare_models({"given": given, precision: small}, *texts, k=k)
    click.echo("\n".join(_table(rows, k)))


def _table(rows: list[Comparison], k: int) -> list[str]:
    head = (
        f"{'model':6} {'pairs/s':>8} {'speed-up':>8} {f'recall@{k}':>10} {'largest difference':>18}"
    )
    return [head] + [
        f"{row.name:6} {row.pairs_per_second:8.1f} {row.speed_up:7.2f}x {row.recall:10.3f} "
        f"{row.max_difference:18.2g}"
        for row in rows
    ]
