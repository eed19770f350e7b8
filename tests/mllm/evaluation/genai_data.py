"""GenAI-Bench in the official layout: prompts.txt without an end of line, genai_skills.json of official sizes."""

import json
from pathlib import Path

import numpy as np

COUNTS = {
    "attribute": 143,
    "scene": 109,
    "spatial relation": 104,
    "action relation": 138,
    "part relation": 34,
    "counting": 97,
    "comparison": 51,
    "differentiation": 105,
    "negation": 101,
    "universal": 47,
}
BASIC = ("attribute", "scene", "spatial relation", "action relation", "part relation")


def write_genai_bench(folder: Path, *, size: int = 527, first: int = 1) -> tuple[Path, Path]:
    """The two files; skills are drawn anew but as many as there are."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts, skills = folder / "prompts.txt", folder / "genai_skills.json"
    prompts.write_text("\n".join(f"a red circle number {n}" for n in range(size)), encoding="utf-8")
    rng = np.random.default_rng(5)
    num_basic = 214 * size // 527
    basic, advanced = range(num_basic), range(num_basic, size)
    named = {
        name: sorted((rng.choice(basic if name in BASIC else advanced, count, replace=False) + first).tolist())
        for name, count in COUNTS.items()
    }
    named |= {"basic": [n + first for n in basic], "advanced": [n + first for n in advanced]}
    skills.write_text(json.dumps(named), encoding="utf-8")
    return prompts, skills
