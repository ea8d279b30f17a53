"""Other corpora in bench_corpora.py: made as said, scored once, and each figure in its place."""

import importlib
import json
import lzma
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn import LsaEncoder

BENCH = Path(__file__).parents[1] / "bench"
WORDS = ["sleep", "pain", "blood", "liver", "skin", "drug", "dose", "child"] + [
    f"word{n}" for n in range(150)
]
N_ITEMS, N_TESTED, N_TRAINING = 140, 6, 20


@pytest.fixture
def corpora(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("corpora")


@pytest.fixture
def bench(corpora, monkeypatch):
    module = importlib.import_module("bench_corpora")
    some = ("as it is", "embeddings only")
    conditions = module.bench_robustness.conditions
    monkeypatch.setattr(
        module.bench_robustness,
        "conditions",
        lambda world: ((name, make) for name, make in conditions(world) if name in some),
    )
    for where in (module, module.bench_robustness):
        monkeypatch.setattr(where, "BUDGETS", (100, 120))
    monkeypatch.setattr(module, "STOPPING_BUDGETS", (100,))
    return module


def words(rng, n):
    return " ".join(rng.choice(WORDS, n))


@pytest.fixture
def scored(corpora):
    """A corpus whose cross-encoder is the encoder of whole words."""
    rng = np.random.default_rng(0)
    texts = corpora.Texts(*([words(rng, 9) for _ in range(n)] for n in (140, 6, 20)))
    items, tested, training = map(LsaEncoder.fit(texts.items, piece_length=None), texts)
    mask = rng.random((N_TRAINING, N_ITEMS)) < 0.5
    scores = csr_array(np.where(mask, training @ items.T, 0))
    return corpora.Scored(texts, tested @ items.T, scores, {"n_items": N_ITEMS})


def test_a_scorer_that_is_the_encoder_is_found_out(bench, scored):
    """So whole words, rows of the table and items, also reordered, stand where they belong."""
    measured = bench.measure(scored)
    assert list(measured) == ["whole words", "pieces"]
    known = measured["whole words"]
    for cell in known["quality"]:
        assert cell[bench.RERANK] == [1, 1, 1]
        assert cell["AXN, best mix is"] in {f"AXN, mix {mix:g}" for mix in bench.MIXES}
        assert cell[f"{bench.TEN} - {bench.RERANK}"][0] == pytest.approx(cell[bench.TEN][0] - 1)
    for cell in known["growth"]:
        if cell["k"] == 1:
            assert all(cell[name][0] == 1 for name in bench.GROWTHS)
        assert min(cell[name][0] for name in bench.GROWTHS) > cell["budget"] / N_ITEMS
    assert [line["budget"] for line in known["stopping"]] == [100] * 3
    rows = known["robustness"]["rows"]
    assert [row["reranking"] for row in rows] == [[1, 1, 1]] * 4
    assert known["robustness"]["worst"] in rows
    assert min(cell[bench.RERANK][0] for cell in measured["pieces"]["quality"]) < 1


def test_a_run_leaves_other_corpora_as_they_were_recorded(
    bench, corpora, scored, monkeypatch, tmp_path, capsys
):
    given = []
    monkeypatch.setattr(corpora, "scored", lambda *args: given.append(args) or scored)
    measured = bench.measure(scored)
    monkeypatch.setattr(bench, "measure", lambda _: measured)
    monkeypatch.delenv("CEXNN_DATA", raising=False)
    options = ["bench_corpora.py", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*options, "--corpora", "docstrings"])
    bench.main()
    path = tmp_path / "corpora.json"
    there = json.loads(path.read_text("utf-8"))["corpora"]["docstrings"]
    path.write_text(json.dumps({"corpora": {"debian": there}}), encoding="utf-8")
    bench.main()
    assert set(json.loads(path.read_text("utf-8"))["corpora"]) == {"debian", "docstrings"}
    assert given[0][:3] == ("docstrings", tmp_path / "cache" / "docstrings", None)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| debian | pieces | 100 |") for line in lines) == 3
    monkeypatch.setattr(sys, "argv", options)
    given.clear()
    with pytest.raises(SystemExit, match="CEXNN_DATA"):
        bench.main()
    assert not given  # nothing is measured before it is said


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(0.834, "", ".83"), (1.0, "", "1.00"), (-0.02, "+", "-.02"), (0.0, "+", "+.00")],
)
def test_numbers_are_written_short(bench, value, sign, text):
    assert bench.short(value, sign) == text


class Interrupted:
    """Stands in for `CrossEncoder`: length of a query times item; stops after some calls."""

    def __init__(self):
        self.calls_left, self.seen = 2, set()

    def __call__(self, model, tokenizer, *, max_length):
        assert (model.name, tokenizer.name, max_length) == ("ce.onnx", "tokenizer.json", 64)
        return self

    def bind(self, texts):
        self.texts = texts
        return self.score

    def score(self, queries, rows, items):
        if self.calls_left == 0:
            raise KeyboardInterrupt
        self.calls_left -= 1
        pairs = {(queries[row], item) for row, item in zip(rows, items.tolist(), strict=True)}
        assert len(pairs) == len(rows)
        assert not pairs & self.seen
        self.seen |= pairs
        return np.float32([len(queries[row]) * item for row, item in zip(rows, items, strict=True)])


def test_an_interrupted_corpus_goes_on_and_no_pair_is_scored_twice(
    corpora, scored, monkeypatch, tmp_path
):
    made, model = [], tmp_path / "ce.onnx"
    model.write_bytes(b"a model")
    make = lambda *args: made.append(args) or scored.texts  # noqa: E731
    monkeypatch.setitem(corpora.CORPORA, "debian", (make, "sizes"))
    monkeypatch.setattr(corpora, "CrossEncoder", stands_in := Interrupted())
    monkeypatch.setattr(corpora, "PER_QUERY", 80)  # two calls for the training pairs
    folder = tmp_path / "debian"
    with pytest.raises(ValueError, match="debian.*no source"):
        corpora.scored("debian", folder, None, model)
    with pytest.raises(KeyboardInterrupt):
        corpora.scored("debian", folder, tmp_path / "source", model)
    stands_in.calls_left = 1
    found = corpora.scored("debian", folder, None, model)  # of what is in the folder
    again = corpora.scored("debian", folder, None, model)
    assert made == [(tmp_path / "source", "sizes")]
    assert len(stands_in.seen) == 80 * N_TRAINING + N_ITEMS * N_TESTED
    lengths = np.array([len(text) for text in scored.texts.tested])
    for each in (found, again):
        np.testing.assert_array_equal(each.table, np.outer(lengths, np.arange(N_ITEMS)))
        assert each.texts == scored.texts
        assert np.diff(each.scores.indptr).tolist() == [80] * N_TRAINING
        columns, of_row = each.scores.indices, np.repeat(scored.texts.training, 80)
        np.testing.assert_array_equal(each.scores.data, [len(t) for t in of_row] * columns)
    assert found.facts == again.facts
    assert found.facts["n_training"] == N_TRAINING
    model.write_bytes(b"another")
    with pytest.raises(KeyboardInterrupt):  # whose scores are others
        corpora.scored("debian", folder, None, model)


def test_glosses_of_wordnet_are_items_and_words_in_sentences_queries(corpora, tmp_path):
    rng, lines = np.random.default_rng(1), {part: ["  1 A licence."] for part in "navr"}
    for n in range(120):
        part, word = "navr"[n % 4], f"so_{n // 6}"
        gloss = f'meaning {n}; "we saw that so {n // 6} was here"; "too short"'
        words_of = f"{word} 0 other{n}(p) 0"
        lines[part].append(f"{n:08} 03 {part} 02 {words_of} 001 @ 00000000 n 0000 | {gloss}  ")
    for part, name in zip("navr", ("noun", "adj", "verb", "adv"), strict=True):
        rng.shuffle(lines[part])
        (tmp_path / f"data.{name}").write_text("\n".join(lines[part]) + "\n", encoding="utf-8")
    sizes = corpora.Sizes(n_items=80, n_queries=10, n_tested=4, n_drawn=15, n_further=3)
    texts = corpora.wordnet(tmp_path, sizes)
    assert all(item.startswith("so ") and ": meaning " in item for item in texts.items)
    assert all("(p)" not in item and ", other" in item for item in texts.items)
    queries = texts.tested + texts.training
    assert len(set(queries)) == len(queries) == 13
    of_items = [item.split(",")[0] for item in texts.items]
    for query in (*texts.tested[:4], *texts.training):
        word, sentence = query.split(": ")
        assert sentence == f"we saw that {word} was here"
        assert of_items.count(word) >= 4  # the sentence's meaning and others
    assert corpora.wordnet(tmp_path, sizes) == texts
    with pytest.raises(ValueError, match="source: expected enough"):
        corpora.wordnet(tmp_path, sizes._replace(n_drawn=30, n_further=15))


def test_debian_packages_are_items_or_queries(corpora, tmp_path):
    rng = np.random.default_rng(2)

    def block(name):
        long = f"{name} {words(rng, 60)}\n .\n More.".replace("\n .\n", "\n .\n ")
        short = f"Short words of {name.rstrip('0123456789') if name in twins else name}"
        return f"Package: {name}\nDescription-md5: 0\nDescription-en: {short}\n {long}\n"

    twins = [f"twin{n}" for n in range(9)]
    names = [f"tool{n}" for n in range(21)] + twins + ["libtool", "tool-dev"]
    path = tmp_path / "Translation-en.xz"
    path.write_bytes(lzma.compress("\n".join(map(block, names)).encode()))
    texts = corpora.debian(path, corpora.Sizes(12, 10, 4, 15, 3))
    of_items = {item.split()[0] for item in texts.items}
    of_queries = {query.split()[-1] for query in texts.tested + texts.training}
    assert all(len(item.split()) == 48 for item in texts.items)
    assert (len(of_items), len(of_queries)) == (12, 13)
    assert not of_items & of_queries
    assert of_items | of_queries < {*names[:30], "twin"}
    assert "twin" in of_queries  # once


def test_docstrings_need_nothing_else(corpora):
    texts = corpora.docstrings(None, corpora.Sizes(50, 40, 10, 60, 5))
    assert list(map(len, texts)) == [50, 15, 30]
    assert not set(texts.tested) & set(texts.training)
