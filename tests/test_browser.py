"""The panels of `explore` in a real JupyterLab in a real Chromium, worked by keyboard and mouse as
a reader does; one page, worked by all of them in order. make test runs them last and alone: where
other tests keep the kernel busy, JupyterLab gives up after four seconds on panels it would restore.

Without Chromium these tests are skipped; with ECT_NB_BROWSER=required, as .ci/run sets it, they
fail instead. Screenshots go to out/browser."""

import json
import math
import nbformat
import numpy as np
import os
import pytest
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import torch
import urllib.request
from ect_nb.analytic import GaussianMixture  # noqa: F401 (MIXTURE names it)
from ect_nb.measure.atlas import Atlas
from ect_nb.show.tradeoff import (
    budgets,
    curve,
    over_seeds,
    ranging,
    rivals,
    say,
    setting,
    tuned,
    walk_of,
)
from nbformat.v4 import new_code_cell, new_notebook
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "out" / "browser"
WAIT = 240  # seconds at most for any one thing; every wait ends when the thing is there
NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
LAB = dict(
    JUPYTER_CONFIG_DIR="config",
    JUPYTER_DATA_DIR="data",
    JUPYTER_RUNTIME_DIR="runtime",
    JUPYTERLAB_SETTINGS_DIR="settings",
    JUPYTERLAB_WORKSPACES_DIR="workspaces",
    IPYTHONDIR="ipython",
    MPLCONFIGDIR="matplotlib",
)

# The notebook: both panels, a cell that says where the run stands, a cell that takes the pictures
# away once training has begun

MIXTURE = "GaussianMixture([[-1.1], [0.1], [1.2]], [0.12, 0.05, 0.08], [0.40, 0.25, 0.35])"
BATCH, TOTAL = 16, 320_000  # more than can be seen before Stop is pressed
CELLS = [
    f"""import torch
from ect_nb.io import data
from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import Precond
from ect_nb.objectives import ECT
from ect_nb.show.flow import flow_panel
from ect_nb.show.panels import show_panel
from ect_nb.show.tuning import Tuning, tuning_panel
from ect_nb.networks import UNet
from ect_nb.schedules import Stages
from ect_nb.training.config import Config
mixture = {MIXTURE}

def half(x, t):
    if (t < 0.02).any(): raise ValueError("this model knows nothing below t = 0.02")
    return x / (1 + t**2) ** 0.5 / 2

models = {{"the denoiser": mixture.denoise, "the halving": half}}
show_panel(flow_panel(mixture, models, x=0.6, t=8.0))""",
    f"""class Fragile(data.Pictures):
    broken = False
    def to(self, device): return self
    def batch(self, *a):
        if self.broken: raise OSError("the pictures are gone")
        return super().batch(*a)

torch.set_num_threads(1); torch.manual_seed(0)
pictures = data.load("fashion_mnist_20k")
fragile = Fragile(pictures.images, name="fragile")
start = Precond(UNet(28, 1, 8, (1,), num_blocks=1, attention=(), patch=4))
config = Config(kimg={TOTAL // 1000}, batch={BATCH}, lr=1e-3, ema=0.9,
                objective=ECT(c=0.03), stages=Stages(start=3))
tuning = Tuning(start, fragile, config, torch.randn(16, 1, 28, 28), n_looks=1000)
show_panel(tuning_panel(tuning))""",
    """print(tuning.images, tuning.model is start, float(sum(p.detach().abs().sum() for p in
    tuning.model.parameters())),
      tuning.running, *((b.images, b.running) if (b := tuning.before) else (None, None)))""",
    """fragile.broken = tuning.images > 0; print(fragile.broken)""",
    """from ect_nb.measure.atlas import Atlas
from ect_nb.show.explorer import compare_panel, explorer
from ect_nb.show.live import live_panel
from ect_nb.show.planner import planner
atlas = Atlas.load()
show_panel(explorer(atlas))""",
    "show_panel(compare_panel(atlas))",
    "show_panel(live_panel({'untrained': start, 'blank': lambda x, t: 0 * x}))",
    "show_panel(planner(atlas))",
    """from ect_nb.show.explorer import my_run
show_panel(my_run("growing", atlas, every=1.0))""",
]

# What it takes: Chromium, JupyterLab, one page


def find_chromium():
    """Path of a Chromium or Chrome on PATH, else of the one that playwright keeps, else None; None
    without playwright too."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found
    with sync_playwright() as p:
        own = p.chromium.executable_path
    return own if Path(own).exists() else None


def chromium():
    """As `find_chromium`; where there is none the test is skipped, or fails if
    ECT_NB_BROWSER=required."""
    if found := find_chromium():
        return found
    give_up = pytest.fail if os.environ.get("ECT_NB_BROWSER") == "required" else pytest.skip
    give_up(
        "playwright or Chromium is missing, in which the panels are tested: run make setup, then"
        " apt-get install chromium (elsewhere than on Debian: .venv/bin/playwright install"
        " chromium)"
    )


def furnish(home):
    """A folder for a JupyterLab of its own: notebook, quiet settings, and the environment in which
    nothing of the user's is read or written."""
    for name in ("work", *LAB.values()):
        (home / name).mkdir()
    news = (
        home
        / "settings"
        / "@jupyterlab"
        / "apputils-extension"
        / "notification.jupyterlab-settings"
    )
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    kernel = dict(display_name="Python 3", language="python", name="python3")
    nbformat.write(
        new_notebook(cells=[new_code_cell(c) for c in CELLS], metadata=dict(kernelspec=kernel)),
        home / "work" / "panels.ipynb",
    )
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
    return (
        mine
        | {k: str(home / v) for k, v in LAB.items()}
        | dict(JUPYTER_PREFER_ENV_PATH="1", OMP_NUM_THREADS="1")
    )  # the kernel of this Python


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "The address of JupyterLab with its token in it, and the folder in which its notebook stands."
    home = tmp_path_factory.mktemp("lab")
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={free_port()}",
        f"--ServerApp.root_dir={home / 'work'}",
        "--LabApp.extension_manager=readonly",
    ]
    with (home / "log.txt").open("w") as log:
        server = subprocess.Popen(
            command,
            env=furnish(home),
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield address(home, server), home / "work"
    finally:
        stop(server)


def address(home, server):
    "Where the server says it listens, once it answers."
    end = time.monotonic() + WAIT
    while time.monotonic() < end and server.poll() is None:
        for file in (home / "runtime").glob("jpserver-*.json"):
            try:
                facts = json.loads(file.read_text())
                urllib.request.urlopen(facts["url"] + "api", timeout=5).close()
                return facts["url"] + "lab/tree/panels.ipynb?token=" + facts["token"]
            except (OSError, ValueError):
                pass  # not yet
        time.sleep(0.1)
    pytest.fail("JupyterLab did not start:\n" + (home / "log.txt").read_text())


def stop(server):
    "End the server, which ends its kernels."
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="module")
def page(request):
    """The notebook in the browser, all cells run; `page.heard` is what the page complained of and
    whom it asked."""
    path = chromium()
    from playwright.sync_api import expect, sync_playwright

    url, folder = request.getfixturevalue("lab")
    expect.set_options(timeout=WAIT * 1000)
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport=dict(width=1280, height=1400))
            page.set_default_timeout(WAIT * 1000)
            page.heard = []
            page.on("console", lambda m: page.heard.append((m.type, m.text)))
            page.on("pageerror", lambda e: page.heard.append(("error", str(e))))
            page.on("request", lambda r: page.heard.append(("request", r.url)))
            page.lab, page.folder = url, folder
            page.goto(url)
            try:
                run_all(page)
            except BaseException:
                page.screenshot(path=PICTURES / "failed.png")
                raise
            yield page
        finally:
            browser.close()


def run_all(page):
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    failed = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    page.locator(".jp-InputPrompt").get_by_text(f"[{len(CELLS)}]:").or_(failed).wait_for()
    assert not failed.count(), failed.inner_text()
    for i in PANELS:
        cell(page, i).locator(".ect-readout").wait_for()


# A reader's hands and eyes

FLOW, TUNING, STATE, BREAK, EXPLORER, COMPARE, LIVE, PLANNER, MINE = range(9)
PANELS = FLOW, TUNING, EXPLORER, COMPARE, LIVE, PLANNER, MINE


def cell(page, i):
    return page.locator(".jp-CodeCell").nth(i)


def panel(page, i):
    return cell(page, i).locator(".jp-OutputArea-output > .widget-vbox")


def output(page, i):
    return cell(page, i).locator(".jp-OutputArea-output").filter(has=page.locator(".widget-vbox"))


def readout(page, i):
    return cell(page, i).locator(".ect-readout").last.inner_text()


def button(page, name):
    return panel(page, TUNING).get_by_role("button", name=name, exact=True)


def alert(page, i):
    return panel(page, i).get_by_role("alert")


def picture(page, i):
    return panel(page, i).get_by_role("img")


def place(page, i):
    "Where the picture of panel `i` stands, also while another takes its place."
    found = []
    until(
        page,
        lambda: found.append(picture(page, i).bounding_box()) or found[-1],
        lambda: "no picture",
    )
    return found[-1]


def until(page, true, there):
    "Wait until `true()` holds; if it never does, fail with what `there()` is instead."
    end = time.monotonic() + WAIT
    while not true():
        if time.monotonic() > end:
            page.screenshot(path=PICTURES / "failed.png")
            pytest.fail(f"after {WAIT} s there is still only {there()!r}")
        page.wait_for_timeout(30)


def drawn(page, i):
    """Wait until the picture of the panel is there and not blank: at least a hundredth of its
    pixels are not near white."""
    picture(page, i).evaluate("i => i.decode()")
    until(page, lambda: picture(page, i).evaluate(INK) > 0.01, lambda: "a blank picture")


INK = """i => {
    const c = new OffscreenCanvas(i.naturalWidth, i.naturalHeight), g = c.getContext('2d');
    g.drawImage(i, 0, 0);
    const p = g.getImageData(0, 0, c.width, c.height).data;
    let n = 0;
    for (let k = 0; k < p.length; k += 4) n += p[k] < 200;
    return 4 * n / p.length;
}"""


def slider(page, name, of=FLOW, nth=0):
    "The `nth` slider that those who hear the page know as `name`."
    return panel(page, of).get_by_role("slider", name=name, exact=True).nth(nth)


def press(page, name, *keys, of=FLOW, nth=0):
    "Press `keys` on a slider, which must not lose the focus to the notebook."
    handle = slider(page, name, of, nth)
    for key in keys:
        handle.press(key)
        assert handle.evaluate("e => e === document.activeElement"), (
            f"{key} moved the focus away from slider {name}"
        )


def run_cell(page, i):
    "Run cell `i` with Shift+Enter and return the words it printed, or wait for its panel."
    prompt = cell(page, i).locator(".jp-InputPrompt")
    before = prompt.inner_text()
    cell(page, i).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    until(
        page,
        lambda: re.fullmatch(r"\[\d+\]:", prompt.inner_text()) and prompt.inner_text() != before,
        prompt.inner_text,
    )
    output = cell(page, i).locator(".jp-OutputArea-output")
    if i in PANELS:
        return cell(page, i).locator(".ect-readout").first.wait_for()
    assert output.count() == 1, "a panel has put something of its own below a cell"
    return output.inner_text().split()


def seen(page):
    return int(re.match(r"([\d,]+) of 320,000 pictures", readout(page, TUNING))[1].replace(",", ""))


def rises(page, above):
    until(page, lambda: seen(page) > above, lambda: readout(page, TUNING))


def pause(page):
    "Pause, and return the number of pictures at which the run came to rest."
    button(page, "Pause").click()
    until(page, button(page, "Pause").is_disabled, lambda: "a Pause button that can be pressed")
    return seen(page)


def answers(x, t):
    """What the flow panel must say at `x` (at its natural size) and `t`: path end, denoiser,
    halving."""
    at = torch.tensor([[x * math.sqrt(1 + t**2)]], dtype=torch.float64)
    mixture = eval(MIXTURE)
    return [float(mixture.exact_map(at, t)), float(mixture.denoise(at, t)), x / 2]


def says(page, x, t):
    """Wait until the flow panel says so, to the two digits it gives (and float32); its picture has
    the same words for those who do not see it."""
    said = lambda text: [float(v) for v in re.findall(r"(?:ends at|says) (-?\d+\.\d\d)", text)]
    until(
        page,
        lambda: said(readout(page, FLOW)) == pytest.approx(answers(x, t), abs=0.0055),
        lambda: f"{readout(page, FLOW)} where {answers(x, t)} is right",
    )
    until(
        page,
        lambda: said(picture(page, FLOW).get_attribute("alt")) == said(readout(page, FLOW)),
        lambda: picture(page, FLOW).get_attribute("alt"),
    )


# The tests


def test_no_chromium(monkeypatch, tmp_path):
    """Without a browser: skipped with a sentence that helps, or failed where it is required.

    (Before the others: playwright cannot look twice at once.)"""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    monkeypatch.delenv("ECT_NB_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        chromium()
    monkeypatch.setenv("ECT_NB_BROWSER", "required")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        chromium()
    monkeypatch.setenv("PATH", os.defpath + os.pathsep + str(tmp_path))
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(pytest.fail.Exception, match="make setup"):
        chromium()


@pytest.mark.parametrize("there", [True, False])
def test_ci_requires_the_browser(there, tmp_path):
    """`.ci/run` asks apt-get for a browser where none is, and runs `make test` with the browser
    required."""
    stub = '#!/bin/sh\necho "${0##*/} $* $ECT_NB_BROWSER" >> "' + str(tmp_path / "log") + '"\n'
    (tmp_path / "bin").mkdir()
    for name in ["apt-get", "git", "make", "python3"] + ["chromium"] * there:
        (tmp_path / "bin" / name).write_text(stub)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin" / "dirname").symlink_to(shutil.which("dirname"))
    run = subprocess.run(
        [shutil.which("bash"), ROOT / ".ci" / "run"],
        env=dict(PATH=str(tmp_path / "bin")),
        capture_output=True,
        text=True,
        check=True,
    )
    log = (tmp_path / "log").read_text()
    assert "make test required\n" in log
    assert there == ("chromium" not in run.stdout) == ("chromium" not in log)


def test_sliders(page):
    """Both sliders by keyboard, from end to end; every number agrees with the closed form, nothing
    jumps, and right is right: t falls."""
    press(page, "t", "Home")
    press(page, "x", "Home")
    says(page, -2.4, 80)
    press(page, "x", "End")
    says(page, 2.4, 80)
    drawn(page, FLOW)
    height, before = panel(page, FLOW).bounding_box(), picture(page, FLOW).get_attribute("src")
    press(page, "t", *["PageUp"] * 10)
    says(page, 2.4, 10**0.9)
    press(page, "t", *["PageUp"] * 9, "ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft")
    says(page, 2.4, 10**-0.04)
    press(
        page,
        "x",
        "Home",
        *["PageUp"] * 12,
        "ArrowRight",
        "PageUp",
        "PageDown",
        "ArrowRight",
        "ArrowDown",
    )
    says(page, -1.18, 10**-0.04)
    drawn(page, FLOW)
    assert (
        panel(page, FLOW).bounding_box() == height
        and picture(page, FLOW).get_attribute("src") != before
    )


def test_the_point_can_be_held(page):
    "Pressed, dragged, and let go: the point is under the pointer, and only while it is held."
    from ect_nb.show.flow import FlowPicture

    art = FlowPicture(
        eval(MIXTURE), {"the denoiser": lambda x, t: x, "the halving": lambda x, t: x}
    )
    art.figure.canvas.draw()
    size = art.figure.bbox.size

    def at(t, x):
        b, (u, v) = place(page, FLOW), art.left.transData.transform((t, x)) / size
        return b["x"] + u * b["width"], b["y"] + (1 - v) * b["height"]

    def stands():
        t, x = re.search(
            r"At t = ([\d.e+-]+), x = \S+ \((-?[\d.]+) at", readout(page, FLOW)
        ).groups()
        return float(t), float(x)

    near = lambda t, x: until(
        page, lambda: abs(math.log(stands()[0] / t)) < 0.05 and abs(stands()[1] - x) < 0.03, stands
    )
    picture(page, FLOW).scroll_into_view_if_needed()
    page.mouse.move(*at(10, -1))
    page.mouse.down()
    near(10, -1)
    page.mouse.move(*at(3, 0.5), steps=5)
    page.mouse.move(*at(0.5, 1.2), steps=5)
    near(0.5, 1.2)
    says(
        page,
        float(slider(page, "x").get_attribute("aria-valuetext")),
        10 ** (round(50 * math.log10(stands()[0])) / 50),
    )
    page.mouse.up()
    page.mouse.move(*at(20, -2))
    page.wait_for_timeout(300)
    near(0.5, 1.2)
    b = place(page, FLOW)  # right of the paths there is no t to be had
    page.mouse.click(b["x"] + 0.9 * b["width"], at(1, -0.5)[1])
    near(0.5, -0.5)
    assert not alert(page, FLOW).count()


def test_everything_has_a_name(page):
    "Each slider and button, of each panel, has the name and the value that are seen beside it."
    for i in PANELS:
        for handle in panel(page, i).get_by_role("slider").all():
            seen = lambda part: handle.evaluate(
                f"e => e.closest('.widget-slider').querySelector('{part}').textContent.trim()"
            )
            assert handle.get_attribute("aria-label") == seen(".widget-label") != "", i
            until(
                page,
                lambda: handle.get_attribute("aria-valuetext") == seen(".widget-readout"),
                lambda: handle.get_attribute("aria-valuetext"),
            )
        for b in panel(page, i).get_by_role("button").all():
            assert b.evaluate("e => e.innerText || e.ariaLabel || e.title").strip(), i
        for menu in panel(page, i).get_by_role("combobox").all():
            assert menu.evaluate("e => e.labels[0]?.textContent").strip(), i


def test_flow_error(page):
    "A model that raises is reported in the panel, which lives on."
    press(page, "t", "End")
    until(page, lambda: alert(page, FLOW).count(), lambda: "no alert")
    assert "knows nothing below t = 0.02" in alert(page, FLOW).inner_text()
    panel(page, FLOW).screenshot(path=PICTURES / "flow-error.png")
    assert panel(page, FLOW).locator(".ect-before img").count() == 1 and "before" in readout(
        page, FLOW
    )
    press(page, "x", "Home")
    press(page, "t", *["PageDown"] * 5)
    says(page, -2.4, 10**-1.5)
    assert not panel(page, FLOW).locator(".ect-before").count()
    assert not alert(page, FLOW).count()


def test_buttons(page):
    "Start, a cell run meanwhile, pause, single steps, on again, stop, reset."
    from playwright.sync_api import expect

    enabled = lambda: set(
        panel(page, TUNING).get_by_role("button", disabled=False).all_inner_texts()
    )
    assert seen(page) == 0 and enabled() == {"Start", "Step"}
    untuned = run_cell(page, STATE)
    assert untuned[:2] == ["0", "True"]
    button(page, "Start").click()
    rises(page, 0)
    images, fresh, weights = run_cell(page, STATE)[:3]  # answered between two steps
    assert int(images) > 0 and fresh == "False" and weights != untuned[2]
    rises(page, int(images))
    until(
        page,
        lambda: re.search(
            r"after (?!0 of)[\d,]+ of 320,000 pictures", picture(page, TUNING).get_attribute("alt")
        ),
        lambda: picture(page, TUNING).get_attribute("alt"),
    )
    drawn(page, TUNING)
    panel(page, TUNING).screenshot(path=PICTURES / "tuning-running.png")
    n = pause(page)
    assert enabled() == {"Start", "Step", "Stop", "Reset"}
    for key in ("click", "Enter", "Space"):  # exactly one batch more each time: the run did rest
        button(page, "Step").click() if key == "click" else button(page, "Step").press(key)
        rises(page, n)
        assert seen(page) == (n := n + BATCH)
        until(
            page,
            lambda: f"after {n:,} of" in picture(page, TUNING).get_attribute("alt"),
            lambda: picture(page, TUNING).get_attribute("alt"),
        )
    button(page, "Start").click()
    rises(page, n)
    button(page, "Stop").click()
    expect(panel(page, TUNING)).to_contain_text("stopped")
    until(page, lambda: enabled() == {"Reset"}, enabled)
    kept, again = run_cell(page, STATE), run_cell(page, STATE)
    assert (
        kept == again
        and int(kept[0]) == seen(page) > n
        and kept[1] == "False"
        and kept[2] != untuned[2]
    )
    button(page, "Reset").click()
    until(
        page,
        lambda: seen(page) == 0 and enabled() == {"Start", "Step"},
        lambda: (readout(page, TUNING), enabled()),
    )
    assert run_cell(page, STATE) == untuned
    drawn(page, TUNING)


def test_tuning_error(page):
    "Training that fails is reported in the panel; after Reset, and a repair, it runs again."
    button(page, "Start").click()
    rises(page, 0)
    pause(page)
    assert run_cell(page, BREAK) == ["True"]
    button(page, "Start").click()
    until(page, lambda: alert(page, TUNING).count(), lambda: "no alert")
    assert "the pictures are gone" in alert(page, TUNING).inner_text()
    panel(page, TUNING).screenshot(path=PICTURES / "tuning-error.png")
    button(page, "Reset").click()
    until(
        page,
        lambda: seen(page) == 0 and not alert(page, TUNING).count(),
        lambda: readout(page, TUNING),
    )
    assert run_cell(page, BREAK) == ["False"]
    button(page, "Start").click()
    rises(page, 0)
    pause(page)
    assert not alert(page, TUNING).count()


def choose(page, i, name, nth=0):
    panel(page, i).locator("select").nth(nth).select_option(label=name)


def seen_setting(page, s, side=0, of=EXPLORER):
    """Wait until the explorer shows the `Setting` s on the left (0) or as Heun's (1), in words and
    as a picture that says so."""
    until(
        page,
        lambda: say(s) in readout(page, of),
        lambda: f"{readout(page, of)!r} where {say(s)!r} is right",
    )
    grid = panel(page, of).get_by_role("img").nth(side)
    until(
        page, lambda: grid.get_attribute("alt").endswith(say(s)), lambda: grid.get_attribute("alt")
    )


def test_explorer(page):
    """Every slider by keyboard from end to end, Play, a point rested on and clicked: the records'
    own numbers, and nothing jumps."""
    atlas = Atlas.load()
    run = tuned(atlas)[0]
    walk, kimgs = walk_of(atlas, run), budgets(run)
    nfes = sorted({n for _, n in run.points})
    cell(page, EXPLORER).scroll_into_view_if_needed()
    place = lambda: {k: panel(page, EXPLORER).bounding_box()[k] for k in ("width", "height")}
    panel(page, EXPLORER).locator(".main-svg").first.wait_for()
    assert_curves(page, run)
    before = place()
    press(page, "kimg", "Home", of=EXPLORER)
    press(page, "evaluations", "Home", of=EXPLORER)
    seen_setting(page, setting(run, kimgs[0], nfes[0]))
    for k in kimgs[1:]:
        press(page, "kimg", "ArrowRight", of=EXPLORER)
        seen_setting(page, setting(run, k, nfes[0]))
    for n in nfes[1:]:
        press(page, "evaluations", "ArrowUp", of=EXPLORER)
        seen_setting(page, setting(run, kimgs[-1], n))
    steps = curve(walk, budgets(walk)[0])
    for key, s in (("Home", steps[0]), ("End", steps[-1]), ("ArrowLeft", steps[-2])):
        press(page, "Heun's", key, of=EXPLORER)
        seen_setting(page, s, 1)
    play = lambda name: panel(page, EXPLORER).get_by_role("button", name=name, exact=True)
    press(page, "kimg", "End", "ArrowLeft", "ArrowLeft", "ArrowLeft", of=EXPLORER)
    seen_setting(page, setting(run, kimgs[-4], nfes[-1]))
    play("Play").click()
    seen_setting(page, setting(run, kimgs[-3], nfes[-1]))  # on from where the slider stands
    play("Pause").click()
    play("Play").wait_for()
    page.wait_for_timeout(1200)
    assert slider(page, "kimg", EXPLORER).get_attribute("aria-valuetext") in [
        f"{k:g}" for k in kimgs[-3:-1]
    ]  # and stays
    play("Play").click()
    seen_setting(page, setting(run, kimgs[-1], nfes[-1]))
    play("Play").wait_for()
    grid = panel(page, EXPLORER).get_by_role("img").first
    for k in kimgs[2:]:  # also where budgets lie near one another
        for n in nfes[1:3]:
            hover(page, run, k, n)
            until(
                page,
                lambda: grid.get_attribute("alt").endswith(say(setting(run, k, n))),
                lambda: (k, n, grid.get_attribute("alt")),
            )
    hover(page, run, kimgs[-1], nfes[0])
    until(
        page,
        lambda: grid.get_attribute("alt").endswith(say(setting(run, kimgs[-1], nfes[0]))),
        lambda: grid.get_attribute("alt"),
    )
    panel(page, EXPLORER).screenshot(path=PICTURES / "explorer-hover.png")
    page.mouse.down()
    page.mouse.up()
    seen_setting(page, setting(run, kimgs[-1], nfes[0]))
    page.mouse.move(5, 5)
    for other in (*atlas.family(run)[1:], *rivals(atlas, run)[0], run):
        choose(page, EXPLORER, other.name)
        seen_setting(page, setting(other, kimgs[-1], nfes[0]))
        until(
            page,
            lambda: (
                ranging(over_seeds(atlas, other, kimgs[-1], nfes[0])) in readout(page, EXPLORER)
            ),
            lambda: readout(page, EXPLORER),
        )
        if other.facts["init"] == "scratch":
            panel(page, EXPLORER).screenshot(path=PICTURES / "explorer-scratch.png")
    assert place() == before and not alert(page, EXPLORER).count()


def assert_curves(page, run, of=EXPLORER):
    """Wait until the curves of a run are drawn, which they are where one looks: a line with all its
    points for each budget."""
    cell(page, of).locator(".ect-readout").last.scroll_into_view_if_needed()
    lines = lambda: [
        t.locator("path.point").count()
        for t in panel(page, of).locator(".scatterlayer .trace").all()
    ]
    wanted = [len(curve(run, k)) for k in budgets(run)]
    until(page, lambda: lines()[2 : 2 + len(wanted)] == wanted, lines)


def hover(page, run, kimg, nfe):
    """Rest the pointer on the point of a curve: found as plotly draws it, by its trace and its
    place along it."""
    trace = panel(page, EXPLORER).locator(".scatterlayer .trace").nth(2 + budgets(run).index(kimg))
    box = (
        trace.locator("path.point").nth([s.nfe for s in curve(run, kimg)].index(nfe)).bounding_box()
    )
    page.mouse.move(box["x"] + box["width"] / 2 - 9, box["y"] + box["height"] / 2 + 3)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)


def test_compare(page):
    """ECT beside training from scratch, both by the first two sliders; then apart, every slider
    from end to end: the sentence has the records' numbers, and nothing jumps."""
    atlas = Atlas.load()
    run = tuned(atlas)[0]
    other = rivals(atlas, run)[0][0]
    first, last = (run.points[i] for i in (0, -1))
    cell(page, COMPARE).scroll_into_view_if_needed()
    says = lambda a, b: until(
        page,
        lambda: readout(page, COMPARE).startswith(f"{say(a)}. {say(b)}."),
        lambda: f"{readout(page, COMPARE)!r} where {say(a)}. {say(b)} is right",
    )
    place = lambda: {k: panel(page, COMPARE).bounding_box()[k] for k in ("width", "height")}
    before = place()
    for key, at in (("Home", first), ("End", last)):
        for name in ("kimg", "evaluations"):
            press(page, name, key, of=COMPARE)
        says(setting(run, *at), setting(other, *at))
        assert f"The first has {ranging(over_seeds(atlas, run, *at))}" in readout(page, COMPARE)
    assert place() == before
    panel(page, COMPARE).get_by_role("checkbox").click()
    until(
        page,
        lambda: not panel(page, COMPARE).locator(".widget-slider [disabled]").count(),
        lambda: "sliders that do not move",
    )
    for name in ("kimg", "evaluations"):
        press(page, name, "Home", of=COMPARE, nth=1)
    says(setting(run, *last), setting(other, *first))
    for name, key in (("kimg", "ArrowRight"), ("evaluations", "ArrowUp")):
        press(page, name, key, of=COMPARE, nth=1)
    kimgs, nfes = (sorted({p[i] for p in other.points}) for i in (0, 1))
    says(setting(run, *last), setting(other, kimgs[1], nfes[1]))
    choose(page, COMPARE, run.name, 1)
    says(setting(run, *last), setting(run, kimgs[1], nfes[1]))
    choose(page, COMPARE, other.name, 1)
    box = panel(page, COMPARE).get_by_role("checkbox")
    box.click()
    says(setting(run, *last), setting(other, *last))
    walk = walk_of(atlas, run)  # has no such budget: the box must not say so
    choose(page, COMPARE, walk.name, 1)
    says(setting(run, *last), setting(walk, *walk.points[-1]))
    until(
        page,
        lambda: not box.is_checked() and "unticked" in readout(page, COMPARE),
        lambda: (box.is_checked(), readout(page, COMPARE)),
    )
    choose(page, COMPARE, other.name, 1)
    box.click()
    says(setting(run, *last), setting(other, *last))
    assert (
        panel(page, COMPARE).get_by_role("img").count() == 3
        and not alert(page, COMPARE).count()
        and place() == before
        and box.is_checked()
    )


def test_live(page):
    """Both sliders by keyboard, the other model; a list that falls not is refused, a long one waits
    for the button and can be stopped."""
    cell(page, LIVE).scroll_into_view_if_needed()
    press(page, "level 2", "Home", of=LIVE)
    until(
        page,
        lambda: "after 2 of 2 evaluations, at 80, 0.1;" in readout(page, LIVE),
        lambda: readout(page, LIVE),
    )
    levels = panel(page, LIVE).locator("input[type=text]")
    for bad in ("1, 2", "80; 2,5"):
        levels.fill(bad)
        levels.press("Enter")
        until(
            page,
            lambda: alert(page, LIVE).count() and bad in alert(page, LIVE).inner_text(),
            lambda: "no alert",
        )
        assert (
            "before" in readout(page, LIVE)
            and panel(page, LIVE).locator(".ect-before img").count() == 1
        )
    levels.fill("80, 8, 2")
    levels.press("Enter")
    until(
        page,
        lambda: "press Sample" in readout(page, LIVE) and not alert(page, LIVE).count(),
        lambda: readout(page, LIVE),
    )
    panel(page, LIVE).get_by_role("button", name="Sample", exact=True).click()
    until(page, lambda: "after 3 of 3" in readout(page, LIVE), lambda: readout(page, LIVE))
    drawn(page, LIVE)
    press(page, "noise", "End", of=LIVE)
    press(page, "level 2", "End", of=LIVE)
    until(
        page,
        lambda: (
            "untrained: 16 pictures after 2 of 2 evaluations, at 80, 63.1;" in readout(page, LIVE)
        ),
        lambda: readout(page, LIVE),
    )
    shown = picture(page, LIVE).get_attribute("src")
    press(page, "noise", "Home", of=LIVE)
    until(
        page,
        lambda: picture(page, LIVE).get_attribute("src") != shown,
        lambda: "the picture of the other noise",
    )
    choose(page, LIVE, "blank")
    until(
        page,
        lambda: readout(page, LIVE).startswith("blank: 16 pictures after 2 of 2"),
        lambda: readout(page, LIVE),
    )
    choose(page, LIVE, "untrained")
    levels.fill(", ".join(str(80 - k / 10) for k in range(400)))
    levels.press("Enter")
    until(
        page,
        lambda: "400 evaluations: press Sample" in readout(page, LIVE),
        lambda: readout(page, LIVE),
    )
    panel(page, LIVE).get_by_role("button", name="Sample", exact=True).click()
    until(page, lambda: " of 400" in readout(page, LIVE), lambda: readout(page, LIVE))
    panel(page, LIVE).get_by_role("button", name="Stop", exact=True).click()
    until(
        page,
        lambda: panel(page, LIVE).get_by_role("button", name="Stop", exact=True).is_disabled(),
        lambda: "a run that goes on",
    )
    assert (
        0 < int(re.search(r"after (\d+) of 400", readout(page, LIVE))[1]) < 400
        and not alert(page, LIVE).count()
    )
    levels.fill("80, 2.5")
    levels.press("Enter")
    until(page, lambda: "after 2 of 2" in readout(page, LIVE), lambda: readout(page, LIVE))
    second = (
        panel(page, LIVE)
        .locator(".widget-slider")
        .filter(has=page.get_by_text("level 2", exact=True))
        .locator(".widget-readout")
    )
    until(
        page, lambda: second.inner_text() in ("2.5", "2.51"), second.inner_text
    )  # the slider goes along
    page.wait_for_timeout(500)
    assert levels.input_value() == "80, 2.5"  # and leaves what was typed


def grow(folder, run, points):
    """Lay the records and strips of a recorded `run` into `folder`, as a training and its survey
    would."""
    from ect_nb.measure.atlas import strip_file
    from ect_nb.show.pictures import sheet_png
    from ect_nb.training.runs import RunFolder

    mine = RunFolder(folder)
    for p in points:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        strip = np.concatenate(list(run.pictures(*p)), axis=1)
        strip_file(mine, *p).write_bytes(sheet_png(strip))
        mine.record(**run.record(*p) | dict(run=folder.name, init="mine"))


def test_my_run_grows_under_the_eyes(page):
    """From no folder to a loss, to a first setting, to all of them, while `every 1 s` is ticked;
    the reader stays where she stood, and her sliders reach what is new."""
    from dataclasses import replace

    run = tuned(Atlas.load())[0]
    kimgs, nfes = budgets(run), sorted({n for _, n in run.points})
    mine = lambda *p: replace(setting(run, *p), run="growing (this run)")
    cell(page, MINE).scroll_into_view_if_needed()
    assert (
        "no folder growing yet" in readout(page, MINE)
        and "no measurement" in alert(page, MINE).inner_text()
    )
    panel(page, MINE).get_by_role("checkbox").click()
    (page.folder / "growing").mkdir()
    (page.folder / "growing" / "metrics.jsonl").write_text(
        '{"run": "growing", "metric": "loss", "value": 3.0, "kimg": 0.5}\n'
    )
    until(
        page,
        lambda: "newest loss is 3, after 0.5 kimg" in readout(page, MINE),
        lambda: readout(page, MINE),
    )
    grow(page.folder / "growing", run, [(kimgs[0], nfes[0])])
    seen_setting(page, mine(kimgs[0], nfes[0]), of=MINE)
    assert not alert(page, MINE).count()
    height = panel(page, MINE).bounding_box()["height"]
    grow(page.folder / "growing", run, [p for p in run.points if p != (kimgs[0], nfes[0])])
    first = panel(page, MINE).locator(".ect-readout").first
    until(
        page, lambda: f"{len(run.points)} measured settings" in first.inner_text(), first.inner_text
    )
    seen_setting(page, mine(kimgs[0], nfes[0]), of=MINE)
    for k in kimgs[1:]:
        press(page, "kimg", "ArrowRight", of=MINE)
        seen_setting(page, mine(k, nfes[0]), of=MINE)
    for n in nfes[1:]:
        press(page, "evaluations", "ArrowUp", of=MINE)
        seen_setting(page, mine(kimgs[-1], n), of=MINE)
    panel(page, MINE).get_by_role("checkbox").click()
    choose(page, MINE, run.name)
    seen_setting(page, setting(run, kimgs[-1], nfes[-1]), of=MINE)
    choose(page, MINE, "growing (this run)")
    seen_setting(page, mine(kimgs[-1], nfes[-1]), of=MINE)
    panel(page, MINE).get_by_role("button", name="Refresh", exact=True).click()
    assert panel(page, MINE).bounding_box()["height"] == height and not alert(page, MINE).count()


def test_planner(page):
    """Typed hours and a typed speed, another device, more evaluations: the lines are the plan's,
    and hours stay as they are typed."""
    from ect_nb.show.planner import devices, own_speed, plan, plan_words, speed_of

    atlas = Atlas.load()
    cell(page, PLANNER).scroll_into_view_if_needed()
    field = lambda name: (
        panel(page, PLANNER)
        .locator(".widget-text")
        .filter(has=page.get_by_text(name, exact=True))
        .locator("input")
    )
    said = lambda: " ".join(readout(page, PLANNER).split())

    def type_in(name, text):
        field(name).fill(text)
        field(name).press("Enter")

    press(page, "evaluations", "Home", of=PLANNER)
    for device, hours in (("A100", "0.33"), ("Colab G4", "8"), ("A100, as others logged", "100")):
        panel(page, PLANNER).locator("select").nth(1).select_option(index=devices().index(device))
        type_in("hours", hours)
        want = " ".join(
            plan_words(plan(atlas, speed_of(device, "cifar10"), float(hours), 1)).split()
        )
        until(page, lambda: said() == want, said)
        assert field("hours").input_value() == hours
    panel(page, PLANNER).locator("select").nth(1).select_option(index=devices().index("RTX 4090"))
    until(page, lambda: "nobody has timed RTX 4090" in said(), said)
    type_in("your speed", "700")
    want = " ".join(plan_words(plan(atlas, own_speed("RTX 4090", "cifar10", 700), 100, 1)).split())
    until(page, lambda: said() == want, said)
    press(page, "evaluations", "ArrowRight", of=PLANNER)
    drawn(page, PLANNER)


@pytest.mark.parametrize("width", [1280, 1000, 700])
def test_explorer_layout(page, width):
    """Nothing is cut or sticks out in a window 1280 pixels wide, one of 1000, and where the output
    is 700 wide."""
    page.set_viewport_size(dict(width=width if width > 700 else 1280, height=1400))
    if width == 700:
        page.set_viewport_size(
            dict(
                width=int(1280 - output(page, EXPLORER).bounding_box()["width"] + 700), height=1400
            )
        )
    for i, name in (
        (EXPLORER, "explorer"),
        (COMPARE, "compare"),
        (LIVE, "live"),
        (PLANNER, "planner"),
        (MINE, "my-run"),
    ):
        cell(page, i).scroll_into_view_if_needed()
        page.wait_for_timeout(300)
        panel(page, i).screenshot(path=PICTURES / f"{name}-{width}.png")
        assert panel(page, i).evaluate(CUT) == []


@pytest.mark.parametrize("width", [1280, 700])
def test_layout(page, width):
    """Nothing is cut or sticks out, in a window 1280 pixels wide and where the output is 700 wide
    as in Colab."""
    page.set_viewport_size(dict(width=1280, height=1400))
    if width == 700:
        page.set_viewport_size(
            dict(width=int(1280 - output(page, FLOW).bounding_box()["width"] + 700), height=1400)
        )
        until(
            page,
            lambda: abs(output(page, FLOW).bounding_box()["width"] - 700) < 2,
            output(page, FLOW).bounding_box,
        )
    for i, name in ((FLOW, "flow"), (TUNING, "tuning")):
        drawn(page, i)
        panel(page, i).screenshot(path=PICTURES / f"{name}-{width}.png")
        assert panel(page, i).evaluate(CUT) == []
    page.screenshot(path=PICTURES / f"page-{width}.png")


CUT = """panel => {
    const edge = panel.closest('.jp-OutputArea-output').getBoundingClientRect().right + 1;
    const hides = e => getComputedStyle(e).overflowX != 'visible';
    const wide = e => e.scrollWidth > e.clientWidth + 1 && hides(e);
    const bad = e => e.getBoundingClientRect().right > edge || wide(e);
    return [...panel.querySelectorAll('*')]
        .filter(e => !e.closest('.noUi-target, .js-plotly-plot') && bad(e))
        .map(e => e.className + ': ' + e.textContent);
}"""

# Again, and later: a cell run twice, the page loaded anew, the kernel restarted, the notebook
# opened tomorrow


def alive(page):
    "Every panel answers."
    atlas = Atlas.load()
    run = tuned(atlas)[0]
    press(page, "t", "Home")
    press(page, "x", "Home")
    says(page, -2.4, 80)
    press(page, "x", "End")
    says(page, 2.4, 80)
    for of in (EXPLORER, MINE):
        assert_curves(page, run, of)
        press(page, "kimg", "Home", of=of)
        press(page, "evaluations", "Home", of=of)
        until(
            page,
            lambda: f"after {budgets(run)[0]:g} kimg, 1 evaluation:" in readout(page, of),
            lambda: readout(page, of),
        )
    for of, name in ((COMPARE, "kimg"), (LIVE, "noise"), (PLANNER, "evaluations")):
        press(page, name, "Home", of=of)
        before = readout(page, of)
        press(page, name, "End", of=of)
        until(page, lambda: readout(page, of) != before, lambda: before)
    n = seen(page)
    button(page, "Step").click()
    rises(page, n)
    assert not page.locator(".ect-still:visible").count()  # no panel and its picture at once


def save(page):
    "Save with Ctrl+S, and wait until the file holds the panels of the page."
    shown = {
        v
        for i in PANELS
        for v in re.findall(r"ect-live-(\w+)", panel(page, i).first.get_attribute("class"))
    }
    page.keyboard.press("Control+s")
    until(
        page,
        lambda: all(v in (page.folder / "panels.ipynb").read_text() for v in shown),
        lambda: "a file without these panels",
    )


def ask(page, path, method="GET"):
    "What JupyterLab's server answers."
    url, token = page.lab.split("/lab")[0], page.lab.split("token=")[1]
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/api/{path}?token={token}", method=method), timeout=WAIT
    ) as r:
        return r.read()


def test_a_cell_run_again(page):
    """The cell of each panel a second time: a training is paused and kept, the new panel lives and
    says so."""
    grow(page.folder / "growing", tuned(Atlas.load())[0], tuned(Atlas.load())[0].points)
    button(page, "Start").click()
    rises(page, 0)
    run_cell(page, TUNING)
    until(page, lambda: seen(page) == 0, lambda: readout(page, TUNING))
    first, again = run_cell(page, STATE), run_cell(page, STATE)
    kept = int(first[4])
    assert (
        first == again
        and first[:2] == ["0", "True"]
        and first[3:] == ["False", str(kept), "False"]
        and kept > 0
    )
    assert f"paused at {kept:,} of 320,000 pictures" in readout(page, TUNING)
    for i in (FLOW, EXPLORER, COMPARE, LIVE, PLANNER, MINE):
        run_cell(page, i)
    alive(page)


def came_back(page, i, within=40):
    "Whether panel `i` shows its words within so many seconds."
    from playwright.sync_api import TimeoutError

    try:
        panel(page, i).locator(".ect-readout").first.wait_for(timeout=1000 * within)
    except TimeoutError:
        return False
    return True


def test_the_page_loaded_anew_while_it_trains(page):
    """The kernel lives on: every panel is there again with all it showed, and the training can be
    stopped."""
    button(page, "Start").click()
    rises(page, BATCH)
    save(page)
    for _ in range(4):  # JupyterLab asks a busy kernel for four seconds and then gives up
        heard = len(page.heard)
        page.reload()
        if all(came_back(page, i) for i in PANELS):
            break
        page.heard[heard:] = [said for said in page.heard[heard:] if said[0] != "error"]
    for i in PANELS:
        panel(page, i).locator(".ect-readout").first.wait_for()
    rises(page, seen(page))
    n = pause(page)
    assert run_cell(page, STATE)[0] == str(n)
    alive(page)


# said after two seconds, on a crowded machine; `alive` has seen that all the same every slider has
# its name
SLOW = "[anywidget] Failed to initialize model."


def test_page_is_content(page):
    "The page reported no error all the while, and asked no other machine for anything."
    assert [text for kind, text in page.heard if kind == "error" and SLOW not in text] == []
    stays_home(page)


def stays_home(page):
    home = page.lab.split("/lab")[0]
    assert [
        url
        for kind, url in page.heard
        if kind == "request" and not url.startswith((home, "data:", "blob:"))
    ] == []


def test_restart_and_the_notebook_opened_later(page):
    """After a restart nothing pretends to work; opened with a fresh kernel each panel is its
    picture, with its words; its cell run, it lives."""
    save(page)
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.locator("[data-command='kernelmenu:restart']").click()
    page.locator(".jp-Dialog .jp-mod-accept").click()
    page.locator(".jupyter-widgets-disconnected").first.wait_for()
    cell(page, FLOW).scroll_into_view_if_needed()
    until(page, lambda: "the path ends at" in readout(page, FLOW), lambda: readout(page, FLOW))
    before = readout(page, FLOW)
    slider(page, "x").press("ArrowLeft")
    page.wait_for_timeout(500)
    assert readout(page, FLOW) == before
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
    page.goto("about:blank")
    for s in json.loads(ask(page, "sessions")):
        ask(page, f"sessions/{s['id']}", "DELETE")
    page.goto(page.lab)
    for i in PANELS:
        still = cell(page, i).locator(".ect-still")
        still.get_by_role("img").wait_for()
        assert len(still.get_by_role("img").get_attribute("alt")) > 20
    page.screenshot(path=PICTURES / "opened-later.png")
    assert not page.get_by_text("Error displaying widget").locator("visible=true").count()
    run_cell(page, FLOW)
    press(page, "x", "Home")
    press(page, "t", "Home")
    says(page, -2.4, 80)
    assert (
        not cell(page, FLOW).locator(".ect-still:visible").count()
        and cell(page, TUNING).locator(".ect-still:visible").count() == 1
    )
    stays_home(page)
