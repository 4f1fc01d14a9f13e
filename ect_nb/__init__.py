"""Easy Consistency Tuning (Geng et al., arXiv 2406.14548): a diffusion model becomes a one- or
two-step generator.

The names below are loaded when they are first used; everything else stands in its module."""

from importlib import import_module

__version__ = "0.2.0"

_MODULES = {
    "diffusion": ("Precond", "heun"),
    "networks": ("MLP", "UNet"),
    "objectives": ("ECT", "ConsistencyTraining", "Denoising", "Objective"),
    "sampling": ("sample",),
    "schedules": ("LogNormal", "SigmoidMapping", "Stages"),
    "training.config": ("Config",),
    "training.loop": ("train",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'ect_nb' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__():
    return sorted({*globals(), *__all__})
