"""The demo's page in a real headless Chromium, from upload to answer, and what its server gives away over plain HTTP.

Needs Gradio (`pip install 'fitprune[demo]'`), Playwright's Python package and a Chromium of the system; nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from test_demo_engine import NUMBER, WORD, example
from test_untrusted import png, saved

import fitprune
from fitprune.calibrate import Calibration, observe_questions
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.recipe import RECOMMENDED
from fitprune.web.demo import engine as engine_module
from fitprune.web.demo.engine import Comparison, Engine
from fitprune.web.demo.figures import size
from fitprune.web.demo.page import MAX_WAITING
from fitprune.web.demo.server import API, server
from fitprune.web.demo.uploads import Uploads
from fitprune.web.ports import listen
from fitprune.web.untrusted import MAX_BYTES

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions"),
)
pytest.importorskip("gradio", reason="needs Gradio: pip install 'fitprune[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore:.*(no_silent_downcasting|copy keyword)"),  # Gradio's, of pandas
]


@dataclass
class Served:
    """The demo on a free port, its engine, and every address that this process connected to or looked up meanwhile."""

    engine: Engine
    address: str
    uploads: Path
    reached: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    vlm = fitprune.load("embedded", device="cpu")
    calibration = Calibration(embedded().calibration, embedded().calibration_images, samples=8)
    engine = Engine(vlm, observe_questions(vlm, calibration, progress=False), max_new_tokens=8)
    uploads = tmp_path_factory.mktemp("uploads")
    patch = pytest.MonkeyPatch()
    patch.setattr(engine_module, "TIMING_SECONDS", 0.1)  # seconds of repeated prefills: enough to have been there
    with listen("127.0.0.1", 0) as opened:
        here = Served(engine, f"http://127.0.0.1:{opened.getsockname()[1]}", uploads)
        connect, look_up = socket.socket.connect, socket.getaddrinfo
        patch.setattr(socket.socket, "connect", lambda s, to: (here.reached.append(str(to[0])), connect(s, to))[1])
        patch.setattr(socket, "getaddrinfo", lambda h, *r, **k: (here.reached.append(str(h)), look_up(h, *r, **k))[1])
        serving = server(engine, uploads, "127.0.0.1")
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [opened]}, daemon=True)
        thread.start()
        yield here
        engine.stop()
        serving.should_exit = True
        thread.join(20)
        patch.undo()
        os.environ.pop("GRADIO_TEMP_DIR", None)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


class User:
    """One user's window: acts and reads by what is on the page, and notes every request and complaint."""

    def __init__(self, browser: Any, address: str, **window: Any) -> None:
        self.page = browser.new_context(**window).new_page()
        self.page.set_default_timeout(20_000)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.streams: set[Any] = set()  # of answers that the page still waits for
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("request", lambda request: "/queue/data" in request.url and self.streams.add(request))
        self.page.on("requestfinished", lambda request: self.streams.discard(request))
        self.page.on("requestfailed", lambda request: self.streams.discard(request))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: "Security" in said.text and self.complaints.append(said.text))
        self.page.goto(address)
        self.page.wait_for_selector("#fitprune-ask")

    def upload(self, name: str, content: bytes) -> None:
        file = {"name": name, "mimeType": "image/png", "buffer": content}
        self.page.locator("#fitprune-image input[type=file]").set_input_files(file)

    def uploaded(self, name: str, content: bytes) -> None:
        """With the look at the image done: Gradio can lose a click that comes while the answer to that closes its stream."""
        with self.page.expect_response(lambda answer: "/queue/join" in answer.url):
            self.upload(name, content)
        self.page.wait_for_selector("#fitprune-image img")
        for _ in range(40):
            self.page.wait_for_timeout(50)
            if not self.streams:
                break

    def question(self, text: str) -> None:
        self.page.fill("#fitprune-question textarea", text)

    def ratio(self, percent: int) -> None:
        box = self.page.locator("#fitprune-ratio input[type=number]")
        box.fill(str(percent))
        box.press("Tab")

    def ask(self) -> None:
        self.page.click("#fitprune-ask")

    def answers(self) -> tuple[str, str]:
        self.page.wait_for_selector(".fitprune-table")
        return tuple(self.page.input_value(f"#fitprune-{which} textarea") for which in ("dense", "pruned"))

    def problem(self, said: str = "") -> str:
        """The sentence on the page, once it says that."""
        where = self.page.locator(".fitprune-problem", has_text=said)
        where.wait_for()
        return where.inner_text()

    def caption(self) -> str:
        """What stands under the one frame that is shown."""
        return self.page.locator(".fitprune-frame:not([hidden]) figcaption").inner_text()


@pytest.fixture
def user(browser: Any, served: Served) -> Iterator[User]:
    one = User(browser, served.address)
    yield one
    one.page.context.close()
    others = {urlsplit(url).hostname for url in one.requests if urlsplit(url).scheme not in ("data", "blob")}
    assert others == {"127.0.0.1"}
    assert one.complaints == []


# ---- from upload to answer


def test_from_upload_to_answer(user: User, served: Served) -> None:
    image = example("8")
    user.uploaded("mine.png", saved(image, "PNG"))
    user.question(WORD)
    user.ratio(50)
    user.ask()
    want = served.engine.compare(image, WORD, 0.5, RECOMMENDED)  # which the page begins with
    assert user.answers() == (want.dense.text, want.pruned.text)
    rows = user.page.locator(".fitprune-table tr").all_inner_texts()
    assert rows[0].split() == ["dense", "pruned"]
    assert re.fullmatch(r"Time to first token\s+\S+ m?s\s+\S+ m?s\s+\S+× (faster|slower)", rows[1])
    assert re.split(r"\s{2,}|\t", rows[2])[:3] == ["Visual tokens at the end", "144", str(want.pruned.alive[-1])]
    assert re.split(r"\s{2,}|\t", rows[4])[:3] == ["KV memory", size(want.dense.kv_bytes), size(want.pruned.kv_bytes)]
    assert user.caption() == f"After 9 of 9 layers: {want.pruned.alive[9]} of 144 visual tokens"

    slider = user.page.locator("#fitprune-layer input[type=range]")
    sent = len(user.requests)
    for _ in range(4):
        slider.press("ArrowLeft")
    user.page.wait_for_function("document.querySelector('.fitprune-frame:not([hidden])').dataset.layer == 5")
    assert user.caption() == f"After 5 of 9 layers: {want.pruned.alive[5]} of 144 visual tokens"
    slider.press("Home")
    user.page.wait_for_function("document.querySelector('.fitprune-frame:not([hidden])').dataset.layer == 0")
    assert user.caption() == "Before the first layer: 144 of 144 visual tokens"
    assert len(user.requests) == sent  # the slider asks nobody


@pytest.mark.parametrize("method", ["fastv", "fitprune"])
def test_an_example_and_another_method(method: str, user: User, served: Served) -> None:
    user.page.locator("#fitprune-examples img").first.click()
    user.page.wait_for_selector("#fitprune-image img")
    user.page.wait_for_function("document.querySelector('#fitprune-question textarea').value != ''")
    user.page.click("#fitprune-method input")
    user.page.locator("[role=option]", has_text=f"{method}: ").click()
    user.ask()
    want = served.engine.compare(example("0"), NUMBER, 0.6, method)
    assert user.answers() == (want.dense.text, want.pruned.text)
    assert want.dense.text == "57"
    assert str(want.pruned.alive[-1]) in user.caption()


def test_a_phone_shows_it_all_without_scrolling_sideways(browser: Any, served: Served) -> None:
    user = User(browser, served.address, viewport={"width": 360, "height": 740}, color_scheme="dark", is_mobile=True)
    user.page.locator("#fitprune-examples img").first.click()
    user.page.wait_for_selector("#fitprune-image img")
    user.ask()
    user.answers()
    assert user.page.evaluate("document.documentElement.scrollWidth") <= 360
    body = user.page.locator("body").bounding_box()
    for part in (".fitprune-table", ".fitprune-frame:not([hidden]) img", "#fitprune-ask"):
        box = user.page.locator(part).bounding_box()
        assert box["x"] >= body["x"]
        assert box["x"] + box["width"] <= 360
    user.page.context.close()


# ---- what goes wrong is said


def test_bad_images_are_refused_and_a_good_one_still_works(user: User) -> None:
    bad = {
        "This file is not an image, whatever its name says": ("text.png", b"Just text, whatever it is called.\n" * 9),
        "This image is damaged and cannot be read": ("broken.png", saved(example("0"), "PNG")[:9000]),
        "This image has far too many pixels": ("bomb.png", png(60000, 60000)),
        "This image has 30000 × 900 pixels, and at most 4096 a side": ("wide.png", png(30000, 900)),
        "This file is not an image": ("drawn.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"),
    }
    for said, (name, content) in bad.items():
        user.upload(name, content)
        assert "Traceback" not in user.problem(said)
        assert user.page.locator("#fitprune-image img").count() == 0
    user.question(NUMBER)
    user.ask()
    user.problem("There is no image")
    user.uploaded("good.png", saved(example("0"), "PNG"))
    user.page.locator(".fitprune-problem").wait_for(state="detached")
    user.ask()
    assert user.answers()[0] == "57"


def test_an_image_of_too_many_bytes_is_refused(user: User, served: Served, tmp_path: Path) -> None:
    before = set(served.uploads.rglob("*"))
    with open(tmp_path / "enormous.png", "wb") as file:
        file.write(png(8, 8))
        file.truncate(MAX_BYTES + 1)
    user.page.locator("#fitprune-image input[type=file]").set_input_files(tmp_path / "enormous.png")
    toast = user.page.get_by_text("exceed the maximum allowed size")
    toast.wait_for()
    assert "20" in toast.inner_text()
    assert user.page.locator("#fitprune-image img").count() == 0
    assert set(served.uploads.rglob("*")) == before


def test_a_bad_question_is_said_and_what_is_typed_is_not_run(user: User) -> None:
    user.uploaded("mine.png", saved(example("0"), "PNG"))
    user.ask()
    assert user.problem("There is no question") == "There is no question: type one."
    user.question("<img src=x onerror=\"document.title='run'\"> <image>")
    user.ask()
    user.problem("stands for the image")
    assert user.page.title() == "FitPrune"


def test_a_fault_of_ours_tells_the_page_nothing(
    user: User, served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("a secret of the machine")

    monkeypatch.setattr(served.engine, "compare", broken)
    user.uploaded("mine.png", saved(example("0"), "PNG"))
    user.question(NUMBER)
    user.ask()
    assert "secret" not in user.problem("Something went wrong here")
    assert "secret" not in user.page.content()
    assert "a secret of the machine" in capfd.readouterr().err


# ---- several users


@dataclass
class Gate:
    """Stands before the engine and lets nobody through until it is opened."""

    engine: Engine
    opened: threading.Event = field(default_factory=threading.Event)
    closed: bool = False

    def __call__(self, *asked: Any) -> Comparison:
        assert self.opened.wait(60)
        if self.closed:
            raise FitPruneError("We have closed.")
        return Engine.compare(self.engine, *asked)


@pytest.fixture
def gate(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(served.engine)
    monkeypatch.setattr(served.engine, "compare", gate)
    yield gate
    gate.opened.set()


def test_two_users_at_once_get_their_own_answers(browser: Any, served: Served, gate: Gate) -> None:
    users = [User(browser, served.address) for _ in range(2)]
    for one, name, question in zip(users, "80", (WORD, NUMBER), strict=True):
        one.uploaded("mine.png", saved(example(name), "PNG"))
        one.question(question)
        one.ratio(40)
    for one in users:
        with one.page.expect_response(lambda answer: "queue/join" in answer.url):
            one.ask()
    gate.opened.set()  # both wait by now
    for one, name, question in zip(users, "80", (WORD, NUMBER), strict=True):
        want = Engine.compare(served.engine, example(name), question, 0.4)
        assert one.answers() == (want.dense.text, want.pruned.text)
        assert want.dense.text == {"8": "vvu", "0": "57"}[name]
        one.page.context.close()


def test_more_users_than_may_wait_are_told_so(user: User, served: Served, gate: Gate) -> None:
    call = {"data": [{"path": str(next(served.uploads.glob("*.jpg")))}, NUMBER, 60, "fitprune", 9], "fn_index": answering(served)}
    said = [http(served, f"{API}/queue/join", {**call, "session_hash": f"crowd{at}"}) for at in range(MAX_WAITING + 4)]
    assert [status for status, _ in said[:MAX_WAITING]] == [200] * MAX_WAITING
    assert said[-1][0] == 503
    assert b"Queue is full" in said[-1][1]
    user.uploaded("mine.png", saved(example("0"), "PNG"))
    user.question(NUMBER)
    user.ask()
    user.page.get_by_text("Please try again").first.wait_for()
    gate.closed = True
    gate.opened.set()
    for at in range(MAX_WAITING):  # nobody is left for the next test
        assert b"We have closed" in http(served, f"{API}/queue/data?session_hash=crowd{at}")[1]


# ---- what the server gives away


def http(served: Served, path: str, data: Any = None, **headers: str) -> tuple[int, bytes]:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(served.address + path, body, {"Content-Type": "application/json", **headers})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        try:
            return error.code, error.read()
        except ConnectionResetError:  # answered and closed before all that was sent was read
            return error.code, b""


def answering(served: Served) -> int:
    """The number of the call that answers."""
    config = json.loads(http(served, "/config")[1])
    return max(call["id"] for call in config["dependencies"] if len(call["inputs"]) == 5)


def test_files_of_this_machine_are_not_served(served: Served, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("mine")
    for path in ("/etc/passwd", str(Path(fitprune.__file__)), str(tmp_path / "private.txt"), str(embedded().calibration)):
        for spelling in (path, quote(path, safe=""), f"{served.uploads}/..{path}"):
            assert http(served, f"{API}/file={spelling}")[0] in (403, 404), spelling
        sent = {"path": path, "meta": {"_type": "gradio.FileData"}}
        call = {"data": [sent, NUMBER, 60, "fitprune", 9], "fn_index": 0, "session_hash": "a"}
        assert http(served, f"{API}/queue/join", call)[0] == 400


def test_no_other_routes_are_open(served: Served) -> None:
    for path in ("/docs", "/openapi.json", "/monitoring", "/login", f"{API}/info", f"{API}/runs", f"{API}/openapi.json"):
        assert http(served, path)[0] == 404, path
    assert http(served, f"{API}/run/predict", {"data": []})[0] == 404
    assert http(served, "/", Host="evil.example")[0] == 400


def test_other_sites_cannot_upload(served: Served) -> None:
    before = set(served.uploads.rglob("*"))
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert http(served, f"{API}/upload", {}, **headers)[0] == 403
    assert set(served.uploads.rglob("*")) == before


def test_a_length_beside_chunks_is_not_believed(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(served.address).port)) as raw:
        lines = [f"POST {API}/queue/join HTTP/1.1", "Host: 127.0.0.1", "Content-Length: 10", "Transfer-Encoding: chunked"]
        raw.sendall("\r\n".join([*lines, "", "10000", ""]).encode() + bytes(2**16))
        assert raw.recv(99).startswith(b"HTTP/1.1 411")


def test_an_upload_cut_off_is_quiet_and_swept(served: Served, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    before = set(served.uploads.glob("tmp*"))
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", urlsplit(served.address).port)) as raw:
        lines = [f"POST {API}/upload HTTP/1.1", "Host: 127.0.0.1", "Content-Length: 99999"]
        raw.sendall("\r\n".join([*lines, "Content-Type: multipart/form-data; boundary=b", "", ""]).encode() + head + bytes(999))
        for _ in range(200):
            if left := set(served.uploads.glob("tmp*")) - before:
                break
            time.sleep(0.05)
    assert left
    time.sleep(0.3)  # until the server has noticed
    for path in left:
        os.utime(path, (0, 0))
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.exc_info]
    sweeper = Uploads(served.uploads)
    sweeper.examples -= left
    sweeper.sweep()
    assert not set(served.uploads.glob("tmp*")) & left


def test_the_page_names_no_telemetry(served: Served) -> None:
    config = json.loads(http(served, "/config")[1])
    assert config["analytics_enabled"] is False
    assert config["show_error"] is False
    assert not config.get("run_history")
    assert {call["api_visibility"] for call in config["dependencies"]} == {"private"}


def test_malformed_calls_are_answered_in_words(served: Served) -> None:
    """What a page never sends; the handler is called as the queue calls it."""
    index = answering(served)
    malformed = ([None] * 5, [{"no": "path"}, {}, "sixty", [], {}], ["x", 7, True, None, "layer"], [7, "", 1e400, "", 1])
    for at, data in enumerate(malformed):
        session = f"malformed{at}"
        call = {"data": data, "fn_index": index, "session_hash": session, "event_data": None, "trigger_id": None}
        assert http(served, f"{API}/queue/join", call)[0] == 200
        said = http(served, f"{API}/queue/data?session_hash={session}")[1].decode()
        assert "process_completed" in said
        assert "Traceback" not in said
        assert "fitprune-problem" in said or '"success":false' in said


def test_the_process_reached_nobody(served: Served) -> None:
    assert set(served.reached) <= {"127.0.0.1", "localhost", "::1"}


# ---- the command


def test_ctrl_c_stops_it_and_takes_uploads_away(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fitprune", "demo", "--port", "0", "--samples", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = started.stdout.readline()
        address = re.fullmatch(r"fitprune demo: open (http://127\.0\.0\.1:\d+) \(Ctrl-C stops\)\n", line)[1]
        (uploads,) = tmp_path.glob("fitprune-demo-*")
        assert uploads.stat().st_mode & 0o077 == 0
        here = Served(None, address, uploads)
        assert b"FitPrune" in http(here, "/")[1]
        call = {"data": [{"path": str(next(uploads.glob("*.jpg")))}, NUMBER, 60, "fitprune", 9], "fn_index": answering(here)}
        for at in range(3):  # in the middle of answers
            assert http(here, f"{API}/queue/join", {**call, "session_hash": f"last{at}"})[0] == 200
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=30)
    finally:
        started.kill()
    assert started.returncode == 130
    assert out == "\nfitprune demo: stopped\n"
    assert "Traceback" not in err
    assert "terminate" not in err
    assert not list(tmp_path.glob("fitprune-demo-*"))
