"""`fledge doctor`: this machine."""

import importlib.util
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import click

from fledge import console, device, lineage

EXTRAS = {
    "deepspeed": "training on several GPUs",
    "lm_eval": "tasks of lm-evaluation-harness",
    "tensorboard": "--run.trackers tensorboard",
    "wandb": "--run.trackers wandb",
}


@click.command(help="This machine: devices, number formats, versions, what is missing and how to get it.")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout")
def doctor(as_json: bool) -> None:
    """Print what fledge finds on this machine."""
    facts = examine()
    if as_json:
        console.result(json.dumps({"command": "doctor"} | facts))
        return
    console.result(f"system    {facts['system']}, {facts['cores']} cores, {facts['memory_gb']:.0f} GB memory")
    console.result(f"disk      {facts['disk_free_gb']:.0f} GB free here")
    for found in facts["devices"]:
        peaks = ", ".join(f"{dtype} {flops / 1e12:.3g} TFLOP/s" for dtype, flops in found["matmul_peak"].items())
        console.result(f"device    {found['device']} ({found['name']}): matmul peak {peaks}")
    console.result("versions  " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    for name, missing in facts["missing"].items():
        console.result(f"missing   {name}: {missing}")
    console.result(
        f"use       --run.device {facts['use']['device']} --run.dtype {facts['use']['dtype']} (what auto takes)"
    )


def examine() -> dict[str, Any]:
    """Devices with measured peaks, versions, missing extras; takes a few seconds."""
    import psutil
    import torch

    names = {"cpu": platform.processor() or platform.machine()}
    if torch.cuda.is_available():
        names["cuda"] = torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        names["mps"] = "Apple GPU"
    devices = [
        {
            "device": kind,
            "name": name,
            "matmul_peak": {dtype: device.matmul_peak(kind, dtype) for dtype in ("float32", "bfloat16")},
        }
        for kind, name in names.items()
    ]
    best = device.resolve_device("auto")
    return {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "cores": device.usable_cores(),
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "disk_free_gb": shutil.disk_usage(Path.cwd()).free / 1e9,
        "devices": devices,
        "versions": lineage.versions(),
        "missing": {
            name: f"{purpose}; pip install 'fledge-lm[{name.replace('_', '-')}]'"
            for name, purpose in EXTRAS.items()
            if importlib.util.find_spec(name) is None
        },
        "use": {"device": best, "dtype": device.resolve_dtype("auto", best)},
    }
