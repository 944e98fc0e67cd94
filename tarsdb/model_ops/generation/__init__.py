"""Generation: prompts to tokens to text, for many callers at once.

``prompts`` and ``chat`` turn what was asked into tokens; a ``request`` holds one answer being
made (``sampling``, ``constraint``, ``prompt_lookup``, ``text_stream``); the ``scheduler`` decides
in plain numbers which requests run next in which ``kv_blocks``; the ``continuous_batch`` runs
them, and a ``generator`` is the door. Knows decoders by what they compute, and no database.
"""
