"""Networks, data and settings of one's own: what cannot be trained is said before anything is
written, what can be trained keeps what its owner decided."""

import json
import math
import os
import pytest
import signal
import subprocess
import sys
import torch
import warnings
from dataclasses import dataclass, replace
from ect_nb.diffusion import Precond
from ect_nb.io import weights
from ect_nb.io.data import Pictures
from ect_nb.networks import MLP, UNet, inside
from ect_nb.objectives import ECT
from ect_nb.schedules import Stages
from ect_nb.training.config import Config, changed, code_of, from_json, to_json
from ect_nb.training.loop import train
from ect_nb.training.runs import RunFolder, checksum, load_state, save_state, stop
from torch import nn

CONFIG = Config(kimg=0.032, batch=16)


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def unet(**kw):
    return seeded(
        lambda: Precond(
            UNet(
                **dict(
                    resolution=16,
                    channels=1,
                    model_channels=8,
                    channel_mult=(1, 2),
                    num_blocks=1,
                    attention=(),
                )
                | kw
            )
        )
    )


def mlp(**kw):
    return seeded(lambda: Precond(MLP(2, 8, 2), **kw))


def pictures(n=32):
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def points(n=32):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1))


def labelled(labels):
    return Pictures(((pictures() + 1) * 127.5).byte(), labels)


def last(run):
    for p in run:
        pass
    return p


def aimed(**kw):
    "`CONFIG` with these settings of its objective, a tuning."
    return replace(CONFIG, objective=ECT(**kw))


def refused(words, *args, folder=None, **kw):
    "The call is refused with one sentence that holds `words`, and leaves no folder behind."
    with pytest.raises(ValueError, match=words) as error:
        last(train(*args, folder=folder, **kw))
    assert "\n" not in str(error.value)
    assert folder is None or not folder.exists()


# ---- data: looked at once, before anything is written


def with_hole(value, at):
    x = pictures()
    x[at, 0, 3, 3] = value
    return x


@pytest.mark.parametrize(
    "data, words",
    [
        (lambda: with_hole(math.nan, 3), "row 3 of the data holds a value that is not finite"),
        (lambda: with_hole(-math.inf, 31), "row 31 of the data"),
        (lambda: (pictures() + 1) * 127.5, "run from .* to 255.* divide bytes by 127.5"),
        (lambda: pictures() * 11, "run from -1.* wants"),
        (lambda: ((pictures() + 1) * 127.5).byte(), "must be Pictures, a float tensor"),
        (lambda: "pictures", "data must be"),
        (lambda: torch.zeros(0, 1, 16, 16), "empty"),
    ],
)
def test_data_that_would_train_to_nothing_are_refused_with_the_row_and_the_remedy(
    data, words, tmp_path
):
    refused(words, unet(), data(), CONFIG, folder=tmp_path / "run")
    refused(words, unet(), data(), CONFIG)


def test_pictures_without_a_negative_value_are_warned_of_and_latents_of_unit_spread_pass():
    with pytest.warns(UserWarning, match="no value of these pictures is negative"):
        last(train(unet(), (pictures() + 1) / 2, CONFIG))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        last(train(unet(), torch.randn(32, 1, 16, 16).clamp(-5, 5), CONFIG))
        last(train(mlp(), points().abs(), CONFIG))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_data_of_any_precision_train_in_that_of_the_network(dtype):
    assert torch.isfinite(last(train(unet(), pictures().to(dtype), CONFIG)).loss)


@pytest.mark.parametrize(
    "labels, words",
    [
        (torch.arange(32) % 10 + 1, "labels run from 1 to 10, and this network wants 0 to 9"),
        (None, "have no labels"),
    ],
)
def test_labels_that_fit_no_class_are_refused(labels, words, tmp_path):
    refused(words, unet(label_dim=10), labelled(labels), CONFIG, folder=tmp_path / "run")


def test_labels_below_zero_and_past_the_end_of_own_data_are_refused():
    class Own:
        labels = torch.arange(32) % 10 - 1

        def __len__(self):
            return 32

        def batch(self, i):
            return pictures()[i]

    refused("labels run from -1 to 8", unet(label_dim=10), Own(), CONFIG)
    Own.labels = torch.rand(32)
    refused("whole numbers", unet(label_dim=10), Own(), CONFIG)


@pytest.mark.parametrize(
    "data, words",
    [
        (pictures().expand(-1, 3, -1, -1), r"takes \(B, 1, H, W\)"),
        (pictures()[..., :15], "multiples of 2"),
        (points(), r"takes \(B, 1, H, W\)"),
    ],
)
def test_pictures_the_network_cannot_take_are_refused_before_a_folder_is_made(
    data, words, tmp_path
):
    refused(words, unet(), data, CONFIG, folder=tmp_path / "run")
    assert (
        last(train(unet(), pictures(), CONFIG, tmp_path / "run")).step == 2
    )  # and the right call then begins in it


def test_a_foreign_network_that_breaks_is_quoted_in_one_sentence(tmp_path):
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, c):
            return self.conv(x)

    refused(
        r"does not take \(1, 16, 16\) of torch.float32: RuntimeError",
        Precond(Foreign()),
        pictures(),
        CONFIG,
        folder=tmp_path / "run",
    )


@pytest.mark.parametrize(
    "f, words",
    [
        (
            lambda x: x.mean(1, keepdim=True).expand(-1, 1, -1, -1)[:, :, :8],
            "must have the shape of x",
        ),
        (lambda x: type("Out", (), dict(sample=x))(), "returns its `.sample`"),
    ],
)
@pytest.mark.parametrize("config", [CONFIG, Config.diffusion(kimg=0.032, batch=16)])
def test_what_a_network_returns_is_looked_at_before_the_first_step(f, words, config, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones(()))

        def forward(self, x, c):
            return f(self.a * x)

    refused(words, Precond(Net()), pictures(), config, folder=tmp_path / "run")


def test_the_look_rolls_no_dice_and_counts_nothing():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.norm, self.drop = MLP(2, 8, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)

        def forward(self, x, c):
            return self.net(self.drop(self.norm(x)), c)

    model = seeded(lambda: Precond(Counting()))
    torch.manual_seed(5)
    was = torch.get_rng_state()
    run = train(model, points(), CONFIG)
    assert torch.equal(was, torch.get_rng_state())
    assert (
        int(next(run).model.net.norm.num_batches_tracked) == 2
    )  # the two passes of the first step alone


# ---- what the owner decided is kept


def test_a_frozen_part_stays_as_it_is_in_the_model_and_in_the_average_and_in_its_mode():
    model = unet(dropout=0.5)
    model.net.enc.requires_grad_(False).eval()
    p = last(train(model, pictures(), CONFIG))
    for after in (p.model, p.ema):
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.net.enc.parameters(), after.net.enc.parameters())
        )
        assert not any(q.requires_grad for q in after.net.enc.parameters())
    assert not p.model.net.enc.training and p.model.net.dec.training
    assert not all(
        torch.equal(a, b) for a, b in zip(model.net.dec.parameters(), p.model.net.dec.parameters())
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_low_rank_addition_stays_one_from_phase_to_phase(training):
    class Lora(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.a, self.b = (
                MLP(2, 8, 2).requires_grad_(False).eval(),
                nn.Linear(2, 1, bias=False),
                nn.Linear(1, 2, bias=False),
            )

        def forward(self, x, c):
            return self.base(x, c) + self.b(self.a(x))

    model = seeded(lambda: Precond(Lora())).train(training)
    if training:
        model.net.base.eval()
    first = last(train(model, points(), Config.diffusion(kimg=0.032, batch=16)))
    second = last(train(first.ema, points(), replace(CONFIG, lr=1e-2, ema=0.5)))
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.net.base.parameters(), second.ema.net.base.parameters())
    )
    assert not second.model.net.base.training and second.model.net.a.training
    assert not torch.equal(first.ema.net.a.weight, second.ema.net.a.weight)


def test_a_model_frozen_as_a_whole_is_thawed():
    model = mlp().requires_grad_(False).eval()
    p = last(train(model, points(), CONFIG))
    assert (
        checksum(p.model.state_dict()) != checksum(model.state_dict())
        and p.model.training
        and not p.ema.training
    )


# ---- wrappers are taken off for all that is kept


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: nn.DataParallel(nn.DataParallel(m)),
    ],
)
@pytest.mark.parametrize("within", [False, True])
def test_a_wrapped_network_leaves_the_names_and_the_description_of_the_one_inside(
    wrap, within, tmp_path
):
    model = unet()
    wrapped = Precond(wrap(model.net)) if within else wrap(model)
    p = last(train(wrapped, pictures(), CONFIG, tmp_path / "run"))
    plain = last(train(model, pictures(), CONFIG, tmp_path / "plain"))
    assert checksum(p.ema.state_dict()) == checksum(plain.ema.state_dict())
    path = next((tmp_path / "run" / "snapshots").iterdir())
    assert checksum(weights.load(path).state_dict()) == checksum(p.ema.state_dict())
    assert inside(wrapped) is (wrapped if within else model)


# ---- settings of one's own, and settings that make no run


@dataclass(frozen=True)
class LogUniform:
    low: float = 0.01
    high: float = 80.0

    def sample(self, n, generator=None):
        return self.low * (self.high / self.low) ** torch.rand(n, generator=generator)


@dataclass(frozen=True)
class Share:
    of: float = 0.9

    def __call__(self, t, stage):
        return self.of * t


def soft(t, r, sigma_data=0.5):
    return sigma_data / (t + sigma_data)


def cauchy(delta):
    return (1 + delta.flatten(1).square().sum(1)).log()


def test_what_is_defined_beside_the_kit_trains_is_written_down_and_read_back(tmp_path):
    config = aimed(p_t=LogUniform(0.1), mapping=Share(0.8), weight=soft, metric=cauchy)
    p = last(train(mlp(), points(), config, tmp_path / "run"))
    assert (
        torch.isfinite(p.loss)
        and from_json(RunFolder(tmp_path / "run").config()["config"]) == config
    )
    said = to_json(config)["objective"]
    assert (
        said["p_t"]["kind"].endswith(":LogUniform")
        and said["p_t"]["low"] == 0.1
        and said["weight"]["kind"].endswith(":soft")
    )
    with pytest.raises(ValueError, match="another run .*mapping"):
        last(
            train(
                mlp(),
                points(),
                replace(config, objective=replace(config.objective, mapping=Share(0.7))),
                tmp_path / "run",
            )
        )


def test_what_cannot_be_found_again_is_named():
    said = to_json(aimed(p_t=LogUniform()))
    said["objective"]["p_t"]["kind"] = "nowhere:LogUniform"
    with pytest.raises(
        ValueError, match="nowhere:LogUniform was used by this run and cannot be found"
    ):
        from_json(said)


def test_a_weight_that_asks_for_sigma_data_gets_the_models():
    seen = []

    def weight(t, r, sigma_data=0.5):
        seen.append(sigma_data)
        return torch.ones_like(t)

    last(train(mlp(sigma_data=1.5), points(), aimed(weight=weight)))
    assert set(seen) == {1.5}


WRONG = dict(
    kimg=["1", 0, math.nan, math.inf, None],
    batch=[16.0, 0, "16", True],
    stages=[3, (0, 100, 3), None],
    p_t=[None, 3, "LogNormal"],
    mapping=[Stages(), 3, "sigmoid"],
    c=["x", math.nan, -1.0],
    decay_kimg=[math.nan, -1],
    warmup_kimg=[-1, "2"],
    lr=["fast", -1.0],
    ema=[1.0, "slow"],
    betas=[0.9, (0.9,), (0.9, 1.0)],
    seed=[0.5, -1],
    weight=["heavy", None],
    metric=[3],
    precision=["half"],
    optimizer=["Atom"],
    accumulate=[3, 0],
)


@pytest.mark.parametrize("name, value", [(k, v) for k, vs in WRONG.items() for v in vs])
def test_a_setting_that_makes_no_run_is_named_before_anything_is_written(name, value, tmp_path):
    with pytest.raises(ValueError, match=name) as error:
        train(mlp(), points(), changed(CONFIG, **{name: value}), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_levels_that_are_none_are_refused():
    class Negative:
        def sample(self, n, generator=None):
            return -torch.ones(n)

    refused("noise levels above 0", mlp(), points(), aimed(p_t=Negative()))
    refused("0 <= r <= t", mlp(), points(), aimed(mapping=lambda t, stage: 2 * t))
    refused("one number a row", mlp(), points(), aimed(metric=lambda delta: delta.square()))


def test_half_precision_of_a_network_without_a_switch_is_refused_before_a_folder_is_made(tmp_path):
    refused(
        "no `body`", mlp(), points(), replace(CONFIG, precision="bfloat16"), folder=tmp_path / "run"
    )


# ---- data of one's own: len and batch are enough


def test_len_and_batch_are_all_that_data_of_ones_own_need(tmp_path):
    class Batches:
        def __len__(self):
            return 32

        def batch(self, indices):
            return pictures()[indices]

    own, plain = (
        last(train(unet(), Batches(), CONFIG, tmp_path / "run")),
        last(train(unet(), pictures(), CONFIG)),
    )
    assert checksum(own.ema.state_dict()) == checksum(plain.ema.state_dict())
    assert RunFolder(tmp_path / "run").config()["data"] == dict(name="batches", n=32, checksum=None)


def test_data_whose_batch_fails_are_named():
    class Broken:
        def __len__(self):
            return 3

        def batch(self, indices):
            raise KeyError("no such picture")

    refused("data.batch.* failed for .*KeyError", unet(), Broken(), CONFIG)


# ---- a run that is lost says so, with or without a folder, and why


@pytest.mark.parametrize("folder", [True, False])
def test_a_run_that_diverges_says_so_and_blames_the_rate(folder, tmp_path):
    with pytest.raises(FloatingPointError, match="use a smaller lr than 1e\\+20") as error:
        last(
            train(
                unet(),
                pictures(),
                Config(kimg=0.32, batch=16, lr=1e20),
                tmp_path / "run" if folder else None,
            )
        )
    assert ("saved before" in str(error.value)) == folder and "float32" not in str(error.value)


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_a_buffer_that_was_never_finite_is_no_lost_run(value, tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP(2, 8, 2)
            self.register_buffer("mask", torch.full((2, 2), value))

        def forward(self, x, c):
            return self.net(x, c)

    model = seeded(lambda: Precond(Masked()))
    assert last(train(model, points(), CONFIG, tmp_path / "run")).step == 2
    assert last(train(model, points(), CONFIG, tmp_path / "run")).step == 2


# ---- whose run it is


def test_a_network_whose_code_changed_is_not_continued_and_a_comment_is_no_change(
    tmp_path, monkeypatch
):
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    text = (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n       "
        " super().__init__(); self.a = nn.Linear(2, 2)\n    def forward(self, x, c):\n       "
        " return self.a(x){}\n"
    )

    def build(formula, name):
        (tmp_path / f"{name}.py").write_text(text.format(formula))
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        return seeded(lambda: Precond(module.Net()))

    last(train(build("", "one"), points(), CONFIG, tmp_path / "run"))
    assert (
        last(train(build("    # as it was", "two"), points(), CONFIG, tmp_path / "run")).step == 2
    )
    with pytest.raises(ValueError, match="the code of its network has changed"):
        last(train(build(".tanh()", "three"), points(), CONFIG, tmp_path / "run"))


def test_code_is_what_is_done_not_how_it_is_written():
    def one(x):
        return x + 1

    def two(x):
        "With a docstring."
        return x + 1  # and a comment

    assert code_of(one) != code_of(lambda x: x + 2)
    one.__name__ = two.__name__
    assert code_of(Share) == code_of(Share) != code_of(LogUniform) and code_of(torch.relu) is None


def test_a_fresh_network_without_a_seed_is_told_what_differs(tmp_path):
    last(train(mlp(), points(), CONFIG, tmp_path / "run"))
    with pytest.raises(
        ValueError, match="began from other weights: make a fresh network with the same seed"
    ):
        last(train(seeded(lambda: Precond(MLP(2, 8, 2)), 1), points(), CONFIG, tmp_path / "run"))


def test_a_run_of_the_first_version_goes_on(tmp_path):
    last(train(mlp(), points(), replace(CONFIG, kimg=0.016), tmp_path / "run"))
    said = RunFolder(tmp_path / "run").config()
    del said["code"]
    said["data"]["name"] = None  # what 0.1 wrote
    (tmp_path / "run" / "config.json").write_text(json.dumps(said))
    assert last(train(mlp(), points(), CONFIG, tmp_path / "run")).step == 2


def test_a_state_of_another_run_is_not_taken_for_ones_own(tmp_path):
    for seed in (0, 1):
        last(
            train(
                seeded(lambda: Precond(MLP(2, 8, 2)), seed), points(), CONFIG, tmp_path / str(seed)
            )
        )
    theirs, own = (next((tmp_path / s / "state").iterdir()) for s in ("1", "0"))
    for old in (tmp_path / "0" / "state").iterdir():
        old.unlink()
    (tmp_path / "0" / "state" / own.name).write_bytes(theirs.read_bytes())
    with pytest.raises(RuntimeError, match="that of a run from other weights"):
        last(train(mlp(), points(), replace(CONFIG, kimg=0.064), tmp_path / "0"))


def test_a_state_of_another_network_is_one_sentence(tmp_path):
    last(train(mlp(), points(), CONFIG, tmp_path / "run"))
    tensors, facts = load_state(RunFolder(tmp_path / "run"))
    save_state(
        RunFolder(tmp_path / "run"), {k: v for k, v in tensors.items() if "bias" not in k}, **facts
    )
    with pytest.raises(RuntimeError, match="that of another network") as error:
        last(train(mlp(), points(), replace(CONFIG, kimg=0.064), tmp_path / "run"))
    assert "\n" not in str(error.value)


# ---- logs, folders, limits, signals


def test_a_damaged_line_costs_that_line(tmp_path):
    last(train(mlp(), points(), CONFIG, tmp_path / "run"))
    file = tmp_path / "run" / "metrics.jsonl"
    whole = RunFolder(tmp_path / "run").records()
    file.write_bytes(
        b"\xff\xfe{\n"
        + b"[" * 100_000
        + b'\n3\n"text"\n{"kimg": "many"}\n{"kimg": {}}\n'
        + file.read_bytes()
        + b'{"kimg": 0.5, "value": 1}\n'
    )
    assert RunFolder(tmp_path / "run").records() == whole + [dict(kimg=0.5, value=1)]
    assert last(train(mlp(), points(), replace(CONFIG, kimg=0.048), tmp_path / "run")).step == 3


def test_records_are_strict_json(tmp_path):
    RunFolder(tmp_path).record(value=math.nan, high=math.inf, kimg=1)
    assert json.loads(
        (tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda c: pytest.fail(c)
    ) == dict(run=tmp_path.name, value=None, high=None, kimg=1)


def test_a_folder_in_the_home_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder("~/x").path == tmp_path / "x"


@pytest.mark.parametrize("limit, steps", [(0, 1), (1e-9, 1), (None, 4)])
def test_a_limit_of_no_time_is_one_step(limit, steps):
    assert last(train(mlp(), points(), replace(CONFIG, kimg=0.064), time_limit=limit)).step == steps


def test_the_first_line_of_help_says_that_nothing_happens_yet():
    assert "nothing happens until it is iterated" in train.__doc__.splitlines()[0]


CHILD = """
import torch, time, sys
from ect_nb.diffusion import Precond
from ect_nb.networks import MLP
from ect_nb.training.config import Config
from ect_nb.training.loop import train
torch.manual_seed(0)
data = torch.randn(32, 2, generator=torch.Generator().manual_seed(1))
config = Config(kimg=160, batch=16, state_seconds=1e9)
for p in train(Precond(MLP(2, 8, 2)), data, config, sys.argv[1]):
    print(p.step, flush=True)
    {body}
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    "number, body",
    [(signal.SIGTERM, "time.sleep(0.01)"), (signal.SIGHUP, "pass"), (signal.SIGINT, "pass")],
)
def test_what_schedulers_send_saves_first(number, body, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(body=body), tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    seen = 0
    for line in child.stdout:
        seen = int(line)
        if seen == 3:
            child.send_signal(number)
    assert child.wait(60) in (
        (128 + number, -number) if number != signal.SIGINT else (1, 130, -number)
    )
    assert load_state(RunFolder(tmp_path / "run"))[1]["step"] >= seen >= 3


def test_signals_end_as_they_ask():
    with pytest.raises(KeyboardInterrupt):
        stop([signal.SIGINT])
    with pytest.raises(SystemExit) as error:
        stop([signal.SIGTERM])
    assert error.value.code == 128 + signal.SIGTERM


def test_handlers_are_those_of_before_when_a_run_is_over():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    last(train(mlp(), points(), CONFIG))
    assert before == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
