"""RULER as a suite: what is generated is what is rendered, within the length, for any wrapper."""

from __future__ import annotations

import json

import datasets
import pytest
from omegaconf import OmegaConf

from kvbench import prompts, store
from kvbench.benchmarks.base import ModelFacts
from kvbench.benchmarks.ruler import TASKS
from kvbench.benchmarks.ruler.suite import SYNTHETIC, Ruler
from kvbench.common.paths import conf_dir
from kvbench.models import ModelSpec
from kvbench.run import runner
from kvbench.run.jobs import prepare
from tests.helpers.ruler_sources import generate
from tests.helpers.tokenizers_for_tests import CHATML, gpt_style

LENGTH = 2600  # the tokenizers here make a token of every letter


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))


def suite(**changes) -> Ruler:
    node = OmegaConf.load(conf_dir() / "benchmark" / "ruler.yaml")
    settings = {str(k): v for k, v in OmegaConf.to_container(node).items() if k != "_target_"}
    return Ruler(**settings | {"tasks": ["synthetic"], "lengths": [LENGTH], "samples": 2} | changes)


def parts(**changes):
    return suite(**changes).benchmarks(ModelFacts("tiny"))


def node(**changes) -> dict:
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / "tiny.yaml")) | changes


@pytest.mark.parametrize("wrapper", ["chat", "none", "meta-chat", "Q: {task_template} A:"])
def test_prompts_fit_the_length_and_read_as_generated(wrapper):
    tokenizer = gpt_style(CHATML)
    before, after = {
        "chat": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
        "none": ("", ""),
        "meta-chat": ("[INST] ", " [/INST]"),
        "Q: {task_template} A:": ("Q: ", " A:"),
    }[wrapper]
    tasks = ["synthetic"] if wrapper == "chat" else ["niah_multiquery", "vt"]  # wrappers know nothing of tasks
    number = 1 if wrapper == "chat" else 2
    for part in parts(wrapper=wrapper, tasks=tasks, samples=number):
        render = prompts.renderer(ModelSpec.from_node(node()), tokenizer, part)
        template = before + "{task_template}" + after
        records = generate(part.column.name, LENGTH, tokenizer, num_samples=number, template=template)
        for sample, record in zip(part.samples(tokenizer), records, strict=True):
            prompt = render(sample)
            assert prompt.text == record["input"] + record["answer_prefix"]
            assert prompt.text.startswith(before) and after in prompt.text
            assert len(prompt.ids) + sample.max_new_tokens <= LENGTH
            assert sample.question.endswith(after) and len(sample.context) > len(sample.question)
            scores = part.score(sample.answers, " and ".join(sample.answers), sample.meta)
            assert scores == {part.headline: 1.0}


def test_the_models_own_wrapper_is_not_edited():
    template = CHATML.replace("{% for m", "You are {curly}. Some {% for m", 1)
    tokenizer = gpt_style(template)
    (part,) = parts(tasks=["niah_single_1"])
    prompt = prompts.renderer(ModelSpec.from_node(node()), tokenizer, part)(part.samples(tokenizer)[0])
    assert prompt.text.startswith("You are {curly}. Some <|im_start|>user\nA special magic number is")
    assert len(prompt.ids) + 128 <= LENGTH


def test_agnostic_ends_the_context_before_the_question():
    tokenizer = gpt_style(CHATML)
    (part,) = parts(question="agnostic", tasks=["niah_single_1"])
    sample = part.samples(tokenizer)[0]
    prompt = prompts.renderer(ModelSpec.from_node(node()), tokenizer, part)(sample)
    assert tokenizer.decode(prompt.ids[prompt.context_len :]).startswith("What is the special magic number for")


def test_protocols_differ():
    def identity(**changes) -> str:
        return json.dumps(parts(**changes)[0].protocol(), sort_keys=True)

    base = identity()
    for changes in ({"seed": 1}, {"samples": 3}, {"lengths": [LENGTH + 1]}, {"wrapper": "none"}):
        assert identity(**changes) != base
    assert identity(question="agnostic") != base != identity(protocol="linear2024")


def test_table_places():
    tasks = parts(tasks=["all"], lengths=[LENGTH, 4096])
    assert [p.column.name for p in tasks] == [*TASKS, *TASKS] and len({p.name for p in tasks}) == 26
    assert tasks[0].column.suite == f"ruler-{LENGTH}" and tasks[-1].column.means == {"avg-13": 13}
    assert tasks[0].column.means == {"avg-13": 13, "avg-11": 11} and len(SYNTHETIC) == 11


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["niah"]}, "benchmark.tasks=niah"),
        ({"tasks": []}, "benchmark.tasks=[]"),
        ({"lengths": []}, "benchmark.lengths=[]"),
        ({"lengths": [0]}, "benchmark.lengths=0"),
        ({"lengths": [4096, 4096]}, "each value once"),
        ({"samples": 0}, "benchmark.samples=0"),
        ({"seed": -1}, "benchmark.seed=-1"),
        ({"protocol": "tail"}, "benchmark.protocol=tail"),
        ({"question": "no"}, "benchmark.question=no"),
        ({"wrapper": "vicuna"}, "benchmark.wrapper=vicuna"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError) as error:
        suite(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_questions_need_their_source(tmp_path):
    (part,) = parts(tasks=["qa_1"], path="embedded")
    with pytest.raises(ValueError, match="kvbench data ruler"):
        part.protocol()


def test_files_of_another_generator(tmp_path):
    folder = tmp_path / "tasks" / "vt"
    folder.mkdir(parents=True)
    records = generate("vt", LENGTH, "words", num_samples=3)
    (folder / "validation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    length = records[0]["length"]  # counted in words
    (part,) = parts(tasks=["vt"], files=str(tmp_path / "tasks"), lengths=[length])
    samples = part.samples(gpt_style(CHATML))
    assert len(samples) == 2 and part.protocol()["dataset"]["data_sha256"]
    text = samples[0].context + samples[0].question + samples[0].answer_prefix
    assert (
        text
        == "<|im_start|>user\n"
        + records[0]["input"]
        + "<|im_end|>\n<|im_start|>assistant\n"
        + (records[0]["answer_prefix"])
    )
    (missing,) = parts(tasks=["cwe"], files=str(tmp_path / "tasks"))
    with pytest.raises(ValueError, match="cwe"):
        missing.protocol()
    (other,) = parts(tasks=["vt"], files=str(tmp_path / "tasks"), lengths=[3 * length])
    with pytest.raises(ValueError, match="the longest record of vt in benchmark.files has"):
        other.protocol()
    for ignored in ({"seed": 1}, {"path": "embedded"}, {"protocol": "linear2024"}, {"lengths": [64, 128]}):
        with pytest.raises(ValueError, match="benchmark.files"):
            parts(files=str(tmp_path / "tasks"), **ignored)


def test_the_data_set_of_the_hub(monkeypatch):
    asked = []
    row = {
        "context": "Some text.\nVAR A = 1\n",
        "question": "Question: Find all. ",
        "answer_prefix": "Answer: According to it, they are: ",
        "answer": ["A"],
    }
    rows = [row | {"task": task, "max_new_tokens": 30} for task in ("vt", "cwe", "vt")]

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        if args[1] == "77":
            raise ValueError("BuilderConfig '77' not found.\nAvailable: ['4096']")
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    (part,) = parts(tasks=["vt"], files="hub", lengths=[4096], wrapper="none")
    samples = part.samples(gpt_style())
    assert [s.context + s.question + s.answer_prefix for s in samples] == ["".join(list(row.values())[:3])] * 2
    assert samples[0].answers == ("A",) and part.protocol()["files"]
    assert asked == [(("simonjegou/ruler", "4096"), {"split": "test"})]  # once, then from the cache
    (missing,) = parts(tasks=["vt"], files="hub", lengths=[77])
    with pytest.raises(ValueError, match="benchmark.files=hub") as error:
        missing.protocol()
    assert "\n" not in str(error.value)


def test_a_length_beyond_the_model_is_told_before_anything_runs():
    with pytest.raises(ValueError, match="more than the 8192 tokens that tiny takes"):
        suite(tasks=["vt"], lengths=[9000]).benchmarks(ModelFacts("tiny", max_length=8192))


def test_a_task_that_does_not_fit_does_not_stop_the_others(tmp_path, compose):
    overrides = ["model=tiny", "benchmark=ruler", "benchmark.tasks=[niah_multikey_3,vt]", "benchmark.lengths=[1500]"]
    overrides += ["benchmark.samples=1", f"paths.outputs={tmp_path}", "progress=false", "method=snapkv", "budget=0.2"]
    short, fine = runner.run_jobs(prepare(compose(*overrides)))
    assert (short.error is None) != (fine.error is None)
    assert "does not fit" in str(short.error or fine.error)


def test_a_run(tmp_path, compose):
    overrides = ["model=tiny", "benchmark=ruler", "benchmark.tasks=[synthetic]", f"benchmark.lengths=[{LENGTH}]"]
    overrides += ["benchmark.samples=1", f"paths.outputs={tmp_path}", "progress=false", "method=snapkv", "budget=0.2"]
    outcomes = runner.run_jobs(prepare(compose(*overrides)))
    assert len(outcomes) == 11 and all(outcome.error is None for outcome in outcomes)
    manifest = store.load_run(outcomes[0].folder).manifest
    assert manifest["part"]["suite"] == f"ruler-{LENGTH}" and manifest["headline"] == "string_match_all"


# ---- the protocol of kvpress -----------------------------------------------------------------------

ROW = {
    "context": "  Memorize it.\n\nVAR A = 1\n",
    "question": "Question: Find all variables that are assigned the value 1 in the text above. ",
    "answer_prefix": "Answer: According to the chain(s) of variable assignment in the text above, they are: ",
    "answer": ["AB"],
}


@pytest.fixture
def hub(monkeypatch):
    rows = [ROW | {"task": "vt", "max_new_tokens": 30}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_list(rows))


@pytest.mark.parametrize("question", ["aware", "agnostic"])
@pytest.mark.parametrize("template", [CHATML, None])
def test_the_data_set_of_the_hub_is_rendered_as_kvpress_does(hub, question, template):
    """The steps of its pipeline: a mark where the question follows, the template around it, the sides encoded apart."""
    tokenizer = gpt_style(template)
    (part,) = parts(tasks=["vt"], files="hub", lengths=[4096], question=question)
    prompt = prompts.renderer(ModelSpec.from_node(node()), tokenizer, part)(part.samples(tokenizer)[0])
    context, asked = ROW["context"], ROW["question"]
    if question == "aware":
        context, asked = context + asked, ""
    before, after = (tokenizer.bos_token or "") + context, "\n"
    if template is not None:
        turns = [{"role": "user", "content": context + "#" * 99}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        before, after = text.split("#" * 99)
    head = tokenizer.encode(before, add_special_tokens=False)
    tail = tokenizer.encode(asked + after + ROW["answer_prefix"], add_special_tokens=False)
    assert list(prompt.ids) == head + tail and prompt.context_len == len(head)
    assert prompts.span_of(part) == "context" and not prompt.first_may_stop and part.rendering.stops == "model"
    if template is not None:
        assert "the text above. <|im_end|>" in prompt.text, "the space stays in the user's turn"


def test_kvpress_deletes_control_characters_before_it_scores(hub):
    (kvpress,), (own,) = parts(tasks=["vt"], files="hub", lengths=[4096]), parts(tasks=["vt"])
    assert kvpress.score(("AB",), "A\nB", {}) == {"string_match_all": 1.0}
    assert own.score(("AB",), "A\nB", {}) == {"string_match_all": 0.0}
    assert kvpress.scoring()["switches"] == {"control_characters": "deleted"} and "switches" not in own.scoring()


def test_files_say_whose_they_are_and_how_they_are_run(hub, tmp_path):
    records = generate("vt", LENGTH, "words", num_samples=3)
    (tmp_path / "vt.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    length = records[0]["length"]

    def identity(**changes):
        (part,) = parts(tasks=["vt"], lengths=[length], **changes)
        protocol = part.protocol()
        return {key: protocol[key] for key in protocol if key != "dataset"}

    folder = {
        "files": True, "protocol": "files", "benchmark": "ruler", "question": "aware", "samples": 2, "wrapper": "chat",
        "length": length,
    }  # fmt: skip
    assert identity(files=str(tmp_path)) == folder, "as before there was a protocol kvpress, so that hashes stay"
    assert identity(files=str(tmp_path), protocol="kvpress") == folder | {"protocol": "kvpress"}
    assert identity(files="hub") == identity(files="hub", protocol="kvpress")
    assert identity(files="hub") == folder | {"files": "hub", "protocol": "kvpress"}
    (part,) = parts(tasks=["vt"], path="embedded")
    generated = folder | {"protocol": "head", "length": LENGTH, "seed": 42, "generator": 1, "sources": "embedded-1"}
    assert {key: value for key, value in part.protocol().items() if key != "dataset"} == {
        key: value for key, value in generated.items() if key != "files"
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "kvpress"}, "benchmark.protocol=kvpress: nothing is generated; add benchmark.files=hub"),
        ({"files": "hub", "wrapper": "meta-llama3"}, "benchmark.wrapper=meta-llama3: kvpress has chat"),
        ({"files": "hub", "protocol": "linear2024"}, "benchmark.protocol=linear2024: nothing is generated"),
        ({"files": "hub", "path": "kvpress"}, "benchmark.path=kvpress: nothing is generated"),
    ],
)
def test_mistakes_with_kvpress(changes, message):
    with pytest.raises(ValueError) as error:
        suite(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("question", ["aware", "agnostic"])
def test_a_run_as_kvpress_compresses_what_comes_before_the_template_ends(hub, tmp_path, compose, question):
    overrides = ["model=tiny", "benchmark=ruler", "benchmark.tasks=[vt]", "benchmark.files=hub", "progress=false"]
    overrides += [
        f"benchmark.question={question}",
        f"paths.outputs={tmp_path}",
        "method=snapkv",
        "method.window=8",
        "budget=0.9",
    ]
    (outcome,) = runner.run_jobs(prepare(compose(*overrides)))
    assert outcome.error is None
    run = store.load_run(outcome.folder)
    [record], protocol = run.samples, run.manifest["identity"]["protocol"]
    assert record["span"] < record["prompt_tokens"] and record["kept_mean"] == pytest.approx(
        0.9 * record["span"], abs=1
    )
    assert (protocol["files"], protocol["protocol"], protocol["question"]) == ("hub", "kvpress", question)
    assert protocol["rendering"]["first_may_stop"] is False and protocol["dataset"]["stops"] == "model"
