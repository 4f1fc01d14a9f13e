"""What leaves the kit says the same elsewhere: by ONNX Runtime, torch.export and diffusers."""

import json
import pytest
import subprocess
import sys
import torch
from ect_nb import Config, Denoising, sample, train
from ect_nb.commands import main
from ect_nb.diffusion import Precond
from ect_nb.io import data, export, weights
from ect_nb.networks import UNet
from ect_nb.wrapping import DDPM, EDM, wrap
from importlib.util import find_spec

ONNX = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
MISSING = 'onnx or onnxruntime is missing: pip install "ect_nb[export]"'
onnx = pytest.mark.skipif(not ONNX, reason=MISSING)
NO_DIFFUSERS = 'diffusers is missing: pip install "ect_nb[diffusers]"'
theirs = pytest.mark.skipif(find_spec("diffusers") is None, reason=NO_DIFFUSERS)
SHIPPED = data.find("fashion_mnist_diffusion.safetensors")


def small(label_dim=0, resolution=8):
    torch.manual_seed(0)
    net = UNet(resolution, 3, 8, (1, 2), 1, attention=(4,), label_dim=label_dim)
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return Precond(net, sigma_min=0.003).eval()


def alone(code, *arguments):
    "Run `code` in a process in which the kit cannot be imported."
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def answers_alike(path, model, shape):
    for n in (1, 2, 5, 33):
        arguments = export.example(model, shape, n, seed=n)
        with torch.no_grad():
            assert (export.ask_onnx(path, *arguments) - model(*arguments)).abs().max() < 1e-5


@onnx
def test_onnx_takes_any_number_of_rows_and_labels(tmp_path):
    model = small(4)
    answers_alike(export.to_onnx(model, tmp_path / "m.onnx", (3, 8, 8)), model, (3, 8, 8))


@onnx
def test_onnx_of_the_shipped_model_in_half_the_bytes(tmp_path):
    path = export.export(SHIPPED, tmp_path / "m.onnx", half=True)
    assert path.stat().st_size < 3_200_000
    answers_alike(path, weights.load(SHIPPED), (1, 28, 28))


@onnx
def test_onnx_of_a_wrapped_network(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, s, y):
            return self.layer(x) + s[:, None, None, None] / 1000 + y[:, None, None, None] / 10

    model = wrap(Net(), "v", DDPM(), classes=4).eval()
    path = export.to_onnx(model, tmp_path / "m.onnx", (3, 8, 8))
    arguments = export.example(model, (3, 8, 8), 6)
    with torch.no_grad():
        assert torch.allclose(export.ask_onnx(path, *arguments), model(*arguments), atol=1e-5)


def test_torch_export_runs_without_the_kit(tmp_path):
    model = small(4)
    path = export.to_torch(model, tmp_path / "m.pt2", (3, 8, 8))
    arguments = export.example(model, (3, 8, 8), 7)
    with torch.no_grad():
        said = model(*arguments)
    torch.save((arguments, said), tmp_path / "pair.pt")
    code = """
import sys, torch
sys.modules["ect_nb"] = None
program = torch.export.load(sys.argv[1]).module()
arguments, said = torch.load(sys.argv[2])
with torch.no_grad():
    assert torch.allclose(program(*arguments), said, atol=1e-6)
"""
    subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "pair.pt"], check=True, cwd=tmp_path
    )


def unet(classes=4):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=classes,
    ).eval()


@theirs
def test_pipeline_draws_the_same(tmp_path):
    z = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, pairs = torch.tensor([0, 1, 3]), []
    for edge in (0.0, 0.003):
        f = wrap(unet(), "F", EDM(scale=1000, sigma_min=edge)).eval()
        folder = export.to_diffusers(f, tmp_path / f"pipeline-{edge}")
        for times in ((80.0,), (80.0, 0.821), (80.0, 5.0, 0.3)):
            mine = sample(f, z, times, torch.Generator().manual_seed(5), labels=labels)
            pairs.append((str(folder), export.pipeline_times(times, edge), mine))
        again = weights.load_any(folder)
        assert again.schedule == f.schedule
        assert torch.equal(sample(again, z, labels=labels), sample(f, z, labels=labels))
    torch.save((z, labels, pairs), tmp_path / "pairs.pt")
    code = """
import sys, torch
sys.modules["ect_nb"] = None
from diffusers import ConsistencyModelPipeline
z, labels, pairs = torch.load(sys.argv[1])
for folder, at, mine in pairs:
    pipeline = ConsistencyModelPipeline.from_pretrained(folder)
    images = pipeline(3, labels, timesteps=at, latents=z, output_type="pt",
                      generator=torch.Generator().manual_seed(5)).images
    assert (images - (mine / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-4
"""
    alone(code, tmp_path / "pairs.pt")


@theirs
def test_a_pickle_in_a_folder_stays_shut(tmp_path):
    f = wrap(unet(), "F", EDM(scale=1000)).eval()
    folder = export.to_diffusers(f, tmp_path / "pipeline")
    part = folder / "unet"
    (part / "diffusion_pytorch_model.safetensors").unlink()
    (part / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match="a pickle"):
        weights.load_any(folder)
    (part / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json is not JSON with a table"):
        weights.load_any(folder)


@theirs
def test_what_diffusers_cannot_say_is_said(tmp_path):
    for model in (small(), wrap(unet(), "epsilon", DDPM()), wrap(unet(), "F", EDM())):
        with pytest.raises(ValueError, match="ConsistencyModelPipeline"):
            export.to_diffusers(model, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@theirs
def test_the_kits_own_unet_has_what_theirs_has_no_place_for():
    from diffusers import UNet2DModel

    down = dict(down_block_types=("ResnetDownsampleBlock2D",) * 2, downsample_type="resnet")
    up = dict(up_block_types=("ResnetUpsampleBlock2D",) * 2, upsample_type="resnet")
    net = UNet2DModel(8, block_out_channels=(8, 8), norm_num_groups=4, **down, **up)
    resized = [k for k in net.state_dict() if "samplers.0." in k]
    assert any("conv1" in k for k in resized) and not any("shortcut" in k for k in resized)
    ours = small().net.state_dict()
    assert {"enc.4x4_down.skip.weight", "dec.8x8_up.skip.weight"} <= set(ours)


def test_hub_folder_and_what_is_inherited(tmp_path):
    model = small()
    model.origin = dict(source="edm.pkl", licence="CC BY-NC-SA 4.0")
    path = weights.save(model, tmp_path / "m.safetensors", shape=(3, 8, 8), kimg=12)
    record = dict(metric="FID", value=2.5, low=2.4, high=2.6, n=50000, nfe=2)
    folder = export.to_hub(path, tmp_path / "hub", datasets=["cifar10"], metrics=[record])
    text = (folder / "README.md").read_text()
    head = dict(line.split(": ", 1) for line in text.split("---\n")[1].strip().splitlines())
    assert json.loads(head["license"]) == "cc-by-nc-sa-4.0"
    assert json.loads(head["datasets"]) == ["cifar10"]
    assert "inherited from edm.pkl" in text and "FID 2.5 (2.4 to 2.6) [n 50000, nfe 2]" in text
    assert '"kimg": 12' in text
    again = weights.load(folder / "model.safetensors")
    assert again.origin == model.origin  # and so on to what is tuned from it
    z = torch.randn(2, 3, 8, 8)
    assert torch.equal(sample(again, z), sample(model, z))
    path = weights.save(small(), tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="licence"):
        export.to_hub(path, tmp_path / "hub2")
    assert not (tmp_path / "hub2").exists()
    assert "MIT" in (export.to_hub(path, tmp_path / "hub3", "MIT") / "README.md").read_text()


@theirs
def test_the_card_is_read_by_the_hubs_own_library(tmp_path):
    from huggingface_hub import ModelCard

    folder = export.export(SHIPPED, tmp_path / "hub", "hub", licence="MIT")
    told = ModelCard.load(folder / "README.md").data
    assert told.license == "mit" and told.library_name == "ect_nb"
    assert told.pipeline_tag == "unconditional-image-generation"
    config = json.loads((folder / "config.json").read_text())
    assert config["shape"] == [1, 28, 28] and config["model"]["name"] == "Precond"


def test_a_snapshot_brings_the_data_and_the_numbers_of_its_run(tmp_path):
    pictures = data.Pictures(torch.zeros(32, 3, 8, 8, dtype=torch.uint8), name="little squares")
    for p in train(small(), pictures, Config(Denoising(), kimg=0.032, batch=16), tmp_path / "run"):
        pass
    for value in (9.0, 7.5):  # the last one counts
        p.folder.record(metric="FD", value=value, low=7.0, high=9.5, n_samples=100, kimg=None)
    (snapshot,) = p.folder.snapshots().values()
    text = (export.to_hub(snapshot, tmp_path / "hub", "MIT") / "README.md").read_text()
    assert "**Data:** little squares" in text and "FD 7.5 (7 to 9.5) [n_samples 100]" in text
    assert "loss" not in text.partition("**Metrics:**")[2].partition("\n")[0]


def test_shell(tmp_path, capsys):
    target = tmp_path / "kit.safetensors"
    assert main(["export", str(SHIPPED), str(target), "--half"]) == 0
    assert weights.header(target)["shape"] and "kit.safetensors" in capsys.readouterr().out
    assert main(["export", str(SHIPPED), str(tmp_path / "m.bin")]) == 2
    assert "could be anything" in capsys.readouterr().err
    assert main(["export", str(SHIPPED), str(tmp_path / "hub"), "--to", "hub"]) == 2
    assert (
        main(["export", str(SHIPPED), str(tmp_path / "h"), "--to", "hub", "--licence", "MIT"]) == 0
    )
    assert (tmp_path / "h" / "README.md").is_file()
