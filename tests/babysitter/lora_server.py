"""What vLLM 0.32 does with LoRA adapters, in a few lines: `lora_server.py PORT FOLDER [LOAD_S]`.

An adapter's path must be a folder; `FOLDER/busy` names adapters with requests now, one a line; `FOLDER/calls` gets a line for
each load, unload and completion. tests/engines/test_vllm_lora.py holds the same against the real one.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER, LOAD_S = Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
LOADED: dict[str, str] = {}
ONE_AT_A_TIME = threading.Lock()


def busy() -> list[str]:
    path = FOLDER / "busy"
    return path.read_text().split() if path.exists() else []


def models() -> list[dict[str, Any]]:
    adapters = [{"id": name, "object": "model", "root": path, "parent": "base"} for name, path in LOADED.items()]
    return [{"id": "base", "object": "model", "root": "/base", "parent": None}, *adapters]


class Answer(BaseHTTPRequestHandler):
    """The calls that matter here."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/metrics":
            names = busy()
            labels = f'max_lora="1",running_lora_adapters="{",".join(names)}",waiting_lora_adapters=""'
            text = f"vllm:num_requests_running {len(names)}\nvllm:num_requests_waiting 0\n"
            self.say(200, (text + f"vllm:lora_requests_info{{{labels}}} {time.time()}\n").encode())
        else:
            self.say(200, json.dumps({"data": models()}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body.get("lora_name") or body.get("model")
        with ONE_AT_A_TIME:
            with (FOLDER / "calls").open("a") as calls:
                calls.write(f"{self.path} {name}\n")
            if self.path == "/v1/load_lora_adapter":
                time.sleep(LOAD_S)
                if name in LOADED:
                    self.fault(400, f"The lora adapter '{name}' has already been loaded.")
                elif not Path(body["lora_path"]).is_dir():
                    self.fault(404, f"No adapter found for {body['lora_path']}")
                else:
                    LOADED[name] = body["lora_path"]
                    self.say(200, b"Success")
            elif self.path == "/v1/unload_lora_adapter":
                known = LOADED.pop(name, None) is not None
                self.say(200, b"Success") if known else self.fault(404, f"The lora adapter '{name}' cannot be found.")
            elif name != "base" and name not in LOADED:
                self.fault(404, f"The model `{name}` does not exist.")
            else:
                self.say(200, json.dumps({"model": name, "choices": []}).encode())

    def fault(self, status: int, message: str) -> None:
        self.say(status, json.dumps({"error": {"message": message, "code": status}}).encode())

    def say(self, status: int, raw: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
