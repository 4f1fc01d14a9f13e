"The panels: their numbers against the exact flow and the trainer, their pictures redrawn and drawn anew, their controls at the extremes."
import asyncio, math, re
import pytest, torch
from ect_nb import explore
from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import Precond
from ect_nb.explore import FlowPicture, Tuning, film, flow, flow_panel, show_panel, tuning_panel, tuning_words
from ect_nb.networks import UNet
from ect_nb.schedules import Stages
from ect_nb.training import Config, train

@pytest.fixture(scope="module")
def mixture(): return GaussianMixture([[-1.1], [0.1], [1.2]], [0.12, 0.05, 0.08], [0.40, 0.25, 0.35])

@pytest.fixture(scope="module")
def heaps(mixture): return {"denoiser": mixture.denoise, "half": lambda x, t: x / 2}

def tuning(kimg=0.064, noise=4, **kw):
    torch.manual_seed(0)
    model = Precond(UNet(resolution=8, channels=1, model_channels=8, channel_mult=(1,), num_blocks=1, attention=()), sigma_data=0.5)
    data, z = torch.rand(64, 1, 8, 8) * 2 - 1, torch.randn(noise, 1, 8, 8)
    return Tuning(model, data, Config(**(dict(kimg=kimg, batch=8, lr=1e-3, ema=0.5, c=0.03, stages=Stages(start=3)) | kw)), z)

def controls(panel):
    "All widgets of a panel by their description, and the texts of its HTML parts."
    found = {}
    def walk(w):
        if getattr(w, "description", ""): found[w.description] = w
        for child in getattr(w, "children", ()): walk(child)
    walk(panel)
    return found

def texts(panel): return [w.value for w in panel.children if type(w).__name__ == "HTML"]
def alert(panel): return next((t for t in texts(panel) if 'role="alert"' in t), None)
def readout(panel): return next(t for t in texts(panel) if "ect-readout" in t)
def alt(panel): return next(re.search(r'<img alt="([^"]*)"', t)[1] for t in texts(panel) if "<img" in t)

# The flow

def test_the_path_follows_the_velocity_of_the_ode(mixture):
    p = flow(mixture, {}, x=3.0, t=5.0, n=4000)
    middle = (p.levels[1:] * p.levels[:-1]).sqrt()
    slope = (p.path[1:] - p.path[:-1]) / (p.levels[1:] - p.levels[:-1])
    x = ((p.path[1:] + p.path[:-1]) / 2)[:, None]
    assert torch.allclose(slope, mixture.velocity(x, middle)[:, 0], atol=2e-3, rtol=2e-3)       # central differences on 4000 points
    assert abs(float(p.path[(p.levels - 5.0).abs().argmin()]) - 3.0) < 0.02

def test_the_posterior_is_that_of_bayes(mixture):
    p = flow(mixture, {"denoiser": mixture.denoise}, x=0.9, t=0.7)
    torch.manual_seed(0)
    x0 = mixture.sample(400_000)[:, 0].double()
    weight = torch.exp(-(0.9 - x0) ** 2 / (2 * 0.7**2))                                          # importance weights of draws from the prior
    assert abs(float((weight * x0).sum() / weight.sum()) - p.answers["denoiser"]) < 5e-3
    share = float(weight[x0 > 0.6].sum() / weight.sum())
    assert abs(float(p.posterior[p.grid > 0.6].sum() / p.posterior.sum()) - share) < 5e-3

@pytest.mark.parametrize("x, t", [(0.0, 0.0), (0.0, -1.0), (math.nan, 1.0), (math.inf, 1.0), (0.0, math.nan)])
def test_a_point_that_is_none_is_refused(mixture, x, t):
    with pytest.raises(ValueError, match="above 0"): flow(mixture, {}, x, t)

def test_data_in_the_plane_are_refused():
    with pytest.raises(ValueError, match="on a line"): FlowPicture(GaussianMixture([[0.0, 1.0]], [0.1]), {})

def test_more_models_than_can_be_told_apart_are_refused(mixture):
    FlowPicture(mixture, {str(i): mixture.denoise for i in range(4)}).draw(0.0, 1.0)
    with pytest.raises(ValueError, match="4 models apart, not 5"): FlowPicture(mixture, {str(i): mixture.denoise for i in range(5)})

def test_what_is_redrawn_is_what_a_fresh_picture_shows(mixture, heaps):
    used = FlowPicture(mixture, heaps)
    for x, t in ((0.0, 80.0), (100.0, 80.0), (-0.5, 0.01), (1.0, 1.0)): seen = used.draw(x, t)
    assert seen == FlowPicture(mixture, heaps).draw(1.0, 1.0)
    assert seen != used.draw(1.1, 1.0)

def test_the_picture_stands_where_the_numbers_are(mixture):
    "The dot's pixels, found by their colour, lie where the axes put (t, x)."
    import io
    from PIL import Image
    art = FlowPicture(mixture, {})
    pixels = torch.from_numpy(__import__("numpy").array(Image.open(io.BytesIO(art.draw(1.0, 1.0)))).astype("int16"))
    px, py = art.left.transData.transform((1.0, 1.0 / math.sqrt(2)))
    at = pixels[int(pixels.shape[0] - py) - 2:int(pixels.shape[0] - py) + 3, int(px) - 2:int(px) + 3]
    assert (at < 40).all()

def test_flow_panel_at_the_ends_of_both_sliders(mixture, heaps):
    panel = flow_panel(mixture, heaps)
    x, t = (controls(panel)[k] for k in "xt")
    for u in (x.min, x.max, 0.0):
        for level in (10**t.min, 10**t.max, 1.0):
            x.value, t.value = u, level
            assert alert(panel) is None
            here = torch.tensor([[x.value * math.sqrt(1 + t.value**2)]], dtype=torch.float64)
            lands = float(mixture.exact_map(here, torch.tensor([t.value], dtype=torch.float64)))
            assert f"ends at {lands:.2f};" in readout(panel) and f"half says {float(here) / 2:.2f}" in readout(panel)
            assert f"ends at {lands:.2f};" in alt(panel)

def test_an_error_is_shown_in_the_panel_and_leaves_with_the_next_move(mixture):
    def moody(x, t):
        if t < 1: raise RuntimeError("no answer <here>")
        return x
    panel = flow_panel(mixture, {"moody": moody})
    before = readout(panel)
    controls(panel)["t"].value = 0.5
    assert "no answer &lt;here&gt;" in alert(panel) and "No answer at t = 0.5," in readout(panel)
    controls(panel)["t"].value = 2.0
    assert alert(panel) is None and readout(panel) != before

def test_show_panel_gives_the_controls_and_their_picture(mixture, heaps, monkeypatch):
    import base64, IPython.display
    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **kw: shown.append((data, kw)))
    panel = flow_panel(mixture, heaps)
    show_panel(panel)
    (data, kw), = shown
    assert data[explore.VIEW]["model_id"] == panel.model_id and kw["raw"]
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG") and "ends at" in kw["metadata"]["image/png"]["alt"]

# Tuning

def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])

def test_steps_are_the_steps_of_the_trainer():
    t = tuning()
    while t.step(): pass
    for p in train(t.start, t.data, t.config): pass
    assert torch.equal(weights(t.model), weights(p.ema)) and t.images == t.total == 64
    assert len(t.losses) == 8 and t.looks[0][0] == 0 and t.looks[-1][0] == 64 and len({n for n, _ in t.looks}) == len(t.looks)

def test_stop_keeps_what_was_reached_and_reset_forgets_it():
    t = tuning()
    for _ in range(3): t.step()
    reached = weights(t.model).clone()
    t.stop()
    assert t.step() is False and t.images == 24 and torch.equal(weights(t.model), reached) and t.looks[-1][0] == 24 and "kept" in tuning_words(t)
    assert torch.equal(weights(t.finish()), reached)
    t.reset()
    assert t.images == 0 and t.losses == [] and torch.equal(weights(t.model), weights(t.start))
    for _ in range(3): t.step()
    assert torch.equal(weights(t.model), reached)

def test_interrupting_finish_keeps_what_was_reached():
    t = tuning()
    def press():
        if t.images == 16: raise KeyboardInterrupt
    t.watchers.append(press)
    assert t.finish() is t.model and t.images == 16 and t.ended

class Fragile(torch.nn.Module):
    "A model that breaks in its third training step."
    def __init__(self):
        super().__init__()
        self.scale, self.calls = torch.nn.Parameter(torch.ones(1)), 0
    def forward(self, x, t):
        self.calls += torch.is_grad_enabled()
        if self.calls == 3: raise RuntimeError("out of memory")
        return self.scale * x

def test_a_run_that_breaks_says_so_and_can_be_reset():
    t = tuning()
    t.start = Fragile()
    t.reset()
    panel = tuning_panel(t)
    press = controls(panel)
    async def go():
        press["Start"].click()
        await asyncio.wait_for(panel.task, 60)
    asyncio.run(go())
    assert "out of memory" in alert(panel) and t.ended and t.images == 16
    assert "broke off" in readout(panel) and press["Start"].disabled and press["Step"].disabled
    press["Reset"].click()
    assert alert(panel) is None and t.images == 0 and not press["Start"].disabled

def test_every_button_of_the_tuning_panel():
    t = tuning(kimg=2)
    panel = tuning_panel(t)
    press = controls(panel)
    able = lambda: "".join(name[:2] for name, b in press.items() if not b.disabled)
    async def until(what):
        for _ in range(2000):
            if what(): return
            await asyncio.sleep(0.005)
        raise AssertionError("it never came")
    async def use():
        assert able() == "StSt" and "0 of 2,000 pictures" in readout(panel)
        press["Start"].click()
        assert able() == "PaStRe"
        await until(lambda: t.images >= 24)
        press["Pause"].click()
        await until(lambda: panel.task is None)
        rested = t.images
        await asyncio.sleep(0.05)
        assert t.images == rested and able() == "StStStRe"
        press["Step"].click()
        assert t.images == rested + 8 and f"{rested + 8} of 2,000" in readout(panel)
        press["Start"].click()
        await until(lambda: t.images > rested + 8)
        press["Stop"].click()
        await until(lambda: panel.task is None)
        kept = t.images
        assert able() == "Re" and "stopped" in readout(panel) and kept > rested and f"after {kept:,} of" in alt(panel)
        press["Reset"].click()
        assert able() == "StSt" and t.images == 0 and "after 0 of" in alt(panel)
        press["Start"].click(); press["Start"].click()
        await until(lambda: t.images > 0)
        press["Reset"].click()
        await asyncio.sleep(0.05)
        assert t.images == 0 and panel.task is None
    asyncio.run(use())
    assert alert(panel) is None

def test_a_step_that_breaks_ends_the_run():
    t = tuning()
    t.start = Fragile()
    t.reset()
    press = controls(panel := tuning_panel(t))
    for _ in range(3): press["Step"].click()
    assert "out of memory" in alert(panel) and press["Step"].disabled and not press["Reset"].disabled

def test_presses_from_another_thread_run_in_the_thread_of_the_cells():
    "As in a kernel: the panel is made where a loop runs, and the events come from elsewhere."
    import threading
    seen = []
    async def cell():
        t = tuning()
        t.watchers.append(lambda: seen.append(threading.current_thread()))
        press = controls(panel := tuning_panel(t))
        def hand():
            press["Start"].click()
            press["Pause"].click()                                  # before the first step
            press["Start"].click()
        thread = threading.Thread(target=hand)
        thread.start()
        while not t.ended: await asyncio.sleep(0.005)
        thread.join()
        await asyncio.sleep(0.01)
        assert panel.task is None and alert(panel) is None and "64 of 64" in readout(panel)
    asyncio.run(asyncio.wait_for(cell(), 120))
    assert set(seen) == {threading.main_thread()}

def test_finish_moves_the_panel_along():
    t = tuning()
    panel = tuning_panel(t)
    t.finish()
    assert "64 of 64 pictures" in readout(panel) and "done" in readout(panel) and controls(panel)["Start"].disabled

def test_start_without_an_event_loop_is_a_sentence_in_the_panel():
    panel = tuning_panel(tuning())
    controls(panel)["Start"].click()
    assert "event loop" in alert(panel)

def test_an_interrupt_inside_a_step_is_a_stop_and_no_failure():
    t = tuning()
    t.step()
    def pressed():
        raise KeyboardInterrupt
        yield
    t.run = pressed()
    reached = weights(t.model).clone()
    assert torch.equal(weights(t.finish()), reached) and t.ended and not t.broke and "kept" in tuning_words(t)

def test_film_spans_the_run():
    t = tuning(kimg=0.4)
    t.finish()
    titles = [ax.get_title(loc="left") for ax in film(t, n=4).axes]
    assert titles[0] == "after 0 pictures" and titles[-1] == "after 400 pictures" and 3 <= len(titles) <= 4
    short = tuning()
    assert [ax.get_title(loc="left") for ax in film(short).axes] == ["after 0 pictures"]
