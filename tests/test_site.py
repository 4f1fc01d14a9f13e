"""The site, built small and opened in a real Chromium from a server on this machine: nothing is
asked of anywhere else, panels answer without a kernel, a model draws as torch does.

Without Chromium skipped, or failed, as in test_browser. Screenshots and measured times go to
out/site/seen."""

import functools
import html
import http.server
import json
import math
import os
import pytest
import re
import sys
import threading
import torch
from ect_nb import losses
from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import heun, karras_times
from ect_nb.io import data, weights
from ect_nb.measure.atlas import Atlas
from ect_nb.sampling import sample, told
from ect_nb.schedules import design, plan
from ect_nb.show.explorer import explorer_words
from ect_nb.show.flow import flow, flow_panel, flow_words
from ect_nb.show.living import living_source
from ect_nb.show.tradeoff import curve, over_seeds, setting, walk_of
from html.parser import HTMLParser
from pathlib import Path
from test_browser import chromium

pytestmark = pytest.mark.filterwarnings("ignore:.*Check CHANGES for Sphinx")
ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "out" / "site" / "seen"
KEPT = ROOT / "out" / "site" / "npm"
SMALL = ["00_sixty_seconds", "explore", "sampling", "diffusion"]
WAIT = 120_000  # milliseconds at most for any one thing
sys.path.insert(0, str(ROOT / "tools"))
website = pytest.importorskip("website")
pytest.importorskip("myst_nb", reason="the extra `site` is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "The folder of a small site: one lesson, one page of the workshop, two modules."
    into = tmp_path_factory.mktemp("site")
    ort = website.fetched(website.ORT, "dist", website.ORT_FILES, KEPT)
    return website.build(into, SMALL, ort)


@pytest.fixture(scope="module")
def base(folder):
    "The address of a server for it, as `python -m http.server` is one."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    how = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), how) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    from playwright.sync_api import sync_playwright

    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, base):
    """Opens a page of the site; at the end nothing may have been asked of anywhere else, nothing
    have been missing, and no script have failed."""
    contexts, heard = [], []

    def visit(name, width=1280, **how):
        context = browser.new_context(viewport=dict(width=width, height=900), **how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        ours = (base, "data:", "blob:", "about:srcdoc")
        page.on("request", lambda r: r.url.startswith(ours) or heard.append(r.url))
        page.on("response", lambda r: r.status < 400 or heard.append(f"{r.status} {r.url}"))
        page.on("pageerror", lambda e: heard.append(f"error {e}"))
        page.goto(base + name)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [h for h in heard if not h.endswith("/favicon.ico")] == []


def until(page, true):
    page.wait_for_function(true)


# The folder


class Links(HTMLParser):
    "What a page loads (`loads`) and where it leads (`leads`)."

    def __init__(self):
        super().__init__()
        self.loads, self.leads = [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "a" and found.get("href"):
            self.leads.append(found["href"])
        elif tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.loads.append(found["src"])
        elif tag == "link" and found.get("rel") not in ("canonical",) and found.get("href"):
            self.loads.append(found["href"])


def links(path):
    found = Links()
    found.feed(path.read_text(encoding="utf-8"))
    return found


def test_pages_load_from_the_folder_alone_and_lead_somewhere(folder):
    pages = [p for p in folder.rglob("*.html") if "_static" not in p.parts]
    assert {"index.html", "minute.html", "explorer.html", "overview.html", "search.html"} <= {
        p.name for p in pages
    }
    for path in pages:
        found = links(path)
        assert not [u for u in found.loads if re.match(r"(\w+:)?//", u)], path
        inside = [u for u in found.loads + found.leads if not re.match(r"\w+:|#|(\w+:)?//", u)]
        gone = [
            u
            for u in inside
            if not (path.parent / u.split("#")[0].split("?")[0]).resolve().exists()
        ]
        left_out = re.compile(
            r"\.ipynb|^\.\./(lessons|workshop|inside)/|^(lessons|workshop|inside)/"
        )
        assert not [u for u in gone if not left_out.search(u)], path


def test_a_page_has_its_badge_its_pictures_and_their_words(folder):
    found = (folder / "lessons" / "00_sixty_seconds.html").read_text(encoding="utf-8")
    link = "colab.research.google.com/github/ect-nb/ect_nb/blob/main/nbs/lessons/00_sixty_seconds"
    assert link in found and "colab-badge.svg" not in found
    pictures = re.findall(r'<img loading="lazy" src="([^"]+)" alt="([^"]*)"', found)
    assert len(pictures) > 5 and all(len(words) > 20 for _, words in pictures)
    assert "Finds the kit, or fetches it" not in found  # a cell for the machine


def test_the_reference_is_made_of_docstrings(folder):
    found = (folder / "api" / "ect_nb.sampling.html").read_text(encoding="utf-8")
    assert 'id="ect_nb.sampling.sample"' in found and "Song et al. 2023, Alg. 1" in found
    assert "[source]" in found


def test_the_pages_of_a_house_stand_in_the_order_of_next():
    order = website.chain("lessons")
    assert order[:3] == ["00_sixty_seconds", "01_noise", "02_diffusion"]
    assert order[-1] == "symbols" and len(order) == len(set(order)) == 10


@pytest.mark.parametrize(
    "link, page, leads",
    [
        ("[a](../../bench/study.md)", "nbs/lessons/01_noise.ipynb", "[a](../study.md)"),
        ("[a](../LICENSE)", "nbs/index.ipynb", "[a](REPO/LICENSE)"),
        ("[a](../index.ipynb#x)", "nbs/inside/lab.ipynb", "[a](../overview.ipynb#x)"),
        ("[a](#Recap)", "nbs/inside/lab.ipynb", "[a](#Recap)"),
        ("![a](../images/lab.png)", "nbs/inside/lab.ipynb", "![a](../_static/images/lab.png)"),
    ],
)
def test_links_lead_on_the_site_or_to_the_repository(link, page, leads):
    assert website.outside(link, ROOT / page, "REPO") == leads


def test_names_in_docstrings_are_code_and_stars_are_stars():
    lines = ["What `Setting`s of `a_b*c` say, x* of `two", "words`."]
    website.docstring(None, "function", "f", None, None, lines)
    assert lines == ["What ``Setting``\\ s of ``a_b*c`` say, x\\* of ``two words``."]


def test_without_npm_the_site_says_what_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(website.shutil, "which", lambda name: None)
    assert website.fetched("nothing@1", "dist", ["a.js"], tmp_path / "npm") is None
    (tmp_path / "_static").mkdir()
    website.model_page(tmp_path, None)
    assert "was not at hand" in (tmp_path / "model.md").read_text(encoding="utf-8")
    assert "no model in the page" in capsys.readouterr().out


# The pages


def test_the_front_page_opens_with_the_lab(visit):
    "Alive, as light or dark as the page, from at most 3 MB; times are written down, not judged."
    page = visit("index.html", color_scheme="light")
    lab = page.frame_locator("iframe.lab")
    lab.locator('[data-part="learn"]').wait_for()
    seen = page.evaluate(
        "[performance.getEntriesByName('first-contentful-paint')[0].startTime,"
        " performance.getEntriesByType('resource').reduce((n, e) => n + e.transferSize, 0)]"
    )
    facts = dict(first_paint_ms=seen[0], bytes=seen[1], load=os.getloadavg()[0])
    (PICTURES / "front.json").write_text(json.dumps(facts, indent=1))
    assert seen[1] < 3e6
    high = page.locator("iframe.lab").bounding_box()["height"]
    inner = page.frames[1].evaluate("document.querySelector('main').scrollHeight")
    assert abs(high - inner) <= 2
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    lab.locator('.ect-lab[data-theme="dark"]').wait_for()
    lab.get_by_role("button", name="Learn", exact=True).click()
    for _ in range(WAIT // 100):  # the Lab forbids eval, and with it wait_for_function
        if page.frames[1].evaluate("lab.news?.done.learn > 0"):
            return
        page.wait_for_timeout(100)
    pytest.fail("the Lab in the front page does not learn")


NAMES = ["index", "model", "explorer", "lessons/00_sixty_seconds"]
NARROW = ["minute", "api/ect_nb.sampling"]


@pytest.mark.parametrize("width", [1280, 760, 360])
def test_pages_are_as_wide_as_the_screen(visit, width):
    for name in NAMES + NARROW * (width == 360):
        page = visit(f"{name}.html", width)
        page.wait_for_timeout(400)
        over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        page.screenshot(path=PICTURES / f"{name.replace('/', '_')}_{width}.png")
        assert over <= 0, name
        page.context.close()


def test_search_finds(visit):
    page = visit("search.html?q=karras_times")
    page.locator("#search-results li").first.wait_for()
    assert "ect_nb.diffusion" in page.locator("#search-results").inner_text()


def test_equations_are_set_without_a_network(visit):
    page = visit("minute.html")
    page.locator("mjx-container").first.wait_for()
    assert page.locator("mjx-container").count() >= 4


# Panels without a kernel

BUMPS = GaussianMixture([[-1.1], [0.1], [1.2]], [0.12, 0.05, 0.08], [0.40, 0.25, 0.35])


def alive(visit, content):
    "A page of the site in which a living panel stands alone."
    page = visit("minute.html")
    page.set_content(content)
    page.wait_for_function("window.panel")
    return page


def unwrapped(panel):
    return html.unescape(re.search(r'srcdoc="([^"]*)"', panel)[1])


def test_the_flow_without_a_kernel_is_the_flow(visit):
    "Ends and answers as the closed forms have them; the words are those of the widget."
    panel = flow_panel(BUMPS, {"ideal": BUMPS.denoise}, x=0.6, t=8.0)
    page = alive(visit, unwrapped(panel.living))
    took = []
    for index, level in ((0, 0), (60, 40), (121, 100), (190, 150), (240, 190)):
        seen = page.evaluate(
            "([x, t]) => { panel.place('x', x); panel.place('t', t); panel.move();"
            " const now = panel.draw(panel.values);"
            " return {...panel.values, lands: now.lands, said: now.answers[0][1],"
            " words: now.words, took: panel.took}; }",
            [index, level],
        )
        t = seen["t"]
        point = flow(BUMPS, {"ideal": BUMPS.denoise}, seen["x"] * math.sqrt(1 + t * t), t)
        assert seen["lands"] == pytest.approx(point.lands, abs=1e-6)
        exact = BUMPS.denoise(torch.tensor([[point.x]]).double(), torch.tensor([t]).double())
        assert seen["said"] == pytest.approx(float(exact), abs=1e-6)
        assert seen["words"] == flow_words(point)
        took.append(seen["took"])
    (PICTURES / "flow.json").write_text(json.dumps(dict(ms=took, load=os.getloadavg()[0])))
    assert sorted(took)[len(took) // 2] < 200  # 50 on an idle core


def test_the_flow_is_taken_hold_of_by_key_and_pointer(visit):
    panel = flow_panel(BUMPS, {"ideal": BUMPS.denoise}, x=0.6, t=8.0)
    page = alive(visit, unwrapped(panel.living))
    words = page.locator("[role=status]").inner_text()
    page.locator("input[name=x]").press("ArrowRight")
    moved = page.locator("[role=status]").inner_text()
    assert moved != words and "0.62 at its natural size" in moved
    box = page.locator("svg").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"], steps=3)
    page.mouse.up()
    assert page.evaluate("panel.values.t") > 1 and page.evaluate("panel.values.x") > 0.8


LIVES = "02_diffusion", "03_consistency", "04_schedules", "05_weighting"
LIVES += "06_training", "07_sampling", "08_family"


def test_a_model_that_is_no_closed_form_leaves_a_picture():
    assert flow_panel(BUMPS, {"half": lambda x, t: x / 2}).living == ""


@pytest.mark.parametrize(
    "values",
    [
        dict(q=2.0, k=8.0, stages=8, kimg=32.0, P_mean=-1.1, P_std=2.0),
        dict(q=4.0, k=0.0, stages=3, kimg=100.0, P_mean=0.5, P_std=1.0),
        dict(q=1.5, k=30.0, stages=5, kimg=9.0, P_mean=-2.0, P_std=0.5),
    ],
)
def test_a_schedule_without_a_kernel_is_the_schedule(visit, values):
    page = visit("minute.html")
    rows = page.evaluate("async v => (await import('./_static/living.js')).plan(v)", values)
    for ours, theirs in zip(rows, plan(**design(**values)), strict=True):
        assert (ours["stage"], ours["images"]) == (theirs["stage"], theirs["images"])
        assert ours["share"] == pytest.approx(theirs["share"], abs=5e-4)
        for name in ("gap", "weight"):
            assert ours[name] == pytest.approx(theirs[name], rel=5e-3), name


def test_weights_and_pulls_without_a_kernel_are_those_of_the_losses(visit):
    page, g = visit("minute.html"), torch.Generator().manual_seed(0)
    t, size = (torch.rand(2, 40, generator=g, dtype=torch.float64) * 3 + 0.1).unbind()
    r = t * torch.rand(40, generator=g, dtype=torch.float64)
    found = page.evaluate(
        "async ([t, r, size]) => { const m = await import('./_static/living.js');"
        " const each = (table, f) => Object.fromEntries(Object.entries(table).map(f));"
        " return [each(m.WEIGHTS, ([k, w]) => [k, t.map((v, i) => w(v, r[i]))]),"
        " each(m.SLOPES, ([k, s]) => [k, size.map(v => s(v, .06))])]; }",
        [t.tolist(), r.tolist(), size.tolist()],
    )
    assert set(found[0]) == set(losses.WEIGHTS) and len(found[1]) == 3
    weighed, pulled = found
    for name, values in weighed.items():
        exact = losses.WEIGHTS[name](t, r) + 0 * t
        found = torch.tensor(values, dtype=torch.float64)
        assert torch.allclose(found, exact.double(), rtol=1e-9), name
    metrics = {
        "squared": losses.squared,
        "pseudo-Huber": losses.pseudo_huber,
        "adaptive, p = 1": lambda d, c: losses.adaptive(d, c, p=1.0),
    }
    for name, values in pulled.items():
        exact = losses.slope(metrics[name], size, 0.06)
        found = torch.tensor(values, dtype=torch.float64)
        assert torch.allclose(found, exact, rtol=1e-9), name


@pytest.mark.parametrize(
    "page",
    [
        "lessons/00_sixty_seconds",
        *(f"lessons/{name}" for name in LIVES),
        "inside/flow",
    ],
)
def test_a_stored_panel_answers_without_a_kernel(visit, page):
    """What stands in the notebook itself, opened again as a page: it says what the widget said, and
    when a key is pressed something else."""
    nb = json.loads((ROOT / "nbs" / f"{page}.ipynb").read_text(encoding="utf-8"))
    stored = [
        {kind: "".join(content) for kind, content in out["data"].items()}
        for cell in nb["cells"]
        for out in cell.get("outputs", [])
        if "ect-living" in "".join(out.get("data", {}).get("text/html", ""))
    ]
    assert len(stored) == 1
    content, said = stored[0]["text/html"], stored[0]["text/plain"]
    assert html.escape(living_source()) in content  # no older one
    shown = visit("minute.html")
    shown.set_content(f"<!doctype html><body>{content}</body>")
    inner = shown.frame_locator("iframe.ect-living")
    words = inner.locator("[role=status]")
    before = words.inner_text()
    assert said.endswith(before)
    inner.locator("input[type=range], select").first.press("ArrowDown")
    assert words.inner_text() != before
    shown.emulate_media(media="print")
    assert shown.locator(".ect-print img").is_visible()
    assert not shown.locator("iframe.ect-living").is_visible()
    shown.locator("body").screenshot(path=PICTURES / f"print_{page.replace('/', '_')}.png")
    shown.emulate_media(media="screen")
    shown.wait_for_timeout(200)
    shown.screenshot(path=PICTURES / f"living_{page.replace('/', '_')}.png")


def test_the_explorer_says_what_python_says(visit):
    page = visit("explorer.html")
    until(page, "window.explorer && document.querySelector('[data-part=here]').width > 100")
    for name in ("kimg", "evaluations"):
        page.locator(f"input[name={name}]").press("ArrowLeft")
    page.locator("input[name=evaluations]").press("ArrowRight")
    atlas = Atlas.load()
    name = page.evaluate("explorer.runName")
    now = page.evaluate("explorer.panel.values")
    run = atlas.runs[name]
    walk, s = walk_of(atlas, run), setting(run, now["kimg"], now["evaluations"])
    there = curve(walk, walk.points[-1][0])[-1]
    said = page.locator("#explorer [role=status]").inner_text()
    assert now["kimg"] == 16 and now["evaluations"] == 2
    assert said == explorer_words(s, there, walk, over_seeds(atlas, run, s.kimg, s.nfe))
    page.locator("#explorer select").select_option(label="fashion-scratch-seed1")
    until(page, "explorer.runName === 'fashion-scratch-seed1'")
    assert page.locator("#explorer [role=status]").inner_text().startswith("fashion-scratch-seed1")
    size = page.evaluate(
        "performance.getEntriesByType('resource').reduce((n, e) => n + e.transferSize, 0)"
    )
    assert size < 5e6


# A model in the page


def asks(page, what, *arguments):
    "What the module model.js answers to the expression `what` of m and the arguments a."
    call = f"async a => {{ const m = await import('./_static/model.js'); return [...({what})]; }}"
    return torch.tensor(page.evaluate(call, list(arguments)))


@pytest.fixture
def model(visit):
    if not (KEPT / website.ORT_FILES[0]).exists():
        pytest.skip("onnxruntime-web is not at hand: npm could not fetch it")
    return visit("model.html")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_the_dice_are_torchs(visit):
    page = visit("model.html")
    for seed in (0, 3, 20_261_127, 2**32 - 1):
        found = asks(page, "(d => [...d.normal(12544), ...d.normal(784)])(new m.Dice(a[0]))", seed)
        g = seeded(seed)
        exact = torch.cat([torch.randn(12544, generator=g), torch.randn(784, generator=g)])
        assert torch.allclose(found, exact, atol=1e-5), seed


def test_one_step_two_steps_and_the_walk_are_torchs(model):
    "From the same noise, at times of one's choice, within 1e-4."
    network = weights.load(data.find("fashion_mnist_classes_tuned.safetensors"))
    tuned = told(network)
    diffusion = told(weights.load(data.find("fashion_mnist_classes.safetensors")))
    z = torch.randn(16, 1, 28, 28, generator=seeded(3))
    noise = "new m.Dice(3).normal(12544)"
    for times in ([80.0], [80.0, 0.8], [80.0, 5.0, 0.3]):
        call = f"await m.sample(await m.model('tuned'), {noise}, a[0], new m.Dice(5))"
        exact = sample(tuned, z, times, seeded(5)).flatten()
        assert torch.allclose(asks(model, call, times), exact, atol=1e-4), times
    bags = torch.full((16,), 8)
    call = f"await m.sample(await m.model('tuned', 8), {noise}, [80], new m.Dice(5))"
    exact = sample(network, z, labels=bags).flatten()
    assert torch.allclose(asks(model, call), exact, atol=1e-4)
    call = f"await m.walk(await m.model('diffusion'), {noise}, m.karras(4))"
    exact = heun(diffusion, z, karras_times(4)).flatten()
    assert torch.allclose(asks(model, call), exact, atol=1e-4)


def test_between_two_noises_it_stays_standard_normal(visit):
    page = visit("model.html")
    two = "m.between(new m.Dice(1).normal(12544), new m.Dice(2).normal(12544), a[0])"
    ends = [torch.randn(12544, generator=seeded(s)) for s in (1, 2)]
    for share, exact in ((0, ends[0]), (1, ends[1])):
        assert torch.allclose(asks(page, two, share), exact, atol=1e-5)
    assert asks(page, two, 0.5).std() == pytest.approx(1, abs=0.03)


def test_what_python_drew_stands_there_first(model):
    "Both pictures are there before anything is pressed, and drawing them here changes nothing."
    until(model, "['jumped', 'walked'].every(n => modelPage.$(n).ariaLabel.includes('Python'))")
    pixels = "[...modelPage.$('jumped').getContext('2d').getImageData(0, 0, 117, 117).data]"
    before = torch.tensor(model.evaluate(pixels))
    model.locator("[data-part=go]").click()
    until(model, "window.modelPage.last")
    assert (torch.tensor(model.evaluate(pixels)) - before).abs().max() <= 1


def test_sixteen_garments_under_a_hand(model):
    "Drawn, a second step, another noise, nonsense said; times are written down, not judged."
    says = lambda: model.locator("[data-part=says]").inner_text()
    model.locator("[data-part=go]").click()
    until(model, "window.modelPage.last")
    model.locator("[data-part=seed]").fill("4")
    model.locator("[data-part=seed]").press("Enter")
    until(model, "modelPage.last.settings.seed === 4")
    assert "No walk from this noise" in model.locator("[data-part=walked]").get_attribute(
        "aria-label"
    )
    one = model.evaluate("modelPage.last.ms")
    assert "1 evaluation each" in says()
    model.locator("[data-part=asked]").select_option("bag")
    until(model, "modelPage.last.settings.asked === 8 && !modelPage.busy")
    model.screenshot(path=PICTURES / "model_bags.png", full_page=True)
    model.locator('[data-times="80, 0.8"]').click()
    until(model, "modelPage.last.settings.times.length === 2")
    model.locator("[data-part=share]").press("End")
    until(model, "modelPage.last.settings.share === 1 && !modelPage.busy")
    model.screenshot(path=PICTURES / "model_drawn.png", full_page=True)
    model.locator("[data-part=times]").fill("80, 90")
    model.locator("[data-part=go]").click()
    until(model, "document.querySelector('[data-part=says]').textContent.includes('falling')")
    (PICTURES / "model.json").write_text(json.dumps(dict(ms=one, load=os.getloadavg()[0])))


# Accessibility


KINDS = ["index", "model", "explorer", "_static/lab/index", "minute", "search"]
KINDS += ["lessons/00_sixty_seconds", "api/ect_nb.sampling"]


@pytest.mark.parametrize("name", KINDS)
def test_axe_has_no_serious_finding(visit, name):
    axe = website.fetched("axe-core@4", "", ["axe.min.js"], KEPT)
    if axe is None:
        pytest.skip("axe-core is not at hand: npm could not fetch it")
    page = visit(f"{name}.html", bypass_csp=True)
    page.wait_for_load_state("networkidle")
    for frame in page.frames:
        frame.evaluate((axe / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    serious = [
        (v["id"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert not serious
