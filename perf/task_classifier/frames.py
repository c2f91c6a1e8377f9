"""The grammar of what stands around any task: its engine, frames of a context, chat templates.

The grammar is in forms/*.txt, one form a line: `[a|b]` is a choice, `@name` one of the words of forms/words.txt, and
`{q}`, `{k}`, `{s}`, `{u}`, `{v}` are a question, a name, sentences, and the two names of an example's parts. A line
"== kind part" says what follows: `ask` is the task itself, `before` may stand in front of a context, `remark` after
the task, and `cue` at the very end.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

FORMS = Path(__file__).parent / "forms"
CJK = re.compile(r"[\u3400-\u9fff]")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SECTION = re.compile(r"^== (\w+) (\w+)\n", re.MULTILINE)


def sections(name: str) -> dict[str, dict[str, list[str]]]:
    """Return the forms of a file by kind and part."""
    _, *parts = _SECTION.split((FORMS / f"{name}.txt").read_text(encoding="utf-8"))
    out: dict[str, dict[str, list[str]]] = {}
    for kind, part, lines in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        out.setdefault(kind, {})[part] = lines.splitlines()
    return out


def words() -> dict[str, str]:
    """Return every name of a word with the choice that it stands for."""
    lines = _SECTION.split((FORMS / "words.txt").read_text(encoding="utf-8"))[0].splitlines()
    return {name: choice for name, _, choice in (line[1:].partition(" ") for line in lines)}


WORDS = words()
_WORD = re.compile("@(" + "|".join(sorted(WORDS, key=len, reverse=True)) + ")")

# Openings and ends of a context, of any task.
FRAMES = {
    False: [
        ("", ""),
        ("", ""),
        ("", ""),
        ("\n", "\n"),
        ("@Doc:\n", "\n"),
        ("@Doc:\n---\n", "\n---\n"),
        ('"""\n', '\n"""\n'),
        ("```\n", "\n```\n"),
        ("<document>\n", "\n</document>\n"),
        ("<context>", "</context>\n"),
        ("<text>\n", "\n</text>\n"),
        ('<doc id="1">\n', "\n</doc>\n"),
        ("[begin of @doc]\n", "\n[end of @doc]\n"),
        ("Here is the @doc:\n\n", "\n\n"),
        ("The @doc:\n", "\n\nEnd of the @doc.\n\n"),
        ("### @Doc\n\n", "\n\n### Task\n\n"),
        ("## Input\n", "\n\n## Instruction\n"),
        ("# @Doc\n\n", "\n\n# What to do\n"),
        ("### Input:\n", "\n\n### Response:\n"),
        ('{"context": "', '", "instruction": "'),
        ('{"input": "', '"}\n'),
        ("<input>\n", "\n</input>\n<instruction>\n"),
        ("==========\n", "\n==========\n"),
        ("The @doc begins.\n\n", "\n\nThe @doc has ended.\n\n"),
        ("This is the @doc.\n\n", "\n\nThat was the @doc.\n"),
        ("Text 1:\n", "\n\n"),
        ("Context:\n", "\n\nInstruction: "),
        ("Given is this @doc:\n", "\n\n"),
        ("I paste a @doc here.\n\n", "\n\n"),
        ("Read this.\n", "\n\n"),
        ("<|context|>\n", "\n<|task|>\n"),
        ("Document 1\n", "\n\n"),
        ("*** START ***\n", "\n*** END ***\n"),
        ("Source:\n\n", "\n\n"),
        ("<data>", "</data>\n\n"),
    ],
    True: [
        ("", ""),
        ("", ""),
        ("\n", "\n"),
        ("文章：\n", "\n"),
        ("原文如下：\n", "\n\n"),
        ("【材料】\n", "\n【任务】\n"),
        ("<文档>\n", "\n</文档>\n"),
        ("内容：\n", "\n以上是全部内容。\n"),
        ("“", "”\n\n"),
        ("---\n", "\n---\n"),
        ("<context>\n", "\n</context>\n"),
        ("请先看这段文字。\n", "\n\n"),
        ("正文开始：\n", "\n正文结束。\n"),
        ("## 输入\n", "\n\n## 要求\n"),
    ],
}
# Chat templates: {system} is a system prompt, {user} the prompt.
TEMPLATES = [
    "{user}",
    "{user}",
    "{user}",
    "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n<think>\n",
    "[INST] {user} [/INST]",
    "<s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<bos><start_of_turn>user\n{user}<end_of_turn>\n<start_of_turn>model\n",
    "{system}\n\nUSER: {user}\nASSISTANT:",
    "{system}\n\n{user}",
    "<|system|>\n{system}<|end|>\n<|user|>\n{user}<|end|>\n<|assistant|>\n",
    "[Round 1]\n\n问：{user}\n\n答：",
    "Human: {user}\n\nAssistant:",
    "### Instruction:\n{user}\n\n### Response:\n",
]
# Sentences that say nothing about the task.
FILLERS = {
    False: [
        "Thank you!",
        "Take your time.",
        "Think carefully.",
        "Let's think step by step.",
        "This is important to me.",
        "Now it is your turn.",
        "Begin.",
        "Read all of it.",
        "Write in English.",
        "Be precise.",
        "Answer now.",
        "Respond in JSON.",
        "Use markdown.",
        "Here we go.",
        "Do your best.",
        "Write your response below.",
        "Reply directly.",
    ],
    True: [
        "谢谢！",
        "请仔细阅读。",
        "请用中文。",
        "开始吧。",
        "请认真完成。",
        "注意格式。",
        "请直接输出结果。",
        "现在请回答。",
    ],
}


@dataclass(frozen=True)
class Kind:
    """The forms of one kind of task."""

    parts: dict[str, list[str]]

    @property
    def asks(self) -> list[str]:
        """The forms of the task itself."""
        return self.parts["ask"]

    def lines(self, part: str, chinese: bool) -> list[str]:
        """Return the forms of another part in one of the two languages."""
        return [line for line in self.parts[part] if is_chinese(line) == chinese]


def is_chinese(line: str) -> bool:
    """Return True if a form has Chinese words of its own; "@段" stands for such."""
    return bool(CJK.search(line))


def expand(draw: random.Random, form: str, **contents: str) -> str:
    """Return a form with every choice made, and its contents filled in."""
    text = form
    for _ in range(20):
        text = _WORD.sub(lambda match: WORDS[match[1]], text)
        shorter = _CHOICE.sub(lambda match: draw.choice(match[1].split("|")), text)
        if shorter == text:
            break
        text = shorter
    for name, content in contents.items():
        text = text.replace("{" + name + "}", content)
    text = re.sub(r" +", " ", text).strip(" ")
    return text[:1].upper() + text[1:] if draw.random() < 0.9 else text


def framed(draw: random.Random, chinese: bool) -> tuple[str, str]:
    """Return what stands around a context."""
    opening, end = draw.choice(FRAMES[chinese])
    noun = expand(draw, "@doc")
    names = {"@Doc": noun.capitalize(), "@doc": noun.lower()}
    for name, word in names.items():
        opening, end = opening.replace(name, word), end.replace(name, word)
    return opening, end


def in_template(draw: random.Random, prompt: str) -> str:
    """Return a prompt in some chat template, with some system prompt."""
    template = draw.choice(TEMPLATES)
    return template.replace("{system}", expand(draw, "@system")).replace("{user}", prompt)
