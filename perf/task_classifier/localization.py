"""A grammar of prompts whose answer lies in a few places: questions, retrieval of a passage, lookup of a value.

`[a|b]` is a choice, `@name` one of the words of frames.WORDS, `{q}` what is asked about. Every line of `ask` is a form of
its own: the cross-validation leaves out whole lines. `before` may stand in front of a context, `remark` after the task,
`cue` at the very end.
"""

from __future__ import annotations

from perf.task_classifier.frames import Kind

QUESTIONS = Kind(
    before="""
@please[read|study|look at|go through] the @doc [below|that follows|I paste here] and [then |]answer [my|the|one|a] [question|query]@where.
[I have|There is|You will get] a question about [this|the following|some] @doc.
[Answer|Reply to|Respond to] [the user's|my|the] [question|query] [with the help of|from|using|on the basis of] the @doc.
[Here is|This is|Below is] some background [material|information|reading] for a question.
[Reading comprehension|Open-book question|Open-domain QA|Question answering|Document QA|Closed-book exam with notes].
The [answer|information you need] is [somewhere in|contained in|found in] the @doc.
[I will ask you|You are going to be asked|Be ready for] [a question|something|a few things] about [it|the @doc] [afterwards|later|when you are done].
[A multiple-choice|A yes/no|An exam|A trivia] question follows the @doc.
[Context|Retrieved documents|Knowledge base|Search results|Sources|Reference material|Evidence|Background]:
Question: {q}
[Q|User query|Task question|The question]: {q}
[Somebody|A customer|A student|A reader|A lawyer] [asks|wants to know|is wondering]: {q}
[Answer|Please answer] {q}
[Keep this question in mind while reading|While you read, look for the answer to this|Read with this question in mind]: {q}
[The next lines|These pages] are [chunks|snippets|passages] that a [search engine|retriever] returned for a [question|query].
[Who|What|When|Where] is asked for; the @doc [tells|says] it.
You are [an expert|a professor|an assistant] [answering|who answers] questions about @docs.
[Some|Most|Several] of the @docs are [irrelevant|distractors|unrelated] to the question.
@pleaseverify [a|the] [claim|statement|assertion] [against|with] [the @doc|this @doc].
[阅读|请阅读|仔细阅读|请先读|请看]@文[，然后|，再|并]回答[我的|一个|下面的|后面的|]问题。
[根据|依据|结合|利用]@文[的内容|里的信息|]，回答@用户[的|提出的]问题。
[下面|以下|这里]是[检索到的|搜索得到的|相关的][资料|网页|段落|文档|参考信息]。
问题：{q}
[阅读理解题|问答题|选择题|判断题|开卷考试]。
你是一个[问答|客服|法律|医学]助手，[只根据|请依据]@文回答。
""",
    ask="""
{q}
{q} [Answer|Reply|Respond] [briefly|in one word|in a few words|with one phrase|in at most five words|concisely].
[Q|Question|The question|My question|User question|Query|Final question|Here is the question|Test question]: {q}
[Answer|Please answer|Now answer|Can you answer|I need you to answer] [this|the following|my|this one] [question|query]: {q}
[According to|Going by|Judging from|On the basis of|From|As stated in|As described in|As per] [the @doc|what you read|the above], {q}
[Tell me|I would like to know|I want to know|Do you know|Could you tell me|Please let me know|I am wondering|I am curious]: {q}
[Given|With|Considering] the @doc[ above|], [what would you answer to|how would you reply to|what is the answer to]: {q}
[Use|Consult|Refer to|Rely on] [only |just |]the @doc[ above|] to [answer|respond to|resolve|settle] [the question|this]: {q}
[Answer|Respond to|Reply to] the question [that was given|stated|asked|I asked] [at the beginning|at the top|before the @doc|above the @doc|first].
[Now|So|OK,|Okay, now|Alright,|Then] {q}
[Does|Did] the @doc [say|mention|state|tell|explain] [this|it]? {q}
[Choose|Select|Pick|Mark] the [right|best|correct|most fitting] [option|answer|choice|alternative]. {q} [A. a house B. a boat C. a horse D. a bridge|(A) Monday (B) Tuesday (C) Friday (D) Sunday|A) red B) green C) blue D) black]
{q} [Options|Choices]: [A. in the north B. in the south C. abroad D. nowhere|(A) never (B) once (C) twice (D) always|1) his sister 2) his uncle 3) a stranger]. [Reply with one letter|Which one is right|Your choice|Answer with the letter only].
[Is|Is it] [the following|this] [statement|claim|hypothesis|sentence] [true or false|correct|supported|entailed|contradicted|consistent with the @doc]? {s}
[Claim|Statement|Hypothesis|Assertion]: {s} [True or false|Supported or refuted|Entailment, contradiction or neutral|Yes or no|TRUE or FALSE|Verdict (supported/not supported)]?
[Decide|Judge|Say|Check|Verify|Determine] [if|whether] [the @doc supports this|this is right according to the @doc|the @doc contradicts this]: {s}
[Fill in|Complete|Fill] the [blank|gap|missing word|masked name] [with a word|using a name|] from the @doc: {s} ____
[Which|What] [name|word|entity|character] [belongs|fits|should stand] [in the place of|where there is] [MASK|the mask|the placeholder|XXXX]: {s}
[Who|Which speaker|Which character|Which person] [says|said|speaks|spoke|uttered] [this|the line|these words|the following line]: {s}
[Quote|Cite|Copy|Give|Show] the [sentence|passage|clause|line|words] [that answers|answering|in which the @doc answers] [this|the question]: {q}
[Answer|Reply] and [cite|name|give|mention] [your source|the document you used|the passage as evidence|the page]: {q}
[Write|Give|Produce] [a|an accurate|a precise|a correct|a well-supported] answer [to|for] [the question|my question], [citing|with citations to|with references to] the [sources|search results|passages] by number. {q}
[What|Which part] of the [contract|agreement|policy|licence|lease] [deals with|covers|regulates|concerns] this: {q}
[A customer|A user|My boss|A colleague|A friend|A student|The client] [asks|wrote|wants to know|would like to know]: {q} [What do you reply|How do you answer|Please answer them|Write the reply]?
{q} If [the @doc does not say|it is not mentioned|you cannot find it|there is no answer], [say so|write "not mentioned"|answer "unanswerable"|say "I don't know"|reply NONE].
[What did|What had|Which thing did] [I|the user|we] [tell|say to|mention to|ask] [you|the assistant|the bot] [about|regarding|concerning] {k} [in an earlier chat|last week|in our first session|before]?
[Remember|Recall|Think back to] [our|the] [conversation|chat|sessions] [above|so far|until now]. {q}
[What was|Name|Tell me] the [first|second|third|last] [topic|subject|thing] [we|they|the two] [talked about|discussed|mentioned]?
[Why|For what reason|How come] did [it|this|that] happen: {q} [One sentence|A short phrase|Ten words at most].
[Explain|Describe|Clarify] [briefly|in short|in a sentence], from the @doc: {q}
[Find|Look for|Locate|Search for|Work out|Figure out|Determine] the answer to [this|this question|what I ask]: {q}
[Combine|Connect|Put together] [the facts|information|evidence] [from|of] [two|several|different] [passages|documents|places] to [answer|find out]: {q}
[Reason|Think] step by step, [then|and finally] [give|write|state] the [answer|final answer]. {q}
[Passage|Paragraph|Context]: {s} [Question|Q]: {q} [Answer|A]
[How many|What number of] [people|pages|rooms|ships|members|employees|children|goals|floors] does @thing have, [according to|in|going by] the @doc?
[How much|What price|What sum] did @thing [cost|bring|earn|pay] [in the first year|in 1998|then|at the auction]?
[In which|In what] [year|month|city|country|chapter|section|season] [was|did] @thing [built|open|close|founded|happen|sold]?
[What is|What was] the [name|age|job|nationality|date of birth|occupation|rank|cause|result|capital|title|purpose] of @thing?
[What does the @doc say about|What is said about|What do we learn about|What is known about] @thing?
[Which of the two|Who of them|Which one] is [older|taller|newer|larger|earlier], @thing or @thing?
[Where|When|Why|How] [does|did|can|should] [the author|the speaker|the company|the witness|the patient|the court] [say|find|see|go|decide|begin|prove] [that|it|this]?
[How do I|How can I|How should one|What must I do to] [reset|install|clean|open|repair|configure|replace|cancel] @thing?
[Which|What] [dataset|baseline|metric|method|model|hypothesis|sample size|equipment] [do|did] the [authors|researchers] use?
[Which function|Which file|What class|Which line] [contains|has|causes|raises|defines] the [bug|error|deliberate mistake|exception]? [A. parse B. load C. main D. close|Answer with its name|Name only]
[What|Which value] does the [function|method|call|parameter] [return|default to|expect] [when|if] {k} is [empty|given|None|set]?
[问|问题|请问|提问|我的问题是|用户问题]：{q}
[根据|依据|按照|从]@文[可知|来看|的内容|中的信息|]，{q}
[请|现在请|请你][回答|解答|答复][下面的|这个|上面的|我的|]问题[：|，]{q}
{q}[请用|用]@短[回答|作答|答复]。
[我想知道|请告诉我|你知道吗|麻烦告诉我|想请教一下][，|：]{q}
[判断|请判断|辨别][以下|下面的|这个][说法|陈述|论断][是否正确|对不对|是对还是错]：{s}
[选择|选出|请选]正确[答案|选项]：{q} [A. 北京 B. 上海 C. 广州 D. 成都|A. 是 B. 否|甲、老师 乙、医生 丙、工人]
[谁|哪位|哪个人|何人][提出了|写了|发现了|创办了|负责|反对][这|该|这个][计划|公司|方法|项目|作品]？
[什么时候|哪一年|何时|几月][成立|开始|结束|发生|发布|签订]的？
[为什么|怎么|如何|在哪里|多少钱|几个人][会这样|办理|解决|发生|参加]？[请根据原文回答|简短回答|直接回答|]
[文中|文章里|原文中|上文][有没有提到|是怎么说|如何描述|怎么解释]{k}？
如果@文[没有提到|找不到|未说明]，[请回答|就说]“[不知道|无法回答|没有提及]”。{q}
""",
    remark="""
[Keep it short|Be brief|Be concise|No explanation|Do not explain|Don't explain your reasoning|Give no explanation|Only the answer|Just the answer, nothing else].
[Answer|Reply] in [one word|a single phrase|at most ten words|one sentence|a full sentence|English|the language of the question].
If you [do not know|cannot tell|are not sure], [say so|do not guess|answer unknown|write unanswerable].
[Use|Rely on] [only the @doc|nothing but the @doc|no outside knowledge].
[Do not|Don't|Never] make [up facts|anything up].
[直接给出答案|只回答答案|不要解释|不需要解释|答案要简短|简要回答|不要编造|用中文回答]。
""",
    cue="""
[Answer|A|Short answer|Final answer|Your answer|Response|Reply|The answer is|Correct answer|Assistant]:
[The answer is|The correct option is|Answer in short -|My answer would be]
[答|答案|回答|正确答案|简答|答案是]：
""",
)
RETRIEVAL = Kind(
    before="""
[Below|Here|In what follows] are [many|thirty|a hundred|several|numbered|ten] @docs, each with [a number|an id|an identifier|a title].
@please[find|identify|locate|pick|select|point out] the [one|passage|entry|@unit] that [matches|fits|is relevant to|corresponds to] [a|the] [query|description|summary|abstract|quote].
[Document retrieval|Passage retrieval|Evidence retrieval|Source attribution|Citation search|Reranking|Text matching].
[Query|Search query|Description|What I am looking for]: {s}
[One|Exactly one|Only one] of [these|the|the following] @units [is the source of|belongs to|was used to write] [a summary|the abstract|the quote].
[I am looking for|Help me find|Can you find me] [a|the] [certain|particular|right|specific] @unit.
[You are|Act as] a [search engine|retrieval system|librarian|reference desk].
[Rank|Order|Sort] the @units by [relevance to|how well they answer|how useful they are for] [the|a] query.
[下面|以下][有|是]@几[个|段|篇|条]@段，[请找出|请确定|找到|请指出][与|和][描述|摘要|问题|查询][最相关|对应|匹配]的[一个|一段|那一篇]。
[检索任务|查找出处|文本匹配|段落检索]。
[给定|给出][若干|多个|一组][段落|文档|条文]和一段[摘要|描述|引文]，[判断|确定|找到][出处|来源]。
""",
    ask="""
[Which|What] @unit [is this|does this come from|does this belong to|did I take this from|is described here|is meant here]: {s}
[Which|What] [number|id|index|identifier] [has|does] the @unit [about this have|with this content have|that says this|I quote here have]? {s}
[From which|In which|Out of which|Under which] @unit [was|is|comes] [this|the following|that] [taken|quoted|written|sentence|line|stated]: {s}
[Find|Locate|Identify|Point to|Name|Return|Give me|Output] the @unit [that|which] [mentions|contains|covers|states|describes|discusses|is about|explains] [this|the following]: {s}
[Query|Search|Look for|Find]: {s} [Best match|Most relevant @unit|Best @unit|Top result|Relevant id|Matching @unit]
[Abstract|Summary|Description|Synopsis]: {s} [Which @unit is it of|It describes @unit|This corresponds to @unit|Source|It was written from @unit|Matching @unit number]
[This|The next sentence|The following quote|The description] [is about|was taken from|appears in|refers to|summarizes] [one|exactly one] of the @units[ above|]. [Which|Say which|Tell me its number|Which one]? {s}
[Match|Pair|Link] [this|the|the following] [description|summary|title|question|abstract] [with|to] [a|the right|its|one] @unit: {s}
[Return|List|Give|Print|Name] the [ids|numbers|titles] of the [three|five|ten|two] @units [most relevant|closest|most similar] to [the query|this query|my query]: {s}
[Rank|Order|Sort] the @units above [by relevance|from most to least relevant] [for|to] [this|the] query: {s} [Ranking|Ids in order|Ranked list]
[Where|In what part|At which point] [in|of] the [book|list|file|collection|archive] [do|can] [I|we|you] [find|read|see] [this|that]: {s}
[I remember|I once read|Somebody told me|I vaguely recall] [reading|seeing|a passage saying|something like] [this|]: {s} [Which @unit was that|Where was it|Give its number]?
[Which|What] [two|pair of] @units are [identical|duplicates|the same]? [Give|Write] both numbers.
[Which|What] [email|ticket|review|message|post|law|case|recipe|song|talk] [talks about|mentions|deals with|fits|applies to] {k}?
[Under what|Which] [heading|number|section|article|paragraph] [is|stands|falls] [the rule on|the part about] {k}?
[Select|Choose|Pick|Tick] the @unit[ that helps|] to [answer|solve|verify] [this|the question]: {q}
[Which|What] @unit [would help|is needed|do you need|contains the evidence] to [answer|decide|verify] this? {q}
[Attribute|Trace|Assign] [this|the] [statement|sentence|summary|quote] to [its source|the @unit it came from]: {s}
[哪|是哪|请问哪|究竟是哪]一[段|篇|条|章|节][提到|描述|涉及|讲述|包含|讲的是][了|]：{s}
[摘要|描述|概述|引文|查询]：{s}[对应|出处|来源|匹配][的|]@段[是|编号|序号|为]
[请|请你|麻烦][找出|指出|确定|判断|检索][下面|以下|这][句话|段文字|段描述|个摘要][来自|属于|对应]哪个@段：{s}
[与|和][查询|问题|描述][最相关|最匹配|最接近]的是[哪一|第几][段|篇|条]？{s}
""",
    remark="""
[Answer|Reply] with [the number only|its number|an id|one number|the id in brackets|a single number].
[Only|Just] [output|write|print] the [number|id|identifier].
[There is|You will find] [exactly one|only one] [match|right answer].
[只输出|只回答|请给出][编号|序号|段落编号]。
""",
    cue="""
[Number|Id|ID|@unit|@unit number|@unit id|Source|Index|The number is|Match]:
[It is|The match is|That is|This is from|It comes from|I found it in] [@unit|number|@unit number]
[编号|序号|段落|出处|答案：段落|文档编号]：
""",
)
LOOKUP = Kind(
    before="""
[A|One|Some] [secret|passcode|magic number|special value|hidden fact|key|token|sentence] [about {k} |]is [hidden|buried|placed|inserted] [somewhere |]in the @doc.
@please[remember|memorize|keep in mind|note down|find] [it|the values|the numbers|the key|every assignment]; [you will be asked|I will ask you|I will quiz you] [for it |about it |][later|at the end].
[Extract|Look up|Retrieve|Find|Return|Get] [a value|one entry|the value of a key|an item|a field] [from|in] [the|this|a large] [JSON object|table|database|dictionary|list|register|log].
[Passkey retrieval|Key-value retrieval|Needle in a haystack|Number retrieval|Information extraction|Slot filling|Variable tracking|Database lookup].
[There is|You will find] [a lot of|much] [irrelevant|unimportant|unrelated] [text|information|noise] [around|hiding] [one|an] [important|needed] [fact|piece of information|value].
[Key|Name|Wanted|Lookup]: {k}
[Variables|Registers|Names] are [assigned|given|set to] values[ and copied|] [throughout|in|along] the @doc; [follow|trace|track] them.
[What is|Find] the [code|number|value|id] [for|of] {k}?
[文中|下文|这段文字里][隐藏|藏|插入][了|着]一个@密，[请记住|请找到]它。
[在|从][下面的|以下|这个][表格|JSON|名单|记录|数据库]中[查找|提取|检索]。
[大海捞针|键值检索|信息抽取|变量追踪]测试。
""",
    ask="""
[What|Which] is the @secret [of|for|belonging to|assigned to|linked to|associated with] {k}?
[What|Which] @secret [did the @doc give|was hidden|was mentioned|did you see|is stated|have I told you|appears] [for {k}|in the @doc|above|somewhere in it]?
[Give|Tell|Return|Show|Output|Print|Write] [me |us |]the @secret [of|for|under] {k}.
[Find|Retrieve|Look up|Extract|Get|Fetch|Read off] the @secret [of|for|that belongs to|next to|under] {k}[ in the @doc| above| from the @doc|].
[Repeat|Recite|Reproduce|Say again|Copy|State] [the|that|the one] [sentence|statement|line|instruction|fact|secret] [about|concerning|on|with] {k}[ word for word|].
[Key|Name|Field|Id|Person|Entry|Item|Username|Product]: "{k}" [Corresponding value|Value|Result|Matching value|Number|Address|Its value]
[Which|What] [value|entry|record|number|string] [does|has] [the key|the field|the row|the variable|the id] {k} [have|hold|contain|point to|map to]?
[List|Name|Give|Print|Return] [all|every one of the|each of the|the four|the] [values|numbers|codes|keys|secrets] [for|of|that belong to|given for|mentioned for] {k}[ in the @doc|].
[Which|What] [variables|names|registers] [are|were|end up] [equal to|set to|assigned|holding|pointing to] [the value |]{k}?
[Follow|Trace|Track|Resolve] the [chain|chain of assignments|copies|assignments] and [list|name|give] [all|each of] the [variables|names] [with|that hold|that get|assigned] [the value |]{k}.
[Query|Select|Filter] the [table|database|list]: [who|which row|what entry] has [the name|the id|the phone number] {k}?
[The|And the|So the] @secret [of|for|to] {k} [is|was|equals|mentioned above is|given in the @doc is]
[Did you notice|Do you remember|Can you recall|Have you found] the @secret[ of {k}| for {k}|]? [What was it|Tell me|Write it down|Please repeat it]?
[What is|Tell me|Give] the [email|phone number|address|birthday|salary|office|room|account number|licence plate|order number|price|deadline|version|port|IP address] [of|for] {k}[?|]
[At what time|On which day|When] [does|did|is] {k} [start|leave|happen|take place|arrive|due]?
[What was|What is] the best thing [to do|to eat|to see] in {k}[, according to the @doc|, says the @doc|]?
[Extract|Pull out|Find|Grab] the [following fields|fields|entity|entities|dates|names] [for|about|of] {k} [as JSON|from the invoice|from the form]: [name, date, amount|id, street, city|title, author, year].
[Which line|In which row|What line number] [contains|mentions|has|shows] {k}?
[What content|What text|Which words] [is|are|stand] in line [17|204|33|9]? [Content|Give the number in it|Register content]
[{k}|{k} =|{k}:] [?|what value|which value] [Look it up|See above|from the @doc]
{k}的@密是[什么|多少]？
[请|请你|麻烦][找出|查出|告诉我|给出|返回|提取]{k}[对应的|的]@密。
[上文|文中|原文|刚才][提到|出现|给出|说过]的@密是[什么|多少|哪个]？
[重复|复述|原样写出][一遍|]关于{k}的那句话。
[键|名称|变量|姓名]：{k}，[值|对应的值|电话|结果]：
""",
    remark="""
[Write|Give|Reply with|Output] [only |just |][the value|the number|the string|it|the digits|the key].
[Do not|Don't] [write|add|say] [anything else|any other text|more].
[It occurs|It stands|It is given|It is mentioned] [once|only once|exactly once].
[只输出|仅返回|直接写出][数值|该值|密码|号码]。
""",
    cue="""
[Value|Result|Code|The value is|The number is|Number|Key|Secret|Found|Output]:
[The @secret is|The value is|It is|The corresponding value is|The variables are|They are]
[值|密码|号码|结果|对应的值为]：
""",
)
KINDS = {"questions": QUESTIONS, "retrieval": RETRIEVAL, "lookup": LOOKUP}
