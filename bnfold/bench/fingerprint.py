"""The fingerprint of a timing: the machine and the libraries that it depends on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bnfold.bench.options import available_cores

LIBRARIES = ("bnfold", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "torch")


def fingerprint() -> dict[str, Any]:
    """Processor, cores, memory, GPUs, system, library versions, and settings that may disturb a timing."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_available": available_cores(),
        "memory_bytes": _memory_bytes(),
        "governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "gpus": _gpus(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "libraries": versions(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("OMP_", "MKL_", "KMP_", "ORT_", "CUDA_VISIBLE", "NVIDIA_TF32"))
        },
    }


def load_average() -> float | None:
    """Processes that ran or waited in the last minute, on average; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _gpus() -> list[dict[str, str]]:
    """Name, driver and memory of each GPU, by the driver's own tool; empty where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    fields = ("name", "driver_version", "memory.total")
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        return []
    return [dict(zip(fields, map(str.strip, line.split(",")), strict=False)) for line in done.stdout.splitlines()]


def versions() -> dict[str, str]:
    """The versions of the libraries that a result depends on, as far as they are installed."""
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
