"""Classes of English words, nouns, adjectives, verbs and others, from lists and endings in this file.

A word that is in no list and has no listed ending is a noun, as most words of captions are.
"""

import functools

NOUN, ADJECTIVE, VERB, OTHER = range(4)  # the order in which syntax masking keeps them


def word_class(word: str) -> int:
    """The class of a word in lower case; a word without letters is OTHER."""
    found = lexicon().get(word)
    return ending_class(word) if found is None else found


def ending_class(word: str) -> int:
    """The class by the end of a word that is in no list, or of the last piece of one."""
    if not any(letter.isalpha() for letter in word):
        return OTHER
    return next((kind for ending, kind in ENDINGS.items() if word.endswith(ending)), NOUN)


@functools.cache
def lexicon() -> dict[str, int]:
    """{word in lower case: its class}, of all words in the lists and their forms."""
    found: dict[str, int] = dict.fromkeys(ADJECTIVES.split(), ADJECTIVE)
    for word in GRADED.split():
        found |= dict.fromkeys([word, _joined(word, "er"), _joined(word, "est")], ADJECTIVE)
    for verb in VERBS.split():
        found |= dict.fromkeys([verb, _third(verb)], VERB)  # the endings find "-ed" and "-ing"
    found |= dict.fromkeys(VERB_FORMS.split(), VERB) | dict.fromkeys(NOUNS.split(), NOUN)
    return found | dict.fromkeys(OTHERS.split(), OTHER)


def _joined(word, ending):
    """Large, larger; heavy, heavier; big, bigger."""
    if word.endswith("e"):
        return word + ending[1:]
    if word.endswith("y"):
        return word[:-1] + "i" + ending
    doubled = len(word) == 3 and word[1] in "aeiou" and word[2] not in "wxy"
    return word + word[-1] * doubled + ending


def _third(verb):
    """Make, makes; carry, carries; reach, reaches."""
    if verb.endswith("y") and verb[-2] not in "aeou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("ch", "o", "sh", "ss", "x")) else "s")


# The first match counts; endings that as many words of another class have are left out.
ENDINGS = {
    **dict.fromkeys(
        ["able", "ary", "esque", "ful", "ible", "ic", "ical", "ional", "ish"], ADJECTIVE
    ),
    **dict.fromkeys(["ental", "ive", "less", "like", "ous", "some", "ular", "ural"], ADJECTIVE),
    **dict.fromkeys(["ed", "ing"], VERB),
    **dict.fromkeys(["ly", "self", "selves", "ward", "wards"], OTHER),
}

# Articles, pronouns, prepositions, conjunctions, numbers, adverbs, modal verbs, what tokenizers leave where
# they cut at an apostrophe.
OTHERS = """
a all an another any anybody anyone anything both each either every everybody everyone everything half he
her hers herself him himself his i it its itself me my myself neither no nobody none nothing one oneself
our ours ourselves she some somebody someone something that the their theirs them themselves these they
this those us we what whatever which whichever who whoever whom whose you your yours yourself yourselves
aboard about above across after against along alongside amid amidst among amongst around as at atop before
behind below beneath beside besides between beyond by despite down during except for from in inside into
like near nearby of off on onto out outside over per plus since than through throughout till to toward
towards under underneath unlike until unto up upon versus via vs with within without
although and because but if nor or so though unless whereas whether while yet
zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion
abroad afterward afterwards again ago ahead almost already also altogether always apart aside away
backwards else elsewhere enough etc even ever everywhere far forever forth forward hence here how however
indeed indoors instead just later least less maybe meanwhile more moreover most much never nevertheless not
now nowhere often once only otherwise outdoors overhead perhaps please quite rather seldom sideways
sometimes somewhat somewhere soon still then there therefore thus today together tomorrow tonight too twice
underway very well when whenever where wherever why yesterday
can cannot could couldn may might must ought shall should shouldn will would wouldn
'd 'll 'm 're 's 't 've eg ie ll n't re s t ve
"""

# Those of which neither form is a noun as often: not stand, work or plant.
VERBS = """
accept accompany achieve add adjust admire adopt agree allow announce appear apply approach arrange arrive
ask assemble attach attend become begin believe belong bend blow borrow breathe bring build bury buy carry
catch celebrate choose climb cling collect combine come compare connect consider consist contain continue
create crouch cry cultivate dangle decide decorate defend deliver demonstrate depart depict describe
destroy detect develop die dig dine disappear discover discuss eat embrace emerge employ enable encourage
enjoy ensure enter erect examine expect explain explore extend fetch follow gather gaze get give go grab
greet grow hang happen hear hold hug illustrate imagine improve include increase indicate inspect install
inspire introduce invite involve join keep kneel know lay lean learn leave listen locate lose maintain make
manage manufacture meet melt obtain occupy occur operate overlook participate perform prepare prevent
produce protect prove provide publish pull put raise reach receive recline relax remain remember remove
replace represent reveal say seem sell send serve sew sing sit sleep sniff speak spend squat stay sunbathe
surround swim take teach tell tend think throw try understand unload unveil wait want warn wear weave weigh
weld write yawn
"""

VERB_FORMS = """
am are aren be been being did didn do does doesn doing don done had hadn has hasn have haven having is isn
used was wasn were weren
ate became began begun blew blown born bought bred brought built burnt came caught chose chosen clung crept
cut dealt drank drawn drew driven drove drunk eaten fallen fed fell felt flew flown forgot forgotten fought
gave given goes gone got gotten grew grown heard held hid hung kept knelt knew known laid lain leapt led
let lit lost made meant met paid ran rang read ridden rode said sang sat saw seen sent shaken shone shook
shown shut slept slid sold sought spent spoke spoken sprang stole stood strewn struck stuck sung sunk swam
swept swung taken taught thrown threw told took tore understood went woke won wore wove woven written wrote
"""

# Those that have degrees in "-er" and "-est".
GRADED = """
angry bald bare big black blond blue bold brave brief bright brisk broad brown bumpy busy calm cheap chilly
clean clear clever close cloudy clumsy coarse cold cool cosy cozy crazy creamy creepy crisp curly cute damp
dark deep dense dim dirty dry dull dusty early easy empty faint fancy fast fat fierce fine firm flat fluffy
foggy fresh friendly funny furry fuzzy gentle glad gloomy glossy grand grassy gray great green grey grim
grumpy hairy handy happy hard harsh healthy heavy high hot huge humble hungry icy juicy keen large late lazy
leafy lively lonely long loose loud lovely low loyal lucky lush mad messy mighty mild misty moist muddy
narrow naughty neat new nice noble noisy odd old pale pink plain poor pretty proud pure quaint quick quiet
rainy rare raw ready red rich ripe rocky rough rude rusty sad safe salty sandy scary shabby shady shallow
sharp shiny short shy sick silky silly simple sleek sleepy slender slight slim slow sly small smart smelly
smooth snowy soft sour spicy spiky spooky steady steep sticky stiff stormy straight strange strict strong
sturdy subtle sunny sure sweet swift tall tame tasty tender thick thin thirsty tidy tight tiny tough true
ugly vague vast warm wary weak wealthy weary weird wet white wicked wide wild windy wise woolly worthy
yellow young yummy
"""

ADJECTIVES = """
abstract actual adjacent adult advanced aerial afraid aged alone amazing american ancient annual antique
apparent appropriate arid armed asian asleep average awake aware bad best better blank bleak blind blonde
bored boring brand brazilian brilliant broken canadian casual central certain charming chinese christian
civil coastal colonial colored coloured commercial common compact complete complex convenient corporate
correct crowded crucial cuban current curved daily dead deaf delicate depressed desperate detailed different
difficult digital distant distinct diverse double downtown due dutch eager eastern egyptian eighth elaborate
elderly elegant eminent entire equal essential european everyday evil exact excellent excess excited
exciting external extra extreme false familiar favorite favourite federal female few fifth final finished
first floral folk fond foreign former fourth fragile free french frequent frosted full further georgian
german giant gifted golden good gradual greek handmade hidden hollow holy homemade honest horizontal humid
ideal illegal imperial important independent indian indoor industrial initial inner innocent instant intact
intense interesting internal intricate italian japanese junior korean last latin legal liberal likely
limited little local lone loved luxury main major male many maritime married masked mature maximum medieval
mediterranean medium mere mexican middle miniature minimal minimalist minimum minor missing mixed mobile
modern molten monochrome moral multiple municipal mutual naked naval neutral next ninth normal northeastern
northern northwestern norwegian nude obese official offshore open opposite original ornate other outdoor
outer outstanding overall overcast overgrown own parallel partial past patient perfect permanent persian
personal pleasant pointed polar polite polynesian portuguese potential pregnant present prime prior private
profound prominent proper provincial purple racial radiant random real recent regal related relaxed remote
renewed residential retired retro robust roman rotten royal rugged russian sacred same satin scandinavian
scattered second secret select senior separate serene seventh several severe sexual sheer silent similar
single sixth skilled skinny sober social solar sole solid sophisticated southeastern southern southwestern
spare special spiral spiritual stained standard stony striped stunning stupid suburban such sudden
sufficient super superb superior supreme surreal swiss talented tenth third thorough tibetan tired torn
total tranquil transparent tribal trim triple twin ultimate underground underwater uneven unfinished unhappy
unidentified unique universal unknown unlikely unpaved unused unusual upcoming upper upright upset urban
urgent usual vacant valid vegan vegetarian vibrant vietnamese vintage violent virtual visual vital vivid
vocal weathered weekly welsh western whole wooded wooden woolen worn worse worst wounded wrong
"""

# Those that the endings above would take for something else, and those that are adjectives in names alone.
NOUNS = """
ally archive arctic assembly atlantic attic award awning basic bed bedding beijing belly beverly bible billy
bleed boundary boxing breed british building bully butterfly cable camping canary canning captive ceiling
ceramic classic clinic clothing comic commentary cooperative critic crossing deed derivative detective diary
dictionary dining dish dive drawing dressing drive earring emily engineering epic eric estuary ethic evening
executive fable fabric family farming february feed finish fish fishing flooring fly foursome fred frosting
fugitive fundraising gardening garlic glossary graphic greed handful heating herring hillary hive holly
housing icing initiative italy january jelly jolly july kelly king landing laundering lettering library
lightning lily living locomotive lodging logic lyric magic mary mechanic mining missionary molly monopoly
moped morning mosaic motive mouthful mural music narrative national native need notary obituary olive
opening pacific packing painting panic parish parking perspective picnic piping planning plastic plumbing
polish polly public pudding racing radish railing rally reed refining relative relic relish reply
representative republic ring roofing rosary rowing rubbish sailing salary sally sanctuary scaffolding
secretary seed sewing shed shipping shopping sibling siding sightseeing skateboarding skiing sled smelting
speed spoonful spring stable steed sterling steward stocking string stuffing summary supply surfing swing
table thing topic traffic training tunic turntable twosome united vegetable viking ward wedding weed wing
wiring wrestling
"""
