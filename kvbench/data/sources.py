"""The origin of every file and the checksum that it must have: facts, one table.

Files without a checksum here change upstream or could not be hashed in advance. Their checksum is recorded in the
inventory when they arrive, and they must keep it from then on.

LongBench: arXiv 2308.14508. RULER: arXiv 2404.06654; its essays come in several orders and line wrappings, and the one
named here is that of the current upstream script. RULER's keys depend on the version of wonderwords, its sentences on
the parameters of NLTK's punkt. Needle: the essays of PyramidKV's test (arXiv 2406.02069).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_RAW = "https://raw.githubusercontent.com"
_LONGBENCH = f"{_RAW}/THUDM/LongBench/2e00731f8d0bff23dc4325161044d0ed8af94c1e/LongBench/"
_MAGICPIG = f"{_RAW}/Infini-AI-Lab/MagicPIG/ac9aa36c866330ca6ad2ce342a7848d7df6f49bb"
# files that the address above gives only pointers to
_RULER = "https://media.githubusercontent.com/media/NVIDIA/RULER/c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a"
_FACTORY = f"{_RAW}/Zefan-Cai/KVCache-Factory/c97f9d706d63d1b56e980f8b81b2a924c21162b3/data/"
_WORDS = "wonderwords-2.2.0"
_PUNKT = "nltk_data/tokenizers/punkt_tab/english"
_ESSAYS = """addiction aord apple avg before bias boss copy corpdev desres diff ecw founders foundervisa gap gba gh
goodtaste hubs iflisp island know langdes laundry love mod newideas nft philosophy popular pow rootsoflisp rss
siliconvalley startuplessons submarine sun superangels todo unions useful vb vcsqueeze vw want web20 weird wisdom
worked"""

# rows of every complete file: 21 datasets, and the 13 of LongBench-E
LONGBENCH_ROWS: dict[str, int] = {
    **dict.fromkeys(("narrativeqa", "qasper", "hotpotqa", "2wikimqa", "musique", "dureader", "gov_report"), 200),
    **dict.fromkeys(("multifieldqa_zh", "qmsum", "multi_news", "vcsum", "trec", "triviaqa", "samsum", "lsht"), 200),
    **dict.fromkeys(("passage_count", "passage_retrieval_en", "passage_retrieval_zh"), 200),
    **{"multifieldqa_en": 150, "lcc": 500, "repobench-p": 500},
    **{"qasper_e": 224, "multifieldqa_en_e": 150, "multi_news_e": 294},
    **dict.fromkeys(("hotpotqa_e", "2wikimqa_e", "gov_report_e", "trec_e", "triviaqa_e", "samsum_e"), 300),
    **dict.fromkeys(("passage_count_e", "passage_retrieval_en_e", "lcc_e", "repobench-p_e"), 300),
}


@dataclass(frozen=True)
class Source:
    """A group of files that come together.

    Attributes:
        kind: "url": single files below an address; "wheel": a package of the Python package index; "hub": an archive
            in a data set repository of the Hugging Face hub.
        addresses: places to try, one after the other: beginnings of URLs; "package==version"; "owner/name archive.zip".
        members: {file in our folder: its name at the source}.
        sha256: {file in our folder: checksum known in advance}.
        combined: instead, one checksum over all of them: of lines "sha256, two spaces, name", sorted by name.
        local: places where `--from FOLDER` and benchmark.path look; {path} is our file, {name} its last part.
        remedy: what to do when the source cannot be reached.
        needed: without it the bundle is of no use.
        rows: {file in our folder: its number of rows when it is complete}.
        strict: whether `--from` refuses a file that differs from its checksum. What is downloaded must always have it.
    """

    kind: str
    addresses: tuple[str, ...]
    members: Mapping[str, str]
    remedy: str
    local: tuple[str, ...] = ("{path}",)
    sha256: Mapping[str, str] = field(default_factory=dict)
    combined: str = ""
    needed: bool = False
    rows: Mapping[str, int] = field(default_factory=dict)
    strict: bool = True


_RULER_LOCAL = ("{path}", "source/{path}", "scripts/data/synthetic/json/{path}")
_BY_HAND = "get it by hand and give its folder with --from"

LONGBENCH_CONFIG = Source(
    "url",
    (_LONGBENCH,),
    {f"config/{name}": f"config/{name}" for name in ("dataset2prompt.json", "dataset2maxlen.json")},
    "copy LongBench/config of the repository THUDM/LongBench by hand and give the folder above it with --from",
    ("{path}", "LongBench/{path}", "../{path}"),
    {
        "config/dataset2prompt.json": "56d22ad4f382169c2b8a11ff4c982a4a1bea096c8152b0f0b85b64686b157c30",
        "config/dataset2maxlen.json": "72966b3c0933e214591637fb085798c5e687ebff4ddaab5d99bbc31120532022",
    },
    needed=True,
)
LONGBENCH_DATA = Source(
    "hub",
    ("THUDM/LongBench data.zip",),
    {f"data/{name}.jsonl": f"data/{name}.jsonl" for name in LONGBENCH_ROWS},
    "get data.zip of the hub's data set THUDM/LongBench by hand and give its folder with --from",
    ("{name}", "data/{name}", "dev/{name}"),
    rows={f"data/{name}.jsonl": number for name, number in LONGBENCH_ROWS.items()},
)

BUNDLES: dict[str, tuple[Source, ...]] = {
    "longbench": (LONGBENCH_CONFIG, LONGBENCH_DATA),
    "ruler": (
        Source(
            "wheel",
            ("wonderwords==2.2.0",),
            {
                f"{_WORDS}/{kind}list.txt": f"wonderwords/assets/{kind}list.txt"
                for kind in ("noun", "verb", "adjective")
            },
            "unpack the wheel wonderwords 2.2.0 as wonderwords-2.2.0/*list.txt and give the folder above with --from",
            _RULER_LOCAL,
            {
                f"{_WORDS}/adjectivelist.txt": "66814d46b7e292c83e839d12fe2fa083c8f66779b14b294e1be4e1342c5d4131",
                f"{_WORDS}/nounlist.txt": "0778f51872f2aa89e0745c0cc37471a13e3d2161a79fcfdc03b6390b10604a55",
                f"{_WORDS}/verblist.txt": "9fbf5e4e69b8869aebd88e6d545312ff9f878a747327ede5f6dbbba5c27b08ad",
            },
        ),
        Source(
            "wheel",
            ("llama-index-core==0.14.25",),
            {
                f"{_PUNKT}/{name}": f"llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english/{name}"
                for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")
            },
            "get NLTK's punkt_tab as nltk_data/tokenizers/punkt_tab and give the folder above with --from",
            _RULER_LOCAL,
            {
                f"{_PUNKT}/abbrev_types.txt": "92a3e070f43d9b4c5534758ca40ad7343b04e7e29bfe0c2eb658a39445a4f779",
                f"{_PUNKT}/collocations.tab": "8e2da1225e4dd2cc9dba261ee231ccb134859e21b46006e7f472c5ee269af0cf",
                f"{_PUNKT}/ortho_context.tab": "4bbcca25ed3d3f06c02402abf8419b9f033b8adc06e7b482eca4e45f81a5dc4c",
                f"{_PUNKT}/sent_starters.txt": "f3f8535483e1dba487241b764945168123bca3209a9645e59acd1225dc76edac",
            },
        ),
        Source(
            "url",
            # the repository has had RULER in two places
            (f"{_MAGICPIG}/evaluations/RULER/data/synthetic/json/", f"{_MAGICPIG}/RULER/scripts/data/synthetic/json/"),
            {"PaulGrahamEssays.json": "PaulGrahamEssays.json"},
            f"only essay tasks (niah_single_2 and so on) need it; {_BY_HAND}",
            _RULER_LOCAL,
            {"PaulGrahamEssays.json": "afb34e460df6830ee1365cd8865d75d5c1a2be2a13251ba1111c1228bbbfd556"},
            strict=False,  # upstream's script takes the web pages as they are on the day
        ),
        Source(
            "url",
            ("https://rajpurkar.github.io/SQuAD-explorer/dataset/",),
            {"squad.json": "dev-v2.0.json"},
            f"only the task qa_1 needs it; {_BY_HAND}, named squad.json",
            _RULER_LOCAL,
            {"squad.json": "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8"},
            strict=False,
        ),
        Source(
            "url",
            ("http://curtis.ml.cmu.edu/datasets/hotpot/",),
            {"hotpotqa.json": "hotpot_dev_distractor_v1.json"},
            f"only the task qa_2 needs it; {_BY_HAND}, named hotpotqa.json",
            _RULER_LOCAL,
            {"hotpotqa.json": "e3da074df24e8369009918aa5cdbdd254dadcde4c63f7569d36afd6f2268caa8"},
            strict=False,
        ),
        Source(
            "url",
            (f"{_RULER}/scripts/data/synthetic/json/",),
            {"english_words.json": "english_words.json"},
            f"only the task cwe at about 128k tokens needs it; {_BY_HAND}",
            _RULER_LOCAL,
            {"english_words.json": "affcd6d45fdf3cc843d585c99c97ad615094e760e6c4756b654bab6c73bc2eca"},
        ),
    ),
    "needle": (
        Source(
            "url",
            (_FACTORY,),
            {f"PaulGrahamEssays/{name}.txt": f"PaulGrahamEssays/{name}.txt" for name in _ESSAYS.split()},
            "copy data/PaulGrahamEssays of the repository Zefan-Cai/KVCache-Factory by hand and give it with --from",
            ("{path}", "{name}", "data/{path}"),
            combined="9b3c8491a74697c7370bae0537ce0eeadd9ae49a5bf64bd17bfe14fe3e67f9fc",
            needed=True,
        ),
    ),
}
