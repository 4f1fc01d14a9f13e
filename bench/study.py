"""Try settings of the shipped start and of 00's recipe; each trial appends a line to
bench/study.jsonl, and `table` writes bench/study.md from it.

usage:
python bench/study.py start "model_channels=48, channel_mult=(1, 2), lr=2e-3" --kimg 60
python bench/study.py tune "batch=16, lr=2e-3" --seeds 0 1 2 [--start FILE] [--share 0.43]
python bench/study.py minute "batch=32, lr=3e-3" --seeds 0 1 2 [--seconds 60] [--start FILE]
python bench/study.py agree --seeds 0 --precisions float32 bfloat16 --folder runs/agree
python bench/study.py table

`--share S` lets a recipe run as long as S of the processor time that 24,000 pictures of the first
recipe of 00 take, by the clock of steps taken in turns on the same machine. `agree` asks why this
study and data/atlas differ for the same recipe: it trains the recipe of 00 in each arithmetic and
lets both judges look at the same weights, `metrics.measure` with several noises. Stopped, it goes
on."""

import argparse
import ast
import copy
import json
import platform
import time
import torch
from contextlib import nullcontext
from ect_nb.asking import ask
from ect_nb.diffusion import Precond, denoising_loss, heun, karras_times
from ect_nb.io import data, weights
from ect_nb.measure import features, metrics
from ect_nb.measure.features import quantise
from ect_nb.networks import UNet, classes_of
from ect_nb.objectives import ECT
from ect_nb.sampling import sample, told
from ect_nb.schedules import ConstantMapping, LogNormal, SigmoidMapping, Stages
from ect_nb.training.config import Config, changed
from ect_nb.training.loop import train
from ect_nb.training.runs import checksum
from ect_nb.training.speed import fast_precisions, flops
from pathlib import Path
from second_eye import second_eye
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

HERE = Path(__file__).parent
NETWORK = dict(
    resolution=28,
    channels=1,
    patch=2,
    model_channels=32,
    channel_mult=(1, 3),
    num_blocks=1,
    attention=(7,),
    label_dim=0,
)
START = dict(batch=64, lr=1e-3, warmup_kimg=5, ema=0.999, precision="auto")
RECIPE = Config(
    objective=ECT(c=0.03),
    kimg=16,
    batch=32,
    lr=1e-3,
    ema=0.99,
    stages=Stages(start=3),
    precision="auto",
)
TIMES = (0.8, 1.5, 2.5)
LOWER = 30.0  # where one evaluation may begin as well
TEXT = """# How the start and the recipe of 00 were chosen

Written by `python bench/study.py table` from `study.jsonl`; each line is one run of the command
in `study.py`'s first lines. Distances are Fréchet distances to the training pictures in 64
features of the kit's classifier (`n` samples from one fixed noise; not FID), `one` and `two at t`
are one and two evaluations with the intermediate time t. What a line does not name is as in
`START`, `NETWORK` and `RECIPE` in `study.py`. `start` is the checksum of the weights tuned:
11de3533 is the start after 400 thousand pictures, ef1bc598 the shipped one after 16 thousand more
with labels that it did not learn to use (not kept), 3182628c the shipped one, 24ac965d the
shipped one that is told the class. Most lines are one seed: differences of a tenth say little;
seconds were taken on a machine shared with other work.

**Two numbers for one recipe, and why.** Until 2026-11-27 this study gave the classifier what the
network gave, and wrote 15.8, 17.0 and 16.5 for the recipe of 00 in one evaluation (24 kimg, three
seeds), where `data/atlas` has 21.8, 23.1 and 18.9. `agree` trained seed 0 once more in float32:
`metrics.measure` says 21.78 of it to the last digit of the atlas's record, this study's old way
says 16.43, and the same samples cut to [-1, 1] 22.07. About a quarter of the values lay outside
(`outside`: of those in two evaluations), nearly all below -1, blacker than black; no picture file
holds such values, and the classifier rewards them. Rounding to 256 levels moves the distance by
0.02, other noise by about one, bfloat16 in place of float32 (the last table) by less than other
noise does. So the atlas is right. Samples are now cut and rounded to bytes before they are
measured, here as there. Lines that say *as they came* are from before: compare them with one
another, and with nothing else. The recipe was chosen by them; between such lines the order of the
settings is that of this measure.

**The recipe of 00 today** starts from `fashion_mnist_classes` (24ac965d: told the class, 4 x 4
pixels folded, 118 million operations a pass instead of 214) and has no end in view: batches of
32, a learning rate that falls with the root of the pictures seen, an average over the last tenth
of the way. `minute` trained it by the clock on two quiet threads (an Intel processor with AMX, so
in bfloat16), three seeds: after 60 s 11.2 to 13.8 in one evaluation and 4.9 to 6.1 in two (at
2.5); in the time that the first recipe took on the same machine, 177 to 223 s, 9.5 to 9.7 and 4.9
to 5.0. The walk of that start has 2.8. In eyes that did not choose: the first recipe after its
24,000 pictures (seed 0, the shipped file) has 50.5 and 36.3 in the second eye, this one in the
same time 9.5 to 10.4 and 6.7 to 7.6. In random features one evaluation is ahead as well (2.1e-05
to 2.4e-05 against 2.8e-05), **two are not**: 1.4e-05 to 1.6e-05 against 0.9e-05. So the order
holds for one evaluation in all three pairs of eyes, for two in both classifiers. Other recipes
from the same start, one seed and about the same processor time, came to 13.4 to 15.0 and 4.5 to
4.7 (RAdam with a linear decay, batches of 16, 32 and 64) and 11.3 and 5.6 (Muon); any of them
would have done.

**What an optimiser brought, from the first start.** `optimizer='Muon'` (nbs/inside/muon.ipynb)
with batches of 32 against RAdam with batches of 16, the first recipe of 00. `share` is the
processor time in units of that of the first recipe (24,000 pictures), by the clock of steps taken
in turns in the same process: .43 is 60 s where the whole takes 2.3 minutes. `second_eye_48` and
`random_64_seed0` are the same distances in features that neither training nor choice has seen. At
that share the two seeds of Muon that were finished have 22.3 and 24.8 in one evaluation and 12.8
and 18.4 in two (at 2.5), where RAdam has 30.1 and 10.4 (one seed, at a share of .46). In one
evaluation Muon is ahead by the classifier that chose it and in random features, and level in the
second eye (55 and 59 against 58); in two it is behind in both classifiers, ahead in random
features. The order does not hold in every pair of eyes, and neither reaches 20 in one *and* 12 in
two. RAdam with steps weighed by 1 + t shows the same trade at 6,000 pictures, 28.8 and 24.8: what
the high levels gain in a short run, the low ones lose.

Tried in short: one seed, 6,000 pictures (a quarter of the first recipe), one and two evaluations
at 2.5. RAdam as at first has 46.99 and 12.77. **These lines are rough:** the labels of the fifth
point had no effect on what the network answers, so runs with and without them differ by rounding
alone, and the same setting gave 22.3 with and 30.4 without. Only what is larger than that says
anything.

- Muon, batches of 16, step 0.01 (as Jordan et al. count it): 23.2 and 14.9; 0.02: 22.3 and 20.9,
  and once more 30.4 and 22.9.
- Batches of 32: 19.6 and 15.8 at 0.014; 28.8 and 15.1 at 0.008; 30.9 and 18.2 at 0.014 where RAdam
  for the vectors forgets faster (3e-3, 0.99). Batches of 64 at 0.02: 25.9 and 17.3.
- A stage that moves evenly from 2 to 4, batches of 32 at 0.014: 27.8 and 16.8.
- The answer at r cut to [-1, 1]: 77 and 32, far worse. What lies outside is needed: the mean over
  all answers must come out right, and a cut moves it.
- Class labels, told to the shipped start through a new layer of zeros, tuned with it for 6,000
  pictures or trained with it by denoising for 16,000: the classifier finds the class that was asked
  for in 9 % of the garments, which is chance. The layer had learned nothing; a start that knows
  classes must be trained longer, or from fresh weights.
- One evaluation from t = 30 instead of 80, the same weights: 31.4 instead of 34.9 after RAdam, with
  Muon no gain.
- channels_last and another allocator brought nothing here, nor did `torch.compile`."""
WORDS = dict(
    Stages=Stages,
    SigmoidMapping=SigmoidMapping,
    ConstantMapping=ConstantMapping,
    LogNormal=LogNormal,
)


def settings(text):
    """'batch=16, stages=Stages(2)' as a dict: literals and the schedule classes of the kit, nothing
    else."""
    call = ast.parse(f"f({text})", mode="eval").body

    def value(node):
        if isinstance(node, ast.Call):
            return WORDS[node.func.id](
                *map(value, node.args), **{k.arg: value(k.value) for k in node.keywords}
            )
        return ast.literal_eval(node)

    return {k.arg: value(k.value) for k in call.keywords}


def write(**line):
    line |= dict(
        samples="bytes",
        device=f"cpu {platform.machine()}, {torch.get_num_threads()} thread(s)",
        torch=torch.__version__,
    )
    with (HERE / "study.jsonl").open("a") as f:
        f.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


class Judge:
    """Distances of samples from fixed noise to the training pictures, in the features of the kit's
    classifier."""

    def __init__(self, wardrobe, n):
        self.eye, self.n = features.small_features(), n
        self.target = metrics.reference(wardrobe, self.eye)
        self.others = [
            (eye, metrics.reference(wardrobe, eye))
            for eye in (second_eye(), features.random_features(channels=1))
        ]
        self.z = torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(7))

    def __call__(self, draw):
        return self.of(quantise(self.drawn(draw)))

    def drawn(self, draw):
        return torch.cat([draw(z) for z in self.z.split(250)])

    def of(self, x):
        """The distance of the pictures `x` as they are; about a quarter of the values that a
        network gives lie outside [-1, 1], which no picture has."""
        return round(metrics.distance(metrics.features(self.eye, x), self.target).value, 2)

    def few(self, model):
        "One step, from 80 and from `LOWER`, and two at each of `TIMES`, with every pair of eyes."
        one = self.drawn(lambda z: sample(model, z))
        ways = {"one": one, f"one from {LOWER}": self.drawn(lambda z: sample(model, z, (LOWER,)))}
        for t in TIMES:
            ways[f"two at {t}"] = torch.cat([again(model, x, t) for x in one.split(250)])
        return {k: v for name, x in ways.items() for k, v in self.seen(name, quantise(x)).items()}

    def seen(self, name, x):
        "What every pair of eyes says of the pictures `x`, called `name`."
        found = {name: self.of(x)}
        for eye, target in self.others:
            value = metrics.distance(metrics.features(eye, x), target).value
            found[f"{name}, {eye.name}"] = float(f"{value:.3g}")
        return found

    def same(self, start, model, n=250, t=0.6):
        """The share of `n` noises from which one and two steps of `model` draw the garment, by the
        classifier's word, that 18 Heun steps of `start` draw."""
        z, classifier = self.z[:n], weights.load(data.find("fashion_mnist_classifier.safetensors"))
        name = lambda x: classifier(x).argmax(1)
        with torch.no_grad():
            walked, *few = map(
                name, (heun(start, z, karras_times(18)), sample(model, z), _two(model, z, t))
            )
        return {
            k: round(float((f == walked).float().mean()), 3)
            for k, f in zip(("one, same garment", f"two at {t}, same garment"), few)
        }


@torch.no_grad()
def again(model, x, t):
    "The samples `x` after one more evaluation at t, with the fresh noise that `_two` gives them."
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    return ask(model, x.double() + t * z.double(), t, x).float()


def _two(model, z, t):
    return sample(model, z, (80.0, t), torch.Generator().manual_seed(4))


def trial_start(text, wardrobe, kimg, seed):
    """Train a diffusion model on `kimg` thousand pictures; its loss on test pictures (fixed noise),
    the distance of its 18-step Heun samples, and what it cost."""
    chosen = settings(text)
    network = NETWORK | {k: chosen.pop(k) for k in list(chosen) if k in NETWORK}
    torch.manual_seed(seed)
    model = Precond(UNet(**network), sigma_data=0.5)
    began = time.process_time()
    for p in train(
        model, wardrobe, changed(Config.diffusion(**START), kimg=kimg, seed=seed, **chosen)
    ):
        pass
    cost = time.process_time() - began
    unseen = data.load("fashion_mnist_20k", split="test")
    test, classes = unseen.batch(torch.arange(2000)), classes_of(p.ema)
    labels = [dict(labels=l) if classes else {} for l in unseen.labels.split(250)]
    g = torch.Generator().manual_seed(0)
    t, eps = LogNormal(-1.2, 1.2).sample(2000, g), torch.randn(test.shape, generator=g)
    with torch.no_grad():
        loss = torch.cat(
            [
                denoising_loss(p.ema, x, s, e, **how)
                for x, s, e, how in zip(test.split(250), t.split(250), eps.split(250), labels)
            ]
        ).mean()
    size = sum(a.numel() for a in model.parameters())
    write(
        study="start",
        settings=text,
        seed=seed,
        parameters=size,
        kimg=p.images / 1000,
        cpu_seconds=round(cost),
        test_loss=round(float(loss), 2),
        heun=Judge(wardrobe, 500)(lambda z: heun(told(p.ema), z, karras_times(18))),
        n=500,
    )


def turns(models, wardrobe, configs, rounds=12, clock=time.process_time):
    """Processor seconds a picture (or those of another `clock`) of each of the recipes `configs`
    for its model, steps taken in turns so that all meet the same machine: the median over
    `rounds`."""
    runs = [train(m, wardrobe, changed(c, kimg=4, seed=1)) for m, c in zip(models, configs)]
    spent = [[] for _ in runs]
    for _ in range(rounds):
        for run, seconds, c in zip(runs, spent, configs):
            began = clock()
            next(run)
            seconds.append((clock() - began) / c.batch)
    for run in runs:
        run.close()
    return [float(torch.tensor(s[2:]).median()) for s in spent]


def first_recipe():
    "The network and recipe that 00 had first: what the clock of `--share` is set by."
    text = "kimg=24, batch=16, lr=2e-3, decay='linear'"
    start = weights.load(data.find("fashion_mnist_diffusion.safetensors"))
    return start, changed(RECIPE, **settings(text))


def trial_tune(text, wardrobe, start, seed, judge, same=False, share=None):
    """Tune the start; distances after one and two steps, whether the garments are still the same,
    and the cost: operations of a pass, processor seconds, and the share of what the first recipe
    takes, which decides the length of the run if `share` is given."""
    config = changed(RECIPE, **settings(text) | dict(seed=seed))
    first, recipe = first_recipe()
    pace, was = turns([start, first], wardrobe, [config, recipe])
    if share:
        config = changed(config, kimg=round(share * recipe.kimg * was / pace, 1))
    began = time.process_time()
    for p in train(start, wardrobe, config):
        pass
    write(
        study="tune",
        settings=text,
        seed=seed,
        start=checksum(start.state_dict()),
        kimg=config.kimg,
        steps=p.step,
        mflop=round(flops(start, (1, 28, 28)) / 1e6),
        cpu_seconds=round(time.process_time() - began),
        share=round(config.kimg * pace / (recipe.kimg * was), 3),
        seconds=round(p.seconds),
        precision=p.precision,
        n=judge.n,
        **judge.few(told(p.ema)),
        **(judge.same(start, p.ema) if same else {}),
    )


def trial_minute(text, wardrobe, start, seed, judge, seconds):
    """Tune the start by the clock on the wall: distances after so many `seconds`, and after the
    time that the first recipe takes here, measured in turns just before."""
    config = changed(RECIPE, **settings(text) | dict(seed=seed, kimg=1000))
    first, recipe = first_recipe()
    pace, was = turns([start, first], wardrobe, [config, recipe], clock=time.perf_counter)
    ends, reached = [seconds, 1000 * recipe.kimg * was], []
    began = time.perf_counter()
    for p in train(start, wardrobe, config):
        if (spent := time.perf_counter() - began) >= ends[len(reached)]:
            reached.append((spent, p.images, copy.deepcopy(p.ema)))
            if len(reached) == len(ends):
                break
    for spent, images, model in reached:
        write(
            study="minute",
            settings=text,
            seed=seed,
            start=checksum(start.state_dict()),
            seconds=round(spent, 1),
            kimg=images / 1000,
            first_recipe_seconds=round(ends[1], 1),
            mflop=round(flops(start, (1, 28, 28)) / 1e6),
            precision=p.precision,
            n=judge.n,
            **judge.few(told(model)),
        )


class Bfloat16ByFloat32(TorchDispatchMode):
    """bfloat16 on a processor that has no such instructions: the sums of products run in float32
    and are rounded to bfloat16 at the end.

    That is how AMX adds up as well; here it is only slow, and torch's own way on such a processor
    six times slower still."""

    SUMS = {
        "convolution",
        "convolution_backward",
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "native_group_norm",
        "native_group_norm_backward",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    }

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        half = any(isinstance(a, torch.Tensor) and a.dtype == torch.bfloat16 for a in args)
        if not half or f._schema.name.split("::")[1] not in self.SUMS:
            return f(*args, **(kwargs or {}))
        cast = lambda was, to: (
            lambda a: a.to(to) if isinstance(a, torch.Tensor) and a.dtype == was else a
        )
        up, down = cast(torch.bfloat16, torch.float32), cast(torch.float32, torch.bfloat16)
        return tree_map(down, f(*tree_map(up, args), **tree_map(up, kwargs or {})))


LOOKS = {"one": (80.0,), "two at 2.5": (80.0, 2.5)}


def trial_agree(precision, wardrobe, start, seed, judge, folder, noises=5):
    """Train the recipe of 00 in `precision`; what this study's judge says of the same weights, of
    samples as they came and cut to bytes, and what `metrics.measure` says, the atlas's judge, with
    several noises."""
    chosen = settings("kimg=24, batch=16, lr=2e-3, decay='linear'")
    config = changed(RECIPE, **chosen, seed=seed, precision=precision, snapshot_kimg=4)
    native = precision == "float32" or precision in fast_precisions(torch.device("cpu"))
    with nullcontext() if native else Bfloat16ByFloat32():
        for p in train(start, wardrobe, config, folder / f"{precision}-seed{seed}"):
            pass
    found = {}
    for name, times in LOOKS.items():
        x = judge.drawn(lambda z: sample(p.ema, z, times, torch.Generator().manual_seed(4)))
        measured = [
            metrics.measure(p.ema, wardrobe, judge.eye, times=times, n=judge.n, seed=s)["value"]
            for s in range(noises)
        ]
        found |= {
            f"{name}, as it came": judge.of(x),
            f"{name}, cut only": judge.of(x.clamp(-1, 1)),
            name: judge.of(quantise(x)),
            f"{name}, measure with noise 0 to {noises - 1}": [round(v, 2) for v in measured],
        }
    write(
        study="agree",
        seed=seed,
        start=checksum(start.state_dict()),
        kimg=config.kimg,
        precision=precision,
        arithmetic="the processor's" if native else "summed in float32, rounded",
        seconds=round(p.seconds),
        n=judge.n,
        weights=checksum(p.ema.state_dict()),
        outside=round(float((x.abs() > 1).float().mean()), 3),
        **found,
    )


EYES = ("second_eye_48", "random_64_seed0")


def judged(line):
    "The distances in `line` that other eyes gave."
    return {k: v for k, v in line.items() if k.endswith(EYES)}


def table(lines):
    "`lines` as a table: a column for every name that occurs in one, two evaluations last."
    hidden = ("study", "device", "torch")
    keys = [k for k in dict.fromkeys(k for l in lines for k in l) if k not in hidden]
    keys = sorted(keys, key=lambda k: (k.startswith("two at"), k if k.startswith("two at") else ""))
    said = lambda v: " ".join(map(str, v)) if isinstance(v, list) else str(v)
    rows = [[said(l.get(k, "")) for k in keys] for l in lines]
    return "\n".join("| " + " | ".join(r) + " |" for r in [keys, ["---"] * len(keys), *rows])


def tables():
    "bench/study.md: the trials of study.jsonl, in the order in which they were made."
    lines, parts = [json.loads(l) for l in (HERE / "study.jsonl").read_text().splitlines()], [TEXT]
    for l in lines:
        l.setdefault("samples", "as they came")
    kinds = {
        "The start": "start",
        "The start, untuned": "untuned",
        "The recipe": "tune",
        "By the clock": "minute",
        "One recipe, two judges": "agree",
    }
    for title, study in kinds.items():
        here = [l for l in lines if l["study"] == study]
        plain = [{k: v for k, v in l.items() if k not in judged(l)} for l in here]
        if here:
            parts.append(f"## {title}\n\n{table(plain)}")
        others = [
            {k: l[k] for k in ("settings", "seed", "start", "kimg", "share") if k in l} | judged(l)
            for l in here
            if judged(l)
        ]
        if others:
            parts.append(f"### The same in features that nobody chose by\n\n{table(others)}")
    (HERE / "study.md").write_text("\n\n".join(parts) + "\n")


def main():
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("study", choices=["start", "tune", "minute", "untuned", "agree", "table"])
    args.add_argument("settings", nargs="*")
    args.add_argument(
        "--kimg", type=float, default=60, help="pictures of a start's trial, in thousands"
    )
    args.add_argument("--seeds", type=int, nargs="+", default=[0])
    args.add_argument(
        "--share", type=float, help="length of the run, as a share of the first recipe's time"
    )
    args.add_argument("--seconds", type=float, default=60.0, help="what a minute is")
    args.add_argument("--start", help="another file than the shipped start")
    args.add_argument(
        "--same", action="store_true", help="also count the garments that stay what Heun draws"
    )
    args.add_argument(
        "--precisions",
        nargs="+",
        default=["float32", "bfloat16"],
        help="the arithmetic that `agree` compares",
    )
    args.add_argument(
        "--folder", type=Path, default=Path("runs/agree"), help="where `agree` keeps its runs"
    )
    args = args.parse_args()
    if args.study == "table":
        return tables()
    wardrobe = data.load("fashion_mnist_20k")
    if args.study == "start":
        for text in args.settings:
            for seed in args.seeds:
                trial_start(text, wardrobe, args.kimg, seed)
        return
    start, judge = (
        weights.load(args.start or data.find("fashion_mnist_diffusion.safetensors")),
        Judge(wardrobe, 1000),
    )
    if args.study == "untuned":
        write(
            study="untuned",
            start=checksum(start.state_dict()),
            n=judge.n,
            heun=judge(lambda z: heun(told(start), z, karras_times(18))),
            **judge.few(told(start)),
        )
    for precision in args.precisions if args.study == "agree" else []:
        for seed in args.seeds:
            trial_agree(precision, wardrobe, start, seed, judge, args.folder)
    for text in args.settings:
        for seed in args.seeds:
            if args.study == "minute":
                trial_minute(text, wardrobe, start, seed, judge, args.seconds)
            elif args.study == "tune":
                trial_tune(text, wardrobe, start, seed, judge, args.same, args.share)


if __name__ == "__main__":
    main()
