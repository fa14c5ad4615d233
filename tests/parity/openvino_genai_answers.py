"""A program: greedy answers of `openvino_genai`, which shares nothing with us but the model's files.

Takes the model's folder; reads {"prompts": [[token id]], "num_tokens": n} on stdin, writes [[token id]] to stdout.
"""

import json
import sys

import numpy as np
import openvino as ov
import openvino_genai


def main() -> None:
    """Answer all prompts, in one batch."""
    order = json.load(sys.stdin)
    # The same precisions and threads as a worker on one core of this machine.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "INFERENCE_NUM_THREADS": 1}
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1
    pipeline = openvino_genai.ContinuousBatchingPipeline(sys.argv[1], scheduler, "CPU", settings)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = order["num_tokens"]
    config.do_sample = False
    config.ignore_eos = True
    config.apply_chat_template = False
    prompts = [ov.Tensor(np.array([prompt], np.int64)) for prompt in order["prompts"]]
    results = pipeline.generate(prompts, [config] * len(prompts))
    answers = {result.m_request_id: list(map(int, result.m_generation_ids[0])) for result in results}
    json.dump([answers[number] for number in sorted(answers)], sys.stdout)


if __name__ == "__main__":
    main()
