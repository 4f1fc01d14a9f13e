"""The fast path: compiled, channels-last, in half precision, without waiting; each against the
plain way to the same numbers, and counts of work against counts by hand."""

import copy
import json
import math
import pytest
import torch
from dataclasses import replace
from ect_nb.diffusion import Precond
from ect_nb.losses import ect_loss
from ect_nb.networks import MLP, Block, Conv2d, Dropout, UNet, place_dropout, shared_dropout
from ect_nb.objectives import ECT
from ect_nb.schedules import LogNormal, SigmoidMapping, Stages
from ect_nb.training import loop, speed
from ect_nb.training.config import Config
from ect_nb.training.loop import draw, train
from ect_nb.training.runs import RunFolder, checksum, load_state
from torch import nn

POINTS = torch.randn(48, 2, generator=torch.Generator().manual_seed(0))
PICTURES = torch.rand(32, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def seeded(make, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make()


def awake(model):
    "With its last layers, nearly zero at birth, woken up so that the body has a say."
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(part in name for part in ("conv1", "proj", "aux_conv")):
                p.add_(torch.randn_like(p) * 0.1)
    return model


def mlp(dropout=0.2):
    return seeded(lambda: Precond(MLP(2, 16, 2, dropout)))


def unet(dropout=0.2, resolution=4):
    return seeded(lambda: awake(Precond(UNet(resolution, 1, 8, (1,), 1, (resolution,), dropout))))


def settings(steps=8, **kw):
    return replace(
        Config(
            kimg=steps * 16 / 1000, batch=16, lr=1e-2, ema=0.9, stages=Stages(1), state_seconds=1e9
        ),
        **kw,
    )


def last(run):
    for p in run:
        pass
    return p


# --- masks


class OldTape:
    """The masks of dropout as they were drawn when the kit began: one by one inside the pass, in
    its order."""

    def __init__(self, generator):
        self.generator, self.masks, self.rows, self.next = generator, [], None, None

    def replay(self, rows=None):
        self.rows, self.next = rows, 0

    def mask(self, p, x):
        if self.next is None:
            keep = torch.rand(x.shape, generator=self.generator) >= p
            self.masks.append(keep)
        else:
            keep, self.next = self.masks[self.next], self.next + 1
            if self.rows is not None:
                keep = keep[self.rows]
        return x * (keep.to(x.dtype) / (1 - p))


def shapes(model):
    return (3, 1, 4, 4) if isinstance(model.net, UNet) else (3, 2)


@pytest.mark.parametrize("make", [mlp, unet])
def test_masks_are_the_very_ones_of_old(make, monkeypatch):
    "So that a run which an earlier version began goes on to the same bits."
    model = make().train()
    x, t, rows = torch.randn(shapes(model)), torch.tensor([0.5, 1.0, 2.0]), torch.tensor([2, 0])
    for placed in (False, True):
        if placed:
            place_dropout(model, x[:1], t[:1])
        with shared_dropout(model, torch.Generator().manual_seed(3), x) as tape:
            first = model(x, t)
            tape.replay(rows)
            again = model(x[rows], t[rows])
        old = OldTape(torch.Generator().manual_seed(3))
        with monkeypatch.context() as m:
            m.setattr(Dropout, "forward", lambda self, x: old.mask(self.p, x))
            wanted = model(x, t)
            old.replay(rows)
            wanted_again = model(x[rows], t[rows])
        assert (
            torch.equal(first, wanted)
            and torch.equal(again, wanted_again)
            and len(old.masks) == len(tape.masks) >= 2
        )


def test_masks_drawn_before_the_pass_leave_no_dice_for_it(monkeypatch):
    model = unet().train()
    place_dropout(model, torch.zeros(1, 1, 4, 4), torch.ones(1))
    x, t = torch.randn(3, 1, 4, 4), torch.ones(3)
    with shared_dropout(model, torch.Generator().manual_seed(3), x) as tape:
        monkeypatch.setattr(
            torch, "rand", lambda *a, **kw: pytest.fail("a die was rolled in the pass")
        )
        model(x, t)
        tape.replay()
        model(x, t)


def test_a_dropout_asked_twice_still_repeats_but_cannot_be_placed():
    class Twice(nn.Module):
        shares_dropout = True

        def __init__(self):
            super().__init__()
            self.drop = Dropout(0.5)

        def forward(self, x, t):
            return self.drop(self.drop(x))

    model, x = Twice(), torch.ones(4, 50)
    with shared_dropout(model) as tape:
        first = model(x, None)
        tape.replay(torch.tensor([3, 1]))
        assert torch.equal(model(x[:2], None), first[[3, 1]])
    with pytest.raises(ValueError, match="twice"):
        place_dropout(model, x, None)


# --- compiled


def levels(i, n=16):
    g = torch.Generator().manual_seed(i)
    t = LogNormal().sample(n, g)
    r = t * torch.rand(n, generator=g)
    r[: [3, 7, 0, 5, 9, 3][i % 6]] = 0
    return t, r


class OneBlock(nn.Module):
    """The smallest picture network with everything a U-Net has: a residual block with dropout and
    attention."""

    shares_dropout = True

    def __init__(self):
        super().__init__()
        self.block, self.out = Block(8, 8, 8, attention=True, dropout=0.2), Conv2d(8, 1, 3)

    def forward(self, x, c):
        return self.out(self.block(x.expand(-1, 8, -1, -1), c[:, None].expand(-1, 8)))


def test_a_compiled_step_gives_the_eager_numbers():
    "Inductor's own kernels, dropout included; and with r = t both branches are one."
    eager = seeded(lambda: awake(Precond(OneBlock()))).train()
    fast = copy.deepcopy(eager)
    speed.compile_in_place(fast, PICTURES[:1])
    x0, eps = PICTURES[:16], torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    for i in range(3):
        t, r = levels(i)
        a, b = (
            ect_loss(m, x0, t, r, eps, generator=torch.Generator().manual_seed(i))
            for m in (eager, fast)
        )
        for loss in (a, b):
            loss.sum().backward()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for p, q in zip(eager.parameters(), fast.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3 * float(p.grad.abs().max()))
    t, _ = levels(0)
    loss = ect_loss(
        fast,
        x0,
        t,
        t * 1,
        eps,
        weight=lambda t, r: torch.ones_like(t),
        generator=torch.Generator().manual_seed(9),
    )
    assert float(loss.detach().max()) < 1e-6 * float(eps.norm()) * 80
    assert copy.deepcopy(fast)._compiled_call_impl is None and [k for k in fast.state_dict()] == [
        k for k in eager.state_dict()
    ]


@pytest.mark.slow
def test_the_loop_compiles_a_few_graphs_and_then_no_more(monkeypatch):
    from torch._dynamo.utils import counters

    monkeypatch.setattr(
        loop,
        "compile_in_place",
        lambda model, x0: speed.compile_in_place(model, x0, backend="aot_eager"),
    )
    torch._dynamo.reset()
    counters.clear()
    seen, rows = [], set()
    config = settings(
        40, compile=True, stages=Stages(0, 160, 3), objective=ECT(mapping=SigmoidMapping(q=1.5))
    )
    run = train(unet(), PICTURES, config)
    for p in run:
        seen.append(counters["stats"]["unique_graphs"])
        rows.add(int((draw(config, PICTURES, p.step - 1, p.stage, "cpu")[2] > 0).sum()))
    assert len(rows) > 5 and 2 <= seen[-1] <= 4 and not counters["graph_break"]
    plain = last(train(unet(), PICTURES, replace(config, compile=False)))
    for a, b in zip(p.ema.parameters(), plain.ema.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


def test_a_compiled_run_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(
        loop,
        "compile_in_place",
        lambda model, x0: speed.compile_in_place(model, x0, backend="aot_eager"),
    )
    config = settings(6, compile=True)
    run = train(mlp(), POINTS, config, tmp_path / "a")
    for p in run:
        if p.step == 3:
            break
    run.close()
    p, q = last(train(mlp(), POINTS, config, tmp_path / "a")), last(train(mlp(), POINTS, config))
    for a, b in zip(p.ema.parameters(), q.ema.parameters()):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="its compile is True, not False"):
        next(train(mlp(), POINTS, settings(6), tmp_path / "a"))
    torch._dynamo.reset()


def test_a_network_of_another_kind_is_not_compiled():
    with pytest.raises(ValueError, match="compile=False"):
        next(train(seeded(lambda: Other()), POINTS, settings(2, compile=True)))


class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.drop = nn.Linear(2, 2), nn.Dropout(0.5)

    def forward(self, x, t):
        return self.drop(self.a(x))


# --- old runs, channels last, the optimiser


def test_a_run_from_before_these_settings_goes_on(tmp_path):
    config = settings(6)
    run = train(mlp(), POINTS, config, tmp_path / "old")
    for p in run:
        if p.step == 3:
            break
    run.close()
    file = tmp_path / "old" / "config.json"
    was = json.loads(file.read_text())
    for key in ("compile", "channels_last"):
        del was["config"][key]
    file.write_text(json.dumps(was))
    with pytest.raises(ValueError, match="channels_last"):
        next(train(mlp(), POINTS, settings(6, channels_last=True), tmp_path / "old"))
    p, q = last(train(mlp(), POINTS, config, tmp_path / "old")), last(train(mlp(), POINTS, config))
    assert (
        checksum(p.ema.state_dict()) == checksum(q.ema.state_dict())
        and json.loads(file.read_text())["config"]["compile"] is False
    )


def test_channels_last_changes_only_rounding_and_continues_to_the_same_bits(tmp_path):
    config = settings(6, channels_last=True)
    for name, stop in (("a", None), ("b", 3)):
        run = train(unet(), PICTURES, config, tmp_path / name)
        for p in run:
            if p.step == stop:
                break
        run.close()
    b = last(train(unet(), PICTURES, config, tmp_path / "b"))
    a = load_state(RunFolder(tmp_path / "a"))[0]
    assert checksum(a) == checksum(load_state(RunFolder(tmp_path / "b"))[0])
    weight = next(p for n, p in b.model.named_parameters() if n.endswith("conv0.weight"))
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    plain = last(train(unet(), PICTURES, settings(6)))
    for p, q in zip(b.model.parameters(), plain.model.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


@cuda
@pytest.mark.parametrize("name, fused", [("Adam", True), ("AdamW", True), ("RAdam", None)])
def test_the_optimiser_is_fused_where_torch_can(name, fused):
    optimizer = speed.optimizer_of(
        name, [nn.Parameter(torch.zeros(2, device="cuda"))], "cuda", lr=1e-3
    )
    assert optimizer.defaults.get("fused") == fused and bool(optimizer.defaults["foreach"]) == (
        fused is None
    )


# --- nobody waits


@cuda
@pytest.mark.parametrize(
    "kw",
    [
        {},
        dict(precision="bfloat16", channels_last=True),
        dict(optimizer="Adam"),
        dict(compile=True),
    ],
)
def test_no_step_waits_for_the_gpu(kw):
    model = seeded(lambda: Precond(UNet(8, 1, 16, (1, 2), 1, (4,), 0.2)))
    run = train(
        model, torch.rand(64, 1, 8, 8) * 2 - 1, settings(12, stages=Stages(1), **kw), device="cuda"
    )
    for _ in range(6):
        next(run)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            next(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- float16 with a scaler


def spoiled(at):
    "A run in float16 in which the backward pass of step `at` overflows; the look before it is one."

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * math.inf

    class Model(Precond):
        passes = 0

        def forward(self, x, t, **kw):
            y = super().forward(x, t, **kw)
            if not torch.is_grad_enabled():
                return y
            self.passes += 1
            return Spoil.apply(y) if self.passes == at + 1 else y

    base = unet()
    model = Model(base.net)
    return model


def test_an_overflow_skips_the_step_and_lowers_the_scale(tmp_path):
    config, seen = settings(5, precision="float16", optimizer="Adam"), []
    for p in train(spoiled(3), PICTURES, config, tmp_path / "run"):
        seen.append((copy.deepcopy(p.model.state_dict()), copy.deepcopy(p.ema.state_dict())))
    same = [all(torch.equal(a[0][k], b[0][k]) for k in a[0]) for a, b in zip(seen, seen[1:])]
    tensors, facts = load_state(RunFolder(tmp_path / "run"))
    scales = facts["scaler"]
    assert same.index(True) == 1 and same.count(True) == 1  # step 3, the second pair, moved nothing
    assert scales["scale"] == 2.0**15 and tensors["optimizer.0.step"] == 4 and p.step == 5
    for k, v in seen[2][1].items():
        torch.testing.assert_close(
            v, torch.lerp(seen[1][1][k], seen[1][0][k], 0.1) if v.is_floating_point() else v
        )  # the average goes on towards what stands
    assert all(v.isfinite().all() for v in tensors.values())


def test_half_precision_with_a_scaler_learns_at_c_0_with_rows_that_agree():
    """Rows with S = 0 (r = t) and c = 0 give gradients 0, not nan, through the scaler; the loss of
    a small network falls as in float32."""
    model = unet(dropout=0.0).train()
    loop.set_precision(model, "float16")
    t, r = levels(1)
    r[-4:] = t[-4:]
    loss = ect_loss(
        model,
        PICTURES[:16],
        t,
        r,
        torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(2)),
    )
    (torch.amp.GradScaler("cpu").scale(loss.mean())).backward()
    assert (loss[-4:] == 0).all() and all(p.grad.isfinite().all() for p in model.parameters())
    ends = {}
    for precision in ("float32", "float16"):
        losses = [
            float(p.loss)
            for p in train(
                unet(0.0), PICTURES, settings(60, precision=precision, stages=Stages(0), lr=3e-3)
            )
        ]
        ends[precision] = sum(losses[-15:]) / sum(losses[:15])
    assert ends["float16"] < 0.95 and ends["float16"] == pytest.approx(ends["float32"], abs=0.05)


# --- a limit of time


def test_a_time_limit_ends_a_call_at_a_whole_step_and_the_next_goes_on(tmp_path):
    config, calls, steps = settings(12), 0, []
    while not steps or steps[-1] < 12:
        run = train(mlp(), POINTS, config, tmp_path / "run", time_limit=1e-6)
        steps += [p.step for p in run]
        calls += 1
    assert (
        steps == list(range(1, 13)) and calls == 12
    )  # a limit that has passed still lets one step be done
    assert checksum(load_state(RunFolder(tmp_path / "run"))[0]) == checksum(
        load_state(RunFolder(straight(tmp_path, config)))[0]
    )
    assert [p.step for p in train(mlp(), POINTS, settings(3), time_limit=1e9)] == [1, 2, 3]


def straight(tmp_path, config):
    last(train(mlp(), POINTS, config, tmp_path / "straight"))
    return tmp_path / "straight"


# --- what is counted


def test_operations_are_those_counted_by_hand():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 5)

        def forward(self, x, t):
            return self.out(self.conv(x).flatten(1))

    model = Small()
    assert speed.flops(model, (3, 4, 4)) == 2 * (16 * 8 * 27 + 128 * 5) and speed.step_flops(
        model, (3, 4, 4), 0.5
    ) == 3.5 * speed.flops(model, (3, 4, 4))
    assert next(model.parameters()).device.type == "cpu"


def test_operations_of_attention_are_counted():
    with_, without = (
        speed.flops(Precond(UNet(8, 1, 16, (1,), 1, a)), (1, 8, 8)) for a in ((8,), ())
    )
    tokens, c = 64, 16
    per = (
        2 * tokens * c * 4 * c + 2 * 2 * tokens**2 * c
    )  # qkv and proj, then two products of all pairs of tokens
    assert (
        with_ - without == 2 * per
    )  # in one block of the encoder and the last of the decoder; "in0" has it in both


def test_peaks_are_found_by_the_names_torch_gives():
    names = {
        "NVIDIA A100-SXM4-40GB": 312e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA L4": 121e12,
        "Tesla T4": None,
        "Tesla V100-SXM2-16GB": None,
        "NVIDIA L40S": None,
        "GeForce": None,
    }
    assert {n: speed.peak(n, "bfloat16") for n in names} == names and speed.peak(
        "Tesla T4", "float16"
    ) == 65e12
    assert speed.utilisation(3e12, 2.0, 6e12) == 0.25
    with pytest.raises(ValueError, match="data sheet"):
        speed.utilisation(1.0, 1.0, None)


def test_the_peak_of_memory_is_that_of_the_process():
    before = speed.peak_memory("cpu")
    block = torch.ones(60_000_000)
    assert (
        before > 1e7
        and speed.peak_memory("cpu") >= before
        and speed.peak_memory("cpu") > block.numel() * 4
    )
