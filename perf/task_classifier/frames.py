"""What stands around any task: the grammar's engine, its words, frames of a context, system prompts, chat templates."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cached_property

CJK = re.compile(r"[\u3400-\u9fff]")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_WORD = re.compile(r"@([a-z]+|几|段|密|文|用户|短)")

# fmt: off
WORDS = {
    "please": "[please |please, |I want you to |I'd like you to |kindly |you should |try to |your task is to |your job is to |you must ||||]",
    "pleaseverify": "[please ||I want you to ][check|verify|judge|test|compare]",
    "where": "[ at the end| below it| afterwards| after it|||]",
    "doc": "[text|document|article|passage|report|story|transcript|meeting transcript|book|chapter|paper|email thread|conversation|contract|excerpt|speech|novel|file|material|content|notes|dialogue|page|input]",
    "docs": "[texts|documents|articles|passages|reports|stories|files|web pages|papers|emails|transcripts|notes|news stories]",
    "unit": "[passage|paragraph|document|article|section|chunk|abstract|email|entry|page|chapter|text|clause|record|post]",
    "units": "[passages|paragraphs|documents|articles|sections|chunks|abstracts|emails|entries|pages|chapters|texts|clauses|posts]",
    "item": "[word|paragraph|passage|name|number|entry|document|review|sentence|line|record|topic|message|item|speaker|event]",
    "items": "[words|paragraphs|passages|names|numbers|entries|documents|reviews|sentences|lines|records|topics|messages|items|speakers|events]",
    "secret": "[code|password|number|magic number|special number|key|value|phone number|pass key|id|secret word|access code|token|UUID|ticket number|date]",
    "kindof": "[short |brief |concise |detailed |comprehensive |one-page |one-paragraph |three-sentence |clear |structured |faithful |high-quality ||||]",
    "length": "[one paragraph|three sentences|a few sentences|100 words|200 words|about 500 words|a page|two lines|one sentence|five bullet points|your own words|several paragraphs]",
    "number": "[two|three|five|ten|twenty|3|5|10]",
    "thing": "[the company|the king|the bridge|the main character|the film|the river|the plaintiff|the drug|the new engine|Anna|Mr. Brown|Lake Como|the band|the treaty|the school|the museum|the software|the wife of the captain|the first ship|the director|the song|the lamp|the printer|the device|Dr. Lee|the old mill|the team|the hospital]",
    "几": "[几|多少]", "段": "[段落|文档|文章|条目|片段|邮件|章节]", "密": "[密码|号码|数字|编号|口令|电话|地址|日期]",
    "文": "[全文|上文|文章|这篇文章|以上内容|下面的文章|材料|文本|这段文字|上面的文字|会议记录|对话|报告|这份文件|小说]",
    "用户": "[用户|我|读者|客户|学生]", "短": "[一句话|几个字|一个词|一段话|简短的语言|三句话|不超过五十字|中文]",
}
# Openings and ends of a context, of any task.
FRAMES = {
    False: [
        ("", ""), ("", ""), ("", ""), ("\n", "\n"), ("@Doc:\n", "\n"), ("@Doc:\n---\n", "\n---\n"), ('"""\n', '\n"""\n'), ("```\n", "\n```\n"),
        ("<document>\n", "\n</document>\n"), ("<context>", "</context>\n"), ("<text>\n", "\n</text>\n"), ("<doc id=\"1\">\n", "\n</doc>\n"),
        ("[begin of @doc]\n", "\n[end of @doc]\n"), ("Here is the @doc:\n\n", "\n\n"), ("The @doc:\n", "\n\nEnd of the @doc.\n\n"),
        ("### @Doc\n\n", "\n\n### Task\n\n"), ("## Input\n", "\n\n## Instruction\n"), ("# @Doc\n\n", "\n\n# What to do\n"), ("### Input:\n", "\n\n### Response:\n"),
        ('{"context": "', '", "instruction": "'), ('{"input": "', '"}\n'), ("<input>\n", "\n</input>\n<instruction>\n"), ("==========\n", "\n==========\n"),
        ("The @doc begins.\n\n", "\n\nThe @doc has ended.\n\n"), ("This is the @doc.\n\n", "\n\nThat was the @doc.\n"), ("Text 1:\n", "\n\n"),
        ("Context:\n", "\n\nInstruction: "), ("Given is this @doc:\n", "\n\n"), ("I paste a @doc here.\n\n", "\n\n"), ("Read this.\n", "\n\n"),
        ("<|context|>\n", "\n<|task|>\n"), ("Document 1\n", "\n\n"), ("*** START ***\n", "\n*** END ***\n"), ("Source:\n\n", "\n\n"), ("<data>", "</data>\n\n"),
    ],
    True: [
        ("", ""), ("", ""), ("\n", "\n"), ("文章：\n", "\n"), ("原文如下：\n", "\n\n"), ("【材料】\n", "\n【任务】\n"), ("<文档>\n", "\n</文档>\n"), ("内容：\n", "\n以上是全部内容。\n"),
        ("“", "”\n\n"), ("---\n", "\n---\n"), ("<context>\n", "\n</context>\n"), ("请先看这段文字。\n", "\n\n"), ("正文开始：\n", "\n正文结束。\n"), ("## 输入\n", "\n\n## 要求\n"),
    ],
}
SYSTEMS = [
    "You are a helpful assistant.", "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024",
    "You are an expert reader of long documents.", "You are an AI that follows instructions exactly.", "Follow the user's instructions and use the given text.",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers.",
    "You work with very long inputs. Read everything before you reply.", "Be careful and accurate.", "Reply in the user's language.", "你是一个乐于助人的助手。",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
]
# Chat templates: {system} is a system prompt, {user} the prompt.
TEMPLATES = [
    "{user}", "{user}", "{user}", "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n<think>\n", "[INST] {user} [/INST]", "<s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<bos><start_of_turn>user\n{user}<end_of_turn>\n<start_of_turn>model\n", "{system}\n\nUSER: {user}\nASSISTANT:", "{system}\n\n{user}",
    "<|system|>\n{system}<|end|>\n<|user|>\n{user}<|end|>\n<|assistant|>\n", "[Round 1]\n\n问：{user}\n\n答：", "Human: {user}\n\nAssistant:", "### Instruction:\n{user}\n\n### Response:\n",
]
# Sentences that say nothing about the task.
FILLERS = {
    False: ["Thank you!", "Take your time.", "Think carefully.", "Let's think step by step.", "This is important to me.", "Now it is your turn.", "Begin.", "Read all of it.",
            "Write in English.", "Be precise.", "Answer now.", "Respond in JSON.", "Use markdown.", "Here we go.", "Do your best.", "Write your response below.", "Reply directly."],
    True: ["谢谢！", "请仔细阅读。", "请用中文。", "开始吧。", "请认真完成。", "注意格式。", "请直接输出结果。", "现在请回答。"],
}
# fmt: on


@dataclass(frozen=True)
class Kind:
    """The forms of one kind of task, one a line: before a context, after it, remarks, and what the answer begins with."""

    before: str
    ask: str
    remark: str
    cue: str

    @cached_property
    def asks(self) -> list[str]:
        """The forms of the task itself."""
        return [line for line in self.ask.split("\n") if line]

    def lines(self, part: str, chinese: bool) -> list[str]:
        """Return the forms of another part in the language; "{u}"-like contents count as English."""
        return [line for line in getattr(self, part).split("\n") if line and bool(CJK.search(plain(line))) == chinese]


def plain(line: str) -> str:
    """Return a form without the names of its words, some of which are Chinese."""
    return _WORD.sub(lambda match: WORDS[match[1]], line)


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
    return template.replace("{system}", draw.choice(SYSTEMS)).replace("{user}", prompt)
