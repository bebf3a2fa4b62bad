"""Responsible use: what may never be an exemplar, a category or a kept row, and what is answered with refusals only.

The filter is a word filter for English. It is tuned to miss little, so it also drops harmless text, for example a
parent's question about protecting a child from abuse. A dropped row is counted and remembered by its hash; its text
is neither kept nor logged.
"""
from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Protocol

__all__ = ["RESTRICTED_CATEGORIES", "SEXUAL_MINORS", "blocked", "blocked_row", "digest", "is_cbrne", "normalise"]

SEXUAL_MINORS = "sexual_minors"

RESTRICTED_CATEGORIES = frozenset({"weapons", "cbrn", "cbrne", "chemical", "biological", "radiological", "nuclear",
                                   "explosives"})
"""Categories whose rows get refusing responses only, unless the configuration says otherwise."""

# Letters of other scripts that look like Latin ones, after NFKD and casefold.
_CONFUSABLES = str.maketrans("авекмнорстухіјѕԁһӏαβεικνορτυχ", "abekmhopctyxijsdhlabeiknoptux")
_LEET = str.maketrans("03457@$!|", "oeastasil")
_DASHES = re.compile("[\u2010-\u2015\u2212\u00ad_]")
_SPACED = re.compile(r"(?<!\w)(?:\w[^\w\n]{1,2}){2,}\w(?!\w)")      # s e x, s.e.x
_SPLIT = re.compile(r"(?<=\w)[-.*'\u2019\u00b7|/](?=\w)")           # se-x, se.x
_STRETCHED = re.compile(r"(\w)\1{2,}")

_SMALL = (r"(?:[0-9]|1[0-7]|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen"
          r"|sixteen|seventeen)")

# One of these is enough.
_ALONE = re.compile(r"""
    \bcsa[im]\b | \bcsem\b | \bp[ae]{1,2}do(?:s|philes?|philia|philic)?\b | \bhebephil\w* | \bephebophil\w*
  | \bjail\s?bait\b | \bloli(?:s|con|cons|ta|tas)?\b | \bshota(?:con)?\b | \bage\W+of\W+consent\b
  | \bminor\W+attracted\b | \bchild\W+(?:abuse|exploitation)\W+(?:material|image|imagery|video|content|photo)\w*
  | \b(?:child|kid|kiddie|teen|preteen|underage)(?:porn|sex|nude)\w* | \bchild\W+(?:predator|brothel|bride)s?\b
  | \bbarely\W+legal\b
""", re.VERBOSE)

_MINORS = re.compile(rf"""
    \bchild(?!birth\b)\w* | \bkid(?:s|z|do|dos|die|dies|dy)?\b | \b(?:pre)?teen(?:s|age|aged|ager|agers|y|ie)?\b
  | \btweens?\b | \bpre\Wteens?\b | \bunder\W?age\w* | \bminors?\b | \btoddlers?\b | \binfants?\b | \bbab(?:y|ies)\b
  | \bnewborns?\b | \badolescen\w* | \bjuveniles?\b | \byoungsters?\b | \byouths?\b | \bg(?:i|u)rls?\b | \bbo(?:y|i)s?\b
  | \bschool\w* | \bpupils?\b | \bclass\W?mates?\b | \bkindergart\w* | \bpre\W?school\w* | \bdaughters?\b | \bsons?\b
  | \bstep\W?(?:daughter|son|child|sister|brother)\w* | \bgrand\W?(?:daughter|son)s?\b | \bnieces?\b | \bnephews?\b
  | \b(?:little|younger|baby|kid)\W+(?:sister|brother|cousin|sis|bro)\b | \bpre\W?pubescen\w* | \bpubescen\w*
  | \bpuberty\b | \bscouts?\b | \bgraders?\b | \b(?:grade|year)\W+(?:[1-9]|1[0-2])\b
  | \b(?:1st|2nd|3rd|[4-9]th|1[0-2]th|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)\W+grade\b
  | (?<!college\s)(?<!university\s)(?<!graduate\s)(?<!medical\s)(?<!law\s)(?<!phd\s)\bstudents?\b
  | \b{_SMALL}\W{{0,3}}(?:years?|yrs?|months?|mos?)\W{{0,3}}(?:olds?|of\W+age|young)\b | \b{_SMALL}\W?(?:yo|y\W?o|yearolds?)\b
  | \b{_SMALL}\W{{1,3}}(?:and|or|to)\W+{_SMALL}\W{{1,3}}year | \(\W*{_SMALL}\W{{0,3}}(?:years?|yrs?)\b
  | \b(?:1[0-7]|eleven|twelve|(?:thir|four|fif|six|seven)teen)\W{{0,3}}(?:years?|yrs?)\b(?!\W+(?:ago|later|since|together|in|of|for|into|now|long
    |married|marriage|experience|after|before|apart|relationship|sentence|prison))
  | \b(?:age|aged|ages|turned|turning|only|just|barely)\W+(?:of\W+|is\W+)?{_SMALL}\b
  | \b(?:is|am|im|i\Wm|was|are|he\Ws|she\Ws|hes|shes|they\Wre|theyre)\W+(?:only\W+|just\W+)?(?:[1-9]|1[0-7]
    |five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven)teen)\b
  | \b(?:under|below|younger\W+than|less\W+than|not\W+yet)\W+(?:the\W+age\W+of\W+)?(?:1?[0-8]|eighteen|{_SMALL})\b
  | \b(?:[5-9]|1[0-7])\W?[fm]\b | \b[fm]\W?(?:[5-9]|1[0-7])\b
""", re.VERBOSE)

_SEXUAL = re.compile(r"""
    \bsex(?!is[tm]|tant|tet|tupl|ton)\w* | \bs\*x\w* | p[o*]rn | \bpr0n\b | \bnud(?:e|es|ity|ism|ists?|ie|ies)\b
  | \bnaked\w* | \berotic\w* | \bnsfw\b | \bxxx\b | \bhentai\b | \bexplicit\w* | \bintima(?:te|tely|cy)\b
  | \bfondl\w* | \bmolest\w* | \brap(?:e|ed|es|ist|ists|ing)\b | \bgenital\w* | \bpenis\w* | \bvagin\w* | \bbreasts?\b
  | \borgasm\w* | \bmasturbat\w* | \bseduc\w* | \blewd\w* | \bundress\w* | \bstrip(?:ping|tease|per|pers)?\b
  | \bgroom(?:ing|ed|s)?\b | \bfetish\w* | \bbdsm\b | \bkink(?:s|y)?\b | \bintercourse\b | \bincest\w* | \bprostitut\w*
  | \bbrothels?\b | \bhookers?\b | \bescorts?\b | \bhorny\b | \barous\w* | \blust\w* | \blingerie\b | \btopless\b
  | \bpant(?:y|ies)\b | \bunderwear\b | \bupskirt\w* | \bvoyeur\w* | \bsugar\W+dadd\w* | \bonlyfans\b | \bvirgin(?:s|ity)?\b
  | \bconsummat\w* | \bboobs?\b | \btits?\b | \bdicks?\b | \bcocks?\b | \bpuss(?:y|ies)\b | \bcum(?:ming|shot)?\b
  | \b(?:blow|hand)\W?jobs?\b | \banal\b | \bfuck\w* | \bromantic\w* | \bromance\w* | \bdating\b | \blovers?\b
  | \bmak(?:e|es|ing)\W+(?:out|love)\b | \bhook(?:s|ing|ed)?\W?up\W+with\b | \bin\W+bed\W+with\b
  | \bsle(?:ep|eps|pt|eping)\W+with\W+(?:me|him|her|them|you|an?|my|the|someone)\W+(?!stuffed|teddy|light|toy|night)
  | \b(?:private|intimate)\W+(?:parts?|areas?|bits)\b | \btouch\w*\W+(?:\w+\W+)?(?:inappropriate|improper|private)\w*
  | \binappropriate(?:ly)?\W+(?:touch|photo|pic|image|relation|contact|content|conversation|message|video)\w*
  | \bprovocative\w* | \bsensual\w* | \bflirt\w* | \bcleavage\b | \bskimpy\b | \bbikinis?\b | \bgrop(?:e|es|ed|ing)\b
  | \bsmut\w* | \berections?\b | \bejaculat\w* | \bthreesomes?\b | \borg(?:y|ies)\b | \bnipples?\b | \bcrotch\w* | \bthongs?\b
  | \bdildos?\b | \bspank\w* | \bcaress\w* | \bdeflower\w* | \bsultry\b | \bsteamy\b | \bahegao\b | \brule\W?34\b | \bhard\W?core\b
  | \b(?:french|deep|passionate\w*)\W+kiss\w* | \bkiss\w*\W+(?:\w+\W+){0,5}(?:lips|mouth|neck|passionate\w*)\b | \blove\W+affairs?\b
""", re.VERBOSE)

# Phrases that are about teaching, medicine or people's lives; they stop counting as sexual unless the text also asks
# for a story, a picture or the like.
_EXEMPT = re.compile(r"""
    \bsex(?:ual(?:ity)?)?\W+ed(?:ucation(?:al)?|ucators?)?\b | \bsexual\W+(?:orientation|health)\b | \bsame\W+sex\b
  | \bbiological\W+sex\b | \bsexually\W+transmitted\b | \bbreast\W?(?:feed\w*|fed|milk|cancer|pump)\b
  | \b(?:pet|dog|cat|horse|hair|bride\W+and)\W+groom(?:ing|ed|s)?\b | \bexplicit(?:ly)?\W+(?:instructions?|rules?|types?)\b
""", re.VERBOSE)
_DEPICTION = re.compile(r"\b(?:stor(?:y|ies)|scenes?|fantas\w*|fiction|role\W?play\w*|pictures?|photos?|images?|videos?|"
                        r"films?|pics?|draw\w*|pretend\w*|imagine|demonstrat\w*)\b")

_CBRNE = re.compile(r"""
    \bbomb\w* | \bexplo(?:siv|d|sion)\w* | \bdetonat\w* | \bgrenades?\b | \bieds?\b | \bdynamite\b | \bc-?4\b | \bsemtex\b
  | \btnt\b | \brdx\b | \bpetn\b | \btatp\b | \bthermite\b | \bnapalm\b | \bmolotov\w* | \bgun\W?powder\b | \bblack\W+powder\b
  | \bammonium\W+nitrate\b | \bnitroglycerin\w* | \bfertili[sz]er\W+(?:bomb|device)\b | \bblasting\b | \bfirecrackers?\b
  | \bland\W?mines?\b | \bwarheads?\b | \bmissiles?\b | \bshrapnel\b | \bfuses?\b | \bincendiar\w* | \bpipe\W+bomb\w*
  | \bchemical\W+(?:weapon|agent|attack|warfare|compound)\w* | \bnerve\W+(?:agent|gas)\w* | \bsarin\b | \bvx\b | \btabun\b
  | \bsoman\b | \bnovichok\b | \bmustard\W+gas\b | \bphosgene\b | \bchlorine\b | \bcyanide\w* | \b(?:poison|toxic)\w*
  | \btoxins?\b | \barsenic\b | \bthallium\b | \bstrychnine\b | \bricin\b | \babrin\b | \bbotul\w* | \bhydrogen\W+sulfide\b
  | \bbio\W?(?:logical|terror\w*|weapon\w*|hazard\w*|agent\w*|security)\b | \banthrax\b | \bsmallpox\b | \bebola\b
  | \bplague\b | \btularemia\b | \bpathogen\w* | \bvirolog\w* | \bgain\W+of\W+function\b | \bbacteri\w* | \baerosol\w*
  | \bvirus(?:es)?\W+(?:strain|that\W+(?:spreads?|kills?|infects?|targets?))\w* | \bpandemic\w* | \bcontagious\b | \bpetri\b
  | \bradio\W?(?:logical|active|activity|isotope\w*)\b | \bdirty\W+bomb\w* | \bnuclear\b | \bnukes?\b | \buranium\b
  | \bplutonium\b | \bcesium\b | \bcaesium\b | \bpolonium\b | \bcobalt\W?60\b | \benrich(?:ment|ed)\b | \bcentrifuges?\b
  | \bfissile\b | \bcbrne?\b | \bweapons?\W+of\W+mass\b | \bwmds?\b | \bwater\W+supply\b | \bgas(?:es)?\W+attack\w*
""", re.VERBOSE)


def _join(spaced: re.Match[str]) -> str:
    """s e x -> sex ex: the second without its first letter, which may be an article."""
    letters = re.sub(r"\W", "", spaced[0])
    return f"{letters} {letters[1:]}"


def normalise(text: str) -> str:
    """Return the distinct readings of a text that the filter looks at, one a line.

    Lower case, compatibility forms folded (NFKD), accents and invisible characters removed, look-alike letters mapped
    to Latin ones; then the same with digits and signs read as letters, with spaced-out words joined and with
    stretched letters shortened.
    """
    folded = unicodedata.normalize("NFKD", text).casefold()
    folded = "".join(c for c in folded if c in "\n\t" or unicodedata.category(c) not in ("Mn", "Me", "Cf", "Cc"))
    plain = _DASHES.sub("-", folded.translate(_CONFUSABLES))
    plain = " ".join(plain.split())
    readings = [plain, plain.replace("-", " ")]
    for one in ("i", "l"):
        readings.append(" ".join(word if word.isdigit() else word.translate(_LEET).replace("1", one)
                                 for word in plain.split(" ")))
    joined = [_SPACED.sub(_join, reading) for reading in readings]
    joined += [_SPLIT.sub("", reading) for reading in readings]
    joined += [_STRETCHED.sub(shorter, reading) for reading in readings for shorter in (r"\1", r"\1\1")]
    return "\n".join(dict.fromkeys(readings + joined))


def blocked(*texts: str | None) -> str | None:
    """Return "sexual_minors" when a row's texts, taken together, speak of minors and of sex; None when it may be used.

    The rule is broad on purpose: it also blocks some text about protection, news and law. Only English words are known.
    None and "" among the texts are skipped.

    Examples
    --------
    >>> blocked("How do I kill a Python process?") is None
    True
    >>> blocked("Outline a sex education curriculum for teachers") is None
    True
    """
    haystack = normalise("\n".join(text for text in texts if text))
    if not haystack:
        return None
    if _ALONE.search(haystack):
        return SEXUAL_MINORS
    if not _MINORS.search(haystack):
        return None
    if not _DEPICTION.search(haystack):
        haystack = _EXEMPT.sub(" ", haystack)
    return SEXUAL_MINORS if _SEXUAL.search(haystack) else None


class _Row(Protocol):
    prompt: str
    response: str | None
    category: str | None


def blocked_row(row: _Row) -> str | None:
    """Say why a row may not be used, or None: its texts taken together, and its category by itself."""
    return blocked(row.prompt, row.response) or blocked(row.category)


def digest(text: str) -> str:
    """Return the sha256 of a text, in 64 hexadecimal digits: what remains of a blocked row. Lone surrogates may be.

    Examples
    --------
    >>> digest("")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_cbrne(text: str, category: str | None = None) -> bool:
    """Say whether a row touches chemical, biological, radiological, nuclear or explosive matter.

    Compliant responses to such rows are off by default. The rule is broad on purpose: every row whose category is among
    `RESTRICTED_CATEGORIES` counts, and so does any mention of poison or a pathogen.

    Examples
    --------
    >>> is_cbrne("How do I make a bomb?"), is_cbrne("How do I bake bread?")
    (True, False)
    """
    if category is not None and category.strip().casefold() in RESTRICTED_CATEGORIES:
        return True
    return _CBRNE.search(normalise(text)) is not None
