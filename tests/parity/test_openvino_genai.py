"""Our tokens against those of OpenVINO's own pipeline on the same files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.parity.reference import BareEngine

NUM_TOKENS = 100
TIE_LOGITS = 1e-2
"""Two tokens whose logits differ by less may be taken for each other: the two pipelines add up in different order."""


@pytest.mark.slow
def test_tokens_equal_those_of_openvino_genai_up_to_ties(
    model_dir: Path, prompts: list[list[int]], reference_answers: list[list[int]], bare_engine: BareEngine
) -> None:
    program = Path(__file__).with_name("openvino_genai_answers.py")
    ended = subprocess.run(
        [sys.executable, str(program), str(model_dir)],
        input=json.dumps({"prompts": prompts, "num_tokens": NUM_TOKENS}),
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stderr
    theirs: list[list[int]] = json.loads(ended.stdout)
    for prompt, our_answer, their_answer in zip(prompts, reference_answers, theirs, strict=True):
        assert len(their_answer) == NUM_TOKENS
        differing = [index for index in range(NUM_TOKENS) if our_answer[index] != their_answer[index]]
        if differing:
            first = differing[0]
            likeliest, gap = bare_engine.two_likeliest(prompt + our_answer[:first])
            assert set(likeliest) == {our_answer[first], their_answer[first]}, f"token {first} is no tie"
            assert gap < TIE_LOGITS, f"token {first}: logits differ by {gap}"
