"""What goodput costs: all placements that were tried, and those that no other beats."""

from pathlib import Path

from diptych.core.errors import ConfigError
from diptych.planner.search import Plan
from diptych.policy.placement import frontier

COLOURS = {"high affinity": "tab:blue", "low affinity": "tab:green", "mixed": "tab:orange"}


def draw(plan: Plan, path: Path) -> None:
    """Write a PNG.

    Raises: ConfigError if the file cannot be written. ModuleNotFoundError without matplotlib.
    """
    import matplotlib as mpl  # noqa: PLC0415  an extra

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    question = plan.question
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    points = []
    for method, colour in COLOURS.items():
        own = [
            (question.price(one.placement.num_gpus, one.placement.usd_per_hour), one.goodput.per_s)
            for one in plan.verdicts
            if one.placement.method == method
        ]
        points += own
        if own:
            axes.scatter(*zip(*own, strict=True), color=colour, label=method)
    best = frontier(points)
    axes.step(*zip(*best, strict=True), where="post", color="gray", linestyle="--", label="frontier")
    for one in plan.verdicts[:1]:
        place = question.price(one.placement.num_gpus, one.placement.usd_per_hour), one.goodput.per_s
        axes.annotate(str(one.placement), place, fontsize=8, xytext=(4, 6), textcoords="offset points")
    axes.set(
        xlabel="GPUs" if question.objective == "per-gpu" else "dollars an hour",
        ylabel=f"goodput within {question.slo}, requests/s (simulated)",
        title=f"{question.model.name}: what goodput costs",
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise ConfigError(f"cannot write the picture {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"cannot write the picture {path}: {error}; give it the ending .png") from None
    finally:
        pyplot.close(figure)
