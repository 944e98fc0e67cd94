"""Decoders in GGUF files, as llama.cpp writes them: weights, sizes and tokenizer in one file.

``container`` reads the file, ``blocks`` turns its codes into floats, ``model`` and ``tokenizer``
make of it what a Hugging Face directory holds. Nothing behind them knows where a model came from.
"""
