"""What a round asks of a CUDA device, and rounds that are replayed as graphs.

The calls are counted by the emulation of the device (tests/cuda_emulation).
"""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cexnn import _core

CERTAIN = {
    "factor_variance": 0.5,
    "prior_scale_variance": 0.25,
    "shift_variance": 2.0,
    "noise_variance": 0.2,
    "offset": 1.0,
    "centred": True,
    "mix": 0.0,
}
N_ITEMS, N_FACTORS = 3000, 32


@pytest.fixture
def calls():
    """Calls so far: launches, copies, graphs, and the nodes of these; None on a real device."""
    if not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")
    try:
        count = ctypes.CDLL(_core.__file__).cuda_emulation_counts
    except AttributeError:
        return None

    def so_far():
        numbers = (ctypes.c_longlong * 4)()
        count(numbers)
        return np.array(numbers)

    return so_far


@pytest.fixture
def asked(calls):
    """Calls so far, where they are counted."""
    if calls is None:
        pytest.skip("calls are counted on the emulated CUDA device alone")
    return calls


class Search:
    """Rounds of one search: told scores of `told` items a query, it asks for 20 more."""

    def __init__(self, n=1, d=N_FACTORS, seed=0, k=20, **changes):
        rng = np.random.default_rng(seed)
        self.n, self.k, self.model = n, k, _core.QueryModel(**{**CERTAIN, **changes})
        self.items = rng.normal(size=(N_ITEMS, d)).astype(np.float32)
        self.offsets = rng.normal(size=N_ITEMS).astype(np.float32)
        self.priors = rng.normal(size=(n, d)).astype(np.float32)
        self.ids = np.stack([rng.permutation(N_ITEMS) for _ in range(n)]).astype(np.int32)
        self.scores = rng.normal(size=(n, N_ITEMS)).astype(np.float32)
        self.searcher = self.fresh()
        self.state = self.searcher.make_state(n)

    def fresh(self):
        return _core.Searcher(self.items, self.offsets, device="cuda")

    def known(self, told):
        indptr = np.arange(self.n + 1, dtype=np.int64) * told
        return indptr, self.ids[:, :told].ravel(), self.scores[:, :told].ravel()

    def round(self, told, searcher=None, state=None):
        searcher = searcher or self.searcher
        state = state if searcher is not self.searcher else self.state
        return searcher.next_items(*self.known(told), self.priors, self.model, state, self.k, 1)

    def opening(self, searcher=None):
        indptr, ids, _ = self.known(0)
        return (searcher or self.searcher).top_items(self.priors, indptr, ids, self.k, 1)


def cost(asked, call):
    before = asked()
    call()
    return (asked() - before).tolist()


def test_calls_of_a_cuda_round(asked):
    search = Search()
    assert cost(asked, search.opening) == [2, 2, 0, 0]  # mask; scan
    assert cost(asked, search.opening) == [0, 0, 1, 4]
    # What goes up, what comes down; begin, schur, solve, scan: there are no earlier panels.
    assert cost(asked, lambda: search.round(20)) == [4, 2, 0, 0]
    search.round(60)
    search.round(80)
    # And project, invert.
    assert cost(asked, lambda: search.round(100)) == [0, 0, 1, 8]
    assert cost(asked, lambda: search.round(110)) == [0, 0, 1, 8]
    assert cost(asked, lambda: search.round(128)) == [0, 0, 1, 8]
    assert cost(asked, lambda: search.round(140)) == [6, 2, 0, 0]  # more room
    search.round(200)
    assert cost(asked, lambda: search.round(250)) == [0, 0, 1, 8]


def test_cuda_rounds_of_very_many_answers_are_not_recorded(asked):
    """A graph of the launches that sort all scores would be a large one."""
    search = Search(k=N_ITEMS - 100)
    search.round(20)
    for told in (25, 30):
        launches, _, graphs, _ = cost(asked, lambda told=told: search.round(told))
        assert launches > 0
        assert graphs == 0


@pytest.mark.parametrize("n", [1, 3, 6])
def test_calls_of_a_cuda_search(n, asked):
    search = Search(n)

    def rounds():
        search.state = search.searcher.make_state(n)
        search.opening()
        for told in range(20, 170, 20):
            search.round(told)

    rounds()
    rounds()  # where the last rounds of the first moved what the others use
    launches, copies, graphs, _ = cost(asked, rounds)
    assert (launches, copies, graphs) == (0, 0, 9)


def test_calls_of_a_cuda_round_whose_noise_has_to_be_found(asked):
    """Once more up and down, for the diagonal of the kernel."""
    search = Search(noise_variance=0.0)
    assert cost(asked, lambda: search.round(20)) == [5, 4, 0, 0]
    search.round(25)
    assert cost(asked, lambda: search.round(30)) == [1, 2, 1, 6]


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("d", [20, 32])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_replayed_cuda_rounds_answer_as_those_that_are_not(n, d, noise, calls):
    search = Search(n, d, noise_variance=noise)
    for again in range(3):  # the same shapes, other numbers in the same places
        rng = np.random.default_rng(again)
        search.priors = rng.normal(size=(n, d)).astype(np.float32)
        search.scores = rng.normal(size=(n, N_ITEMS)).astype(np.float32)
        search.state = search.searcher.make_state(n)
        before = calls and calls()
        assert_equal(search.opening(), search.opening(search.fresh()))
        for told in (20, 45, 64, 100, 150):
            fresh = search.fresh()
            state = fresh.make_state(n)
            fresh.update(*search.known(told // 2), search.priors, search.model, state, 1)
            assert_close(search.round(told), search.round(told, fresh, state))
    if calls and noise > 0.0:  # without noise, when systems grow depends on the numbers
        assert (calls() - before)[2] == 6


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(one, other):
    """The last bits of a growing system depend on its steps: scores are as good as equal."""
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_allclose(one[1], other[1], rtol=1e-5, atol=1e-5)


def test_a_cuda_graph_is_not_replayed_for_another_model(calls):
    search = Search()
    for _ in range(3):
        search.round(20)
    search.model = _core.QueryModel(**{**CERTAIN, "offset": -3.0})
    fresh = search.fresh()
    if calls:
        assert cost(calls, lambda: search.round(20))[2] == 0
    assert_equal(search.round(20), search.round(20, fresh, fresh.make_state(1)))


def test_cuda_graphs_are_forgotten_when_there_are_many(asked):
    search = Search()

    def costs_at(k):
        search.k = k
        return cost(asked, lambda: search.round(20))

    costs_at(40)  # has room made for all
    assert costs_at(1)[2] == 0
    assert costs_at(1)[2] == 1
    for k in range(2, 17):  # 15 others: it is remembered yet
        costs_at(k)
    assert costs_at(1)[2] == 1
    for k in range(17, 33):
        costs_at(k)
    assert costs_at(1)[2] == 0
    assert costs_at(1)[2] == 1


def test_threads_replay_cuda_graphs_of_their_own(calls):
    search = Search()
    search.state = None  # every round from the start, in one shape
    expected = {told: search.round(told, search.fresh()) for told in (20, 40, 60)}

    def ask(_):
        return [(told, search.round(told)) for told in (20, 40, 60) * 4]

    with ThreadPoolExecutor(4) as threads:
        for answers in threads.map(ask, range(4)):
            for told, answer in answers:
                assert_equal(answer, expected[told])


def run_alone(check, **environment):
    """Run a check in a process of its own."""
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    environment = {**os.environ, **environment, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", check], check=True, env=environment)


def test_cuda_rounds_where_nothing_can_be_recorded(asked):
    """A driver that does not record: rounds are launched one kernel at a time."""
    check = (
        "import test_cuda_rounds as rounds, numpy as np\n"
        "search = rounds.Search()\n"
        "answers = [search.round(20) for _ in range(4)]\n"
        "for answer in answers[1:]: rounds.assert_equal(answer, answers[0])\n"
    )
    run_alone(check, CUDA_EMULATION_CAPTURE="0")


@pytest.mark.parametrize("code", [75, 80])
def test_cuda_kernels_compiled_for_earlier_devices(asked, code):
    """A build for these alone, which the driver translates: what later ones have is not there."""
    check = (
        "import test_cuda_rounds as rounds, cexnn, numpy as np, scipy.sparse as sparse\n"
        "for n in 1, 8: rounds.Search(n).round(20)\n"
        "scores = sparse.csr_array(np.random.default_rng(0).normal(size=(80, 90)))\n"
        "cexnn.factorize(scores, 40, n_iterations=1, device='cuda')\n"
    )
    run_alone(check, CUDA_EMULATION_CODE=str(code))
