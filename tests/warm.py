"""Processes whose imports are done: a server that has imported the project forks them.

Importing torch and the project takes a process four seconds, and the tests start hundreds. What a forked
process runs from there on is the command itself: its `__main__`, its arguments, environment, signals, output
and exit code. A test of torchrun, or of what is answered before torch is imported, starts cold.

    python tests/warm.py SOCKET     the server; it ends when its standard input is closed
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    *("data_tools.__main__", "data_tools.verify", "data_tools.packing.pack", "data_tools.bench"),
    *("data_tools.preview",),
    *("pretrain.job", "pretrain.train", "pretrain.checkpoints.__main__", "pretrain.checkpoints.foreign"),
    *("finetune.__main__", "finetune.predict", "finetune.evaluate", "finetune.export"),
    "finetune.formats.folder",
    *("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"),  # the latter is imported by initialize()
    *("torch._dynamo", "torch.distributed.fsdp", "webdataset"),
    *("numpy.random", "PIL.PngImagePlugin", "PIL.JpegImagePlugin"),
)


class WarmProcess:
    """A process forked by the server of this interpreter, used like subprocess.Popen."""

    def __init__(self, arguments: Sequence[str], env: dict[str, str], stdout: int, stderr: int) -> None:
        """arguments: what stands behind `python`: `-m MODULE ...` or `SCRIPT ...`. Its folder is the
        repository; stdout, stderr: file descriptors."""
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_server())
        request = json.dumps({"arguments": list(arguments), "env": env}).encode()
        socket.send_fds(self._connection, [len(request).to_bytes(8, "little")], [stdout, stderr])
        self._connection.sendall(request)
        self.pid = int.from_bytes(self._read(8), "little")
        self.returncode: int | None = None

    def wait(self, timeout: float) -> int:
        """The exit code, as subprocess gives it. Raises TimeoutError."""
        if self.returncode is None:
            self._connection.settimeout(max(timeout, 1e-3))
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(self._read(8), "little"))
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        try:
            return self.wait(0)
        except TimeoutError:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _read(self, size: int) -> bytes:
        received = self._connection.recv(size, socket.MSG_WAITALL)
        if len(received) != size:
            raise RuntimeError("the server of warm processes has ended")
        return received


class WarmWorkers:
    """Processes that meet as torchrun's workers do, used like one.

    When one fails the others are ended, and the exit code is 1, as torchrun's is.
    """

    def __init__(
        self, arguments: Sequence[str], env: dict[str, str], processes: int, stdout: int, stderr: int
    ) -> None:
        self._store, environments = _workers(env, processes)
        self.running = [WarmProcess(arguments, e, stdout, stderr) for e in environments]
        self._ending = False

    def poll(self) -> int | None:
        """The exit code, or None while one runs."""
        codes = [process.poll() for process in self.running]
        if any(codes) and not self._ending:
            self._ending = True
            self.send_signal(signal.SIGTERM)
        return None if None in codes else int(any(codes))

    def send_signal(self, number: int) -> None:
        """Send a signal to those that run."""
        for process in self.running:
            process.send_signal(number)


def start_warm(
    arguments: Sequence[str], env: dict[str, str], processes: int, stdout: int, stderr: int
) -> WarmProcess | WarmWorkers:
    """One process, or with `processes` so many workers. stdout, stderr: file descriptors."""
    if processes:
        return WarmWorkers(arguments, env, processes, stdout, stderr)
    return WarmProcess(arguments, env, stdout, stderr)


def wait_warm(process: WarmProcess | WarmWorkers, timeout: float) -> int:
    """The exit code. What still runs after `timeout` is killed."""
    limit = time.monotonic() + timeout
    try:
        while (code := process.poll()) is None:
            if time.monotonic() > limit:
                raise subprocess.TimeoutExpired("warm processes", timeout)
            time.sleep(0.005)
        return code
    finally:
        process.send_signal(signal.SIGKILL)


def run_warm(
    arguments: Sequence[str], env: dict[str, str], timeout: float, processes: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as stdout,
        tempfile.TemporaryFile("w+", encoding="utf-8") as stderr,
    ):
        process = start_warm(arguments, env, processes, stdout.fileno(), stderr.fileno())
        code = wait_warm(process, timeout)
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(arguments, code, stdout.read(), stderr.read())


def _workers(env: dict[str, str], processes: int) -> tuple[Any, list[dict[str, str]]]:
    """The store at which they meet, and the environment of each."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    shared = env | {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "warm",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    return store, [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


_started: list[str] = []


def _server() -> str:
    """The socket of this interpreter's server, which is started at the first call."""
    if not _started:
        folder = tempfile.mkdtemp()
        path = f"{folder}/socket"
        server = subprocess.Popen(
            [sys.executable, __file__, path],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert server.stdout is not None and server.stdin is not None
        if server.stdout.readline() != b"ready\n":
            raise RuntimeError("the server of warm processes did not start")
        atexit.register(_end, server, path)
        _started.append(path)
    return _started[0]


def _end(server: subprocess.Popen[bytes], path: str) -> None:
    assert server.stdin is not None
    server.stdin.close()
    server.wait()
    os.unlink(path)
    os.rmdir(os.path.dirname(path))


def serve(path: str) -> dict[str, Any] | None:
    """Fork a process for each request. Returns the request in the forked process, None in the server."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer)
    selector = selectors.DefaultSelector()
    for source in (listener, reader, sys.stdin):
        selector.register(source, selectors.EVENT_READ)
    clients: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if sys.stdin in ready:
            return None
        if reader in ready:
            os.read(reader, 4096)
            _report(clients)
        if listener in ready:
            client, _ = listener.accept()
            size, outputs, _, _ = socket.recv_fds(client, 8, 2)
            request = client.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                selector.close()  # by its object: its number will soon be another file's
                for other in (client, listener, *clients.values()):
                    other.close()
                _become(outputs)
                return json.loads(request)
            for output in outputs:
                os.close(output)
            client.sendall(pid.to_bytes(8, "little"))
            clients[pid] = client


def _report(clients: dict[int, socket.socket]) -> None:
    """Tell the clients of the processes that have ended."""
    for pid in list(clients):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            client = clients.pop(pid)
            with suppress(OSError):  # nobody waits for it
                client.sendall(status.to_bytes(8, "little"))
            client.close()


def _become(outputs: list[int]) -> None:
    """Make the forked process what a new one would be."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((nothing, *outputs)):
        os.dup2(source, target)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # as Python does at its start
        signal.signal(number, signal.SIG_IGN)


def main() -> None:
    sys.path[0] = str(ROOT)
    for module in IMPORTED:
        __import__(module)
        if module.endswith("__main__"):
            del sys.modules[module]  # only what it imports: the command itself is run anew
    assert threading.active_count() == 1, "a thread would not live on in a forked process"
    gc.collect()
    gc.freeze()  # no forked process goes through what was imported, or copies it to do so
    request = serve(sys.argv[1])
    if request is None:
        return
    os.environ.clear()
    os.environ.update(request["env"])
    first, *rest = request["arguments"]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = request["arguments"]
        sys.path[0] = str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main()
