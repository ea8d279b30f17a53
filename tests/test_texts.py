"""Text files of the command line."""

import json

import pytest

from cexnn.texts import Text, json_line, read_run, read_texts, run_lines


def lines(text):
    return text.encode().splitlines(keepends=True)


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "standard input"])
def test_json_lines(name):
    text = (
        '\ufeff{"id": "a", "text": "one", "more": 1}\n\n{"id": 7, "text": "two"}\r\n{"text": "x"}'
    )
    assert read_texts(lines(text), name) == [Text("a", "one"), Text("7", "two"), Text("4", "x")]


def test_tsv_keeps_later_tabs_and_plain_lines_count_blank_ones():
    assert read_texts(lines("a\tone\ttwo\nb\tthree"), "x") == [
        Text("a", "one\ttwo"), Text("b", "three"),
    ]  # fmt: skip
    assert read_texts(lines("one\n\n  two\n"), "x") == [Text("1", "one"), Text("3", "  two")]


def test_extension_overrules_the_first_line():
    assert read_texts(lines("{a}\tb\n"), "x.txt") == [Text("1", "{a}\tb")]
    assert read_texts(lines("{a}\tb\n"), "x.tsv") == [Text("{a}", "b")]
    with pytest.raises(ValueError, match=r"x\.tsv:1: expected an id, a tab and a text"):
        read_texts(lines("one\n"), "x.tsv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a"}\n{"text": 3}', "f:2: expected a JSON object with a string named text"),
        ('{"text": "a"}\n[1]', "f:2: expected a JSON object with"),
        ('{"text": "a"}\n{"text": ', "f:2: expected a JSON object: "),
        ('{"id": true, "text": "a"}', "f:1: expected id to be a string or a whole number"),
        ('{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}', "f:2: expected a new id, got '1' of"),
        ('{"text": " "}', "f:1: expected a text, got an empty one"),
        ("a\tone\n\ttwo", "f:2: expected an id, a tab and a text"),
        ("", "f: expected texts, one a line, got none"),
        ("\n \n", "f: expected texts"),
    ],
)
def test_bad_lines_are_named(text, message):
    with pytest.raises(ValueError, match="^" + message.replace("[", r"\[")):
        read_texts(lines(text), "f")


def test_bytes_that_are_not_utf8_are_named():
    with pytest.raises(ValueError, match="^f:2: expected UTF-8"):
        read_texts([b"one\n", b"\xff\n"], "f")


def test_json_line_round_trips():
    entry = {"id": "é", "text": "a\nb"}
    assert "\n" not in json_line(entry)
    assert json.loads(json_line(entry)) == entry


def test_run_round_trips():
    hits = [("b", "text", 2.5), ("a", "text", 1 / 3)]
    written = [*run_lines("q1", hits, "tag"), *run_lines("q2", hits[::-1], "tag")]
    assert written[1] == "q1 Q0 a 2 0.333333333 tag"
    assert read_run(lines("\n".join(reversed(written))), "r") == {
        "q1": ["b", "a"],
        "q2": ["a", "b"],
    }


def test_bad_runs_are_named():
    for bad in ("q Q0 a 1 2.0", "q Q0 a first 2.0 tag", "q Q0 a 1 2.0 tag more"):
        with pytest.raises(ValueError, match="^r:2: expected query id, Q0, item id, rank"):
            read_run(lines(f"q Q0 b 1 1 t\n{bad}\n"), "r")
    with pytest.raises(ValueError, match="^r:2: expected each item once a query, got 'a' again"):
        read_run(lines("q Q0 a 1 1 t\nq Q0 a 2 1 t\n"), "r")
    with pytest.raises(ValueError, match="no id with white space"):
        list(run_lines("q 1", [("a", "", 1.0)], "t"))
