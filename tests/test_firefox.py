"""The Lab and a living panel in Firefox, driven by WebDriver BiDi as it brings it along.

Skipped where there is no Firefox: apt-get install firefox-esr, or its path in ECT_NB_FIREFOX."""

import asyncio
import base64
import json
import os
import pytest
import shutil
import subprocess
import time
from ect_nb.show.lab import write_lab
from pathlib import Path
from test_browser import free_port
from test_lab import ASK, CASES, agree, dice, torch_step
from test_living import stored
from tornado.websocket import websocket_connect

PICTURES = Path(__file__).resolve().parent.parent / "out" / "browser" / "firefox"
WAIT = 120  # seconds at most for any one thing


class Firefox:
    "A Firefox without a window, asked one thing at a time."

    def __init__(self, path, home):
        self.loop, self.asked, port = asyncio.new_event_loop(), 0, free_port()
        command = [path, "--headless", "--no-remote", "--profile", str(home)]
        command.append(f"--remote-debugging-port={port}")
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen(command, **quiet)
        self.socket = self.loop.run_until_complete(self.connected(port))
        self.ask("session.new", capabilities={})
        self.context = self.ask("browsingContext.getTree")["contexts"][0]["context"]

    async def connected(self, port):
        end = time.monotonic() + WAIT
        while True:
            try:
                address = f"ws://127.0.0.1:{port}/session"
                return await websocket_connect(address, max_message_size=10**8)
            except OSError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise
                await asyncio.sleep(0.3)

    async def answer(self, method, params):
        self.asked += 1
        told = dict(id=self.asked, method=method, params=params)
        await self.socket.write_message(json.dumps(told))
        while True:
            heard = json.loads(await self.socket.read_message())
            if heard.get("id") == self.asked:
                assert heard["type"] == "success", heard
                return heard["result"]

    def ask(self, method, **params):
        return self.loop.run_until_complete(self.answer(method, params))

    def page(self, method, **params):
        return self.ask(f"browsingContext.{method}", context=self.context, **params)

    def visit(self, url, width=1280):
        self.page("setViewport", viewport=dict(width=width, height=900))
        self.page("navigate", url=url, wait="complete")

    def evaluate(self, expression):
        there = dict(target=dict(context=self.context), awaitPromise=True)
        text = f"JSON.stringify({expression})"
        found = self.ask("script.evaluate", expression=text, **there)
        assert found["type"] == "success", found
        return json.loads(found["result"].get("value", "null"))

    def until(self, true):
        end = time.monotonic() + WAIT
        while not self.evaluate(f"Boolean({true})"):
            assert time.monotonic() < end, f"after {WAIT} s it is still not so that {true}"
            time.sleep(0.1)

    def stroke(self, points):
        "One line with the mouse through `points` (x, y)."
        place = lambda x, y, **more: dict(type="pointerMove", x=round(x), y=round(y), **more)
        moves = [place(*points[0]), dict(type="pointerDown", button=0)]
        for (a, b), (c, d) in zip(points, points[1:]):
            steps = [k / 12 for k in range(1, 13)]
            moves += [place(a + (c - a) * s, b + (d - b) * s, duration=16) for s in steps]
        mouse = dict(type="pointer", id="mouse", actions=[*moves, dict(type="pointerUp", button=0)])
        self.ask("input.performActions", context=self.context, actions=[mouse])

    def picture(self, name):
        content = base64.b64decode(self.page("captureScreenshot")["data"])
        (PICTURES / f"{name}.png").write_bytes(content)

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.loop.close()


@pytest.fixture(scope="module")
def firefox(tmp_path_factory):
    path = os.environ.get("ECT_NB_FIREFOX") or shutil.which("firefox-esr")
    if not path:
        pytest.skip("Firefox is missing: apt-get install firefox-esr")
    PICTURES.mkdir(parents=True, exist_ok=True)
    browser = Firefox(path, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def lab(firefox, tmp_path_factory):
    url = write_lab(tmp_path_factory.mktemp("page") / "lab").as_uri()
    firefox.visit(url)
    firefox.until("lab.news || !lab.bumps")
    return firefox


def test_one_step_in_firefox_is_torchs(lab):
    for case in CASES.values():
        model, values, task = dice(case | dict(plain=False))
        found = lab.evaluate(f"({ASK})({{engine, task: {json.dumps(task)}}})")
        assert found["fast"]
        agree(found, torch_step(model, values, task))


def test_a_shape_is_drawn_learnt_and_tightened(lab):
    "By mouse, with shorter plans; how long it took is written down, not judged."
    lab.evaluate("lab.choose('drawn') ?? 0")
    box = lab.evaluate("lab.$('plane').getBoundingClientRect()")
    z = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    lab.stroke([(box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in z])
    assert 60 < len(lab.evaluate("lab.drawn")) / 2 < 400
    plans = "{...PLANS.learn, steps: 800}, tighten: {...PLANS.tighten, steps: 1200}"
    plans = plans.replace("PLANS", "engine().PLANS")
    lab.evaluate(f"(lab.options.plans = {{learn: {plans}}}, lab.restart(), lab.setSpeed(1e9)) ?? 0")
    began = time.monotonic()
    for phase in ("learn", "tighten"):
        lab.evaluate(f"lab.press('{phase}') ?? 0")
        lab.until(f"lab.news.phase === '{phase}' && lab.news.finished && !lab.news.playing")
    facts = dict(seconds=time.monotonic() - began, load=os.getloadavg()[0])
    (PICTURES / "drawn.json").write_text(json.dumps(facts))
    lab.until("lab.measures.done.tighten === lab.news.done.tighten")
    one, before = lab.evaluate("[lab.measures.one.mean, lab.history.before.items.at(-1)[1].mean]")
    assert one < 0.5 * before
    lab.picture("lab")
    lab.page("setViewport", viewport=dict(width=360, height=900))
    assert lab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    lab.picture("lab_360")


def test_a_living_panel_answers(firefox, tmp_path):
    "As it stands in lesson 02: it says what Python said, and moves."
    _, _, said, stood = stored("02_diffusion")
    source = stood[stood.index('srcdoc="') + 8 :]
    page = tmp_path / "panel.html"
    page.write_text(source[: source.rindex("</html>") + 7], encoding="utf-8")
    firefox.visit(page.as_uri())
    words = "document.querySelector('[role=status]').textContent"
    firefox.until("window.panel")
    before = firefox.evaluate(words)
    assert said.endswith(before)
    firefox.evaluate("(panel.place('start', 0), panel.move()) ?? 0")
    assert firefox.evaluate(words) != before
    firefox.picture("walks")
