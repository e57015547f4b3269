"""Samples of a process: memory, file handles, threads, tasks, objects, cached workflows."""

import asyncio
import gc
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

Sample = dict[str, float]

_CACHED = re.compile(r"^temporal_sticky_cache_size\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)


def sample_process(pid: int) -> Sample:
    """Sample what the operating system knows of a process."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    return {
        "rss_mb": int(fields["VmRSS"].split()[0]) / 1024,
        "threads": int(fields["Threads"]),
        "handles": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208 - only the number is needed
    }


def sample_self() -> Sample:
    """Sample this process: tasks of its event loop, and objects that Python tracks."""
    return {"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())}


def cached_workflows(metrics_port: int) -> float:
    """Return the number of runs in a worker's cache, by Temporal's own metric; 0 before its first run."""
    url = f"http://127.0.0.1:{metrics_port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            found: list[str] = _CACHED.findall(answer.read().decode())
    except urllib.error.URLError:
        return 0
    return sum(float(value) for value in found)


def sample_folder(folder: Path) -> Sample:
    """Count files and megabytes below a folder."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return {"files": len(sizes), "mb": sum(sizes) / 2**20}
