"""llama.cpp's own HTTP server, as the package xllamacpp ships it.  llama_cpp_server.py '{"model": …, "port": …}'

Run by the interpreter of tests/engines/llama_cpp.py. Its settings are JSON: `model` and `alias`, and any member of
xllamacpp's `CommonParams` by its own name. Ends on SIGTERM.
"""

import json
import signal
import sys

import xllamacpp  # type: ignore[import-not-found]  # of the engine's environment, not ours


def main(settings: dict[str, object]) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = settings.pop("model")
    params.model_alias = {settings.pop("alias")}
    params.hostnames = settings.pop("hostnames", ["127.0.0.1"])
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    for name, value in settings.items():
        setattr(params, name, value)
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before the server's threads, which inherit it
    server = xllamacpp.Server(params)
    signal.sigwait(ends)
    del server  # stops it


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
