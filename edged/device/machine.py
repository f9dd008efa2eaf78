"""What this machine is: operating system, processor, cores, caches. Nothing here is measured."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Literal

import psutil

System = Literal["linux", "macos", "windows", "android", ""]

CPUS = Path("/sys/devices/system/cpu")
CPUINFO = Path("/proc/cpuinfo")


def operating_system() -> System:
    """Empty for one that is not known."""
    if hasattr(sys, "getandroidapilevel"):
        return "android"
    known: dict[str, System] = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
    return known.get(platform.system(), "")


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """What the CPU is called; empty where the system does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return _sysctl("machdep.cpu.brand_string") or platform.processor()
    found: dict[str, set[str]] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), set()).add(value.strip())
    for key in ("model name", "Model", "Hardware"):  # x86; Raspberry Pi and its like; phones
        if key in found:
            return ", ".join(sorted(found[key]))
    return platform.processor() or platform.machine()


def shares_memory_with_gpu() -> bool:
    """Apple's own processors have one memory for everything."""
    return operating_system() == "macos" and platform.machine() == "arm64"


def last_cache_bytes(cpus: Path = CPUS) -> int:
    """Bytes of the caches of the highest level, all of them together; 0 where the system does not say."""
    caches: dict[tuple[int, str], int] = {}
    for folder in cpus.glob("cpu[0-9]*/cache/index*"):
        try:
            level = int((folder / "level").read_text())
            shared = (folder / "shared_cpu_list").read_text().strip()
            caches[level, shared] = _bytes((folder / "size").read_text().strip())
        except (OSError, ValueError):
            continue
    if caches:
        highest = max(level for level, _ in caches)
        return sum(size for (level, _), size in caches.items() if level == highest)
    return int(_sysctl("hw.l3cachesize") or _sysctl("hw.perflevel0.l2cachesize") or 0)


@cache
def describe() -> str:
    """One line for people."""
    physical = psutil.cpu_count(logical=False)
    logical = psutil.cpu_count() or 1
    cores = f"{physical or logical} cores"
    if physical not in (None, logical):
        cores += f", {logical} threads"
    name = processor_name()
    return f"{platform.system()} {platform.machine()}, {name + ', ' if name else ''}{cores}"


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if match is None:
        raise ValueError(text)
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def _sysctl(name: str) -> str:
    if operating_system() != "macos":
        return ""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
