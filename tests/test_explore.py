"""The panels: their numbers against the exact flow and the trainer, their pictures redrawn and
drawn anew, their controls at the extremes."""

import asyncio
import math
import pytest
import re
import time
import torch
from ect_nb.analytic import GaussianMixture
from ect_nb.diffusion import Precond
from ect_nb.measure.atlas import Atlas
from ect_nb.networks import UNet
from ect_nb.objectives import ECT
from ect_nb.schedules import Stages
from ect_nb.show import explorer, live, panels, planner, tradeoff, tuning as tuning_module
from ect_nb.show.flow import FlowPicture, flow, flow_panel
from ect_nb.show.panels import show_panel
from ect_nb.show.tuning import Tuning, film, tuning_panel, tuning_words
from ect_nb.training.config import Config
from ect_nb.training.loop import train


@pytest.fixture(scope="module")
def mixture():
    return GaussianMixture([[-1.1], [0.1], [1.2]], [0.12, 0.05, 0.08], [0.40, 0.25, 0.35])


@pytest.fixture(scope="module")
def heaps(mixture):
    return {"denoiser": mixture.denoise, "half": lambda x, t: x / 2}


def tuning(kimg=0.064, noise=4, n_looks=20, seconds=math.inf, **kw):
    torch.manual_seed(0)
    model = Precond(
        UNet(
            resolution=8,
            channels=1,
            model_channels=8,
            channel_mult=(1,),
            num_blocks=1,
            attention=(),
        ),
        sigma_data=0.5,
    )
    data, z = torch.rand(64, 1, 8, 8) * 2 - 1, torch.randn(noise, 1, 8, 8)
    return Tuning(
        model,
        data,
        Config(
            **(
                dict(
                    kimg=kimg,
                    batch=8,
                    lr=1e-3,
                    ema=0.5,
                    objective=ECT(c=0.03),
                    stages=Stages(start=3),
                )
                | kw
            )
        ),
        z,
        n_looks,
        seconds,
    )


def controls(panel):
    "All widgets of a panel by their description, and the texts of its HTML parts."
    found = {}

    def walk(w):
        if getattr(w, "description", ""):
            found[w.description] = w
        for child in getattr(w, "children", ()):
            walk(child)

    walk(panel)
    return found


def texts(panel):
    return [w.value for w in panel.children if type(w).__name__ == "HTML"]


def alert(panel):
    return next((t for t in texts(panel) if 'role="alert"' in t), None)


def readout(panel):
    return next(t for t in texts(panel) if "ect-readout" in t)


def alt(panel):
    return next(re.search(r'<img alt="([^"]*)"', t)[1] for t in texts(panel) if "<img" in t)


# The flow


def test_the_path_follows_the_velocity_of_the_ode(mixture):
    p = flow(mixture, {}, x=3.0, t=5.0, n=4000)
    middle = (p.levels[1:] * p.levels[:-1]).sqrt()
    slope = (p.path[1:] - p.path[:-1]) / (p.levels[1:] - p.levels[:-1])
    x = ((p.path[1:] + p.path[:-1]) / 2)[:, None]
    assert torch.allclose(
        slope, mixture.velocity(x, middle)[:, 0], atol=2e-3, rtol=2e-3
    )  # central differences on 4000 points
    assert abs(float(p.path[(p.levels - 5.0).abs().argmin()]) - 3.0) < 0.02


def test_the_posterior_is_that_of_bayes(mixture):
    p = flow(mixture, {"denoiser": mixture.denoise}, x=0.9, t=0.7)
    torch.manual_seed(0)
    x0 = mixture.sample(400_000)[:, 0].double()
    weight = torch.exp(
        -((0.9 - x0) ** 2) / (2 * 0.7**2)
    )  # importance weights of draws from the prior
    assert abs(float((weight * x0).sum() / weight.sum()) - p.answers["denoiser"]) < 5e-3
    share = float(weight[x0 > 0.6].sum() / weight.sum())
    assert abs(float(p.posterior[p.grid > 0.6].sum() / p.posterior.sum()) - share) < 5e-3


@pytest.mark.parametrize(
    "x, t", [(0.0, 0.0), (0.0, -1.0), (math.nan, 1.0), (math.inf, 1.0), (0.0, math.nan)]
)
def test_a_point_that_is_none_is_refused(mixture, x, t):
    with pytest.raises(ValueError, match="above 0"):
        flow(mixture, {}, x, t)


def test_data_in_the_plane_are_refused():
    with pytest.raises(ValueError, match="on a line"):
        FlowPicture(GaussianMixture([[0.0, 1.0]], [0.1]), {})


def test_more_models_than_can_be_told_apart_are_refused(mixture):
    FlowPicture(mixture, {str(i): mixture.denoise for i in range(4)}).draw(0.0, 1.0)
    with pytest.raises(ValueError, match="4 models apart, not 5"):
        FlowPicture(mixture, {str(i): mixture.denoise for i in range(5)})


def test_what_is_redrawn_is_what_a_fresh_picture_shows(mixture, heaps):
    used = FlowPicture(mixture, heaps)
    for x, t in ((0.0, 80.0), (100.0, 80.0), (-0.5, 0.01), (1.0, 1.0)):
        seen = used.draw(x, t)
    assert seen == FlowPicture(mixture, heaps).draw(1.0, 1.0)
    assert seen != used.draw(1.1, 1.0)


def test_the_picture_stands_where_the_numbers_are(mixture):
    "The dot's pixels, found by their colour, lie where the axes put (t, x)."
    import io
    from PIL import Image

    art = FlowPicture(mixture, {})
    pixels = torch.from_numpy(
        __import__("numpy").array(Image.open(io.BytesIO(art.draw(1.0, 1.0)))).astype("int16")
    )
    px, py = art.left.transData.transform((1.0, 1.0 / math.sqrt(2)))
    at = pixels[
        int(pixels.shape[0] - py) - 2 : int(pixels.shape[0] - py) + 3, int(px) - 2 : int(px) + 3
    ]
    assert (at < 40).all()


def test_flow_panel_at_the_ends_of_both_sliders(mixture, heaps):
    panel = flow_panel(mixture, heaps)
    x, t = (controls(panel)[k] for k in "xt")
    levels = [level for _, level in t.options]
    assert (
        levels[0] == 80 and levels[-1] == 0.01 and levels == sorted(levels, reverse=True)
    )  # right on the slider is right in the picture
    for u in (x.min, x.max, 0.0):
        for level in (levels[0], levels[-1], 1.0):
            x.value, t.value = u, level
            assert alert(panel) is None
            here = torch.tensor([[x.value * math.sqrt(1 + t.value**2)]], dtype=torch.float64)
            lands = float(mixture.exact_map(here, torch.tensor([t.value], dtype=torch.float64)))
            assert f"ends at {lands:.2f};" in readout(
                panel
            ) and f"half says {float(here) / 2:.2f}" in readout(panel)
            assert f"ends at {lands:.2f};" in alt(panel)


def test_an_error_is_shown_in_the_panel_and_leaves_with_the_next_move(mixture):
    def moody(x, t):
        if t < 1:
            raise RuntimeError("no answer <here>")
        return x

    panel = flow_panel(mixture, {"moody": moody})
    before, below, above = (
        readout(panel),
        *(level_near(controls(panel)["t"], v) for v in (0.5, 2.0)),
    )
    controls(panel)["t"].value = below
    assert "no answer &lt;here&gt;" in alert(panel) and f"No answer at t = {below:.3g}," in readout(
        panel
    )
    controls(panel)["t"].value = above
    assert alert(panel) is None and readout(panel) != before


def shown(panel, monkeypatch):
    """What `show_panel` puts on the page: the live view, and the picture that stands in for it, as
    (data, metadata)."""
    import IPython.display

    out = []
    monkeypatch.setattr(
        IPython.display, "display", lambda data, raw, metadata=None: out.append((data, metadata))
    )
    show_panel(panel)
    return out


def test_show_panel_gives_the_controls_and_their_picture(mixture, heaps, monkeypatch):
    """Two outputs, of which a page shows one: while the panel lives the picture is hidden by a rule
    that names this panel."""
    import base64

    panel = flow_panel(mixture, heaps)
    for _ in range(2):  # shown twice, it has its hands once
        (view, _), (still, metadata) = shown(panel, monkeypatch)
        assert view == {
            panels.VIEW: dict(version_major=2, version_minor=0, model_id=panel.model_id)
        }
        assert (
            base64.b64decode(still["image/png"]).startswith(b"\x89PNG")
            and "ends at" in metadata["image/png"]["alt"] == still["text/plain"]
        )
        html = still["text/html"]
        live, hidden = f"ect-live-{panel.model_id}", f"ect-still-{panel.model_id}"
        assert (
            f"body:has(.{live}) .{hidden}" in html
            and "display: none" in html
            and "<img alt=" in html
            and still["image/png"] in html
        )
        assert (
            live in panel._dom_classes
            and sum(type(c).__name__ == "Hands" for c in panel.children) == 1
        )


def test_every_panel_has_its_picture(atlas, tmp_path, monkeypatch):
    """All kinds of panels of the kit: one view, one picture, each with words, none of the state of
    the other."""
    import ipywidgets as w
    from matplotlib.figure import Figure

    kinds = [
        tuning_panel(tuning()),
        explorer.explorer(atlas),
        explorer.compare_panel(atlas),
        planner.planner(atlas),
        explorer.my_run(tmp_path / "none", atlas),
        live.live_panel({"none": lambda x, t: 0 * x}, (1, 4, 4)),
        panels.figure_panel(lambda a: (Figure(), f"a is {a}"), a=w.IntSlider()),
    ]
    names = set()
    for panel in kinds:
        (view, _), (still, metadata) = shown(panel, monkeypatch)
        names.add(view[panels.VIEW]["model_id"])
        assert "ect-still" in still["text/html"] and len(metadata["image/png"]["alt"]) > 5
    assert len(names) == len(kinds)


def test_a_level_slider_falls_and_begins_where_told():
    slider = panels.falling_slider(2.5, 80.0, 0.1, "level")
    levels = [v for _, v in slider.options]
    assert (
        levels[0] == 80
        and levels[-1] == 0.1
        and 2.4 < slider.value < 2.6
        and slider.description == "level"
    )
    ratios = [a / b for a, b in zip(levels, levels[1:])]
    assert (
        min(ratios) > 1.02
        and max(ratios) < 1.08
        and len({label for label, _ in slider.options}) == len(levels)
    )
    for most, least in ((1.0, 2.0), (1.0, 0.0), (1.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="fall from most to least"):
            panels.falling_slider(1.0, most, least, "t")


def test_the_place_under_the_pointer_is_that_of_the_axes(mixture, heaps):
    """`point` undoes what the axes do, and `hold` brings the sliders there; beyond the axes they
    stop at their ends."""
    panel = flow_panel(mixture, heaps)
    art, (x, t) = panel.art, (controls(panel)[k] for k in "xt")
    width, height = art.figure.bbox.size

    def hold(level, at):
        px, py = art.left.transData.transform((level, at))
        panel.hold(px / width, 1 - py / height)

    for level, at in ((10.0, -1.0), (0.5, 1.3), (0.02, 0.0), (79.0, 2.0)):
        hold(level, at)
        assert (
            x.value == pytest.approx(at, abs=0.011)
            and t.value == pytest.approx(level, rel=0.03)
            and alert(panel) is None
        )
        assert f"At t = {t.value:.3g}" in readout(
            panel
        ) and f"({x.value:.2f} at its natural size)" in readout(panel)
    for u, v, ends in ((0.0, 0.0, (2.4, 80)), (0.6, 1.0, (-2.4, 0.01))):
        panel.hold(u, v)
        assert x.value == ends[0]
    hold(79.0, 2.0)
    level = t.value
    panel.hold(0.95, 0.5)
    assert t.value == level and alert(panel) is None  # right of the paths there is no t


# Tuning


def level_near(slider, t):
    return min((v for _, v in slider.options), key=lambda v: abs(math.log(v / t)))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_run_of_so_many_seconds(monkeypatch):
    "By a clock of our own: steps of two seconds, a rest that does not count, an end after ten."
    now = [100.0]
    t = tuning(kimg=64, n_looks=5, seconds=10)
    begin, step = t.begin, type(t).step
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def dear():
        now[0] += 2
        begin()

    monkeypatch.setattr(t, "begin", dear)
    assert step(t) and (t.spent, t.done) == (2, 0.2) and "2 of 10 seconds" in tuning_words(t)
    now[0] += 1000  # nobody presses anything
    for _ in range(3):
        assert step(t)
    assert t.left() <= 2 and not step(t) and t.ended and t.spent == 10
    assert [n for n, _ in t.looks] == [0, 8, 16, 24, 32, 40]
    assert "40 pictures, 10 of 10 seconds" in tuning_words(t) and tuning_words(t).endswith("done.")
    t.reset()
    assert (t.spent, t.done, t.ended) == (0, 0, False)


def test_steps_are_the_steps_of_the_trainer():
    t = tuning()
    while t.step():
        pass
    for p in train(t.start, t.data, t.config):
        pass
    assert torch.equal(weights(t.model), weights(p.ema)) and t.images == t.total == 64
    assert (
        len(t.losses) == 8
        and t.looks[0][0] == 0
        and t.looks[-1][0] == 64
        and len({n for n, _ in t.looks}) == len(t.looks)
    )


def test_stop_keeps_what_was_reached_and_reset_forgets_it():
    t = tuning()
    for _ in range(3):
        t.step()
    reached = weights(t.model).clone()
    t.stop()
    assert (
        t.step() is False
        and t.images == 24
        and torch.equal(weights(t.model), reached)
        and t.looks[-1][0] == 24
        and "kept" in tuning_words(t)
    )
    assert torch.equal(weights(t.finish()), reached)
    t.reset()
    assert t.images == 0 and t.losses == [] and torch.equal(weights(t.model), weights(t.start))
    for _ in range(3):
        t.step()
    assert torch.equal(weights(t.model), reached)


def test_interrupting_finish_keeps_what_was_reached():
    t = tuning()

    def press():
        if t.images == 16 and not t.ended:
            raise KeyboardInterrupt

    t.watchers.append(press)
    assert t.finish() is t.model and t.images == 16 and t.ended


class Fragile(torch.nn.Module):
    "A model that breaks in its third training step; the look before the run takes one too."

    def __init__(self):
        super().__init__()
        self.scale, self.calls = torch.nn.Parameter(torch.ones(1)), 0

    def forward(self, x, t):
        self.calls += torch.is_grad_enabled()
        if self.calls == 4:
            raise RuntimeError("out of memory")
        return self.scale * x


def test_a_run_that_breaks_says_so_and_can_be_reset():
    t = tuning()
    t.start = Fragile()
    t.reset()
    panel = tuning_panel(t)
    press = controls(panel)

    async def go():
        press["Start"].click()
        await asyncio.wait_for(t.task, 60)

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
            if what():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it never came")

    async def use():
        assert able() == "StSt" and "0 of 2,000 pictures" in readout(panel)
        press["Start"].click()
        assert able() == "PaStRe"
        await until(lambda: t.images >= 24)
        press["Pause"].click()
        await until(lambda: not t.running)
        rested = t.images
        await asyncio.sleep(0.05)
        assert t.images == rested and able() == "StStStRe"
        press["Step"].click()
        assert t.images == rested + 8 and f"{rested + 8} of 2,000" in readout(panel)
        press["Start"].click()
        await until(lambda: t.images > rested + 8)
        press["Stop"].click()
        await until(lambda: not t.running)
        kept = t.images
        assert (
            able() == "Re"
            and "stopped" in readout(panel)
            and kept > rested
            and f"after {kept:,} of" in alt(panel)
        )
        press["Reset"].click()
        assert able() == "StSt" and t.images == 0 and "after 0 of" in alt(panel)
        press["Start"].click()
        press["Start"].click()
        await until(lambda: t.images > 0)
        press["Reset"].click()
        await asyncio.sleep(0.05)
        assert t.images == 0 and not t.running

    asyncio.run(use())
    assert alert(panel) is None


def test_a_step_that_breaks_ends_the_run():
    t = tuning()
    t.start = Fragile()
    t.reset()
    press = controls(panel := tuning_panel(t))
    for _ in range(3):
        press["Step"].click()
    assert (
        "out of memory" in alert(panel) and press["Step"].disabled and not press["Reset"].disabled
    )


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
            press["Pause"].click()  # before the first step
            press["Start"].click()

        thread = threading.Thread(target=hand)
        thread.start()
        while not t.ended:
            await asyncio.sleep(0.005)
        thread.join()
        await asyncio.sleep(0.01)
        assert not t.running and alert(panel) is None and "64 of 64" in readout(panel)

    asyncio.run(asyncio.wait_for(cell(), 120))
    assert set(seen) == {threading.main_thread()}


def test_finish_moves_the_panel_along():
    t = tuning()
    panel = tuning_panel(t)
    t.finish()
    assert (
        "64 of 64 pictures" in readout(panel)
        and "done" in readout(panel)
        and controls(panel)["Start"].disabled
    )


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
    assert (
        torch.equal(weights(t.finish()), reached)
        and t.ended
        and not t.error
        and "kept" in tuning_words(t)
    )


class Eternal:
    "What `asyncio.run` needs: work that goes on until `what()`."

    @staticmethod
    async def until(what):
        for _ in range(4000):
            if what():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it never came")


def test_the_run_belongs_to_no_panel():
    """Two panels of one run show the same, and the second stops what the first began; pressing
    Start in both trains once."""
    t = tuning(kimg=2)
    one, two = tuning_panel(t), tuning_panel(t)

    async def use():
        controls(one)["Start"].click()
        controls(two)["Start"].click()
        assert t.running and not controls(two)["Pause"].disabled and controls(two)["Start"].disabled
        await Eternal.until(lambda: t.images >= 40)
        assert readout(one) == readout(two)
        later = tuning_panel(t)  # the cell with the panel alone, run again
        assert not controls(later)["Stop"].disabled and t.running
        controls(later)["Stop"].click()
        rested = t.images
        await asyncio.sleep(0.05)
        assert (
            t.images == rested
            and t.ended
            and all(
                "stopped" in readout(p) and controls(p)["Stop"].disabled for p in (one, two, later)
            )
        )

    asyncio.run(asyncio.wait_for(use(), 120))


def test_a_second_run_pauses_the_first_and_keeps_it():
    """As when the cell that makes run and panel is run again while it trains; and when another
    paused run is started."""

    async def use():
        first = tuning(kimg=2)
        controls(tuning_panel(first))["Start"].click()
        await Eternal.until(lambda: first.images >= 24)
        second = tuning(kimg=2)
        panel = tuning_panel(second)
        kept = first.images
        await asyncio.sleep(0.05)
        assert (
            first.images == kept
            and not first.running
            and not first.ended
            and second.before is first
        )
        assert f"paused at {kept} of 2,000 pictures" in readout(panel)
        controls(panel)["Start"].click()
        await Eternal.until(lambda: second.images >= 8)
        again = tuning_panel(second.before)  # the way back that the sentence names
        assert not second.running
        controls(again)["Start"].click()
        await Eternal.until(lambda: first.images > kept)
        second.go()
        assert second.running and not first.running and Tuning.now is second
        second.pause()
        assert Tuning.now is None and len(explore_tasks()) == 0

    asyncio.run(asyncio.wait_for(use(), 120))


def explore_tasks():
    from ect_nb.show import panels

    return {k for k, task in panels._TASKS.items() if not task.done()}


def test_background_work_is_one_of_a_kind():
    from ect_nb.show.panels import background

    async def use():
        ends = []

        async def work(name):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ends.append(name)
                raise

        background("a", work(1))
        background("b", work(2))
        await asyncio.sleep(0.01)
        background("a", work(3))
        await asyncio.sleep(0.01)
        assert ends == [1] and explore_tasks() == {"a", "b"}
        assert background("b") is None and background("never was") is None
        background("a")
        await asyncio.sleep(0.01)
        assert ends == [1, 2, 3] and not explore_tasks()

    asyncio.run(asyncio.wait_for(use(), 30))

    async def nothing():
        pass

    with pytest.raises(RuntimeError):
        background("c", nothing())  # no loop: said at once, and nothing left hanging


def test_the_picture_follows_once_a_second_and_where_the_run_rests(monkeypatch):
    """By a clock of which a step takes a tenth of a second: the loss moves once a second, the strip
    at its looks, and both after Step, Pause and Stop."""
    import types

    clock = [100.0]
    monkeypatch.setattr(tuning_module, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    t = tuning(kimg=0.8, n_looks=1)

    def tick():
        clock[0] += 0.1

    t.watchers.append(tick)
    panel, seen = tuning_panel(t), []
    press, value = controls(panel), lambda: next(x for x in texts(panel) if "<img" in x)
    t.watchers.append(lambda: seen.append(value()))
    press["Step"].click()
    assert (
        "after 8 of" in alt(panel) and len(t.looks) == 1
    )  # not a second later, and no look of the film

    async def use():
        press["Start"].click()
        await Eternal.until(lambda: t.images >= 480)
        press["Pause"].click()
        assert (
            f"after {t.images:,} of" in alt(panel)
            and "rests" in readout(panel)
            and t.latest[0] == t.images
            and len(t.looks) == 1
        )

    asyncio.run(asyncio.wait_for(use(), 120))
    pictures = len(dict.fromkeys(seen))
    assert len(seen) / 10 - 1 <= pictures <= len(seen) / 10 + 4 and len(seen) > 55
    press["Stop"].click()
    assert f"after {t.images:,} of" in alt(panel) and t.looks[-1][0] == t.images


def test_film_spans_the_run():
    t = tuning(kimg=0.4)
    t.finish()
    titles = [ax.get_title(loc="left") for ax in film(t, n=4).axes]
    assert (
        titles[0] == "after 0 pictures"
        and titles[-1] == "after 400 pictures"
        and 3 <= len(titles) <= 4
    )
    short = tuning()
    assert [ax.get_title(loc="left") for ax in film(short).axes] == ["after 0 pictures"]


# Steps × budget, from records

VALUES = {(1, 1): 100.0, (1, 2): 40.0, (4, 1): 50.0, (4, 2): 30.0, (16, 1): 25.0, (16, 2): 24.0}
HEUN = {(0, 3): 200.0, (0, 5): 50.0, (0, 9): 12.5}


def record(run, kimg, nfe, value, method="consistency", **more):
    return (
        dict(
            run=run,
            data="toy",
            network="MLP",
            parameters=3,
            init="diffusion",
            kimg=kimg,
            nfe=nfe,
            times=[80.0] * nfe,
            metric="FD",
            features="toy_2",
            value=value,
            low=0.9 * value,
            high=1.1 * value,
            n_samples=200,
            seconds=0.4 * nfe,
            device="toy",
            software="torch",
            seed=0,
            method=method,
        )
        | more
    )


def lay(folder, values, method="consistency", channels=1, **more):
    """A run folder with these distances, and strips of sixteen 4 × 4 pictures whose grey says which
    setting it is."""
    from ect_nb.measure.atlas import strip_file
    from ect_nb.show.pictures import sheet_png
    from ect_nb.training.runs import RunFolder

    run = RunFolder(folder)
    for (kimg, nfe), value in values.items():
        run.record(**record(folder.name, kimg, nfe, value, method, **more))
        strip_file(run, kimg, nfe).parent.mkdir(exist_ok=True)
        strip_file(run, kimg, nfe).write_bytes(
            sheet_png(torch.full((4, 64, channels), 10 * int(kimg) + nfe, dtype=torch.uint8))
        )
    return folder


@pytest.fixture
def folders(tmp_path):
    return lay(tmp_path / "tuned", VALUES), lay(tmp_path / "walked", HEUN, "heun")


@pytest.fixture
def atlas(folders):
    atlas = Atlas()
    for f in folders:
        atlas.add(f)
    return atlas


def test_a_setting_is_its_record(atlas):
    s = tradeoff.setting(atlas.runs["tuned"], 4, 2)
    assert (s.value, s.low, s.high, s.n, s.features, s.nfe, s.kimg) == (
        30.0,
        27.0,
        33.0,
        200,
        "toy_2",
        2,
        4,
    ) and s.ms == pytest.approx(1000 * 0.8 / 200)
    with pytest.raises(ValueError, match="not measured after 3 kimg"):
        tradeoff.setting(atlas.runs["tuned"], 3, 1)
    assert (tradeoff.strip(atlas.runs["tuned"], 4, 2) == 42 / 127.5 - 1).all()


def test_heuns_evaluations_for_a_distance_by_hand(atlas):
    walk = tradeoff.walk_of(atlas, atlas.runs["tuned"])
    c = tradeoff.curve(walk, 0)
    assert walk.name == "walked" and [s.nfe for s in c] == [3, 5, 9]
    assert tradeoff.evaluations_for(c, 25.0) == pytest.approx(
        45**0.5
    )  # half way from 50 to 12.5, and from 5 to 9, in logarithms
    assert (
        tradeoff.evaluations_for(c, 200.0) == 3
        and tradeoff.evaluations_for(c, 300.0) == 3
        and tradeoff.evaluations_for(c, 12.5) == pytest.approx(9)
        and tradeoff.evaluations_for(c, 1.0) is None
    )
    assert tradeoff.evaluations_for([], 1.0) is None


def test_a_walk_in_other_features_is_not_laid_beside(atlas, tmp_path):
    atlas.runs.pop("walked")
    atlas.add(lay(tmp_path / "other", HEUN, "heun", features="inception"))
    assert tradeoff.walk_of(atlas, atlas.runs["tuned"]) is None
    panel = explorer.explorer(atlas)
    assert (
        "Nobody has walked" in readout(panel)
        and panel.state.heun.disabled
        and panel.still()[0].startswith(b"\x89PNG")
    )


def test_the_explorer_at_every_setting(atlas):
    import time

    panel, busy = explorer.explorer(atlas), []
    move = controls(panel)
    for (kimg, nfe), value in VALUES.items():
        before = time.process_time()
        move["kimg"].value = kimg
        move["evaluations"].value = nfe
        busy.append((time.process_time() - before) / 2)
        assert (
            alert(panel) is None
            and f"tuned after {kimg} kimg, {nfe} evaluation" in readout(panel)
            and f"distance {value:.1f} [{0.9 * value:.1f}, {1.1 * value:.1f}], {2 * nfe:g} ms"
            in readout(panel)
        )
        figure = panel.state.curves.figure
        assert (
            list(figure.data[1].x)[0] == pytest.approx(nfe, rel=0.2)
            and list(figure.data[1].y)[0] == value
        )
        assert [tuple(c[:2]) for c in figure.data[2 + (1, 4, 16).index(kimg)].customdata] == [
            (kimg, 1),
            (kimg, 2),
        ] and same_as_shown(figure)
        assert intervals(panel) == [
            VALUES[kimg, n] for n in (1, 2)
        ]  # all of that budget, side by side
    for (_, nfe), value in HEUN.items():
        move["Heun's"].value = nfe
        assert f"Heun&#x27;s method, {nfe} evaluations: distance {value:.1f}" in readout(panel)
    assert sorted(busy)[len(busy) // 2] < 0.05  # processor seconds of a move
    png, alt_text = panel.still()
    assert (
        png.startswith(b"\x89PNG")
        and "distance 24.0" in alt_text
        and panel.state.table.value.count("<tr>") == 1 + len(VALUES) + len(HEUN)
    )


def same_as_shown(figure):
    """Whether a page that is loaded anew gets what the widget shows now: every trace, its numbers,
    the axes."""
    import numpy as np

    state = figure.get_state()
    plain = lambda trace, k: [
        None if v is None else float(v)
        for v in np.asarray(trace[k] if trace[k] is not None else [], dtype=object)
    ]
    assert len(figure._widget_data) == len(figure.data) == len(state["_widget_data"])
    return all(
        plain(a, k) == plain(b, k) for a, b in zip(figure._widget_data, figure.data) for k in "xy"
    ) and figure._widget_layout["xaxis"]["range"] == list(figure.layout.xaxis.range)


def intervals(panel):
    return [float(v) for v in re.findall(r">([\d.]+) \[", panel.state.row.value)]


def test_the_curve_reaches_the_page_whole(atlas, folders):
    """No page has ever been told of an empty one; after another run, and another atlas, its state
    is again what it shows."""
    from ect_nb.show.explorer import _figure_widget

    bare = _figure_widget()
    assert bare.comm is None  # nothing is announced yet
    panel = explorer.explorer(atlas)
    assert (
        panel.state.curves.place.children == (panel.state.curves.figure,)
        and panel.state.curves.figure.comm is not None
        and same_as_shown(panel.state.curves.figure)
    )
    lay(folders[0], {(20, 1): 12.0, (20, 2): 9.0})
    atlas.add(folders[0])
    panel.refresh(atlas)
    assert same_as_shown(panel.state.curves.figure) and any(
        12.0 in (t["y"] or ())
        for t in panel.state.curves.figure._widget_data
        if isinstance(t["y"], (list, tuple))
    )


def test_budgets_stand_side_by_side():
    """No two of them at one place, in order, around their number of evaluations, and never as far
    as the next."""
    for n in (1, 2, 6, 12):
        aside = tradeoff.dodge(list(range(n)))
        assert (
            list(aside.values()) == sorted(set(aside.values()))
            and math.prod(aside.values()) == pytest.approx(1)
            and max(aside.values()) < 2**0.5
        )


def test_hover_and_click(atlas):
    panel = explorer.explorer(atlas)
    state = panel.state
    curve = state.curves.figure.data[2]  # the shortest budget
    points = type("Points", (), dict(point_inds=[1]))
    for f in curve._hover_callbacks:
        f(curve, points, None)
    assert (
        "40.0" in state.left.value and controls(panel)["kimg"].value == 16
    )  # its samples, and no slider has moved
    for f in curve._unhover_callbacks:
        f(curve, points, None)
    assert "25.0" in state.left.value
    for f in curve._click_callbacks:
        f(curve, points, None)
    assert (controls(panel)["kimg"].value, controls(panel)["evaluations"].value) == (
        1,
        2,
    ) and "distance 40.0" in readout(panel)


def test_play_goes_on_from_the_slider_and_pause_stays_there(atlas, monkeypatch):
    from ect_nb.show import explorer as e

    real = asyncio.sleep
    monkeypatch.setattr(e.asyncio, "sleep", lambda s: real(0.05 if s == 0.9 else s))
    panel = explorer.explorer(atlas, kimg=4)
    play, kimg, seen = controls(panel)["Play"], controls(panel)["kimg"], []
    kimg.observe(lambda change: seen.append(change["new"]), "value")

    async def use():
        play.click()
        assert play.description == "Pause" and kimg.value == 4
        await Eternal.until(lambda: play.description == "Play")
        assert seen == [16]  # on from 4, to the end, and no jump
        play.click()
        await Eternal.until(lambda: kimg.value == 4)
        play.click()
        await real(0.2)
        assert (
            seen == [16, 1, 4] and kimg.value == 4 and play.description == "Play"
        )  # from the end it begins anew; Pause leaves it there

    asyncio.run(asyncio.wait_for(use(), 60))


def test_a_damaged_sheet_is_a_sentence_and_the_numbers_stay(atlas, tmp_path):
    atlas.save(tmp_path / "packed")
    for sheet in (tmp_path / "packed").glob("tuned*.png"):
        sheet.write_bytes(sheet.read_bytes()[:-9])
    panel = explorer.explorer(Atlas.load(tmp_path / "packed"))
    assert (
        "damaged" in alert(panel)
        and "distance 25.0" in readout(panel)
        and panel.still()[0].startswith(b"\x89PNG")
    )
    controls(panel)["kimg"].value = 4
    assert (
        "damaged" in alert(panel)
        and "distance 50.0" in readout(panel)
        and "50.0" in panel.state.left.value
    )


def test_a_strip_cut_short_is_a_sentence_in_the_widget(folders, atlas):
    panel = explorer.explorer(atlas, kimg=1)
    file = folders[0] / "samples" / "kimg-000004-nfe-01.png"
    for content in (file.read_bytes()[:40], b"", b"no picture"):
        file.write_bytes(content)
        controls(panel)["kimg"].value = 4
        assert "cannot be read" in alert(panel) and "distance 50.0" in readout(panel)
        controls(panel)["kimg"].value = 1
        assert alert(panel) is None and "distance 100.0" in readout(panel)


def test_a_setting_that_is_missing_is_a_sentence(tmp_path):
    atlas = Atlas()
    atlas.add(lay(tmp_path / "part", {k: v for k, v in VALUES.items() if k != (16, 2)}))
    panel = explorer.explorer(atlas, kimg=4, nfe=2)
    controls(panel)["kimg"].value = 16
    assert "not measured after 16 kimg with 2" in alert(panel)
    assert "Nothing was recorded there" in readout(panel) and all(
        "ect-before" in side.value for side in (panel.state.left, panel.state.right) if side.value
    )
    controls(panel)["evaluations"].value = 1
    assert (
        alert(panel) is None
        and "distance 25.0" in readout(panel)
        and "ect-before" not in panel.state.left.value
    )


def test_between_which_evaluations_by_hand(atlas):
    "The words name recorded numbers of evaluations, since there are no others."
    panel = explorer.explorer(atlas, kimg=16)
    for (kimg, nfe), words in {
        (16, 1): "comes to 25.0 between 5 and 9 evaluations",
        (1, 1): "comes to 100.0 between 3 and 5 evaluations",
        (4, 1): "comes to 50.0 between 3 and 5",
    }.items():
        controls(panel)["kimg"].value, controls(panel)["evaluations"].value = kimg, nfe
        assert words in readout(panel)
    c = tradeoff.curve(tradeoff.walk_of(atlas, atlas.runs["tuned"]), 0)
    assert (
        [s.nfe for s in tradeoff.between(c, 300.0)] == [3, 3]
        and tradeoff.between(c, 1.0) is None
        and tradeoff.between([], 1.0) is None
    )


def test_an_atlas_without_runs_says_what_to_do():
    with pytest.raises(ValueError, match="Atlas.add"):
        explorer.explorer(Atlas())
    with pytest.raises(ValueError, match="Atlas.add"):
        explorer.compare_panel(Atlas())


def test_intervals_that_reach_zero_can_be_drawn(tmp_path):
    atlas = Atlas()
    atlas.add(lay(tmp_path / "low", {(1, 1): 3.0, (1, 2): 1.0}, low=-5.0, high=9.0))
    assert explorer.explorer(atlas).still()[0].startswith(b"\x89PNG")


# Two settings


def test_differences_by_hand():
    a = torch.zeros(2, 1, 2, 2)
    b = a.clone()
    b[0, 0, 0, 0] = 0.8
    assert tradeoff.difference(a, b).tolist() == pytest.approx([0.2, 0.0])
    sheet = tradeoff.difference_sheet(a, b)
    assert (
        (sheet[1, 1] == 255).all()
        and sheet[0, 0, 0] > 200 > sheet[0, 0, 2]
        and (tradeoff.difference_sheet(b, a)[0, 0] != sheet[0, 0]).any()
    )
    with pytest.raises(ValueError, match="one shape"):
        tradeoff.difference(a, b[:1])


def test_compare_panel_at_every_setting(atlas):
    panel = explorer.compare_panel(atlas, ("tuned", 1, 1), ("tuned", 16, 2))
    assert "Their intervals are apart" in readout(
        panel
    ) and f"differ by {151 / 127.5:.2f}" in readout(panel)  # grey 11 and 162
    for pick in panel.picks:
        for name in pick.run.options:
            pick.run.value = name
            for slider in (pick.kimg, pick.nfe):
                for i in range(len(slider.options)):
                    slider.index = i
                    assert alert(panel) is None, (name, alert(panel))
    panel.picks[0].run.value = panel.picks[1].run.value = "tuned"
    for pick in panel.picks:
        pick.kimg.value, pick.nfe.value = 16, 1
    panel.picks[1].nfe.value = 2
    assert "overlap" in readout(panel) and panel.still()[0].startswith(b"\x89PNG")


def test_pictures_of_other_shapes_are_a_sentence(atlas, tmp_path):
    atlas.add(lay(tmp_path / "colour", VALUES, channels=3))
    panel = explorer.compare_panel(atlas)
    panel.picks[1].run.value = "colour"
    assert "choose runs on the same data" in alert(panel)


# Seeds, starts, and other data


@pytest.fixture
def seeds(atlas, tmp_path):
    """The atlas with two more seeds of `tuned`, and two runs from scratch; one seed was not
    measured everywhere."""
    atlas.add(lay(tmp_path / "tuned1", {k: 1.2 * v for k, v in VALUES.items()}, train_seed=1))
    atlas.add(
        lay(
            tmp_path / "tuned2",
            {k: 0.8 * v for k, v in VALUES.items() if k != (16, 2)},
            train_seed=2,
        )
    )
    for seed, factor in ((0, 3), (1, 4)):
        atlas.add(
            lay(
                tmp_path / f"scratch{seed}",
                {k: factor * v for k, v in VALUES.items()},
                train_seed=seed,
                init="scratch",
            )
        )
    return atlas


def test_a_family_differs_in_the_seed_alone(seeds, tmp_path):
    import json

    names = lambda family: [r.name for r in family]
    assert [names(f) for f in seeds.families()] == [
        ["tuned", "tuned1", "tuned2"],
        ["walked"],
        ["scratch0", "scratch1"],
    ]
    for i, other in enumerate(
        (
            dict(features="toy_3"),
            dict(metric="FD2"),
            dict(data="else"),
            dict(n_samples=100),
            dict(network="UNet"),
            dict(parameters=4),
            dict(init="other"),
            dict(method="else"),
        )
    ):
        stranger = seeds.add(lay(tmp_path / f"stranger{i}", VALUES, **dict(train_seed=9) | other))
        assert names(seeds.family(stranger)) == [stranger.name], other
    for name, lr in (("hot", 2.0), ("hotter", 3.0), ("hot too", 2.0)):
        folder = lay(tmp_path / name, VALUES, train_seed=5)
        (folder / "config.json").write_text(json.dumps(dict(config=dict(lr=lr, seed=len(name)))))
        seeds.add(folder)
    assert sorted(names(seeds.family(seeds.runs["hot"]))) == ["hot", "hot too"]
    for name, decay, kimg in (("on", "inverse_sqrt", 4), ("on and on", "inverse_sqrt", 9)):
        folder = lay(tmp_path / name, VALUES, train_seed=kimg)
        (folder / "config.json").write_text(json.dumps(dict(config=dict(decay=decay, kimg=kimg))))
        seeds.add(folder)  # a rate that asks for no end: how far it went is no setting
    assert sorted(names(seeds.family(seeds.runs["on"]))) == ["on", "on and on"]
    assert names(seeds.family(seeds.runs["tuned"])) == ["tuned", "tuned1", "tuned2"]


def test_the_explorer_shows_every_seed(seeds):
    panel = explorer.explorer(seeds, kimg=4, nfe=1)
    assert (
        "(distances 40.0 to 60.0 over 3 seeds)" in readout(panel)
        and "40.0 to 60.0 over 3 seeds" in panel.still()[1]
    )
    others = panel.state.curves.figure.data[-1]
    assert (
        others.name == "other seeds"
        and list(others.x) == [1, 2, None, 1, 2, None]
        and [y and round(y, 6) for y in others.y] == [60, 36, None, 40, 24, None]
    )
    controls(panel)["kimg"].value = 16
    controls(panel)["evaluations"].value = 2
    assert "(distances 24.0 to 28.8 over 2 seeds)" in readout(panel) and alert(panel) is None
    controls(panel)["run"].value = "scratch1"
    assert "(distances 72.0 to 96.0 over 2 seeds)" in readout(panel) and list(others.y) != list(
        panel.state.curves.figure.data[-1].y
    ) == [75, 72, None]


def test_the_picture_of_two_starts_holds_every_record(seeds):
    families = [seeds.family(seeds.runs["tuned"]), *tradeoff.rivals(seeds, seeds.runs["tuned"])]
    assert [[r.name for r in f] for f in families] == [
        ["tuned", "tuned1", "tuned2"],
        ["scratch0", "scratch1"],
    ]
    fig = tradeoff.start_figure(families, seeds.runs["walked"])
    assert [ax.get_title() for ax in fig.axes] == ["1 evaluation", "2 evaluations"]
    for ax, nfe in zip(fig.axes, (1, 2)):
        drawn = [
            list(zip(*line.get_data()))
            for line in ax.get_lines()
            if line.get_marker() in ("o", "s")
        ]
        assert drawn == [
            [(k, r.record(k, nfe)["value"]) for k in (1, 4, 16) if (k, nfe) in r.points]
            for f in families
            for r in f
        ]
        assert {
            round(float(y), 6)
            for line in ax.get_lines()
            if line.get_linestyle() == "--"
            for y in line.get_ydata()
        } == {12.5}
    assert all(
        line.get_markerfacecolor() != "none" for ax in fig.axes for line in ax.get_lines()
    )  # hollow marks are for what others published


def test_compare_begins_with_ect_against_scratch_and_moves_both(seeds):
    panel = explorer.compare_panel(seeds)
    first, second = panel.picks
    assert (
        (first.run.value, second.run.value) == ("tuned", "scratch0")
        and panel.together.value
        and second.kimg.disabled
        and second.nfe.disabled
    )
    assert (
        "The first has 20.0 to 30.0 over 3 seeds, the second 75.0 to 100.0 over 2 seeds."
        in readout(panel)
    )
    for kimg, nfe in VALUES:
        first.kimg.value, first.nfe.value = kimg, nfe
        assert (
            (second.kimg.value, second.nfe.value) == (kimg, nfe)
            and f"scratch0 after {kimg} kimg, {nfe} evaluation" in readout(panel)
            and alert(panel) is None
        )
    panel.together.value = False
    second.kimg.value = 1
    assert (first.kimg.value, second.kimg.value) == (16, 1) and not second.kimg.disabled
    panel.together.value = True
    assert (
        second.kimg.value == 16
        and explorer.compare_panel(seeds, ("scratch1", 1, 2)).picks[1].run.value == "tuned1"
    )


def test_the_box_never_says_what_does_not_hold(seeds):
    """Ticked means the same budget and evaluations, always: where the second was not measured
    there, the box unticks itself and says why."""
    panel = explorer.compare_panel(seeds)
    (first, second), box = panel.picks, panel.together

    def holds():
        a, b = (p.now[1:] for p in (first, second))
        assert box.value == second.kimg.disabled == second.nfe.disabled and (
            a == b or not box.value
        )
        assert panel.still()[1] in __import__("html").unescape(readout(panel))

    second.run.value = "walked"  # Heun's: no budget, other evaluations
    holds()
    assert (
        not box.value
        and second.now[1:] == (0, 9)
        and "walked was not measured after 16 kimg with 1 evaluation" in readout(panel)
    )
    box.value = True
    holds()
    assert not box.value and "unticked" in readout(panel)
    second.nfe.value = 3
    holds()
    assert second.now[1:] == (0, 3) and "unticked" not in readout(panel)
    second.run.value = "scratch0"
    box.value = True
    holds()
    assert box.value and second.now[1:] == (16, 1)
    second.run.value = "tuned2"
    first.nfe.value = 2  # a seed that was not measured everywhere
    holds()
    assert not box.value and "tuned2 was not measured after 16 kimg with 2 evaluations" in readout(
        panel
    )
    first.kimg.value = 4
    box.value = True
    holds()
    assert box.value and second.now[1:] == (4, 2) and alert(panel) is None


def test_data_sets_never_share_an_axis(seeds, tmp_path):
    """Another data set, larger pictures in colour, in other features; and the first data in other
    features."""
    other = dict(data="birds", features="birds_8", channels=3)
    seeds.add(lay(tmp_path / "birds0", {(2, 1): 7.0, (8, 1): 5.0}, **other))
    seeds.add(lay(tmp_path / "birds1", {(2, 1): 6.0, (8, 1): 4.0}, train_seed=1, **other))
    seeds.add(lay(tmp_path / "birds-walk", {(0, 5): 3.0}, "heun", **other))
    seeds.add(lay(tmp_path / "again", VALUES, features="toy_9"))
    panel = explorer.explorer(seeds)
    numbers = lambda: (
        {
            s[3]
            for t in panel.state.curves.figure.data
            for s in (t.customdata if t.customdata is not None else ())
        }
        | {
            round(float(y), 3)
            for t in panel.state.curves.figure.data
            for y in (t.y if t.y is not None else ())
            if y
        }
    )
    controls(panel)["run"].value = "birds1"
    assert (
        numbers() <= {7.0, 6.0, 5.0, 4.0, 3.0}
        and "Heun" in readout(panel)
        and "birds_8" in panel.state.table.value
        and "toy_2" not in panel.state.table.value
    )
    assert list(controls(panel)["kimg"].options) == [("2", 2), ("8", 8)] and alert(panel) is None
    controls(panel)["run"].value = "again"
    assert numbers() == set(VALUES.values()) and "Nobody has walked" in readout(panel)
    compare = explorer.compare_panel(seeds)
    assert not {"birds0", "birds1", "again"} & set(compare.picks[1].run.options)
    compare.picks[0].run.value = "birds0"
    assert (
        list(compare.picks[1].run.options) == ["birds0", "birds1", "birds-walk"]
        and alert(compare) is None
        and "birds" in readout(compare)
    )
    for a, b in (("tuned", "birds0"), ("tuned", "again")):
        for draw in (
            lambda: tradeoff.start_figure([[seeds.runs[a]], [seeds.runs[b]]]),
            lambda: explorer.compare_panel(seeds, (a, 4, 1), (b, 4, 1)),
            lambda: tradeoff.start_figure([[seeds.runs[a]]], seeds.runs[b]),
        ):
            with pytest.raises(ValueError, match="different units"):
                draw()


# A run that grows


def test_my_run_from_nothing_to_something(atlas, tmp_path):
    folder = tmp_path / "mine"
    panel = explorer.my_run(folder, atlas)
    mine = panel.mine
    assert (
        "no folder" in mine.words.value
        and 'role="alert"' in mine.error.value
        and panel.still()[0].startswith(b"\x89PNG")
        and mine.buttons["Measure"].disabled
    )
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        '{"run": "mine", "metric": "loss", "value": 3.0, "kimg": 0.5}\n{"run": "mi'
    )  # cut in the middle
    mine.buttons["Refresh"].click()
    assert "newest loss is 3" in mine.words.value and "no measurement" in mine.error.value
    (folder / "metrics.jsonl").unlink()
    lay(folder, {(1, 1): 90.0})
    mine.buttons["Refresh"].click()
    assert not mine.error.value and "distance 90.0" in readout(mine.view)
    lay(folder, {(2, 1): 70.0, (2, 2): 20.0})
    with (folder / "metrics.jsonl").open("a") as f:
        f.write('{"run": "mine", "kimg": 4, "nf')
    mine.buttons["Refresh"].click()
    assert "distance 90.0" in readout(mine.view)  # where the reader stood
    controls(mine.view)["kimg"].value = 2
    controls(mine.view)["evaluations"].value = 2
    assert "distance 20.0" in readout(mine.view) and "mine" not in atlas.runs


def test_my_run_measures_and_stops(tmp_path):
    from ect_nb.io import data
    from ect_nb.measure.features import random_features

    images = (torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).byte()
    pictures = data.Pictures(images, name="noise")
    torch.manual_seed(0)
    model = Precond(
        UNet(
            resolution=8,
            channels=1,
            model_channels=8,
            channel_mult=(1,),
            num_blocks=1,
            attention=(),
        ),
        sigma_data=0.5,
    )
    for _ in train(
        model,
        pictures,
        Config(kimg=2, batch=64, snapshot_kimg=1, stages=Stages(start=3)),
        tmp_path / "run",
    ):
        pass
    panel = explorer.my_run(tmp_path / "run", None, pictures, random_features(1, 4), n=40)
    mine = panel.mine

    async def use():
        mine.buttons["Measure"].click()
        assert (
            mine.bar.max == 8
            and mine.buttons["Measure"].disabled
            and not mine.buttons["Stop"].disabled
        )
        while mine.bar.value < 2:
            await asyncio.sleep(0.005)
        mine.buttons["Stop"].click()
        while mine.task:
            await asyncio.sleep(0.005)
        assert 2 <= mine.bar.value < 8 and not mine.error.value and mine.view
        mine.buttons["Measure"].click()
        while mine.task:
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(use(), 120))
    assert not mine.error.value and len(mine.atlas.runs["run (this run)"].points) == 8

    async def nothing_left():
        mine.buttons["Measure"].click()
        while mine.task:
            await asyncio.sleep(0.005)
        assert (
            "Nothing is left to measure" in mine.words.value
            and not mine.error.value
            and not mine.buttons["Measure"].disabled
        )

    asyncio.run(asyncio.wait_for(nothing_left(), 60))


def test_one_panel_of_a_folder_works_at_a_time(tmp_path):
    """A second one, of the cell run again, ends the measuring and the watching of the first; what
    was measured is kept."""
    from ect_nb.io import data
    from ect_nb.measure.features import random_features

    pictures = data.Pictures((torch.rand(64, 1, 8, 8) * 255).byte(), name="noise")
    t = tuning()
    for _ in train(
        t.start,
        pictures,
        Config(kimg=2, batch=64, snapshot_kimg=1, stages=Stages(start=3)),
        tmp_path / "run",
    ):
        pass
    make = lambda: (
        explorer.my_run(
            tmp_path / "run", None, pictures, random_features(1, 4), n=40, every=0.01
        ).mine
    )

    async def use():
        first = make()
        first.auto.value = True
        first.buttons["Measure"].click()
        while first.bar.value < 2:
            await asyncio.sleep(0.005)
        other = explorer.my_run(
            tmp_path / "elsewhere", None, pictures, random_features(1, 4)
        ).mine  # another folder is no rival
        assert first.task and first.watch
        second = make()
        await asyncio.sleep(0.05)
        assert (
            not first.task
            and not first.watch
            and not first.auto.value
            and first.buttons["Stop"].disabled
            and not explore_tasks()
        )
        kept = first.bar.value
        second.buttons["Measure"].click()
        while not second.task:  # the click comes as an event
            await asyncio.sleep(0.005)
        while second.task:
            await asyncio.sleep(0.005)
        assert kept + second.bar.value == 8 and not second.error.value and not other.task

    asyncio.run(asyncio.wait_for(use(), 120))


def test_budgets_that_double():
    assert (
        explorer.doubling([1, 2, 3, 4, 5, 8, 9]) == [1, 2, 4, 8, 9]
        and explorer.doubling([]) == []
        and explorer.doubling({7: "a"}) == [7]
    )


# Live


def test_evaluations_are_those_of_sample():
    from ect_nb.sampling import sample
    from ect_nb.show.live import evaluations

    z, times, g = (
        torch.randn(3, 1, 4, 4),
        (80.0, 5.0, 0.3),
        lambda: torch.Generator().manual_seed(1),
    )
    f = lambda x, t: torch.tanh(x / (1 + t.view(-1, 1, 1, 1)))
    for k, x in enumerate(evaluations(f, z, times, g())):
        assert torch.allclose(x, sample(f, z, times[: k + 1], g()), atol=1e-5)
    for bad in ((), (1.0, 2.0), (80.0, 0.0), (80.0, math.nan), (2.0, 2.0)):
        with pytest.raises(ValueError, match="must be positive and fall"):
            next(evaluations(f, z, bad))


def test_live_panel_follows_waits_stops_and_complains():
    panel = live.live_panel(
        {"half": lambda x, t: x / (1 + t.view(-1, 1, 1, 1)), "none": lambda x, t: 0 * x}, (1, 4, 4)
    )
    c = panel.live.controls
    assert "after 1 of 1 evaluation, at 80;" in c["words"].value
    for end in (c["second"].min, c["second"].max):
        c["second"].value = 10**end
        assert not c["error"].value and "after 2 of 2" in c["words"].value
    for seed in (c["seed"].min, c["seed"].max):
        c["seed"].value = seed
        assert not c["error"].value
    c["menu"].value = "none"
    assert "none: 16 pictures" in c["words"].value
    for text, level in (("80, 0.5", 0.5), ("80, 8", 8), ("80, 4, 1", 8), ("80, 0.001", 8)):
        c["text"].value = text
        assert (c["text"].value, c["second"].value) == (
            text,
            level,
        )  # the slider goes along where it can
    c["second"].value = 16.0
    assert c["text"].value == "80, 16"
    for bad in (
        "80, x",
        "",
        "1, 2",
        "80; 2,5",
        "80, 2,5",
        "80 2.5",
        "80, 0",
        "80, -1",
        "80, nan",
        "inf, 1",
        "80, 80",
        ";",
    ):
        c["text"].value = "80, 1"
        shown = c["picture"].value
        assert not c["error"].value
        c["text"].value = bad
        assert "levels" in c["error"].value and "2.5, 0.8" in c["error"].value, (
            bad
        )  # refused at once, with what to write
        assert "before" in c["words"].value and c["picture"].value == panels.dimmed(shown), (
            bad
        )  # and nothing of the setting before is taken for it
    c["text"].value = ", ".join(map(str, range(80, 40, -1)))
    assert "40 evaluations: press Sample" in c["words"].value and not c["error"].value

    async def use():
        c["go"].click()
        while c["bar"].value < 3:
            await asyncio.sleep(0.001)
        c["stop"].click()
        while panel.live.task:
            await asyncio.sleep(0.001)
        assert 3 <= c["bar"].value < 40 and not c["go"].disabled
        c["go"].click()
        while panel.live.task:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(use(), 60))
    assert "after 40 of 40" in c["words"].value and panel.still()[0].startswith(b"\x89PNG")


def test_a_known_answer_is_not_asked_again_and_a_changed_model_is():
    """Moving the second level costs one evaluation, and gives what `sample` gives; so it is after
    the weights have changed."""
    from ect_nb.sampling import sample

    class Counted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.calls = torch.nn.Parameter(torch.tensor(0.5)), 0

        def forward(self, x, t):
            self.calls += 1
            return torch.tanh(self.scale * x / (1 + t.view(-1, 1, 1, 1)))

    model = Counted()
    panel = live.live_panel(
        {"counted": model, "free": lambda x, t: model(x, t)}, (1, 4, 4), times=(80.0, 2.0)
    )
    c = panel.live.controls

    def right(times):
        seed, before = c["seed"].value, model.calls
        z = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
        wanted = sample(model, z, times, torch.Generator().manual_seed(seed + 1))
        model.calls = before
        return torch.equal(panel.live.x, wanted)

    def costs(act):
        before = model.calls
        act()
        return model.calls - before

    def to(key, value):
        return lambda: setattr(c[key], "value", value)

    assert model.calls == 2 and right((80.0, 2.0))
    assert costs(to("text", "80, 0.5")) == 1 and right((80.0, 0.5))
    assert costs(to("text", "70, 0.5")) == 2 and right((70.0, 0.5))
    assert costs(to("text", "70")) == 0 and right((70.0,))
    assert costs(to("seed", 9)) == 1 and right((70.0,))
    with torch.no_grad():
        model.scale.add_(0.3)
    assert costs(to("text", "70, 0.4")) == 2 and right((70.0, 0.4))
    assert (
        costs(to("menu", "free")) == 2 and costs(to("text", "70, 0.3")) == 2
    )  # weights that cannot be seen are asked each time


def test_live_asks_a_run_that_is_being_tuned():
    "What it has reached is asked, and the words say after how many pictures."
    t = tuning()
    panel = live.live_panel({"tuned here": t, "start": t.start}, (1, 8, 8))
    c = panel.live.controls
    assert "tuned here, tuned on 0 pictures:" in c["words"].value
    first = panel.live.x
    for _ in range(3):
        t.step()
    c["text"].value = "80, 2"
    c["text"].value = "80"
    assert "tuned on 24 pictures:" in c["words"].value and not torch.equal(panel.live.x, first)
    c["menu"].value = "start"
    assert torch.equal(panel.live.x, first) and "tuned on" not in c["words"].value


def test_a_model_that_breaks_leaves_nothing_that_is_taken_for_its_answer():
    def moody(x, t):
        if t[0] < 1:
            raise RuntimeError("no answer")
        return 0 * x

    panel = live.live_panel({"moody": moody}, (1, 4, 4))
    c = panel.live.controls
    c["text"].value = "80, 0.5"
    assert (
        "no answer" in c["error"].value
        and "shows those before" in c["words"].value
        and "ect-before" in c["picture"].value
    )
    c["text"].value = "80, 2"
    assert (
        not c["error"].value
        and "after 2 of 2" in c["words"].value
        and "ect-before" not in c["picture"].value
    )

    async def use():
        c["text"].value = "80, 8, 0.5"
        c["go"].click()
        await Eternal.until(lambda: c["error"].value)
        assert "broke off" in c["words"].value and "ect-before" in c["picture"].value
        await Eternal.until(lambda: not c["go"].disabled)

    asyncio.run(asyncio.wait_for(use(), 60))


def test_a_second_live_panel_ends_the_sampling_of_the_first():
    make = lambda: live.live_panel({"none": lambda x, t: 0 * x}, (1, 4, 4))

    async def use():
        first = make()
        first.live.controls["text"].value = ", ".join(str(80 - k / 10) for k in range(400))
        first.live.controls["go"].click()
        await Eternal.until(lambda: first.live.controls["bar"].value > 2)
        make()
        await Eternal.until(lambda: not first.live.controls["go"].disabled)
        assert first.live.controls["bar"].value < 400 and not explore_tasks()

    asyncio.run(asyncio.wait_for(use(), 60))


# What ipywidgets 7.7 offers

SHARED = dict(
    HTML="value layout",
    VBox="layout",
    HBox="layout",
    Box="layout",
    Layout="width min_width max_width height min_height margin flex flex_flow align_items overflow",
    Button="description tooltip disabled layout",
    IntProgress="max layout",
    Dropdown="options value description style layout",
    SelectionSlider="options value description style layout",
    FloatSlider="value min max step description readout_format layout",
    FloatLogSlider="value base min max step description readout_format style layout",
    IntSlider="value min max description style layout",
    Text="value description continuous_update style layout",
    Checkbox="value description indent layout",
)


def test_the_panels_keep_to_what_ipywidgets_7_7_offers():
    """Every widget and every trait that the modules name exists in 7.7 as in 8 (the tests above
    pass with both)."""
    import ast
    import ipywidgets
    from pathlib import Path

    names = "panels", "flow", "tuning", "tradeoff", "live", "planner", "explorer"
    for module in names:
        for node in ast.walk(
            ast.parse((Path(explorer.__file__).parent / f"{module}.py").read_text())
        ):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "w"
                and node.attr[0].isupper()
            ):
                assert node.attr in SHARED, f"{module} uses {node.attr}"
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in SHARED
                and getattr(node.func.value, "id", "") == "w"
            ):
                for k in node.keywords:
                    assert k.arg is None or k.arg in SHARED[node.func.attr].split(), (
                        f"{module}: {node.func.attr}({k.arg}=…)"
                    )
    for name, traits in SHARED.items():
        assert set(traits.split()) <= set(getattr(ipywidgets, name).class_trait_names()), name


# Any figure under sliders


def test_a_figure_follows_its_controls_keeps_what_it_drew_and_survives_an_error():
    import ipywidgets as w
    from matplotlib.figure import Figure

    drawn = []

    def draw(t, n):
        if n == 3:
            raise ValueError("three is too many")
        drawn.append((t, n))
        fig = Figure(figsize=(2, 1))
        fig.subplots().plot([0, t], [0, n])
        return fig, f"t is {t:g}, n is {n}"

    panel = panels.figure_panel(
        draw, t=w.FloatSlider(value=0.5, min=0, max=2), n=w.IntSlider(value=1, min=0, max=3)
    )
    first = panel.still()
    panel.controls["t"].value = 2.0
    assert (
        panel.values == dict(t=2.0, n=1)
        and panel.still()[1] == "t is 2, n is 1"
        and panel.still()[0] != first[0]
    )
    panel.controls["t"].value = 0.5
    assert panel.still() == first and drawn == [(0.5, 1), (2.0, 1)]  # what was drawn once is kept
    panel.controls["n"].value = 3
    assert "three is too many" in alert(panel) and panel.still() == first
    panel.controls["n"].value = 0
    assert alert(panel) is None and panel.still()[1] == "t is 0.5, n is 0"


def test_a_control_without_effect_is_switched_off():
    "`idle` names it; its value then draws nothing anew, and it comes back with its effect."
    import ipywidgets as w
    from matplotlib.figure import Figure

    drawn = []

    def draw(n, last):
        drawn.append((n, last))
        return Figure(figsize=(1, 1)), f"{n} evaluations" + (
            f", the last at {last}" if n > 2 else ""
        )

    panel = panels.figure_panel(
        draw,
        idle=lambda n, last: ["last"] if n < 3 else [],
        n=w.IntSlider(value=2, min=1, max=8),
        last=w.IntSlider(value=5, description="last time"),
    )
    n, last = panel.controls["n"], panel.controls["last"]
    assert last.disabled and not n.disabled
    last.value = 7
    assert drawn == [(2, 5)] and panel.values == dict(n=2, last=7)
    n.value = 3
    assert (
        not last.disabled
        and drawn[-1] == (3, 7)
        and panel.still()[1] == "3 evaluations, the last at 7"
    )
    n.value = 1
    assert last.disabled


def test_after_an_error_nothing_is_taken_for_the_answer():
    """The picture of a figure panel is dimmed and its sentence says whose it is, until there is
    another."""
    import ipywidgets as w
    from matplotlib.figure import Figure

    def draw(n):
        if n == 3:
            raise ValueError("three is too many")
        return Figure(figsize=(1, 1)), f"n is {n}"

    panel = panels.figure_panel(draw, n=w.IntSlider(value=1, min=0, max=4))
    for _ in range(2):
        panel.controls["n"].value = 3
        assert (
            sum("ect-before" in t for t in texts(panel)) == 1
            and "n is 1" not in readout(panel)
            and "before" in readout(panel)
        )
        panel.controls["n"].value = 1
        assert (
            not any("ect-before" in t for t in texts(panel))
            and "n is 1" in readout(panel)
            and alert(panel) is None
        )


# The pages


def test_no_cell_drives_a_panel_that_was_shown():
    """After `show_panel` a panel is the reader's: a later cell may read its `values`, and nothing
    else of it."""
    import ast
    import json
    from IPython.core.inputtransformer2 import TransformerManager
    from pathlib import Path

    offences = []
    for path in sorted((Path(explorer.__file__).parent.parent / "nbs").glob("[!._]*.ipynb")):
        shown = set()  # names of panels, and of runs inside them
        for i, cell in enumerate(json.loads(path.read_text())["cells"]):
            if cell["cell_type"] != "code":
                continue
            tree = ast.parse(TransformerManager().transform_cell("".join(cell["source"])))
            if not any(line.startswith("#| export") for line in cell["source"]):
                for node in ast.walk(tree):
                    if not (
                        isinstance(node, ast.Attribute)
                        and isinstance(node.value, ast.Name)
                        and node.value.id in shown
                    ):
                        continue
                    if node.attr in (
                        "values",
                        "images",
                        "last",
                        "model",
                        "losses",
                        "looks",
                        "ended",
                    ):
                        continue
                    if (path.stem, node.value.id, node.attr) == (
                        "00_sixty_seconds",
                        "tuning",
                        "finish",
                    ):
                        continue  # announced above the panel
                    offences.append(f"{path.stem}, cell {i}: {node.value.id}.{node.attr}")
            for node in ast.walk(tree):  # bound anew: another panel
                if isinstance(node, ast.Assign):
                    shown -= {t.id for t in node.targets if isinstance(t, ast.Name)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "show_panel":
                    inner = node.args[0]
                    named = (
                        [inner]
                        if isinstance(inner, ast.Name)
                        else [
                            a
                            for a in getattr(inner, "args", [])
                            if getattr(inner.func, "id", "") in ("tuning_panel", "flow_panel")
                        ]
                    )
                    shown |= {a.id for a in named if isinstance(a, ast.Name) and a.id != "mixture"}
    assert not offences, offences
