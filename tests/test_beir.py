"""Folders in BEIR's format, and relevance labels in both forms."""

import json

import pytest

from cexnn.beir import CORPUS, QUERIES, qrels_file, read_part, read_qrels, read_split
from cexnn.texts import Text, read_texts

HEADER = "query-id\tcorpus-id\tscore"


def lines(text):
    return text.encode().splitlines(keepends=True)


@pytest.fixture
def folder(tmp_path):
    corpus = [
        {"_id": "d1", "title": "Foxes", "text": "are red", "metadata": {"url": ""}},
        {"_id": "d 2", "title": "", "text": "whales are blue"},
        {"_id": 3, "title": "Only a title", "text": ""},
        {"_id": "d4", "text": "no title"},
    ]
    queries = [{"_id": f"q{n}", "text": f"query {n}", "title": None} for n in range(4)]
    for name, entries in ((CORPUS, corpus), (QUERIES, queries)):
        # As written on Windows: a byte order mark, and two characters at the end of a line.
        text = "\ufeff" + "".join(json.dumps(entry) + "\r\n" for entry in entries)
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "qrels").mkdir()
    test = f"\ufeff{HEADER}\r\nq2\td1\t2\r\n\r\nq0\td 2\t0\r\nq2\td 2\t1\r\n"
    (tmp_path / "qrels" / "test.tsv").write_bytes(test.encode())
    return tmp_path


def test_a_folder_is_read(folder):
    assert read_part(folder, CORPUS) == [
        Text("d1", "Foxes are red"),
        Text("d 2", "whales are blue"),
        Text("3", "Only a title"),
        Text("d4", "no title"),
    ]
    queries, qrels = read_split(folder, qrels_file(folder, "test"))
    assert queries == [Text("q0", "query 0"), Text("q2", "query 2")]
    assert qrels == {"q2": {"d1": 2, "d 2": 1}, "q0": {"d 2": 0}}


def test_its_files_are_json_lines_on_their_own(folder):
    path = folder / CORPUS
    assert read_texts(path.read_bytes().splitlines(), str(path)) == read_part(folder, CORPUS)
    both = [b'{"id": "a", "_id": "b", "title": "t", "text": "x"}']
    assert read_texts(both, "x.jsonl") == [Text("a", "x")]


def test_what_is_missing_is_named(folder):
    with pytest.raises(ValueError, match=r"expected labels in qrels/dev\.tsv, found test$"):
        qrels_file(folder, "dev")
    (folder / CORPUS).unlink()
    with pytest.raises(ValueError, match=r"expected a folder in BEIR's format, found no corpus"):
        read_part(folder, CORPUS)
    with pytest.raises(ValueError, match=r"expected labels in qrels/test\.tsv, found no split$"):
        qrels_file(folder / "qrels", "test")


def test_labels_of_unknown_queries_are_named(folder):
    path = folder / "qrels" / "test.tsv"
    path.write_text(f"{HEADER}\nq0\td1\t1\nq9\td1\t1\n")
    with pytest.raises(ValueError, match=r"test\.tsv: expected ids of queries in .*, got 'q9'$"):
        read_split(folder, path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"text": "a"}, "expected _id to be a string or a whole number, got none"),
        ({"_id": None, "text": "a"}, "expected _id to be a string or a whole number, got None"),
        ({"_id": "a"}, "expected a JSON object with a string named text"),
        ({"_id": "a", "text": "b", "title": 1}, "expected title to be a string, got 1"),
        ({"_id": "d1", "text": "again"}, "expected a new id, got 'd1' of line 1"),
    ],
)
def test_bad_entries_are_named(folder, entry, message):
    with open(folder / CORPUS, "a") as file:
        file.write(json.dumps(entry))
    with pytest.raises(ValueError, match=rf"corpus\.jsonl:5: {message}"):
        read_part(folder, CORPUS)


def test_documents_may_be_empty_and_queries_not(folder):
    for part in (CORPUS, QUERIES):
        with open(folder / part, "a") as file:
            file.write(json.dumps({"_id": "none", "text": "", "title": ""}))
    assert read_part(folder, CORPUS)[-1] == Text("none", "")
    with pytest.raises(ValueError, match=r"queries\.jsonl:\d: expected a text, got an empty one"):
        read_part(folder, QUERIES)


def test_trec_labels():
    text = "\ufeffq1 0 fox 2\r\n\r\nq1\tQ0\twhale\t-1\r\nq2 0 fox 0"
    assert read_qrels(lines(text), "f") == {"q1": {"fox": 2, "whale": -1}, "q2": {"fox": 0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: expected relevance labels, one a line, got none"),
        (f"\r\n{HEADER}\r\n", "f: expected relevance labels, one a line, got none"),
        ("q1\tfox\t1", r"f:1: expected query id, iteration, item id, .* the header query-id"),
        ("q1 0 fox 1\nq1 0 fox 1", "f:2: expected each item once a query, got 'fox' again"),
        ("q1 0 fox 1\nq1 0 whale 1 x", "f:2: expected query id, iteration, item id, relevance"),
        ("q1 0 fox 1\nq1", "f:2: expected query id, iteration, item id, relevance"),
        (f"{HEADER}\nq1\tfox\t1.5", "f:2: expected query-id, corpus-id, score, the last a whole"),
        (f"{HEADER}\nq1 0 fox 1", "f:2: expected query-id, corpus-id, score"),
        (f"{HEADER}\nq1\tfox\t1\nq1\tfox\t0", "f:3: expected each item once a query, got 'fox'"),
    ],
)
def test_bad_labels_are_named(text, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        read_qrels(lines(text), "f")
