"""Make the stored logits of this folder's decoders with transformers, in float32.

    pip install torch transformers
    PYTHONPATH=. python tests/golden/models/make_decoder_golden.py ../shared/data/models/stories260K

Writes ``tiny_decoders.npz`` (logits of every row of every prompt), ``tiny_texts.npz`` (greedy
continuations of the prompts by one of the models) and, where the real model's directory is given,
``stories260k.npz`` (its greedy continuation). Run by hand in an environment
that has the reference; tests only read what it wrote.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.golden.models.tiny_decoders import CONFIGS, tiny_decoder_tensors, tiny_prompts

HERE = pathlib.Path(__file__).parent
STORY_TOKENS = 400
TEXT_TOKENS = 25


def tiny_model(config: dict[str, Any]) -> Any:
    """Return a tiny model with the weights of its config."""
    arguments = {key: value for key, value in config.items() if key != "model_type"}
    settings = AutoConfig.for_model(config["model_type"], **arguments)
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
    weights = {name: torch.from_numpy(a) for name, a in tiny_decoder_tensors(config).items()}
    result = model.load_state_dict(weights, strict=False)
    unset = [name for name in result.missing_keys if name != "lm_head.weight"]
    if (
        unset
        or result.unexpected_keys
        or ("lm_head.weight" in weights) == settings.tie_word_embeddings
    ):
        raise SystemExit(f"weights do not fit: {unset} {result.unexpected_keys}")
    return model


def tiny_logits(config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Logits of a tiny model, all prompts one after another."""
    model = tiny_model(config)
    with torch.no_grad():
        outputs = [model(input_ids=torch.tensor([ids])).logits[0] for ids in tiny_prompts()]
    return torch.cat(outputs).float().numpy()


def tiny_texts(config: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Greedy continuations of the prompts by a tiny model, by the prompt's number."""
    model = tiny_model(config)
    found = {}
    with torch.no_grad():
        for number, ids in enumerate(tiny_prompts()):
            tokens = list(ids)
            while len(tokens) < len(ids) + TEXT_TOKENS and tokens[-1] != config["eos_token_id"]:
                logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
                tokens.append(int(logits.argmax()))
            found[str(number)] = np.array(tokens[len(ids) :], np.int32)
    return found


def story(directory: str) -> dict[str, np.ndarray[Any, Any]]:
    """Greedy tokens of the real model from its first token on, and how clear each choice was."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokens = [int(model.config.bos_token_id)]
    leads = []
    with torch.no_grad():
        for _ in range(STORY_TOKENS):
            logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
            two = logits.topk(2).values
            leads.append(float(two[0] - two[1]))
            tokens.append(int(logits.argmax()))
    print("smallest lead", min(leads))
    return {"tokens": np.array(tokens, np.int32), "leads": np.array(leads, np.float32)}


def main() -> None:
    """Write the golden files."""
    golden = {name: tiny_logits(config) for name, config in CONFIGS.items()}
    np.savez_compressed(HERE / "tiny_decoders.npz", **golden)  # type: ignore[arg-type]
    np.savez_compressed(HERE / "tiny_texts.npz", **tiny_texts(CONFIGS["qwen3"]))  # type: ignore[arg-type]
    for directory in sys.argv[1:]:
        np.savez_compressed(HERE / "stories260k.npz", **story(directory))


if __name__ == "__main__":
    main()
