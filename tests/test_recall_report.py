"""The report on made-up searches whose recall is known, and the files that it writes."""

import json
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn.recall_plot import Curve, draw_curves
from cexnn.recall_report import Report, ReportRow, report
from cexnn.search import SearchResult

EXACT = np.arange(12).reshape(4, 3)  # query 0: 0, 1, 2; query 1: 3, 4, 5; ...


def answers(ids, n_calls):
    """Return a result with these ids; the report reads nothing else but the calls."""
    ids = np.int32(ids)
    scores = np.where(ids >= 0, np.float32(0), np.float32(np.nan))
    return SearchResult(
        ids, scores, np.int32(n_calls), csr_array((len(ids), 20)), np.ones(len(ids), bool)
    )


def half(budget):
    """All of the first two queries, none of the others; one of them spends less."""
    return answers([[0, 1, 2], [3, 4, 5], [0, 1, 2], [0, 1, 2]], [budget, budget, budget, 2])


def reversed_order(budget):
    return answers(EXACT[:, ::-1], [budget] * 4)


@pytest.fixture(scope="module")
def found():
    methods = {"half": half, "a | b": reversed_order}
    return report(methods, EXACT, ks=[1, 3], budgets=[10, 40])


def test_rows_by_hand(found):
    assert found.n_queries == 4
    got = [(r.budget, r.method, r.k, r.recall, r.n_calls) for r in found.rows]
    assert got == [
        (10, "half", 1, 0.5, 8.0),
        (10, "half", 3, 0.5, 8.0),
        (10, "a | b", 1, 0.0, 10.0),
        (10, "a | b", 3, 1.0, 10.0),
        (40, "half", 1, 0.5, 30.5),
        (40, "half", 3, 0.5, 30.5),
        (40, "a | b", 1, 0.0, 40.0),
        (40, "a | b", 3, 1.0, 40.0),
    ]
    assert all(r.seconds >= 0 for r in found.rows)


def test_intervals_are_those_of_the_queries_drawn(found):
    # 4 queries, of which half are found: the share found in a resample is binomial (4, 1/2) / 4.
    # None are in 1 of 16 resamples, 6 %: the 2.5th percentile is 0, the 97.5th is 1.
    assert [(r.low, r.high) for r in found.rows[:2]] == [(0, 1), (0, 1)]
    assert [(r.low, r.high) for r in found.rows[2:4]] == [(0, 0), (1, 1)]


def test_a_difference_is_taken_query_by_query(found):
    # Half of the queries are found wholly by both methods, the others by one alone.
    assert found.difference("a | b", "half", budget=10, k=3) == (0.5, 0.0, 1.0)
    assert found.difference("half", "a | b", budget=10, k=3) == (-0.5, -1.0, 0.0)
    assert found.difference("half", "half", budget=40, k=1) == (0, 0, 0)
    # Hard and easy queries alike: each interval is wide, that of the difference is nothing.
    shares = np.array([[0.1, 0.9] * 10, [0.0, 0.8] * 10])
    rows = tuple(ReportRow(name, 5, 1, 0.5, 0.3, 0.7, 5.0, 0.1) for name in "ab")
    paired = Report(20, rows, shares=shares).difference("a", "b", budget=5, k=1)
    assert paired == pytest.approx((0.1, 0.1, 0.1))


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"method": "x"}, "method"), ({"other": "x"}, "other"), ({"k": 2}, "method"),
     ({"budget": 11}, "method")],
)  # fmt: skip
def test_a_difference_of_what_was_not_measured_is_refused(found, changes, name):
    asked = {"method": "half", "other": "a | b", "budget": 10, "k": 3} | changes
    with pytest.raises(ValueError, match=f"^{name}: expected one measured here"):
        found.difference(asked.pop("method"), asked.pop("other"), **asked)
    read = Report(4, found.rows)  # as from its JSON, which tells means alone
    with pytest.raises(ValueError, match="^method: expected one measured here"):
        read.difference("half", "a | b", budget=10, k=3)


def test_an_interval_of_many_queries_is_the_normal_one():
    n = 400
    wanted = np.arange(n)[:, None]
    ids = np.where(np.arange(n)[:, None] % 4 == 0, wanted, n)  # a quarter found

    row = report({"a": lambda budget: answers(ids, [1] * n)}, wanted, ks=[1], budgets=[1]).rows[0]
    half_width = 1.96 * np.sqrt(0.25 * 0.75 / n)  # 0.042
    assert row.recall == 0.25
    # A percentile of 2,000 draws errs by some 0.06 deviations, 0.0013.
    assert row.low == pytest.approx(0.25 - half_width, abs=0.005)
    assert row.high == pytest.approx(0.25 + half_width, abs=0.005)


def test_methods_run_once_a_budget():
    asked = []

    def method(budget):
        asked.append(budget)
        return reversed_order(budget)

    report({"a": method}, EXACT, ks=[1, 2, 3], budgets=[7, 5])
    assert asked == [7, 5]


def test_table(found):
    lines = found.table().splitlines()
    assert len(lines) == 2 + 4
    assert len({len(line) for line in lines}) == 1  # aligned
    assert "recall@1 [95 %]" in lines[0]
    assert "recall@3 [95 %]" in lines[0]
    assert set(lines[1]) <= set("|-: ")
    assert "0.500 [0.00, 1.00]" in lines[2]
    assert "8.0" in lines[2]
    assert r"a \| b" in lines[3]
    assert "1.000 [1.00, 1.00]" in lines[3]
    assert str(found) == found.table()


def test_json_holds_every_field(found, tmp_path):
    found.save_json(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert read == json.loads(found.to_json())
    again = Report(read["n_queries"], tuple(ReportRow(**row) for row in read["rows"]))
    assert again == found


def test_plot_svg_names_methods_and_panels(found, tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib")
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text stays text
    found.plot(tmp_path / "all.svg")
    found.plot(tmp_path / "one.svg", k=3)
    texts = {}
    for name in ("all", "one"):
        root = xml.etree.ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        texts[name] = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    for label in ("half", "a | b", "recall@1", "recall@3", "cross-encoder calls per query"):
        assert label in texts["all"], label
    assert "recall@3" in texts["one"]
    assert "recall@1" not in texts["one"]
    for label in ("half", "a | b"):
        assert texts["all"].count(label) == 1  # one legend


def test_plot_png(found, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    found.plot(tmp_path / "report.PNG")
    assert (tmp_path / "report.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("n_panels", [1, 3, 4])
@pytest.mark.parametrize("length", [3, 20, 90])
@pytest.mark.parametrize("n_methods", [1, 9])
def test_the_legend_fits_into_the_picture(n_panels, length, n_methods):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    names = [f"{i}{'m' * (length - 1)}" for i in range(n_methods)]
    curves = [Curve(name, [(50, 0.4, 0.3, 0.5), (100, 0.6, 0.5, 0.7)]) for name in names]
    figure = draw_curves({f"recall@{k}": curves for k in range(n_panels)}, x_label="calls")
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1
    assert legend.y0 >= 0
    assert legend.y1 <= min(axes.get_window_extent().y0 for axes in figure.axes)


def test_curves_differ_in_more_than_colour():
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    curves = [Curve(f"method {n}", [(50, 0.4, 0.3, 0.5), (100, 0.6, 0.5, 0.7)]) for n in range(14)]
    [axes] = draw_curves({"recall@1": curves}, x_label="calls").axes
    looks = {(line.get_linestyle(), line.get_marker()) for line in axes.get_lines()}
    assert len(looks) == 14


def test_plot_of_a_search_that_spent_nothing(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    nothing = report({"a": lambda b: answers(-np.ones((4, 1)), [0] * 4)}, EXACT, ks=[1])
    assert {row.recall for row in nothing.rows} == {0}
    nothing.plot(tmp_path / "report.svg")


def test_a_plot_leaves_matplotlib_alone(found, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    code = f"""
import sys
from cexnn.recall_plot import Curve, draw_curves
from cexnn.recall_report import Report, ReportRow
assert "matplotlib" not in sys.modules
Report(1, (ReportRow("a", 5, 1, 0.5, 0.4, 0.6, 5.0, 0.1),)).plot({str(tmp_path / "a.svg")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_plot_without_matplotlib_says_what_to_install(found, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"cexnn\[cpu\]"):
        found.plot(tmp_path / "report.svg")


def test_plot_names_a_bad_argument(found, tmp_path):
    with pytest.raises(ValueError, match="^path: expected"):
        found.plot(tmp_path / "report.gif")
    with pytest.raises(ValueError, match="^k: expected"):
        found.plot(tmp_path / "report.svg", k=2)


def never(budget):
    raise AssertionError("called")


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("methods", ({}, EXACT), {}),
        ("methods", ([half], EXACT), {}),
        ("methods", ({"a": 3}, EXACT), {}),
        ("methods", ({1: never}, EXACT), {}),
        ("ks", ({"a": never}, EXACT), {"ks": []}),
        ("ks", ({"a": never}, EXACT), {"ks": [1, 1]}),
        ("ks", ({"a": never}, EXACT), {"ks": [0]}),
        ("ks", ({"a": never}, EXACT), {"ks": 3}),
        ("budgets", ({"a": never}, EXACT), {"ks": [1], "budgets": []}),
        ("budgets", ({"a": never}, EXACT), {"ks": [1], "budgets": [5.5]}),
        ("exact_ids", ({"a": never}, EXACT), {"ks": [4]}),
        ("exact_ids", ({"a": never}, [[1, 1]]), {"ks": [1]}),
        ("exact_ids", ({"a": never}, [1, 1]), {"ks": [1]}),
        ("methods", ({"a": half}, EXACT[:3]), {"ks": [1]}),
        ("methods", ({"a": lambda b: 3}, EXACT), {"ks": [1]}),
        ("methods", ({"a": lambda b: answers(EXACT[:, :1], [b] * 4)}, EXACT), {"ks": [2]}),
        ("methods", ({"a": lambda b: answers(EXACT, [b + 1] * 4)}, EXACT), {"ks": [1]}),
    ],
)
def test_report_names_a_bad_argument(name, arguments, options):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        report(*arguments, **options)
