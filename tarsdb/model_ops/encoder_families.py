"""Where each family of encoders keeps its numbers and its tensors: one row per family.

A part is what the encoder computes with; its name in a layer of the model is the family's. Knows no
sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

from tarsdb.records import dataclass


@dataclass(frozen=True)
class Family:
    """One way to name numbers and tensors.

    Parameters
    ----------
    keys : mapping
        Our name of a size to the key in ``config.json``; '' where the family has none.
    layer : str
        Prefix of layer i.
    parts : mapping
        Our name to the family's, inside a layer. Matrices that lie one below the other in one
        tensor are ``qkv``, and ``gate_up``.
    naming : str
        Families of one naming differ in numbers only.
    epsilon : str
        Key of the norms' epsilon.
    words, norm : str
        The vectors of tokens, and the norm of the embeddings.
    last_norm : str
        Of a pre-norm family: the norm behind all layers. ``output_norm`` of a layer is then the
        norm in front of the next one, and the first layer has none.
    padding_positions : bool
        Positions start behind ``pad_token_id``.
    relative : bool
        The family has a bias by distance.
    """

    keys: Mapping[str, str]
    layer: str
    parts: Mapping[str, str]
    naming: str
    epsilon: str = "layer_norm_eps"
    words: str = "embeddings.word_embeddings"
    norm: str = "embeddings.LayerNorm"
    last_norm: str = ""
    padding_positions: bool = False
    relative: bool = False

    @property
    def gated(self) -> bool:
        """Whether the feed-forward network multiplies two products."""
        return not self.parts.keys().isdisjoint(("gate", "gate_up"))


_BERT_KEYS = {
    "layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads",
    "intermediate": "intermediate_size", "vocabulary": "vocab_size",
    "positions": "max_position_embeddings", "token_types": "type_vocab_size",
    "activation": "hidden_act",
}  # fmt: skip
_BERT_PARTS = {
    "query": "attention.self.query", "key": "attention.self.key",
    "value": "attention.self.value", "context": "attention.output.dense",
    "context_norm": "attention.output.LayerNorm", "expand": "intermediate.dense",
    "reduce": "output.dense", "output_norm": "output.LayerNorm",
}  # fmt: skip
_BERT = Family(_BERT_KEYS, "encoder.layer.{}.", _BERT_PARTS, "bert")
_ROBERTA = Family(_BERT_KEYS, "encoder.layer.{}.", _BERT_PARTS, "bert", padding_positions=True)
_MPNET = Family(
    {**_BERT_KEYS, "token_types": ""}, "encoder.layer.{}.",
    {**_BERT_PARTS, "query": "attention.attn.q", "key": "attention.attn.k",
     "value": "attention.attn.v", "context": "attention.attn.o",
     "context_norm": "attention.LayerNorm"},
    "mpnet", padding_positions=True, relative=True,
)  # fmt: skip
_DISTILBERT = Family(
    {"layers": "n_layers", "hidden": "dim", "heads": "n_heads", "intermediate": "hidden_dim",
     "vocabulary": "vocab_size", "positions": "max_position_embeddings", "token_types": "",
     "activation": "activation"},
    "transformer.layer.{}.",
    {"query": "attention.q_lin", "key": "attention.k_lin", "value": "attention.v_lin",
     "context": "attention.out_lin", "context_norm": "sa_layer_norm", "expand": "ffn.lin1",
     "reduce": "ffn.lin2", "output_norm": "output_layer_norm"},
    "distilbert",
)  # fmt: skip
_MODERNBERT = Family(
    {**_BERT_KEYS, "token_types": "", "activation": "hidden_activation"}, "layers.{}.",
    {"qkv": "attn.Wqkv", "context": "attn.Wo", "context_norm": "mlp_norm", "gate_up": "mlp.Wi",
     "reduce": "mlp.Wo", "output_norm": "attn_norm"},
    "modernbert", epsilon="norm_eps", words="embeddings.tok_embeddings", norm="embeddings.norm",
    last_norm="final_norm",
)  # fmt: skip
_NOMIC_PARTS = {
    "qkv": "attn.Wqkv", "context": "attn.out_proj", "context_norm": "norm1", "gate": "mlp.fc12",
    "expand": "mlp.fc11", "reduce": "mlp.fc2", "output_norm": "norm2",
}  # fmt: skip
_NOMIC = Family(
    {"layers": "n_layer", "hidden": "n_embd", "heads": "n_head", "intermediate": "n_inner",
     "vocabulary": "vocab_size", "positions": "max_trained_positions",
     "token_types": "type_vocab_size", "activation": "activation_function"},
    "encoder.layers.{}.", _NOMIC_PARTS, "nomic", epsilon="layer_norm_epsilon", norm="emb_ln",
)  # fmt: skip
NOMIC_BY_TRANSFORMERS = Family(
    _BERT_KEYS, "encoder.layers.{}.", _NOMIC_PARTS, "nomic", norm="emb_ln"
)
"""The same model in the words of transformers' own ``config.json``."""
FAMILIES = {
    "bert": _BERT, "roberta": _ROBERTA, "xlm-roberta": _ROBERTA, "camembert": _ROBERTA,
    "mpnet": _MPNET, "distilbert": _DISTILBERT, "modernbert": _MODERNBERT, "nomic_bert": _NOMIC,
}  # fmt: skip
BY_NAMING = {family.naming: family for family in FAMILIES.values() if family is not _ROBERTA}
