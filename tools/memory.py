"""Says whether this machine has enough free memory for a run: `python -m tools.memory --need-gib 14`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

GIB = 1 << 30
NOT_ENOUGH = 3  # exit status; 1 and 2 stay Python's own (an exception, a bad command line)


def available_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a new process can use without swapping, capped by the limit of the container it runs in.

    Linux: ``MemAvailable``, which counts reclaimable page cache as free.  Elsewhere: physical memory, since
    no portable figure of free memory exists.
    """
    if meminfo.exists():
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
        if found is None:
            raise RuntimeError(f"{meminfo} has no MemAvailable line; Linux 3.14 or newer is needed")
        available = int(found[1]) * 1024
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # cgroup v2 and v1; without a limit the first says "max", the second a number near 2**63.
    for limit in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        if limit.exists() and (text := limit.read_text().strip()) != "max":
            available = min(available, int(text))
    return available


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.memory", description=__doc__)
    parser.add_argument("--need-gib", type=float, required=True, help="memory that the run needs, in GiB")
    need = parser.parse_args(argv).need_gib
    have = available_bytes() / GIB
    enough = have >= need
    print(f"memory: {have:.1f} GiB available, {need:g} GiB needed: {'enough' if enough else 'not enough'}")
    return 0 if enough else NOT_ENOUGH


if __name__ == "__main__":
    sys.exit(main())
