"""How the time of one drawing grows with each size, next to a fitted cost model; `mllm benchmark draw --growth`.

One size of the model or the request is varied at a time. The cost model has four rates: seconds per step of a network
(launches), per byte of weights, per byte of cache and per operation. They are fitted to all points at once, without
negative ones, with the same weight for the same relative error. Nothing is guessed: how many guesses stand depends on
weights and seeds.

Letters: P points, F costs (steps, weight bytes, cache bytes, operations).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from mllm.benchmark.cases import SIZES, ModelSize, Settings, draw_alone
from mllm.benchmark.measure import THIS, Case

GROWTH: dict[str, tuple[tuple[int, ...], Callable[[ModelSize, int], ModelSize]]] = {
    "positions": ((16, 36, 64, 144), lambda size, value: replace(size, side=round(value**0.5))),
    "resolution": ((64, 128, 192, 256), lambda size, value: replace(size, side=value // 16)),
    "codebooks": ((1, 2, 4, 8, 16), lambda size, value: replace(size, codebooks=value)),
    "context": ((16, 128, 512, 1024), lambda size, value: replace(size, prompt=value)),
    "batch": ((1, 2, 4, 8), lambda size, _: size),
    "images": ((1, 2, 4, 8), lambda size, _: size),
}
"""Values of each size, and the model that has it. "images" are drawn one after another, "batch" at once."""
COSTS = ("steps", "weight_bytes", "cache_bytes", "flops")


def growth_cases(settings: Settings, parameters: list[str]) -> Iterator[Case]:
    """One drawing for every value of every parameter, from the first size of random weights."""
    base = next((SIZES[name] for name in settings.sizes if name in SIZES), None)
    if base is None:
        raise ValueError(f"--sizes must have a size of random weights to vary, got {settings.sizes}; use XS")
    for parameter in parameters:
        values, change = GROWTH[parameter]
        for value in values:
            size = change(base, value)
            batch, images = (value if parameter == name else 1 for name in ("batch", "images"))
            case = draw_alone(settings, size, batch, name=f"{parameter} {value}", images=images, window=1)
            steps = images * case.facts["positions"] * (size.layers + size.head_layers * size.codebooks)
            facts: dict[str, Any] = {"parameter": parameter, "value": value, "steps": steps}
            facts |= {name: getattr(case.cost, name) for name in COSTS[1:]}
            facts["model_bytes"] = case.facts["weight_bytes"]
            yield replace(case, facts=facts, cost=None, warm_ups=1)


def fit_costs(report: dict[str, Any]) -> dict[str, Any]:
    """The rates of the cost model, and its error over all points."""
    facts = [case["facts"] for case in report["cases"]]
    costs_PF = np.array([[fact[name] for name in COSTS] for fact in facts], dtype=np.float64)
    seconds_P = np.array([case["seconds"][THIS]["median"] for case in report["cases"]])
    scale_F = costs_PF.max(axis=0)
    rates_F, _ = nnls(costs_PF / scale_F / seconds_P[:, None], np.ones(len(seconds_P)))
    fitted_P = costs_PF / scale_F @ rates_F
    return {
        "seconds_per": dict(zip(COSTS, (rates_F / scale_F).tolist(), strict=True)),
        "fitted_seconds": fitted_P.tolist(),
        "mean_relative_error": float(np.abs(fitted_P / seconds_P - 1).mean()),
    }


def plot_growth(report: dict[str, Any], path: Path) -> None:
    """A panel for each parameter: medians as dots, the fitted model as a line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

    parameters = list(dict.fromkeys(case["facts"]["parameter"] for case in report["cases"]))
    figure = Figure(figsize=(2.6 * len(parameters), 2.8), layout="constrained")
    panels = figure.subplots(1, len(parameters), squeeze=False, sharey=True)[0]
    fitted = dict(zip(map(id, report["cases"]), report["fit"]["fitted_seconds"], strict=True))
    for panel, parameter in zip(panels, parameters, strict=True):
        cases = [case for case in report["cases"] if case["facts"]["parameter"] == parameter]
        values = [case["facts"]["value"] for case in cases]
        panel.plot(values, [case["seconds"][THIS]["median"] for case in cases], "o", label="measured")
        panel.plot(values, [fitted[id(case)] for case in cases], "-", label="cost model")
        panel.set(xlabel=parameter, xscale="log", yscale="log", xticks=values, xticklabels=values)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds")
    panels[0].yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=ScalarFormatter())
    panels[0].legend()
    figure.savefig(path, dpi=120)
