"""Program for llama.cpp's environment: starts its HTTP server and lives until it is told to end.

Flags have the names of `llama-server`'s; what is not named here is left at the server's default: continuous batching
on, each slot's last prompt kept, flash attention where it helps.
"""

import argparse
import signal

import xllamacpp

LOOPBACK = "127.0.0.1"


def _parameters() -> xllamacpp.CommonParams:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="where to listen, on 127.0.0.1")
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--alias", required=True, help="what clients call the model")
    parser.add_argument("--threads", type=int, required=True, help="for decode and for prompts")
    parser.add_argument("--parallel", type=int, required=True, help="slots: requests at once")
    parser.add_argument("--ctx-size", type=int, required=True, help="tokens of all slots together")
    parser.add_argument("--batch-size", type=int, default=2_048, help="tokens a step at most")
    parser.add_argument("--ubatch-size", type=int, default=512, help="tokens that are computed together")
    parser.add_argument("--cache-ram", type=int, default=4_096, help="MiB for prompts of slots that were taken over")
    options = parser.parse_args()
    parameters = xllamacpp.CommonParams()
    parameters.hostnames = [LOOPBACK]
    parameters.port = options.port
    parameters.model.path = options.model
    parameters.model_alias = {options.alias}
    parameters.cpuparams.n_threads = options.threads
    parameters.cpuparams_batch.n_threads = options.threads
    parameters.n_parallel = options.parallel
    parameters.n_ctx = options.ctx_size
    parameters.n_batch = options.batch_size
    parameters.n_ubatch = options.ubatch_size
    parameters.cache_ram_mib = options.cache_ram
    parameters.cont_batching = True
    parameters.cache_prompt = True
    parameters.kv_unified = False
    return parameters


def _main() -> None:
    server = xllamacpp.Server(_parameters())  # answers from here on, in threads of its own
    print(f"listening at {server.listening_address}", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    _main()
