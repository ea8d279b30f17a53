"""The command line on a folder in BEIR's format: building, searching, judging, runs."""

import itertools
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("click", reason="needs click: pip install 'cexnn[cpu]'")
pytest.importorskip("tqdm", reason="needs tqdm: pip install 'cexnn[cpu]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")
pytest.importorskip("ir_measures", reason="needs ir-measures: pip install 'cexnn[cpu]'")

import ir_measures
from click.testing import CliRunner

from cexnn.cli import main
from cexnn.demo.run import MODEL
from cexnn.index_folder import read_folder
from cexnn.texts import read_run

VERBS = ["copy", "delete", "open", "sort", "compress", "search"]
NOUNS = ["a file", "a list", "an array", "a folder", "a string", "a matrix", "an archive", "dates"]
PAIRS = [*itertools.product(VERBS, NOUNS)]
IDS = [f"{verb}.{noun}".replace(" ", ".") for verb, noun in PAIRS]
# Of the test split the labels name what is not asked for: the exact search must do badly.
SPLITS = {"test": (range(4), 9), "train": (range(4, 24), 0)}
HEADER = "query-id\tcorpus-id\tscore"
SMALL = ["--ks", "1,5", "--budgets", "5,48", "--method", "cexnn"]


def run(*arguments, code=0, stdin=None):
    result = CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def refused(*arguments):
    result = run(*arguments, code=2)
    assert result.stdout == ""
    return result.stderr


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beir")
    corpus = [
        {"_id": item, "title": f"{verb} {noun}", "text": f"{verb.title()} {noun} quickly."}
        for item, (verb, noun) in zip(IDS, PAIRS, strict=True)
    ]
    queries = [
        {"_id": f"q{n}", "text": f"how do I {verb} {noun}?"}
        for n, (verb, noun) in enumerate(PAIRS[::2])
    ]
    for name, entries in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    (folder / "qrels").mkdir()
    for split, (numbers, shift) in SPLITS.items():
        rows = [f"q{n}\t{IDS[2 * n + shift]}\t1\n" for n in numbers]
        (folder / "qrels" / f"{split}.tsv").write_text(f"{HEADER}\n{''.join(rows)}")
    return folder


@pytest.fixture(scope="module")
def index(beir):
    run(
        "build", beir, "--queries", beir, "--split", "train", "--model", MODEL,
        "-o", beir / "index", "--per-query", 16, "--max-length", 40, "--threads", 1,
    )  # fmt: skip
    return beir / "index"


def test_a_folder_is_built_and_searched(beir, index):
    stored = read_folder(index)
    assert [item.id for item in stored.items] == IDS
    assert stored.items[1].text == "copy a list Copy a list quickly."
    assert stored.index.info()["n_training_scores"] == 16 * 20  # the train split
    found = run("search", index, beir, "--split", "test", "--budget", 48, "-k", 1, "--no-texts")
    entries = [json.loads(line) for line in found.stdout.splitlines()]
    assert [entry["id"] for entry in entries] == ["q0", "q1", "q2", "q3"]
    assert entries[0]["hits"][0]["id"] == "copy.a.file"
    assert len(run("search", index, beir, "--budget", 1).stdout.splitlines()) == 24


def test_evaluate_judges_every_method_and_the_exact_search(beir, index, tmp_path):
    figures, runs = tmp_path / "report.json", tmp_path / "runs"
    result = run("evaluate", index, beir, *SMALL, "--json", figures, "--runs", runs)
    assert "exact search: 192 pairs" in result.stderr  # the test split
    report = json.loads(figures.read_text())
    assert (report["n_queries"], report["n_judged"]) == (4, 4)
    names = ["cexnn-5", "cexnn-48", "exact"]
    assert sorted(path.name for path in runs.iterdir()) == sorted(f"{n}.run" for n in names)
    # The runs are judged by the package itself, from the files.
    qrels = [
        ir_measures.Qrel(f"q{n}", IDS[2 * n + SPLITS["test"][1]], 1) for n in SPLITS["test"][0]
    ]
    rows = iter(report["judged"])
    for name in names:
        path = runs / f"{name}.run"
        assert [
            len(items) for items in read_run(path.read_bytes().splitlines(), name).values()
        ] == [5 if name == "cexnn-5" else 10] * 4
        assert all(line.endswith(f" {name}") for line in path.read_text().splitlines())
        values = ir_measures.calc_aggregate(
            [ir_measures.RR @ 10, ir_measures.nDCG @ 10],
            qrels,
            list(ir_measures.read_trec_run(str(path))),
        )
        for measure in ("RR@10", "nDCG@10"):
            row = next(rows)
            assert row["measure"] == measure
            assert row["value"] == pytest.approx(values[ir_measures.parse_measure(measure)])
            assert row["low"] <= row["value"] <= row["high"]
    assert next(rows, None) is None
    last = result.stdout.splitlines()[-1].split("|")
    assert [cell.strip() for cell in last[1:5]] == ["all", "exact search", "1.000", "1.000"]
    assert report["judged"][-1]["value"] < 0.5


def test_labels_of_a_file_and_measures_by_name(beir, index, tmp_path):
    qrels = tmp_path / "labels.txt"
    qrels.write_bytes(
        "\ufeffq0 0 copy.a.file 1\r\nq1 0 copy.an.array 2\r\nzz 0 gone 1\r\n".encode()
    )
    result = run(
        "evaluate", index, beir / "queries.jsonl", *SMALL, "--qrels", qrels,
        "--measures", "P@1 nDCG@60",
    )  # fmt: skip
    assert "2 of 24 queries have labels" in result.stderr
    assert "are not among them: 1" in result.stderr
    lines = [[cell.strip() for cell in line.split("|")] for line in result.stdout.splitlines()]
    assert lines[0][5:7] == ["P@1 [95 %]", "nDCG@60 [95 %]"]
    assert lines[-1][5:7] == ["1.000 [1.00, 1.00]"] * 2
    qrels.write_text("q0 0 copy.a.file 1\nq1 0 copy.an.array 2\n")
    of_folder = run("evaluate", index, beir, *SMALL, "--qrels", qrels)
    assert "exact search: 96 pairs" in of_folder.stderr  # the two queries that have labels


def test_labelled_items_that_are_not_in_the_index_count_as_missed(beir, index, tmp_path):
    qrels = tmp_path / "labels.txt"
    qrels.write_text("q0 0 copy.a.file 1\nq0 0 gone 1\nq1 0 lost 1\n")
    figures = tmp_path / "report.json"
    result = run(
        "evaluate", index, beir, *SMALL, "--qrels", qrels, "--measures", "R@48", "--json", figures
    )  # fmt: skip
    assert "2 of 3 labelled items are not in the index, such as 'gone'" in result.stderr
    assert json.loads(figures.read_text())["judged"][-1]["value"] == 1 / 4  # 1 of 2, and 0 of 1


def test_a_split_wants_a_folder(beir, index):
    queries = beir / "queries.jsonl"
    for command in (["evaluate", index, queries], ["search", index, queries]):
        message = refused(*command, "--split", "test")
        assert "--split: expected a folder in BEIR's format for the queries" in message


def test_what_cannot_be_judged_is_refused_before_it_costs(beir, index, tmp_path):
    def message(text, *options, queries=beir / "queries.jsonl"):
        (tmp_path / "labels").write_text(text)
        said = refused("evaluate", index, queries, *SMALL, "--qrels", tmp_path / "labels", *options)
        assert "exact search" not in said
        return said

    good = "q0 0 copy.a.file 1\n"
    assert "expected relevance labels, one a line, got none" in message("")
    assert "--qrels: expected the queries' ids in" in message("zz 0 copy.a.file 1\n")
    assert "expected ids of items in the index, got 'gone'" in message("q0 0 gone 1\n")
    assert "labels:2: expected each item once a query" in message(good * 2)
    assert "got 'zz'" in message(f"{good}zz 0 copy.a.file 1\n", queries=beir)
    assert "got 'nDCG@ten'" in message(good, "--measures", "nDCG@ten")
    assert "measures: expected names" in message(good, "--measures", "")
    assert "--split and --qrels: expected one" in message(good, "--split", "test", queries=beir)
    assert "--runs: expected a path in a folder" in message(good, "--runs", tmp_path / "no" / "a")
    said = refused("evaluate", index, beir / "queries.jsonl", *SMALL, "--measures", "P@1")
    assert "--measures: expected labels to judge by" in said
    assert "found test, train" in refused("evaluate", index, beir, "--split", "dev")
    (tmp_path / "empty").mkdir()
    assert "found no queries.jsonl" in refused("search", index, tmp_path / "empty")
    assert "found no corpus.jsonl" in refused(
        "build", tmp_path / "empty", "--queries", beir, "--model", MODEL, "-o", tmp_path / "out"
    )


def test_ids_that_a_run_cannot_hold_are_refused_before_it_costs(index, tmp_path):
    asked = tmp_path / "asked.tsv"
    asked.write_text("query 1\tcopy a file\n")
    for command in (
        ["evaluate", index, asked, *SMALL, "--runs", tmp_path / "runs"],
        ["search", index, asked, "--format", "trec"],
    ):
        message = refused(*command)
        assert message == "Error: a TREC run holds no id with white space in it, got 'query 1'\n"
    assert not (tmp_path / "runs").exists()


def test_a_run_of_a_small_index_is_short(beir, index, tmp_path):
    queries = beir / "queries.jsonl"
    options = ["--ks", "1", "--budgets", "3", "--runs", tmp_path / "runs"]
    run("evaluate", index, "-", *options, stdin=queries.read_text().splitlines()[0])
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "exact.run", "retrieve-and-rerank-3.run", "axn-3.run", "cexnn-3.run",
    }  # fmt: skip
    exact = (tmp_path / "runs" / "exact.run").read_text().split()
    content = read_folder(index)
    bound = content.cross_encoder().bind([item.text for item in content.items])
    scores = bound(["how do I copy a file?"], np.zeros(48, np.int32), np.arange(48, dtype=np.int32))
    assert exact[:4] == ["q0", "Q0", IDS[int(scores.argmax())], "1"]
    assert float(exact[4]) == pytest.approx(scores.max(), abs=1e-4)
    assert len(exact) == 6


def test_an_empty_document_is_built_and_searched(beir, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(beir, folder, ignore=shutil.ignore_patterns("index"))
    with open(folder / "corpus.jsonl", "a") as file:
        file.write(json.dumps({"_id": "empty", "title": "", "text": ""}) + "\n")
    run(
        "build", folder, "--queries", folder, "--split", "train", "--model", MODEL,
        "-o", tmp_path / "index", "--per-query", 16, "--max-length", 40, "--threads", 1,
    )  # fmt: skip
    assert read_folder(tmp_path / "index").items[-1].text == ""
    assert run("search", tmp_path / "index", "-", "--k", 3, stdin="copy a file\n").stdout


def test_a_run_that_cannot_be_written_costs_no_figures(index, beir, tmp_path):
    (tmp_path / "runs" / "exact.run").mkdir(parents=True)
    result = run("evaluate", index, beir, *SMALL, "--runs", tmp_path / "runs", code=2)
    assert "cexnn" in result.stdout
