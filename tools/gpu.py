"""All that this kit still owes on a GPU, by one command that is given again until nothing is left.

usage: ECT_NB_DATA=folder ECT_NB_INCEPTION=file python tools/gpu.py out/gpu [--runs runs/gpu]
       [--device cuda] [--minutes 9] [--only step small] [--scale 1]

In this order: `tests`, the CUDA tests; `step`, the step of the full CIFAR-10 network per stage
against the plain step in float32 and TF32, with MFU and peak memory; `small`, that preset on
CIFAR-10, diffusion and then ECT, eight snapshots measured in one and two steps; `fid`, with the
Inception file and 50,000 samples, `whole_seconds` from the first noise to the number; `fashion`, a
start of Fashion-MNIST trained to convergence.

Every call ends by itself after `--minutes` and says what it did and what is left. The folder
`out/gpu` then holds at most eight files of at most 16 MB: what was found (gpu.jsonl, gpu.md), a
sheet of samples, the start of Fashion-MNIST, and the runs in parts. Where `--runs` is empty, on a
machine that has nothing but these files, the runs are unpacked from them. `--scale 1e-4` tries
everything with few pictures, on a CPU too."""

import argparse
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = "torch torchvision numpy scipy safetensors filelock fastcore PIL tqdm".split()
PART, PARTS = 15_900_000, 4  # bytes of a part of the runs, and how many there may be
TESTS = "devices engine losses networks sampling bulk checkpoints".split()
STAGES = 0, 1, 3, 5, 7
SNAPSHOTS = 8


class Late(Exception):
    "The time of this call is used up; the next one goes on."


class Missing(Exception):
    "What cannot be done here at all, and why."


@dataclass
class Job:
    "Where things lie, how long there is, and what is known already."

    out: Path
    runs: Path
    device: str
    scale: float
    data: str
    tests: list
    until: float

    @property
    def left(self):
        return self.until - time.monotonic()

    def need(self, seconds):
        "Late unless `seconds`, fewer at a small scale, are left."
        if self.left < seconds * min(1, self.scale * 10):
            raise Late

    def lines(self, **wanted):
        "The lines of gpu.jsonl that say what is `wanted`."
        file = self.out / "gpu.jsonl"
        text = file.read_text("utf-8") if file.exists() else ""
        found = [json.loads(line) for line in text.splitlines()]
        return [line for line in found if line.items() >= wanted.items()]

    def write(self, **line):
        "One more line in gpu.jsonl, whole or not at all."
        from ect_nb.io import files

        line |= dict(machine=machine(self.device), scale=self.scale, date=str(date.today()))
        text = "".join(json.dumps(a) + "\n" for a in [*self.lines(), line])
        files.write_atomically(self.out / "gpu.jsonl", text.encode())
        print(json.dumps(line), flush=True)

    def count(self, n, least):
        "`n` at this scale."
        return max(least, round(n * self.scale))


def machine(device):
    import torch
    from ect_nb.training.runs import device_name

    return f"{device_name(torch.device(device))}, torch {torch.__version__}"


# the tests


def tests(job):
    "Each file by itself: a file that is cut off is begun again."
    if importlib.util.find_spec("pytest") is None:
        raise Missing("pytest is not installed")
    for name in job.tests or [f"tests/test_{t}.py" for t in TESTS]:
        if job.lines(task="tests", name=name):
            continue
        job.need(120)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", name]
        began = time.monotonic()
        try:
            limit = max(1, job.left - 5)
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            raise Late from None
        said = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1]
        seconds = round(time.monotonic() - began)
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        found = dict(code=done.returncode, said=said, failed=failed, seconds=seconds)
        job.write(task="tests", name=name, **found)


# the step


def step(job):
    "bench/cifar.py's line for each stage, as it stands and compiled."
    import torch

    sys.path.insert(0, str(ROOT / "bench"))
    import cifar
    from ect_nb.io.data import Pictures

    device, gpu = torch.device(job.device), job.device.startswith("cuda")
    whole = gpu and job.scale >= 1
    dice = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1024, 3, 32, 32), dtype=torch.uint8, generator=dice)
    model = (cifar.network(argparse.Namespace(weights=None)) if whole else tiny()).to(device)
    for compiled in (False, True) if gpu else (False,):
        for stage in STAGES if whole else STAGES[::2]:
            key = dict(task="step", stage=stage, compile=compiled)
            if job.lines(**key):
                continue
            job.need(200 if compiled else 90)
            args = argparse.Namespace(
                batch=128 if whole else 8,
                rounds=7 if whole else 2,
                inner=5 if whole else 1,
                warm=4 if whole else 1,
                measure=64 if whole else 8,
                compile=compiled,
                channels_last=gpu,
                peak=None,
            )
            line = cifar.stage_line(model, Pictures(noise).to(device), stage, args, device)
            job.write(**line | key)


def tiny(**more):
    "A network that a CPU trains in no time."
    import torch
    from ect_nb.diffusion import Precond
    from ect_nb.networks import UNet

    torch.manual_seed(0)
    return Precond(UNet(32, 3, 8, (1,), 1, (), patch=4, **more), sigma_data=0.5)


# the preset `small`


def phases(job):
    "The two settings of the preset at this scale, the second with eight snapshots."
    from ect_nb.training.recipes import PRESETS, scaled

    preset = scaled(PRESETS["small"], job.scale)
    first, second = preset.phases.values()
    kimg = max(second.kimg, SNAPSHOTS)
    first = replace(first, snapshot_kimg=0, state_seconds=20.0)
    second = replace(second, kimg=kimg, snapshot_kimg=int(kimg / SNAPSHOTS), state_seconds=20.0)
    if job.scale < 1:
        first = replace(first, batch=16, state_seconds=0.3)
        second = replace(second, batch=64, state_seconds=0.3)
    return preset, first, second


def cifar10(job):
    from ect_nb.io import data

    try:
        return data.load(job.data).to(job.device)
    except FileNotFoundError as e:
        raise Missing(f"CIFAR-10 is not at hand ({e})") from None


def trained(job, name, begin, pictures, config, then=lambda: None):
    """The file of the model `name`, in float16, trained as far as this call allows from what
    `begin()` gives; `then()` is done with the snapshots there are, also where time runs out."""
    import torch
    from ect_nb.io import weights
    from ect_nb.training.loop import train

    file = job.runs / f"{name}.safetensors"
    if not file.exists():
        job.need(60)
        last = None
        limit = max(0.0, job.left - 45 * min(1, job.scale * 10))
        for last in train(begin(), pictures, config, job.runs / name, job.device, None, limit):
            pass
        then()
        if last.done < 1:
            raise Late
        facts = dict(run=name, images=last.images, seconds=round(last.seconds), seed=config.seed)
        weights.save(last.ema, file, torch.float16, machine=machine(job.device), **facts)
    then()
    return file


def small(job):
    "Diffusion, then ECT from it; each snapshot in one and two steps, from the same noise."
    from ect_nb.training.recipes import begin

    pictures = cifar10(job)
    preset, first, second = phases(job)
    fresh = (lambda: begin(preset)) if job.scale >= 1 else tiny
    start = trained(job, "cifar10-small-diffusion", fresh, pictures, first)
    walk(job, "cifar10-small-diffusion", start, pictures)
    look = partial(snapshots, job, "cifar10-small", pictures, preset.times)
    tuned = lambda: begin(preset, start)
    trained(job, "cifar10-small", tuned, pictures, second, look)
    lines = job.lines(task="small", run="cifar10-small")
    sheet(job, "cifar10-small", preset.times)
    if len({line["kimg"] for line in lines}) < SNAPSHOTS:
        raise Missing(f"{len(lines)} measurements of {2 * SNAPSHOTS}: earlier snapshots are lost")


def eyes(name, device):
    from ect_nb.measure import features

    return features.small_features(name).to(device)


def walk(job, run, file, pictures, set="cifar10"):
    "The start of a run, walked with Heun's method."
    from ect_nb.diffusion import heun, karras_times
    from ect_nb.io import weights
    from ect_nb.measure import metrics
    from ect_nb.sampling import told

    task = "fashion" if set == "fashion_mnist" else "small"
    if job.lines(task=task, run=run, nfe=35):
        return
    job.need(60)
    how = dict(sampler=lambda f, z, g: heun(told(f), z, karras_times(18)), nfe=35)
    how |= dict(n=job.count(5000, 80), run=run)
    model = weights.load(file, device=job.device)
    job.write(task=task, **metrics.measure(model, pictures, eyes(set, job.device), **how))


def snapshots(job, run, pictures, times):
    "What is not measured yet of the snapshots that are there, while time lasts."
    from ect_nb.io import weights
    from ect_nb.measure import metrics
    from ect_nb.training.runs import RunFolder

    for kimg, path in RunFolder(job.runs / run).snapshots().items():
        for steps in ((80.0,), times):
            key = dict(task="small", run=run, kimg=kimg, nfe=len(steps))
            if job.lines(**key):
                continue
            job.need(20)
            model, n = weights.load(path, device=job.device), job.count(5000, 80)
            found = metrics.measure(model, pictures, eyes("cifar10", job.device), steps, n=n)
            job.write(**found | key)


def sheet(job, run, times):
    "Samples of every snapshot in two steps, one row each, from the same noise."
    import torch
    from ect_nb.io import files, weights
    from ect_nb.sampling import sample, told
    from ect_nb.show.pictures import sheet_png, tile
    from ect_nb.training.runs import RunFolder

    file, rows = job.out / f"{run}.png", []
    z = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(3)).to(job.device)
    for path in RunFolder(job.runs / run).snapshots().values():
        model, dice = weights.load(path, device=job.device), torch.Generator().manual_seed(4)
        with torch.no_grad():
            rows.append(sample(told(model), z, times, dice).cpu())
    if rows and not file.exists():
        files.write_atomically(file, sheet_png(tile(torch.cat(rows), 16), 2, optimize=True))


# FID


def fid(job):
    "The tuned model and the walk of its start, with Inception and 50,000 samples."
    from ect_nb.io import weights
    from ect_nb.measure import features, metrics
    from ect_nb.training.recipes import PRESETS

    file = os.environ.get("ECT_NB_INCEPTION")
    if not file or not Path(file).expanduser().is_file():
        raise Missing("ECT_NB_INCEPTION names no Inception file")
    model = job.runs / "cifar10-small.safetensors"
    if not model.exists():
        raise Missing("the model of the task small is not there yet")
    pictures, network = cifar10(job), features.inception(path=file).to(job.device)
    job.need(120)
    metrics.reference(pictures, network)
    for times in ((80.0,), PRESETS["small"].times):
        if job.lines(task="fid", nfe=len(times)):
            continue
        job.need(200)
        how = dict(n=job.count(50_000, 80), batch=500, run="cifar10-small")
        f, began = weights.load(model, device=job.device), time.monotonic()
        found = metrics.measure(f, pictures, network, times, **how)
        job.write(task="fid", whole_seconds=round(time.monotonic() - began, 1), **found)


# Fashion-MNIST


def fashion(job):
    "The start of 00 once more, for as long as it takes; its model lies beside the results."
    import torch
    from ect_nb.diffusion import Precond
    from ect_nb.io import data, files
    from ect_nb.networks import UNet
    from ect_nb.training.config import Config

    sys.path.insert(0, str(ROOT / "tools"))
    import make_fashion_diffusion as made

    def fresh():
        torch.manual_seed(0)
        return Precond(UNet(**made.PLAIN), sigma_data=0.5)

    whole, kimg = job.scale >= 1, max(6000 * job.scale, 0.064)
    config = Config.diffusion(
        kimg=kimg,
        batch=256 if whole else 8,
        lr=2e-3,
        warmup_kimg=kimg / 50,
        ema=0.9998 if whole else 0.99,
        precision="auto",
        state_seconds=20.0 if whole else 0.3,
    )
    pictures = data.load("fashion_mnist_20k").to(job.device)
    file = trained(job, "fashion-start", fresh, pictures, config)
    walk(job, "fashion-start", file, pictures, "fashion_mnist")
    files.write_atomically(job.out / "fashion-start.safetensors", file.read_bytes())


# the runs, to and fro


def pack(job):
    """The runs as parts in the folder of results: all of them, or, where that is too much, without
    states and snapshots. Says what stayed behind."""
    from ect_nb.io import files

    every = sorted(p for p in job.runs.rglob("*") if p.is_file() and not hidden(p, job.runs))
    light = [p for p in every if p.parent.name not in ("state", "snapshots")]
    for chosen in (every, light):
        if sum(p.stat().st_size + 1024 for p in chosen) < PARTS * PART - 20_000:
            break
    else:
        chosen = []
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for p in chosen:
            tar.add(p, p.relative_to(job.runs))
    whole = buffer.getvalue() if chosen else b""
    parts = [whole[i : i + PART] for i in range(0, len(whole), PART)]
    named = f"runs-{files.digest(whole, digits=8)}"
    for k, part in enumerate(parts):
        files.write_atomically(job.out / f"{named}-{k + 1}-of-{len(parts)}.part", part)
    for old in job.out.glob("runs-*.part"):
        if not old.name.startswith(named):
            old.unlink()
    return len(every) - len(chosen)


def hidden(path, root):
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def unpack(job):
    "Runs from the parts, where there are none; parts that are not whole are left alone."
    from ect_nb.io import files

    if job.runs.exists() and any(job.runs.iterdir()):
        return
    parts = {}
    for path in job.out.glob("runs-*.part"):
        _, digest, k, _, n = path.stem.split("-")
        parts.setdefault((digest, int(n)), {})[int(k)] = path
    for (digest, n), found in parts.items():
        whole = b"".join(found[k].read_bytes() for k in sorted(found))
        if files.digest(whole, digits=8) == digest:
            with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
                tar.extractall(job.runs, filter="data")


# all of it

TASKS = dict(tests=tests, step=step, small=small, fid=fid, fashion=fashion)


def table(job):
    "gpu.md: every line that was found, task by task."
    text = ["# What a GPU showed", "", "Written by `python tools/gpu.py` from `gpu.jsonl`."]
    for name in TASKS:
        lines = job.lines(task=name)
        if not lines:
            continue
        keys = [k for k in dict.fromkeys(k for line in lines for k in line) if k != "task"]
        rows = [keys, ["---"] * len(keys), *([line.get(k, "") for k in keys] for line in lines)]
        text += ["", f"## {name}", "", *("| " + " | ".join(map(str, r)) + " |" for r in rows)]
    (job.out / "gpu.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def work(job, names):
    "{task: what became of it}: done, left, or why it cannot be done here."
    state = dict.fromkeys(names, "left")
    for name in names:
        print(f"{name} ...", flush=True)
        try:
            TASKS[name](job)
            state[name] = "done"
        except Late:
            break
        except Missing as e:
            state[name] = f"left: {e}"
    return state


def asked():
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("out", type=Path, help="the folder of results")
    args.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="where runs live")
    args.add_argument("--device", help="default: the fastest there is")
    args.add_argument("--minutes", type=float, default=9.0, help="of this call")
    args.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    args.add_argument("--scale", type=float, default=1.0, help="times the pictures, for a trial")
    args.add_argument("--data", default="cifar10", help="another set of 32 × 32 in colour")
    args.add_argument("--tests", nargs="+", help="test files instead of those for CUDA")
    return args.parse_args()


def main():
    args, began = asked(), time.monotonic()
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"install {', '.join(lacking)} first: this machine has none")
    sys.path.insert(0, str(ROOT))
    from ect_nb.devices import device

    args.out.mkdir(parents=True, exist_ok=True)
    until = began + 60 * args.minutes - 10 * min(1, args.scale * 10)
    where = str(device(args.device))
    job = Job(args.out, args.runs, where, args.scale, args.data, args.tests, until)
    unpack(job)
    job.runs.mkdir(parents=True, exist_ok=True)
    try:
        state = work(job, [name for name in TASKS if name in args.only])
    finally:
        table(job)
        behind = pack(job)
    for name, what in state.items():
        print(f"{name:8s} {what}")
    if behind:
        print(f"{behind} files are too large to go with the results: go on where {args.runs} is")
    again = any(what == "left" for what in state.values())
    print("the same command goes on" if again else "nothing that can be done here is left")


if __name__ == "__main__":
    main()
