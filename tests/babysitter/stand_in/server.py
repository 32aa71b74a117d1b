"""A test double of the proprietary inference server (`cerebras.inference.workload.main`). Standard library only.

It takes the real flags, writes run_meta.json slowly (compile ids, later execute ids; byte by byte when asked), then
serves a little of the OpenAI API. `full_config.stand_in` (from FULL_CONFIG_PATH) says how: `compile_s`, `execute_s`,
`byte_s`, `compile_jobs`, `execute_jobs`, `port_file` (choose a port and tell it in api_server.json), `exit_code`.
"""

import argparse
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

READY = threading.Event()
MODEL = os.environ.get("MODEL_NAME", "none")


class Answer(BaseHTTPRequestHandler):
    """Health, models, diagnostics and chat."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Everything that is asked without a body."""
        if self.path == "/diagnostics":
            self._send({"passed": True})
        elif not READY.is_set():
            self._send({"status": "compiling"}, 503)
        elif self.path.endswith("/models"):
            self._send({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "stand-in"}]})
        else:
            self._send({"status": "ok", "argv": sys.argv[1:], "env": {name: os.environ.get(name) for name in TOLD}})

    def do_POST(self) -> None:
        """A chat completion, streamed when asked."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        text = f"{MODEL} says hello"
        if body.get("stream"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for word in text.split():
                chunk = {"object": "chat.completion.chunk", "model": MODEL, "choices": [{"delta": {"content": word}}]}
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self._send({"id": "c1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]})

    def _send(self, content: object, status: int = 200) -> None:
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


TOLD = ("MODEL_NAME", "WORKDIR", "MULTIBOX", "NAMESPACE", "MOCK_BACKEND", "JOB_PRIORITY", "APP_TAG", "PORT")


def write_jobs(path: Path, jobs: dict[str, list[dict[str, str]]], byte_s: float) -> None:
    """Write run_meta.json in place, byte by byte when `byte_s` is not 0."""
    raw = json.dumps(jobs).encode()
    if not byte_s:
        path.write_bytes(raw)
        return
    with path.open("wb", buffering=0) as file:
        for n in range(len(raw)):
            file.write(raw[n : n + 1])
            time.sleep(byte_s)


def work(how: dict[str, float], logs: Path) -> None:
    """Compile, then execute, then be ready."""
    logs.mkdir(parents=True, exist_ok=True)
    life = f"{os.getpid()}-{int(time.time() * 1000) % 10_000_000}"
    jobs: dict[str, list[dict[str, str]]] = {"compile_jobs": [], "execute_jobs": []}
    byte_s = float(how.get("byte_s", 0))
    for number in range(int(how.get("compile_jobs", 1))):
        jobs["compile_jobs"].append({"id": f"wsjob-compile-{life}-{number}", "image": "x"})
        write_jobs(logs / "run_meta.json", jobs, byte_s)
        time.sleep(float(how.get("compile_s", 0.1)))
        sys.stdout.write("compiling\n")
        sys.stdout.flush()
    if "exit_code" in how:
        sys.stderr.write("the stand-in fails as told\n")
        sys.stderr.flush()
        os._exit(int(how["exit_code"]))
    for number in range(int(how.get("execute_jobs", 1))):
        jobs["execute_jobs"].append({"id": f"wsjob-execute-{life}-{number}"})
        write_jobs(logs / "run_meta.json", jobs, byte_s)
        time.sleep(float(how.get("execute_s", 0.1)))
    READY.set()


def main() -> None:
    """Parse the real flags and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--params", required=True)
    parser.add_argument("--fastapi", action="store_true", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mgmt_namespace", required=True)
    parser.add_argument("--logfile", required=True)
    parser.add_argument("--cbcore")
    for flag in ("disable_version_check", "mock_backend", "api_gateway", "platform_workload"):
        parser.add_argument(f"--{flag}", action="store_true")
    arguments = parser.parse_args()
    config = json.loads(Path(os.environ["FULL_CONFIG_PATH"]).with_name("full_config.json").read_text())  # no YAML here
    how = config.get("stand_in", {})
    Path(arguments.logfile).write_text("the stand-in starts\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0 if how.get("port_file") else arguments.port), Answer)
    if how.get("port_file"):
        Path(os.environ["WORKDIR"], "api_server.json").write_text(json.dumps({"port": server.server_port}))
    logs = Path(config["runconfig"]["model_dir"]) / "cerebras_logs"
    threading.Thread(target=work, args=(how, logs), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
