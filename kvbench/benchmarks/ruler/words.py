"""Word lists: adjective-noun keys without building all six million of them, and kvbench's own small lists."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import overload


class WordPairs(Sequence[str]):
    """The sorted, duplicate-free list of all "adjective-noun", as if it were there.

    Upstream builds and sorts the list. Here a pair is found by arithmetic: sorted pairs are sorted heads
    ("adjective-") times sorted nouns. That only fails where one head begins another ("ice-", "ice-cold-"): such heads
    form a block whose pairs are really built.
    """

    def __init__(self, adjectives: Iterable[str], nouns: Iterable[str]):
        heads = sorted({f"{adjective}-" for adjective in adjectives})
        tails = sorted(set(nouns))
        self._blocks: list[tuple[str, Sequence[str]]] = []
        self._starts: list[int] = []
        self._length = 0
        first = 0
        while first < len(heads):
            last = first + 1
            while last < len(heads) and heads[last].startswith(heads[first]):
                last += 1
            if last == first + 1:
                block: tuple[str, Sequence[str]] = (heads[first], tails)
            else:
                block = ("", sorted({head + tail for head in heads[first:last] for tail in tails}))
            self._blocks.append(block)
            self._starts.append(self._length)
            self._length += len(block[1])
            first = last

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._length))]
        place = index + self._length if index < 0 else index
        if not 0 <= place < self._length:
            raise IndexError(f"{index} of {self._length} pairs")
        block = bisect_right(self._starts, place) - 1
        head, tails = self._blocks[block]
        return head + tails[place - self._starts[block]]


_ADJECTIVES = """
able active agile airy amber ample ancient apt ashen autumnal awake balmy bare basic bold bouncy brave brief bright
brisk broad bronze bubbly busy calm candid careful carved cautious central cheerful chief chilly civic classic clean
clear clever close cloudy coastal cold comic common compact cool copper coral cosy crisp cubic curious curly daily
damp daring dark deep deft dense dewy dim direct distant double dry dusty eager early earnest earthy easy elder elegant
even exact faint fair famous fancy fast festive fine firm first flat fleet floral fluffy fond frank free fresh friendly
frosty full gentle giant gifted glad glassy global glossy golden good grand grassy great green grey happy hardy hasty
hazy hearty heavy helpful hidden high hollow honest huge humble icy ideal idle indigo inner ivory jade jolly joyful
keen kind large late lean leafy level light limber linen little lively local lofty lone long loyal lucid lucky lunar
magic main major maple marble mellow merry mild minor minty misty modern modest moist mossy musical mute narrow native
natural near neat new nimble noble northern novel oaken odd olive open orange orderly outer oval pale paper patient
pearly plain playful pleasant plucky plush polar polite proper proud prudent public pure quick quiet quilted rapid rare
ready regal regular rich ripe robust rocky roomy rosy round royal rural rustic sandy scarlet scenic secure serene sharp
shiny short shy silent silken silver simple sincere single sleek slender slim slow small smart smooth snowy social soft
solar solid sonic southern spare spicy square stable starry steady steep still stony stout straight striped strong
sturdy subtle sunny sure sweet swift tall tame tender thick thin tidy tiny tranquil trim true trusty upper urban useful
valid vast velvet vernal vivid warm wavy western white whole wide wild willing windy winter wise witty wooden woolly
young zesty
"""

_NOUNS = """
acorn acrobat airport almond anchor anthem apple apron arch archer arrow atlas attic author avenue badge bakery balcony
ballad bamboo banjo banner barley barn barrel basin basket beacon bean beaver beetle bell bench berry bicycle birch
biscuit blanket blossom boat bonnet book border bottle boulder bow bowl bracelet branch brass bread breeze brick bridge
brook broom brush bucket buckle bugle butter button cabin cabinet cactus cake calendar camel camera canal candle canoe
canvas canyon captain caravan carpet carrot cart castle cedar cello chain chair chalk chapel chapter cherry chess
chestnut chimney chisel cider circle circus clarinet cliff clock cloth cloud clover coat cobbler coin collar comet
compass concert corner cottage cotton cradle crane crater crayon creek crown crystal cup cupboard curtain cushion
daisy dam dance deck deer desert desk dial diary dinner dolphin donkey door dove drawer dream drum duck dune eagle
easel echo elbow elephant elm ember engine envelope evening fabric falcon farm feather fence fern ferry fiddle field
fig finch flag flame flask flute fog folder forest forge fork fountain fox frame freight frog fruit funnel furnace
galaxy gallery garden garlic gate gazette geyser ginger giraffe glacier glove goat goblet gong goose grape gravel
grocer grove guitar gull hammer hammock harbour harness harp harvest hat hazel hedge helmet heron hill hinge holly
honey hood horizon horn hornet horse hotel house hut ink inn island ivy jacket jar jasmine jersey jewel journal juice
jungle juniper kettle key kitchen kite kiwi knot ladder ladle lagoon lake lamp lantern larch lark lattice laurel lawn
leaf lemon lens letter lettuce library lichen lighthouse lily lime linden lion lizard loaf locket loom lorry lotus lute
lynx magnet magpie mallet mango mantle map marble margin market marsh mast meadow medal melody melon mill mint mirror
mitten moat monsoon moon moss moth motor mountain mouse mug mural museum mushroom music napkin needle nest nettle
newspaper night notebook number nutmeg oak oar oasis oat ocean octave office onion orchard orchid organ otter oven owl
oyster paddle page painter palace palm pantry parade parcel park parrot parsley pasture path pear pebble pelican pencil
penguin pepper piano picture pier pigeon pillar pillow pine pipe plank planet plate plaza plough plum pocket poem pond
pony poplar porch postcard potato potter prairie prism puddle pumpkin puppet purse quarry quartz quilt rabbit radio
raft railway rain raven ravine reef ribbon rice riddle ridge river road robin rocket roof rope rose ruby rudder saddle
sail salad salmon salt sandal satchel saucer scarf school seal season seed shell shelf ship shirt shoe shore shovel
signal silo sketch sled sleeve slope snail soap sock song soup spade sparrow spice spider spinach spiral spoon spring
spruce squirrel stable stadium stage stair stamp station statue steam stone stool storm stove straw stream street
string studio sugar suitcase summit sundial swan sweater table tailor tambourine tavern teapot temple tent theatre
thimble thistle thread throne thunder ticket tiger tile timber toast tomato torch tower toy track tractor trail train
tray treasure tree trombone trousers trout trumpet tulip tunnel turnip turtle tutor umbrella valley vase veil village
vine violet violin volcano wagon walnut walrus waltz warbler wardrobe water waterfall weaver well whale wheat wheel
whistle willow window winter wolf wood workshop wreath yard yarn zebra zenith
"""

_VERBS = """
accept add admire advise agree aim allow announce answer appear applaud arrange arrive ask assemble attend bake balance
bathe become begin believe belong bend blend bloom boil borrow bounce bow breathe bring build burnish buy call carry
carve catch celebrate change charm chase chat check choose chop clap climb close collect combine come compare compose
confirm consider continue cook copy count cover crawl create cross cycle dance dare decide decorate deliver depend
describe design dine dip discover discuss dive divide doodle drift drink drive dry dwell earn eat echo emerge enjoy
enter erase examine explain explore extend fasten feed fetch fill find finish fish fit float flow fold follow gather
give glide glow go greet grind grow guess guide hang happen hear help hike hire hold hop hope hum hurry imagine improve
include inform invent invite join jog juggle jump keep knead knit knock know label laugh lead learn leave lend lift
like listen live look make march mark match measure meet melt mend mention mix move multiply name nod notice observe
offer open order own pack paint park pass paste pause pay peel perform pick plan plant play point polish pour practise
praise prepare present print promise protect pull push put question race raise reach read receive recite record reflect
relax remain remember remind repair repeat reply report rest return ride ring rinse rise roam roast roll row run sail
save say scatter search see sell send serve settle sew share shine show sing sip sit skate skip sleep slice slide smile
solve sort sow speak spell spin stack stand start stay steer stir stitch stop store stretch stroll study suggest supply
support swap sway swim swing switch talk taste teach tell thank think throw tie tiptoe toss trace trade travel treat
trust try tug tune turn twirl type understand unfold unlock unpack untie use visit wait wake walk wander warm wash
watch wave wear weave weigh welcome whisper win wink wipe wish wonder work wrap write yawn yodel
"""

ADJECTIVES, NOUNS, VERBS = _ADJECTIVES.split(), _NOUNS.split(), _VERBS.split()
