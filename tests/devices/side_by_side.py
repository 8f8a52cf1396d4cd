"""Runs scripts one after the other, each in two processes, as torchrun does.

``python side_by_side.py '[["SCRIPT", "ARGUMENT"], ["SCRIPT"]]'`` imports once what the scripts
import, and all processes are copies of it.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import traceback

import rank_worker  # noqa: F401
from transformers import (  # noqa: F401
    AutoProcessor,
    LlavaForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
)

from lightkv_gnn import adapters, session, tiny  # noqa: F401

WORLD = 2


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])


def run(script: list[str], rank: int, port: int) -> int:
    """Status of a script that is told of its rank."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD}
    os.environ |= {name: str(number) for name, number in numbers.items()}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    sys.argv = script
    try:
        runpy.run_path(script[0], run_name="__main__")
    except BaseException:
        told = traceback.format_exc().splitlines()
        print("\n".join(f"[rank{rank}] {line}" for line in told), file=sys.stderr)
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main(scripts: list[list[str]]) -> int:
    for script in scripts:
        port, left = free_port(), set[int]()
        for rank in range(WORLD):
            process = os.fork()
            if not process:
                os._exit(run(script, rank, port))
            left.add(process)
        while left:
            process, status = os.wait()
            left.remove(process)
            if status:
                for other in left:  # it may wait for the one that is gone
                    os.kill(other, signal.SIGKILL)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
