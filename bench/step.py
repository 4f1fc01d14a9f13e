"""The step of 00 and of the full CIFAR-10 network against the plain float32 step, stage by stage,
as ratios taken in turn in one process; and what the time of a step of 00 goes to.

Appends lines to bench/step.jsonl and writes bench/step.md from them. On a CPU it counts the seconds
of the processor (one thread), which other work on the machine stretches least; on a GPU those of
the clock.

usage: python bench/step.py [00] [full] [profile] [--device cpu] [--rounds 5] [--batch 32]
       python bench/step.py table"""

import argparse
import cifar
import datetime
import json
import os
import platform
import statistics
import time
import torch
from ect_nb.io import data, weights
from ect_nb.io.data import Pictures
from ect_nb.networks import classes_of, one_hot
from ect_nb.objectives import ECT
from ect_nb.schedules import Stages
from ect_nb.training.config import Config
from ect_nb.training.loop import draw, train
from ect_nb.training.speed import choose_precision, fast_precisions, residual_errors
from pathlib import Path
from torch.profiler import ProfilerActivity, profile

HERE = Path(__file__).parent
TEXT = """# The step, as ratios

Written by `python bench/step.py table` from `step.jsonl`. *Plain* is the recipe as one would first
write it: eager, float32, both branches for every row, RAdam and average parameter by parameter. A
ratio is its time over that of the kit's step in the same round, median [least, most]; above 1 the
kit is faster. The ways take turns in one process. bfloat16 is used where the processor has it and
the rule of the residual allows it; *float32* says that one of the two did not hold. A high load
says that other work ran beside."""


def processor():
    "The name of the processor, and what it does in half precision."
    name, flags = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").exists():
        lines = dict(
            map(str.strip, line.split(":", 1))
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if ":" in line
        )
        name, flags = lines.get("model name", name), lines.get("flags", "")
    has = [what for what in ("avx512_bf16", "amx_bf16") if what in flags.split()]
    level = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {level}, bfloat16 by {' and '.join(has) or 'no instruction'}"


def clock(work, device):
    "Seconds of `work()`."
    if device.type == "cuda":
        torch.cuda.synchronize()
    now = time.process_time if device.type == "cpu" else time.perf_counter
    began = now()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return now() - began


def spread(values):
    return [round(v, 3) for v in (min(values), statistics.median(values), max(values))]


def ratios(model, pictures, stage, batch, rounds, device, lasts):
    "One stage: the plain step over the kit's, with and without `channels_last`."
    base = Config(objective=ECT(c=0.03), kimg=1e9, batch=batch, stages=Stages(stage))
    x0, t, r, eps = draw(base, pictures, 0, stage, device)
    k = classes_of(model)
    told = dict(labels=one_hot(torch.arange(batch) % k, k).to(device)) if k else {}
    errors = residual_errors(model, x0, t, r, eps, fast_precisions(device), **told)
    chosen = dict(precision=choose_precision(errors))
    plain = cifar.Plain(model, device)
    inputs = x0, t.to(device), r.to(device), eps
    ways = {"plain": lambda: plain.step(*inputs, **told)}
    for last in lasts:
        config = Config(**vars(base) | chosen | dict(channels_last=last))
        run = train(model, pictures, config, device=device)
        ways["channels last" if last else "kit"] = lambda run=run: next(run)
    seconds = {name: [] for name in ways}
    for k in range(rounds + 1):
        for name, work in ways.items():
            took = clock(work, device)
            seconds[name] += [took] * (k > 0)
        print(f"  stage {stage}:", {n: round(s[-1], 3) for n, s in seconds.items() if s})
    return dict(
        stage=stage,
        share=round(float((r > 0).float().mean()), 2),
        precision=chosen["precision"],
        errors={k: round(v, 3) for k, v in errors.items()},
        seconds={name: spread(s) for name, s in seconds.items()},
        ratio={
            name: spread([a / b for a, b in zip(seconds["plain"], s)])
            for name, s in seconds.items()
            if name != "plain"
        },
    )


KINDS = {
    "convolutions, forward": ("mkldnn_convolution", "_slow_conv2d_forward", "cudnn_convolution"),
    "convolutions, back": ("convolution_backward", "mkldnn_convolution_backward"),
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "normalisation": ("native_group_norm", "native_group_norm_backward"),
    "activations": ("silu", "silu_backward", "_softmax", "_softmax_backward_data"),
}


def kind_of(event):
    "Which line of the table the time of an operation belongs to."
    name, above = event.name.removeprefix("aten::"), event
    while above is not None:
        if above.name.startswith("Optimizer."):
            return "optimiser"
        if above.name == "aten::_foreach_lerp_":
            return "average"
        above = above.cpu_parent
    return next((kind for kind, names in KINDS.items() if name in names), "all else")


def parts(model, pictures, batch, device, steps=3):
    "Shares of the time of a step at stage 3, by kind of operation."
    config = Config(objective=ECT(c=0.03), kimg=1e9, batch=batch, stages=Stages(3))
    run = train(model, pictures, config, device=device)
    next(run)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            next(run)
    spent = {}
    for event in seen.events():
        kind = kind_of(event)
        spent[kind] = spent.get(kind, 0) + event.self_cpu_time_total
    whole = sum(spent.values())
    return {k: round(v / whole, 3) for k, v in sorted(spent.items(), key=lambda a: -a[1])}


def table():
    lines = [json.loads(line) for line in (HERE / "step.jsonl").read_text().splitlines()]
    text = [TEXT]
    for name in dict.fromkeys((line["what"], line["batch"], line["machine"]) for line in lines):
        here = [a for a in lines if (a["what"], a["batch"], a["machine"]) == name]
        text.append(f"## {name[0]}, batch {name[1]}\n\n{name[2]}; load {here[-1]['load']}.")
        rows = []
        if "shares" in here[-1]:
            rows = [["what", "share of a step"], ["---"] * 2]
            rows += [[k, f"{v:.1%}"] for k, v in here[-1]["shares"].items()]
        else:
            heads = ["stage", "second pass for", "arithmetic", "plain / kit"]
            heads += ["plain / kit, channels last", "plain, s"]
            rows = [heads, ["---"] * len(heads)]
            say = lambda q: "{1:.2f} [{0:.2f}, {2:.2f}]".format(*q) if q else "–"
            for a in here:
                kit, last = (a["ratio"].get(k) for k in ("kit", "channels last"))
                start = [a["stage"], f"{a['share']:.0%}", a["precision"]]
                rows.append([*start, say(kit), say(last), say(a["seconds"]["plain"])])
        text.append("\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows))
    (HERE / "step.md").write_text("\n\n".join(text) + "\n")


def write(device, batch, **line):
    on = processor() if device.type == "cpu" else torch.cuda.get_device_name(device)
    threads = f", {torch.get_num_threads()} thread" if device.type == "cpu" else ""
    line |= dict(
        batch=batch,
        machine=f"{on}{threads}, torch {torch.__version__}",
        load=round(os.getloadavg()[0], 1),
        date=datetime.date.today().isoformat(),
    )
    with (HERE / "step.jsonl").open("a") as f:
        f.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def main():
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["00", "full", "profile", "table"]
    args.add_argument("what", nargs="*", help=", ".join(names), default=names[:3])
    args.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--batch", type=int, default=32)
    args.add_argument("--stages", type=int, nargs="+", default=[0, 1, 3, 5])
    args.add_argument("--channels-last", action="store_true", help="that too")
    args = args.parse_args()
    device, lasts = torch.device(args.device), [False, True][: 1 + args.channels_last]
    if device.type == "cpu":
        torch.set_num_threads(1)
    how = args.batch, args.rounds, device, lasts
    clothes = data.load("fashion_mnist_20k").to(device)
    start = weights.load(data.find("fashion_mnist_classes.safetensors"), device=device)
    noise = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    for what in args.what:
        if what == "profile":
            write(device, args.batch, what=what, shares=parts(start, clothes, args.batch, device))
        for stage in args.stages if what in ("00", "full") else ():
            pair = start, clothes
            if what == "full":
                full = cifar.network(argparse.Namespace(weights=None)).to(device)
                pair = full, Pictures(noise).to(device)
            write(device, args.batch, what=what, **ratios(*pair, stage, *how))
    table()


if __name__ == "__main__":
    main()
