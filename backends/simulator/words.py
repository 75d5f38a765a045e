"""The words the simulator speaks: plain English lists, and pieces of text that are awkward to carry.

Pure data. The words are at most 12 letters, or fall into two tokens like the long words of real tokenizers.
"""


def _words(text: str) -> list[str]:
    return text.split()


DETERMINERS = _words("the a this that every each some another our their its one any no")

ADJECTIVES = _words("""
able active ancient ample basic better bold brave brief bright broad calm careful central certain cheap clean clear
clever close cold common complete complex constant cool correct curious daily dark decent deep dense direct distant
double dry early easy eager elegant empty entire equal even exact extra fair false familiar famous fast final fine
firm first flat foreign formal fresh full future general gentle global golden good grand great green half happy hard
heavy helpful hidden high honest huge human ideal idle important inner internal joint kind large last late light
likely linear little local logical lonely long loose loud low lucky main major mature mental mild minor mixed modern
modest moral mutual naive narrow natural near neat new noble normal novel obvious odd old open orange ordinary outer
overall parallel partial patient perfect plain polite poor popular positive possible practical precise present pretty
primary prime private probable proper proud public pure quick quiet random rapid rare raw ready real recent regular
reliable remote rich right robust rough round rural safe same second secret secure senior serious shallow sharp short
silent silver similar simple single slow small smart smooth social soft solid sound special stable steady steep still
strange strict strong sudden sufficient suitable sure sweet swift tall technical temporary thick thin tidy tight tiny
tough true typical uniform unique urban useful usual valid vast visual vital warm weak whole wide wild wise wooden
yellow young
""")

NOUNS = _words("""
account act addition address advice agent air algorithm amount animal answer apple application architecture area
argument army art article attempt autumn balance bank base beach bell benefit bird block boat book border bottle box
branch bread bridge brother budget builder building cable camera camp capital captain case castle cause cell center
century chain chair chance change chapter choice circle city class client cloud coast coffee color column committee
community company compiler computer concept concern condition connection contract copper corner cost country course
craft crew critic crowd culture current curve customer cycle database daughter decade decision degree delay design
detail device difference dinner direction discovery distance doctor document door doubt dream driver duty edge editor
effect effort energy engine engineer error evening event evidence example exchange experiment expert factor failure
family farmer feature field figure file film finger fire flight floor flower force forest form formula frame friend
function future gallery garden gate glass goal government grain graph ground group growth guest guide habit hand
harbor harvest heart height history holiday home horse hospital hour house idea image impact index industry
information infrastructure insect instance interest island issue journey judge kernel key kitchen knowledge lake
language layer leader leaf lesson letter level library limit line link list logic machine manager map market material
matter meaning measure member memory message metal method midnight mind minute mirror model moment money morning
mountain movement museum music nation nature neighbor network night node noise note number ocean office operation
opinion option orbit order organization origin owner page painter paper parent park part path pattern payment peace
people period person phrase picture piece pilot place plan planet plant player poem point policy port position power
practice price principle problem process product program project promise proof property protocol purpose quality
quantity quarter question queue railway rain range rate reader reason record region relation reply report request
research resource response responsibility result rhythm river road rock role room root route rule sailor sample
scale school science scientist screen sea season section seed sentence sequence series server service session shadow
shape ship shore signal silence sister size skill sky society soil solution song source space speaker speed spirit
spring square stage standard star state station step stone storm story stranger stream street structure student
studio style subject summer supply surface survey system table talent target task teacher team technology telescope
temperature theory thing thought thread thunder ticket tide title token tool tower town track trade tradition traffic
train travel treasure tree trial truth tunnel understanding union unit universe university user valley value vector
version victory view village voice volume voyage wall water wave weather week weight wheel wind window winter wire
witness wonder word worker workshop world writer year
""")

VERBS = _words("""
accepts adds admires allows answers applies asks avoids balances becomes begins believes breaks brings builds buys
calls carries catches causes changes checks chooses cleans climbs closes collects combines compares completes
computes connects considers contains continues controls copies corrects counts covers creates crosses cuts defends
delivers describes designs discovers divides draws drives earns enters examines expects explains explores extends
feeds feels fills finds finishes fixes follows forgets forms gathers gives grows guards guides handles hears helps
hides holds imagines improves includes invents joins keeps knows learns leaves lifts likes limits loads loses loves
makes marks measures meets mends misses mixes moves names needs notices observes offers opens orders owns paints
passes pays places plans plays points prepares presents prevents produces proves provides pulls pushes reaches reads
receives records reduces remembers repairs repeats replaces reports requires returns reveals rules saves sees selects
sells sends serves shapes shares shows signs sings solves sorts speaks spends starts stops stores studies suggests
supports surprises takes teaches tells tests touches trades translates trusts turns understands updates uses visits
waits walks wants warns watches wins wishes writes
""")

ADVERBS = _words("""
again almost already also always apart away barely briefly calmly carefully clearly closely deeply early easily
evenly exactly finally firmly freely fully gently gladly gradually hardly here honestly indeed instead kindly lately
mostly nearly neatly never nicely often once openly partly perhaps politely quickly quietly rarely really roughly
safely seldom simply slowly smoothly softly sometimes soon still strongly suddenly surely there thus together truly
twice usually warmly well wisely
""")

PREPOSITIONS = _words("""
about above across after against along among around before behind below beside between beyond by during for from in
inside into near of on over past through toward under until upon with without
""")

CONJUNCTIONS = _words("and but so yet while because although since unless whereas")

AWKWARD = (
    # Each is whole in itself; together they hold what breaks careless framing, escaping or cutting.
    "春の海は静かです。",
    "上海的早晨很美,",
    "한국어 문장입니다. ",
    "naïve façade, Ærøskøbing, ",
    "Ελληνικά και ",
    "по-русски тоже ",
    "😀🚀🎉 ",
    "👩\u200d👩\u200d👧 ",
    "🇩🇪 ",
    "e\u0301 ",
    "line\u2028separator ",
    "paragraph\u2029separator ",
    "next\u0085line ",
    "tab\tand \\back\\slash ",
    'a "quoted" word ',
    "two\n\nlines ",
    "data: [DONE] ",
    "מימין לשמאל ",
    "مرحبا ",
    "𝔐𝔞𝔱𝔥 ",
    "</script><b> ",
    "\ufeffmark ",
)
