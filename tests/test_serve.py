"""``cexnn serve`` in a process of its own, and its page in a browser."""

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import fields

import pytest

pytest.importorskip("click", reason="needs click: pip install 'cexnn[cpu]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'cexnn[serve]'")
httpx = pytest.importorskip("httpx", reason="needs httpx: pip install 'cexnn[test]'")

from click.testing import CliRunner  # noqa: E402

from cexnn import Index, LsaEncoder  # noqa: E402
from cexnn.cli import main  # noqa: E402
from cexnn.cli.serve import LIMITS, listen  # noqa: E402
from cexnn.demo.run import MODEL  # noqa: E402
from cexnn.index_folder import IndexFolder, Settings, write_folder  # noqa: E402
from cexnn.service import Limits  # noqa: E402
from cexnn.texts import Text  # noqa: E402

VERBS = ["copy", "delete", "open", "sort", "compress", "search", "rename", "move"]
NOUNS = ["a file", "a list", "an array", "a folder", "a string", "a matrix", "an archive", "dates"]
TEXTS = [f"{verb} {noun}: {verb.title()} {noun} quickly." for verb in VERBS for noun in NOUNS]
ITEMS = [Text(text.partition(":")[0].replace(" ", "."), text) for text in TEXTS]
BROWSERS = [
    "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome",
]  # fmt: skip


def write_index(path, items):
    texts = [item.text for item in items]
    encoder = LsaEncoder.fit(texts, n_dims=8)
    index = Index.build(item_embeddings=encoder(texts))
    write_folder(path, IndexFolder(index, items, encoder, Settings(str(MODEL), 40)))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "index"
    write_index(folder, ITEMS)
    return folder


class Server:
    """The command in a process, and a client of it."""

    def __init__(self, *arguments, token=None):
        environment = {**os.environ, "PYTHONWARNINGS": "error"}
        if token is not None:
            environment["CEXNN_TOKEN"] = token
        program = "from cexnn.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", *map(str, arguments), "--port", "0",
             "--threads", "1"],
            stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        told = self.process.stderr.readline()
        assert " items at http://" in told, told + self.process.stderr.read()
        self.url = told.split()[-1]
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        limits = httpx.Limits(max_connections=100)
        self.client = httpx.Client(
            base_url=self.url, headers=headers, timeout=60, limits=limits, trust_env=False
        )

    def search(self, **body):
        return self.client.post("/search", json={"queries": ["copy a file"], **body})

    def end(self, number=signal.SIGTERM):
        """Tell it to stop; return its exit code and what it wrote to stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def reading(self, name):
        lines = self.client.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def until(self, name, condition):
        """Ask for a metric until it is as wanted."""
        for _ in range(10_000):
            if condition(self.reading(name)):
                return
        raise AssertionError(f"{name} is {self.reading(name)}")


@pytest.fixture
def serve(index):
    servers = []

    def start(*arguments, **options):
        servers.append(Server(index, *arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()
        server.client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_answered_before_the_end(serve, number):
    server = serve()
    queries = [f"how do I {text}" for text in TEXTS[:4]]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(server.search, queries=queries, budget=64, k=1, exclude=[])
            for _ in range(4)
        ]
        server.until("cexnn_pending_requests", lambda n: n == 4)
        code, errors = server.end(number)
        answers = [one.result() for one in asked]
    assert (code, errors) == (0, "")
    assert [answer.status_code for answer in answers] == [200] * 4
    for answer in answers:
        assert [one["n_calls"] for one in answer.json()["results"]] == [64] * 4
    with pytest.raises(httpx.ConnectError):
        server.search()


def test_a_reload_drops_no_request(serve, index, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(index, folder)
    server = Server(folder, token="t")
    try:
        enough = threading.Event()

        def ask():
            answers = []
            while not enough.is_set():
                answers.append(server.search(k=3, budget=32))
            return answers

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            server.until("cexnn_calls_total", lambda n: n >= 64)
            for n_items in (24, 48, 64):
                write_index(folder, ITEMS[:n_items])
                loaded = server.client.post("/reload")
                assert loaded.json()["index"]["n_items"] == n_items
            server.search()
            enough.set()
            answers = [answer for one in asking for answer in one.result()]
        assert {answer.status_code for answer in answers} == {200}
        assert all(answer.json()["results"][0]["n_calls"] in (24, 32) for answer in answers)
        (folder / "index.cexnn").write_bytes(b"torn")
        assert server.client.post("/reload").status_code == 500
        assert server.search().status_code == 200
        assert server.reading("cexnn_reloads_total") == 3
        assert server.end()[0] == 0
    finally:
        server.process.kill()
        server.process.communicate()
        server.client.close()


def test_clients_that_hang_up_stop_paying(serve):
    server = serve()
    body = json.dumps({"queries": ["copy a file"] * 32, "budget": 64}).encode()
    head = b"POST /search HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
    port = int(server.url.rpartition(":")[2])
    for _ in range(5):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.until("cexnn_pending_requests", lambda n: n >= 1)
        connection.close()
    server.until("cexnn_pending_requests", lambda n: n == 0)
    assert server.reading("cexnn_engine_waiting_pairs") == 0
    assert server.reading("cexnn_calls_total") == 0
    assert server.reading("cexnn_engine_pairs_total") < 5 * 32 * 64 / 2
    assert server.search(budget=10).status_code == 200
    assert server.end()[0] == 0


def test_options_reach_the_service(serve, tmp_path):
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    server = serve(
        "--token-file", token, "--max-k", 5, "--max-pending-pairs", 77, "--cache-pairs", 1000,
        "--model", MODEL,
    )  # fmt: skip
    assert server.client.get("/info").status_code == 401
    server.client.headers["Authorization"] = "Bearer s3cret"
    info = server.client.get("/info").json()
    assert (info["limits"]["max_k"], info["limits"]["max_pending_pairs"]) == (5, 77)
    assert info["model"] == "demo"
    assert server.search(k=6).status_code == 422
    first, second = (server.search(budget=20).json() for _ in range(2))
    assert first == second
    assert server.reading("cexnn_engine_pairs_total") == 20  # the others were in the cache


def test_the_options_have_the_defaults_of_the_library():
    limits = Limits()
    assert {name: default for name, (default, _) in LIMITS.items()} == vars(limits)
    assert [field.name for field in fields(Limits)] == list(vars(limits))


def test_answers_are_sent_at_once():
    with listen("127.0.0.1", 0) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with client, accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_bad_options_are_named(index, tmp_path):
    def refused(*arguments):
        result = CliRunner().invoke(main, ["serve", *map(str, arguments)])
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    blank = tmp_path / "blank"
    blank.write_text("a b\n")
    assert "--token-file: " in refused(index, "--token-file", blank)
    assert "expected a folder that cexnn build wrote" in refused(tmp_path)
    assert "cannot be used" in refused(index, "--model", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen at 127.0.0.1:{port}" in refused(index, "--port", port)
    program = "import sys; sys.modules['fastapi'] = None; from cexnn.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", index], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install 'cexnn[serve]'" in done.stderr


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs a browser: pip install playwright"
    )
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        if found is None and not os.path.exists(driver.chromium.executable_path):
            pytest.skip("no Chromium: neither on the path nor by playwright install chromium")
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A page that fails the test for whatever it complains of, or fetches from elsewhere."""
    opened = browser.new_page()
    troubles = []
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("console", lambda message: troubles.append(message.text))
    opened.on(
        "request",
        lambda r: None if "127.0.0.1" in r.url or r.url == "data:," else troubles.append(r.url),
    )
    opened.troubles = troubles
    yield opened
    opened.close()
    assert troubles == []


def test_the_page_answers_a_question(serve, page):
    server = serve()
    page.goto(server.url)
    page.wait_for_selector("#served:not(:empty)")
    assert page.inner_text("#served").startswith("64 items · demo")
    assert page.is_visible("#empty")
    assert page.evaluate("document.activeElement.id") == "question"
    page.fill("#k", "3")
    page.fill("#budget", "20")
    page.fill("#rounds", "4")
    page.focus("#question")
    page.keyboard.type("copy a file <b>now</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#hits li")
    answer = server.search(
        queries=["copy a file <b>now</b>"], k=3, budget=20, rounds=4, trace=True
    ).json()["results"][0]
    hits = page.locator("#hits li")
    assert hits.count() == 3
    for place, hit in enumerate(answer["hits"]):
        assert hits.nth(place).locator(".text").inner_text() == hit["text"]
        assert hits.nth(place).locator(".score").inner_text() == f"{hit['score']:.2f}"
        assert hit["id"] in hits.nth(place).locator(".about").inner_text()
    assert page.inner_text("#facts").split()[:4] == ["calls", "20", "rounds", "4"]
    assert "“copy a file <b>now</b>”" in page.inner_text("#status")
    rows = page.locator("#rows tr")
    assert rows.count() == 4
    for row, one in enumerate(answer["trace"]["rounds"]):
        cells = rows.nth(row).locator("th, td").all_inner_texts()
        assert cells[:4] == [str(row + 1), "5", f"{one['best']:.2f}", f"{one['threshold']:.2f}"]
    assert page.locator("#chart circle").count() == 20
    assert page.locator("#chart path").count() == 2
    page.locator("#asked details").nth(1).locator("summary").click()
    asked = page.locator("#asked details").nth(1).locator("tbody tr")
    assert asked.count() == 5
    assert (
        asked.nth(0).locator("td").first.inner_text()
        == answer["trace"]["rounds"][1]["asked"][0]["text"]
    )


def test_the_page_is_used_by_keyboard(serve, page):
    page.goto(serve().url)
    page.keyboard.type("sort dates")
    page.keyboard.press("Enter")
    page.wait_for_selector("#hits li")
    where = "[...document.querySelectorAll('#hits li')].indexOf(document.activeElement)"
    for key, place in [("ArrowDown", 0), ("ArrowDown", 1), ("ArrowUp", 0), ("ArrowUp", -1)]:
        page.keyboard.press(key)
        assert page.evaluate(where) == place
    page.locator("#hits li").nth(2).focus()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.press("Escape")
    assert page.is_visible("#empty")
    assert page.input_value("#question") == ""


def test_the_page_shows_what_goes_wrong(serve, page):
    server = serve("--max-budget", 50)
    page.goto(server.url)
    page.wait_for_selector("#budget[max='50']")
    page.evaluate("document.getElementById('budget').removeAttribute('max')")
    page.fill("#question", "sort dates")
    page.fill("#budget", "51")
    page.click("#go")
    page.wait_for_selector("#trouble:not([hidden])")
    assert page.inner_text("#trouble-text") == "calls: expected at most 50, got 51"
    assert page.evaluate("document.activeElement.id") == "budget"
    page.fill("#budget", "20")
    page.fill("#deadline", "1")
    page.click("#go")
    page.wait_for_selector("#answer:not([hidden])")
    assert "cut by the deadline" in page.inner_text("#facts")
    server.end()
    page.click("#go")
    page.wait_for_selector("#trouble:not([hidden])")
    assert page.inner_text("#trouble-title") == "The service cannot be reached"
    assert len(page.troubles) == 2  # the browser's own words on the two answers that failed
    page.troubles.clear()


def test_the_page_asks_for_the_token(serve, page):
    server = serve(token="s3cret")
    page.goto(server.url)
    page.wait_for_selector("#token")
    assert page.inner_text("#trouble-title") == "This service wants a token"
    page.fill("#token", "s3cret")
    page.keyboard.press("Tab")
    page.wait_for_selector("#served:not(:empty)")
    page.fill("#question", "sort dates")
    page.keyboard.press("Enter")
    page.wait_for_selector("#hits li")
    assert len(page.troubles) == 1  # the browser's own words on the answer 401
    page.troubles.clear()
