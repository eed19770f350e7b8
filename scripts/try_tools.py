"""Tools of others on the bundled model, each as their own pages show it: `python scripts/try_tools.py [NAME ...]`.

Prints a line per tool: version, what ran, and what came out. Their packages are not ours to depend on;
scripts/try_tools.sh makes an environment that has them.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.checkpoint import BUNDLED
from mllm.model import MLLMForConditionalGeneration

TRAINING: dict[str, Any] = {"per_device_train_batch_size": 2, "max_steps": 8, "learning_rate": 1e-3, "use_cpu": True}
TRAINING |= {"logging_steps": 1, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
TRAINING |= {"bf16": False, "gradient_checkpointing": False}


def image_of(color: str = "red") -> Image.Image:
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).ellipse((40, 60, 140, 160), fill=color)
    return image


def load() -> MLLMForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(BUNDLED, dtype=torch.float32)


def text(value: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": value}]


QUESTION = [{"type": "image"}, *text("What color is the circle?")]


def losses(trainer: Any, *, most: float = 0.5) -> str:
    """The first and the last, which must be less than `most` of the first."""
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert found[-1] < most * found[0], found
    return f"loss {found[0]:.3f} to {found[-1]:.3f}"


def train(kind: str, rows: list[dict[str, Any]], more: dict[str, Any] | None = None, **options: Any) -> Any:
    """A trainer of TRL (SFT, DPO or GRPO) after its training; `more` is for the trainer, `options` for its config."""
    import trl

    trainer = getattr(trl, f"{kind}Trainer")(
        load(),
        args=getattr(trl, f"{kind}Config")(output_dir=tempfile.mkdtemp(), **{**TRAINING, **options}),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoProcessor.from_pretrained(BUNDLED),
        **more or {},
    )
    trainer.train()
    return trainer


def dialogue(asked: list[dict[str, Any]] | str, said: list[dict[str, Any]] | str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


DRAWING = {"images": [image_of()], "messages": dialogue(text("a red circle"), [{"type": "image"}])}


def learned_text(trainer: Any, batch: dict[str, Any]) -> str:
    learned = batch["labels"][0][batch["labels"][0] != -100]
    return trainer.processing_class.decode(learned, skip_special_tokens=False)


def trl_sft_answers() -> str:
    """Answers about images: what is learned is the answer, and the image is seen."""
    row = {"images": [image_of()], "messages": dialogue(QUESTION, text("octarine"))}
    trainer = train("SFT", [row] * 4, assistant_only_loss=True)
    batch = next(iter(trainer.get_train_dataloader()))
    assert learned_text(trainer, batch) == " octarine</s>"
    loss = trainer.compute_loss(trainer.model, dict(batch))
    torch.testing.assert_close(loss, trainer.model(**dict(batch)).loss, rtol=1e-4, atol=1e-4)
    other = trainer.compute_loss(trainer.model, {**batch, "codes": batch["codes"].flip(0)})
    assert other != loss, "the image counts"
    return f"{losses(trainer)}; the answer alone is learned, the loss is that of the model"


def trl_sft_drawings() -> str:
    """Images that the assistant drew are learned, by the codes that the processor gives."""
    trainer = train("SFT", [DRAWING] * 4, assistant_only_loss=True)
    before, after = load().state_dict(), trainer.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any(name.startswith("code_head") for name in changed), "the head of the codes learns"
    return losses(trainer)


def trl_sft_everything() -> str:
    """The default: all text is learned, and of the images those that the assistant drew."""
    return losses(train("SFT", [{"images": [image_of()], "messages": dialogue(QUESTION, text("red"))}] * 4))


def trl_sft_prompt_completion() -> str:
    prompt, completion = dialogue("What color?", "octarine")
    trainer = train("SFT", [{"images": [image_of()], "prompt": [prompt], "completion": [completion]}] * 4)
    assert learned_text(trainer, next(iter(trainer.get_train_dataloader()))) == " octarine</s>"
    return losses(trainer)


def trl_sft_text() -> str:
    return losses(train("SFT", [{"messages": dialogue(text("What can you draw?"), text("Nothing at all."))}] * 4))


def trl_sft_lora() -> str:
    from peft import LoraConfig

    adapter = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    return losses(train("SFT", [DRAWING] * 4, adapter, assistant_only_loss=True), most=0.95)


def trl_dpo() -> str:
    asked, chosen = dialogue(QUESTION, text("red"))
    _, rejected = dialogue(QUESTION, text("blue"))
    row = {"images": [image_of()], "prompt": [asked], "chosen": [chosen], "rejected": [rejected]}
    return losses(train("DPO", [row] * 4))


def trl_grpo() -> str:
    prompts = [[{"role": "user", "content": question}] for question in ("What can you draw?", "Hi", "Who are you?")]
    trainer = train(
        "GRPO",
        [{"prompt": prompt} for prompt in prompts],
        {"reward_funcs": lambda completions, **_: [float(len(str(completion))) for completion in completions]},
        per_device_train_batch_size=4,
        max_steps=3,
        num_generations=2,
        max_completion_length=12,
        temperature=2.0,
        chat_template_kwargs={"padding": False},  # TRL pads by itself, and takes all that it gets for tokens
    )
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    return f"rewards {', '.join(f'{reward:.1f}' for reward in rewards)}"


LM_EVAL_TASK = """
task: mllm_{output_type}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {output_type}
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: ""
generation_kwargs: {{max_gen_toks: 24, until: ["</s>"]}}
metric_list: [{{metric: {metric}}}]
"""


def lm_eval() -> str:
    """`lm_eval --model hf`: log-likelihoods of answers, and answers, to prompts as the model knows them."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = Path(tempfile.mkdtemp())
    answers = {"What can you draw?": " I can draw circles.", "Hi": " Hello! What shall I draw?"}
    prompts = [(f"USER: {asked} ASSISTANT:", said) for asked, said in answers.items()]
    rows = [{"prompt": prompt, "choices": [said, " zq xj vk"], "gold": 0} for prompt, said in prompts]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = {"multiple_choice": "acc", "generate_until": "bypass"}
    for kind, metric in kinds.items():
        task = LM_EVAL_TASK.format(output_type=kind, metric=metric, rows=folder / "rows.jsonl")
        lines = [line for line in task.splitlines() if kind == "multiple_choice" or "doc_to_choice" not in line]
        (folder / f"{kind}.yaml").write_text("\n".join(lines))
    found = simple_evaluate(
        model="hf",
        model_args=f"pretrained={BUNDLED},dtype=float32,add_bos_token=True",
        tasks=[f"mllm_{kind}" for kind in kinds],
        task_manager=TaskManager(include_path=str(folder)),
        device="cpu",
        batch_size=2,
        log_samples=True,
    )
    assert found["results"]["mllm_multiple_choice"]["acc,none"] == 1.0
    said = [sample["resps"][0][0] for sample in found["samples"]["mllm_generate_until"]]
    assert said[1] == answers["Hi"], said
    return f"2 of 2 chosen rightly; answers {said}"


def caches() -> str:
    """`cache_implementation="quantized"`: the answer about an image is that of the plain cache."""
    model, processor = load(), AutoProcessor.from_pretrained(BUNDLED)
    chat = [{"role": "user", "content": [{"type": "image", "image": image_of()}, QUESTION[1]]}]
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    expected = model.generate(**inputs)
    for backend, bits in (("quanto", 4), ("hqq", 4), ("hqq", 8)):
        settings = {"cache_implementation": "quantized", "cache_config": {"backend": backend, "nbits": bits}}
        assert model.generate(**inputs, **settings).equal(expected), (backend, bits)
    said = processor.decode(expected[0, inputs["input_ids"].shape[1] :]).strip()
    return f"{said!r} with quanto (4 bits) and hqq {version('hqq')} (4 and 8 bits)"


TOOLS: dict[str, tuple[str, Callable[[], str]]] = {
    function.__name__.removeprefix("trl_").replace("_", "-"): (package, function)
    for package, *functions in (
        ("trl", trl_sft_answers, trl_sft_drawings, trl_sft_everything, trl_sft_prompt_completion, trl_sft_text),
        ("trl", trl_sft_lora, trl_dpo, trl_grpo),
        ("lm_eval", lm_eval),
        ("optimum-quanto", caches),
    )
    for function in functions
}


def main(names: list[str]) -> int:
    failed = 0
    for name in names or list(TOOLS):
        package, run = TOOLS[name]
        try:
            result = run()
        except Exception as error:  # each tool is reported by itself
            failed, result = failed + 1, f"FAILED: {type(error).__name__}: {error}"
            if len(names) == 1:
                raise
        print(f"{name} | {package} {version(package)} | {result}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
