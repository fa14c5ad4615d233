"""Program for vLLM's environment: a GGUF file's weights in bf16, with its tokenizer, as a Hugging Face folder.

vLLM itself reads GGUF no longer. The folder is what it would serve: each weight is the GGUF's, rounded to bf16.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def _main() -> None:
    gguf, folder = Path(sys.argv[1]), sys.argv[2]
    parent, name = str(gguf.parent), gguf.name
    AutoTokenizer.from_pretrained(parent, gguf_file=name).save_pretrained(folder)
    weights = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        parent, gguf_file=name, dtype=torch.bfloat16, quantization_config=weights
    )
    model.save_pretrained(folder)


if __name__ == "__main__":
    _main()
