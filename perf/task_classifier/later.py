"""Wordings that were written after the classifier was finished, and on which nothing was chosen.

They ask as users of public benchmarks for long contexts ask (LongBench v2, InfiniteBench, L-Eval, ZeroSCROLLS, LooGLE,
BAMBOO, HELMET, LV-Eval), in sentences of our own. Their form is that of wordings.py.
"""

# ruff: noqa: E501
from __future__ import annotations

QUESTIONS = [
    (
        "Please read the text and choose among four answers.\n<text>\n",
        "\n</text>\n\nWhat is correct? {question}\n(A) the first\n(B) the second\n(C) neither\n(D) both\n\nFormat: The correct answer is (letter)",
    ),
    ("A novel is given. A question about its plot follows; keep the reply as short as you can.\n\n", "\n\n{question}"),
    (
        "",
        "\n\nOne character name in this dialogue was replaced with $$MASK$$. Who is $$MASK$$? The name that was replaced is",
    ),
    (
        "You are given a scientific article. If its text cannot settle the question, write 'unanswerable'.\n\n",
        "\n\n{question}\n\nAnswer:",
    ),
    (
        "A story and a multiple-choice question.\n\n",
        "\n\n{question}\n(A) a lie\n(B) a gift\n(C) a war\nRespond with one letter.",
    ),
    ("", "\n\nLecture over. Here's a quiz item about it: {question} Several letters may be right."),
    (
        "Judge each statement about the science-fiction story by the story's own facts, not by the real world.\n",
        "\n\n{question} True or False?",
    ),
    ("Earnings call:\n", "\n\nAn analyst would like this cleared up: {question}"),
    (
        "With these search results, numbered from 1, reply to the user and add [n] behind each fact.\n\n",
        "\n\nUser's question: {question}",
    ),
    (
        "Fill each <mask-n> with an entity that the article names.\n\n",
        "\n\nSentence: <mask-0> came before {question}\nEntities:",
    ),
    ("请仔细看下面这本书的节选，然后用最少的字作答。\n\n", "\n\n{question}\n作答："),
    ("这里有多篇混在一起的文章，只有其中一两篇有用。\n", "\n\n{question}"),
]
RETRIEVAL = [
    (
        "Score how relevant every document is, and put the ids of the best ones first.\n\n",
        "\n\nSearch query: {question}\nRanking:",
    ),
    (
        "The talk touches several subjects one after the other.\n\n",
        "\n\nIn which of the numbered parts do they speak about this? {question}",
    ),
    ("", "\n\nOne of the documents holds the answer to the following; output nothing but its [ID]. {question}"),
    (
        "Twenty articles with ids.\n\n",
        "\n\nA colleague paraphrased one of them like so: {question}\nWhich article did she read?",
    ),
    ("下列每篇文章都带有编号。\n\n", "\n\n有人转述了其中一篇：{question}\n请问他读的是第几篇？"),
    ("", "\n\nFrom what chapter could this line be? {question}"),
]
LOOKUP = [
    ("There is a pass key inside a lot of filler. Keep hold of it.\n\n", "\n\nSo, what was the pass key again? It was"),
    (
        "Below is a JSON object; one value has to be pulled from it.\n\n",
        '\n\nKey to look for: "{question}"\nIts value is:',
    ),
    ("A long sequence of digits is buried in this. Don't lose it.\n", "\n\nWrite out that sequence of digits."),
    (
        "Lines with register contents:\n",
        "\n\nWhat does the line named {question} contain? I only need its <REGISTER_CONTENT>.",
    ),
    ("", "\n\nOn what date was {question} recorded? Give day and month."),
    ("以下是一大段无关的文字，中间有一串数字要记牢。\n", "\n\n那串数字是多少？"),
]
SUMMARIES = [
    ("You are given a report by a government agency. Produce a one-page summary.\n\n", "\n\nYour one-page text:"),
    ("Boil the following novel down.\n\n", "\n\nThe novel, told again in about a thousand words:"),
    ("Episode script of a TV show:\n", "\n\nRecap of the episode for viewers who missed it:"),
    (
        "",
        "\n\nWrite what would stand on the back of a legal brief: an overview of the case, its claims and how it ended.",
    ),
    ("A patent:\n", "\n\nCompose the abstract that belongs to this patent."),
    (
        "A meeting transcript and a request about it.\n\n",
        "\n\nRequest: lay out what the group discussed on {question} and what came out of it.",
    ),
    (
        "Read a science-fiction tale, then reply in a paragraph of four or five sentences.\n\n",
        "\n\nDescribe how the tale unfolds.\nParagraph:",
    ),
    ("", "\n\nSum the reviews of this hotel up for its owner."),
    ("这是一部小说。\n", "\n\n请把这部小说的情节梳理成一篇梗概。"),
    ("", "\n\n请将上述判决书归纳为一段话，说明案情和结果。"),
]
COUNTING = [
    (
        "Fifty reviews of one hotel, some good and some bad.\n\n",
        "\n\nWhat percentage of them is positive? Give a figure with a % sign.",
    ),
    ("Summaries of the chapters of a book, shuffled.\n\n", "\n\nList their numbers as the chapters stood in the book."),
    ("An array of integers:\n", "\n\nWhich integer is the largest in the whole array?"),
    ("", "\n\nWhat is the median of these numbers?"),
    ("", "\n\nHere are parts 1 to 5 of the script out of sequence; restore how they went, for instance 3 1 2 5 4."),
    ("Shopping lists of a year.\n", "\n\nAcross all lists, what was bought the most? And how many times?"),
    ("", "\n\nTally the speakers' turns and say who took most of them."),
    ("一长串数字：\n", "\n\n其中最大的一个是多少？把所有数都看一遍。"),
]
FEW_SHOT = [
    ("Map each banking query to its label number.\n\n", "\nquery: {question}\nlabel:"),
    ("Every utterance gets an intent id; the pairs show which.\n\n", "\nutterance: {question}\nintent id:"),
    (
        "Question: Tim has 3 pens and buys 4. How many now?\nLet's think step by step. 7.\n\n",
        "\n\nQuestion: {question}\nLet's think step by step",
    ),
    ("", "\n{question}\n=> class"),
    ("根据前面的许多对子，给最后一句配上编号。\n", "\n句子：{question}\n编号："),
]
CODE = [
    (
        "Private library documentation and a function head. Fill the body in with calls to the library.\n\n",
        "\n\ndef solve(table):\n    ",
    ),
    ("Other files of the project come first, then the one being edited.\n", "\nWhat would the developer type next?\n"),
    ("", "\n// ... the file ends here, please extend it\n"),
]
KINDS = {
    "localization": {"questions": QUESTIONS, "retrieval": RETRIEVAL, "lookup": LOOKUP},
    "aggregation": {"summaries": SUMMARIES, "counting": COUNTING, "few_shot": FEW_SHOT, "code": CODE},
}
