"""Program: `python -m diptych.models.convert FILE.gguf` writes OpenVINO IR and tokenizer beside the file.

A process of its own, because the native reader may crash, prints what it likes and takes the model's size in memory.
stdout carries one `ProgramReport`, everything else goes to stderr.
"""

import os
import sys

import msgspec

from diptych.models.child import ProgramReport


def _convert(gguf_path: str) -> ProgramReport:
    try:
        import openvino_genai  # noqa: PLC0415  heavy, and its absence is an answer
    except (ImportError, OSError) as error:
        return ProgramReport(error=str(error), kind="import")
    try:
        openvino_genai.LLMPipeline(gguf_path, "CPU", enable_save_ov_model=True)
    except Exception as error:  # process edge: native code raises any type, and the parent words it
        return ProgramReport(error=f"{type(error).__name__}: {error}", kind="native")
    return ProgramReport()


def main() -> None:
    """Convert the file that the first argument names."""
    report_fd = os.dup(1)
    os.dup2(2, 1)  # native code writes to descriptor 1 without asking
    os.write(report_fd, msgspec.json.encode(_convert(sys.argv[1])))


if __name__ == "__main__":
    main()
