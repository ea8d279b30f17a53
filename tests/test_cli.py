"""The command line, on the demo's cross-encoder and a small corpus."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("click", reason="needs click: pip install 'cexnn[cpu]'")
pytest.importorskip("tqdm", reason="needs tqdm: pip install 'cexnn[cpu]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")

from click.testing import CliRunner

from cexnn.cli import main
from cexnn.cli.demo import run_demo
from cexnn.demo.corpus import Item
from cexnn.demo.run import MODEL
from cexnn.index_folder import read_folder

VERBS = ["copy", "delete", "open", "sort", "compress", "search"]
NOUNS = ["a file", "a list", "an array", "a folder", "a string", "a matrix", "an archive", "dates"]
TEXTS = [f"{verb} {noun}: {verb.title()} {noun} quickly." for verb in VERBS for noun in NOUNS]
IDS = [text.partition(":")[0].replace(" ", ".") for text in TEXTS]
QUESTIONS = [f"how do I {v} {n}?" for v, n in itertools.product(VERBS, NOUNS[::2])]
BUILD_OPTIONS = ["--per-query", "16", "--max-length", "40", "--threads", "1"]


def run(*arguments, code=0, stdin=None):
    result = CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def refused(*arguments, stdin=None):
    """Run what must end in one line on stderr and exit code 2."""
    result = run(*arguments, code=2, stdin=stdin)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    pairs = zip(IDS, TEXTS, strict=True)
    (folder / "items.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in pairs))
    (folder / "train.txt").write_text("\n".join(QUESTIONS[4:]))
    asked = [{"id": f"q{n}", "text": text} for n, text in enumerate(QUESTIONS[:4])]
    (folder / "asked.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in asked))
    rng = np.random.default_rng(0)
    for name, n in (("items", len(TEXTS)), ("train", len(QUESTIONS) - 4), ("asked", 4)):
        np.save(folder / f"{name}.npy", rng.normal(size=(n, 6)).astype(np.float32))
    return folder


def build(files, output, *options):
    return run(
        "build", files / "items.tsv", "--model", MODEL, "--queries", files / "train.txt",
        "-o", output, *BUILD_OPTIONS, *options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def index(files):
    build(files, files / "index")
    return files / "index"


def test_build_writes_a_folder_and_no_more(files, index):
    names = {"config.json", "index.cexnn", "items.jsonl", "encoder.npz"}
    assert {path.name for path in index.iterdir()} == names
    assert not [path for path in files.iterdir() if ".scores" in path.name or ".tmp" in path.name]
    stored = read_folder(index)
    assert [tuple(item) for item in stored.items] == list(zip(IDS, TEXTS, strict=True))
    assert stored.settings.model == str(MODEL)
    assert stored.settings.max_length == 40
    assert stored.index.info()["n_training_scores"] == 16 * (len(QUESTIONS) - 4)


def test_search_finds_what_the_cross_encoder_likes_best(files, index):
    result = run("search", index, files / "asked.jsonl", "-k", 3, "--budget", 48)
    assert result.stderr == ""
    entries = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry["id"] for entry in entries] == ["q0", "q1", "q2", "q3"]
    bound = read_folder(index).settings.cross_encoder(device="cpu").bind(TEXTS)
    for entry, question in zip(entries, QUESTIONS, strict=False):
        scores = bound([question], np.zeros(48, np.int32), np.arange(48, dtype=np.int32))
        best = np.argsort(-scores, kind="stable")[:3]
        assert entry["text"] == question
        assert entry["n_calls"] == 48
        assert [hit["id"] for hit in entry["hits"]] == [IDS[item] for item in best]
        assert [hit["text"] for hit in entry["hits"]] == [TEXTS[item] for item in best]
        found = np.float32([hit["score"] for hit in entry["hits"]])
        np.testing.assert_allclose(found, scores[best], atol=1e-4)


def test_search_reads_stdin_and_writes_no_texts(index):
    result = run("search", index, "--no-texts", "--budget", 3, stdin="copy a file\n")
    [entry] = map(json.loads, result.stdout.splitlines())
    assert entry.keys() == {"id", "n_calls", "hits"}
    assert entry["id"] == "1"
    assert [hit.keys() for hit in entry["hits"]] == [{"id", "score"}] * 3


def test_a_run_goes_out_and_comes_in_again(files, index, tmp_path):
    ranked = IDS[5:8]
    first = tmp_path / "first.run"
    first.write_text("".join(f"q1 Q0 {i} {r} 0 bm25\n" for r, i in enumerate(ranked)))
    result = run(
        "search", index, files / "asked.jsonl", "--first", first, "--format", "trec",
        "-k", 3, "--budget", 3, "--rounds", 1,
    )  # fmt: skip
    rows = [line.split() for line in result.stdout.splitlines()]
    assert len(rows) == 12
    assert {row[2] for row in rows if row[0] == "q1"} == set(ranked)
    assert [row[3] for row in rows] == ["1", "2", "3"] * 4
    assert {(row[1], row[5]) for row in rows} == {("Q0", "cexnn")}


def test_embeddings_take_the_place_of_lsa(files, tmp_path):
    output, checkpoint = tmp_path / "index", tmp_path / "kept.scores"
    build(
        files, output, "--embeddings", files / "items.npy",
        "--query-embeddings", files / "train.npy", "--checkpoint", checkpoint, "--dtype", "int8",
    )  # fmt: skip
    assert json.loads(run("info", output, "--json").stdout)["dtype"] == "int8"
    assert checkpoint.stat().st_size > 4 * 16 * 20
    assert read_folder(output).encoder is None
    asked = ["search", output, files / "asked.jsonl", "--no-texts", "--budget", 5]
    plain, given = run(*asked), run(*asked, "--query-embeddings", files / "asked.npy")
    assert plain.stdout != given.stdout
    message = refused(*asked, "--query-embeddings", files / "train.npy")
    assert "--query-embeddings: expected 4 rows" in message
    table = run(
        "evaluate", output, files / "asked.jsonl", "--query-embeddings", files / "asked.npy",
        "--embeddings", files / "items.npy", "--ks", "1", "--budgets", "48",
    ).stdout  # fmt: skip
    assert [line.split("|")[2].strip() for line in table.splitlines()[2:]] == [
        "retrieve-and-rerank", "axn, mix 0", "cexnn",
    ]  # fmt: skip


def test_evaluate_measures_against_exact_search(files, index, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'cexnn[cpu]'")
    figures, plot = tmp_path / "report.json", tmp_path / "report.svg"
    result = run(
        "evaluate", index, files / "asked.jsonl", "--ks", "5,1", "--budgets", "12,48",
        "--method", "cexnn", "--method", "retrieve-and-rerank", "--json", figures, "--plot", plot,
    )  # fmt: skip
    assert "exact search: 192 pairs" in result.stderr
    rows = json.loads(figures.read_text())["rows"]
    assert {row["method"] for row in rows} == {"cexnn", "retrieve-and-rerank"}
    assert [row["recall"] for row in rows if row["budget"] == 48] == [1.0] * 4
    assert all(0 <= row["recall"] <= 1 and row["n_calls"] == row["budget"] for row in rows)
    assert len(result.stdout.splitlines()) == 2 + 4
    assert b"<svg" in plot.read_bytes()


def test_evaluate_misses_matplotlib_before_it_scores(files, index, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = refused("evaluate", index, files / "asked.jsonl", "--plot", tmp_path / "a.svg")
    assert "--plot: a plot needs Matplotlib: pip install 'cexnn[cpu]'" in message


def test_info_speaks_to_people_and_programs(index):
    facts = json.loads(run("info", index, "--json").stdout)
    assert facts["n_items"] == len(TEXTS)
    assert facts["model"] == str(MODEL)
    assert f"n items            {len(TEXTS)}" in run("info", index).stdout.splitlines()


def test_help_names_every_command():
    text = run("--help").stdout
    for command in ("build", "search", "serve", "evaluate", "export", "info", "demo"):
        assert f"\n  {command} " in text
        assert run(command, "--help").stdout.startswith(f"Usage: main {command} ")


def test_click_is_named_where_it_is_missing():
    program = "import sys; sys.modules['click'] = None; import cexnn.cli"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ImportError: the command line needs click: pip install 'cexnn[cpu]'" in done.stderr
    program = "import sys; sys.modules['click'] = None; from cexnn.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "Error: the command line needs click: pip install 'cexnn[cpu]'\n"


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "cexnn", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("cexnn, version ")


def test_export_names_what_it_needs(tmp_path):
    program = "import sys; sys.modules['torch'] = None; from cexnn.cli import main; main()"
    command = [sys.executable, "-c", program, "export", tmp_path, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: export_onnx needs torch")
    assert "pip install 'cexnn[torch]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_bad_texts_are_named(files, index, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"text": 1}\n')
    assert f"{bad}:2: expected a JSON object" in refused("search", index, bad)
    assert "standard input: expected texts" in refused("search", index, stdin="")
    message = refused(
        "build", bad, "--model", MODEL, "--queries", files / "train.txt", "-o", tmp_path / "out"
    )
    assert f"{bad}:2:" in message
    assert not (tmp_path / "out").exists()


def test_bad_folders_are_named(files, index, tmp_path):
    assert f"{tmp_path}: expected a folder that cexnn build wrote" in refused("info", tmp_path)
    (tmp_path / "config.json").write_text('{"format": "cexnn index folder", "version": 2}')
    assert "version 2 is newer" in refused("info", tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in index.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "index.cexnn").write_bytes((index / "index.cexnn").read_bytes()[:-9])
    assert "index.cexnn" in refused("search", broken, stdin="copy")
    (broken / "index.cexnn").write_bytes((index / "index.cexnn").read_bytes())
    (broken / "items.jsonl").write_text('{"text": "a"}\n')
    assert "expected 48 items" in refused("info", broken)
    (broken / "items.jsonl").write_bytes((index / "items.jsonl").read_bytes())
    config = json.loads((index / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model": str(tmp_path / "gone")}))
    message = refused("search", broken, stdin="copy")
    assert "the cross-encoder that the index names in its config.json cannot be used" in message


def test_bad_options_are_named(files, index, tmp_path):
    asked = files / "asked.jsonl"
    base = ["build", files / "items.tsv", "--model", MODEL, "-o", tmp_path / "out", "--queries"]
    train = [*base, files / "train.txt"]
    assert "--embeddings and --query-embeddings: expected both" in refused(
        *train, "--embeddings", files / "items.npy"
    )
    assert "--query-embeddings: expected a NumPy file (.npy)" in refused(
        *train, "--embeddings", files / "items.npy", "--query-embeddings", asked
    )
    assert "--queries: expected a file" in refused("build", "-", *base[2:], "-", stdin="copy\n")
    assert "--rounds: expected auto or a number from 1 to 4" in refused(
        "search", index, asked, "--rounds", 5, "--budget", 4
    )
    other = tmp_path / "first.run"
    other.write_text("nobody Q0 a 1 1 t\n")
    assert "--first: expected the queries' ids" in refused("search", index, asked, "--first", other)
    other.write_text("q0 Q0 nothing 1 1 t\n")
    assert "expected ids of items, got 'nothing'" in refused(
        "search", index, asked, "--first", other
    )
    assert "--plot: expected a file name ending" in refused(
        "evaluate", index, asked, "--plot", tmp_path / "a.txt"
    )
    for option in ("--json", "--plot"):
        message = refused("evaluate", index, asked, option, tmp_path / "no" / "a.svg")
        assert f"{option}: expected a path in a folder that exists" in message
    assert "QUESTIONS: expected texts" in refused("demo", "sort a list", " ")
    assert "--ks: expected at most the 48 items" in refused("evaluate", index, asked)
    assert "between commas" in run("evaluate", index, asked, "--ks", "1,x", code=2).stderr
    nowhere = tmp_path / "no" / "index"
    assert "--output: expected a path in a folder that exists" in refused(*train, "-o", nowhere)
    model = tmp_path / "model"
    model.mkdir()
    assert "--model: expected model.onnx" in refused(
        "build", files / "items.tsv", "--model", model, "-o", tmp_path / "out",
        "--queries", files / "train.txt",
    )  # fmt: skip


def test_build_replaces_an_index_folder_and_nothing_else(files, tmp_path):
    output = tmp_path / "out"
    build(files, output)
    (output / "index.cexnn").write_bytes(b"")
    build(files, output)
    assert read_folder(output).index.n_items == len(TEXTS)
    foreign = tmp_path / "model"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "bert"}')
    message = refused(
        "build", files / "items.tsv", "--model", MODEL, "--queries", files / "train.txt",
        "-o", foreign,
    )  # fmt: skip
    assert "is there already and is no index folder" in message
    assert [path.name for path in foreign.iterdir()] == ["config.json"]


def test_an_interrupted_evaluation_scores_no_pair_of_the_exact_search_again(
    files, index, tmp_path, monkeypatch
):
    from cexnn.cross_encoder import BoundCrossEncoder

    score, calls = BoundCrossEncoder.__call__, []

    def counted(self, queries, rows, items):
        if len(calls) == 2:
            calls.append(None)
            raise KeyboardInterrupt
        calls.append(len(rows))
        return score(self, queries, rows, items)

    monkeypatch.setattr(BoundCrossEncoder, "__call__", counted)
    monkeypatch.setattr("cexnn.evaluate.CHUNK_SIZE", 48)
    there = sorted(index.parent.iterdir())
    command = ["evaluate", index, files / "asked.jsonl", "--ks", "1", "--budgets", "3"]
    command += ["--method", "cexnn"]
    result = run(*command, code=130)
    [checkpoint] = set(index.parent.iterdir()) - set(there)
    assert f"{checkpoint} keeps the scores so far: the same command goes on" in result.stderr
    run(*command)
    assert calls[:5] == [48, 48, None, 48, 48]
    assert sum(calls[5:]) == 4 * 3  # what the method spends
    assert sorted(index.parent.iterdir()) == there


def test_an_interrupted_build_scores_no_pair_again(files, tmp_path, monkeypatch):
    from cexnn.cross_encoder import BoundCrossEncoder

    score, calls = BoundCrossEncoder.__call__, []

    def counted(self, queries, rows, items):
        if len(calls) == 3:
            calls.append(None)
            raise KeyboardInterrupt
        calls.append((rows.tolist(), items.tolist()))
        return score(self, queries, rows, items)

    monkeypatch.setattr(BoundCrossEncoder, "__call__", counted)
    monkeypatch.setattr("cexnn.training.CHUNK_SIZE", 64)
    command = [
        "build", files / "items.tsv", "--model", MODEL, "--queries", files / "train.txt",
        "-o", tmp_path / "index", *BUILD_OPTIONS,
    ]  # fmt: skip
    result = run(*command, code=130)
    [checkpoint] = tmp_path.iterdir()
    n_pairs = 16 * (len(QUESTIONS) - 4)
    assert result.stderr.startswith(f"{n_pairs} pairs to score; {checkpoint} keeps the scores\n")
    assert f"{checkpoint} keeps the scores so far: the same command goes on" in result.stderr
    run(*command)
    pairs = [p for call in calls if call is not None for p in zip(*call, strict=True)]
    assert len(set(pairs)) == len(pairs) == n_pairs
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_control_c_ends_a_build_in_one_line(files, tmp_path):
    output = tmp_path / "index"
    many = tmp_path / "many.txt"
    many.write_text("".join(f"how do I {n} {q}?\n" for n in range(40) for q in TEXTS))
    run = (  # as at a terminal, wherever the tests run
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from cexnn.cli import main; main()"
    )
    command = [
        sys.executable, "-c", run, "build",
        files / "items.tsv", "--model", MODEL, "--queries", many, "-o", output, *BUILD_OPTIONS,
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        kept = [path for path in tmp_path.glob("index.*.scores") if path.stat().st_size > 200]
        if kept:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.02)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"{kept[0]} keeps the scores so far" in errors
    assert not output.exists()


ITEMS = [Item(i, t) for i, t in zip(IDS, TEXTS, strict=True)]


def small_demo(capsys, cache, questions=(), **options):
    sizes = {"n_queries": 40, "per_query": 12, "num_threads": 1, "budget": 20}
    run_demo(ITEMS, questions, cache=cache, **sizes | options)
    return capsys.readouterr()


def test_demo_builds_once_and_answers(capsys, tmp_path):
    first = small_demo(capsys, tmp_path / "new")
    assert "scoring 480 of 1,920 training pairs" in first.err
    assert "20 calls for 48 docstrings" in first.out
    table = [line.split() for line in first.out.splitlines() if "cexnn  " in line]
    assert [row[:2] for row in table] == [["50", "cexnn"], ["100", "cexnn"], ["200", "cexnn"]]
    assert all(row[2:] == ["1.00", "1.00"] for row in table)  # every item was scored
    second = small_demo(capsys, tmp_path / "new")
    assert second.err == ""
    assert [line for line in second.out.splitlines() if " ms" not in line] == [
        line for line in first.out.splitlines() if " ms" not in line
    ]
    own = small_demo(capsys, tmp_path / "new", ["how do I delete a folder?"], k=1)
    assert own.err == ""
    assert "delete.a.folder" in own.out
    assert "recall" not in own.out
    again = small_demo(capsys, tmp_path / "new", ["sort a list"], rebuild=True)
    assert "first run" in again.err


def test_demo_repairs_its_cache(capsys, tmp_path):
    small_demo(capsys, tmp_path)
    [folder] = tmp_path.iterdir()
    (folder / "exact.npy").write_bytes(b"torn")
    assert "to know the truth" in small_demo(capsys, tmp_path).err
    (folder / "index.cexnn").write_bytes(b"torn")
    assert "the cache cannot be used" in small_demo(capsys, tmp_path).err
    assert small_demo(capsys, tmp_path).err == ""


def test_demo_uses_a_cache_that_another_installation_made(capsys, tmp_path):
    small_demo(capsys, tmp_path)
    [config] = tmp_path.glob("*/config.json")
    stored = json.loads(config.read_text())
    config.write_text(json.dumps(stored | {"model": str(tmp_path / "removed")}))
    found = small_demo(capsys, tmp_path, ["sort a list"])
    assert found.err == ""
    assert "sort.a.list" in found.out


def test_demo_does_without_a_cache(capsys, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    found = small_demo(capsys, in_the_way / "cache", ["sort a list"])
    assert "not kept for the next run" in found.err
    assert "sort.a.list" in found.out
    assert "sort.a.list" in small_demo(capsys, None, ["sort a list"]).out


def test_entry_point_in_a_process_of_its_own(index):
    command = [sys.executable, "-c", "from cexnn.cli import main; main()", "search", index]
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    done = subprocess.run(
        command, input="copy a file\n", capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["hits"][0]["id"] == "copy.a.file"
