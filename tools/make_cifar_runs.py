"""Train CIFAR-10 by a recipe that starts from nothing (its own diffusion model, then ECT), measure
the run and the walk of its start, and keep both models, in float16, in data/. Stopped, it
continues.

usage: ECT_NB_DATA=folder python tools/make_cifar_runs.py [--preset small] [--seeds 0] [--device
cuda] [--folder runs] [--n 2000] [--hours 0.15] [--scale 1] [--inception] [--out data]

On a data-centre GPU: --preset small, again until it says that all is done; on a CPU: --preset cpu,
a night of one core. `--hours`
ends the call after so long, for machines that are lent by the minute; `--scale 0.001` tries
everything with a thousandth of the pictures. Then `python tools/make_atlas.py --pack` packs what
was measured into data/atlas."""

import argparse
import time
import torch
from ect_nb.devices import device
from ect_nb.io import data, weights
from ect_nb.measure import features
from ect_nb.measure.atlas import TIMES, survey, survey_walk
from ect_nb.training.recipes import PRESETS, run, scaled
from ect_nb.training.runs import RunFolder
from pathlib import Path
from tqdm import tqdm

HERE = Path(__file__).resolve().parent


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--preset", default="small", choices=["small", "cpu"])
    args.add_argument("--seeds", type=int, nargs="+", default=[0])
    args.add_argument("--device", help="default: the fastest there is")
    args.add_argument("--folder", type=Path, default=Path("runs"))
    args.add_argument("--n", type=int, default=2000, help="samples for each distance")
    args.add_argument("--hours", type=float, help="end this call after so long")
    args.add_argument("--scale", type=float, default=1.0)
    args.add_argument(
        "--inception",
        action="store_true",
        help=(
            "distances in Inception's features (see features.inception), not in those of the kit's"
            " small classifier"
        ),
    )
    args.add_argument("--out", type=Path, default=HERE.parent / "data")
    args = args.parse_args()
    args.device = device(args.device)
    pictures, preset, began = (
        data.load("cifar10"),
        scaled(PRESETS[args.preset], args.scale),
        time.monotonic(),
    )
    for seed in args.seeds:
        folder = args.folder / f"cifar10-{args.preset}-seed{seed}"
        if not train(
            preset,
            folder,
            pictures,
            args,
            seed,
            args.hours and args.hours * 3600 - (time.monotonic() - began),
        ):
            return print("stopped; the same command goes on")
        measure(preset, folder, pictures, args, seed)
        keep(folder, args)
    print("all done; pack it with: python tools/make_atlas.py --pack")


def train(preset, folder, pictures, args, seed, limit):
    "Whether the run is complete."
    bar, done = tqdm(unit="kimg", desc=folder.name, mininterval=10), 0
    for phase, p in run(
        preset, folder, pictures.to(args.device), device=args.device, time_limit=limit, seed=seed
    ):
        bar.set_postfix_str(f"{phase}, stage {p.stage}, {p.precision}", refresh=False)
        bar.total = p.total / 1000
        bar.update(p.kimg - bar.n if p.kimg > bar.n else 0)
        if p.done >= 1:
            bar.reset()
        done = p.done if phase == list(preset.phases)[-1] else 0
    bar.close()
    return done >= 1


def measure(preset, folder, pictures, args, seed):
    network = (features.inception() if args.inception else features.small_features("cifar10")).to(
        args.device
    )
    start = weights.load(last(folder.with_name(folder.name + "-diffusion"))).to(args.device)
    facts = dict(n=args.n, train_seed=seed)
    for r in survey_walk(
        start, folder.with_name(f"{folder.name}-heun"), pictures, network, init="diffusion", **facts
    ):
        show(r)
    found = sorted(RunFolder(folder).snapshots())
    kimgs = sorted(
        {
            min(found, key=lambda k: abs(k - share * found[-1]))
            for share in (1 / 24, 1 / 12, 1 / 6, 1 / 3, 2 / 3, 1)
        }
    )
    for r in survey(
        folder,
        pictures,
        network,
        TIMES | {2: preset.times},
        kimgs,
        init="diffusion",
        device=args.device,
        **facts,
    ):
        show(r)


def last(folder):
    return list(RunFolder(folder).snapshots().values())[-1]


def keep(folder, args):
    for name, source in (
        ("start", last(folder.with_name(folder.name + "-diffusion"))),
        ("tuned", last(folder)),
    ):
        file = args.out / f"{folder.name.replace('-', '_')}_{name}.safetensors"
        weights.save(
            weights.load(source),
            file,
            torch.float16,
            **weights.header(source)["provenance"]
            | dict(
                command=(
                    f"python tools/make_cifar_runs.py --preset {args.preset} --seeds"
                    f" {folder.name.rpartition('seed')[2]}"
                )
            ),
        )
        print(f"kept {file.name}, {file.stat().st_size / 1e6:.1f} MB")


def show(r):
    tqdm.write(
        f"{r['run']:>22}  {r['kimg']:>4} kimg  {r['nfe']:>2} evaluations  {r['value']:.1f}"
        f" [{r['low']:.1f}, {r['high']:.1f}]  {r['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
