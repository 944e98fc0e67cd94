"""Whole texts: equal to generating alone, whatever runs beside; callers join, leave and fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tarsdb.errors import (
    DataError,
    InterruptError,
    ModelError,
    QueueFullError,
    StatementTimeoutError,
)
from tarsdb.metrics import METRICS
from tarsdb.model_ops.generation.constraint import ConstraintCompiler
from tarsdb.model_ops.generation.draft_model import DraftBatch, DraftModel
from tarsdb.model_ops.generation.generation_options import GenerationOptions
from tarsdb.model_ops.generation.generator import Generator
from tarsdb.model_ops.generation.prompts import PromptTokenizer
from tarsdb.model_ops.generation.request import Request
from tarsdb.model_ops.generation.sampling import SamplingOptions
from tarsdb.model_ops.generation.scheduler import Sequence as TokenSequence
from tests.unit.model_ops.generation.fake_decoder import FakeCache, FakeDecoder, FakeSpec, alone

WORDS = ["<unk>", "<s>", "</s>", *'abcdefghijklmnopqrstuvwxyz0123456789 .{}":,ABCDEFGHIJKLMNOPQR']
CHAT = (
    "{% for m in messages %}<s>{{ m.role[0] }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>a: {% endif %}"
)


def tokenizer_json() -> bytes:
    """A tokenizer of single characters that begins every text with <s>."""
    import tokenizers

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(WORDS[:3])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    return str(tokenizer.to_str()).encode()


def make(decoder: FakeDecoder | None = None, blocks: int = 64, chat: str = "") -> Generator:
    decoder = decoder or FakeDecoder()
    config = {"chat_template": chat} if chat else {}
    files = {"tokenizer.json": tokenizer_json(),
             "tokenizer_config.json": json.dumps(config).encode()}  # fmt: skip
    spec = decoder.spec
    generator = Generator(
        decoder,  # type: ignore[arg-type]
        PromptTokenizer(files, spec.begin_token),
        ConstraintCompiler(files["tokenizer.json"], spec.vocabulary, spec.end_tokens),
    )
    generator.reserve(blocks * 1024)
    return generator


def texts(generator: Generator, prompts: Sequence[Any], **options: Any) -> list[str]:
    chosen = GenerationOptions.from_mapping(options)
    return [c.text for c in generator.generate(prompts, chosen)]


def written(decoder: FakeDecoder, prompt: str, count: int) -> str:
    """What a prompt is continued with, computed alone and without a cache."""
    tokens = [1, *(WORDS.index(c) for c in prompt)]
    return "".join(WORDS[t] for t in alone(decoder, tokens, count) if t > 2)


PROMPTS = ["a", "abc", "the same beginning 1", "the same beginning 2", "x" * 40, "hello", ""]


@pytest.mark.parametrize("blocks", [64, 14])
def test_texts_in_one_batch_equal_texts_alone(blocks: int) -> None:
    decoder = FakeDecoder()
    found = texts(make(decoder, blocks), PROMPTS * 3, max_tokens=40)
    assert found == [written(decoder, prompt, 40) for prompt in PROMPTS] * 3
    assert max(len(s.positions) for s in decoder.steps) > 3, "nothing ran together"


def test_texts_end_where_the_model_ends_them() -> None:
    generator = make()
    done = generator.generate(PROMPTS, GenerationOptions.from_mapping({"max_tokens": 200}))
    assert {c.reason for c in done} == {"stop"}
    (cut,) = generator.generate(["a"], GenerationOptions.from_mapping({"max_tokens": 2}))
    assert (cut.reason, cut.tokens, cut.prompt_tokens) == ("length", 2, 2)


def test_a_text_ends_with_the_context() -> None:
    spec = FakeSpec(max_positions=30, end_tokens=())
    (done,) = make(FakeDecoder(spec)).generate(["x" * 20], GenerationOptions())
    assert (done.reason, done.tokens + done.prompt_tokens) == ("length", 30)


def test_drafts_change_nothing_but_the_number_of_steps() -> None:
    quick, slow = (FakeDecoder(FakeSpec(end_tokens=()), repeat=1) for _ in range(2))
    prompt = ["abcabcabcabc"]
    assert texts(make(quick), prompt, max_tokens=100) == texts(
        make(slow), prompt, max_tokens=100, speculate=False
    )
    assert len(slow.steps) == 100
    assert len(quick.steps) < 60


def test_drafts_change_nothing_of_drawn_texts() -> None:
    options = {"max_tokens": 80, "temperature": 0.3, "seed": 11, "repetition_penalty": 1.1}
    decoders = [FakeDecoder(FakeSpec(end_tokens=()), repeat=1) for _ in range(2)]
    found = [
        texts(make(decoder), ["abcabcabc"], speculate=bool(i), **options)
        for i, decoder in enumerate(decoders)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("temperature", [0, 0.5])
def test_a_draft_model_changes_nothing_but_the_number_of_steps(temperature: float) -> None:
    options = {"max_tokens": 60, "temperature": temperature, "seed": 3}
    spec = FakeSpec(end_tokens=())
    plain, same, other = (FakeDecoder(spec) for _ in range(3))
    prompts = ["abc", "hello", "x" * 40]
    expected = texts(make(plain), prompts, speculate=False, **options)
    known = METRICS.snapshot().get("generate.accepted_drafts", 0)
    assert texts(make(same), prompts, draft=make(FakeDecoder(spec)), **options) == expected
    if not temperature:  # a draft of the same model is right
        assert len(same.steps) < len(plain.steps) / 4
        assert METRICS.snapshot()["generate.accepted_drafts"] > known + 100
    wrong = make(FakeDecoder(FakeSpec(end_tokens=()), repeat=1))
    assert texts(make(other), prompts, draft=wrong, **options) == expected
    assert texts(make(), prompts, draft=make(FakeDecoder(FakeSpec(max_positions=20)))) == texts(
        make(), prompts
    )


def test_a_draft_model_drafts_for_several_texts_in_a_step() -> None:
    spec = FakeSpec(end_tokens=())
    prompts = ["abc", "hello", "x" * 40]
    drafting, checking = FakeDecoder(spec), FakeDecoder(spec)
    expected = texts(make(FakeDecoder(spec)), prompts, speculate=False, max_tokens=60)
    before = METRICS.snapshot()
    assert texts(make(checking), prompts, draft=make(drafting), max_tokens=60) == expected
    done = {key: value - before.get(key, 0) for key, value in METRICS.snapshot().items()}
    together = [len(batch.positions) for batch in drafting.steps]
    assert max(together) == 3
    assert done["generate.draft_steps"] == len(together)
    assert done["generate.accepted_drafts"] == done["generate.drafts"] > 130
    # each draft is a step, and so is what one text alone would need: three texts take no more
    alone = FakeDecoder(spec)
    texts(make(FakeDecoder(spec)), prompts[:1], draft=make(alone), max_tokens=60)
    assert len(together) < 1.5 * len(alone.steps)


def test_more_texts_than_parts_of_the_cache_take_turns() -> None:
    spec = FakeSpec(end_tokens=())
    drafting = DraftBatch(FakeDecoder(spec))  # type: ignore[arg-type]
    models = [DraftModel(drafting, spec.vocabulary, 60 + 30 * number) for number in range(3)]
    tokens = [[5, 6, 7 + number] for number in range(3)]
    for turn in ((0,), (1,), (0, 1), (2,), (0, 1, 2), (1,)):
        found = drafting.drafts([(models[n], tokens[n], 4) for n in turn])
        for number, drafts in zip(turn, found, strict=True):
            expected = alone(FakeDecoder(spec), tokens[number], len(drafts))
            assert drafts == expected
            tokens[number] = tokens[number] + drafts[:2] + [9]


def test_a_draft_model_that_fails_ends_only_the_text_it_drafts_for() -> None:
    draft = make(FakeDecoder())
    draft.decoder.new_cache = lambda blocks: 1 / 0  # type: ignore[method-assign,assignment]
    generator = make()
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        texts(generator, ["abc"], draft=draft)
    assert texts(generator, ["abc"], max_tokens=20) == [written(FakeDecoder(), "abc", 20)]
    with pytest.raises(ModelError, match="draft 'small' is no model"):
        texts(generator, ["abc"], draft="small")


def test_a_seed_gives_the_same_text_in_any_company() -> None:
    options = {"max_tokens": 30, "temperature": 1.0, "seed": 5}
    (single,) = texts(make(), ["abc"], **options)
    crowd = texts(make(blocks=14), ["abc", *PROMPTS, "abc"], **options)
    assert crowd[0] == crowd[-1] == single
    assert texts(make(), ["abc"], **{**options, "seed": 6}) != [single]
    unseeded = {texts(make(), ["abc"], max_tokens=30, temperature=1.0)[0] for _ in range(3)}
    assert len(unseeded) == 3


def test_the_penalty_is_of_prompt_and_text() -> None:
    logits = np.full((1, 64), -9.0, np.float32)
    logits[0, [5, 7]] = 2.0, 1.5
    for prompt, chosen in (([4], [5, 7, 5]), ([4, 5], [7, 5, 5])):
        sequence = TokenSequence(list(prompt), 10)
        penalty = SamplingOptions(repetition_penalty=2.0)
        request = Request(sequence, penalty, lambda tokens: "", ())
        for token in chosen:
            assert request.take(logits, []) == [token]
            sequence.tokens.append(token)


def test_a_stop_string_is_cut_and_ends_the_text() -> None:
    decoder = FakeDecoder()
    whole = written(decoder, "abc", 40)
    stop = whole[6:8]
    (done,) = make(decoder).generate(
        ["abc"], GenerationOptions.from_mapping({"stop": stop, "max_tokens": 40})
    )
    assert done.text == whole[: whole.find(stop)]
    assert done.reason == "stop"
    assert done.tokens < 40


def test_a_second_prompt_shares_the_first_ones_blocks() -> None:
    decoder = FakeDecoder()
    generator = make(decoder)
    prompt = "x" * 100
    options = GenerationOptions.from_mapping({"max_tokens": 5})
    generator.generate([prompt], options)
    decoder.steps.clear()
    (done,) = generator.generate([prompt + "y"], options)
    assert done.cached_tokens == 96
    assert len(decoder.steps[0].tokens) == 102 - 96
    assert done.text == written(decoder, prompt + "y", 5)


def test_pieces_of_a_stream_are_the_text() -> None:
    decoder = FakeDecoder()
    generator = make(decoder)
    stream = generator.stream("abc", GenerationOptions.from_mapping({"max_tokens": 20}))
    found = list(stream)
    assert "".join(found) == written(decoder, "abc", 20)
    assert len(found) > 3
    assert stream.completion is not None
    assert stream.completion.text == "".join(found)


def test_a_stream_that_is_left_gives_its_blocks_back() -> None:
    generator = make(FakeDecoder(FakeSpec(end_tokens=())))
    stream = generator.stream("abc", GenerationOptions())
    next(stream)
    batch = generator._require_batch()
    assert not batch.idle
    stream.close()
    assert batch.idle
    assert batch.scheduler.pool.free == len(batch.scheduler.pool)
    forgotten = generator.stream("abc", GenerationOptions())
    next(forgotten)
    del forgotten
    texts(generator, ["b"], max_tokens=1)
    assert batch.scheduler.pool.free == len(batch.scheduler.pool)


def test_a_prompt_that_does_not_fit_is_named() -> None:
    generator = make(FakeDecoder(FakeSpec(max_positions=30)))
    with pytest.raises(DataError, match="prompt 2 has 41 tokens, the model reads at most 30"):
        texts(generator, ["a", "x" * 40])
    small = make(FakeDecoder(), blocks=3)
    with pytest.raises(DataError, match=r"may take 61 tokens, the KV cache holds 48.*kv_cache"):
        texts(small, ["x" * 40], max_tokens=20)
    assert texts(small, ["x"], max_tokens=3) == [written(FakeDecoder(), "x", 3)]
    with pytest.raises(DataError, match="kv_cache_memory of 10 bytes is less than one block"):
        small.reserve(10)


def test_an_empty_prompt_begins_with_the_first_token_or_is_refused() -> None:
    decoder = FakeDecoder(FakeSpec(begin_token=-1))
    generator = make(decoder)
    assert texts(generator, [""], max_tokens=5) == [written(decoder, "", 5)]
    generator.prompts._literal.post_processor = None
    with pytest.raises(DataError, match="prompt 0 is empty"):
        texts(generator, [""])


def test_progress_counts_finished_texts() -> None:
    seen: list[tuple[int, int]] = []
    make().generate(
        PROMPTS, GenerationOptions(), progress=lambda done, total: seen.append((done, total))
    )
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (7, 7)


def test_an_interrupted_caller_leaves_the_batch_to_the_others() -> None:
    decoder = FakeDecoder()
    generator = make(decoder)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise InterruptError("enough")

    with pytest.raises(InterruptError):
        generator.generate(["abc", "x"], GenerationOptions(), check)
    batch = generator._require_batch()
    assert batch.idle
    assert batch.scheduler.pool.free == len(batch.scheduler.pool)
    assert texts(generator, ["abc"], max_tokens=9) == [written(decoder, "abc", 9)]


class Slow(FakeDecoder):
    """Steps that let other threads in."""

    def step(self, batch: Any, cache: FakeCache) -> Any:
        time.sleep(0.002)
        return super().step(batch, cache)


def test_callers_of_several_threads_share_steps() -> None:
    decoder = Slow()
    generator = make(decoder)
    found: dict[int, list[str]] = {}

    def call(number: int) -> None:
        found[number] = texts(generator, [PROMPTS[number]], max_tokens=40)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {i: [written(decoder, PROMPTS[i], 40)] for i in range(6)}
    assert max(len(step.positions) for step in decoder.steps) >= 4


def test_a_leader_that_is_interrupted_hands_over() -> None:
    decoder = Slow(FakeSpec(end_tokens=()))
    generator = make(decoder)
    stop = threading.Event()
    outcome: list[Any] = []

    def lead() -> None:
        def check() -> None:
            if stop.is_set():
                raise InterruptError("stopped")

        try:
            generator.generate(["abc"], GenerationOptions(), check)
        except InterruptError as error:
            outcome.append(error)

    leader = threading.Thread(target=lead)
    leader.start()
    while not decoder.steps:
        time.sleep(0.001)
    follower = threading.Thread(
        target=lambda: outcome.append(texts(generator, ["hello"], max_tokens=100))
    )
    follower.start()
    time.sleep(0.03)
    stop.set()
    leader.join(30)
    follower.join(30)
    assert isinstance(outcome[0], InterruptError)
    assert outcome[1] == [written(decoder, "hello", 100)]


def test_ctrl_c_within_a_step_loses_only_the_callers_text() -> None:
    class Struck(Slow):
        def step(self, batch: Any, cache: FakeCache) -> Any:
            logits = super().step(batch, cache)
            if len(self.steps) == 5:
                raise KeyboardInterrupt
            return logits

    decoder = Struck()
    generator = make(decoder)
    stream = generator.stream("hello", GenerationOptions.from_mapping({"max_tokens": 30}))
    with pytest.raises(KeyboardInterrupt):
        texts(generator, ["abc"], max_tokens=50)
    assert "".join(stream) == written(decoder, "hello", 30)


def test_a_step_that_fails_ends_its_texts_with_a_typed_error() -> None:
    class Broken(FakeDecoder):
        def step(self, batch: Any, cache: FakeCache) -> Any:
            if len(self.steps) == 3:
                self.steps.append(batch)
                raise MemoryError("none left")
            return super().step(batch, cache)

    generator = make(Broken())
    with pytest.raises(ModelError, match="a step failed: MemoryError: none left"):
        texts(generator, ["abc", "x"])
    assert texts(generator, ["abc"], max_tokens=9) == [written(FakeDecoder(), "abc", 9)]


def test_logits_that_are_no_numbers_end_the_text() -> None:
    class Damaged(FakeDecoder):
        def logits(self, tokens: tuple[int, ...]) -> Any:
            return super().logits(tokens) * (np.nan if len(tokens) > 6 else 1)

    with pytest.raises(ModelError, match="the weights are damaged"):
        texts(make(Damaged()), ["abc"])


def test_the_queue_is_bounded() -> None:
    generator = make()
    batch = generator._require_batch()
    batch.max_queued = 3
    streams = [generator.stream("abc", GenerationOptions()) for _ in range(3)]
    with pytest.raises(QueueFullError, match="3 texts run or wait, 1 more"):
        generator.stream("abc", GenerationOptions())
    streams.pop().close()
    assert len(texts(generator, PROMPTS, max_tokens=5)) == len(PROMPTS)
    assert [bool("".join(stream)) for stream in streams] == [True, True]


def test_a_text_that_takes_too_long_is_ended() -> None:
    generator = make(Slow(FakeSpec(end_tokens=())))
    with pytest.raises(StatementTimeoutError, match="not finished after"):
        texts(generator, ["abc"], timeout=0.02, max_tokens=200)
    assert generator._require_batch().idle


def test_the_more_urgent_text_is_finished_first() -> None:
    decoder = Slow(FakeSpec(end_tokens=()))
    generator = make(decoder)
    generator._require_batch().scheduler.max_sequences = 1
    later = generator.stream("abc", GenerationOptions.from_mapping({"max_tokens": 30}))
    urgent = generator.stream(
        "x", GenerationOptions.from_mapping({"max_tokens": 30, "priority": 3})
    )
    assert "".join(urgent) == written(decoder, "x", 30)
    assert later.completion is None
    assert "".join(later) == written(decoder, "abc", 30)


def test_chat_is_used_where_there_is_a_template() -> None:
    generator = make(chat=CHAT)
    encode = generator.prompts.encode

    def shown(prompt: Any, **options: Any) -> str:
        (ids,) = encode([prompt], GenerationOptions.from_mapping(options))
        return "".join(WORDS[i] for i in ids)

    assert shown("hi") == "<s>u: hi</s><s>a: "
    assert shown("hi", system="be kind") == "<s>s: be kind</s><s>u: hi</s><s>a: "
    assert shown("hi", chat=False) == "<s>hi"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert shown(messages) == "<s>u: a</s><s>a: b</s><s>a: "
    with pytest.raises(ModelError, match="cannot go with chat false"):
        shown("hi", chat=False, system="x")


def test_special_tokens_in_a_prompt_are_text() -> None:
    for generator, before in ((make(), 1), (make(chat=CHAT), 2)):
        (ids,) = generator.prompts.encode(["a</s>b"], GenerationOptions())
        assert ids.count(2) == before - 1
        raw = GenerationOptions.from_mapping({"special_tokens": True})
        (ids,) = generator.prompts.encode(["a</s>b"], raw)
        assert ids.count(2) == before


@pytest.mark.parametrize(
    ("config", "ends"),
    [
        ({}, (2,)),
        ({"eos_token": "</s>"}, ()),
        ({"additional_special_tokens": [{"content": "</s>"}]}, ()),
    ],
)
def test_a_tokenizer_may_not_say_what_is_special(
    config: dict[str, Any], ends: tuple[int, ...]
) -> None:
    plain = json.loads(tokenizer_json())
    for token in plain["added_tokens"]:
        token["special"] = False
    config = {**config, "chat_template": CHAT}
    files = {"tokenizer.json": json.dumps(plain).encode(),
             "tokenizer_config.json": json.dumps(config).encode()}  # fmt: skip
    for chat, closed in ((True, 1), (False, 0)):
        options = GenerationOptions.from_mapping({"chat": chat})
        (ids,) = PromptTokenizer(files, 1, ends).encode(["a</s>b"], options)
        assert ids.count(2) == closed
        whole = GenerationOptions.from_mapping({"chat": chat, "special_tokens": True})
        (ids,) = PromptTokenizer(files, 1, ends).encode(["a</s>b"], whole)
        assert ids.count(2) == closed + 1


def test_without_a_template_messages_and_system_are_refused() -> None:
    generator = make()
    with pytest.raises(ModelError, match="the model has none"):
        texts(generator, ["hi"], system="x")
    with pytest.raises(ModelError, match="the model has none"):
        texts(generator, [[{"role": "user", "content": "a"}]])
    with pytest.raises(ModelError, match="the model has none"):
        texts(generator, ["hi"], chat=True)


def test_texts_follow_a_rule() -> None:
    pytest.importorskip("llguidance")
    decoder = FakeDecoder()
    generator = make(decoder)
    (found,) = texts(generator, ["a"], choice=["yes", "no", "perhaps"])
    assert found in ("yes", "no", "perhaps")
    (found,) = texts(generator, ["a"], regex="[a-c]{3}[0-9]{2}")
    assert len(found) == 5
    assert set(found[:3]) <= set("abc")
    assert found[3:].isdigit()
    nested = 'start: list\nlist: "{" (item ("," item)*)? "}"\nitem: list | /[0-9]/'
    for text in texts(generator, PROMPTS, grammar=nested, temperature=1.0, seed=3):
        assert text.count("{") == text.count("}") > 0
        assert set(text) <= set("{},0123456789")
    schema = {
        "type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}}, "required": ["kind"],
        "additionalProperties": False,
    }  # fmt: skip
    for value in (schema, json.dumps(schema)):
        drawn = texts(generator, PROMPTS, json_schema=value, temperature=1.0, seed=2)
        assert all(json.loads(text)["kind"] in ("cat", "dog") for text in drawn)
    assert texts(generator, ["a"], max_tokens=5) == [written(decoder, "a", 5)]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"regex": "(a"}, "regex is not usable"),
        ({"regex": 3}, "regex 3 is no text"),
        ({"json_schema": "{"}, "json_schema is no valid JSON"),
        ({"json_schema": '{"type": "nothing"}'}, "json_schema is not usable"),
        ({"json_schema": "[1]"}, "json_schema is not usable"),
        ({"json_schema": True}, "json_schema is not usable"),
        ({"json_schema": {"maximum": float("nan")}}, "json_schema is not usable"),
        ({"regex": "\ud800"}, "regex is not usable"),
        ({"choice": ["\ud800"]}, "choice is not usable"),
        ({"grammar": "start: missing"}, "grammar is not usable"),
        ({"choice": []}, "choice \\[\\] is no list"),
        ({"choice": ["a", ""]}, "choice"),
        ({"choice": ["a"], "regex": "a"}, "regex and choice, not both"),
        ({"regex": "é"}, "no token of the model follows the rule"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(rule: dict[str, Any], message: str) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(ModelError, match=message):
        texts(make(FakeDecoder()), ["a"], **rule)


def test_a_rule_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from tarsdb.errors import NotSupportedError

    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(NotSupportedError, match=r"llguidance.*tarsdb\[constrain\]"):
        texts(make(), ["a"], regex="a")
