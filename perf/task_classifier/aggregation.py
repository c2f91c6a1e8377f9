"""A grammar of prompts whose answer depends on all of the context: summaries, counts, examples to learn from, code.

Its form is that of localization.py.
"""

from __future__ import annotations

from perf.task_classifier.frames import Kind

SUMMARIES = Kind(
    before="""
@please[read|study|go through] the @doc [below|that follows|carefully] and [then |][summarize|sum up|condense|recap] it@where.
[Summarization|Abstractive summarization|Meeting summarization|Query-focused summarization|Multi-document summarization|Long-form summary|Digest|Abstract writing] task.
[Below|Here|This] is [the transcript of a meeting|a screenplay|a long report|a novel|a patent|a bill|a scientific paper|a collection of news stories|a chat log|a TV episode]; [I need|write|produce|make] [a summary|an abstract|a recap|a digest|minutes] of it.
You [write|are paid to write|are an editor who writes|excel at] [summaries|abstracts|recaps|briefings|minutes].
[Your job|Your task|The goal|The task] is [to summarize|to sum up|to write a summary of|to shorten|summarizing|condensing] the @doc.
[Summarize|Sum up|Recap|Condense|Outline|Abstract|Digest] [the|this|the following] @doc[ in @length|].
[A request|An instruction|A query] about [a|the] [meeting|discussion|debate|conversation] follows its transcript; [respond|answer] in [several sentences|a paragraph].
[How did|What was] the [discussion|debate|meeting] [about {k} go|on {k} about]? [Give|Write] [an overview|a summary].
[为|给|替]@文[写|撰写|生成|做][一个|一份|一段][摘要|总结|概要|提要|纪要]。
[摘要|总结|概括|会议纪要|新闻综述]任务。
[下面|以下]是[一份|一段][会议记录|报告|访谈|长文|新闻报道]，[需要|请|请你][总结|概括|归纳|提炼]。
你[是|擅长][一名编辑|写会议纪要|写摘要]，[负责总结|请概括]@文。
""",
    ask="""
@please[summarize|summarise|sum up|recap|condense|boil down|abridge] [the @doc|it|this|everything above|all of this|what you read|the whole thing|the content][ in @length| for me|].
@please[write|draft|compose|produce|provide|give|generate|create|prepare|make] [a|one|the] @kindof[summary|abstract|overview|synopsis|recap|digest|précis|outline|briefing] [of|for] [the @doc|it|this|everything above|the whole|the content][ in @length|].
[Now|So|Then|Finally], [summarize|sum up|write the summary|give the summary|condense the @doc|write your abstract][ in @length|].
[Can|Could|Would|Will] you [summarize|sum up|recap|condense|outline|give me a summary of|give me the gist of|provide an overview of] [this|the @doc|it|that] [for me|briefly|please|in @length]?
[What|Which] [are|were] the [main|key|central|most important|principal] [points|ideas|findings|takeaways|messages|themes|conclusions|arguments|events] [of|in] [the @doc|it|the whole @doc|this]?
[List|Extract|Give|Name|Note down|Highlight] the [main|key|most important|core|principal] [points|ideas|facts|takeaways|findings|arguments|themes|keywords] of the [whole |entire |]@doc [as bullet points|as a list|in five bullets|in order of importance|].
[What|Tell me what] is [the @doc|this|it|the text] [all |mainly |]about[ as a whole|, in short|, overall|, in @length]?
[Describe|Explain|State|Tell me] [in @length|briefly|in a nutshell|in broad strokes|overall], what [the @doc|it] [is about|says|covers|deals with|reports].
[Summary|Abstract|Recap|Key points|Synopsis|Overview|Main takeaways|Plot summary|Executive summary|Meeting minutes|Highlights|Conclusion|Digest|In short|In summary|The gist][ (@length)|]:
[TLDR|Too long; did not read|In brief|In a nutshell|Long story short][ please|, please|?|:]
[Tell|Retell|Recount|Narrate|Describe] the [plot|story|course of events|storyline|action] [of|in] the [whole |entire |]@doc[ in @length|].
[What|Tell me what] [happens|happened] in [the story|the episode|the chapter|the book|the film|the meeting|the @doc][ overall| from beginning to end|, in @length]?
[Write|Take|Draft|Prepare] [the |][minutes|notes|a protocol] of the [meeting|session|discussion|hearing|call][, with decisions and action items| with all topics and results|].
[What|Which] [decisions|conclusions|action items|results|agreements] [came out of|were reached in|did the participants take from] the [meeting|discussion|call|session] [as a whole|overall|in total]?
[Summarize|Sum up|Recap|Outline] [the discussion|what was said|the opinions|the debate|the different views|the whole talk] [about|on|of|regarding] {k}.
[What|How] did [the team|the participants|the group|the members|everyone|the committee|marketing] [discuss|think|feel|say|argue|conclude] about {k}[ in the meeting| during the discussion|]? [Summarize|Give an overview|Write a paragraph|Answer in several sentences|Cover all that was said].
[Query|Instruction|Request]: [summarize|describe|recap|outline] [the whole meeting|the discussion of {k}|what was decided about {k}|the reasons for {k}].
[Write|Find|Suggest|Propose|Give|Come up with] [a|one|a fitting] [title|headline|heading|tagline|caption] for the @doc[ as a whole| above|].
[Shorten|Compress|Reduce|Cut down|Trim|Distil] the @doc [to|into] @length[, and keep all that matters|].
[Rewrite|Paraphrase|Simplify|Translate|Reformulate|Rephrase] the [whole |entire |]@doc [in simple words|for children|into French|in a formal tone|in your own words|into Chinese].
[Combine|Merge|Synthesize|Integrate|Blend] [the|all|all of the] @docs [into|in] [one|a single|a common] [summary|overview|report|article|text].
[Write|Give|Draft] [a review|a critique|an assessment|an evaluation|a meta-review|related work|a conclusion|an introduction] [of|for] the [whole |]@doc[, with strengths and weaknesses|].
[Analyse|Discuss|Describe|Identify] the [overall |general |][theme|themes|tone|mood|structure|message|style|sentiment|argument] of the [whole |entire |]@doc.
[Summarize|Recap|Outline|Sum up] [each|every] [chapter|section|speaker|article|part] [in a sentence|briefly|in one line], [and|then] [the whole|give an overall summary].
[Write|Make] [a|one] [@kindof|]summary that answers [the question|this]: {q}
[What|Which] [do|are] [customers|reviewers|readers|people|users] [mostly |generally |][think|say|like|dislike|feel] [about|in] [the product|the hotel|it|the film] [overall|on the whole|in general]? [Sum up|Summarize the reviews|Give a summary].
[Create|Make|Draw up|Build|Give] [a timeline|a table of contents|an outline|a mind map|a list of all characters|a list of all topics|flash cards] [of|for|from] the [whole |entire |]@doc.
[Explain|Give me] the [big picture|essence|gist|core message|bottom line] of [the @doc|this|it].
[请|请你|现在|麻烦][总结|概括|归纳|概述|提炼|综述]@文[的主要内容|的要点|的中心思想|的核心观点|]。
[请|请你|][为|给]@文[写|撰写|生成|拟][一个|一份|一段|一篇][简短的|详细的|不超过二百字的|完整的|][摘要|总结|概要|提要|综述|纪要|标题]。
@文[主要|大致|总体上][讲了|说了|讨论了|介绍了][什么|哪些内容|哪些问题]？
[用|请用]@短[总结|概括|归纳|复述]@文。
[会议|讨论|这次会议][的主要结论|的决定|讨论的要点][是什么|有哪些]？[请总结|请概括|]
[列出|提取|归纳|整理]@文的[主要观点|关键信息|要点|关键词|大纲|时间线]。
[总结|概括]一下[大家|与会者|各方][关于|对]{k}的[看法|讨论|意见]。
[把|将]@文[改写|翻译|缩写|压缩|改编][成|为][英文|一页|三百字|通俗的语言|诗歌]。
""",
    remark="""
[Use|Write|Aim for|Limit it to|Not more than|About] @length.
[Cover|Include|Mention|Do not leave out] [all|the] [important points|main events|topics|speakers|aspects].
[Write|Use] [bullet points|full sentences|plain language|the present tense|a neutral tone|your own words|markdown].
[Do not|Don't|Avoid] [copy sentences|go into details|add an opinion|quote].
[字数|篇幅][不超过|约为|控制在][一百|二百|三百|五百]字。
[要全面|突出重点|语言简洁|分点列出|包括所有议题]。
""",
    cue="""
[Summary|The summary|Abstract|Recap|Overview|TL;DR|Synopsis|Key points|Minutes|Digest|Main points|Title|Headline]:
[Summary in @length|Final summary|Your summary|Meeting summary|Brief summary]:
[The @doc is about|In summary,|Overall,|To sum up,|This @doc describes|-]
[摘要|总结|概括|概要|综上所述|会议总结|主要内容|要点]：
""",
)
COUNTING = Kind(
    before="""
[Count|Tally|Keep count of|Keep track of how often you see] [the|all|every|each] @item in the @doc.
[Counting|Frequency estimation|Statistics|Deduplication|Aggregation|Common words extraction|Data analysis|Tabulation|Sorting|Ordering] task.
[Some|Many|A few|Several] @items [occur|appear|are listed|come] [twice|more than once|several times|again and again|more often than others].
[Your task|The task|The goal|Your job] is to [count|tally|add up|sort|rank|put in order|aggregate|find the most common|determine the total number of] the @items.
[Below|Here|This] is a [long |very long |shuffled |][list|table|series|sequence|collection|log] of @items. [Compute|Work out|Report] [statistics|totals|the result] [over all of them|].
@please[pay attention to|note|watch|remember] [how often|how many times] [each|every] @item [appears|occurs|is mentioned|comes up].
[How many|What number of] [different|distinct|unique] @items [are there|do you see] [below|in the list|in total]?
[The|These] [parts|summaries|chapters|events|sentences|scenes] are in [random|the wrong|mixed-up] order.
[统计|计数|求和|排序|词频|去重]任务。
[数一数|请统计|统计|计算]@文[中|里][每个词|各个项目|所有数字][出现的次数|的数量|的总和]。
[下面|以下][的|这些][词|段落|记录|数字][有的|有些|许多][重复|出现多次]。
""",
    ask="""
[How many|What number of|How many different|How many distinct|How many unique] @items [are there|does the @doc contain|do you see|are listed|appear|were mentioned|occur] [in total|altogether|overall|in all|in the whole @doc|without duplicates|if repetitions count once]?
[Count|Tally|Sum up|Add up|Total] [all|the|all of the|every one of the] [@items|different @items|unique @items|distinct @items|repeated @items] [in the @doc|above|in the list|].
[Give|Report|Output|State|Tell me|Determine|Calculate|Work out|What is|Find] the [total|overall|exact|final] [number|count|amount|sum|quantity] of [@items|unique @items|different @items|all @items|distinct @items].
[Which|What] [@item|@items|word|words|three words|ten words|number|name|value] [occurs|appear|is listed|shows up|is mentioned|comes up|is used] [most often|most frequently|the most|more than any other|the largest number of times]?
[List|Name|Give|Output|Print|Report|Return|Find|Extract|Identify|Determine] the [@number |][most common|most frequent|most repeated|most used|top|least common|commonest|highest-frequency] [words|@items|coded words|terms|names|numbers][ in the @doc| above| of the list| and how often each occurs|].
[Sort|Rank|Order|Arrange] [all|the] [@items|words|names] [by|according to] [frequency|how often they occur|number of occurrences|count|size|value|how many times they appear][, most frequent first|, descending|].
[How often|How many times|In how many @items] [does|did|is] [the word|the name|the term|] {k} [occur|appear|mentioned|come up][ in the whole @doc| in total| overall|]?
[What|Which] [percentage|share|fraction|proportion|percent] of [the|all|all the] [@items|reviews|answers|votes|comments|customers] [is|are|were] [positive|negative|about {k}|in favour|from women|satisfied|wrong|complete]?
[How many|What number of] [of the|of these|of all] [reviews|comments|answers|tickets|@items] are [positive|negative|neutral|complaints|about {k}]?
[What is|Compute|Calculate|Find|Give|Determine] the [sum|total|mean|average|median|maximum|minimum|largest|smallest|second largest|standard deviation|difference between the largest and the smallest] [number|value|of all numbers|of all values|of the column|of the prices|in the list|over all entries].
[Add|Sum|Multiply|Average] [up |][all|all the|all of these|every one of the] [numbers|amounts|values|prices|scores|figures] [above|in the @doc|in the list|].
[Remove|Drop|Ignore|Leave out] [the |all |][duplicates|repetitions|copies], [then|and] [count|tell me how many|say how many|give the number of] @items [remain|are left|there are].
[Are there|Do any] [repetitions|duplicates|repeated @items]? [Count|Report] the number of [different|original|non-repeating] @items.
[Put|Bring|Arrange|Reorder|Sort|Place] the [parts|summaries|chapters|events|sentences|scenes|@items] [in|into] [the right|the correct|chronological|the original|their proper] order.
[What is|Give|Output|Write] the [correct|right|original|chronological] [order|sequence] of [the|all] [parts|summaries|chapters|events|sentences|segments]?
[Who|Which person|Which team|Which country|Which shop] has the [most|fewest|highest number of|largest total of|lowest average of] [votes|points|orders|mentions|entries|lines|sales|goals] [in total|overall|over the whole list|taken together]?
[Make|Create|Draw up|Give|Write] [a frequency table|a histogram|a tally|statistics|a word count|a ranking|a distribution] [of|for|over] [all|the] [@items|words|answers|topics].
[Compare|Group|Cluster|Categorize] all [the |]@items [by topic|by type|with each other|into groups] and [give the size of each group|count each group|say how many are in each].
[For each|For every] [person|category|month|topic|speaker|@item], [give|count|list|report] [the number of|how many|the total of|how often] [lines|mentions|orders|@items|entries].
[The|And the|So the|Therefore the] [total|count|final count|number of unique @items|number of different @items|sum|most common words|most frequent words|@number most frequent words] [is|are|:|comes to]
[Which|What] [topics|errors|words|names|colours|answers|letters] [dominate|prevail|are the most common|come up again and again|are repeated] [in the whole @doc|across all @items|throughout]? [Top|Give the top|Name the] @number.
[Do|Did] [more|most|fewer|the majority] of the [people|reviews|speakers|answers|@items] [agree|like it|say yes|mention {k}] [than not|or disagree|or not]? [Count them|Give the numbers|Count both].
[How many|What number of] [people|speakers|characters|participants|customers|cities|companies|languages] [are mentioned|take part|speak|appear|are named] [in total|altogether|in the whole @doc|over all @docs]?
[Question|Q]: [how many|what number of] [different|unique|] @items [in total|altogether|overall]? [Count|Answer with a count|Total]
@文[中|里][一共|总共|共][有|出现了]@几[个|段|种|条][不同的|不重复的|重复的|][词|段落|人物|项目|条目]？
[哪个|哪些|哪三个|哪十个][词|名字|数字|词语][出现|重复|使用][得|的次数|频率]最[多|高|频繁]？
[统计|请统计|请计算|算出|数出|请数一下][所有|全部|各个|每个|不同][词|段落|数字|评论|项目][的|出现的][总数|次数|总和|平均值|频率|数量]。
[按|请按|按照][频率|次数|大小|时间顺序|先后顺序][从高到低|从大到小|]，[排列|排序|列出]@文[中的词|中的事件|的各部分]。
[正面|好评|差评|负面]评论[占|一共占][多少|百分之几|多大比例]？
[去重|去掉重复|删除相同的段落][以后|之后]，[还剩|一共是|共有]@几[段|个|条]？
{k}[这个词|]在@文[中|里][一共|总共|][出现|提到][了|过]@几次？
[最大|最小|第二大|中间|平均]的[数|数字|数值|值][是|为]@几？
""",
    remark="""
[Count|Consider|Look at|Include|Check] [every one of them|all of them|each @item|the entire @doc|all @items] [carefully|once|before you answer|].
[Answer|Reply] with [a number|an integer|the count only|a percentage|the numbers separated by commas|a list of words].
[Give|Write] [the numbers only|words and counts|one per line|only the final count|a single number].
[Do not|Don't] [count|include] [duplicates|articles and prepositions|stop words|anything twice].
[只输出数字|给出总数|请逐个检查|只回答一个数|按次数排列]。
""",
    cue="""
[Count|Total|Total count|Sum|Number of unique @items|Frequencies|Ranking|Tally|Result of counting|Most frequent words|Order|Percentage|Final count]:
[In total|Altogether there are|The total is|The count is|I counted|The most common are|The most frequent @items are: 1.|The order is]
[总数|一共|共计|最终统计|出现最多的是|次数|正确顺序]：
""",
)
FEW_SHOT = Kind(
    before="""
[Classify|Label|Categorize|Tag|Sort] [each|every|the last|the] [{u}|input|item] [as in|like in|by the pattern of|using|following] [the|these] [examples|demonstrations|samples|labelled data].
[Here|Below|These] are [some|many|a few|a hundred|several] [examples|demonstrations|labelled examples|solved examples|input-output pairs|training examples][ of the task|].
[Few-shot|Many-shot|In-context|Example-based] [learning|classification|prompting|labelling|translation|summarization].
[Learn|Infer|Work out|Pick up] the [rule|labels|pattern|task|mapping|format|style] from [the|these] [examples|demonstrations|pairs].
[Determine|Predict|Decide|Give|Assign] the [{v}|label|class|type|category] of [the|each|a|every] [{u}|input|text]. [Examples|Some examples|Demonstrations] [follow|come first|are given].
[Continue|Follow|Imitate] the [pattern|examples|format|style] [below|of the demonstrations].
[学习|参考|模仿|根据][下面的|以下|这些][例子|示例|样例|范例]，[给|为|判断]最后一[个|条|句][打上标签|分类|的类别|写出输出]。
[少样本|小样本|上下文]学习[任务|分类]。
[将|把][新闻|句子|评论|问题]分[类|到下列类别]，[示例|例子]如下。
""",
    ask="""
{u}: {s} {v}
{u}: {s} {v}:
[Now|Next|Last one|Your turn|Test|Test example|New example|And this one|Now you|Finally]: {u}: {s} {v}:
[Now|Next|Then|So] [classify|label|categorize|tag|do the same for|do|assign a {v} to] [this|the next|the last|the following] [one|{u}|input|item]: {s}
[What|Which] [{v}|label|category|class|type|tag] [does|should|would] [this|the last|the next|the following] [{u}|input|item|example] [have|get|receive|fall into]: {s}
[Following|According to|As in|Like in|By analogy with|Based on|Given] the [examples|demonstrations|pattern|samples][ above|], [classify|label|what is the {v} of|give the {v} of|complete|process]: {s}
[Predict|Determine|Give|Assign|Choose] the [{v}|label|class] [of|for|to] [the|this] [last|new|test|final|next] [{u}|example|input|item]: {s}
[Input|Sentence|Text|Query|Example]: {s} [Output|Label|Class|Category|Target|->|=>|Type|Tag|Intent]
[Example|Sample|Item|Demonstration] [17|33|101|64]: {u}: {s} {v}:
[Same|Do the same|Proceed|Continue] [as above|in this way|as in the examples|with the same format|with the next]: {u}: {s} {v}:
<{u}>{s}</{u}> <{v}>
{u} = {s} | {v} =
[Solve|Translate|Convert|Rewrite|Answer|Correct] [this one|the next|the last one|it] [like|as|in the manner of|in the same way as] [the examples|above|before|the others]: {s}
[Dialogue|Conversation|Chat]: {s} [Summary|Gist|Short version|What it is about]:
[English|Source|German]: {s} [French|Translation|Target|Chinese|English]:
[参考|按照|根据|仿照][上面|以上|前面|这些]的[例子|示例|样例]，[判断|给出|确定|预测][下面|这条|最后一条|这个][文本|新闻|句子|问题]的[类别|标签|类型|情感]：{s}
[文本|新闻|句子|评论|输入|问题|标题|内容]：{s}[类别|标签|分类|情感|输出|类型|意图|属于]：
[最后|现在|接下来|下一个][一条|这个|]：{s}[类别|标签|输出]：
""",
    remark="""
[Answer|Reply] with [one of the labels|the label only|a label from the examples|the class alone|the number of the class].
[Use|Choose] [only the labels of the examples|one of the classes seen above|the same format].
[只输出标签|只给出类别|从示例的类别中选]。
""",
    cue="",
)
CODE = Kind(
    before="""
[Complete|Continue|Finish|Extend|Carry on with] [the|this|the following] [code|program|file|function|class|script|source file|snippet|module].
[Code completion|Next line prediction|Repository-level completion|Fill in the middle|Autocomplete|Program synthesis].
[Here|Below] [is|are] [the beginning of a file|several files of a project|the code of a repository|the imports and the class|an unfinished function|a code base].
You are [a|an experienced|an expert|a senior] [programmer|developer|software engineer|coding assistant|autocomplete engine].
[Predict|Write|Generate|Guess|Suggest] [what comes next|the next line|the next statement|the missing line|the rest] [of|in] [the|this] [code|file|program|function].
[补全|续写|完成|预测][下面的|以下|这段|][代码|程序|函数]。
[你是|作为][一名|]程序员，[请继续写|请补全]代码。
""",
    ask="""
[Complete|Continue|Finish|Extend|Fill in|Go on with|Carry on] [the|this] [code|program|function|class|file|script|method|implementation|snippet][ above| from here| where it stops|].
[Write|Predict|Generate|Give|Output|What is|Suggest|Guess|Produce] the [next|following|missing] [line|statement|token|lines|block|expression][ of code| of the program| of the file| in the file|].
[What|Which line|Which statement] [comes|goes|follows|should come] [next|now|here][ in the code| in this file|]?
[Next line|Next statement|Completion|Continuation|Completed code|Rest of the code|Your code|Code]:
// [continue|next line|your code|complete this|TODO|insert the line here]
# [continue|next line|your code goes here|complete the function|TODO: finish]
[Write|Implement|Add] [the body of the function|the rest of the class|the remaining methods|the missing method|the unfinished function|tests for the whole module][ using the code above| in the style of the file|].
[The|Now the] [file|code|function] [continues|goes on|proceeds] [with|as follows|like this]:
[Refactor|Document|Explain|Review|Translate|Port|Rewrite] the [whole|entire|complete] [file|code|program|module|repository][ to Rust| in Java| with comments|].
[Only|Just] [write|output|give] [code|the line|one line], no [comments|explanation|prose].
[补全|续写|继续写|完成][代码|函数|程序|这个类|下一行]。
[下一行|接下来的|后面的|缺失的][代码|语句|一行代码][是|应该是|为]：
[请|请你][写出|给出|预测|生成][下一行|余下的|剩下的|缺少的]代码。
""",
    remark="""
[Only|Just] [code|the line|one line][, no comments|, no explanation|].
[Do not|Don't] [repeat the code above|explain|write tests].
[不要解释|只输出代码]。
""",
    cue="""
```
[Next line|Code|Completion]:
[下一行代码|代码]：
""",
)
KINDS = {"summaries": SUMMARIES, "counting": COUNTING, "few_shot": FEW_SHOT, "code": CODE}
