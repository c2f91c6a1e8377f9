"""Prose for haystacks, generated from a small grammar, and the words that keys of needles are made of.

The prose is English about trades, towns and seasons. No sentence repeats, nobody real is named, and it holds no digit,
so a number in it can only be the needle.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

# fmt: off
KEY_ADJECTIVES = (
    "agile", "brisk", "candid", "dapper", "eager", "fabled", "glossy", "humble", "itchy", "jolly", "keen",
    "lavish", "mellow", "nimble", "opulent", "placid", "quaint", "robust", "sleek", "tactful", "upbeat",
    "vivid", "wistful", "zesty", "bouncy", "clumsy", "drowsy", "fluffy", "giddy", "hearty", "jaunty",
    "lanky", "moody", "perky",
)
KEY_NOUNS = (
    "acorn", "badger", "cactus", "dolphin", "emerald", "falcon", "gecko", "hammock", "iguana", "jigsaw",
    "kayak", "lemur", "meteor", "nutmeg", "otter", "pelican", "quartz", "raccoon", "saffron", "tadpole",
    "umbrella", "velvet", "walnut", "yogurt", "zeppelin", "bobsled", "comet", "dynamo", "easel", "ferret",
    "gazebo",
)
# fmt: on


def generated(seed: int, min_chars: int) -> str:
    """Return at least `min_chars` characters of prose. A seed gives one text; more characters extend it."""
    rng = random.Random(seed)
    seen: set[str] = set()
    paragraphs: list[str] = []
    chars = 0
    while chars < min_chars:
        paragraph = _paragraph(rng, seen)
        paragraphs.append(paragraph)
        chars += len(paragraph) + 2
    return "\n\n".join(paragraphs) + "\n\n"


def _paragraph(rng: random.Random, seen: set[str]) -> str:
    """Return four to eight sentences with one place and one theme, so that they read as if about something."""
    words = {**_COMMON, **rng.choice(_THEMES), "place": [rng.choice(_COMMON["place"])]}
    decks: dict[str, list[str]] = {}
    sentences: list[str] = []
    for _ in range(rng.randint(4, 8)):
        sentence = _sentence(rng, words, decks)
        while sentence in seen:
            sentence = _sentence(rng, words, decks)
        seen.add(sentence)
        sentences.append(sentence)
    return " ".join(sentences)


def _sentence(rng: random.Random, words: Mapping[str, Sequence[str]], decks: dict[str, list[str]]) -> str:
    """Return a filled template. No phrase comes twice before all others came once."""

    def draw(slot: str) -> str:
        deck = decks.setdefault(slot, [])
        if not deck:
            deck.extend(rng.sample(words[slot], k=len(words[slot])))
        return deck.pop()

    text = draw("sentence")
    while "{" in text:
        text = re.sub(r"\{(\w+)\}", lambda match: draw(match[1]), text)
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return text[0].upper() + text[1:]


def _list(phrases: str) -> list[str]:
    return [phrase.strip() for phrase in phrases.split("|")]


_COMMON = {
    "sentence": _list(
        """{when}, {person} {did} {where}.
        | {person} {did} {manner}.
        | {person} {did} {when}, and {elder} said that {saying}.
        | in {place} it was often said that {saying}.
        | {scene}, and {elder} closed the shutters.
        | {elder} liked to remember how {person} {did} {where}.
        | because {scene}, {person} {did} indoors.
        | {scene}, and yet {person} {did}, as people of that trade always will.
        | nobody in {place} could say why {person} {did} so late in the year.
        | the {quality} {thing} lay {where} until the following spring.
        | a good {thing} was worth more to {person} than {treasure}.
        | {when}, {scene}, and the {thing} had to wait until the evening.
        | of all the things sold in {place}, {elder} praised the {thing} most.
        | {person} kept a {quality} {thing} {where}, next to {treasure}.
        | it took {person} most of a season to learn that {saying}.
        | those who came to {place} {when} found that {scene}.
        | a {quality} {thing} and {treasure} were all that remained of the old shop.
        | {elder} once asked whether {saying}, but {person} only smiled.
        | there was a {thing} in almost every house of {place}, {doubt}.
        | whenever {person} {did}, the neighbours talked about it for a month.
        | the road to {place} stayed empty, for {scene}.
        | the old chronicle of {place} tells how {person} {did} {when}.
        | if the {thing} was {quality}, {elder} would say, then {saying}.
        | {person} had little to say about {treasure}, {doubt}.
        | they still show visitors the {quality} {thing} that {person} left {where}.
        | the market of {place} opened {when}, although {scene}."""
    ),
    "place": _list(
        """the harbour town | the upper valley | the village by the weir | the old quarter | the island parish
        | the market town | the northern district | the hill country | the river port | the border hamlet
        | the salt village | the lower meadows | the walled city | the forest settlement | the mill village"""
    ),
    "where": _list(
        """behind the chapel | near the wooden bridge | in the long shed | under the lime trees
        | beside the well
        | on the upper floor | along the quay | at the edge of the common | in the back room of the inn
        | below the watchtower | at the crossroads | by the garden wall | in the shade of the barn
        | outside the {quality} gate | at the foot of the stairs | near the {quality} fountain"""
    ),
    "when": _list(
        """early in the spring | on the first dry morning | towards the end of the harvest
        | one windy afternoon
        | in the year of the great frost | before the autumn fair | after the feast of the river
        | during the longest week of the summer | some days later | shortly before dusk
        | in the middle of the winter
        | long before the railway came | on the eve of the market | when the days grew shorter
        | in the third week of the rain | once the {thing} had been paid for
        | in the lean months before Easter"""
    ),
    "scene": _list(
        """a {weather} wind came down from the hills | {weather} rain drummed on the roofs
        | the sky over {place} turned {colour} | the last carts rolled home through the {weather} air
        | smoke from the {colour} chimneys drifted over the fields
        | the geese crossed the {colour} water in silence
        | the bells of {place} rang for a wedding | the children searched the ditch for {colour} pebbles
        | the mist lay {colour} and {weather} upon the pasture
        | somebody played a {quality} fiddle behind the shutters
        | the river stood higher than the {colour} posts | the lamps were lit along the {weather} street
        | the dogs slept in the {weather} dust | swallows gathered on the {colour} ridge of the roof"""
    ),
    "weather": _list(
        """cold | mild | steady | sharp | damp | gentle | bitter | warm | restless | heavy | thin | dry"""
    ),
    "colour": _list(
        """grey | copper | pale green | slate blue | amber | dark red | silver | chalky | rust brown
        | violet | straw"""
    ),
    "quality": _list(
        """plain | narrow | handsome | battered | well-oiled | borrowed | curious | sturdy
        | half-finished | heavy
        | painted | weathered | modest | crooked | spotless | foreign | patched | old-fashioned | slender
        | broad"""
    ),
    "manner": _list(
        """without any hurry | with great care | to the surprise of the {folk} | as if nothing had happened
        | more out of habit than of need | with the help of two {folk} | for the sake of the {folk}
        | slowly and in good humour | against the advice of the {folk} | with a {quality} sort of pride
        | in the manner of the southern {folk} | and never mentioned it again"""
    ),
    "folk": _list(
        """neighbours | carters | apprentices | pilgrims | cousins | weavers | students | fishermen | tenants
        | strangers | widows | musicians | ferrymen | bakers | shepherds"""
    ),
    "elder": _list(
        """the schoolmistress | an old clerk | the parish priest | the innkeeper | a retired captain
        | the midwife
        | the toll collector | a travelling scholar | the eldest of the {folk} | the keeper of the archive
        | a patient grandmother | the bell founder | the registrar | the postmaster"""
    ),
    "doubt": _list(
        """though few could explain it | and perhaps it was even true | although the {folk} doubted it
        | at least among the {folk} | and the {folk} repeated it gladly | which the {folk} found amusing
        | however {quality} it might look | and no one cared to argue"""
    ),
    "treasure": _list(
        """a {colour} ribbon | a sack of {quality} tools | the deed to a {quality} house | a {colour} lantern
        | a jar of {weather} honey | a bundle of {quality} letters | a {colour} shawl
        | a {quality} silver spoon
        | a pair of {quality} boots | a {colour} bowl with a chipped rim | a {quality} map of the coast
        | a basket of {colour} apples | a {quality} prayer book"""
    ),
}

_THEMES = [
    {  # sailing
        "person": _list(
            """the pilot | the sailmaker | a young deckhand | the {quality} boatman | the harbour master"""
        ),
        "thing": _list(
            """anchor | compass | oar | rudder | sail | mooring rope | keel | sounding line | barrel of tar"""
        ),
        "did": _list(
            """coiled the wet ropes | steered past the {colour} shoals | mended a torn sail
            | waited for the tide
            | tarred the hull of a {quality} boat | read the clouds above {place} | hauled the nets ashore"""
        ),
        "saying": _list(
            """a {quality} boat forgives a tired crew | the tide keeps no one's calendar
            | a {colour} evening promises a {weather} crossing | the sea returns whatever the {folk} forget"""
        ),
    },
    {  # cooking
        "person": _list(
            """the cook | the baker's daughter | the {quality} miller | a kitchen maid | the cheesemonger"""
        ),
        "thing": _list(
            """kettle | bread oven | ladle | copper pan | butter churn | pastry board | pepper mill | sieve"""
        ),
        "did": _list(
            """stirred the {colour} broth | kneaded the dough twice | salted the herring | roasted chestnuts
            | tasted the {weather} cider | strained the {colour} plums | baked a loaf for the {folk}"""
        ),
        "saying": _list(
            """a {weather} kitchen spoils the dough | hunger seasons every {quality} dish
            | a sauce should never be {colour} | soup tastes better when the {folk} share it"""
        ),
    },
    {  # gardening
        "person": _list(
            """the gardener | the {quality} beekeeper | the orchard man | a seed merchant | the herb woman"""
        ),
        "thing": _list(
            """spade | watering can | trellis | wheelbarrow | pruning knife | beehive | rain barrel | rake"""
        ),
        "did": _list(
            """pruned the pear trees | sowed {colour} beans | turned the compost | tied up the roses
            | weeded the {quality} beds | gathered seeds for the {folk}
            | moved the hives into the {weather} shade"""
        ),
        "saying": _list(
            """a {weather} spring makes a poor orchard | roots grow while the {folk} are asleep
            | {colour} leaves are no reason to despair | a {quality} hedge is the best of walls"""
        ),
    },
    {  # trade
        "person": _list("""the merchant | a cloth dealer | the {quality} pedlar | the bookkeeper | the grain factor"""),
        "thing": _list("""ledger | pair of scales | bale of wool | coin chest | handcart | crate of tea | wax seal"""),
        "did": _list(
            """weighed the {colour} wool | haggled over the salt | lent money to the {folk}
            | sealed the contract
            | opened a {quality} stall | refused to lower the price | carried samples of silk to {place}"""
        ),
        "saying": _list(
            """a {quality} scale ruins an honest name | credit travels faster than the {folk}
            | {colour} cloth sells best in {weather} weather | a fair price pleases only the patient"""
        ),
    },
    {  # crafts
        "person": _list("the potter | the joiner | a {quality} glazier | the clockmaker | the basket weaver"),
        "thing": _list("""loom | kiln | chisel | workbench | lathe | potter's wheel | anvil | hand plane | mallet"""),
        "did": _list(
            """carved a {quality} door | fired the {colour} bowls | sharpened every blade
            | glued the broken chair
            | wove baskets for the {folk} | set a {colour} pane in lead | repaired the clock of {place}"""
        ),
        "saying": _list(
            """a {quality} tool teaches its owner | wood moves whenever the air is {weather}
            | {colour} glaze hides a hasty hand | the {folk} admire most what they cannot see"""
        ),
    },
    {  # music and school
        "person": _list("the organist | the choir master | a {quality} fiddler | the usher | the bookbinder"),
        "thing": _list(
            """harp | slate | song book | writing desk | drum | globe | ink pot | flute case | reading lamp"""
        ),
        "did": _list(
            """tuned the {colour} harp | practised a {quality} waltz | bound the verses in {colour} leather
            | taught the {folk} to read | rehearsed the evening hymn | corrected the {quality} essays
            | lost the key to the music room"""
        ),
        "saying": _list(
            """a {quality} tune travels further than a letter | {weather} fingers make poor music
            | the {folk} learn best by listening | a {colour} cover does not improve the book"""
        ),
    },
    {  # history and travel
        "person": _list(
            """the envoy | a wandering surveyor | the {quality} archivist | the mason | the road builder"""
        ),
        "thing": _list("""charter | milestone | city gate | signal tower | carriage | guild banner | stone bridge"""),
        "did": _list(
            """copied the {colour} charter | measured the ruined wall | wrote home about the {folk}
            | drew a plan of {place} | crossed the pass on foot | settled a dispute among the {folk}"""
        ),
        "saying": _list(
            """a {quality} wall outlives its builders | every treaty begins with a {weather} supper
            | roads remember the {folk} who paid for them | a {colour} flag is no proof of courage"""
        ),
    },
]
