"""Easy Consistency Tuning (Geng et al., arXiv 2406.14548): a diffusion model becomes a one- or
two-step generator.

The names below are loaded when they are first used; everything else stands in its module."""

import sys
from importlib import import_module

__version__ = "0.2.0"

EXTRAS = {  # what brings the packages that not everybody needs
    "notebooks": "matplotlib plotly IPython ipywidgets anywidget",
    "metrics": "scipy cleanfid torchvision",
    "lab": "jupyterlab",
    "gpus": "accelerate",
    "diffusers": "diffusers",
    "export": "onnx onnxscript onnxruntime",
    "logs": "tensorboard",
}

_MODULES = {
    "diffusion": ("Precond", "heun"),
    "networks": ("MLP", "UNet"),
    "objectives": ("ECT", "ConsistencyTraining", "Denoising", "Objective"),
    "sampling": ("sample",),
    "schedules": ("LogNormal", "SigmoidMapping", "Stages"),
    "training.config": ("Config",),
    "training.loop": ("train",),
    "wrapping": ("wrap",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'ect_nb' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__():
    return sorted({*globals(), *__all__})


class _Missing:
    """The last to be asked for a module: if a part of the kit misses one of an extra, it says in a
    sentence which."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        extra = next((k for k, names in EXTRAS.items() if name in names.split()), None)
        frame = sys._getframe(1)
        while frame and frame.f_globals.get("__name__", "").partition(".")[0] == "importlib":
            frame = frame.f_back
        asks = frame.f_globals.get("__name__", "") if frame else ""
        if extra and asks.startswith("ect_nb."):
            what = f"{name} is not installed, and {asks} needs it"
            raise ModuleNotFoundError(f'{what}: pip install "ect_nb[{extra}]"', name=name)


if not any(finder.__name__ == "_Missing" for finder in sys.meta_path if isinstance(finder, type)):
    sys.meta_path.append(_Missing)
