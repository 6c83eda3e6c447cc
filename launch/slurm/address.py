"""Where the processes of a SLURM job meet: `python -m launch.slurm.address` prints name and port.

The name is that of the first node, where the script itself and rank 0 run. The port is computed from the job
id; if it is taken, others are tried. Needs nothing but Python.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

from data_tools.errors import print_line, print_result, run_command

LOW, PORTS, STRIDE = 20000, 10000, 37


def main() -> int:
    """Print the address. Returns 2 outside a SLURM job, 1 if there is no address or no free port."""
    try:
        address = os.environ.get("MASTER_ADDR") or first_address(os.environ["SLURM_JOB_NODELIST"])
        port = free_port(int(os.environ["SLURM_JOB_ID"]))
    except KeyError as error:
        print_line(f"error: {error.args[0]} is not set: this runs in a SLURM job", error=True)
        return 2
    except (OSError, subprocess.CalledProcessError) as error:
        print_line(f"error: no address to meet at: {error}", error=True)
        return 1
    print_result(f"{address} {port}")
    return 0


def first_address(nodes: str) -> str:
    """The first name of SLURM's list `nodes`; SLURM's address of that node if the name does not resolve."""
    name = _scontrol("hostnames", nodes).split()[0]
    try:
        socket.getaddrinfo(name, None)
        return name
    except socket.gaierror:
        found = re.search(r"NodeAddr=(\S+)", _scontrol("node", name))
        return found[1] if found else name


def free_port(job: int) -> int:
    """A port that nobody listens on here: 20000 + job modulo 10000, or if it is taken 37 further, and so on.

    Raises OSError after 100 ports that are taken.
    """
    for attempt in range(100):
        port = LOW + (job + attempt * STRIDE) % PORTS
        if all(_can_listen(port, family) for family in (socket.AF_INET, socket.AF_INET6)):
            return port
    raise OSError("100 ports are taken")


def _can_listen(port: int, family: socket.AddressFamily) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", port))
            server.listen()
    except OSError as error:
        return family == socket.AF_INET6 and error.errno != 98  # a machine without IPv6
    return True


def _scontrol(*what: str) -> str:
    return subprocess.run(
        ["scontrol", "show", *what], check=True, capture_output=True, encoding="utf-8", errors="replace"
    ).stdout


if __name__ == "__main__":
    sys.exit(run_command(main))
