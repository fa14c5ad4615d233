"""Writes the README's tables of goodput from the committed results of benchmarks/goodput.py.

Run `make docs` after new results; a test compares the README with what this would write.
"""

from pathlib import Path

from harness.goodput_table import goodput_table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
MACHINES = {"Zen 5": RESULTS / "zen5-avx512" / "goodput", "Zen 4": RESULTS / "zen4-avx512" / "goodput"}
BEGIN, END = "<!-- goodput table: written by `make docs` -->\n", "<!-- end of the goodput table -->\n"


def render() -> str:
    """Return the README with the tables in their place, one a machine."""
    tables = "\n".join(goodput_table(folder, f"{name}: workload, limit") for name, folder in MACHINES.items())
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tables}{END}{after}"


if __name__ == "__main__":
    README.write_text(render(), encoding="utf-8")
