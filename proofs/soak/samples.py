"""What a process holds at a moment: memory, file handles, threads, tasks, objects, cached workflows."""

import asyncio
import gc
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

Sample = dict[str, float]

_CACHED = re.compile(r"^temporal_sticky_cache_size\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)


def of_system(pid: int) -> Sample:
    """What the operating system knows of a process."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    return {
        "rss_mb": int(fields["VmRSS"].split()[0]) / 1024,
        "threads": int(fields["Threads"]),
        "handles": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208 - there is nothing to be a path
    }


def held() -> Sample:
    """What this process knows of itself: tasks of its event loop, and objects that Python could collect."""
    return {"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())}


def cached_workflows(metrics_port: int) -> float:
    """How many runs a worker keeps in memory, by Temporal's own metric; 0 before there was one."""
    url = f"http://127.0.0.1:{metrics_port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            found: list[str] = _CACHED.findall(answer.read().decode())
    except urllib.error.URLError:
        return 0
    return sum(float(value) for value in found)


def of_folder(folder: Path) -> Sample:
    """Files and megabytes below a folder."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return {"files": len(sizes), "mb": sum(sizes) / 2**20}
