"""Contexts that belong to a kind of task: examples, records, lists, numbered passages; and things to ask about."""

from __future__ import annotations

import random

from kvbench.benchmarks.prose import KEY_ADJECTIVES, KEY_NOUNS, generated
from perf.task_classifier.frames import expand

# fmt: off
NAMES = ("Anna Berg", "Tom Hill", "Mr. Okafor", "Li Wei", "Sofia", "the marketing manager", "Oak Street 12", "San Remo", "order 5531", "user_204", "alpha-7", "the harbour",
         "remote control design", "school funding", "the new budget", "climate policy", "battery life", "VAR_QX", "HKTLZ", "12345", "room 9", "the price of wood", "project Falcon")
CHINESE_NAMES = ("王小明", "李华", "北京", "教育经费", "项目进度", "张经理", "订单5531", "蓝色河流", "新能源汽车", "周老师", "长江大桥")
FIELDS = (("Text", "Label"), ("Sentence", "Sentiment"), ("Review", "Rating"), ("Question", "Category"), ("Question", "Type"), ("Utterance", "Intent"), ("Headline", "Section"),
          ("Input", "Output"), ("Tweet", "Emotion"), ("query", "label"), ("Dialogue", "Summary"), ("Message", "Class"), ("Source", "Target"), ("Title", "Topic"), ("x", "y"),
          ("Problem", "Solution"), ("English", "French"), ("Article", "Category"), ("Premise and hypothesis", "Relation"), ("Item", "Group"), ("Post", "Community"), ("Query", "Tag"))
LABELS = ("positive", "negative", "sports", "politics", "location", "number", "person", "refund", "joy", "anger", "3", "27", "A", "B", "card_arrival", "entity", "description", "economy", "science", "yes", "no")
CHINESE_LABELS = ("体育", "财经", "教育", "正面", "负面", "科技", "军事", "娱乐", "农业")
QUESTIONS = """
[Who|Which man|Which woman|Which company|Which group] [founded|led|wrote|directed|discovered|sold|won|paid for|visited|built|betrayed|married|attacked] [@thing|the @doc's hero|the other side]?
[When|In what year|On what day|In which month] [was|did|will] @thing [be built|open|close|begin|end|die|leave|arrive|born|sold|signed]?
[Where|In which city|In which country] [does|did|was|is] @thing [live|born|located|work|take place|made|buried|from]?
[Why|How|For what reason] [did|does|was|is] @thing [leave|change|fail|punished|refuse the offer|important to Anna|succeed|get its name]?
[How many|How much] [people|money|years|employees|soldiers|time|pages|samples] [did|does|were|was] @thing [need|have|lose|take|kill|train on|use]?
[What|Which] [is|was|are] the [name|cause|purpose|colour|age|result|capital|nationality|religion|rule|reason|name of the wife|place of birth|award|penalty|temperature|deadline] of @thing?
[What|Which thing] [did|does|can] @thing [say|find|do|give|see|hide|propose|want|need] [in the garden|after the war|at the end|before the trial|to the judge|about the money|]?
[Is|Was|Did|Does|Are|Can] @thing [ever |][mentioned|open on Sunday|older than @thing|pay the fine|agree|in Europe|allowed|cause side effects]?
[Whose|Which] [brother|idea|car|company|letter|film|team] [is|was|did] [older|larger|mentioned first|stolen|released first|sold], @thing or @thing?
[What|Which] [datasets|baselines|languages|metrics|architecture|corpus|annotators] [do they|did the authors|does the paper] [use|compare with|evaluate on|propose|collect]?
[What|Which] [does|did] @thing [mean|refer to|stand for] [in this context|here|]?
[Are|Were|Is] [there any|the] [exceptions|limits|fees|conditions|witnesses|errors] [for|in|to] @thing?
"""
CHINESE_QUESTIONS = """
[谁|哪位|哪家公司][创办了|发现了|写了|负责|反对|获得了|批准了][这个项目|该公司|这本书|奖项|大桥]？
[什么时候|哪一年|几月几日|何时][成立|开工|发生|发布|去世|毕业][的|]？
[为什么|如何|怎样|在哪里][申请|安装|治疗|判断|解决|举行|出生][该设备|这个问题|比赛|]？
[这个|该|这种|此][公司|方法|药物|城市|人物|协议|设备]的[名称|作用|成立时间|负责人|人口|价格|期限|原因]是[什么|多少|谁]？
[有没有|是否|能否|可以][提到|参加|退款|使用|违反][合同|手术|比赛|规定][的|]？
"""
# fmt: on
_LINES = {False: QUESTIONS.strip().split("\n"), True: CHINESE_QUESTIONS.strip().split("\n")}


def question(draw: random.Random, chinese: bool) -> str:
    """Return a question as it may be asked about some text."""
    return expand(draw, draw.choice(_LINES[chinese]))


def name(draw: random.Random, chinese: bool) -> str:
    """Return the name of something: a key, a person, a topic."""
    if draw.random() < 0.3 and not chinese:
        return f"{draw.choice(KEY_ADJECTIVES)} {draw.choice(KEY_NOUNS)}"
    return draw.choice(CHINESE_NAMES if chinese else NAMES)


def fields(draw: random.Random, chinese: bool) -> tuple[str, str]:
    """Return the names of the input and the output of examples."""
    return draw.choice((("文本", "标签"), ("新闻", "类别"), ("问题", "类型"), ("评论", "情感"))) if chinese else draw.choice(FIELDS)


def examples(draw: random.Random, sentences: list[str], names: tuple[str, str], chinese: bool) -> str:
    """Return examples of inputs and outputs, in one of the ways of writing them."""
    between, after = draw.choice(((": ", "\n"), (" = ", " | "), (" - ", "\n"), (":\n", "\n\n"), ("：" if chinese else ": ", " ")))
    labels = draw.sample(CHINESE_LABELS if chinese else LABELS, 5)
    rows = []
    for _ in range(40):
        label = draw.choice(sentences)[:60] if names[1] in ("Summary", "Target", "Solution", "French") else draw.choice(labels)
        rows.append(f"{names[0]}{between}{draw.choice(sentences)[:150]}{after}{names[1]}{between}{label}")
    return draw.choice(("\n", "\n\n", "\n---\n")).join(rows)


def passages(draw: random.Random, sentences: list[str], chinese: bool) -> str:
    """Return numbered passages."""
    noun = draw.choice(("段落", "文档", "文章")) if chinese else draw.choice(("Paragraph", "Passage", "Document", "Article", "Doc", "Text", "", "Review", "News"))
    form = draw.choice(("{} {}: {}", "[{} {}] {}", "{} {}\n{}", "<{} {}>{}", "{} {}. {}"))
    texts = [" ".join(draw.choices(sentences, k=3)) for _ in range(30)]
    return draw.choice(("\n", "\n\n")).join(form.format(noun, number + 1, text) for number, text in enumerate(texts))


def records(draw: random.Random, chinese: bool) -> str:
    """Return keys with values: JSON, a table, a log, or lines of text."""
    keys = [name(draw, chinese) for _ in range(60)]
    form = draw.choice(('"{}": "{}", ', "{}: {}\n", "| {} | {} |\n", "{},{}\n", "The number of {} is {}.\n", "VAR {} = {}\n", "2024-01-03 INFO {} id={}\n", "{} ordered {} boxes.\n"))
    return "".join(form.format(key, draw.randrange(10**5)) for key in keys)


def items(draw: random.Random, sentences: list[str], chinese: bool) -> str:
    """Return a list with repetitions: words, numbers, or whole sentences."""
    kind = draw.randrange(3)
    if kind == 0:
        own = [str(draw.randrange(1000)) for _ in range(30)]
    elif kind == 1:
        own = draw.choices(sentences, k=15)
    else:
        own = list(CHINESE_NAMES) if chinese else [*draw.sample(KEY_NOUNS, 15), "".join(draw.choices("abcdefghij", k=6))]
    form = draw.choice(("{1} ", "{1}\n", "{0}. {1} ", "{0}. {1}\n", "- {1}\n", "{1}, "))
    return "".join(form.format(number + 1, draw.choice(own)) for number in range(150))


def prose(draw: random.Random) -> str:
    """Return generated English prose."""
    return generated(draw.randrange(10**6), 4000)
