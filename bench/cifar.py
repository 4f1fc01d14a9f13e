"""The step of the full CIFAR-10 network (55.7 million parameters): the kit against a plain eager
step of the recipe, stage by stage, in one run.

Every round times the two in turn and takes their ratio, so that a slow minute hits both. Appends
lines to bench/cifar.jsonl and writes bench/cifar.md from all of them.

usage: python bench/cifar.py --device cuda stages 0 1 3 5 7, batch 128, compiled; loss agreement;
sampling python bench/cifar.py --stages 0 3 7 --rounds 3 on a CPU: batch 8, eager python
bench/cifar.py table"""

import argparse
import copy
import datetime
import json
import platform
import statistics
import time
import torch
from ect_nb.diffusion import Precond
from ect_nb.io.data import Pictures
from ect_nb.networks import edm_cifar10
from ect_nb.sampling import sample
from ect_nb.schedules import Stages
from ect_nb.training import speed
from ect_nb.training.config import Config
from ect_nb.training.loop import draw, train
from ect_nb.training.speed import choose_precision, fast_precisions, residual_errors
from pathlib import Path

HERE = Path(__file__).parent
SHAPE = (3, 32, 32)
TEXT = """# The step of the full CIFAR-10 network

Written by `python bench/cifar.py table` from `cifar.jsonl`; each line there is one stage of one run
of `python bench/cifar.py`. The network is `networks.edm_cifar10(dropout=0.2)`
with random weights, its last layers woken up (scaled to the size of all others) so that its body
has a say in the residual; the pictures are noise. Speed depends on neither; the
arithmetic, chosen by the rule of the residual's error (at most 0.3), does: with trained weights
(`--weights`) it may come out otherwise. *Plain* is the recipe as one would
first write it: eager, both branches for every row, RAdam and EMA parameter by parameter, dropout
drawn by torch. *Ratio* is the time of the plain step over that of the kit's in the same round,
median [quartiles]; above 1 the kit is faster. MFU counts the passes that the step needs (3 + the
share of rows with r > 0), over the published peak of the device in that arithmetic.
Lines of a CPU are from a machine that had much other work at the time: their spread says how little
they settle. The line below 1 was taken with channels last, which is for tensor cores and off on a
CPU since; stage 3 without it is still owed (`python bench/step.py full --stages 3`).
{owed}"""


def wake(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("weight") and any(
                part in name for part in ("conv1.", "proj.", "aux_conv.")
            ):
                p.mul_(1e5)
    return model


def network(args):
    if args.weights:
        from ect_nb.io import weights

        return weights.load(args.weights)
    torch.manual_seed(0)
    return wake(Precond(edm_cifar10(dropout=0.2)))


class Plain:
    """The recipe in plain PyTorch: float32, eager, nothing shared or skipped; dropout repeats by
    putting the random state back."""

    def __init__(self, model, device, tf32=False, lr=1e-4):
        self.model, self.tf32 = _torch_dropout(copy.deepcopy(model)).to(device).train(), tf32
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.RAdam(self.model.parameters(), lr, foreach=False)

    def step(self, x0, t, r, eps, **told):
        switch(self.tf32)
        level, device = lambda s: s.reshape(-1, 1, 1, 1), x0.device
        state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
        f_t = self.model(x0 + level(t) * eps, t, **told)
        (
            torch.cuda.set_rng_state(state, device)
            if device.type == "cuda"
            else torch.set_rng_state(state)
        )
        with torch.no_grad():
            f_r = self.model(x0 + level(r) * eps, torch.where(r > 0, r, t), **told)
        target = torch.where(level(r) > 0, f_r, x0)
        loss = ((f_t - target).square().flatten(1).sum(1).add(1e-12).sqrt() / (t - r)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for a, p in zip(self.ema.parameters(), self.model.parameters()):
                a.lerp_(p, 1e-4)
        return loss.detach()


def _torch_dropout(model):
    for m in list(model.modules()):
        if hasattr(m, "dropout"):
            m.dropout = torch.nn.Dropout(m.dropout.p)
    return model


def switch(tf32):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def clock(work, device, inner):
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(inner):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / inner


def peak_of(work, device):
    """What `work()` gives, and the peak of memory in GB during it on a GPU, or of the process so
    far on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return work(), speed.peak_memory(device) / 1e9


def spread(values):
    return (
        [round(v, 3) for v in statistics.quantiles(values, n=4, method="inclusive")]
        if len(values) > 1
        else [round(values[0], 3)] * 3
    )


def stage_line(model, pictures, stage, args, device):
    "One stage: seconds of the kit's step and of the plain ones, paired."
    base = Config(kimg=1e9, batch=args.batch, stages=Stages(start=stage))
    x0, t, r, eps = draw(base, pictures, 0, stage, device)
    errors = residual_errors(
        model, *(a[: args.measure] for a in (x0, t, r, eps)), fast_precisions(device)
    )
    precision = choose_precision(errors)
    config = Config(
        **vars(base)
        | dict(precision=precision, compile=args.compile, channels_last=args.channels_last)
    )
    aim, run = config.objective, train(model, pictures, config, device=device)

    def kit():
        switch(precision == "tf32")
        next(run)

    plains = {"float32": Plain(model, device)} | (
        {"TF32": Plain(model, device, True)} if device.type == "cuda" else {}
    )
    inputs = x0, t.to(device), r.to(device), eps
    memory = {"kit": peak_of(lambda: [kit() for _ in range(args.warm)], device)[1]}
    memory |= (
        {k: peak_of(lambda: p.step(*inputs), device)[1] for k, p in plains.items()}
        if device.type == "cuda"
        else {}
    )
    seconds = {k: [] for k in ("kit", *plains)}
    for _ in range(args.rounds):
        for k, work in {
            "kit": kit,
            **{k: lambda p=p: p.step(*inputs) for k, p in plains.items()},
        }.items():
            seconds[k].append(clock(work, device, args.inner))
        print(f"  stage {stage}:", {k: round(v[-1], 3) for k, v in seconds.items()}, flush=True)
    run.close()
    switch(False)
    share, middle = float((r > 0).float().mean()), statistics.median(seconds["kit"])
    top = args.peak or (
        speed.peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    )
    work = (
        speed.step_flops(
            model,
            SHAPE,
            float(
                (aim.mapping(aim.p_t.quantile((torch.arange(1000) + 0.5) / 1000), stage) > 0)
                .float()
                .mean()
            ),
        )
        * args.batch
    )
    return dict(
        bench="step",
        stage=stage,
        precision=precision,
        errors={k: round(v, 3) for k, v in errors.items()},
        share=round(share, 3),
        ms=round(1000 * middle, 1),
        pictures_per_second=round(args.batch / middle, 1),
        ratio={k: spread([a / b for a, b in zip(seconds[k], seconds["kit"])]) for k in plains},
        tera_a_second=round(work / middle / 1e12, 3),
        mfu=round(speed.utilisation(work, middle, top), 3) if top else None,
        memory_GB={k: round(v, 2) for k, v in memory.items()},
        rounds=args.rounds,
        compile=args.compile,
        channels_last=args.channels_last,
    )


def agreement(model, pictures, stage, args, device):
    """The mean loss of the last half of `args.agree` steps, kit and plain, three seeds each on the
    same rows, levels and noise: their difference beside the spread of seeds."""
    ends = {"kit": [], "plain": []}
    for seed in range(3):
        x0, t, r, eps = draw(Config(batch=args.measure), pictures, 0, stage, device)
        precision = choose_precision(residual_errors(model, x0, t, r, eps, fast_precisions(device)))
        config = Config(
            kimg=args.agree * args.batch / 1000,
            batch=args.batch,
            stages=Stages(start=stage),
            seed=seed,
            precision=precision,
            compile=args.compile,
            channels_last=args.channels_last,
        )
        ours = [p.loss for p in train(model, pictures, config, device=device)]
        plain = Plain(model, device)
        theirs = [
            plain.step(*(a.to(device) for a in draw(config, pictures, i, stage, device)))
            for i in range(args.agree)
        ]
        for k, losses in (("kit", ours), ("plain", theirs)):
            ends[k].append(float(torch.stack(losses[args.agree // 2 :]).mean()))
        print("  agreement:", ends, flush=True)
    gap = statistics.mean(a - b for a, b in zip(ends["kit"], ends["plain"]))
    return dict(
        bench="agreement",
        stage=stage,
        steps=args.agree,
        precision=precision,
        loss={k: [round(v, 4) for v in vs] for k, vs in ends.items()},
        gap=round(gap, 4),
        spread_of_seeds=round(statistics.stdev(ends["plain"]), 4),
    )


def sampling(model, args, device):
    precision, n = fast_precisions(device)[:1] or ["float32"], args.samples
    model = copy.deepcopy(model).to(device).eval()
    speed.set_precision(model, precision[0])
    z, rates = torch.randn(n, *SHAPE, device=device), {}
    for steps, times in ((1, (80.0,)), (2, (80.0, 0.821))):
        sample(model, z, times)
        rates[steps] = round(
            n
            / statistics.median(
                clock(lambda: sample(model, z, times), device, 1) for _ in range(args.rounds)
            ),
            1,
        )
    switch(False)
    return dict(bench="sampling", precision=precision[0], batch=n, pictures_per_second=rates)


def table():
    lines = [json.loads(l) for l in (HERE / "cifar.jsonl").read_text().splitlines()]
    where = lambda l: f"{l['device']}, torch {l['torch']}, batch {l['batch']}, {l['date']}"
    parts = [
        TEXT.format(
            owed=(
                ""
                if any("cuda" in l["device"] for l in lines)
                else (
                    "\nNo GPU was at hand: the figures for one are still owed. `python"
                    " bench/cifar.py --device cuda` makes them."
                )
            )
        )
    ]
    for place in dict.fromkeys(map(where, lines)):
        here = [l for l in lines if where(l) == place]
        rows = [
            [
                "stage",
                "arithmetic",
                "second pass for",
                "ms a step",
                "pictures / s",
                "10¹² operations / s",
                "MFU",
                "GB",
                *[f"plain {k} / kit" for k in here[0].get("ratio", {})],
                "compiled",
                "channels last",
            ]
        ]
        for l in (l for l in here if l["bench"] == "step"):
            rows.append(
                [
                    l["stage"],
                    l["precision"],
                    f"{l['share']:.0%}",
                    l["ms"],
                    l["pictures_per_second"],
                    l["tera_a_second"],
                    l["mfu"] or "–",
                    l["memory_GB"]["kit"],
                    *["{1:.2f} [{0:.2f}, {2:.2f}]".format(*q) for q in l["ratio"].values()],
                    *("yes" if l[k] else "no" for k in ("compile", "channels_last")),
                ]
            )
        text = "\n".join(
            "| " + " | ".join(map(str, r)) + " |"
            for r in [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        )
        for l in here:
            if l["bench"] == "sampling":
                text += (
                    f"\n\nSampling in {l['precision']}, {l['batch']} at a time:"
                    f" {l['pictures_per_second']['1']} pictures a second with one evaluation,"
                    f" {l['pictures_per_second']['2']} with two."
                )
            if l["bench"] == "agreement":
                text += (
                    f"\n\nLoss over the second half of {l['steps']} steps at stage {l['stage']},"
                    f" three seeds: kit ({l['precision']}) {l['loss']['kit']}, plain"
                    f" {l['loss']['plain']}; mean difference {l['gap']}, standard deviation between"
                    f" seeds {l['spread_of_seeds']}."
                )
        parts.append(f"## {place}\n\n{text}")
    (HERE / "cifar.md").write_text("\n\n".join(parts) + "\n")


def main():
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("what", nargs="?", choices=["run", "table"], default="run")
    args.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args.add_argument("--batch", type=int)
    args.add_argument("--rounds", type=int)
    args.add_argument("--stages", type=int, nargs="*")
    args.add_argument("--inner", type=int, help="steps per timing")
    args.add_argument("--agree", type=int, help="steps of the comparison of losses, 0 for none")
    args.add_argument("--samples", type=int, help="pictures sampled at a time")
    args.add_argument("--weights", help="a checkpoint in place of random weights")
    args.add_argument(
        "--peak", type=float, help="operations a second of a device that speed.PEAKS does not know"
    )
    args.add_argument("--compile", action=argparse.BooleanOptionalAction)
    args.add_argument("--channels-last", action=argparse.BooleanOptionalAction)
    args = args.parse_args()
    if args.what == "table":
        return table()
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    for name, values in dict(
        batch=(8, 128),
        rounds=(3, 7),
        stages=([0, 3, 7], [0, 1, 3, 5, 7]),
        inner=(1, 5),
        agree=(0, 100),
        samples=(8, 250),
        compile=(False, True),
        channels_last=(False, True),
    ).items():
        if getattr(args, name) is None:
            setattr(args, name, values[gpu])
    args.measure, args.warm = (64, 4) if gpu else (8, 1)
    name = (
        f"cuda {torch.cuda.get_device_name(device)}"
        if gpu
        else (
            f"cpu {platform.machine()}, {torch.backends.cpu.get_cpu_capability()},"
            f" {torch.get_num_threads()} thread(s)"
        )
    )
    facts = dict(
        device=name,
        torch=torch.__version__,
        batch=args.batch,
        date=datetime.date.today().isoformat(),
    )

    def write(line):
        with (HERE / "cifar.jsonl").open("a") as f:
            f.write(json.dumps(line | facts) + "\n")
        print(json.dumps(line), flush=True)

    pictures = Pictures(
        torch.randint(
            0, 256, (1024, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    ).to(device)
    model = network(args).to(device)
    for stage in args.stages:
        write(stage_line(model, pictures, stage, args, device))
    if args.agree:
        write(agreement(model, pictures, 3, args, device))
    write(sampling(model, args, device))
    table()


if __name__ == "__main__":
    main()
