"""Several processes train one run: two real ones, started by `accelerate launch` and joined over
gloo on the CPU, against one process alone; stopped, killed, and given different things."""

import json
import math
import os
import pytest
import signal
import socket
import subprocess
import sys
import time
import torch
from dataclasses import replace
from ect_nb.diffusion import Precond
from ect_nb.networks import MLP, UNet
from ect_nb.schedules import Stages
from ect_nb.training.config import Config, from_json, to_json
from ect_nb.training.loop import train
from ect_nb.training.processes import parts
from ect_nb.training.runs import RunFolder, checksum, load_state
from pathlib import Path
from torch import nn

HERE = Path(__file__).resolve().parent
POINTS = torch.randn(48, 2, generator=torch.Generator().manual_seed(0))
PICTURES = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def seeded(make, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make()


class Foreign(nn.Module):
    "A network of someone else, with dropout and a batch norm of torch's own."

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.drop, self.b = (
            nn.Linear(3, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.3),
            nn.Linear(16, 2),
        )

    def forward(self, x, t):
        return x + self.b(self.drop(self.norm(self.a(torch.cat([x, t.log()[:, None]], 1)))))


MODELS = dict(
    mlp=lambda: Precond(MLP(2, 16, 2, 0.2)),
    plain=lambda: Precond(MLP(2, 16, 2)),
    foreign=Foreign,
    unet=lambda: Precond(UNet(8, 1, 8, (1,), 1, (), 0.1)),
)


def settings(steps=16, **kw):
    return replace(
        Config(
            kimg=steps * 16 / 1000,
            batch=16,
            accumulate=2,
            lr=1e-2,
            warmup_kimg=0.1,
            ema=0.9,
            stages=Stages(0, 80, 2),
            state_seconds=1e9,
        ),
        **kw,
    )


def case(name, config, model="mlp", **kw):
    return dict(name=name, config=to_json(config), model=model, **kw)


def run_case(job, rank, accelerator, home):
    "One training of a job; what became of it, as plain data."
    config, steps, losses, p = from_json(job["config"]), [], [], None
    own = job.get("rank", {}).get(str(rank), {})  # what only this process is told
    config = replace(config, **own.get("config", {}))
    folder = home / job["folder"] if job.get("folder") else None
    try:
        for p in train(
            seeded(MODELS[job["model"]]),
            PICTURES if job["model"] == "unet" else POINTS,
            config,
            folder,
            accelerator=accelerator,
            time_limit=own.get("time_limit"),
        ):
            steps.append(p.step)
            losses.append(float(p.loss))
            if p.step == own.get("press"):
                os.kill(os.getpid(), signal.SIGINT)
            if p.step == own.get("block"):
                (folder / "snapshots").write_text("")
            if p.step == job.get("until"):
                break
            time.sleep(job.get("pause", 0))
        error = None
    except (Exception, KeyboardInterrupt) as e:
        error = f"{type(e).__name__}: {e}"
    return dict(
        steps=steps,
        losses=losses,
        error=error,
        model=p and checksum(p.model.state_dict()),
        ema=p and checksum(p.ema.state_dict()),
        precision=p and p.precision,
    )


def work(home):
    "What each process does: the jobs in jobs.json, one after the other."
    from accelerate import Accelerator

    torch.set_num_threads(1)
    accelerator, home = Accelerator(cpu=True), Path(home)
    rank = accelerator.process_index
    for job in json.loads((home / "jobs.json").read_text()):
        (home / f"{job['name']}-{rank}.json").write_text(
            json.dumps(run_case(job, rank, accelerator, home))
        )


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(**kw):
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    own = dict(PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    return os.environ | own | kw


LAUNCH = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"


def together(home, jobs):
    "What both processes of an `accelerate launch` answer: {job: [of process 0, of process 1]}."
    (home / "jobs.json").write_text(json.dumps(jobs))
    script = home / "script.py"
    script.write_text(f"import test_processes; test_processes.work({str(home)!r})\n")
    how = f"{LAUNCH} --mixed_precision no --dynamo_backend no --main_process_port {free_port()}"
    run = [sys.executable, "-m", *how.split(), str(script)]
    done = subprocess.run(run, timeout=240, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-4000:]
    answers = lambda job: [
        json.loads((home / f"{job['name']}-{i}.json").read_text()) for i in (0, 1)
    ]
    return {job["name"]: answers(job) for job in jobs}


def alone(config, model="mlp", folder=None, until=None):
    p, losses = None, []
    run = train(seeded(MODELS[model]), PICTURES if model == "unet" else POINTS, config, folder)
    for p in run:
        losses.append(float(p.loss))
        if p.step == until:
            break
    run.close()
    return p, losses


def weights(folder):
    return {
        k: v
        for k, v in load_state(RunFolder(folder))[0].items()
        if k.split(".")[0] in ("model", "ema", "optimizer")
    }


def near(a, b, tolerance=1e-5):
    assert a.keys() == b.keys() and all(
        torch.allclose(a[k].double(), b[k].double(), rtol=tolerance, atol=tolerance) for k in a
    ), max((float((a[k].double() - b[k].double()).abs().max()), k) for k in a)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo over the loopback device")

JOBS = [
    case("dropout", settings(), folder="dropout"),
    case("plain", settings(accumulate=1), "plain", folder="plain"),
    case("foreign", settings(), "foreign", folder="foreign"),
    case("auto", settings(4, precision="auto"), "unet", folder="auto"),
    case("float16", settings(4, precision="float16"), "unet", folder="float16"),
    case("begin", settings(), folder="begun by two", until=7),
    case("continue", settings(), folder="begun by one"),
    case("limit", settings(), folder="limit", pause=0.05, rank={"1": dict(time_limit=0.3)}),
    case("press", settings(), folder="press", rank={"1": dict(press=5)}),
    case("block", settings(snapshot_kimg=1, kimg=2.0), folder="block", rank={"0": dict(block=6)}),
    case("other lr", settings(), folder="lr", rank={"1": dict(config=dict(lr=0.5))}),
    case("other run", settings(lr=0.5), folder="begun by one"),
    case("odd", settings(batch=15, accumulate=1), folder="odd"),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "All jobs in one pair of processes: their folder, and what they answered."
    home = tmp_path_factory.mktemp("pair")
    alone(settings(), folder=home / "begun by one", until=7)
    return home, together(home, JOBS)


def test_every_row_and_every_part_belongs_to_one_process():
    for batch, accumulate, n in ((16, 1, 1), (16, 1, 4), (16, 4, 2), (24, 2, 3), (12, 4, 4)):
        shares = [parts(batch, accumulate, i, n) for i in range(n)]
        assert sorted(k for s in shares for k in s) == list(range(math.lcm(accumulate, n)))
        assert [i for s in shares for p in s.values() for i in range(batch)[p]] == list(
            range(batch)
        )
        whole = parts(batch, math.lcm(accumulate, n))
        assert all(whole[k] == p for s in shares for k, p in s.items())
    with pytest.raises(ValueError, match="another batch or number of processes"):
        parts(15, 1, 0, 2)


@pytest.mark.parametrize(
    "name, model", [("dropout", "mlp"), ("plain", "plain"), ("float16", "unet")]
)
def test_two_processes_end_where_one_ends(pair, name, model, tmp_path):
    home, said = pair
    config = from_json(next(j for j in JOBS if j["name"] == name)["config"])
    p, losses = alone(config, model, tmp_path / "run")
    near(weights(home / name), weights(tmp_path / "run"))
    assert [s["steps"] for s in said[name]] == [list(range(1, len(losses) + 1))] * 2 and said[name][
        0
    ] == said[name][1]
    assert said[name][0]["losses"] == pytest.approx(losses, rel=1e-4)
    assert [
        (r["kimg"], pytest.approx(r["value"], rel=1e-4)) for r in RunFolder(home / name).records()
    ] == [(r["kimg"], r["value"]) for r in RunFolder(tmp_path / "run").records()]


def test_masks_differ_between_the_parts_of_a_batch(pair, tmp_path):
    """So the equality above is one of masks too: with other masks for the second part the run ends
    elsewhere."""
    alone(settings(accumulate=1), folder=tmp_path / "run")
    a, b = weights(tmp_path / "run"), weights(pair[0] / "dropout")
    assert max(float((a[k] - b[k]).abs().max()) for k in a if k.startswith("model")) > 1e-3


def test_a_foreign_network_stays_one_network(pair):
    home, said = pair
    assert said["foreign"][0]["error"] is None and said["foreign"][0] == said["foreign"][1]
    assert float(load_state(RunFolder(home / "foreign"))[0]["model.norm.running_var"].std()) > 0


def test_the_arithmetic_is_chosen_once_for_all(pair):
    assert (
        pair[1]["auto"][0] == pair[1]["auto"][1]
        and "0" in RunFolder(pair[0] / "auto").config()["precision_chosen"]
    )


def test_a_run_goes_on_with_another_number_of_processes(pair, tmp_path):
    home, said = pair
    alone(settings(), folder=tmp_path / "straight")
    alone(settings(), folder=home / "begun by two")
    assert said["begin"][0]["steps"][-1] == 7 and said["continue"][1]["steps"] == list(range(8, 17))
    for name in ("begun by two", "begun by one"):
        near(weights(home / name), weights(tmp_path / "straight"))


@pytest.mark.parametrize("name, error", [("limit", None), ("press", "KeyboardInterrupt: ")])
def test_a_stop_in_one_process_stops_all_after_the_same_step_and_saves(pair, name, error, tmp_path):
    home, said = pair
    state = load_state(RunFolder(home / name))[1]["step"]
    assert (
        [s["error"] for s in said[name]] == [error] * 2
        and said[name][0]["steps"] == said[name][1]["steps"]
        and state < 16
    )
    assert state - said[name][0]["steps"][-1] in ([0] if name == "limit" else [0, 1]) and (
        name == "limit" or state <= 8
    )  # a wish travels with the next gradients and is heard a step later
    alone(settings(), folder=home / name)
    alone(settings(), folder=tmp_path / "run")
    near(weights(home / name), weights(tmp_path / "run"))


def test_a_full_disk_of_one_process_is_an_error_of_all(pair):
    home, said = pair
    first, second = (s["error"] for s in said["block"])
    assert (
        "RuntimeError" in first
        and "make room" in first
        and "RuntimeError" in second
        and "could not write" in second
    )


def test_different_orders_are_noticed_by_all(pair):
    assert (
        all("different settings" in s["error"] and s["steps"] == [] for s in pair[1]["other lr"])
        and not (pair[0] / "lr" / "config.json").exists()
    )


def test_a_refusal_of_the_folder_reaches_all(pair):
    first, second = (s["error"] for s in pair[1]["other run"])
    assert "another run" in first and "another run" in second and "ValueError" in first


def test_a_batch_that_does_not_divide_is_a_sentence(pair):
    assert all("does not divide into 2 parts" in s["error"] for s in pair[1]["odd"])


def fork(home, rank):
    "A child of this process that works as process `rank` of the pair of `home`: its number."
    pid = os.fork()
    if pid:
        return pid
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=(Path(home) / "port").read_text())
    try:
        work(home)
    finally:
        os._exit(0)


def pairs(*homes):
    "Two pairs, forked from one process that has all loaded; their numbers, then how each ended."
    import accelerate  # noqa: F401

    for home in homes:
        print(*(fork(home, rank) for rank in (0, 1)), flush=True)
    for _ in range(4):
        pid, status = os.wait()
        print(pid, os.waitstatus_to_exitcode(status), flush=True)


STEPS = settings(24, state_seconds=-1.0)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    "For each victim the folder of a pair of which it was killed after two states."
    homes = [tmp_path_factory.mktemp(f"kill-{victim}") for victim in (0, 1)]
    for home in homes:
        (home / "jobs.json").write_text(json.dumps([case("kill", STEPS, folder="run", pause=0.1)]))
        (home / "port").write_text(str(free_port()))
    code = f"import test_processes as t; t.pairs(*{[str(home) for home in homes]})"
    run = [sys.executable, "-c", code]
    parent = subprocess.Popen(run, stdout=subprocess.PIPE, text=True, env=environment())
    waiting = {i: [int(n) for n in parent.stdout.readline().split()][i] for i in (0, 1)}
    victims, deadline = list(waiting.values()), time.monotonic() + 120
    while waiting and time.monotonic() < deadline:
        for i in [i for i in waiting if len(RunFolder(homes[i] / "run").states()) > 1]:
            os.kill(waiting.pop(i), signal.SIGKILL)
        time.sleep(0.01)
    ends = dict(line.split() for line in parent.communicate(timeout=120)[0].splitlines())
    assert [ends[str(v)] for v in victims] == [str(-signal.SIGKILL)] * 2
    return homes


@pytest.fixture(scope="module")
def unhurt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unhurt") / "run"
    alone(settings(24), folder=folder)
    return weights(folder)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_costs_nothing(killed, unhurt, victim):
    "What two have saved one carries on; that two carry on what is saved is tested above."
    home = killed[victim]
    answer = json.loads((home / f"kill-{1 - victim}.json").read_text())
    assert answer["error"] and answer["steps"][-1] < 24  # gloo tells it that the other is gone
    assert 0 < load_state(RunFolder(home / "run"))[1]["step"] < 24
    alone(settings(24), folder=home / "run")
    near(weights(home / "run"), unhurt)
