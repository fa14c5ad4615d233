"""Real text of a wanted length: common English words, each one token for the tokenizers of nearly all models."""

from collections.abc import Iterable

import numpy as np

from diptych.workload.session import Segment

_WORD_LIST = (
    "time people water house music river winter summer window market country forest ocean bridge street school "
    "teacher student doctor worker player writer reader leader member friend family mother father brother "
    "child woman night hour minute week month year century history story letter paper book page word sentence "
    "language voice sound song picture color light sun moon star planet earth stone metal glass wood iron gold "
    "wall floor door room table chair bed clock phone radio train plane ship boat road path field farm tree "
    "flower grass leaf seed fruit bread milk sugar salt wine meat fish bird horse dog cat snow rain wind cloud "
    "storm fire ice heat cold air dust sand hill lake city town state nation world law rule right power force "
    "energy speed distance weight height depth size shape circle square line point center edge side front back "
    "top bottom middle left north south east west number half quarter hundred million money price cost value "
    "trade business company office factory machine engine tool wheel car bus travel trip bank shop store game "
    "ball team match race winner goal score art film show stage actor artist theory science physics biology "
    "nature animal plant human body head face eye ear nose mouth hand finger arm leg foot heart brain blood "
    "bone skin health disease medicine hospital patient plan idea thought mind memory dream love anger joy "
    "peace war king president court crime safety problem question answer reason cause effect result change "
    "growth future past present moment event party visit message news report study test class"
)
WORDS = _WORD_LIST.split()
"""256 words that are a token of their own, with a space before them and without."""


Edition = tuple[int, ...]
"""Other words for the same plan: texts of two editions share nothing, whatever their keys."""


def words_of(segment: Segment, edition: Edition = ()) -> list[str]:
    """Return the words of a segment: always the same, those of a longer one with the same key begin with them.

    Segments with different keys share a first word once in 256 times, three once in 17 million.
    """
    # The lengths, since numpy takes (0,) and (0, 0) for the same.
    source = np.random.default_rng((*edition, *segment.key, len(edition), len(segment.key)))
    numbers = source.integers(len(WORDS), size=segment.num_tokens)
    return [WORDS[number] for number in numbers]


def text_of(segments: Iterable[Segment], edition: Edition = ()) -> str:
    """Return the text of segments that follow each other; it begins without a space."""
    return " ".join(word for segment in segments for word in words_of(segment, edition))
